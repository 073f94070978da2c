"""Layer-wise words and regions live in attention processors: whoever replaces or misuses these is told so."""

import warnings

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from tiny import make_concept

import mixofshow_lite as mos
from mixofshow_lite.attention import cross_attention, stored_attention
from mixofshow_lite.engine.regional import Plan, regional_attention

WHOLE = (0, 0, 1, 1)
REPLACE = {
    "slicing": lambda pipeline: pipeline.enable_attention_slicing(),
    "set_attn_processor": lambda pipeline: pipeline.unet.set_attn_processor(AttnProcessor2_0()),
    "one layer": lambda pipeline: list(cross_attention(pipeline.unet).values())[-1].set_processor(AttnProcessor2_0()),
    "fuse_qkv": lambda pipeline: pipeline.unet.fuse_qkv_projections(),
}
replaced = pytest.mark.parametrize("replace", REPLACE.values(), ids=REPLACE)


def quiet(model):
    """A stock pipeline on a model's own networks, and how it is called here: two steps, 64 px."""
    pipeline = model.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np"}


def embeds(model, prompt):
    return {"prompt_embeds": model.prompt_embeds(prompt), "negative_prompt_embeds": model.prompt_embeds("")}


@replaced
def test_processors_replaced_before_are_refused_wherever_words_are_layer_wise(tiny_base, replace):
    model = tiny_base.with_concept(make_concept(tiny_base))
    pipeline, options = quiet(model)
    early = embeds(model, "a <bibi1>")
    replace(pipeline)
    with pytest.raises(ValueError, match=r"processors on.*model\.copy\(\)"):
        model.sample("a <bibi1>", steps=1, progress=False)
    with pytest.raises(ValueError, match="processors on"):
        model.prompt_embeds("a <bibi1>")
    with pytest.raises(ValueError, match="processors on"):
        pipeline(**early, **options)
    with pytest.raises(ValueError, match="processors on"), regional_attention(model, [mos.Region("a", box=WHOLE)]):
        pass
    assert np.isfinite(pipeline("a red cat", **options).images).all()  # a plain prompt is the same for all layers


def test_a_copy_has_processors_of_its_own_again(tiny_base):
    model = tiny_base.copy()
    REPLACE["slicing"](model.pipeline())
    again = model.copy().sample("a red cat", steps=1, progress=False)[0]
    assert np.array_equal(again, tiny_base.sample("a red cat", steps=1, progress=False)[0])


@replaced
@pytest.mark.parametrize("isolate", [False, True])
def test_processors_replaced_inside_regions_are_refused(tiny_base, replace, isolate):
    model = tiny_base.copy()
    pipeline, options = quiet(model)
    before = [module.processor for module in cross_attention(model.unet).values()]
    regions = regional_attention(model, [mos.Region("a red cat", box=WHOLE)], isolate=isolate)
    with pytest.raises(RuntimeError, match="another processor"), regions:
        replace(pipeline)
        with pytest.raises(ValueError, match="replaced while regions are on"):
            pipeline("a photo", **options)
    assert [module.processor for module in cross_attention(model.unet).values()] == before


def test_flattened_words_need_the_engine_s_processors(tiny_base):
    """The paper's store reads (B, L, N, D), as `sample` passes it; a pipeline's (B, L * N, D) it would misread."""
    model = tiny_base.with_concept(make_concept(tiny_base))
    pipeline, options = quiet(model)
    early = embeds(model, "a <bibi1> <bibi2>")
    with stored_attention(model.unet):
        model.sample("a <bibi1> <bibi2>", steps=1, progress=False)
        with pytest.raises(ValueError, match="processors on"):
            pipeline(**early, **options)
        with pytest.raises(ValueError, match="a recording"), regional_attention(model, [mos.Region("a", box=WHOLE)]):
            pass


def test_a_copy_made_inside_regions_has_none(tiny_base):
    plain = tiny_base.sample("a blue dog", steps=1, progress=False)[0]
    with regional_attention(tiny_base, [mos.Region("a red cat", box=WHOLE)]):
        tiny_base.sample("a blue dog", steps=1, progress=False)
        inside = tiny_base.copy().sample("a blue dog", steps=1, progress=False)[0]
    assert np.array_equal(inside, plain)


def test_regions_inside_regions_are_refused(tiny_base):
    region = [mos.Region("a red cat", box=WHOLE)]
    with pytest.raises(ValueError, match="on this model already"), regional_attention(tiny_base, region):
        tiny_base.sample("a red cat", regions=region, steps=1, progress=False)


def test_a_batch_of_single_pictures_is_no_pair(tiny_base):
    pipeline, options = quiet(tiny_base)
    pair = options | {"num_images_per_prompt": 2, "guidance_scale": 1, "generator": torch.Generator().manual_seed(0)}
    region = [mos.Region("a red cat", box=WHOLE)]
    with pytest.raises(ValueError, match="guided=False"), regional_attention(tiny_base, region):
        pipeline("a photo", **options)  # a pair first
        pipeline("a photo", **pair)
    with regional_attention(tiny_base, region, guided=False):
        found = pipeline("a photo", **pair | {"generator": torch.Generator().manual_seed(0)}).images
    plain = pipeline("a red cat", **pair | {"generator": torch.Generator().manual_seed(0)}).images
    assert np.abs(found - plain).max() < 1 / 255


def test_a_pair_that_is_called_unguided_is_told(tiny_base):
    pipeline, options = quiet(tiny_base)
    region = [mos.Region("a red cat", box=WHOLE)]
    with pytest.warns(UserWarning, match="say guided=True"), regional_attention(tiny_base, region, guided=False):
        pipeline("a photo", **options)


def said(scheduler, region, n, steps, again=1, timesteps=None, **settings):
    """Whether the region speaks at each call of a scheduler's n steps, for `again` pictures; adds to `timesteps`."""
    base = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = getattr(diffusers, scheduler)(**base, **settings)
    scheduler.set_timesteps(n)
    if timesteps is not None:
        timesteps += scheduler.timesteps.tolist()
    plan, found = Plan([region], [[None]], steps, 1000, 0.0), []
    for t in list(scheduler.timesteps) * again:
        plan.observe(None, (torch.zeros(1, 4, 8, 8), t), {})
        found.append(bool(plan.now))
    return found


@pytest.mark.parametrize("steps", [None, 8])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_half_of_the_steps_is_half_of_the_calls(scheduler, steps):
    once = said(scheduler, mos.Region("a", box=WHOLE, end=0.5), 8, steps)
    assert once == sorted(once, reverse=True) and abs(sum(once) - len(once) / 2) <= 1
    assert said(scheduler, mos.Region("a", box=WHOLE, end=0.5), 8, steps, again=3) == 3 * once


@pytest.mark.parametrize(
    ("scheduler", "settings", "steps_help"),
    [
        ("KDPM2DiscreteScheduler", {}, False),
        ("KDPM2AncestralDiscreteScheduler", {}, False),
        ("PNDMScheduler", {"skip_prk_steps": False}, False),
        ("PNDMScheduler", {"skip_prk_steps": True}, True),
    ],
)
@pytest.mark.filterwarnings("ignore")  # diffusers' own, of numpy
def test_schedulers_that_call_between_the_steps(scheduler, settings, steps_help):
    """Right off the timesteps; with a number of steps right as well, or an error, never another half."""
    half, timesteps = mos.Region("a", box=WHOLE, end=0.5), []
    once = said(scheduler, half, 16, None, timesteps=timesteps, **settings)
    assert once == [t >= 499 for t in timesteps]
    if steps_help:
        assert sum(a != b for a, b in zip(said(scheduler, half, 16, 16, **settings), once, strict=True)) <= 1
    else:
        with pytest.raises(ValueError, match="leave steps= out"):
            said(scheduler, half, 16, 16, **settings)


def test_one_step_a_picture_begins_a_picture_each():
    assert said("DDIMScheduler", mos.Region("a", box=WHOLE, end=0.5), 1, 1, again=3) == [True] * 3


def test_a_region_that_is_never_active_is_told(tiny_base):
    regions = [mos.Region("a red cat", box=WHOLE, start=0.2, end=0.4), mos.Region("a dog", box=WHOLE)]
    with pytest.warns(UserWarning, match=r"'a red cat' was never active.*0\.2.*0\.4"):
        tiny_base.sample("a", regions=regions, steps=2, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tiny_base.sample("a", regions=regions, steps=4, progress=False)
        with regional_attention(tiny_base, regions):  # nothing was drawn, nothing is missing
            pass


def test_fewer_steps_than_said_are_told(tiny_base):
    pipeline, options = quiet(tiny_base)
    late = [mos.Region("a red cat", box=WHOLE, end=0.5)]
    with pytest.warns(UserWarning, match="Only 2 of steps=8"), regional_attention(tiny_base, late, steps=8):
        pipeline("a photo", **options)
