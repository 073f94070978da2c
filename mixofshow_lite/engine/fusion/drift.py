"""Drift (paper 3.2): what a fusion does to prompts that name no concept. The base model's own pictures are the measure.

number     formula                                                    0 means
latents    mean (z_fused - z_base)^2, same prompt and seed            nothing moved
pictures   the same of pictures, pixels in 0..1                       nothing moved
spread     mean (x_base(seed a) - x_base(seed b))^2, same prompt      (the yardstick: another picture of the prompt)
share      pictures / spread; 1: as different as another seed's picture
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...model import DiffusionModel

DRIFT_PROMPTS = (  # none of them is among the recorded plain prompts
    "a red cat on the beach",
    "photo of a purple robot",
    "a yellow car in the desert",
    "a green mug in the city",
)


@dataclass(frozen=True)
class Drift:
    """How far the pictures of prompts without concepts moved."""

    latents: float  # mean squared difference
    pictures: float  # mean squared difference, pixels in 0..1
    spread: float  # of the base's own pictures over seeds
    by_prompt: dict[str, float]  # prompt -> share

    @property
    def share(self) -> float:
        """`pictures` relative to how much the base's own pictures of a prompt differ from seed to seed."""
        return self.pictures / self.spread if self.spread > 0 else float("nan")

    def __str__(self) -> str:
        return f"prompts without a concept moved by {self.share:.3f} of the difference between two seeds"


def drift(
    base: DiffusionModel,
    fused: DiffusionModel,
    prompts: Sequence[str] = DRIFT_PROMPTS,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 25,
    guidance: float | None = None,
    size: int | tuple[int, int] | None = None,
    progress: bool = True,
) -> Drift:
    """Draw the prompts with both models from the same noise and compare; needs at least two different seeds.

    Raises ValueError on fewer seeds or no prompt. No CLIP is involved, so small changes count as they are.
    """
    prompts, seeds = list(prompts), list(dict.fromkeys(seeds))
    if len(seeds) < 2 or not prompts:
        raise ValueError(
            f"seeds={seeds}, {len(prompts)} prompts: drift needs two different seeds and a prompt at least."
        )
    settings = {"steps": steps, "guidance": guidance, "size": size, "progress": progress}
    z0, x0 = draw_from_seeds(base, prompts, seeds, settings)
    z1, x1 = draw_from_seeds(fused, prompts, seeds, settings)
    moved = (x1 - x0).square().flatten(2).mean(dim=(0, 2))  # (P,)
    others = x0 - x0.mean(dim=0, keepdim=True)
    # Twice the unbiased variance over seeds is the mean squared difference of two of them.
    spread = 2 * others.square().sum(dim=0).flatten(1).mean(dim=1) / (len(seeds) - 1)  # (P,)
    by_prompt = {p: (m / s).item() for p, m, s in zip(prompts, moved, spread, strict=True)}
    return Drift((z1 - z0).square().mean().item(), moved.mean().item(), spread.mean().item(), by_prompt)


def draw_from_seeds(
    model: DiffusionModel, prompts: list[str], seeds: list[int], settings: dict
) -> tuple[Tensor, Tensor]:
    """Final latents (S, P, C, h, w) and pictures (S, P, H, W, 3) in 0..1 of every prompt from every seed."""
    all_latents, all_pictures = [], []
    for seed in seeds:
        latents: list[Tensor] = []

        def last(info: dict, latents: list[Tensor] = latents) -> None:
            if info["step"] == settings["steps"] - 1:
                latents.append(info["latents"].float().cpu())

        pictures = model.sample(prompts, seed=seed, callback=last, **settings)
        all_latents.append(torch.cat(latents))
        all_pictures.append(torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).float() / 255)
    return torch.stack(all_latents), torch.stack(all_pictures)
