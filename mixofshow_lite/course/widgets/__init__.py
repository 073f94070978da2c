"""Widgets for notebooks, thin over pure functions: every widget has a static picture for readers without a front end.

    RegionCanvas     paint regions (paper 3.4) and sample with them     needs the extra [lab]
    render_regions   the same regions as a picture                      needs nothing
    AlphaSlider      a concept's pictures at any LoRA weight (Fig. 3)   ipywidgets, or a static strip
    Playground       fusions of a few concepts (3.2, 3.3.2)             ipywidgets, or a static picture
    VotePage         a blind vote between two ways (4.3)                needs the extra [lab]
    FrameSlider      a slider over pictures that are drawn already      ipywidgets, or a static picture
    CharacterStudio  a character of one's own, by Pocket World          ipywidgets, or a static picture

Names are imported when first used, so that drawing regions does not ask for anywidget.
"""

from importlib import import_module

_HOME = {
    "RegionCanvas": "canvas",
    "render_regions": "drawing",
    "AlphaSlider": "alpha_slider",
    "Playground": "playground",
    "FrameSlider": "panel",
    "CharacterStudio": "studio",
    "VotePage": "vote",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
