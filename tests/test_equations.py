"""Every equation of the eight paper files, computed a second way.

The first words of a test's docstring are the equation's tag, as it stands beside the line: `# Eq. 1`, `# 3.4 w_i`.
tests/test_guards.py asks that every tag has a test here.
"""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.attention_processor import AttnProcessor
from paper_tiny import PROMPTS, ColourClip, load_model, plain, random_concept, toy_pictures, weights_of
from peft import LoraConfig, inject_adapter_in_model

from mixofshow_lite import attention, diffusion, evaluation, fusion, lora, prompts, regions, tuning


@pytest.fixture(scope="module")
def model(tiny_folder):
    torch.set_num_threads(1)
    return load_model(tiny_folder)


@pytest.fixture(scope="module")
def concept(model):
    return random_concept(model)


@pytest.fixture(scope="module")
def one(model, concept):
    """The model with one concept."""
    return lora.with_concept(model, concept)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(a, b, atol=1e-5):
    return torch.allclose(torch.as_tensor(a), torch.as_tensor(b), atol=atol, rtol=1e-4)


# Attention


def test_softmax():
    """3.4 A = softmax(QK^T / sqrt(d)): one pixel, head and token at a time."""
    q, k = randn(2, 3, 5, 4), randn(2, 3, 6, 4, seed=1)
    weights = attention.attention_weights(q, k)
    assert weights.shape == (2, 3, 5, 6)
    for b, head, pixel in ((0, 0, 0), (1, 2, 4), (0, 1, 3)):
        scores = [sum(float(x * y) for x, y in zip(q[b, head, pixel], key, strict=True)) for key in k[b, head]]
        exponents = [math.exp(score / math.sqrt(4)) for score in scores]
        for token in range(6):
            assert weights[b, head, pixel, token].item() == pytest.approx(exponents[token] / sum(exponents), abs=1e-5)


def test_attend():
    """3.4 h = A V: torch's own attention, and heads that do not mix."""
    q, k, v = randn(2, 3, 5, 4), randn(2, 3, 6, 4, seed=1), randn(2, 3, 6, 4, seed=2)
    assert close(attention.attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
    x = randn(2, 5, 12)
    split = attention.split_heads(x, 3)
    assert split.shape == (2, 3, 5, 4) and torch.equal(split[1, 2, 3], x[1, 3, 8:12])
    assert torch.equal(attention.merge_heads(split), x)


def test_layers_in_order(model):
    """3.1 layers down -> mid -> up: the order in which a forward pass calls them."""
    called = []
    handles = []
    for name, module in model.unet.named_modules():
        if name.endswith("attn2"):
            handles.append(module.register_forward_hook(lambda *_, name=name: called.append(name)))
    with torch.no_grad():
        model.unet(randn(1, 4, 8, 8), 500, model.context("a red cat"))
    for handle in handles:
        handle.remove()
    assert tuple(called) == model.layers
    assert [name.split("_")[0] for name in called] == ["down"] * 6 + ["mid"] + ["up"] * 9


def test_each_layer_reads_its_own_prompt(model):
    """3.1 layer l reads prompt l: what arrives at each layer's keys and values."""
    context = randn(2, 16, 16, 32)
    seen, handles = {}, []
    for name, module in attention.cross_attention(model.unet).items():
        for part in ("to_k", "to_v"):
            keep = lambda _, args, key=(name, part): seen.__setitem__(key, args[0])  # noqa: E731
            handles.append(getattr(module, part).register_forward_pre_hook(keep))
    with torch.no_grad():
        model.unet(randn(2, 4, 8, 8), 500, context)
    for handle in handles:
        handle.remove()
    for layer, name in enumerate(model.layers):
        assert torch.equal(seen[name, "to_k"], context[:, layer]) and torch.equal(seen[name, "to_v"], context[:, layer])


# Prompts


def test_one_word_for_all_layers(model):
    """3.1 V: the same as 16 equal layers, and every layer's prompt is equal."""
    bound = prompts.bind(model.tokenizer, PROMPTS, ["<bibi1>", "<bibi2>"])
    table = randn(2, 1, 32)
    found = prompts.encode(model.text_encoder, bound, table, 16)
    assert close(found, prompts.encode(model.text_encoder, bound, table.repeat(1, 16, 1), 16))
    assert close(found, found[:, :1].expand_as(found))


def test_layerwise_words(model):
    """3.1 V+ (P+): for each layer a vocabulary that holds this layer's embedding in place of an unused word."""
    words, table = ["<bibi1>", "<bibi2>"], randn(2, 16, 32)
    bound = prompts.bind(model.tokenizer, PROMPTS, words)
    found = prompts.encode(model.text_encoder, bound, table, 16)
    assert found.shape == (3, 16, 16, 32)
    plain_prompts = [prompt.replace("<bibi1>", "dog").replace("<bibi2>", "robot") for prompt in PROMPTS]
    ids = model.tokenizer(plain_prompts, padding="max_length", return_tensors="pt").input_ids
    dog, robot = (model.tokenizer(word, add_special_tokens=False).input_ids for word in ("dog", "robot"))
    assert len(dog) == len(robot) == 1
    embedding = model.text_encoder.get_input_embeddings()
    before = embedding.weight.detach().clone()
    for layer in (0, 6, 15):
        with torch.no_grad():
            embedding.weight[dog[0]], embedding.weight[robot[0]] = table[0, layer], table[1, layer]
            wanted = model.text_encoder(ids)[0]
            embedding.weight.copy_(before)
        assert close(found[:, layer], wanted)
    assert not close(found[0, 0], found[0, 1]) and close(found[2, 0], found[2, 1])


def test_context(model):
    """3.1 c = psi(P*): without concept words, transformers' own encoding of the prompt, in every layer."""
    sentences = ["a red cat, on the beach", "robot", ""]
    ids = model.tokenizer(sentences, padding="max_length", truncation=True, return_tensors="pt").input_ids
    bound = prompts.bind(model.tokenizer, sentences, ["<bibi1>"])
    assert torch.equal(bound.ids, ids) and (bound.slots == -1).all()
    wanted = model.text_encoder(ids).last_hidden_state
    context = model.context(sentences)
    assert context.shape == (3, 16, 16, 32)
    assert close(context, wanted[:, None].expand(-1, 16, -1, -1))
    assert close(model.context(sentences, {"<bibi1>": randn(16, 32)}), context)


def test_random_word(model):
    """3.3.1 V_rand+: numbers with the spread of the model's own embeddings, of the word and the seed alone."""
    draw = partial(prompts.random_embedding, model.text_encoder)
    many = torch.stack([draw("<bibi1>", seed) for seed in range(200)])
    spread = float(np.std(model.text_encoder.get_input_embeddings().weight.detach().numpy()))
    assert many.std().item() == pytest.approx(spread, rel=0.03) and abs(many.mean().item()) < 0.03 * spread
    assert torch.equal(draw("<bibi1>", 7), many[7])
    assert not torch.equal(draw("<coco1>", 7), many[7])


def test_class_word(model):
    """3.3.1 V_class+: the row of the class word's token, the mean where it has several."""
    table = model.text_encoder.get_input_embeddings().weight
    (rabbit,) = model.tokenizer.convert_tokens_to_ids(["rabbit</w>"])
    assert close(prompts.class_embedding(model.text_encoder, model.tokenizer, "rabbit"), table[rabbit])
    pieces = model.tokenizer.convert_tokens_to_ids(model.tokenizer.tokenize("unicorn"))
    assert len(pieces) > 1
    wanted = sum(table[i] for i in pieces) / len(pieces)
    assert close(prompts.class_embedding(model.text_encoder, model.tokenizer, "unicorn"), wanted)


# Diffusion


def test_noisy_latents(model):
    """3.1 z_t = sqrt(a_t) z + sqrt(1 - a_t) eps: diffusers' own scheduler."""
    z, noise, t = randn(3, 4, 8, 8), randn(3, 4, 8, 8, seed=1), torch.tensor([0, 500, 999])
    assert close(diffusion.add_noise(model, z, noise, t), model.scheduler.add_noise(z, noise, t))


def test_predicted_noise(model, tiny_folder):
    """3.1 eps_theta(z_t, t, c): the stock U-Net, whose layers all read one context."""
    stock = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None).unet
    stock.set_attn_processor(AttnProcessor())
    z, t, c = randn(2, 4, 8, 8), torch.tensor([10, 900]), randn(2, 16, 32, seed=1)
    with torch.no_grad():
        wanted = stock(z, t, c).sample
        assert close(model.unet(z, t, c[:, None].expand(-1, 16, -1, -1)).sample, wanted)
        assert close(model.unet(z, t, c).sample, wanted)


def test_equation_1(model):
    """Eq. 1 denoising loss: torch's, on diffusers' noisy latents; in tuning the same without masks, per picture."""
    z, noise, t = randn(3, 4, 8, 8), randn(3, 4, 8, 8, seed=1), torch.tensor([10, 500, 900])
    names = ["a red cat", "a dog", "beach"]
    with torch.no_grad():
        context = model.context(names)
        predicted = model.unet(model.scheduler.add_noise(z, noise, t), t, context).sample
        wanted = F.mse_loss(predicted, noise)
        assert close(diffusion.denoising_loss(model, z, context, noise, t), wanted)
        weight = torch.tensor([0.5, 0.3, 0.2])
        batch = tuning.Batch(z, names, torch.rand(3, 1, 8, 8), noise, t, weight)
        each = F.mse_loss(predicted, noise, reduction="none").mean(dim=(1, 2, 3))
        recipe = tuning.RECIPES["lora"]
        found = tuning.tuning_loss(model, batch, {"<bibi1>": randn(1, 32)}, recipe)
        assert close(found, (weight * each).sum())


def test_what_equation_1_averages_over(model):
    """Eq. 1 denoising loss: times are uniform over the training steps, the noise is standard normal."""
    generator = torch.Generator().manual_seed(0)
    t, noise = diffusion.draw_noise(model, (4000, 4, 2, 2), 0.0, generator)
    assert t.min() >= 0 and t.max() <= 999 and t.max() > 990
    assert t.float().mean().item() == pytest.approx(499.5, abs=15)
    assert noise.mean().abs() < 0.02 and noise.var().item() == pytest.approx(1, abs=0.02)
    _, moved = diffusion.draw_noise(model, (4000, 4, 2, 2), 2.0, generator)
    of_channels = moved.mean(dim=(2, 3))  # variance 1 / 4 of four pixels, and 2^2 of their common offset
    assert of_channels.var().item() == pytest.approx(4.25, abs=0.15)


def test_guidance(model):
    """3.1 classifier-free guidance: both predictions made one by one, and moved along their difference."""
    z, t = randn(2, 4, 8, 8), torch.tensor(500)
    context, negative = model.context(["a red cat", "a dog"]), model.context("beach")
    with torch.no_grad():
        positive = model.unet(z, t, context).sample
        avoided = model.unet(z, t, negative.expand(2, -1, -1, -1)).sample
        found = diffusion.guided_noise(model, z, t, context, negative, 7.5)
        assert close(found, positive + 6.5 * (positive - avoided), atol=1e-4)
        assert torch.equal(diffusion.guided_noise(model, z, t, context, negative, 1), positive)


def test_sampling_loop(model, tiny_folder):
    """3.1 sampling: the stock pipeline with its DPM-Solver++, from the same noise."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="dpmsolver++"
    )
    z = diffusion.starting_noise(model, 2, seed=3)
    asked = {"num_inference_steps": 4, "guidance_scale": 5.0, "negative_prompt": ["beach"] * 2}
    wanted = pipeline(["a red cat"] * 2, latents=z, output_type="latent", **asked).images
    steps = list(diffusion.denoise(model, z, model.context(["a red cat"] * 2), model.context("beach"), 4, 5.0))
    assert len(steps) == 4 and close(steps[-1], wanted, atol=1e-4)
    drawn = diffusion.sample(model, "a red cat", n=2, seed=3, steps=4, guidance=5.0, negative_prompt="beach")
    by_pipeline = pipeline(["a red cat"] * 2, latents=z, **asked).images
    for a, b in zip(drawn, by_pipeline, strict=True):
        assert a.size == (64, 64) and np.abs(np.asarray(a, float) - np.asarray(b, float)).max() <= 1
    alone = diffusion.starting_noise(model, 1, seed=4)
    assert torch.equal(alone[0], z[1])  # picture i has its own seed + i


def test_latents_of_pictures(model):
    """3.1 z: diffusers' own preprocessing, and the mean of the VAE's posterior."""
    pictures = diffusion.sample(model, "a red cat", n=2, steps=1)
    with torch.no_grad():
        x = VaeImageProcessor().preprocess(pictures)
        wanted = model.vae.encode(x).latent_dist.mode() * 0.18215
        assert model.vae.config.scaling_factor == 0.18215
        assert close(diffusion.encode_images(model, pictures), wanted)
        decoded = VaeImageProcessor().postprocess(model.vae.decode(wanted / 0.18215).sample)
    for a, b in zip(diffusion.decode(model, wanted), decoded, strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))
    assert diffusion.latent_size(model) == (8, 8) and diffusion.latent_size(model, (64, 128)) == (8, 16)


# LoRA


def test_low_rank_layer():
    """3.1 W = W0 + BA: the weight added up, and peft's own layer."""
    linear = torch.nn.Linear(6, 5)
    layer = lora.LoRALinear(linear, rank=2, alpha=0.7)
    x = randn(3, 4, 6)
    assert torch.equal(layer(x), linear(x))  # B starts at zero: tuning begins at W0
    torch.nn.init.normal_(layer.up)
    W = linear.weight + 0.7 * layer.up @ layer.down
    assert close(layer(x), F.linear(x, W, linear.bias))
    net = torch.nn.Sequential(linear)
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=1.4, target_modules=["0"]), net)
    with torch.no_grad():
        net[0].lora_A["default"].weight.copy_(layer.down), net[0].lora_B["default"].weight.copy_(layer.up)
    assert close(layer(x), net(x))


def test_low_rank_starts_like_a_linear_layer():
    """3.1 W = W0 + BA: A is uniform within 1 / sqrt(d_in), as torch starts its linear layers, and B zero."""
    layer = lora.LoRALinear(torch.nn.Linear(100, 5), rank=50)
    assert layer.down.shape == (50, 100) and layer.up.shape == (5, 50) and not layer.up.any()
    assert 0.099 < layer.down.abs().max().item() <= 0.1
    whole = lora.LoRALinear(torch.nn.Linear(6, 5), rank=None)
    assert torch.equal(whole.down, torch.eye(6)) and whole.up.shape == (5, 6)
    assert not whole.down.requires_grad and whole.up.requires_grad


def test_delta():
    """3.1 dW = BA: by einsum; its rank is at most r."""
    down, up = randn(2, 6), randn(5, 2, seed=1)
    dW = lora.delta(down, up, 0.5)
    assert close(dW, 0.5 * torch.einsum("or,ri->oi", up, down))
    assert torch.linalg.matrix_rank(dW) == 2


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_with_concept(model, concept, alpha):
    """3.3.1 Phi_0 + alpha dPhi: LoRAs beside the weights, at that alpha."""
    concept = lora.Concept(**{**vars(concept), "scale": 2.0})
    beside = lora.with_words(model, [concept])
    for net, factors in concept.lora.items():
        for name, layer in lora.attach(getattr(beside, net), rank=2, alpha=2 * alpha).items():
            down, up = factors[name]
            layer.down.data, layer.up.data = down, up
    added = lora.with_concept(model, concept, alpha)
    z = randn(3, 4, 8, 8)
    with torch.no_grad():
        c = beside.context(PROMPTS)
        assert close(added.context(PROMPTS), c, atol=1e-4)
        assert close(added.unet(z, 500, c).sample, beside.unet(z, 500, c).sample, atol=1e-4)
    moved = {name for name, W in weights_of(added).items() if not torch.equal(W, weights_of(model)[name])}
    assert len(moved) == (136 if alpha else 0)


# Tuning


def test_ed_lora():
    """3.3.1 ED-LoRA: the row against the paper (4.1) and the official configuration 8101_EDLoRA_potter."""
    row = tuning.RECIPES["ed_lora"]
    assert (row.init, row.layerwise, row.class_after) == (("rand", "class"), True, False)
    assert (row.text_lora, row.unet_lora, row.rank) == (True, "", 4)
    assert (row.lr_words, row.lr_text, row.lr_unet) == (1e-3, 1e-5, 1e-4)
    assert (row.batch, row.steps, row.noise_offset, row.background, row.decay) == (4, None, 0.01, 0.0, True)
    norm_of_a_random_word = 0.013 * math.sqrt(768)
    assert row.freeze_norm * norm_of_a_random_word == pytest.approx(0.55, abs=0.01)


def test_two_words(model):
    """3.3.1 V = V_rand+ V_class+: at first, the prompt that has both first embeddings written in."""
    run = tuning.start_tuning(model, "bibi", "rabbit", tuning.RECIPES["ed_lora"], seed=3)
    rand = prompts.random_embedding(model.text_encoder, "<bibi1>", 3)
    found = run.model.context(f"a photo of {run.phrase}", run.words)
    table = model.text_encoder.get_input_embeddings()
    ids = model.tokenizer("a photo of dog rabbit", padding="max_length", return_tensors="pt").input_ids
    (dog,) = model.tokenizer("dog", add_special_tokens=False).input_ids
    before = table.weight.detach().clone()
    with torch.no_grad():
        table.weight[dog] = rand
        wanted = model.text_encoder(ids)[0]
        table.weight.copy_(before)
    assert close(found, wanted[:, None].expand_as(found))


def test_two_words_in_a_prompt(model):
    """3.3.1 V_rand+ V_class+ in P*: one after the other, in the order in which the recipe starts them."""
    run = tuning.start_tuning(model, "bibi", "rabbit", tuning.RECIPES["ed_lora"])
    slots = prompts.bind(model.tokenizer, [f"a {run.phrase} on the beach"], list(run.words)).slots[0].tolist()
    assert slots[:6] == [-1, -1, 0, 1, -1, -1] and run.phrase == "<bibi1> <bibi2>"
    after = tuning.start_tuning(model, "bibi", "rabbit", tuning.RECIPES["custom_diffusion"])
    assert after.phrase == "<bibi1> rabbit"


def test_official_loss(one):
    """3.3.1 ED-LoRA: our loss is a quarter of the official one, whose mask has one channel and whose weight is 0.01."""
    recipe, batch, words = tuning.RECIPES["ed_lora"], toy_batch(one), dict(one.words)
    with torch.no_grad():
        found = tuning.tuning_loss(one, batch, words, recipe)
        z_t = one.scheduler.add_noise(batch.latents, batch.noise, batch.t)
        with attention.stored_attention(one.unet) as store:
            predicted = one.unet(z_t, batch.t, one.context(batch.prompts)).sample
        maps = tuning.word_attention(one, store.maps(), batch.prompts, words)
        error = F.mse_loss(predicted, batch.noise, reduction="none")
        masked = (error * batch.masks).sum((1, 2, 3)) / batch.masks.sum((1, 2, 3))
        official = masked + 0.01 * attention.outside_attention(maps, batch.masks)
    assert 4 * found.item() == pytest.approx(official.mean().item(), rel=1e-4)


def toy_batch(model):
    pictures = toy_pictures(model, "<bibi1> <bibi2>")
    t = torch.tensor([10, 500, 900])
    return tuning.Batch(pictures.latents, pictures.prompts, pictures.masks, randn(3, 4, 8, 8), t, torch.ones(3) / 3)


def test_attention_regularisation(one):
    """3.3.1 attention regularisation (official code): one picture, word and size at a time."""
    batch = toy_batch(one)
    seen, handles = {}, []
    layers = attention.cross_attention(one.unet)
    for name, module in layers.items():
        for side in ("to_q", "to_k"):
            keep = lambda _, args, out, key=(name, side): seen.__setitem__(key, out)  # noqa: E731
            handles.append(getattr(module, side).register_forward_hook(keep))
    with torch.no_grad(), attention.stored_attention(one.unet) as store:
        one.unet(batch.latents, 500, one.context(batch.prompts))
    for handle in handles:
        handle.remove()
    maps = tuning.word_attention(one, store.maps(), batch.prompts, one.words)
    penalty = attention.outside_attention(maps, batch.masks)
    slots = prompts.bind(one.tokenizer, batch.prompts, list(one.words)).slots
    for b in range(3):
        total = 0.0
        for side in (8, 4, 2, 1):
            inside = batch.masks[b, 0].view(side, 8 // side, side, 8 // side).mean((1, 3)).flatten()
            for word in (0, 1):
                place = (slots[b] == word).nonzero().item()
                heads = []
                for name, module in layers.items():
                    q, k = seen[name, "to_q"][b].chunk(2, dim=1), seen[name, "to_k"][b].chunk(2, dim=1)
                    if len(q[0]) == side**2:
                        assert module.heads == 2
                        heads += [(q[h] @ k[h].T / 16**0.5).softmax(1)[:, place] for h in (0, 1)]
                mean = torch.stack(heads).mean(0)
                total += ((mean / mean.max()) * (1 - inside)).sum() / (1 - inside).sum()
        assert penalty[b].item() == pytest.approx(float(total), rel=1e-3)
    assert (attention.outside_attention(maps, torch.ones_like(batch.masks)) == 0).all()


# Fusion

N, D_OUT, D_IN = 3, 5, 6


def layer_problem(rows=40, seed=0, d_in=D_IN, r=1):
    """W0, three rank-r updates, and their inputs X_i (d_in, rows)."""
    W0 = randn(D_OUT, d_in, seed=seed, dtype=torch.float64)
    deltas, inputs = [], []
    for i in range(N):
        up = randn(D_OUT, r, seed=10 * i + 1, dtype=torch.float64)
        deltas.append(up @ randn(r, d_in, seed=10 * i + 2, dtype=torch.float64))
        inputs.append((i + 1) * randn(d_in, rows, seed=10 * i + 3, dtype=torch.float64))
    return W0, deltas, inputs, [X @ X.T for X in inputs]


def test_equation_2():
    """Eq. 2 weight fusion: a matrix product over stacked updates; weights count relative to their sum."""
    W0, deltas, _, grams = layer_problem()
    assert close(fusion.average(W0, deltas), W0 + sum(deltas) / 3)
    shares = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    wanted = W0 + torch.einsum("n,noi->oi", shares, torch.stack(deltas))
    assert close(fusion.average(W0, deltas, grams, weights=[1, 2, 1]), wanted)


def test_equation_2_on_a_model(model):
    """Eq. 2 weight fusion: on every layer of both networks, with all words."""
    concepts = [random_concept(model, "bibi"), random_concept(model, "coco", 1)]
    fused = fusion.weight_fusion(model, concepts, [1, 3])
    before, after = weights_of(model), weights_of(fused)
    for net in ("text_encoder", "unet"):
        for name, (down, up) in concepts[0].lora[net].items():
            other_down, other_up = concepts[1].lora[net][name]
            wanted = before[f"{net}.{name}"] + 0.25 * up @ down + 0.75 * other_up @ other_down
            assert close(after[f"{net}.{name}"], wanted)
    assert list(fused.words) == ["<bibi1>", "<bibi2>", "<coco1>", "<coco2>"]


def test_objective():
    """3.3.2 least squares W = argmin sum_i ||(W0 + dW_i) X_i - W X_i||_F^2: with the inputs themselves."""
    W0, deltas, inputs, grams = layer_problem()
    W = randn(D_OUT, D_IN, seed=99, dtype=torch.float64)
    wanted = 0.0
    for dW, X in zip(deltas, inputs, strict=True):
        wanted += torch.linalg.matrix_norm((W0 + dW) @ X - W @ X).item() ** 2
    assert fusion.objective(W, W0, deltas, grams).item() == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("towards", ["average", "base"])
@pytest.mark.parametrize(("ridge", "rows"), [(0.0, 40), (0.3, 40), (0.3, 1), (0.0, 1)])
def test_closed_form(towards, ridge, rows):
    """3.3.2 closed form (ours): least squares on all rows at once, the ridge as more rows for the prior."""
    W0, deltas, inputs, grams = layer_problem(rows)
    found = fusion.closed_form(W0, deltas, grams, ridge, towards)
    prior = W0 if towards == "base" else W0 + sum(deltas) / 3
    lam = ridge * sum(G.trace() for G in grams) / D_IN
    X = torch.cat([*inputs, lam.sqrt() * torch.eye(D_IN, dtype=torch.float64)], dim=1)  # (d_in, all rows)
    asked = [(W0 + dW) @ own for dW, own in zip(deltas, inputs, strict=True)]
    Y = torch.cat([*asked, lam.sqrt() * prior], dim=1)
    wanted = prior + (torch.linalg.pinv(X.T) @ (Y - prior @ X).T).T  # minimum norm: nothing where nothing was asked
    assert torch.allclose(found, wanted, atol=1e-8)
    if ridge == 0:
        for other in (randn(D_OUT, D_IN, seed=s, dtype=torch.float64) for s in range(5)):
            near = fusion.objective(found + 1e-3 * other, W0, deltas, grams)
            assert fusion.objective(found, W0, deltas, grams) <= near


def test_ridge():
    """3.3.2 ridge (ours): lam |W - prior|^2 in the objective: its gradient is 0, and much of it leaves the prior."""
    W0, deltas, _, grams = layer_problem()
    prior, size = fusion.average(W0, deltas), sum(G.trace() for G in grams) / D_IN
    found = fusion.closed_form(W0, deltas, grams, ridge=0.2).requires_grad_()
    lost = fusion.objective(found, W0, deltas, grams) + 0.2 * size * (found - prior).square().sum()
    (slope,) = torch.autograd.grad(lost, found)
    assert slope.abs().max() < 1e-9 * lost.item()
    gap = fusion.closed_form(W0, deltas, grams) - prior
    held = [(fusion.closed_form(W0, deltas, grams, ridge) - prior).norm() / gap.norm() for ridge in (0.01, 1, 1e6)]
    assert 0.9 < held[0] < 1 and held[0] > held[1] > held[2] and held[2] < 1e-4


def test_closed_form_is_low_rank():
    """3.3.2 closed form (ours): W - W0 has at most rank sum_i r_i, and the down-projections that this predicts."""
    W0, deltas, _, grams = layer_problem(d_in=12)
    for towards in ("average", "base"):
        U = fusion.closed_form(W0, deltas, grams, 0.1, towards) - W0
        assert torch.linalg.matrix_rank(U, rtol=1e-9) == 3


def test_directions_without_input_stay_at_the_prior():
    """3.3.2 closed form (ours): with few recorded rows the rest of the weight does not move, by rounding neither."""
    linear = torch.nn.Linear(64, 5)
    W0, deltas, _, _ = layer_problem(d_in=64)
    grams, rows = [], []
    for i in range(N):
        rows.append(100 * randn(4, 64, seed=i))
        with fusion.recorded_grams({"layer": linear}) as seen:
            linear(rows[-1])
        grams.append(seen["layer"])
    unseen = torch.linalg.svd(torch.cat(rows).double())[2][12:]  # (52, 64): no recorded row goes there
    for towards, prior in (("average", W0 + sum(deltas) / 3), ("base", W0)):
        moved = fusion.closed_form(W0, deltas, grams, towards=towards) - prior
        assert moved.norm() > 0.1 and (moved @ unseen.T).norm() < 1e-6


def test_one_concept_and_twice_the_same():
    """3.3.2 closed form (ours): one concept is itself, the same one twice too, and the order does not matter."""
    W0, deltas, _, grams = layer_problem()
    assert torch.allclose(fusion.closed_form(W0, deltas[:1], grams[:1]), W0 + deltas[0], atol=1e-9)
    twice = fusion.closed_form(W0, [deltas[0]] * 2, [grams[0]] * 2)
    assert torch.allclose(twice, W0 + deltas[0], atol=1e-9)
    swapped = fusion.closed_form(W0, deltas[::-1], grams[::-1], 0.2)
    assert torch.allclose(swapped, fusion.closed_form(W0, deltas, grams, 0.2), atol=1e-9)
    # Inputs in different directions: every concept keeps everything, which an average cannot.
    apart = [torch.zeros(D_IN, D_IN, dtype=torch.float64) for _ in deltas]
    for i, G in enumerate(apart):
        G[2 * i, 2 * i] = G[2 * i + 1, 2 * i + 1] = 1
    assert fusion.objective(fusion.closed_form(W0, deltas, apart), W0, deltas, apart) < 1e-16
    assert fusion.objective(fusion.average(W0, deltas), W0, deltas, apart) > 0.1


def test_lbfgs():
    """3.3.2 LBFGS: reaches the closed form's minimum, and is above it when it stops early."""
    W0, deltas, _, grams = layer_problem()
    best = fusion.objective(fusion.closed_form(W0, deltas, grams), W0, deltas, grams)
    losses = []
    for iterations in (1, 3, 200):
        losses.append(fusion.objective(fusion.lbfgs(W0, deltas, grams, iterations), W0, deltas, grams).item())
    assert fusion.objective(W0, W0, deltas, grams) > losses[0] > losses[1] > losses[2]
    assert losses[2] == pytest.approx(best.item(), rel=1e-6)
    assert torch.allclose(fusion.lbfgs(W0, deltas, grams), fusion.closed_form(W0, deltas, grams), atol=1e-4)
    # Where nothing was recorded it leaves W0 alone.
    narrow = layer_problem(rows=1)
    W = fusion.lbfgs(narrow[0], narrow[1], narrow[3])
    assert torch.allclose(W, fusion.closed_form(narrow[0], narrow[1], narrow[3], towards="base"), atol=1e-4)


def test_recorded_inputs(one):
    """3.3.2 X_i: all inputs kept, and multiplied at the end."""
    linears = lora.attention_linears(one.unet)
    kept, handles = {name: [] for name in linears}, []
    for name, linear in linears.items():
        keep = lambda _, args, name=name: kept[name].append(args[0].flatten(0, 1))  # noqa: E731
        handles.append(linear.register_forward_pre_hook(keep))
    with fusion.recorded_grams(linears) as grams:
        diffusion.sample(one, "a <bibi1> <bibi2>", steps=2, guidance=3.0)
    for handle in handles:
        handle.remove()
    for name in linears:
        X = torch.cat(kept[name]).T.double()  # (d_in, rows)
        assert torch.allclose(grams[name], X @ X.T, atol=1e-8)
    with pytest.raises(RuntimeError, match="136|128"), fusion.recorded_grams(linears):
        pass


RECORDING = fusion.Recording(spatial_prompts=("photo of a {}", "{} on the beach"), steps=2, guidance=3.0, seed=5)


@pytest.fixture(scope="module")
def fusing(model):
    """A gradient fusion of two concepts, and every call of its Fusion in order: (W0, deltas, grams)."""
    concepts = [random_concept(model, "bibi"), random_concept(model, "coco", 1)]
    concepts[1].scale = 0.5
    calls = []

    def spy(W0, deltas, grams):
        calls.append((W0, deltas, grams))
        return fusion.closed_form(W0, deltas, grams, ridge=0.01)

    fused = fusion.gradient_fusion(model, concepts, spy, RECORDING)
    return concepts, calls, fused


def names_in(model, net, chosen):
    return sorted(name for name in lora.attention_linears(getattr(model, net)) if chosen(name))


def is_kv(name):
    return name[-10:] in ("attn2.to_k", "attn2.to_v")


@torch.no_grad()
def gram_of(linear, run):
    """X X^T of one layer while run() runs, kept whole."""
    kept = []
    handle = linear.register_forward_pre_hook(lambda _, args: kept.append(args[0].flatten(0, 1)))
    run()
    handle.remove()
    X = torch.cat(kept).T.double()
    return X @ X.T


def test_equation_3(model, fusing):
    """Eq. 3 W = f(W0, dW_1, ..., dW_n): each layer once, and its answer is the weight."""
    concepts, calls, fused = fusing
    order = [("text_encoder", name) for name in names_in(model, "text_encoder", lambda name: True)]
    order += [("unet", name) for name in names_in(model, "unet", is_kv)]
    order += [("unet", name) for name in names_in(model, "unet", lambda name: not is_kv(name))]
    assert len(calls) == len(order) == 8 + 32 + 96
    before, after = weights_of(model), weights_of(fused)
    for (net, name), (W0, deltas, grams) in zip(order, calls, strict=True):
        assert close(W0, before[f"{net}.{name}"].double())
        for concept, dW in zip(concepts, deltas, strict=True):
            down, up = concept.lora[net][name]
            assert close(dW, concept.scale * (up @ down).double())
        wanted = fusion.closed_form(W0, deltas, grams, ridge=0.01)
        assert close(after[f"{net}.{name}"], wanted.float())
    assert list(fused.words) == ["<bibi1>", "<bibi2>", "<coco1>", "<coco2>"]


def call_of(model, calls, net, name):
    """The recorded call of one layer."""
    order = names_in(model, "text_encoder", lambda name: True)
    order += names_in(model, "unet", is_kv) + names_in(model, "unet", lambda name: not is_kv(name))
    return calls[order.index(name)]


def test_text_is_recorded_with_the_concept_s_own_lora(model, fusing):
    """3.3.2 stage 1 (official code): the second layer's inputs, under W0 + dW_i of the text encoder."""
    concepts, calls, _ = fusing
    name = "encoder.layers.1.self_attn.q_proj"
    grams = call_of(model, calls, "text_encoder", name)[2]
    for concept, gram in zip(concepts, grams, strict=True):
        own = lora.with_concept(model, concept)
        names = [f"photo of a {concept.phrase}", concept.phrase]
        linear = lora.attention_linears(own.text_encoder)[name]
        wanted = gram_of(linear, lambda own=own, names=names: own.context(names))
        assert torch.allclose(gram, wanted, rtol=1e-3, atol=1e-5 * wanted.max().item())


def test_keys_are_recorded_from_the_fused_text_encoder(model, fusing):
    """3.3.2 stage 2 (official code): what the fused model's own cross-attention reads of each concept's prompts."""
    concepts, calls, fused = fusing
    for layer in (0, 6, 15):
        for part in ("to_k", "to_v"):
            grams = call_of(model, calls, "unet", f"{fused.layers[layer]}.{part}")[2]
            for concept, gram in zip(concepts, grams, strict=True):
                context = fused.context([f"photo of a {concept.phrase}", concept.phrase])[:, layer]
                X = context.flatten(0, 1).T.double()
                assert torch.allclose(gram, X @ X.T, rtol=1e-4, atol=1e-4)


def test_pictures_are_recorded_with_fused_keys(model, fusing):
    """3.3.2 stage 3 (official code): spatial layers have W0 + dW_i, text encoder and keys are fused."""
    concepts, calls, fused = fusing
    name = "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_q"
    grams = call_of(model, calls, "unet", name)[2]
    for concept, gram in zip(concepts, grams, strict=True):
        own = fused.copy()
        for layer, linear in lora.attention_linears(own.unet).items():
            if not is_kv(layer):
                down, up = concept.lora["unet"][layer]
                W0 = weights_of(model)[f"unet.{layer}"]
                linear.weight = torch.nn.Parameter(W0 + concept.scale * up @ down, requires_grad=False)
        wanted = 0
        for seed, prompt in ((5, f"photo of a {concept.phrase}"), (6, f"{concept.phrase} on the beach")):
            run = partial(diffusion.sample, own, prompt, seed=seed, steps=2, guidance=3.0)
            wanted = wanted + gram_of(lora.attention_linears(own.unet)[name], run)
        assert torch.allclose(gram, wanted, rtol=1e-3, atol=1e-4 * wanted.max().item())


# Regions


@pytest.mark.parametrize("size", [(8, 8), (4, 4), (6, 10)])
@pytest.mark.parametrize("box", [(0.25, 0, 1, 0.5), (0.33, 0.1, 0.92, 0.47), (0, 0, 1, 1), (0.7, 0.71, 0.73, 0.74)])
def test_masks(box, size):
    """3.4 M_i: the official rule for boxes pixel by pixel; a mask that is a box is the box."""
    (left, top, right, bottom), (h, w) = box, size
    found = regions.cover(regions.Region("x", box=box), h, w)
    wanted = torch.zeros(h, w)
    wanted[math.ceil(top * h) : math.floor(bottom * h), math.ceil(left * w) : math.floor(right * w)] = 1
    if wanted.any():
        assert torch.equal(found, wanted)
    else:
        y, x = int((top + bottom) / 2 * h), int((left + right) / 2 * w)
        assert found.argmax() == y * w + x and 0 < found.max() <= 1
    mask = torch.zeros(300, 300)
    mask[round(300 * top) : round(300 * bottom), round(300 * left) : round(300 * right)] = 1
    rounded = tuple(round(300 * side) / 300 for side in box)
    if 300 % h == 0 and 300 % w == 0:
        same = regions.cover(regions.Region("x", box=rounded), h, w)
        assert close(regions.cover(regions.Region("x", mask=mask), h, w), same)


def test_small_regions_and_soft_masks():
    """3.4 M_i: half a pixel covered is a whole one, a quarter is a half; a soft mask is its mean."""
    assert regions.cover(regions.Region("x", box=(0, 0, 0.5, 1)), 1, 1) == 1
    assert regions.cover(regions.Region("x", box=(0, 0, 0.5, 0.5)), 1, 1) == 0.5
    beside = regions.cover(regions.Region("x", box=(0.15, 0, 0.55, 1)), 1, 2)  # 7 and 1 tenth of two pixels
    assert beside.tolist() == [[1, 0]]
    soft = randn(8, 8).sigmoid()
    found = regions.cover(regions.Region("x", mask=soft), 4, 4)
    assert close(found, soft.view(4, 2, 4, 2).mean((1, 3)))


def test_weights():
    """3.4 w_i (official code): alone a region has all of a pixel, two have half each, elsewhere nobody has any."""
    pair = [regions.Region("x", box=(0, 0, 0.75, 1)), regions.Region("y", box=(0.25, 0, 0.5, 0.5))]
    w = regions.region_weights(pair, 4, 4).view(2, 4, 4)
    for y in range(4):
        for x in range(4):
            first, second = x < 3, x == 1 and y < 2
            n = max(1, first + second)
            assert w[:, y, x].tolist() == [first / n, second / n]


def test_blend():
    """3.4 h[M_i] = h_i: indexed assignment for hard masks, the mean on overlaps; soft ones pixel by pixel."""
    h, h_i = randn(2, 16, 3), randn(2, 2, 16, 3, seed=1)
    M = torch.zeros(2, 16, dtype=torch.bool)
    M[0, :6], M[1, 9:] = True, True
    wanted = h.clone()
    for i in (0, 1):
        wanted[:, M[i]] = h_i[i][:, M[i]]
    assert torch.equal(regions.blend(h, h_i, M.float()), wanted)
    w = torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) / 2
    found = regions.blend(h, h_i, w)
    for p in range(16):
        wanted = h[:, p] - w[0, p] * (h[:, p] - h_i[0, :, p]) - w[1, p] * (h[:, p] - h_i[1, :, p])
        assert close(found[:, p], wanted)


@pytest.mark.parametrize("guided", [True, False])
def test_global_prompt(one, guided):
    """3.4 h: a region without any weight leaves torch's own attention, whatever its prompt."""
    found, attn, z, c = one_layer(one, guided, [regions.Region("a red cat", mask=torch.zeros(8, 8))])
    assert close(found, attn.to_out[0](by_torch(attn, z, c)))


def by_torch(attn, z, c):
    """Attention of one layer by torch's kernel, (B, T, C)."""
    q, k, v = attn.to_q(z), attn.to_k(c), attn.to_v(c)
    q, k, v = (x.view(len(x), -1, attn.heads, x.shape[2] // attn.heads).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(z), -1, attn.heads * q.shape[3])


def one_layer(model, guided, given):
    """What the last layer answers to random inputs under regions -> (output, module, z (4, 64, C), c (4, N, D))."""
    name = model.layers[15]
    attn = attention.cross_attention(model.unet)[name]
    z, c = randn(4, 64, 32), randn(4, 16, 16, 32, seed=1)
    with torch.no_grad(), regions.regional_attention(model, given, guided=guided):
        return attn(z, c), attn, z, c[:, 15]


@pytest.mark.parametrize("guided", [True, False])
def test_regional_prompts(one, guided):
    """3.4 h_i = softmax(Q(z_i) K(P_ri)^T / sqrt(d)) V(P_ri): z_i = z * M_i, its attention, h[M_i] = h_i."""
    given = [
        regions.Region("a red cat", box=(0, 0, 0.5, 1)),
        regions.Region("<bibi1> <bibi2>", box=(0.5, 0.25, 1, 1)),
    ]
    found, attn, z, c = one_layer(one, guided, given)
    with torch.no_grad():
        h = by_torch(attn, z, c)
        first = 2 if guided else 0  # the negative half listens to no region
        for region in given:
            left, top, right, bottom = (int(8 * side) for side in region.box)
            M = torch.zeros(8, 8, dtype=torch.bool)
            M[top:bottom, left:right] = True
            M = M.flatten()
            prompt = one.context(region.prompt)[:, 15].expand(4, -1, -1)
            h_i = by_torch(attn, z * M[:, None], prompt)
            h[first:, M] = h_i[first:, M]
        assert close(found, attn.to_out[0](h))


# Evaluation

RED, GREEN, BLACK = plain(255, 20, 20), plain(20, 255, 20), plain(0, 0, 0)
YELLOW = plain(255, 255, 20)


def test_text_alignment(concept):
    """4.3 text-alignment: cosines known by construction, clipped at 0 one by one, times 2.5."""
    clip = ColourClip()
    assert evaluation.text_alignment([RED], "a red cat", clip) == pytest.approx(2.5)
    assert evaluation.text_alignment([RED, GREEN], "a red cat", clip) == pytest.approx(1.25)
    assert evaluation.text_alignment([YELLOW], "a red cat", clip, weight=1) == pytest.approx(math.sqrt(0.5))
    assert evaluation.text_alignment([BLACK, RED], "a red cat", clip) == pytest.approx(1.25)
    evaluation.text_alignment([RED], "a red <bibi1> <bibi2>", clip, [concept])
    assert clip.texts[-1] == "a red rabbit"
    with pytest.raises(ValueError, match="<bibi1>"):
        evaluation.text_alignment([RED], "a red <bibi1> <bibi2>", clip)


def test_image_alignment():
    """4.3 image-alignment: all pairs one by one, each clipped at 0."""
    clip = ColourClip()
    assert evaluation.image_alignment([RED], [RED], clip) == pytest.approx(1)
    pairs = [1, math.sqrt(0.5), 0, 0, math.sqrt(0.5), 0]  # red and green against red, yellow and black
    found = evaluation.image_alignment([RED, GREEN], [RED, YELLOW, BLACK], clip)
    assert found == pytest.approx(sum(pairs) / 6)


def test_bounds(model, concept, monkeypatch):
    """4.3 upper bound, 4.3 lower bound: the pretrained model's pictures of the class word, scored both ways."""
    asked = []

    def draw(base, prompt, **sampling):
        asked.append((base, prompt, sampling))
        return [RED, GREEN]

    monkeypatch.setattr(evaluation, "sample", draw)
    clip = ColourClip()
    upper, lower = evaluation.bounds(model, "a red <bibi1> <bibi2>", concept, [GREEN], clip, seed=4)
    assert asked == [(model, "a red rabbit", {"seed": 4})] and clip.texts == ["a red rabbit"]
    assert upper == pytest.approx(2.5 / 2) and lower == pytest.approx(1 / 2)


def test_marks_kept():
    """4.3 marks kept (ours): counted by hand over pictures and marks."""
    seen = {("red", "colour"): "red", ("red", "part"): "cape", ("green", "colour"): "green", ("green", "part"): "cape"}

    def classify(image, kind):
        return seen["red" if image is RED else "green", kind]

    assert evaluation.marks_kept([RED, GREEN], {"colour": "red", "part": "cape"}, classify) == pytest.approx(3 / 4)
    assert evaluation.marks_kept([GREEN], {"colour": "red"}, classify) == 0
    with pytest.raises(ValueError, match="at least one"):
        evaluation.marks_kept([], {"colour": "red"}, classify)


def test_the_noise_offset_is_one_number_a_channel():
    """Drawn again from the same generator: t, the noise, then a number for each picture and channel."""
    model = SimpleNamespace(scheduler=SimpleNamespace(config=SimpleNamespace(num_train_timesteps=1000)))
    shape = (3, 4, 5, 6)  # (B, C, h, w)
    t, noise = diffusion.draw_noise(model, shape, 0.5, torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(t, torch.randint(1000, (3,), generator=generator))
    offset = (noise - torch.randn(shape, generator=generator)) / 0.5  # (B, C, h, w)
    for picture in offset:
        means = picture.mean(dim=(1, 2))  # (C,)
        assert torch.allclose(picture, means[:, None, None].expand(4, 5, 6), atol=1e-5)
        assert len({round(mean, 3) for mean in means.tolist()}) == 4  # each channel has its own


def test_a_processor_that_is_not_accepted_stops_the_body():
    layer = SimpleNamespace(processor="theirs", set_processor=lambda processor: None)
    entered = []
    with pytest.raises(RuntimeError, match="1 of 1 attention layers"):
        with attention.swapped(None, lambda index: "ours", lambda unet: {"a": layer}):
            entered.append(True)
    assert not entered
