"""Notebook 06: image-alignment, a picture that the score misjudges, a bootstrap, how many votes, who is unbeaten."""

import numpy as np
import torch

from ...paper.vote import wilson
from . import called, close, exercise, refuse


def features(seed: int):
    """Features of 4 pictures and 3 references (n, 5) that are not of length 1; some cosines are below 0."""
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, 5, generator=g, dtype=torch.float64) * 3 for n in (4, 3))
    return x, y


@exercise("6.1")
def _image_alignment(function) -> None:
    for seed in range(3):
        x, y = features(seed)
        hint = "x is (n, D), y is (m, D): all n * m pairs at once are x @ y.T."
        mine = called(function, x.clone(), y.clone(), hint=hint)
        a, b = (z / z.norm(dim=1, keepdim=True) for z in (x, y))
        cosines = a @ b.T
        if isinstance(mine, torch.Tensor) and mine.shape == (4, 3):
            raise AssertionError("That is a number for every pair. The score is their mean.")
        products, clipped = x @ y.T, cosines.clamp(min=0)
        refuse(mine, products.clamp(min=0).mean(), "The rows have other lengths than 1: divide each by its norm first.")
        refuse(mine, products.mean(), "The rows have other lengths than 1, and cosines below 0 count as 0.")
        refuse(mine, cosines.mean(), "Cosines below 0 count as 0: clamp each pair before the mean.")
        refuse(mine, cosines.mean().clamp(min=0), "Clamp each pair, not their mean.")
        refuse(mine, clipped.sum(), "That is the sum: the score is the mean over all pairs.")
        refuse(mine, clipped[:, 0].mean(), "That is the first reference alone: every picture meets all of them.")
        close(mine, clipped.mean(), "Cosines of all pairs, each clipped at 0, and their mean.")


@exercise("6.2")
def _misjudged(pair, scores, marks) -> None:
    """Two numbers of pictures: the first scores higher and shows fewer marks than the second."""
    try:
        first, second = (int(number) for number in pair)
    except (TypeError, ValueError) as error:
        raise AssertionError("Give two numbers of pictures, for example (0, 5).") from error
    if not (0 <= first < len(scores) and 0 <= second < len(scores)):
        raise AssertionError(f"There are {len(scores)} pictures, numbered from 0.")
    if first == second:
        raise AssertionError("Give two different pictures.")
    if scores[first] <= scores[second]:
        raise AssertionError(
            f"Picture {first} scores {scores[first]:.2f}, {second} {scores[second]:.2f}: the first has to score higher."
        )
    if marks[first] >= marks[second]:
        raise AssertionError(
            f"The score is right there: {first} shows {marks[first]:.0%} of the marks, {second} {marks[second]:.0%}."
        )


@exercise("6.3")
def _bootstrap(function) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0.5, 0.2, 12)
    means = rng.choice(values, (20_000, len(values))).mean(axis=1)
    wanted = np.quantile(means, (0.05, 0.95))
    hint = "values is a one-dimensional array; return (low, high)."
    mine = called(function, values.copy(), hint=hint)
    try:
        low, high = (float(number) for number in mine)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"Two numbers are wanted. {hint}") from error
    if low > high:
        raise AssertionError("The lower end comes first.")
    width, right = high - low, wanted[1] - wanted[0]
    if width <= 1e-12:
        raise AssertionError("Every resample is the same set: draw WITH repetition, rng.choice does.")
    if width > 2.2 * right:
        raise AssertionError("That is where single values lie. Where do their MEANS lie? .mean() of every resample.")
    if width > 1.12 * right:
        raise AssertionError("A little wide: 5 and 95 percent leave 90 between them, 2.5 and 97.5 leave 95.")
    if width < 0.88 * right:
        raise AssertionError(
            "Too narrow: each resample has as many values as there are, and all but 10 percent are inside."
        )
    if abs(low - wanted[0]) > 0.15 * right or abs(high - wanted[1]) > 0.15 * right:
        raise AssertionError("The width is right and the place is not: the middle is the mean of the values.")


def fewest_votes(share: float, most: int = 100_000) -> int:
    """The smallest number of votes from which on Wilson's interval of this share stays above a half."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        shown = wilson(share * middle, middle)[0] > 0.5
        low, high = (low, middle) if shown else (middle + 1, high)
    return low


@exercise("6.4")
def _votes(needed, share) -> None:
    """How many votes show that `share` is above a half, to a tenth."""
    if isinstance(needed, bool) or not isinstance(needed, int | float | np.integer):
        raise AssertionError("Give a number of votes.")
    right = fewest_votes(share)
    low, _ = wilson(share * needed, int(needed)) if needed >= 1 else (0.0, 1.0)
    if low <= 0.5 and needed < 0.9 * right:
        raise AssertionError(f"Not yet: of {needed} votes the interval begins at {low:.1%}, which is not above a half.")
    if needed > 1.1 * right:
        raise AssertionError(f"That is more than enough: the interval begins at {low:.1%}. Try fewer.")


def ways(rng) -> dict[str, tuple[float, float]]:
    """Some ways with (identity, drift), one of them twice and one the same as another in a single number."""
    points = {f"way {i}": (float(x), float(y)) for i, (x, y) in enumerate(rng.uniform(0.2, 0.8, (7, 2)).round(2))}
    points["twin"] = points["way 0"]
    identity, drift = points["way 1"]
    points["dearer"] = identity, drift + 0.1
    return points


def beaten(name: str, points) -> bool:
    """Whether another way is at least as good in both and better in one."""
    identity, drift = points[name]
    return any(i >= identity and d <= drift and (i > identity or d < drift) for i, d in points.values())


@exercise("6.5")
def _unbeaten(function) -> None:
    for seed in range(5):
        points = ways(np.random.default_rng(seed))
        hint = "points is a dict: way -> (identity, drift)."
        mine = called(function, dict(points), hint=hint)
        if isinstance(mine, str) or not all(name in points for name in mine):
            raise AssertionError("Return a set (or list) of names of ways.")
        mine, wanted = set(mine), {name for name in points if not beaten(name, points)}
        if not mine:
            raise AssertionError("Nobody is left: a way does not beat itself, nor its twin with the same two numbers.")
        upside_down = {n: (i, -d) for n, (i, d) in points.items()}
        if mine != wanted and mine == {name for name in points if not beaten(name, upside_down)}:
            raise AssertionError("Less drift is better: it is what everything else pays.")
        wrong = sorted(mine - wanted)
        if wrong:
            raise AssertionError(
                f"{wrong[0]} {points[wrong[0]]} is beaten: another keeps as much or more at less or the same drift."
            )
        missing = sorted(wanted - mine)
        if missing:
            raise AssertionError(
                f"{missing[0]} {points[missing[0]]} is missing: no other is better in one and no worse in the other."
            )
