"""Concepts on disk, a client's data, and the binding of prompts (paper 3.1, 3.3.1)."""

import json
import warnings

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import make_concept

import mixofshow_lite
from mixofshow_lite.files import folder as folder_module
from mixofshow_lite.files.concept import Concept, bind


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
    files = sorted(p.name for p in (tmp_path / "deep" / "bibi").iterdir())
    assert files == ["README.md", "concept.json", "concept.safetensors"]


def test_half_precision_halves_the_file_and_rounds(concept, tmp_path):
    full = concept.save(tmp_path / "full") / "concept.safetensors"
    half = concept.save(tmp_path / "half", dtype=torch.float16) / "concept.safetensors"
    assert all(t.dtype == torch.float16 for t in load_file(half).values())
    assert sum(t.nbytes for t in load_file(half).values()) * 2 == sum(t.nbytes for t in load_file(full).values())
    again = Concept.load(tmp_path / "half")
    for net, factors in concept.lora.items():
        for module, pair in factors.items():
            for whole, rounded in zip(pair, again.lora[net][module], strict=True):
                assert rounded.dtype == torch.float32 and torch.allclose(whole, rounded, rtol=1e-3, atol=1e-6)
    for word, rows in concept.embeddings.items():
        assert torch.allclose(again.embeddings[word], rows, rtol=1e-3, atol=1e-6)


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


def test_what_people_add_to_a_concept_folder_stays(concept, tmp_path):
    folder = concept.save(tmp_path / "bibi")
    card = (folder / "README.md").read_text()
    (folder / "LICENSE").write_text("mine")
    concept.class_word = "dog"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        concept.save(folder)
    assert (folder / "README.md").read_text() == card.replace("rabbit", "dog")  # nobody had changed it
    assert (folder / "LICENSE").read_text() == "mine"
    (folder / "README.md").write_bytes("my own card, café".encode("latin-1"))
    with pytest.warns(UserWarning, match="README.md has been edited and stays"):
        concept.save(folder)
    assert (folder / "README.md").read_bytes() == "my own card, café".encode("latin-1")
    (folder / "concept.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="stays"):
        concept.save(folder)
    assert Concept.load(folder).class_word == "dog" and (folder / "LICENSE").read_text() == "mine"


def test_a_full_disk_leaves_the_old_concept_whole(concept, tmp_path, monkeypatch):
    concept.save(tmp_path / "bibi")

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "save_file", full)
    concept.class_word = "dog"
    with pytest.raises(OSError, match="free some space"):
        concept.save(tmp_path / "bibi")
    assert Concept.load(tmp_path / "bibi").class_word == "rabbit"
    assert [p.name for p in tmp_path.iterdir()] == ["bibi"]


def test_loading_says_what_is_wrong(concept, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no concept"):
        Concept.load(tmp_path / "nowhere")
    folder = concept.save(tmp_path / "bibi")
    data, about = (folder / "concept.safetensors").read_bytes(), (folder / "concept.json").read_text()

    def fails(match):
        with pytest.raises(ValueError, match=match) as caught:
            Concept.load(folder)
        assert "\n" not in str(caught.value)

    for size in (len(data) // 2, 20, 0):
        (folder / "concept.safetensors").write_bytes(data[:size])
        fails("truncated or no safetensors")
    (folder / "concept.safetensors").write_bytes(data)
    for text, match in {
        '{"format": "something else", "version": 1}': "unknown format 'something else'",
        about.replace('"version": 2', '"version": 3'): "update mixofshow_lite",
        about[:-20]: "does not describe a concept",
        "[1, 2]": "does not describe a concept",
        about.replace('"<bibi2>"', '"<bibi9>"', 1): "rows of <bibi9> are missing",
        about.replace('"<bibi2>"', "7", 1): "lacks a field",
        about.replace('"rank": 2', '"rank": "2"'): "lacks a field",
        about.replace('"name": "bibi"', '"name": ""'): "lacks a field",
        about.replace('    "mid_block', '    "one_more",\n    "mid_block'): r"are \(16, 32\) for 17 layers",
    }.items():
        assert text != about
        (folder / "concept.json").write_text(text)
        fails(match)
    (folder / "concept.json").write_text(about)
    tensors = load_file(folder / "concept.safetensors")
    up = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight"
    for change, match in (
        ({up: tensors[up][:, :1].clone()}, "mid_block.*copy it again"),
        ({"embeddings.<bibi1>": torch.ones(16, 9)}, "copy it again"),
        ({"vae.more.lora_A.weight": torch.ones(1)}, "vae.more.lora_A.weight belongs to nothing"),
    ):
        save_file({**tensors, **change}, folder / "concept.safetensors")
        fails(match)
    save_file({k: t for k, t in tensors.items() if k != up}, folder / "concept.safetensors")
    fails("mid_block.* belongs to nothing")


def test_folders_of_version_1_are_still_read(concept, tmp_path):
    folder = concept.save(tmp_path / "bibi")
    old = {
        k.replace("lora_A.weight", "lora_down").replace("lora_B.weight", "lora_up"): t
        for k, t in load_file(folder / "concept.safetensors").items()
    }
    save_file(old, folder / "concept.safetensors")
    about = json.loads((folder / "concept.json").read_text())
    for name in ("library", "convention", "source"):
        del about[name]
    (folder / "concept.json").write_text(json.dumps(about | {"version": 1}))
    again = Concept.load(folder)
    assert all(
        torch.equal(a, b)
        for net, factors in concept.lora.items()
        for module, pair in factors.items()
        for a, b in zip(pair, again.lora[net][module], strict=True)
    )


def test_a_concept_says_what_it_is(concept, tmp_path):
    folder = concept.save(
        tmp_path / "bibi", preview=[Image.new("RGB", (8, 8), "red"), Image.new("RGB", (4, 4), "blue")]
    )
    about = json.loads((folder / "concept.json").read_text())
    assert about["library"] == mixofshow_lite.__version__ and len(about["layers"]) == 16 and about["rank"] == 2
    assert about["convention"].startswith("delta W = scale * lora_B @ lora_A")
    assert (about["base_id"], about["fingerprint"]) == (concept.base_id, concept.fingerprint)
    text = (folder / "README.md").read_text()
    numbers = sum(t.numel() for t in load_file(folder / "concept.safetensors").values())
    for wanted in (
        "<bibi1> <bibi2>",
        "rabbit",
        concept.base_id,
        "preview.png",
        f"{numbers:,} numbers",
        "ed_lora, rank 2",
    ):
        assert wanted in text, wanted
    with Image.open(folder / "preview.png") as strip:
        assert (
            strip.size == (16, 8) and strip.getpixel((2, 2)) == (255, 0, 0) and strip.getpixel((12, 2)) == (0, 0, 255)
        )
    again = Concept.load(folder)
    again.renamed("coco").save(tmp_path / "coco")
    assert (tmp_path / "coco" / "preview.png").read_bytes() == (folder / "preview.png").read_bytes()
    (folder / "preview.png").write_bytes(b"broken")
    assert Concept.load(folder).preview is None


def test_a_concept_is_checked_against_its_base_and_its_neighbours(concept, tiny_base, tmp_path):
    folder = concept.save(tmp_path / "bibi")
    other = make_concept(tiny_base, "coco", seed=1)
    assert Concept.load(folder, tiny_base, beside=[other]).name == "bibi"
    assert Concept.load(folder, replace_base(tiny_base, fingerprint="")).name == "bibi"

    def fails(match, **given):
        with pytest.raises(ValueError, match=match) as caught:
            Concept.load(folder, **given)
        assert "\n" not in str(caught.value)

    with pytest.warns(UserWarning, match=r"was tuned on tiny_base \(fingerprint .*the base is sd15 \(0+\): expect"):
        Concept.load(folder, replace_base(tiny_base, base_id="sd15", fingerprint="0" * 16))
    fails(r'<bibi1> .* already used by the base model.*renamed\("bibi2"\)', base=tiny_base.with_concept(concept))
    fails("<bibi2> .* already used by 'coco'", beside=[other.renamed(words=("<coco>", "<bibi2>"))])
    fails("already a concept called 'bibi'", beside=[concept.renamed(words=("<a>", "<b>"))])
    concept.lora["unet"]["mid_block.attn9.to_q"] = concept.lora["unet"].popitem()[1]
    concept.save(folder)
    fails("no such layer", base=tiny_base)
    concept.embeddings = {word: rows[:, :5].clone() for word, rows in concept.embeddings.items()}
    concept.save(folder)
    fails(r"the base is tiny_base .*<bibi1> is \(16, 5\), the base has \(16, 32\)", base=tiny_base)


def replace_base(base, **changes):
    model = base.copy()
    for name, value in changes.items():
        setattr(model, name, value)
    return model


def test_renaming_settles_a_clash_and_changes_nothing_else(concept, tiny_base):
    concept.phrase = "<bibi1> <bibi2> rabbit"
    coco = concept.renamed("Coco Bear")
    assert (coco.name, coco.words) == ("Coco Bear", ("<coco_bear1>", "<coco_bear2>"))
    assert coco.phrase == "<coco_bear1> <coco_bear2> rabbit" and concept.words == ("<bibi1>", "<bibi2>")
    swapped = concept.renamed(words=["<bibi2>", "<bibi1>"])
    assert swapped.name == "bibi" and swapped.phrase == "<bibi2> <bibi1> rabbit"
    assert torch.equal(swapped.embeddings["<bibi2>"], concept.embeddings["<bibi1>"])
    before = tiny_base.with_words(concept).context(f"a {concept.phrase}")
    both = tiny_base.with_words(concept, coco)
    assert torch.equal(both.context(f"a {coco.phrase}"), before)
    for words in (["<a>"], ["<a>", "<a>"], ["<a>", "b"]):
        with pytest.raises(ValueError, match="give 2 different words"):
            concept.renamed(words=words)


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
