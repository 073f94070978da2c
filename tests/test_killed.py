"""kill -9 at random moments: the old or the new is there, and the same command ends as if nothing had happened.

Each act runs in a child process, a copy of this one, so that nothing is imported again. KILLS=50 kills every act so
often; by default a few times. The moments are random parts of the time that the act takes when it is left alone.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from PIL import Image
from test_center import SETTINGS
from test_demo import write_concept
from test_vote import toy_ballot
from tiny import make_concept
from tiny_clip import build_clip

import mixofshow_lite as mos
from mixofshow_lite import Concept, ConceptData
from mixofshow_lite import demo as demo_module
from mixofshow_lite.center import CenterNode
from mixofshow_lite.cli import main
from mixofshow_lite.engine.checkpoint import Checkpoint
from mixofshow_lite.engine.resume import tune_once
from mixofshow_lite.paper.vote import asks, read_votes

KILLS = int(os.environ.get("KILLS", 3))

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot copy a process"),
    pytest.mark.filterwarnings("ignore"),
]


def run(act, seconds=None) -> bool:
    """Run `act` in a child and kill it after so many seconds; whether it came to its end before."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1), os.dup2(silent, 2)
            code = act() or 0
        finally:
            os._exit(code)
    end = time.monotonic() + (600 if seconds is None else seconds)
    done, status = 0, 0
    while not done and time.monotonic() < end:
        time.sleep(0.002)
        done, status = os.waitpid(child, os.WNOHANG)
    if not done:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert seconds is not None, "the act never ends"
        return False
    assert status == 0, "the act failed by itself"
    return True


def kill_often(act, check, takes, seed=0, kills=None):
    """Kill `act` at random moments of the time it takes, `check` what is there after each, and let it end at last."""
    moments = random.Random(seed)
    for _ in range(KILLS if kills is None else kills):
        run(act, moments.uniform(0, 1.2) * takes)
        check()
    assert run(act)
    check()


def timed(act) -> float:
    start = time.monotonic()
    assert run(act)
    return time.monotonic() - start


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder; what a killed writer has left under a hidden name is the next writer's business."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if ".part" not in str(p.relative_to(folder))}


def test_tuning(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "every", 1)
    data = ConceptData(write_concept(tmp_path, "ruby", "red"))

    def act(name="a"):
        tune_once(tiny_base, data, tmp_path / name / "ruby", steps=4, progress=False)

    def check():
        if (tmp_path / "b/ruby").exists():
            assert Concept.load(tmp_path / "b/ruby").words == ("<ruby1>", "<ruby2>")

    takes = timed(act)
    kill_often(lambda: act("b"), check, takes)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["ruby"]  # nothing is left behind


def test_the_command_tune(tiny_base, tiny_folder, tmp_path, monkeypatch):
    """The whole command; a checkpoint is only removed when its concept is saved."""
    monkeypatch.setattr(Checkpoint, "every", 1)
    monkeypatch.setattr("mixofshow_lite.cli.options.load", lambda args: tiny_base)
    data = str(write_concept(tmp_path, "ruby", "red"))

    def act(name="a"):
        out = tmp_path / name / "ruby"
        if out.exists():
            return 0  # it says that it is there already
        return main(["tune", data, "--steps", "3", "--out", str(out), "--base", str(tiny_folder)])

    def check():
        if (tmp_path / "b/ruby").exists():
            Concept.load(tmp_path / "b/ruby")
        elif (tmp_path / "b").exists():
            kept.append(any((tmp_path / "b").glob("*.checkpoint")))

    kept = []
    takes = timed(act)
    kill_often(lambda: act("b"), check, takes, seed=1)
    assert kept == sorted(kept)  # once a checkpoint was there, it never went before the concept came
    assert contents(tmp_path / "a/ruby") == contents(tmp_path / "b/ruby")


def test_the_center_node(tiny_base, tmp_path):
    concepts = [make_concept(tiny_base, name, seed) for seed, name in enumerate(("bibi", "kiki"))]
    for concept in concepts:  # a few layers of each stage
        concept.lora = {net: dict(list(found.items())[::12]) for net, found in concept.lora.items()}

    def act(name="a"):
        folder = tmp_path / name
        there = (folder / "center.json").exists()
        node = CenterNode.load(folder, tiny_base) if there else CenterNode(tiny_base, folder, **SETTINGS)
        for concept in concepts:
            if concept.name not in node.members:
                node.join(concept)
        node.reweight("bibi", 2.0)
        node.fuse(progress=False)

    def check():
        if (tmp_path / "b/center.json").exists():
            weights = CenterNode.load(tmp_path / "b", tiny_base).weights
            before.append(weights)
            assert weights in ({}, {"bibi": 1}, {"bibi": 1, "kiki": 1}, {"bibi": 2, "kiki": 1})

    before = []
    takes = timed(act)
    kill_often(lambda: act("b"), check, takes, seed=2)
    sizes = [sum(weights.values()) for weights in before]
    assert sizes == sorted(sizes)  # no member is ever lost
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_concept_that_is_saved_again(tiny_base, tmp_path):
    old, new = make_concept(tiny_base, "bibi", 0), make_concept(tiny_base, "bibi", 1)
    folder = old.save(tmp_path / "b/bibi")
    (folder / "README.md").write_text("my own card")
    (folder / "LICENSE").write_text("mine")
    states = [contents(tmp_path / "b")]
    timed(lambda: new.save(folder) and 0)
    states.append(contents(tmp_path / "b"))
    assert states[0] != states[1]
    takes = timed(lambda: old.save(folder) and 0)
    turn = [old, new] * 2

    def check():
        assert contents(tmp_path / "b") in states

    for number in range(max(1, KILLS // 2)):
        kill_often(lambda number=number: turn[number % 2].save(folder) and 0, check, takes, seed=number, kills=4)
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["bibi"]


def test_fusing_again_and_sampling(tiny_base, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("mixofshow_lite.cli.options.load", lambda args: tiny_base)
    two = [str(make_concept(tiny_base, name, len(name)).save(tmp_path / name)) for name in ("ruby", "gold1")]
    out, lora = tmp_path / "b/fused", tmp_path / "b/fused.safetensors"
    command = ["fuse", *two, "--method", "weight", "--out", str(out), "--lora", str(lora), "--overwrite"]

    def act(weights="2,1"):
        return main([*command, "--base", str(tiny_folder), "--weights", weights])

    timed(lambda: act("1,1"))
    old = contents(out), lora.read_bytes()
    takes = timed(act)
    new = contents(out), lora.read_bytes()
    assert old[0] != new[0] and old[1] != new[1] and run(lambda: act("1,1"))

    def check():
        assert contents(out) in (old[0], new[0]) and lora.read_bytes() in (old[1], new[1])

    kill_often(act, check, takes, seed=3)
    assert (contents(out), lora.read_bytes()) == new and not list((tmp_path / "b").glob(".*"))

    def draw():
        return main(["sample", "a cat", "--steps", "1", "-n", "10", "--out", str(tmp_path / "p"), "--size", "64"])

    def all_whole():
        for file in (tmp_path / "p").glob("*.png"):
            with Image.open(file) as picture:
                picture.load()
        assert {k: v for k, v in contents(tmp_path / "p").items() if k in first} == first

    first = {}
    takes = timed(draw)
    first = contents(tmp_path / "p")
    kill_often(draw, all_whole, takes, seed=4)
    assert len(contents(tmp_path / "p")) >= 20


def test_the_vote(tmp_path):
    """Every answer that the page has taken is on the disk, and the same name goes on where it stopped."""
    widgets = pytest.importorskip("mixofshow_lite.course.widgets")
    ballot = toy_ballot(30)

    def act(name="a"):
        page = widgets.VotePage(ballot, tmp_path / name / "votes.jsonl", "ada")
        taken = os.open(tmp_path / f"{name}.taken", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        while page._question:
            asked = (page._question["at"], page._question["kind"])
            page.answer(sum(map(ord, str(asked))) % 2)
            os.write(taken, f"{asked}\n".encode())

    def check():
        found = votes("b")
        known = (tmp_path / "b.taken").read_text().splitlines() if (tmp_path / "b.taken").exists() else []
        assert set(known) <= found.keys() and len(found) <= len(known) + len(counts) + 1
        assert found.items() <= votes("a").items()
        counts.append(len(found))

    def votes(name):
        numbers = {(ask.pair.name, ask.question): i for i, ask in enumerate(asks(ballot, "ada"))}
        read = read_votes(tmp_path / name / "votes.jsonl")
        return {str((numbers[v["pair"], v["question"]], v["question"])): v["choice"] for v in read}

    counts = []
    takes = timed(act)
    assert len(votes("a")) == 60
    kill_often(lambda: act("b"), check, takes, seed=6)
    assert counts == sorted(counts) and counts[-1] == 60  # no vote is ever lost


def test_the_demo(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "every", 1)
    monkeypatch.setattr(demo_module, "gradient_fusion", lambda *args, seed: mos.weight_fusion(*args))  # quicker
    rows = ("references", *demo_module.MODELS, "both, direct", "both, regions")
    monkeypatch.setattr(demo_module, "draw_rows", lambda *_: {row: [[Image.new("RGB", (64, 64))]] * 2 for row in rows})
    clip = str(build_clip(tmp_path / "clip"))
    pair = tuple(str(write_concept(tmp_path / "data", n, c)) for n, c in (("ruby", "red"), ("jade", "green")))

    def act(name="a"):
        demo_module.demo(tmp_path / name, pair, tiny_base, steps=2, n=1, clip=clip, progress=False)

    def check():
        for folder in (tmp_path / "b/concepts").glob("[!.]*"):
            Concept.load(folder)
        for file in (tmp_path / "b").glob("demo.png"):
            with Image.open(file) as picture:
                picture.load()

    takes = timed(act)
    kill_often(lambda: act("b"), check, takes, seed=5)
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} <= {"demo.png"}  # it may hold a date
