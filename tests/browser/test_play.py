"""The page that needs no installation, in a real browser: sliders change pictures, and nothing is fetched."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

CI = Path(__file__).resolve().parents[2] / ".ci"
if not CI.is_dir():
    pytest.skip("these tests read the checkout", allow_module_level=True)


@pytest.fixture(scope="module")
def play():
    spec = importlib.util.spec_from_file_location("play", CI / "play.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def panels(play):
    colours = {"red": (220, 20, 20), "green": (20, 180, 20), "blue": (20, 20, 220)}
    stops = [(name, Image.new("RGB", (60, 40), rgb)) for name, rgb in colours.items()]
    return [play.Panel("How much?", "Look at the colour.", stops), play.Panel("Who </script>?", "Two.", stops[:2])]


SHOWN = """(k) => {
  const section = document.querySelectorAll('section')[k], picture = section.querySelector('img');
  const paint = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d');
  paint.drawImage(picture, 0, 0);
  const [r, g, b] = paint.getImageData(0, 0, 1, 1).data;
  return [section.querySelector('output').value, picture.alt, r > 150 ? 'red' : g > 150 ? 'green' : 'blue'];
}"""


def test_sliders_change_pictures(browser, play, tmp_path, shot):
    file, wrong = tmp_path / "play.html", []
    file.write_text(play.page(panels(play)), encoding="utf-8")
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: request.url.startswith("http") and wrong.append(request.url))
    page.goto(file.as_uri())
    ready = "document.querySelectorAll('img').length == 2 && [...document.images].every((image) => image.complete)"
    page.wait_for_function(ready)
    assert page.evaluate(SHOWN, 0) == ["red", "How much? red", "red"]
    page.locator("input").first.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(ready)
    assert page.evaluate(SHOWN, 0) == ["green", "How much? green", "green"]
    page.keyboard.press("End")
    page.wait_for_function(ready)
    assert page.evaluate(SHOWN, 0)[2] == "blue" and page.evaluate(SHOWN, 1)[0] == "red", "each slider moves its own"
    assert page.locator("input").first.get_attribute("aria-valuetext") == "blue"
    shot(page, "play")
    page.close()
    assert not wrong


def test_what_is_drawn_is_kept(play, tmp_path):
    drawn = []

    def draw():
        drawn.append(1)
        return Image.new("RGB", (8, 8), "red")

    for _ in range(2):
        panel = play.panel_of(tmp_path / "play", "alpha", "t", "s", {"a": draw, "b": draw})
        assert [label for label, _ in panel.stops] == ["a", "b"] and panel.stops[0][1].size == (8, 8)
    assert len(drawn) == 2


def test_other_weights_or_numbers_are_drawn_anew(play, monkeypatch):
    before = play.state("base", ["bibi's", "momo's"])
    assert before == play.state("base", ["bibi's", "momo's"])
    assert before != play.state("another base", ["bibi's", "momo's"])
    assert before != play.state("base", ["bibi's, tuned again", "momo's"])
    monkeypatch.setattr(play, "RIDGES", (0.5,))
    assert before != play.state("base", ["bibi's", "momo's"])
