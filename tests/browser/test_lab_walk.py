"""`make browser` on two small notebooks in a real JupyterLab: one is well, of the other every fault is told."""

import importlib.util
from pathlib import Path

import pytest
from lab_server import lab_server

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("playwright", reason="pip install '.[browser]'")
pytest.importorskip("jupyterlab", reason="pip install '.[lab]'")
CI = Path(__file__).resolve().parents[2] / ".ci"
if not CI.is_dir():
    pytest.skip("these tests read the checkout", allow_module_level=True)

SLIDER = """from PIL import Image
from mixofshow_lite.course.widgets import FrameSlider
FrameSlider({colour: Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")}, "colour", start="blue")"""
STUCK = SLIDER.replace('(40, 40), colour)', '(40, 40), "red")')  # fmt: skip


@pytest.fixture(scope="module")
def lab():
    spec = importlib.util.spec_from_file_location("lab", CI / "lab.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save(file, *sources):
    code = nbformat.v4.new_code_cell
    cells = [
        code(source, metadata={"tags": ["raises-exception"] if "exercise" in source else []}) for source in sources
    ]
    cells[0].outputs = [nbformat.v4.new_output("stream", text="of another run")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}  # without it Lab asks which one
    cells.append(nbformat.v4.new_markdown_cell("The end."))
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), file)
    return file


def test_all_cells_run_and_every_fault_is_told(browser, lab, tmp_path, capsys):
    work = tmp_path / "work"
    work.mkdir()
    well = save(tmp_path / "well.ipynb", "x = 1", "raise ValueError('exercise')", SLIDER, "print(x + 1)")
    ill = save(tmp_path / "ill.ipynb", STUCK, "import sys; print('beware', file=sys.stderr)", "1 / 0", "print(2)")
    with lab_server(tmp_path, work, windowing="none") as address:
        assert lab.walk(browser, address, lab.bare(well, work), tmp_path) == []
        assert "1 sliders moved" in capsys.readouterr().out
        assert (tmp_path / "well-0.png").exists()
        told = "\n".join(lab.walk(browser, address, lab.bare(ill, work), tmp_path))
    assert "cell 2: ZeroDivisionError: division by zero" in told and "cell 3 did not run" in told
    assert "cell 1 complains: beware" in told and "slider 0 of 1 was moved and the picture stayed" in told
