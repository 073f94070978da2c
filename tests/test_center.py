"""The center node (paper 3.2): who joins and leaves, what is exact, what is on disk, and what a kill leaves behind."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from tiny import make_concept, spread, weights_of

from mixofshow_lite.center import CenterNode
from mixofshow_lite.center import node as center
from mixofshow_lite.engine.fusion import gradient, gradient_fusion, grams, memory
from mixofshow_lite.engine.fusion.algebra import dense
from mixofshow_lite.files import writing

SETTINGS = {"prompts": ("photo of a {}",), "steps": 1, "guidance": 1, "size": 64}
MODULES = ("self_attn.q_proj", "attn1.to_q", "attn2.to_k")


@pytest.fixture(scope="module")
def three(tiny_base):
    """Concepts with few layers, of every stage."""
    whole = [make_concept(tiny_base, name, seed) for seed, name in enumerate(("bibi", "coco", "dodo"))]
    return [
        replace(c, lora={net: {n: p for n, p in f.items() if n.endswith(MODULES)} for net, f in c.lora.items()})
        for c in whole
    ]


@pytest.fixture(scope="module")
def fresh(tiny_base, three):
    """Fresh fusions to compare with: of the first two, and of all three."""
    return {n: gradient_fusion(tiny_base, three[:n], progress=False, **SETTINGS) for n in (2, 3)}


@pytest.fixture
def sampled(monkeypatch):
    """The prompts that were sampled, in their order."""
    prompts, original = [], gradient.record_spatial

    def counting(model, names, given, *args, **kwargs):
        prompts.extend(given)
        return original(model, names, given, *args, **kwargs)

    monkeypatch.setattr(gradient, "record_spatial", counting)
    return prompts


def test_join_and_leave(tiny_base, three, fresh, sampled):
    node = CenterNode(tiny_base, **SETTINGS)
    for concept in three[:2]:
        node.join(concept)
    assert spread(node.fuse(progress=False), fresh[2]) == 0 and len(sampled) == 2 and node.stale() == []
    node.join(three[2])
    assert node.stale() == ["bibi", "coco"]
    quick = node.fuse(progress=False)
    assert len(sampled) == 3 and three[2].phrase in sampled[2]  # the newcomer alone
    exact = [n for n in weights_of(quick) if n.startswith("text_encoder") or grams.CONTEXT_LINEAR.search(n)]
    assert all(torch.equal(weights_of(quick)[n], weights_of(fresh[3])[n]) for n in exact)
    gap = spread(quick, fresh[3])
    assert 0 < gap < 0.6 * spread(fresh[2], fresh[3])  # spatial layers: near, but not the same

    measured = node.approximation(progress=False)
    size = math.sqrt(sum(dense(p).square().sum() for f in fresh[3].report.factors.values() for p in f.values()))
    assert measured.weights == pytest.approx(gap / size, rel=1e-3)
    assert measured.residual["bibi"][1] == pytest.approx(fresh[3].report.residual("bibi", "spatial layers"))
    assert node.stale() == ["bibi", "coco"] and "differs from the exact one" in str(measured)  # nothing was kept of it

    sampled.clear()
    assert spread(node.fuse(exact=True, progress=False), fresh[3]) == 0 and len(sampled) == 2
    node.leave(three[2])
    assert not any("dodo" in key for key in node.memory.kept)
    assert spread(node.fuse(exact=True, progress=False), fresh[2]) == 0
    with pytest.raises(ValueError, match="no member"):
        node.leave("dodo")


def test_who_leaves_right_after_joining_leaves_no_trace(tiny_base, three, fresh, sampled):
    node = CenterNode(tiny_base, **SETTINGS)
    node.join(three[0])
    node.join(three[1])
    node.fuse(progress=False)
    node.join(three[2])
    node.fuse(progress=False)
    node.leave("dodo")
    assert node.stale() == [] and len(sampled) == 3
    assert spread(node.fuse(progress=False), fresh[2]) == 0 and len(sampled) == 3


def test_reweight(tiny_base, three):
    node = CenterNode(tiny_base, **SETTINGS)
    for concept in three[:2]:
        node.join(concept)
    node.fuse(progress=False)
    node.reweight("coco", 3)
    assert node.stale() == ["bibi", "coco"]
    expected = gradient_fusion(tiny_base, three[:2], weights=[1, 3], progress=False, **SETTINGS)
    assert spread(node.fuse(exact=True, progress=False), expected) == 0
    for weight in (-1, math.nan):
        with pytest.raises(ValueError, match="one number >= 0"):
            node.reweight("coco", weight)
    with pytest.raises(ValueError, match="no member"):
        node.reweight("dodo", 1)
    assert node.weights == {"bibi": 1.0, "coco": 3.0}


def test_a_bad_concept_does_not_join(tiny_base, three, tmp_path):
    node = CenterNode(tiny_base, tmp_path / "node", **SETTINGS)
    node.join(three[0])
    name, (down, up) = next(iter(three[1].lora["unet"].items()))
    bad = {
        "already a concept called": three[0],
        "already used by": replace(three[1], words=three[0].words, embeddings=three[0].embeddings),
        "not finite": replace(three[1], lora={"unet": {name: (down * math.nan, up)}}),
    }
    for message, concept in bad.items():
        with pytest.raises(ValueError, match=message):
            node.join(concept)
    wordless = replace(three[1], words=(), embeddings={}, phrase="", class_word="")
    with pytest.raises(ValueError, match="no words"):
        CenterNode(tiny_base).join(wordless)
    assert (
        list(node.members)
        == ["bibi"]
        == [c.name for c in CenterNode.load(tmp_path / "node", tiny_base).members.values()]
    )
    with pytest.raises(ValueError, match="no concept to fuse"):
        CenterNode(tiny_base, **SETTINGS).fuse()
    with pytest.raises(ValueError, match="no solver"):
        CenterNode(tiny_base, solver="adam")


def test_a_restarted_node_goes_on_where_it_was(tiny_base, three, fresh, tmp_path, sampled):
    folder = tmp_path / "node"
    node = CenterNode(tiny_base, folder, **SETTINGS)
    node.join(three[0], weight=2)
    node.join(three[1], weight=2)
    node.fuse(progress=False)
    again = CenterNode.load(folder, tiny_base)
    assert again.settings.as_dict() == node.settings.as_dict() and again.weights == {"bibi": 2.0, "coco": 2.0}
    assert again.stale() == []
    sampled.clear()
    assert spread(again.fuse(progress=False), fresh[2]) == 0 and sampled == []
    again.leave("coco")
    kept = [p.name for p in folder.rglob("*") if "coco" in p.name]
    assert kept == [] and list(CenterNode.load(folder, tiny_base).members) == ["bibi"]
    with pytest.raises(FileExistsError, match="holds a center node already"):
        CenterNode(tiny_base, folder)


def test_a_node_in_memory_can_be_saved_later(tiny_base, three, fresh, tmp_path, sampled):
    node = CenterNode(tiny_base, **SETTINGS)
    node.join(three[0])
    node.join(three[1])
    node.fuse(progress=False)
    node.save(tmp_path / "node")
    sampled.clear()
    again = CenterNode.load(tmp_path / "node", tiny_base)
    assert spread(again.fuse(progress=False), fresh[2]) == 0 and sampled == []
    node.leave("bibi")  # it lives in the folder from now on
    assert list(CenterNode.load(tmp_path / "node", tiny_base).members) == ["coco"]


def test_what_is_stored_is_concepts_and_grams(tiny_base, three, tmp_path):
    """Square symmetric positive matrices and counts; no prompt, and nothing of the size of a picture or a feature."""
    node = CenterNode(tiny_base, tmp_path / "node", **SETTINGS)
    node.join(three[0])
    node.fuse(progress=False)
    kinds = {p.relative_to(tmp_path / "node").parts[0] for p in (tmp_path / "node").rglob("*") if p.is_file()}
    assert kinds == {"center.json", "concepts", "statistics"}
    files = list((tmp_path / "node" / "statistics").iterdir())
    assert len(files) == 3 and all(f.name.startswith("bibi.") for f in files)
    for file in files:
        with safe_open(file, "pt") as stored:
            about = stored.metadata()
            assert set(about) == {"concept", "stage", "key", "made_with", "rows"}
            assert "photo" not in json.dumps(about) and set(json.loads(about["rows"])) == set(stored.keys())
            for key in stored.keys():
                gram = stored.get_tensor(key)
                assert gram.shape[0] == gram.shape[1] and torch.allclose(gram, gram.T, atol=1e-4 * gram.abs().max())
                assert torch.linalg.eigvalsh(gram.double())[0] > -1e-4 * gram.trace()


class Killed(BaseException):
    """Stands for a kill: nothing catches it on purpose."""


def killed_at(monkeypatch, module, name, call, before=True):
    """Let the given call of `module.name` die, before or after it did its work."""
    original, calls = getattr(module, name), [0]

    def deadly(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call and before:
            raise Killed
        result = original(*args, **kwargs)
        if calls[0] == call:
            raise Killed
        return result

    monkeypatch.setattr(module, name, deadly)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("act", ["join", "leave", "reweight"])
def test_killed_while_the_membership_changes(tiny_base, three, tmp_path, monkeypatch, act, before):
    """Whatever step it dies at, the restarted node has the old membership or the new one, and no leftovers."""
    old, new = {"join": ({"bibi": 1}, {"bibi": 1, "coco": 1}), "leave": ({"bibi": 1, "coco": 1}, {"bibi": 1})}.get(
        act, ({"bibi": 1, "coco": 1}, {"bibi": 1, "coco": 5})
    )
    do = {
        "join": lambda node: node.join(three[1]),
        "leave": lambda node: node.leave("coco"),
        "reweight": lambda node: node.reweight("coco", 5),
    }[act]
    steps = {
        "join": [(center.Concept, "save"), (center, "write_text")],
        "leave": [(center, "write_text"), (memory.Memory, "forget"), (shutil, "rmtree")],
        "reweight": [(center, "write_text"), (writing.os, "replace")],
    }[act]
    for number, (module, name) in enumerate(steps):
        folder = tmp_path / str(number)
        node = CenterNode(tiny_base, folder, **SETTINGS)
        for concept in three[: len(old)]:
            node.join(concept)
        with monkeypatch.context() as patch:
            killed_at(patch, module, name, 1, before)
            with pytest.raises(Killed):
                do(node)
        again = CenterNode.load(folder, tiny_base)
        assert again.weights in (old, new), (name, again.weights)
        if name == "write_text":
            assert again.weights == (old if before else new)
        found = {p.name.split(".")[0] for p in (folder / "concepts").iterdir()}
        assert found == set(again.members) and not list(folder.rglob("*.part"))
        if again.weights == old:
            do(again)  # and it can simply be done again
        assert CenterNode.load(folder, tiny_base).weights == new


def test_killed_while_recording(tiny_base, three, fresh, tmp_path, monkeypatch, sampled):
    """What was recorded before the kill is not recorded again; the result is that of an undisturbed run."""
    folder = tmp_path / "node"
    node = CenterNode(tiny_base, folder, **SETTINGS)
    node.join(three[0])
    node.join(three[1])
    with monkeypatch.context() as patch:
        killed_at(patch, gradient, "record_spatial", 2)
        with pytest.raises(Killed):
            node.fuse(progress=False)
    assert len(sampled) == 1
    again = CenterNode.load(folder, tiny_base)
    texts = []
    with monkeypatch.context() as patch:
        patch.setattr(gradient, "record_text", lambda *args: texts.append(args))
        assert spread(again.fuse(progress=False), fresh[2]) == 0
    assert texts == [] and len(sampled) == 2 and three[1].phrase in sampled[1]


def test_killed_while_writing_leaves_the_old_or_nothing(tiny_base, three, fresh, tmp_path, monkeypatch):
    folder = tmp_path / "node"
    node = CenterNode(tiny_base, folder, **SETTINGS)
    node.join(three[0])
    node.join(three[1])
    with monkeypatch.context() as patch:
        killed_at(patch, writing.os, "replace", 2)
        with pytest.raises(Killed):
            node.fuse(progress=False)
    part = folder / "statistics" / "left.part"
    part.write_bytes(b"half a file")
    again = CenterNode.load(folder, tiny_base)
    assert not part.exists() and len(again.memory.kept) == 1
    assert spread(again.fuse(progress=False), fresh[2]) == 0


def test_a_truncated_recording_is_recorded_again(tiny_base, three, fresh, tmp_path):
    folder = tmp_path / "node"
    node = CenterNode(tiny_base, folder, **SETTINGS)
    node.join(three[0])
    node.join(three[1])
    node.fuse(progress=False)
    file = next((folder / "statistics").glob("coco*spatial*"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.warns(UserWarning, match="will be recorded again"):
        again = CenterNode.load(folder, tiny_base)
    assert spread(again.fuse(progress=False), fresh[2]) == 0


def test_a_recording_of_another_concept_or_setting_is_not_taken(tiny_base, three, tmp_path, sampled):
    node = CenterNode(tiny_base, tmp_path / "node", **SETTINGS)
    node.join(three[0])
    node.fuse(progress=False)
    about = json.loads((tmp_path / "node" / "center.json").read_text())
    about["settings"]["seed"] = 7
    (tmp_path / "node" / "center.json").write_text(json.dumps(about))
    again = CenterNode.load(tmp_path / "node", tiny_base)
    fresh = memory.Memory()
    gradient_fusion(tiny_base, three[:1], seed=7, memory=fresh, progress=False, **SETTINGS)
    sampled.clear()
    again.fuse(progress=False)
    assert len(sampled) == 1
    for key, statistics in fresh.kept.items():
        assert all(torch.equal(again.memory.kept[key].grams[f], gram) for f, gram in statistics.grams.items())


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / "center.json").unlink(), FileNotFoundError, "holds no center node"),
        (lambda f: (f / "center.json").write_text("{"), ValueError, "cannot be read"),
        (lambda f: (f / "center.json").write_text("{}"), ValueError, "cannot be read"),
        (lambda f: next(f.glob("concepts/*/concept.json")).unlink(), FileNotFoundError, "concept"),
    ],
)
def test_a_damaged_node_is_one_sentence(tiny_base, three, tmp_path, damage, error, message):
    folder = tmp_path / "node"
    CenterNode(tiny_base, folder, **SETTINGS).join(three[0])
    damage(folder)
    with pytest.raises(error, match=message) as caught:
        CenterNode.load(folder, tiny_base)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_a_file_is_told_and_nobody_leaves(tiny_base, three, tmp_path):
    """Whoever leaves is deleted: where that cannot be done, the member stays, and one sentence says why."""
    for name in ("concepts", "statistics"):
        folder = tmp_path / name / "node"
        node = CenterNode(tiny_base, folder, **SETTINGS)
        for concept in three[:2]:
            node.join(concept)
        whole = (folder / "center.json").read_text()
        shutil.rmtree(folder / name)
        (folder / name).write_text("x")
        with pytest.raises(NotADirectoryError, match=f"{name} is a file, no folder"):
            CenterNode.load(folder, tiny_base)
        if name == "concepts":
            for act in (lambda: node.leave("coco"), lambda: node.join(three[2]), lambda: node.reweight("coco", 2)):  # noqa: B023
                with pytest.raises(NotADirectoryError, match="concepts is a file, no folder"):
                    act()
        assert list(node.members) == ["bibi", "coco"] and (folder / "center.json").read_text() == whole
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="file is a file, no folder"):
        CenterNode(tiny_base, tmp_path / "file", **SETTINGS)


def test_a_member_whose_folder_is_gone_is_told(tiny_base, three, tmp_path):
    """center.json never names what is not there; the one who is gone may leave, and the node can be saved elsewhere."""
    node = CenterNode(tiny_base, tmp_path / "node", **SETTINGS)
    for concept in three[:2]:
        node.join(concept)
    shutil.rmtree(center.concept_folder(tmp_path / "node", node.members["bibi"]))
    with pytest.raises(FileNotFoundError, match="where 'bibi' was kept, is gone"):
        node.leave("coco")
    assert CenterNode.load(node.save(tmp_path / "other"), tiny_base).weights == {"bibi": 1.0, "coco": 1.0}
    node.leave("bibi")
    assert list(CenterNode.load(tmp_path / "other", tiny_base).members) == ["coco"]


def test_a_node_without_members_survives_a_copy_that_drops_empty_folders(tiny_base, tmp_path):
    CenterNode(tiny_base, tmp_path / "node", **SETTINGS)
    shutil.rmtree(tmp_path / "node/concepts")
    shutil.rmtree(tmp_path / "node/statistics")
    assert CenterNode.load(tmp_path / "node", tiny_base).members == {}


def test_two_members_of_one_name_are_told(tiny_base, three, tmp_path):
    node = CenterNode(tiny_base, tmp_path / "node", **SETTINGS)
    node.join(three[0])
    folder = center.concept_folder(tmp_path / "node", node.members["bibi"])
    shutil.copytree(folder, folder.with_name("twin"))
    about = json.loads((tmp_path / "node/center.json").read_text())
    about["members"].append({"folder": "twin", "weight": 1})
    (tmp_path / "node/center.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="two members called 'bibi'"):
        CenterNode.load(tmp_path / "node", tiny_base)


def test_another_base_is_refused(tiny_base, three, tmp_path):
    CenterNode(tiny_base, tmp_path / "node", **SETTINGS).join(three[0])
    other = tiny_base.copy()
    other.fingerprint = "0" * 16
    with pytest.raises(ValueError, match="was made for .* load that base"):
        CenterNode.load(tmp_path / "node", other)


def test_a_full_disk_keeps_the_old_membership(tiny_base, three, tmp_path, monkeypatch):
    node = CenterNode(tiny_base, tmp_path / "node", **SETTINGS)
    node.join(three[0])

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writing.os, "replace", full)
        with pytest.raises(OSError, match="free some space"):
            node.reweight("bibi", 2)
    assert node.weights == {"bibi": 1.0} == CenterNode.load(tmp_path / "node", tiny_base).weights
