"""The paper's measurements: paired differences, claims, saved results; the observations run on a tiny model."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mixofshow_lite.paper import Study, difference
from mixofshow_lite.paper.observations import apart, identified
from mixofshow_lite.paper.study import number, short


def rows(effect, noise=0.0, concepts=6, seeds=3, rng=None):
    """Measurements of two settings; concepts differ a lot, the settings by `effect`."""
    rng = rng or np.random.default_rng(0)
    found = []
    for c in range(concepts):
        for s in range(seeds):
            level = 0.1 * c
            for setting, value in (("a", level + effect), ("b", level)):
                found.append({"concept": f"c{c}", "seed": s, "setting": setting, "value": value + noise * rng.normal()})
    return found


def test_a_paired_difference_is_not_blurred_by_concepts():
    found = difference(rows(0.02, 0.002), "setting", "a", "b")
    assert found.mean == pytest.approx(0.02, abs=0.003)
    assert 0 < found.low < found.mean < found.high
    assert found.pairs == 18


def test_noise_alone_is_not_shown():
    shown = 0
    for seed in range(20):
        found = difference(rows(0.0, 0.1, rng=np.random.default_rng(seed)), "setting", "a", "b", rounds=300)
        shown += found.low > 0
    assert shown <= 4  # 5 % each


def test_concepts_count_more_than_their_seeds():
    """One concept that differs must not be made certain by many seeds."""
    mixed = rows(0.0, concepts=5, seeds=30) + [r | {"concept": "odd"} for r in rows(0.5, concepts=1, seeds=30)]
    found = difference(mixed, "setting", "a", "b")
    assert found.low <= 0 < found.mean


def test_settings_without_a_common_concept_are_refused():
    with pytest.raises(ValueError, match="same concepts"):
        difference(rows(0.1), "setting", "a", "z")


def test_a_claim_is_an_inequality_and_is_saved(tmp_path):
    study = Study("toy", rows(0.02), about={"seed": 0})
    study.claim("a above b", difference(study.rows, "setting", "a", "b"))
    study.claim("b above a", difference(study.rows, "setting", "b", "a"))
    assert study.verdict() == "shown      a above b\nnot shown  b above a"
    saved = json.loads(study.save(tmp_path).read_text())
    assert saved["claims"]["a above b"]["shown"] and not saved["claims"]["b above a"]["shown"]
    assert len((tmp_path / "toy.csv").read_text().splitlines()) == 1 + len(study.rows)
    mean, std, count = study.table("setting")["b",]
    assert (mean, count) == (pytest.approx(0.25), 18) and std > 0


def test_numbers_are_saved_to_four_decimals_without_zeros_and_come_back():
    values = (0.83429, 0.5, 10.0, -0.00021, float("inf"))
    assert [short(v) for v in values] == ["0.8343", "0.5", "10", "-0.0002", "inf"]
    assert [number(short(v)) for v in values] == [0.8343, 0.5, 10, -0.0002, float("inf")]


def test_identified_and_apart():
    references = {"x": torch.eye(3)[:1], "y": torch.eye(3)[1:2]}
    seen = torch.tensor([[0.9, 0.1, 0], [0.2, 0.8, 0.0], [0.7, 0.1, 0.1], [1.0, 0, 0]])
    assert identified(seen, references, "x") == 0.75 and identified(seen, references, "y") == 0.25
    same = torch.ones(2, 3)
    assert apart({"x": same, "y": 2 * same}, "x") == pytest.approx(0, abs=1e-6)
    assert apart({"x": references["x"], "y": references["y"]}, "x") == pytest.approx(1)


# ---- the observations themselves, from end to end on the tiny model ----


@pytest.fixture
def toys(tmp_path):
    """Three tiny concepts of one class, flat colours."""
    from mixofshow_lite import ConceptData

    found = {}
    for name, colour in (("one", "red"), ("two", "green"), ("three", "blue")):
        folder = tmp_path / name
        folder.mkdir()
        rows = []
        for i in range(2):
            Image.new("RGB", (64, 64), colour).save(folder / f"{i}.png")
            rows.append(
                json.dumps({"file_name": f"{i}.png", "caption": "a <TOK> on the beach", "class_word": "rabbit"})
            )
        (folder / "metadata.jsonl").write_text("\n".join(rows))
        found[name] = ConceptData(folder)
    return found


class Eye:
    """Stands in for CLIP: a picture's mean colour, unit length."""

    def image_features(self, pictures):
        pixels = np.stack([np.asarray(p.convert("RGB").resize((8, 8))).mean((0, 1)) for p in pictures])
        return torch.nn.functional.normalize(torch.tensor(pixels, dtype=torch.float32) + 1, dim=1)


def test_observation_3_from_end_to_end(tiny_base, toys, tmp_path, monkeypatch):
    from mixofshow_lite.paper import fusions

    monkeypatch.setattr(fusions, "load_scorer", lambda scorer: scorer)
    monkeypatch.setattr(
        fusions, "image_scores", lambda p, r, s: (s.image_features(p) @ s.image_features(r).T).mean(1).numpy()
    )
    study = fusions.observation_3(
        tiny_base, tmp_path / "tuned", toys, names=list(toys), prompts=("a {}",) * 2, n=1, steps=1, scorer=Eye()
    )
    assert len(study.rows) == 9 and len(study.verdicts) == 3
    for row in study.rows:
        assert row["kept"] == pytest.approx(row["fused"] - row["single"]) and 0 <= row["identified"] <= 1
    assert study.figure is not None and (tmp_path / "tuned" / "one-ed_lora-0" / "concept.json").is_file()
    stamp = (tmp_path / "tuned" / "one-ed_lora-0" / "concept.json").stat().st_mtime_ns
    study.save(tmp_path / "results")
    assert Image.open(tmp_path / "results" / "observation_3.webp").mode == "RGB"
    fusions.tuned(tiny_base, toys["one"], "ed_lora", 0, tmp_path / "tuned", steps=1)
    assert (tmp_path / "tuned" / "one-ed_lora-0" / "concept.json").stat().st_mtime_ns == stamp  # kept, not tuned again


def test_variants_are_tuned_once_each_and_compared_alone_and_fused(tiny_base, toys, tmp_path, monkeypatch):
    from mixofshow_lite import Concept, weight_fusion
    from mixofshow_lite.engine.recipes import RECIPES
    from mixofshow_lite.paper import variants

    varying, shipped = sys.modules["mixofshow_lite.paper.variants"], RECIPES["ed_lora"]
    scores = lambda p, r, s: (s.image_features(p) @ s.image_features(r).T).mean(1).numpy()  # noqa: E731
    monkeypatch.setattr(varying, "load_scorer", lambda scorer: scorer)
    monkeypatch.setattr(varying, "image_scores", scores)
    sample, fused = type(tiny_base).sample, []

    def fuse(base, concepts, progress=True):
        fused.append({concept.rank for concept in concepts})
        return weight_fusion(base, concepts)

    monkeypatch.setattr(varying, "gradient_fusion", fuse)
    monkeypatch.setattr(type(tiny_base), "sample", lambda *args, **more: sample(*args, **(more | {"steps": 2})))
    monkeypatch.setattr(varying, "shipped_marks", lambda scorer: lambda name, drawn: float(len(drawn)))
    asked = {"names": list(toys), "prompts": ("a {}",), "n": 1, "steps": 1, "scorer": Eye()}
    study = variants(tiny_base, tmp_path, toys, tried=("as shipped", "rank 8"), **asked)
    assert len(study.rows) == 2 * 3 * 3 and {row["marks"] for row in study.rows} == {1.0}
    assert fused == [{shipped.rank}, {8}]
    for variant, label in (("as shipped", "ed_lora"), ("rank 8", "ed_lora_rank_8")):
        concepts = {name: Concept.load(tmp_path / f"{name}-{label}-0") for name in toys}
        found = {(row["way"], row["concept"]): row["identity"] for row in study.rows if row["variant"] == variant}
        for name, concept in concepts.items():
            for way, model in (
                ("alone", tiny_base.with_concept(concept)),
                ("averaged", weight_fusion(tiny_base, list(concepts.values()))),
            ):
                drawn = [model.sample(p.format(concept.phrase), seed=100, progress=False)[0] for p in asked["prompts"]]
                expected = scores(drawn, toys[name].pictures, Eye()).mean()
                assert found[way, name] == pytest.approx(expected, abs=1e-5), (way, name)
    by = {(row["setting"], row["concept"]): row["identity"] for row in study.rows}
    gained = np.mean([by["as shipped, alone", name] - by["rank 8, alone", name] for name in toys])
    claim = study.differences["identity, alone: as shipped has more than rank 8"]
    assert claim.mean == pytest.approx(gained, abs=1e-6)
    assert len(study.verdicts) == 3 * (3 + 2)
    free, label = varying.changed("free")
    assert (free.null_space, free.lr_spatial, label) == ((0, 0, 0), None, "ed_lora_free")
    assert varying.changed("as shipped") == (shipped, "ed_lora")


def test_the_fusion_sweep_measures_every_way_beside_averaging(tiny_base, toys, tmp_path, monkeypatch):
    from mixofshow_lite import paper

    sweeping = sys.modules["mixofshow_lite.paper.fusion_sweep"]
    monkeypatch.setattr(sweeping, "load_scorer", lambda scorer: scorer)
    monkeypatch.setattr(
        sweeping, "image_scores", lambda p, r, s: (s.image_features(p) @ s.image_features(r).T).mean(1).numpy()
    )
    seen = []
    fuse = sweeping.gradient_fusion

    def noted(base, concepts, **settings):
        seen.append(settings)
        return fuse(base, concepts, **{**settings, "prompts": ("a {}",), "steps": 1})

    monkeypatch.setattr(sweeping, "gradient_fusion", noted)
    study = paper.fusion_sweep(
        tiny_base, tmp_path, toys, groups={"all": list(toys)}, ways={"r 1": {"ridge": 1.0}, "span": {"span": True}},
        prompts=("a {}", "the {}"), n=1, steps=1, scorer=Eye(),
    )  # fmt: skip
    assert [s.get("ridge") for s in seen] == [1.0, None] and seen[1]["span"]
    assert {row["way"] for row in study.rows} == {"alone", "average", "r 1", "span"} and len(study.rows) == 12
    assert all(row["drift"] > 0 for row in study.rows if row["way"] != "alone")
    own = [row["identity"] for row in study.rows if row["way"] == "r 1"]
    assert study.about["means"]["r 1"]["identity"] == pytest.approx(np.mean(own), abs=1e-4)
    concepts = [sweeping.tuned(tiny_base, d, "ed_lora", 0, tmp_path, steps=1) for d in toys.values()]
    one = next(c for c in concepts if c.name == "one")
    for way, model in (
        ("alone", tiny_base.with_concept(one)),
        ("average", sweeping.weight_fusion(tiny_base, concepts)),
    ):
        drawn = model.sample(f"a {one.phrase}", n=1, seed=sweeping.SEED, progress=False)[0]
        assert np.array_equal(np.asarray(drawn), np.asarray(study.pictures["one", way][0])), way
    assert set(study.verdicts) == {f"{way}: more of each identity than by averaging" for way in ("r 1", "span")}
    by_group = study.about["means by group"]
    assert list(by_group) == ["all"] and by_group["all"] == study.about["means"]
    shown = {text.get_text(): text.xy for text in study.figure.axes[0].texts}
    assert shown.keys() == {"average", "r 1", "span"}
    assert shown["span"] == (by_group["all"]["span"]["drift"], by_group["all"]["span"]["identity"])


def test_the_options_of_a_fusion_are_compared_with_the_default(tiny_base, toys, tmp_path, monkeypatch):
    from mixofshow_lite.paper import everything

    sweeping = sys.modules["mixofshow_lite.paper.fusion_sweep"]
    monkeypatch.setattr(sweeping, "load_scorer", lambda scorer: scorer)
    monkeypatch.setattr(sweeping, "image_scores", lambda p, r, s: np.ones(len(p)))
    asked = []

    def noted(base, concepts, **settings):
        asked.append({k: v for k, v in settings.items() if k != "progress"})
        return base.with_words(*concepts)

    monkeypatch.setattr(sweeping, "gradient_fusion", noted)
    monkeypatch.setattr(sweeping, "drift", lambda *args, **options: SimpleNamespace(share=0.1))
    monkeypatch.setattr(type(tiny_base), "sample", lambda self, prompt, n, **options: [Image.new("RGB", (8, 8))] * n)
    study = everything.JOBS["fusion_options"].measure(
        tiny_base, tmp_path, toys, groups={"all": list(toys)}, prompts=("a {}", "the {}"), n=1, steps=1, scorer=Eye()
    )
    assert study.name == "fusion_options" and asked == list(sweeping.OPTIONS.values()) and asked[0] == {}
    assert all(len(change) == 1 for change in asked[1:])  # one at a time
    others = [way for way in sweeping.OPTIONS if way != "default"]
    assert list(study.verdicts) == [f"{way}: more of each identity than by default" for way in others]
    assert not any(study.verdicts.values())  # all the same here


def test_observation_2_measures_every_alpha(tiny_base, toys, tmp_path, monkeypatch):
    from mixofshow_lite.paper import observations

    monkeypatch.setattr(observations, "load_scorer", lambda scorer: scorer)
    study = observations.observation_2(
        tiny_base, tmp_path / "tuned", toys, groups={"toys": list(toys)}, alphas=(0.0, 1.0), n=1, steps=1, scorer=Eye()
    )
    assert len(study.rows) == 3 * 2 * 2 and len(study.verdicts) == 3
    assert {row["setting"] for row in study.rows} == {"lora 0", "lora 1", "ed_lora 0", "ed_lora 1"}


def test_observation_2_compares_a_concept_with_its_own_group_only(tiny_base, toys, tmp_path, monkeypatch):
    from mixofshow_lite.paper import observations

    monkeypatch.setattr(observations, "load_scorer", lambda scorer: scorer)
    one, two, three = toys
    asked = {"alphas": (0.0,), "recipes": ("ed_lora",), "n": 2, "steps": 1, "scorer": Eye()}
    options = asked | {"groups": {"a": (one, two), "b": (three, one)}}
    study = observations.observation_2(tiny_base, tmp_path / "tuned", toys, **options)
    rows = {(row["group"], row["concept"]): row for row in study.rows}
    assert list(rows) == [("a", one), ("a", two), ("b", three), ("b", one)]
    assert rows["a", one]["apart"] == pytest.approx(rows["a", two]["apart"])
    assert rows["b", one]["apart"] == pytest.approx(rows["b", three]["apart"]) != rows["a", one]["apart"]
    drawn = Eye().image_features(study.pictures[two, "ed_lora 0"])
    own = Eye().image_features(toys[two].pictures)
    assert rows["a", two]["alignment"] == pytest.approx(float((drawn @ own.T).mean()))


def test_word_length_tunes_and_compares_at_each_limit(tiny_base, toys, tmp_path, monkeypatch):
    import math
    from dataclasses import replace

    from mixofshow_lite.engine.recipes import RECIPES
    from mixofshow_lite.paper import everything, observations

    asked, real = {}, observations.tuned

    def note(base, data, recipe, seed, folder, label, steps):
        asked[data.name, label] = recipe
        return real(base, data, recipe, seed, folder, label=label, steps=steps)

    monkeypatch.setattr(observations, "load_scorer", lambda scorer: scorer)
    monkeypatch.setattr(observations, "tuned", note)
    quick = {"steps": 2, "seed": 1, "progress": False}
    monkeypatch.setattr(
        observations, "draw_concept", lambda m, concept, n: m.sample(f"a {concept.phrase}", n=n, **quick)
    )
    groups, limits = {"a": tuple(toys)[:2], "b": tuple(toys)[2:]}, observations.FREEZE_NORMS
    study = observations.word_length(
        tiny_base, tmp_path / "tuned", toys, groups=groups, freeze_norms=limits, n=1, steps=1, scorer=Eye()
    )
    assert len(study.rows) == 2 * 3 * 3 and len(study.verdicts) == 3
    assert {label for _, label in asked} == {
        f"{recipe}{limit}" for recipe in ("lora", "ed_lora") for limit in ("", "_freeze_norm=3.25", "_freeze_norm=inf")
    }
    for (_, label), recipe in asked.items():
        limit = float(label.partition("=")[2]) if "=" in label else RECIPES[label].freeze_norm
        assert recipe == replace(RECIPES[label.partition("_freeze")[0]], freeze_norm=limit)
    plan = {(name, label): recipe for name, recipe, label in everything.JOBS["word_length"].tunings}
    assert {recipe.freeze_norm for recipe in plan.values()} == {3.25, observations.FREEZE_NORM, math.inf}
    assert {label: recipe for (_, label), recipe in plan.items()} == {key[1]: value for key, value in asked.items()}
    one, two, three = toys
    row = next(r for r in study.rows if (r["concept"], r["setting"]) == (two, "lora inf"))
    own = Eye().image_features(toys[two].pictures)
    for alpha in (0, 1):
        drawn = Eye().image_features(study.pictures[two, f"lora inf, alpha {alpha}"])
        assert row[f"alignment_{alpha}"] == pytest.approx(float((drawn @ own.T).mean()))
    assert next(r for r in study.rows if r["concept"] == three)["identified_0"] == 1  # alone in its group
    found = list(study.differences.values())[0]
    values = {s: [r["alignment_0"] for r in study.rows if r["setting"] == s] for s in ("ed_lora 3.25", "lora 3.25")}
    assert found.mean == pytest.approx(np.mean(values["ed_lora 3.25"]) - np.mean(values["lora 3.25"]))
    alone, both = study.figure.axes
    for ax, alpha in ((alone, 0), (both, 1)):
        drawn = {line.get_label(): line.lines[0].get_ydata().tolist() for line in ax.containers}
        table = study.table("recipe", "freeze_norm", value=f"alignment_{alpha}")
        assert drawn == {r: [table[r, limit][0] for limit in limits] for r in ("lora", "ed_lora")}
    row = tiny_base.text_encoder.get_input_embeddings().weight.std() * tiny_base.text_encoder.config.hidden_size**0.5
    ticks = [label.get_text() for label in alone.get_xticklabels()]
    assert float(ticks[0]) == pytest.approx(3.25 * float(row), rel=0.01) and ticks[2] == "no limit"
    assert all(f", {limit}: " in claim for limit, claim in zip(ticks, study.verdicts, strict=True))


def test_how_many_compares_every_member_before_and_after_at_every_size(tiny_base, toys, tmp_path, monkeypatch):
    from dataclasses import replace

    from mixofshow_lite import paper

    counting, study_module = (sys.modules[f"mixofshow_lite.paper.{name}"] for name in ("how_many", "study"))
    scores = lambda p, r, s: (s.image_features(p) @ s.image_features(r).T).mean(1).numpy()  # noqa: E731
    monkeypatch.setattr(counting, "load_scorer", lambda scorer: scorer)
    monkeypatch.setattr(counting, "image_scores", scores)
    ways = {
        "averaging": counting.weight_fusion,
        "first only": lambda base, all: counting.weight_fusion(base, all, [1.0] + [0.0] * (len(all) - 1)),
    }
    asked = {"names": list(toys), "prompts": ("a {}", "the {}"), "ways": ways, "scorer": Eye(), "steps": 1}

    def strongly(*args, **options):  # one step changes too little to be seen
        concept = study_module.tuned(*args, **options)
        lora = {n: {k: (down, 500 * up) for k, (down, up) in found.items()} for n, found in concept.lora.items()}
        return replace(concept, lora=lora)

    monkeypatch.setattr(counting, "tuned", strongly)
    sample = type(tiny_base).sample
    monkeypatch.setattr(type(tiny_base), "sample", lambda *args, **options: sample(*args, steps=2, **options))
    with pytest.raises(ValueError, match="sizes .4,. with 3 concepts: give sizes from 1 to 3"):
        paper.how_many(tiny_base, tmp_path, toys, sizes=(4,), **asked)
    study = paper.how_many(tiny_base, tmp_path, toys, sizes=(3, 2), n=3, **asked)
    assert [(r["size"], r["way"], r["concept"]) for r in study.rows if r["size"] == 2] == [
        (2, way, name) for way in ways for name in ("one", "two")
    ]
    assert len(study.rows) == 2 * 2 + 2 * 3 and study.about["sizes"] == [2, 3]
    concepts = [counting.tuned(tiny_base, d, "ed_lora", 0, tmp_path, steps=1) for d in toys.values()]
    drawn = [  # three pictures dealt out to two prompts
        picture
        for prompt, k in (("a {}", 2), ("the {}", 1))
        for picture in counting.weight_fusion(tiny_base, concepts).sample(
            prompt.format(concepts[1].phrase), n=k, seed=counting.SEED, progress=False
        )
    ]
    row = next(r for r in study.rows if (r["size"], r["way"], r["concept"]) == (3, "averaging", "two"))
    assert row["fused"] == pytest.approx(scores(drawn, toys["two"].pictures, Eye()).mean())
    assert row["kept"] == pytest.approx(row["fused"] - row["single"]) and row["kept"] != 0
    first = [r for r in study.rows if r["way"] == "first only" and r["concept"] == "one"]
    assert all(r["kept"] == pytest.approx(0, abs=1e-3) for r in first)  # a fusion that changes nothing loses nothing
    assert set(study.verdicts) == {
        "2 concepts: first only keeps more than averaging",
        "3 concepts: first only keeps more than averaging",
        "averaging: 3 concepts in one model lose more than 2",
        "first only: 3 concepts in one model lose more than 2",
    }
    assert study.save(tmp_path / "out").with_suffix(".webp").is_file()


@pytest.mark.parametrize(("lead", "farther"), [(0.4, True), (0.05, False)])
def test_observation_1_compares_the_two_gaps_at_their_worst(lead, farther):
    from mixofshow_lite.paper.observations import compare_domains

    rows = [
        {"domain": d, "concept": f"{d}{c}", "recipe": r, "seed": 0, "value": start + (gap + 0.05 * c) * (r == "lora")}
        for d, gap in (("in", 0.0), ("out", lead))
        for c in (-1, 0, 1)
        for r, start in (("textual_inversion", 0.2), ("p_plus", 0.3), ("lora", 0.25))
    ]
    study = Study("observation_1", rows)
    compare_domains(study)
    inside, outside, more = study.differences.values()
    assert inside.mean == pytest.approx(0) and outside.mean == pytest.approx(lead)
    assert more.mean == pytest.approx(outside.mean - inside.mean)
    assert more.low == pytest.approx(outside.low - inside.high) and more.high > more.mean
    assert list(study.verdicts.values()) == [False, True, farther]
