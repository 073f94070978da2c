"""SSR-Merge (Subspace Signal Routing, ICML 2026): least squares among the ranks of all LoRAs together.

    A = [A_1; ..; A_n],  B = [B_1 .. B_n],  z = A x
    R = Q (G + lam I)^-1,   G = sum z z^T,   Q_k = sum_{x of task k} (A_k x) z^T,      U* = B R A

    paper   here         shape, R = sum r_i
    A, B    down, up     (R, d_in), (d_out, R)
    G, Q    seen, told   (R, R)   means over the inputs of all tasks

That is gradient fusion with rows that stay in the span of the concepts' own (`Settings.span`), with a ridge towards
zero. All of it is the authors', lam = 1e-4 included; theirs are inputs of each task's data, ours come from its words.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..engine.fusion import algebra
from ..files.concept import Concept
from ..model import DiffusionModel
from .layers import merge_recorded

RIDGE = 1e-4  # lam, absolute


def ssr_fusion(
    base: DiffusionModel, concepts: Sequence[Concept], ridge: float = RIDGE, progress: bool = True, **options
) -> DiffusionModel:
    """The base with the concepts merged by SSR-Merge; `options` are `layers.merge_recorded`'s.

    Raises ValueError on a ridge that is not positive or unusable concepts.
    """
    if not ridge > 0:
        raise ValueError(f"ridge={ridge}: SSR-Merge needs a positive one.")

    def merge(own: list, grams: list, rows: list) -> algebra.LowRankPair:
        return ssr(own, grams, rows, ridge)

    return merge_recorded(base, concepts, merge, "SSR-Merge", progress=progress, ridge=ridge, **options)


def ssr(
    own: list[algebra.LowRankPair], grams: list[Tensor], rows: list[int], ridge: float = RIDGE
) -> algebra.LowRankPair:
    """One layer's merge, factored: down (R, d_in) all A_k as they are, up (d_out, R) with the router inside."""
    if len(own) == 1:
        return own[0]  # nothing to be routed, as in the authors' code
    down, up = torch.cat([down for down, _ in own]), torch.cat([up for _, up in own], dim=1)
    counts = [count / sum(rows) for count in rows]
    seen = sum(share * (down @ gram @ down.T) for share, gram in zip(counts, grams, strict=True))
    told = torch.cat(
        [share * (own_down @ gram @ down.T) for share, gram, (own_down, _) in zip(counts, grams, own, strict=True)]
    )
    router = torch.linalg.solve(seen + ridge * torch.eye(len(seen), dtype=seen.dtype), told.T).T
    return down, up @ router
