"""Regionally controllable sampling (paper 3.4): every region of the picture listens to its own prompt.

    h   = softmax(Q(z) K(P_g)^T / sqrt(d)) V(P_g)            the global prompt, everywhere
    h_i = softmax(Q(z_i) K(P_ri)^T / sqrt(d)) V(P_ri)        the prompt of region i,  z_i = z * M_i
    h[M_i] = h_i                                             replaces it inside the region's mask

at every cross-attention layer. One rule does it, for hard boxes, soft masks and overlaps:

    h <- (1 - sum_i w_i) h + sum_i w_i h_i

    paper   here            shape
    M_i     region          a box or a mask (H, W) of the picture
            cover(...)      (height, width) how much of each pixel of a layer's map the region claims
            w               (R, T)          the covers of R regions, overlaps settled: at most 1 in sum at every pixel
    P_ri    contexts[i]     (L, N, D)       the region's prompt, encoded for each layer
    h, h_i                  (B, T, C), (R, B, T, C)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from PIL import Image
from torch import Tensor

from .attention import LayerAttention, attend, layer_size, merge_heads, project, swapped
from .diffusion import Model, latent_size, sample


@dataclass
class Region:
    """A prompt of its own for a part of the picture; give either a box or a mask, else ValueError."""

    prompt: str
    box: tuple[float, float, float, float] | None = None  # (left, top, right, bottom), fractions of the picture
    mask: Tensor | None = None  # (H, W) in 0..1, 1 inside, of any size

    def __post_init__(self):
        if (self.box is None) == (self.mask is None):
            raise ValueError(f"The region {self.prompt!r} needs a box or a mask, and not both.")


def interval_cover(start: float, end: float, n: int) -> Tensor:
    """The share of each of n equal cells of 0..1 that the interval from start to end covers, (n,)."""
    edges = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    covered = edges[1:].clamp(max=end) - edges[:-1].clamp(min=start)
    return (n * covered.clamp(min=0)).float()


def cover(region: Region, height: int, width: int) -> Tensor:
    """M_i on a feature map: what the region claims of each pixel, (height, width) in 0..1, before overlaps are settled.

    Hard regions have the pixels that lie entirely inside, the official rule (ceil of a box's start, floor of its end).
    """
    if region.box is not None:
        left, top, right, bottom = region.box
        share = interval_cover(top, bottom, height)[:, None] * interval_cover(left, right, width)[None]
    else:
        mask = region.mask.float()
        share = F.interpolate(mask[None, None], (height, width), mode="area")[0, 0]  # the mask's mean on each pixel
        if ((mask > 0) & (mask < 1)).any():
            return share  # a soft mask is taken as it is
    inside = share > 1 - 1e-4  # (height, width), up to rounding
    if inside.any():
        return inside.float()  # 3.4 M_i
    # No pixel lies inside: this map is too coarse for the region, and the official code loses it there. Here the pixels
    # that it covers most stand for it: all of them from half covered on, as rounding would say; below, the claim fades.
    most_covered = share >= share.max() - 1e-4
    return (2 * share).clamp(max=1) * most_covered


def region_weights(regions: Sequence[Region], height: int, width: int) -> Tensor:
    """w_i: (R, height * width), at every pixel at most 1 in sum. Overlaps are shared; the rest is for the global h."""
    covers = torch.stack([cover(region, height, width).flatten() for region in regions])  # (R, T)
    return covers / covers.sum(dim=0).clamp(min=1)  # 3.4 w_i (official code)


def blend(h: Tensor, h_i: Tensor, w: Tensor) -> Tensor:
    """The region rule: h (B, T, C), h_i (R, B, T, C), w (R, T) -> (B, T, C).

    Where one hard region is, w is 1 and h_i replaces h, the paper's rule. Where two overlap they are averaged, as in
    the official code.
    """
    w = w[:, None, :, None]  # (R, 1, T, 1)
    return (1 - w.sum(0)) * h + (w * h_i).sum(0)  # 3.4 h[M_i] = h_i


class RegionAttention(LayerAttention):
    """Cross-attention of one layer that blends the regions' prompts into the global one."""

    def __init__(self, layer: int, regions: Sequence[Region], contexts: Tensor, latents: tuple[int, int], guided: bool):
        super().__init__(layer)
        self.regions = regions  # R
        self.contexts = contexts  # (R, L, N, D)
        self.latents = latents  # (height, width)
        self.guided = guided

    def __call__(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask=None):
        q, k, v = project(attn, hidden_states, self.layer_prompt(encoder_hidden_states))
        h = merge_heads(attend(q, k, v))  # 3.4 h: (B, T, C), of the global prompt
        if self.guided:
            # The batch is (negative, positive): regions say what to draw, not what to avoid.
            negative, positive = h.chunk(2)
            positive = self.blend_regions(attn, hidden_states.chunk(2)[1], positive)
            h = torch.cat([negative, positive])
        else:
            h = self.blend_regions(attn, hidden_states, h)
        # The output projection comes after: it is linear and the weights sum to one, so the order does not matter.
        return attn.to_out[0](h)

    def blend_regions(self, attn: Attention, z: Tensor, h: Tensor) -> Tensor:
        """z (B, T, C) and h (B, T, C) of the global prompt -> (B, T, C)."""
        regional = []
        for context in self.contexts:  # (L, N, D)
            prompt = context[self.layer].expand(len(z), -1, -1)  # (B, N, D)
            # The paper's Q(z_i) is Q(z) inside the mask, since Q acts on each pixel alone; outside, w_i is 0.
            q, k, v = project(attn, z, prompt)
            regional.append(merge_heads(attend(q, k, v)))  # 3.4 h_i = softmax(Q(z_i) K(P_ri)^T / sqrt(d)) V(P_ri)
        w = region_weights(self.regions, *layer_size(z.shape[1], *self.latents))  # (R, T)
        return blend(h, torch.stack(regional), w.to(h))


@contextmanager
def regional_attention(
    model: Model, regions: Sequence[Region], latents: tuple[int, int] | None = None, guided: bool = True
) -> Iterator[None]:
    """While on, `model.unet` draws every region by its own prompt.

    `latents` is the (height, width) of what is drawn, by default the model's own; `guided` says whether batches are
    (negative, positive) pairs, as classifier-free guidance makes them. Without regions nothing changes.
    """
    if not regions:
        yield
        return
    with torch.no_grad():
        contexts = model.context([region.prompt for region in regions])  # (R, L, N, D), once for all steps
    if latents is None:
        latents = latent_size(model)
    with swapped(model.unet, lambda layer: RegionAttention(layer, regions, contexts, latents, guided)):
        yield


def sample_regions(
    model: Model,
    prompt: str,
    regions: Sequence[Region],
    guidance: float = 7.5,
    size: tuple[int, int] | None = None,
    **sampling,
) -> list[Image.Image]:
    """Draw pictures of the global prompt and the regions' (Fig. 5); `sampling` is passed on to `diffusion.sample`."""
    with regional_attention(model, regions, latent_size(model, size), guided=guidance != 1):
        return sample(model, prompt, guidance=guidance, size=size, **sampling)
