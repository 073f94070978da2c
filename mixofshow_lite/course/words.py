"""New words made of old rows: what notebook 03 asks the layers with."""

import torch
from torch import Tensor

from ..model import DiffusionModel


def row_of(base: DiffusionModel, word: str) -> Tensor:
    """The row of a word of the base's own vocabulary, (D,) in float32 on the CPU; the mean if it has several tokens."""
    table = base.text_encoder.get_input_embeddings().weight.float().cpu()
    return table[base.tokenizer(word, add_special_tokens=False).input_ids].mean(0)


def with_words(base: DiffusionModel, **tables: Tensor) -> DiffusionModel:
    """The base with new words <name>, each a table (L, D): one row for every cross-attention layer."""
    model = base.copy()
    model.words |= {f"<{name}>": table.to(base.device) for name, table in tables.items()}
    return model


def part_by_part(base: DiffusionModel, layers: Tensor, first: tuple[str, str], second: tuple[str, str]):
    """The base with the words <colour> and <thing>: those of `first`, of `second` in the layers that are true (L,)."""
    rows = ((row_of(base, a), row_of(base, b)) for a, b in zip(first, second, strict=True))
    colour, thing = (torch.where(layers[:, None], b, a) for a, b in rows)
    return with_words(base, colour=colour, thing=thing)
