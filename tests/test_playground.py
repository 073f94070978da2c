"""The fusion playground without a browser: what it fuses is the library's, what it shows is what was drawn."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from tiny import make_concept

import mixofshow_lite as mos
from mixofshow_lite.course.widgets import panel, playground
from mixofshow_lite.course.widgets.playground import Frame, Playground, choose, render

QUICK = {"steps": 1, "prompts": ["a {}"], "guidance": 1.0}  # of gradient fusion


def plain(colour):
    return Image.new("RGB", (32, 32), colour)


# Choices


def test_equal_fusions_are_one_choice():
    assert choose(["b", "a"]) == choose({"a": 2, "b": 2}) == choose({"b": 1, "a": 1, "c": 0})
    assert choose({"a": 1, "b": 3}).members == (("a", 0.25), ("b", 0.75))
    assert choose(["a"], "weight", ridge=0.1) == choose(["a"], "weight", ridge=1.0), "averaging has no ridge"
    assert len({choose(["a", "b"]), choose(["a"]), choose(["a", "b"], "weight"), choose(["a", "b"], ridge=1)}) == 4
    assert str(choose({"a": 1, "b": 3}, ridge=0.1)) == "gradient fusion, ridge 0.1, weights 0.25 0.75"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (({"a": 0},), "left out"),
        (([],), "left out"),
        ((["a"], "magic"), "no method 'magic'"),
        ((["a"], "gradient", -1.0), "not negative"),
        ((["a"], "gradient", float("nan")), "not negative"),
        (({"a": float("inf")},), "not negative"),
    ],
)
def test_a_choice_that_is_none_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        choose(*arguments)


# The pure picture

ALONE = Frame({"a": [plain("red")], "b": [plain("lime")]}, {"a": 0.9})
BOTH, ONE = choose(["a", "b"], "weight"), choose(["a"], "weight")
FRAMES = {BOTH: Frame({"a": [plain("blue")], "b": [plain("yellow")]}), ONE: Frame({"a": [plain("aqua")]})}


def cells(picture):
    """The middle colours of the four cells: (alone, fused) of a, then of b."""
    side, gap = playground.SIDE, playground.GAP
    xs = (playground.LEFT + side // 2, playground.LEFT + side + 4 * gap + side - 4)
    ys = (playground.HEAD + 4, playground.HEAD + side + gap + 4)
    return [[picture.getpixel((x, y)) for x in xs] for y in ys]


def test_render_puts_every_picture_where_it_belongs():
    red, lime, blue, yellow = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
    shown = render(FRAMES, BOTH, ALONE)
    assert cells(shown) == [[red, blue], [lime, yellow]]
    assert cells(render(FRAMES, ONE, ALONE)) == [[red, (0, 255, 255)], [lime, playground.PAPER]]
    unknown = render(FRAMES, choose(["a", "b"]), ALONE)
    assert cells(unknown) == [[red, playground.PAPER], [lime, playground.PAPER]]
    assert shown.tobytes() == render(dict(reversed(FRAMES.items())), BOTH, ALONE).tobytes()
    assert {render(FRAMES, c, ALONE).size for c in (None, BOTH, ONE)} == {shown.size}
    title = playground.ImageFont.load_default(size=13).getlength(str(choose(["a", "b"], ridge=0.0001)))
    assert shown.width >= playground.LEFT + playground.SIDE + 4 * playground.GAP + title, "one picture, a whole title"
    assert render(FRAMES, choose(["a"]), ALONE).tobytes() != unknown.tobytes(), "left out is not: not drawn yet"


# The model behind it


@pytest.fixture(scope="module")
def two(tiny_base):
    return [make_concept(tiny_base, name, seed) for seed, name in enumerate(("bibi", "momo"))]


def test_it_draws_what_the_library_draws(tiny_base, two):
    play = Playground(tiny_base, two, n=2, seed=3, steps=2, score=lambda name, p: np.asarray(p[0]).mean(), fusing=QUICK)
    bibi, momo = two
    wanted = {
        choose({"bibi": 1, "momo": 3}, "weight"): mos.weight_fusion(tiny_base, two, weights=[1, 3]),
        choose(["bibi", "momo"], "gradient", 0.1): mos.gradient_fusion(tiny_base, two, ridge=0.1, **QUICK),
        choose(["momo", "bibi"], "sum"): mos.peft_fusion(tiny_base, two, "cat"),
        choose(["bibi", "momo"], "ties"): mos.peft_fusion(tiny_base, two, "ties"),
        choose(["momo"], "weight"): tiny_base.with_concept(momo),
    }
    play.precompute(wanted)
    for choice, model in wanted.items():
        names = [name for name, _ in choice.members]
        assert list(play.frames[choice].pictures) == names
        for concept in (c for c in two if c.name in names):
            drawn = model.sample(f"photo of a {concept.phrase}", n=2, seed=3, steps=2, progress=False)
            for mine, other in zip(play.frames[choice].pictures[concept.name], drawn, strict=True):
                np.testing.assert_allclose(np.asarray(mine, int), np.asarray(other, int), atol=2)
        for name in names:
            assert play.frames[choice].scores[name] == np.asarray(play.frames[choice].pictures[name][0]).mean()
    pictures = [play.frames[c].pictures["momo"][0].tobytes() for c in wanted]
    assert len(set(pictures)) == len(pictures), "the choices make a difference"
    drawn = tiny_base.with_concept(bibi).sample(f"photo of a {bibi.phrase}", seed=3, steps=2, progress=False)[0]
    np.testing.assert_allclose(np.asarray(play.alone.pictures["bibi"][0], int), np.asarray(drawn, int), atol=2)


@pytest.fixture
def play(tiny_base, two, monkeypatch):
    """A playground whose drawing is one colour, so that only the wiring is tried; `drawn` counts the fusions."""
    monkeypatch.setattr(Playground, "_draw", lambda self, model, concepts: {c.name: [plain("red")] for c in concepts})
    made = Playground(tiny_base, two, n=1)
    made.drawn = []

    def draw(choice):
        made.drawn.append(choice)
        return Frame({name: [plain("blue")] for name, _ in choice.members})

    made.draw = draw
    return made


def test_nothing_is_drawn_twice(play):
    play.precompute([play.choice, choose(["bibi", "momo"])])
    play.fuse()
    assert play.drawn == [choose(["bibi", "momo"])]
    play.choose(["bibi"], "weight")
    assert play.fuse().pictures.keys() == {"bibi"} and len(play.drawn) == 2


def test_misuse_is_one_sentence(tiny_base, two, play):
    with pytest.raises(ValueError, match="'rex' is not here: there are bibi, momo"):
        play.choose(["rex"])
    play.weights = {"bibi": 0.0, "momo": 0.0}
    assert play.choice is None
    with pytest.raises(ValueError, match="left out"):
        play.fuse()
    with pytest.raises(ValueError, match="2 concepts with 1 names"):
        Playground(tiny_base, [two[0], two[0]])
    with pytest.raises(ValueError, match="0 concepts"):
        Playground(tiny_base, [])


def shown_by(widget):
    (picture,) = [child for child in widget.children if hasattr(child, "format")]
    return Image.open(io.BytesIO(picture.value))


def controls(widget):
    left, right = widget.children[0].children
    method, ridge, last = right.children
    return {slider.description: slider for slider in left.children} | {
        "method": method, "ridge": ridge, "button": last.children[0], "status": last.children[1]}  # fmt: skip


def test_the_controls_choose_and_a_click_fuses(play):
    pytest.importorskip("ipywidgets", reason="pip install '.[lab]'")
    page = controls(play.widget)
    assert not page["button"].disabled and not play.frames
    page["method"].value = "weight"
    page["momo"].value = 0.5
    assert play.choice == choose({"bibi": 1, "momo": 0.5}, "weight") and page["ridge"].disabled
    before = play.figure().tobytes()
    page["button"].click()
    assert play.drawn == [play.choice] and page["button"].disabled and page["status"].value == ""
    assert play.figure().tobytes() != before and shown_by(play.widget).tobytes() == play.figure().tobytes()
    page["bibi"].value = page["momo"].value = 0.0
    assert page["button"].disabled and "at least one" in page["status"].value
    page["bibi"].value = 2.0
    play.draw = lambda choice: 1 / 0
    page["button"].click()
    assert page["status"].value == "It failed: division by zero" and not page["button"].disabled


def test_controls_stand_where_python_put_them(play):
    pytest.importorskip("ipywidgets", reason="pip install '.[lab]'")
    play.choose({"bibi": 0.7}, "gradient", 0.05)
    assert controls(play.widget)["ridge"].value == 0.05 and controls(play.widget)["bibi"].value == 0.7
    assert play.choice == choose(["bibi"], "gradient", 0.05)
    play.choose({"momo": 1})
    assert controls(play.widget)["bibi"].value == 0.0 and play.choice == choose(["momo"])


def test_the_static_picture_is_shown_without_a_front_end(play, monkeypatch):
    play.choose(["bibi"], "weight")
    assert repr(play) == "Playground(bibi by weight fusion; 0 frames drawn)"
    data = play._repr_mimebundle_()
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).tobytes() == play.figure().tobytes()
    monkeypatch.setattr("builtins.__import__", without_ipywidgets(__import__))
    bare = Playground.__new__(Playground)
    bare.__dict__ |= play.__dict__ | {"_view": None}
    assert set(bare._repr_mimebundle_()) == {"text/plain", "image/png"}
    with pytest.raises(ImportError, match=r"mixofshow_lite\[lab\]"):
        _ = bare.widget


def without_ipywidgets(real):
    def imported(name, *args, **kwargs):
        if name == "ipywidgets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    return imported


# The frame slider


def test_a_frame_slider_shows_the_frame_it_stands_at():
    slider = panel.FrameSlider({0: plain("red"), 1: plain("blue")}, "step", start="1")
    assert slider.figure().getpixel((0, 0)) == (0, 0, 255) and repr(slider) == "FrameSlider('step' at '1' of 0, 1)"
    with pytest.raises(ValueError, match="at least one frame"):
        panel.FrameSlider({})
    with pytest.raises(ValueError, match="no frame '7': there are 0, 1"):
        panel.FrameSlider({0: plain("red"), 1: plain("blue")}, start=7)
    pytest.importorskip("ipywidgets", reason="pip install '.[lab]'")
    move = slider.widget.children[0]
    move.value = "0"
    assert slider.label == "0" and shown_by(slider.widget).getpixel((0, 0)) == (255, 0, 0)
    assert panel.VIEW in slider._repr_mimebundle_()


def test_no_panel_stretches_its_picture(play):
    """A VBox makes a child as wide as the cell unless the child says otherwise: small pictures were blown up in Lab."""
    pytest.importorskip("ipywidgets", reason="pip install '.[lab]'")
    from mixofshow_lite.course.widgets import AlphaSlider, CharacterStudio

    frames = panel.FrameSlider({0: plain("red")})
    for shown in (play, frames, AlphaSlider({0: {"a": plain("red")}, 1: {"a": plain("blue")}}), CharacterStudio()):
        (picture,) = [child for child in shown.widget.children if hasattr(child, "format")]
        assert picture.layout.align_self == "flex-start", repr(shown)
