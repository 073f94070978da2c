"""Regionally controllable sampling (paper 3.4): region-aware cross-attention.

    h = softmax(Q(z) K(P_g)^T / sqrt(d)) V(P_g)                       global prompt
    h_i = softmax(Q(z_i) K(P_ri)^T / sqrt(d)) V(P_ri),  h[M_i] = h_i  each region's prompt, inside its mask

is one rule here, at every cross-attention layer and every pixel:  h <- (1 - sum_i w_i) h + sum_i w_i h_i.

    paper   here        shape
    M_i     mask        (H, W) in 0..1, or a box as fractions of the picture
            w_i         (R, T)            the masks on the layer's T = h * w cells, summing to at most 1
    P_ri    context_i   (L, N, D)         the region's prompt, layer-wise like every prompt
    K, V    key, value  (1, heads, N, d)  computed once per picture: prompts do not change while it is drawn

Disjoint boxes have w = 1 inside, the paper's replacement exactly; equal overlapping boxes are averaged, as in the
official code. The official rule for a box's edges, ceil(start) to floor(end) on every feature map, keeps the cells that
lie entirely inside; the same rule serves hand-painted masks. Masks with grey in them are soft: their w is their mean
over the cell.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from PIL import Image
from torch import Tensor

from .base import DiffusionModel
from .layerwise import LayerAttention, cross_attention


@dataclass
class Region:
    """A prompt of its own for a part of the picture; give either a box or a mask."""

    prompt: str  # what is there, with concept words if wanted
    box: tuple[float, float, float, float] | None = None  # (left, top, right, bottom), fractions of the picture in 0..1
    mask: np.ndarray | Image.Image | None = None  # (H, W), white or 1 inside; any size, stretched over the picture
    negative_prompt: str | None = None  # for this part only; None: the picture's negative prompt
    weight: float = 1.0  # relative to other regions where they overlap; below 1 lets the global prompt through

    def __post_init__(self):
        if (self.box is None) == (self.mask is None):
            raise ValueError(f"The region {self.prompt!r} needs a box or a mask, and not both.")
        if not self.weight > 0:
            raise ValueError(f"The region {self.prompt!r} has weight {self.weight}: give one above 0.")
        if self.box is not None:
            left, top, right, bottom = self.box
            if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
                raise ValueError(
                    f"The box {self.box} of the region {self.prompt!r} is not (left, top, right, bottom) with "
                    "0 <= left < right <= 1 and 0 <= top < bottom <= 1: give fractions of the picture."
                )
        else:
            self.mask = to_mask(self.mask, self.prompt)

    def cover(self, h: int, w: int) -> Tensor:
        """Weight of the region on each cell of an h x w feature map, (h, w) in 0..1 before overlaps are settled."""
        if self.box is not None:
            left, top, right, bottom = self.box
            share = overlap(top, bottom, h)[:, None] * overlap(left, right, w)[None]  # (h, w)
        else:
            share = area_mean(torch.from_numpy(self.mask), h, w)
            if ((self.mask > 0) & (self.mask < 1)).any():
                return share
        return (share >= share.max() - 1e-4).float()  # cells inside; of a thin region, the cells it covers most


def to_mask(mask: np.ndarray | Image.Image, prompt: str) -> np.ndarray:
    """An array or picture -> (H, W) float32 in 0..1; bytes count 255 as 1. Raises ValueError on anything else."""
    array = np.asarray(mask.convert("L") if isinstance(mask, Image.Image) else mask)
    array = array.astype(np.float32) / (255 if array.dtype == np.uint8 and array.max(initial=0) > 1 else 1)
    if array.ndim != 2 or not array.size or not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
        raise ValueError(f"The mask of the region {prompt!r} is no (height, width) array of numbers in 0..1.")
    if array.max() == 0:
        raise ValueError(f"The mask of the region {prompt!r} is empty: paint where the region is.")
    return array


def overlap(start: float, end: float, n: int) -> Tensor:
    """The share of each of n equal cells of 0..1 that start..end covers, (n,)."""
    edges = torch.arange(n + 1, dtype=torch.float64)
    covered = torch.minimum(edges[1:], torch.tensor(end * n)) - torch.maximum(edges[:-1], torch.tensor(start * n))
    return covered.clamp(min=0).float()


def area_mean(mask: Tensor, h: int, w: int) -> Tensor:
    """Mean of a mask (H, W) over each of h x w equal cells, exact also where the cells cut through pixels; (h, w)."""
    rows = torch.stack([overlap(i / h, (i + 1) / h, mask.shape[0]) for i in range(h)])  # (h, H)
    columns = torch.stack([overlap(i / w, (i + 1) / w, mask.shape[1]) for i in range(w)])  # (w, W)
    return (rows / rows.sum(1, keepdim=True)) @ mask @ (columns / columns.sum(1, keepdim=True)).T


def region_weights(regions: Sequence[Region], h: int, w: int) -> Tensor:
    """w_i: (R, h * w), at every cell at most 1 in sum; what is missing to 1 belongs to the global prompt."""
    cover = torch.stack([region.weight * region.cover(h, w) for region in regions]).flatten(1)  # (R, T)
    return cover / cover.sum(dim=0, keepdim=True).clamp(min=1)


class RegionAttention(LayerAttention):
    """Cross-attention of one layer that blends the regions' prompts into the global one.

    `branches` has one list per part of the batch, (negative, positive) under classifier-free guidance and (positive,)
    without; each list holds every region's context (N, D) of this layer, or None where the region has no say.
    """

    def __init__(self, plain: LayerAttention, regions: Sequence[Region], cells: tuple[int, int], branches: list[list]):
        super().__init__(plain.layer, plain.layers, plain.tokens)
        self.regions, self.cells, self.branches = regions, cells, branches
        self.weights: dict[int, Tensor] = {}  # T -> (R, T)
        self.keys: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # (branch, region) -> key, value

    def __call__(self, attn: Attention, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        out = super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)  # (B, T, C)
        weights = self.weights_of(hidden_states)  # (R, T)
        parts = []
        for b, (x, h) in enumerate(zip(*(y.chunk(len(self.branches)) for y in (hidden_states, out)), strict=True)):
            own = [i for i, context in enumerate(self.branches[b]) if context is not None]
            query = split_heads(attn.to_q(x), attn.heads) if own else None  # (B, heads, T, d)
            blend = h * (1 - weights[own].sum(dim=0))[:, None]
            for i in own:
                key, value = (y.expand(len(x), -1, -1, -1) for y in self.key_value(attn, b, i))
                attended = F.scaled_dot_product_attention(query, key, value)  # (B, heads, T, d)
                blend = blend + weights[i][:, None] * attn.to_out[0](attended.transpose(1, 2).flatten(2))
            parts.append(blend)
        return torch.cat(parts)

    def weights_of(self, hidden_states: Tensor) -> Tensor:
        """w_i for the feature map at hand, (R, T); its h and w are the latent's, halved until they make T cells."""
        T, (h, w) = hidden_states.shape[1], self.cells
        while h * w > T:
            h, w = -(-h // 2), -(-w // 2)
        if h * w != T:
            raise ValueError(
                f"The picture has {self.cells} cells, a layer {T}: give regional_attention its size in cells."
            )
        if T not in self.weights:
            self.weights[T] = region_weights(self.regions, h, w).to(hidden_states)
        return self.weights[T]

    def key_value(self, attn: Attention, branch: int, region: int) -> tuple[Tensor, Tensor]:
        """K and V of a region's prompt, each (1, heads, N, d), computed when first needed."""
        if (branch, region) not in self.keys:
            context = self.branches[branch][region][None]  # (1, N, D)
            self.keys[branch, region] = tuple(split_heads(to(context), attn.heads) for to in (attn.to_k, attn.to_v))
        return self.keys[branch, region]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, C) -> (B, heads, T, C / heads)"""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


@contextmanager
def regional_attention(
    model: DiffusionModel, regions: Sequence[Region], cells: tuple[int, int] | None = None, guided: bool = True
) -> Iterator[None]:
    """While on, `model.unet` draws every region by its own prompt (Fig. 5), also inside a stock pipeline on this U-Net.

    `cells` is the latent's (h, w), by default that of the model's own picture size. `guided` says whether batches are
    (negative, positive) pairs; a region speaks in the positive half, and in the negative one if it has a negative
    prompt. Weights of the model must not change inside. Raises ValueError on attention that is not Stable Diffusion's.
    """
    positives = contexts(model, [region.prompt for region in regions])
    negatives = contexts(model, [region.negative_prompt for region in regions])
    cells = cells or tuple(side // model.factor for side in model.size)
    modules = list(cross_attention(model.unet).values())
    plain = [module.processor for module in modules]
    if not all(type(processor) is LayerAttention for processor in plain):
        raise ValueError("This model's cross-attention already has other processors on: take them off first.")
    for processor, module in zip(plain, modules, strict=True):
        branches = [[c if c is None else c[processor.layer] for c in part] for part in (negatives, positives)]
        module.set_processor(RegionAttention(processor, regions, cells, branches if guided else branches[1:]))
    try:
        yield
    finally:
        for processor, module in zip(plain, modules, strict=True):
            module.set_processor(processor)


@torch.no_grad()
def contexts(model: DiffusionModel, prompts: Sequence[str | None]) -> list[Tensor | None]:
    """The context (L, N, D) of each prompt, None for None."""
    given = [prompt for prompt in prompts if prompt is not None]
    found = dict(zip(given, model.context(given).to(model.dtype), strict=True)) if given else {}
    return [None if prompt is None else found[prompt] for prompt in prompts]
