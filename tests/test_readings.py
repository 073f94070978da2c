"""Readings are taken once: a second run draws nothing, a change of anything that decides misses, damage is noticed."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_concept
from toy_studies import Album, Eye, Painter, no_tuning

from mixofshow_lite.paper import readings, tables
from mixofshow_lite.paper.tables import Method

CATEGORIES = {"characters": ("bibi", "kiki"), "scenes": ("lava",)}
MADE = []  # names of the fused models, in the order they were made


def averaged(base, concepts, keeps=0.4):
    MADE.append(f"averaged {keeps}")
    return base.fused(f"averaged {keeps}", concepts, keeps)


def by_gradient(base, concepts):
    MADE.append("gradient")
    return base.fused("gradient", concepts, 0.8)


ONE = {"LoRA": Method("lora", averaged), "Mix-of-Show": Method("ed_lora", by_gradient)}
TWO = {f"{label}, again": method for label, method in ONE.items()}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """`run(methods, ...)` -> (rows, what was drawn: model and prompt), readings in one folder."""
    tuned = no_tuning([])

    def by_recipe(base, data, recipe, *rest, **options):  # content that differs, as tuned concepts' does
        return replace(tuned(base, data, recipe, *rest, **options), scale=1.0 if recipe == "ed_lora" else 0.9)

    monkeypatch.setattr(tables, "tuned", by_recipe)
    monkeypatch.setattr(tables, "figure", lambda study: None)
    data = {name: Album(name, "desert" if name == "lava" else "rabbit") for name in ("bibi", "kiki", "lava")}

    def compare(methods=ONE, base=None, folder=tmp_path, data=data, scorer=None, **options):
        MADE.clear()
        base = base or Painter()
        base.asked.clear()
        options = {"categories": CATEGORIES, "n": 2} | options
        study = tables.compare(base, folder, data, methods, "toy", scorer=scorer or Eye(), **options)
        return study.rows, [(model, prompt) for model, prompt, *_ in base.asked]

    compare.data = data
    return compare


def test_a_second_run_draws_nothing_and_makes_no_model(run, tmp_path):
    first, drawn = run()
    assert len(drawn) == 9 * (1 + 2 * 2) and MADE == ["averaged 0.4", "gradient"]
    assert len(list((tmp_path / "readings").iterdir())) == len(drawn)
    assert run() == (first, []) and not MADE
    assert run(folder=None)[0] == first, "kept numbers are those that are measured, to the last digit"


def test_tables_share_what_they_have_in_common(run):
    run({"LoRA": ONE["LoRA"]})
    rows, drawn = run(TWO)
    assert len(drawn) == 9 * 2 and MADE == ["gradient"], "the base and LoRA were drawn for the other table"
    assert {row["method"] for row in rows} == {"bound", *TWO}


def test_an_interrupted_table_goes_on(run, monkeypatch):
    sample, left = Painter.sample, [17]

    def until(self, *args, **options):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return sample(self, *args, **options)

    monkeypatch.setattr(Painter, "sample", until)
    with pytest.raises(KeyboardInterrupt):
        run()
    left[0] = 1000
    assert len(run()[1]) == 45 - 17


def changed_picture(run):
    data = dict(run.data)
    data["kiki"] = Album("kiki")
    data["kiki"].pictures = [*data["kiki"].pictures[1:], Image.new("RGB", (32, 32), "white")]
    return {"data": data}, 3 * (1 + 2 * 2)  # of kiki alone


def changed_concept(run):
    tuned = tables.tuned
    tables.tuned = lambda *args, **options: stronger(tuned(*args, **options))  # the fixture puts it back
    return {}, 3 * 2 + 2 * 9  # kiki's own models, and all fused ones


def stronger(concept):
    return replace(concept, scale=1.1 * concept.scale) if concept.name == "kiki" else concept


def changed_way(run):
    return {"methods": ONE | {"LoRA": Method("lora", partial(averaged, keeps=0.6))}}, 9


def changed_reader(run):
    scorer = Eye()
    scorer.model = torch.nn.Linear(2, 2)
    return {"scorer": scorer}, 45


def changed_base(run):
    base = Painter()
    base.vae = torch.nn.Linear(2, 2)
    return {"base": base}, 45


@pytest.mark.parametrize("change", [changed_picture, changed_concept, changed_way, changed_reader, changed_base])
def test_whatever_decides_a_number_misses(run, monkeypatch, change):
    run()
    options, missing = change(run)
    assert len(run(**options)[1]) == missing
    assert len(run(n=3, **options)[1]) == 45


def test_prompts_and_code_decide_too(run, monkeypatch):
    run()
    assert len(run(prompts=("photo of a {}", "a {} there", "a {} in the snow"))[1]) == 2 * 5
    monkeypatch.setattr(readings, "code_digest", lambda: "another library")
    assert len(run()[1]) == 45


@pytest.mark.parametrize("damage", ["cut", "changed", "other", "empty"])
def test_a_damaged_reading_is_said_and_taken_anew(run, tmp_path, damage):
    first, _ = run()
    file, other = sorted((tmp_path / "readings").iterdir())[:2]
    text = file.read_text()
    found = json.loads(text)
    found["numbers"]["image"][0] += 0.25
    wrong = {"cut": text[: len(text) // 2], "changed": json.dumps(found), "other": other.read_text(), "empty": "[]"}
    file.write_text(wrong[damage])
    with pytest.warns(UserWarning, match=f"The reading .*{file.name} is damaged: its pictures are drawn and measured"):
        again, drawn = run()
    assert again == first and len(drawn) == 1 and file.read_text() == text


def test_a_way_without_a_name_is_measured_every_time(run):
    methods = {"LoRA": Method("lora", lambda base, concepts: averaged(base, concepts))}
    run(methods)
    assert [model for model, _ in run(methods)[1]] == ["averaged 0.4"] * 9 and len(MADE) == 1


def test_a_way_is_its_name_and_its_options():
    from mixofshow_lite import gradient_fusion, weight_fusion

    plain = readings.way_key(gradient_fusion)
    assert plain == readings.way_key(partial(gradient_fusion, progress=False)) != readings.way_key(weight_fusion)
    ways = [partial(gradient_fusion, **options) for options in ({"ridge": 0.1}, {"ridge": 0.2}, {"solver": "lbfgs"})]
    keys = [json.dumps(readings.way_key(way)) for way in (gradient_fusion, *ways)]
    assert len(set(keys)) == 4
    nested = partial(partial(gradient_fusion, ridge=0.2), ridge=0.1)
    assert readings.way_key(nested) == readings.way_key(ways[0]), "the outer option counts, as in the call"
    assert readings.way_key(partial(gradient_fusion, memory=object())) is None
    assert readings.way_key(partial(gradient_fusion, None)) is None


def test_weights_decide_and_not_the_fingerprint_alone(tiny_base):
    before = readings.base_digest(tiny_base)
    assert before == readings.base_digest(tiny_base.copy())
    fused = tiny_base.with_concept(make_concept(tiny_base, size=0.01))
    assert fused.fingerprint == tiny_base.fingerprint and readings.base_digest(fused) != before
    assert readings.base_digest(replace(tiny_base, guidance=2.0)) != before
    half = tiny_base.copy()
    half.vae.to(torch.bfloat16)
    assert readings.base_digest(half) != before


def test_comments_and_docstrings_decide_nothing():
    plain = "def f(x):\n    return x + 1\n"
    said = 'def f(x):\n    """Add one."""\n    # why\n    return (x\n        + 1)\n'
    assert readings.without_comments(plain) == readings.without_comments(said)
    assert readings.without_comments(plain) != readings.without_comments(plain.replace("1", "2"))
    root = readings.Path(readings.__file__).parents[1]
    for pattern in readings.CODE:
        assert list(root.glob(pattern)), f"{pattern} is no file of the package"


def test_numbers_come_back_to_the_last_digit(tmp_path):
    kept = readings.Readings(tmp_path, {})
    numbers = {"image": np.random.default_rng(0).random(7, dtype=np.float32)}
    first, was_kept = kept.take({"model": ["base"]}, lambda: numbers)
    again, is_kept = kept.take({"model": ["base"]}, dict)
    assert not was_kept and is_kept and again["image"].dtype == np.float32
    assert (first["image"] == numbers["image"]).all() and (again["image"] == numbers["image"]).all()
