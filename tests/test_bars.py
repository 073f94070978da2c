"""The bars of Pocket Diffusion: held-out prompts, arithmetic by hand, a run that goes on; and the contact sheets."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_clip import build_clip

import mixofshow_lite as mos
from mixofshow_lite.engine.evaluation import load_scorer
from mixofshow_lite.pocket import world
from mixofshow_lite.pocket.train import bars, sheets


def test_every_prompt_is_held_out():
    singles, pairs = bars.singles(), bars.pairs()
    assert len(set(singles)) == len(singles) == 72 and all(world.held_out(*c) for c in singles)
    assert bars.one_prompt("umbrella", "orange", "beach") == "an orange umbrella on the beach"
    assert len(pairs) >= 100 and len(set(pairs)) == len(pairs)
    for (a, x), (b, y), scene in pairs:
        assert world.held_out(a, x, scene) and world.held_out(b, y, scene) and a != b and x != y
    assert bars.two_prompt(("cat", "red"), ("robot", "blue"), "moon") == "a red cat and a blue robot on the moon"
    first = [world.CLASSES.index(a) < world.CLASSES.index(b) for (a, _), (b, _), _ in pairs]
    assert 0.3 < np.mean(first) < 0.7  # no class is always named first


def test_shares_and_rates_by_hand():
    assert bars.shares(500, 72) == [7] * 68 + [6] * 4 and bars.shares(2, 3) == [1, 1, 0]
    row = bars.rate([True] * 9 + [False])
    assert row == {"share": 0.9, "error": pytest.approx((0.9 * 0.1 / 10) ** 0.5, abs=1e-4), "n": 10}


def test_summary_counts_each_reading():
    readings = [
        (("cat", "red", "moon"), ("cat", "red", "moon")),
        (("cat", "red", "moon"), ("bear", "red", "moon")),
        (("mug", "pink", "snow"), ("mug", "red", "snow")),
        (("mug", "pink", "snow"), ("mug", "red", "snow")),
    ]
    found = bars.summary(readings)
    assert [found[k]["share"] for k in ("class", "colour", "scene", "all three")] == [0.75, 0.5, 1.0, 0.25]
    assert found["class"]["confusions"] == {"cat read as bear": 1} and found["class"]["worst"]["cat"] == 0.5
    assert found["colour"]["confusions"] == {"pink read as red": 2} and found["colour"]["worst"]["pink"] == 0


def test_drawn_pictures_show_what_they_are_asked_for():
    alone = bars.drawn_one("frog", "red", "moon", 3, seed=4)
    assert [p.tobytes() for p in bars.drawn_one("frog", "red", "moon", 1, seed=6)] == [alone[2].tobytes()]
    assert bars.drawn_two(("cat", "red"), ("mug", "blue"), "snow", 1).size == (128, 128)


def test_a_pair_is_right_only_if_both_are_there_in_their_colours(monkeypatch):
    pair = (("cat", "red"), ("robot", "blue"), "moon")
    answers = {"read": (True, "red", "blue"), "choice": 0}
    monkeypatch.setattr(bars, "read_pair", lambda image, a, b, scorer: answers["read"])

    def choose(image, prompts, scorer):
        assert prompts == ["a red cat and a blue robot on the moon", "a blue cat and a red robot on the moon"]
        return np.array([answers["choice"]])

    monkeypatch.setattr(bars, "choose", choose)
    assert bars.read_two(None, *pair, None) == [True, True, True]
    answers |= {"read": (True, "blue", "red"), "choice": 1}
    assert bars.read_two(None, *pair, None) == [True, False, False]
    answers["read"] = (False, "red", "blue")
    assert bars.read_two(None, *pair, None) == [False, False, False]


def test_readings_survive_an_interruption_but_not_another_run(tmp_path):
    file, about = tmp_path / "x.part.jsonl", {"seed": 1}
    assert bars.Kept(file, about).get("a", lambda: [1, 2]) == [1, 2]
    with open(file, "a") as stream:
        stream.write('["b", [3')  # cut by a kill
    again = bars.Kept(file, about)
    assert again.get("a", lambda: pytest.fail("read twice")) == [1, 2] and again.get("b", lambda: [3]) == [3]
    assert bars.Kept(file, about).rows == {"a": [1, 2], "b": [3]}
    assert bars.Kept(file, {"seed": 2}).rows == {}


def test_psnr_of_the_autoencoder_by_hand(tiny_base):
    pictures = [Image.fromarray(np.full((64, 64, 3), v, np.uint8)) for v in (30, 200, 120)]
    back = [np.asarray(tiny_base.decode(tiny_base.encode_images([p]))[0], float) for p in pictures]
    wanted = np.mean(
        [10 * np.log10(255**2 / np.mean((np.asarray(p) - b) ** 2)) for p, b in zip(pictures, back, strict=True)]
    )
    assert bars.psnr(tiny_base, pictures, batch=2) == pytest.approx(wanted, abs=0.05)


def test_a_run_goes_on_and_parts_are_kept(tmp_path, tiny_folder, monkeypatch, capsys):
    out, clip = tmp_path / "bars.json", build_clip(tmp_path)
    monkeypatch.setattr(bars, "measure_vae", lambda model: {"world": 30.0})
    command = ["--base", str(tiny_folder), "--clip", str(clip), "--n", "2", "--two", "1", "--steps", "1"]
    whole = [*command, "--out", str(out), "--parts", "one", "two", "vae"]
    read, calls = bars.read, []

    def counted(images, scorer):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read(images, scorer)

    monkeypatch.setattr(bars, "read", counted)
    with pytest.raises(KeyboardInterrupt):
        bars.main(whole)
    assert not out.exists()
    bars.main(whole)
    assert calls == [1, 1, 1]  # the first reading was kept
    result = json.loads(out.read_text())
    assert result["one"]["class"]["n"] == 2 and result["two"]["binding"]["n"] == 1
    assert result["command"].startswith("python -m mixofshow_lite.pocket.train.bars --base")
    assert result["bars"]["psnr"] == {"wanted": 28.0, "measured": 30.0, "met": True}
    assert "seconds for four" not in result["bars"] and [p.name for p in tmp_path.glob("bars*")] == ["bars.json"]
    bars.main([*command, "--out", str(out), "--parts", "vae"])
    assert json.loads(out.read_text())["one"] == result["one"] and len(calls) == 3
    assert "met" in capsys.readouterr().out


def test_a_sheet_is_a_small_picture_of_every_picture(tmp_path):
    noise = np.random.default_rng(0)
    rows = [[Image.fromarray(noise.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(3)] for _ in range(2)]
    figure = sheets.sheet(rows, ["one", "two"], [["a red cat on the beach"] * 3] * 2)
    assert len(figure.axes) == 6 and [t.get_text() for t in figure.texts] == ["one", "two"]
    file = sheets.save(figure, tmp_path / "new" / "x_sheet.webp")
    with Image.open(file) as saved:
        assert saved.format == "WEBP" and saved.width > 300
    figure.savefig(tmp_path / "plain.png", dpi=110)
    assert file.stat().st_size < (tmp_path / "plain.png").stat().st_size / 2


SAVED = Path(__file__).resolve().parent.parent / "data" / "results" / "pocket_bars.json"


@pytest.mark.skipif(not SAVED.is_file(), reason="not a checkout")
def test_the_saved_bars_were_measured_on_the_shipped_weights():
    """The model card's numbers: of these weights, on as many pictures as the bars ask for, each with its verdict."""
    saved, shipped = json.loads(SAVED.read_text(encoding="utf-8")), mos.load_base("pocket", device="cpu")
    assert saved["fingerprint"] == shipped.fingerprint and saved["steps"] == 25
    assert saved["one"]["class"]["n"] == saved["reader"]["one"]["class"]["n"] == 500
    assert saved["two"]["binding"]["n"] == 100
    assert saved["clip"] == bars._weights_of(load_scorer("pocket"))
    assert set(saved["bars"]) == set(bars.BARS)
    for what in ("class", "colour", "scene", "psnr"):
        assert saved["bars"][what]["met"] and saved["bars"][what]["measured"] >= bars.BARS[what]
