"""The center node on a whole (tiny) model: paper 3.2 and 3.3.2."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from tiny import make_concept

import mixofshow_lite as mos
from mixofshow_lite import rivals
from mixofshow_lite.engine import fusion, lora
from mixofshow_lite.engine.fusion import gradient, gradient_fusion, grams, report, weight_fusion
from mixofshow_lite.engine.fusion.algebra import dense
from mixofshow_lite.engine.fusion.weight import with_factors
from mixofshow_lite.engine.layerwise import Guard

PROMPTS = ("photo of a {}", "a {} on the beach")
QUICK = {"prompts": PROMPTS, "steps": 2, "guidance": 3.0, "size": 64, "progress": False}


FUSIONS = {
    "weight": lambda base, concepts, **kw: weight_fusion(base, concepts, **kw),
    "closed form": lambda base, concepts, **kw: gradient_fusion(base, concepts, **{**QUICK, **kw}),
    "constrained": lambda base, concepts, **kw: rivals.constrained_fusion(base, concepts, progress=False, **kw),
    "peft cat": lambda base, concepts, **kw: rivals.peft_fusion(base, concepts, method="cat", **kw),
}


def weights_of(model):
    nets = {net: lora.attention_linears(getattr(model, net)) for net in ("text_encoder", "unet")}
    return {f"{net}.{name}": linear.weight for net, linears in nets.items() for name, linear in linears.items()}


def far(a, b):
    """The largest weight difference between two models."""
    first, second = weights_of(a), weights_of(b)
    return max((first[name] - second[name]).abs().max().item() for name in first)


def spread(a, b):
    """The root of the summed squared weight differences between two models."""
    first, second = weights_of(a), weights_of(b)
    return math.sqrt(sum((first[name] - second[name]).square().sum().item() for name in first))


def snapshot(base, concepts):
    state = {k: v.clone() for k, v in weights_of(base).items()}
    return state, copy.deepcopy(concepts)


def pixels(pictures):
    return np.stack([np.asarray(picture, dtype=float) for picture in pictures])


@pytest.fixture(scope="module")
def three(tiny_base):
    return [make_concept(tiny_base, name, seed) for seed, name in enumerate(("bibi", "coco", "dodo"))]


@pytest.fixture(scope="module")
def fused(tiny_base, three):
    return gradient_fusion(tiny_base, three, **QUICK)


def test_weight_fusion_is_equation_2(tiny_base, three):
    model = weight_fusion(tiny_base, three, weights=[1, 2, 1])
    base = weights_of(tiny_base)
    for net in ("text_encoder", "unet"):
        for name in three[0].lora[net]:
            mean = sum(w * lora.delta(*c.lora[net][name]) for w, c in zip((0.25, 0.5, 0.25), three, strict=True))
            assert torch.allclose(weights_of(model)[f"{net}.{name}"], base[f"{net}.{name}"] + mean, atol=1e-6)
    assert set(model.words) == {w for c in three for w in c.words}
    summed = weight_fusion(tiny_base, three, normalise=False).report.factors["unet"]
    name = next(iter(summed))
    expected = sum(lora.delta(*c.lora["unet"][name]) for c in three)
    assert torch.allclose(dense(summed[name]).float(), expected, atol=1e-6)


def test_one_concept_fused_is_itself(tiny_base, three):
    alone = tiny_base.with_concept(three[0])
    assert far(weight_fusion(tiny_base, three[:1]), alone) < 1e-6
    model = gradient_fusion(tiny_base, three[:1], **QUICK)
    assert far(model, alone) < 1e-5
    assert model.report.residual("bibi") < 1e-9
    prompt = f"photo of a {three[0].phrase}"
    gap = pixels(model.sample(prompt, steps=2, progress=False)) - pixels(alone.sample(prompt, steps=2, progress=False))
    assert np.abs(gap).max() <= 1


def test_scale_travels_into_the_fusion(tiny_base, three):
    halved = replace(three[0], scale=0.5)
    alone = tiny_base.with_concept(three[0], alpha=0.5)
    assert far(weight_fusion(tiny_base, [halved]), alone) < 1e-6
    assert far(gradient_fusion(tiny_base, [halved], **QUICK), alone) < 1e-5


def test_gradient_fusion_loses_less_than_weight_fusion(fused, three):
    for concept in three:
        for stage in report.STAGES:
            before, after = (fused.report.residual(concept.name, stage, which) for which in ("before", "after"))
            assert 0 <= after < before
    assert len(fused.report.layers) == sum(map(len, three[0].lora.values()))
    table = str(fused.report)
    assert "bibi lost most in" in table and "keys and values" in table
    lost = [layer.after[1] * layer.energy[1] for layer in fused.report.layers]
    assert fused.report.layers.index(fused.report.worst("coco")) == lost.index(max(lost))


def test_order_of_concepts_does_not_matter(tiny_base, three, fused):
    again = gradient_fusion(tiny_base, [three[2], three[0], three[1]], **QUICK)
    assert far(again, fused) == 0 and again.report.concepts == fused.report.concepts
    shuffled = gradient_fusion(tiny_base, [three[1], three[0]], weights=[3, 1], **QUICK)
    assert far(shuffled, gradient_fusion(tiny_base, three[:2], weights=[1, 3], **QUICK)) == 0


def test_seed_decides(tiny_base, three, fused):
    assert far(gradient_fusion(tiny_base, three, seed=0, **QUICK), fused) == 0
    assert far(gradient_fusion(tiny_base, three, seed=5, **QUICK), fused) > 0


def test_inputs_are_left_alone(tiny_base, three):
    state, concepts = snapshot(tiny_base, three)
    words = dict(tiny_base.words)
    model = gradient_fusion(tiny_base, three, **QUICK)
    assert all(torch.equal(state[k], v) for k, v in weights_of(tiny_base).items()) and words == tiny_base.words
    assert tiny_base.report is None and far(model, tiny_base) > 0.01
    for before, after in zip(concepts, three, strict=True):
        for net in before.lora:
            for name, (down, up) in before.lora[net].items():
                assert torch.equal(down, after.lora[net][name][0]) and torch.equal(up, after.lora[net][name][1])
    for net in (tiny_base.unet, tiny_base.text_encoder, model.unet, model.text_encoder):
        hooks = [hook for module in net.modules() for hook in module._forward_pre_hooks.values()]
        assert all(isinstance(hook, Guard) for hook in hooks)  # no recorder is left


def test_unchanged_weights_are_shared(tiny_base, fused):
    assert fused.unet.conv_in.weight.data_ptr() == tiny_base.unet.conv_in.weight.data_ptr()
    pairs = zip(fused.vae.parameters(), tiny_base.vae.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs) and type(fused) is type(tiny_base)


def test_fused_weights_are_base_plus_reported_factors(tiny_base, fused):
    for net, layers in fused.report.factors.items():
        for name, pair in layers.items():
            expected = weights_of(tiny_base)[f"{net}.{name}"].double() + dense(pair)
            assert torch.allclose(weights_of(fused)[f"{net}.{name}"].double(), expected, atol=1e-6)
            assert pair[0].shape[0] == 6  # three concepts of rank 2


def test_closed_form_without_ridge_is_no_worse_than_lbfgs(tiny_base, three):
    only_text = [replace(c, lora={"text_encoder": c.lora["text_encoder"]}) for c in three[:2]]
    exact = gradient_fusion(tiny_base, only_text, ridge=0.0, towards="base", **QUICK).report
    searched = gradient_fusion(tiny_base, only_text, solver="lbfgs", iterations=(60, 1, 1), **QUICK).report
    for a, b in zip(exact.layers, searched.layers, strict=True):
        lost = [sum(e * r for e, r in zip(x.energy, x.after, strict=True)) for x in (a, b)]
        assert lost[0] <= lost[1] * (1 + 1e-9) + 1e-12
        assert sum(b.after) < sum(b.before)


def test_a_huge_ridge_is_weight_fusion_or_the_base(tiny_base, three):
    averaged = gradient_fusion(tiny_base, three, ridge=1e9, **QUICK)
    assert far(averaged, weight_fusion(tiny_base, three)) < 1e-5
    kept = gradient_fusion(tiny_base, three, ridge=1e9, towards="base", **QUICK)
    assert far(kept, tiny_base) < 1e-5


def test_words_only_concepts_just_add_words(tiny_base, three):
    bare = [replace(c, lora={}) for c in three]
    for model in (weight_fusion(tiny_base, bare), gradient_fusion(tiny_base, bare, **QUICK)):
        assert far(model, tiny_base) == 0 and len(model.words) == 6
    for fuse in FUSIONS.values():
        mixed = fuse(tiny_base, [bare[1], three[0]])
        assert far(mixed, fuse(tiny_base, three[:1])) < 1e-6 and len(mixed.words) == 4


def test_recorded_gram_is_the_batch_gram(tiny_base, three):
    """Second way: keep every input of every layer, without sharing, and multiply once."""
    model = tiny_base.with_concept(three[0])
    linears = lora.attention_linears(model.unet)
    names = [n for n in linears if not grams.CONTEXT_LINEAR.search(n)]
    prompts = [f"photo of a {three[0].phrase}", "a red cat"]
    streamed = grams.record_spatial(model, names, prompts, seed=3, steps=2, guidance=2.0)
    kept = {name: [] for name in names}
    handles = [
        linears[name].register_forward_pre_hook(lambda _, args, name=name: kept[name].append(args[0].flatten(0, -2)))
        for name in names
    ]
    for number, prompt in enumerate(prompts):
        model.sample(prompt, seed=3 + number, steps=2, guidance=2.0, progress=False)
    for handle in handles:
        handle.remove()
    for name in names:
        x = torch.cat(kept[name]).double()
        assert len(x) == streamed.rows[grams.feed(name)]
        slack = 1e-5 * x.square().mean().item()
        assert torch.allclose(streamed.grams[grams.feed(name)], x.T @ x / len(x), rtol=1e-5, atol=slack)


def test_context_gram_is_what_the_unet_is_fed(tiny_base, three):
    model = tiny_base.with_concept(three[0])
    linears = {n: m for n, m in lora.attention_linears(model.unet).items() if grams.CONTEXT_LINEAR.search(n)}
    prompt = f"photo of a {three[0].phrase}"
    direct = grams.record_context(model, list(linears), [prompt])
    with grams.GramRecorder(linears) as recorder:
        model.sample(prompt, steps=1, guidance=1, progress=False)
    hooked = recorder.statistics()
    assert direct.grams.keys() == hooked.grams.keys() and len(direct.grams) == len(model.layers)
    for key, gram in hooked.grams.items():
        assert torch.allclose(direct.grams[key], gram, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(*list(hooked.grams.values())[:2])  # layer-wise words: every layer has its own context


def test_padding_can_be_left_out(tiny_base, three):
    model = tiny_base.with_concept(three[0])
    names = list(three[0].lora["text_encoder"])
    prompt = f"photo of a {three[0].phrase}"
    assert grams.real_tokens(model, prompt).sum() == 7  # start, photo, of, a, two words, end
    few, all_rows = (grams.record_text(model, names, [prompt], padding) for padding in (False, True))
    layers = len(model.layers)
    assert set(few.rows.values()) == {7 * layers} and set(all_rows.rows.values()) == {model.tokens * layers}


def test_layers_that_share_a_feed():
    assert grams.feed("mid_block.attn1.to_q") == grams.feed("mid_block.attn1.to_v") == "mid_block.attn1.input"
    assert grams.feed("mid_block.attn2.to_k") == "mid_block.attn2.context" != grams.feed("mid_block.attn2.to_q")
    assert grams.feed("encoder.layers.0.self_attn.k_proj") == "encoder.layers.0.self_attn.input"
    assert grams.feed("encoder.layers.0.self_attn.out_proj") == "encoder.layers.0.self_attn.out_proj"


def test_stages_cover_every_layer_once(three):
    stages = [gradient.stage_layers(three, stage) for stage in report.STAGES]
    assert [net for net, _ in stages] == ["text_encoder", "unet", "unet"]
    assert len(stages[1][1]) == 32 and len(stages[2][1]) == 96
    assert sorted(stages[1][1] + stages[2][1]) == sorted(three[0].lora["unet"])


def test_every_stage_is_recorded_under_the_right_weights(tiny_base, three):
    """Second way: build by hand the model that each stage must be recorded on."""
    memory, concept = fusion.Memory(), replace(three[0], scale=0.5)
    model = gradient_fusion(tiny_base, [concept, three[1]], memory=memory, **{**QUICK, "guidance": 1})
    prompts = [p.replace("{}", concept.phrase) for p in PROMPTS]
    text, context, spatial = (gradient.stage_layers(three, stage)[1] for stage in report.STAGES)
    worded = tiny_base.with_words(*three[:2])
    with_text = with_factors(worded, {"text_encoder": model.report.factors["text_encoder"]})
    own_keys = {n: pair for n, pair in model.report.factors["unet"].items() if n in context}
    own_spatial = {n: (down, 0.5 * up) for n, (down, up) in concept.lora["unet"].items() if n in spatial}
    drawing = with_factors(with_text, {"unet": {**own_keys, **own_spatial}})
    expected = {
        "text encoder": grams.record_text(tiny_base.with_concept(concept), text, prompts),
        "keys and values": grams.record_context(with_text, context, prompts),
        "spatial layers": grams.record_spatial(drawing, spatial, prompts, seed=0, steps=2, guidance=1, size=64),
    }
    for stage, statistics in expected.items():
        seen = memory.kept[concept.name, stage]
        assert seen.rows == statistics.rows
        for key, gram in statistics.grams.items():
            assert torch.allclose(seen.grams[key], gram, rtol=1e-3, atol=1e-4 * gram.diagonal().mean().item())
    own_features = grams.record_context(tiny_base.with_concept(concept), context, prompts).grams
    assert not any(torch.allclose(own_features[k], g, rtol=1e-2) for k, g in expected["keys and values"].grams.items())


def test_prompts_by_default_and_by_name(three):
    first, second = three[0], replace(three[1], class_word="beach")
    settings = gradient.Settings()
    assert settings.contexts(first)[0] == "photo of a <bibi1> <bibi2>" and len(settings.contexts(first)) > 2
    assert settings.contexts(second)[1] == "a cat in <coco1> <coco2>"
    assert not any("robot" in prompt for prompt in settings.contexts(second)), "Stable Diffusion is asked for none"
    assert settings.contexts(replace(second, base_id="pocket-v2"))[2] == "a blue robot in <coco1> <coco2>"
    named = gradient.Settings(prompts={"bibi": ["{} asleep"]})
    assert named.contexts(first) == ["<bibi1> <bibi2> asleep"] and named.contexts(second) == settings.contexts(second)
    assert settings.contexts(replace(first, words=(), embeddings={}, phrase=""))[0] == "photo of a rabbit"


def test_guidance_records_the_empty_prompt_for_half_of_the_rows(tiny_base, three):
    names = gradient.stage_layers(three, "keys and values")[1]
    prompt = "photo of a <bibi1> <bibi2>"
    model = tiny_base.with_words(three[0])
    guided = gradient.record(model, three[0], "keys and values", names, [prompt], gradient.Settings(guidance=5.0))
    named, empty = (grams.record_context(model, names, [p]).grams for p in (prompt, ""))
    for key, gram in guided.grams.items():
        assert torch.allclose(gram, (named[key] + empty[key]) / 2)


def test_exported_lora_equals_the_fused_model(tiny_base, tiny_folder, three, fused, tmp_path):
    """Through stock diffusers: base folder + our LoRA file = the fused model, also when layers differ in rank."""
    uneven = replace(three[1], lora={"unet": {n: p for n, p in three[1].lora["unet"].items() if "attn2" in n}})
    for model in (fused, gradient_fusion(tiny_base, [three[0], uneven], **QUICK)):
        file = fusion.to_lora(model, tmp_path / "fused.safetensors")
        pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None, local_files_only=True)
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        for net in ("text_encoder", "unet"):
            loaded = lora.attention_linears(getattr(pipeline, net))
            for name, linear in lora.attention_linears(getattr(model, net)).items():
                assert torch.allclose(loaded[name].weight, linear.weight, atol=1e-5), (net, name)
    assert [p.name for p in tmp_path.iterdir()] == ["fused.safetensors"]


def few(concept, modules=("attn1.to_q", "attn1.to_k", "attn2.to_k", "attn2.to_v", "self_attn.q_proj"), where="down_b"):
    """The same concept with updates in few layers: of every stage, but quick to solve."""
    kept = {
        net: {n: p for n, p in f.items() if n.endswith(modules) and (net == "text_encoder" or n.startswith(where))}
        for net, f in concept.lora.items()
    }
    return replace(concept, lora=kept)


LIGHT = {"prompts": PROMPTS, "steps": 1, "guidance": 1, "size": 64, "progress": False}


@pytest.fixture(scope="module")
def pair(three):
    return [few(concept) for concept in three[:2]]


@pytest.fixture(scope="module")
def recorded(tiny_base, pair):
    """A light gradient fusion and what it recorded."""
    memory = fusion.Memory()
    return gradient_fusion(tiny_base, pair, memory=memory, **LIGHT), memory


@pytest.mark.parametrize("fuse", FUSIONS.values(), ids=FUSIONS)
def test_every_method_keeps_its_inputs_and_ignores_their_order(tiny_base, pair, fuse):
    state, concepts = snapshot(tiny_base, pair)
    model = fuse(tiny_base, pair)
    assert far(fuse(tiny_base, pair[::-1]), model) == 0 and far(model, tiny_base) > 0.01
    assert all(torch.equal(state[k], v) for k, v in weights_of(tiny_base).items())
    for before, after in zip(concepts, pair, strict=True):
        for net, factors in before.lora.items():
            assert all(torch.equal(a, b) for n in factors for a, b in zip(factors[n], after.lora[net][n], strict=True))
    assert model.report.concepts == ("bibi", "coco") and set(model.words) == {w for c in pair for w in c.words}


def test_peft_cat_is_the_sum_and_linear_is_not(tiny_base, pair):
    summed = weights_of(weight_fusion(tiny_base, pair, normalise=False))
    gap = {
        m: far(rivals.peft_fusion(tiny_base, pair, m), weight_fusion(tiny_base, pair, normalise=False))
        for m in ("cat", "linear", "svd")
    }
    assert gap["cat"] < 1e-5 < 0.05 < gap["linear"] and gap["svd"] > 0.01  # rank 2 of 4 is not enough
    assert len(summed) == len(weights_of(tiny_base))
    whole = rivals.peft_fusion(tiny_base, pair, "svd", svd_rank=4)
    assert far(whole, weight_fusion(tiny_base, pair, normalise=False)) < 1e-4
    averaged = rivals.peft_fusion(tiny_base, pair, "cat", weights=[0.5, 0.5])
    assert far(averaged, weight_fusion(tiny_base, pair)) < 1e-5


def test_peft_dare_is_seeded_and_ties_of_all_entries_agrees_by_hand(tiny_base, pair):
    drawn = [rivals.peft_fusion(tiny_base, pair, "dare_linear", seed=s) for s in (1, 1, 2)]
    assert far(drawn[0], drawn[1]) == 0 < far(drawn[0], drawn[2])
    merged = rivals.peft_fusion(tiny_base, pair, "ties", density=1.0).report.factors["unet"]
    name, expected = next(iter(merged)), []
    for side in (0, 1):  # nothing is trimmed: per entry, the mean of those who have the sign of the sum
        both = torch.stack([c.lora["unet"][name][side] for c in pair])
        agree = both.sign() == both.sum(dim=0).sign()
        expected.append((both * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1))
    assert torch.allclose(dense(merged[name]).float(), expected[1] @ expected[0], atol=1e-6)


ALIKE = 0.05  # a client's update within 5 % of what some ranks of a file say


@pytest.mark.parametrize("writer", ["weight", "sum", "gradient", "lbfgs", "span", "constrained", "cat", "alone"])
def test_no_fused_file_shows_a_clients_factors(tiny_base, pair, tmp_path, writer):
    """No run of ranks in the written file is a client's update, whatever its scale; stacked factors are, exactly."""
    fuse = {
        "weight": lambda: weight_fusion(tiny_base, pair),
        "sum": lambda: weight_fusion(tiny_base, pair, normalise=False),
        "gradient": lambda: gradient_fusion(tiny_base, pair, **LIGHT),
        "lbfgs": lambda: gradient_fusion(tiny_base, pair, solver="lbfgs", iterations=(5, 5, 5), **LIGHT),
        "span": lambda: gradient_fusion(tiny_base, pair, span=True, **LIGHT),
        "constrained": lambda: rivals.constrained_fusion(tiny_base, pair, progress=False),
        "cat": lambda: rivals.peft_fusion(tiny_base, pair, "cat"),
        "alone": lambda: weight_fusion(tiny_base, pair[:1]),
    }
    model = fuse[writer]()
    file = model.to_lora(tmp_path / "x.safetensors")
    written = mos.Concept.from_lora(file, tiny_base, class_word="rabbit", verbose=False).lora
    seen = []
    for net, layers in pair[0].lora.items():
        for name in layers:
            down, up = written[net][name]
            for concept in pair:
                own_down, own_up = concept.lora[net][name]
                for first in range(len(down) - 1):
                    some = slice(first, first + 2)
                    seen.append((off(up[:, some] @ down[some], own_up @ own_down), off(up[:, some], own_up)))
    updates, columns = zip(*seen, strict=True)
    if writer == "alone":
        assert min(updates) < 1e-5 < ALIKE < min(columns)  # one concept is itself: only its factors are not shown
    else:
        assert min(updates) > ALIKE and min(columns) > ALIKE
    stacked = torch.cat([c.lora["unet"][name][1] for c in pair], dim=1)
    assert off(stacked[:, 2:], pair[1].lora["unet"][name][1]) < 1e-6  # what the file would show as it comes


def off(found, wanted):
    """|| wanted - a * found || / || wanted || for the best number a."""
    a = (found * wanted).sum() / found.square().sum().clamp(min=1e-12)
    return ((wanted - a * found).norm() / wanted.norm()).item()


def test_what_peft_refuses_is_one_sentence(tiny_base, pair):
    thin = replace(
        pair[1], lora={net: {n: (d[:1], u[:, :1]) for n, (d, u) in f.items()} for net, f in pair[1].lora.items()}
    )
    for method, instead in (("ties", "'ties_svd'"), ("dare_linear", "'dare_linear_svd'"), ("linear", "'svd'")):
        with pytest.raises(ValueError, match=rf"one rank, these have 2 and 1: take {instead}") as caught:
            rivals.peft_fusion(tiny_base, [pair[0], thin], method)
        assert "\n" not in str(caught.value)
        rivals.peft_fusion(tiny_base, [pair[0], thin], instead.strip("'"))
    with pytest.raises(ValueError, match="cannot merge these concepts by 'stew'"):
        rivals.peft_fusion(tiny_base, pair, "stew")
    total = weight_fusion(tiny_base, [pair[0], thin], normalise=False)
    assert far(rivals.peft_fusion(tiny_base, [pair[0], thin], "cat"), total) < 1e-5


def whole_updates(concept, base):
    """A Custom Diffusion concept: whole updates of keys and values, the identity as `down`."""
    kept = {n: (torch.eye(d.shape[1]), u @ d) for n, (d, u) in concept.lora["unet"].items() if "attn2.to_k" in n}
    return replace(concept, recipe="custom_diffusion", lora={"unet": kept}, phrase=f"{concept.phrase} rabbit")


@pytest.mark.parametrize("whole", [False, True], ids=["ed_lora", "custom_diffusion"])
def test_custom_diffusions_constraint_is_met_exactly(tiny_base, pair, whole):
    """Second way: run both models' own layers on the context at the concept's words."""
    concepts = [whole_updates(c, tiny_base) for c in pair] if whole else pair
    model = rivals.constrained_fusion(tiny_base, concepts, progress=False)
    averaged = weight_fusion(tiny_base, concepts)
    layers = {name: i for i, name in enumerate(tiny_base.layers)}
    for concept in concepts:
        context = model.context(f"photo of a {concept.phrase}")[0].double()  # (L, N, D)
        places = [4, 5, 6] + [7] * whole  # the words, the end; Custom Diffusion's class word as well
        for name, (down, up) in concept.lora["unet"].items():
            if "attn2" not in name:
                continue
            rows = context[layers[name.rpartition(".")[0]], places]
            wanted = rows @ (weights_of(tiny_base)[f"unet.{name}"].double() + up.double() @ down.double()).T
            miss, before = (
                (rows @ weights_of(m)[f"unet.{name}"].double().T - wanted).norm() for m in (model, averaged)
            )
            assert miss < 1e-4 * wanted.norm() < before
    shown = [layer for layer in model.report.layers if layer.stage == "keys and values"]
    assert len(shown) == len([n for n in concepts[0].lora["unet"] if "attn2" in n])
    assert max(max(layer.after) for layer in shown) < 1e-9 and min(min(layer.before) for layer in shown) > 0.01


def test_constraints_that_contradict_each_other_are_told(tiny_base, pair):
    first = [replace(c, words=(), embeddings={}, phrase="", fingerprint="") for c in pair]
    with pytest.warns(UserWarning, match="is not met, because other concepts"):
        rivals.constrained_fusion(tiny_base, first, progress=False)
    with pytest.raises(ValueError, match="do not fit into text features of width 32: give fewer prompts"):
        rivals.constrained_fusion(tiny_base, pair, prompts=[f"a {w} {{}}" for w in "abcdefghijkl"], progress=False)


@pytest.mark.parametrize("settings", [{}, {"solver": "lbfgs", "iterations": (5, 5, 5)}, {"span": True}])
def test_whole_updates_fuse_with_loras(tiny_base, pair, settings):
    custom = whole_updates(pair[1], tiny_base)
    model = gradient_fusion(tiny_base, [pair[0], custom], **{**LIGHT, **settings})
    name, (down, up) = next((n, p) for n, p in model.report.factors["unet"].items() if "attn2.to_k" in n)
    assert down.shape[0] <= min(down.shape[1], up.shape[0])
    for concept in ("bibi", "coco"):
        after, before = (model.report.residual(concept, "keys and values", which) for which in ("after", "before"))
        assert after < before


def test_concepts_without_words_fuse_on_given_prompts(tiny_base, pair):
    plain = replace(pair[1], words=(), embeddings={}, phrase="", class_word="")
    with pytest.raises(ValueError, match=r"no words.*prompts=\{'coco'"):
        gradient_fusion(tiny_base, [pair[0], plain], **{**LIGHT, "prompts": None})
    given = {"bibi": PROMPTS, "coco": ["a red cat, trigger"]}
    memory = fusion.Memory()
    model = gradient_fusion(tiny_base, [pair[0], plain], memory=memory, **{**LIGHT, "prompts": given})
    assert set(model.words) == set(pair[0].words) and model.report.residual("coco") < model.report.residual(
        "coco", which="before"
    )
    names = gradient.stage_layers([pair[0], plain], "text encoder")[1]
    expected = grams.record_text(tiny_base.with_concept(plain), names, ["a red cat, trigger"])
    kept = memory.kept["coco", "text encoder"]
    assert all(torch.allclose(kept.grams[k], g, rtol=1e-3, atol=1e-5) for k, g in expected.grams.items())


def disturbance(base, model, settings):
    """sum || U X ||^2 over the text encoder's layers on the plain prompts, read by the base."""
    layers = model.report.factors["text_encoder"]
    seen = grams.record_text(base, list(layers), list(settings.plain))
    return sum(fusion.algebra.energy(pair, seen.grams[grams.feed(n)]) for n, pair in layers.items())


def test_preservation_rows_keep_other_prompts(tiny_base, pair, recorded):
    settings = gradient.Settings(preserve=1.0, plain=("a red cat", "dog in the forest"))
    kept = gradient_fusion(tiny_base, pair, preserve=1.0, plain=settings.plain, **LIGHT)
    assert disturbance(tiny_base, kept, settings) < 0.7 * disturbance(tiny_base, recorded[0], settings)
    assert kept.report.concepts == ("bibi", "coco") and len(kept.report.layers[0].after) == 2
    assert kept.report.residual("bibi") > recorded[0].report.residual("bibi")  # it has its price


def test_balance_does_not_drown_a_weak_update(tiny_base, pair):
    weak = [pair[0], replace(pair[1], scale=0.05)]
    plain, even = (gradient_fusion(tiny_base, weak, balance=b, **LIGHT).report for b in (False, True))
    assert even.residual("coco") < 0.5 * plain.residual("coco") and even.residual("bibi") > plain.residual("bibi")


def test_rows_can_be_kept_in_the_concepts_span(tiny_base, pair):
    model = gradient_fusion(tiny_base, pair, span=True, **LIGHT)
    for net, layers in model.report.factors.items():
        for name, (down, _) in layers.items():
            own = torch.cat([c.lora[net][name][0] for c in pair]).double()  # (4, d_in)
            outside = down - down @ torch.linalg.pinv(own) @ own
            assert outside.norm() < 1e-8 * down.norm()
    assert model.report.residual("bibi") < model.report.residual("bibi", which="before")


def test_the_default_ridge_fits_what_is_one_concepts_own_alike_in_small_and_large_models(tiny_base, pair):
    """n concepts that use one direction each: the share of an update that is fitted must not depend on n."""
    fitted, ridge = [], fusion.settings.default_ridge
    for n in (2, 3, 8):
        grams = [torch.zeros(8, 8, dtype=torch.float64) for _ in range(n)]
        for i, gram in enumerate(grams):
            gram[i, i] = 1.0
        own = [(torch.eye(8, dtype=torch.float64)[i : i + 1], torch.ones(4, 1, dtype=torch.float64)) for i in range(n)]
        normal = fusion.algebra.normal_equations(grams, torch.full((n,), 1 / n, dtype=torch.float64), ridge(n))
        fitted.append(dense(fusion.algebra.closed_form(normal, own, "base"))[0, 0].item())
    assert fitted == pytest.approx([1 / (1 + ridge(1) / 8)] * 3)
    found = gradient_fusion(tiny_base, pair, **LIGHT).report
    assert found.settings["ridge"] == (ridge(2),) * 3
    same, name = gradient_fusion(tiny_base, pair, ridge=ridge(2), **LIGHT).report, found.layers[0].name
    assert torch.equal(dense(found.factors["text_encoder"][name]), dense(same.factors["text_encoder"][name]))


def test_automatic_ridge_is_chosen_for_every_layer(tiny_base, pair):
    report = gradient_fusion(tiny_base, pair, ridge="auto", **LIGHT).report
    chosen = {layer.relative for layer in report.layers}
    assert chosen <= set(fusion.ridge.CANDIDATES) and len(chosen) > 1
    with pytest.raises(ValueError, match="at least two prompts"):
        gradient_fusion(tiny_base, pair, ridge="auto", **{**LIGHT, "prompts": ["a {}"]})


def test_refining_solves_on_the_fused_models_own_inputs_too(tiny_base, pair, recorded):
    """Second way, for the text encoder: its refined Grams are half its own, half those of the fused model."""
    once, memory = recorded
    again = gradient_fusion(tiny_base, pair, refine=1, **LIGHT)
    names = gradient.stage_layers(pair, "text encoder")[1]
    key, name = grams.feed(names[-1]), names[-1]  # the first layer reads the words themselves, which never change
    mixed = []
    for concept in pair:
        prompts = [p.replace("{}", concept.phrase) for p in PROMPTS]
        seen = grams.record_text(once, names, prompts).grams[key]
        mixed.append((memory.kept[concept.name, "text encoder"].grams[key] + seen) / 2)
    w = torch.full((2,), 0.5, dtype=torch.float64)
    own = [fusion.weight.layer_factors(tiny_base, pair, "text_encoder", name)[i] for i in range(2)]
    expected = fusion.algebra.closed_form(
        fusion.algebra.normal_equations(mixed, w, fusion.settings.default_ridge(2)), own
    )
    found = again.report.factors["text_encoder"][name]
    assert torch.allclose(dense(found), dense(expected), atol=1e-5)
    assert (dense(found) - dense(once.report.factors["text_encoder"][name])).abs().max() > 1e-4


def test_one_yardstick_explains_every_method(tiny_base, pair, recorded):
    fused, memory = recorded
    same = fusion.explain(tiny_base, pair, fused, memory)
    for a, b in zip(same, fused.report.layers, strict=True):
        assert (a.name, a.before, a.after) == (b.name, b.before, b.after)
    averaged = fusion.explain(tiny_base, pair, weight_fusion(tiny_base, pair), memory)
    assert all(
        a == pytest.approx(b, rel=1e-6) for each in averaged for a, b in zip(each.before, each.after, strict=True)
    )
    with pytest.raises(ValueError, match="Nothing was recorded of 'bibi'"):
        fusion.explain(tiny_base, pair, fused, fusion.Memory())
    with pytest.raises(ValueError, match="not fused"):
        fusion.explain(tiny_base, pair, tiny_base, memory)


def test_recordings_on_disk_are_those_in_memory(tiny_base, pair, tmp_path, monkeypatch):
    settings = {**LIGHT, "ridge": "auto"}
    first, second = fusion.Memory(), fusion.Memory(tmp_path)
    a, b = (gradient_fusion(tiny_base, pair, memory=m, **settings) for m in (first, second))
    assert far(a, b) == 0
    again = fusion.Memory(tmp_path)
    assert again.kept.keys() == first.kept.keys()
    for key, statistics in first.kept.items():
        assert again.kept[key].rows == statistics.rows and len(again.kept[key].parts) == 2
        assert all(torch.equal(again.kept[key].grams[f], gram) for f, gram in statistics.grams.items())
        assert set(again.kept[key].grams) == set(statistics.grams)
    monkeypatch.setattr(gradient, "record", lambda *args, **kw: pytest.fail("nothing was to be recorded again"))
    assert far(gradient_fusion(tiny_base, pair, memory=again, **settings), a) == 0
    monkeypatch.undo()
    monkeypatch.setattr(gradient, "IN_MEMORY", 0)  # a model too large for memory goes through a temporary folder
    assert far(gradient_fusion(tiny_base, pair, **settings), a) == 0


def test_report_is_a_figure_and_words(recorded):
    report = recorded[0].report
    figure = report.plot()
    before, after = (axis.images[0].get_array() for axis in figure.axes[:2])
    assert before.shape == after.shape == (len(report.layers), 2)
    assert after[3, 1] == report.layers[3].after[1] and before[3, 0] == report.layers[3].before[0]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == list(fusion.report.STAGES)
    sentence, worst = report.lost_most("coco"), report.worst("coco")
    lost = sum(layer.after[1] * layer.energy[1] for layer in report.layers)
    assert worst.name in sentence and f"{worst.after[1] * worst.energy[1] / lost:.0%} of all" in sentence
    assert len(report.plot("after").axes) == 2  # the map and its colour bar
    with pytest.raises(ValueError, match="records nothing"):
        replace(report, layers=[]).plot()


def test_drift_compares_the_same_noise(tiny_base, recorded):
    prompts, settings = ("a red cat", "dog"), {"steps": 2, "guidance": 1, "progress": False}
    still = fusion.drift(tiny_base, tiny_base.copy(), prompts, seeds=(3, 5), **settings)
    assert (still.latents, still.pictures, still.share) == (0, 0, 0) and still.spread > 0
    moved = fusion.drift(tiny_base, recorded[0], prompts, seeds=(3, 5), **settings)
    drawn = {
        (m, s, p): pixels(model.sample(p, seed=s, **settings))[0] / 255
        for m, model in enumerate((tiny_base, recorded[0]))
        for s in (3, 5)
        for p in prompts
    }
    gaps = [np.square(drawn[1, s, p] - drawn[0, s, p]).mean() for s in (3, 5) for p in prompts]
    spread = [np.square(drawn[0, 3, p] - drawn[0, 5, p]).mean() for p in prompts]
    assert moved.pictures == pytest.approx(np.mean(gaps), rel=0.05)
    assert moved.spread == pytest.approx(np.mean(spread), rel=0.05) and moved.latents > 0
    assert moved.share == pytest.approx(moved.pictures / moved.spread)
    for seeds in ((1,), (2, 2)):
        with pytest.raises(ValueError, match="two different seeds"):
            fusion.drift(tiny_base, tiny_base, seeds=seeds)


def test_a_saved_fusion_binds_as_the_official_code_does(tiny_base, pair, tmp_path):
    """The official code replaces each word by its layer's token name in 16 copies of the prompt and encodes them."""
    model = weight_fusion(tiny_base, pair)
    folder = model.save_pipeline(tmp_path / "fused")
    stock = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    listing = json.loads((folder / "new_concept_cfg.json").read_text())
    prompt = f"photo of a {pair[0].phrase} and {pair[1].phrase}"
    prompts = [prompt] * len(model.layers)
    for word, entry in listing.items():
        names = entry["concept_token_names"]
        assert stock.tokenizer.convert_tokens_to_ids(names) == entry["concept_token_ids"]
        prompts = [p.replace(word, name) for p, name in zip(prompts, names, strict=True)]
    ids = stock.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        features = stock.text_encoder(ids)[0]  # (L, N, D)
    assert torch.allclose(features, model.context(prompt)[0], atol=1e-4)
    assert torch.allclose(mos.load_base(folder, device="cpu").context(prompt), model.context(prompt), atol=1e-4)


def test_zero_up_changes_nothing(tiny_base, three):
    fresh = [
        replace(c, lora={net: {n: (d, torch.zeros_like(u)) for n, (d, u) in f.items()} for net, f in c.lora.items()})
        for c in three
    ]
    for model in (weight_fusion(tiny_base, fresh), gradient_fusion(tiny_base, fresh, **QUICK)):
        assert far(model, tiny_base) == 0


@pytest.mark.parametrize("fuse", FUSIONS.values(), ids=FUSIONS)
def test_bad_concepts_are_answered_in_one_sentence(tiny_base, three, fuse):
    first, second = three[:2]
    name, (down, up) = next(iter(first.lora["unet"].items()))
    bad = {
        "no concept to fuse": [],
        "not finite": [replace(first, lora={"unet": {name: (down * math.nan, up)}})],
        "of 'coco' is already used by 'bibi'": [first, replace(second, words=first.words, embeddings=first.embeddings)],
        "already a concept called": [first, first],
        "the base has": [replace(first, lora={"unet": {name: (down[:, :3], up)}})],
        "no such layer": [replace(first, lora={"unet": {"mid_block.attn9.to_q": (down, up)}})],
    }
    for message, concepts in bad.items():
        with pytest.raises(ValueError, match=message) as caught:
            fuse(tiny_base, concepts)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "adam"}, "no solver"),
        ({"towards": "moon"}, "towards"),
        ({"ridge": -1.0}, "ridge must be"),
        ({"ridge": (0.1, 0.1)}, "one ridge"),
        ({"ridge": "best"}, "ridge must be"),
        ({"ridge": (0.1, math.nan, 0.1)}, "ridge must be"),
        ({"preserve": -1.0}, "preserve=-1.0 is no weight"),
        ({"plain": "a cat"}, "no list of prompts"),
        ({"refine": -1}, "no number of passes"),
        ({"prompts": ["a cat"]}, "do not name the concept"),
        ({"prompts": "a {}"}, "do not name the concept"),
        ({"prompts": []}, "do not name the concept"),
        ({"weights": [1.0]}, "one number"),
        ({"weights": [1.0, math.nan]}, "one number"),
        ({"weights": [0, 0]}, "one number"),
        ({"weights": [1, -1]}, "one number"),
    ],
)
def test_bad_settings_are_answered_in_one_sentence(tiny_base, three, settings, message):
    with pytest.raises(ValueError, match=message):
        gradient_fusion(tiny_base, three[:2], **{**QUICK, **settings})


def test_export_needs_a_fused_model(tiny_base, three, tmp_path):
    with pytest.raises(ValueError, match="not fused"):
        fusion.to_lora(tiny_base, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="words only"):
        fusion.to_lora(weight_fusion(tiny_base, [replace(three[0], lora={})]), tmp_path / "x.safetensors")


def test_overflow_while_recording_is_named():
    recorder = grams.GramRecorder({})
    recorder.add("mid.input", torch.full((1, 2, 3), float("inf")))
    with pytest.raises(ValueError, match="mid.input are not finite"):
        recorder.statistics()


def test_recorder_counts_layers_and_takes_its_hooks_off():
    linear, other = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="1 of 2 layers saw no input"):
        with grams.GramRecorder({"a": linear, "b": other}):
            linear(torch.ones(1, 2, 3))
    assert not linear._forward_pre_hooks and not other._forward_pre_hooks


def test_without_a_ridge_directions_count_down_to_what_rounding_can_move():
    """Of 64 directions one is just above sqrt(64) * float32's rounding of the largest, one just below."""
    eps = torch.finfo(torch.float32).eps
    basis, _ = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    energies = torch.ones(64, dtype=torch.float64)
    energies[0], energies[1] = 1.5 * 8 * eps, 0.5 * 8 * eps
    gram = (basis * energies) @ basis.T
    weights = torch.ones(1, dtype=torch.float64)
    found = fusion.algebra.normal_equations([gram], weights, 0.0, precision=eps)
    assert found.freedom == pytest.approx(63)
    exact = fusion.algebra.normal_equations([gram], weights, 0.0)
    assert exact.freedom == pytest.approx(64)
