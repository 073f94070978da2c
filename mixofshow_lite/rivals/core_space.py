"""Core Space merging (Panariello et al., NeurIPS 2025): merge low-rank updates in the small space that they share.

    U_B = left singular vectors of [up_1 .. up_n],  V_A = right singular vectors of [down_1; ..; down_n]
    M_i = (U_B^T up_i) (down_i V_A^T),              U = U_B merge(M_1, .., M_n) V_A

    paper   here       shape, R = sum r_i
    U_B     U_B        (d_out, min(d_out, R))
    V_A     V_A        (min(d_in, R), d_in)
    M_i     cores[i]   (min(d_out, R), min(d_in, R))

Nothing is lost, because every update lies in this space: merging by the sum is the plain sum. Merges that look at
singular values or single entries (`matrices`) differ from the same ones on whole updates. The result is factored as it
comes. All of it is the authors'; only their scaling on validation data is left out.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..engine.fusion import algebra
from ..files.concept import Concept
from ..model import DiffusionModel
from .layers import merge_factors
from .matrices import iso_c, ties, tsv_m

CORES: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {"sum": sum, "ties": ties, "iso_c": iso_c, "tsv_m": tsv_m}


def core_space_fusion(base: DiffusionModel, concepts: Sequence[Concept], merge: str = "iso_c") -> DiffusionModel:
    """The base with the concepts merged in core space, layer by layer; `merge` is one of CORES.

    Raises ValueError on an unknown merge or unusable concepts.
    """
    if merge not in CORES:
        raise ValueError(f"There is no merge {merge!r} in core space: choose one of {', '.join(CORES)}.")
    return merge_factors(base, concepts, lambda own: core_space(own, CORES[merge]), f"Core Space ({merge})")


def core_space(own: list[algebra.LowRankPair], merge: Callable[[Sequence[Tensor]], Tensor]) -> algebra.LowRankPair:
    """One layer's merge, factored: down (R, d_in), up (d_out, R)."""
    U_B = torch.linalg.svd(torch.cat([up for _, up in own], dim=1), full_matrices=False).U
    V_A = torch.linalg.svd(torch.cat([down for down, _ in own]), full_matrices=False).Vh
    cores = [(U_B.T @ up) @ (down @ V_A.T) for down, up in own]
    return V_A, U_B @ merge(cores)
