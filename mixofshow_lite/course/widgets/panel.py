"""What a panel of controls and its static picture share, and the simplest one: a slider over drawn frames.

A panel is not itself an ipywidgets widget: it makes one when it is shown (7.7 and 8 alike) and sends its static picture
along, which is all that a page on GitHub, or a run without a browser, shows.
"""

import base64
from collections.abc import Mapping

from PIL import Image

from .sampling import to_bytes

VIEW = "application/vnd.jupyter.widget-view+json"


class Panel:
    """A picture with controls. `figure` draws the picture for the state at hand, `build` makes the controls."""

    _view = None  # the ipywidgets widget, once it is shown

    def figure(self) -> Image.Image:
        """What is shown now."""
        raise NotImplementedError

    def build(self):
        """The ipywidgets widget, wired to this object."""
        raise NotImplementedError

    @property
    def widget(self):
        """The ipywidgets widget, made when first asked for; raises ImportError without ipywidgets."""
        if self._view is None:
            try:
                import ipywidgets  # noqa: F401, to say what is missing before anything is built
            except ImportError as error:
                raise ImportError("Sliders need ipywidgets: pip install 'mixofshow_lite[lab]'.") from error
            self._view = self.build()
        return self._view

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        """The widget where there is ipywidgets, and beside it the static picture and a line of text."""
        shown = {"text/plain": repr(self), "image/png": base64.b64encode(to_bytes(self.figure())).decode()}
        try:
            view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
        except ImportError:
            return shown
        return {**shown, VIEW: view}


def shown_picture(picture: Image.Image):
    """An ipywidgets image in its own size: without `align_self` a VBox would stretch it as wide as the cell."""
    import ipywidgets

    return ipywidgets.Image(value=to_bytes(picture), format="png", layout={"align_self": "flex-start"})


def render_frame(frames: Mapping[str, Image.Image], label: str) -> Image.Image:
    """The frame of one label; raises ValueError with the known ones in a sentence."""
    if label not in frames:
        raise ValueError(f"There is no frame {label!r}: there are {', '.join(frames)}.")
    return frames[label].convert("RGB")


class FrameSlider(Panel):
    """A slider over pictures that are already drawn: `FrameSlider({"0 %": picture, "50 %": ...}, "overlap")`.

    `start` is the label shown first (and on the static page), by default the first. Raises ValueError without frames
    or on an unknown start.
    """

    def __init__(self, frames: Mapping[str, Image.Image], name: str = "", start: str | None = None):
        if not frames:
            raise ValueError("There is nothing to slide over: give at least one frame.")
        self.frames, self.name = {str(label): frame for label, frame in frames.items()}, name
        self.label = str(next(iter(self.frames)) if start is None else start)
        render_frame(self.frames, self.label)

    def figure(self) -> Image.Image:
        return render_frame(self.frames, self.label)

    def build(self):
        import ipywidgets

        picture = shown_picture(self.figure())
        slider = ipywidgets.SelectionSlider(options=list(self.frames), value=self.label, description=self.name)

        def moved(change: dict) -> None:
            self.label = change["new"]
            picture.value = to_bytes(self.figure())

        slider.observe(moved, names="value")
        return ipywidgets.VBox([slider, picture])

    def __repr__(self) -> str:
        return f"FrameSlider({self.name!r} at {self.label!r} of {', '.join(self.frames)})"
