"""The canvas in a real JupyterLab: kernel, shortcuts, windowed scrolling, restart, and no request to the outside.

One Lab serves all tests here; each begins with an empty canvas. The model is a toy, so that only the canvas is tested.
"""

import ast
import json
import time

import numpy as np
import pytest
from bare_page import SLOW
from lab_server import is_outside, lab_server

pytest.importorskip("jupyterlab", reason="pip install '.[lab]'")
pytest.importorskip("anywidget", reason="pip install '.[lab]'")

CELL = """
import time
import numpy as np
from PIL import Image
from mixofshow_lite import Region
from mixofshow_lite.course.widgets import RegionCanvas

class Toy:
    size, pause = (128, 128), 0.05
    def sample(self, prompt, n=1, seed=0, steps=25, regions=None, callback=None, **options):
        for step in range(steps):
            time.sleep(self.pause)
            callback({"step": step, "t": 0, "latents": [(step + 1) / steps], "model": self})
        return self.decode([1.0])
    def decode(self, latents):
        y, x = np.mgrid[:128, :128]
        noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3))
        picture = np.dstack([x + 90, y + 90, 255 - x])
        return [Image.fromarray((noise + (picture - noise) * share).astype(np.uint8)) for share in latents]

canvas = RegionCanvas(Toy(), prompt="two friends on the beach", steps=20)
canvas
"""
FILLER = "# A long notebook\n\n" + "One more paragraph.\n\n" * 12


def notebook() -> dict:
    code = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    cells = [{**code, "id": "canvas", "source": CELL}]
    cells += [{"cell_type": "markdown", "metadata": {}, "id": f"text{i}", "source": FILLER} for i in range(30)]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": spec}, "cells": cells}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A JupyterLab with the notebook above; its address."""
    home = tmp_path_factory.mktemp("lab")
    (home / "work").mkdir()
    (home / "work" / "canvas.ipynb").write_text(json.dumps(notebook()))
    with lab_server(home, home / "work") as address:
        yield address


class Lab:
    """One open notebook, the canvas in it and the kernel behind it."""

    PANEL = "window.jupyterapp.shell.currentWidget"

    def __init__(self, page):
        self.page = page
        self.root = page.locator(".mos-canvas").first
        self.stage = self.root.locator(".mos-stage > svg")

    def python(self, code: str):
        """Run code in the kernel, beside the notebook; the literal it prints."""
        text = self.page.evaluate(
            f"""async (code) => {{
              const future = {self.PANEL}.sessionContext.session.kernel.requestExecute({{ code }});
              let text = '';
              future.onIOPub = (m) => {{ text += m.content.text ?? m.content.traceback?.join('\\n') ?? ''; }};
              await future.done;
              return text;
            }}""",
            code,
        )
        return ast.literal_eval(text) if text else None

    def until(self, code: str, seconds: float = 60):
        """Wait until an expression of the kernel is true."""
        deadline = time.monotonic() + seconds * SLOW
        while not self.python(f"print(bool({code}))"):
            assert time.monotonic() < deadline, f"never true: {code}"
            self.page.wait_for_timeout(200)

    def run_canvas_cell(self):
        self.page.evaluate(
            f"""() => {{ {self.PANEL}.content.activeCellIndex = 0;
            return window.jupyterapp.commands.execute('notebook:run-cell'); }}"""
        )
        self.page.wait_for_selector(".mos-canvas")

    def cells(self) -> list[str]:
        return self.page.evaluate(f"() => {self.PANEL}.model.toJSON().cells.map(cell => cell.id + cell.cell_type)")

    def drag(self, *points):
        frame = self.settled()
        places = [(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]) for x, y in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=4)
        self.page.mouse.up()

    def settled(self) -> dict:
        """The stage in view, once it stands still: after a change of theme the page is laid out anew."""
        seen = []
        for _ in range(40):
            self.stage.scroll_into_view_if_needed()
            seen.append(self.stage.bounding_box())
            if seen[-1] and seen[-2:-1] == seen[-1:]:
                return seen[-1]
            self.page.wait_for_timeout(250)
        pytest.fail(f"the canvas never stood still: {seen[-3:]}")

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def shows(self, text: str, seconds: float = 60):
        """Wait until the status line has the text."""
        self.root.locator("[role=status]", has_text=text).wait_for(timeout=1000 * seconds * SLOW)


@pytest.fixture(scope="module")
def notebook_page(browser, server):
    """The notebook, opened and run; at the end, nothing may have been asked of any other machine."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page, outside = context.new_page(), []
    page.set_default_timeout(90_000 * SLOW)
    page.on("request", lambda request: outside.append(request.url) if is_outside(request.url) else None)
    page.on("websocket", lambda socket: outside.append(socket.url) if is_outside(socket.url) else None)
    page.goto(f"{server}/lab/tree/canvas.ipynb?reset", wait_until="domcontentloaded")
    page.wait_for_function(
        "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
    )
    page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
    lab = Lab(page)
    lab.run_canvas_cell()
    yield lab
    context.close()
    assert not outside


@pytest.fixture
def lab(notebook_page):
    notebook_page.python("canvas.cancel(); canvas.wait(60); canvas.regions = []; canvas.background = None")
    notebook_page.stage.focus()
    notebook_page.press("Escape", "v")
    return notebook_page


def test_what_is_drawn_is_in_python_and_back(lab, shot):
    lab.drag((0.1, 0.2), (0.45, 0.9))
    lab.until("canvas.regions")
    np.testing.assert_allclose(lab.python("print(canvas.regions[0].box)"), [0.1, 0.2, 0.45, 0.9], atol=0.01)
    lab.press("Enter")
    lab.page.keyboard.type("a <bibi1> <bibi2>")
    lab.page.keyboard.press("Tab")
    lab.until("canvas.regions[0].prompt == 'a <bibi1> <bibi2>'")
    lab.python("canvas.regions = [*canvas.regions, Region('a dog', box=(0.5, 0, 1, 1))]")
    lab.root.locator(".mos-list li").nth(1).wait_for()
    lab.stage.focus()
    lab.press("Control+z")
    lab.until("len(canvas.regions) == 1")
    shot(lab.page, "lab_light")


def test_a_mask_arrives_as_it_was_painted(lab):
    lab.press("p")
    lab.drag((0.3, 0.5), (0.7, 0.5))
    lab.until("canvas.regions")
    area = lab.python("print(canvas.regions[0].mask.mean().item(), canvas.regions[0].mask.shape, sep=',')")
    assert area[0] == pytest.approx(0.4 * 0.12 + np.pi * 0.06**2, abs=0.003) and area[1] == (256, 256)
    lab.press("Control+z")
    lab.until("not canvas.regions")


def test_keyboard_only_and_the_notebook_hears_nothing(lab):
    cells = lab.cells()
    lab.press("n", "ArrowRight", "Shift+ArrowDown")
    lab.press("a", "b", "d", "d", "m", "y", "x", "c", "z", "j", "k", "Shift+m", "0", "0", "v")
    lab.press("Enter")
    lab.page.keyboard.type("abddmyx 00")
    lab.press("Shift+Tab")
    lab.root.locator(".mos-list").focus()
    lab.press("Shift+Enter", "a", "b", "d", "d")
    lab.until("canvas.regions and canvas.regions[0].prompt == 'abddmyx 00'")
    assert lab.cells() == cells
    np.testing.assert_allclose(lab.python("print(canvas.regions[0].box)"), [0.27, 0.25, 0.67, 0.67], atol=1e-6)


def test_sampling_shows_grows_cancels_and_restores(lab, shot):
    lab.drag((0.1, 0.2), (0.45, 0.9))
    lab.press("Enter")
    lab.page.keyboard.type("a cat")
    tried = lab.python("print(len(canvas.history))")
    lab.root.get_by_role("button", name="Sample", exact=True).click()
    lab.shows("Step ")
    lab.page.wait_for_function("document.querySelector('.mos-stage img').src.startsWith('blob:')")
    shot(lab.page, "lab_sampling")
    lab.shows("The picture is done.")
    lab.until(f"len(canvas.history) == {tried + 1} and canvas.history[-1].regions[0].prompt == 'a cat'")
    lab.page.wait_for_function("document.querySelector('.mos-stage img').src.startsWith('data:image/png')")
    lab.python("canvas.model.pause = 0.5")
    lab.root.get_by_role("button", name="Sample", exact=True).click()
    lab.shows("Step ")
    assert lab.python("print(1 + 1)") == 2, "the kernel is free while it samples"
    lab.root.get_by_role("button", name="Cancel").click()
    lab.shows("Cancelled.")
    lab.python("canvas.model.pause = 0.05; canvas.regions = []")
    lab.until(f"len(canvas.history) == {tried + 1} and not canvas.regions")
    lab.root.get_by_role("button", name=f"Restore sample {tried + 1}").click()
    lab.until("[r.prompt for r in canvas.regions] == ['a cat']")
    shot(lab.page, "lab_history")


def test_it_survives_being_scrolled_away(lab):
    lab.press("p")
    lab.drag((0.2, 0.2), (0.8, 0.8))
    lab.page.mouse.move(5, 5)
    ink = "document.querySelector('.mos-stage canvas')?.toDataURL()"
    lab.page.wait_for_timeout(500)
    before = lab.page.evaluate(ink)
    # Lab takes cells out of the page, and keeps some in it unseen: gone is what no click could reach.
    gone = """() => { const stage = document.querySelector('.mos-stage'), frame = stage?.getBoundingClientRect();
        if (!stage) return true;
        const hit = document.elementFromPoint(frame.x + 20, Math.max(120, frame.bottom - 20));
        return !stage.contains(hit); }"""
    lab.page.evaluate(f"() => {{ {lab.PANEL}.content.activeCellIndex = 20; }}")
    frame = lab.page.locator(".jp-WindowedPanel-outer").first.bounding_box()
    lab.page.mouse.move(frame["x"] + 20, frame["y"] + frame["height"] / 2)
    for way in (800, -800):
        for _ in range(20):
            lab.page.mouse.wheel(0, way)
            lab.page.wait_for_timeout(100)
        if way > 0:
            lab.page.wait_for_function(gone)
    lab.stage.wait_for()
    lab.page.wait_for_function(f"before => {ink} === before", arg=before)
    lab.stage.focus()
    lab.press("Control+z")
    lab.until("not canvas.regions")


def test_dark_theme(lab, shot):
    lab.page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    lab.page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
    lab.python("canvas.regions = [Region('', box=(i / 3, 0, (i + 1) / 3, 1)) for i in range(3)]")
    lab.root.locator(".mos-list li").nth(2).click()
    lab.page.wait_for_timeout(1000)
    channels = lab.root.evaluate("node => getComputedStyle(node).backgroundColor.match(/[\\d.]+/g).map(Number)")
    assert max(channels[:3]) < 80, "the page is dark"
    shot(lab.page, "lab_dark")
    lab.page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")
    lab.page.wait_for_selector("body[data-jp-theme-light=true]", state="attached")


def test_a_restarted_kernel_is_told_and_the_cell_run_again_works(lab, shot):
    lab.drag((0.1, 0.2), (0.45, 0.9))
    lab.until("canvas.regions")
    lab.page.evaluate(f"async () => {{ await {lab.PANEL}.sessionContext.restartKernel(); }}")
    if lab.page.locator(".mos-canvas").count():  # Lab may keep the old view: it still draws, and says what is wrong
        lab.drag((0.55, 0.2), (0.9, 0.9))
        assert lab.root.locator(".mos-list li").count() == 2
        lab.root.get_by_role("button", name="Sample", exact=True).click()
        lab.shows("run the cell again")
        shot(lab.page, "lab_restarted")
    lab.page.evaluate("document.querySelectorAll('.mos-canvas').forEach(node => node.classList.add('old'))")
    lab.run_canvas_cell()
    lab.page.wait_for_selector(".mos-canvas:not(.old)")
    lab.drag((0.1, 0.1), (0.5, 0.5))
    lab.until("len(canvas.regions) == 1")
