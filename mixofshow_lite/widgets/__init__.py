"""Widgets for notebooks, thin over pure functions: every widget has a static picture for readers without a front end.

    RegionCanvas     paint regions (paper 3.4) and sample with them     needs the extra [lab]
    render_regions   the same regions as a picture                      needs nothing

Names are imported when first used, so that drawing regions does not ask for anywidget.
"""

from importlib import import_module

_HOME = {"RegionCanvas": "canvas", "render_regions": "drawing"}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
