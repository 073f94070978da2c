"""One round of Mix-of-Show with Flower (paper 3.2): what travels, what is fused, and who is left out."""

import ast
import importlib
import importlib.util
import json
import math
import re
import sys
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_concept, spread

import mixofshow_lite as mos
from mixofshow_lite.files.concept import tensors_of

FUSION = {"prompts": ("photo of a {}",), "steps": 1, "guidance": 1, "size": 64}  # takes a second
SECRET = "photo of <TOK> Orchard"
TUNING = {"recipe": "ed_lora", "seed": 3, "steps": 1}


def test_without_flower_it_is_one_sentence(monkeypatch):
    for name in [
        name for name in sys.modules if name.split(".")[0] == "flwr" or name == "mixofshow_lite.center.flower"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flwr", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r'pip install "mixofshow_lite\[flower\]"') as caught:
        importlib.import_module("mixofshow_lite.center.flower")
    assert "\n" not in str(caught.value)


def test_no_other_module_imports_flower():
    package = Path(mos.__file__).parent
    asking = re.compile(r"^\s*(import|from)\s+(flwr|.*\bflower\b)", re.MULTILINE)
    assert [p.name for p in package.rglob("*.py") if asking.search(p.read_text())] == ["flower.py"]


def test_the_app_of_the_docstring():
    """`flwr run` looks for the apps in the source, as plain assignments, before it imports anything."""
    source = (Path(mos.__file__).parent / "center" / "flower.py").read_text()
    tree = ast.parse(source)
    lines = [line[4:] for line in ast.get_docstring(tree).splitlines() if line.startswith("    ")]
    app = tomllib.loads("\n".join(lines[lines.index("[project]") :]))["tool"]["flwr"]["app"]
    assigned = {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    assert {
        reference.removeprefix("mixofshow_lite.center.flower:") for reference in app["components"].values()
    } < assigned
    assert all(f'"{key}"' in source for key in app["config"])


@pytest.fixture
def flower(monkeypatch):
    """The module, on the CPU, without waiting for clients that do not come; skips without Flower."""
    pytest.importorskip("flwr")
    module = importlib.import_module("mixofshow_lite.center.flower")
    monkeypatch.setattr(module, "load_base", partial(mos.load_base, device="cpu"))
    monkeypatch.setattr(module, "WAIT", 0)
    if importlib.util.find_spec("flwr.supercore.task_identity"):  # who a process is, which Flower sets at its start
        from flwr.supercore.task_identity import TaskIdentity

        for name in ("_run_id", "_node_id", "_task_id"):
            monkeypatch.setattr(TaskIdentity, name, 1, raising=False)
    return module


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """Two clients' private folders, each with two noisy pictures."""
    root = tmp_path_factory.mktemp("clients")
    for seed, name in enumerate(("bibi", "coco")):
        (root / name).mkdir()
        rows = []
        for i in range(2):
            noise = np.random.default_rng(10 * seed + i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / name / f"holiday-{i}.png")
            rows.append({"file_name": f"holiday-{i}.png", "caption": SECRET, "class_word": "rabbit"})
        (root / name / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def context_of(node, config, **run_config):
    from flwr.app import Context, RecordDict

    return Context(run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config=run_config)


class Room:
    """A grid without a network: node id -> answer(message); every message goes through Flower's own bytes."""

    def __init__(self, clients):
        self.clients = clients
        self.wire: list[tuple[int, bytes]] = []  # node id, what travelled from it or to it

    def get_node_ids(self):
        return list(self.clients)

    def travel(self, node, message):
        from flwr.common.serde import message_from_proto, message_to_proto

        proto = message_to_proto(message)
        self.wire.append((node, proto.SerializeToString()))
        return message_from_proto(type(proto).FromString(self.wire[-1][1]))

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            reply = self.clients[node](self.travel(node, message))
            replies += [] if reply is None else [self.travel(node, reply)]
        return replies[::-1]  # a network keeps no order


@pytest.fixture
def tuning_clients(flower, homes, tiny_folder):
    """Two clients that tune at home, as node id -> answer(message)."""
    configs = {
        23: {"pictures": str(homes / "coco"), "class-word": "cat", "name": "dodo"},
        7: {"pictures": str(homes / "bibi")},
    }
    contexts = {node: context_of(node, config, base=str(tiny_folder)) for node, config in configs.items()}
    return {node: lambda message, c=context: flower.client_app(message, c) for node, context in contexts.items()}


def ready(flower, content, spoil=lambda content: None):
    """A client that answers with these records, after `spoil` has changed them."""
    from flwr.app import Message

    spoil(content)
    return lambda message: Message(content, reply_to=message)


def assert_same_tensors(a, b):
    first, second = tensors_of(a), tensors_of(b)
    assert set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_a_whole_round(flower, tuning_clients, homes, tiny_base, tmp_path):
    """The fused model is that of a plain gradient fusion of what the clients tune at home; nothing private travels."""
    room = Room(tuning_clients)
    strategy = flower.CenterStrategy(tiny_base, tmp_path / "out", **TUNING, clients=2, fusion=FUSION)
    result = strategy.start(room, timeout=1)
    assert strategy.left_out == {} and dict(result.train_metrics_clientapp[1]) == {"clients": 2, "left-out": 0}

    options = TUNING | {"progress": False}
    alone = [mos.tune(tiny_base, mos.ConceptData(homes / "bibi"), **options)]
    alone += [mos.tune(tiny_base, mos.ConceptData(homes / "coco"), name="dodo", class_word="cat", **options)]
    members = strategy.center.members
    assert list(members) == ["bibi", "dodo"] and members["dodo"].class_word == "cat"
    for concept in alone:
        assert_same_tensors(concept, members[concept.name])
    expected = mos.gradient_fusion(tiny_base, alone, progress=False, **FUSION)
    assert spread(strategy.fused, expected) == 0 < spread(expected, tiny_base)

    again = mos.load_base(tmp_path / "out" / "fused", device="cpu")
    assert spread(again, expected) < 1e-5 and set(again.words) == {"<bibi1>", "<bibi2>", "<dodo1>", "<dodo2>"}
    center = mos.CenterNode.load(tmp_path / "out" / "center", tiny_base)
    assert set(center.members) == {"bibi", "dodo"} and spread(center.fuse(progress=False), expected) == 0
    nothing_private_travelled(room, alone, homes)


def nothing_private_travelled(room, concepts, homes):
    """Answers hold the Concept's numbers and little else: no caption, no file name, no pixel row of any picture."""
    tasks, answers = room.wire[::2], room.wire[1::2]
    assert all(len(sent) < 1000 for _, sent in tasks)
    for (_, sent), concept in zip(answers, concepts, strict=True):
        tensors = tensors_of(concept)
        numbers = sum(4 * tensor.numel() for tensor in tensors.values())
        assert numbers < len(sent) < numbers + 400 * len(tensors) + 5000
        for private in ("Orchard", "holiday", str(homes)):
            assert private.encode() not in sent
        for file in homes.glob("*/*.png"):
            pixels = np.asarray(Image.open(file))
            assert not any(row.tobytes() in sent for row in pixels) and file.read_bytes()[-200:-20] not in sent
            scaled = pixels.astype(np.float32) / 127.5 - 1
            assert not any(scaled[row, :4].tobytes() in sent for row in range(64))


def test_the_answer_is_two_records(flower, tiny_base):
    concept = replace(make_concept(tiny_base), preview=Image.new("RGB", (64, 64)))
    content = flower.packed(concept)
    assert set(content) == {"tensors", "concept"} and set(content["concept"]) == {"concept.json"}
    assert list(content["tensors"]) == list(tensors_of(concept))
    back = flower.unpacked(content, tiny_base)
    assert replace(back, preview=None, embeddings={}, lora={}) == replace(concept, embeddings={}, lora={}, preview=None)
    assert_same_tensors(back, concept)


def test_a_failing_client_says_nothing_private(flower, homes, tiny_base, tiny_folder, tmp_path, caplog):
    """Its own log has the sentence with the caption, the center hears that it failed and goes on."""
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "mine" / "0.png")
    (tmp_path / "mine" / "0.txt").write_text("our rabbit, Orchard Lane")  # no <TOK> in it
    context = context_of(1, {"pictures": str(tmp_path / "mine")}, base=str(tiny_folder))
    room = Room({1: lambda message: flower.client_app(message, context), 2: ready(flower, packed(flower, tiny_base))})
    strategy = flower.CenterStrategy(tiny_base, tmp_path / "out", **TUNING, fusion=FUSION)
    with caplog.at_level("INFO", logger="flwr"):
        strategy.start(room, timeout=1)
    assert strategy.left_out == {1: "it tuned nothing (ValueError), its own log says why."}
    assert "Orchard Lane" in caplog.text and "Client 1 is left out: it tuned nothing" in caplog.text
    assert not any(b"Orchard" in sent or b"mine" in sent for _, sent in room.wire)
    assert list(strategy.center.members) == ["bibi"]


def packed(flower, base, **changes):
    return flower.packed(replace(make_concept(base), **changes))


def rewrite(**fields):
    """Change fields of an answer's concept.json."""

    def spoil(content):
        about = json.loads(content["concept"]["concept.json"]) | fields
        content["concept"]["concept.json"] = json.dumps(about)

    return spoil


def drop(name):
    return lambda content: content.pop(name)


def drop_array(content):
    content["tensors"].pop("embeddings.<bibi2>")


def cut_array(content):
    array = content["tensors"]["embeddings.<bibi2>"]
    array.data = array.data[: len(array.data) // 2]


def pickled_array(content):
    from io import BytesIO

    from flwr.app import Array

    file = BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    content["tensors"]["embeddings.<bibi2>"] = Array("object", (1,), "numpy.ndarray", file.getvalue())


def not_finite(content):
    from flwr.app import Array

    content["tensors"]["embeddings.<bibi1>"] = Array(content["tensors"]["embeddings.<bibi1>"].numpy() * math.nan)


def too_few_rows(content):
    from flwr.app import Array

    for word in ("<bibi1>", "<bibi2>"):
        content["tensors"][f"embeddings.{word}"] = Array(content["tensors"][f"embeddings.{word}"].numpy()[:3])
    rewrite(layers=["a", "b", "c"])(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop("tensors"), r"cannot be read as a concept \(KeyError\)"),
        (drop("concept"), r"cannot be read as a concept \(KeyError\)"),
        (cut_array, "cannot be read as a concept"),
        (pickled_array, "cannot be read as a concept"),
        (lambda content: content["concept"].update({"concept.json": "{"}), "cannot be read as a concept"),
        (drop_array, "^its answer is no whole concept .the rows of <bibi2> are missing"),
        (rewrite(format="zip"), "^its answer/concept.json has the unknown format 'zip'"),
        (rewrite(fingerprint="0" * 16), "was tuned on .*, the center fuses on .*: tune it there"),
        (rewrite(fingerprint=""), "does not say what it was tuned on"),
        (too_few_rows, r"is \(3, 32\), the base has \(16, 32\)"),
        (not_finite, "weights that are not finite"),
        (rewrite(scale=math.nan), "The scale of 'bibi' is no usable number"),
        (rewrite(scale=10**400), "The scale of 'bibi' is no usable number"),
        (rewrite(name="\ud800"), "cannot be read as a concept"),
        (rewrite(name="coco"), "^The word <bibi1> of 'coco' is already used by 'bibi'"),
        (lambda content: None, "^There is already a concept called 'bibi'"),
    ],
)
def test_broken_and_foreign_answers_are_left_out(flower, tiny_base, tmp_path, monkeypatch, spoil, message):
    monkeypatch.setattr(flower.CenterNode, "fuse", lambda self, progress: tiny_base)
    room = Room({5: ready(flower, packed(flower, tiny_base), spoil), 4: ready(flower, packed(flower, tiny_base))})
    strategy = flower.CenterStrategy(tiny_base, tmp_path / "out", **TUNING)
    result = strategy.start(room, timeout=1)
    assert list(strategy.left_out) == [5] and list(strategy.center.members) == ["bibi"]
    assert re.search(message, strategy.left_out[5]) and "\n" not in strategy.left_out[5]
    assert str(tmp_path.parent.parent) not in strategy.left_out[5]
    assert dict(result.train_metrics_clientapp[1]) == {"clients": 1, "left-out": 1}


def test_a_word_of_the_language_is_no_concept_word(flower, tiny_base):
    concept = make_concept(tiny_base)
    rows = dict(zip(("photo", "<bibi2>"), concept.embeddings.values(), strict=True))
    content = flower.packed(replace(concept, words=tuple(rows), embeddings=rows))
    with pytest.raises(ValueError, match="'photo' of 'bibi' is no concept word"):
        flower.unpacked(content, tiny_base)


def test_nobody_usable_is_an_error(flower, tiny_base, tmp_path):
    from flwr.app import Error, Message

    silent, failed = (lambda message: None), (lambda message: Message(Error(2, "a\nb"), reply_to=message))
    room = Room({1: silent, 2: failed, 3: lambda message: Message(Error(5), reply_to=message)})
    strategy = flower.CenterStrategy(tiny_base, tmp_path / "out", **TUNING)
    with pytest.raises(RuntimeError, match="No usable concept came from 3 clients"):
        strategy.start(room, timeout=1)
    assert "did not answer in time" in strategy.left_out[1] and strategy.left_out[2] == "a b"
    assert "Flower's error 5" in strategy.left_out[3] and not (tmp_path / "out").exists()
    with pytest.raises(RuntimeError, match="No client is connected"):
        flower.CenterStrategy(tiny_base, tmp_path / "out", **TUNING).start(Room({}))


def test_what_cannot_work_fails_before_anybody_tunes(flower, tiny_base, tmp_path):
    (tmp_path / "0.png").touch()
    for options, error, message in (
        ({"output": tmp_path}, FileExistsError, "choose another folder"),
        ({"recipe": "magic"}, ValueError, "There is no recipe 'magic'"),
        ({"steps": -1}, ValueError, "tune for at least one step"),
        ({"fusion": {"solver": "adam"}}, ValueError, "no solver"),
    ):
        with pytest.raises(error, match=message):
            flower.CenterStrategy(tiny_base, **{"output": tmp_path / "out"} | options)
    with pytest.raises(ValueError, match="leave num_rounds at 1"):
        flower.CenterStrategy(tiny_base, tmp_path / "out").start(Room({}), num_rounds=3)
    with pytest.raises(ValueError, match="where the result goes"):
        flower.server_app(Room({}), context_of(0, {}, base="pocket", output=""))


def test_a_client_on_another_base_does_not_tune(flower, homes, tiny_folder):
    task = {"base_id": "sd15", "fingerprint": "0" * 16, **TUNING}
    context = context_of(1, {"pictures": str(homes / "bibi"), "base": str(tiny_folder)}, base="pocket")
    with pytest.raises(ValueError, match=r"The center fuses on sd15 .* the base here is tiny_base"):
        flower.tune_here(task, context)


def test_where_a_client_s_pictures_are(flower, homes):
    """Its own folder counts; only a simulation, which numbers its clients, deals out the folders of a common one."""
    common = {"pictures": str(homes)}
    assert flower.pictures_of(context_of(1, {"pictures": "own", "partition-id": 0}, **common)).name == "own"
    assert flower.pictures_of(context_of(1, {"partition-id": 1}, **common)) == homes / "coco"
    with pytest.raises(ValueError, match="2 folders, too few for client 2"):
        flower.pictures_of(context_of(1, {"partition-id": 2}, **common))
    with pytest.raises(ValueError, match="This client has no pictures: start it with"):
        flower.pictures_of(context_of(1, {}, **common))


def test_the_server_app_reads_its_run_config(flower, tiny_base, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(flower, "CenterStrategy", partial(flower.CenterStrategy, fusion=FUSION))
    room = Room({1: ready(flower, packed(flower, tiny_base))})
    config = {**TUNING, "base": str(tiny_folder), "output": str(tmp_path / "out"), "clients": 1, "timeout": 5}
    flower.server_app(room, context_of(0, {}, **config, pictures=""))
    assert "<bibi1>" in mos.load_base(tmp_path / "out" / "fused", device="cpu").words
