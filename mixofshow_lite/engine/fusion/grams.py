"""What the center node records of each concept (paper 3.3.2): the inputs of every LoRA layer, kept only as Grams.

Sampling a concept from its words needs no picture of the client. While it runs, forward hooks add up X^T X of every
layer: memory is d_in^2 a layer, whatever the steps, pictures and prompts. Layers fed by the same tensor share one
Gram.

    paper   here             shape
    X_i     one batch of x   (rows, d_in)     rows = batch x tokens (or pixels)
            Statistics.grams (d_in, d_in)     sum X^T X / rows on the CPU in float64: every concept weighs the same

Three recordings, one per stage: `record_text` (inside the text encoder, under W0 + LoRA_i), `record_context` (keys
and values of cross-attention: text features of the fused text encoder) and `record_spatial` (the rest of the U-Net,
while it draws).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...files.concept import bind
from ...model import DiffusionModel
from .. import lora
from . import algebra

CONTEXT_LINEAR = re.compile(r"attn2\.to_[kv]$")
SHARED = (
    (r"attn1\.to_[qkv]$", "attn1.input"),
    (r"attn2\.to_[kv]$", "attn2.context"),
    (r"(?<=self_attn)\.[qkv]_proj$", ".input"),
)


def feed(name: str) -> str:
    """The name of the tensor that feeds a layer: equal for layers that are always fed the same one (q, k, v)."""
    for pattern, shared in SHARED:
        name = re.sub(pattern, shared, name)
    return name


@dataclass
class Statistics:
    """All that is kept of one concept's inputs in one stage. Holds no picture and no prompt."""

    grams: Mapping[str, Tensor] = field(default_factory=dict)  # feed -> (d_in, d_in) float64, mean over rows
    rows: dict[str, int] = field(default_factory=dict)  # feed -> number of rows seen
    parts: tuple["Statistics", ...] = ()  # the same for every prompt alone, where asked for
    key: str = ""  # hash of the concept and of how it was recorded
    made_with: str = ""  # hash of the whole fusion it was recorded in: later stages see the other concepts' influence

    def mixed(self, other: "Statistics", share: float) -> "Statistics":
        """(1 - share) of these and `share` of the other's Grams; feeds that only one has are kept whole."""
        both = self.grams.keys() & other.grams.keys()
        grams = {**other.grams, **self.grams, **{k: (1 - share) * self.grams[k] + share * other.grams[k] for k in both}}
        rows = {k: self.rows.get(k, 0) + other.rows.get(k, 0) for k in grams}
        paired = zip(self.parts, other.parts, strict=False)
        return Statistics(grams, rows, tuple(mine.mixed(theirs, share) for mine, theirs in paired))


def joined(parts: Sequence[Statistics]) -> Statistics:
    """What recording all parts at once would have given: the mean over all their rows."""
    rows = {key: sum(part.rows[key] for part in parts) for key in parts[0].rows}
    grams = {key: sum(part.rows[key] / n * part.grams[key] for part in parts) for key, n in rows.items()}
    return Statistics(grams, rows, tuple(parts))


class GramRecorder:
    """`with GramRecorder(linears) as recorder`: add up X^T X of the named linears' inputs, one Gram per feed.

    `keep`, a bool mask (N,) over the tokens of every input, can be set between forwards to leave padding out.
    """

    def __init__(self, linears: dict[str, nn.Module]):
        self.watched: dict[str, nn.Module] = {}  # feed -> the first layer that it feeds
        for name, module in linears.items():
            self.watched.setdefault(feed(name), module)
        self.keep: Tensor | None = None
        self.sums: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}

    def __enter__(self) -> "GramRecorder":
        self.handles = [
            module.register_forward_pre_hook(lambda _, args, key=key: self.add(key, args[0]))
            for key, module in self.watched.items()
        ]
        return self

    def __exit__(self, kind, error, trace) -> None:
        for handle in self.handles:
            handle.remove()
        silent = sorted(set(self.watched) - set(self.sums))
        if kind is None and silent:
            raise RuntimeError(
                f"{len(silent)} of {len(self.watched)} layers saw no input while recording, e.g. {silent[0]}."
            )

    def add(self, key: str, x: Tensor) -> None:
        """Count the rows of x (B, N, d_in) or (B, d_in, h, w): products in float32, sums in float64."""
        if x.ndim == 4:
            x = x.flatten(2).transpose(1, 2)  # a 1x1 convolution is a linear layer over pixels
        if self.keep is not None:
            x = x[:, self.keep.to(x.device)]
        x = x.detach().flatten(0, -2).float()  # (rows, d_in)
        gram = algebra.double(x.T @ x)
        self.sums[key] = self.sums[key] + gram if key in self.sums else gram
        self.rows[key] = self.rows.get(key, 0) + len(x)

    def statistics(self) -> Statistics:
        """The means so far; raises ValueError if a layer's inputs overflowed."""
        grams = {key: (total / self.rows[key]).cpu() for key, total in self.sums.items()}
        for key, gram in grams.items():
            if not torch.isfinite(gram).all():
                raise ValueError(
                    f"The inputs of {key} are not finite while recording: use float32, or a smaller LoRA scale."
                )
        return Statistics(grams, dict(self.rows))


def real_tokens(model: DiffusionModel, prompt: str) -> Tensor:
    """(N,) bool: begin, words and first end token; false on the padding after it."""
    bound = bind(model.tokenizer, [prompt], list(model.words))
    # The unknown token that holds a concept word's place may be the end token itself.
    ends = (bound.ids[0] == model.tokenizer.eos_token_id) & (bound.slots[0] < 0)
    return torch.arange(model.tokens) <= int(ends[1:].nonzero()[0]) + 1


def word_tokens(model: DiffusionModel, prompt: str) -> Tensor:
    """(N,) bool: true where a concept word or the first end token stands, all that the official code takes here."""
    keep = real_tokens(model, prompt)
    last = int(keep.nonzero()[-1])  # the first end token
    words = bind(model.tokenizer, [prompt], list(model.words)).slots[0] >= 0
    return words | (torch.arange(model.tokens) == last)


@torch.no_grad()
def record_text(model: DiffusionModel, names: list[str], prompts: list[str], padding: bool = True) -> Statistics:
    """Inputs of the text encoder's layers while it reads the prompts (L times where concept words stand)."""
    linears = lora.adaptable(model.text_encoder)
    with GramRecorder({name: linears[name] for name in names}) as recorder:
        for prompt in prompts:
            recorder.keep = None if padding else real_tokens(model, prompt)
            model.context(prompt)
    return recorder.statistics()


@torch.no_grad()
def record_context(
    model: DiffusionModel, names: list[str], prompts: list[str], padding: bool = True, words_only: bool = False
) -> Statistics:
    """Inputs of cross-attention's keys and values. They are the context itself, so the U-Net need not run.

    All N tokens count, for the U-Net attends to all of them; without `padding` those up to the end token, with
    `words_only` the concept's words and the end token.
    """
    recorder = GramRecorder({})
    layers = {f"{layer}.context": index for index, layer in enumerate(model.layers)}
    feeds = sorted({feed(name) for name in names})
    for prompt in prompts:
        if words_only:
            recorder.keep = word_tokens(model, prompt)
        else:
            recorder.keep = None if padding else real_tokens(model, prompt)
        context = model.context(prompt)  # (1, L, N, D)
        for key in feeds:
            recorder.add(key, context[:, layers[key]])
    return recorder.statistics()


@torch.no_grad()
def record_spatial(model: DiffusionModel, names: list[str], prompts: list[str], seed: int, **sampling) -> Statistics:
    """Inputs of the U-Net's spatial layers while it draws each prompt once, every prompt from its own noise.

    With guidance both branches are seen: under each concept's update the empty prompt must keep working too.
    """
    linears = lora.adaptable(model.unet)
    with GramRecorder({name: linears[name] for name in names}) as recorder:
        for number, prompt in enumerate(prompts):
            model.sample(prompt, seed=seed + number, progress=False, **sampling)
    return recorder.statistics()
