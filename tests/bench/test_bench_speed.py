"""The benchmark's own loops run and leave the model alone; what they measure is not tested, only that they do."""

import bench_speed as bench
import torch

from mixofshow_lite.engine import layerwise
from mixofshow_lite.engine.recipes import RECIPES
from mixofshow_lite.files.data import ConceptData
from mixofshow_lite.files.resources import concepts_dir


def test_the_reference_loops_leave_the_base_alone(tiny_base):
    data = ConceptData(concepts_dir() / "bibi")
    before = {n: w.clone() for net in (tiny_base.unet, tiny_base.text_encoder) for n, w in net.named_parameters()}
    plain = layerwise.LARGEST_WRITTEN_OUT
    for fused in (True, False):
        assert bench.official_seconds(tiny_base, data, RECIPES["ed_lora"], fused, steps=1) > 0
    assert bench.text_seconds(tiny_base, data.prompts("<v1> <v2>"), ("<v1>", "<v2>"), 2) > 0
    assert bench.unet_seconds(tiny_base, 2, backward=True) > 0
    assert layerwise.LARGEST_WRITTEN_OUT == plain
    after = {n: w for net in (tiny_base.unet, tiny_base.text_encoder) for n, w in net.named_parameters()}
    assert list(after) == list(before) and all(torch.equal(after[n], w) for n, w in before.items())
    assert tiny_base.text_encoder.config._attn_implementation == "sdpa"


def test_the_floor_counts_a_repeated_prompt_once(tiny_base):
    """By hand: "<start> a <v1>" shares two tokens in all layer prompts; the rest, 14 of 16, is there for each layer."""
    words = ("<v1>",)
    assert bench.tokens_a_step(tiny_base, ["a <v1>"], words, 1) == 2 + 16 * 14
    assert bench.tokens_a_step(tiny_base, ["a <v1>"] * 4, words, 3) == 2 + 16 * 14
    other = bench.tokens_a_step(tiny_base, ["a <v1>", "a <v1> cat"], words, 2)
    assert other == 2 + 16 * (1 + 2 * 13)  # the word itself is common too
    mixed = bench.tokens_a_step(tiny_base, ["a <v1>", "a <v1>", "a <v1> cat"], words, 2)
    assert 2 + 16 * 14 < mixed < other


def test_what_is_compared_is_measured_in_turns_and_the_fastest_counts():
    order, times = [], {"a": iter((3.0, 1.0, 2.0)), "b": iter((5.0, 6.0, 4.0))}

    def measure(name):
        order.append(name)
        return next(times[name])

    found = bench.in_turns(3, a=lambda: measure("a"), b=lambda: measure("b"))
    assert found == {"a": 1.0, "b": 4.0} and order == ["a", "b"] * 3


def test_the_ratios_of_a_step_are_those_of_what_was_measured(tiny_base, monkeypatch):
    took = {"step": 6.0, "unet": 3.0, "text": 2.0, "official": 9.0, "careful": 12.0}
    asked = []

    def measured(turns, **measures):
        asked.append(sorted(measures))
        return {name: took[name] for name in measures}

    monkeypatch.setattr(bench, "in_turns", measured)
    data = ConceptData(concepts_dir() / "bibi")
    seconds, ratios = bench.tuning(tiny_base, data, RECIPES["ed_lora"])
    assert list(ratios.values()) == [6 / 5, 9 / 6, 12 / 6] and seconds["of it LoRA, AdamW and the rest"] == 1.0
    _, ratios = bench.tuning(tiny_base, data, RECIPES["ed_lora"], careful=False)
    assert list(ratios.values()) == [6 / 5, 9 / 6] and "careful" not in asked[1]


def test_random_weights_in_the_real_shapes():
    """The autoencoder of Stable Diffusion 1.5's size is asked for where pictures are encoded, a small one elsewhere."""
    import bench_memory
    from bench_regions import random_sd15

    whole = random_sd15(torch.device("meta"), torch.float16, autoencoder=True)
    assert sum(w.numel() for w in whole.vae.parameters()) == bench_memory.VAE
    assert len(whole.layers) == 16 and whole.size == (512, 512)
