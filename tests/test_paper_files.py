"""The eight paper files by themselves: two concepts are tuned, fused in every way of the paper, drawn by regions."""

import math
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sd15_shapes
import torch
from diffusers import StableDiffusionPipeline
from paper_tiny import farthest, load_model, random_concept, toy_pictures, weights_of
from PIL import Image

from mixofshow_lite import attention, diffusion, evaluation, fusion, lora, prompts, regions, tuning

FILES = ("attention", "diffusion", "evaluation", "fusion", "lora", "prompts", "regions", "tuning")


@pytest.fixture(scope="module")
def model(tiny_folder):
    torch.set_num_threads(1)
    return load_model(tiny_folder)


@pytest.fixture(autouse=True)
def the_model_stays(model):
    """No test, and nothing that the eight files do, changes the model they start from."""
    before = [W.clone() for net in (model.text_encoder, model.unet) for W in net.parameters()]
    yield
    after = [W for net in (model.text_encoder, model.unet) for W in net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(W.requires_grad for W in after) and not model.words
    for module in attention.cross_attention(model.unet).values():
        assert type(module.processor) is attention.LayerAttention


def pixels(pictures):
    return np.stack([np.asarray(picture, dtype=float) for picture in pictures])


draw = partial(diffusion.sample, steps=2)


def test_nothing_else_of_the_package_is_loaded():
    code = "import sys; from mixofshow_lite import " + ", ".join(FILES)
    code += "; print(sorted(n for n in sys.modules if n.startswith('mixofshow_lite.')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert eval(found) == [f"mixofshow_lite.{name}" for name in FILES]


# The whole paper, by each recipe


def tuned(model, name, recipe, steps=2, seed=0):
    """One concept tuned for a few steps, and the states that the loop yielded."""
    recipe = replace(tuning.RECIPES[recipe], batch=2)
    run = tuning.start_tuning(model, name, "rabbit", recipe, seed)
    prior = tuning.class_pictures(model, "rabbit", n=2, steps=1) if recipe.prior else None
    batches = tuning.draw_batches(model, recipe, toy_pictures(model, run.phrase), prior, seed)
    states = list(tuning.tuning_steps(run, batches, steps))
    return tuning.to_concept(run), states


@pytest.mark.parametrize(
    ("recipe", "phrase", "text", "unet", "moves"),
    [
        ("textual_inversion", "<bibi1>", 0, 0, False),
        ("p_plus", "<bibi1>", 0, 0, False),
        ("lora", "<bibi1>", 8, 128, True),
        ("ed_lora", "<bibi1> <bibi2>", 8, 128, True),
        ("custom_diffusion", "<bibi1> rabbit", 0, 32, True),
    ],
)
def test_the_whole_paper(model, recipe, phrase, text, unet, moves):
    bibi, states = tuned(model, "bibi", recipe)
    coco, _ = tuned(model, "coco", recipe, seed=1)
    assert [state["step"] for state in states] == [0, 1] and all(state["loss"] > 0 for state in states)
    assert bibi.phrase == phrase
    assert (len(bibi.lora.get("text_encoder", {})), len(bibi.lora.get("unet", {}))) == (text, unet)
    layerwise = recipe in ("p_plus", "ed_lora")
    for rows in bibi.embeddings.values():
        assert rows.shape == (16, 32) and (len(rows.unique(dim=0)) > 1) == layerwise

    one = lora.with_concept(model, bibi)
    assert (farthest(one, model) > 0) == moves
    few = fusion.Recording(steps=1)
    ways = [
        fusion.weight_fusion(model, [bibi, coco]),
        fusion.gradient_fusion(model, [bibi, coco], fusion.closed_form, few),
        fusion.gradient_fusion(model, [bibi, coco], partial(fusion.lbfgs, iterations=3), few),
    ]
    for fused in ways:
        assert (farthest(fused, model) > 0) == moves and (farthest(fused, one) > 0) == moves
        assert list(fused.words) == [*bibi.words, *coco.words]
        friends = [
            regions.Region(f"a {bibi.phrase}", box=(0, 0, 0.5, 1)),
            regions.Region(f"a {coco.phrase}", box=(0.5, 0, 1, 1)),
        ]
        (picture,) = regions.sample_regions(fused, "on the beach", friends, steps=1)
        assert picture.size == (64, 64)
        assert np.abs(pixels([picture]) - pixels(draw(fused, "on the beach", steps=1))).max() > 1


def test_the_readme_s_eight_files_alone(tiny_folder, tmp_path, monkeypatch):
    """The README's code as it stands, on the tiny model, with pictures of noise and one step."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "from_pipeline" in block]
    (used,) = re.findall(r"from mixofshow_lite import (.*)", code)
    assert set(used.split(", ")) <= set(FILES) and code.count("mixofshow_lite") == 1
    for old, new in (('"data/pocket"', repr(str(tiny_folder))), ("steps=100", "steps=1")):
        assert code.count(old) == 1
        code = code.replace(old, new)
    rng = np.random.default_rng(0)
    for name in ("bibi", "bruno"):
        folder = tmp_path / "data" / "concepts" / name
        folder.mkdir(parents=True)
        for i in range(2):
            Image.fromarray(rng.integers(256, size=(64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert list(names["fused"].words) == ["<bibi1>", "<bibi2>", "<bruno1>", "<bruno2>"]
    assert farthest(names["fused"], names["base"]) > 0
    assert Image.open("friends.png").size == (64, 64)


def test_identities_of_one_concept(model):
    """Weight 0 is the embedding alone; one concept fused is itself, by every way."""
    bibi = random_concept(model)
    assert farthest(lora.with_concept(model, bibi, alpha=0), model) == 0
    alone = lora.with_concept(model, bibi)
    few = fusion.Recording(steps=2)
    assert farthest(fusion.weight_fusion(model, [bibi]), alone) < 1e-6
    for f in (fusion.closed_form, partial(fusion.closed_form, ridge=0.1)):
        assert farthest(fusion.gradient_fusion(model, [bibi], f, few), alone) < 1e-5


def test_gradient_fusion_keeps_more_than_averaging(model):
    """Every concept's own output on what it saw (3.3.2), for the whole model: summed over all layers."""
    concepts = [random_concept(model, "bibi"), random_concept(model, "coco", 1)]
    lost = {"average": 0.0, "closed form": 0.0}

    def spy(W0, deltas, grams):
        W = fusion.closed_form(W0, deltas, grams, 0.01)
        lost["average"] += fusion.objective(fusion.average(W0, deltas), W0, deltas, grams).item()
        lost["closed form"] += fusion.objective(W, W0, deltas, grams).item()
        return W

    fusion.gradient_fusion(model, concepts, spy, fusion.Recording(steps=2))
    assert lost["closed form"] < 0.7 * lost["average"]


# Regions


GLOBAL, LEFT = "two on the beach", "a red cat"


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_region_identities(model, guidance):
    sampling = {"steps": 2, "guidance": guidance}
    everywhere = [regions.Region(LEFT, box=(0, 0, 1, 1))]
    by_region = pixels(regions.sample_regions(model, GLOBAL, everywhere, **sampling))
    assert np.abs(by_region - pixels(diffusion.sample(model, LEFT, **sampling))).max() <= 1
    plain = pixels(diffusion.sample(model, GLOBAL, **sampling))
    assert np.abs(by_region - plain).max() > 1
    assert np.array_equal(pixels(regions.sample_regions(model, GLOBAL, [], **sampling)), plain)
    same = [regions.Region(GLOBAL, box=(0.2, 0.1, 0.9, 0.6))]
    assert np.abs(pixels(regions.sample_regions(model, GLOBAL, same, **sampling)) - plain).max() <= 1
    box = [regions.Region(LEFT, box=(0, 0, 0.5, 1))]
    twice = regions.sample_regions(model, GLOBAL, box * 2, **sampling)
    assert np.abs(pixels(twice) - pixels(regions.sample_regions(model, GLOBAL, box, **sampling))).max() <= 1


def test_regions_on_other_sizes_and_errors(model):
    left = [regions.Region(LEFT, box=(0, 0, 0.5, 1))]
    (picture,) = regions.sample_regions(model, GLOBAL, left, size=(64, 128), steps=1)
    assert picture.size == (128, 64)
    with pytest.raises(ValueError, match="real size"), regions.regional_attention(model, left, latents=(8, 10)):
        draw(model, GLOBAL)
    for wrong in ({}, {"box": (0, 0, 1, 1), "mask": torch.ones(2, 2)}):
        with pytest.raises(ValueError, match="a box or a mask"):
            regions.Region(LEFT, **wrong)


# Attention


def test_swapped_puts_on_and_takes_off(model):
    layers = attention.cross_attention(model.unet)
    before = [module.processor for module in layers.values()]
    with attention.swapped(model.unet, attention.LayerAttention) as ours:
        assert [module.processor for module in layers.values()] == ours and ours[3].layer == 3
    assert [module.processor for module in layers.values()] == before
    with pytest.raises(ZeroDivisionError), attention.swapped(model.unet, attention.LayerAttention):
        raise ZeroDivisionError
    assert [module.processor for module in layers.values()] == before


def test_swapped_notices_who_replaces_processors(model):
    layers = list(attention.cross_attention(model.unet).values())
    before = layers[5].processor
    with (
        pytest.raises(RuntimeError, match="1 of 16 attention layers"),
        attention.swapped(model.unet, attention.LayerAttention),
    ):
        layers[5].set_processor(attention.LayerAttention(5))
    assert layers[5].processor is before
    with attention.swapped(model.unet, attention.LayerAttention), attention.stored_attention(model.unet) as store:
        draw(model, LEFT, guidance=1.0)
    assert store.calls == dict.fromkeys(range(16), 2)


def test_swapped_notices_processors_that_do_not_get_on(model):
    class Stubborn(torch.nn.Module):
        processor = None

        def set_processor(self, processor):
            pass

    with (
        pytest.raises(RuntimeError, match="1 of 1 attention layers"),
        attention.swapped(model.unet, attention.LayerAttention, lambda unet: {"x": Stubborn()}),
    ):
        pass
    with pytest.raises(ValueError, match="no cross-attention"):
        attention.cross_attention(model.text_encoder)


def test_layer_sizes():
    assert attention.layer_size(64, 8, 8) == (8, 8) and attention.layer_size(1, 8, 8) == (1, 1)
    assert attention.layer_size(15, 9, 5) == (5, 3)  # odd sides are rounded up
    with pytest.raises(ValueError, match=r"\(8, 8\)"):
        attention.layer_size(5, 8, 8)


def test_attention_store(model):
    """What is stored is a distribution over tokens, the mean over calls; drawing stays the same."""
    z, c = torch.randn(2, 4, 8, 8), model.context(["a red cat", "a dog"])
    with torch.no_grad():
        plain = model.unet(z, 500, c).sample
        with attention.stored_attention(model.unet) as store:
            assert torch.allclose(model.unet(z, 500, c).sample, plain, atol=1e-6)
        once = store.maps()
        with attention.stored_attention(model.unet) as store:
            model.unet(z, 500, c), model.unet(z, 900, c)
        twice = store.maps()
        with attention.stored_attention(model.unet) as store:
            model.unet(z, 900, c)
        second = store.maps()
    assert [tuple(m.shape) for m in once] == [(2, s * s, 16) for s in [8, 8, 4, 4, 2, 2, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8]]
    for a, b, both in zip(once, second, twice, strict=True):
        assert torch.allclose(a.sum(dim=2), torch.ones(()), atol=1e-5)
        assert torch.allclose((a + b) / 2, both, atol=1e-6)
    of_token = store.token_map(2, 8, 8)
    assert of_token.shape == (2, 8, 8)
    total = sum(store.token_map(token, 8, 8) for token in range(16))
    assert torch.allclose(total, torch.ones(()), atol=1e-4)
    level = torch.stack([m[:, :, 2].mean(dim=1) for m in second]).mean(dim=0)
    assert torch.allclose(of_token.mean(dim=(1, 2)), level, atol=1e-2)


def test_storing_attention_leaves_gradients_as_they_are(model):
    """What is drawn with a store on depends on queries and keys as it does without."""
    z, c = torch.randn(1, 4, 8, 8), model.context("a red cat").requires_grad_()
    (plain,) = torch.autograd.grad(model.unet(z, 500, c).sample.square().sum(), c)
    with attention.stored_attention(model.unet):
        (stored,) = torch.autograd.grad(model.unet(z, 500, c).sample.square().sum(), c)
    assert torch.allclose(stored, plain, rtol=1e-3, atol=1e-4 * plain.abs().max().item())


# Prompts


def test_concept_words_are_one_token_also_beside_punctuation(model):
    words = ["<bibi1>", "<bibi2>"]
    bound = prompts.bind(model.tokenizer, ["<bibi2>,<bibi1>! a", "a <bibi2><bibi2>", "a <coco1>"], words)
    assert bound.slots[0].tolist()[:6] == [-1, 1, -1, 0, -1, -1]
    assert bound.slots[1].tolist()[:5] == [-1, -1, 1, 1, -1]
    assert (bound.slots[2] == -1).all()
    comma, mark, a = model.tokenizer.convert_tokens_to_ids([",</w>", "!</w>", "a</w>"])
    begin, end, pad = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id, model.tokenizer.pad_token_id
    unk = model.tokenizer.unk_token_id
    assert bound.ids[0].tolist() == [begin, unk, comma, unk, mark, a, end] + [pad] * 9
    long = prompts.bind(model.tokenizer, ["a red cat " * 9 + "<bibi1>"], words)
    assert long.ids.shape == (1, 16) and long.ids[0, -1] == end and (long.slots == -1).all()


def test_where_words_stand():
    slots = torch.tensor([[-1, 0, 1, 0, -1], [-1, -1, -1, -1, -1]])
    found = prompts.word_places(slots, 2)
    assert found[0].tolist() == [[0, 0.5, 0, 0.5, 0], [0, 0, 1, 0, 0]] and not found[1].any()


def test_gradients_reach_the_words_and_their_own_layer(model):
    rows = torch.randn(16, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    context = model.context("a <bibi1>", {"<bibi1>": rows})
    (found,) = torch.autograd.grad(context[:, 4].square().sum(), rows)
    assert found[4].any() and not found[:4].any() and not found[5:].any()
    assert not model.text_encoder.get_input_embeddings()._forward_hooks


# LoRA


def test_names_that_do_not_fit_are_refused(model):
    bibi = random_concept(model)
    known = lora.with_words(model, [bibi])
    with pytest.raises(ValueError, match="<bibi1> of 'bibi' is taken"):
        lora.with_concept(known, bibi)
    copy = model.copy()
    with pytest.raises(ValueError, match="The update of nothing"):
        lora.add_deltas(copy.unet, {"nothing": torch.zeros(2, 2)})
    name = next(iter(bibi.lora["unet"]))
    with pytest.raises(ValueError, match="fits no layer"):
        lora.add_deltas(copy.unet, {name: torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="no attention linears"):
        lora.attention_linears(model.vae.decoder.conv_in)
    with pytest.raises(ValueError, match="another pattern"):
        lora.attach(copy.unet, 2, "nowhere")


def test_copies_share_what_stays_the_same(model):
    copy = model.copy()
    assert all(a is b for a, b in zip(model.unet.parameters(), copy.unet.parameters(), strict=True))
    assert copy.unet is not model.unet and copy.words is not model.words and copy.vae is model.vae
    one = lora.with_concept(model, random_concept(model, pattern="attn1.to_q", nets=["unet"]))
    shared = [a is b for a, b in zip(model.unet.parameters(), one.unet.parameters(), strict=True)]
    assert shared.count(False) == 16


def test_a_copy_does_not_freeze_what_is_being_tuned(model):
    """A preview draws from a copy of the model that is being tuned: tuning must go on after it."""
    run = tuning.start_tuning(model, "bibi", "rabbit", tuning.RECIPES["ed_lora"])
    nets = (run.model.text_encoder, run.model.unet)
    trained = [W for net in nets for W in net.parameters() if W.requires_grad]
    assert len(trained) == 16 + 256
    run.model.copy(), lora.with_words(run.model, [random_concept(model, "coco")])
    assert all(W.requires_grad for W in trained)


def test_a_model_is_frozen_where_it_is_first_made(tiny_folder):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    for net in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
        net.requires_grad_(True).train()
    diffusion.from_pipeline(pipeline)
    for net in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
        assert not net.training and not any(W.requires_grad for W in net.parameters())


def test_extract_is_what_was_attached(model):
    copy = model.copy()
    layers = lora.attach(copy.unet, 2, r"attn2\.to_[kv]$", alpha=0.5)
    assert len(layers) == 32
    for layer in layers.values():
        torch.nn.init.normal_(layer.up)
    factors = lora.extract(copy.unet)
    assert list(factors) == list(layers)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    down, up = factors[name]
    assert torch.allclose(up @ down, 0.5 * layers[name].up @ layers[name].down)
    assert not up.requires_grad and up.data_ptr() != layers[name].up.data_ptr()


# Tuning


def test_the_same_seed_tunes_the_same_concept(model):
    first, states = tuned(model, "bibi", "ed_lora")
    again, _ = tuned(model, "bibi", "ed_lora")
    other, _ = tuned(model, "bibi", "ed_lora", seed=1)
    for word in first.words:
        assert torch.equal(first.embeddings[word], again.embeddings[word])
    assert not torch.equal(first.embeddings["<bibi1>"], other.embeddings["<bibi1>"])
    name = next(iter(first.lora["unet"]))
    assert torch.equal(first.lora["unet"][name][0], again.lora["unet"][name][0])
    assert not torch.equal(first.lora["unet"][name][0], other.lora["unet"][name][0])


def test_tune_goes_from_pictures_to_a_concept(model):
    """All steps of `tuned` in one call; captions name the concept as <TOK>, and stay as they are."""
    recipe = replace(tuning.RECIPES["lora"], batch=2, steps=2)
    pictures = toy_pictures(model, "<TOK>")
    found = tuning.tune(model, "bibi", "rabbit", pictures, recipe, seed=1)
    wanted, _ = tuned(model, "bibi", "lora", seed=1)
    assert found.phrase == "<bibi1>" and pictures.prompts[0] == "a photo of <TOK>"
    assert torch.equal(found.embeddings["<bibi1>"], wanted.embeddings["<bibi1>"])
    for name, (down, up) in wanted.lora["unet"].items():
        assert torch.equal(found.lora["unet"][name][0], down) and torch.equal(found.lora["unet"][name][1], up)


def test_tune_resolves_steps_and_prior(model, monkeypatch):
    """Steps that a recipe leaves open are 500 times the pictures by the batch; its prior is drawn by the base."""
    asked, prior = [], []

    def class_pictures(*drawn):
        prior.append(drawn)
        return toy_pictures(model, "rabbit")

    def tuning_steps(run, batches, steps):
        asked.append((run.recipe.name, steps, len(next(batches).prompts)))
        return iter(())

    monkeypatch.setattr(tuning, "class_pictures", class_pictures)
    monkeypatch.setattr(tuning, "tuning_steps", tuning_steps)
    recipes = [*tuning.RECIPES.values(), replace(tuning.RECIPES["ed_lora"], name="odd", batch=7)]
    for recipe in recipes:
        tuning.tune(model, "bibi", "rabbit", toy_pictures(model, "<TOK>"), recipe, seed=4)
    assert asked == [
        ("textual_inversion", 500, 2),
        ("p_plus", 500, 2),
        ("lora", 500, 2),
        ("custom_diffusion", 250, 8),
        ("ed_lora", 375, 4),
        ("odd", 215, 7),  # 1500 / 7, rounded up
    ]
    assert prior == [(model, "rabbit", 200, 4)]


def test_class_pictures_are_the_model_s_own(model):
    found = tuning.class_pictures(model, "rabbit", n=2, seed=3, steps=2)
    wanted = diffusion.encode_images(model, draw(model, "photo of a rabbit", n=2, seed=3))
    assert torch.allclose(found.latents, wanted, atol=2e-2) and not torch.allclose(wanted[0], wanted[1], atol=0.1)
    assert found.prompts == ["photo of a rabbit"] * 2


def test_attention_is_stored_only_for_the_recipe_that_asks(model, monkeypatch):
    def refuse(unet):
        raise AssertionError("stored")

    monkeypatch.setattr(tuning, "stored_attention", refuse)
    for name in ("lora", "ed_lora"):
        recipe = tuning.RECIPES[name]
        run = tuning.start_tuning(model, "bibi", "rabbit", recipe)
        batch = next(tuning.draw_batches(model, recipe, toy_pictures(model, run.phrase)))
        if recipe.attention:
            with pytest.raises(AssertionError, match="stored"):
                tuning.tuning_loss(run.model, batch, run.words, recipe)
        else:
            assert tuning.tuning_loss(run.model, batch, run.words, recipe) > 0


def test_both_words_start_as_they_should(model):
    run = tuning.start_tuning(model, "bibi", "rabbit", tuning.RECIPES["ed_lora"])
    rand, of_class = run.words.values()
    assert torch.equal(rand[0], prompts.random_embedding(model.text_encoder, "<bibi1>", 0))
    assert torch.equal(of_class[15], prompts.class_embedding(model.text_encoder, model.tokenizer, "rabbit"))
    assert rand.shape == of_class.shape == (16, 32)
    one = tuning.start_tuning(model, "bibi", "rabbit", tuning.RECIPES["lora"])
    assert [row.shape for row in one.words.values()] == [(1, 32)]


def test_rates_of_the_groups_and_their_decay(model):
    run = tuning.start_tuning(model, "bibi", "rabbit", tuning.RECIPES["ed_lora"])
    optimizer = tuning.make_optimizer(run)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-5, 1e-4]
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 16, 256]
    assert optimizer.defaults["betas"] == (0.9, 0.999) and optimizer.defaults["weight_decay"] == 0.01
    for recipe, rates in (("textual_inversion", [1, 0.75, 0.5, 0.25]), ("custom_diffusion", [1, 1, 1, 1])):
        first = replace(tuning.RECIPES[recipe], batch=1, prior=0, unet_lora=None)
        run = tuning.start_tuning(model, "bibi", "rabbit", first)
        batches = tuning.draw_batches(model, first, toy_pictures(model, run.phrase))
        (row,) = run.words.values()
        moved, before = [], row.detach().clone()
        for _ in tuning.tuning_steps(run, constant_gradient(run, batches), 4):
            moved.append((row.detach() - before).norm().item())
            before = row.detach().clone()
        assert moved == pytest.approx([moved[0] * rate for rate in rates], rel=0.2)


def test_the_loop_by_hand(model):
    """Textual Inversion again, written down flat: torch's AdamW on Eq. 1, with rates that fall to 0."""
    recipe = replace(tuning.RECIPES["textual_inversion"], batch=2)
    run = tuning.start_tuning(model, "bibi", "rabbit", recipe)
    (word,) = run.words
    row = torch.nn.Parameter(run.words[word].detach().clone())
    pictures = toy_pictures(model, run.phrase)
    states = list(tuning.tuning_steps(run, tuning.draw_batches(model, recipe, pictures, seed=4), 4))
    optimizer = torch.optim.AdamW([row], lr=1e-3, weight_decay=0.01)
    batches = tuning.draw_batches(model, recipe, pictures, seed=4)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 1e-3 * (4 - step) / 4
        batch = next(batches)
        context = model.context(batch.prompts, {word: row})
        loss = diffusion.denoising_loss(model, batch.latents, context, batch.noise, batch.t)
        assert states[step]["loss"] == pytest.approx(loss.item(), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(run.words[word], row, atol=1e-5)


def constant_gradient(run, batches):
    """The first batch over and over: Adam's steps are then about as long as its learning rate."""
    batch = next(batches)
    while True:
        yield batch


def test_long_words_are_frozen(model):
    recipe = replace(tuning.RECIPES["ed_lora"], freeze_norm=0.1)
    run = tuning.start_tuning(model, "bibi", "rabbit", recipe)
    norm = 0.1 * prompts.embedding_std(model.text_encoder) * math.sqrt(32)
    assert tuning.freezing_norm(recipe, model.text_encoder) == pytest.approx(norm)
    before = {word: rows.detach().clone() for word, rows in run.words.items()}
    (state,) = tuning.tuning_steps(run, tuning.draw_batches(model, recipe, toy_pictures(model, run.phrase)), 1)
    rows = torch.cat(list(before.values()))
    assert state["embedding_norm"] == pytest.approx(rows.square().sum(dim=1).sqrt().mean().item())
    assert all(torch.equal(run.words[word], rows) for word, rows in before.items())
    assert any(up.any() for _, up in tuning.to_concept(run).lora["unet"].values())
    assert tuning.freezing_norm(tuning.RECIPES["lora"], model.text_encoder) == math.inf


def test_batches_hold_the_prior_beside_the_concept(model):
    recipe = replace(tuning.RECIPES["custom_diffusion"], batch=3, prior_weight=0.5)
    pictures, prior = toy_pictures(model, "<bibi1> rabbit"), tuning.class_pictures(model, "rabbit", n=2, steps=1)
    assert prior.latents.shape == (2, 4, 8, 8) and prior.masks.shape == (2, 1, 8, 8) and (prior.masks == 1).all()
    seen = []
    batches = tuning.draw_batches(model, recipe, pictures, prior)
    for _ in range(8):
        batch = next(batches)
        assert batch.weight.tolist() == pytest.approx([1 / 3] * 3 + [0.5 / 3] * 3)
        assert batch.prompts[3:] == ["photo of a rabbit"] * 3 and batch.t.shape == (6,)
        for i, prompt in enumerate(batch.prompts[:3]):
            number = pictures.prompts.index(prompt)
            assert torch.equal(batch.latents[i], pictures.latents[number])
            assert torch.equal(batch.masks[i], pictures.masks[number])
            seen.append(number)
    assert set(seen) == {0, 1, 2}
    assert not torch.equal(next(batches).noise, batch.noise)


def test_only_the_mask_counts_in_ed_lora(model):
    """What is outside the mask may be anything; without a mask the whole picture counts."""
    recipe = replace(tuning.RECIPES["ed_lora"], attention=0.0)
    run = tuning.start_tuning(model, "bibi", "rabbit", recipe)
    batch = next(tuning.draw_batches(model, recipe, toy_pictures(model, run.phrase)))
    with torch.no_grad():
        loss = tuning.tuning_loss(run.model, batch, run.words, recipe)
        # The noise that is to be predicted is changed outside the mask, with the noisy latents kept as they are.
        a = model.scheduler.alphas_cumprod[batch.t].view(-1, 1, 1, 1)
        outside = (1 - batch.masks) * 3.0
        moved = replace(batch, noise=batch.noise + outside, latents=batch.latents - outside * ((1 - a) / a).sqrt())
        assert torch.allclose(tuning.tuning_loss(run.model, moved, run.words, recipe), loss, atol=1e-4)
        everywhere = replace(recipe, background=1.0)
        with_all = tuning.tuning_loss(run.model, moved, run.words, everywhere)
        assert not torch.allclose(with_all, tuning.tuning_loss(run.model, batch, run.words, everywhere), atol=1e-2)


def test_words_learn_by_the_attention_term_alone(model):
    """Following its gradient turns the words to the mask: it falls."""
    bibi = random_concept(model)
    rows = {word: torch.nn.Parameter(r.clone()) for word, r in bibi.embeddings.items()}
    one = lora.with_concept(model, bibi)
    pictures = toy_pictures(model, bibi.phrase)
    optimizer = torch.optim.Adam(rows.values(), lr=0.02)
    penalties = []
    for _ in range(5):
        with attention.stored_attention(one.unet) as store:
            one.unet(pictures.latents, 500, one.context(pictures.prompts, rows))
        maps = tuning.word_attention(one, store.maps(), pictures.prompts, rows)
        penalty = attention.outside_attention(maps, pictures.masks).sum()
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        penalties.append(penalty.item())
    assert penalties[-1] < penalties[0] - 0.02


def test_ed_lora_is_as_large_as_the_official_file():
    """On Stable Diffusion 1.5's shapes, without numbers: 354 tensors, 1,116,672 floats."""
    recipe = tuning.RECIPES["ed_lora"]
    text_encoder, unet = sd15_shapes.networks()
    with torch.device("meta"):
        layers = [layer for net in (text_encoder, unet) for layer in lora.attach(net, recipe.rank).values()]
    floats = sum(layer.down.numel() + layer.up.numel() for layer in layers)
    rows = len(attention.cross_attention(unet))
    assert 2 * len(layers) + len(recipe.init) == 354
    assert floats + len(recipe.init) * rows * 768 == 1_116_672


# Evaluation


def test_bounds_are_drawn_by_the_pretrained_model(model):
    """Table 1's bounds on real pictures: the class word is drawn and read, and the references are compared with it."""

    class Light:
        def image_features(self, images):
            means = torch.tensor([np.asarray(image, float).mean() for image in images])
            angles = means / 255
            return torch.stack([angles.cos(), angles.sin()], dim=1).float()

        def text_features(self, texts):
            assert texts == ["a photo of rabbit"]
            return torch.tensor([[1.0, 0.0]])

    bibi = random_concept(model)
    references = draw(lora.with_concept(model, bibi), "a <bibi1> <bibi2>")
    upper, lower = evaluation.bounds(model, "a photo of <bibi1> <bibi2>", bibi, references, Light(), steps=2)
    rabbit = pixels(draw(model, "a photo of rabbit")).mean() / 255
    assert upper == pytest.approx(2.5 * math.cos(rabbit), abs=1e-4)
    assert lower == pytest.approx(math.cos(rabbit - pixels(references).mean() / 255), abs=1e-4)


def test_half_precision_adds_updates_in_full(model):
    """A small update of a half-precision weight is rounded once, after the sum."""
    copy = model.copy()
    name, linear = next(iter(lora.attention_linears(copy.unet).items()))
    W0 = linear.weight.to(torch.bfloat16)
    linear.weight = torch.nn.Parameter(W0, requires_grad=False)
    dW = torch.full(W0.shape, 1e-3)
    lora.add_deltas(copy.unet, {name: dW})
    assert torch.equal(weights_of(copy)[f"unet.{name}"], (W0.float() + dW).to(torch.bfloat16))
