"""The same inputs for several models: what stands for a task's data where a rival compares a merged model with others.

RegMean++ asks what the merged model's earlier layers make of a task's inputs, IterIS for the same inputs under two
models. A concept's inputs are here its prompts and the noisy latents of a picture that its own model drew of each, kept
once; `run` lets any model read and predict them, and no picture of a client is needed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.fusion.report import STAGES
from ..engine.fusion.settings import Settings
from ..files.concept import Concept
from ..model import DiffusionModel

TOGETHER = 4  # noisy latents that go through the U-Net at once


@dataclass(frozen=True)
class Drawn:
    """A concept's inputs: for every prompt the latents of all denoising steps, and whether there was guidance."""

    prompts: tuple[str, ...]
    latents: tuple[Tensor, ...]  # one (steps, C, h, w) a prompt
    times: tuple[Tensor, ...]  # one (steps,) a prompt
    guided: bool  # the empty prompt was read and predicted as well


@torch.no_grad()
def draw_inputs(model: DiffusionModel, concept: Concept, recording: Settings) -> Drawn:
    """One picture of each of the concept's prompts by its own model, each from its own noise, kept step by step."""
    prompts = recording.contexts(concept, STAGES[-1])
    guidance = model.guidance if recording.guidance is None else recording.guidance
    latents, times = [], []

    def keep(module, args: tuple) -> None:
        """A forward pre-hook of the U-Net: under guidance its batch holds the same latents twice."""
        seen[0].append(args[0][:1].detach().clone())
        seen[1].append(torch.as_tensor(args[1]).detach().reshape(1))

    handle = model.unet.register_forward_pre_hook(keep)
    try:
        for number, prompt in enumerate(prompts):
            seen: tuple[list, list] = ([], [])
            sampling = {"steps": recording.steps, "guidance": guidance, "size": recording.size, "progress": False}
            model.sample(prompt, seed=recording.seed + number, **sampling)
            latents.append(torch.cat(seen[0]))
            times.append(torch.cat(seen[1]))
    finally:
        handle.remove()
    return Drawn(tuple(prompts), tuple(latents), tuple(times), guidance != 1)


@torch.no_grad()
def run(model: DiffusionModel, drawn: Drawn, text_only: bool = False) -> None:
    """Let a model read the prompts and predict the noise of the latents; forward hooks see all its layers' inputs."""
    negative = model.context("") if drawn.guided else None  # (1, L, N, D)
    for prompt, z, t in zip(drawn.prompts, drawn.latents, drawn.times, strict=True):
        context = model.context(prompt).to(model.dtype)
        if text_only:
            continue
        for some, at in zip(z.split(TOGETHER), t.split(TOGETHER), strict=True):
            contexts = context.expand(len(some), -1, -1, -1)
            if negative is not None:
                some, at = torch.cat([some, some]), torch.cat([at, at])
                contexts = torch.cat([negative.to(model.dtype).expand_as(contexts), contexts])
            model.unet(some, at, contexts)
