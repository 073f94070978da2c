"""LoRA Switch and LoRA Composite (Zhong et al., "Multi-LoRA Composition for Image Generation", TMLR 2024): no fusion.

    Switch      step s is LoRA i's alone,  i = floor(s / tau) mod n
    Composite   e(z_t, c) = (1/n) sum_i [ e_i(z_t) + g (e_i(z_t, c) - e_i(z_t)) ]

Every LoRA keeps a model of its own; they meet in the noise they predict. Both are the authors' (tau = 5 and the guided
mean as in their code, which switches after step tau for the first time and not before it). Ours: concepts have words
and text encoders of their own, so every model reads the prompt by itself, knowing the words of all.

Switch costs what one model costs, Composite n times as much; both hold all LoRAs while they draw.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..diffusion import guided_noise
from ..engine.fusion.weight import check_concepts, updating
from ..files.concept import Concept
from ..files.prompt_check import as_prompts
from ..model import DiffusionModel, sampling_loop
from .layers import own_model

HOW, TURN = ("switch", "composite"), 5


class Composition:
    """Draws with the LoRAs of several concepts, fused by nobody: `sample` as a DiffusionModel's, without regions.

    `how` is one of HOW, `turn` the steps that LoRA Switch gives to each. Raises ValueError on unusable concepts, an
    unknown `how` or turns below 1.
    """

    def __init__(self, base: DiffusionModel, concepts: Sequence[Concept], how: str = "composite", turn: int = TURN):
        if how not in HOW or turn < 1:
            raise ValueError(f"how={how!r}, turn={turn}: choose one of {', '.join(HOW)}, and a step a turn at least.")
        concepts, w = check_concepts(base, concepts)
        members, _ = updating(concepts, w)
        self.how, self.turn = how, turn
        self.members = [own_model(base, concepts, member) for member in members] or [base.with_words(*concepts)]

    def acting(self, step: int) -> list[int]:
        """Whose noise counts at a step."""
        n = len(self.members)
        return list(range(n)) if self.how == "composite" else [step // self.turn % n]

    @torch.no_grad()
    def sample(
        self,
        prompt: str | Sequence[str],
        n: int = 1,
        seed: int = 0,
        steps: int = 25,
        guidance: float | None = None,
        negative_prompt: str = "",
        size: int | tuple[int, int] | None = None,
        callback: Callable[[dict], None] | None = None,
        progress: bool = True,
        batch: int = 8,
    ) -> list[Image.Image]:
        """Draw n pictures of the prompt (of each, if it is a list); arguments and noise as `DiffusionModel.sample`'s.

        Raises ValueError on numbers below 1 or a size that does not fit.
        """
        prompts, first = as_prompts(prompt), self.members[0]
        if n < 1 or steps < 1 or not prompts:
            raise ValueError(f"n={n}, steps={steps}, {len(prompts)} prompts: ask for at least one of each.")
        guidance = first.guidance if guidance is None else guidance
        noise = first.noise(n, seed, size).repeat(len(prompts), 1, 1, 1)
        wanted = [p for p in prompts for _ in range(n)]
        contexts = torch.stack([member.context(wanted) for member in self.members], dim=1)  # (B, n, L, N, D)
        negatives = torch.stack([member.context(negative_prompt)[0] for member in self.members])  # (n, L, N, D)
        contexts, negatives = contexts.to(first.dtype), negatives.to(first.dtype)
        chunks = list(zip(noise.split(batch), contexts.split(batch), strict=True))
        pictures = []
        with tqdm(total=steps * len(chunks), disable=not progress, desc="sampling", leave=False) as bar:
            for z, c in chunks:
                predict = partial(self.predict, contexts=c, negatives=negatives, guidance=guidance)
                pictures += first.decode(sampling_loop(first, z, steps, predict, callback, bar), c[:, 0])
        return pictures

    def predict(self, step: int, z: Tensor, t: Tensor, contexts: Tensor, negatives: Tensor, guidance: float) -> Tensor:
        """The mean guided noise of those who act at a step, (B, C, h, w); contexts (B, n, L, N, D), (n, L, N, D)."""
        guided = [
            guided_noise(self.members[i], z, t, contexts[:, i], negatives[i], guidance) for i in self.acting(step)
        ]
        return torch.stack(guided).mean(dim=0)
