"""Concepts on disk, a client's data, and the binding of prompts (paper 3.1, 3.3.1)."""

import pytest
import torch
from safetensors.torch import load_file

from mixofshow_lite import concept as concept_module
from mixofshow_lite.concept import Concept, bind


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
