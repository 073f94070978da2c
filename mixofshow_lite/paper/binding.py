"""Do regions fix binding (paper 3.4, Fig. 5, 6 b, 7 c)? Two and three subjects with attributes, drawn in several ways.

Subjects are characters in the base's own words, dressed ("words") or not ("plain words"), or tuned concepts, fused.

    way                          here
    direct                       one prompt names everyone from left to right
    regions                      a prompt for all ("two friends on the beach") and one for each box
    regions, friends             the same, and each box's prompt says that there are others, and where it stands
    regions, isolated            as `regions`, and self-attention between the boxes is cut
    regions, later               the prompt for all alone for a fifth of the steps, which decides where bodies are
    regions, friends, isolated   words and fence together
    regions, friends first       the words for two fifths of the steps, which decide where bodies are; then as `regions`
    ... first, isolated          and the fence
    ... + pose                   with a spatial condition as well, a keypose that is laid out from the boxes
    drawn                        the world's own pictures: what the reader can tell at best
    drawn, decoded               the same, through the base's autoencoder: at best of what a base decodes

Pocket CLIP reads every box, cropped, of every picture:

    placed      its class is the subject's, among the world's six characters (chance 1/6)
    present     some box of the picture shows the subject's class
    coloured    its colour is the subject's, among ten (1/10)
    wearing     of what the prompt's n subjects wear, it shows what this one should (1/n)
    own         of all pairings of the prompt's classes and colours, it shows this subject's (1/n^2); a concept: of the
                prompt's concepts' own pictures, it is nearest to the right one's (1/n)
    all placed, all own   so are all subjects of the picture (0 or 1)

A row is one picture, its numbers the means over its subjects. What the reader cannot tell on drawn pictures, it cannot
tell on sampled ones: compare with the rows `drawn`, not with 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from ..engine.evaluation import Scorer, crop, load_scorer
from ..engine.fusion import gradient_fusion
from ..engine.fusion.settings import default_ridge
from ..engine.spatial import load_adapter
from ..files.data import ConceptData
from ..files.grid import grid
from ..model import DiffusionModel
from ..pocket import conditions, world
from ..pocket.captions import article, full_name
from ..pocket.train.bars import rate
from .casts import Cast, concept_casts, drawn, word_casts
from .observations import about
from .study import Study, difference, tuned

DRAWN = ("drawn", "drawn, decoded")
WAYS = (
    "direct", "regions", "regions, friends", "regions, isolated", "regions, later", "regions, friends, isolated",
    "regions, friends first", "regions, friends first, isolated",
)  # fmt: skip
POSED = ("direct + pose", "regions + pose", "regions, friends + pose")
NUMBERS = ("present", "placed", "coloured", "wearing", "own", "all placed", "all own")
SEED = 200  # of the first picture
LATER = 0.2  # the fraction of the steps before "regions, later"
FIRST = 0.4  # the fraction of the steps with friends of "regions, friends first"
WANTED = 0.9  # share of pictures of two subjects in which each is in its place


def draw_cast(model: DiffusionModel, cast: Cast, way: str, n: int, seed: int, condition: Callable | None) -> list:
    """n pictures of a cast in one of the ways; the same seeds in all of them."""
    if way in DRAWN:
        pictures = [drawn(cast, seed + i) for i in range(n)]
        return model.decode(model.encode_images(pictures)) if "decoded" in way else pictures
    options, prompt = {}, cast.direct
    if "regions" in way:
        friends = FIRST if "first" in way else float("friends" in way)
        regions = cast.regions(LATER if "later" in way else 0.0, friends)
        options, prompt = {"regions": regions, "isolate": "isolated" in way}, cast.together
    if "pose" in way:
        options["spatial"] = condition(cast.regions(), [actor.look.cls for actor in cast.actors])
    return model.sample(prompt, n=n, seed=seed, progress=False, **options)


def keypose(adapter, scale: float = 1.0) -> Callable:
    """The condition of a keypose adapter: (regions, classes) -> what `sample(spatial=...)` takes."""
    return lambda regions, classes: (adapter, conditions.keypose_layout(regions, classes=classes), scale)


def shipped_keypose(base: DiffusionModel) -> Callable | None:
    """The condition of the keypose adapter that ships with the pocket model; None for another base."""
    if not base.base_id.startswith("pocket"):
        return None
    return keypose(load_adapter("pocket-keypose", base.device, base.dtype))


def read_cast(pictures: Sequence[Image.Image], cast: Cast, scorer: Scorer) -> list[dict]:
    """The module's numbers of every picture of a cast, and `seen`: the class and colour read in each box."""
    n, actors = len(cast.actors), cast.actors
    crops = [crop(p, region.box) for p in pictures for region in cast.regions()]
    x = scorer.image_features([*crops, *map(ImageOps.mirror, crops)]).unflatten(0, (2, -1, n))
    x = F.normalize(x.sum(0), dim=-1)  # (pictures, n boxes, D), each with its mirror image
    names = world.CHARACTERS if all(a.look.is_character for a in actors) else world.CLASSES
    classes = (x @ scorer.text_features([article(c) for c in names]).T).argmax(-1)
    wanted = torch.tensor([names.index(a.look.cls) for a in actors])  # (n,)
    placed, present = classes == wanted, (classes[:, :, None] == wanted).any(1)  # (pictures, n)
    found = {"present": present, "placed": placed}
    colours = list(world.COLORS)
    palettes = [scorer.text_features([article(f"{c} {a.look.cls}") for c in colours]) for a in actors]  # n of (10, D)
    tints = torch.stack([(x[:, i] @ palette.T).argmax(-1) for i, palette in enumerate(palettes)], 1)  # (pictures, n)
    if actors[0].pictures:
        nearest = torch.stack([(x @ scorer.image_features(a.pictures).T).mean(-1) for a in actors], -1).argmax(-1)
        found["own"] = nearest == torch.arange(n)
    else:
        wanted = torch.tensor([colours.index(a.look.colour) for a in actors])
        pairings = torch.cat([palette[wanted] for palette in palettes])  # (n * n, D), class by class
        found["coloured"] = tints == wanted
        found["own"] = (x @ pairings.T).argmax(-1) == torch.arange(n) * (n + 1)
        worn = [[full_name(replace(a.look, accessories=b.look.accessories), wear=True) for b in actors] for a in actors]
        if all(a.look.accessories for a in actors):
            found["wearing"] = torch.stack(
                [(x[:, i] @ scorer.text_features(texts).T).argmax(-1) == i for i, texts in enumerate(worn)], 1
            )
    rows = []
    for k in range(len(pictures)):
        row = {number: float(hits[k].float().mean()) for number, hits in found.items()}
        row |= {f"all {number}": float(found[number][k].all()) for number in ("placed", "own")}
        seen = zip(tints[k].tolist(), classes[k].tolist(), strict=True)
        rows.append(row | {"seen": " | ".join(f"{colours[t]} {names[c]}" for t, c in seen)})
    return rows


def measure(
    model: DiffusionModel, casts: Sequence[Cast], ways: Sequence[str], n: int, seed: int, scorer: Scorer,
    condition: Callable | None = None, mark: str = "",
) -> tuple[list[dict], dict]:  # fmt: skip
    """Draw and read every cast in every way -> rows, {(cast, way, seed): [picture]}; `mark` goes before the seeds."""
    rows, pictures = [], {}
    for cast in casts:
        dressed = any(actor.look.accessories for actor in cast.actors)
        kind = "concepts" if cast.actors[0].pictures else "words" if dressed else "plain words"
        for way in ways:
            drawings = draw_cast(model, cast, way, n, seed, condition)
            for i, found in enumerate(read_cast(drawings, cast, scorer)):
                row = {"kind": kind, "way": way, "concept": cast.name, "seed": f"{mark}{seed + i}"}
                rows.append(row | {"subjects": len(cast.actors)} | found | {"prompt": cast.direct})
                pictures[cast.name, way, row["seed"]] = [drawings[i]]
    return rows, pictures


def binding(
    base: DiffusionModel,
    folder=None,
    data: Mapping[str, ConceptData] | None = None,
    names: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    n: int = 3,
    steps: int | None = None,
    scorer: Scorer | str | None = None,
    condition: Callable | None = None,
    casts: Sequence[Cast] | None = None,
) -> Study:
    """Does each subject get its place, colour and attributes? Rows of the module's numbers, claims about the ways.

    names       shipped concepts that are tuned (kept in `folder`, see `study.tuned`; `seeds` and `steps` are those of
                tuning), fused and cast as well
    n           pictures of each cast in each way, of the same picture seeds
    condition   draws the spatial condition (`keypose(adapter)`); by default the shipped adapter's, if it is for this
                base; without one the posed ways are left out
    casts       in the base's own words, by default `word_casts()` and a dozen pairs without clothes
    """
    scorer = load_scorer(scorer)
    condition = condition or shipped_keypose(base)
    ways = (*DRAWN, *WAYS, *(POSED if condition else ()))
    casts = [*word_casts(), *word_casts(pairs=12, triples=0, seed=1, dressed=False)] if casts is None else casts
    rows, pictures = measure(base, casts, ways, n, SEED, scorer, condition)
    tuning_seeds = seeds if names else []
    for tuning_seed in tuning_seeds:
        concepts = [tuned(base, data[name], "ed_lora", tuning_seed, folder, steps=steps) for name in names]
        fused = gradient_fusion(base, concepts, progress=False)
        drawings = measure(
            fused, concept_casts(concepts, data), ways, n, SEED, scorer, condition, mark=f"{tuning_seed}/"
        )
        rows, pictures = rows + drawings[0], pictures | drawings[1]
    study = Study("binding", rows, pictures=pictures)
    claims(study, "words", "regions", "direct", ("present", "placed", "coloured", "own", "wearing"))
    claims(study, "words", "regions, friends", "regions", ("present", "placed", "own"))
    claims(study, "words", "regions, isolated", "regions", ("placed", "coloured", "own", "wearing"))
    claims(study, "words", "regions, later", "regions", ("present", "placed", "own"))
    claims(study, "words", "regions, friends, isolated", "regions, friends", ("present", "placed", "own"))
    for kind in ("words", "plain words"):
        claims(study, kind, "regions, friends first", "regions, friends", ("placed", "own"))
    claims(study, "words", "direct + pose", "direct", ("present",))
    claims(study, "words", "regions + pose", "direct + pose", ("own", "coloured", "wearing"))
    claims(study, "words", "regions + pose", "regions", ("placed",))
    claims(study, "words", "regions, friends + pose", "regions, friends", ("present", "placed", "own"))
    claims(study, "plain words", "regions", "direct", ("present", "placed", "own"))
    claims(study, "plain words", "regions, friends", "regions", ("present", "placed", "own"))
    for ways_of in ("", ", friends"):
        claims(study, "concepts", f"regions{ways_of}", "direct", ("own",))
        claims(study, "concepts", f"regions{ways_of} + pose", "direct + pose", ("own",))
    means, in_place = summary(rows)
    settings = {"tuned": list(names), "seeds": list(seeds), "pictures": n, "prompts": [cast.direct for cast in casts]}
    settings |= {"ridge": default_ridge(len(names))} if names else {}
    study.about = about(base, **settings, wanted=WANTED, two_each_in_its_place=in_place, means=means)
    study.figure = gallery(rows, pictures, [way for way in ways if way != "drawn, decoded"])
    study.rows = [{k: v for k, v in row.items() if k != "prompt"} for row in rows]  # long; in `about`, or the name
    return study


def claims(study: Study, kind: str, more: str, less: str, numbers: Sequence[str]) -> None:
    """Record "`more` has a higher number than `less`" for each number that both ways have."""
    for number in numbers:
        rows = [row for row in study.rows if row["kind"] == kind and number in row]
        if {more, less} <= {row["way"] for row in rows}:
            found = difference(rows, "way", more, less, number)
            study.claim(f"{kind}: more are {number} with {more} than with {less}", found)


def summary(rows: Sequence[dict]) -> tuple[dict, dict]:
    """Means, {"words, 2": {way: {number: mean}}}; of pairs in words {kind: {way: shares of all right, with errors}}."""
    means: dict = {}
    for group in sorted({(row["kind"], row["subjects"]) for row in rows}, reverse=True):
        own = [row for row in rows if (row["kind"], row["subjects"]) == group]
        means[f"{group[0]}, {group[1]}"] = {
            way: {
                number: round(float(np.mean([r[number] for r in own if r["way"] == way])), 3)
                for number in NUMBERS
                if number in own[0]
            }
            for way in dict.fromkeys(row["way"] for row in own)
        }
    in_place: dict = {}
    for row in rows:
        if row["kind"] != "concepts" and row["subjects"] == 2:
            in_place.setdefault(row["kind"], {}).setdefault(row["way"], []).append(row)
    rights = ("all placed", "all own")
    return means, {
        kind: {way: {k: rate([row[k] for row in own]) for k in rights} for way, own in ways.items()}
        for kind, ways in in_place.items()
    }


def table(means: Mapping[str, Mapping]) -> str:
    """The means of `summary` as text, in percent."""
    lines = []
    for group, by_way in means.items():
        numbers = list(next(iter(by_way.values())))
        lines.append(f"{group + ' subjects':27}" + "".join(f"{number:>12}" for number in numbers))
        lines += [f"  {way:25}" + "".join(f"{100 * v:11.0f}%" for v in found.values()) for way, found in by_way.items()]
    return "\n".join(lines)


def score(row: Mapping) -> float:
    """How right a picture is: the mean of what is read of its subjects."""
    return float(np.mean([row[number] for number in ("placed", "coloured", "own") if number in row]))


def gallery(rows: Sequence[dict], pictures: Mapping, ways: Sequence[str], each: int = 1):
    """The failures: a row per way, a column per prompt and seed, under each picture what was read.

    Columns are the `each` worst of every way but the drawn one: no way shows its successes only. Green: all read right.
    """
    columns: dict = {}
    for way in ways:
        own = sorted((r for r in rows if r["way"] == way != "drawn"), key=score)
        fresh = [(r["concept"], r["seed"]) for r in own if (r["concept"], r["seed"]) not in columns]
        columns |= dict.fromkeys(fresh[:each], way)
    found = {(r["concept"], r["seed"], r["way"]): r for r in rows}
    shown, captions, frames = {}, {}, {}
    for i, way in enumerate(ways):
        shown[way] = [pictures[cast, way, seed][0] for cast, seed in columns]
        for j, (cast, seed) in enumerate(columns):
            row = found[cast, seed, way]
            captions[i, j] = row["seen"].replace(" | ", "\n")
            frames[i, j] = "#1f8059" if score(row) == 1 else "#cf3644"
    prompts = [found[cast, seed, way]["prompt"] for (cast, seed), way in columns.items()]
    return grid(shown, prompts, captions=captions, frames=frames)
