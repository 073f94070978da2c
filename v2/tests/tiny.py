"""A tiny random model with Stable Diffusion 1.5's anatomy and random concepts for it: no test needs a real one."""

import json
import math

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mixofshow_lite.engine import lora
from mixofshow_lite.files.concept import Concept

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = "a photo of the red blue cat dog rabbit robot on in and beach forest".split()


def tiny_tokenizer(folder):
    """A byte-level BPE with a few whole words and the full byte alphabet, 16 tokens long."""
    alphabet = sorted(ByteLevel.alphabet())
    vocab = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
            vocab.append(pieces[0])
    vocab = [*dict.fromkeys(vocab), START, END]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in dict.fromkeys(merges)))
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def build_tiny(folder):
    """Write a diffusers folder: 16 cross-attention layers (6 down, 1 mid, 9 up), f = 8, widths of 32, 64 px."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(folder.parent / "raw_tokenizer")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():  # CLIP's own initialisation is so small that words would hardly differ in a tiny net
        for weight in text_encoder.parameters():
            if weight.ndim == 2:
                weight.copy_(torch.randn_like(weight) * 0.2)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=64,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(folder)
    return folder


def make_concept(base, name="bibi", seed=0, rank=2, size=0.3, nets=("text_encoder", "unet")):
    """A random ED-LoRA for `base`, strong enough to change pictures."""
    generator = torch.Generator().manual_seed(seed)
    L, D = len(base.layers), base.text_encoder.config.hidden_size
    words = (f"<{name}1>", f"<{name}2>")
    factors = {}
    for net in nets:
        factors[net] = {}
        for module, linear in lora.attention_linears(getattr(base, net)).items():
            down = torch.randn(rank, linear.in_features, generator=generator) / linear.in_features**0.5
            factors[net][module] = (down, size * torch.randn(linear.out_features, rank, generator=generator))
    return Concept(
        name=name,
        words=words,
        class_word="rabbit",
        recipe="ed_lora",
        embeddings={word: 0.3 * torch.randn(L, D, generator=generator) for word in words},
        lora=factors,
        rank=rank,
        base_id=base.base_id,
        fingerprint=base.fingerprint,
        layers=base.layers,
    )


def weights_of(model):
    nets = {net: lora.attention_linears(getattr(model, net)) for net in ("text_encoder", "unet")}
    return {f"{net}.{name}": linear.weight for net, linears in nets.items() for name, linear in linears.items()}


def spread(a, b):
    """The root of the summed squared weight differences between two models."""
    first, second = weights_of(a), weights_of(b)
    return math.sqrt(sum((first[name] - second[name]).square().sum().item() for name in first))
