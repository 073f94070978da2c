"""Single-client tuning (paper 3.3.1): five recipes of one loop."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import mixofshow_lite as mos
from mixofshow_lite import tuning
from mixofshow_lite.base import denoising_loss
from mixofshow_lite.checkpoint import Checkpoint
from mixofshow_lite.tuning import RECIPES, Recipe, recipe_for, tune

FAST = {"batch": 2, "background": 1.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three pictures of coloured discs, with masks, one larger than the model's size."""
    folder = tmp_path_factory.mktemp("data") / "Ada Rabbit"
    folder.mkdir()
    rows = []
    for i, side in enumerate((64, 64, 96)):
        y, x = np.mgrid[:side, :side] / side - 0.5
        inside = (x**2 + y**2) < 0.1
        picture = np.where(inside[..., None], (255, 60 * i, 0), (30, 90, 200)).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
        Image.fromarray((inside * 255).astype(np.uint8)).save(folder / f"{i}_mask.png")
        caption = "a photo of <TOK> on the beach" if i else "<TOK>"
        rows.append({"file_name": f"{i}.png", "caption": caption, "mask": f"{i}_mask.png", "class_word": "rabbit"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return mos.ConceptData(folder)


def quick(base, data, recipe="ed_lora", steps=2, **kwargs):
    recipe = replace(RECIPES[recipe], **FAST) if isinstance(recipe, str) else recipe
    return tune(base, data, recipe=recipe, steps=steps, progress=False, **kwargs)


@pytest.mark.parametrize(
    ("recipe", "words", "phrase", "text_layers", "unet_layers", "rank"),
    [
        ("textual_inversion", 1, "<ada_rabbit1>", 0, 0, 0),
        ("p_plus", 1, "<ada_rabbit1>", 0, 0, 0),
        ("lora", 1, "<ada_rabbit1>", 8, 128, 4),
        ("ed_lora", 2, "<ada_rabbit1> <ada_rabbit2>", 8, 128, 4),
        ("custom_diffusion", 1, "<ada_rabbit1> rabbit", 0, 32, 32),
    ],
)
def test_recipes(tiny_base, data, tmp_path, recipe, words, phrase, text_layers, unet_layers, rank):
    before = {n: w.clone() for net in (tiny_base.unet, tiny_base.text_encoder) for n, w in net.named_parameters()}
    concept = quick(tiny_base, data, recipe)
    assert (len(concept.words), concept.phrase, concept.rank) == (words, phrase, rank)
    assert (concept.recipe, concept.class_word, concept.base_id) == (recipe, "rabbit", tiny_base.base_id)
    found = {net: len(factors) for net, factors in concept.lora.items()}
    assert found == {n: k for n, k in (("text_encoder", text_layers), ("unet", unet_layers)) if k}
    assert all(up.any() for factors in concept.lora.values() for _, up in factors.values())
    layerwise = recipe in ("p_plus", "ed_lora")
    for rows in concept.embeddings.values():
        assert rows.shape == (16, 32) and not rows.requires_grad
        assert (rows.unique(dim=0).shape[0] > 1) == layerwise
    after = {n: w for net in (tiny_base.unet, tiny_base.text_encoder) for n, w in net.named_parameters()}
    assert list(after) == list(before) and all(torch.equal(after[n], w) for n, w in before.items())
    assert not any(w.requires_grad for w in after.values())
    again = mos.Concept.load(concept.save(tmp_path / "c"))
    one = tiny_base.with_concept(again)
    assert one.sample(f"a photo of {again.phrase}", steps=1, progress=False)[0].size == (64, 64)


def test_the_loop_minimises_equation_1_on_what_it_saves(tiny_base, data):
    """With learning rates of 0 the concept is the start, so its loss in a plain model is the loop's first one."""
    seen = []
    recipe = replace(RECIPES["ed_lora"], **FAST, lr_words=0.0, lr_text=0.0, lr_unet=0.0)
    start = quick(tiny_base, data, recipe, steps=1, callback=seen.append)
    latents, _, prompts = tuning.prepare(tiny_base, data, recipe, start.phrase)
    generator = torch.Generator().manual_seed(0)
    pick = tuning.draw(3, 2, generator)
    one = tiny_base.with_concept(start)
    with torch.no_grad():
        context = one.context([prompts[i] for i in pick])
        loss = denoising_loss(one, latents[pick], context, noise_offset=recipe.noise_offset, generator=generator)
    assert seen[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)


@torch.no_grad()
def fixed_loss(model, data, recipe, phrase):
    """Eq. 1 on all pictures for 16 fixed times and noises."""
    latents, _, prompts = tuning.prepare(model, data, recipe, phrase)
    generator, context = torch.Generator().manual_seed(9), model.context(prompts)
    return sum(denoising_loss(model, latents, context, generator=generator).item() for _ in range(16)) / 16


def test_tuning_learns(tiny_base, data):
    recipe = replace(RECIPES["ed_lora"], batch=3)
    seen = []
    concept = quick(tiny_base, data, recipe, steps=40, callback=seen.append)
    assert [set(record) for record in seen] == [{"step", "loss", "embedding_norm"}] * 40
    assert seen[-1]["embedding_norm"] != seen[0]["embedding_norm"]
    before = fixed_loss(tiny_base.with_concept(concept, alpha=0), data, recipe, concept.phrase)
    after = fixed_loss(tiny_base.with_concept(concept), data, recipe, concept.phrase)
    assert after < before - 0.02


def same(a, b):
    tensors = [
        [*c.embeddings.values(), *(t for f in c.lora.values() for pair in f.values() for t in pair)] for c in (a, b)
    ]
    return all(torch.allclose(x, y, atol=1e-6) for x, y in zip(*tensors, strict=True))


def test_the_same_seed_gives_the_same_concept(tiny_base, data):
    torch.manual_seed(5)
    first = quick(tiny_base, data)
    torch.manual_seed(6)
    assert same(first, quick(tiny_base, data)) and not same(first, quick(tiny_base, data, seed=1))


def test_an_interrupted_run_goes_on_where_it_stopped(tiny_base, data, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "every", 2)
    whole = quick(tiny_base, data, steps=5)
    file = tmp_path / "run" / "ada.ckpt"

    def stop(record):
        if record["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(tiny_base, data, steps=5, checkpoint=file, callback=stop)
    steps = []
    assert same(whole, quick(tiny_base, data, steps=5, checkpoint=file, callback=lambda r: steps.append(r["step"])))
    assert steps == [4] and not file.exists()

    with pytest.raises(KeyboardInterrupt):
        quick(tiny_base, data, steps=5, checkpoint=file, callback=stop)
    steps.clear()
    quick(tiny_base, data, steps=5, seed=1, checkpoint=file, callback=lambda r: steps.append(r["step"]))
    assert steps == [0, 1, 2, 3, 4]  # the checkpoint was of another seed
    file.write_bytes(b"half")
    with pytest.warns(UserWarning, match="starts from the beginning"):
        assert same(whole, quick(tiny_base, data, steps=5, checkpoint=file))


def test_rows_start_from_the_models_own_embeddings(tiny_base):
    table = tiny_base.text_encoder.get_input_embeddings().weight
    token = tiny_base.tokenizer("rabbit", add_special_tokens=False).input_ids
    assert len(token) == 1
    rows = tuning.init_rows(tiny_base, RECIPES["ed_lora"], ("<a1>", "<a2>"), "rabbit", seed=0)
    assert torch.equal(rows["<a2>"], table[token].expand(16, -1))
    assert torch.equal(rows["<a1>"], rows["<a1>"][:1].expand(16, -1))
    assert 0.5 < rows["<a1>"][0].std() / table.std() < 1.5
    one = tuning.init_rows(tiny_base, RECIPES["textual_inversion"], ("<a1>",), "red cat", seed=0)["<a1>"]
    both = tiny_base.tokenizer("red cat", add_special_tokens=False).input_ids
    assert torch.allclose(one, table[both].mean(0, keepdim=True))


def test_rows_freeze_at_their_norm_and_the_rest_goes_on(tiny_base, data):
    recipe = replace(RECIPES["ed_lora"], **FAST, freeze_norm=0.01)
    concept = quick(tiny_base, data, recipe)
    start = tuning.init_rows(tiny_base, recipe, concept.words, "rabbit", seed=0)
    assert all(torch.equal(concept.embeddings[word], rows.data) for word, rows in start.items())
    assert all(up.any() for _, up in concept.lora["unet"].values())


def test_masks_weigh_the_loss(tiny_base, data):
    recipe = replace(RECIPES["ed_lora"], background=0.25)
    latents, weights, prompts = tuning.prepare(tiny_base, data, recipe, "<a1> <a2>")
    assert latents.shape == (3, 4, 8, 8) and weights.shape == (3, 1, 8, 8)
    assert prompts == ["<a1> <a2>", *["a photo of <a1> <a2> on the beach"] * 2]
    assert weights[:, 0, 0, 0].tolist() == [0.25] * 3 and weights[:, 0, 4, 4].tolist() == [1.0] * 3
    assert tuning.prepare(tiny_base, data, replace(recipe, background=1.0), "x")[1] is None
    flipped, weights, prompts = tuning.prepare(tiny_base, data, replace(recipe, flip=True), "x")
    assert len(flipped) == len(weights) == len(prompts) == 6
    assert torch.allclose(weights[3:], weights[:3].flip(3), atol=0.02)


def test_a_batch_repeats_no_picture_before_all_were_drawn():
    generator = torch.Generator().manual_seed(0)
    for P, batch in ((3, 2), (3, 3), (3, 7), (1, 4)):
        counts = np.bincount(tuning.draw(P, batch, generator), minlength=P)
        assert counts.sum() == batch and counts.max() - counts.min() <= 1


def test_numbers_suit_the_base(tiny_base):
    pocket = replace(tiny_base, base_id="pocket-v1")
    assert recipe_for(pocket, "ed_lora") is RECIPES["ed_lora"]
    paper = recipe_for(tiny_base, "ed_lora")
    assert (paper.lr_words, paper.lr_text, paper.lr_unet, paper.batch) == (1e-3, 1e-5, 1e-4, 4)
    assert paper.freeze_norm and recipe_for(tiny_base, "p_plus").freeze_norm is None
    mine = Recipe("mine", rank=1)
    assert recipe_for(pocket, mine) is mine
    groups = tuning.make_optimizer(tiny_base, {"<a1>": torch.zeros(1, 1)}, paper).param_groups
    assert [group["lr"] for group in groups] == [1e-3]  # nothing of the base itself is trainable


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"recipe": "dreambooth"}, "no recipe 'dreambooth'"),
        ({"words": ("<a1>",)}, "tunes 2 words but got 1"),
        ({"words": ("a1", "a2")}, "'a1' cannot be a concept word"),
        ({"words": ("<TOK>", "<a>")}, "'<TOK>' cannot be a concept word"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_bad_arguments(tiny_base, data, arguments, match):
    with pytest.raises(ValueError, match=match):
        tune(tiny_base, data, progress=False, **arguments)


def test_missing_class_and_taken_words(tiny_base, data, concept, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "caption": "<TOK>"}')
    with pytest.raises(ValueError, match="class word is missing"):
        tune(tiny_base, mos.ConceptData(tmp_path), progress=False)
    with pytest.raises(ValueError, match="already has a concept word <bibi1>"):
        tune(tiny_base.with_concept(concept), data, words=("<bibi1>", "<b>"), progress=False)
