"""Attention regularisation of the official code: the concept's words should look at the concept.

Per picture, feature-map size and concept word: average the word's attention over the heads and layers of that size,
divide it by its maximum, and take the mean outside the mask; then sum over words and sizes. With the full identity the
last word, which started as the class, has to fill the mask too: the mean square of its map minus the mask.

    here      shape
    finder    (B, W, N)      one-hot: where each of W concept words stands in the prompt (its mean, if it stands twice)
    inside    (B, 1, h, w)   the mask, 1 on the concept; a picture without one is all 1 and costs nothing
    maps      (B, W, T)      attention of T pixels to each word

Only the concept words' probabilities are kept, T x W instead of T x N, but the softmax needs all N scores: attention is
written out (not fused) in the cross-attention layers while this is on. It is in the official code's main branch only;
that divides by the maximum over the batch, here each picture has its own, so that it does not depend on its neighbours.
Its weight there, 0.01, stands beside a loss that is summed over the latent's channels, see recipes.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from .layerwise import LayerAttention, cross_attention


class WatchedAttention(LayerAttention):
    """Cross-attention of one layer that also hands the concept words' attention maps to `maps`."""

    def __init__(self, plain: LayerAttention, finder: Tensor, maps: list[Tensor]):
        super().__init__(plain.layer, plain.layers, plain.tokens)
        self.finder, self.maps = finder, maps

    def __call__(self, attn: Attention, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        context = self.own_slice(encoder_hidden_states)  # (B, N, D)
        parts = (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        query, key, value = (attn.head_to_batch_dim(part) for part in parts)  # (B * heads, T or N, d)
        p = attn.get_attention_scores(query, key)  # (B * heads, T, N)
        heads = p.unflatten(0, (-1, attn.heads)).float()
        self.maps.append(torch.einsum("bhtn,bwn->bwt", heads, self.finder) / attn.heads)
        return attn.to_out[0](attn.batch_to_head_dim(p @ value))


@contextmanager
def watched(unet: nn.Module, finder: Tensor) -> Iterator[list[Tensor]]:
    """While on, each pass of the U-Net appends L maps (B, W, T) to the list that this gives.

    Take the backward pass inside too if the U-Net recomputes itself in it (gradient checkpointing).
    """
    maps: list[Tensor] = []
    modules = list(cross_attention(unet).values())
    plain = [module.processor for module in modules]
    for module, processor in zip(modules, plain, strict=True):
        module.set_processor(WatchedAttention(processor, finder, maps))
    try:
        yield maps
    finally:
        for module, processor in zip(modules, plain, strict=True):
            module.set_processor(processor)


def find_words(slots: Tensor, words: int) -> Tensor:
    """(B, N) index of the concept word at each place or -1 -> (B, W, N), each word's places weighing 1 in sum."""
    found = (slots[:, None] == torch.arange(words, device=slots.device)[:, None]).float()  # (B, W, N)
    return found / found.sum(dim=2, keepdim=True).clamp(min=1)


def outside_attention(maps: list[Tensor], inside: Tensor, full_identity: bool = False) -> Tensor:
    """The penalty of each picture, (B,), from the maps of all layers and the mask (B, 1, h, w)."""
    sizes: dict[int, list[Tensor]] = {}
    for of_layer in maps:
        sizes.setdefault(of_layer.shape[2], []).append(of_layer)
    penalty = torch.zeros(len(inside), device=inside.device)
    for T, of_size in sizes.items():
        mean = torch.stack(of_size).mean(dim=0)  # (B, W, T)
        outside = 1 - resized(inside, T)  # (B, 1, T)
        relative = mean / mean.amax(dim=2, keepdim=True).clamp(min=1e-8)
        of_words = (relative * outside).sum(dim=2) / outside.sum(dim=2).clamp(min=1e-8)  # (B, W)
        if full_identity:
            masked = outside.sum(dim=(1, 2)) > 0  # (B,) false where there is no mask: nothing to fill
            filled = (relative[:, -1] - (1 - outside[:, 0])).square().mean(dim=1)  # (B,)
            of_words = torch.cat([of_words[:, :-1], (filled * masked)[:, None]], dim=1)
        penalty = penalty + of_words.sum(dim=1)
    return penalty


def resized(inside: Tensor, T: int) -> Tensor:
    """The mask (B, 1, h, w) as its mean on each of a layer's T cells, (B, 1, T)."""
    h, w = inside.shape[-2:]
    while h * w > T:
        h, w = -(-h // 2), -(-w // 2)
    return F.adaptive_avg_pool2d(inside.float(), (h, w)).flatten(2)
