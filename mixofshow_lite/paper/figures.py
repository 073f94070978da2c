"""Figures 1 to 7 of the paper in its own arrangement, with our concepts (see `grid`, pixel for pixel).

    figure   rows                        columns
    1        clients; the center node    private pictures and what each client shares draws; one model draws all of it
    2        a cast of concepts          their own pictures; one picture of all of them, by regions of the fused model
    3        concepts, in- and           own pictures; TI, P+: Phi_0(P*); LoRA, ED-LoRA: Phi_0(P*), (Phi_0 + dPhi)(P*);
             out-domain                  LoRA, ED-LoRA averaged: Phi(P*)
    4        concepts; casts             what each client tunes by itself; what the center node makes of all of it
    5        casts                       directly from one prompt; region by region
    6        concepts (a), casts (b)     own pictures; P+, Custom Diffusion, LoRA, Mix-of-Show
    7        concepts (a, b), casts (c)  words alone and with the LoRA; weight and gradient fusion; direct and regions

Phi_0 is the base, Phi_0 + dPhi with a concept's LoRA, Phi a fused model; P* is "photo of a V, near the beach".

Which picture is shown is a rule and no choice: of n from fixed seeds, the one of median image-alignment with the
concept's own. Under it stands that number; the frame is green where the reader finds it nearest to the right concept
of its rows, red where it does not. On the pocket model all pictures of several, by regions or not, follow a drawn pose
for each subject (a T2I-Adapter), the spatial condition of the paper's 3.4; its adapters for other bases do not ship.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image

from ..engine.evaluation import Scorer, crop, image_scores
from ..engine.fusion import weight_fusion
from ..files.concept import Concept
from ..files.data import ConceptData
from ..files.grid import grid, stacked
from ..model import DiffusionModel
from .binding import shipped_keypose
from .casts import Cast, concept_casts
from .observations import DOMAINS, LOOK_ALIKES, about
from .study import Study, difference, tuned
from .tables import TABLE_1, by_gradient

PROMPT = "photo of a {} on the beach"
SEED = 500
RIGHT, WRONG = "#1f8059", "#cf3644"
PHI_0, PHI_LORA, PHI = "Φ0(P*)", "(Φ0+ΔΦ)(P*)", "Φ(P*)"
BY_WORDS = "the words alone are more like the concept by ED-LoRA than by LoRA"
BY_FUSION = "fused pictures are more like the concept by gradient fusion than by weight fusion"
BY_REGIONS = "each subject in its place is more like its concept region by region than by one prompt"
Column = tuple[str, Callable[[str], tuple[DiffusionModel, Concept]]]  # title, name of a concept -> what draws it


@dataclass
class Studio:
    """Tunes and fuses what a figure asks for, each thing once, and keeps a number for every picture."""

    base: DiffusionModel
    folder: object  # of the tuned concepts
    data: Mapping[str, ConceptData]
    scorer: Scorer
    n: int = 4  # pictures of which the median is shown
    seed: int = 0  # of tuning
    steps: int | None = None
    rows: list[dict] = field(default_factory=list)
    models: dict = field(default_factory=dict)

    def concept(self, name: str, recipe: str) -> Concept:
        """The tuned concept."""
        return tuned(self.base, self.data[name], recipe, self.seed, self.folder, steps=self.steps)

    def alone(self, recipe: str, alpha: float = 1.0) -> Callable:
        """Phi_0 + alpha dPhi of each concept."""
        return lambda name: (self.base.with_concept(self.concept(name, recipe), alpha), self.concept(name, recipe))

    def fused(self, names: Sequence[str], recipe: str, fuse: Callable) -> Callable:
        """One model of all `names`, for each of them."""
        key = recipe, fuse, tuple(names)
        if key not in self.models:
            self.models[key] = fuse(self.base, [self.concept(name, recipe) for name in names])
        return lambda name: (self.models[key], self.concept(name, recipe))

    def median(self, name: str, label: str, pictures: list, names: Sequence[str]) -> tuple[Image.Image, str, str]:
        """The picture of median image-alignment, its caption and the colour of its frame; noted as a row."""
        scores = image_scores(pictures, self.data[name].pictures, self.scorer)
        index = int(np.argsort(scores)[(len(scores) - 1) // 2])
        others = {o: image_scores(pictures[index : index + 1], self.data[o].pictures, self.scorer)[0] for o in names}
        nearest = max(others, key=others.get)
        row = {"column": label, "concept": name, "seed": SEED + index, "value": float(scores[index])}
        self.rows.append(row | {"nearest": nearest})
        colour = RIGHT if nearest == name else WRONG
        return pictures[index], f"{scores[index]:.2f}", colour

    def show(self, name: str, label: str, of: Callable, names: Sequence[str], prompt: str = PROMPT):
        """The median picture of what `of` gives for a concept: (picture, caption, colour of its frame)."""
        model, concept = of(name)
        drawn = model.sample(prompt.format(concept.phrase), n=self.n, seed=SEED, progress=False)
        return self.median(name, label, drawn, names)

    def block(self, names: Sequence[str], columns: Sequence[Column], heading: str, prompt: str = PROMPT):
        """One grid: a row per concept, its own picture first, then every column."""
        rows, captions, frames = {}, {}, {}
        for i, name in enumerate(names):
            rows[name] = [self.data[name].pictures[0]]
            for j, (title, of) in enumerate(columns, start=1):
                picture, captions[i, j], frames[i, j] = self.show(name, f"{heading}: {title}", of, names, prompt)
                rows[name].append(picture)
        titles = ["reference", *(title for title, _ in columns)]
        return grid(rows, titles, side=self.side, captions=captions, frames=frames, heading=heading)

    def company(self, columns: Sequence[tuple[str, Callable, bool]], names: Sequence[str], heading: str):
        """One grid of casts: a row a cast, a column (title, fused model of a name, by regions?) each, all in one pose.

        The picture shown is the one whose subjects' mean alignment, each in its own box, is the median.
        """
        rows, captions = {}, {}
        first = [columns[0][1](name)[1] for name in names]
        for i, cast in enumerate(concept_casts(first, self.data)):
            who = cast.name
            for concept in first:
                who = who.replace(f"a {concept.phrase}", concept.name)
            rows[who] = []
            for j, (title, of, by_regions) in enumerate(columns):
                model, concepts = of(names[0])[0], [of(name)[1] for name in names]
                own = concept_casts(concepts, self.data)[i]
                picture, value = self.median_cast(model, own, by_regions)
                self.rows.append({"column": f"{heading}: {title}", "concept": who, "seed": 0, "value": value})
                rows[who].append(picture)
                captions[i, j] = f"{value:.2f}"
        titles = [title for title, _, _ in columns]
        return grid(rows, titles, side=self.side, captions=captions, heading=heading)

    def median_cast(self, model: DiffusionModel, cast: Cast, by_regions: bool) -> tuple[Image.Image, float]:
        """The median picture of a cast and its value."""
        regions, options = cast.regions(), {}
        if by_regions:
            options["regions"] = regions
        if self.condition is not None:
            options["spatial"] = self.condition(regions, [actor.look.cls for actor in cast.actors])
        prompt = cast.together if by_regions else cast.direct
        drawn = model.sample(prompt, n=self.n, seed=SEED, progress=False, **options)
        values = []
        for picture in drawn:
            own = [
                image_scores([crop(picture, region.box)], list(actor.pictures), self.scorer)[0]
                for actor, region in zip(cast.actors, regions, strict=True)
            ]
            values.append(float(np.mean(own)))
        index = int(np.argsort(values)[(len(values) - 1) // 2])
        return drawn[index], values[index]

    @cached_property
    def condition(self) -> Callable | None:
        """(regions, classes) -> the pose of a cast, for `sample(spatial=...)`; None where no adapter ships."""
        return shipped_keypose(self.base)

    @property
    def side(self) -> int:
        """Pixels of a picture on the page."""
        return max(128, self.base.size[1])

    def study(self, name: str, blocks: Sequence[Image.Image]) -> Study:
        """The figure: blocks one below the other, and the numbers under its pictures."""
        study = Study(name, self.rows, about=about(self.base, prompt=PROMPT, pictures=self.n, seeds=[self.seed]))
        study.quality = 90
        study.figure = stacked(list(blocks), max(block.width for block in blocks), 8)
        return study


def figure1(studio: Studio, names: Sequence[str] = LOOK_ALIKES, private: int = 3) -> Study:
    """Decentralized customization: pictures stay with the clients, the center node has their words and LoRAs alone.

    A row for each client, `private` of its own pictures and what its tuned concept draws; then the one model of all.
    """
    alone, fused = studio.alone("ed_lora"), studio.fused(names, "ed_lora", by_gradient)
    clients, captions, frames = {}, {}, {}
    for i, name in enumerate(names):
        clients[f"client {i + 1}: {name}"] = studio.data[name].pictures[:private]
        picture, captions[i, private], frames[i, private] = studio.show(name, "shared: words and LoRA", alone, names)
        clients[f"client {i + 1}: {name}"].append(picture)
    titles = [*["private"] * private, "shared: words and LoRA"]
    heading = "single-client concept tuning: pictures stay at home"
    home = grid(clients, titles, side=studio.side, captions=captions, frames=frames, heading=heading)
    node = [studio.show(name, "one model of all", fused, names) for name in names]
    center = grid(
        {"center node": [picture for picture, _, _ in node]},
        list(names),
        side=studio.side,
        captions={(0, i): caption for i, (_, caption, _) in enumerate(node)},
        frames={(0, i): colour for i, (_, _, colour) in enumerate(node)},
        heading="center-node concept fusion: one model, nobody's pictures",
    )
    together = studio.company([("joint sampling", fused, True)], names, "several in one picture")
    return studio.study("figure1", [home, center, together])


def figure2(studio: Studio, names: Sequence[str] = LOOK_ALIKES) -> Study:
    """Several concepts in one picture, by regions of the fused model."""
    fused = studio.fused(names, "ed_lora", by_gradient)
    own = grid([[studio.data[name].pictures[0] for name in names]], list(names), side=studio.side, heading="concepts")
    return studio.study("figure2", [own, studio.company([("Mix-of-Show", fused, True)], names, "together")])


def figure3(studio: Studio, domains: Mapping[str, Sequence[str]] = DOMAINS) -> Study:
    """Single- and multi-concept customization, embeddings alone against embeddings with weights."""
    names = [name for own in domains.values() for name in own]
    columns = [
        (f"(a) TI {PHI_0}", studio.alone("textual_inversion")),
        (f"(b) P+ {PHI_0}", studio.alone("p_plus")),
        (f"(c) LoRA {PHI_0}", studio.alone("lora", 0.0)),
        (f"(c) LoRA {PHI_LORA}", studio.alone("lora")),
        (f"(d) ED-LoRA {PHI_0}", studio.alone("ed_lora", 0.0)),
        (f"(d) ED-LoRA {PHI_LORA}", studio.alone("ed_lora")),
        (f"(e) LoRA, averaged {PHI}", studio.fused(names, "lora", weight_fusion)),
        (f"(f) ED-LoRA, averaged {PHI}", studio.fused(names, "ed_lora", weight_fusion)),
    ]
    return studio.study("figure3", [studio.block(own, columns, f"{d}-domain") for d, own in domains.items()])


def figure4(studio: Studio, names: Sequence[str] = LOOK_ALIKES) -> Study:
    """The pipeline: what each client tunes by itself, and what the center node makes of all of it."""
    tuning = [(f"V_rand+ V_class+ alone {PHI_0}", studio.alone("ed_lora", 0.0)), (PHI_LORA, studio.alone("ed_lora"))]
    fused = studio.fused(names, "ed_lora", by_gradient)
    blocks = [
        studio.block(names, tuning, "single-client concept tuning: a client's own pictures → ED-LoRA"),
        studio.block(names, [(f"one model of all, {PHI}", fused)], "center-node concept fusion: gradient fusion"),
        studio.company([("region by region", fused, True)], names, "regionally controllable sampling"),
    ]
    return studio.study("figure4", blocks)


def figure5(studio: Studio, names: Sequence[str] = LOOK_ALIKES) -> Study:
    """Regionally controllable sampling against one prompt that names everybody."""
    fused = studio.fused(names, "ed_lora", by_gradient)
    columns = [("(a) direct sampling", fused, False), ("(b) region by region", fused, True)]
    study = studio.study("figure5", [studio.company(columns, names, "multi-concept generation")])
    return claim(study, BY_REGIONS, "(b) region by region", "(a) direct sampling")


def figure6(studio: Studio, names: Sequence[str] = LOOK_ALIKES) -> Study:
    """Single concepts (a) and several in one picture (b), by every method of Table 1."""
    single = [(label, studio.alone(method.recipe)) for label, method in TABLE_1.items()]
    fused = [(label, studio.fused(names, m.recipe, m.fuse), True) for label, m in TABLE_1.items()]
    blocks = [studio.block(names, single, "(a) single-concept"), studio.company(fused, names, "(b) multi-concept")]
    return studio.study("figure6", blocks)


def figure7(studio: Studio, names: Sequence[str] = LOOK_ALIKES) -> Study:
    """What each part of Mix-of-Show is for: (a) the embedding, (b) the fusion, (c) the regions."""
    words = [
        (f"LoRA {PHI_0}", studio.alone("lora", 0.0)),
        (f"LoRA {PHI_LORA}", studio.alone("lora")),
        (f"ED-LoRA {PHI_0}", studio.alone("ed_lora", 0.0)),
        (f"ED-LoRA {PHI_LORA}", studio.alone("ed_lora")),
    ]
    averaged, fused = (studio.fused(names, "ed_lora", fuse) for fuse in (weight_fusion, by_gradient))
    fusions = [(f"weight fusion {PHI}", averaged), (f"gradient fusion {PHI}", fused)]
    regions = [("direct sampling", fused, False), ("regionally controllable sampling", fused, True)]
    blocks = [
        studio.block(names, words, "(a) embedding expressiveness"),
        studio.block(names, fusions, "(b) fusion type"),
        studio.company(regions, names, "(c) regionally controllable sampling"),
    ]
    study = studio.study("figure7", blocks)
    claim(study, BY_WORDS, f"ED-LoRA {PHI_0}", f"LoRA {PHI_0}")
    claim(study, BY_FUSION, f"gradient fusion {PHI}", f"weight fusion {PHI}")
    return claim(study, BY_REGIONS, "regionally controllable sampling", "direct sampling")


def claim(study: Study, words: str, more: str, less: str) -> Study:
    """Record "the pictures of column `more` score higher than those of `less`": those shown, a pair for every row."""
    rows = [row | {"seed": 0, "column": row["column"].rpartition(": ")[2]} for row in study.rows]
    study.claim(words, difference(rows, "column", more, less))
    return study


FIGURES: dict[str, Callable[[Studio], Study]] = {
    "figure1": figure1,
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
    "figure5": figure5,
    "figure6": figure6,
    "figure7": figure7,
}
