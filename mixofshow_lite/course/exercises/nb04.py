"""Notebooks 04 and 04b: two clients in a plane, the closed form, its rank; what it leaves open, and the ridge."""

import math

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


CHANGES = ((2.0, 1.0), (-1.0, 3.0))  # of the two clients in the plane
ANGLE = math.radians(25)
STAR = (2.0, 3 - 3 / math.tan(ANGLE))  # where their lines cross: U_1 = 2 and U x_2 = 3 sin - cos


@exercise("4.1")
def _star(answer) -> None:
    try:
        mine = tuple(float(number) for number in answer)
    except (TypeError, ValueError):
        raise AssertionError("Give two numbers, (to the right, upwards).") from None
    if len(mine) != 2:
        raise AssertionError(f"There are {len(mine)} numbers: give two, (to the right, upwards).")

    def near(point) -> bool:
        return math.dist(mine, point) <= 0.5

    if near(STAR):
        return
    if near(STAR[::-1]):
        raise AssertionError("The other way round: first how far to the right, then how far up.")
    if near((0.5, 2.0)):
        raise AssertionError("That is the gray square, the average: look for the star, where the two lines cross.")
    if any(near(change) for change in CHANGES):
        raise AssertionError("That is a dot, one client's own change: look for the star, where the two lines cross.")
    if near((2.0, 3.0)) or near((2.0, 3 - 3 / math.tan(math.radians(50)))):
        raise AssertionError("That is the star of another panel: asked is the one at 25 degrees.")
    raise AssertionError("Not within a half of the star at 25 degrees: read both axes again, mind the sign.")


@exercise("4.2")
def _common(answer) -> None:
    x = torch.as_tensor(answer, dtype=torch.float64).flatten() if not callable(answer) else torch.zeros(0)
    if x.shape != (2,):
        raise AssertionError("Give one input: two numbers.")
    if x.norm() == 0:
        raise AssertionError("An input of zeros says nothing: every change answers 0.")
    one, two = (torch.tensor(change, dtype=torch.float64) @ x for change in CHANGES)
    average = (one + two) / 2
    if abs(one - two) > 1e-6 * x.norm():
        found = f"Client 1 wants {one:.3g}, client 2 {two:.3g}, the average says {average:.3g}."
        raise AssertionError(f"{found} The average is right for both only where they want the SAME.")


@exercise("4.3")
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


@exercise("4.4")
def _low_rank(function) -> None:
    downs, ups, inputs = layer(d_in=32, d_out=24)
    deltas = [up @ down for down, up in zip(downs, ups, strict=True)]
    grams = [x @ x.T for x in inputs]
    answer = called(function, downs, ups, grams, 5.0, hint="down_i is (r, 32), up_i is (24, r), G_i is (32, 32).")
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


@exercise("4.5")
def _another(function) -> None:
    g = torch.Generator().manual_seed(3)
    X = torch.randn(12, 5, generator=g, dtype=torch.float64)  # 5 rows of 12 numbers: as keys and values have it
    U = torch.randn(7, 5, generator=g, dtype=torch.float64) @ torch.linalg.pinv(X)
    mine = called(function, U, X)
    if mine.shape != U.shape:
        raise AssertionError(f"The shape is {tuple(mine.shape)} where {tuple(U.shape)} is wanted.")
    if (mine - U).norm() < 1e-3 * U.norm():
        raise AssertionError("This is the same U: add something to it that every column of X is blind to.")
    close(mine @ X, U @ X, "The outputs on X changed: project your change onto what is orthogonal to X's columns.")


@exercise("4.7")
def _early(function) -> None:
    s, rate = torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64), 0.5
    fitted = torch.zeros_like(s)
    for steps in range(1, 8):  # gradient descent on s/2 (u - 1)^2 from u = 0, one eigenvalue s at a time
        fitted = fitted - rate * s * (fitted - 1)
        mine = called(function, s, steps, rate)
        refuse(mine, 1 - fitted, "That is the share still missing: the share fitted is 1 minus it.")
        refuse(mine, 1 - (1 - fitted) ** 2, "The loss shrinks by the square; asked is the share of u itself.")
        close(mine, fitted, "Each step multiplies what is missing by (1 - rate * s).")


@exercise("4.6")
def _early_stops(answer, found) -> None:
    """`found` is the notebook's: kind of layer -> path -> [(recorded, unrecorded)] at every stop."""
    if isinstance(answer, str) or not isinstance(answer, (set, list, tuple)):
        raise AssertionError('Give a set of panels by their titles, for example {"keys: LBFGS from W0"}.')
    panels = {f"{kind}: {path}": stops for kind, paths in found.items() for path, stops in paths.items()}
    panels = {title: stops for title, stops in panels.items() if isinstance(stops[0], (list, tuple))}
    mine = set(answer)
    if mine - set(panels):
        raise AssertionError(f"No panel is called {sorted(map(str, mine - set(panels)))[0]!r}: {', '.join(panels)}.")
    seen = {title for title, stops in panels.items() if stops[-1][0] > 1.02 * min(stop[0] for stop in stops)}
    wanted = {title for title, stops in panels.items() if stops[-1][1] > 1.02 * min(stop[1] for stop in stops)}
    if mine == set(panels) - wanted:
        raise AssertionError("Those are all the others: the red curve turns UP again where an earlier stop is best.")
    if mine == seen and seen != wanted:
        raise AssertionError("That is the blue curve: the red one is of inputs that were not recorded.")
    for title in sorted(mine - wanted):
        raise AssertionError(f"In {title!r} the red curve does not turn up again by more than 2 %.")
    for title in sorted(wanted - mine):
        raise AssertionError(f"One is missing: look at the right end of the red curve of {title!r}.")


@exercise("4.8")
def _choose_ridge(ridge, lost_at) -> None:
    """`lost_at(ridge)` is the share lost on unrecorded inputs of one layer."""
    if isinstance(ridge, bool) or not isinstance(ridge, (int, float)) or not ridge > 0:
        raise AssertionError("Give one number above 0.")
    mine = called(lost_at, float(ridge))
    tried = {r: lost_at(r) for r in (10.0 ** (k / 4) for k in range(-24, 5))}  # 1e-6 to 10
    best = min(tried, key=tried.get)
    print(f"ridge {ridge:g} loses {mine:.3f}, the best of {len(tried)} loses {tried[best]:.3f}")
    if mine > 1.02 * tried[best]:
        side = "too large: it holds the answer near the average" if ridge > best else "too small: it fits the recording"
        raise AssertionError(f"It is {side}. Come within 2 % of the best.")
