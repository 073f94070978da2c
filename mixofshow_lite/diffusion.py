"""Text-to-image diffusion (paper 3.1): the model, the loss it is trained with, and the loop that samples from it.

    loss = E_{z, c, eps, t} || eps - eps_theta(z_t, t, c) ||_2^2                                         (Eq. 1)

    paper       here            shape
    z           latents         (B, C, h, w)    the picture, compressed by the VAE to 1/f of its side
    t           t               (B,)            0: almost clean, 999: almost noise; () while sampling: one for all
    eps         noise           (B, C, h, w)    standard normal
    z_t         add_noise(...)  (B, C, h, w)    sqrt(a_t) z + sqrt(1 - a_t) eps
    c = psi(P)  context         (B, L, N, D)    the prompt, encoded for each cross-attention layer, see prompts.py
    eps_theta   model.unet                      predicts the noise in z_t; each layer takes its own prompt from c

Every size is read from the model: the same code runs Stable Diffusion 1.5 and a model small enough for a CPU.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor, nn

from .attention import install
from .prompts import bind, encode


@dataclass
class Model:
    """A Stable-Diffusion-shaped model. What is made from it shares every weight that stays the same."""

    tokenizer: object  # CLIPTokenizer
    text_encoder: nn.Module  # CLIPTextModel, psi
    unet: nn.Module  # UNet2DConditionModel, eps_theta; `install` makes it take a context with an L
    vae: nn.Module  # AutoencoderKL
    scheduler: object  # any diffusers scheduler: only its noise schedule is used
    words: dict[str, Tensor] = field(default_factory=dict)  # concept word -> (L, D)
    layers: tuple[str, ...] = field(init=False)  # names of the L cross-attention layers, down -> mid -> up

    def __post_init__(self):
        self.layers = install(self.unet)

    def context(self, prompts: str | Sequence[str], words: dict[str, Tensor] | None = None) -> Tensor:
        """c = psi(P): B prompts -> (B, L, N, D). Tuning passes its own trainable `words`, (1, D) or (L, D) each."""
        if isinstance(prompts, str):
            prompts = [prompts]
        if words is None:
            words = self.words
        table = None
        if words:
            table = torch.stack(list(words.values()))  # (W, L, D) or (W, 1, D)
        bound = bind(self.tokenizer, prompts, list(words))
        return encode(self.text_encoder, bound, table, len(self.layers))

    def copy(self) -> "Model":
        """The same model with modules of its own and shared weights; replacing a layer changes only the copy."""
        return replace(self, text_encoder=share(self.text_encoder), unet=share(self.unet), words=dict(self.words))


def share(net: nn.Module) -> nn.Module:
    """A copy of a network's modules that holds the very same weight tensors, so that it costs no memory."""
    memo = {}
    for tensor in itertools.chain(net.parameters(), net.buffers()):
        memo[id(tensor)] = tensor  # deepcopy believes that these are copied already
    return copy.deepcopy(net, memo)


def from_pipeline(pipeline) -> Model:
    """The model of a diffusers StableDiffusionPipeline. It shares the pipeline's networks, and freezes them."""
    # Here and not in Model: a copy shares its weights, and those of a LoRA that is being tuned must stay trainable.
    for net in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
        net.requires_grad_(False).eval()
    return Model(pipeline.tokenizer, pipeline.text_encoder, pipeline.unet, pipeline.vae, pipeline.scheduler)


def add_noise(model: Model, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """z_t of latents and noise (B, C, h, w) at times t (B,), each 0 <= t < the number of training steps."""
    a = model.scheduler.alphas_cumprod.to(latents.device)[t].view(-1, 1, 1, 1)  # (B, 1, 1, 1), how much is signal
    # The roots keep the variance at 1: a_t of the picture's, 1 - a_t of the noise's.
    z_t = a.sqrt() * latents + (1 - a).sqrt() * noise  # 3.1 z_t = sqrt(a_t) z + sqrt(1 - a_t) eps
    return z_t.to(latents.dtype)  # the schedule is in float32, a model may be in half precision


def draw_noise(
    model: Model, shape: Sequence[int], noise_offset: float = 0.0, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """What Eq. 1 averages over: t (B,), uniform over the training steps, and noise of `shape` (B, C, h, w).

    `noise_offset` adds one more normal number per channel, so that a model also learns to change the brightness of a
    whole picture (0.01 in the official code).
    """
    B, C = shape[:2]
    t = torch.randint(model.scheduler.config.num_train_timesteps, (B,), generator=generator)
    noise = torch.randn(shape, generator=generator)
    return t, noise + noise_offset * torch.randn(B, C, 1, 1, generator=generator)


def denoising_errors(model: Model, latents: Tensor, context: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The squares of Eq. 1, (B, C, h, w), for latents and noise (B, C, h, w), context (B, L, N, D) and t (B,)."""
    z_t = add_noise(model, latents, noise, t)  # (B, C, h, w)
    predicted = model.unet(z_t, t, context).sample  # 3.1 eps_theta(z_t, t, c)
    return (noise - predicted).square()  # Eq. 1 denoising loss


def denoising_loss(model: Model, latents: Tensor, context: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Eq. 1 with every number weighing the same, as in pretraining -> (); arguments as `denoising_errors` has them.

    The equation sums the squares; like the official code we take their mean. The minimum is the same, and learning
    rates do not depend on the size of the picture.
    """
    return denoising_errors(model, latents, context, noise, t).mean()


def guided_noise(model: Model, z: Tensor, t: Tensor, context: Tensor, negative: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): the difference that the prompt makes, times `guidance`.

    z (B, C, h, w) at one time t () for all -> the noise in it, (B, C, h, w). context (B, L, N, D) is what to draw,
    negative (1, L, N, D) what to move away from; guidance 1 is the model's own answer to the prompt.
    """
    if guidance == 1:
        return model.unet(z, t, context).sample
    both = torch.cat([negative.expand_as(context), context])  # (2B, L, N, D): one pass for both, negative first
    eps_negative, eps_positive = model.unet(torch.cat([z, z]), t, both).sample.chunk(2)
    return eps_negative + guidance * (eps_positive - eps_negative)  # 3.1 classifier-free guidance


@torch.no_grad()
def denoise(
    model: Model, z: Tensor, context: Tensor, negative: Tensor, steps: int = 25, guidance: float = 7.5
) -> Iterator[Tensor]:
    """The sampling loop: noise (B, C, h, w) -> the latents after every step; the last ones are the picture.

    A generator: progress bars and previews stand outside. Guidance 7.5 is Stable Diffusion's, the shipped pocket model
    draws with 4.0.
    """
    # DPM-Solver++ (Lu et al. 2022) needs 20 to 25 steps where the sampler that follows the training steps needs 1000.
    scheduler = DPMSolverMultistepScheduler.from_config(model.scheduler.config, algorithm_type="dpmsolver++")
    scheduler.set_timesteps(steps, device=z.device)
    for t in scheduler.timesteps:
        eps = guided_noise(model, z, t, context, negative, guidance)  # (B, C, h, w)
        z = scheduler.step(eps, t, z).prev_sample  # 3.1 sampling
        yield z


@torch.no_grad()
def sample(
    model: Model,
    prompt: str,
    n: int = 1,
    seed: int = 0,
    steps: int = 25,
    guidance: float = 7.5,
    negative_prompt: str = "",
    size: tuple[int, int] | None = None,
) -> list[Image.Image]:
    """Draw n pictures of one prompt; `size` is (height, width) in pixels, by default the model's own."""
    context = model.context([prompt] * n)  # (n, L, N, D)
    negative = model.context(negative_prompt)  # (1, L, N, D)
    z = starting_noise(model, n, seed, size).to(context)  # (n, C, h, w)
    *_, z = denoise(model, z, context, negative, steps, guidance)  # only the last latents are wanted here
    return decode(model, z)


def starting_noise(model: Model, n: int, seed: int, size: tuple[int, int] | None = None) -> Tensor:
    """n times noise on the CPU, (n, C, h, w). Picture i has its own seed + i, so it does not depend on its batch."""
    h, w = latent_size(model, size)
    noise = []
    for i in range(n):
        generator = torch.Generator().manual_seed(seed + i)
        noise.append(torch.randn(model.unet.config.in_channels, h, w, generator=generator))
    return torch.stack(noise)


def latent_size(model: Model, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """(h, w) of the latents for pictures of `size` pixels; without a size those that the model was trained on."""
    if size is None:
        side = model.unet.config.sample_size
        return side, side
    f = 2 ** (len(model.vae.config.block_out_channels) - 1)  # every level of the VAE but the first halves the side
    return size[0] // f, size[1] // f


@torch.no_grad()
def encode_images(model: Model, pictures: Sequence[Image.Image]) -> Tensor:
    """PIL pictures of one size -> z, latents (B, C, h, w): the mean of the VAE's posterior, scaled to variance 1."""
    x = np.stack([np.asarray(picture.convert("RGB"), dtype=np.float32) for picture in pictures])  # (B, H, W, 3)
    x = torch.from_numpy(x).permute(0, 3, 1, 2) / 127.5 - 1  # (B, 3, H, W) in -1..1
    z = model.vae.encode(x.to(model.vae.device, model.vae.dtype)).latent_dist.mean
    return z * model.vae.config.scaling_factor  # 3.1 z


@torch.no_grad()
def decode(model: Model, latents: Tensor) -> list[Image.Image]:
    """Latents (B, C, h, w) -> PIL pictures, the inverse of `encode_images` up to what the VAE loses."""
    x = model.vae.decode(latents.to(model.vae.dtype) / model.vae.config.scaling_factor).sample  # (B, 3, H, W)
    pixels = ((x.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return [Image.fromarray(picture) for picture in pixels.cpu().numpy()]
