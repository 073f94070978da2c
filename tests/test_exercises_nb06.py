"""Exercises of notebook 06: right answers in several styles pass, likely wrong ones are refused with their hint."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mixofshow_lite import course
from mixofshow_lite.course import exercises
from mixofshow_lite.course.exercises import nb06
from mixofshow_lite.paper.vote import wilson

SCORES, MARKS = [0.8, 0.6, 0.7, 0.7], [0.25, 0.75, 0.5, 0.5]


def cosine(x, y):
    return (x @ y.T) / (x.norm(dim=1)[:, None] * y.norm(dim=1))


def bootstrap(values, rounds=4000, quantiles=(0.05, 0.95)):
    rng = np.random.default_rng(0)
    return np.quantile([rng.choice(values, len(values)).mean() for _ in range(rounds)], quantiles)


def unbeaten(points):
    found = set()
    for name, (identity, drift) in points.items():
        better = [1 for i, d in points.values() if i >= identity and d <= drift and (i, d) != (identity, drift)]
        if not better:
            found.add(name)
    return found


def upside_down(points):
    return unbeaten({name: (i, -d) for name, (i, d) in points.items()})


RIGHT = {
    "6.1": [
        (lambda x, y: cosine(x, y).clamp(min=0).mean(),),
        (lambda x, y: torch.relu(F.normalize(x) @ F.normalize(y).T).mean().item(),),
        (lambda x, y: sum(max(float(F.cosine_similarity(a, b, 0)), 0) for a in x for b in y) / (len(x) * len(y)),),
    ],
    "6.2": [((0, 1), SCORES, MARKS), ([2, 1], np.array(SCORES), np.array(MARKS))],
    "6.3": [(bootstrap,), (lambda v: tuple(bootstrap(v, 2000)),)],
    "6.4": [(nb06.fewest_votes(0.525), 0.525), (1.05 * nb06.fewest_votes(0.525), 0.525), (30, 0.65)],
    "6.5": [(unbeaten,), (lambda points: sorted(unbeaten(points)),)],
}
WRONG = {
    "6.1": [
        ((lambda x, y: (x @ y.T).clamp(min=0).mean(),), "divide each by its norm"),
        ((lambda x, y: (x @ y.T).mean(),), "and cosines below 0"),
        ((lambda x, y: cosine(x, y).mean(),), "clamp each pair before"),
        ((lambda x, y: cosine(x, y).clamp(min=0),), "for every pair"),
        ((lambda x, y: cosine(x, y).clamp(min=0).sum(),), "is the sum"),
        ((lambda x, y: cosine(x, y)[:, 0].clamp(min=0).mean(),), "first reference alone"),
        ((lambda x, y: x @ y,), "stopped with RuntimeError"),
        ((lambda x, y: ...,), "returns nothing yet"),
    ],
    "6.2": [
        (((1, 0), SCORES, MARKS), "has to score higher"),
        (((0, 0), SCORES, MARKS), "two different"),
        (((2, 3), SCORES, MARKS), "has to score higher"),
        (((2, 1), SCORES, [0.25, 0.1, 0.5, 0.5]), "The score is right there"),
        (((0, 9), SCORES, MARKS), "numbered from 0"),
        ((3, SCORES, MARKS), "two numbers"),
    ],
    "6.3": [
        ((lambda v: np.quantile(v, (0.05, 0.95)),), "single values"),
        ((lambda v: (v.mean(), v.mean()),), "WITH repetition"),
        ((lambda v: bootstrap(v, quantiles=(0.025, 0.975)),), "A little wide"),
        ((lambda v: bootstrap(v, quantiles=(0.25, 0.75)),), "Too narrow"),
        ((lambda v: bootstrap(v)[::-1],), "lower end"),
        ((lambda v: bootstrap(v) - v.mean(),), "place is not"),
        ((lambda v: v.mean(),), "Two numbers"),
        ((lambda v: ...,), "returns nothing yet"),
    ],
    "6.4": [((100, 0.525), "Not yet"), ((10_000, 0.525), "more than enough"), (("many", 0.525), "a number"),
            ((0, 0.525), "Not yet")],
    "6.5": [
        ((lambda points: [],), "Nobody is left"),
        ((lambda points: set(points),), "is beaten"),
        ((lambda points: {max(points, key=lambda n: points[n][0])} - {"twin"} | {"dearer"},), "is beaten|Less drift"),
        ((lambda points: {min(points, key=lambda n: points[n][1])},), "is missing"),
        ((upside_down,), "Less drift"),
        ((lambda points: "way 0",), "set"),
        ((lambda points: points[0],), "stopped with KeyError"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("number", "i"), [(n, i) for n, answers in RIGHT.items() for i in range(len(answers))])
def test_right_answers_pass(number, i, capsys):
    course.check(number, *RIGHT[number][i])
    assert f"Exercise {number}: right" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "i"), [(n, i) for n, answers in WRONG.items() for i in range(len(answers))])
def test_wrong_answers_name_the_likely_mistake(number, i):
    answer, hint = WRONG[number][i]
    with pytest.raises(AssertionError, match=hint):
        course.check(number, *answer)


def test_every_exercise_is_tried():
    here = {number for number in exercises.everything() if number.startswith("6.")}
    assert set(RIGHT) == set(WRONG) == here


def test_the_fewest_votes_are_just_enough():
    for share in (0.525, 0.665):
        n = nb06.fewest_votes(share)
        assert wilson(share * n, n)[0] > 0.5 >= wilson(share * (n - 1), n - 1)[0]
