"""Exercises of notebook 05: right answers pass, each likely wrong one is refused with its hint."""

import pytest
import torch

from mixofshow_lite import course
from mixofshow_lite.course import exercises
from mixofshow_lite.course.exercises import nb05
from mixofshow_lite.engine.regional import Plan, Region


def rewrite(attend, x, prompt, regions):
    h = attend(x, prompt)
    for context, mask in regions:
        h[mask] = attend(x[mask], context)
    return h


def added(attend, x, prompt, regions):
    return attend(x, prompt) + sum(mask[:, None] * attend(x, context) for context, mask in regions)


def nothing_outside(attend, x, prompt, regions):
    return sum(mask[:, None] * attend(x, context) for context, mask in regions)


def zeroed_queries(attend, x, prompt, regions):
    """z_i = z * M_i taken for all cells: what is outside becomes a zero query, not nothing."""
    return attend(x, prompt) + sum(attend(mask[:, None] * x, context) for context, mask in regions)


def fence(inside):
    inside = inside.float()
    free = inside.sum(0) == 0
    return (inside.T @ inside > 0) | free[:, None] | free[None]


def row(*boxes, prompts=("a red cat", "a blue robot", "a green frog", "a bear")):
    return [Region(prompt, box=box) for prompt, box in zip(prompts, boxes, strict=False)]


THIRDS = [(0, 0.2, 0.33, 1), (0.34, 0.2, 0.66, 1), (0.67, 0.2, 1, 1)]
RIGHT = {
    "5.1": [rewrite, lambda a, x, p, r: torch.stack([*(rewrite(a, x, p, r))])],
    "5.2": [(3, 2, 1, 1), [3, 2, 1, 1], torch.tensor([3, 2, 1, 1])],
    "5.3": [row(*THIRDS), row((0, 0.1, 0.25, 0.9), (0.3, 0.1, 0.6, 1), (0.7, 0, 1, 1))],
    "5.4": [fence, lambda inside: fence(inside).float()],
}
WRONG = {
    "5.1": [
        (lambda a, x, p, r: a(x, p), "not said anything"),
        (added, "replaces"),
        (nothing_outside, "Outside"),
        (zeroed_queries, "Inside a mask"),
        (lambda a, x, p, r: a(x, r[-1][0]), "whole picture"),
        (lambda a, x, p, r: a(x, p)[:3], "shape"),
        (lambda a, x, p, r: None, "returns nothing"),
        (lambda a, x, p, r: a(x, r), "stopped with"),
    ],
    "5.2": [
        ((2, 1, 0, 0), "ENTIRELY"),
        ((4, 3, 2, 2), "Count from 0"),
        ((3, 3, 1, 1), "inwards"),
        ((3, 1, 1, 1), "map of 8 x 8"),
        ((3, 2, 1), "3 numbers for 4 maps"),
        (3, "one number of a row for each map"),
    ],
    "5.3": [
        (row(*THIRDS[:2]), "three friends"),
        (row(*THIRDS, prompts=("a cat", "a cat", "a frog")), "same prompt"),
        (row((0, 0, 0.5, 1), (0.3, 0, 0.7, 1), (0.7, 0, 1, 1)), "overlap"),
        (row(*reversed(THIRDS)), "in a row"),
        (row((0, 0, 0.1, 1), (0.3, 0, 0.6, 1), (0.7, 0, 1, 1)), "narrower"),
        (row((0, 0, 0.3, 0.6), (0.35, 0.2, 0.65, 1), (0.7, 0.2, 1, 1)), "feet"),
        ("a red cat", "list of mos.Region"),
        (row(*THIRDS, prompts=("a", "b", "c")), "Nobody knows what to draw"),
    ],
    "5.4": [
        (lambda inside: inside.float().T @ inside.float() > 0, "itself"),
        (lambda inside: torch.ones(6, 6), "Everyone"),
        (lambda inside: fence(inside) & (torch.arange(6)[:, None] >= torch.arange(6)), "both ways"),
        (
            lambda inside: fence(inside) & (torch.eye(6, dtype=bool) | inside.any(0) & inside.any(0)[:, None]),
            "no region",
        ),
        (lambda inside: fence(inside)[:2], "shape"),
        (lambda inside: None, "returns nothing"),
    ],
}
MORE = {"5.2": (Region("a red cat", box=(0, 0.15, 0.5, 1)), [16, 8, 4, 2])}  # what the check gets beside the answer
CASES = {
    "right": [(number, k) for number, answers in RIGHT.items() for k in range(len(answers))],
    "wrong": [(number, k) for number, answers in WRONG.items() for k in range(len(answers))],
}


@pytest.mark.parametrize(("number", "k"), CASES["right"])
def test_right_answers_pass(number, k, capsys):
    course.check(number, RIGHT[number][k], *MORE.get(number, ()))
    assert f"Exercise {number}: right" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "k"), CASES["wrong"])
def test_wrong_answers_name_the_likely_mistake(number, k):
    answer, hint = WRONG[number][k]
    with pytest.raises(AssertionError, match=hint):
        course.check(number, answer, *MORE.get(number, ()))


def test_every_exercise_is_tried():
    here = {number for number in exercises.everything() if number.startswith("5.")}
    assert set(RIGHT) == set(WRONG) == here


def test_the_fence_is_the_library_s(tiny_base):
    """5.4 asks for what `isolate` does: the same for random boxes."""
    regions = [Region("a cat", box=(0, 0.25, 0.5, 1)), Region("a dog", box=(0.375, 0, 1, 0.75))]
    plan = Plan(regions, [[None, None]], None, 1000, 0.0)
    plan.cells = (8, 8)
    inside = torch.stack([region.cover(8, 8).flatten() >= 0.5 for region in regions])
    wanted = torch.tensor([[nb05._may(inside, p, q) for q in range(64)] for p in range(64)])
    assert torch.equal(plan.may_look(64, torch.device("cpu")), wanted) and not wanted.all()
