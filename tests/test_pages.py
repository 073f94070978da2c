"""The offline pack, slides and the site: made from the notebooks as they are."""

import importlib.util
import platform
import re
import runpy
import subprocess
import sys
import venv
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbconvert")
pytest.importorskip("latex2mathml", reason="pip install '.[lab]'")
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
    nbformat.write(notebook(), tmp_path / "10_next.ipynb")
    index = pages.write("site", tmp_path / "site", [file, tmp_path / "10_next.ipynb"]).read_text()
    assert '<a href="09_title.html">09 · A title</a><br>Why is that?' in index
    page = (tmp_path / "site" / "09_title.html").read_text()
    assert 'href="10_next.html"' in page and "<title>09 · A title</title>" in page and "secret" in page
    pages.write("slides", tmp_path / "slides", [file])
    shown = (tmp_path / "slides" / "09_title.html").read_text()
    assert "show()" not in re.sub(r"<script.*?</script>", "", shown, flags=re.S) and "scroll-snap" in shown


def page_of(source, names=frozenset(), slides=False):
    return pages.to_html(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# 09\n\n" + source)]), slides, names
    )


def test_a_page_fetches_nothing():
    badge = "[![Open in Colab](https://example.org/badge.svg)](https://example.org/open)"
    for slides in (False, True):
        page = page_of(badge, slides=slides)
        assert '<a href="https://example.org/open">Open in Colab</a>' in page
        assert not re.findall(r"""(?:src=|import\(|url\(|<link[^>]*href=)["']?https?:[^"')]*""", page)


def test_formulas_are_set_without_a_network():
    page = page_of("Let $X_i$ be\n\n$$\\arg\\min_W \\big\\| W \\big\\|_F^2$$\n\nand `$HOME`.")
    assert "<msub><mi>X</mi><mi>i</mi></msub>" in page and 'display="block"' in page and "$HOME" in page
    assert "$X_i$" not in page and "arg" in page and "\\arg" not in page and "\\big" not in page and "‖" in page
    with pytest.raises(ValueError, match="latex2mathml knows"):
        page_of("$\\nosuchcommand x$")


@pytest.mark.parametrize("file", sorted((ROOT / "notebooks").glob("*.*")), ids=lambda file: file.stem)
def test_links_lead_to_a_page_or_into_the_repository(file):
    names = {other.stem for other in file.parent.iterdir()}
    notebook = pages.read(file)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    for link in re.findall(r'href="([^"]*)"', pages.to_html(notebook, pages=names)):
        path, there = link.partition("#")[0], f"{pages.REPOSITORY}/blob/{pages.BRANCH}/"
        if link.startswith(there):
            assert (ROOT / path.removeprefix(there)).exists(), link
        else:
            assert not path or path.startswith("https://") or Path(path).stem in names and path.endswith(".html"), link


def test_addresses():
    there = f"{pages.REPOSITORY}/blob/{pages.BRANCH}"
    assert pages.address("10_next.ipynb#top", {"10_next"}) == "10_next.html#top"
    assert pages.address("10_next.ipynb", set()) == f"{there}/notebooks/10_next.ipynb"
    assert pages.address("../mixofshow_lite/lora.py", {"10_next"}) == f"{there}/mixofshow_lite/lora.py"
    assert [pages.address(link, set()) for link in ("#top", "https://a.org/b.py")] == ["#top", "https://a.org/b.py"]


def test_the_teachers_page_is_one_of_the_site(tmp_path):
    index = pages.write("site", tmp_path, [ROOT / "notebooks" / "TEACHING.md"]).read_text()
    assert 'href="TEACHING.html"' in index and "<table" in (tmp_path / "TEACHING.html").read_text()


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """The pack without its wheels, and the commands that would make them."""
    commands = []
    place = tmp_path_factory.mktemp("offline") / "pack"
    return offline.pack(place, ["--quiet"], run=lambda command, check: commands.append(command)), commands


def test_the_offline_pack_is_complete(pack):
    place, commands = pack
    assert commands[0][1:4] == ["-m", "pip", "wheel"] and commands[0][-2:] == ["--quiet", f"{ROOT}[metrics,lab]"]
    there = {file.name for file in (place / "notebooks").iterdir()}
    assert there == {f.name for f in (ROOT / "notebooks").iterdir() if f.suffix in (".ipynb", ".md")}


def test_links_in_the_offline_pack_lead_somewhere(pack):
    place, _ = pack
    found = [
        (file.parent / link)
        for file in (place / "notebooks").iterdir()
        for link in re.findall(r"\]\(((?:\.\./)?[\w./-]+\.(?:py|md|webp|ipynb))\b", file.read_text(encoding="utf-8"))
    ]
    assert len(found) > 20 and [str(link) for link in found if not link.is_file()] == []


def install(pack, monkeypatch, *arguments):
    """Run the pack's install.py up to pip and the environment; the commands it gives."""
    commands = []
    monkeypatch.setattr(venv, "create", lambda folder, with_pip: commands.append(folder))
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.setattr(sys, "argv", ["install.py", *arguments])
    runpy.run_path(str(pack / "install.py"))
    return commands


def test_install_makes_an_environment_and_keeps_a_students_notebook(pack, monkeypatch, tmp_path, capsys):
    place, student = tmp_path / "here", tmp_path / "here" / "notebooks" / "00_in_ten_minutes.ipynb"
    made, pip = install(pack[0], monkeypatch, str(place))
    assert made == place / "environment" and "--no-index" in pip and pip[-1] == "mixofshow_lite[metrics,lab]"
    assert pip[pip.index("--find-links") + 1] == str(pack[0] / "wheels")
    assert (place / "files" / "mixofshow_lite" / "fusion.py").is_file()
    assert f'--ServerApp.root_dir="{place}"' in capsys.readouterr().out
    student.write_text("my answers")
    install(pack[0], monkeypatch, str(place))
    assert student.read_text() == "my answers"


def test_install_refuses_another_python_and_another_system(pack, monkeypatch, tmp_path):
    monkeypatch.setattr(platform, "machine", lambda: "abacus")
    with pytest.raises(SystemExit, match="this is .* on abacus"):
        install(pack[0], monkeypatch, str(tmp_path))
    monkeypatch.setattr(sys, "version_info", (3, 2, 0))
    with pytest.raises(SystemExit, match="this is 3.2"):
        install(pack[0], monkeypatch, str(tmp_path))
