"""Command lines of all kinds end in a command that would run, or in one sentence; and they change no file.

What the commands then do is the library's, so their `run` is left out here.
"""

import json
import os
import random
from pathlib import Path

import pytest
from harness import check_sentence, limited, seeds
from PIL import Image

from mixofshow_lite import cli

VALUES = (
    ["", " ", "-", "--", ".", "..", "~", "/", "/dev/null", "nan", "-1", "0", "1", "2.5", "1e999", "9" * 40, "auto"]
    + ["x" * 300, "a\nb", "a\tb", "\udce9", "🐇", "<TOK>", "<a> <b>", "<a", "a,b", "1,0.5", "64", "64x", "128x64"]
    + ["0,0,1,1:a cat", "0,0,1:a", "1,1,0,0:a", "nan,0,1,1:a", "0,0,1,1:", "cpu", "pocket", "sd15", "a/b", "a/b/c"]
    + ["photos", "concept", "twin", "damaged", "model", "thesis", "empty", "lora.safetensors", "fifo", "canvas.json"]
    + ["deep.json", "latin.json", "photos/a.png", "new", "new/er", "new.safetensors", "lora.safetensors/x", "lora"]
)
FORMS = {  # command -> how many things it takes, its options
    "demo": (0, "--out --concepts --class-word --steps --seed -n"),
    "tune": (1, "--class-word --recipe --name --words --steps --seed --out --overwrite"),
    "fuse": (2, "--method --solver --ridge --weights --out --lora --format --seed --overwrite"),
    "sample": (1, "--concept --alpha --region --isolate --negative-prompt -n --size --steps --guidance --seed --out"),
    "evaluate": (1, "--prompt --concept --references --clip"),
    "convert": (2, "--class-word --name --phrase --format --overwrite"),
    "rename": (2, "--words --out --overwrite"),
    "doctor": (0, "--base"),
    "nonsense": (1, "--help"),
}
ALL = "--base --device --dtype --nonsense"
USUAL = {"--steps": "5", "--seed": "3", "-n": "2", "--alpha": "0.5", "--guidance": "3", "--size": "64", "--ridge": "1"}
USUAL |= {"--device": "cpu", "--dtype": "float32", "--format": "kohya", "--method": "weight", "--solver": "lbfgs"}
USUAL |= {"--recipe": "lora", "--base": "pocket", "--class-word": "cat", "--prompt": "cat", "--weights": "1,2"}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with good, damaged and strange things, and commands that only check their arguments."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "concept", "twin", "damaged", "model", "thesis", "empty"):
        Path(name).mkdir()
    Image.new("RGB", (64, 64)).save("photos/a.png")
    Path("photos/metadata.jsonl").write_text('[]\n{"file_name": "a.png", "class_word": ["cat"]}\n{')
    for name in ("concept", "twin"):
        Path(name, "concept.json").write_text(json.dumps({"name": "bibi", "words": ["<bibi1>", 3]}))
    Path("damaged/concept.json").write_bytes(b'{"name": \xff' + b"[" * 9999)
    Path("model/model_index.json").write_text("{")
    Path("thesis/thesis.txt").write_text("ten years")
    Path("lora.safetensors").write_bytes(b"\xff" * 8 + b"{")
    Path("canvas.json").write_text('{"format": "mixofshow-regions", "prompt": 3, "seed": -1, "steps": "x"}')
    Path("deep.json").write_text("[" * 99999)
    Path("latin.json").write_bytes(b'{"prompt": "\xe9"}')
    os.mkfifo("fifo")
    monkeypatch.setattr(cli, "run_command", lambda args: None)
    return tmp_path


def files(folder):
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def some_command(draw: random.Random) -> list[str]:
    """Mostly right in form, so that what it says is looked at."""
    command = draw.choice(list(FORMS))
    count, options = FORMS[command][0], FORMS[command][1].split()
    line = [command, *draw.choices(VALUES, k=draw.choice([count] * 8 + [0, 1, 2, 3]))]
    for option in draw.sample(options, k=draw.randint(0, min(3, len(options)))) + draw.sample(
        ALL.split(), k=draw.choice([0, 0, 0, 1])
    ):
        line.append(option)
        if option not in ("--overwrite", "--isolate", "--help") or draw.random() < 0.1:
            usual = draw.random() < 0.7 and option in USUAL
            line.append(USUAL[option] if usual else draw.choice(VALUES))
    return line


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the desk needs a FIFO")
@pytest.mark.parametrize("seed", seeds(30))
def test_a_command_line_would_run_or_says_why_not(seed, desk, capsys):
    draw, before = random.Random(seed), files(desk)
    for _ in range(20):
        command = some_command(draw)
        with limited(20):
            try:
                code = cli.main(command)
            except SystemExit as stopped:
                code = stopped.code
        said = capsys.readouterr()
        assert code in (0, 1, 2), command
        if code:
            assert not said.out and said.err.startswith("mixofshow: "), command
            check_sentence(said.err, str(command))
        assert files(desk) == before, command
