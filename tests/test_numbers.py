"""Every decimal in a notebook's prose stands in an output of that notebook or in data/results: none can rot unseen.

A number of the prose is found if a source has it when rounded to as many places (signs apart). Sources are the printed
outputs that nbval compares, the JSON files of the studies that the notebook shows, and the cells of UNCOMPARED. What
has no source is listed, and a list may not hold what is not needed: whatever is gone from the text, or is found, fails.
"""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER, RESULTS = ROOT / "notebooks", ROOT / "data" / "results"
NOTEBOOKS = {file.stem.split("_")[0]: file for file in sorted(FOLDER.glob("*.ipynb"))}
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="not a checkout")

# Cells whose printed numbers are quoted but not compared: their last digits differ between machines.
UNCOMPARED = {
    "02": {"c24-a5d654", "c30-69ccc6"},
    "04": {"c28-dc4fe7", "c31-0ba152", "c37-c63c09"},
    "05": {"c05-5870fe"},
}
# Numbers that nothing measures: settings, the official code's, and what the text itself computes.
DEFINED = {
    "01": {"2.5", "0.6"},  # 8 / C in percent, C = 320 and 1280
    "02": {"1.5", "1.8"},  # limits on the length of a word's row
    "06": {"66.5", "52.5"},  # the paper's votes, and what the text says of them
    "04": {"0.003", "0.0001"},  # ridges of the playground
}
# Numbers that stand in a picture: read off a plot, or written beside a widget's frames.
READ = {
    "02": {"1.1", "1.6"},  # length of the row at both ends of the plot
    "04": {"0.82", "0.86", "0.66", "0.73"},  # image-alignment in the playground
    "04b": {"1.7"},  # how far the rabbits' model moves, a ratio of two points of the figure
}

DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?![\w]|\.\d)")
NUMBER = re.compile(r"(?<![\w.])\d+\.?\d*(?:e-?\d+)?(?!\w)")
SECTION = r"\d\.\d(?:\.\d)?"
UNSPOKEN = (  # what claims nothing: code, formulas, addresses, numbers of sections; and folds, whose checks are tested
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$",
    r"<details>.*?</details>",
    r"\]\([^)]*\)|https?://\S+|arXiv:\S+",
    rf"\b[Ss]ections? {SECTION}(?:(?:,| and|,? to) {SECTION})*|\(3\.\d\.\d, |[Ee]xercise \d\.\d|Diffusion \d\.\d",
)


def spoken(text: str) -> list[str]:
    """The decimals of a Markdown cell that claim something."""
    for pattern in UNSPOKEN:
        text = re.sub(pattern, " ", text, flags=re.S)
    return DECIMAL.findall(text)


def compared(cell: dict) -> bool:
    return cell["cell_type"] == "code" and "# NBVAL_CHECK_OUTPUT" in "".join(cell["source"])


def printed(cells: list[dict]) -> list[float]:
    """All numbers in the text outputs of these cells."""
    found = []
    for cell in cells:
        for output in cell.get("outputs", ()):
            text = "".join(output.get("text", "") or output.get("data", {}).get("text/plain", ""))
            found += [float(number) for number in NUMBER.findall(text)]
    return found


def saved(value) -> list[float]:
    """All numbers in what a JSON file holds."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for part in value for number in saved(part)]
    return [abs(float(value))] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def shown_studies(notebook: dict) -> list[str]:
    code = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    return re.findall(r'saved\(kit\.results, "(\w+)"', code)


def among(number: str, values: list[float]) -> bool:
    """Whether one of the values is this number when it is rounded to as many places."""
    unit = 10.0 ** -len(number.split(".")[1])
    return any(abs(abs(value) - float(number)) <= 0.5 * unit + 1e-9 for value in values)


def without_source(notebook: dict, uncompared: set[str] = frozenset()) -> set[str]:
    """The decimals of a notebook's prose that no source has."""
    cells = [cell for cell in notebook["cells"] if compared(cell) or cell.get("id") in uncompared]
    values = printed(cells)
    for name in shown_studies(notebook):
        if (RESULTS / f"{name}.json").exists():  # else it is not measured yet, and has no numbers
            values += saved(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))
    prose = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    return {number for text in prose for number in spoken(text) if not among(number, values)}


def read(name: str) -> dict:
    return json.loads(NOTEBOOKS[name].read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_decimal_has_a_source(name):
    listed = DEFINED.get(name, set()) | READ.get(name, set())
    found = without_source(read(name), UNCOMPARED.get(name, set()))
    assert found <= listed, f"no output and no saved result says {sorted(found - listed)}"
    assert listed <= found, f"{sorted(listed - found)} has a source by now or is gone: take it off the list"


@pytest.mark.parametrize("name", UNCOMPARED)
def test_cells_that_are_not_compared_are_needed(name):
    notebook, cells = read(name), UNCOMPARED[name]
    known = {cell.get("id"): cell for cell in notebook["cells"]}
    assert cells <= set(known), f"{sorted(cells - set(known))} is gone"
    assert not any(compared(known[cell]) for cell in cells), "compared by now: take it off UNCOMPARED"
    whole = without_source(notebook, cells)
    for cell in cells:
        assert without_source(notebook, cells - {cell}) > whole, f"nothing quotes {cell}: take it off UNCOMPARED"


def test_saved_studies_are_compared():
    """A cell that prints a saved study prints the same on every machine: nbval holds it to that."""
    for name in NOTEBOOKS:
        for cell in read(name)["cells"]:
            text = "".join(cell["source"])
            if cell["cell_type"] == "code" and "saved(kit.results" in text and "print(" in text:
                assert compared(cell), f"{name}, {cell['id']} prints a saved study and is not compared"


def book(prose: str, output: str = "", code: str = "# NBVAL_CHECK_OUTPUT\nf()") -> dict:
    out = [{"output_type": "stream", "text": [output]}]
    cells = [{"cell_type": "markdown", "source": [prose]}]
    return {"cells": [*cells, {"cell_type": "code", "id": "a", "source": [code], "outputs": out}]}


@pytest.mark.parametrize(
    ("prose", "output", "missing"),
    [
        ("It is 0.42.", "mean 0.4233", set()),
        ("It is 0.42.", "mean -0.4233 [x]", set()),
        ("It is 0.42 and 0.5.", "0.4288, 0.5", {"0.42"}),
        ("It is 0.4.", "40 %", {"0.4"}),
        ("From 1.6e-3 to v2.5 in section 3.3.1, Stable Diffusion 1.5", "", set()),
        ("`0.31` and $0.32$ [x](https://a.b/0.33) <details>0.34</details>", "", set()),
        ("sections 3.2 and 3.3.2, but 3.4 of them", "", {"3.4"}),
    ],
)
def test_numbers_without_a_source_are_found(prose, output, missing):
    assert without_source(book(prose, output)) == missing


def test_only_compared_or_listed_cells_count():
    assert without_source(book("It is 0.42.", "0.42", code="f()")) == {"0.42"}
    assert without_source(book("It is 0.42.", "0.42", code="f()"), {"a"}) == set()


def test_a_study_counts_where_it_is_shown():
    study = json.loads((RESULTS / "observation_3.json").read_text(encoding="utf-8"))
    value = f"{max(saved(study)):.4f}"
    assert without_source(book(f"It is {value}.")) == {value}
    assert without_source(book(f"It is {value}.", code='saved(kit.results, "observation_3", base)')) == set()
