"""The table of the paper's claims and the advice: made from saved results, and from nothing else."""

import itertools
import json
import math
import re
from pathlib import Path

import pytest
from test_head_to_head import TOYS, race  # noqa: F401, a fixture
from test_reproduce import CATEGORIES, toys  # noqa: F401, a fixture
from toy_studies import Eye, Painter

import mixofshow_lite as mos
from mixofshow_lite.paper import Study, advice, claims, everything, reproduce, vote
from mixofshow_lite.paper import __main__ as command
from mixofshow_lite.paper.ballots import vote_study
from mixofshow_lite.paper.observations import compare_domains
from mixofshow_lite.paper.study import Difference, difference

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "results"
SAVED = sorted(f.stem for f in RESULTS.glob("*.json") if '"claims"' in f.read_text(encoding="utf-8"))
checkout = pytest.mark.skipif(not RESULTS.is_dir(), reason="not a checkout")


@checkout
def test_the_readme_has_the_table_of_what_is_saved():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shipped = mos.load_base("pocket", device="cpu").fingerprint
    assert claims.updated(text, RESULTS, shipped) == text, (
        "run: python -m mixofshow_lite.paper claims --readme README.md"
    )


@checkout
@pytest.mark.parametrize("name", SAVED)
def test_a_saved_verdict_is_what_its_numbers_say(name):
    """`shown` if and only if the whole interval lies above 0, and the mean lies in its interval."""
    saved = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    for words, found in saved["claims"].items():
        assert found["shown"] is (found["low"] > 0), words
        assert found["low"] <= found["mean"] <= found["high"] and found["pairs"] > 0, words


AGAIN = {  # study -> claim -> how its rows give it, (key, more, less, number)
    "observation_2": {
        "with LoRA weight 0, look-alikes are identified more often by ED-LoRA's words than by LoRA's":
            ("setting", "ed_lora 0", "lora 0", "value"),
        "with LoRA weight 0, look-alikes are more like themselves by ED-LoRA's words than by LoRA's":
            ("setting", "ed_lora 0", "lora 0", "alignment"),
    },
    "observation_3": {
        "gradient fusion keeps more of an identity than averaging":
            ("way", "ED-LoRA, gradient", "ED-LoRA, weight", "fused"),
        "averaged ED-LoRAs lose less than averaged LoRAs": ("way", "ED-LoRA, weight", "LoRA, weight", "kept"),
    },
    "table1": {
        "Mix-of-Show loses less of an identity than LoRA": ("method", "Mix-of-Show", "LoRA", "image_change"),
        **{f"fused, Mix-of-Show is more like the concept than {other}": ("method", "Mix-of-Show", other, "image_fused")
           for other in ("P+", "Custom Diffusion", "LoRA")},
        **{f"alone, ED-LoRA is more like the concept than {other}": ("method", "Mix-of-Show", other, "image_single")
           for other in ("P+", "Custom Diffusion", "LoRA")},
    },
    "table2a": {
        "averaged ED-LoRAs lose less than averaged LoRAs":
            ("method", "ED-LoRA + weight fusion", "LoRA + weight fusion", "image_change"),
        "gradient fusion loses less than averaging":
            ("method", "ED-LoRA + gradient fusion", "ED-LoRA + weight fusion", "image_change"),
    },
    "ablation": {
        f"{more}: the words alone (LoRA weight 0) look more like the concept than with {less}":
            ("stair", more, less, "alignment_0")
        for less, more in itertools.pairwise(("LoRA", "+ layer-wise", "+ second word", "+ class word (ED-LoRA)"))
    },
}  # fmt: skip


@checkout
@pytest.mark.parametrize("name", [name for name in AGAIN if name in SAVED])
def test_saved_rows_give_the_saved_numbers(name):
    """The inequality of each verdict, computed again from the rows beside it."""
    study = Study.load(RESULTS, name)
    for words, (key, more, less, value) in AGAIN[name].items():
        found, kept = difference([row for row in study.rows if value in row], key, more, less, value), None
        kept = study.differences[words]
        assert (found.mean, found.low, found.high) == pytest.approx((kept.mean, kept.low, kept.high), abs=2e-3), words
        assert (found.low > 0) is study.verdicts[words]


@checkout
@pytest.mark.skipif("observation_1" not in SAVED, reason="observation_1 is not saved")
def test_saved_rows_give_observation_1():
    study, again = Study.load(RESULTS, "observation_1"), Study.load(RESULTS, "observation_1")
    again.verdicts, again.differences = {}, {}
    compare_domains(again)
    assert again.verdicts == study.verdicts
    for words, found in again.differences.items():
        assert found.mean == pytest.approx(study.differences[words].mean, abs=2e-3)


def results(tmp_path, fingerprint="toy", low=0.1, high=0.3):
    """A folder in which every claim was measured, with the same interval."""
    tmp_path.mkdir(exist_ok=True)
    for name in {claim.study for claim in claims.CLAIMS}:
        study = Study(name, [{"concept": "a", "seed": 0, "value": 0.2}], about={"fingerprint": fingerprint})
        for claim in claims.CLAIMS:
            if claim.study == name:
                study.claim(claim.words, Difference(0.2, low, high, 5))
        study.save(tmp_path)
    return tmp_path


def test_every_claim_has_a_row_and_its_verdict(tmp_path):
    empty = claims.table(tmp_path, "toy").splitlines()[2:]
    assert len(empty) == len(claims.CLAIMS)
    assert all(row.endswith("| not measured on this base |") and " | – | " in row for row in empty)
    for low, high, says in ((0.1, 0.3, "holds"), (-0.1, 0.3, "not shown"), (-0.3, -0.1, "does not hold")):
        rows = claims.table(results(tmp_path, low=low, high=high), "toy").splitlines()[2:]
        assert all(row.endswith(f"| {says} |") and f"+0.200 [{low:+.3f}, {high:+.3f}], 5 " in row for row in rows)
    assert "not measured" in claims.table(tmp_path, "another base"), "a result of another base is none"
    rows = claims.table(tmp_path, "another base").splitlines()[2:]
    assert all(row.endswith("| not measured on this base |") for row in rows)


def test_a_study_that_lost_its_claim_is_named(tmp_path):
    Study("observation_3", [{"concept": "a"}], about={"fingerprint": "toy"}).save(tmp_path)
    with pytest.raises(KeyError, match="observation_3 does not say whether"):
        claims.table(tmp_path, "toy")


def test_the_table_is_put_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# before\n{claims.BEGIN}\nold\n{claims.END}\nafter\n")
    claims.write(page, tmp_path, "toy")
    text = page.read_text()
    assert text.startswith(f"# before\n{claims.BEGIN}\n| in the paper |") and text.endswith(f"|\n{claims.END}\nafter\n")
    assert "old" not in text and claims.updated(text, tmp_path, "toy") == text
    with pytest.raises(ValueError, match="no place for the table"):
        claims.updated("# nothing", tmp_path, "toy")


def test_the_paper_s_differences_are_the_paper_s():
    """By hand from Tables 1 and 2: the changes -0.025, -0.115, -0.094; fused 0.818 against 0.751; votes."""
    found = {(c.place, c.says): c.published for c in claims.CLAIMS if c.published is not None}
    by = {
        says.split(" ")[0] + says.split(" ")[-1]: value for (place, says), value in found.items() if place == "Table 1"
    }
    assert by["Mix-of-ShowLoRA"] == pytest.approx(0.09) and by["fused,Diffusion"] == pytest.approx(0.067)
    assert by["alone,P+"] == pytest.approx(0.843 - 0.752)
    second = [value for (place, _), value in found.items() if place.startswith("Table 2")]
    assert second == pytest.approx([0.115 - 0.094, 0.094 - 0.025, 0.165, 0.025])


def test_studies_make_the_claims_that_the_table_asks_for(toys):  # noqa: F811
    """Claims are found by their words: each study that the table reads says them, drawn by painters."""
    base, data, _ = toys
    made = {}
    for name in ("table1", "table2a", "figure5", "figure7"):
        options = {"categories": CATEGORIES, "n": 1} if name.startswith("table") else {"quick": True}
        made[name] = set(reproduce.reproduce(name, base, None, data, scorer=Eye(), **options).differences)
    ballot = vote.Ballot(("averaging", "gradient fusion"), (vote.Pair("one", "a rabbit", (None, None)),))
    votes = [
        {"rater": "ada", "pair": "one", "question": q, "left": ballot.ways[0], "right": ballot.ways[1],
         "choice": ballot.ways[1]} for q in vote.QUESTIONS
    ]  # fmt: skip
    made["table2c"] = set(vote_study(vote.result(votes, ballot.ways), Painter()).differences)
    for claim in claims.CLAIMS:
        if claim.study in made:
            assert claim.words in made[claim.study], claim.words
        else:
            assert claim.study in everything.JOBS
            saved = Study.load(RESULTS, claim.study) if claim.study in SAVED else None
            assert saved is None or claim.words in saved.differences


def test_a_figure_s_claim_is_about_the_pictures_that_it_shows(toys):  # noqa: F811
    base, data, _ = toys
    study = reproduce.reproduce("figure7", base, None, data, quick=True, scorer=Eye())
    values = {}
    for row in study.rows:
        values.setdefault(row["column"].rpartition(": ")[2], []).append(row["value"])
    gap = [sum(values[f"{way} fusion Φ(P*)"]) / 2 for way in ("gradient", "weight")]
    assert study.differences[claims.figures.BY_FUSION].mean == pytest.approx(gap[0] - gap[1])


def test_a_vote_becomes_a_result(tmp_path):
    ways = ("averaging", "gradient fusion")
    votes = []
    for rater in "abcdefgh":
        for pair in "0123456789":
            choice = ways[rater != "a" or pair != "0"]  # one of all for the first
            vote_of = {"rater": rater, "pair": pair, "question": "image", "choice": choice}
            votes.append(vote_of | {"left": ways[0], "right": ways[1]})
    found = vote.result(votes, ways)
    study = vote_study(found, Painter())
    (words,) = study.verdicts
    own = study.differences[words]
    assert own.mean == pytest.approx(79 / 80 - 0.5) and study.verdicts[words] and own.pairs == 80
    assert own.low <= found.preferred["image"].low - 0.5 and own.high >= found.preferred["image"].pairs[1] - 0.5
    even = [vote_ | {"choice": ways[int(vote_["pair"]) % 2]} for vote_ in votes]
    assert not any(vote_study(vote.result(even, ways), Painter()).verdicts.values())
    assert Study.load(study.save(tmp_path).parent, "table2c").about["raters"] == 8


def test_advice_names_the_best_way_of_every_case(race):  # noqa: F811
    study, _, base = race(TOYS)
    said = advice.paragraph(study)
    means = study.about["means"]
    for size in (2, 3):
        assert f"With {size} concepts, averaging keeps {means[size]['averaging']['identity']:.2f}" in said
        assert f"draw every concept first, good keeps most, {means[size]['good']['identity']:.2f}" in said
    assert said.count("numbered before they tune, slots keeps most") == 2
    assert "turns keeps most" in said and "a picture takes" in said
    assert "With nothing but the files" not in said, "no toy needs nothing, apart from averaging"
    fused = max(means[3][way]["together"] for way in ("averaging", "good", "slots"))
    best = "fusing first is better" if fused > means[3]["masked"]["together"] else "nothing has to be fused"
    assert said.count(best) >= 1
    for took, words in ((0.4, "in under a second"), (1.0, "in 1 s"), (2.4, "in 2 s")):
        for size in (2, 3):
            means[size]["good"]["seconds"] = took
        found = re.findall(rf"good keeps most, [\d.]+, at a drift of [\d.]+, {words}\b", advice.paragraph(study))
        assert len(found) == 2, words
    study.verdicts = dict.fromkeys(study.verdicts, False)
    assert advice.paragraph(study).count("is not shown") == said.count("keeps most")


def test_advice_is_the_same_from_disk_and_says_what_is_missing(race, tmp_path, capsys):  # noqa: F811
    study, _, base = race(TOYS)
    base.base_id = study.about["base"]
    assert advice.advise(tmp_path, base) == "No advice without the rivals' study on this base."
    assert "python -m mixofshow_lite.paper rivals" in capsys.readouterr().out
    study.save(tmp_path)
    assert advice.advise(tmp_path, base) == advice.paragraph(study)
    base.fingerprint, base.base_id = "other", "another"
    assert "No advice" in advice.advise(tmp_path, base)


def test_advice_without_a_number_says_so():
    assert advice.number({"a": {"drift": None}}, "a", "drift") == "an unknown share"
    assert math.isclose(float(advice.number({"a": {"drift": 0.256}}, "a", "drift")), 0.26)


def test_the_command_prints_the_table_and_the_advice_and_writes_a_readme(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"{claims.BEGIN}\n{claims.END}\n")
    folder = results(tmp_path / "results")
    monkeypatch.setattr(command, "load_base", lambda name: Painter())
    monkeypatch.setattr("sys.argv", ["paper", "claims", "--out", str(folder), "--readme", str(page)])
    command.main()
    said = capsys.readouterr().out
    assert claims.table(folder, "toy") in said and said.rstrip().endswith("without the rivals' study on this base.")
    assert claims.table(folder, "toy") in page.read_text() and "| holds |" in page.read_text()
