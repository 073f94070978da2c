"""One command for each table and figure, at toy size: the paper's arrangement, its numbers beside ours."""

import copy
import re

import pytest
from toy_studies import Album, Eye, Painter, no_tuning

from mixofshow_lite.cli import main, papers
from mixofshow_lite.files.grid import letters
from mixofshow_lite.paper import Study, figures, reproduce, tables, vote
from mixofshow_lite.paper.tables import Method

CATEGORIES = {"objects": ("beetle",), "characters": ("bibi", "kiki"), "scenes": ("lava",)}
CLASSES = {"beetle": "car", "lava": "desert"}


def painted(keeps):
    return lambda base, concepts: base.fused(f"fused {keeps}", concepts, keeps)


@pytest.fixture
def toys(monkeypatch):
    """(base, data, what was tuned), with painters for models: averaging keeps little, gradient fusion much."""
    asked = []
    average, gradient, constraint = painted(0.4), painted(0.8), painted(0.5)
    for module in (tables, figures):
        monkeypatch.setattr(module, "tuned", no_tuning(asked))
    monkeypatch.setattr(figures, "weight_fusion", average)
    monkeypatch.setattr(figures, "by_gradient", gradient)
    one = {"P+": ("p_plus", average), "Custom Diffusion": ("custom_diffusion", constraint),
           "LoRA": ("lora", average), "Mix-of-Show": ("ed_lora", gradient)}  # fmt: skip
    for label, (recipe, fuse) in one.items():
        monkeypatch.setitem(tables.TABLE_1, label, Method(recipe, fuse))
    two = zip(tables.TABLE_2A, (("lora", average), ("ed_lora", average), ("ed_lora", gradient)), strict=True)
    for label, (recipe, fuse) in two:
        monkeypatch.setitem(tables.TABLE_2A, label, Method(recipe, fuse))
    names = {
        name for own in (*tables.CATEGORIES.values(), *figures.DOMAINS.values(), figures.LOOK_ALIKES) for name in own
    }
    data = {name: Album(name, CLASSES.get(name, "rabbit")) for name in names}
    return Painter(), data, asked


def test_the_paper_s_numbers_are_the_paper_s():
    """Means are means of the categories, up to rounding; changes are what the paper prints."""
    for method, numbers in tables.PUBLISHED.items():
        for number, cells in numbers.items():
            pairs = cells if method != tables.BOUND else [(cell, cell) for cell in cells]
            for side in (0, 1):
                mean = sum(pair[side] for pair in pairs[:3]) / 3
                assert mean == pytest.approx(pairs[3][side], abs=1.1e-3), (method, number)
    change = {
        m: round(tables.PUBLISHED[m]["image"][3][1] - tables.PUBLISHED[m]["image"][3][0], 3) for m in tables.TABLE_1
    }
    assert change == {"P+": 0, "Custom Diffusion": -0.036, "LoRA": -0.115, "Mix-of-Show": -0.025}


def test_table_1_has_the_paper_s_rows_and_columns(toys, tmp_path):
    base, data, asked = toys
    study = reproduce.reproduce("table1", base, None, data, scorer=Eye(), categories=CATEGORIES, n=2)
    assert {recipe for _, recipe, _ in asked} == {"p_plus", "custom_diffusion", "lora", "ed_lora"}
    assert len(study.rows) == 4 + 4 * 4  # a bound for each concept, and every method
    found = reproduce.text(study)
    lines = found.splitlines()
    assert re.search(r"objects +characters +scenes +mean", lines[0])
    labels = [line[:26].strip() for line in lines if not line.startswith(("text-", "image-"))]
    each = ["bound", *tables.TABLE_1]
    pairs = [f"{'upper' if n == 'text' else 'lower'} {m}" if m == "bound" else m for n in tables.NUMBERS for m in each]
    assert labels[: 2 * len(pairs)] == [label for pair in pairs for label in (pair, "the paper")]
    assert "0.843 → 0.818 (-0.025)" in found and "0.816 → 0.701 (-0.115)" in found and "0.596" in found
    assert study.verdicts["Mix-of-Show loses less of an identity than LoRA"]
    means = [tables.cell(study, "LoRA", c, "image") for c in CATEGORIES]
    assert tables.cell(study, "LoRA", tables.MEAN, "image")[0] == pytest.approx(sum(m[0] for m in means) / 3)
    assert {"command", "versions", "minutes"} <= set(study.about)
    assert Study.load(study.save(tmp_path).parent, "table1").verdicts == study.verdicts


def test_bounds_are_the_class_word_on_the_base(toys):
    base, data, _ = toys
    reproduce.reproduce("table1", base, None, data, scorer=Eye(), categories=CATEGORIES, n=1)
    asked = {prompt for model, prompt, _, _ in base.asked if model == "base"}
    assert "photo of a rabbit" in asked and "a cat in desert" in asked and not any("<" in prompt for prompt in asked)


def test_table_2a_has_image_alignment_alone(toys):
    base, data, asked = toys
    study = reproduce.reproduce("table2a", base, None, data, scorer=Eye(), categories=CATEGORIES, n=1)
    found = reproduce.text(study)
    assert "text-alignment" not in found and list(tables.TABLE_2A)[1] in found and "0.843 → 0.749 (-0.094)" in found
    assert study.verdicts["gradient fusion loses less than averaging"]
    assert {recipe for _, recipe, _ in asked} == {"lora", "ed_lora"}


COLUMNS = {  # figure -> titles that stand over its columns
    "figure1": ["shared: words and LoRA", "one model of all", "joint sampling"],
    "figure2": ["together: Mix-of-Show"],
    "figure3": ["(a) TI Φ0(P*)", "(b) P+ Φ0(P*)", "(c) LoRA Φ0(P*)", "(c) LoRA (Φ0+ΔΦ)(P*)", "(d) ED-LoRA Φ0(P*)",
                "(d) ED-LoRA (Φ0+ΔΦ)(P*)", "(e) LoRA, averaged Φ(P*)", "(f) ED-LoRA, averaged Φ(P*)"],
    "figure4": ["V_rand+ V_class+ alone Φ0(P*)", "(Φ0+ΔΦ)(P*)", "one model of all, Φ(P*)", "region by region"],
    "figure5": ["(a) direct sampling", "(b) region by region"],
    "figure6": [*tables.TABLE_1, *tables.TABLE_1],
    "figure7": ["LoRA Φ0(P*)", "LoRA (Φ0+ΔΦ)(P*)", "ED-LoRA Φ0(P*)", "ED-LoRA (Φ0+ΔΦ)(P*)", "weight fusion Φ(P*)",
                "gradient fusion Φ(P*)", "direct sampling", "regionally controllable sampling"],
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_a_figure_has_the_paper_s_columns(toys, tmp_path, name):
    base, data, _ = toys
    study = reproduce.reproduce(name, base, None, data, quick=True, scorer=Eye())
    found = list(dict.fromkeys(row["column"].rpartition(": ")[2] for row in study.rows))
    columns = list(dict.fromkeys(title.rpartition(": ")[2] for title in COLUMNS[name]))
    assert found == columns
    assert study.figure.width >= 2 * 128 and study.quality == 90
    (tmp_path / "x").mkdir()
    assert (study.save(tmp_path / "x").parent / f"{name}.webp").is_file()


def test_figure_1_draws_by_what_is_shared_and_not_by_private_pictures(toys):
    base, data, asked = toys
    study = reproduce.reproduce("figure1", base, None, data, scorer=Eye(), names=("bibi", "kiki"))
    assert {(name, recipe) for name, recipe, _ in asked} == {("bibi", "ed_lora"), ("kiki", "ed_lora")}
    assert [row["concept"] for row in study.rows[:4]] == ["bibi", "kiki"] * 2
    assert study.rows[4]["column"] == "several in one picture: joint sampling" and len(study.rows) == 5
    assert study.figure.width > 4 * 128, "three private pictures and one drawn one stand side by side"


def test_all_columns_of_several_follow_the_same_pose(toys, monkeypatch):
    base, data, _ = toys
    posed, sample = [], type(base).sample

    def noting(self, prompt, spatial=None, **options):
        if options.get("regions") or prompt.count("<") > 2:
            posed.append((spatial, bool(options.get("regions"))))
        return sample(self, prompt, **options)

    monkeypatch.setattr(type(base), "sample", noting)
    monkeypatch.setattr(figures, "shipped_keypose", lambda base: lambda regions, classes: (len(regions), classes))
    study = reproduce.reproduce("figure5", base, None, data, scorer=Eye(), names=("bibi", "kiki"))
    assert posed == [((2, ["rabbit"] * 2), False), ((2, ["rabbit"] * 2), True)]
    assert {row["concept"] for row in study.rows} == {"bibi kiki"}


def test_the_median_picture_is_shown_and_framed_by_what_the_reader_says(toys):
    base, data, _ = toys
    studio = figures.Studio(base, None, data, Eye(), n=3)
    model = base.fused("x", [no_tuning([])(base, data["bibi"], "ed_lora", 0, None)], 0.9)
    drawn = model.sample("a <bibi1> <bibi2>", n=3)  # the first keeps most, the last least
    for order in ([0, 1, 2], [2, 0, 1]):
        picture, caption, colour = studio.median("bibi", "x", [drawn[i] for i in order], ("bibi", "kiki"))
        assert picture is drawn[1] and colour == figures.RIGHT and re.fullmatch(r"\d\.\d\d", caption)
    assert studio.rows[0]["seed"] == figures.SEED + 1 and studio.rows[1]["seed"] == figures.SEED + 2
    assert studio.median("kiki", "x", drawn, ("bibi", "kiki"))[2] == figures.WRONG


def test_a_slice_says_whether_the_saved_result_agrees(toys):
    base, data, _ = toys
    part = reproduce.reproduce("table2a", base, None, data, quick=True, scorer=Eye())
    saved = copy.deepcopy(part)
    assert reproduce.agreement(saved, part) == "2 of 2 claims point where the saved result's do"
    words = "gradient fusion loses less than averaging"
    saved.differences[words].mean *= -1
    assert reproduce.agreement(saved, part).startswith("1 of 2 ") and words in reproduce.agreement(saved, part)
    figure = reproduce.reproduce("figure6", base, None, data, quick=True, scorer=Eye())
    assert "drawn again: their alignment differs by 0.000" in reproduce.agreement(figure, figure)
    assert "nothing in common" in reproduce.agreement(saved, figure)


def test_names_that_are_none_are_refused(toys):
    base, data, _ = toys
    with pytest.raises(ValueError, match="choose one of table1"):
        reproduce.reproduce("table2c", base, None, data)


def test_the_command_line_knows_the_same_names():
    assert set(papers.NAMES) == set(reproduce.NAMES)


def test_a_table_from_the_shell(toys, tmp_path, monkeypatch, capsys):
    base, data, _ = toys
    monkeypatch.setattr(papers.options, "load", lambda args: base)
    monkeypatch.setattr(papers, "read_concepts", lambda base: data)
    monkeypatch.setattr("mixofshow_lite.engine.evaluation.load_scorer", lambda name: Eye())
    monkeypatch.setattr(reproduce, "load_scorer", lambda scorer: scorer)
    assert main(["paper", "table2a", "--quick", "--work", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "ED-LoRA + gradient fusion" in said and "saved" in said
    assert (tmp_path / "out" / "table2a.json").is_file()
    assert main(["paper", "table2c", "--votes", str(tmp_path / "none")]) == 1
    assert "answer its questions" in capsys.readouterr().err


def test_table_2c_from_the_shell_is_saved(toys, tmp_path, monkeypatch, capsys):
    base, _, _ = toys
    monkeypatch.setattr(papers.options, "load", lambda args: base)
    ballot = vote.Ballot(("averaging", "gradient fusion"), (vote.Pair("one", "a rabbit", (None, None)),))
    for ask in vote.asks(ballot, "ada"):
        vote.add_vote(tmp_path / "votes", ballot, "ada", ask, ask.sides.index(1))
    assert main(["paper", "table2c", "--votes", str(tmp_path / "votes"), "--out", str(tmp_path / "out")]) == 0
    assert "gradient fusion over averaging, 1 raters" in capsys.readouterr().out
    saved = Study.load(tmp_path / "out", "table2c")
    assert saved.about["fingerprint"] == "toy" and [row["value"] for row in saved.rows] == [1, 1]


def test_table_2c_from_votes(tmp_path):
    ballot = vote.Ballot(("averaging", "gradient fusion"), (vote.Pair("one", "a rabbit", (None, None)),))
    for ask in vote.asks(ballot, "ada"):
        vote.add_vote(tmp_path / "votes", ballot, "ada", ask, ask.sides.index(1))
    found = str(reproduce.voted(tmp_path / "votes"))
    assert "gradient fusion over averaging, 1 raters" in found and "(the paper: 52.5%)" in found


def test_greek_letters_are_drawn():
    plain, greek = letters("P+ é"), letters("Φ0(P*) →")
    assert plain.getname() != greek.getname()
    assert bytes(greek.getmask("Φ")) != bytes(greek.getmask("Δ"))
