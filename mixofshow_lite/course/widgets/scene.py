"""What the canvas and Python tell each other about regions (paper 3.4): plain JSON, checked on every way in.

    entry["id"]               str            stays with the region through moves and undo
    entry["name"], ["color"]  str            for people: "Left", "#2f6fd6"
    entry["prompt"]           str            P_ri
    entry["negative_prompt"]  str            "" is the picture's own
    entry["weight"]           float          above 0, see `Region.weight`
    entry["box"]              [l, t, r, b]   fractions of the picture, or None
    entry["mask"]             str            base64 of a grey PNG, `raster(size)` pixels, white inside; or None
    entry["options"]          dict           whatever else a `Region` holds that is a plain value

Exactly one of box and mask is given, as in `Region`. Everything here is a pure function of its arguments.
"""

import base64
import binascii
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import lru_cache

import numpy as np
from PIL import Image, UnidentifiedImageError

from ...engine.arguments import is_number, shown
from ...engine.regional import Region
from ...files.pictures import unlimited

FORMAT, VERSION = "mixofshow-regions", 1
HEADER = {"format": FORMAT, "version": VERSION}  # how a file of regions begins
RASTER = 256  # pixels of a mask's longer side
LARGEST = 8192  # a mask picture with a longer side is refused, not unpacked
PALETTE = (
    "#2f6fd6",
    "#bb510d",
    "#1f8059",
    "#9b40b3",
    "#cf3644",
    "#8c6b00",
    "#0c7d92",
    "#6b5be0",
)  # white text reads on each
PRESETS = {  # name -> (region's name, box, weight)
    "Whole picture": [("Everything", (0, 0, 1, 1), 1)],
    "Two halves": [("Left", (0, 0, 0.5, 1), 1), ("Right", (0.5, 0, 1, 1), 1)],
    "Three columns": [
        ("Left", (0, 0, 0.3333, 1), 1),
        ("Middle", (0.3333, 0, 0.6667, 1), 1),
        ("Right", (0.6667, 0, 1, 1), 1),
    ],
    "Top and bottom": [("Top", (0, 0, 1, 0.5), 1), ("Bottom", (0, 0.5, 1, 1), 1)],
    "Four quarters": [
        ("Top left", (0, 0, 0.5, 0.5), 1),
        ("Top right", (0.5, 0, 1, 0.5), 1),
        ("Bottom left", (0, 0.5, 0.5, 1), 1),
        ("Bottom right", (0.5, 0.5, 1, 1), 1),
    ],
    "Foreground and background": [("Background", (0, 0, 1, 1), 0.3), ("Foreground", (0.25, 0.3, 0.75, 1), 1)],
    "Two friends": [("Left friend", (0.06, 0.2, 0.48, 0.96), 1), ("Right friend", (0.52, 0.2, 0.94, 0.96), 1)],
}
LONGEST, MOST_REGIONS = 10_000, 1000  # characters of a text, regions of a picture
_KNOWN = ("prompt", "box", "mask", "negative_prompt", "weight")


def raster(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the masks for a picture of `size` = (height, width): the longer side has 256 pixels."""
    height, width = size
    return max(1, round(RASTER * width / max(size))), max(1, round(RASTER * height / max(size)))


def encode_mask(mask: np.ndarray, pixels: tuple[int, int]) -> str:
    """A mask (H, W) in 0..1 of any size -> base64 PNG of `pixels` = (width, height).

    Black-and-white masks stay black and white (a pixel is inside when most of it is); soft ones are averaged.
    """
    picture = Image.fromarray(np.asarray(mask * 255).round().astype(np.uint8))
    if picture.size != pixels:
        hard = not ((mask > 0) & (mask < 1)).any()
        picture = picture.resize(pixels, Image.Resampling.BOX)
        if hard:
            level = min(128, max(1, picture.getextrema()[1]))  # of a thin mask, the pixels it covers most
            picture = picture.point(lambda value: 255 * (value >= level))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@lru_cache(maxsize=512)
def decode_mask(text: str) -> np.ndarray:
    """base64 PNG -> (H, W) float32 in 0..1, not to be written to. Raises ValueError on anything else."""
    try:
        data = io.BytesIO(base64.b64decode(text.removeprefix("data:image/png;base64,"), validate=True))
        with unlimited():
            picture = Image.open(data)
        if max(picture.size) > LARGEST:
            raise ValueError(f"The mask is {picture.size[0]} x {picture.size[1]} pixels: {LARGEST} a side is enough.")
        mask = np.asarray(picture.convert("L"), dtype=np.float32) / 255
    except (binascii.Error, UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError("The mask is no base64 PNG picture.") from error
    mask.setflags(write=False)
    return mask


def clean(entries: object, pixels: tuple[int, int]) -> list[dict]:
    """Check a list of entries and fill in what is missing; raises ValueError with the region's number and name.

    Boxes may stick out (they are cut at the picture's edge) or be given from any corner; masks of another size are
    stretched to `pixels`. What is already clean comes back equal.
    """
    if isinstance(entries, (str, bytes, Mapping)) or not isinstance(entries, Sequence):
        raise ValueError("The regions must be a list.")
    if len(entries) > MOST_REGIONS:
        raise ValueError(f"There are {len(entries)} regions: give at most {MOST_REGIONS}.")
    taken: set[str] = set()
    return [_clean(entry, number, pixels, taken) for number, entry in enumerate(entries, start=1)]


def _clean(entry: object, number: int, pixels: tuple[int, int], taken: set[str]) -> dict:
    if not isinstance(entry, Mapping):
        raise ValueError(f"Region {number} is no JSON object.")
    name = entry.get("name") or f"Region {number}"
    where = f"Region {number} ({name!r})"
    texts = {"name": name, "prompt": entry.get("prompt") or "", "negative_prompt": entry.get("negative_prompt") or ""}
    if not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"{where} has a name or prompt that is no text.")
    if max(map(len, texts.values())) > LONGEST:
        raise ValueError(f"Region {number} has a name or prompt of more than {LONGEST} characters: shorten it.")
    color = entry.get("color") or PALETTE[(number - 1) % len(PALETTE)]
    if not (isinstance(color, str) and len(color) == 7 and color[0] == "#" and _is_hex(color[1:])):
        raise ValueError(f"{where} has the colour {color!r}: write it as #rrggbb.")
    weight = entry.get("weight", 1.0)
    if not _is_number(weight) or weight <= 0:
        raise ValueError(f"{where} has weight {weight!r}: give a number above 0.")
    box, mask, options = entry.get("box"), entry.get("mask"), entry.get("options") or {}
    if (box is None) == (mask is None):
        raise ValueError(f"{where} needs a box or a mask, and not both.")
    if not isinstance(options, Mapping):
        raise ValueError(f"{where} has options that are no JSON object.")
    identity = str(entry.get("id") or f"r{number}")
    while identity in taken:
        identity += "+"
    taken.add(identity)
    shape = {
        "box": None if box is None else clean_box(box, where),
        "mask": None if mask is None else clean_mask(mask, where, pixels),
    }
    return {"id": identity, **texts, "color": color, "weight": weight, **shape, "options": dict(options)}


def clean_box(box: object, where: str) -> list[float]:
    """Any four numbers -> [left, top, right, bottom] inside the picture; raises ValueError if nothing is left of it."""
    if isinstance(box, (str, bytes)) or not isinstance(box, Sequence) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(f"{where} has the box {shown(box)}: give four fractions [left, top, right, bottom].")
    (left, right), (top, bottom) = (sorted(min(max(side, 0), 1) for side in box[i::2]) for i in (0, 1))
    if not (left < right and top < bottom):
        raise ValueError(f"{where} has the box {shown(box)}, of which nothing lies in the picture: make it larger.")
    return [left, top, right, bottom]


def clean_mask(mask: object, where: str, pixels: tuple[int, int]) -> str:
    """A base64 PNG of any size -> one of `pixels`; raises ValueError if it is no picture or nothing is painted."""
    if not isinstance(mask, str):
        raise ValueError(f"{where} has a mask that is no base64 PNG picture.")
    try:
        array = decode_mask(mask)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not array.any():
        raise ValueError(f"{where} has an empty mask: paint where the region is.")
    return mask if array.shape[::-1] == pixels else encode_mask(array, pixels)


def _is_number(value: object) -> bool:
    return is_number(value) and not isinstance(value, bool)


def _is_hex(text: str) -> bool:
    return all(letter in "0123456789abcdefABCDEF" for letter in text)


def to_regions(entries: Sequence[Mapping]) -> list[Region]:
    """Clean entries -> the regions `DiffusionModel.sample` takes."""
    accepted = {f.name for f in fields(Region) if f.init} - set(_KNOWN)
    return [
        Region(
            entry["prompt"],
            box=None if entry["box"] is None else tuple(entry["box"]),
            mask=None if entry["mask"] is None else decode_mask(entry["mask"]),
            negative_prompt=entry["negative_prompt"] or None,
            weight=entry["weight"],
            **{key: value for key, value in entry["options"].items() if key in accepted},
        )
        for entry in entries
    ]


def from_regions(regions: Sequence[Region], pixels: tuple[int, int], old: Sequence[Mapping] = ()) -> list[dict]:
    """Regions -> entries. A region that has the prompt of the old entry at its place keeps its id, name and colour."""
    entries = []
    if isinstance(regions, str | Region) or not isinstance(regions, Iterable):
        raise TypeError(f"regions={shown(regions)}: give a list of mixofshow_lite.Region objects.")
    for number, region in enumerate(regions, start=1):
        if not isinstance(region, Region):
            raise ValueError(f"Region {number} is {shown(region)}: give mixofshow_lite.Region objects.")
        plain = {f.name: getattr(region, f.name) for f in fields(region) if f.init and f.name not in _KNOWN}
        defaults = {f.name: f.default for f in fields(region) if f.default is not MISSING}
        entry = {
            "prompt": region.prompt,
            "negative_prompt": region.negative_prompt or "",
            "weight": float(region.weight),
            "box": None if region.box is None else [float(side) for side in region.box],
            "mask": None if region.mask is None else encode_mask(np.asarray(region.mask), pixels),
            "options": {
                key: value
                for key, value in plain.items()
                if isinstance(value, (str, int, float)) and value != defaults.get(key)
            },
        }
        before = old[number - 1] if number <= len(old) else {}
        if before.get("prompt") == region.prompt:
            entry |= {key: before[key] for key in ("id", "name", "color")}
        entries.append(entry)
    return clean(entries, pixels)


def to_json(settings: Mapping, entries: Sequence[Mapping]) -> str:
    """The canvas as a text to keep: prompt, negative_prompt, seed, steps and the regions."""
    return json.dumps({**HEADER, **settings, "regions": list(entries)}, indent=1)


def from_json(text: str | bytes, pixels: tuple[int, int]) -> tuple[dict, list[dict]]:
    """The text `to_json` wrote -> (settings, entries); raises ValueError with one sentence on any other text."""
    try:
        document = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:  # a number of 5000 digits is no JSONDecodeError
        raise ValueError(f"This is no JSON: {error}.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f'This JSON holds no regions: it needs "format": "{FORMAT}".')
    version = document.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise ValueError(
            f"These regions have version {version!r}, this canvas reads up to {VERSION}: update the package."
        )
    settings = {}
    for key, kind in {"prompt": str, "negative_prompt": str, "seed": int, "steps": int}.items():
        if key in document:
            if not isinstance(document[key], kind) or isinstance(document[key], bool):
                raise ValueError(f"These regions have {key} = {document[key]!r}: it must be of type {kind.__name__}.")
            settings[key] = document[key]
    return settings, clean(document.get("regions", []), pixels)
