"""Notebooks as they are committed: run from top to bottom, small, and naming no folder of the machine that ran them."""

import base64
import importlib.util
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="not a checkout")


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_fit_to_be_opened_anywhere(file):
    text = file.read_text(encoding="utf-8")
    notebook = json.loads(text)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    assert len(text.encode()) < 1_000_000
    assert "widgets" not in notebook["metadata"]
    assert not re.search(r"/(?:home|work|root|Users|content)/", text)
    counts = [cell["execution_count"] for cell in code]
    assert counts == list(range(1, len(code) + 1))
    for cell in code:
        failed = [output for output in cell["outputs"] if output["output_type"] == "error"]
        assert all(len(output["traceback"]) == 1 for output in failed)
        assert not failed or "raises-exception" in cell["metadata"].get("tags", ()), "".join(cell["source"])[:80]


def prose_of(notebook: dict) -> str:
    return "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_no_section_is_lost(file):
    """Prose edits once overwrote headings, a summary and an exercise's card: what is announced must be there."""
    notebook = json.loads(file.read_text(encoding="utf-8"))
    prose = prose_of(notebook)
    heads = re.findall(r"^## (.*)$", prose, re.M)
    numbers = [int(head.split(".")[0]) for head in heads if re.match(r"\d+\. ", head)]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 5, heads
    assert "Summary" in heads
    assert "**Predict:**" in prose
    for number in re.findall(r"\bsections? (\d+)\b(?! of the paper|\.\d)", prose):
        assert int(number) in numbers, f"section {number} is named and does not exist"
    cells, cards = notebook["cells"], re.findall(r"^### Exercise (\d\.\d): ", prose, re.M)
    stubs = []
    for before, cell in zip(cells, cells[1:], strict=False):
        found = re.search(r'course\.check\("(\d\.\d)"', "".join(cell["source"]))
        if cell["cell_type"] == "code" and found:
            stubs.append(found[1])
            assert f"### Exercise {found[1]}: " in "".join(before["source"]), f"the stub of {found[1]} has no card"
    assert stubs == cards and len(cards) >= 4


PLANNED = {"06"}  # the rest of the course: evaluation


def test_notebooks_are_numbered_without_a_gap():
    numbers = [file.stem.split("_")[0] for file in NOTEBOOKS]
    wanted = {"00", "01", "02", "03", "04", "04b", "05", "07"}
    assert len(set(numbers)) == len(numbers) and wanted <= set(numbers) <= wanted | PLANNED


def test_pictures_of_a_notebook_are_kept_once_and_small():
    spec = importlib.util.spec_from_file_location("runner", FOLDER.parent / ".ci" / "notebooks.py")
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    smooth = np.tile(np.linspace(0, 255, 300)[:, None, None], (1, 200, 3))
    smooth += np.random.default_rng(0).normal(0, 3, smooth.shape)
    file = io.BytesIO()
    Image.fromarray(smooth.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    png = base64.b64encode(file.getvalue()).decode()
    alone = {"image/png": png}
    runner.shrink(alone)
    both = {"image/png": png, "image/jpeg": alone["image/jpeg"]}
    runner.shrink(both)
    assert both == alone, "a small JPEG is kept as it is"
    file = io.BytesIO()
    Image.new("RGB", (2 * runner.WIDEST, 100)).save(file, "JPEG", quality=95)
    wide = {"image/jpeg": base64.b64encode(file.getvalue()).decode()}
    runner.shrink(wide)
    assert Image.open(io.BytesIO(base64.b64decode(wide["image/jpeg"]))).size == (runner.WIDEST, 50)
    text = {"text/plain": "no picture"}
    runner.shrink(text)
    assert text == {"text/plain": "no picture"}
    assert set(alone) == {"image/jpeg"} and len(alone["image/jpeg"]) < 0.6 * len(png)
    small = Image.open(io.BytesIO(base64.b64decode(alone["image/jpeg"])))
    assert small.size == (200, 300)
    assert np.abs(np.asarray(small.convert("RGB"), float) - smooth.clip(0, 255)).mean() < 4
