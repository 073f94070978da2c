"""The executed notebooks as web pages: python .ci/pages.py site | slides

site     out/site: every notebook and TEACHING.md as a page, by nbconvert, and an index of them
slides   out/slides: of every notebook the cells tagged "slide"; where none is tagged, the cells that open a section and
         the first picture in it. Arrow keys or the wheel go from one to the next.

A page is one file and asks no other machine for anything: formulas are MathML, which browsers set themselves.
"""

import copy
import html
import posixpath
import re
import sys
from pathlib import Path

import nbformat
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

sys.path.insert(0, str(Path(__file__).resolve().parent))
from stamp import BRANCH, REPOSITORY  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out"
FOLD = re.compile(r"<details>.*?</details>", re.S)
FETCHED = re.compile(
    r'<script src="http.*?</script>|<script type="text/x-mathjax-config">.*?</script>'
    r'|<script type="module">(?:(?!</script>).)*mermaid.*?</script>',
    re.S,
)
CSS = """<style>
.jp-RenderedHTML .highlight pre { font-family: var(--jp-code-font-family, monospace); font-size: 13px;
  line-height: 1.3; }
math { font-size: 110%; } math[display="block"] { margin: 1em 0; }
</style>"""
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
TITLES = {"site": "Mix-of-Show: the course", "slides": "Mix-of-Show: slides"}
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


def formula(tex: str, display: str = "inline") -> str:
    """TeX -> MathML; raises ValueError on a command that latex2mathml does not know and would show as it is."""
    known = re.sub(r"\\arg\b", r"\\operatorname{arg}", tex).replace(r"\|", "‖")
    made = convert(known, display=display)
    if "\\" in re.sub(r"<[^>]*>", "", made):
        raise ValueError(f"A page can't show this formula: {tex}. Write it with commands that latex2mathml knows.")
    return made


class Renderer(IPythonRenderer):
    """Markdown with formulas as MathML."""

    def inline_math(self, body: str) -> str:
        return formula(body)

    def block_math(self, body: str) -> str:
        return formula(body, display="block")


class Exporter(HTMLExporter):
    """Pages by nbconvert, with our Markdown."""

    @pass_context
    def markdown2html(self, context, source: str) -> str:
        return MarkdownWithMath(renderer=Renderer(escape=False, exclude_anchor_links=True)).render(source)


def address(link: str, pages: set[str]) -> str:
    """Where a link of a notebook leads from its page: to one of `pages` (their names), else into the repository."""
    path, mark, anchor = link.partition("#")
    if not path or "://" in path or path.startswith("data:"):
        return link
    if Path(path).stem in pages:
        return f"{Path(path).stem}.html{mark}{anchor}"
    return f"{REPOSITORY}/blob/{BRANCH}/{posixpath.normpath(posixpath.join('notebooks', path))}{mark}{anchor}"


def to_html(notebook, slides: bool = False, pages: set[str] = frozenset()) -> str:
    """One page that fetches nothing; links to what is in `pages` lead to their page, others to the repository."""
    body, _ = Exporter(exclude_input=slides).from_notebook_node(notebook)
    body = FETCHED.sub("", body)
    body = re.sub(r'<img alt="([^"]*)" src="https:[^>]*>', r"\1", body)  # badges, by their words
    body = re.sub(r'href="([^"]*)"', lambda found: f'href="{address(found[1], pages)}"', body)
    body = re.sub(r"<title>.*?</title>", f"<title>{html.escape(title_of(notebook))}</title>", body, count=1)
    return body.replace("</head>", CSS + (SLIDES_CSS if slides else "") + "</head>", 1)


def read(file: Path):
    """A notebook; a Markdown file as a notebook of one cell."""
    if file.suffix == ".md":
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(file.read_text(encoding="utf-8"))])
    return nbformat.read(file, as_version=4)


def write(kind: str, folder: Path, files: list[Path]) -> Path:
    """All pages of a kind and their index -> the index."""
    folder.mkdir(parents=True, exist_ok=True)
    items, names = [], {file.stem for file in files}
    for file in files:
        notebook = read(file)
        title, question = title_of(notebook), question_of(notebook)
        slides = kind == "slides"
        page = to_html(slides_of(notebook) if slides else notebook, slides, names)
        (folder / f"{file.stem}.html").write_text(page, encoding="utf-8")
        items.append(f'<li><a href="{file.stem}.html">{html.escape(title)}</a><br>{html.escape(question)}</li>')
    lead = "Mix-of-Show, a course to read and run. These pages are the notebooks as they were last run."
    if (folder / "play.html").exists():
        lead += ' <a href="play.html">Try it here</a>, with sliders and without installing anything.'
    text = INDEX.format(title=TITLES[kind], lead=lead, items="\n".join(items))
    (folder / "index.html").write_text(text, encoding="utf-8")
    return folder / "index.html"


if __name__ == "__main__":
    which = sys.argv[1] if sys.argv[1:] in (["site"], ["slides"]) else sys.exit(__doc__)
    found = sorted((ROOT / "notebooks").glob("*.ipynb"))
    teaching = [ROOT / "notebooks" / "TEACHING.md"] if which == "site" else []
    print(write(which, OUT / which, found + teaching))
