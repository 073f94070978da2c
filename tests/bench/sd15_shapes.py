"""Stable Diffusion 1.5's networks in shape alone, for tests and benchmarks: their configuration, and no numbers."""

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

UNET = {  # where it differs from diffusers' defaults
    "sample_size": 64,
    "cross_attention_dim": 768,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def networks() -> tuple[nn.Module, nn.Module]:
    """(text encoder, U-Net) on the meta device."""
    with torch.device("meta"):
        return CLIPTextModel(CLIPTextConfig(**TEXT)), UNet2DConditionModel(**UNET)
