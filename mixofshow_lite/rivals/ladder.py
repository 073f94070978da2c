"""Is a better weight enough? Gradient fusion's problem (paper 3.3.2) with fewer and fewer numbers to choose, per layer.

    rung       the merged update              numbers       solution
    concept    U = sum_j s_j dW_j             n             n x n system  tr(dW_j G dW_k^T) s = tr(dW_j C^T)
    column     U = sum_j dW_j diag(m_j)       n d_in        blocks (dW_j^T dW_k) o G,  right side diag(dW_j^T C)
    matrix     U                              d_out d_in    U = C G^-1, gradient fusion in closed form

    G = sum_i G_i and C = sum_i dW_i G_i, all of the same recordings; o multiplies entry by entry.

Each rung is the exact least-squares optimum, with one ridge towards the average (s = m = 1 / n, Eq. 2) relative to the
mean diagonal of its own system. A column of numbers a concept is what ZipLoRA (Shah et al., ECCV 2024) trains: its
reconstruction term is solved here in closed form on recorded inputs; its penalty on similar columns is left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..engine.fusion import algebra
from ..engine.fusion.settings import default_ridge
from ..files.concept import Concept
from ..model import DiffusionModel
from .layers import merge_recorded

RUNGS = ("concept", "column", "matrix")


def ladder_fusion(
    base: DiffusionModel,
    concepts: Sequence[Concept],
    rung: str = "column",
    ridge: float | None = None,
    progress: bool = True,
    **options,
) -> DiffusionModel:
    """The base with the concepts merged by one rung of RUNGS; a ridge of None is gradient fusion's default.

    `options` are `layers.merge_recorded`'s. Raises ValueError on an unknown rung or unusable concepts.
    """
    if rung not in RUNGS:
        raise ValueError(f"There is no rung {rung!r}: choose one of {', '.join(RUNGS)}.")
    ridge = default_ridge(len(concepts)) if ridge is None else ridge
    solve = {"concept": per_concept, "column": per_column, "matrix": whole_matrix}[rung]

    def merge(own: list, grams: list, rows: list) -> algebra.LowRankPair:
        return solve(own, grams, ridge)

    method = f"least squares, a number a {rung}" if rung != "matrix" else "least squares, the whole matrix"
    return merge_recorded(base, concepts, merge, method, progress=progress, ridge=ridge, **options)


def per_concept(own: list[algebra.LowRankPair], grams: list[Tensor], ridge: float = 0.0) -> algebra.LowRankPair:
    """The best number for every concept's whole update in one layer."""
    G, n = sum(grams), len(own)
    system, wanted = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for j in range(n):
        for k in range(n):
            system[j, k] = inner(own[j], own[k], G)  # tr(dW_j G dW_k^T)
            wanted[j] += inner(own[j], own[k], grams[k])
    return algebra.average(own, solve_towards(system, wanted, ridge, 1 / n))


def per_column(own: list[algebra.LowRankPair], grams: list[Tensor], ridge: float = 0.0) -> algebra.LowRankPair:
    """The best number for every column of every concept's update in one layer, down_j diag(m_j)."""
    G, n, d = sum(grams), len(own), grams[0].shape[0]
    system, wanted = torch.zeros(n * d, n * d, dtype=torch.float64), torch.zeros(n * d, dtype=torch.float64)
    for j, (down_j, up_j) in enumerate(own):
        rows = slice(j * d, (j + 1) * d)
        for k, (down_k, up_k) in enumerate(own):
            products = down_j.T @ (up_j.T @ up_k) @ down_k  # (d, d) dW_j^T dW_k
            system[rows, k * d : (k + 1) * d] = products * G
            wanted[rows] += (products * grams[k]).sum(dim=1)  # the diagonal of dW_j^T dW_k G_k
    numbers = solve_towards(system, wanted, ridge, 1 / n).view(n, d)
    downs = [down * column for (down, _), column in zip(own, numbers, strict=True)]
    return torch.cat(downs), torch.cat([up for _, up in own], dim=1)


def whole_matrix(own: list[algebra.LowRankPair], grams: list[Tensor], ridge: float = 0.0) -> algebra.LowRankPair:
    """The best matrix: `engine.fusion.algebra.closed_form` with equal weights."""
    equal = torch.full((len(own),), 1 / len(own), dtype=torch.float64)
    return algebra.closed_form(algebra.normal_equations(grams, equal, ridge), own, "average")


def inner(a: algebra.LowRankPair, b: algebra.LowRankPair, gram: Tensor) -> Tensor:
    """tr(a G b^T) of two updates, ()."""
    return ((a[1].T @ b[1]) * (a[0] @ gram @ b[0].T)).sum()


def solve_towards(system: Tensor, wanted: Tensor, ridge: float, start: float) -> Tensor:
    """argmin x^T H x / 2 - b^T x + a ridge towards `start` in every number; the least change where H says nothing."""
    lam = ridge * system.diagonal().mean()
    missing = wanted - system @ torch.full_like(wanted, start)
    if lam == 0:
        return start + torch.linalg.pinv(system, hermitian=True) @ missing
    regular = system + lam * torch.eye(len(system), dtype=system.dtype)
    return start + torch.cholesky_solve(missing[:, None], torch.linalg.cholesky(regular))[:, 0]
