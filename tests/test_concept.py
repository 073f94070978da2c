"""Concepts on disk, a client's data, and the binding of prompts (paper 3.1, 3.3.1)."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mixofshow_lite import concept as concept_module
from mixofshow_lite.concept import Concept, ConceptData, bind


def test_a_concept_survives_its_folder(concept, tmp_path):
    concept.scale, concept.phrase = 0.7, "<bibi1> <bibi2> rabbit"
    again = Concept.load(concept.save(tmp_path / "deep" / "bibi"))
    for name in (
        "name",
        "words",
        "class_word",
        "recipe",
        "rank",
        "scale",
        "base_id",
        "fingerprint",
        "layers",
        "phrase",
    ):
        assert getattr(again, name) == getattr(concept, name), name
    assert again.embeddings.keys() == concept.embeddings.keys()
    assert all(torch.equal(again.embeddings[word], rows) for word, rows in concept.embeddings.items())
    assert {net: list(factors) for net, factors in again.lora.items()} == {
        net: sorted(factors) for net, factors in concept.lora.items()
    }
    for net, factors in concept.lora.items():
        for module, pair in factors.items():
            assert all(torch.equal(a, b) for a, b in zip(pair, again.lora[net][module], strict=True))
    assert sorted(p.name for p in (tmp_path / "deep" / "bibi").iterdir()) == ["concept.json", "concept.safetensors"]


def test_a_concept_has_no_pictures_and_two_words_a_layer(concept, tmp_path, tiny_base):
    tensors = load_file(concept.save(tmp_path / "bibi") / "concept.safetensors")
    D = tiny_base.text_encoder.config.hidden_size
    rows = {name: tuple(t.shape) for name, t in tensors.items() if name.startswith("embeddings.")}
    assert rows == {"embeddings.<bibi1>": (16, D), "embeddings.<bibi2>": (16, D)}
    assert len(tensors) == 2 + 2 * (128 + 4 * tiny_base.text_encoder.config.num_hidden_layers)


def test_saving_replaces_an_older_concept_but_nothing_else(concept, tmp_path):
    concept.save(tmp_path / "bibi")
    concept.class_word = "dog"
    concept.save(tmp_path / "bibi")
    assert Concept.load(tmp_path / "bibi").class_word == "dog"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="choose another folder"):
        concept.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep me"


def test_a_full_disk_leaves_the_old_concept_whole(concept, tmp_path, monkeypatch):
    concept.save(tmp_path / "bibi")

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(concept_module, "save_file", full)
    concept.class_word = "dog"
    with pytest.raises(OSError, match="free some space"):
        concept.save(tmp_path / "bibi")
    assert Concept.load(tmp_path / "bibi").class_word == "rabbit"
    assert [p.name for p in tmp_path.iterdir()] == ["bibi"]


def test_loading_says_what_is_wrong(concept, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no concept"):
        Concept.load(tmp_path / "nowhere")
    folder = concept.save(tmp_path / "bibi")
    data = (folder / "concept.safetensors").read_bytes()
    (folder / "concept.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="no readable concept"):
        Concept.load(folder)
    (folder / "concept.safetensors").write_bytes(data)
    (folder / "concept.json").write_text('{"format": "something else", "version": 1}')
    with pytest.raises(ValueError, match="unknown format"):
        Concept.load(folder)


@pytest.fixture
def pictures(tmp_path):
    """An imagefolder of three pictures, one of them with a mask."""
    folder = tmp_path / "ada"
    folder.mkdir()
    rows = []
    for i, name in enumerate(("0.png", "1.jpg", "2.png")):
        mode, colour = ("RGBA", (255, 0, 0, 255)) if i == 0 else ("RGB", (0, 0, 255))
        Image.new(mode, (20, 10), colour).save(folder / name)
        rows.append({"file_name": name, "caption": f"photo {i} of <TOK>", "class_word": "rabbit"})
    Image.fromarray(np.full((10, 20), 255, dtype=np.uint8)).save(folder / "0_mask.png")
    rows[0]["mask"] = "0_mask.png"
    rows[2]["text"] = rows[2].pop("caption")
    write(folder, rows)
    return folder, rows


def write(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_concept_data(pictures):
    data = ConceptData(pictures[0])
    assert (len(data), data.name, data.class_word) == (3, "ada", "rabbit")
    assert [p.mode for p in data.pictures] == ["RGB"] * 3 and data.pictures[0].getpixel((0, 0)) == (255, 0, 0)
    assert data.masks[0].mode == "L" and data.masks[1:] == [None, None]
    assert data.prompts("<ada1> <ada2>") == [f"photo {i} of <ada1> <ada2>" for i in range(3)]
    assert ConceptData(pictures[0], class_word="dog").class_word == "dog"


def test_concept_data_says_what_is_wrong(pictures):
    folder, rows = pictures

    def fails(kind, match, change):
        broken = json.loads(json.dumps(rows))
        change(broken)
        write(folder, broken)
        with pytest.raises(kind, match=match):
            ConceptData(folder)

    fails(ValueError, "write <TOK>", lambda r: r[1].update(caption="photo of a rabbit"))
    fails(ValueError, "write <TOK>", lambda r: r[1].pop("caption"))
    fails(FileNotFoundError, "9.png is named in metadata.jsonl", lambda r: r[1].update(file_name="9.png"))
    fails(FileNotFoundError, "no_mask.png", lambda r: r[1].update(mask="no_mask.png"))
    fails(ValueError, "no JSON object with a file_name", lambda r: r[1].pop("file_name"))
    fails(ValueError, "names no picture", lambda r: r.clear())
    Image.new("L", (10, 10)).save(folder / "small.png")
    fails(ValueError, "small.png is 10x10 but its picture is 20x10", lambda r: r[1].update(mask="small.png"))
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:40])
    fails(ValueError, "2.png is no readable picture", lambda r: None)
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="metadata.jsonl is missing"):
        ConceptData(folder)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        ConceptData(folder)


@pytest.mark.parametrize("prompt", ["", "a photo of the red cat", "A  Zebra, on the BEACH!", "a " * 40, "é 漢字 🐇"])
def test_plain_prompts_bind_as_the_tokenizer_does(tiny_base, prompt):
    tokenizer = tiny_base.tokenizer
    wanted = tokenizer(prompt, padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
    bound = bind(tokenizer, [prompt], ["<bibi1>"])
    assert bound.ids.tolist() == [wanted.input_ids]
    assert (bound.slots == -1).all()


def test_concept_words_take_one_place_each_also_beside_punctuation(tiny_base):
    words = ["<bibi>", "<bibi1>", "<b.b(>"]
    bound = bind(tiny_base.tokenizer, ["a <bibi1><bibi>, (the <b.b(>)", "on <BIBI>", "cat"], words)
    plain = bind(tiny_base.tokenizer, ["a cat cat, (the cat)"], words)
    assert bound.slots[0].tolist()[:11] == [-1, -1, 1, 0, -1, -1, -1, 2, -1, -1, -1]
    where = (bound.slots[0] < 0) & (torch.arange(16) < 10)
    assert bound.ids[0][where].tolist() == plain.ids[0][where].tolist()
    assert (bound.slots[1:] == -1).all()


def test_what_does_not_fit_is_reported(tiny_base):
    N = tiny_base.tokens
    exact = bind(tiny_base.tokenizer, ["cat " * (N - 2), "cat " * (N - 2) + "dog <bibi>"], ["<bibi>"])
    assert exact.cut == ["", "dog <bibi>"]
    assert torch.equal(exact.ids[0], exact.ids[1]) and (exact.slots == -1).all()
    assert exact.ids[0, -1] == tiny_base.tokenizer.eos_token_id
