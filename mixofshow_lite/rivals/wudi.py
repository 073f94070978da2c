"""WUDI (Cheng et al., "Whoever Started the Interference Should End It", ICML 2025): least squares without any data.

    U* = argmin_U  sum_i || (dW_i - U) dW_i^T ||_F^2 / || dW_i ||_F^2

The rows of an update are taken for the inputs it was trained on. That is gradient fusion's problem (`engine.fusion.
algebra`) with G_i = dW_i^T dW_i / ||dW_i||^2 in the place of the recordings, so its solver serves here:

    U* = S + sum_i (dW_i - S) G_i (sum_i G_i + lam I)^-1,   S = sum_i dW_i

The authors start at the sum S and take 300 steps of Adam at a rate of 1e-5, which ends before the optimum. Theirs are
the objective and the start. Ours are the closed form, the ridge towards S, and plain gradient descent, whose steps of
length 1 / (the largest eigenvalue of sum_i G_i) stop early as well and, unlike Adam's, keep the result factored.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..engine.fusion import algebra
from ..files.concept import Concept
from ..model import DiffusionModel
from .layers import merge_factors, stacked


def wudi_fusion(
    base: DiffusionModel, concepts: Sequence[Concept], ridge: float = 0.0, steps: int | None = None
) -> DiffusionModel:
    """The base with the concepts merged by WUDI, layer by layer.

    With `steps` that many steps of gradient descent from the sum, else the optimum; `ridge` (of the optimum) is
    relative to the mean diagonal of sum_i G_i. Raises ValueError on unusable concepts, ridge or steps.
    """
    if steps is not None and (steps < 0 or ridge):
        raise ValueError(f"steps={steps}, ridge={ridge}: give a ridge to the optimum, or a number of steps, not both.")
    return merge_factors(base, concepts, lambda own: wudi(own, ridge, steps), "WUDI", ridge=ridge, steps=steps)


def wudi(own: list[algebra.LowRankPair], ridge: float = 0.0, steps: int | None = None) -> algebra.LowRankPair:
    """WUDI's update of one layer, factored: down (R, d_in), up (d_out, R)."""
    grams = [row_gram(pair) for pair in own]
    ones = torch.ones(len(own), dtype=torch.float64)
    if steps is None:
        normal = algebra.normal_equations(grams, ones, ridge, prior=ones)
        return algebra.closed_form(normal, own, "average")  # the "average" of weights 1 is the sum
    G = sum(grams)  # (d_in, d_in)
    down, up = stacked(own)
    # dL/dU = 2 (U G - sum_i dW_i G_i) = 2 up (down G - wanted): the steps change `down` alone.
    wanted = torch.cat([own_down @ gram for (own_down, _), gram in zip(own, grams, strict=True)])  # (R, d_in)
    rate = 1 / torch.linalg.eigvalsh(G)[-1]
    for _ in range(steps):
        down = down - rate * (down @ G - wanted)
    return down, up


def row_gram(pair: algebra.LowRankPair) -> Tensor:
    """dW^T dW / ||dW||_F^2, (d_in, d_in), of trace 1."""
    down, up = pair
    gram = down.T @ (up.T @ up) @ down
    return gram / gram.trace()
