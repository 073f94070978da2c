"""The LoRA-weight slider (paper Fig. 3): turn alpha in Phi_0 + alpha dPhi and watch where an identity comes from.

    frames                  drawn before: alpha -> label -> picture, each column from one noise
    render(frames, 0.35)    the pictures at one alpha; pure
    strip(frames)           all of them, for readers without a front end; pure
    AlphaSlider(frames)     the widget, in ipywidgets 7.7 and 8

Nothing is drawn while the slider moves, so that it answers at once.
"""

import math
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

from ...files.grid import INK, PAPER, grid
from .panel import Panel, shown_picture
from .sampling import to_bytes

Frames = Mapping[float, Mapping[str, Image.Image]]  # alpha -> label -> picture
FAINT, MARK = (205, 208, 214), (196, 48, 64)
DIAL, EDGE = 34, 14  # pixels: below the pictures, beside the dial


def render(frames: Frames, alpha: float) -> Image.Image:
    """The pictures at the alpha nearest to the one asked for, labelled, over a dial that shows where it stands.

    Pure: the same arguments give the same pixels. Raises ValueError on frames or an alpha that make no sense.
    """
    frames = checked(frames)
    if not math.isfinite(alpha):
        raise ValueError(f"alpha={alpha} is no LoRA weight: give a number, 0 for the words alone, 1 for the concept.")
    alpha = nearest(frames, alpha)
    row = grid(list(frames[alpha].values()), titles=list(frames[alpha]))
    whole = Image.new("RGB", (row.width, row.height + DIAL), PAPER)
    whole.paste(row)
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(size=11)
    y, low, high = row.height + 10, min(frames), max(frames)

    def x(value: float) -> float:
        return EDGE + (value - low) / ((high - low) or 1) * (row.width - 2 * EDGE)

    draw.line((x(low), y, x(high), y), fill=FAINT, width=2)
    for known in frames:
        chosen = known == alpha
        r = 6 if chosen else 3
        draw.ellipse((x(known) - r, y - r, x(known) + r, y + r), fill=MARK if chosen else FAINT)
        draw.text((x(known), y + 8), f"{known:g}", fill=INK, font=font, anchor="ma")
    return whole


def nearest(frames: Frames, alpha: float) -> float:
    """The frames' alpha that is nearest; of two, the lower."""
    return min(frames, key=lambda known: (abs(known - alpha), known))


def strip(frames: Frames) -> Image.Image:
    """Every alpha's pictures in a row of their own, the alpha written before it."""
    frames = checked(frames)
    rows = {f"{alpha:g}": list(pictures.values()) for alpha, pictures in frames.items()}
    return grid(rows, titles=list(next(iter(frames.values()))))


def checked(frames: Frames) -> dict[float, Mapping[str, Image.Image]]:
    """The frames in the order of alpha; ValueError unless every alpha has the same labels, at least one."""
    labels = {tuple(pictures) for pictures in frames.values()}
    if len(labels) != 1 or labels == {()}:
        raise ValueError("Frames need at least one alpha, and for every alpha one picture per label, in one order.")
    return {alpha: frames[alpha] for alpha in sorted(frames)}


class AlphaSlider(Panel):
    """A slider over frames: leave it as the last line of a cell.

        models = {alpha: base.with_concept(concept, alpha) for alpha in (0, 0.35, 0.7, 1)}
        text = f"photo of a {concept.phrase}"
        slider = AlphaSlider({alpha: {concept.name: model.sample(text, seed=0)[0]} for alpha, model in models.items()})
        slider.alpha = 0.35     # as if it were moved; snaps to the nearest frame

    Where no front end can show it (a page on GitHub, a run without a browser, no ipywidgets) there is a strip of all
    frames instead. Raises ValueError as `render` does.
    """

    def __init__(self, frames: Frames, alpha: float = 0.0):
        self.frames = checked(frames)
        self.alpha = alpha

    @property
    def alpha(self) -> float:
        """The alpha shown, one of the frames'."""
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self.picture = render(self.frames, value)
        self._alpha = nearest(self.frames, value)
        if self._view is not None:
            slider, image = self._view.children
            slider.value, image.value = self._alpha, to_bytes(self.picture)

    def figure(self) -> Image.Image:
        """The static picture: every frame."""
        return strip(self.frames)

    def build(self):
        import ipywidgets

        options = [(f"{alpha:g}", alpha) for alpha in self.frames]
        slider = ipywidgets.SelectionSlider(options=options, value=self.alpha, description="LoRA weight")
        slider.observe(lambda change: setattr(self, "alpha", change["new"]), names="value")
        return ipywidgets.VBox([slider, shown_picture(self.picture)])

    def __repr__(self) -> str:
        labels = ", ".join(next(iter(self.frames.values())))
        return f"AlphaSlider({labels}; alpha {', '.join(f'{alpha:g}' for alpha in self.frames)})"
