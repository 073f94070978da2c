"""The page of the region canvas as the browser gets it: one module and one style, nothing else is fetched.

It is written in four parts, so that each can be read and the first two tested without a page:

    region_geometry.js   boxes and masks, pure functions
    region_state.js      the regions, which is chosen, undo and redo
    region_gestures.js   mouse, pen, finger, keyboard
    region_canvas.js     the view
"""

import re
from pathlib import Path

HERE = Path(__file__).parent
PARTS = ("region_geometry", "region_state", "region_gestures", "region_canvas")  # each imports from those before it
STYLE = HERE / "region_canvas.css"


def module(*parts: str) -> str:
    """The text of one ES module that holds the parts (default: all), without the imports and exports between them.

    A notebook loads a widget's module from memory, where "./region_state.js" leads nowhere.
    """
    texts = [(HERE / f"{part}.js").read_text("utf-8") for part in parts or PARTS]
    return "\n".join(re.sub(r'^import .* from "\./.*";\n|^export (?!default)', "", text, flags=re.M) for text in texts)
