"""Notebook 02's exercises: right answers pass, each likely mistake is named."""

import numpy as np
import pytest

from mixofshow_lite import course
from mixofshow_lite.course import exercises


def identified(x, references, name):
    scores = np.stack([(x @ r.T).mean(1).numpy() for r in references.values()])
    return float((scores.argmax(0) == list(references).index(name)).mean())


def apart(a, b):
    a, b = a.mean(0), b.mean(0)
    return 1 - float(a @ b / (a.norm() * b.norm()))


def paired(rows, more, less):
    found = {}
    for concept, recipe, value in rows:
        found.setdefault(concept, {})[recipe] = value
    return float(np.mean([f[more] - f[less] for f in found.values() if more in f and less in f]))


def unpaired(rows, more, less):
    return np.mean([v for _, r, v in rows if r == more]) - np.mean([v for _, r, v in rows if r == less])


RIGHT = {
    "2.1": lambda W0, down, up, alpha: W0 + alpha * up @ down,
    "2.2": (768, 12288, 24576),
    "2.3": identified,
    "2.4": apart,
    "2.5": paired,
}
WRONG = [
    ("2.1", lambda W0, down, up, alpha: alpha * (W0 + up @ down), "W0 is all that is left"),
    ("2.1", lambda W0, down, up, alpha: W0 + (alpha * up) @ (alpha * down), "once"),
    ("2.2", (768, 768, 1536), "each of the L layers"),
    ("2.2", (768, 12288, 12288), "two words"),
    ("2.2", 768, "three numbers"),
    ("2.3", lambda x, references, name: float((x @ references[name].T).mean()), "largest"),
    ("2.3", lambda x, references, name: identified(x, references, "y"), "depend on the name"),
    ("2.4", lambda a, b: float(a.mean(0) @ b.mean(0)), "1 - the cosine"),
    ("2.4", lambda a, b: 1 - float(a.mean(0) @ b.mean(0)), "of unit vectors"),
    ("2.4", lambda a, b: 0.0, "divide by its length"),
    ("2.5", unpaired, "inside each concept"),
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
    here = {number for number in exercises.everything() if number.startswith("2.")}
    assert set(RIGHT) == {number for number, _, _ in WRONG} == here
    for number in here - {"2.2"}:
        with pytest.raises(AssertionError):
            course.check(number, lambda *arguments: ...)
