"""Notebook 01: noising, sampling, guidance, LoRA."""

import torch

from . import close, exercise


@exercise("1.1")
def _noising(function) -> None:
    z, eps, a = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor(0.3)
    close(
        function(z, eps, a),
        0.3**0.5 * z + 0.7**0.5 * eps,
        "Are both factors square roots, and do their squares add up to 1?",
    )


@exercise("1.2")
def _clean(function) -> None:
    z, eps, a = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor(0.3)
    noisy = a.sqrt() * z + (1 - a).sqrt() * eps
    close(function(noisy, eps, a), z, "Solve z_t = sqrt(a) z + sqrt(1 - a) eps for z: subtract first, then divide.")


@exercise("1.3")
def _guide(function) -> None:
    a, b = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    close(function(a, b, 1.0), b, "At a scale of 1 the result must be the conditional prediction.")
    close(function(a, b, 0.0), a, "At a scale of 0 the result must be the unconditional prediction.")
    close(function(a, b, 4.0), a + 4 * (b - a), "Start from the unconditional one, go `scale` times the difference.")


@exercise("1.4")
def _parameters(value) -> None:
    wanted = sum(4 * (64 + 64) for _ in range(4))
    close(value, wanted, "Each of the four linears has down (4, 64) and up (64, 4).", 0)
