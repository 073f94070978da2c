"""Three ways to merge matrices of one shape, whatever they mean: TIES, TSV-M and Iso-C.

    TIES    Yadav et al., NeurIPS 2023        trim small entries, elect a sign for each, mean of those that agree
    TSV-M   Gargiulo et al., CVPR 2025        the strongest singular vectors of each, made orthogonal to the others'
    Iso-C   Marczak et al., ICML 2025         the sum, all its singular values set to their mean

Each takes n matrices (d, k) and gives one (d, k). Their authors then multiply by a number that they choose on
validation data, which a center node has not: it is 1 here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

KEPT = 0.2  # share of the entries that TIES keeps, its authors' default


def ties(matrices: Sequence[Tensor], kept: float = KEPT) -> Tensor:
    """TIES: trim each to its `kept` share of largest entries; elect sign(sum); mean of the entries with that sign.

    Entries are trimmed over one matrix; the authors trim over all layers of a model at once. An entry whose trimmed
    sum is 0 takes the sign of the whole sum, as in the authors' code.
    """
    trimmed = torch.stack([trim(matrix, kept) for matrix in matrices])  # (n, d, k)
    total = trimmed.sum(dim=0)
    elected = torch.where(total == 0, total.sum().sign(), total.sign())  # (d, k)
    agreeing = trimmed * (trimmed.sign() == elected)
    counts = (agreeing != 0).sum(dim=0).clamp(min=1)
    return agreeing.sum(dim=0) / counts


def trim(matrix: Tensor, kept: float) -> Tensor:
    """The matrix with all but its largest entries set to 0; at least one stays."""
    count = max(1, round(kept * matrix.numel()))
    chosen = matrix.abs().flatten().topk(count).indices
    mask = torch.zeros(matrix.numel(), dtype=torch.bool)
    mask[chosen] = True
    return matrix * mask.view_as(matrix)


def tsv_m(matrices: Sequence[Tensor]) -> Tensor:
    """TSV-M: U_w S V_w^T of the k strongest singular vectors of each, k = min(d, k) / n rounded down, at least 1.

    U_w and V_w are the orthogonal matrices nearest to all of the left and all of the right vectors side by side (the
    solution of the orthogonal Procrustes problem), which takes from every task what it shares with the others.
    """
    count = max(1, min(matrices[0].shape) // len(matrices))
    parts = [torch.linalg.svd(matrix, full_matrices=False) for matrix in matrices]
    left = torch.cat([U[:, :count] for U, _, _ in parts], dim=1)  # (d, n count)
    values = torch.cat([S[:count] for _, S, _ in parts])  # (n count,)
    right = torch.cat([V[:count] for _, _, V in parts])  # (n count, k)
    return orthogonal(left) * values @ orthogonal(right)


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (or rows, whichever are fewer): U V^T of its SVD."""
    U, _, V = torch.linalg.svd(matrix, full_matrices=False)
    return U @ V


def iso_c(matrices: Sequence[Tensor]) -> Tensor:
    """Iso-C: the singular vectors of the sum, each with the mean of all min(d, k) singular values."""
    U, S, V = torch.linalg.svd(sum(matrices), full_matrices=False)
    return S.mean() * U @ V
