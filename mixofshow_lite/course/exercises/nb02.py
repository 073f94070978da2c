"""Notebook 02: the LoRA-weight dial, what can be counted, how identity is measured."""

import numpy as np
import torch

from . import close, exercise


def features(n: int, seed: int, D: int = 12) -> torch.Tensor:
    """n unit-length features, (n, D)."""
    x = torch.randn(n, D, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True)


@exercise("2.1")
def _dial(function) -> None:
    W0, down, up = torch.randn(6, 5), torch.randn(2, 5), torch.randn(6, 2)
    close(function(W0, down, up, 0.0), W0, "At alpha = 0 W0 is all that is left: does alpha multiply the product only?")
    close(function(W0, down, up, 1.0), W0 + up @ down, "dW is up @ down, (d_out, r) times (r, d_in), in this order.")
    close(function(W0, down, up, 0.35), W0 + 0.35 * up @ down, "alpha multiplies the product once, not each factor.")


@exercise("2.2")
def _numbers(value) -> None:
    value = list(value) if isinstance(value, (tuple, list)) else [value]
    if len(value) != 3:
        raise AssertionError("Give three numbers: Textual Inversion, P+, ED-LoRA's two words.")
    D, L = 768, 16
    for mine, wanted, hint in zip(
        value,
        (D, L * D, 2 * L * D),
        (
            "Textual Inversion has one row of D numbers for all layers.",
            "P+ has a row of D numbers for each of the L layers.",
            "ED-LoRA has two words, and each is layer-wise.",
        ),
        strict=True,
    ):
        close(mine, wanted, hint, 0)


@exercise("2.3")
def _identified(function) -> None:
    references = {name: features(4, seed) for seed, name in enumerate(("x", "y", "z"))}
    own = torch.stack([references["y"].mean(0), references["y"].mean(0), references["x"].mean(0)])
    hint = "Take the mean cosine with each concept's references, then ask for which concept it is the largest."
    close(function(own, references, "y"), 2 / 3, hint, 1e-6)
    close(function(own, references, "z"), 0.0, f"{hint} Does your answer depend on the name?", 1e-6)
    x = features(50, 7)
    scores = np.stack([(x @ r.T).numpy().mean(1) for r in references.values()])
    close(function(x, references, "x"), float((scores.argmax(0) == 0).mean()), hint, 1e-6)


@exercise("2.4")
def _apart(function) -> None:
    a, b = features(5, 0), features(7, 1)
    same = function(a, a)
    if isinstance(same, (int, float, torch.Tensor)) and abs(float(same)) > 1e-5:
        raise AssertionError(f"A group is {float(same):.3g} apart from itself: is it 1 - the cosine, of unit vectors?")
    a_mean, b_mean = a.mean(0), b.mean(0)
    wanted = 1 - float(a_mean @ b_mean / (a_mean.norm() * b_mean.norm()))
    close(function(a, b), wanted, "The mean of unit vectors is shorter than 1: divide by its length before the cosine.")


@exercise("2.5")
def _paired(function) -> None:
    rows = [("bibi", "lora", 0.90), ("bibi", "p_plus", 0.70), ("mochi", "lora", 0.95), ("mochi", "p_plus", 0.93),
            ("fern", "lora", 0.60)]  # fmt: skip
    close(
        function(rows, "lora", "p_plus"),
        (0.20 + 0.02) / 2,
        "Subtract inside each concept first; a concept that lacks one of the two cannot be compared.",
        1e-6,
    )
