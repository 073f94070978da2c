"""Notebook 04: one layer of gradient fusion, its rank, what it leaves open, and why stopping early is a ridge."""

import torch
from torch import Tensor

from . import called, close, exercise, refuse


def layer(d_in: int = 8, d_out: int = 6, n: int = 3, rank: int = 2, rows: int = 40):
    """Random downs (r, d_in), ups (d_out, r) and inputs X_i (d_in, rows) of n concepts in one layer, float64."""
    g = torch.Generator().manual_seed(4)
    downs = [torch.randn(rank, d_in, generator=g, dtype=torch.float64) for _ in range(n)]
    ups = [torch.randn(d_out, rank, generator=g, dtype=torch.float64) for _ in range(n)]
    mixing = [torch.randn(d_in, d_in, generator=g, dtype=torch.float64) for _ in range(n)]
    inputs = [m @ torch.randn(d_in, rows, generator=g, dtype=torch.float64) for m in mixing]
    return downs, ups, inputs


def least_squares(deltas: list[Tensor], inputs: list[Tensor], lam: float) -> Tensor:
    """The minimum without any Gram: all rows stacked, the ridge as d_in more rows, answered by lstsq."""
    d_out, d_in = deltas[0].shape
    rows = torch.cat([*(x.T for x in inputs), lam**0.5 * torch.eye(d_in, dtype=torch.float64)])
    outputs = torch.cat(
        [*((d @ x).T for d, x in zip(deltas, inputs, strict=True)), torch.zeros(d_in, d_out, dtype=torch.float64)]
    )
    return torch.linalg.lstsq(rows, outputs).solution.T


@exercise("4.1")
def _closed_form(function) -> None:
    downs, ups, inputs = layer()
    deltas = [up @ down for down, up in zip(downs, ups, strict=True)]
    grams = [x @ x.T for x in inputs]
    eye = torch.eye(8, dtype=torch.float64)
    hint = "dW_i is (d_out, d_in), G_i is (d_in, d_in), so G_i stands on the right."
    mine = called(function, deltas, grams, 0.0, hint=hint)
    refuse(mine, sum(deltas) / 3, "That is the average (Eq. 2): the Grams are not in it yet.")
    refuse(mine, sum(deltas), "That is the plain sum: take the inverse of the SUM of the Grams, not of each.")
    close(mine, least_squares(deltas, inputs, 0.0), "Set the gradient to 0: U sum_i G_i = sum_i dW_i G_i.")
    mine = called(function, deltas, grams, 5.0, hint=hint)
    refuse(mine, least_squares(deltas, inputs, 0.0), "lam has no effect: is your ridge inside the inverse?")
    wanted = least_squares(deltas, inputs, 5.0)
    thrice = wanted @ (sum(grams) + 5 * eye) @ torch.linalg.inv(sum(grams) + 15 * eye)
    refuse(mine, thrice, "The ridge is in there once per concept: add it once, to the sum.")
    close(mine, wanted, "Is your ridge inside the inverse? U (sum_i G_i + lam I) = sum_i dW_i G_i.")


@exercise("4.2")
def _low_rank(function) -> None:
    downs, ups, inputs = layer(d_in=32, d_out=24)
    deltas = [up @ down for down, up in zip(downs, ups, strict=True)]
    grams = [x @ x.T for x in inputs]
    answer = called(function, downs, ups, grams, 5.0, hint="down_i is (r, 32), up_i is (24, r), G_i is (32, 32).")
    if answer is None or answer is ...:
        raise AssertionError("The function returns nothing yet: replace the ... by your lines.")
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise AssertionError("Return two matrices, (down, up).")
    down, up = answer
    if up.shape[0] != 24 or down.shape[1] != 32:
        raise AssertionError(
            f"down is {tuple(down.shape)}, up is {tuple(up.shape)}: return (down, up), (r, 32) and (24, r)."
        )
    if down.shape[0] > 6:
        raise AssertionError(
            f"down has {down.shape[0]} rows, but three concepts of rank 2 need only 6: do not form dW_i, "
            "multiply the Gram onto down_i and leave up_i as it is."
        )
    close(up @ down, least_squares(deltas, inputs, 5.0), "Is every down_i multiplied by G_i (sum G + lam I)^-1?")


@exercise("4.3")
def _another(function) -> None:
    g = torch.Generator().manual_seed(3)
    X = torch.randn(12, 5, generator=g, dtype=torch.float64)  # 5 rows of 12 numbers: as keys and values have it
    U = torch.randn(7, 5, generator=g, dtype=torch.float64) @ torch.linalg.pinv(X)
    mine = called(function, U, X)
    if mine is None or mine is ...:
        raise AssertionError("The function returns nothing yet: replace the ... by your lines.")
    if mine.shape != U.shape:
        raise AssertionError(f"The shape is {tuple(mine.shape)} where {tuple(U.shape)} is wanted.")
    if (mine - U).norm() < 1e-3 * U.norm():
        raise AssertionError("This is the same U: add something to it that every column of X is blind to.")
    close(mine @ X, U @ X, "The outputs on X changed: project your change onto what is orthogonal to X's columns.")


@exercise("4.4")
def _early(function) -> None:
    s, rate = torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64), 0.5
    fitted = torch.zeros_like(s)
    for steps in range(1, 8):  # gradient descent on s/2 (u - 1)^2 from u = 0, one eigenvalue s at a time
        fitted = fitted - rate * s * (fitted - 1)
        mine = called(function, s, steps, rate)
        refuse(mine, 1 - fitted, "That is the share still missing: the share fitted is 1 minus it.")
        refuse(mine, 1 - (1 - fitted) ** 2, "The loss shrinks by the square; asked is the share of u itself.")
        close(mine, fitted, "Each step multiplies what is missing by (1 - rate * s).")
