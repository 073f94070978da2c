"""Notebook 03's exercises: right answers pass, each likely mistake is named."""

import pytest
import torch

from mixofshow_lite import course
from mixofshow_lite.course import exercises


def swap(a, b, layers):
    mixed = a.clone()
    mixed[layers] = b[layers]
    return mixed


def swap_in_place(a, b, layers):
    a[layers] = b[layers]
    return a


def start(row, L, spread):
    return (spread * torch.randn(len(row))).expand(L, -1), row.expand(L, -1)


def start_different(row, L, spread):
    return spread * torch.randn(L, len(row)), row.expand(L, -1)


def start_seeded(row, L, spread):
    draw = torch.randn(len(row), generator=torch.Generator().manual_seed(0))
    return (spread * draw).expand(L, -1), row.expand(L, -1)


RIGHT = {
    "3.1": swap,
    "3.2": start,
    "3.3": 17,
    "3.4": lambda rows: rows.mean(0).expand_as(rows),
    "3.5": lambda alpha, rank: alpha / rank,
}
WRONG = [
    ("3.1", lambda a, b, layers: swap(b, a, layers), "first concept, unchanged"),
    ("3.1", swap_in_place, "clone"),
    ("3.1", lambda a, b, layers: a.clone(), "come from b"),
    ("3.2", lambda row, L, spread: start(row, L, spread)[::-1], "class word's own row"),
    ("3.2", lambda row, L, spread: (torch.randn(len(row)), row.expand(L, -1)), "shape"),
    ("3.2", start_different, "drawn once"),
    ("3.2", lambda row, L, spread: start(row, L, 1.0), "spread"),
    ("3.2", start_seeded, "begin alike"),
    ("3.2", lambda row, L, spread: row, "two tables"),
    ("3.3", 32, "encoded once"),
    ("3.4", lambda rows: rows, "same row"),
    ("3.4", lambda rows: rows[:1].expand_as(rows), "mean over the layers"),
    ("3.5", lambda alpha, rank: alpha, "alpha equal to the rank"),
    ("3.5", lambda alpha, rank: rank / alpha, "alpha / rank"),
]


@pytest.mark.parametrize("number", RIGHT)
def test_right_answers_pass(number, capsys):
    course.check(number, RIGHT[number])
    assert f"Exercise {number}: right" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "answer", "hint"), WRONG)
def test_wrong_answers_name_the_likely_mistake(number, answer, hint):
    with pytest.raises(AssertionError, match=hint):
        course.check(number, answer)


def test_every_exercise_of_the_notebook_is_tried():
    here = {number for number in exercises.everything() if number.startswith("3.")}
    assert set(RIGHT) == {number for number, _, _ in WRONG} == here
    for number in here - {"3.3"}:
        with pytest.raises(AssertionError):
            course.check(number, lambda *arguments: ...)
