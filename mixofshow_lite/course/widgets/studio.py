"""Draw a character of one's own: Pocket World's sliders over three pictures of it.

`course.character` does all that counts (a look, its preview, a client's pictures); `CharacterStudio` only wires it.
"""

from dataclasses import replace
from pathlib import Path

from PIL import Image

from .. import character
from ..character import PARTS, PATTERNS, TINTS, Look
from .panel import Panel, shown_picture
from .sampling import to_bytes

CHOICES = {  # field of a look -> what may be chosen
    "cls": character.CHARACTERS,
    "colour": TINTS,
    "pattern": PATTERNS,
    "pattern_colour": TINTS,
    "part": PARTS,
    "part_colour": TINTS,
}
SLIDERS = ("body", "ears", "eyes")


class CharacterStudio(Panel):
    """Menus and sliders over a character: leave it as the last line of a cell.

        studio = CharacterStudio(Look(cls="bear"))
        studio                              # show it and play
        studio.change(colour="pink")        # the same from Python, to be shown again
        studio.write("out/own", "zora")     # a client's ten pictures of what is chosen

    Raises ValueError, as `Look` does, on what Pocket World cannot draw.
    """

    def __init__(self, look: Look | None = None):
        self.look = look or Look()

    def change(self, **choices) -> Look:
        """Choose anew; returns the look."""
        self.look = replace(self.look, **choices)
        self._view = None  # shown again, the controls stand where they were put here
        return self.look

    def write(self, folder: str | Path, name: str, size: int = 128) -> Path:
        """A client's pictures of the chosen look, see `character.write`."""
        return character.write(self.look, folder, name, size)

    def figure(self) -> Image.Image:
        return character.preview(self.look)

    def build(self):
        import ipywidgets as ui

        shown = shown_picture(self.figure())
        wide = {"description_width": "100px"}
        controls = {
            name: ui.Dropdown(
                options=list(options), value=getattr(self.look, name), description=label(name), style=wide
            )
            for name, options in CHOICES.items()
        }
        for name in SLIDERS:
            controls[name] = ui.FloatSlider(
                value=getattr(self.look, name), min=0, max=1, step=0.05, description=name, style=wide,
                continuous_update=False,
            )  # fmt: skip

        def chosen(_change) -> None:
            self.look = Look(**{name: control.value for name, control in controls.items()})
            shown.value = to_bytes(self.figure())

        for control in controls.values():
            control.observe(chosen, names="value")
        return ui.VBox([shown, *controls.values()])

    def __repr__(self) -> str:
        return f"CharacterStudio({self.look.words()})"


def label(name: str) -> str:
    """What a field is called on the page."""
    return "class" if name == "cls" else name.replace("_", " ")
