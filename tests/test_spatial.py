"""Spatial conditions: drawn conditions, adapters and ControlNets in `sample` and in stock pipelines, with regions."""

import json
import math
import warnings
from dataclasses import asdict

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    T2IAdapter,
)
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from PIL import Image

from mixofshow_lite import load_base
from mixofshow_lite.attention import cross_attention
from mixofshow_lite.engine import spatial
from mixofshow_lite.engine.regional import Region, regional_attention
from mixofshow_lite.engine.spatial import load_adapter, spatial_control
from mixofshow_lite.pocket import conditions, world
from mixofshow_lite.pocket.train import adapters, data

GLOBAL, LEFT, RIGHT = "two on the beach", "a red cat", "a blue dog in the forest"
REGIONS = [Region(LEFT, box=(0, 0, 0.5, 1)), Region(RIGHT, box=(0.5, 0, 1, 1), negative_prompt=LEFT)]
PICTURE = conditions.keypose_layout(REGIONS, size=64)


@pytest.fixture(scope="module")
def adapter(tiny_base):
    """A random T2I-Adapter that is strong enough to be seen."""
    torch.manual_seed(1)
    made = T2IAdapter(3, list(tiny_base.unet.config.block_out_channels), 1, tiny_base.factor)
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(3)
    return made.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def controlnet(tiny_base):
    """A random ControlNet (as made from a U-Net its outputs are zero)."""
    torch.manual_seed(2)
    made = ControlNetModel.from_unet(tiny_base.unet)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.startswith(
                ("controlnet_down_blocks", "controlnet_mid_block", "controlnet_cond_embedding.conv_out")
            ):
                weight.copy_(0.3 * torch.randn_like(weight))
    return made.requires_grad_(False).eval()


def draw(model, prompt=GLOBAL, **options):
    picture = model.sample(prompt, seed=3, steps=2, progress=False, **options)[0]
    return np.asarray(picture, dtype=float)


def stock(kind, model, prompt=GLOBAL, negative="", **options):
    """A picture of a stock pipeline on the model's own networks, comparable to `draw`."""
    parts = {name: part for name, part in model.pipeline().components.items() if name != "image_encoder"}
    parts |= {name: options.pop(name) for name in ("adapter", "controlnet") if name in options}
    pipeline = kind(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    embeds = {"prompt_embeds": model.prompt_embeds(prompt), "negative_prompt_embeds": model.prompt_embeds(negative)}
    out = pipeline(**embeds, **options, latents=model.noise(1, 3), num_inference_steps=2, guidance_scale=7.5)
    return np.asarray(out.images[0], dtype=float)


def close(a, b):
    return np.abs(a - b).max() <= 1  # pictures are rounded to bytes


def test_adapter_and_regions_as_in_the_stock_adapter_pipeline(tiny_base, concept, adapter):
    """Our sampler against diffusers' own: with regions, without, and the identity of a full-picture region."""
    model = tiny_base.with_concept(concept)
    kind, options = StableDiffusionAdapterPipeline, {"image": PICTURE, "adapter_conditioning_scale": 0.8}
    plain = stock(kind, model, adapter=adapter, **options)
    assert close(draw(model, spatial=(adapter, PICTURE, 0.8)), plain)
    regions = [Region("a <bibi1> <bibi2>", box=(0, 0, 0.5, 1)), REGIONS[1]]
    with regional_attention(model, regions):
        both = stock(kind, model, adapter=adapter, **options)
    assert close(draw(model, spatial=(adapter, PICTURE, 0.8), regions=regions), both)
    with regional_attention(model, [Region(LEFT, box=(0, 0, 1, 1))]):
        full = stock(kind, model, adapter=adapter, **options)
    assert close(full, stock(kind, model, LEFT, adapter=adapter, **options))
    assert not close(both, plain) and not close(full, plain) and not close(plain, draw(model))


def test_controlnet_and_regions_as_in_the_stock_controlnet_pipeline(tiny_base, concept, controlnet):
    model = tiny_base.with_concept(concept)
    kind, options = StableDiffusionControlNetPipeline, {"image": PICTURE, "controlnet_conditioning_scale": 0.7}
    with regional_attention(model, [], controlnets=[controlnet]):
        plain = stock(kind, model, controlnet=controlnet, **options)
    with spatial.layerwise_controlnet(model, controlnet):
        assert close(stock(kind, model, controlnet=controlnet, **options), plain)
    assert close(draw(model, spatial=(controlnet, PICTURE, 0.7)), plain)
    regions = [Region("a <bibi1> <bibi2>", box=(0, 0, 0.5, 1), end=0.5), REGIONS[1]]
    with regional_attention(model, regions, controlnets=[controlnet], steps=2):
        both = stock(kind, model, controlnet=controlnet, **options)
    assert close(draw(model, spatial=(controlnet, PICTURE, 0.7), regions=regions), both)
    with regional_attention(model, [Region(LEFT, box=(0, 0, 1, 1))], controlnets=[controlnet]):
        full = stock(kind, model, controlnet=controlnet, **options)
    with spatial.layerwise_controlnet(model, controlnet):
        assert close(full, stock(kind, model, LEFT, controlnet=controlnet, **options))
    assert not close(both, plain) and not close(full, plain) and not close(plain, draw(model))


def test_a_controlnet_with_its_own_processors_and_layerwise_prompts_is_told(tiny_base, concept, controlnet):
    """Its processors would look at the tokens of all layers at once, in a stock pipeline without regions too."""
    model = tiny_base.with_concept(concept)
    kind, options = StableDiffusionControlNetPipeline, {"image": PICTURE}
    with pytest.warns(UserWarning, match="not known to read layer-wise prompts.*layerwise_controlnet") as caught:
        stock(kind, model, controlnet=controlnet, **options)
    assert sum("layerwise_controlnet" in str(w.message) for w in caught) == 1  # once, not at every step
    model = tiny_base.with_concept(concept)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with spatial.layerwise_controlnet(model, controlnet):
            stock(kind, model, controlnet=controlnet, **options)
        with regional_attention(model, REGIONS, controlnets=[controlnet]):
            stock(kind, model, controlnet=controlnet, **options)
        draw(model, spatial=(controlnet, PICTURE))
    assert model.unet.layerwise_guard.controlled == 0


def test_a_controlnet_whose_processors_are_replaced_meanwhile_is_an_error(tiny_base, controlnet):
    before = [module.processor for module in cross_attention(controlnet).values()]
    crossed = pytest.raises(RuntimeError, match="another processor than was put on")  # at the end, if nobody has called
    with crossed, spatial.layerwise_controlnet(tiny_base, controlnet):
        controlnet.set_attn_processor(AttnProcessor2_0())
        with pytest.raises(ValueError, match="The ControlNet's cross-attention has other processors"):
            stock(StableDiffusionControlNetPipeline, tiny_base, controlnet=controlnet, image=PICTURE)
    assert [module.processor for module in cross_attention(controlnet).values()] == before
    list(cross_attention(controlnet).values())[0].set_processor(AttnProcessor())  # others before are no harm
    plain = draw(tiny_base, spatial=(controlnet, PICTURE))
    list(cross_attention(controlnet).values())[0].set_processor(before[0])
    assert close(plain, draw(tiny_base, spatial=(controlnet, PICTURE)))


def test_a_controlnet_in_guess_mode_gets_the_positive_half(tiny_base, controlnet):
    """There its batch is the positive half alone; a full-picture region is still the plain prompt."""
    kind, options = StableDiffusionControlNetPipeline, {"image": PICTURE, "guess_mode": True}
    with regional_attention(tiny_base, [Region(LEFT, box=(0, 0, 1, 1))], controlnets=[controlnet]):
        full = stock(kind, tiny_base, controlnet=controlnet, **options)
    with spatial.layerwise_controlnet(tiny_base, controlnet):
        assert close(full, stock(kind, tiny_base, LEFT, controlnet=controlnet, **options))


def test_scale_zero_changes_nothing_and_conditions_add_up(tiny_base, adapter, controlnet):
    plain = draw(tiny_base)
    assert np.array_equal(draw(tiny_base, spatial=(adapter, PICTURE, 0)), plain)
    assert close(draw(tiny_base, spatial=(controlnet, PICTURE, 0)), plain)
    whole = draw(tiny_base, spatial=(adapter, PICTURE))
    assert close(draw(tiny_base, spatial=[(adapter, PICTURE, 0.25), (adapter, PICTURE, 0.75)]), whole)
    twice = draw(tiny_base, spatial=[(controlnet, PICTURE, 0.5), (controlnet, PICTURE, 0.5)])
    assert close(twice, draw(tiny_base, spatial=(controlnet, PICTURE, 1.0)))
    mixed = draw(tiny_base, spatial=[(adapter, PICTURE), (controlnet, PICTURE)])
    assert not close(mixed, whole) and not close(mixed, twice)


@torch.no_grad()
def test_weights_of_boxes_by_hand(tiny_base, adapter, controlnet):
    """As the official command line's region_keypose_adaptor_weight: ceil(start) to floor(end) on every feature map."""
    z, t, c = torch.randn(1, 4, 8, 8), 500, tiny_base.context([GLOBAL])
    pixels = torch.from_numpy(np.asarray(PICTURE, dtype=np.float32) / 255).permute(2, 0, 1)[None]
    scale = [((0, 0, 0.5, 1), 0.2), ((0.25, 0, 0.5, 1), 2), 0.7]

    def weigh(f):
        h, w = f.shape[-2:]
        weights = torch.full((h, w), 0.7)
        weights[:, : max(1, w // 2) if w > 1 else 0] = 0.2
        weights[:, w // 4 : w // 2] = 2
        return weights * f

    with spatial_control(tiny_base, (adapter, PICTURE, scale)):
        found = tiny_base.unet(z, t, c).sample
    features = [weigh(f) for f in adapter(pixels) if f.shape[-1] >= 4]
    small = [spatial.read_scale(scale).on(f) for f in adapter(pixels) if f.shape[-1] < 4]  # less than a cell a box
    wanted = tiny_base.unet(z, t, c, down_intrablock_additional_residuals=features + small).sample
    assert torch.allclose(found, wanted, atol=1e-5)
    with spatial_control(tiny_base, (controlnet, PICTURE, [((0, 0, 0.5, 1), 0.7), 0.7])):
        even = tiny_base.unet(z, t, c).sample
    with spatial_control(tiny_base, (controlnet, PICTURE, 0.7)):
        assert torch.allclose(even, tiny_base.unet(z, t, c).sample, atol=1e-5)


@torch.no_grad()
def test_adapter_features_by_hand_on_wide_pictures_and_batches(tiny_base, adapter):
    """The hooked U-Net against the residuals passed by hand; the picture is stretched over 64 x 128 pixels."""
    z, t, c = torch.randn(3, 4, 8, 16), 500, tiny_base.context([GLOBAL, LEFT, RIGHT])
    pixels = np.asarray(PICTURE.resize((128, 64), Image.Resampling.LANCZOS), dtype=np.float32) / 255
    features = adapter(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    by_hand = [0.5 * f.repeat(3, 1, 1, 1) for f in features]
    wanted = tiny_base.unet(z, t, c, down_intrablock_additional_residuals=by_hand).sample
    with spatial_control(tiny_base, (adapter, PICTURE, 0.5)):
        found = [tiny_base.unet(z, t, c).sample for _ in range(2)]  # the second from the cache
    assert torch.allclose(found[0], wanted, atol=1e-5) and torch.equal(*found)
    assert not torch.allclose(tiny_base.unet(z, t, c).sample, wanted, atol=1e-2)


def test_everything_comes_off_after_an_error(tiny_base, controlnet):
    unet, nets = tiny_base.unet, (tiny_base.unet, controlnet)
    before = [m.processor for net in nets for m in cross_attention(net).values()]
    with pytest.raises(ValueError, match="base_ratio"):
        draw(tiny_base, regions=REGIONS, spatial=(controlnet, PICTURE), base_ratio=2)

    def stop(state):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        draw(tiny_base, regions=REGIONS, spatial=(controlnet, PICTURE), callback=stop)
    assert list(unet._forward_pre_hooks.values()) == [unet.layerwise_guard] and not controlnet._forward_pre_hooks
    after = [m.processor for net in nets for m in cross_attention(net).values()]
    assert all(a is b for a, b in zip(after, before, strict=True))


def test_bad_conditions_say_what_to_do(tiny_base, adapter):
    other = T2IAdapter(3, [8, 8, 8, 8], 1, 8)
    with pytest.raises(ValueError, match="another|widths"):
        draw(tiny_base, spatial=(other, PICTURE))
    with pytest.raises(ValueError, match="channels"):
        draw(tiny_base, spatial=(T2IAdapter(4, [32] * 4, 1, 8), PICTURE))
    for bad in (
        (adapter,),
        (PICTURE, adapter),
        (adapter, 3),
        (adapter, PICTURE, math.nan),
        (adapter, PICTURE, "1"),
        "a",
    ):
        with pytest.raises(ValueError, match="spatial condition"):
            draw(tiny_base, spatial=bad)
    with pytest.raises(FileNotFoundError, match="pose.png does not exist"):
        draw(tiny_base, spatial=(adapter, "pose.png"))


def test_a_condition_may_be_a_file_and_stands_upright(adapter, tmp_path):
    PICTURE.save(tmp_path / "pose.png")
    ((_, found, scale),) = spatial.conditions((adapter, tmp_path / "pose.png"))
    assert scale.weight == 1 and np.array_equal(np.asarray(found), np.asarray(PICTURE))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32)).save(tmp_path / "photo.jpg", exif=exif)
    with Image.open(tmp_path / "photo.jpg") as photo:
        assert spatial.conditions([(adapter, photo, 0.5)])[0][1].size == (32, 64)


def test_adapters_load_by_folder_and_name(tmp_path, adapter, controlnet, monkeypatch):
    adapter.save_pretrained(tmp_path / "pocket" / "adapters" / "sketch")
    controlnet.save_pretrained(tmp_path / "net")
    found = load_adapter(tmp_path / "net", device="cpu")
    assert isinstance(found, ControlNetModel)
    monkeypatch.setattr("mixofshow_lite.files.resources.pocket_dir", lambda: tmp_path / "pocket")
    loaded = load_adapter("pocket-sketch", device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), adapter.parameters(), strict=True))
    with pytest.raises(FileNotFoundError, match="adapters keypose"):
        load_adapter("pocket-keypose")
    with pytest.raises(FileNotFoundError, match="pocket-keypose"):
        load_adapter("keypose")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no adapter"):
        load_adapter(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(ValueError, match="UNet2DConditionModel"):
        load_adapter(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text('{"_class_name": "T2IAdapter"}')
    with pytest.raises(ValueError, match="weights"):
        load_adapter(tmp_path / "empty", device="cpu")


# ---- drawn conditions ----


def test_drawn_conditions_are_the_worlds_own():
    picture = world.sample(np.random.default_rng(5), n_subjects=2)
    render = world.render(picture, 128)
    assert np.array_equal(conditions.draw_condition("sketch", picture, 128), render.sketch)
    pose = np.asarray(conditions.draw_condition("keypose", picture, 128))
    again = np.asarray(conditions.draw_keypose(render.keypoints, 128))
    assert np.array_equal(pose, again)
    for figure in render.keypoints:  # a dot at every joint, black far from all
        for x, y in figure.values():
            if 0.02 < x < 0.98 and 0.02 < y < 0.98:
                assert pose[int(128 * y), int(128 * x)].max() > 100
    far = np.ones((128, 128), dtype=bool)
    for figure in render.keypoints:
        xs, ys = zip(*figure.values(), strict=True)
        low, high = (max(0, int(128 * min(ys)) - 5), int(128 * max(ys)) + 6)
        far[low:high, max(0, int(128 * min(xs)) - 5) : int(128 * max(xs)) + 6] = False
    assert not pose[far].any()
    with pytest.raises(ValueError, match="keypose or sketch"):
        conditions.draw_condition("depth", picture)


@pytest.mark.parametrize("size", [128, 256])
def test_layouts_stay_in_their_boxes(size):
    boxes = [(0.0, 0.25, 0.375, 1), (0.5, 0.5, 1, 0.75)]
    regions = [Region("a red rabbit", box=boxes[0]), Region("a blue car", box=boxes[1])]
    people = [Region("a red rabbit", box=boxes[0]), Region("a robot", box=boxes[1])]  # an object's frame may be larger
    sketch = np.asarray(conditions.sketch_layout(regions, size)) < 128
    pose = np.asarray(conditions.keypose_layout(people, size)).any(axis=2)
    margin = 3  # pixels of antialiasing and of the dots' radius
    for drawn in (sketch, pose):
        allowed = np.zeros_like(drawn)
        for left, top, right, bottom in boxes:
            box = drawn[int(size * top) : int(size * bottom), int(size * left) : int(size * right)]
            assert box.sum() > 20
            y0, x0 = max(0, int(size * top) - margin), max(0, int(size * left) - margin)
            allowed[y0 : int(size * bottom) + margin, x0 : int(size * right) + margin] = True
        assert not (drawn & ~allowed).any()
    rabbit = sketch[:, : int(0.4 * size)]  # as large as the box allows: it touches top and bottom, or both sides
    ys, xs = np.nonzero(rabbit)
    tall = (ys.max() + 1 - ys.min()) / size > 0.75 - 0.06
    wide = (xs.max() + 1 - xs.min()) / size > 0.375 - 0.06
    assert tall or wide


def test_layouts_take_masks_classes_and_people():
    mask = np.zeros((40, 40))
    mask[10:40, 20:40] = 1
    region = Region("a <bibi1> <bibi2>", mask=mask)
    with pytest.raises(ValueError, match="classes"):
        conditions.sketch_layout([region])
    with pytest.raises(ValueError, match="2 classes for 1"):
        conditions.sketch_layout([region], classes=["cat", "cat"])
    drawn = np.asarray(conditions.sketch_layout([region], classes=["rabbit"]))
    as_box = Region("a rabbit", box=(0.5, 0.25, 1, 1))
    assert np.array_equal(drawn, np.asarray(conditions.sketch_layout([as_box])))
    person = np.asarray(conditions.keypose_layout([as_box], 512, person=True))
    assert person[:, :250].max() == 0 and (person[:, 256:].max(axis=(0, 1)) > 200).all()
    assert np.asarray(conditions.sketch_layout([], 32)).min() == 255


# ---- training the pocket adapters ----


def test_cached_parameters_draw_their_picture_again():
    picture, _ = data.draw(seed=3, index=4, wide=True)
    again = adapters.picture_of(json.loads(json.dumps(asdict(picture))))
    assert np.array_equal(world.draw_image(again), world.draw_image(picture))


@pytest.mark.parametrize("kind", ["keypose", "sketch"])
def test_training_two_steps_and_going_on(tiny_folder, tmp_path, kind, capsys):
    """A smoke test: the U-Net stays, the adapter moves, a second call goes on, what is written loads and draws."""
    options = [kind, "--base", str(tiny_folder), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    options += ["--pictures", "6", "--batch", "2", "--preview-steps", "1", "--minutes", "60"]
    adapters.main([*options, "--steps", "1"])
    state = torch.load(tmp_path / "work" / f"adapter_{kind}.pt", weights_only=True)
    torch.manual_seed(0)
    fresh = adapters.build_adapter(load_base(tiny_folder, device="cpu"), kind).state_dict()
    assert state["step"] == 1 and fresh.keys() == state["adapter"].keys()
    assert any(not torch.equal(fresh[name], state["adapter"][name]) for name in fresh)
    adapters.main([*options, "--steps", "2"])
    assert "resumed at step 1" in capsys.readouterr().out
    assert torch.load(tmp_path / "work" / f"adapter_{kind}.pt", weights_only=True)["step"] == 2
    loaded = load_adapter(tmp_path / "out" / "adapters" / kind, device="cpu")
    model = load_base(tiny_folder, device="cpu")
    assert not close(draw(model, spatial=(loaded, PICTURE, 3.0)), draw(model))
    assert f"adapters/{kind}/diffusion_pytorch_model.safetensors" in (tmp_path / "out" / "SHA256SUMS").read_text()
    assert (tmp_path / "work" / f"adapter_{kind}.png").is_file()


def test_the_loss_with_an_adapter_is_the_loss_with_its_residuals(tiny_base, adapter):
    """Eq. 1 with features, by hand at one timestep: the guided U-Net is the U-Net with residuals."""
    z, t, c = torch.randn(2, 4, 8, 8), torch.tensor([7, 900]), tiny_base.context([LEFT, RIGHT])[:, 0]
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found = adapters.guided_unet(tiny_base.unet, adapter, x)(z, t, c).sample
        wanted = tiny_base.unet(z, t, c, down_intrablock_additional_residuals=adapter(x)).sample
        plain = adapters.guided_unet(tiny_base.unet, adapter, None)(z, t, c).sample
        bare = tiny_base.unet(z, t, c).sample
    assert torch.equal(found, wanted) and torch.equal(plain, bare)
    assert not torch.allclose(found, plain, atol=1e-2)


@pytest.mark.parametrize("kind", ["keypose", "sketch"])
def test_the_shipped_adapters_put_a_subject_where_they_are_told(kind):
    """The same prompt and noise, the condition on the left and on the right: the red cat goes with it."""
    model, where = load_base("pocket", device="cpu"), []
    adapter = load_adapter(f"pocket-{kind}", device="cpu")
    draw_layout = {"keypose": conditions.keypose_layout, "sketch": conditions.sketch_layout}[kind]
    for left in (0.05, 0.45):
        picture = draw_layout([Region("a red cat", box=(left, 0.3, left + 0.5, 0.95))])
        drawn = model.sample(
            "a red cat in the snow", seed=5, steps=10, spatial=(adapter, picture, 1.0), progress=False
        )[0]
        red, green, blue = np.moveaxis(np.asarray(drawn, dtype=float), -1, 0)
        body = (red > 1.5 * np.maximum(green, blue)).sum(0)  # red pixels of every column
        where.append((body * np.arange(len(body))).sum() / body.sum() / len(body))
    assert where[0] < 0.4 and where[1] > 0.6
