"""Run notebooks in place and make them ready to commit: python .ci/notebooks.py notebooks/*.ipynb

Every cell is run in order in a fresh kernel. Exercise cells are tagged `raises-exception`: they fail until a student
has filled them in, and of their tracebacks only the message is kept. What is written down must open on any machine: no
folder of this one, no state of widgets, no file over 1 MB.
"""

import base64
import io
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

LARGEST = 1_000_000
QUALITY = 52  # of JPEGs; `course.small_figures` draws them at 60
WIDEST = 900  # pixels


def tidy(notebook, folder: Path) -> None:
    """Shorten tracebacks, drop widget state, count cells from 1, name no absolute path, and keep pictures small."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                output.traceback = [f"{output.ename}: {output.evalue}"]
            if output.output_type == "stream":
                output.text = re.sub(re.escape(str(folder.resolve().parent)) + r"/?", "", output.text)
            shrink(output.get("data", {}))


def shrink(data: dict) -> None:
    """Keep every picture as one JPEG, at most WIDEST pixels wide: the one there, or else the PNG turned into one."""
    png = data.pop("image/png", None)
    kept = data.get("image/jpeg", png)
    if not kept:
        return
    small = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(kept))) as picture:
        picture = picture.convert("RGB")
        if picture.width > WIDEST:
            picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)), Image.Resampling.LANCZOS)
        picture.save(small, "JPEG", quality=QUALITY, optimize=True, progressive=True)
    if png is kept or len(small.getvalue()) < 0.9 * len(base64.b64decode(kept)):  # else it was small already
        kept = base64.b64encode(small.getvalue()).decode()
    data["image/jpeg"] = kept


def run(file: Path) -> None:
    """Execute one notebook and write it back; raises what a cell raises."""
    notebook = nbformat.read(file, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(file.parent)}}).execute()
    tidy(notebook, file.parent)
    nbformat.validate(notebook)
    nbformat.write(notebook, file)
    size = file.stat().st_size
    print(f"{file}: {len(notebook.cells)} cells, {size / 1e6:.2f} MB", flush=True)
    if size > LARGEST:
        raise SystemExit(f"{file} is larger than {LARGEST / 1e6:g} MB: show fewer or smaller pictures.")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(Path(name))
