"""Marks kept: of what tells a concept from its look-alikes, how much does a picture show?

A concept's marks are named in its `Spec`: its colour, its pattern and the pattern's colour, its parts, what it wears.
Pocket CLIP reads each of them from a picture, zero-shot, against the alternatives of the same kind:

    kind                         captions                                               alternatives
    colour                       "a white rabbit", "a pink rabbit", ...                 12
    pattern                      "something in stripes", ..., "something plain"          7
    pattern colour               "something in purple stripes", ...                     12, in the pattern that was read
    part (second part, ...)      "something with a horn", ..., "something with nothing"  8
    accessory (second ..., ...)  "something wearing a hat", ..., "... wearing nothing"   6, and its colour, 10

A mark is kept if the reading is the concept's; a student can check each by eye. Of several parts the best readings are
taken, as many as the concept has, in any order.
"""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from ..engine.evaluation import Scorer, load_scorer
from .captions import article
from .concepts import CONCEPTS, PICTURES, Spec, picture
from .train.clip import mark_captions
from .train.clip_data import TINTS, colour_name
from .train.data import PARTS, PATTERNS
from .world import ACCESSORIES, CHARACTERS, COLORS, SCENES, Subject

NONE = "nothing"  # what is read where there is neither part nor accessory
PLAIN = "plain"  # the pattern of a subject without one
ORDINAL = ("", "second ", "third ")


def marks_of(concept: str | Spec | Subject) -> dict[str, str]:
    """A concept's named marks, kind -> value: {"colour": "white", "pattern": "stripes", "part": "horn", ...}.

    concept   the name of a shipped concept, or a `Spec` (a `Subject` of the world has marks too)
    Marks that a concept does not have are left out; a scene has none. Raises KeyError for an unknown name.
    """
    spec = CONCEPTS[concept] if isinstance(concept, str) else concept
    if spec.cls in SCENES:
        return {}
    marks = {"colour": colour_name(spec.rgb)}
    if spec.pattern:
        marks |= {"pattern": spec.pattern[0], "pattern colour": colour_name(spec.pattern[1])}
    marks |= {f"{nth}part": name for nth, (name, _) in zip(ORDINAL, spec.parts, strict=False)}
    worn = [f"{tint} {item}" for item, tint, *_ in spec.accessories]
    return marks | {f"{nth}accessory": name for nth, name in zip(ORDINAL, worn, strict=False)}


@functools.lru_cache(maxsize=64)
def _captions(cls: str, scorer: Scorer) -> dict[str, Tensor]:
    """Text features of the captions of every kind (alternatives, D)."""
    texts = mark_captions() | {"colour": [article(f"{tint} {cls}") for tint in TINTS]}
    return {kind: scorer.text_features(captions) for kind, captions in texts.items()}


def read_marks(images, cls: str, scorer=None, parts: int = 1, worn: int = 1) -> list[dict[str, str]]:
    """What is seen in pictures of one subject of class `cls`: a dict of each picture, kind -> value, as `marks_of` has.

    images   PIL pictures (one or several)
    parts, worn   how many of them to read; the best fitting first, "nothing" is one of the answers
    A plain subject has no "pattern colour", an object neither "part" nor "accessory".
    """
    scorer = load_scorer(scorer)
    texts = _captions(cls, scorer)
    return [_read(x, cls, texts, parts, worn) for x in scorer.image_features(images)]


def _read(x: Tensor, cls: str, texts: dict[str, Tensor], parts: int, worn: int) -> dict[str, str]:
    """The marks of one picture with image feature x (D,)."""
    patterns, tints = (*PATTERNS, PLAIN), list(TINTS)
    seen = {
        "colour": tints[int((texts["colour"] @ x).argmax())],
        "pattern": patterns[int((texts["pattern"] @ x).argmax())],
    }
    if seen["pattern"] != PLAIN:
        seen["pattern colour"] = tints[_of(texts["pattern colour"] @ x, PATTERNS.index(seen["pattern"]), len(tints))]
    if cls not in CHARACTERS:
        return seen
    best = (texts["part"] @ x).argsort(descending=True)
    seen |= {f"{nth}part": (*PARTS, NONE)[int(k)] for nth, k in zip(ORDINAL[:parts], best, strict=False)}
    best = (texts["worn"] @ x).argsort(descending=True)
    for nth, k in zip(ORDINAL[:worn], best.tolist(), strict=False):
        seen[f"{nth}accessory"] = NONE
        if k < len(ACCESSORIES):
            tint = list(COLORS)[_of(texts["worn colour"] @ x, k, len(COLORS))]
            seen[f"{nth}accessory"] = f"{tint} {ACCESSORIES[k]}"
    return seen


def _of(scores: Tensor, group: int, size: int) -> int:
    """The best of the `group`-th run of `size` scores, counted within it."""
    return int(scores[group * size : (group + 1) * size].argmax())


def marks_kept(images, concept: str | Spec, scorer=None) -> tuple[np.ndarray, list[str]]:
    """Which of a concept's marks each picture shows -> bool (n, kinds), the kinds' names.

    The mean over the kinds is a picture's share of marks kept. A scene has no marks: (n, 0).
    """
    spec, marks = CONCEPTS[concept] if isinstance(concept, str) else concept, marks_of(concept)
    images = [images] if isinstance(images, Image.Image) else list(images)
    if not marks:
        return np.zeros((len(images), 0), bool), []
    seen = read_marks(images, spec.cls, scorer, max(1, len(spec.parts)), max(1, len(spec.accessories)))
    return np.array([[shows(row, kind, value) for kind, value in marks.items()] for row in seen]), list(marks)


def shows(seen: dict[str, str], kind: str, value: str) -> bool:
    """Whether a reading, kind -> value, has this mark; of several parts (accessories) each may have been read first."""
    *_, sort = kind.split()
    if sort in ("part", "accessory"):
        return value in [v for k, v in seen.items() if k.split()[-1] == sort]
    return seen.get(kind) == value


def accuracy(images: Sequence[Image.Image], subjects: Sequence[Subject], scorer=None) -> dict[str, float]:
    """How often marks of drawn subjects are read as they are, for each kind: the subject's class is given.

    "pattern" and "part" count subjects that have none as well, "part" those with one at most.
    """
    scorer = load_scorer(scorer)
    hits: dict[str, list[bool]] = {}
    for x, who in zip(scorer.image_features(images), subjects, strict=True):
        wanted = marks_of(who)
        wanted.setdefault("pattern", PLAIN)
        if who.is_character:
            wanted.setdefault("part", NONE)
            wanted.setdefault("accessory", NONE)
        seen = _read(x, who.cls, _captions(who.cls, scorer), parts=1, worn=1)
        for kind, value in wanted.items():
            alone = f"second {kind}" not in wanted
            if kind in ("colour", "pattern", "pattern colour", "part", "accessory") and alone:
                hits.setdefault(kind, []).append(seen.get(kind) == value)
    names = {"colour": "colour of the marked"}
    return {names.get(kind, kind): float(np.mean(row)) for kind, row in hits.items()}


def concept_marks(draw, scorer=None, names: Sequence[str] = tuple(CONCEPTS)) -> dict[str, np.ndarray]:
    """Share of pictures that show each mark, for shipped concepts with marks, on their own pictures: name -> (kinds,).

    draw   parameters of pictures -> PIL pictures
    """
    kept = {name: marks_kept(draw([picture(name, i)[0] for i in range(PICTURES)]), name, scorer)[0] for name in names}
    return {name: hits.mean(0) for name, hits in kept.items() if hits.shape[1]}


__all__ = ["marks_of", "read_marks", "marks_kept", "accuracy", "concept_marks"]
