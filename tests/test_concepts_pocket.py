"""The shipped concepts: what they are, what is written, and that the folders are what the code draws."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

import mixofshow_lite as mos
from mixofshow_lite.files.resources import concepts_dir
from mixofshow_lite.pocket import concepts, world
from mixofshow_lite.pocket.concepts import CONCEPTS


def marks(spec):
    return spec.pattern is not None or bool(spec.parts) or spec.outline != 1.0


def test_there_are_enough_of_every_kind():
    assert len(CONCEPTS) >= 14
    kinds = Counter(
        "scene" if s.cls in world.SCENES else "character" if s.cls in world.CHARACTERS else "object"
        for s in CONCEPTS.values()
    )
    assert kinds["character"] >= 6 and kinds["object"] >= 2 and kinds["scene"] >= 2
    for domain in ("in", "out"):
        scenes = [s.cls in world.SCENES for s in CONCEPTS.values() if s.domain == domain]
        assert any(scenes) and sum(not s for s in scenes) >= 3


def test_two_groups_of_three_look_alikes():
    groups = Counter(s.group for s in CONCEPTS.values() if s.group)
    assert sorted(groups.values()) == [3, 3]
    for group in groups:
        members = [s for s in CONCEPTS.values() if s.group == group]
        assert len({s.cls for s in members}) == 1  # of one class
        for a, b in itertools.combinations(members, 2):
            assert a.parts != b.parts and (a.pattern, a.accessories) != (
                b.pattern,
                b.accessories,
            )  # and yet not the same
    rabbits = [s for s in CONCEPTS.values() if s.group == "rabbits"]
    assert len({s.rgb for s in rabbits}) == 1  # a colour alone does not tell them apart


def test_in_domain_concepts_are_points_of_the_world_and_the_others_are_not():
    for name, spec in CONCEPTS.items():
        if spec.cls in world.SCENES:
            scene = concepts.picture(name, 0)[0].scene
            assert (scene in world.SCENES) == (spec.domain == "in")
            continue
        look = concepts.subject(name)
        ranges = world.characters.SHAPE if look.is_character else world.objects.SHAPE
        assert look.shape.keys() == ranges.keys()
        assert marks(spec) == (spec.domain == "out"), name
        if spec.domain == "in":
            assert all(ranges[k][0] <= v <= ranges[k][1] for k, v in look.shape.items()), name


def test_the_look_stays_and_the_rest_varies():
    for name in ("bibi", "mochi", "polka"):
        drawn = [concepts.picture(name, i)[0] for i in range(concepts.PICTURES)]
        subjects = [p.subjects[0] for p in drawn]
        fixed = concepts.subject(name)
        for s in subjects:
            for part in ("cls", "rgb", "pattern", "parts", "outline", "eye_rgb", "accessories"):
                assert getattr(s, part) == getattr(fixed, part)
            loose = ("lean", "turn", "gaze")
            assert all(s.shape[k] == v for k, v in fixed.shape.items() if k not in loose)
        assert {p.scene for p in drawn} == set(world.SCENES) and len({p.light for p in drawn}) == 3
        assert len({s.x for s in subjects}) == len({s.height for s in subjects}) == len(drawn)


def test_the_cove_stays_and_the_lava_field_varies():
    spread = {}
    for name in ("cove", "lava"):
        values = [[*concepts.picture(name, i)[0].scene_params.values()] for i in range(6)]
        spread[name] = np.ptp(values, axis=0).max()
    assert spread["cove"] < 0.1 < 0.5 < spread["lava"]


def test_captions_name_the_concept_once_and_never_its_class_or_colour():
    for name, spec in CONCEPTS.items():
        for index in range(concepts.PICTURES):
            drawn, text = concepts.picture(name, index)
            assert text.count("<TOK>") == 1 and spec.cls not in text.replace("<TOK>", "").split()
            for light, words in (("sunset", "at sunset"), ("night", "at night")):
                assert (words in text) == (drawn.light == light)
            if spec.cls not in world.SCENES:
                assert concepts.captions.PLACES[drawn.scene][0] in text
                assert not set(world.COLORS) & set(text.split())


def test_a_written_folder_is_an_imagefolder_that_concept_data_reads(tmp_path):
    folder = concepts.write("rusty", tmp_path, size=32)
    assert folder == tmp_path / "rusty"
    data = mos.ConceptData(folder)
    assert len(data) == concepts.PICTURES and data.class_word == "robot"
    assert all(p.size == (32, 32) == m.size for p, m in zip(data.pictures, data.masks, strict=True))
    assert all(0.05 < np.asarray(m).mean() / 255 < 0.6 for m in data.masks)
    assert "<TOK>" not in "".join(data.prompts("<rusty1> <rusty2>"))
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert {"file_name", "caption", "mask", "class_word"} == set(rows[0])
    assert "look-alikes: volt, pixel" in (folder / "README.md").read_text()
    concepts.write("rusty", tmp_path, size=32)  # again: replaced, nothing left over
    assert [p.name for p in tmp_path.iterdir()] == ["rusty"]


def test_masks_of_scenes_are_the_scene_without_its_visitor(tmp_path, monkeypatch):
    monkeypatch.setattr(concepts, "PICTURES", 2)
    data = mos.ConceptData(concepts.write("lava", tmp_path, size=32))
    empty, visited = (np.asarray(m) / 255 for m in data.masks)
    assert empty.min() == 1 and 0.4 < visited.mean() < 0.98 and visited.min() < 0.05


def test_an_interrupted_write_leaves_the_old_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(concepts, "PICTURES", 2)
    folder = concepts.write("zigzag", tmp_path, size=16)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    original, calls = world.render, []

    def breaks(picture, size):
        calls.append(picture)
        if len(calls) == 2:
            raise OSError("No space left on device")
        return original(picture, size)

    monkeypatch.setattr(world, "render", breaks)
    with pytest.raises(OSError, match="No space left"):
        concepts.write("zigzag", tmp_path, size=16)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    monkeypatch.setattr(world, "render", original)
    concepts.write("zigzag", tmp_path, size=16)
    assert [p.name for p in tmp_path.iterdir()] == ["zigzag"]  # the half-written one is gone too


def test_a_concept_that_is_not_there_is_named():
    with pytest.raises(KeyError, match="bobo"):
        concepts.write("bobo", "nowhere")


# ---- the shipped folders ----


def test_the_shipped_concepts_are_all_there_and_readable():
    assert sorted(p.name for p in concepts_dir().iterdir() if p.is_dir()) == sorted(CONCEPTS)
    for name, spec in CONCEPTS.items():
        data = mos.ConceptData(concepts_dir() / name)
        assert 8 <= len(data) <= 12 and data.class_word == spec.cls
        assert all(p.size == (128, 128) for p in data.pictures) and None not in data.masks
        assert (concepts_dir() / name / "README.md").read_text() == concepts.card(name)


@pytest.mark.parametrize("name", CONCEPTS)
def test_the_shipped_concept_is_what_the_code_draws(name):
    data = mos.ConceptData(concepts_dir() / name)
    drawn = [concepts.picture(name, i) for i in range(len(data))]
    assert data.captions == [text for _, text in drawn]
    for i in (0, 3, len(data) - 1):
        off = np.abs(np.asarray(data.pictures[i]).astype(int) - world.draw_image(drawn[i][0]).astype(int))
        assert off.mean() < 1 and (off > 40).mean() < 0.01, f"{name}/{i:02d}.png is off by {off.mean():.2f} levels"
    if name not in ("cove", "lava"):
        off = np.abs(np.asarray(data.masks[1]) / 255 - world.render(drawn[1][0]).masks[0])
        assert off.mean() < 0.005


def test_the_command_draws_the_same_layout_at_512_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(concepts, "CONCEPTS", {"bibi": CONCEPTS["bibi"]})  # the first one keeps its seed
    monkeypatch.setattr(concepts, "PICTURES", 1)
    monkeypatch.setattr("sys.argv", ["concepts", str(tmp_path), "--size", "512"])
    concepts.main()
    large, mask = (Image.open(tmp_path / "bibi" / f) for f in ("00.png", "masks/00.png"))
    assert large.size == mask.size == (512, 512)
    shipped = mos.ConceptData(concepts_dir() / "bibi")
    for small, big in ((shipped.pictures[0], large), (shipped.masks[0], mask)):
        reduced = np.asarray(big.resize((128, 128), Image.Resampling.BOX)).astype(int)
        assert np.abs(reduced - np.asarray(small).astype(int)).mean() < 3
