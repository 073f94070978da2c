"""The concept's words while they are tuned (paper 3.1, 3.3.1): how their rows start, and the prompts they stand in.

symbol   here      shape
V, V+    rows      word -> (1, D) or (L, D), trainable
c        context   (b, L, N, D)
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..files.concept import WORD, Bound, bind
from ..files.warn import warn
from ..model import DiffusionModel
from ..prompts import class_embedding, random_embedding, word_places
from .layerwise import encode
from .recipes import Recipe


def init_rows(
    base: DiffusionModel, recipe: Recipe, words: tuple[str, ...], class_word: str, seed: int
) -> dict[str, nn.Parameter]:
    """The trainable rows, word -> (L, D) or (1, D), each started as `recipe.init` says; all layers start alike."""
    copies, rows = len(base.layers) if recipe.layerwise else 1, {}
    for word, kind in zip(words, recipe.init, strict=True):
        if kind == "rand":
            row = random_embedding(base.text_encoder, word, seed)
        else:
            like = class_word if kind == "class" else kind
            row = class_embedding(base.text_encoder, base.tokenizer, like)
        rows[word] = nn.Parameter(row.to(base.device).repeat(copies, 1))
    return rows


def check_starts(base: DiffusionModel, recipe: Recipe) -> None:
    """Raise ValueError where a word of a recipe starts as one that is none; warn where the base does not know it."""
    for like in recipe.init:
        if like in ("rand", "class"):
            continue
        pieces = base.tokenizer(like, add_special_tokens=False).input_ids
        if not pieces or WORD.search(like) or like.strip().lower() in ("rand", "class"):
            raise ValueError(
                f"A word of {recipe.name} cannot start as {like!r}: write 'rand', 'class' or a plain word of the base."
            )
        base.check_known([like], f" (how a word of {recipe.name} starts)")
        if not base.known_words and len(pieces) > len(like.split()):
            warn(
                f"{base.base_id or 'The base'} has no word {like!r}: a word of {recipe.name} starts as the mean of its "
                f"{len(pieces)} pieces, see that it is spelt right."
            )


def density_loss(rows: Tensor, table: Tensor, bandwidth: float = 0.5) -> Tensor:
    """The words' negative log density among the model's own embeddings, summed over the rows -> ().

    rows (R, D), table (V, D). The density of a row is the sum over its D numbers of a Gaussian kernel estimate from the
    table's numbers in the same place. It keeps words from growing long: the research branch's way, where the main
    branch stops tuning them at a length. One row at a time, computed again in the backward pass: V * D numbers.
    """
    total = torch.zeros((), device=rows.device)
    for row in rows.float():
        total = total - checkpoint(density, row, table, bandwidth, use_reentrant=False).log()
    return total


def density(row: Tensor, table: Tensor, bandwidth: float) -> Tensor:
    """One row's (D,) density among the table's rows (V, D), summed over the D numbers."""
    kernel = torch.exp(-0.5 * ((row - table) / bandwidth).square()) / (math.sqrt(2 * math.pi) * bandwidth)  # (V, D)
    return kernel.mean(dim=0).sum()


class PromptEncoder:
    """psi(P) of a run's prompts: a distinct one is encoded once a step, or once a run if nothing tuned reaches it."""

    def __init__(self, model: DiffusionModel, prompts: list[str], rows: dict[str, Tensor], text_tuned: bool):
        distinct = list(dict.fromkeys(prompts))
        self.model, self.rows, self.bound = model, rows, bind(model.tokenizer, distinct, list(rows))
        self.number = torch.tensor([distinct.index(prompt) for prompt in prompts])
        model.check_prompts(distinct, self.bound.cut, rows, called="caption")
        for slot, word in enumerate(rows):
            if not (self.bound.slots == slot).any():
                raise ValueError(f"{word} fits into no caption, they are too long before it: shorten the captions.")
        plain = (self.bound.slots < 0).all(dim=1).nonzero().flatten().tolist()
        with torch.no_grad():
            self.fixed = {} if text_tuned else self.encoded(plain)

    def encoded(self, numbers: list[int]) -> dict[int, Tensor]:
        """Number of a distinct prompt -> (L, N, D)."""
        if not numbers:
            return {}
        bound = Bound(self.bound.ids[numbers], self.bound.slots[numbers], [])
        table = torch.stack([*self.rows.values()])  # (W, K, D)
        contexts = encode(self.model.text_encoder, bound, table, len(self.model.layers), share=True)
        return dict(zip(numbers, contexts, strict=True))

    def __call__(self, entries: Tensor) -> Tensor:
        """The context of the prompts of some entries, (b, L, N, D)."""
        numbers = self.number[entries].tolist()
        found = self.fixed | self.encoded([n for n in dict.fromkeys(numbers) if n not in self.fixed])
        return torch.stack([found[n] for n in numbers])

    def token_mask(self, entries: Tensor) -> Tensor:
        """Where the concept's words stand in their prompts, (b, W, N), see `prompts.word_places`."""
        return word_places(self.bound.slots[self.number[entries]], len(self.rows)).to(self.model.device)
