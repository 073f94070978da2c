"""Layer-wise context: shared beginnings of prompts, and attention written out where that is faster."""

import pytest
import torch
import torch.nn.functional as F

from mixofshow_lite.engine import layerwise
from mixofshow_lite.engine.layerwise import QuickAttention, encode, prefix_tree
from mixofshow_lite.engine.lora import core
from mixofshow_lite.files.concept import bind

WORDS = ["<a1>", "<a2>"]
PROMPTS = ["a photo of a <a1> <a2> on the beach", "a photo of a <a1> cat", "a photo of a red cat", "<a2>"]


@pytest.mark.parametrize("K", [16, 1])
def test_shared_beginnings_give_the_same_features_and_gradients(tiny_base, K):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(2, K, 32, generator=generator).requires_grad_()
    bound = bind(tiny_base.tokenizer, PROMPTS, WORDS)
    weights = torch.randn(4, 16, 16, 32, generator=generator)
    found, gradients = [], []
    for share in (False, True):
        context = torch.stack(encode(tiny_base.text_encoder, bound, table, 16, share=share))
        found.append(context)
        gradients += torch.autograd.grad((context * weights).sum(), table)
    assert found[0].shape == (4, 16, 16, 32)
    assert torch.allclose(*found, atol=1e-4) and torch.allclose(*gradients, atol=1e-3)
    assert (found[0][0, 0] != found[0][0, 1]).any() == (K > 1)
    with torch.no_grad():
        context = torch.stack(encode(tiny_base.text_encoder, bound, table, 16, share=True))
    assert torch.allclose(context, found[0], atol=1e-4)
    assert tiny_base.text_encoder.config._attn_implementation == "sdpa"


def test_one_row_for_every_distinct_beginning(tiny_base):
    """Counted a second way: the set of all prefixes, in which a concept word carries its layer."""
    bound = bind(tiny_base.tokenizer, PROMPTS, WORDS)
    copies = [16, 16, 1, 16]
    tree = prefix_tree(bound, copies)
    wanted, s = {}, 0
    for ids, slots, K in zip(bound.ids.tolist(), bound.slots.tolist(), copies, strict=True):
        for layer in range(K):
            tokens = [(i, v, layer if v >= 0 else 0) for i, v in zip(ids, slots, strict=True)]
            for n in range(16):
                row = tree.places[s, n].item()
                assert wanted.setdefault(tuple(tokens[: n + 1]), row) == row
                assert (tree.ids[row], tree.slots[row], tree.layers[row]) == tokens[n]
                assert tree.first_place[row] % 16 == n
            s += 1
    assert len(set(wanted.values())) == len(wanted) == len(tree.ids)
    assert (tree.places.flatten()[tree.first_place] == torch.arange(len(tree.ids))).all()
    assert len(tree.ids) < 49 * 16 - 2 * 16 * 4  # "<start> a photo of a" is there once, not 33 times


def test_every_beginning_is_worked_once_with_the_same_gradients(tiny_base):
    """Rows that the text encoder's q, k and v see: one for each distinct beginning, or all prompts without sharing."""
    bound = bind(tiny_base.tokenizer, PROMPTS[:2], WORDS)
    table = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(2, 16, 16, 32, generator=torch.Generator().manual_seed(1))
    model = tiny_base.copy()
    layers = core(model.text_encoder).encoder.layers
    projections = [getattr(layer.self_attn, f"{name}_proj") for layer in layers for name in "qkv"]
    parameters, gradients, seen = [], [], []
    for projection in projections:
        projection.weight = torch.nn.Parameter(projection.weight.detach().clone())  # not the base's
        projection.forward = lambda x, plain=projection.forward: seen.append(len(x)) or plain(x)
        parameters.append(projection.weight)
    for share in (True, False):
        seen.clear()
        context = torch.stack(encode(model.text_encoder, bound, table, 16, share=share))
        gradients.append(torch.autograd.grad((context * weights).sum(), parameters))
        assert seen == [len(prefix_tree(bound, [16, 16]).ids) if share else 32] * len(projections)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(*gradients, strict=True))


def test_attention_is_written_out_on_a_cpu_with_gradients_only(tiny_base, monkeypatch):
    model = tiny_base
    z, context = model.noise(1, 0), model.context("a red cat")
    attentions = [m for m in model.unet.modules() if isinstance(getattr(m, "processor", None), QuickAttention)]
    assert len(attentions) == 32
    with torch.no_grad():
        fused = model.unet(z, 500, context).sample
    written_out = model.unet(z, 500, context).sample
    assert torch.allclose(fused, written_out, atol=1e-5)

    def refuse(*args, **kwargs):
        raise RuntimeError("fused")

    monkeypatch.setattr(F, "scaled_dot_product_attention", refuse)
    model.unet(z, 500, context)
    with torch.no_grad(), pytest.raises(RuntimeError, match="fused"):
        model.unet(z, 500, context)
    monkeypatch.setattr(layerwise, "LARGEST_WRITTEN_OUT", 16)  # probabilities that would not fit
    with pytest.raises(RuntimeError, match="fused"):
        model.unet(z, 500, context)
