"""The notebooks' helpers: attention maps are the model's own; empty and unknown exercises are told."""

import math

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from mixofshow_lite import course
from mixofshow_lite.attention import cross_attention, stored_attention
from mixofshow_lite.engine import attention
from mixofshow_lite.files.grid import GAP, grid

matplotlib.use("Agg")


def test_recording_changes_nothing_and_is_taken_off(tiny_base):
    before = tiny_base.sample("a red cat", seed=3, steps=2, progress=False)[0]
    plain = [m.processor for m in cross_attention(tiny_base.unet).values()]
    with stored_attention(tiny_base.unet):
        during = tiny_base.sample("a red cat", seed=3, steps=2, progress=False)[0]
    assert np.abs(np.asarray(before).astype(int) - np.asarray(during).astype(int)).max() <= 1
    assert [m.processor for m in cross_attention(tiny_base.unet).values()] == plain


def test_maps_are_softmax_of_queries_and_keys(tiny_base):
    """The first layer's map of one U-Net call, computed a second way with einsum from hooked inputs."""
    z, context = tiny_base.noise(1, 0), tiny_base.context("a red cat")
    module = next(iter(cross_attention(tiny_base.unet).values()))
    seen = {}
    handle = module.register_forward_pre_hook(lambda m, args, kwargs: seen.update(x=args[0]), with_kwargs=True)
    with torch.no_grad(), stored_attention(tiny_base.unet) as store:
        tiny_base.unet(z, 500, context)
    handle.remove()
    d = module.to_q.out_features // module.heads
    q, k = module.to_q(seen["x"]).unflatten(-1, (-1, d)), module.to_k(context[:, 0]).unflatten(-1, (-1, d))
    wanted = (torch.einsum("bthd,bnhd->bhtn", q, k) / math.sqrt(d)).softmax(-1).mean(1)
    torch.testing.assert_close(store.maps()[0], wanted.detach(), atol=1e-5, rtol=1e-4)


def test_attention_maps_have_the_layers_sizes_and_sum_to_one(tiny_base, concept):
    model = tiny_base.with_concept(concept)
    picture, words, maps = attention.attention_maps(model, "a red <bibi1> <bibi2>", steps=2)
    assert picture.size == (64, 64) and list(maps) == list(model.layers)
    assert words[:5] == ["<start>", "a", "red", "<bibi1>", "<bibi2>"] and len(words) == model.tokens
    assert sorted({tuple(m.shape[:2]) for m in maps.values()}) == [(1, 1), (2, 2), (4, 4), (8, 8)]
    for m in maps.values():
        torch.testing.assert_close(m.sum(-1), torch.ones(m.shape[:2]), atol=1e-4, rtol=0)
    by_word = attention.word_maps(words, maps, side=8)
    assert list(by_word) == ["a", "red", "<bibi1>", "<bibi2>"]
    assert all(m.shape == (8, 8) and m.min() == 0 and m.max() == 1 for m in by_word.values())


def test_empty_and_unknown_exercises_say_so():
    with pytest.raises(AssertionError, match="still empty"):
        course.check("1.4", ...)
    with pytest.raises(AssertionError, match="returns nothing yet"):
        course.check("1.1", lambda z, eps, a: ...)
    with pytest.raises(KeyError, match="no exercise 9.9"):
        course.check("9.9", 1)


def test_show_draws_a_labelled_grid(tiny_base, monkeypatch):
    display, shown = pytest.importorskip("IPython.display"), []
    monkeypatch.setattr(display, "display", shown.append)
    pictures = tiny_base.sample("a cat", n=2, steps=1, progress=False)
    course.show({"one": pictures, "two": [np.zeros((4, 4))]}, titles=["a", "b"], suptitle="cats")
    course.show(pictures * 4, width=1.5)
    course.show([Image.new("RGB", (512, 512))] * 4)
    assert [picture.size for picture in shown[1:]] == [(8 * 144 + 7 * GAP, 144), (4 * 225 + 3 * GAP, 225)]
    wanted = grid({"one": pictures, "two": [np.zeros((4, 4))]}, ["a", "b"], side=128, heading="cats")
    np.testing.assert_array_equal(shown[0], wanted)  # small pictures are enlarged to 128 pixels


def test_concepts_are_drawn_once_at_another_size(tmp_path, monkeypatch):
    from mixofshow_lite.pocket import concepts

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(concepts, "CONCEPTS", {"mochi": concepts.CONCEPTS["mochi"]})
    folder = course.concepts_at(64)
    assert folder.name == "concepts-64" and (folder / "mochi" / "metadata.jsonl").is_file()
    stamp = (folder / "mochi" / "00.png").stat().st_mtime_ns
    assert course.concepts_at(64) == folder and (folder / "mochi" / "00.png").stat().st_mtime_ns == stamp
    assert course.concepts_at(128) == course.concepts_dir()


def test_the_optional_cell_is_skipped_with_one_sentence(tiny_base, monkeypatch, capsys, tmp_path):
    def no_network(name):
        raise OSError("no route to host")

    kit = course.Kit(tiny_base, 25, 64, tmp_path, tmp_path, tmp_path)
    monkeypatch.setattr(course, "load_base", no_network)
    monkeypatch.setattr(course.torch.cuda, "is_available", lambda: False)
    assert course.on_t4(kit, wanted=False) is None and "WANTED = True" in capsys.readouterr().out
    assert course.on_t4(kit, wanted=True) is None and "takes a GPU" in capsys.readouterr().out
    monkeypatch.setattr(course.torch.cuda, "is_available", lambda: True)
    assert course.on_t4(kit, wanted=False) is None and "optional" in capsys.readouterr().out
    assert course.on_t4(kit, wanted=True) is None and "no route to host" in capsys.readouterr().out
    monkeypatch.setattr(course, "load_base", lambda name: name)
    assert course.on_t4(kit, wanted=True) == "sd15" and capsys.readouterr().out == ""
    monkeypatch.setattr(tiny_base, "base_id", "sd15")
    assert course.on_t4(kit, wanted=False) is tiny_base


def test_layers_are_caught_in_order_and_let_go(tiny_base):
    from mixofshow_lite.course.catching import caught_layers

    z, context = tiny_base.noise(1, 0), tiny_base.context("a red cat")
    with torch.no_grad(), caught_layers(tiny_base.unet) as caught:
        tiny_base.unet(z, 500, context)
    modules = list(cross_attention(tiny_base.unet).values())
    assert list(caught) == sorted(caught) == list(range(len(modules)))
    for (module, x, out), own in zip(caught.values(), modules, strict=True):
        assert module is own and x.shape == out.shape and not own._forward_hooks
    seen = dict(caught)
    with torch.no_grad():
        tiny_base.unet(z, 400, context)
    assert all(caught[layer][1] is seen[layer][1] for layer in seen), "nothing is caught afterwards"
