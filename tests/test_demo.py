"""The demo from end to end on the tiny model: what it makes, what it keeps, how it goes on."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import build_clip

from mixofshow_lite import Concept, ConceptData, load_base
from mixofshow_lite import demo as module
from mixofshow_lite.demo import chosen, demo, format_table, look_alikes, write_figure
from mixofshow_lite.engine import resume
from mixofshow_lite.engine.recipes import RECIPES
from mixofshow_lite.engine.regional import side_by_side


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return build_clip(tmp_path_factory.mktemp("clip"))


def write_concept(folder, name, colour, class_word="rabbit"):
    """A concept imagefolder of two plain pictures."""
    (folder / name).mkdir(parents=True)
    rows = []
    for i in range(2):
        Image.new("RGB", (64, 64), colour).save(folder / name / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "caption": "photo of a <TOK>", "class_word": class_word})
    (folder / name / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / name


@pytest.fixture
def run(tiny_folder, clip_folder, tmp_path):
    """A quick demo of two plain concepts on the tiny model."""
    pair = tuple(str(write_concept(tmp_path / "data", n, c)) for n, c in (("ruby", "red"), ("jade", "green")))
    how = {"concepts": pair, "base": str(tiny_folder), "steps": 2, "n": 1, "clip": str(clip_folder), "progress": False}
    return lambda **more: demo(tmp_path / "out", **(how | more))


@pytest.mark.filterwarnings("ignore")  # the tiny model's short prompts are cut
def test_the_demo_makes_a_figure_a_table_and_concepts(run, tmp_path, monkeypatch, capsys):
    result = run()
    with Image.open(result.figure) as figure:
        assert figure.width > 2 * 128 and figure.height > 6 * 128  # two blocks of one picture, six rows, none shrunk
    rows = list(csv.DictReader(result.table.open()))
    assert [(r["concept"], r["model"]) for r in rows] == [(c, m) for c in ("ruby", "jade") for m in module.MODELS]
    for row in rows:
        assert float(row["image_alignment"]) == pytest.approx(
            result.scores[row["concept"]][row["model"]].mean(), abs=1e-4
        )
        assert row["marks_kept"] == ""  # nobody has named the marks of ruby and jade
    assert result.marks == {}
    assert list(result.pictures) == ["references", *module.MODELS, "both, direct", "both, regions"]
    assert all(len(blocks) == 2 and all(len(b) == 1 for b in blocks) for blocks in result.pictures.values())
    assert str(result.figure) in capsys.readouterr().out

    def never(*args, **kwargs):
        raise AssertionError("tuned again")

    monkeypatch.setattr(resume, "tune", never)
    again = run()  # a second run keeps the concepts and draws the same pictures
    for row, blocks in result.pictures.items():
        for old, new in zip(blocks, again.pictures[row], strict=True):
            assert np.abs(np.asarray(old[0], int) - np.asarray(new[0], int)).max() <= 1, row
    with pytest.raises(AssertionError, match="tuned again"):
        run(steps=3)  # tuned in another way


@pytest.mark.filterwarnings("ignore")
def test_concepts_of_other_default_steps_are_tuned_again(tiny_base, tmp_path, monkeypatch):
    data, asked, real = ConceptData(write_concept(tmp_path / "data", "ruby", "red")), [], resume.tune

    def tune(base, data, recipe, **how):
        asked.append(how["steps"])
        return real(base, data, recipe, **(how | {"steps": 1}))

    def tuned(steps, default):
        monkeypatch.setattr(resume, "recipe_for", lambda *_: replace(RECIPES["ed_lora"], steps=default))
        return resume.tune_once(tiny_base, data, tmp_path / "out", steps=steps, progress=False)

    monkeypatch.setattr(resume, "tune", tune)
    tuned(None, 7)
    tuned(None, 7)
    tuned(7, 8)
    assert asked == [None]  # the recipe's own, once
    tuned(None, 8)
    assert asked == [None, None]
    tuned(0, 8)
    assert asked == [None, None, 0]


@pytest.mark.filterwarnings("ignore")
def test_an_interrupted_demo_goes_on_with_the_second_concept(run, tiny_base, tmp_path, monkeypatch):
    tuned, real = [], resume.tune

    def stops_at_the_second(base, data, recipe, **how):
        tuned.append(data.name)
        if len(tuned) == 2:
            raise KeyboardInterrupt
        return real(base, data, recipe, **how)

    monkeypatch.setattr(resume, "tune", stops_at_the_second)
    monkeypatch.setattr(module, "gradient_fusion", lambda *args, seed: module.weight_fusion(*args))  # quicker
    with pytest.raises(KeyboardInterrupt):
        run(base=tiny_base)  # of a model in memory both are tuned here, one after the other
    assert not (tmp_path / "out" / "demo.png").exists()
    run(base=tiny_base)
    assert tuned == ["ruby", "jade", "jade"] and (tmp_path / "out" / "demo.png").exists()


@pytest.mark.filterwarnings("ignore")
def test_the_second_concept_is_tuned_in_a_process_of_its_own(run, tiny_folder, tmp_path, monkeypatch):
    here, real = [], resume.tune

    def tune(base, data, *args, **how):
        here.append((data.name, torch.get_num_threads()))
        return real(base, data, *args, **how)

    monkeypatch.setattr(resume, "tune", tune)
    monkeypatch.setattr(module, "gradient_fusion", lambda *args, seed: module.weight_fusion(*args))  # quicker
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    threads = torch.get_num_threads()
    run()
    assert here == [("ruby", 1)] and torch.get_num_threads() == threads
    folder = tmp_path / "out" / "concepts"
    assert json.loads((folder / "jade" / "tuned.json").read_text())["steps"] == 2
    ours = resume.tune_once(load_base(str(tiny_folder)), ConceptData(tmp_path / "data" / "jade"), tmp_path / "jade",
                            steps=2, progress=False)  # fmt: skip
    assert here[-1][0] == "jade"
    other = Concept.load(folder / "jade").lora["unet"]
    for name, factors in ours.lora["unet"].items():  # the same concept, whoever tuned it
        for a, b in zip(factors, other[name], strict=True):
            assert torch.allclose(a, b, atol=1e-4), name


@pytest.mark.filterwarnings("ignore")
def test_what_the_other_process_could_not_tune_is_tuned_here(run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "gradient_fusion", lambda *args, seed: module.weight_fusion(*args))  # quicker
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    run()
    assert (tmp_path / "out" / "concepts" / "jade" / "concept.json").is_file()


def test_each_concept_is_drawn_in_its_own_region(monkeypatch):
    class Model:
        base_id = "tiny"  # has no adapters

        def __init__(self):
            self.asked = []

        def with_concept(self, concept):
            return self

        def sample(self, prompt, regions=None, isolate=False, **settings):
            assert isolate == (regions is not None)
            self.asked.append((prompt, regions, settings))
            return [prompt]

    class Named:
        def __init__(self, phrase):
            self.phrase, self.pictures, self.class_word = phrase, [], "rabbit"

    model = Model()
    a, b = Named("<a1> <a2>"), Named("<b1> <b2>")
    rows = module.draw_rows(model, (a, b), {"weight fused": model, "gradient fused": model}, (a, b), 2, 5, False)
    assert len({str(settings) for *_, settings in model.asked}) == 1  # the same seeds everywhere
    assert rows["both, direct"][0] == ["a <a1> <a2> and a <b1> <b2> on the beach"]
    prompt, regions, _ = model.asked[-1]
    assert "<" not in prompt
    assert [r.prompt for r in regions if r.start == 0] == [
        "a <a1> <a2> on the left and a friend on the beach",
        "a <b1> <b2> on the right and a friend on the beach",
    ]
    assert [r.prompt for r in regions if r.end == 1] == ["a <a1> <a2> on the beach", "a <b1> <b2> on the beach"]
    (left, _, middle, _), (start, _, right, _) = (r.box for r in regions[:2])
    assert left == 0 and middle == start == 0.5 and right == 1
    assert list(rows) == ["references", *module.MODELS, "both, direct", "both, regions"]


def test_the_pocket_model_gets_a_pose_for_each_region():
    base = load_base("pocket")
    regions = side_by_side(["a <a1>", "a <b1>"], "on the beach")
    adapter, picture, scale = module.drawn_pose(base, regions, ["rabbit", "robot"])
    assert type(adapter).__name__ == "T2IAdapter"
    lit = np.asarray(picture.convert("L")) > 20
    assert scale == 1 and lit[:, :64].any() and lit[:, 64:].any(), "a body on either side"
    assert module.drawn_pose(base, regions, ["rabbit", "potter"]) is None, "no class of the world"


def test_the_default_pair_are_look_alikes(tmp_path):
    for name, class_word in (("alto", "cat"), ("bibi", "rabbit"), ("kiki", "rabbit"), ("volt", "robot")):
        write_concept(tmp_path, name, "red", class_word)
    assert look_alikes(tmp_path) == ("bibi", "kiki")
    with pytest.raises(FileNotFoundError, match="no two concepts of one class"):
        look_alikes(tmp_path / "empty")


def test_the_same_concept_twice_is_refused():
    with pytest.raises(ValueError, match="two different concepts"):
        chosen(("bibi", "bibi"))


def test_the_table_shows_mean_and_spread():
    row = {"alone": np.array([0.8, 0.9]), "weight fused": np.array([0.5, 0.5]), "gradient fused": np.array([0.8, 0.8])}
    assert "0.850 ± 0.050" in format_table({"bibi": row}) and "0.500 ± 0.000" in format_table({"bibi": row})


def test_marks_are_counted_where_they_are_named(monkeypatch, tmp_path):
    """A reader that sees a horn on every second picture of bibi, and never the pattern, not on her own either."""
    from mixofshow_lite.pocket import marks as reader

    def kept(images, name, scorer):
        assert name == "bibi"
        horn = [True] * 5 if len(images) == 5 else [i % 2 == 0 for i, _ in enumerate(images)]
        return np.array([[seen, False] for seen in horn]), ["part", "pattern"]

    monkeypatch.setattr(reader, "marks_kept", kept)
    white = Image.new("RGB", (8, 8), "white")
    pictures = {row: [[white] * 2, [white] * 2] for row in module.MODELS}
    concepts = (SimpleNamespace(name="bibi"), SimpleNamespace(name="jade"))
    data = [SimpleNamespace(pictures=[white] * 5)] * 2
    marks = module.count_marks(pictures, concepts, data, None)
    assert {name: {m: list(v) for m, v in row.items()} for name, row in marks.items()} == {
        "bibi": {model: [1.0, 0.0] for model in module.MODELS}
    }
    module.write_table({c.name: {m: np.ones(2) for m in module.MODELS} for c in concepts}, marks, tmp_path / "t.csv")
    assert [r["marks_kept"] for r in csv.DictReader((tmp_path / "t.csv").open())] == ["0.5000"] * 3 + [""] * 3


def test_the_figure_shows_every_picture(tmp_path):
    colours = iter([(250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10)])
    rows = {name: [[Image.new("RGB", (8, 8), next(colours))] for _ in "ab"] for name in ("references", "both, direct")}
    write_figure(rows, ("A", "B"), tmp_path / "f.png")
    drawn = np.asarray(Image.open(tmp_path / "f.png").convert("RGB"), int)
    for blocks in rows.values():
        for (picture,) in blocks:
            assert (drawn == picture.getpixel((0, 0))).all(-1).sum() == 128 * 128
