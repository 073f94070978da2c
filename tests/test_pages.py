"""The offline pack, slides and the site: made from the notebooks as they are."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbconvert")
ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / ".ci").is_dir():
    pytest.skip("these tests read the checkout", allow_module_level=True)


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages, offline = script("pages"), script("offline")


def notebook(*extra):
    markdown, picture = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell("show()")
    picture.outputs = [nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo="})]
    fold = "<details><summary>Hint</summary>\n\nsecret\n\n</details>"
    cells = [
        markdown("# 09 · A title\n\n**Why is that?**"),
        nbformat.v4.new_code_cell("x = 1"),
        markdown(f"## 1. A section\n\n{fold}\n\n[next](10_next.ipynb)"),
        picture,
        nbformat.v4.new_code_cell("y = 2"),
        *extra,
    ]
    return nbformat.v4.new_notebook(cells=cells)


def test_slides_are_sections_and_their_first_pictures():
    book = notebook()
    slides = pages.slides_of(book)
    assert [cell.source.split("\n")[0] for cell in slides.cells] == ["# 09 · A title", "## 1. A section", "show()"]
    assert "secret" not in slides.cells[1].source and "secret" in book.cells[2].source


def test_tagged_cells_are_the_slides_where_there_are_any():
    tagged = nbformat.v4.new_markdown_cell("Only this.", metadata={"tags": ["slide"]})
    assert [cell.source for cell in pages.slides_of(notebook(tagged)).cells] == ["Only this."]


def test_pages_link_to_pages_and_slides_hide_code(tmp_path):
    file = tmp_path / "09_title.ipynb"
    nbformat.write(notebook(), file)
    index = pages.write("site", tmp_path / "site", [file]).read_text()
    assert '<a href="09_title.html">09 · A title</a><br>Why is that?' in index
    page = (tmp_path / "site" / "09_title.html").read_text()
    assert 'href="10_next.html"' in page and "<title>09 · A title</title>" in page and "secret" in page
    pages.write("slides", tmp_path / "slides", [file])
    shown = (tmp_path / "slides" / "09_title.html").read_text()
    assert "show()" not in re.sub(r"<script.*?</script>", "", shown, flags=re.S) and "scroll-snap" in shown


def test_the_offline_pack_is_complete(tmp_path):
    commands = []
    place = offline.pack(tmp_path / "pack", ["--quiet"], run=lambda command, check: commands.append(command))
    assert commands[0][1:4] == ["-m", "pip", "wheel"] and commands[0][-2:] == ["--quiet", f"{ROOT}[metrics,lab]"]
    there = {file.name for file in (place / "notebooks").iterdir()}
    assert there == {f.name for f in (ROOT / "notebooks").iterdir() if f.suffix in (".ipynb", ".md")}
    text = (place / "install.py").read_text()
    compile(text, "install.py", "exec")
    assert "--no-index" in text and repr(sys.version_info[:2]) in text and "mixofshow_lite[metrics,lab]" in text
