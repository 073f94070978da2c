"""Section 3.4: region-aware cross-attention against its identities and a second computation by einsum."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from mixofshow_lite.layerwise import cross_attention
from mixofshow_lite.regional import Region, region_weights, regional_attention

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


@pytest.mark.parametrize(
    "box", [(0.25, 0, 1, 0.5), (0.0, 0.25, 0.5, 1), (0.33, 0.1, 0.92, 0.47), (0.1, 0.4, 0.9, 0.45)]
)
@pytest.mark.parametrize("size", [(8, 8), (4, 4), (2, 2), (6, 10)])
def test_boxes_round_as_the_official_code_and_masks_like_boxes(box, size):
    (left, top, right, bottom), (h, w) = box, size
    cover = Region("x", box=box).cover(h, w)
    rows, columns = range(math.ceil(top * h), math.floor(bottom * h)), range(math.ceil(left * w), math.floor(right * w))
    assert cover.sum() >= 1
    if len(rows) and len(columns):
        wanted = torch.zeros(h, w)
        wanted[rows.start : rows.stop, columns.start : columns.stop] = 1
        assert torch.equal(cover, wanted)
    mask = np.zeros((300, 300), dtype=np.uint8)
    mask[round(300 * top) : round(300 * bottom), round(300 * left) : round(300 * right)] = 255
    exact = tuple(round(300 * side) / 300 for side in box)
    assert torch.equal(Region("x", mask=mask).cover(h, w), Region("x", box=exact).cover(h, w))
    assert torch.equal(Region("x", mask=Image.fromarray(mask)).cover(h, w), Region("x", mask=mask > 0).cover(h, w))


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


@torch.no_grad()
def test_every_layer_against_einsum(tiny_base, concept):
    model = tiny_base.with_concept(concept)
    regions = [
        Region("a <bibi1> <bibi2>", box=(0, 0, 0.5, 1)),
        Region(RIGHT, box=(0.25, 0, 1, 1), negative_prompt=LEFT),
    ]
    contexts = model.context([GLOBAL, "", *(r.prompt for r in regions), LEFT])  # (5, L, N, D)
    both = torch.stack([contexts[1], contexts[0]])  # negative, positive
    torch.manual_seed(0)
    with regional_attention(model, regions):
        for layer, attn in enumerate(cross_attention(model.unet).values()):
            for side in (8, 4):
                x = torch.randn(2, side * side, attn.query_dim)
                w = region_weights(regions, side, side)  # (2, T)
                g, n, r0, r1, n1 = contexts[:, layer]
                positive = (1 - w.sum(0))[:, None] * by_hand(attn, x[1], g)
                positive += w[0][:, None] * by_hand(attn, x[1], r0) + w[1][:, None] * by_hand(attn, x[1], r1)
                negative = (1 - w[1])[:, None] * by_hand(attn, x[0], n) + w[1][:, None] * by_hand(attn, x[0], n1)
                assert torch.allclose(attn(x, both), torch.stack([negative, positive]), atol=1e-5)


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
        {"box": (0, 0, 1, 1), "weight": 0},
    ],
)
def test_bad_regions_say_what_to_do(bad):
    with pytest.raises(ValueError, match="region 'x'"):
        Region("x", **bad)
