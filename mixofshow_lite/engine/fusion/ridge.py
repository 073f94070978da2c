"""A ridge for every layer from its own recordings (`ridge="auto"`): leave one recorded prompt out in turn.

For each candidate: solve the layer on the Grams of all prompts but one, measure the loss on the Gram of the prompt
left out, and add up over the prompts. Only Grams are needed, nothing is sampled again. It predicts prompts that were
not recorded as far as they resemble the recorded ones.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import algebra
from .grams import Statistics, joined

CANDIDATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # relative to the mean Gram diagonal


def leave_one_out(
    statistics: Sequence[Statistics],
    key: str,
    layers: Sequence[list[algebra.LowRankPair]],
    weights: Tensor,
    prior: Tensor,
    towards: str,
    candidates: Sequence[float] = CANDIDATES,
) -> tuple[float, list[float]]:
    """The best candidate for all layers that the feed `key` feeds, and the held-out loss of every candidate.

    `layers` holds for each layer the factors of every concept. Raises ValueError unless some concept has two prompts.
    """
    losses = torch.zeros(len(candidates), dtype=torch.float64)
    folds = max((len(own.parts) for own in statistics), default=0)
    if folds < 2:
        raise ValueError("ridge='auto' leaves one recorded prompt out in turn: give at least two prompts a concept.")
    for fold in range(folds):
        train, held = split(statistics, key, fold)
        eigen = algebra.decompose(train, weights)
        for number, ridge in enumerate(candidates):
            normal = algebra.normal_equations(train, weights, ridge, prior, eigen)
            losses[number] += sum(held_out(normal, factors, held, towards) for factors in layers)
    return candidates[int(losses.argmin())], losses.tolist()


def split(statistics: Sequence[Statistics], key: str, fold: int) -> tuple[list[Tensor], list[Tensor | None]]:
    """The Grams of every concept without prompt `fold`, and those of prompt `fold` alone (None where there is none)."""
    train, held = [], []
    for own in statistics:
        kept = [part for number, part in enumerate(own.parts) if number != fold]
        whole = not kept or len(kept) == len(own.parts)
        only = [Statistics({key: part.grams[key]}, {key: part.rows[key]}) for part in kept]
        train.append(own.grams[key] if whole else joined(only).grams[key])
        held.append(None if whole else own.parts[fold].grams[key])
    return train, held


def held_out(
    normal: algebra.Normal, factors: list[algebra.LowRankPair], held: list[Tensor | None], towards: str
) -> float:
    """The weighted loss of one layer's solution on the prompts that were left out."""
    update = algebra.closed_form(normal, factors, towards)
    terms = zip(normal.weights.tolist(), factors, held, strict=True)
    return sum(w * algebra.difference_energy(update, own, gram) for w, own, gram in terms if gram is not None)
