"""The measure is measured (paper 4.3): is image-alignment what it is taken for, and what does it miss?

Pocket World draws a concept again in the pose and place of its own pictures, with a mark less or as somebody else. What
such a picture shows is known, whatever a reader says of it:

identical   a picture scores 1 against itself
shuffled    concepts scored against each other's pictures come out where the class word does, the lower bound
blended     the score falls as another identity is mixed in, and the other's rises
misjudged   of two pictures the one that shows fewer of the marks has the higher score
readers     two readers put the same settings in the same order

A reader is anything with `image_features` -> (n, D) of length 1. The kit ships one trained reader, Pocket CLIP; `agree`
takes any two, and whether a second one, trained by itself, agrees on the orders that the studies report is open.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from PIL import Image

from ..evaluation import Clip, image_scores
from ..pocket import concepts, world
from ..pocket.marks import marks_of, shows

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the other identity
POSE = ("lean", "turn", "gaze")  # what a picture decides and not the concept
RED, GREEN = (0.8, 0.1, 0.1), (0.2, 0.6, 0.3)  # of a pattern in another colour
ALL_MARKS, NO_MARKS = "all marks", "no mark at all"
FARTHER, AWAY = "all marks, farther away", 0.65  # drawn at that share of its size


def redraw(name: str, index: int, look: world.Subject, size: float = 1.0) -> Image.Image:
    """Picture `index` of a concept (0 to 9) with somebody else in its pose, mood, place and light, and in its size
    times `size`."""
    own, _ = concepts.picture(name, index)
    subject = own.subjects[0]
    shape = look.shape | {key: subject.shape[key] for key in POSE if key in subject.shape and key in look.shape}
    pose = {key: getattr(subject, key) for key in ("flip", "arms", "expression", "x", "y", "height")}
    pose["height"] *= size
    drawn = replace(own, subjects=[replace(look, shape=shape, **pose)])
    return Image.fromarray(world.draw_image(drawn))


def variants(name: str) -> dict[str, world.Subject]:
    """A concept's look with marks less or changed: what is done -> the look. Raises ValueError for a scene.

    Every part and everything worn is left out once; the first thing worn has another colour once; and the first part
    and the first thing worn are left out together where marks are left then. One look is for being drawn farther away,
    with nothing left out.
    """
    if concepts.CONCEPTS[name].cls in world.SCENES:
        raise ValueError(f"{name} is a scene, which has no marks: choose a character or an object.")
    look = concepts.subject(name)
    bare = replace(look, pattern=None, parts=[], accessories=[], eye_rgb=None, outline=1.0)
    found = {ALL_MARKS: look, FARTHER: look}
    if look.pattern:
        kind, rgb, scale = look.pattern
        other = GREEN if rgb[0] > max(rgb[1:]) else RED
        found["no pattern"] = replace(look, pattern=None)
        found["pattern in another colour"] = replace(look, pattern=(kind, other, scale))
    for part in look.parts:
        found[f"no {part[0]}"] = without(look, part[0])
    for worn in look.accessories:
        found[f"no {worn[0]}"] = without(look, worn[0])
    if look.accessories:
        item, tint, _ = look.accessories[0]
        other = "green" if tint == "red" else "red"
        recoloured = (item, other, world.hsv(*world.COLORS[other]))
        found[f"{item} in another colour"] = replace(look, accessories=[recoloured, *look.accessories[1:]])
    if look.parts and look.accessories:
        part, item = look.parts[0][0], look.accessories[0][0]
        fewer = without(look, part, item)
        if fewer.pattern or fewer.parts or fewer.accessories:
            found[f"no {part}, no {item}"] = fewer
    return found | {NO_MARKS: bare}


def without(look: world.Subject, *gone: str) -> world.Subject:
    """The same look without these parts and accessories."""
    parts = [part for part in look.parts if part[0] not in gone]
    return replace(look, parts=parts, accessories=[worn for worn in look.accessories if worn[0] not in gone])


def marks_shown(name: str, look: world.Subject) -> float:
    """The part of a concept's named marks that a drawn look truly has, 0..1: by its parameters, no reader is asked."""
    wanted, there = marks_of(name), marks_of(look)
    return float(np.mean([shows(there, kind, value) for kind, value in wanted.items()]))


def score_variants(name: str, reader: Clip, pictures: int = concepts.PICTURES) -> dict[str, tuple[float, float]]:
    """What is done to the look -> (image-alignment with the concept's own pictures, marks truly shown)."""
    own, found = own_pictures(name), {}
    for label, look in variants(name).items():
        size = AWAY if label == FARTHER else 1.0
        drawn = [redraw(name, index, look, size) for index in range(pictures)]
        found[label] = float(image_scores(drawn, own, reader).mean()), marks_shown(name, look)
    return found


def own_pictures(name: str) -> list[Image.Image]:
    """The concept's own pictures, drawn anew (a scene's too)."""
    return [Image.fromarray(world.draw_image(concepts.picture(name, i)[0])) for i in range(concepts.PICTURES)]


def misjudged(scores: Sequence[float], marks: Sequence[float]) -> list[tuple[int, int]]:
    """Pairs (i, j) of pictures where i has the higher score and shows fewer marks; the widest gap of scores first."""
    pairs = []
    for i, j in combinations(range(len(scores)), 2):
        if scores[i] < scores[j]:
            i, j = j, i
        if scores[i] > scores[j] and marks[i] < marks[j]:
            pairs.append((i, j))
    return sorted(pairs, key=lambda pair: scores[pair[1]] - scores[pair[0]])


# The checks


def identical(pictures: Sequence[Image.Image], reader: Clip) -> float:
    """The lowest score of a picture against itself; 1 but for rounding."""
    return min(float(image_scores([picture], [picture], reader)[0]) for picture in pictures)


def shuffled(pictures: Mapping[str, Sequence[Image.Image]], reader: Clip) -> dict[str, tuple[float, float, float]]:
    """Concept -> its pictures' score against its own others, the mean of the others' against its own, and the highest.

    `pictures` are concept -> at least two of its own; at least two concepts.
    """
    features = {name: reader.image_features(list(own)) for name, own in pictures.items()}
    found = {}
    for name, y in features.items():
        pairs = (y @ y.T).clamp(min=0)
        own = float((pairs.sum() - pairs.diagonal().sum()) / (len(y) * (len(y) - 1)))
        others = [float((x @ y.T).clamp(min=0).mean()) for other, x in features.items() if other != name]
        found[name] = own, float(np.mean(others)), max(others)
    return found


def lower_bound(name: str, reader: Clip, pictures: int = concepts.PICTURES, seed: int = 0) -> float:
    """The lower bound of a base that draws the class perfectly: any of the class, in any colour, in the same places."""
    rng = np.random.default_rng([seed, 71])
    drawn = [redraw(name, i, world.sample_subject(rng, concepts.CONCEPTS[name].cls)) for i in range(pictures)]
    return float(image_scores(drawn, own_pictures(name), reader).mean())


def blend(name: str, other: str, reader: Clip, shares: Sequence[float] = SHARES) -> list[tuple[float, float]]:
    """The score with a concept's pictures, and with the other's, while the other is mixed in: a pair for each share.

    The other is drawn in the concept's poses and places and laid over it: 0 is the concept, 1 the other.
    """
    own, theirs = own_pictures(name), own_pictures(other)
    replaced = [redraw(name, index, concepts.subject(other)) for index in range(len(own))]
    found = []
    for share in shares:
        mixed = [Image.blend(a, b, share) for a, b in zip(own, replaced, strict=True)]
        found.append(tuple(float(image_scores(mixed, wanted, reader).mean()) for wanted in (own, theirs)))
    return found


def monotone(blended: Sequence[tuple[float, float]], slack: float = 0.0) -> bool:
    """Whether the first number only falls and the second only rises, each step by `slack` at most the wrong way."""
    first, second = np.array(blended).T
    return bool((np.diff(first) <= slack).all() and (np.diff(second) >= -slack).all())


# Two readers


@dataclass(frozen=True)
class Agreement:
    """How far two readers put the same settings in the same order."""

    same: int  # pairs of settings that both order alike
    pairs: int
    against: tuple[tuple[str, str], ...]  # pairs that they order differently

    def __str__(self) -> str:
        tail = "".join(f"; not on {a!r} against {b!r}" for a, b in self.against)
        return f"the readers agree on {self.same} of {self.pairs} orders{tail}"


def agree(first: Mapping[str, float], second: Mapping[str, float], margin: float = 0.0) -> Agreement:
    """Two readers' numbers of the same settings, pair by pair.

    A pair counts where the first reader's numbers differ by more than `margin`, the orders that it would report; a tie
    of the second is no agreement. Raises ValueError unless both read the same settings, two or more.
    """
    if set(first) != set(second) or len(first) < 2:
        raise ValueError(
            f"The readers read {sorted(first)} and {sorted(second)}: give both the same settings, two or more."
        )
    pairs = [(a, b) for a, b in combinations(first, 2) if abs(first[a] - first[b]) > margin]
    against = tuple((a, b) for a, b in pairs if (first[a] - first[b]) * (second[a] - second[b]) <= 0)
    return Agreement(len(pairs) - len(against), len(pairs), against)
