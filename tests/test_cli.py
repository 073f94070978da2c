"""The command line: every command on the tiny model, errors as one sentence, and nothing lost."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_demo import write_concept
from test_formats import official, same
from tiny import make_concept
from tiny_clip import build_clip

import mixofshow_lite as mos
from mixofshow_lite import Concept, cli
from mixofshow_lite.cli import concepts, fusing, main, options, speak
from mixofshow_lite.cli.pictures import picture_files, split_region
from mixofshow_lite.course.widgets import scene
from mixofshow_lite.engine import recipes
from mixofshow_lite.engine.fusion import lora_state
from mixofshow_lite.files import lora_writing, pickles
from mixofshow_lite.files.concept import WORD


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
    folder = tmp_path / "for_peft"
    assert main([*how, "--out", str(fused), "--overwrite", "--lora", str(folder), "--format", "peft"]) == 0
    back = ["convert", str(folder), str(tmp_path / "back"), "--class-word", "cat", "--base", str(tiny_folder)]
    assert main(back) == 0 and Concept.load(tmp_path / "back").lora.keys() == {"text_encoder", "unet"}
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
    "ties_svd": lambda base, two: mos.peft_fusion(base, two, "ties_svd"),
    "dare_linear_svd --seed 4": lambda base, two: mos.peft_fusion(base, two, "dare_linear_svd", seed=4),
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
        assert main([*how, "--overwrite", "--method", *words.split()]) == 0
        written, wanted = load_file(file), lora_state(call(tiny_base, two))
        assert written.keys() == wanted.keys()
        for name, tensor in written.items():
            torch.testing.assert_close(tensor, wanted[name].float(), msg=words)
        seen.add(file.read_bytes())
    assert len(seen) == len(FUSED) and {words.split()[0] for words in FUSED} == set(fusing.FUSIONS)


@pytest.mark.parametrize(("method", "option"), [("weight", "ridge"), ("cat", "solver"), ("constrained", "weights")])
def test_an_option_without_effect_is_refused(method, option):
    value = {"ridge": 0.1, "solver": "lbfgs", "weights": [1.0]}[option]
    with pytest.raises(ValueError, match=f"{method} has no {option}"):
        fusing.fuse(None, [], method, {option: value})


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
    assert "torch" in out and "16 cross-attention layers" in out and "OK       sampling  works" in out


def test_the_scorer_goes_with_the_base():
    assert (
        cli.shows.clip_for("pocket") == "pocket"
        and cli.shows.clip_for("sd15") == cli.shows.clip_for("a/hub-id") == "sd15"
    )


@pytest.fixture
def things(tmp_path, monkeypatch):
    """A folder to be in, with what a newcomer has: photos, a concept, another model, a LoRA file and a thesis."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "thesis", "model", "bibi", "again"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (64, 64)).save("photos/a.png")
    Path("thesis/thesis.txt").write_text("ten years")
    Path("model/model_index.json").write_text("{}")
    Path("lora.safetensors").write_bytes(b"somebody's")
    for name in ("bibi", "again"):
        Path(name, "concept.json").write_text(json.dumps({"name": "bibi", "words": ["<bibi1>", "<bibi2>"]}))
    Path("canvas.json").write_text('{"format": "mixofshow-regions", "version": 1, "regions": []}')
    Path("file").touch()
    return tmp_path


WRONG = [  # command line -> what its sentence says
    ("tune nowhere", "no folder nowhere"),
    ("tune photos", "--class-word dog"),
    ("tune photos --class-word dog --out thesis", "thesis holds thesis.txt and is not a concept"),
    ("tune photos --class-word dog --out bibi", "--overwrite"),
    ("tune photos --class-word dog --out file/x", "is a file, no folder"),
    ("tune photos --class-word dog --words a a", "different ones"),
    ("tune photos --class-word dog --name a/b", "is no name"),
    ("tune photos --class-word dog --base bibi", "--concept bibi"),
    ("tune photos --class-word dog --base photos", "no diffusers folder"),
    ("sample a --base nowhere", "no base model 'nowhere'"),
    ("sample a --concept nowhere", "no concept folder nowhere"),
    ("sample a --concept model", "is a whole model"),
    ("sample a --out file", "is a file"),
    ("sample", "say what to draw"),
    ("sample a --region here:a", "LEFT,TOP"),
    ("sample a --region 0,0,2,1:a", "fractions from 0 to 1"),
    ("sample a --region nowhere.json", "no file nowhere.json"),
    ("sample a --region bibi/concept.json", "holds no regions"),
    ("sample a --region canvas.json --region 0,0,1,1:a", "not both"),
    ("sample --region canvas.json", "say what to draw"),
    ("fuse nowhere", "no concept folder nowhere"),
    ("fuse lora.safetensors", "mixofshow convert lora.safetensors"),
    ("fuse bibi again", "mixofshow rename again"),
    ("fuse bibi --out thesis", "holds thesis.txt"),
    ("fuse bibi --out thesis --overwrite", "holds thesis.txt"),
    ("fuse bibi --out file", "is a file"),
    ("fuse bibi --lora lora.safetensors --overwrite", "not a LoRA file written by this library"),
    ("fuse bibi --lora x.bin", ".safetensors"),
    ("fuse bibi --lora x.safetensors --format peft", "becomes a folder in peft's format"),
    ("fuse bibi --lora thesis --format peft", "holds thesis.txt"),
    ("convert bibi thesis --format peft", "holds thesis.txt"),
    ("fuse bibi --weights 1,2", "--weights has 2 numbers for 1"),
    ("fuse bibi --method weight --ridge 1", "leave out --ridge"),
    ("evaluate nowhere.png", "--prompt"),
    ("evaluate nowhere.png --prompt cat", "no picture or folder nowhere.png"),
    ("evaluate thesis --prompt cat", "thesis holds no pictures"),
    ("evaluate photos --prompt <bibi1>", "by --concept"),
    ("evaluate photos --prompt cat --clip nowhere", "no CLIP nowhere"),
    ("convert nowhere x", "no nowhere"),
    ("convert lora.safetensors x", "--class-word"),
    ("convert lora.safetensors thesis --class-word dog", "not a concept"),
    ("convert lora.safetensors x.safetensors --class-word dog", "becomes a concept folder"),
    ("convert bibi x", ".safetensors"),
    ("convert bibi lora.safetensors --overwrite", "not a LoRA file"),
    ("rename nowhere kiki", "no concept folder nowhere"),
    ("rename bibi kiki --words a", "has 2 words"),
    ("rename bibi again", "again is there already"),
    ("demo --concepts photos photos", "two different concepts"),
    ("demo --concepts photos bibi", "--class-word dog"),
    ("demo --concepts photos nowhere --class-word dog", "no folder"),
    ("demo --base nowhere", "no base model"),
    ("doctor --base nowhere", "no base model"),
]


def snapshot(folder):
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(("command", "says"), WRONG)
def test_errors_are_one_sentence_and_change_nothing(command, says, capsys, things):
    before = snapshot(things)
    assert main(command.split()) == 1
    said = capsys.readouterr()
    assert says in said.err and said.err.startswith("mixofshow: ") and len(said.err.splitlines()) == 1
    assert not said.out and snapshot(things) == before


NOT_NUMBERS = [
    ("sample a --steps 0", "'0' is no whole number of at least 1"),
    ("sample a -n x", "'x' is no whole number of at least 1"),
    ("sample a --seed -1", "of at least 0"),
    ("sample a --guidance nan", "'nan' is no number"),
    ("sample a --alpha 1e30", "from -10 to 10"),
    ("sample a --size 0x9", "WIDTHxHEIGHT"),
    ("sample a --device gpu", "write cpu, cuda"),
    ("fuse a --weights 1,x", "'1,x' is no list of numbers"),
    ("fuse a --ridge big", "neither auto nor a number"),
    ("tune a --recipe mine", "'ed_lora'"),
    ("sample a --dtype half", "'float16'"),
]


@pytest.mark.parametrize(("command", "says"), NOT_NUMBERS)
def test_what_is_no_number_is_said_in_plain_words(command, says, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(command.split())
    assert says in capsys.readouterr().err


def test_help_version_and_plain_errors_need_no_heavy_import(things):
    """Torch and diffusers take many seconds to import, numpy and PIL one on a slow machine."""
    code = """if True:
        import json, sys
        from mixofshow_lite.cli import main
        for command in json.loads(sys.argv[1]):
            try:
                main(command.split())
            except SystemExit:
                pass
        print([name for name in ("torch", "diffusers", "transformers", "PIL", "numpy") if name in sys.modules])
    """
    helps = [f"{c} --help" for c in "demo tune fuse sample evaluate convert rename paper doctor lab".split()]
    commands = ["--version", "--help", *helps, *(command for command, _ in WRONG + NOT_NUMBERS)]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_shows_defaults_and_choices(capsys):
    for command, shown in {
        "sample": ("(default: out/pictures)", "(default: 25)", "WIDTHxHEIGHT"),
        "tune": ("ed_lora", "textual_inversion", "(default: the recipe's own)", "(default: pocket)"),
        "fuse": ("(default: gradient)", "kohya", "closed_form"),
    }.items():
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert all(words in text for words in shown), command


def test_choices_are_those_of_the_library():
    assert set(concepts.FORMATS) == set(lora_writing.FORMATS)
    assert set(concepts.RECIPES) == {*recipes.RECIPES, *recipes.SD15}
    assert options.CONCEPT_WORD.pattern == WORD.pattern and concepts.PICKLES == pickles.ENDINGS


@pytest.mark.parametrize(
    ("python", "ours"),
    [
        ('give it other words with concept.renamed("bibi2").', "with `mixofshow rename FOLDER bibi2`."),
        ('say what it is, e.g. tune(..., class_word="rabbit").', "e.g. --class-word rabbit."),
        ("load it with load_base('pocket-v1').", "load it with --base pocket."),
        ("load it with load_base('sd15').", "load it with --base sd15."),
        ("n=0, steps=25: at\nleast one", "-n 0, --steps 25: at least one"),
    ],
)
def test_advice_for_python_is_translated(python, ours):
    assert ours in speak.in_our_words(python)


def test_a_device_that_is_not_there_is_said_in_one_sentence(tiny_folder, capsys):
    there = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available()}
    device = next(kind for kind, found in there.items() if not found)  # no machine has both
    assert main(["sample", "a cat", "--base", str(tiny_folder), "--device", device]) == 1
    said = capsys.readouterr().err
    assert f"no device {device} for torch: give another, e.g. --device 'cpu', or none." in said


def test_warnings_are_one_line_without_source(capsys, monkeypatch):
    def run(args):
        warnings.warn("2 of 2 pictures\nhave no caption", stacklevel=1)
        warnings.warn("torch will change", FutureWarning, stacklevel=1)

    monkeypatch.setattr(cli.doctor, "run_doctor", run)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda *a, **k: print(warnings.formatwarning(*a[:4]), end=""))
        assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "mixofshow: note: 2 of 2 pictures have no caption\n"


def test_ctrl_c_says_what_is_kept(monkeypatch, capsys, things):
    def stopped(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(concepts, "run_tune", stopped)
    command = "tune photos --class-word dog --out out/dog".split()
    assert main(command) == 130 and "nothing is kept, no step" in capsys.readouterr().err
    Path("out").mkdir()
    torch.save({"step": 7}, "out/dog.checkpoint")
    assert main(command) == 130 and "7 steps are kept in out/dog.checkpoint: the same" in capsys.readouterr().err


def test_any_terminal_can_show_it(things):
    Path("café").mkdir()
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "mixofshow_lite.cli", "evaluate", "café", "--prompt", "a"]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 1 and b"caf\\xe9 holds no pictures" in done.stderr


def test_the_next_command_is_quoted_for_any_shell():
    assert speak.next_command("sample", "a <b1>", "--concept", "out/b") == 'mixofshow sample "a <b1>" --concept out/b'


def test_words_may_be_given_with_or_without_brackets():
    assert options.concept_words(["<a> <b>"]) == options.concept_words(["a", "b"]) == ("<a>", "<b>")
    assert options.concept_words(None) is None


def test_a_size_is_width_by_height():
    assert options.size("128") == (128, 128) and options.size("96x64") == (64, 96)


def test_a_region_is_read_never_evaluated():
    assert split_region("0, 0.1,0.5,1: a cat: red") == ("a cat: red", (0.0, 0.1, 0.5, 1.0))
    for text in ("a red cat", "0,0,1:a cat", "__import__('os'),0,1,1:a cat"):
        with pytest.raises(ValueError, match="LEFT,TOP,RIGHT,BOTTOM"):
            split_region(text)


def test_a_folder_of_pictures_is_its_pictures(things):
    for name in ("b.PNG", "b_mask.png", ".hidden.png", "notes.txt"):
        Path("photos", name).touch()
    assert [file.name for file in picture_files(Path("photos"))] == ["a.png", "b.PNG"]


# ---- commands on the tiny model, loaded once ----


@pytest.fixture
def here(tiny_base, tmp_path, monkeypatch):
    """A folder to be in; every base is the tiny one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "load", lambda args: tiny_base)
    return tmp_path


def draw(*more):
    return main(["sample", "a cat", "--steps", "1", *more])


def test_sampling_again_overwrites_nothing_unless_asked(here, capsys):
    assert draw("-n", "2") == draw("--guidance", "1") == 0
    first = pixels(Path("out/pictures"))
    assert sorted(p.name for p in Path("out/pictures").iterdir()) == ["0000-2.png", "0000.png", "0001.png"]
    assert first != pixels(Path("out/pictures"), "0000-2.png")
    capsys.readouterr()
    assert draw("--guidance", "1", "--overwrite", "--size", "128x64") == 0
    assert pixels(Path("out/pictures")) != first and len(list(Path("out/pictures").iterdir())) == 3
    with Image.open("out/pictures/0000.png") as picture:
        assert picture.size == (128, 64)
    said = capsys.readouterr().out.splitlines()
    assert said == ["out/pictures/0000.png", 'score them: mixofshow evaluate out/pictures/0000.png --prompt "a cat"']


def test_many_pictures_are_those_of_their_seeds_and_saved_as_they_come(here, monkeypatch, capsys):
    assert draw("-n", "10", "--seed", "5") == draw("--seed", "14", "--out", "one") == 0
    alone, among = (np.frombuffer(pixels(Path(p), "0014.png"), np.uint8) for p in ("one", "out/pictures"))
    assert np.abs(alone.astype(int) - among).max() <= 1  # a batch rounds otherwise
    assert np.abs(np.frombuffer(pixels(Path("out/pictures"), "0013.png"), np.uint8).astype(int) - among).max() > 9
    calls, real = [], mos.DiffusionModel.sample

    def stops(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(mos.DiffusionModel, "sample", stops)
    assert draw("-n", "10", "--out", "two") == 130
    assert len(list(Path("two").iterdir())) == 8 and "8 of 10 pictures are saved in two" in capsys.readouterr().err


def test_regions_are_read_from_the_file_of_the_canvas(here):
    entries = [{"prompt": "a red cat", "box": [0, 0, 0.5, 1]}]
    settings = {"prompt": "a photo", "negative_prompt": "blue", "seed": 3, "steps": 1}
    Path("canvas.json").write_text(scene.to_json(settings, scene.clean(entries, (256, 256))))
    assert main(["sample", "--region", "canvas.json", "--out", "a"]) == 0  # all from the file
    same = ["sample", "a photo", "--negative-prompt", "blue", "--seed", "3", "--steps", "1", "--out", "b"]
    assert main([*same, "--region", "0,0,0.5,1:a red cat"]) == 0
    assert pixels(Path("a"), "0003.png") == pixels(Path("b"), "0003.png")
    assert main(["sample", "a dog", "--seed", "4", "--region", "canvas.json", "--out", "a"]) == 0
    assert Path("a/0004.png").is_file()  # the command line counts more


def test_regions_are_isolated_if_asked(here, monkeypatch):
    asked = []
    picture = [Image.new("RGB", (8, 8))]
    monkeypatch.setattr(mos.DiffusionModel, "sample", lambda *_, **how: asked.append(how["isolate"]) or picture)
    assert draw("--region", "0,0,0.5,1:a") == draw("--region", "0,0,0.5,1:a", "--isolate") == 0
    assert asked == [False, True]


def test_tuning_names_the_concept_and_replaces_nothing_unasked(here, capsys):
    data = str(write_concept(here / "data", "ruby", "red"))
    command = ["tune", data, "--name", "kiki", "--words", "k1", "<k2>", "--steps", "1"]
    assert main(command) == 0
    out = Path("out/concepts/kiki")
    assert Concept.load(out).words == ("<k1>", "<k2>") and Concept.load(out).name == "kiki"
    assert [p.name for p in out.parent.iterdir()] == ["kiki"]
    assert 'mixofshow sample "a photo of a <k1> <k2>" --concept out/concepts/kiki' in capsys.readouterr().out
    old = snapshot(out)
    assert main([*command, "--class-word", "dog"]) == 1 and snapshot(out) == old
    assert "is there already" in capsys.readouterr().err
    assert main([*command, "--class-word", "dog", "--overwrite"]) == 0 and Concept.load(out).class_word == "dog"


def test_a_concept_is_renamed_beside_itself(here, tiny_base, capsys):
    old = make_concept(tiny_base).save("concepts/bibi")
    before = snapshot(old)
    assert main(["rename", str(old), "kiki"]) == 0 and main(["rename", str(old), "coco", "--words", "c", "d"]) == 0
    assert Concept.load("concepts/kiki").words == ("<kiki1>", "<kiki2>") and snapshot(old) == before
    assert Concept.load("concepts/coco").words == ("<c>", "<d>")
    assert "mixofshow sample" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_a_fused_lora_has_the_format_asked_for(here, tiny_base, capsys):
    folders = [str(make_concept(tiny_base, name, len(name)).save(name)) for name in ("ruby", "coral")]
    assert main(["fuse", *folders, "--method", "weight", "--lora", "x.safetensors", "--format", "kohya"]) == 0
    assert all(key.startswith("lora_") for key in load_file("x.safetensors"))
    said = capsys.readouterr().out
    assert "--base out/fused" in said and "--isolate" in said
    old = snapshot(here)
    assert main(["fuse", folders[0]]) == 1 and snapshot(here) == old


def test_a_folder_of_pictures_is_scored_against_a_folder(here, capsys):
    clip = build_clip(here)
    for name in ("a.png", "b.jpg"):
        Path("mine").mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), "red").save(Path("mine", name))
    how = ["evaluate", "mine", "--clip", str(clip), "--references", str(write_concept(here, "ruby", "red"))]
    assert main(how) == 0
    said = capsys.readouterr()
    assert said.err == "" and float(said.out.split()[-1]) == pytest.approx(1, abs=1e-3)


def test_a_full_disk_after_tuning_loses_nothing(here, monkeypatch, capsys):
    """The tuned concept stays in the checkpoint, and the same command saves it once there is room."""
    data = str(write_concept(here / "data", "ruby", "red"))
    with monkeypatch.context() as patch:
        full = OSError(28, "No space left on device")
        patch.setattr("mixofshow_lite.files.folder.save_file", lambda *_: (_ for _ in ()).throw(full))
        assert main(["tune", data, "--steps", "2"]) == 1
    assert "free some space" in capsys.readouterr().err and list(Path("out/concepts").iterdir()) == [
        Path("out/concepts/ruby.checkpoint")
    ]
    monkeypatch.setattr("mixofshow_lite.engine.tuning.denoising_loss", None)  # not a step more
    assert main(["tune", data, "--steps", "2"]) == 0 and Concept.load("out/concepts/ruby").name == "ruby"


def test_a_demo_keeps_what_is_not_its_own(here, tiny_base, capsys):
    pair = [str(write_concept(here / "data", name, "red")) for name in ("ruby", "jade")]
    Path("out").mkdir()
    Path("out/demo.png").write_text("mine")
    command = ["demo", "--concepts", *pair, "--steps", "1", "--base", "pocket"]
    assert main(command) == 1 and "no demo has written" in capsys.readouterr().err
    Path("out/demo.png").unlink()
    make_concept(tiny_base, "ruby").save("out/concepts/ruby")
    old = snapshot(here)
    assert main(command) == 1 and "a concept of your own" in capsys.readouterr().err and snapshot(here) == old


class Program:
    """A pickle of this would write a file when it is opened."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_pickles_are_converted_or_refused_in_one_sentence(tiny_base, concept, tmp_path, monkeypatch, capsys):
    """An official .pth, another program's LoRA under four endings, and what is neither."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "load", lambda args: tiny_base)
    torch.save(official(concept), "own.pth")
    assert main(["convert", "own.pth", "own"]) == 0 and Concept.load("own").words == concept.words
    state = load_file(concept.to_lora("x.safetensors"))
    for ending in concepts.PICKLES:
        file = f"lora{ending}"
        torch.save(state if ending != ".ckpt" else {"state_dict": state}, file)
        assert main(["convert", file, ending[1:]]) == 1 and "--class-word" in capsys.readouterr().err
        assert main(["convert", file, ending[1:], "--class-word", "rabbit"]) == 0
        assert same(Concept.load(ending[1:]), concept)
    capsys.readouterr()
    torch.save({"unet": Program()}, "evil.pt")
    torch.save({"string_to_param": {"*": torch.zeros(2, 32)}, "name": "x"}, "words.pt")
    Path("half.pt").write_bytes(Path("lora.pt").read_bytes()[:900])
    Path("text.bin").write_text("<html>not found</html>")
    for file, says in {
        "evil.pt": "could run somebody's program",
        "words.pt": "textual-inversion embedding",
        "half.pt": "is truncated or no .pt",
        "text.bin": "no pickle at all",
    }.items():
        assert main(["convert", file, "out", "--class-word", "rabbit"]) == 1
        said = capsys.readouterr().err
        assert says in said and len(said.splitlines()) == 1 and not Path("out").exists() and not Path("ran").exists()
