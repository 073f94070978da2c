"""make browser: every notebook in a real JupyterLab, as a student would run it: python .ci/lab.py [00 07]

A copy without outputs is opened in a headless Chromium, "Run All Cells" is called, and every widget that is shown is
used once: a slider is moved, a region is painted and sampled, a vote is cast. out/lab keeps the pages as pictures, for
people to look at. Wrong is: a cell that did not run or failed (exercises may fail), a widget that is not there or does
not answer, an error in the page, a request to another machine.
"""

import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from playwright.sync_api import TimeoutError, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))
from bare_page import SLOW  # noqa: E402
from lab_server import is_outside, lab_server  # noqa: E402

OUT = ROOT / "out" / "lab"
WIDE, TALL = 1280, 2000  # pixels of one picture of a page
RUNNING = 1800 * SLOW  # seconds that a notebook may take
PANEL = "window.jupyterapp.shell.currentWidget"
IDLE = "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
RUN = """() => { window.ran = null;
  window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => { window.ran = 'yes'; }, (error) => {
    window.ran = String(error); }); }"""
CELLS = f"""() => {PANEL}.model.toJSON().cells.map((cell) => ({{
  code: cell.cell_type === 'code' && [cell.source].flat().join('').trim() !== '', ran: cell.execution_count,
  may_fail: (cell.metadata.tags ?? []).includes('raises-exception'),
  errors: (cell.outputs ?? []).filter((o) => o.output_type === 'error').map((o) => `${{o.ename}}: ${{o.evalue}}`),
  stderr: (cell.outputs ?? []).filter((o) => o.name === 'stderr').map((o) => [o.text].flat().join('')).join(''),
  widget: (cell.outputs ?? []).some((o) => 'application/vnd.jupyter.widget-view+json' in (o.data ?? {{}})) }}))"""
BLOWN_UP = "(node) => [...node.querySelectorAll('img')].filter((i) => i.clientWidth > i.naturalWidth + 2).length"
PICTURES = "(node) => [...node.querySelectorAll('img')].map((image) => image.src).join(' ')"


def bare(file: Path, folder: Path) -> Path:
    """A copy of a notebook without outputs."""
    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / file.name)
    return folder / file.name


def faults(cells: list[dict]) -> list[str]:
    """What went wrong in a notebook that was run as a whole, a sentence each."""
    found = []
    for i, cell in enumerate(cells):
        if cell["code"] and cell["ran"] is None:
            found.append(f"cell {i} did not run")
        if not cell["may_fail"]:
            found += [f"cell {i}: {error}" for error in cell["errors"]]
        if cell["stderr"]:
            found.append(f"cell {i} complains: {cell['stderr'].strip()[-300:]}")
    return found


class Walk:
    """One notebook in one page."""

    def __init__(self, browser, address: str, name: str):
        self.wrong = []
        self.context = browser.new_context(viewport={"width": WIDE, "height": TALL})
        self.page = self.context.new_page()
        self.page.set_default_timeout(90_000 * SLOW)
        self.page.on("pageerror", lambda error: self.wrong.append(f"the page: {error}"))
        self.page.on("request", lambda request: self.no_outside(request.url))
        self.page.on("websocket", lambda socket: self.no_outside(socket.url))
        self.page.goto(f"{address}/lab/tree/{name}?reset", wait_until="domcontentloaded")
        self.page.wait_for_function(IDLE)
        self.page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")

    def no_outside(self, url: str) -> None:
        if is_outside(url):
            self.wrong.append(f"it asked for {url}")

    def run(self) -> list[dict]:
        """Run all cells; what became of each."""
        self.page.evaluate(RUN)
        self.page.wait_for_function("window.ran", timeout=1000 * RUNNING, polling=1000)
        self.page.wait_for_function(IDLE)
        cells = self.page.evaluate(CELLS)
        self.wrong += faults(cells)
        return cells

    def use(self, i: int) -> str:
        """Use the widget of cell `i`; what was done, "" where nothing could be."""
        self.page.evaluate(f"(i) => {PANEL}.content.scrollToItem(i, 'start')", i)
        self.page.evaluate(f"(i) => {{ {PANEL}.content.widgets[i].node.dataset.walk = i; }}", i)
        cell = self.page.locator(f"[data-walk='{i}'] .jp-Cell-outputWrapper")
        ways = {".mos-canvas": self.paint, ".mos-vote": self.vote, "[role=slider]": self.slide}
        try:
            cell.locator(", ".join(ways)).first.wait_for()
        except TimeoutError:
            return ""
        return next(act(cell) for selector, act in ways.items() if cell.locator(selector).count())

    def changes(self, cell, before: str, seconds: float = 30) -> bool:
        """Whether the pictures of a cell are others than `before`, soon."""
        deadline = time.monotonic() + seconds * SLOW
        while cell.evaluate(PICTURES) == before:
            if time.monotonic() > deadline:
                return False
            self.page.wait_for_timeout(200)
        return True

    def slide(self, cell) -> str:
        """Move every slider a step: each has to change the picture."""
        if cell.evaluate(BLOWN_UP):
            self.wrong.append("a picture is stretched beyond its own size")
        sliders = cell.locator("[role=slider]")
        moved = 0
        for k in range(sliders.count()):
            slider, before = sliders.nth(k), cell.evaluate(PICTURES)
            if slider.get_attribute("aria-disabled") == "true":
                continue
            slider.focus()
            last = slider.get_attribute("aria-valuenow") == slider.get_attribute("aria-valuemax")
            self.page.keyboard.press("ArrowLeft" if last else "ArrowRight")
            if not self.changes(cell, before):
                self.wrong.append(f"slider {k} of {sliders.count()} was moved and the picture stayed")
            moved += 1
        return f"{moved} sliders moved"

    def vote(self, cell) -> str:
        """Vote once: the next pair has to come."""
        cell.locator("input").first.fill("somebody")
        cell.get_by_role("button", name="Start").click()
        left = cell.get_by_role("button", name="The left picture")
        left.wait_for()
        before = cell.evaluate(PICTURES)
        left.click()
        if not self.changes(cell, before):
            self.wrong.append("a vote was cast and the same pair is there")
        return "one vote"

    def paint(self, cell) -> str:
        """Paint one more region and sample: a picture has to come."""
        stage, before = cell.locator(".mos-stage > svg"), cell.evaluate(PICTURES)
        listed = cell.locator(".mos-list li").count()
        stage.scroll_into_view_if_needed()
        self.page.wait_for_timeout(500)
        frame = stage.bounding_box()
        stage.focus()
        self.page.keyboard.press("Escape")
        self.page.keyboard.press("r")
        self.page.mouse.move(frame["x"] + 0.3 * frame["width"], frame["y"] + 0.05 * frame["height"])
        self.page.mouse.down()
        self.page.mouse.move(frame["x"] + 0.7 * frame["width"], frame["y"] + 0.3 * frame["height"], steps=5)
        self.page.mouse.up()
        if cell.locator(".mos-list li").count() != listed + 1:
            self.wrong.append("a region was painted and is not listed")
        cell.get_by_role("button", name="Sample", exact=True).click()
        cell.locator("[role=status]", has_text="The picture is done.").wait_for(timeout=600_000 * SLOW)
        if not self.changes(cell, before):
            self.wrong.append("the canvas sampled and shows the same picture")
        return "a region painted and sampled"

    def pictures(self, folder: Path, name: str) -> int:
        """Save the whole notebook as pictures of the page, from top to bottom; how many."""
        outer = f"{PANEL}.content.outerNode"
        height = self.page.evaluate(f"() => [{outer}.scrollHeight, {outer}.clientHeight]")
        tops = range(0, max(1, height[0] - 50), height[1] - 100)
        for k, top in enumerate(tops):
            self.page.evaluate(f"(top) => {{ {outer}.scrollTop = top; }}", top)
            self.page.wait_for_timeout(500)
            self.page.screenshot(path=folder / f"{name}-{k}.png")
        return len(tops)


def walk(browser, address: str, file: Path, shots: Path) -> list[str]:
    """Run one notebook, use its widgets, save its pictures -> what is wrong, a sentence each."""
    start = time.monotonic()
    one = Walk(browser, address, file.name)
    try:
        cells = one.run()
        minutes, done = (time.monotonic() - start) / 60, []
        for i in (i for i, cell in enumerate(cells) if cell["widget"]):
            done.append(one.use(i))
            if not done[-1]:
                one.wrong.append(f"the widget of cell {i} is not on the page")
        count = one.pictures(shots, file.stem)
    finally:
        one.context.close()
    print(f"{file.stem}: {minutes:.1f} min, {'; '.join(done) or 'no widget'}, {count} pictures", *one.wrong, sep="\n  ")
    return one.wrong


def main(wanted: list[str]) -> int:
    """0 if nothing is wrong in any notebook."""
    from conftest import find_chromium

    files = [f for f in sorted((ROOT / "notebooks").glob("*.ipynb")) if not wanted or f.stem.split("_")[0] in wanted]
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "work").mkdir(parents=True)
    wrong = []
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        with lab_server(Path(home), OUT / "work", windowing="none") as address:
            arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=arguments)
            for file in files:
                wrong += walk(browser, address, bare(file, OUT / "work"), OUT)
            browser.close()
    print(f"{len(files)} notebooks, {len(wrong)} faults; pictures of the pages: {OUT}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main([word for word in sys.argv[1:] if re.fullmatch(r"\d\d\w?", word)]))
