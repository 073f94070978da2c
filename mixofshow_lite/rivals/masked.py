"""Region-masked LoRAs: no fusion where regions are known, each LoRA acts inside its own region only.

    y = W0 x + sum_i m_i dW_i x        layers that are fed by pixels, x of one pixel
    K_i, V_i = (W0 + dW_i) psi_i(P_i)  keys and values of region i's prompt, read by concept i's own text encoder

    paper   here        shape
    M_i     m_i         (T, 1)      region i's share of every cell of a layer, as in region-aware cross-attention (3.4)
    P_i     regions     R           each region's prompt names at most one concept

The masks are those of regional sampling on a fused model, so that the two can be compared: is fusion needed when the
regions are known? FreeFuse (2025) confines LoRAs in the same way, to masks that it finds in attention maps; ours are
given, the keys and values of each region are ours, and outside all regions the base alone draws.

A region that is the whole picture draws what its concept's own model draws, exactly. All LoRAs are held while drawing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor, nn

from ..attention import cross_attention, layer_size, split_heads
from ..engine import lora
from ..engine.fusion.grams import CONTEXT_LINEAR
from ..engine.fusion.weight import check_concepts
from ..engine.masks import Region, check_regions, region_weights
from ..engine.regional import regional_attention
from ..files.concept import Concept
from ..model import DiffusionModel
from .layers import own_model


class MaskedLoRAs:
    """Draws regions, each with the LoRA of the concept that its prompt names. ValueError on unusable concepts."""

    def __init__(self, base: DiffusionModel, concepts: Sequence[Concept]):
        self.concepts, _ = check_concepts(base, concepts)
        self.base = base.with_words(*self.concepts)
        self.models = {concept.name: own_model(base, self.concepts, concept) for concept in self.concepts}

    def concept_of(self, region: Region) -> Concept | None:
        """The concept that a region's prompt names, if any; raises ValueError if it names two."""
        named = [concept for concept in self.concepts if concept.phrase and concept.phrase in region.prompt]
        if len(named) > 1:
            raise ValueError(
                f"The region {region.prompt!r} names {' and '.join(c.name for c in named)}: give each a region."
            )
        return named[0] if named else None

    @torch.no_grad()
    def sample(
        self,
        prompt: str,
        regions: Sequence[Region],
        n: int = 1,
        seed: int = 0,
        steps: int = 25,
        guidance: float | None = None,
        negative_prompt: str = "",
        size: int | tuple[int, int] | None = None,
        isolate: bool = False,
        progress: bool = False,
    ) -> list[Image.Image]:
        """Draw n pictures; arguments and noise as `DiffusionModel.sample`'s. Regions act in all steps.

        Raises ValueError without regions, on regions that name two concepts or act for a part of the steps only.
        """
        regions = check_regions(regions)
        if not regions or any(region.start > 0 or region.end < 1 for region in regions):
            raise ValueError("Masked LoRAs need regions, and those that act in all steps: leave out start and end.")
        named = [self.concept_of(region) for region in regions]
        models = [self.base if concept is None else self.models[concept.name] for concept in named]
        regions = [
            replace(r, negative_prompt=negative_prompt if r.negative_prompt is None else r.negative_prompt)
            for r in regions
        ]
        guidance, model = self.base.guidance if guidance is None else guidance, self.base
        noise = model.noise(n, seed, size)
        context, negative = model.context([prompt] * n), model.context(negative_prompt)
        with regional_attention(model, regions, guided=guidance != 1, isolate=isolate):
            halves = [[r.prompt for r in regions]] + ([[r.negative_prompt for r in regions]] if guidance != 1 else [])
            for half, prompts in enumerate(halves):
                put_keys(model, models, prompts, -1 - half)
            with masked_updates(model, named, regions):
                z = model.denoise(noise, context, negative, steps, guidance)
        return model.decode(z, context)


def put_keys(model: DiffusionModel, models: Sequence[DiffusionModel], prompts: Sequence[str], half: int) -> None:
    """Give the region attention of every layer the keys and values of each region's own model; half -1 is positive."""
    contexts = [own.context(prompt)[0].to(own.dtype) for own, prompt in zip(models, prompts, strict=True)]  # (L, N, D)
    layers = [list(cross_attention(own.unet).values()) for own in models]
    for layer, attn in enumerate(cross_attention(model.unet).values()):
        keys, values = [], []
        for context, own in zip(contexts, layers, strict=True):
            keys.append(split_heads(own[layer].to_k(context[layer])[None], attn.heads))
            values.append(split_heads(own[layer].to_v(context[layer])[None], attn.heads))
        attn.processor.keys[half, tuple(range(len(models)))] = torch.cat(keys), torch.cat(values)


@contextmanager
def masked_updates(model: DiffusionModel, named: Sequence[Concept | None], regions: Sequence[Region]) -> Iterator[None]:
    """While on, every layer of the U-Net that pixels feed adds each region's update in the region's cells."""
    shares = Shares(regions)
    handles = [model.unet.register_forward_pre_hook(shares.see)]
    layers = lora.adaptable(model.unet)
    try:
        for name, layer in layers.items():
            updates = {}
            for i, concept in enumerate(named):
                pair = concept.lora.get("unet", {}).get(name) if concept is not None else None
                if pair is not None and not CONTEXT_LINEAR.search(name):
                    weight = layer.weight
                    updates[i] = pair[0].to(weight), concept.scale * pair[1].to(weight)
            if updates:
                handles.append(layer.register_forward_hook(MaskedUpdate(updates, shares)))
        yield
    finally:
        for handle in handles:
            handle.remove()


class Shares:
    """Each region's share of the cells of a layer, (R, T), for whatever size the latents have."""

    def __init__(self, regions: Sequence[Region]):
        self.regions, self.cells, self.found = regions, (0, 0), {}

    def see(self, unet: nn.Module, args: tuple) -> None:
        """A forward pre-hook: the latents' size."""
        self.cells = tuple(args[0].shape[-2:])

    def of(self, like: Tensor, T: int) -> Tensor:
        """(R, T) for a layer of T cells."""
        h, w = layer_size(T, *self.cells)
        if (h, w) not in self.found:
            self.found[h, w] = region_weights(self.regions, h, w).to(like)
        return self.found[h, w]


class MaskedUpdate:
    """A forward hook: adds m_i dW_i x to a layer's output, region by region."""

    def __init__(self, updates: dict[int, tuple[Tensor, Tensor]], shares: Shares):
        self.updates, self.shares = updates, shares

    def __call__(self, layer: nn.Module, args: tuple, out: Tensor) -> Tensor:
        x = args[0]
        pixels = x.flatten(2).transpose(1, 2) if x.ndim == 4 else x  # (B, T, d_in)
        shares = self.shares.of(x, pixels.shape[1])
        for i, (down, up) in self.updates.items():
            added = shares[i][:, None] * ((pixels @ down.T) @ up.T)  # (B, T, d_out)
            out = out + (added.transpose(1, 2).view_as(out) if x.ndim == 4 else added)
        return out
