"""The center node on a whole (tiny) model: paper 3.2 and 3.3.2."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_concept
from diffusers import StableDiffusionPipeline

from mixofshow_lite import fusion, lora
from mixofshow_lite.fusion import CenterNode, gradient, gradient_fusion, grams, report, weight_fusion
from mixofshow_lite.fusion.algebra import dense
from mixofshow_lite.fusion.weight import with_factors

PROMPTS = ("photo of a {}", "a {} on the beach")
QUICK = {"prompts": PROMPTS, "steps": 2, "guidance": 3.0, "size": 64, "progress": False}


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
        assert not any(module._forward_pre_hooks for module in net.modules())


def test_unchanged_weights_are_shared(tiny_base, fused):
    assert fused.unet.conv_in.weight.data_ptr() == tiny_base.unet.conv_in.weight.data_ptr()
    assert fused.vae is tiny_base.vae and type(fused) is type(tiny_base)


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
    mixed = gradient_fusion(tiny_base, [three[0], bare[1]], **QUICK).report
    assert math.isnan(mixed.residual("coco")) and mixed.residual("bibi") < mixed.residual("bibi", which="before")


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
    named = gradient.Settings(prompts={"bibi": ["{} asleep"]})
    assert named.contexts(first) == ["<bibi1> <bibi2> asleep"] and named.contexts(second) == settings.contexts(second)
    assert settings.contexts(replace(first, words=(), embeddings={}, phrase=""))[0] == "photo of a rabbit"


def test_guidance_records_the_empty_prompt_for_half_of_the_rows(tiny_base, three):
    names = gradient.stage_layers(three, "keys and values")[1]
    contexts = {"bibi": ["photo of a <bibi1> <bibi2>"]}
    model = tiny_base.with_words(three[0])
    guided = gradient.record(model, three[0], "keys and values", names, contexts, gradient.Settings(guidance=5.0))
    named, empty = (grams.record_context(model, names, [p]).grams for p in (contexts["bibi"][0], ""))
    for key, gram in guided.grams.items():
        assert torch.allclose(gram, (named[key] + empty[key]) / 2)


def test_center_node_join_and_leave(tiny_base, three):
    center = CenterNode(tiny_base, **{k: v for k, v in QUICK.items() if k != "progress"})
    for concept in three[:2]:
        center.join(concept)
    two = gradient_fusion(tiny_base, three[:2], **QUICK)
    assert far(center.fuse(progress=False), two) == 0
    center.join(three[2])
    fresh = gradient_fusion(tiny_base, three, **QUICK)
    quick = center.fuse(progress=False)
    exact_stages = [n for n in weights_of(fresh) if n.startswith("text_encoder") or grams.CONTEXT_LINEAR.search(n)]
    assert all(torch.equal(weights_of(quick)[n], weights_of(fresh)[n]) for n in exact_stages)
    assert 0 < spread(quick, fresh) < 0.6 * spread(two, fresh)  # spatial layers: near, but not the same
    assert far(center.fuse(exact=True, progress=False), fresh) == 0
    center.leave(three[2])
    assert far(center.fuse(exact=True, progress=False), two) == 0
    assert not any("dodo" in key for key in center.memory.kept)
    with pytest.raises(KeyError, match="no member"):
        center.leave("dodo")


def test_center_node_samples_only_the_newcomer(tiny_base, three, monkeypatch):
    sampled = []
    original = gradient.record_spatial

    def counting(model, names, prompts, *args, **kwargs):
        sampled.append(prompts[0])
        return original(model, names, prompts, *args, **kwargs)

    monkeypatch.setattr(gradient, "record_spatial", counting)
    center = CenterNode(tiny_base, **{k: v for k, v in QUICK.items() if k != "progress"})
    center.join(three[0])
    center.fuse(progress=False)
    center.join(three[1])
    center.fuse(progress=False)
    assert len(sampled) == 2 and three[0].phrase in sampled[0] and three[1].phrase in sampled[1]


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


def test_peft_cat_is_the_sum_of_deltas(tiny_base, three):
    """FACTS: peft's `cat` adds adapters exactly as the plain sum does."""
    from peft import LoraConfig, inject_adapter_in_model

    linear = torch.nn.Sequential(torch.nn.Linear(32, 32, bias=False))
    factors = [c.lora["text_encoder"]["encoder.layers.0.self_attn.q_proj"] for c in three]
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["0"])
    for number, (down, up) in enumerate(factors):
        inject_adapter_in_model(config, linear, adapter_name=str(number))
        linear[0].lora_A[str(number)].weight.data, linear[0].lora_B[str(number)].weight.data = down, up
    down = torch.cat([linear[0].lora_A[str(i)].weight for i in range(3)])
    up = torch.cat([linear[0].lora_B[str(i)].weight * linear[0].scaling[str(i)] for i in range(3)], dim=1)
    summed = weight_fusion(tiny_base, three, normalise=False).report.factors["text_encoder"]
    assert torch.allclose(up @ down, dense(summed["encoder.layers.0.self_attn.q_proj"]).float(), atol=1e-6)


def test_zero_up_changes_nothing(tiny_base, three):
    fresh = [
        replace(c, lora={net: {n: (d, torch.zeros_like(u)) for n, (d, u) in f.items()} for net, f in c.lora.items()})
        for c in three
    ]
    for model in (weight_fusion(tiny_base, fresh), gradient_fusion(tiny_base, fresh, **QUICK)):
        assert far(model, tiny_base) == 0


@pytest.mark.parametrize("fuse", [weight_fusion, lambda base, concepts: gradient_fusion(base, concepts, **QUICK)])
def test_bad_concepts_are_answered_in_one_sentence(tiny_base, three, fuse):
    first, second = three[:2]
    name, (down, up) = next(iter(first.lora["unet"].items()))
    bad = {
        "no concept to fuse": [],
        "was tuned on": [replace(first, fingerprint="0" * 8, base_id="pocket-v0")],
        "not finite": [replace(first, lora={"unet": {name: (down * math.nan, up)}})],
        "both 'bibi' and 'coco'": [first, replace(second, words=first.words, embeddings=first.embeddings)],
        "Two concepts are called": [first, first],
        "this base has": [replace(first, lora={"unet": {name: (down[:, :3], up)}})],
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
