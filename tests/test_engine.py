"""The engine is the paper, faster: every function that both have, on the same inputs."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from paper_tiny import PROMPTS, ColourClip, farthest, load_model, plain, random_concept, toy_pictures, weights_of
from PIL import Image
from tiny import make_concept

import mixofshow_lite as mos
from mixofshow_lite import attention, diffusion, evaluation, fusion, lora, prompts, regions, tuning
from mixofshow_lite import model as engine_model
from mixofshow_lite.engine import attention as engine_maps
from mixofshow_lite.engine import attention_loss, layerwise, masks, views, wording
from mixofshow_lite.engine import evaluation as engine_evaluation
from mixofshow_lite.engine import lora as engine_lora
from mixofshow_lite.engine import recipes as engine_recipes
from mixofshow_lite.engine import tuning as engine_tuning
from mixofshow_lite.engine.fusion import algebra
from mixofshow_lite.files.concept import bind

WORDS = ["<bibi1>", "<bibi2>"]


@pytest.fixture(scope="module")
def model(tiny_folder):
    """The tiny base as the paper files know it; `tiny_base` is the same one as the engine knows it."""
    return load_model(tiny_folder)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(a, b, atol=1e-4):
    return torch.allclose(a, b, atol=atol, rtol=1e-4)


def in_engine(base, concept):
    """A concept of the paper files as the engine's."""
    fields = {"recipe": "ed_lora", "layers": base.layers, "rank": 2}
    names = ("name", "words", "class_word", "embeddings", "lora", "scale", "phrase")
    return mos.Concept(**{name: getattr(concept, name) for name in names}, **fields)


def pixels(pictures):
    return np.stack([np.asarray(picture, dtype=float) for picture in pictures])


# Prompts and diffusion


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("K", [1, 16])
def test_prompts(model, tiny_base, K, share):
    table = randn(2, K, 32)
    ours, theirs = prompts.bind(model.tokenizer, PROMPTS, WORDS), bind(tiny_base.tokenizer, PROMPTS, WORDS)
    assert torch.equal(ours.ids, theirs.ids) and torch.equal(ours.slots, theirs.slots)
    fast = torch.stack(layerwise.encode(tiny_base.text_encoder, theirs, table, 16, share=share))
    assert close(prompts.encode(model.text_encoder, ours, table, 16), fast)


def test_words_start_alike(model, tiny_base):
    for name in ("ed_lora", "lora", "custom_diffusion"):
        recipe = engine_recipes.SD15[name]
        run = tuning.start_tuning(model, "bibi", "rabbit", tuning.RECIPES[name], seed=3)
        fast = wording.init_rows(tiny_base, recipe, tuple(run.words), "rabbit", seed=3)
        assert run.words.keys() == fast.keys()
        assert all(close(run.words[word], rows, 1e-6) for word, rows in fast.items())


def test_equation_1(model, tiny_base):
    z, noise, t = randn(3, 4, 8, 8), randn(3, 4, 8, 8, seed=1), torch.tensor([10, 500, 900])
    with torch.no_grad():
        c = model.context(PROMPTS[2:] * 3)
        assert close(c, tiny_base.context(PROMPTS[2:] * 3))
        fast = engine_model.denoising_loss(tiny_base, z, c, noise, t)
        assert close(diffusion.denoising_loss(model, z, c, noise, t), fast)


def test_sampling(model, tiny_base):
    pictures = diffusion.sample(model, "a red cat", n=2, seed=3, steps=3, guidance=5.0, size=(64, 128))
    fast = tiny_base.sample("a red cat", n=2, seed=3, steps=3, guidance=5.0, size=(64, 128), progress=False)
    assert np.abs(pixels(pictures) - pixels(fast)).max() <= 1
    assert close(diffusion.encode_images(model, pictures), tiny_base.encode_images(pictures))


def test_attention_maps(model, tiny_base):
    with attention.stored_attention(model.unet) as store:
        diffusion.sample(model, "a red cat", seed=3, steps=2)
    _, words, maps = engine_maps.attention_maps(tiny_base, "a red cat", seed=3, steps=2)
    assert words[:5] == ["<start>", "a", "red", "cat", "<end>"]
    for ours, fast in zip(store.maps(), maps.values(), strict=True):
        assert close(ours[1], fast.flatten(0, 1))  # of the positive half


# LoRA and tuning


def test_low_rank_layers(model, tiny_base):
    slow, fast = model.copy(), tiny_base.copy()
    theirs = engine_lora.attach(fast.unet, 2, "attn2")
    ours = lora.attach(slow.unet, 2, "attn2")
    assert list(ours) == list(theirs)
    for i, (name, layer) in enumerate(ours.items()):
        layer.down.data, layer.up.data = randn(*layer.down.shape, seed=i) / 6, randn(*layer.up.shape, seed=i + 1)
        theirs[name].lora_A["default"].weight.data = layer.down.detach().clone()
        theirs[name].lora_B["default"].weight.data = layer.up.detach().clone()
    z, c = randn(1, 4, 8, 8), model.context("a red cat")
    with torch.no_grad():
        assert close(slow.unet(z, 500, c).sample, fast.unet(z, 500, c).sample, 1e-3)
    for name, (down, up) in engine_lora.extract(fast.unet).items():
        assert all(torch.equal(a, b) for a, b in zip(lora.extract(slow.unet)[name], (down, up), strict=True))


def test_concepts(model, tiny_base):
    concept = random_concept(model)
    slow = lora.with_concept(model, concept, 0.7)
    fast = tiny_base.with_concept(in_engine(tiny_base, concept), 0.7)
    assert farthest(slow, fast) < 1e-6
    made = make_concept(tiny_base)  # and the other way round
    assert farthest(lora.with_concept(model, made), tiny_base.with_concept(made)) < 1e-6


def test_maps_for_the_attention_regularisation(model, tiny_base):
    concept = random_concept(model)
    slow, fast = lora.with_concept(model, concept), tiny_base.with_concept(in_engine(tiny_base, concept))
    pictures = toy_pictures(model, concept.phrase)
    slots = prompts.bind(model.tokenizer, pictures.prompts, WORDS).slots
    with torch.no_grad():
        context = slow.context(pictures.prompts)
        with attention.stored_attention(slow.unet) as store:
            slow.unet(pictures.latents, 500, context)
        ours = tuning.word_attention(slow, store.maps(), pictures.prompts, slow.words)
        with attention_loss.captured_attention(fast.unet, prompts.word_places(slots, 2)) as theirs:
            fast.unet(pictures.latents, 500, context)
    assert len(ours) == len(theirs) and all(close(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three pictures of discs with masks."""
    folder = tmp_path_factory.mktemp("discs")
    rows = []
    for i in range(3):
        y, x = np.mgrid[:64, :64] / 64 - 0.5
        inside = (x**2 + y**2) < 0.05 * (i + 1)
        picture = np.where(inside[..., None], (255, 60 * i, 0), (30, 90, 200)).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
        Image.fromarray((inside * 255).astype(np.uint8)).save(folder / f"{i}_mask.png")
        rows.append({"file_name": f"{i}.png", "caption": "a photo of <TOK>", "mask": f"{i}_mask.png"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return mos.ConceptData(folder, class_word="rabbit")


TUNED = ("init", "layerwise", "class_after", "text_lora", "unet_lora", "rank", "lr_words", "lr_text", "lr_unet")
TUNED += ("decay", "batch", "noise_offset", "background", "attention", "freeze_norm")


@pytest.mark.parametrize("name", ["ed_lora", "lora", "custom_diffusion"])
def test_tuning(model, tiny_base, data, name):
    """A few steps from the same start on the same batches: the same losses and the same concept up to rounding.

    Pocket's null space and slower spatial layers are the engine's alone.
    """
    fast_recipe = replace(engine_recipes.RECIPES[name], batch=2, background=0.2, prior=0, **engine_recipes.FREE)
    if name == "ed_lora":
        fast_recipe = replace(fast_recipe, attention=0.5)
    recipe = replace(tuning.RECIPES[name], prior=0, **{field: getattr(fast_recipe, field) for field in TUNED})
    seen = []
    fast = engine_tuning.tune(
        tiny_base, data, fast_recipe, steps=4, seed=2, name="bibi", progress=False, callback=seen.append
    )

    run = tuning.start_tuning(model, "bibi", "rabbit", recipe, seed=2)
    # peft draws its factors in another order: start from the same ones.
    start = tiny_base.copy()
    engine_tuning.attach(start, fast_recipe, seed=2)
    for net in ("text_encoder", "unet"):
        layers = dict(lora.core(getattr(run.model, net)).named_modules())
        for layer, (down, _) in engine_lora.extract(getattr(start, net)).items():
            layers[layer].down.data = down
    batches = engine_batches(tiny_base, data, fast_recipe, run.phrase)
    states = list(tuning.tuning_steps(run, batches, 4))
    concept = tuning.to_concept(run)

    for state, record in zip(states, seen, strict=True):
        assert state["loss"] == pytest.approx(record["loss"], rel=2e-3)
        assert state["embedding_norm"] == pytest.approx(record["embedding_norm"], rel=1e-3)
    assert concept.phrase == fast.phrase and concept.words == fast.words
    for word, rows in fast.embeddings.items():
        assert (concept.embeddings[word] - rows).norm() < 0.02 * (rows - run_start(model, run, word)).norm()
    ups = [(concept.lora[net][layer][1], up) for net in fast.lora for layer, (_, up) in fast.lora[net].items()]
    assert sum((a - b).square().sum() for a, b in ups) < 0.01 * sum(b.square().sum() for _, b in ups)


def run_start(model, run, word):
    """What a word started from."""
    return tuning.start_tuning(model, run.name, run.class_word, run.recipe, seed=2).words[word].detach()


def engine_batches(base, data, recipe, phrase):
    """The batches that the engine draws with seed 2, as the paper's."""
    found = views.prepare(base, data, recipe, phrase, seed=2)
    generator = torch.Generator().manual_seed(2)
    while True:
        pick = torch.tensor(found.draw(recipe.batch, generator, recipe.noises))
        shape = (len(pick), *found.latents.shape[1:])
        t, noise = diffusion.draw_noise(base, shape, recipe.noise_offset, generator)
        names = [found.prompts[i] for i in pick.tolist()]
        weight = torch.full((len(pick),), 1 / recipe.batch)
        yield tuning.Batch(found.latents[pick], names, found.inside[pick], noise, t, weight)


# Fusion


def layer_problem(rows):
    """One layer with three rank-2 updates -> W0, factors, deltas, Grams."""
    W0 = randn(5, 8, seed=50, dtype=torch.float64)
    factors, grams = [], []
    for i in range(3):
        pair = (randn(2, 8, seed=i, dtype=torch.float64), randn(5, 2, seed=i + 10, dtype=torch.float64))
        X = randn(8, rows, seed=i + 20, dtype=torch.float64)
        factors.append(pair)
        grams.append(X @ X.T)
    return W0, factors, [up @ down for down, up in factors], grams


@pytest.mark.parametrize("rows", [30, 2])
def test_one_layer_of_fusion(rows):
    W0, factors, deltas, grams = layer_problem(rows)
    w = torch.ones(3, dtype=torch.float64) / 3
    shares = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    averaged = algebra.dense(algebra.average(factors, shares))
    assert close(fusion.average(W0, deltas, weights=[2, 3, 5]), W0 + averaged, 1e-7)
    update = (randn(2, 8, seed=80, dtype=torch.float64), randn(5, 2, seed=81, dtype=torch.float64))
    ours = fusion.objective(W0 + algebra.dense(update), W0, deltas, grams)
    assert ours.item() / 3 == pytest.approx(algebra.loss(update, factors, grams, w))
    for towards in ("average", "base"):
        for ridge in (0.0, 0.1):
            normal = algebra.normal_equations(grams, w, ridge)
            fast = W0 + algebra.dense(algebra.closed_form(normal, factors, towards))
            assert close(fusion.closed_form(W0, deltas, grams, ridge, towards), fast, 1e-6)
    fast = W0 + algebra.dense(algebra.lbfgs(algebra.normal_equations(grams, w, 0.0), factors, iterations=5))
    assert close(fusion.lbfgs(W0, deltas, grams, 5), fast, 1e-5)


FUSED = ("photo of a {}", "a {} on the beach")


@pytest.mark.parametrize("solver", ["closed_form", "lbfgs"])
def test_fusion_of_whole_models(model, tiny_base, solver):
    concepts = [random_concept(model, "bibi"), random_concept(model, "coco", 1)]
    theirs = [in_engine(tiny_base, concept) for concept in concepts]
    recording = fusion.Recording(FUSED, FUSED, steps=2)
    same = {"prompts": FUSED, "steps": 2, "guidance": 1.0, "progress": False}
    if solver == "closed_form":
        slow = fusion.gradient_fusion(model, concepts, partial(fusion.closed_form, ridge=0.05), recording)
        fast = mos.gradient_fusion(tiny_base, theirs, ridge=0.05, **same)
    else:
        slow = fusion.gradient_fusion(model, concepts, partial(fusion.lbfgs, iterations=2), recording)
        fast = mos.gradient_fusion(tiny_base, theirs, solver="lbfgs", iterations=(2, 2, 2), **same)
    moved = farthest(fast, tiny_base)
    assert farthest(slow, fast) < 2e-3 * moved
    averaged = mos.weight_fusion(tiny_base, theirs, [1, 3])
    assert farthest(fusion.weight_fusion(model, concepts, [1, 3]), averaged) < 1e-6 < farthest(slow, averaged)
    assert slow.words.keys() == fast.words.keys()
    assert list(weights_of(slow)) == list(weights_of(fast))


# Regions


@pytest.mark.parametrize("size", [(8, 8), (3, 5), (1, 1)])
def test_region_weights(size):
    """Boxes, hard and soft masks, alone and overlapping."""
    soft = randn(16, 15).sigmoid()
    hard = (soft > 0.6).float()
    boxes = [(0, 0, 0.5, 1), (0.3, 0.2, 0.9, 0.7), (0.7, 0.71, 0.73, 0.74)]
    ours = [regions.Region("x", box=box) for box in boxes]
    theirs = [masks.Region("x", box=box) for box in boxes]
    found = regions.region_weights(ours, *size)
    assert close(found, masks.region_weights(theirs, *size), 1e-5)
    for mask in (soft, hard):
        if 16 % size[0] == 0 and 15 % size[1] == 0:  # where the engine's exact mean is the mean of whole pixels
            fast = masks.Region("x", mask=mask.numpy()).cover(*size)
            assert close(regions.cover(regions.Region("x", mask=mask), *size), fast, 1e-5)


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_regional_attention(model, tiny_base, guidance):
    concept = random_concept(model)
    slow, fast = lora.with_concept(model, concept), tiny_base.with_concept(in_engine(tiny_base, concept))
    asked = [("a red cat", (0, 0, 0.6, 1)), ("<bibi1> <bibi2>", (0.4, 0.1, 1, 0.9))]
    ours = [regions.Region(prompt, box=box) for prompt, box in asked]
    theirs = [mos.Region(prompt, box=box) for prompt, box in asked]
    sampling = {"seed": 3, "steps": 2, "guidance": guidance, "n": 2}
    wanted = fast.sample("two on the beach", regions=theirs, progress=False, **sampling)
    found = regions.sample_regions(slow, "two on the beach", ours, **sampling)
    assert np.abs(pixels(found) - pixels(wanted)).max() <= 1


# Evaluation


def test_alignment(model):
    clip = ColourClip()
    fast = engine_evaluation.Scorer("colours", None, None, lambda texts: torch.tensor([[len(text)] for text in texts]))
    fast.image_features, fast.text_features = clip.image_features, clip.text_features
    images = [plain(255, 60, 20), plain(20, 200, 20)]
    references = [plain(255, 255, 20), plain(0, 0, 0)]
    ours = evaluation.text_alignment(images, "a red cat", clip)
    assert ours == pytest.approx(mos.text_alignment(images, "a red cat", fast))
    ours = evaluation.image_alignment(images, references, clip)
    assert ours == pytest.approx(mos.image_alignment(images, references, fast))
    concept = random_concept(model)
    prompt = "a photo of <bibi1> <bibi2>"
    assert evaluation.plain_prompt(prompt, [concept]) == engine_evaluation.plain_prompt(prompt, [concept])
