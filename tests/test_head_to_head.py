"""The rivals' study at toy size: what is measured of whom, what is left out, and a real run on the tiny base."""

import math
import mmap
import sys
from dataclasses import replace

import numpy as np
import pytest
from tiny import make_concept
from toy_studies import Album, Eye, Painter, no_tuning

from mixofshow_lite.paper import Study, head_to_head
from mixofshow_lite.rivals import WAYS, Composition, Way

NAMES = ("bibi", "rusty", "mochi")


class Moved:
    share = 0.25


@pytest.fixture
def race(monkeypatch):
    """`race(ways, sizes)` -> (study, what was tuned, the base), with painters for models."""
    asked = []
    monkeypatch.setattr(head_to_head, "tuned", no_tuning(asked))
    monkeypatch.setattr(head_to_head, "drift", lambda *a, **k: Moved())

    def start(ways, sizes=(2, 3), room=9, **options):
        monkeypatch.setattr(head_to_head, "capacity", lambda base, rank: room)
        base, data = Painter(), {name: Album(name) for name in NAMES}
        study = head_to_head.rivals(base, None, data, NAMES, sizes, ways, n=2, scorer=Eye(), **options)
        return study, asked, base

    return start


def way(name, keeps, needs=(), tuned="ed_lora"):
    return Way(lambda base, concepts: base.fused(name, concepts, keeps), "a paper", needs, tuned=tuned)


TOYS = {
    "averaging": way("averaged", 0.3),
    "good": way("good", 0.85, ("recordings",)),
    "slots": way("slots", 0.6, ("slots",), tuned="orthogonal"),
    "turns": way("turns", 0.5, ("all LoRAs",)),
    "masked": way("masked", 0.9, ("regions", "all LoRAs")),
}


def test_every_way_is_measured_on_the_same_and_judged_against_averaging(race, tmp_path):
    study, asked, base = race(TOYS)
    assert len(study.rows) == 5 * (2 + 3)
    good = study.table("way", "size", value="kept")["good", 3][0]
    averaged = study.table("way", "size", value="kept")["averaging", 3][0]
    assert good > averaged and study.verdicts["3 concepts: good keeps more than averaging"]
    assert not any("masked" in words for words in study.verdicts)  # it has no identity alone
    drawn = {}
    for model, prompt, seed, regions in base.asked:
        drawn.setdefault(model, set()).add((prompt, seed, regions))
    assert drawn["averaged"] == drawn["good"] == drawn["slots"]
    saved = Study.load(study.save(tmp_path).parent, "rivals")
    assert saved.rows[0]["way"] == "averaging" and saved.figure.size[0] > 500
    text = head_to_head.table(study)
    assert "3 concepts" in text and text.count("recordings") == 2 and "nothing" in text


def test_a_way_has_only_the_numbers_that_it_can_have(race):
    study, _, _ = race(TOYS, sizes=(2,))
    by_way = {row["way"]: row for row in study.rows if row["concept"] == "bibi"}
    finite = {label: {k for k in head_to_head.NUMBERS if math.isfinite(row[k])} for label, row in by_way.items()}
    assert {"identity", "kept", "drift", "together", "seconds"} <= finite["good"]
    assert "together" not in finite["turns"] and "kept" in finite["turns"]
    assert finite["masked"] & {"identity", "kept", "drift", "together"} == {"together"}
    assert by_way["masked"]["together"] > by_way["averaging"]["together"]
    assert by_way["good"]["needs"] == "recordings"
    assert "marks" not in finite["good"]
    read, _, _ = race(TOYS, sizes=(2,), marks=lambda name, pictures: len(pictures) / 4)
    assert read.rows[0]["marks"] == 0.5


def test_marks_of_shipped_concepts_are_read_by_pocket_clip(monkeypatch):
    asked = []
    shown = np.array([[True, False], [True, True]])
    monkeypatch.setattr(head_to_head, "marks_kept", lambda pictures, name, scorer: asked.append(name) or (shown, []))
    read = head_to_head.shipped_marks(Eye())
    assert read("bibi", []) == 0.75 and math.isnan(read("nobody", [])) and asked == ["bibi"]


def test_slots_are_tuned_one_each_and_beyond_their_room_the_way_is_left_out(race, capsys):
    study, asked, _ = race(TOYS, room=2)
    assert {(n, label) for n, recipe, label in asked if recipe == "orthogonal"} == {
        (name, f"orthogonal_{i}") for i, name in enumerate(NAMES)
    }
    assert {row["size"] for row in study.rows if row["way"] == "slots"} == {2}
    assert "slots                      has no room for so many" in capsys.readouterr().out


def test_sizes_that_the_names_cannot_fill_are_refused(race):
    with pytest.raises(ValueError, match="give sizes from 1 to 3"):
        race(TOYS, sizes=(4,))


def test_peak_memory_sees_what_was_there_for_a_moment():
    with head_to_head.peak_memory() as grown:
        with mmap.mmap(-1, 40 * 2**20) as fresh:  # an array could be given memory that the process has kept
            fresh[::4096] = b"1" * (40 * 2**20 // 4096)
    if not sys.platform.startswith("linux") or math.isnan(grown[0]):
        pytest.skip("no /proc")
    assert 30 < grown[0] < 200


@pytest.mark.filterwarnings("ignore")
def test_a_real_race_on_the_tiny_base(tiny_base, monkeypatch):
    """Real models, few steps: a fusion, a composition and masked LoRAs go through the same study."""
    monkeypatch.setattr(head_to_head, "tuned", lambda base, data, *a, **k: few(make_concept(base, data.name)))
    monkeypatch.setattr(head_to_head, "drift", lambda *a, **k: Moved())
    for kind in (type(tiny_base), Composition):
        plain = kind.sample
        monkeypatch.setattr(kind, "sample", lambda self, *a, plain=plain, **k: plain(self, *a, **{**k, "steps": 1}))
    ways = {name: WAYS[name] for name in ("averaging", "Core Space, Iso-C", "LoRA Switch")}
    data = {name: Album(name) for name in ("bibi", "coco")}
    study = head_to_head.rivals(tiny_base, None, data, ("bibi", "coco"), (2,), ways, n=1, scorer=Eye())
    assert len(study.rows) == 6 and all(0 < row["identity"] <= 1 for row in study.rows)
    assert all(math.isnan(row["together"]) == (row["way"] == "LoRA Switch") for row in study.rows)


def few(concept):
    kept = {
        net: {n: p for n, p in found.items() if n.startswith("down_blocks.0")} for net, found in concept.lora.items()
    }
    return replace(concept, lora=kept)
