"""Orthogonal Adaptation (Po et al., CVPR 2024): concepts that are tuned so that their plain sum keeps them apart.

    dW_i = B_i A_i,   A_i A_j^T = 0 for i != j (A_i frozen),   W* = W0 + sum_i dW_i

    paper        here     shape
    B_i^T        down     (r, d_in)    frozen: rows slot * r to (slot + 1) * r of one orthogonal matrix a width
    A_i          up       (d_out, r)   the only part of the LoRA that is tuned

(The paper's A and B are the other way around.) Another concept's update is silent on what lies in the span of this
one's rows, so nothing has to be solved. The price is a number that every client must be given before it tunes, and a
limit: floor(d_in / r) concepts fit into the narrowest layer. LoRAs that were tuned without it cannot join.

The frozen orthogonal factors and the sum are the authors'. They draw r columns of the shared matrix at random, which
need no numbers and overlap by chance; slots are ours, and so is the error beyond the limit. Everything else of the
recipe (words, rates, steps) is ED-LoRA's.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import torch

from ..engine import lora
from ..engine.fusion import algebra
from ..engine.fusion.weight import NETS, layer_factors, updated_layers, weight_fusion
from ..engine.recipes import Recipe, recipe_for
from ..files.concept import Concept
from ..model import DiffusionModel

APART = 1e-3  # cosines of two concepts' rows above this are no rounding


def orthogonal_recipe(base: DiffusionModel, slot: int, like: str | Recipe = "ed_lora") -> Recipe:
    """The recipe that tunes the concept of this slot, 0 or more; no two concepts of a model may have the same.

    `tune` raises ValueError on a slot that the base's narrowest layer has no room for.
    """
    return replace(recipe_for(base, like), name="orthogonal", slot=slot)


def orthogonal_fusion(base: DiffusionModel, concepts: Sequence[Concept]) -> DiffusionModel:
    """The base with the plain sum of concepts whose rows are orthogonal, and all their words.

    Raises ValueError on unusable concepts, and on two whose rows overlap: ordinary LoRAs, or the same slot twice.
    """
    for a, b in combinations(concepts, 2):
        found = overlap(base, a, b)
        if found > APART:
            raise ValueError(
                f"{a.name!r} and {b.name!r} are not orthogonal (their rows overlap by {found:.2f}): tune each by "
                "orthogonal_recipe(base, slot) with a slot of its own, other LoRAs cannot join."
            )
    fused = weight_fusion(base, concepts, normalise=False)
    fused.report.method = "Orthogonal Adaptation"
    return fused


def overlap(base: DiffusionModel, a: Concept, b: Concept) -> float:
    """The largest cosine between a direction that one concept's update reads and one of the other's, in any layer."""
    found = 0.0
    for net in NETS:
        for name in set(updated_layers([a], net)) & set(updated_layers([b], net)):
            rows = [algebra.row_span([pair]) for pair in layer_factors(base, [a, b], net, name)]  # (r, d_in) each
            if len(rows[0]) and len(rows[1]):
                found = max(found, float(torch.linalg.matrix_norm(rows[0] @ rows[1].T, ord=2)))
    return found


def capacity(base: DiffusionModel, rank: int) -> int:
    """How many concepts of this rank fit: floor(d_in / rank) of the base's narrowest attention linear."""
    widths = [layer.in_features for net in NETS for layer in lora.attention_linears(getattr(base, net)).values()]
    return min(widths) // rank
