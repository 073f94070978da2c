"""Pocket Diffusion's anatomy: Stable Diffusion 1.5's, made small, from stock diffusers and transformers classes.

network      class                   here
VAE          AutoencoderKL           f = 8, 12 latent channels, 128 px -> 16 x 16
text         CLIPTextModel           width 256, 3 layers, up to 32 tokens
U-Net        UNet2DConditionModel    three cross-attention blocks, one plain: 16 cross-attentions (6 down, 1 mid, 9 up)
noise        DDPM betas of SD 1.5    scaled linear, 1000 steps, epsilon prediction
"""

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

PICTURE, LATENT, CHANNELS = 128, 16, 12
TEXT_WIDTH, TOKENS = 256, 32


def build_vae() -> AutoencoderKL:
    """Spends its width on the low resolutions: the full-resolution layers cost most of the time."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128), layers_per_block=1, latent_channels=CHANNELS, norm_num_groups=8,
        sample_size=PICTURE, mid_block_add_attention=False,
    )  # fmt: skip
    with torch.no_grad():  # start nearly without posterior noise: from the default the first minutes are lost to it
        vae.quant_conv.weight[CHANNELS:] = 0
        vae.quant_conv.bias[CHANNELS:] = -6.0
    return vae


def build_unet(widths=(96, 128, 96, 64), heads: int = 4) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=LATENT, in_channels=CHANNELS, out_channels=CHANNELS, layers_per_block=2, block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=TEXT_WIDTH, attention_head_dim=heads, norm_num_groups=16,
    )  # fmt: skip


def build_text_encoder(vocabulary: int, bos: int, eos: int, pad: int, layers: int = 3) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, num_hidden_layers=layers,
        num_attention_heads=8, max_position_embeddings=TOKENS, projection_dim=TEXT_WIDTH, hidden_act="quick_gelu",
        bos_token_id=bos, eos_token_id=eos, pad_token_id=pad,
    ))  # fmt: skip


def build_scheduler() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        steps_offset=1,
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        algorithm_type="dpmsolver++", solver_order=2, use_karras_sigmas=False, timestep_spacing="trailing",
    )  # fmt: skip


@torch.no_grad()
def grow(net: torch.nn.Module, smaller: torch.nn.Module) -> torch.nn.Module:
    """Copy a network with fewer latent channels into `net`: it starts as that network does, on the channels it knows.

    What reads the new channels starts at zero, what writes them stays as it was drawn. Means and log variances of the
    posterior lie one after the other, so each half of such a dimension is filled by its own.
    """
    known = smaller.state_dict()
    for name, weight in net.state_dict().items():
        old = known[name]
        if old.shape == weight.shape:
            weight.copy_(old)
            continue
        halves = 2 if "encoder.conv_out" in name or name.startswith("quant_conv") else 1
        new, old = weight.view(halves, -1, *weight.shape[1:]), old.view(halves, -1, *old.shape[1:])
        if new.ndim > 2 and new.shape[2] != old.shape[2]:  # it reads the latent
            pair = (halves, new.shape[2] // halves, *new.shape[3:])
            whole = new.view(halves, new.shape[1], *pair)
            part = old.view(halves, old.shape[1], halves, old.shape[2] // halves, *old.shape[3:])
            whole[:, :, :, part.shape[3] :] = 0
            whole[:, : part.shape[1], :, : part.shape[3]] = part
        else:
            new[:, : old.shape[1]] = old
    return net
