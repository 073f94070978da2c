"""Write into notebooks what all of them share: python .ci/stamp.py notebooks/*.ipynb [--check]

The badge ends the first cell's title line, the set-up cell (its text is `.ci/setup_cell.py`, and nowhere else) is the
first code cell, tagged "setup", and the metadata make Colab start without a GPU, which the pocket model does not need,
and choose a T4 if one is asked for. In the README every notebook that is ready for Colab gets its badge. Stamping twice
changes nothing. With --check nothing is written; the exit status says whether something would be.
"""

import copy
import re
import sys
from pathlib import Path

import nbformat

HERE = Path(__file__).resolve().parent
SETUP = (HERE / "setup_cell.py").read_text(encoding="utf-8").rstrip("\n")
REPOSITORY = re.search(r'^REPOSITORY = "(.*)"$', SETUP, re.M)[1]  # the one place where the address is written
COLAB = REPOSITORY.replace("https://github.com", "https://colab.research.google.com/github")
BRANCH = "main"
METADATA = {"provenance": [], "toc_visible": True, "gpuType": "T4"}  # Colab's, no "accelerator": it starts on a CPU


def badge(name: str) -> str:
    """The badge that opens notebooks/<name>.ipynb in Colab, as Markdown."""
    picture = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({picture})]({COLAB}/blob/{BRANCH}/notebooks/{name}.ipynb)"


def stamp(notebook, name: str):
    """A copy of the notebook with badge, set-up cell and metadata; raises ValueError where it has no title."""
    notebook = copy.deepcopy(notebook)
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        raise ValueError(f"{name} does not begin with a title: make its first cell Markdown, '# 00 · Title'.")
    title, _, rest = first.source.partition("\n")
    rest = "\n".join(line for line in rest.splitlines() if "colab-badge.svg" not in line).lstrip("\n")
    first.source = f"{title}\n\n{badge(name)}\n\n{rest}".rstrip("\n")
    put_setup(notebook)
    notebook.metadata["colab"] = dict(METADATA)
    notebook.metadata.pop("accelerator", None)
    return notebook


def put_setup(notebook) -> None:
    """The set-up cell as the first code cell: replaced if it is there, else added."""
    for cell in notebook.cells:
        if "setup" in cell.metadata.get("tags", ()):
            cell.source = SETUP
            return
    first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    cell = nbformat.v4.new_code_cell(SETUP, metadata={"tags": ["setup"]})
    notebook.cells.insert(first, cell)


def readme(text: str) -> str:
    """The README with a badge in the row of every notebook that has the set-up cell, and none in other rows."""

    def row(found: re.Match) -> str:
        file = HERE.parent / "notebooks" / f"{found[2]}.ipynb"
        ready = file.exists() and stamp(nbformat.read(file, 4), file.stem) == nbformat.read(file, 4)
        return f"{found[1]} | {badge(found[2]) if ready else ''} |"

    return re.sub(r"^(\| \[[^\]]*\]\(notebooks/(\w+)\.ipynb\)) \|[^|]*\|", row, text, flags=re.M)


def main(arguments: list[str]) -> int:
    """Stamp the notebooks named; 1 with --check if one is not stamped."""
    stale = 0
    for file in map(Path, [name for name in arguments if name != "--check"]):
        notebook = nbformat.read(file, as_version=4)
        stamped = stamp(notebook, file.stem)
        if stamped == notebook:
            continue
        stale += 1
        print(f"{file}: badge, set-up cell or metadata are not as .ci/stamp.py writes them")
        if "--check" not in arguments:
            nbformat.write(stamped, file)
    page = HERE.parent / "README.md"
    text = page.read_text(encoding="utf-8")
    if readme(text) != text:
        stale += 1
        print("README.md: badges are not as .ci/stamp.py writes them")
        if "--check" not in arguments:
            page.write_text(readme(text), encoding="utf-8")
    return int(stale > 0 and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
