"""Studies in pieces: saved results come back, an interrupted session goes on, the sweep measures nothing twice."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from toy_studies import Eye

from mixofshow_lite import ConceptData
from mixofshow_lite.engine import resume
from mixofshow_lite.paper import Study, difference, everything, saved, study, sweep


@pytest.fixture
def toys(tmp_path):
    """Three tiny concepts of one class, flat colours."""
    found = {}
    for name, colour in (("one", "red"), ("two", "green"), ("three", "blue")):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 64), colour).save(folder / "0.png")
        row = {"file_name": "0.png", "caption": "a <TOK> on the beach", "class_word": "rabbit"}
        (folder / "metadata.jsonl").write_text(json.dumps(row))
        found[name] = ConceptData(folder)
    return found


def toy_study(base=None, seeds=(0,)):
    rows = [
        {"concept": c, "seed": s, "recipe": r, "alpha": 0.35, "value": 0.1 * (r == "a") + 0.01 * s}
        for c in ("x", "y") for s in seeds for r in ("a", "b")
    ]  # fmt: skip
    about = {"fingerprint": getattr(base, "fingerprint", "abc"), "seeds": list(seeds), "pictures": 4}
    made = Study("toy", rows, about=about)
    made.claim("a above b", difference(rows, "recipe", "a", "b"))
    made.claim("b above a", difference(rows, "recipe", "b", "a"))
    return made


# ---- saved results ----


def test_a_saved_study_comes_back(tmp_path):
    made = toy_study()
    made.save(tmp_path)
    back = Study.load(tmp_path, "toy")
    assert back.rows == made.rows and back.verdicts == made.verdicts and back.about == made.about
    assert back.verdict() == made.verdict() and back.differences == made.differences
    assert back.table("recipe") == made.table("recipe") and back.figure is None
    Image.new("RGB", (30, 20), "red").save(tmp_path / "toy.webp")
    assert Study.load(tmp_path, "toy").figure.size == (30, 20)


def test_a_missing_or_damaged_study_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="no result 'toy': measure it with"):
        Study.load(tmp_path, "toy")
    toy_study().save(tmp_path)
    (tmp_path / "toy.json").write_text('{"name": "toy", "claims": {"a": {"mean": 1}}}')
    with pytest.raises(ValueError, match="damaged"):
        Study.load(tmp_path, "toy")


def test_only_a_study_of_this_base_is_shown(tiny_base, tmp_path, capsys):
    assert saved(tmp_path, "toy", tiny_base) is None
    assert "has not been measured" in capsys.readouterr().out
    toy_study().save(tmp_path)
    assert saved(tmp_path, "toy", tiny_base) is None
    assert "other weights" in capsys.readouterr().out
    toy_study(tiny_base).save(tmp_path)
    assert saved(tmp_path, "toy", tiny_base).verdicts == {"a above b": True, "b above a": False}
    assert capsys.readouterr().out == ""
    newer = replace(tiny_base, base_id="tiny-v2", fingerprint="0123")
    assert saved(tmp_path, "toy", newer) is None  # another base altogether
    earlier = toy_study(tiny_base)
    earlier.about["base"] = "tiny-v1"
    earlier.save(tmp_path)
    capsys.readouterr()
    assert saved(tmp_path, "toy", newer).verdicts  # an earlier version of the same base, and that is said
    assert "toy below is of tiny-v1, an earlier tiny model" in capsys.readouterr().out


# ---- all studies ----


@pytest.mark.parametrize("name", everything.JOBS)
def test_each_job_names_the_tunings_its_study_asks_for(name, tiny_base, tmp_path, monkeypatch):
    """The plan against the study itself, with a tuning that only notes what it was asked."""
    asked = set()

    class Enough(Exception):
        pass

    def note(base, data, recipe, seed, folder, label=None, *_, **__):
        asked.add((data.name, recipe if isinstance(recipe, str) else recipe.name, label or recipe))
        return Named()

    class Named:
        phrase, lora, embeddings, name, words, rank = "a cat", {}, {}, "x", (), 4

    monkeypatch.setattr(everything, "tuned", note)
    for module in ("observations", "fusions", "fusion_sweep", "how_many", "head_to_head", "variants"):
        place = sys.modules[f"mixofshow_lite.paper.{module}"]
        monkeypatch.setattr(place, "tuned", note)
        monkeypatch.setattr(place, "image_scores", lambda p, r, s: np.random.default_rng(0).random(len(p)))
        monkeypatch.setattr(place, "load_scorer", lambda s: s)
        monkeypatch.setattr(place, "grid_figure", lambda *a: None, raising=False)  # how_many draws lines
    monkeypatch.setattr(
        "mixofshow_lite.paper.observations.draw_concept", lambda *a, **k: [Image.new("RGB", (8, 8))] * 2
    )
    monkeypatch.setattr(type(tiny_base), "sample", lambda self, *a, n=1, **k: [Image.new("RGB", (8, 8))] * n)
    monkeypatch.setattr(type(tiny_base), "with_concept", lambda self, *a: self)
    casting = sys.modules["mixofshow_lite.paper.binding"]  # the package's own name `binding` is the function
    monkeypatch.setattr(casting, "tuned", note)
    monkeypatch.setattr(casting, "load_scorer", lambda s: s)
    monkeypatch.setattr(casting, "gradient_fusion", lambda base, concepts, **_: base)
    monkeypatch.setattr(casting, "concept_casts", lambda concepts, data: [])
    monkeypatch.setattr(casting, "measure", lambda *a, **k: ([], {}))
    monkeypatch.setattr(casting, "gallery", lambda *a: None)
    sweeping = sys.modules["mixofshow_lite.paper.fusion_sweep"]  # here too the package's name is the function's
    monkeypatch.setattr(sweeping, "weight_fusion", lambda base, concepts: base)
    monkeypatch.setattr(sweeping, "gradient_fusion", lambda base, concepts, **_: base)
    monkeypatch.setattr(sweeping, "drift", lambda *a, **k: Moved())
    for way, (recipe, _) in everything.WAYS.items():
        monkeypatch.setitem(everything.WAYS, way, (recipe, lambda base, concepts: base))
    counting = sys.modules["mixofshow_lite.paper.how_many"]
    for way in counting.WAYS:
        monkeypatch.setitem(counting.WAYS, way, lambda base, concepts: base)
    varying = sys.modules["mixofshow_lite.paper.variants"]
    monkeypatch.setattr(varying, "shipped_marks", lambda scorer: lambda name, drawn: 0.0)
    for way in varying.WAYS:
        monkeypatch.setitem(varying.WAYS, way, lambda base, concepts: base)
    racing = sys.modules["mixofshow_lite.paper.head_to_head"]
    monkeypatch.setattr(racing.Judge, "alike", lambda *a: 0.0)
    monkeypatch.setattr(racing, "measure", lambda base, concepts, *a: ([], {}))
    monkeypatch.setattr(racing, "judged", lambda *a, **k: None)
    monkeypatch.setattr(racing, "capacity", lambda base, rank: 99)
    job = everything.JOBS[name]
    names = {concept for concept, _, _ in job.tunings}
    data = {n: Toy(n) for n in names}
    job.measure(tiny_base, tmp_path, data, n=2, scorer=Eye())
    plan = {(c, r if isinstance(r, str) else r.name, label) for c, r, label in job.tunings}
    assert asked == plan


def test_what_ships_is_small_has_a_strip_and_must_be_there(tiny_base, toys, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no one-ed_lora-0 tuned on this base"):
        everything.ship(tiny_base, tmp_path / "work", tmp_path / "out", names=["one"], recipes=["ed_lora"])
    study.tuned(tiny_base, toys["one"], "ed_lora", 0, tmp_path / "work", steps=1, progress=False)
    (place,) = everything.ship(tiny_base, tmp_path / "work", tmp_path / "out", names=["one"], recipes=["ed_lora"])
    shipped = resume.kept(place, tiny_base)
    assert shipped.preview.size == (3 * 64, 64) and place.name == "one-ed_lora-0"
    size = [
        (folder / "one-ed_lora-0" / "concept.safetensors").stat().st_size
        for folder in (tmp_path / "work", place.parent)
    ]
    assert size[1] < 0.7 * size[0]


class Moved:
    share = 0.1


class Toy:
    class_word = "rabbit"

    def __init__(self, name):
        self.name, self.pictures = name, [Image.new("RGB", (8, 8), "red")] * 2


def toy_jobs(names=("one", "two")):
    def toy_measure(base, folder, data, seeds, n, steps, scorer):
        rows = [
            {"concept": c, "seed": s, "recipe": r, "value": float(i)}
            for c in names for s in seeds for i, r in enumerate(("textual_inversion", "p_plus"))
        ]  # fmt: skip
        made = Study("toy", rows, about={"fingerprint": base.fingerprint, "seeds": list(seeds), "pictures": n})
        made.claim("p_plus above", difference(rows, "recipe", "p_plus", "textual_inversion"))
        return made

    return {"toy": everything.Job(toy_measure, everything.pairs(names, ("textual_inversion", "p_plus")))}


def test_all_stops_when_the_time_is_used_and_goes_on(tiny_base, toys, tmp_path, monkeypatch):
    """A clock that jumps a minute per look; every call must get further and redo nothing."""
    work, out, tunings = tmp_path / "work", tmp_path / "out", []
    tune = resume.tune
    monkeypatch.setattr(
        resume, "tune", lambda base, data, *a, **k: tunings.append(data.name) or tune(base, data, *a, **k)
    )
    minute = iter(range(10**6))
    monkeypatch.setattr(everything.Clock.__init__, "__defaults__", (lambda: 60.0 * next(minute),))
    options = {"minutes": 2, "steps": 1, "jobs": toy_jobs(), "shipped": tmp_path / "none"}
    calls = 0
    while everything.run(tiny_base, toys, work, out, **options):
        assert not (out / "toy.json").exists()
        calls += 1
        assert calls < 10
    assert calls >= 2 and tunings == ["one", "two", "one", "two"]
    assert Study.load(out, "toy").verdicts == {"p_plus above": True}
    stamp = (out / "toy.json").stat().st_mtime_ns
    assert everything.run(tiny_base, toys, work, out, **options) == []
    assert (out / "toy.json").stat().st_mtime_ns == stamp and len(tunings) == 4
    assert everything.run(tiny_base, toys, work, out, **options | {"minutes": None, "seeds": 2}) == []
    assert len(tunings) == 8 and Study.load(out, "toy").about["seeds"] == [0, 1]


def test_all_draws_each_study_s_own_number_of_pictures(tiny_base, tmp_path):
    asked = []

    def measure(base, work, data, n, **options):
        asked.append(n)
        return Study("toy", [], about={"fingerprint": base.fingerprint, "seeds": [0], "pictures": n})

    jobs = {"toy": everything.Job(measure, (), pictures=2)}
    for n in (None, None, 5, 3):  # the second finds what the first has saved, the last the third's
        everything.run(tiny_base, {}, tmp_path / "work", tmp_path, n=n, jobs=jobs)
    assert asked == [2, 5]


def test_the_clock_stops_a_tuning_only_at_its_checkpoints(tiny_base):
    seconds = iter(range(0, 10000, 30))
    clock = everything.Clock(1, now=lambda: next(seconds))  # the end is at 60 s
    every = everything.Checkpoint.every
    for step in range(every - 1):
        clock({"step": step})  # does not even look at the time
    clock({"step": every - 1})  # 30 s
    with pytest.raises(everything.TimeUp):
        clock({"step": 2 * every - 1})


def test_a_stopped_tuning_goes_on_from_its_checkpoint(tiny_base, toys, tmp_path, monkeypatch):
    monkeypatch.setattr(everything.Checkpoint, "every", 2)
    straight = study.tuned(tiny_base, toys["one"], "p_plus", 0, tmp_path / "a", steps=4, progress=False)
    seen = []

    def stop(record):
        seen.append(record["step"])
        if record["step"] == 1 and len(seen) == 2:
            raise everything.TimeUp

    with pytest.raises(everything.TimeUp):
        study.tuned(tiny_base, toys["one"], "p_plus", 0, tmp_path / "b", steps=4, progress=False, callback=stop)
    again = study.tuned(tiny_base, toys["one"], "p_plus", 0, tmp_path / "b", steps=4, progress=False, callback=stop)
    assert seen == [0, 1, 2, 3]
    torch.testing.assert_close(again.embeddings, straight.embeddings)
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["one-p_plus-0"]  # no checkpoint is left behind


def test_shipped_concepts_are_taken_only_if_they_fit(tiny_base, concept, tmp_path):
    from dataclasses import replace

    concept.save(tmp_path / "shipped" / "one-ed_lora-0")
    replace(concept, fingerprint="other").save(tmp_path / "shipped" / "two-ed_lora-0")
    taken = [
        everything.take(tiny_base, tmp_path / "shipped", tmp_path / "work" / place, None)
        for place in ("one-ed_lora-0", "two-ed_lora-0", "three-ed_lora-0")
    ]
    assert taken == [True, False, False] and [p.name for p in (tmp_path / "work").iterdir()] == ["one-ed_lora-0"]
    assert not everything.take(tiny_base, tmp_path / "shipped", tmp_path / "short" / "one-ed_lora-0", 10)
    assert resume.kept(tmp_path / "work" / "one-ed_lora-0", tiny_base).name == concept.name


# ---- the sweep ----


def test_trials_change_one_knob_at_a_time():
    from dataclasses import asdict

    found = sweep.trials("ed_lora")
    default = asdict(found.pop("default"))
    assert default == asdict(sweep.RECIPES["ed_lora"])
    for label, recipe in found.items():
        changed = {k: v for k, v in asdict(recipe).items() if v != default[k]}
        assert len(changed) == 1 and label == " ".join(f"{k}={v:g}" for k, v in changed.items())
    assert len(found) == sum(v != default[k] for k, values in sweep.GRID.items() for v in values)


def test_a_rate_of_what_is_not_tuned_is_not_tried():
    words_only = sweep.trials("p_plus")
    assert any("lr_words" in label for label in words_only)
    assert not any("lr_unet" in label or "lr_text" in label for label in words_only)
    drawn = sweep.trials("custom_diffusion")
    assert any("lr_unet" in label for label in drawn) and not any("lr_text" in label for label in drawn)
    for recipe, limited in {"p_plus": False, "custom_diffusion": False, "lora": True, "ed_lora": True}.items():
        assert any("freeze_norm" in label for label in sweep.trials(recipe)) == limited


def test_asked_places_are_in_no_caption_of_the_shipped_concepts():
    from mixofshow_lite.files.resources import concepts_dir

    for scene, light in sweep.ASKED:
        ending = sweep.prompt_at("<TOK>", scene, light).removeprefix("a <TOK> ")
        captions = [c for p in concepts_dir().glob("*/metadata.jsonl") for c in ConceptData(p.parent).captions]
        assert not [c for c in captions if c.endswith(ending)]


@pytest.mark.filterwarnings("ignore:The prompt is longer")
def test_the_sweep_goes_on_and_measures_nothing_twice(tiny_base, toys, tmp_path, monkeypatch):
    grid, calls = {"lr_words": (1e-3,), "steps": (1, 2)}, []
    monkeypatch.setattr(
        sweep, "trials", lambda recipe, grid, real=sweep.trials: {
            label: sweep.replace(r, batch=1, steps=min(r.steps, 2)) for label, r in real(recipe, grid).items()
        }
    )  # fmt: skip
    measure = sweep.measure
    monkeypatch.setattr(sweep, "measure", lambda *a: calls.append(a[1]) or measure(*a))
    names, options = ("one", "two"), {"recipe": "p_plus", "n": 1, "scorer": Eye(), "sampling_steps": 1, "grid": grid}
    minute = iter(range(10**6))
    monkeypatch.setattr(everything.Clock.__init__, "__defaults__", (lambda: 60.0 * next(minute),))
    sweep.sweep(tiny_base, toys, tmp_path / "work", tmp_path, names=names, minutes=4, **options)
    first = len(sweep.read_rows(tmp_path / "sweep.csv"))
    assert 1 <= first < 8
    whole = (tmp_path / "sweep.csv").read_text()
    (tmp_path / "sweep.csv").write_text(whole[:-20])  # killed while it wrote
    rows = sweep.sweep(tiny_base, toys, tmp_path / "work", tmp_path, names=names, **options)
    labels = {"base", "default", "lr_words=0.001", "steps=1", "steps=2"}
    assert {(r["trial"], r["concept"]) for r in rows} == {(t, n) for t in labels for n in names} and len(rows) == 10
    assert len(calls) == 10 + 1  # the cut row was measured again
    assert sweep.sweep(tiny_base, toys, tmp_path / "work", tmp_path, names=names, **options) == rows
    assert len(calls) == 11
    assert calls[:2] == ["rabbit", "rabbit"] and "<one1>" in calls  # the base draws the class, trials the concept
    for row in rows:
        assert 0 <= row["follows"] <= 1 and 0 < row["identity"] <= 1


def test_the_best_trial_must_still_follow():
    def row(trial, identity, follows, concept="a"):
        return {"trial": trial, "identity": identity, "follows": follows, "concept": concept}

    rows = [row("base", 0.5, 0.8), row("overfitted", 0.9, 0.3), row("good", 0.8, 0.75), row("weak", 0.6, 0.8)]
    assert sweep.best(rows) == "good"
    rows += [row(t, 0.1, 0.8, "b") for t in ("base", "good")]
    assert sweep.best(rows) == "good"  # the others lack a concept
    assert sweep.best([row("base", 0.5, 0.8), row("overfitted", 0.9, 0.3)]) is None
    assert sweep.summary(rows)["good"] == pytest.approx((0.45, 0.775))


# ---- the commands ----


def command(monkeypatch, *arguments):
    """`python -m mixofshow_lite.paper ...` with a base that is only a name."""
    from mixofshow_lite.paper import __main__ as shell

    monkeypatch.setattr(shell, "load_base", lambda name: name)
    monkeypatch.setattr("sys.argv", ["paper", *arguments])
    shell.main()


def test_all_from_the_shell(monkeypatch, capsys):
    asked = {}

    def run(base, data, work, out, **options):
        asked.update(options, base=base, work=work, data=data)
        return ["ablation"]

    monkeypatch.setattr(everything, "run", run)
    command(monkeypatch, "all", "--minutes", "7.5", "--seeds", "2", "--work", "runs/here")
    assert (asked["minutes"], asked["seeds"], asked["n"], asked["steps"]) == (7.5, 2, None, None)
    assert asked["base"] == "pocket" and str(asked["work"]) == "runs/here"
    assert {name for job in everything.JOBS.values() for name, _, _ in job.tunings} <= set(asked["data"])
    assert "still to do: ablation" in capsys.readouterr().out


def test_one_study_from_the_shell_draws_as_many_pictures_as_all_would(monkeypatch, capsys):
    asked = []

    def measure(base, work, data, **options):
        asked.append((options["n"], list(options["seeds"])))
        return Study("toy", [])

    monkeypatch.setattr(Study, "save", lambda self, out: out)
    for name in ("binding", "ablation"):
        monkeypatch.setitem(everything.JOBS, name, replace(everything.JOBS[name], measure=measure))
        command(monkeypatch, name)
    command(monkeypatch, "binding", "--pictures", "1", "--seeds", "2")
    assert asked == [(3, [0]), (4, [0]), (1, [0, 1])]


def test_the_sweep_from_the_shell(monkeypatch, capsys):
    row = {"trial": "default", "identity": 0.8, "follows": 0.5}
    monkeypatch.setattr(sweep, "sweep", lambda *a, recipe, **k: [row | {"trial": "base"}, row | {"recipe": recipe}])
    command(monkeypatch, "sweep", "--recipe", "lora")
    assert capsys.readouterr().out.splitlines()[-1] == "best so far: default"
