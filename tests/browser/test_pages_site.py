"""A page of the site in a real browser, offline: nothing is asked for; formulas and library source are set."""

import importlib.util
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("latex2mathml", reason="pip install '.[lab]'")
CI = Path(__file__).resolve().parents[2] / ".ci"
if not CI.is_dir():
    pytest.skip("these tests read the checkout", allow_module_level=True)


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("pages", CI / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_notebooks_page_needs_nothing_else(browser, pages, tmp_path, shot):
    file = CI.parent / "notebooks" / "01_text_to_image_and_lora.ipynb"
    pages.write("site", tmp_path, [file])
    context, wrong = browser.new_context(offline=True, viewport={"width": 1100, "height": 900}), []
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: request.url.startswith("http") and wrong.append(request.url))
    page.goto((tmp_path / "index.html").as_uri())
    page.locator("a", has_text="Text to image").click()
    page.wait_for_load_state("load")
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    tall = page.evaluate("[...document.querySelectorAll('math[display=block]')].map((m) => m.clientHeight)")
    assert len(tall) >= 3 and min(tall) > 15, "formulas take room"
    fonts = """[...document.querySelectorAll('.jp-RenderedHTML .highlight pre')].map((code) => {
        const line = (text) => { code.textContent = text; return code.scrollWidth; };
        code.style.display = 'inline-block';
        return line('i'.repeat(40)) === line('W'.repeat(40)); })"""
    shot(page, "site")
    same = page.evaluate(fonts)
    assert same and all(same), "the library's source is in letters of one width"
    context.close()
    assert not wrong
