"""The cached views tuning learns from: crops, masks, borders, and the prior."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mixofshow_lite.engine import views
from mixofshow_lite.engine.recipes import RECIPES

RECIPE = RECIPES["ed_lora"]


class Pictures:
    """A client's data without a folder."""

    def __init__(self, *sizes, masks=True):
        rng = np.random.default_rng(0)
        self.pictures = [Image.fromarray(rng.integers(0, 120, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
        self.masks = [half(size) if masks else None for size in sizes]
        self.files = [f"{i}.png" for i in range(len(sizes))]
        self.captions = [f"photo {i} of <TOK>" for i in range(len(sizes))]

    def __len__(self):
        return len(self.pictures)

    def prompts(self, phrase):
        return [caption.replace("<TOK>", phrase) for caption in self.captions]


def half(size):
    """A mask whose left half is white."""
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def test_one_view_is_the_centred_crop(tiny_base):
    data = Pictures((64, 64), (128, 64))
    found = views.prepare(tiny_base, data, replace(RECIPE, background=0.25), "<a1> <a2>")
    assert found.prompts == ["photo 0 of <a1> <a2>", "photo 1 of <a1> <a2>"] and found.masked
    middle = data.pictures[1].crop((32, 0, 96, 64))
    assert torch.allclose(found.latents[1:], tiny_base.encode_images([middle]), atol=1e-5)
    for i in (0, 1):
        assert torch.allclose(found.inside[i, 0, :, [0, 7]], torch.tensor([1.0, 0.0]).expand(8, 2), atol=0.02)
        assert torch.allclose(found.counted[i], 0.25 + 0.75 * found.inside[i])
    bare = views.prepare(tiny_base, Pictures((64, 64), masks=False), replace(RECIPE, background=0.0), "x")
    assert (bare.counted == 1).all() and (bare.inside == 1).all() and not bare.masked
    with pytest.raises(ValueError, match=r"Of 1 pictures 0.png .64x31. is too small for a base of 64x64"):
        views.prepare(tiny_base, Pictures((64, 31)), RECIPE, "x")


def test_mirrored_views(tiny_base):
    found = views.prepare(tiny_base, Pictures((64, 64), (64, 64)), replace(RECIPE, background=0.0, flip=True), "x")
    assert len(found.latents) == len(found.prompts) == 4 and found.pictures == 2
    assert torch.allclose(found.counted[2:], found.counted[:2].flip(3), atol=0.02)
    assert found.prompts[:2] == found.prompts[2:]


def test_random_views_stay_inside_the_frame_and_know_their_border():
    """A white picture on the grey border: the frame must be exactly where the view is white, and the mask its half."""
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for size in ((60, 60), (90, 60), (60, 90)):
        picture, mask = Image.new("RGB", size, "white"), half(size)
        for zoom in ((0.3, 0.9), (1.0, 1.0), (1.2, 1.4)):
            view, shown, frame = views.random_view(picture, mask, (64, 64), zoom, generator)
            white = np.asarray(view)[..., 0] == 255
            assert np.array_equal(white, np.asarray(frame) == 255)
            short = 64 * zoom[0] - 1
            rows, columns = white.any(1).sum(), white.any(0).sum()
            assert white.sum() == rows * columns and min(rows, columns) >= min(short, 64)
            assert white.all() == (zoom[0] >= 1)
            assert not np.asarray(shown)[~white].any()
            seen.add((rows, columns))
    assert len(seen) > 3


def test_borders_do_not_count(tiny_base):
    recipe = replace(RECIPE, background=0.5, variants=5, zoom=(0.4, 0.7))
    found = views.prepare(tiny_base, Pictures((64, 64), (64, 64)), recipe, "x", seed=1)
    assert len(found.latents) == 10 and found.pictures == 2
    assert (found.counted[:2] > 0).all()
    for counted in found.counted[2:, 0]:
        share = (counted > 0).float().mean().item()
        assert 0.05 < share < 0.5
        rows, columns = (counted > 0).any(1).sum(), (counted > 0).any(0).sum()
        assert (counted > 0).sum() == rows * columns  # a rectangle
    again = views.prepare(tiny_base, Pictures((64, 64), (64, 64)), recipe, "x", seed=1)
    assert torch.equal(found.latents, again.latents)
    assert not torch.equal(
        found.latents, views.prepare(tiny_base, Pictures((64, 64), (64, 64)), recipe, "x", 2).latents
    )


def test_a_batch_repeats_no_picture_before_all_were_drawn():
    generator = torch.Generator().manual_seed(0)
    for P, batch, K in ((3, 2, 0), (3, 3, 2), (3, 7, 5), (1, 4, 1)):
        blank = torch.zeros(2 * P + K, 1, 1, 1)
        found = views.Views(blank, blank, blank, [""] * len(blank), P, K, False)
        drawn = [found.draw(batch, generator) for _ in range(20)]
        assert all(len(entries) == (2 * batch if K else batch) for entries in drawn)
        for entries in drawn:
            counts = np.bincount(np.array(entries[:batch]) % P, minlength=P)
            assert max(entries[:batch]) < 2 * P and counts.max() - counts.min() <= 1
            beside = np.bincount(np.array(entries[batch:], dtype=int) - 2 * P, minlength=K) if K else np.zeros(1)
            assert len(beside) == max(K, 1) and beside.max() - beside.min() <= 1
        twice = np.bincount(np.array(found.draw(batch, generator, noises=2)[:batch]) % P, minlength=P)
        assert twice.sum() == batch and (batch > 2 * P or sorted(twice)[-(batch // 2) :] == [2] * (batch // 2))
        assert {e // P for entries in drawn for e in entries[:batch]} == {0, 1}


def test_the_prior_is_the_bases_own_idea_of_the_class(tiny_base, tmp_path):
    found = views.prepare(tiny_base, Pictures((64, 64)), replace(RECIPE, background=0.0), "<a1>")
    more = views.add_prior(found, tiny_base, "red cat", 2, seed=3, file=tmp_path / "prior.safetensors", progress=False)
    drawn = tiny_base.sample("photo of a red cat", n=2, seed=3, progress=False)
    assert torch.allclose(more.latents[1:], tiny_base.encode_images(drawn).float(), atol=1e-5)
    assert torch.equal(more.latents[:1], found.latents) and (more.counted[1:] == 1).all()
    assert more.prompts == ["photo 0 of <a1>", *["photo of a red cat"] * 2] and (more.pictures, more.prior) == (1, 2)
    kept = views.add_prior(found, tiny_base, "red cat", 2, 3, tmp_path / "prior.safetensors", False)
    assert torch.equal(kept.latents, more.latents)
    other = views.add_prior(found, tiny_base, "red cat", 2, 4, tmp_path / "prior.safetensors", False)
    assert not torch.equal(other.latents, more.latents)
