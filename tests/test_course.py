"""The notebooks' helpers: attention maps are the model's own, checks take right answers and name wrong ones."""

import math

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from mixofshow_lite import course
from mixofshow_lite.attention import cross_attention, stored_attention
from mixofshow_lite.course import exercises
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


RIGHT = {
    "1.1": lambda z, eps, a: a.sqrt() * z + (1 - a).sqrt() * eps,
    "1.2": lambda z_t, eps, a: (z_t - (1 - a).sqrt() * eps) / a.sqrt(),
    "1.3": lambda empty, text, scale: empty + scale * (text - empty),
    "1.4": 2048,
}
WRONG = {
    "1.1": (lambda z, eps, a: a * z + (1 - a) * eps, "square roots"),
    "1.2": (lambda z_t, eps, a: z_t - eps, "subtract first"),
    "1.3": (lambda empty, text, scale: empty + scale * text, "conditional"),
    "1.4": (1024, "down"),
}


@pytest.mark.parametrize("number", RIGHT)
def test_right_answers_pass(number, capsys):
    course.check(number, RIGHT[number])
    assert f"Exercise {number}: right" in capsys.readouterr().out


@pytest.mark.parametrize("number", WRONG)
def test_wrong_answers_name_the_likely_mistake(number):
    answer, hint = WRONG[number]
    with pytest.raises(AssertionError, match=hint):
        course.check(number, answer)


def test_every_exercise_is_tried_and_empty_ones_say_so():
    here = {number for number in exercises.everything() if number.startswith("1.")}
    assert set(RIGHT) == set(WRONG) == here
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
