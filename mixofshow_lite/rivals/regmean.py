"""RegMean (Jin et al., ICLR 2023) and RegMean++ (Nguyen et al., 2025): the average that linear regression asks for.

    W* = (sum_i W_i G_i) (sum_i G_i)^-1,    G_i = X_i X_i^T with its off-diagonal entries times a

With W_i = W0 + dW_i this is W0 + (sum_i dW_i G_i) (sum_i G_i)^-1: gradient fusion's closed form without a ridge, which
the shrunken Grams take the place of. The two differ in where X_i comes from:

    RegMean      every layer's inputs are those of model i, on its own task
    RegMean++    block after block: the inputs of a block are what the merged blocks before it make of task i's inputs,
                 and inside the block model i's own layers go on

a is 0.9 in RegMean and 0.95 in RegMean++'s configuration. Ours: the inputs are drawn from words (`layers`, `drawn`);
blocks are the text encoder's layers and the U-Net's transformer blocks from down to up; Grams are means over rows.
"""

import re
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..engine import lora
from ..engine.fusion import algebra
from ..engine.fusion.grams import GramRecorder
from ..engine.fusion.settings import Settings
from ..engine.fusion.weight import NETS, check_concepts, updated_layers, updating, with_factors
from ..files.concept import Concept
from ..model import DiffusionModel
from .drawn import draw_inputs, run
from .layers import merge_layer, merge_recorded, merged_model, own_model

OFF_DIAGONAL, OFF_DIAGONAL_PLUS = 0.9, 0.95
BLOCK = re.compile(r"^.*?(attentions|layers)\.\d+")


def regmean_fusion(
    base: DiffusionModel,
    concepts: Sequence[Concept],
    off_diagonal: float = OFF_DIAGONAL,
    progress: bool = True,
    **options,
) -> DiffusionModel:
    """The base with the concepts merged by RegMean; `off_diagonal` is a, `options` are `layers.merge_recorded`'s.

    Raises ValueError on a share outside 0..1 or unusable concepts.
    """
    merge = regression(off_diagonal)
    return merge_recorded(base, concepts, merge, "RegMean", progress=progress, off_diagonal=off_diagonal, **options)


def regmean_plusplus_fusion(
    base: DiffusionModel,
    concepts: Sequence[Concept],
    off_diagonal: float = OFF_DIAGONAL_PLUS,
    recording: Settings | None = None,
    progress: bool = True,
) -> DiffusionModel:
    """The base with the concepts merged by RegMean++, block after block from the first layer to the last.

    Raises ValueError on a share outside 0..1 or unusable concepts.
    """
    merge = regression(off_diagonal)
    concepts, w = check_concepts(base, concepts)
    members, _ = updating(concepts, w)
    recording, factors = recording or Settings(), {net: {} for net in NETS}
    drawn = [draw_inputs(own_model(base, concepts, member), member, recording) for member in members]
    for net, names in tqdm(blocks(members), disable=not progress, desc="merging", leave=False):
        merged = with_factors(base.with_words(*concepts), factors)
        seen = []
        for member, inputs in zip(members, drawn, strict=True):
            own = {n: (down, member.scale * up) for n, (down, up) in member.lora.get(net, {}).items() if n in names}
            model = with_factors(merged, {net: own})
            layers = lora.adaptable(getattr(model, net))
            with GramRecorder({name: layers[name] for name in names}) as recorder:
                run(model, inputs, text_only=net == "text_encoder")
            seen.append(recorder.statistics())
        for name in names:
            factors[net][name] = algebra.compact(merge_layer(base, members, seen, net, name, merge))
    return merged_model(base, concepts, factors, "RegMean++", off_diagonal=off_diagonal)


def regression(off_diagonal: float):
    """RegMean's merge of one layer: factors and Grams -> factors. ValueError on a share outside 0..1."""
    if not 0 <= off_diagonal <= 1:
        raise ValueError(f"off_diagonal={off_diagonal}: give the share of off-diagonal entries that stays, 0 to 1.")

    def merge(own: list[algebra.LowRankPair], grams: list[Tensor], rows: Sequence[int] = ()) -> algebra.LowRankPair:
        equal = torch.full((len(own),), 1 / len(own), dtype=torch.float64)
        shrunken = [shrink(gram, off_diagonal) for gram in grams]
        return algebra.closed_form(algebra.normal_equations(shrunken, equal, ridge=0.0), own, "average")

    return merge


def shrink(gram: Tensor, share: float) -> Tensor:
    """A Gram (d_in, d_in) with its off-diagonal entries times `share`."""
    return share * gram + (1 - share) * torch.diag(gram.diagonal())


def blocks(members: Sequence[Concept]) -> list[tuple[str, list[str]]]:
    """(net, names of its updated layers) of every block, in the order in which a sample passes through them."""
    found = []
    for net in NETS:
        for _, names in groupby(updated_layers(members, net), key=lambda name: BLOCK.match(name).group()):
            found.append((net, list(names)))
    return found
