"""The executed notebooks as web pages: python .ci/pages.py site | slides

site     out/site: every notebook as a page, by nbconvert, and an index of them
slides   out/slides: of every notebook the cells tagged "slide"; where none is tagged, the cells that open a section and
         the first picture in it. Arrow keys or the wheel go from one to the next.

Pages need no network, except that formulas are set by MathJax, which is fetched; without it they show as TeX.
"""

import copy
import html
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out"
FOLD = re.compile(r"<details>.*?</details>", re.S)
SLIDES_CSS = """<style>
html { scroll-snap-type: y mandatory; } body { margin: 0; }
.jp-Cell { min-height: 96vh; scroll-snap-align: start; display: flex; flex-direction: column; justify-content: center;
  font-size: 150%; max-width: 60rem; margin: auto; } .jp-InputPrompt, .jp-OutputPrompt { display: none; }
</style><script>addEventListener('keydown', (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, PageDown: 1, ' ': 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const cells = [...document.querySelectorAll('.jp-Cell')];
  const at = cells.findIndex((cell) => cell.getBoundingClientRect().bottom > innerHeight / 3);
  cells[Math.min(cells.length - 1, Math.max(0, at + step))].scrollIntoView();
});</script>"""
INDEX = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width"><style>
body {{ font: 18px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem; color: #22262c; }}
li {{ margin: .6rem 0; }}</style></head><body><h1>{title}</h1><p>{lead}</p><ol start="0" style="list-style: none">
{items}</ol></body></html>"""


def has_picture(cell) -> bool:
    return any("image/jpeg" in o.get("data", {}) or "image/png" in o.get("data", {}) for o in cell.get("outputs", ()))


def chosen(notebook) -> list:
    """The cells that make slides, without folds and without code."""
    tagged = [cell for cell in notebook.cells if "slide" in cell.metadata.get("tags", ())]
    if tagged:
        return tagged
    found, wanted = [], False  # wanted: the section has had no picture yet
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and re.search(r"^##? ", cell.source, re.M):
            found.append(cell)
            wanted = True
        elif wanted and has_picture(cell):
            found.append(cell)
            wanted = False
    return found


def slides_of(notebook):
    """A notebook of nothing but the slides."""
    notebook = copy.deepcopy(notebook)
    notebook.cells = chosen(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = FOLD.sub("", cell.source)
    return notebook


def title_of(notebook) -> str:
    return notebook.cells[0].source.splitlines()[0].lstrip("# ")


def question_of(notebook) -> str:
    found = re.search(r"\*\*([^*]*\?)\*\*", notebook.cells[0].source)
    return " ".join(found[1].split()) if found else ""


def to_html(notebook, slides: bool = False) -> str:
    """One page; links between notebooks become links between pages."""
    exporter = HTMLExporter(exclude_input=slides, exclude_anchor_links=True)
    body, _ = exporter.from_notebook_node(notebook)
    body = re.sub(r'href="(\d\d\w*)\.ipynb"', r'href="\1.html"', body)
    body = re.sub(r"<title>.*?</title>", f"<title>{html.escape(title_of(notebook))}</title>", body, count=1)
    return body.replace("</head>", SLIDES_CSS + "</head>", 1) if slides else body


def write(kind: str, folder: Path, files: list[Path]) -> Path:
    """All pages of a kind and their index -> the index."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for file in files:
        notebook = nbformat.read(file, as_version=4)
        title, question = title_of(notebook), question_of(notebook)
        page = to_html(slides_of(notebook), slides=True) if kind == "slides" else to_html(notebook)
        (folder / f"{file.stem}.html").write_text(page, encoding="utf-8")
        items.append(f'<li><a href="{file.stem}.html">{html.escape(title)}</a><br>{html.escape(question)}</li>')
    lead = "Mix-of-Show, a course to read and run. These pages are the notebooks as they were last run."
    if (folder / "play.html").exists():
        lead += ' <a href="play.html">Try it here</a>, with sliders and without installing anything.'
    text = INDEX.format(title=f"mixofshow_lite: {kind}", lead=lead, items="\n".join(items))
    (folder / "index.html").write_text(text, encoding="utf-8")
    return folder / "index.html"


if __name__ == "__main__":
    which = sys.argv[1] if sys.argv[1:] in (["site"], ["slides"]) else sys.exit(__doc__)
    print(write(which, OUT / which, sorted((ROOT / "notebooks").glob("*.ipynb"))))
