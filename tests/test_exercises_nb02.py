"""Exercises of notebook 02: right answers in several styles pass, likely wrong ones are refused with their hint."""

import numpy as np
import pytest
import torch

from mixofshow_lite import course
from mixofshow_lite.course import exercises
from mixofshow_lite.paper import difference

CHANGED = {"lora", "ed_lora", "custom_diffusion"}


def identified(x, references, name):
    scores = torch.stack([(x @ r.T).mean(1) for r in references.values()])
    return (scores.argmax(0) == list(references).index(name)).float().mean()


def one_by_one(x, references, name):
    """The same in another style: picture by picture, a plain float."""
    best = [max(references, key=lambda other: float((references[other] @ row).mean())) for row in x]
    return best.count(name) / len(x)


def paired(rows, more, less):
    found = {}
    for concept, recipe, value in rows:
        found.setdefault(concept, {})[recipe] = value
    return float(np.mean([f[more] - f[less] for f in found.values() if more in f and less in f]))


def by_two_dicts(rows, more, less):
    a, b = ({c: v for c, r, v in rows if r == recipe} for recipe in (more, less))
    return sum(a[c] - b[c] for c in a.keys() & b.keys()) / len(a.keys() & b.keys())


def unpaired(rows, more, less):
    return np.mean([v for _, r, v in rows if r == more]) - np.mean([v for _, r, v in rows if r == less])


def missing_is_zero(rows, more, less):
    found = {}
    for concept, recipe, value in rows:
        found.setdefault(concept, {})[recipe] = value
    return np.mean([f[more] - f[less] if less in f and more in f else 0.0 for f in found.values()])


def measured(effects, seeds):
    """As in the notebook."""
    rng, rows = np.random.default_rng(0), []
    for c, effect in enumerate(effects):
        for s in range(seeds):
            for way in ("old", "new"):
                value = 0.1 * c + effect * (way == "new") + 0.02 * rng.normal()
                rows.append({"concept": c, "seed": s, "way": way, "value": value})
    return difference(rows, "way", "new", "old")


RIGHT = {
    "2.1": [(CHANGED,), (["custom_diffusion", "ed_lora", "lora"],)],
    "2.2": [
        (lambda W0, down, up, alpha: W0 + alpha * up @ down,),
        (lambda W0, down, up, alpha: W0 + torch.einsum("or,ri->oi", alpha * up, down),),
    ],
    "2.3": [(identified,), (one_by_one,)],
    "2.4": [(paired,), (by_two_dicts,)],
    "2.5": [([1.2, 0.1, 0.1, 0, -0.1, -0.1], measured), ((1.5, 0.3, 0.3, -0.3, -0.3, -0.3), measured)],
}
WRONG = {
    "2.1": [
        (({*CHANGED, "p_plus"},), "p_plus has no LoRA"),
        (({"lora", "ed_lora"},), "custom_diffusion changes some weights"),
        (({*CHANGED, "dreambooth"},), "no recipe"),
        (("lora",), "a set of names"),
    ],
    "2.2": [
        ((lambda W0, down, up, alpha: alpha * (W0 + up @ down),), "all that is left"),
        ((lambda W0, down, up, alpha: W0 + (alpha * up) @ (alpha * down),), "once"),
        ((lambda W0, down, up, alpha: W0 + down @ up,), "up stands on the left"),
        ((lambda W0, down, up, alpha: W0 + up @ down,), "no effect"),
        ((lambda W0, down, up, alpha: (1 - alpha) * W0 + alpha * up @ down,), "no mixture"),
        ((lambda W0, down, up, alpha: ...,), "returns nothing yet"),
    ],
    "2.3": [
        ((lambda x, references, name: (x @ references[name].T).mean(),), "who is LARGEST"),
        ((lambda x, references, name: identified(x, references, "y"),), "depend on the name"),
        ((lambda x, references, name: len(x) * identified(x, references, name),), "number of pictures"),
        ((lambda x, references, name: x @ references[name],), "stopped with RuntimeError"),
        ((lambda x, references, name: ...,), "returns nothing yet"),
    ],
    "2.4": [
        ((unpaired,), "inside each concept"),
        ((missing_is_zero,), "no difference of 0"),
        ((lambda rows, more, less: paired(rows, less, more),), "other way round"),
        ((lambda rows, more, less: 0.11,), "cannot be compared"),
        ((lambda rows, more, less: {r[0]: r[3] for r in rows},), "stopped with IndexError"),
    ],
    "2.5": [
        (([0.2] * 6, measured), "That IS shown"),
        (([1.2, 0, 0, 0, 0, 0], measured), "three of the six"),
        (([0.1] * 6, measured), "make it 0.2"),
        (([0.2] * 5, measured), "5 effects"),
        ((0.2, measured), "list of six numbers"),
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
    here = {number for number in exercises.everything() if number.startswith("2.")}
    assert set(RIGHT) == set(WRONG) == here
