"""The canvas in a real browser on a bare page: gestures, keys, undo, masks, looks. Lab itself: test_canvas_lab.py."""

import base64
import io
import json

import numpy as np
import pytest
from bare_page import html
from PIL import Image

PRESETS = [
    ["Two halves", [["Left", [0, 0, 0.5, 1], 1], ["Right", [0.5, 0, 1, 1], 1]]],
    ["Foreground", [["Background", [0, 0, 1, 1], 0.3]]],
]


def state(**changes):
    start = {"prompt": "two friends", "negative_prompt": "", "seed": 3, "seed_locked": True, "steps": 25}
    start |= {"_regions": [], "_background": "", "_history": [], "_running": False, "_can_sample": True}
    start |= {"_size": [128, 128], "_raster": [256, 256], "_presets": PRESETS, "_palette": ["#2f6fd6", "#bb510d"]}
    start["_header"] = {"format": "mixofshow-regions", "version": 1}
    return start | changes


def entry(number, box=None, mask=None, **changes):
    made = {"id": f"r{number}", "name": f"Region {number}", "color": "#2f6fd6", "prompt": "", "negative_prompt": ""}
    return made | {"weight": 1, "box": box, "mask": mask, "options": {}} | changes


def picture():
    y, x = np.mgrid[:128, :128]
    file = io.BytesIO()
    Image.fromarray(np.dstack([x + 90, y + 90, 255 - x]).astype(np.uint8)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


CONTRAST = """() => {
  const paint = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (color) => {
    paint.fillStyle = color;
    paint.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const page = light(getComputedStyle(document.querySelector('.mos-canvas')).backgroundColor);
  const names = ['.mos-status', '.mos-field > span', '.mos-list strong', '.mos-toolbar button[aria-pressed=true]'];
  const inks = names.map((name) => light(getComputedStyle(document.querySelector(name)).color));
  return inks.map((ink) => (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05));  // WCAG contrast
}"""


class Canvas:
    """What a person does with the canvas."""

    def __init__(self, page):
        self.page, self.stage = page, page.locator(".mos-stage > svg")

    def at(self, x, y):
        frame = self.stage.bounding_box()
        return frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]

    def drag(self, *points):
        self.page.mouse.move(*self.at(*points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.at(*point), steps=4)
        self.page.mouse.up()

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def get(self, key):
        return self.page.evaluate("key => model.get(key)", key)

    @property
    def regions(self):
        return self.get("_regions")

    def mask(self, index=0):
        data = base64.b64decode(self.regions[index]["mask"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(float) / 255

    @property
    def saves(self):
        return self.page.evaluate("model.saves.length")

    @property
    def status(self):
        return self.page.locator("[role=status]").text_content()


@pytest.fixture
def open_canvas(browser):
    """Open a canvas with a state; on leaving, no error may have been logged and nothing asked of the network."""
    contexts, wrong = [], []

    def start(attributes="", touch=False, **changes):
        context = browser.new_context(viewport={"width": 960, "height": 900}, has_touch=touch)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: line.type == "error" and wrong.append(line.text))
        page.on("request", lambda request: request.url.startswith("http") and wrong.append(request.url))
        page.set_content(html(state(**changes), attributes))
        page.wait_for_function("window.ready")
        return Canvas(page)

    yield start
    for context in contexts:
        context.close()
    assert not wrong


def close(box, expected, tolerance=0.01):
    np.testing.assert_allclose(box, expected, atol=tolerance)


def test_mouse_draws_moves_resizes_and_undoes(open_canvas, shot):
    canvas = open_canvas()
    canvas.drag((0.1, 0.2), (0.4, 0.6))
    close(canvas.regions[0]["box"], [0.1, 0.2, 0.4, 0.6])
    assert canvas.saves == 1, "one message a gesture, however many moves"
    canvas.drag((0.2, 0.3), (0.5, 0.4))
    close(canvas.regions[0]["box"], [0.4, 0.3, 0.7, 0.7])
    canvas.drag((0.7, 0.7), (0.9, 0.95))  # the south-east handle
    close(canvas.regions[0]["box"], [0.4, 0.3, 0.9, 0.95])
    canvas.drag((0.5, 0.5), (0.99, 0.99))  # against the edge
    close(canvas.regions[0]["box"], [0.5, 0.35, 1, 1])
    assert canvas.saves == 4
    canvas.press("Control+z", "Control+z")
    close(canvas.regions[0]["box"], [0.4, 0.3, 0.7, 0.7])
    canvas.press("Control+Shift+z")
    close(canvas.regions[0]["box"], [0.4, 0.3, 0.9, 0.95])
    canvas.press("Control+z", "Control+z", "Control+z", "Control+z")
    assert canvas.regions == [] and canvas.status == "Nothing to undo."
    canvas.press("Control+y")
    close(canvas.regions[0]["box"], [0.1, 0.2, 0.4, 0.6])


def test_clicks_and_slips_make_no_regions(open_canvas):
    canvas = open_canvas()
    canvas.page.mouse.click(*canvas.at(0.5, 0.5))
    canvas.drag((0.5, 0.5), (0.505, 0.9))
    assert canvas.regions == [] and canvas.saves == 0 and "too small" in canvas.status
    canvas.page.mouse.move(*canvas.at(0.2, 0.2))
    canvas.page.mouse.down()
    canvas.page.mouse.move(*canvas.at(0.6, 0.6))
    canvas.press("Escape")
    canvas.page.mouse.up()
    assert canvas.regions == [] and canvas.saves == 0, "Escape takes a gesture back"


def test_keyboard_alone_does_everything(open_canvas):
    canvas = open_canvas()
    canvas.stage.focus()
    canvas.press("n")
    start = canvas.regions[0]["box"]
    canvas.press("ArrowRight", "ArrowRight", "ArrowUp")
    close(canvas.regions[0]["box"], np.add(start, [0.04, -0.02, 0.04, -0.02]), 1e-6)
    canvas.press("Shift+ArrowDown")
    close(canvas.regions[0]["box"], np.add(start, [0.04, -0.02, 0.04, 0]), 1e-6)
    canvas.press("Enter")
    canvas.page.keyboard.type("a <bibi1> <bibi2> b dd n")
    canvas.page.locator(".mos-list").focus()
    assert canvas.regions[0]["prompt"] == "a <bibi1> <bibi2> b dd n" and len(canvas.regions) == 1
    canvas.press("F2")
    canvas.page.keyboard.type("Bibi")
    canvas.stage.focus()
    canvas.press("n")
    assert [r["name"] for r in canvas.regions] == ["Bibi", "Region 2"]
    canvas.page.locator(".mos-list").focus()
    canvas.press("Alt+ArrowUp")
    assert [r["name"] for r in canvas.regions] == ["Region 2", "Bibi"]
    canvas.press("ArrowDown", "Delete")
    assert [r["name"] for r in canvas.regions] == ["Region 2"]
    canvas.stage.focus()
    canvas.press("]", "p", "Space")  # paint on the box: it becomes a mask
    assert canvas.regions[0]["box"] is None and canvas.mask().mean() > 0.15
    canvas.press("Escape", "p")
    before = canvas.saves
    canvas.press("ArrowRight", "Shift+ArrowRight", "Shift+ArrowRight")
    assert canvas.saves == before + 2 and len(canvas.regions) == 2
    canvas.press("Control+Enter")
    assert canvas.page.evaluate("model.sent.at(-1).type") == "sample"


def test_brush_and_eraser_paint_exactly(open_canvas):
    canvas = open_canvas()
    canvas.stage.focus()
    canvas.press("p")
    canvas.page.mouse.click(*canvas.at(0.5, 0.5))
    mask = canvas.mask()
    y, x = (np.mgrid[:256, :256] + 0.5) / 256
    disc = np.hypot(x - 0.5, y - 0.5) < 0.06  # the brush is 0.12 wide
    assert set(np.unique(mask)) == {0, 1}, "a hard brush leaves no grey"
    assert np.mean(mask != disc) < 0.002
    canvas.drag((0.2, 0.5), (0.8, 0.5))
    stroke = np.hypot(x - x.clip(0.2, 0.8), y - 0.5) < 0.06
    assert np.mean(canvas.mask() != stroke) < 0.004, "no gaps, no scallops"
    canvas.press("e")
    canvas.drag((0.5, 0.3), (0.5, 0.7))
    cut = stroke & ~(np.hypot(x - 0.5, y - y.clip(0.3, 0.7)) < 0.06)
    assert np.mean(canvas.mask() != cut) < 0.006
    canvas.press("Control+z")
    assert np.mean(canvas.mask() != stroke) < 0.004


def test_softness_and_size(open_canvas):
    canvas = open_canvas()
    canvas.stage.focus()
    canvas.press("p")
    for label, value in (("Size", "0.4"), ("Softness", "1")):
        canvas.page.get_by_label(label, exact=True).fill(value)
    canvas.page.mouse.click(*canvas.at(0.5, 0.5))
    y, x = (np.mgrid[:256, :256] + 0.5) / 256
    cone = (1 - np.hypot(x - 0.5, y - 0.5) / 0.2).clip(0)
    assert np.abs(canvas.mask() - cone).mean() < 0.005
    canvas.press("e")
    for _ in range(2):  # the eraser's own soft edge leaves the rim
        canvas.page.mouse.click(*canvas.at(0.5, 0.5))
    np.testing.assert_allclose(canvas.mask(), np.minimum(canvas.mask(), 1 - cone + 0.02), atol=0.01)


def test_erasing_all_removes_the_region_and_undo_brings_it_back(open_canvas):
    canvas = open_canvas(_regions=[entry(1, [0.45, 0.45, 0.5, 0.5])])
    canvas.stage.focus()
    canvas.press("]", "e")
    canvas.page.mouse.click(*canvas.at(0.475, 0.475))
    assert canvas.regions == [] and "gone" in canvas.status
    canvas.press("Control+z")
    assert canvas.regions[0]["box"] == [0.45, 0.45, 0.5, 0.5]


def test_masks_move_resize_and_become_boxes(open_canvas):
    canvas = open_canvas(_regions=[entry(1, [0.2, 0.2, 0.4, 0.4])])
    canvas.stage.focus()
    canvas.press("]", "p")
    canvas.page.mouse.click(*canvas.at(0.3, 0.3))  # a mask now: still the box
    canvas.press("v")
    canvas.drag((0.3, 0.3), (0.5, 0.6))
    y, x = (np.mgrid[:256, :256] + 0.5) / 256
    assert np.mean(canvas.mask() != ((abs(x - 0.5) < 0.1) & (abs(y - 0.6) < 0.1))) < 0.006
    canvas.drag((0.6, 0.7), (0.8, 0.8))
    assert np.mean(canvas.mask() != ((abs(x - 0.6) < 0.2) & (abs(y - 0.65) < 0.15))) < 0.01
    canvas.page.get_by_text("turn it into its box").click()
    close(canvas.regions[0]["box"], [0.4, 0.5, 0.8, 0.8], 0.015)


def test_touch_draws(open_canvas):
    canvas = open_canvas(touch=True)
    session = canvas.page.context.new_cdp_session(canvas.page)

    def touch(kind, *point):
        points = [dict(zip("xy", canvas.at(*point), strict=True))] if point else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 0.2, 0.2)
    for i in range(1, 6):
        touch("touchMove", 0.2 + i * 0.1, 0.2 + i * 0.1)
    touch("touchEnd")
    canvas.page.wait_for_function("model.get('_regions').length == 1")
    close(canvas.regions[0]["box"], [0.2, 0.2, 0.7, 0.7])


def test_presets_fields_and_python_changes(open_canvas):
    canvas = open_canvas(_regions=[entry(1, [0.1, 0.1, 0.9, 0.9], prompt="a cat")])
    canvas.page.get_by_label("Layout").select_option("Two halves")
    assert [(r["name"], r["prompt"], r["box"]) for r in canvas.regions] == [
        ("Left", "a cat", [0, 0, 0.5, 1]),
        ("Right", "", [0.5, 0, 1, 1]),
    ]
    assert canvas.regions[0]["id"] == "r1" != canvas.regions[1]["id"]
    canvas.page.get_by_label("Right, percent").fill("30")
    canvas.press("Tab")
    assert canvas.regions[0]["box"] == [0, 0, 0.3, 1]
    canvas.page.get_by_label("Left, percent").fill("99")  # beyond the right side: a thin box, not a reversed one
    canvas.press("Tab")
    close(canvas.regions[0]["box"], [0.28, 0, 0.3, 1], 1e-6)
    canvas.page.get_by_label("Weight").fill("0.5")
    canvas.page.get_by_label("Colour").fill("#ff0000")
    assert (canvas.regions[0]["weight"], canvas.regions[0]["color"]) == (0.5, "#ff0000")
    canvas.page.evaluate("entry => model.set('_regions', [entry])", entry(9, [0, 0, 0.2, 0.2], name="From Python"))
    assert canvas.page.locator(".mos-list li").all_text_contents() == ["From Pythonno prompt yet"]
    canvas.stage.focus()
    canvas.press("Control+z")
    assert len(canvas.regions) == 2, "what Python did can be undone"


def test_a_view_that_is_drawn_anew_is_the_same(open_canvas):
    canvas = open_canvas()
    canvas.stage.focus()
    canvas.press("p")
    canvas.drag((0.2, 0.2), (0.8, 0.8))
    canvas.page.mouse.move(0, 0)
    ink = "document.querySelector('.mos-stage canvas').toDataURL()"
    before = canvas.page.evaluate(ink)
    canvas.page.evaluate("again()")
    canvas.page.wait_for_function(f"before => {ink} === before", arg=before)
    canvas.stage.focus()
    canvas.press("Control+z")
    assert canvas.regions == [], "undo outlives the view"


def test_sampling_is_followed_cancelled_and_restored(open_canvas):
    made = {"picture": picture(), "prompt": "old", "negative_prompt": "n", "seed": 8, "steps": 4}
    canvas = open_canvas(_regions=[entry(1, [0, 0, 0.5, 1], prompt="a cat")])
    canvas.page.get_by_label("Whole picture").fill("new words")  # not committed yet: no blur
    canvas.page.keyboard.press("Control+Enter")
    sent = canvas.page.evaluate("model.sent.at(-1)")
    assert sent["type"] == "sample" and sent["state"]["prompt"] == "new words"
    assert sent["state"]["_regions"] == canvas.regions
    canvas.page.evaluate(
        "model.set('_running', true); model.fire('msg:custom', {type: 'step', step: 3, steps: 25}, [])"
    )
    assert canvas.status == "Step 3 of 25" and canvas.page.locator("progress").evaluate("p => p.value") == 3
    png = base64.b64decode(picture().split(",")[1])
    canvas.page.evaluate(
        """bytes => model.fire('msg:custom', {type: 'step', step: 4, steps: 25},
        [new DataView(Uint8Array.from(bytes).buffer)])""",
        list(png),
    )
    canvas.page.wait_for_function("document.querySelector('.mos-stage img').naturalWidth === 128")
    canvas.page.get_by_role("button", name="Cancel").click()
    assert canvas.page.evaluate("model.sent.at(-1).type") == "cancel"
    canvas.page.evaluate("model.set('_running', false); model.fire('msg:custom', {type: 'stopped'}, [])")
    assert canvas.status == "Cancelled." and canvas.page.get_by_role("button", name="Sample", exact=True).is_visible()
    canvas.page.evaluate(
        "history => model.set('_history', history)", [{**made, "regions": [entry(2, [0.5, 0.5, 1, 1])]}]
    )
    canvas.page.get_by_role("button", name="Restore sample 1").click()
    assert [canvas.get(key) for key in ("prompt", "seed", "steps")] == ["old", 8, 4]
    assert canvas.regions[0]["box"] == [0.5, 0.5, 1, 1]
    canvas.page.evaluate("model.fire('msg:custom', {type: 'done', silent: ['Region 2']}, [])")
    assert canvas.status == "The picture is done. Left out, for want of a prompt: Region 2."


def test_export_and_import(open_canvas, tmp_path):
    canvas = open_canvas(_regions=[entry(1, [0, 0, 0.5, 1], prompt="ein Hündchen")])
    with canvas.page.expect_download() as download:
        canvas.page.get_by_role("button", name="Export regions").click()
    download.value.save_as(tmp_path / "regions.json")
    document = json.loads((tmp_path / "regions.json").read_text("utf-8"))
    scene = pytest.importorskip("mixofshow_lite.course.widgets.scene")
    settings, entries = scene.from_json((tmp_path / "regions.json").read_bytes(), (256, 256))
    assert entries == canvas.regions == document["regions"]
    assert settings == {"prompt": "two friends", "negative_prompt": "", "seed": 3, "steps": 25}
    canvas.page.locator("input[type=file]").set_input_files(tmp_path / "regions.json")
    canvas.page.wait_for_function("model.sent.length === 1")
    assert json.loads(canvas.page.evaluate("model.sent[0].text")) == document


def test_numbers_out_of_range_never_reach_python(open_canvas):
    canvas = open_canvas()
    for label, typed, kept in (("Seed", "-5", 0), ("Seed", "1e99", 2**32 - 1), ("Steps", "0", 1), ("Steps", "", 1)):
        canvas.page.get_by_label(label, exact=True).fill(typed)
        canvas.press("Tab")
        assert canvas.get(label.lower()) == kept


def test_fifty_regions_and_odd_names(open_canvas):
    names = ["<img src=x onerror=alert(1)>", "🐰" * 40, ""]
    many = [entry(i, [i / 50, 0, (i + 1) / 50, 1], name=names[i % 3], prompt=names[(i + 1) % 3]) for i in range(50)]
    canvas = open_canvas(_regions=many)
    assert canvas.page.locator(".mos-list li").count() == 50
    assert canvas.page.locator(".mos-stage g[role=img]").count() == 50
    assert canvas.page.locator(".mos-list img").count() == 0
    canvas.drag((0.505, 0.5), (0.505, 0.8))
    assert len(canvas.regions) == 50 and canvas.saves <= 1


def test_screen_readers_find_names_and_hear_changes(open_canvas):
    canvas = open_canvas(_regions=[entry(1, [0, 0, 0.5, 1], prompt="a cat")])
    unnamed = canvas.page.evaluate(
        """() => [...document.querySelectorAll('.mos-canvas :is(button, input, textarea, select)')]
        .filter(node => !node.hidden && !node.getAttribute('aria-label') && !node.textContent.trim())
        .filter(node => !node.labels?.length).map(node => node.outerHTML)"""
    )
    assert unnamed == []
    canvas.stage.focus()
    canvas.press("]")
    assert canvas.status == "Region 1, box, left 0, top 0, right 50, bottom 100 percent, a cat"
    assert "Chosen: Region 1, box" in canvas.stage.get_attribute("aria-label")
    assert canvas.page.get_by_role("option", name="Region 1").get_attribute("aria-selected") == "true"
    described = canvas.stage.get_attribute("aria-describedby")
    assert "Delete" in canvas.page.locator(f"[id={described}]").text_content()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_looks(open_canvas, shot, theme):
    tried = [
        {"picture": picture(), "prompt": "old", "negative_prompt": "", "seed": seed, "steps": 4, "regions": []}
        for seed in (3, 4)
    ]
    canvas = open_canvas(_background=picture(), _history=tried)
    canvas.page.emulate_media(color_scheme=theme)
    canvas.drag((0.08, 0.2), (0.45, 0.95))
    canvas.press("Enter")
    canvas.page.keyboard.type("a <bibi1> <bibi2> wearing a red scarf")
    canvas.stage.focus()
    canvas.press("Escape", "p")
    canvas.drag((0.6, 0.3), (0.85, 0.35), (0.6, 0.5))
    shot(canvas.page, f"page_{theme}", canvas.page.locator(".mos-canvas"))
    canvas.page.set_viewport_size({"width": 400, "height": 1200})
    shot(canvas.page, f"page_{theme}_narrow", canvas.page.locator(".mos-canvas"))
    wide = canvas.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 400, "nothing sticks out of a narrow page"
    assert min(canvas.page.evaluate(CONTRAST)) > 4.5
