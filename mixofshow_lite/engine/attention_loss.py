"""Attention regularisation of the official code: the concept's words should look at the concept.

What is computed from the maps is `attention.outside_attention`; here is where they come from, and one more term. With
the full identity the last word, which started as the class, has to fill the mask: the mean square of map minus mask.

    here         shape
    token_mask   (B, W, N)   one-hot: where each of W concept words stands in the prompt (its mean, if it stands twice)
    maps         (B, W, T)   attention of T pixels to each word

Only the concept words' probabilities are kept, T x W instead of T x N, but the softmax needs all N scores: attention is
written out (not fused) in the cross-attention layers while this is on. It is in the official code's main branch only.
Its weight there, 0.01, stands beside a loss that is summed over the latent's channels, see recipes.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from .. import attention
from ..attention import cross_attention, layer_size, swapped
from .layerwise import LayerAttention


class CapturingAttention(LayerAttention):
    """Cross-attention of one layer that also hands the concept words' attention maps to `maps`."""

    def __init__(self, plain: LayerAttention, token_mask: Tensor, maps: list[Tensor]):
        super().__init__(plain.layer, plain.layers, plain.tokens)
        self.token_mask, self.maps = token_mask, maps

    def __call__(self, attn: Attention, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        context = self.own_slice(encoder_hidden_states)  # (B, N, D)
        parts = (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        query, key, value = (attn.head_to_batch_dim(part) for part in parts)  # (B * heads, T or N, d)
        p = attn.get_attention_scores(query, key)  # (B * heads, T, N)
        heads = p.unflatten(0, (-1, attn.heads)).float()
        self.maps.append(torch.einsum("bhtn,bwn->bwt", heads, self.token_mask) / attn.heads)
        return attn.to_out[0](attn.batch_to_head_dim(p @ value))


@contextmanager
def captured_attention(unet: nn.Module, token_mask: Tensor) -> Iterator[list[Tensor]]:
    """While on, each pass of the U-Net appends L maps (B, W, T) to the list that this gives.

    Take the backward pass inside too if the U-Net recomputes itself in it (gradient checkpointing).
    """
    maps: list[Tensor] = []
    plain = [module.processor for module in cross_attention(unet).values()]
    with swapped(unet, lambda layer: CapturingAttention(plain[layer], token_mask, maps)):
        yield maps


def outside_attention(maps: list[Tensor], inside: Tensor, full_identity: bool = False) -> Tensor:
    """The penalty of each picture, (B,), from the maps of all layers and the mask (B, 1, h, w)."""
    if not full_identity:
        return attention.outside_attention(maps, inside)
    others, last = [m[:, :-1] for m in maps], [m[:, -1] for m in maps]
    return attention.outside_attention(others, inside) + unfilled_attention(last, inside)


def unfilled_attention(maps: list[Tensor], inside: Tensor) -> Tensor:
    """How far one word's maps (B, T) are from the mask (B, 1, h, w): mean squares summed over sizes, (B,)."""
    penalty = torch.zeros(len(inside), device=inside.device)
    masked = (inside < 1).any(dim=3).any(dim=2)[:, 0]  # (B,) false where there is no mask: nothing to fill
    for T in sorted({of_layer.shape[1] for of_layer in maps}):
        mean = torch.stack([of_layer for of_layer in maps if of_layer.shape[1] == T]).mean(dim=0)  # (B, T)
        relative = mean / mean.amax(dim=1, keepdim=True).clamp(min=1e-8)
        mask = F.adaptive_avg_pool2d(inside, layer_size(T, *inside.shape[-2:])).flatten(1)  # (B, T)
        penalty = penalty + (relative - mask).square().mean(dim=1) * masked
    return penalty
