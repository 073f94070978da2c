"""Who is drawn together, and where (paper 3.4): casts of two or three, their prompts, and how the world draws them.

A cast is drawn by one prompt that names everyone (`direct`), or by one for all (`together`) and one for each region.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ..engine.regional import Region, side_by_side
from ..files.data import ConceptData
from ..pocket import conditions, world
from ..pocket.captions import COUNTS, PLACES, full_name
from ..pocket.concepts import subject as look_of

TALLEST = {1: 0.84, 2: 0.62, 3: 0.46}  # subjects of the world's pictures of one, two and three


@dataclass(frozen=True)
class Actor:
    """Who is asked for."""

    text: str  # in the prompt: "a red cat wearing a blue hat", "a <bibi1> <bibi2>"
    look: world.Subject  # as the world draws it
    pictures: tuple = ()  # of a concept: its own


@dataclass(frozen=True)
class Cast:
    """The subjects of a picture from left to right, and where they are."""

    name: str
    actors: tuple[Actor, ...]
    scene: str  # one of SCENES

    @property
    def place(self) -> str:
        return PLACES[self.scene][0]

    @property
    def direct(self) -> str:
        """Everyone in one prompt, as the world's captions name two or three from left to right."""
        *first, last = (actor.text for actor in self.actors)
        return f"{', '.join(first)}{' to the left of ' if len(first) == 1 else ' and '}{last} {self.place}"

    @property
    def together(self) -> str:
        """The prompt for the whole picture where regions say the rest."""
        return f"{COUNTS[len(self.actors)][0]} {self.place}"

    def regions(self, start: float = 0.0, friends: float = 0.0) -> list[Region]:
        """Columns of equal width, each with its subject's prompt and the place, as in the paper.

        For the first `friends` of the steps it says as well that its subject is not alone, see `side_by_side`.
        """
        return side_by_side([actor.text for actor in self.actors], self.place, friends=friends, start=start)


def word_casts(pairs: int = 8, triples: int = 4, seed: int = 0, dressed: bool = True) -> list[Cast]:
    """Characters in the base model's own words; classes, colours and what is worn differ within a cast.

    Not `dressed`: they wear nothing, and prompts say their class and colour alone.
    """
    rng, casts = np.random.default_rng([seed, 61]), []
    while len(casts) < pairs + triples:
        n, scene = (2 if len(casts) < pairs else 3), str(rng.choice(world.SCENES))
        alphabets = (world.CHARACTERS, list(world.COLORS), world.ACCESSORIES, list(world.COLORS))
        looks = list(zip(*(rng.choice(names, n, replace=False).tolist() for names in alphabets), strict=True))
        if any(colour == tint or world.held_out(cls, colour, scene) for cls, colour, _, tint in looks):
            continue
        subjects = []
        for cls, colour, item, tint in looks:
            worn = [(item, tint, world.sample_colour(rng, tint))] if dressed else []
            subjects.append(replace(world.sample_subject(rng, cls, colour), accessories=worn))
        actors = tuple(Actor(full_name(s, wear=dressed), s) for s in subjects)
        casts.append(Cast(f"{'prompt' if dressed else 'plain prompt'} {len(casts)}", actors, scene))
    return casts


def concept_casts(concepts: Sequence, data: Mapping[str, ConceptData]) -> list[Cast]:
    """Neighbouring pairs of shipped concepts, and the first three of them."""
    actors = [Actor(f"a {c.phrase}", look_of(c.name), tuple(data[c.name].pictures)) for c in concepts]
    groups = [actors[i : i + 2] for i in range(len(actors) - 1)] + ([actors[:3]] if len(actors) > 2 else [])
    return [
        Cast(" ".join(a.text for a in group), tuple(group), world.SCENES[i % len(world.SCENES)])
        for i, group in enumerate(groups)
    ]


def drawn(cast: Cast, seed: int) -> Image.Image:
    """The world's own picture of the cast, each in its box, in poses and proportions of the seed."""
    rng, n = np.random.default_rng([seed, 62]), len(cast.actors)
    subjects = []
    for actor, region in zip(cast.actors, cast.regions(), strict=True):
        look = actor.look if actor.pictures else world.sample_subject(rng, actor.look.cls, actor.look.colour)
        look = replace(look, accessories=actor.look.accessories, arms=world.sample_pose(rng))
        fitted = conditions.fit(look, region.box)
        subjects.append(replace(fitted, height=min(fitted.height, TALLEST[n])))
    picture = replace(world.sample(rng, subjects=subjects, scene=cast.scene), subjects=subjects)
    return Image.fromarray(world.draw_image(picture))
