"""The command line: every command on the tiny model, and errors as one sentence."""

import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_demo import write_concept
from tiny import make_concept
from tiny_clip import build_clip

import mixofshow_lite as mos
from mixofshow_lite import Concept, cli
from mixofshow_lite.cli import main, parse_region
from mixofshow_lite.engine.fusion import lora_state


@pytest.fixture(scope="module")
def tuned(tiny_folder, tmp_path_factory):
    """Two concept folders tuned by the command line."""
    where = tmp_path_factory.mktemp("cli")
    for name, colour in (("ruby", "red"), ("jade", "green")):
        data = write_concept(where / "data", name, colour)
        out = where / "concepts" / name
        assert main(["tune", str(data), "--base", str(tiny_folder), "--steps", "1", "--out", str(out)]) == 0
    return where / "concepts"


def pixels(folder, name="0000.png"):
    with Image.open(folder / name) as picture:
        return picture.tobytes()


@pytest.mark.filterwarnings("ignore")
def test_tune_fuse_and_sample(tuned, tiny_folder, tmp_path):
    assert Concept.load(tuned / "ruby").words == ("<ruby1>", "<ruby2>")
    assert not list(tuned.glob("*.checkpoint"))
    fused, lora = tmp_path / "fused", tmp_path / "fused.safetensors"
    how = ["fuse", str(tuned / "ruby"), str(tuned / "jade"), "--method", "weight", "--base", str(tiny_folder)]
    assert main([*how, "--out", str(fused), "--lora", str(lora)]) == 0
    assert lora.is_file() and (fused / "model_index.json").is_file()
    draw = ["sample", "a <ruby1> <ruby2>", "--steps", "2", "-n", "2", "--base"]
    assert main([*draw, str(fused), "--out", str(tmp_path / "a")]) == 0
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["0000.png", "0001.png"]
    one = [*draw, str(tiny_folder), "--concept", str(tuned / "ruby")]
    assert main([*one, "--out", str(tmp_path / "b")]) == 0
    assert main([*one, "--out", str(tmp_path / "c"), "--region", "0,0,0.5,1:a red cat"]) == 0
    assert pixels(tmp_path / "b") != pixels(tmp_path / "c")  # the region is seen


FUSED = {  # command line -> the library's own call with the same two concepts
    "gradient --ridge 0.1 --seed 5": lambda base, two: mos.gradient_fusion(base, two, ridge=0.1, seed=5),
    "gradient --solver lbfgs --weights 2,1": lambda b, two: mos.gradient_fusion(b, two, "lbfgs", weights=[2, 1]),
    "weight --weights 3,1": lambda base, two: mos.weight_fusion(base, two, weights=[3, 1]),
    "constrained --ridge 0.01": lambda base, two: mos.constrained_fusion(base, two, ridge=0.01),
    "ties": lambda base, two: mos.peft_fusion(base, two, "ties"),
    "dare_linear --seed 4": lambda base, two: mos.peft_fusion(base, two, "dare_linear", seed=4),
    "svd": lambda base, two: mos.peft_fusion(base, two, "svd"),
    "cat --weights 1,0.5": lambda base, two: mos.peft_fusion(base, two, "cat", weights=[1, 0.5]),
}


@pytest.mark.filterwarnings("ignore")
def test_every_way_to_fuse(tiny_base, tiny_folder, tmp_path):
    """The file that each command writes holds the update of the library's call, and no two ways make the same one."""
    two = [make_concept(tiny_base, name, seed) for seed, name in enumerate(("ruby", "jade"))]
    for concept in two:  # a few layers of every stage: LBFGS takes its time
        concept.lora = {net: dict(list(found.items())[::10]) for net, found in concept.lora.items()}
    folders = [str(concept.save(tmp_path / concept.name)) for concept in two]
    seen = set()
    for words, call in FUSED.items():
        file = tmp_path / "fused.safetensors"
        how = ["fuse", *folders, "--base", str(tiny_folder), "--out", str(tmp_path / "out"), "--lora", str(file)]
        assert main([*how, "--method", *words.split()]) == 0
        written, wanted = load_file(file), lora_state(call(tiny_base, two))
        assert written.keys() == wanted.keys()
        for name, tensor in written.items():
            torch.testing.assert_close(tensor, wanted[name].float(), msg=words)
        seen.add(file.read_bytes())
    assert len(seen) == len(FUSED) and {words.split()[0] for words in FUSED} == set(cli.FUSIONS)


@pytest.mark.parametrize(("method", "option"), [("weight", "ridge"), ("cat", "solver"), ("constrained", "weights")])
def test_an_option_without_effect_is_refused(method, option):
    value = {"ridge": 0.1, "solver": "lbfgs", "weights": [1.0]}[option]
    with pytest.raises(ValueError, match=f"{method} has no {option}"):
        cli.fuse(None, [], method, {"seed": None, option: value})


def test_a_region_is_read_never_evaluated():
    region = parse_region("0, 0.1,0.5,1: a cat: red")
    assert region.box == (0.0, 0.1, 0.5, 1.0) and region.prompt == "a cat: red"
    for text in ("a red cat", "0,0,1:a cat", "__import__('os'),0,1,1:a cat"):
        with pytest.raises(ValueError, match="LEFT,TOP,RIGHT,BOTTOM"):
            parse_region(text)


def test_evaluate_prints_both_scores(tmp_path, capsys):
    folder = build_clip(tmp_path)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    how = ["evaluate", str(tmp_path / "red.png"), "--clip", str(folder)]
    assert main([*how, "--prompt", "a red cat", "--references", str(tmp_path / "red.png")]) == 0
    lines = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert float(lines["image-alignment"]) == pytest.approx(1) and 0 <= float(lines["text-alignment"]) <= 2.5


def test_doctor_names_versions_and_loads_the_base(tiny_folder, capsys):
    assert main(["doctor", "--base", str(tiny_folder)]) == 0
    out = capsys.readouterr().out
    assert "torch" in out and "16 cross-attention layers" in out and "sampling         works" in out


def test_the_scorer_goes_with_the_base():
    assert cli.clip_for("pocket") == "pocket" and cli.clip_for("sd15") == cli.clip_for("a/hub-id") == "sd15"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["tune", "nowhere"], "nowhere"),
        (["sample", "a cat", "--base", "nowhere"], "nowhere"),
        (["fuse", "nowhere", "--base", "nowhere"], "nowhere"),
        (["evaluate", "nowhere.png"], "--prompt"),
        (["evaluate", "nowhere.png", "--prompt", "a cat"], "nowhere.png"),
        (["sample", "a cat", "--region", "here:a cat"], "LEFT,TOP"),
        (["demo", "--concepts", "one", "one"], "two different concepts"),
    ],
)
def test_errors_are_one_sentence(command, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 1
    said = capsys.readouterr()
    assert says in said.err and said.err.startswith("mixofshow: ") and len(said.err.strip().splitlines()) == 1
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def stopped(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_doctor", stopped)
    assert main(["doctor"]) == 130 and "goes on" in capsys.readouterr().err


def test_help_needs_no_heavy_import():
    code = "import sys; from mixofshow_lite import cli; cli.parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ).returncode == 0
