"""Exercises of notebook 03: right answers in several styles pass, likely wrong ones are refused with their hint."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mixofshow_lite import course
from mixofshow_lite.course import exercises
from mixofshow_lite.course.exercises import nb03

TURNED = {"no layer": [0.0, 0.0], "layer 13": [1.0, 0.0], "layer 14": [0.0, 0.7], "layer 15": [0.3, 0.0]}
KIT = SimpleNamespace(base=SimpleNamespace(layers=range(16)), scorer=None)


def swap(a, b, layers):
    mixed = a.clone()
    mixed[layers] = b[layers]
    return mixed


def swap_by_where(a, b, layers):
    return torch.where(torch.tensor([[i in layers] for i in range(len(a))]), b, a)


def swap_in_place(a, b, layers):
    a[layers] = b[layers]
    return a


def start(row, L, spread):
    return (spread * torch.randn(len(row))).expand(L, -1), row.expand(L, -1)


def start_normal(row, L, spread):
    return torch.normal(0.0, spread, (1, len(row))).repeat(L, 1), torch.stack([row] * L)


def start_different(row, L, spread):
    return spread * torch.randn(L, len(row)), row.expand(L, -1)


def start_seeded(row, L, spread):
    draw = torch.randn(len(row), generator=torch.Generator().manual_seed(0))
    return (spread * draw).expand(L, -1), row.expand(L, -1)


@pytest.fixture(autouse=True)
def a_world_where_13_draws_and_14_paints(monkeypatch):
    """Three pictures as pairs (thing, colour), read as they are."""

    def mixed(base, layers):
        return [(13 in layers, 14 in layers or 15 in layers and i < 1) for i in range(3)]

    monkeypatch.setattr(nb03, "mixed", mixed)
    monkeypatch.setattr(
        nb03, "choose", lambda pictures, words, _: np.array([p["bear" not in words[0]] for p in pictures])
    )


RIGHT = {
    "3.1": [(lambda rows: rows.mean(0).expand_as(rows),), (lambda rows: torch.stack([sum(rows) / len(rows)] * 16),)],
    "3.2": [((13, 14), TURNED), ([13, 14], TURNED)],
    "3.3": [(swap,), (swap_by_where,)],
    "3.4": [([14], KIT), ((0, 1, 14), KIT), ({14, 15}, KIT)],
    "3.5": [(start,), (start_normal,)],
}
WRONG = {
    "3.1": [
        ((lambda rows: rows,), "as they came"),
        ((lambda rows: rows[:1].expand_as(rows),), "no better than another"),
        ((lambda rows: rows.mean(0),), "every one of the L layers"),
        ((lambda rows: rows.mean(1, keepdim=True).expand_as(rows),), "over layers"),
        ((lambda rows: rows.median(0).values.expand_as(rows),), "absolute values"),
        ((lambda rows: rows.mean(0).expand(3, 3),), "stopped with RuntimeError"),
        ((lambda rows: ...,), "returns nothing yet"),
    ],
    "3.2": [
        (((14, 13), TURNED), "other way round"),
        (((13, 15), TURNED), "'blue'"),
        (((15, 14), TURNED), "'robot'"),
        (((3, 14), TURNED), "No row is 'layer 3'"),
        (("layer 13", TURNED), "two layer numbers"),
        (((13, ...), TURNED), "still empty"),
        ((("layer 13", "layer 14"), TURNED), "numbers alone"),
    ],
    "3.3": [
        ((lambda a, b, layers: swap(b, a, layers),), "first concept, unchanged"),
        ((swap_in_place,), "clone"),
        ((lambda a, b, layers: a.clone(),), "come from b"),
        ((lambda a, b, layers: a[layers] + b,), "stopped with RuntimeError"),
        ((lambda a, b, layers: ...,), "returns nothing yet"),
    ],
    "3.4": [
        (([13], KIT), "a frog by then"),
        ((range(16), KIT), "a frog by then"),
        (([15], KIT), "still white"),
        (([16], KIT), "from 0 to 15"),
        (([], KIT), "at least one layer"),
        ((14, KIT), "list of layer numbers"),
    ],
    "3.5": [
        ((lambda row, L, spread: start(row, L, spread)[::-1],), "class word's own row"),
        ((lambda row, L, spread: (torch.randn(len(row)), row.expand(L, -1)),), "shape"),
        ((start_different,), "drawn once"),
        ((lambda row, L, spread: start(row, L, 1.0),), "spread"),
        ((start_seeded,), "begin alike"),
        ((lambda row, L, spread: row,), "two tables"),
        ((lambda row, L, spread: ...,), "returns nothing yet"),
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


def test_every_exercise_of_the_notebook_is_tried():
    here = {number for number in exercises.everything() if number.startswith("3.")}
    assert set(RIGHT) == set(WRONG) == here


def test_mixed_prompts_are_the_plain_ones_at_both_ends(tiny_base, monkeypatch):
    """No layer of the second prompt is the first one, all layers of it are the second: the same pictures."""
    monkeypatch.undo()
    monkeypatch.setattr(type(tiny_base), "sample", lambda model, prompt, **options: model.context(prompt))
    for layers, plain in ((), "a blue cat in the snow"), (range(len(tiny_base.layers)), "a red robot in the snow"):
        found = nb03.mixed(tiny_base, layers, ("blue", "cat"), ("red", "robot"))
        torch.testing.assert_close(found, tiny_base.context(plain), atol=1e-5, rtol=1e-4)
    some = nb03.mixed(tiny_base, [2], ("blue", "cat"), ("red", "robot"))
    assert not torch.allclose(some[:, 2], some[:, 1])
