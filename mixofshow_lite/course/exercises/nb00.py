"""Notebook 00: what a client shares, the average (Eq. 2), the objective of gradient fusion, columns for friends."""

import torch

from . import called, close, exercise, refuse

SHARED = {"words", "LoRA"}
OFFERED = {"pictures", "captions", "masks", "words", "LoRA", "the whole model"}


def weights(n: int):
    """A random W0 (4, 6), n updates of rank 1 (4, 6), and the inputs X_i (6, tokens_i) of n concepts."""
    W0 = torch.randn(4, 6, dtype=torch.float64)
    deltas = [torch.randn(4, 1, dtype=torch.float64) @ torch.randn(1, 6, dtype=torch.float64) for _ in range(n)]
    inputs = [torch.randn(6, 3 + i, dtype=torch.float64) for i in range(n)]
    return W0, deltas, inputs


@exercise("0.1")
def _shared(answer) -> None:
    if isinstance(answer, str) or not isinstance(answer, (set, list, tuple)):
        raise AssertionError('Give a set of names, for example {"captions", "masks"}.')
    chosen = set(answer)
    if chosen - OFFERED:
        raise AssertionError(f"{sorted(chosen - OFFERED)[0]!r} is not on the list: {', '.join(sorted(OFFERED))}.")
    if chosen & {"pictures", "captions", "masks"}:
        raise AssertionError("Pictures and what belongs to them stay at home: that is the point of clients.")
    if "the whole model" in chosen:
        raise AssertionError("Everybody has the model already: what is new is small.")
    if "words" not in chosen:
        raise AssertionError("How would a prompt call the concept? Look at what concept.words holds.")
    if "LoRA" not in chosen:
        raise AssertionError("Words say what the model can draw already. What adds a star that it has never drawn?")


@exercise("0.2")
def _average(function) -> None:
    for n in (2, 3, 5):
        W0, deltas, _ = weights(n)
        total = sum(deltas)
        mine = called(function, W0.clone(), list(deltas), hint="deltas is a list of matrices of W0's shape.")
        refuse(mine, W0 + total, "That is the sum: with n concepts each may speak for 1 / n only.")
        refuse(mine, total / n, "That is the average update. Where is the weight it is added to?")
        refuse(mine, (W0 + total) / n, "W0 is divided as well: with no update at all the model would be another one.")
        if n > 2:
            refuse(mine, W0 + total / 2, "Right for two concepts; there may be more: len(deltas).")
        close(mine, W0 + total / n, "Eq. 2 with equal weights: W0, and the mean of the updates on top.")


@exercise("0.3")
def _objective(function) -> None:
    for n in (1, 3):
        W0, deltas, inputs = weights(n)
        W = W0 + torch.randn_like(W0)
        gaps = [(W0 + dW) @ X - W @ X for dW, X in zip(deltas, inputs, strict=True)]
        hint = "X_i stands on the right of the weight: (d_out, d_in) @ (d_in, tokens)."
        mine = called(function, W, W0, list(deltas), list(inputs), hint=hint)
        refuse(mine, sum(gap.norm() for gap in gaps), "The norm is not squared yet.")
        mean = sum(gap.square().mean() for gap in gaps)
        refuse(mine, mean, "That is a mean over the entries: the paper sums, so long recordings count more.")
        unmoved = sum((W0 @ X - W @ X).square().sum() for X in inputs)
        refuse(mine, unmoved, "The target is what the concept's own weight says, W0 + dW_i, not W0.")
        refuse(mine, sum(gap.sum() ** 2 for gap in gaps), "Square each entry first, then sum.")
        wanted = sum(gap.square().sum() for gap in gaps)
        close(mine, wanted, "For every concept: (W0 + dW_i) X_i - W X_i, squared, summed.")


@exercise("0.4")
def _columns(function) -> None:
    for n in (1, 2, 3, 4):
        boxes = called(function, n, hint="It gets the number of friends.")
        boxes = [tuple(map(float, box)) for box in boxes]
        if len(boxes) != n:
            raise AssertionError(f"For {n} friends there are {len(boxes)} boxes.")
        if any(len(box) != 4 for box in boxes):
            raise AssertionError("A box has four numbers: left, top, right, bottom.")
        if max(map(max, boxes)) > 1 + 1e-6:
            raise AssertionError("A number is above 1: boxes are in fractions of the picture, not in pixels.")
        for k, (left, top, right, bottom) in enumerate(boxes):
            if right <= left or bottom <= top:
                raise AssertionError(f"Box {k} has no area: the third number is the right edge, not the width.")
            if abs(left - k / n) > 0.02 or abs(right - (k + 1) / n) > 0.02:
                where = f"from {k / n:.2f} to {(k + 1) / n:.2f}"
                raise AssertionError(
                    f"Of {n} equal columns number {k} goes {where}, yours from {left:.2f} to {right:.2f}."
                )
