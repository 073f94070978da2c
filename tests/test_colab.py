"""Colab: one set-up cell, which installs what is missing and nothing else; badges; the script that tries it all."""

import importlib.machinery
import importlib.util
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / ".ci").is_dir():
    pytest.skip("these tests read the checkout", allow_module_level=True)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
UNSTAMPED = set()  # without badge and set-up cell so far; this list may only become shorter


def script(name: str):
    """A script of .ci as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stamp = script("stamp")


def run_cell(monkeypatch, there: set[str], colab: bool) -> list[list[str]]:
    """Run the set-up cell where the modules `there` are found; the commands that it starts."""
    commands, spec = [], importlib.machinery.ModuleSpec("found", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name in there else None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.delenv("MIXOFSHOW_SOURCE", raising=False)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", object())
    exec(compile(stamp.SETUP, "setup_cell", "exec"), {})
    return commands


def test_on_colab_what_is_missing_is_installed_alone(monkeypatch):
    (command,) = run_cell(monkeypatch, {"timm"}, colab=True)
    assert command[1:6] == ["-m", "pip", "install", "--quiet", "--no-deps"]
    assert command[6:] == [f"git+{stamp.REPOSITORY}", "resvg_py", "open_clip_torch", "ftfy"]


def test_where_all_is_there_the_cell_does_nothing(monkeypatch):
    there = {"mixofshow_lite", "resvg_py", "open_clip", "ftfy", "timm"}
    assert run_cell(monkeypatch, there, colab=True) == []
    assert run_cell(monkeypatch, {"mixofshow_lite"}, colab=False) == [], "elsewhere nothing is installed unasked"


def test_elsewhere_the_cell_says_how_to_install(monkeypatch):
    with pytest.raises(ModuleNotFoundError, match="make lab"):
        run_cell(monkeypatch, set(), colab=False)


def test_the_cell_can_install_what_the_package_needs_and_colab_lacks():
    """Whatever the package requires is on Colab's list or in the set-up cell."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["metrics"]
    plain = {re.split(r"[>=]", text)[0].lower().replace("-", "_") for text in needed}
    lines = (ROOT / "tests" / "colab" / "requirements.txt").read_text().splitlines()
    listed = {re.split(r"[<>=]", line)[0].lower().replace("-", "_") for line in lines}
    installed = set(re.findall(r'": "(\w+)"', stamp.SETUP))
    assert plain - listed <= installed, plain - listed - installed


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_have_the_badge_the_cell_and_the_metadata(file):
    notebook = nbformat.read(file, as_version=4)
    stamped = stamp.stamp(notebook, file.stem) == notebook
    tags = [cell for cell in notebook.cells if "setup" in cell.metadata.get("tags", ())]
    assert all(cell.source == stamp.SETUP for cell in tags), "run: python .ci/stamp.py notebooks/*.ipynb"
    if file.stem not in UNSTAMPED:
        assert stamped and len(tags) == 1, "run: python .ci/stamp.py notebooks/*.ipynb"
    elif stamped:
        warnings.warn(f"{file.stem} is stamped by now: take it off UNSTAMPED", stacklevel=1)


def test_stamping_is_idempotent_and_keeps_the_rest():
    cells = [nbformat.v4.new_markdown_cell("# 09 · A title\n\n**A question?**"), nbformat.v4.new_code_cell("1 + 1")]
    once = stamp.stamp(nbformat.v4.new_notebook(cells=cells), "09_a_title")
    assert stamp.stamp(once, "09_a_title") == once
    assert [cell.source for cell in once.cells][1:] == [stamp.SETUP, "1 + 1"]
    assert once.cells[0].source.splitlines()[2] == stamp.badge("09_a_title")
    assert once.cells[0].source.endswith("**A question?**") and "accelerator" not in once.metadata
    once.cells[0].source = "no title"
    with pytest.raises(ValueError, match="title"):
        stamp.stamp(once, "09_a_title")


def test_the_address_is_written_in_one_place():
    """Whatever else names the repository names the same one."""
    where = [ROOT / "README.md", ROOT / "CITATION.cff", *NOTEBOOKS, *(ROOT / "notebooks").glob("*.md")]
    for file in (file for file in where if file.exists()):
        for found in re.findall(r"[\w./:-]+/mixofshow_lite\b(?=/blob|[\"'\s)])", file.read_text(encoding="utf-8")):
            if "://" in found:
                assert found in (stamp.REPOSITORY, stamp.COLAB), f"{file.name} names {found}"


def test_the_readme_has_the_badges_of_notebooks_that_are_ready():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert stamp.readme(text) == text, "run: python .ci/stamp.py notebooks/*.ipynb"
    assert stamp.readme("| [a](notebooks/none.ipynb) | old | b |") == "| [a](notebooks/none.ipynb) |  | b |"


def test_what_moved_is_told():
    colab = script("colab")
    assert colab.moved({"torch": "2.11", "numpy": "2.1.3"}, {"torch": "2.11", "numpy": "2.1.3", "ftfy": "6"}) == []
    assert colab.moved({"torch": "2.11", "timm": "1"}, {"torch": "2.14"}) == [
        "torch was 2.11 and is 2.14",
        "timm was 1 and is gone",
    ]


def test_the_pinned_list_is_the_one_that_floors_are_held_to():
    from test_packaging import COLAB

    text = (ROOT / "tests" / "colab" / "requirements.txt").read_text()
    for name, version in COLAB.items():
        found = re.search(rf"^{name}==([\d.]+)", text, re.M)
        assert found and tuple(map(int, found[1].strip(".").split("."))) == version, name


def test_metadata_of_stamped_notebooks_start_without_a_gpu():
    for file in NOTEBOOKS:
        metadata = json.loads(file.read_text(encoding="utf-8"))["metadata"]
        assert file.stem in UNSTAMPED or (metadata["colab"]["gpuType"] == "T4" and "accelerator" not in metadata)
