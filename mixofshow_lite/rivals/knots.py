"""KnOTS-TIES (Stoica et al., "Model merging with SVD to tie the KnOTS", ICLR 2025): TIES on aligned updates.

    [dW_1 .. dW_n] = U S [V_1 .. V_n]        one SVD of all updates side by side
    U* = U TIES(S V_1, .., S V_n)            merged where all share one basis U

    paper   here       shape, R = sum r_i
    U       U          (d_out, R)
    S V_i   parts[i]   (R, d_in)

The updates are factored, so the SVD is taken of [up_1 .. up_n] and a small rest instead of a (d_out, n d_in) matrix:
the same numbers. The authors trim over all layers at once and scale on validation data; here each layer is trimmed by
itself (as Core Space's code has KnOTS) and the scale is 1. Directions below 1e-5 are left out, as in their code.
"""

from collections.abc import Sequence

import torch

from ..engine.fusion import algebra
from ..files.concept import Concept
from ..model import DiffusionModel
from .layers import merge_factors
from .matrices import KEPT, ties

SMALLEST = 1e-5  # singular values of directions that count


def knots_fusion(base: DiffusionModel, concepts: Sequence[Concept], kept: float = KEPT) -> DiffusionModel:
    """The base with the concepts merged by KnOTS-TIES; `kept` is the share of the entries that TIES keeps.

    Raises ValueError on a share outside 0..1 or unusable concepts.
    """
    if not 0 < kept <= 1:
        raise ValueError(f"kept={kept} is no share of the entries: give a number above 0 and at most 1.")
    return merge_factors(base, concepts, lambda own: knots(own, kept), "KnOTS-TIES", kept=kept)


def knots(own: list[algebra.LowRankPair], kept: float = KEPT) -> algebra.LowRankPair:
    """One layer's merge, factored: down (R, d_in), up (d_out, R)."""
    left, rest = torch.linalg.qr(torch.cat([up for _, up in own], dim=1))  # (d_out, a), (a, R)
    shares = rest.split([len(down) for down, _ in own], dim=1)
    side_by_side = torch.cat([share @ down for share, (down, _) in zip(shares, own, strict=True)], dim=1)  # (a, n d_in)
    U, S, V = torch.linalg.svd(side_by_side, full_matrices=False)
    count = max(1, int((S > SMALLEST).sum()))
    parts = (S[:count, None] * V[:count]).chunk(len(own), dim=1)  # n of (R, d_in)
    return ties(parts, kept), left @ U[:, :count]
