"""The LoRA-weight slider: its pictures are the models' own, its static strip needs no front end."""

import base64
import builtins
import inspect
import io

import numpy as np
import pytest
from PIL import Image

from mixofshow_lite.course.widgets import AlphaSlider
from mixofshow_lite.course.widgets.alpha_slider import checked, render, strip
from mixofshow_lite.files.grid import GAP, LINE

LABEL = LINE + GAP  # pixels above the pictures


def toy_frames(side=32):
    """Flat pictures: red says alpha, green says which label."""
    return {
        alpha: {label: Image.new("RGB", (side, side), (int(200 * alpha), 60 * k, 90)) for k, label in enumerate("ab")}
        for alpha in (1.0, 0.0, 0.35)
    }


@pytest.mark.parametrize(
    ("asked", "shown"), [(0, 0.0), (0.3, 0.35), (0.66, 0.35), (0.7, 1.0), (5, 1.0), (0.175, 0.0), (-1, 0.0)]
)
def test_render_shows_the_nearest_frame(asked, shown):
    frames = toy_frames()
    pixels = np.asarray(render(frames, asked))
    for k in range(2):
        picture = pixels[LABEL : LABEL + 32, k * (32 + GAP) : k * (32 + GAP) + 32]
        assert (picture == [int(200 * shown), 60 * k, 90]).all()
    np.testing.assert_array_equal(pixels, render(frames, shown))  # pure, and the asked alpha leaves no trace
    others = [np.asarray(render(frames, a)) for a in frames if a != shown]
    dial = LABEL + 32
    assert all((pixels[dial:] != other[dial:]).any() for other in others), "the dial says which alpha it is"


def test_the_strip_shows_every_frame_in_order():
    pixels = np.asarray(strip(toy_frames()))
    colours = [c for _, c in Image.fromarray(pixels).getcolors(10**6)]
    for alpha in (0, 0.35, 1):
        for k in range(2):
            assert (int(200 * alpha), 60 * k, 90) in colours
    flat = (pixels[..., 2] == 90) & np.isin(pixels[..., 1], (0, 60))
    reds = pixels[..., 0][flat].tolist()  # top to bottom
    assert reds == sorted(reds)


def test_frames_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="at least one alpha"):
        render({}, 0)
    with pytest.raises(ValueError, match="one picture per label"):
        strip({0.0: {"a": Image.new("RGB", (8, 8))}, 1.0: {"b": Image.new("RGB", (8, 8))}})
    with pytest.raises(ValueError, match="at least one alpha"):
        checked({0.0: {}})
    with pytest.raises(ValueError, match="no LoRA weight"):
        render(toy_frames(), float("nan"))


def shown(slider):
    return np.asarray(Image.open(io.BytesIO(slider.widget.children[1].value)))


def test_moving_the_slider_changes_the_picture():
    slider = AlphaSlider(toy_frames())
    handle = slider.widget.children[0]
    assert [value for _, value in handle.options] == [0.0, 0.35, 1.0] and handle.value == slider.alpha == 0.0
    handle.value = 1.0  # what the front end does
    assert slider.alpha == 1.0
    np.testing.assert_array_equal(shown(slider), render(toy_frames(), 1.0))
    slider.alpha = 0.4
    assert slider.alpha == handle.value == 0.35
    np.testing.assert_array_equal(shown(slider), render(toy_frames(), 0.35))
    np.testing.assert_array_equal(slider.picture, render(toy_frames(), 0.35))


def test_a_reader_without_a_front_end_gets_the_strip():
    bundle = AlphaSlider(toy_frames())._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png", "application/vnd.jupyter.widget-view+json"}
    drawn = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    np.testing.assert_array_equal(drawn, strip(toy_frames()))
    assert bundle["text/plain"] == "AlphaSlider(a, b; alpha 0, 0.35, 1)"


def test_without_ipywidgets_there_is_still_the_strip(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("ipywidgets"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert set(AlphaSlider(toy_frames())._repr_mimebundle_()) == {"text/plain", "image/png"}


def test_only_what_ipywidgets_7_and_colab_have_is_used():
    """No Tab, Accordion or Output, and every trait that is set exists in 7.7."""
    import ipywidgets

    from mixofshow_lite.course.widgets import alpha_slider, panel

    source = open(alpha_slider.__file__, encoding="utf-8").read() + inspect.getsource(panel.shown_picture)
    used = {name for name in dir(ipywidgets) if f"ipywidgets.{name}(" in source}
    assert used == {"SelectionSlider", "Image", "VBox"}
