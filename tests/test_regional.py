"""Section 3.4: region-aware cross-attention against its identities and a second computation by einsum."""

import math

import bench_regions
import numpy as np
import pytest
import torch
from PIL import Image

from mixofshow_lite.attention import cross_attention
from mixofshow_lite.engine.regional import (
    Region,
    RegionAttention,
    parse_regions,
    region_weights,
    regional_attention,
    self_attention,
    side_by_side,
)

GLOBAL, LEFT, RIGHT = "two on the beach", "a red cat", "a blue dog in the forest"


def draw(model, prompt, regions=None, **kwargs):
    """A picture as a float array, few steps."""
    picture = model.sample(prompt, seed=3, steps=2, progress=False, regions=regions, **kwargs)[0]
    return np.asarray(picture, dtype=float)


def close(a, b):
    return np.abs(a - b).max() <= 1  # pictures are rounded to bytes


def test_full_picture_region_is_the_plain_sample_of_its_prompt(tiny_base):
    region = Region(LEFT, box=(0, 0, 1, 1))
    assert close(draw(tiny_base, GLOBAL, [region]), draw(tiny_base, LEFT))
    assert not close(draw(tiny_base, GLOBAL, [region]), draw(tiny_base, GLOBAL))
    assert close(draw(tiny_base, GLOBAL, [region], guidance=1), draw(tiny_base, LEFT, guidance=1))


def test_no_regions_is_the_plain_sample(tiny_base):
    assert np.array_equal(draw(tiny_base, GLOBAL, []), draw(tiny_base, GLOBAL))


def test_a_region_with_the_global_prompt_changes_nothing(tiny_base):
    assert close(draw(tiny_base, GLOBAL, [Region(GLOBAL, box=(0.2, 0.1, 0.9, 0.6))]), draw(tiny_base, GLOBAL))


def test_two_identical_overlapping_boxes_are_one(tiny_base):
    box = (0.2, 0, 0.8, 0.7)
    one, two = [Region(LEFT, box=box)], [Region(LEFT, box=box), Region(LEFT, box=box)]
    assert close(draw(tiny_base, GLOBAL, one), draw(tiny_base, GLOBAL, two))


def test_region_prompts_may_hold_concept_words(tiny_base, concept):
    model = tiny_base.with_concept(concept)
    full = draw(model, GLOBAL, [Region("a <bibi1> <bibi2>", box=(0, 0, 1, 1))])
    assert close(full, draw(model, "a <bibi1> <bibi2>"))


def test_negative_prompt_of_a_full_region_is_the_negative_prompt(tiny_base):
    region = Region(LEFT, box=(0, 0, 1, 1), negative_prompt=RIGHT)
    wanted = draw(tiny_base, LEFT, negative_prompt=RIGHT)
    assert close(draw(tiny_base, GLOBAL, [region]), wanted)
    assert not close(wanted, draw(tiny_base, LEFT))


BOXES = [
    (0.25, 0, 1, 0.5),
    (0.0, 0.25, 0.5, 1),
    (0.33, 0.1, 0.92, 0.47),
    (0.1, 0.4, 0.9, 0.45),
    (0.7, 0.71, 0.73, 0.74),
]


def test_side_by_side_says_who_is_not_alone_and_then_is_the_paper_s():
    pair = side_by_side(["a red cat", "a blue robot"], "on the beach", friends=0.3, top=0.1)
    assert [(r.prompt, r.start, r.end) for r in pair] == [
        ("a red cat on the left and a friend on the beach", 0, 0.3),
        ("a blue robot on the right and a friend on the beach", 0, 0.3),
        ("a red cat on the beach", 0.3, 1),
        ("a blue robot on the beach", 0.3, 1),
    ]
    assert [r.box for r in pair] == [(0, 0.1, 0.5, 1), (0.5, 0.1, 1, 1)] * 2
    assert [r.prompt for r in side_by_side(list("abc"), friends=1)] == [
        "a on the left and two friends",
        "b and two friends",
        "c on the right and two friends",
    ]
    assert [r.prompt for r in side_by_side(list("abcde"), friends=1)][1:3] == ["b and friends", "c and friends"]


def test_friends_are_told_of_as_long_as_the_notebooks_say():
    """Notebook 05: `side_by_side` says it for the first 40 % of the steps, and names the subject alone after that."""
    told = side_by_side(list("ab"))
    assert [(r.start, r.end) for r in told] == [(0, 0.4), (0, 0.4), (0.4, 1), (0.4, 1)]
    assert ["friend" in r.prompt for r in told] == [True, True, False, False]


def test_side_by_side_without_friends_or_late():
    assert [(r.prompt, r.start, r.end) for r in side_by_side(list("ab"), friends=0)] == [("a", 0, 1), ("b", 0, 1)]
    assert [(r.prompt, r.start) for r in side_by_side(list("ab"), friends=0.2, start=0.5)] == [("a", 0.5), ("b", 0.5)]
    (only,) = side_by_side(["a cat"], "in the snow")
    assert (only.prompt, only.box[::2], only.start, only.end) == ("a cat in the snow", (0, 1), 0, 1)
    for friends in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"friends is {friends}: give the fraction"):
            side_by_side(list("ab"), friends=friends)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("size", [(8, 8), (4, 4), (2, 2), (6, 10)])
def test_boxes_round_as_the_official_code_and_masks_like_boxes(box, size):
    (left, top, right, bottom), (h, w) = box, size
    cover = Region("x", box=box).cover(h, w)
    rows, columns = range(math.ceil(top * h), math.floor(bottom * h)), range(math.ceil(left * w), math.floor(right * w))
    if len(rows) and len(columns):
        wanted = torch.zeros(h, w)
        wanted[rows.start : rows.stop, columns.start : columns.stop] = 1
        assert torch.equal(cover, wanted)
    else:  # thin: the official code loses it here, ours has the cells it covers most, by how much it covers them
        share = {
            (y, x): max(0, min(bottom * h, y + 1) - max(top * h, y)) * max(0, min(right * w, x + 1) - max(left * w, x))
            for y in range(h)
            for x in range(w)
        }
        most = max(share.values())
        for (y, x), part in share.items():
            assert cover[y, x].item() == pytest.approx(min(1, 2 * part) if part > most - 1e-6 else 0, abs=1e-5)
        assert cover.max() > 0
    mask = np.zeros((300, 300), dtype=np.uint8)
    mask[round(300 * top) : round(300 * bottom), round(300 * left) : round(300 * right)] = 255
    exact = Region("x", box=tuple(round(300 * side) / 300 for side in box))
    for same in (mask, mask > 0, Image.fromarray(mask)):
        assert torch.allclose(Region("x", mask=same).cover(h, w), exact.cover(h, w), atol=1e-5)
    soft, exact = Region("x", mask=mask, feather=0.2), Region("x", box=exact.box, feather=0.2)
    assert torch.allclose(soft.cover(h, w), exact.cover(h, w), atol=1e-4)


def test_feathered_edges_are_ramps_but_not_at_the_border():
    """Against a fine grid: the box blurred by a box of the feather's width, averaged over each cell."""
    left, right, feather, n, fine = 0.3, 0.8, 0.2, 10, 4000
    x = (np.arange(fine) + 0.5) / fine
    ramp = np.clip((x - left) / feather + 0.5, 0, 1) * np.clip((right - x) / feather + 0.5, 0, 1)
    cover = Region("x", box=(left, 0, right, 1), feather=feather).cover(n, n)
    assert np.allclose(cover, np.tile(ramp.reshape(n, -1).mean(1), (n, 1)), atol=1e-3)
    assert cover[0, 2].item() == pytest.approx(1 / 4, abs=1e-3) and cover[0, 5] == 1
    whole = Region("x", box=(0, 0, 1, 1), feather=0.3).cover(4, 4)
    assert torch.allclose(whole, torch.ones(4, 4), atol=1e-6)
    pair = [Region("x", box=(0, 0, 0.5, 1), feather=0.4), Region("y", box=(0.5, 0, 1, 1), feather=0.4)]
    assert torch.allclose(region_weights(pair, 8, 8).sum(0), torch.ones(64), atol=1e-5)  # a cross-fade, nothing between


def test_a_mask_that_is_a_box_draws_the_box(tiny_base):
    mask = np.zeros((64, 64), dtype=bool)
    mask[:32, 16:] = True
    as_mask, as_box = [Region(LEFT, mask=mask)], [Region(LEFT, box=(0.25, 0, 1, 0.5))]
    assert np.array_equal(draw(tiny_base, GLOBAL, as_mask), draw(tiny_base, GLOBAL, as_box))


def test_weights_never_exceed_one_and_soft_masks_stay_soft():
    soft = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    cover = Region("x", mask=soft).cover(4, 4)
    assert torch.allclose(cover[0], torch.from_numpy(soft[0].reshape(4, 16).mean(1)), atol=1e-6)
    weights = region_weights(
        [Region("x", mask=soft), Region("y", box=(0, 0, 0.5, 1)), Region("z", box=(0, 0, 1, 1))], 4, 4
    )
    assert weights.shape == (3, 16) and weights.min() >= 0
    assert torch.allclose(weights.sum(0), torch.ones(16))
    half = region_weights([Region("x", box=(0, 0, 1, 1), weight=0.5)], 2, 2)
    assert torch.equal(half, torch.full((1, 4), 0.5))
    shares = region_weights([Region("x", box=(0, 0, 1, 1), weight=3), Region("y", box=(0, 0, 1, 1))], 2, 2)
    assert torch.allclose(shares[:, 0], torch.tensor([0.75, 0.25]))


def by_hand(attn, x, context):
    """Cross-attention by einsum: x (T, C), context (N, D) -> (T, C)."""
    q, k, v = (
        to(y).unflatten(-1, (attn.heads, -1)) for to, y in ((attn.to_q, x), (attn.to_k, context), (attn.to_v, context))
    )
    scores = torch.einsum("thd,nhd->htn", q, k) / math.sqrt(q.shape[-1])
    return attn.to_out[0](torch.einsum("htn,nhd->thd", scores.softmax(-1), v).flatten(1))


def official(attn, x, context, regions, h, w):
    """The official rule by loops: each box's cells attend to its prompt, overlaps are averaged, the rest is kept.

    x (T, C); context (N, D); regions [(context (N, D), (left, top, right, bottom))]
    """
    kept, total, count = by_hand(attn, x, context), torch.zeros_like(x), torch.zeros(h * w, 1)
    for own, (left, top, right, bottom) in regions:
        for row in range(math.ceil(top * h), math.floor(bottom * h)):
            for column in range(math.ceil(left * w), math.floor(right * w)):
                cell = row * w + column
                total[cell] += by_hand(attn, x[cell : cell + 1], own)[0]
                count[cell] += 1
    return torch.where(count > 0, total / count.clamp(min=1), kept)


@torch.no_grad()
def test_every_layer_against_the_official_rule_by_einsum(tiny_base, concept):
    """Also: two pictures a batch, a wide one, a region with a negative prompt of its own and ones without."""
    model = tiny_base.with_concept(concept)
    boxes = [(0, 0, 0.5, 1), (0.25, 0, 1, 0.8), (0.3, 0.5, 0.8, 1)]
    regions = [Region(p, box=box) for p, box in zip(("a <bibi1> <bibi2>", RIGHT, LEFT), boxes, strict=True)]
    regions[1].negative_prompt = LEFT
    c = model.context([GLOBAL, "", *(r.prompt for r in regions), LEFT])  # (6, L, N, D)
    both = torch.cat([c[1].expand(2, -1, -1, -1), c[0].expand(2, -1, -1, -1)])  # 2 negative, 2 positive
    torch.manual_seed(0)
    with regional_attention(model, regions):
        for h, w in ((8, 8), (4, 8)):
            for layer, attn in enumerate(cross_attention(model.unet).values()):
                x = torch.randn(4, h * w, attn.query_dim)
                attn.processor.plan.observe(model.unet, (torch.zeros(4, 4, h, w), 5), {})
                found = attn(x, both)
                for i in (0, 1):
                    own = [(c[5 if r == 1 else 1, layer], box) for r, box in enumerate(boxes)]  # else the picture's
                    wanted = official(attn, x[i], c[1, layer], own, h, w)
                    assert torch.allclose(found[i], wanted, atol=1e-5)
                for i in (2, 3):
                    own = [(c[2 + r, layer], box) for r, box in enumerate(boxes)]
                    assert torch.allclose(found[i], official(attn, x[i], c[0, layer], own, h, w), atol=1e-5)
                attn.processor.plan.cache.clear()


def read_slices(model, prompts, regions, **options):
    """What layer 0 gives for random features (8 x 8 cells), and those features, under regional_attention."""
    x = torch.randn(2, 64, next(iter(cross_attention(model.unet).values())).query_dim)
    c = model.context(prompts)
    with regional_attention(model, regions, **options):
        attn = next(iter(cross_attention(model.unet).values()))
        attn.processor.plan.observe(model.unet, (torch.zeros(2, 4, 8, 8), 5), {})
        return attn, x, c, attn(x, c[:2])


@torch.no_grad()
def test_soft_masks_weights_and_base_ratio_by_einsum(tiny_base):
    torch.manual_seed(1)
    soft = np.random.default_rng(0).uniform(0, 1, (8, 8)).astype(np.float32)
    regions = [Region(LEFT, mask=soft, weight=0.5), Region(RIGHT, box=(0.5, 0, 1, 1))]
    attn, x, c, found = read_slices(tiny_base, ["", GLOBAL, LEFT, RIGHT], regions, base_ratio=0.25)
    a, b = 0.5 * soft.flatten(), np.tile(np.arange(8) >= 4, 8).astype(np.float32)
    total = np.maximum(a + b, 1)
    w = torch.from_numpy(0.75 * np.stack([a, b]) / total)[..., None]  # (2, T, 1)
    g, left, right = (by_hand(attn, x[1], c[i, 0]) for i in (1, 2, 3))
    assert torch.allclose(found[1], (1 - w.sum(0)) * g + w[0] * left + w[1] * right, atol=1e-5)
    assert torch.allclose(found[0], by_hand(attn, x[0], c[0, 0]), atol=1e-5)


def test_base_ratio_lets_the_global_prompt_through(tiny_base):
    region = [Region(LEFT, box=(0, 0, 1, 1))]
    as_weight = [Region(LEFT, box=(0, 0, 1, 1), weight=0.4)]
    half = draw(tiny_base, GLOBAL, region, base_ratio=0.6)
    assert close(half, draw(tiny_base, GLOBAL, as_weight)) and not close(half, draw(tiny_base, GLOBAL, region))
    for bad in (-0.1, 1.0):
        with pytest.raises(ValueError, match="base_ratio"):
            draw(tiny_base, GLOBAL, region, base_ratio=bad)


def test_several_pictures_are_those_of_one(tiny_base):
    regions = [Region(LEFT, box=(0, 0, 0.5, 1)), Region(RIGHT, box=(0.5, 0, 1, 1), start=0.5)]
    options = {"regions": regions, "steps": 2, "progress": False}
    three = tiny_base.sample(GLOBAL, n=3, seed=3, batch=2, **options)
    for i, picture in enumerate(three):
        alone = tiny_base.sample(GLOBAL, seed=3 + i, **options)[0]
        assert close(np.asarray(picture, dtype=float), np.asarray(alone, dtype=float))


def test_start_and_end_are_fractions_of_the_steps(tiny_base, monkeypatch):
    """Which prompt reaches the first layer at each step, seen at its keys."""
    seen = []
    blend = RegionAttention.blend

    def watch(self, attn, query, out, half):
        if self.layer == 0 and half == -1:
            seen.append(self.plan.now)
        return blend(self, attn, query, out, half)

    monkeypatch.setattr(RegionAttention, "blend", watch)
    box = (0, 0, 1, 1)
    regions = [Region(LEFT, box=box, end=0.5), Region(RIGHT, box=box, start=0.5), Region(LEFT, box=box, start=0.75)]
    tiny_base.sample(GLOBAL, n=3, batch=2, steps=4, regions=regions, progress=False)
    assert seen == 2 * [(0,), (0,), (1,), (1, 2)]
    seen.clear()
    tiny_base.sample(GLOBAL, n=2, batch=1, steps=1, regions=regions, progress=False)
    assert seen == [(0,), (0,)]


def test_a_region_that_speaks_first_and_one_that_speaks_then_are_a_change_of_prompt(tiny_base):
    """Against the loop by hand: LEFT for the first two of four steps, RIGHT for the others."""
    box = (0, 0, 1, 1)
    found = draw4(tiny_base, [Region(LEFT, box=box, end=0.5), Region(RIGHT, box=box, start=0.5)])
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler.from_config(tiny_base.scheduler.config, algorithm_type="dpmsolver++")
    scheduler.set_timesteps(4)
    z, c = tiny_base.noise(1, 3), tiny_base.context([LEFT, RIGHT, ""])
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            negative, eps = tiny_base.unet(torch.cat([z, z]), t, torch.stack([c[2], c[i // 2]])).sample.chunk(2)
            z = scheduler.step(negative + tiny_base.guidance * (eps - negative), t, z).prev_sample
    assert close(found, np.asarray(tiny_base.decode(z)[0], dtype=float))
    assert not close(found, draw4(tiny_base, [Region(LEFT, box=box)]))


def draw4(model, regions):
    return np.asarray(model.sample(GLOBAL, seed=3, steps=4, progress=False, regions=regions)[0], dtype=float)


def test_keys_and_values_are_computed_once_a_picture(tiny_base, monkeypatch):
    regions = [Region(LEFT, box=(0, 0, 0.5, 1)), Region(RIGHT, box=(0.5, 0, 1, 1)), Region(LEFT, box=(0, 0, 1, 0.5))]
    attn = list(cross_attention(tiny_base.unet).values())[3]
    prompts = []  # how many contexts go through to_k at a time
    handle = attn.to_k.register_forward_hook(lambda module, args, out: prompts.append(len(args[0])))
    try:
        tiny_base.sample(GLOBAL, steps=5, regions=regions, progress=False)
    finally:
        handle.remove()
    assert sorted(prompts) == [2] * 5 + [3]  # the pair of each step; the three regions, once


@torch.no_grad()
def test_isolation_by_einsum(tiny_base):
    """A cell of one region sees no cell of the other; cells of none and of both see all."""
    regions = [Region(LEFT, box=(0, 0, 0.5, 1)), Region(RIGHT, box=(0.375, 0, 0.875, 1))]
    torch.manual_seed(2)
    x = torch.randn(2, 64, 32)
    before = [m.processor for m in self_attention(tiny_base.unet).values()]
    with regional_attention(tiny_base, regions, isolate=True):
        attn = self_attention(tiny_base.unet)["down_blocks.0.attentions.0.transformer_blocks.0.attn1"]
        attn.processor.plan.observe(tiny_base.unet, (torch.zeros(2, 4, 8, 8), 5), {})
        found = attn(x)
    column = torch.arange(64) % 8
    left, right = column < 4, (column >= 3) & (column < 7)
    split = (left & ~right)[:, None] & (right & ~left)[None]
    q, k, v = (to(x).unflatten(-1, (attn.heads, -1)) for to in (attn.to_q, attn.to_k, attn.to_v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(split | split.T, -math.inf)
    wanted = attn.to_out[0](torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).flatten(2))
    assert torch.allclose(found, wanted, atol=1e-5)
    assert all(m.processor is p for m, p in zip(self_attention(tiny_base.unet).values(), before, strict=True))
    pair = [Region(LEFT, box=(0, 0, 0.5, 1)), Region(RIGHT, box=(0.5, 0, 1, 1))]
    assert not close(draw(tiny_base, GLOBAL, pair, isolate=True), draw(tiny_base, GLOBAL, pair))
    one = [Region(LEFT, box=(0, 0, 1, 1))]
    assert close(draw(tiny_base, GLOBAL, one, isolate=True), draw(tiny_base, LEFT))


def test_processors_come_off_also_after_an_error(tiny_base):
    before = [module.processor for module in cross_attention(tiny_base.unet).values()]
    with pytest.raises(RuntimeError, match="stop"), regional_attention(tiny_base, [Region(LEFT, box=(0, 0, 1, 1))]):
        raise RuntimeError("stop")
    after = [module.processor for module in cross_attention(tiny_base.unet).values()]
    assert all(a is b for a, b in zip(before, after, strict=True))


def test_works_in_a_stock_pipeline_and_on_wide_pictures(tiny_base):
    regions = [Region(LEFT, box=(0, 0, 0.5, 1))]
    wide = draw(tiny_base, GLOBAL, regions, size=(64, 128))
    assert wide.shape == (64, 128, 3)
    pipeline = tiny_base.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    embeds = {"prompt_embeds": tiny_base.prompt_embeds(GLOBAL), "negative_prompt_embeds": tiny_base.prompt_embeds("")}
    noise = tiny_base.noise(1, seed=3)
    with regional_attention(tiny_base, regions):
        stock = pipeline(**embeds, latents=noise, num_inference_steps=2, guidance_scale=7.5).images[0]
    assert close(np.asarray(stock, dtype=float), draw(tiny_base, GLOBAL, regions))


def test_steps_are_read_off_the_timesteps_of_a_stock_pipeline(tiny_base):
    """With evenly spaced trailing timesteps that is exact: the same picture as with the number of steps given."""
    from diffusers import DPMSolverMultistepScheduler

    regions = [Region(LEFT, box=(0, 0, 1, 1), end=0.5), Region(RIGHT, box=(0, 0, 1, 1), start=0.5)]
    pipeline = tiny_base.pipeline()
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        tiny_base.scheduler.config, algorithm_type="dpmsolver++", timestep_spacing="trailing"
    )
    pipeline.set_progress_bar_config(disable=True)
    embeds = {"prompt_embeds": tiny_base.prompt_embeds(GLOBAL), "negative_prompt_embeds": tiny_base.prompt_embeds("")}
    pictures = []
    for known in ({"steps": 4}, {}):
        with regional_attention(tiny_base, regions, **known):
            out = pipeline(**embeds, latents=tiny_base.noise(1, 3), num_inference_steps=4, output_type="np")
        pictures.append(out.images[0])
    assert np.array_equal(*pictures)


def test_an_odd_batch_says_guided_false(tiny_base):
    with regional_attention(tiny_base, [Region(LEFT, box=(0, 0, 1, 1))]):
        with pytest.raises(ValueError, match="guided=False"), torch.no_grad():
            tiny_base.unet(torch.zeros(1, 4, 8, 8), 5, tiny_base.context(GLOBAL))


def test_masks_from_files(tmp_path):
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[:10, 20:] = 255
    grey, strokes, deep = tmp_path / "grey.png", tmp_path / "strokes.png", tmp_path / "deep.png"
    Image.fromarray(mask).save(grey)
    ink = Image.new("RGBA", (40, 30), (0, 0, 0, 0))  # black strokes on a transparent ground, as a canvas saves them
    ink.paste((0, 0, 0, 255), (20, 0, 40, 10))
    ink.save(strokes)
    Image.fromarray(mask.astype(np.uint16) * 257).save(deep)
    for file in (grey, str(strokes), deep):
        region = Region("x", mask=file)
        assert np.array_equal(region.mask, mask / 255) and region.bounds == (0.5, 0, 1, 1 / 3)
    with pytest.raises(FileNotFoundError, match="nothing.png"):
        Region("x", mask=tmp_path / "nothing.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="PNG"):
        Region("x", mask=tmp_path / "text.png")


def test_the_official_syntax_is_read_and_never_evaluated():
    text = "[a <hina1> <hina2>, in a, red dress]-*-[low, bad]-*-[3, 43, 512, 231]|[a dog]-*-[]-*-[]|"
    one, two = parse_regions(text, height=512, width=1024)
    assert (one.prompt, one.negative_prompt) == ("a <hina1> <hina2>, in a, red dress", "low, bad")
    assert one.box == (43 / 1024, 3 / 512, 231 / 1024, 1)
    assert (two.prompt, two.negative_prompt, two.box) == ("a dog", "", (0, 0, 1, 1))
    assert parse_regions("", 512, 512) == []
    for text, height in ((None, 512), ("[a]-*-[]-*-[0, 0, 1, 1]", 0)):
        with pytest.raises(ValueError, match="must be a text, for a picture of at least one pixel"):
            parse_regions(text, height, 512)
    for bad in (
        "[a]-*-[b]-*-[__import__('os').getpid(), 0, 1, 1]",
        "[a]-*-[b]-*-[1, 2, 3]",
        "[a]-*-[b]",
    ):
        with pytest.raises(ValueError, match="region"):
            parse_regions(bad, 512, 512)
    for box in ("0, 0, 600, 512", "5, 0, 5, 9", "0, -1, 9, 9", "nan, 0, 1, 1"):  # in the words it was written in
        with pytest.raises(ValueError, match=rf"the box \[{box}\]: give .* 0 <= y1 < y2 <= 512 .* pixels of this"):
            parse_regions(f"[a]-*-[b]-*-[{box}]", 512, 512)


@pytest.mark.parametrize("wrong", [{"prompt": "a cat", "box": (0, 0, 1, 1)}, "a cat", (0, 0, 1, 1), None, 3])
def test_what_is_no_region_is_told_so(tiny_base, wrong):
    region = Region("a cat", box=(0, 0, 1, 1))
    for regions in ([wrong], [region, wrong]):
        with pytest.raises(TypeError, match=r" is no Region: write Region\("), regional_attention(tiny_base, regions):
            pass
    for regions in (region, "a cat", {"a": region}, 3):
        with pytest.raises(TypeError, match=r"give a list, regions=\[Region"):
            tiny_base.sample("a", steps=1, regions=regions)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": None},
        {"prompt": "x", "negative_prompt": 3},
        {"prompt": "x", "weight": "1"},
        {"prompt": "x", "end": None},
    ],
)
def test_fields_of_another_type_are_named(fields):
    with pytest.raises(TypeError, match="(prompt.*region|region.*(weight|end)).*: give a (text|number)"):
        Region(**fields, box=(0, 0, 1, 1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("box", (0, 0, math.nan, 1)),
        ("box", (0, 0, 3, 1)),
        ("box", None),
        ("mask", np.full((8, 8), np.nan)),
        ("mask", "nowhere.png"),
        ("weight", math.nan),
        ("start", 1),
        ("prompt", None),
    ],
)
def test_what_is_put_into_a_region_later_is_checked_when_it_is_used(tiny_base, field, value):
    region = Region("a cat", mask=np.ones((8, 8))) if field == "mask" else Region("a cat", box=(0, 0, 1, 1))
    setattr(region, field, value)
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match="region"):
        tiny_base.sample("a", steps=1, regions=[region], progress=False)


def test_a_mask_that_is_put_into_a_region_later_is_read(tiny_base):
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 255
    later, soft = Region("a cat", mask=np.ones((8, 8))), np.linspace(0.1, 0.9, 64, dtype=np.float32).reshape(8, 8)
    later.mask = half
    assert close(draw(tiny_base, "a dog", [later]), draw(tiny_base, "a dog", [Region("a cat", mask=half)]))
    checked = Region("a cat", mask=soft)
    draw(tiny_base, "a dog", [checked])
    assert np.array_equal(checked.mask, soft)


def test_masks_on_a_network_s_way_and_long_prompts():
    mask = torch.eye(4).requires_grad_()
    assert np.array_equal(Region("x", mask=mask).mask, np.eye(4))
    with pytest.raises(ValueError) as error:
        Region("a very long prompt " * 1000, mask=np.zeros((4, 4)))
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"box": (0, 0, 1, 1), "mask": np.ones((4, 4))},
        {"box": (0, 0.5, 1, 0.5)},
        {"box": (0, 0, 64, 1)},
        {"mask": np.zeros((4, 4))},
        {"mask": np.ones((4, 4, 3))},
        {"mask": np.full((4, 4), 7.0)},
        {"mask": np.array([["a"]])},
        {"box": (0, 0, 1)},
        {"box": (0, 0, math.nan, 1)},
        {"box": (0, 0, 1, 1), "weight": 0},
        {"box": (0, 0, 1, 1), "weight": math.inf},
        {"box": (0, 0, 1, 1), "start": 0.5, "end": 0.5},
        {"box": (0, 0, 1, 1), "end": 1.5},
        {"box": (0, 0, 1, 1), "feather": -0.1},
    ],
)
def test_bad_regions_say_what_to_do(bad):
    with pytest.raises(ValueError, match="region 'x'"):
        Region("x", **bad)


@torch.no_grad()
def test_the_official_way_of_the_benchmark_predicts_the_same_noise(tiny_base):
    """The whole U-Net, two pictures with guidance; otherwise the benchmark would compare different things."""
    z, t, side = torch.randn(2, 4, 16, 16).repeat(2, 1, 1, 1), 500, 16
    pair = tiny_base.context(["", "", GLOBAL, GLOBAL])
    with regional_attention(tiny_base, bench_regions.REGIONS):
        ours = tiny_base.unet(z, t, pair).sample
    with bench_regions.official_attention(tiny_base, bench_regions.REGIONS, (side, side)):
        theirs = tiny_base.unet(z, t, pair).sample
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, tiny_base.unet(z, t, pair).sample, atol=1e-2)
