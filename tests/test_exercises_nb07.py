"""Exercises of notebook 07: right answers in several styles pass, likely wrong ones are refused with their hint."""

import numpy as np
import pytest

from mixofshow_lite import course
from mixofshow_lite.course import exercises
from mixofshow_lite.course.character import Look

MINE, NEIGHBOUR = Look(), Look(cls="rabbit", colour="white", pattern="spots", part="eyepatch")


def alike(pixels, row, column, tolerance):
    return np.abs(pixels - pixels[row, column]).max(-1) <= tolerance


def twin(**changes):
    return Look(**{"cls": "rabbit", "colour": "white", "pattern": "stripes", "part": "horn"} | changes)


RIGHT = {
    "7.1": [("photo of a <TOK> in the snow at night", MINE), ("At night, a sleepy <tok> stands in snow", MINE)],
    "7.3": [
        (alike,),
        (lambda p, r, c, t: (np.abs(p - p[r, c]) <= t).all(-1),),
        (lambda p, r, c, t: ((p > p[r, c] - t) & (p < p[r, c] + t)).all(2).astype(np.uint8) * 255,),
    ],
    "7.2": [(twin(), NEIGHBOUR), (twin(pattern="spots", pattern_colour="red"), NEIGHBOUR)],
    "7.4": [
        (lambda down, up, alpha: alpha / len(down) * up @ down,),
        (lambda down, up, alpha: up @ down * (alpha / up.shape[1]),),
    ],
}
WRONG = {
    "7.1": [
        (("photo of a cat in the snow at night", MINE), "write <TOK>"),
        (("photo of a <TOK> cat in the snow at night", MINE), "class word"),
        (("a spotted orange <TOK> in the snow at night", MINE), "a mark"),
        (("photo of a <TOK>", MINE), "snow along"),
        (("photo of a <TOK> in the snow", MINE), "bring the night"),
        ((3, MINE), "a text"),
    ],
    "7.3": [
        ((lambda p, r, c, t: np.abs(p - p[r, c]) <= t,), "red, green and blue"),
        ((lambda p, r, c, t: p.max(-1) <= 2,), "everything or nothing"),
        ((lambda p, r, c, t: (p[r, c] - p).max(-1) <= -9,), "everything or nothing"),
        ((lambda p, r, c, t: p[r] - p[c, r, 5, 5],), "stopped with IndexError"),
        ((lambda p, r, c, t: ...,), "returns nothing yet"),
        ((lambda p, r, c, t: np.abs(p - p[r, c]).max(-1) <= 0,), "missing"),
    ],
    "7.2": [
        ((Look(), NEIGHBOUR), "same class"),
        ((twin(colour="red"), NEIGHBOUR), "share the colour"),
        ((twin(part="eyepatch"), NEIGHBOUR), "part differ"),
        ((twin(pattern="spots", pattern_colour=NEIGHBOUR.pattern_colour), NEIGHBOUR), "pattern differ"),
        ((twin(pattern="plain"), NEIGHBOUR), "nothing of it to lose"),
        (("a rabbit", NEIGHBOUR), "Look"),
    ],
    "7.4": [
        ((lambda down, up, alpha: alpha * up @ down,), "alpha alone"),
        ((lambda down, up, alpha: up @ down,), "no scale"),
        ((lambda down, up, alpha: len(down) / alpha * up @ down,), "rank / alpha"),
        ((lambda down, up, alpha: down @ up,), "stopped with RuntimeError"),
    ],
}


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
    here = {number for number in exercises.everything() if number.startswith("7.")}
    assert set(RIGHT) == set(WRONG) == here
