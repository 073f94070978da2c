"""Weight fusion (paper 3.1, Eq. 2), and what every fusion asks of its concepts first.

    W = W0 + sum_i w_i dW_i,    sum_i w_i = 1                                                 (Eq. 2)

    paper   here        shape
    w_i     weights[i]  ()                equal unless given; `normalise=False` is the plain sum that the community uses
    dW_i    factors     (r_i, d_in), (d_out, r_i)

The words of all concepts are joined: tuned embeddings do not conflict (paper 3.2), only their names can.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...files.concept import Concept, LoRAFactors
from ...files.fits import check_is_concept
from ...model import DiffusionModel
from .. import lora
from ..arguments import is_number, shown
from . import algebra
from .report import FusionReport

NETS = ("text_encoder", "unet")


def weight_fusion(
    base: DiffusionModel, concepts: Sequence[Concept], weights: Sequence[float] | None = None, normalise: bool = True
) -> DiffusionModel:
    """The base with the (weighted) average of the concepts' updates and all their words (Eq. 2).

    A concept without updates just adds its words and has no share in the average. Raises ValueError with one sentence
    on unusable concepts or weights. The base and the concepts stay as they are.
    """
    concepts, w = check_concepts(base, concepts, weights, normalise)
    members, shares = updating(concepts, w) if normalise else (concepts, w)
    factors = {net: averaged(base, members, net, updated_layers(members, net), shares) for net in NETS}
    fused = with_factors(base.with_words(*concepts), factors)
    settings = {"weights": tuple(w.tolist())}
    fused.report = FusionReport("weight fusion", tuple(c.name for c in concepts), settings, factors=factors)
    return fused


def averaged(
    base: DiffusionModel, concepts: Sequence[Concept], net: str, names: Sequence[str], w: Tensor
) -> LoRAFactors:
    """Eq. 2 in the named layers of a network."""
    return {n: algebra.compact(algebra.average(layer_factors(base, concepts, net, n), w)) for n in names}


def updating(concepts: Sequence[Concept], w: Tensor) -> tuple[list[Concept], Tensor]:
    """The concepts that update anything at all, and their weights with the same sum as before."""
    kept = [i for i, concept in enumerate(concepts) if any(concept.lora.values())]
    share = w[kept].sum()
    return [concepts[i] for i in kept], (w[kept] * (w.sum() / share) if share > 0 else w[kept])


def check_concepts(
    base: DiffusionModel, concepts: Sequence[Concept], weights: Sequence[float] | None = None, normalise: bool = True
) -> tuple[list[Concept], Tensor]:
    """The concepts sorted by name, so that their order never matters, and their weights (n,) in float64."""
    concepts = list(concepts)
    for concept in concepts:
        check_is_concept(concept)
    if not concepts:
        raise ValueError("There is no concept to fuse: give at least one.")
    if weights is not None and not all(map(is_number, weights)):
        raise ValueError(f"weights={shown(weights)} do not fit: give one number >= 0 for each concept.")
    raw = torch.tensor([1.0] * len(concepts) if weights is None else list(weights), dtype=torch.float64)
    if raw.shape != (len(concepts),) or not torch.isfinite(raw).all() or (raw < 0).any() or raw.sum() <= 0:
        raise ValueError(
            f"weights={weights} do not fit: give one number >= 0 for each of the {len(concepts)} concepts."
        )
    for number, concept in enumerate(concepts):
        concept.check(base, beside=concepts[:number])
    order = sorted(range(len(concepts)), key=lambda i: concepts[i].name)
    return [concepts[i] for i in order], (raw / raw.sum() if normalise else raw)[order]


def updated_layers(concepts: Sequence[Concept], net: str) -> list[str]:
    """Names of the layers that any concept updates, first to last in the network (down, mid, up; layer 2 before 10)."""
    names = {name for concept in concepts for name in concept.lora.get(net, {})}
    return sorted(names, key=lambda name: [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in name.split(".")])


def layer_factors(base: DiffusionModel, concepts: Sequence[Concept], net: str, name: str) -> list[algebra.LowRankPair]:
    """One layer's update of every concept in float64, the scale inside `up`; rank 0 where a concept has none."""
    d_out, d_in = lora.adaptable(getattr(base, net))[name].weight.shape[:2]
    found = []
    for concept in concepts:
        down, up = concept.lora.get(net, {}).get(name, algebra.no_update(d_in, d_out))
        down, up = algebra.as_double((down.detach().cpu(), up.detach().cpu()))
        found.append((down, concept.scale * up))
    return found


def with_factors(model: DiffusionModel, factors: dict[str, LoRAFactors]) -> DiffusionModel:
    """A copy of the model with W + up @ down in every named layer; all other weights are shared."""
    model = model.copy()
    for net, layers in factors.items():
        deltas = {name: algebra.dense(algebra.as_double(pair)).float() for name, pair in layers.items()}
        lora.add_deltas(getattr(model, net), deltas)
    return model
