"""The canvas without a browser: what it takes in, what it gives back, how it samples and stops."""

import base64
import dataclasses
import io
import json
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from mixofshow_lite.course.widgets import page as canvas_page
from mixofshow_lite.course.widgets import render_regions, sampling, scene
from mixofshow_lite.engine.regional import Region

SQUARE = (256, 256)


class Toy:
    """Draws a grey picture whose level is the seed; `gate` lets a test hold it between two steps."""

    size = (64, 128)

    def __init__(self):
        self.calls, self.gate, self.reached, self.fail = [], None, threading.Event(), None

    def sample(self, prompt, n=1, seed=0, steps=25, negative_prompt="", regions=None, callback=None, **options):
        self.calls.append({"prompt": prompt, "seed": seed, "steps": steps, "regions": regions, **options})
        for step in range(steps):
            if step == 1 and self.gate is not None:
                self.reached.set()
                self.gate.wait(10)
            if self.fail:
                raise self.fail
            callback({"step": step, "t": 0, "latents": [step], "model": self})
        return [Image.new("RGB", self.size[::-1], (seed % 256,) * 3)]

    def decode(self, latents):
        return [Image.new("RGB", self.size[::-1], (latents[0],) * 3) for _ in latents]


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def disc(side):
    y, x = np.mgrid[:side, :side] / side
    return ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.09).astype(np.float32)


# Masks and entries


@pytest.mark.parametrize("shape", [(256, 256), (64, 64), (512, 512), (1024, 100), (3, 7)])
def test_a_mask_of_any_size_keeps_its_area_and_its_colours(shape):
    mask = np.zeros(shape, dtype=np.float32)
    mask[shape[0] // 3 :, : shape[1] // 2] = 1
    back = scene.decode_mask(scene.encode_mask(mask, SQUARE))
    assert back.shape == (256, 256) and set(np.unique(back)) == {0.0, 1.0}
    assert back.mean() == pytest.approx(mask.mean(), abs=0.01)


def test_a_soft_mask_stays_soft_and_a_thin_one_survives():
    ramp = np.tile(np.linspace(0, 1, 512, dtype=np.float32), (512, 1))
    back = scene.decode_mask(scene.encode_mask(ramp, SQUARE))
    np.testing.assert_allclose(back, ramp.reshape(256, 2, 256, 2).mean((1, 3)), atol=2 / 255)
    hair = np.zeros((2048, 2048), dtype=np.float32)
    hair[:, 1000] = 1  # an eighth of a pixel of the canvas
    back = scene.decode_mask(scene.encode_mask(hair, SQUARE))
    assert back.sum() == 256 and back[:, 125].all()


@pytest.mark.parametrize(("size", "pixels"), [((64, 64), (256, 256)), ((64, 128), (256, 128)), ((1, 9000), (256, 1))])
def test_masks_have_the_pictures_shape(size, pixels):
    assert scene.raster(size) == pixels


def test_a_mask_with_alpha_or_a_data_url_is_read():
    grey = (disc(256) * 255).astype(np.uint8)
    rgba = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    for text in (png(rgba), "data:image/png;base64," + png(grey)):
        np.testing.assert_array_equal(scene.decode_mask(text), disc(256))


def test_regions_come_back_as_they_went_in():
    regions = [
        Region("a cat", box=(0.1, 0.2, 0.5, 1.0), negative_prompt="a dog", weight=0.4),
        Region("a hat", mask=disc(256), start=0.2, end=0.8, feather=0.05),
    ]
    entries = scene.from_regions(regions, SQUARE)
    back = scene.to_regions(json.loads(json.dumps(entries)))  # as over the wire
    for one, other in zip(regions, back, strict=True):
        for field in dataclasses.fields(Region):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
    assert scene.clean(entries, SQUARE) == entries, "checking what is clean must not change it"


def test_a_replaced_region_does_not_inherit_a_name():
    old = scene.from_regions([Region("a cat", box=(0, 0, 1, 1)), Region("a dog", box=(0, 0, 1, 1))], SQUARE)
    old = [{**entry, "name": name, "color": "#123456"} for entry, name in zip(old, ["Tom", "Rex"], strict=True)]
    new = scene.from_regions([Region("a cat", box=(0, 0, 0.5, 1)), Region("a fox", box=(0, 0, 1, 1))], SQUARE, old)
    assert [(e["name"], e["color"] == "#123456") for e in new] == [("Tom", True), ("Region 2", False)]


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("a cat", "no JSON object"),
        ({"prompt": "x"}, "needs a box or a mask"),
        ({"box": [0, 0, 1, 1], "mask": "abc"}, "not both"),
        ({"box": [0.5, 0, 0.5, 1]}, "make it larger"),
        ({"box": [1.2, 0, 1.5, 1]}, "make it larger"),
        ({"box": [0, 0, 1]}, "four fractions"),
        ({"box": [0, 0, float("nan"), 1]}, "four fractions"),
        ({"box": [0, 0, True, 1]}, "four fractions"),
        ({"box": "abcd"}, "four fractions"),
        ({"box": [0, 0, 1, 1], "weight": 0}, "above 0"),
        ({"box": [0, 0, 1, 1], "weight": "1"}, "above 0"),
        ({"box": [0, 0, 1, 1], "weight": float("inf")}, "above 0"),
        ({"box": [0, 0, 1, 1], "color": "red"}, "#rrggbb"),
        ({"box": [0, 0, 1, 1], "prompt": 7}, "no text"),
        ({"box": [0, 0, 1, 1], "options": [1]}, "no JSON object"),
        ({"mask": "no base64!"}, "no base64 PNG"),
        ({"mask": base64.b64encode(b"not a picture").decode()}, "no base64 PNG"),
        ({"mask": 5}, "no base64 PNG"),
        ({"mask": png(np.zeros((9, 9), np.uint8))}, "empty"),
        ({"mask": png(np.zeros((1, 9000), np.uint8))}, "is enough"),
    ],
)
def test_a_bad_entry_is_named_and_explained(entry, sentence):
    good = {"box": [0, 0, 1, 1]}
    with pytest.raises(ValueError, match=r"^Region 2\b.*" + sentence):
        scene.clean([good, entry], SQUARE)


def test_a_cut_off_mask_is_refused():
    whole = base64.b64decode(png((disc(256) * 255).astype(np.uint8)))
    with pytest.raises(ValueError, match="no base64 PNG"):
        scene.clean([{"mask": base64.b64encode(whole[: len(whole) // 2]).decode()}], SQUARE)


def test_boxes_are_put_right():
    (entry,) = scene.clean([{"box": [0.8, 1.5, 0.2, -1]}], SQUARE)
    assert entry["box"] == [0.2, 0, 0.8, 1]


def test_ids_are_unique():
    entries = scene.clean([{"id": "a", "box": [0, 0, 1, 1]}] * 3 + [{"id": "a+", "box": [0, 0, 1, 1]}], SQUARE)
    assert len({entry["id"] for entry in entries}) == 4


@pytest.mark.parametrize("name", scene.PRESETS)
def test_presets_are_entries_that_need_no_mending(name):
    """The page lays them out as they are, so every box is as `clean` leaves it and covers something."""
    parts = [{"name": title, "box": list(box), "weight": weight} for title, box, weight in scene.PRESETS[name]]
    entries = scene.clean(parts, SQUARE)
    assert [{key: entry[key] for key in ("name", "box", "weight")} for entry in entries] == parts
    assert all(region.cover(16, 16).sum() > 0 for region in scene.to_regions(entries))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no regions"),
        ('{"regions": []}', "no regions"),
        ('{"format": "mixofshow-regions"}', "version None"),
        ('{"format": "mixofshow-regions", "version": 99}', "update"),
        ('{"format": "mixofshow-regions", "version": 1, "seed": "x"}', "seed"),
        ('{"format": "mixofshow-regions", "version": 1, "regions": {"a": 1}}', "must be a list"),
        ('{"format": "mixofshow-regions", "version": 1, "regions": [{"box": [0, 0, NaN, 1]}]}', "four fractions"),
    ],
)
def test_bad_json_is_one_sentence(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        scene.from_json(text, SQUARE)


# Drawing


def test_the_drawing_shows_boxes_and_masks_where_they_are():
    regions = [Region("", box=(0, 0, 0.5, 1)), Region("", mask=np.eye(2, dtype=np.float32)[::-1])]
    colors = ["#ff0000", "#0000ff"]
    white = Image.new("RGB", (10, 10), "white")
    drawn = np.asarray(render_regions(regions, white, (200, 200), colors=colors)).astype(int)
    assert tuple(drawn[100, 1]) == (255, 0, 0), "the outline"
    red, both, blue, nothing = drawn[30, 40], drawn[170, 40], drawn[30, 160], drawn[170, 160]
    np.testing.assert_allclose(red, [255, 166, 166], atol=2)  # 35 % red on white
    np.testing.assert_allclose(blue, [166, 166, 255], atol=2)
    np.testing.assert_allclose(both, [166, 108, 197], atol=2)  # 35 % blue on that
    np.testing.assert_array_equal(nothing, 255)


def test_the_drawing_is_deterministic_and_takes_odd_cases():
    thin = Region("very long prompt " * 20, box=(0.5, 0.5, 0.501, 0.501))
    many = [Region(f"number {i}", box=(i / 50, 0, (i + 1) / 50, 1)) for i in range(50)]
    one, two = (render_regions([thin, *many], None, (90, 300)) for _ in range(2))
    assert one.size == (300, 90) and one.tobytes() == two.tobytes()
    assert render_regions([]).size == (384, 384)


# Sampling


def test_draw_follows_every_step_and_leaves_silent_regions_out():
    toy, seen = Toy(), []
    regions = [Region("a cat", box=(0, 0, 0.5, 1)), Region("  ", box=(0.5, 0, 1, 1))]
    made = sampling.draw_picture(
        toy, "x", regions, seed=7, steps=7, every=3, show=lambda step, p: seen.append((step, p))
    )
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6, 7]
    assert [step for step, picture in seen if picture] == [3, 6]
    assert seen[2][1].getpixel((0, 0)) == (2, 2, 2), "the picture of step 3, which the model counts as 2"
    assert made.regions == (regions[0],) and toy.calls[0]["regions"] == [regions[0]]
    assert made.picture.getpixel((0, 0)) == (7, 7, 7)


def test_draw_stops_at_the_next_step():
    toy, stop, seen = Toy(), threading.Event(), []

    def show(step, picture):
        seen.append(step)
        if step == 3:
            stop.set()

    with pytest.raises(sampling.Cancelled):
        sampling.draw_picture(toy, "x", steps=9, stop=stop, show=show)
    assert seen == [1, 2, 3]


def test_draw_works_with_a_real_model_and_leaves_it_alone(tiny_base):
    tiny = tiny_base
    regions = [Region("a red cat", box=(0, 0, 0.5, 1)), Region("a blue dog", mask=disc(32))]
    before = {name: type(p) for name, p in tiny.unet.attn_processors.items()}
    pictures, stop = [], threading.Event()
    made = sampling.draw_picture(
        tiny, "a photo", regions, seed=1, steps=2, every=1, show=lambda s, p: pictures.append(p)
    )
    expected = tiny.sample("a photo", seed=1, steps=2, regions=regions, progress=False)[0]
    assert made.picture.tobytes() == expected.tobytes()
    assert pictures[0].size == expected.size and pictures[1] is None
    stop.set()
    with pytest.raises(sampling.Cancelled):
        sampling.draw_picture(tiny, "a photo", regions, steps=2, stop=stop)
    assert {name: type(p) for name, p in tiny.unet.attn_processors.items()} == before


# The widget


@pytest.fixture
def canvas():
    pytest.importorskip("anywidget", reason="pip install '.[lab]'")
    from mixofshow_lite.course.widgets import RegionCanvas

    made = RegionCanvas(Toy(), prompt="two friends", steps=4)
    made.sent = []
    made.send = lambda content, buffers=None: made.sent.append((content, buffers))
    return made


def page(canvas, **message):
    """A message as the page sends it."""
    canvas._receive(canvas, message, [])


def test_regions_can_be_set_and_read(canvas):
    canvas.regions = [Region("a cat", box=(0, 0, 0.5, 1)), Region("a dog", mask=disc(99), weight=0.5)]
    cat, dog = canvas.regions
    assert cat.box == (0, 0, 0.5, 1) and dog.mask.shape == (128, 256) and dog.weight == 0.5
    canvas.names = ["Tom", "Rex"]
    canvas.regions = canvas.regions
    assert canvas.names == ["Tom", "Rex"]
    with pytest.raises(ValueError, match="2 regions and 1 names"):
        canvas.names = ["Tom"]
    with pytest.raises(ValueError, match="Region 1 is 'cat'"):
        canvas.regions = ["cat"]
    assert len(canvas.regions) == 2


def test_what_the_page_sends_is_checked(canvas):
    import traitlets

    canvas.regions = [Region("a cat", box=(0, 0, 1, 1))]
    with pytest.raises(traitlets.TraitError, match="Region 1.*make it larger"):
        canvas._regions = [{"box": [0.5, 0.5, 0.5, 0.5]}]
    page(canvas, type="sample", state={"_regions": "nonsense"})
    page(canvas, type="sample", state={"_regions": [{"mask": "AAAA"}]})
    page(canvas, type="sample", state={"seed": -1})
    assert [content["type"] for content, _ in canvas.sent] == ["error"] * 3 and canvas.seed == 0
    assert canvas.sent[1][0]["message"] == "Region 1 ('Region 1'): The mask is no base64 PNG picture."
    page(canvas, type="no such thing")
    page(canvas, type="restore", index=5)
    assert canvas.sent[-1][0]["type"] == "error"
    assert [r.prompt for r in canvas.regions] == ["a cat"] and not canvas.model.calls


def test_fifty_regions(canvas):
    canvas.regions = [Region(f"number {i}", box=(i / 50, 0, (i + 1) / 50, 1)) for i in range(50)]
    assert [r.prompt for r in canvas.regions] == [f"number {i}" for i in range(50)]
    canvas.sample()
    canvas.wait(20)
    assert len(canvas.model.calls[0]["regions"]) == 50
    assert canvas.figure().size == (384, 192)


def test_repr_is_deterministic(canvas):
    canvas.regions = [Region("a cat", box=(0, 0, 1 / 3, 1)), Region("a dog", mask=np.eye(2), weight=0.5)]
    assert repr(canvas) == (
        "RegionCanvas(prompt='two friends', seed=0, steps=4, regions=['Region 1' 'a cat' box (0, 0, 0.333, 1), "
        "'Region 2' 'a dog' mask of 50% weight 0.5])"
    )


def test_the_static_picture_travels_with_the_widget(canvas):
    canvas.regions = [Region("a cat", box=(0, 0, 1, 1))]
    data, _ = canvas._repr_mimebundle_()
    shown = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert shown.tobytes() == canvas.figure().tobytes()
    assert data["text/plain"].startswith("RegionCanvas(") and any("widget-view" in kind for kind in data)


def test_backgrounds(canvas, tmp_path):
    red = Image.new("RGB", (8, 4), "red")
    red.save(tmp_path / "red.png")
    for picture in (red, tmp_path / "red.png", str(tmp_path / "red.png"), np.asarray(red), np.asarray(red) / 255.0):
        canvas.background = None
        assert canvas.background is None
        canvas.background = picture
        assert canvas.background.tobytes() == red.tobytes()
    canvas.background = np.eye(4) > 0  # a sketch
    assert canvas.background.getpixel((0, 0)) == (255, 255, 255)


def test_json_goes_out_and_in(canvas):
    canvas.regions = [Region("a cat", box=(0, 0, 0.5, 1)), Region("ein Hündchen 🐶", mask=disc(64))]
    canvas.seed = 9
    text, before = canvas.to_json(), repr(canvas)
    canvas.regions, canvas.prompt, canvas.seed = [], "", 0
    page(canvas, type="import", text=canvas.to_json().replace('"seed": 0', '"seed": -4').replace('""', '"x"'))
    assert canvas.sent[-1][0]["type"] == "error" and canvas.prompt == "", "a bad seed changes nothing"
    page(canvas, type="import", text=text)
    assert canvas.sent[-1][0] == {"type": "imported", "regions": 2}
    assert repr(canvas) == before


def test_the_button_samples_with_what_the_page_shows(canvas):
    entries = scene.from_regions([Region("a cat", box=(0, 0, 0.5, 1)), Region("", box=(0, 0, 1, 1))], (256, 128))
    state = {"prompt": "new", "negative_prompt": "n", "seed": 5, "steps": 6, "seed_locked": True, "_regions": entries}
    page(canvas, type="sample", state=state)
    canvas.wait(20)
    (call,) = canvas.model.calls
    assert (call["prompt"], call["seed"], call["steps"]) == ("new", 5, 6) and "size" not in call
    assert [region.prompt for region in call["regions"]] == ["a cat"]
    steps = [content for content, _ in canvas.sent if content["type"] == "step"]
    assert [content["step"] for content in steps] == [0, 1, 2, 3, 4, 5, 6]
    assert canvas.sent[-1][0] == {"type": "done", "silent": ["Region 2"]}
    first = next(buffers[0] for _, buffers in canvas.sent if buffers)
    assert Image.open(io.BytesIO(first)).size == (128, 64)
    assert canvas.background.tobytes() == canvas.history[0].picture.tobytes()
    assert canvas._history[0]["regions"] == entries and not canvas._running


def test_cancel_stops_the_thread_and_keeps_nothing(canvas):
    canvas.model.gate = threading.Event()
    canvas.sample()
    assert canvas.model.reached.wait(20)
    with pytest.raises(RuntimeError, match="already"):
        canvas.sample()
    with pytest.raises(TimeoutError, match="still sampling"):
        canvas.wait(0.01)
    page(canvas, type="cancel")
    canvas.model.gate.set()
    canvas.wait(20)
    assert canvas.sent[-1][0] == {"type": "stopped"} and not canvas.history and not canvas._running
    canvas.model.gate = None
    canvas.sample()
    canvas.wait(20)
    assert len(canvas.history) == 1, "cancelling one sample does not cancel the next"


def test_a_failing_model_is_reported_and_the_canvas_lives(canvas):
    canvas.model.fail = ZeroDivisionError("oh")
    canvas.sample()
    canvas.wait(20)
    assert canvas.sent[-1][0] == {"type": "error", "message": "Sampling failed: oh"} and not canvas._running


def test_history_restores_and_is_bounded(canvas):
    from mixofshow_lite.course.widgets.canvas import HISTORY

    for seed in range(HISTORY + 2):
        canvas.seed, canvas.prompt = seed, f"prompt {seed}"
        canvas.regions = [Region("a cat", box=(0, 0, (seed + 1) / 40, 1))]
        canvas.sample()
        canvas.wait(20)
    assert len(canvas.history) == len(canvas._history) == HISTORY
    page(canvas, type="restore", index=0)
    assert (canvas.seed, canvas.prompt) == (2, "prompt 2")
    assert canvas.regions[0].box == (0, 0, 3 / 40, 1)
    assert canvas.background.getpixel((0, 0)) == (2, 2, 2)


def test_an_unlocked_seed_changes_and_a_locked_one_stays(canvas):
    for _ in range(2):
        canvas.sample()
        canvas.wait(20)
    canvas.seed_locked = False
    for _ in range(2):
        canvas.sample()
        canvas.wait(20)
    seeds = [sample.seed for sample in canvas.history]
    assert seeds[:2] == [0, 0] and len({*seeds}) == 3


def test_a_canvas_without_a_model_paints_only():
    pytest.importorskip("anywidget", reason="pip install '.[lab]'")
    from mixofshow_lite.course.widgets import RegionCanvas

    canvas = RegionCanvas(size=(96, 64))
    with pytest.raises(ValueError, match="no model"):
        canvas.sample()
    canvas.regions = [Region("a cat", box=(0, 0, 0.5, 1))]
    assert [r.box for r in canvas.regions] == [(0, 0, 0.5, 1)] and not canvas._can_sample
    with pytest.raises(ValueError, match="height, width"):
        RegionCanvas(size=(0, 64))


def test_the_page_is_plain_and_fetches_nothing():
    text = canvas_page.module() + canvas_page.STYLE.read_text("utf-8")
    for forbidden in ("https://", "import(", "import {", "@import", "url(", "fetch(", "eval("):
        assert forbidden not in text, forbidden
    assert text.count("http://") == text.count("http://www.w3.org/2000/svg")


def test_a_mask_of_too_many_pixels_is_a_sentence():
    """The header alone says 20000 x 20000; Pillow would call it an attack."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = struct.pack(">II", 20_000, 20_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(ValueError, match="The mask is 20000 x 20000 pixels"):
        scene.decode_mask(base64.b64encode(data).decode())


@pytest.mark.parametrize("wrong", [3, (3,), np.zeros((2, 2, 5)), np.zeros(0), np.array(["a"])])
def test_a_background_that_is_no_picture_is_a_sentence(canvas, tmp_path, wrong):
    with pytest.raises(ValueError, match="is no picture: give"):
        canvas.background = wrong
    with pytest.raises(FileNotFoundError, match="nope.png does not exist"):
        canvas.background = tmp_path / "nope.png"
