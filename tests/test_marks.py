"""Marks kept: named from a concept's own look, read zero-shot, counted; with readers whose answers are known."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import build_clip

from mixofshow_lite.engine.evaluation import Scorer, load_scorer
from mixofshow_lite.pocket import concepts, marks, world
from mixofshow_lite.pocket.train import clip_data
from mixofshow_lite.pocket.train.clip import mark_captions

PICTURE = Image.new("RGB", (8, 8))
STRIPED = concepts.Spec(
    "rabbit", "out", "", concepts.WHITE, pattern=("stripes", (0.55, 0.32, 0.78), 0.85), parts=(("horn", concepts.GOLD),)
)


@pytest.fixture
def oracle(monkeypatch):
    """A reader that sees `oracle.says`: a caption scores by the words and the pairs of neighbours that it shares."""
    numbers = {}
    seen = SimpleNamespace(says="", scorer=Scorer("oracle", None, None, None))

    def feature(text):
        words = text.split()
        told = {
            *map(" ".join, itertools.pairwise(words)),
            *(w for w in words if w not in (*clip_data.TINTS, "nothing")),
        }
        row = torch.zeros(1000)
        row[[numbers.setdefault(w, len(numbers)) for w in told]] = 1.0
        return row

    def image_features(self, images, batch=64):
        return torch.stack([feature(seen.says) for _ in ([images] if isinstance(images, Image.Image) else images)])

    monkeypatch.setattr(Scorer, "text_features", lambda self, texts: torch.stack([feature(t) for t in texts]))
    monkeypatch.setattr(Scorer, "image_features", image_features)
    return seen


def test_marks_are_named_from_the_concepts_look():
    assert marks.marks_of("bibi") == {
        "colour": "white", "part": "star", "accessory": "red scarf",
    }  # fmt: skip
    assert marks.marks_of(STRIPED) == {
        "colour": "white", "pattern": "stripes", "pattern colour": "purple", "part": "horn",
    }  # fmt: skip
    assert marks.marks_of("mochi") == {"colour": "white", "accessory": "red scarf"}
    assert marks.marks_of("beetle") == {"colour": "pink"} and marks.marks_of("lava") == {}
    mine = concepts.Spec(
        "frog", "out", "", rgb=(0.1, 0.1, 0.12), parts=(("cape", (0.9, 0.1, 0.1)), ("horn", (1.0, 0.8, 0.2)))
    )
    assert marks.marks_of(mine) == {"colour": "black", "part": "cape", "second part": "horn"}
    with pytest.raises(KeyError):
        marks.marks_of("nobody")


def test_look_alikes_differ_in_their_marks():
    """Otherwise averaging could not be told from gradient fusion by them."""
    for group in {spec.group for spec in concepts.CONCEPTS.values()} - {None}:
        kin = [marks.marks_of(name) for name, spec in concepts.CONCEPTS.items() if spec.group == group]
        assert len({m["part"] for m in kin}) == len(kin)
        for one, other in itertools.permutations(kin, 2):  # and in something that covers more than a part
            covering = {kind: value for kind, value in one.items() if kind == "pattern" or "accessory" in kind}
            assert covering and not set(covering.values()) & set(other.values())


def test_marks_are_read_as_they_are_seen(oracle):
    oracle.says = "white rabbit in purple stripes with a horn"
    (seen,) = marks.read_marks(PICTURE, "rabbit", oracle.scorer)
    assert seen.items() >= marks.marks_of(STRIPED).items()
    kept, kinds = marks.marks_kept([PICTURE, PICTURE], STRIPED, oracle.scorer)
    assert kinds == ["colour", "pattern", "pattern colour", "part"] and kept.shape == (2, 4) and kept.all()
    oracle.says = "pink rabbit in purple spots with a horn"  # the pattern's colour is read in the pattern that is seen
    assert marks.marks_kept(PICTURE, STRIPED, oracle.scorer)[0].tolist() == [[False, False, True, True]]
    oracle.says = "plain white rabbit with nothing"
    assert marks.marks_kept(PICTURE, STRIPED, oracle.scorer)[0].tolist() == [[True, False, False, False]]
    (seen,) = marks.read_marks(PICTURE, "rabbit", oracle.scorer)
    assert seen["pattern"] == marks.PLAIN and seen["part"] == marks.NONE and "pattern colour" not in seen


def test_what_is_worn_is_a_thing_and_its_colour(oracle):
    oracle.says = "white cat wearing red scarf"
    kept, kinds = marks.marks_kept(PICTURE, "mochi", oracle.scorer)
    assert kinds == ["colour", "accessory"] and kept.all()
    oracle.says = "white cat wearing blue scarf"
    assert marks.marks_kept(PICTURE, "mochi", oracle.scorer)[0].tolist() == [[True, False]]
    oracle.says = "white cat wearing nothing"
    assert marks.read_marks(PICTURE, "cat", oracle.scorer)[0]["accessory"] == marks.NONE


def test_two_parts_count_in_any_order_and_objects_have_none(oracle):
    mine = concepts.Spec("frog", "out", "", rgb=(0.2, 0.6, 0.3), parts=(("cape", (0.9, 0.1, 0.1)), ("horn", (1, 1, 1))))
    oracle.says = "green frog with horn cape"
    kept, kinds = marks.marks_kept(PICTURE, mine, oracle.scorer)
    assert kinds == ["colour", "part", "second part"] and kept.all()
    oracle.says = "green frog with horn"
    assert marks.marks_kept(PICTURE, mine, oracle.scorer)[0][0].sum() == 2
    oracle.says = "white mug in teal stripes"
    assert marks.read_marks(PICTURE, "mug", oracle.scorer) == [
        {"colour": "white", "pattern": "stripes", "pattern colour": "teal"}
    ]
    assert marks.marks_kept(PICTURE, "zigzag", oracle.scorer)[0].all()


def test_a_scene_has_no_marks():
    kept, kinds = marks.marks_kept([PICTURE] * 3, "lava")
    assert kept.shape == (3, 0) and kinds == []


def test_accuracy_counts_what_is_not_there_too(oracle):
    rng = np.random.default_rng(0)
    plain = world.sample_subject(rng, "cat", "red")
    plain.accessories = []
    striped = world.sample_subject(rng, "cat", "red")
    striped.accessories, striped.pattern = [], ("stripes", world.hsv(*world.COLORS["blue"]), 1.0)
    oracle.says = "red plain cat with nothing wearing nothing"
    found = marks.accuracy([PICTURE, PICTURE], [plain, striped], oracle.scorer)
    assert found == {
        "colour of the marked": 1.0, "pattern": 0.5, "pattern colour": 0.0, "part": 1.0, "accessory": 1.0,
    }  # fmt: skip


def test_every_caption_of_a_kind_is_a_claim_of_its_own(tmp_path):
    """What is read from pictures was asked in training: no caption of marks is lost on the claims of `clip_data`."""
    for texts in mark_captions().values():
        assert len({clip_data.claims(text)[0].tobytes() for text in texts}) == len(texts)
    scorer = load_scorer(build_clip(tmp_path))
    drawn = [Image.fromarray(world.draw_image(concepts.picture("bibi", i)[0])) for i in range(2)]
    kept, kinds = marks.marks_kept(drawn, "bibi", scorer)  # an untrained reader: any answer, of the right shape
    assert kept.shape == (2, len(kinds)) and kept.dtype == bool
