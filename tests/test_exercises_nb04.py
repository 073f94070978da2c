"""The exercises of notebooks 04 and 04b: right answers pass, each likely wrong one is told what is wrong."""

import math

import pytest
import torch

from mixofshow_lite import course
from mixofshow_lite.course import exercises


def inverse(grams, lam):
    total = sum(grams)
    return torch.linalg.inv(total + lam * torch.eye(len(total), dtype=total.dtype))


def closed_form(deltas, grams, lam):
    return sum(d @ g for d, g in zip(deltas, grams, strict=True)) @ inverse(grams, lam)


def thin(downs, ups, grams, lam):
    R = inverse(grams, lam)
    return torch.cat([down @ g @ R for down, g in zip(downs, grams, strict=True)]), torch.cat(ups, dim=1)


def dense(downs, ups, grams, lam):
    down, up = thin(downs, ups, grams, lam)
    return up @ down, torch.eye(len(up), dtype=up.dtype)


def another(U, X):
    blind = torch.eye(len(X), dtype=X.dtype) - X @ torch.linalg.pinv(X)
    return U + torch.ones_like(U) @ blind


def each_inverse(deltas, grams, lam):
    return sum(d @ g @ inverse([g], lam) for d, g in zip(deltas, grams, strict=True))


def solved(deltas, grams, lam):
    """The normal equations without an inverse."""
    total = sum(grams) + lam * torch.eye(len(grams[0]), dtype=grams[0].dtype)
    return torch.linalg.solve(total, sum(d @ g for d, g in zip(deltas, grams, strict=True)), left=False)


def lost_at(ridge):
    """A curve with its best ridge near 0.01."""
    return 0.2 + 0.01 * (math.log10(ridge) + 2) ** 2


TURNS, FALLS = [(0.5, 0.5), (0.3, 0.2), (0.1, 0.4)], [(0.5, 0.5), (0.3, 0.4), (0.1, 0.3)]
FOUND = {"keys": {"ridge": TURNS, "LBFGS": FALLS, "averaging": [0.5, 0.5]}, "spatial": {"ridge": FALLS, "LBFGS": TURNS}}
ASKED = {"4.6": FOUND, "4.8": lost_at}  # what the check gets beside the answer
RIGHT = {
    "4.1": [(2, -3.4), [2.3, -3.2]],
    "4.2": [(2, 3), [-4.0, -6.0], torch.tensor([0.2, 0.3])],
    "4.6": [{"keys: ridge", "spatial: LBFGS"}, ["spatial: LBFGS", "keys: ridge"]],
    "4.8": [0.01, 0.012],
    "4.3": [closed_form, solved],
    "4.4": [thin],
    "4.5": [another],
    "4.7": [lambda s, steps, rate: 1 - (1 - rate * s) ** steps],
}
WRONG = [
    ("4.1", (-3.4, 2), "other way round"),
    ("4.1", (0.5, 2), "gray square"),
    ("4.1", (2, 1), "one client's own change"),
    ("4.1", (2, 3), "another panel"),
    ("4.1", (5, 5), "mind the sign"),
    ("4.1", 2, "two numbers"),
    ("4.2", (1, 0), "wants 2, client 2 -1"),
    ("4.2", (3, 2), "the SAME"),
    ("4.2", (0, 0), "zeros"),
    ("4.2", (1, 2, 3), "two numbers"),
    ("4.6", {"keys: LBFGS", "spatial: ridge"}, "all the others"),
    ("4.6", {"keys: ridge"}, "One is missing"),
    ("4.6", {"keys: ridge", "spatial: LBFGS", "spatial: ridge"}, "does not turn up"),
    ("4.6", set(), "blue curve"),
    ("4.6", {"keys"}, "No panel is called"),
    ("4.6", "keys: ridge", "a set of panels"),
    ("4.8", 3.0, "too large"),
    ("4.8", 1e-6, "too small"),
    ("4.8", -1, "above 0"),
    ("4.8", "small", "above 0"),
    ("4.3", lambda d, g, lam: sum(d) / len(d), "Eq. 2"),
    ("4.3", each_inverse, "inverse of the SUM"),
    ("4.3", lambda d, g, lam: inverse(g, lam) @ sum(x @ y for x, y in zip(d, g, strict=True)), "stands on the right"),
    ("4.3", lambda d, g, lam: closed_form(d, g, 0.0), "inside the inverse"),
    ("4.3", lambda d, g, lam: closed_form(d, g, len(g) * lam), "once per concept"),
    ("4.3", lambda d, g, lam: closed_form(d, g, 0.0) / (1 + lam), "inside the inverse"),
    ("4.3", lambda d, g, lam: ..., "returns nothing yet"),
    ("4.4", dense, "need only 6"),
    ("4.4", lambda a, b, g, lam: (torch.cat(a), torch.cat(b, dim=1)), "multiplied by G_i"),
    ("4.4", lambda *x: thin(*x)[::-1], r"\(down, up\)"),
    ("4.4", lambda *x: ..., "returns nothing yet"),
    ("4.5", lambda U, X: U, "same U"),
    ("4.5", lambda U, X: U + 1, "outputs on X changed"),
    ("4.5", lambda U, X: U @ X, "where"),
    ("4.5", lambda U, X: ..., "returns nothing yet"),
    ("4.7", lambda s, steps, rate: (1 - rate * s) ** steps, "still missing"),
    ("4.7", lambda s, steps, rate: 1 - (1 - rate * s) ** (2 * steps), "square"),
    ("4.7", lambda s, steps, rate: steps * rate * s, "multiplies what is missing"),
]


@pytest.mark.parametrize("number", RIGHT)
def test_right_answers_pass(number, capsys):
    for answer in RIGHT[number]:
        course.check(number, answer, *([ASKED[number]] if number in ASKED else []))
        assert f"Exercise {number}: right" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "answer", "hint"), WRONG, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(WRONG)])
def test_wrong_answers_name_the_likely_mistake(number, answer, hint):
    with pytest.raises(AssertionError, match=hint):
        course.check(number, answer, *([ASKED[number]] if number in ASKED else []))


def test_every_exercise_is_tried():
    here = {number for number in exercises.everything() if number.startswith("4.")}
    assert set(RIGHT) == {number for number, *_ in WRONG} == here


def test_the_right_answers_are_the_librarys():
    """The closed form of exercise 4.3 is what `fusion.algebra` solves: same Grams, same ridge, two ways."""
    from mixofshow_lite.course.exercises.nb04 import layer
    from mixofshow_lite.engine.fusion import algebra

    downs, ups, inputs = layer()
    grams, weights = [x @ x.T for x in inputs], torch.full((3,), 1.0, dtype=torch.float64)
    lam = 0.2 * sum(grams).diagonal().mean().item()
    normal = algebra.normal_equations(grams, weights, ridge=0.2)
    fused = algebra.dense(algebra.closed_form(normal, list(zip(downs, ups, strict=True)), towards="base"))
    deltas = [up @ down for down, up in zip(downs, ups, strict=True)]
    torch.testing.assert_close(fused, closed_form(deltas, grams, lam))
