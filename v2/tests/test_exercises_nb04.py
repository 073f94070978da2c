"""The exercises of notebook 04: right answers pass, each likely wrong one is told what is wrong."""

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


RIGHT = {
    "4.1": [closed_form, solved],
    "4.2": [thin],
    "4.3": [another],
    "4.4": [lambda s, steps, rate: 1 - (1 - rate * s) ** steps],
}
WRONG = [
    ("4.1", lambda d, g, lam: sum(d) / len(d), "Eq. 2"),
    ("4.1", each_inverse, "inverse of the SUM"),
    ("4.1", lambda d, g, lam: inverse(g, lam) @ sum(x @ y for x, y in zip(d, g, strict=True)), "stands on the right"),
    ("4.1", lambda d, g, lam: closed_form(d, g, 0.0), "inside the inverse"),
    ("4.1", lambda d, g, lam: closed_form(d, g, len(g) * lam), "once per concept"),
    ("4.1", lambda d, g, lam: closed_form(d, g, 0.0) / (1 + lam), "inside the inverse"),
    ("4.1", lambda d, g, lam: ..., "returns nothing yet"),
    ("4.2", dense, "need only 6"),
    ("4.2", lambda a, b, g, lam: (torch.cat(a), torch.cat(b, dim=1)), "multiplied by G_i"),
    ("4.2", lambda *x: thin(*x)[::-1], r"\(down, up\)"),
    ("4.2", lambda *x: ..., "returns nothing yet"),
    ("4.3", lambda U, X: U, "same U"),
    ("4.3", lambda U, X: U + 1, "outputs on X changed"),
    ("4.3", lambda U, X: U @ X, "where"),
    ("4.3", lambda U, X: ..., "returns nothing yet"),
    ("4.4", lambda s, steps, rate: (1 - rate * s) ** steps, "still missing"),
    ("4.4", lambda s, steps, rate: 1 - (1 - rate * s) ** (2 * steps), "square"),
    ("4.4", lambda s, steps, rate: steps * rate * s, "multiplies what is missing"),
]


@pytest.mark.parametrize("number", RIGHT)
def test_right_answers_pass(number, capsys):
    for answer in RIGHT[number]:
        course.check(number, answer)
        assert f"Exercise {number}: right" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "answer", "hint"), WRONG, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(WRONG)])
def test_wrong_answers_name_the_likely_mistake(number, answer, hint):
    with pytest.raises(AssertionError, match=hint):
        course.check(number, answer)


def test_every_exercise_is_tried():
    here = {number for number in exercises.everything() if number.startswith("4.")}
    assert set(RIGHT) == {number for number, *_ in WRONG} == here


def test_the_right_answers_are_the_librarys():
    """The closed form of exercise 4.1 is what `fusion.algebra` solves: same Grams, same ridge, two ways."""
    from mixofshow_lite.course.exercises.nb04 import layer
    from mixofshow_lite.engine.fusion import algebra

    downs, ups, inputs = layer()
    grams, weights = [x @ x.T for x in inputs], torch.full((3,), 1.0, dtype=torch.float64)
    lam = 0.2 * sum(grams).diagonal().mean().item()
    normal = algebra.normal_equations(grams, weights, ridge=0.2)
    fused = algebra.dense(algebra.closed_form(normal, list(zip(downs, ups, strict=True)), towards="base"))
    deltas = [up @ down for down, up in zip(downs, ups, strict=True)]
    torch.testing.assert_close(fused, closed_form(deltas, grams, lam))
