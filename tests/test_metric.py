"""The measure is measured: image-alignment of the shipped reader on pictures whose marks are known, and toy readers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from toy_studies import Eye

from mixofshow_lite.engine.evaluation import load_scorer
from mixofshow_lite.evaluation import image_scores
from mixofshow_lite.paper import metric
from mixofshow_lite.pocket import concepts, world

MARKED = [name for name, spec in concepts.CONCEPTS.items() if spec.cls not in world.SCENES]
LOOK_ALIKES = ("bibi", "momo", "kiki")


@pytest.fixture(scope="module")
def reader():
    pytest.importorskip("open_clip")
    return load_scorer()


@pytest.fixture(scope="module")
def own():
    return {name: metric.own_pictures(name) for name in concepts.CONCEPTS}


def test_a_concept_drawn_as_itself_is_its_own_picture(own):
    again = metric.redraw("bibi", 3, concepts.subject("bibi"))
    assert again.tobytes() == own["bibi"][3].tobytes()
    assert metric.redraw("bibi", 3, concepts.subject("kiki")).tobytes() != own["bibi"][3].tobytes()


def test_identical_pictures_score_1(reader, own):
    assert metric.identical(own["bibi"][:3] + own["lava"][:2], reader) == pytest.approx(1, abs=1e-5)


def test_shuffled_concepts_score_like_the_class_word(reader, own):
    found = metric.shuffled(own, reader)
    for name in MARKED:
        alike, others, nearest = found[name]
        assert alike > nearest + 0.25, f"{name} is told from every other concept"
        assert others < metric.lower_bound(name, reader, 5) + 0.1, name
    for name in set(found) - set(MARKED):
        assert found[name][0] > found[name][2], f"the scene {name} is nearest to itself"


@pytest.mark.parametrize(("name", "other"), [("bibi", "kiki"), ("bibi", "momo"), ("rusty", "volt"), ("mochi", "bruno")])
def test_the_score_falls_as_another_identity_is_mixed_in(reader, name, other):
    found = metric.blend(name, other, reader)
    assert metric.monotone(found, slack=0.015), found  # pictures laid over each other are nothing it was trained on
    assert found[0][0] > found[0][1] + 0.3 and found[-1][1] > found[-1][0] + 0.3


def test_monotone_can_say_no():
    assert metric.monotone([(0.9, 0.1), (0.5, 0.5), (0.1, 0.9)])
    assert not metric.monotone([(0.9, 0.1), (0.95, 0.5), (0.1, 0.9)])
    assert not metric.monotone([(0.9, 0.1), (0.5, 0.05), (0.1, 0.9)])
    assert metric.monotone([(0.9, 0.1), (0.905, 0.1)], slack=0.01)


def test_variants_lose_the_marks_that_they_say():
    looks = metric.variants("bibi")
    shown = {label: metric.marks_shown("bibi", look) for label, look in looks.items()}
    assert shown == {
        "all marks": 1, "all marks, farther away": 1, "no star": 2 / 3, "no scarf": 2 / 3,
        "scarf in another colour": 2 / 3, "no mark at all": 1 / 3,
    }  # fmt: skip
    assert metric.marks_shown("mochi", metric.variants("mochi")["no scarf"]) == 0.5
    shown = {label: metric.marks_shown("pixel", look) for label, look in metric.variants("pixel").items()}
    assert shown == {"all marks": 1, "all marks, farther away": 1, "no pattern": 0.5, "pattern in another colour": 0.75,
                     "no cape": 0.75, "no mark at all": 0.25}  # fmt: skip
    assert set(metric.variants("momo")) == {"all marks", "all marks, farther away", "no cape", "no hat",
                                            "hat in another colour", "no mark at all"}  # fmt: skip
    for name in MARKED:
        shown = {label: metric.marks_shown(name, look) for label, look in metric.variants(name).items()}
        assert shown.pop(metric.ALL_MARKS) == shown.pop(metric.FARTHER) == 1
        bare = shown.pop(metric.NO_MARKS)
        assert all(bare <= v < 1 for v in shown.values()), name
    with pytest.raises(ValueError, match="lava is a scene"):
        metric.variants("lava")


def test_of_two_things_worn_each_counts_by_itself(monkeypatch):
    two = replace(concepts.CONCEPTS["bibi"], accessories=(("glasses", "green"), ("scarf", "purple")))
    monkeypatch.setitem(concepts.CONCEPTS, "bibi", two)
    bibi = concepts.subject("bibi")
    swapped = replace(bibi, accessories=bibi.accessories[::-1])
    assert metric.marks_shown("bibi", swapped) == 1, "in whatever order they are put on"
    assert metric.without(bibi, "glasses").accessories == bibi.accessories[1:]
    assert metric.without(bibi, "glasses", "star").parts == []
    assert metric.marks_shown("bibi", metric.variants("bibi")["no star, no glasses"]) == 0.5


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_every_lost_mark_costs_score(reader, name):
    found = metric.score_variants(name, reader, pictures=5)
    full, _ = found.pop(metric.ALL_MARKS)
    assert all(score < full for score, _ in found.values())


def test_whoever_is_farther_away_scores_less_with_all_marks(reader):
    """What notebook 06 shows: bibi farther away scores less than bibi near by without her star."""
    found = metric.score_variants("bibi", reader)
    (near, shown), (far, more) = found["no star"], found[metric.FARTHER]
    assert near > far + 0.05 and shown < more
    labels, (scores, marks) = list(found), zip(*found.values(), strict=True)
    pairs = [(labels[i], labels[j]) for i, j in metric.misjudged(scores, marks)]
    assert ("no star", metric.FARTHER) in pairs


def test_misjudged_pairs_are_those_where_score_and_marks_differ():
    scores, marks = [0.9, 0.5, 0.7, 0.7], [0.25, 1.0, 0.5, 0.5]
    assert metric.misjudged(scores, marks) == [(0, 1), (0, 2), (0, 3), (2, 1), (3, 1)]
    assert metric.misjudged([0.1, 0.2, 0.3], [0, 0.5, 1]) == [], "a score that follows the marks misjudges nothing"
    assert metric.misjudged([0.5, 0.5], [0, 1]) == [], "a tie is no misjudgement"


class Colours:
    """A reader of pixels through a matrix of its own: another seed is another reader, none of them was trained."""

    def __init__(self, seed, sees=slice(None)):
        self.matrix = np.random.default_rng(seed).normal(size=(192, 24))
        self.sees = sees  # which of the colours

    def image_features(self, images):
        seen = np.zeros((len(images), 8, 8, 3))
        for row, picture in zip(seen, images, strict=True):
            row[..., self.sees] = np.asarray(picture.convert("RGB").resize((8, 8)), float)[..., self.sees] / 255
        return torch.nn.functional.normalize(torch.tensor(seen.reshape(len(images), -1) @ self.matrix).float(), dim=1)


def graded(keeps):
    """A way to fuse that keeps this share of a concept's colours."""
    names = {"red": (220, 30, 60), "blue": (40, 60, 210)}
    return {
        n: [Image.new("RGB", (8, 8), tuple(int(keeps * c + (1 - keeps) * 130) for c in rgb))]
        for n, rgb in names.items()
    }


def order(drawn, own, reader):
    """What a study reports of each way: the mean image-alignment over concepts."""
    scores = {way: [image_scores(p, own[name], reader).mean() for name, p in by.items()] for way, by in drawn.items()}
    return {way: float(np.mean(found)) for way, found in scores.items()}


def test_two_readers_agree_on_an_order_that_is_there():
    drawn, references = {way: graded(keeps) for way, keeps in (("a", 0.1), ("b", 0.5), ("c", 0.9))}, graded(1.0)
    first, second = (order(drawn, references, Colours(seed)) for seed in (0, 1))
    assert first["a"] < first["b"] < first["c"]
    found = metric.agree(first, second)
    assert (found.same, found.pairs, found.against) == (3, 3, ())
    assert str(found) == "the readers agree on 3 of 3 orders"
    assert metric.agree(first, order(drawn, references, Eye())).same == 3


def test_readers_that_differ_are_named():
    first = {"a": 0.1, "b": 0.5, "c": 0.51}
    found = metric.agree(first, {"a": 0.3, "b": 0.2, "c": 0.2})
    assert found.same == 0 and found.against == (("a", "b"), ("a", "c"), ("b", "c"))
    assert "not on 'a' against 'b'" in str(found)
    assert metric.agree(first, {"a": 0.1, "b": 0.5, "c": 0.4}, margin=0.05).pairs == 2, (
        "what is no order does not count"
    )
    with pytest.raises(ValueError, match="the same settings"):
        metric.agree(first, {"a": 0.1})


def test_a_reader_that_sees_nothing_agrees_on_nothing():
    drawn, references = {way: graded(keeps) for way, keeps in (("a", 0.1), ("c", 0.9))}, graded(1.0)
    blind = order(drawn, references, Colours(0, sees=slice(0, 0)))
    assert metric.agree(order(drawn, references, Colours(0)), blind).same == 0


def test_scores_come_from_the_paper_s_own_function(reader, own):
    found = metric.score_variants("bibi", reader, pictures=2)[metric.ALL_MARKS][0]
    assert found == pytest.approx(float(image_scores(own["bibi"][:2], own["bibi"], reader).mean()), abs=1e-5)
