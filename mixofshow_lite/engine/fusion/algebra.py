"""One layer of the center node (paper 3.3.2): the least-squares problem of gradient fusion and its two solvers.

Every concept i brings an update dW_i and the inputs X_i its layer saw. The fused update U = W - W0 minimises

    loss(U) = sum_i w_i || (dW_i - U) X_i ||_F^2 = sum_i w_i tr((dW_i - U) G_i (dW_i - U)^T)

so the inputs matter only through their Grams. With G = sum_i w_i G_i and a ridge lam towards a prior P, the minimum is

    U* = P + sum_i w_i (dW_i - P) G_i (G + lam I)^-1        P = 0 ("base") or P = A = sum_i a_i dW_i ("average", Eq. 2)

    paper   here                 shape
    X_i     (streamed)           (d_in, rows_i)
            grams[i]             (d_in, d_in)                      X_i X_i^T / rows_i, float64
    dW_i    factors[i]           down (r_i, d_in), up (d_out, r_i)  dW_i = up @ down, any LoRA scale already inside `up`
            weights[i]           ()                                w_i >= 0, sum 1 unless there are preservation rows
            prior[i]             ()                                a_i, weights of the average (Eq. 2); w_i by default
    U       factors              down (sum r_i, d_in), up (d_out, sum r_i)

Both terms of U* multiply dW_i from the right only, so U* = [up_1 .. up_n] [down_1 R_1; ..; down_n R_n]: exactly of rank
<= sum r_i, an ordinary LoRA. The iterates of LBFGS stay in the same span (they are sums of gradients), so the paper's
solver has that form too.

Grams are only ever looked at one after the other, so that `grams` may be a sequence that reads them from disk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...fusion import minimise

LowRankPair = tuple[Tensor, Tensor]  # one layer's update: (down (r, d_in), up (d_out, r))


def as_double(factors: LowRankPair) -> LowRankPair:
    """The factors in float64, in which every solve is done."""
    return double(factors[0]), double(factors[1])


def double(x: Tensor) -> Tensor:
    """x in float64: where it is, or on the CPU if it is on an Apple GPU (MPS), which has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def dense(factors: LowRankPair) -> Tensor:
    """The update (d_out, d_in) = up @ down that the factors stand for."""
    return factors[1] @ factors[0]


def no_update(d_in: int, d_out: int) -> LowRankPair:
    """The factors of rank 0 of a concept that leaves this layer as it is."""
    return torch.zeros(0, d_in, dtype=torch.float64), torch.zeros(d_out, 0, dtype=torch.float64)


def compact(factors: LowRankPair) -> LowRankPair:
    """The same update by its own singular directions: down (k, d_in), up (d_out, k), k = min(r, d_in, d_out).

    Stacked as they come, the ranks of a fused update are the concepts' own up_i (and for an average their down_i), one
    after the other, for anyone to cut apart. So they are rotated by an orthogonal Q, up Q and Q^T down, into the form
    that depends on the sum up @ down alone (up to signs): the singular vectors, each side times the root of the
    singular value. Whole updates (Custom Diffusion), whose ranks add up to more than the layer is wide, become short.
    """
    down, up = factors
    left, up_part = torch.linalg.qr(up)  # (d_out, a), (a, r), a = min(d_out, r)
    right, down_part = torch.linalg.qr(down.T)  # (d_in, b), (b, r), b = min(d_in, r)
    turned, values, axes = torch.linalg.svd(up_part @ down_part.T, full_matrices=False)  # (a, k), (k,), (k, b)
    roots = values.sqrt()
    return (roots[:, None] * axes) @ right.T, left @ turned * roots


def average(factors: list[LowRankPair], weights: Tensor) -> LowRankPair:
    """Weight fusion of one layer (Eq. 2): A = sum_i w_i dW_i, kept as factors."""
    downs = [down for down, _ in factors]
    ups = [weight * up for weight, (_, up) in zip(weights, factors, strict=True)]
    return torch.cat(downs), torch.cat(ups, dim=1)


def difference_energy(a: LowRankPair, b: LowRankPair, gram: Tensor) -> float:
    """|| (a - b) X ||_F^2 = tr((a - b) G (a - b)^T), without forming a (d_out, d_in) matrix."""
    down = torch.cat([a[0], b[0]])  # (r, d_in)
    up = torch.cat([a[1], -b[1]], dim=1)  # (d_out, r)
    return max(0.0, ((up.T @ up) * (down @ gram @ down.T)).sum().item())


def energy(factors: LowRankPair, gram: Tensor) -> float:
    """|| dW X ||_F^2: what an update does to the recorded inputs."""
    return difference_energy(factors, no_update(factors[0].shape[1], factors[1].shape[0]), gram)


def loss(update: LowRankPair, factors: list[LowRankPair], grams: Sequence[Tensor], weights: Tensor) -> float:
    """The paper's objective for one layer at W0 + update, from the Grams alone."""
    terms = [difference_energy(update, own, gram) for own, gram in zip(factors, grams, strict=True)]
    return float(sum(weight * term for weight, term in zip(weights.tolist(), terms, strict=True)))


@dataclass
class Normal:
    """The normal equations of one set of Grams, ready to be applied to every layer that was fed these inputs."""

    grams: Sequence[Tensor]  # n x (d_in, d_in)
    weights: Tensor  # (n,) of the concepts' losses
    prior: Tensor  # (n,) of the concepts' updates in the average
    inverse: Tensor  # (d_in, d_in) (G + lam I)^-1, or the pseudo-inverse when lam = 0
    rest: Tensor  # (d_in, d_in) I - G (G + lam I)^-1: keeps what was not recorded, for the prior
    span: Tensor  # (d_in, s) orthonormal: the directions that the recordings know above their rounding
    ridge: float  # lam, absolute
    condition: float  # of G + lam I; infinite when singular
    freedom: float  # trace of G (G + lam I)^-1: directions that the recordings decide


def decompose(grams: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (d_in,) >= 0 and eigenvectors (d_in, d_in) of G = sum_i w_i G_i; ValueError if G is not finite."""
    total = sum(weight * gram for weight, gram in zip(weights, grams, strict=True))
    if not torch.isfinite(total).all():
        raise ValueError("A Gram matrix holds numbers that are not finite: record the concepts again.")
    values, vectors = torch.linalg.eigh(total)
    return values.clamp(min=0), vectors


def normal_equations(
    grams: Sequence[Tensor],
    weights: Tensor,
    ridge: float,
    prior: Tensor | None = None,
    eigen: tuple[Tensor, Tensor] | None = None,
    precision: float = torch.finfo(torch.float64).eps,
) -> Normal:
    """Factorise G = sum_i w_i G_i once; `ridge` is relative: lam = ridge * trace(G) / d_in.

    With ridge 0 directions never seen (eigenvalues below rounding) are left to the prior: the minimum-norm change.
    Numbers rounded to `precision` move eigenvalues by at most sqrt(d_in) * `precision` of the largest, and the
    decomposition by d_in * float64's. `eigen` is `decompose`'s answer where it is known already.
    """
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge must be zero or a positive number, not {ridge}.")
    values, vectors = decompose(grams, weights) if eigen is None else eigen
    largest = values[-1].item()
    lam = ridge * values.mean().item() if largest > 0 else 0.0
    rounding = max(len(values) ** 0.5 * precision, len(values) * torch.finfo(values.dtype).eps)
    known = values > rounding * largest
    seen = values + lam > rounding * largest
    inverted = torch.where(seen, 1 / (values + lam), 0.0)  # (d_in,)
    smallest = values[0].item() + lam if bool(seen.all()) else 0.0
    return Normal(
        grams=grams,
        weights=weights,
        prior=weights if prior is None else prior,
        inverse=(vectors * inverted) @ vectors.T,
        rest=(vectors * (1 - values * inverted)) @ vectors.T,
        span=vectors[:, known],
        ridge=lam,
        condition=(largest + lam) / smallest if smallest > 0 else float("inf"),
        freedom=(values * inverted).sum().item(),
    )


def row_span(factors: list[LowRankPair]) -> Tensor:
    """An orthonormal basis (R, d_in) of the directions that any down_i reads, R <= sum r_i."""
    _, values, rows = torch.linalg.svd(torch.cat([down for down, _ in factors]), full_matrices=False)
    return rows[values > len(rows) * torch.finfo(values.dtype).eps * values.max()] if len(values) else rows


def within(rows: Tensor, factors: list[LowRankPair], grams: Sequence[Tensor]) -> tuple[list[LowRankPair], list[Tensor]]:
    """The same problem with U limited to U = Y rows: every input x is only seen as rows x, (R,) numbers."""
    return [(down @ rows.T, up) for down, up in factors], [rows @ gram @ rows.T for gram in grams]


def closed_form(normal: Normal, factors: list[LowRankPair], towards: str = "average") -> LowRankPair:
    """U* of one layer, exactly and already factored: down_i -> down_i (w_i G_i (G + lam I)^-1 + [average] a_i rest).

    `towards` says what the ridge shrinks to, and what is done where nothing was recorded: "average" or "base".
    """
    downs = []
    for weight, share, gram, (down, _) in zip(normal.weights, normal.prior, normal.grams, factors, strict=True):
        moved = weight * (down @ gram @ normal.inverse)  # (r_i, d_in)
        if towards == "average":
            moved = moved + share * (down @ normal.rest)
        downs.append(moved)
    return torch.cat(downs), torch.cat([up for _, up in factors], dim=1)


def lbfgs(normal: Normal, factors: list[LowRankPair], towards: str = "base", iterations: int = 500) -> LowRankPair:
    """The paper's solver: LBFGS on the same objective, see `fusion.minimise`; the best iterate is kept.

    It starts from W0 as the paper does, or from the average. It has no ridge: stopping early is its regulariser. Like
    the closed form without a ridge it does not move in directions that the Grams know by their rounding alone: the
    search would walk far along them for nothing, where the paper's, on float32 rows, does not.
    """
    grams, weights = normal.grams, normal.weights
    up = torch.cat([up for _, up in factors], dim=1)  # (d_out, sum r_i)
    known = normal.span @ normal.span.T  # (d_in, d_in), a projection
    total = sum(weight * gram for weight, gram in zip(weights, grams, strict=True))
    total = known @ total @ known
    moved = torch.cat([w * (down @ gram) for w, gram, (down, _) in zip(weights, grams, factors, strict=True)])
    moved = moved @ known
    cross = up @ moved  # (d_out, d_in) = sum_i w_i dW_i G_i
    constant = sum(
        weight * energy(own, gram) for weight, gram, own in zip(weights.tolist(), grams, factors, strict=True)
    )
    start = dense(average(factors, normal.prior)) if towards == "average" else torch.zeros_like(cross)
    if constant == 0:
        return average(factors, normal.prior) if towards == "average" else (torch.zeros_like(moved), up)

    def relative(update: Tensor) -> Tensor:
        return (((update @ total - 2 * cross) * update).sum() + constant) / constant  # 1 at W = W0

    return torch.linalg.pinv(up) @ minimise(relative, start, iterations), up


def constrained(
    regular: Tensor, rows: list[Tensor], factors: list[LowRankPair], ridge: float = 1e-4
) -> tuple[LowRankPair, float]:
    """Custom Diffusion's merge of one layer: U with U c = dW_i c for every row c of rows[i], least else on `regular`.

    U = argmin tr(U G U^T) s.t. U C^T = V, so U = V (C G^-1 C^T)^-1 C G^-1: with V = [dW_1 C_1^T .. dW_n C_n^T] of rank
    <= sum r_i as well. `regular` is G (d_in, d_in) of prompts without concepts, rows[i] is C_i (s_i, d_in); `ridge` is
    relative and makes G invertible. Also returns the condition of C G^-1 C^T: infinite if rows repeat, which is no
    harm as long as they ask for the same output.
    """
    values, vectors = decompose([regular], torch.ones(1, dtype=regular.dtype))
    lam = ridge * values.mean() if values[-1] > 0 else torch.ones(())
    C = torch.cat(rows)  # (s, d_in), s = sum s_i
    reach = C @ (vectors / (values + lam)) @ vectors.T  # (s, d_in) C G^-1
    weights, axes = torch.linalg.eigh(reach @ C.T)  # (s,), (s, s)
    seen = weights > len(weights) * torch.finfo(weights.dtype).eps * weights[-1]
    solved = (axes * torch.where(seen, 1 / weights, 0.0)) @ axes.T @ reach  # (s, d_in)
    parts = solved.split([len(own) for own in rows])
    downs = [down @ own.T @ part for (down, _), own, part in zip(factors, rows, parts, strict=True)]
    condition = (weights[-1] / weights[0]).item() if bool(seen.all()) else float("inf")
    return (torch.cat(downs), torch.cat([up for _, up in factors], dim=1)), condition
