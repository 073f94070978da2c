"""Exercises of notebook 00: right answers in several styles pass, likely wrong ones are refused with their hint."""

import pytest
import torch

from mixofshow_lite import course
from mixofshow_lite.course import exercises


def objective(W, W0, deltas, inputs):
    return sum(((W0 + dW) @ X - W @ X).square().sum() for dW, X in zip(deltas, inputs, strict=True))


def of(target, measure):
    """An objective with another target or another measure of the gap."""

    def function(W, W0, deltas, inputs):
        return sum(measure(target(W0, dW) @ X - W @ X) for dW, X in zip(deltas, inputs, strict=True))

    return function


def own(W0, dW):
    return W0 + dW


RIGHT = {
    "0.1": [{"words", "LoRA"}, ["LoRA", "words"]],
    "0.2": [
        lambda W0, deltas: W0 + sum(deltas) / len(deltas),
        lambda W0, deltas: torch.stack([W0 + dW for dW in deltas]).mean(0),
    ],
    "0.3": [objective, of(own, lambda gap: gap.norm() ** 2), lambda *a: float(objective(*a))],
    "0.4": [
        lambda n: [(k / n, 0, (k + 1) / n, 1) for k in range(n)],
        lambda n: torch.tensor([[k / n, 0.15, (k + 1) / n, 1.0] for k in range(n)]),
    ],
}
WRONG = {
    "0.1": [
        ({"pictures", "words", "LoRA"}, "at home"),
        ({"LoRA"}, "call the concept"),
        ({"words"}, "never drawn"),
        ({"the whole model"}, "has the model"),
        ("words", "a set"),
        ({"weights"}, "not on the list"),
    ],
    "0.2": [
        (lambda W0, deltas: W0 + sum(deltas), "That is the sum"),
        (lambda W0, deltas: sum(deltas) / len(deltas), "average update"),
        (lambda W0, deltas: (W0 + sum(deltas)) / len(deltas), "divided as well"),
        (lambda W0, deltas: W0 + sum(deltas) / 2, "may be more"),
        (lambda W0, deltas: W0 + (deltas[0] + deltas[1]) / 2, "Eq. 2"),
        (lambda W0, deltas: W0 @ deltas[0], "stopped with RuntimeError"),
        (lambda W0, deltas: ..., "returns nothing yet"),
    ],
    "0.3": [
        (of(own, torch.Tensor.norm), "not squared"),
        (of(own, lambda gap: gap.square().mean()), "mean over the entries"),
        (of(lambda W0, dW: W0, lambda gap: gap.square().sum()), "own weight says"),
        (of(own, lambda gap: gap.sum() ** 2), "Square each entry"),
        (lambda W, W0, deltas, inputs: inputs[0] @ W, "stands on the right"),
    ],
    "0.4": [
        (lambda n: [(128 * k / n, 0, 128 * (k + 1) / n, 128) for k in range(n)], "not in pixels"),
        (lambda n: [(k / n, 0, 1 / n, 1) for k in range(n)], "no area"),
        (lambda n: [(0, 0, 0.5, 1), (0.5, 0, 1, 1)], "there are 2 boxes"),
        (lambda n: [(k / n, 0, min(1, (k + 1.5) / n), 1) for k in range(n)], "equal columns"),
        (lambda n: ..., "returns nothing yet"),
        (lambda n: [(k / n, 1) for k in range(n)], "four numbers"),
    ],
}


@pytest.mark.parametrize(("number", "i"), [(n, i) for n, answers in RIGHT.items() for i in range(len(answers))])
def test_right_answers_pass(number, i, capsys):
    course.check(number, RIGHT[number][i])
    assert f"Exercise {number}: right" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "i"), [(n, i) for n, answers in WRONG.items() for i in range(len(answers))])
def test_wrong_answers_name_the_likely_mistake(number, i):
    answer, hint = WRONG[number][i]
    with pytest.raises(AssertionError, match=hint):
        course.check(number, answer)


def test_every_exercise_is_tried():
    here = {number for number in exercises.everything() if number.startswith("0.")}
    assert set(RIGHT) == set(WRONG) == here
