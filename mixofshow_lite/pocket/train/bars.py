"""Pocket Diffusion's bars: does it draw what a prompt says, in combinations that its training never showed?

    python -m mixofshow_lite.pocket.train.bars --base data/pocket --n 500 --steps 25 --out data/results/pocket_bars.json

one      "a red cat on the beach" with class, colour and scene held out together (`world.held_out`); Pocket CLIP reads
         the three and the number of subjects zero-shot, each share with its binomial standard error. And the kernel
         distance (KID) of the pictures to the world's own of the same combinations, whose floor is that between two
         draws of the world
two      "a red cat and a blue robot on the beach", both held out in that scene: are both classes the two best readings
         ("both present"), do both also wear their own colours, and does the prompt fit better than the same with the
         colours swapped ("binding", chance is half)?
side     two characters by `side_by_side` regions, read in each column: is each of its class ("in place"), and nearest
         to its own class and colour of the four pairings of the prompt's ("own", chance 1/4)? "all ..." counts pictures
reader   the same readings of pictures that the world drew, no diffusion: what Pocket CLIP can tell at best
vae      PSNR of reconstructions, of the whole and inside the subjects: the world, the out-domain concepts; and how many
         of the marks read from the concepts' own pictures are read from reconstructions too
seconds  four pictures, on an idle machine (it is up to you) and with one other process that keeps a core busy

Class, colour and scene have bars relative to what the reader tells of drawn pictures. Every picture has its own seed,
so a larger `--n` repeats the smaller one's pictures. Readings are kept beside `--out` while they come: an interrupted
run goes on. `--parts` measures some of it anew and keeps the rest of `--out`. `--v1-kid` is the kernel distance that
the first version had: a third of it is the bar.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ...engine.evaluation import Scorer, choose, crop, load_scorer
from ...engine.regional import side_by_side
from ...files.data import ConceptData
from ...files.resources import concepts_dir
from ...files.writing import write_text
from ...model import DiffusionModel, load_base
from ..captions import COUNTS, PLACES, article
from ..concepts import CONCEPTS
from ..marks import marks_kept
from ..world import CHARACTERS, CLASSES, COLORS, SCENES, draw_image, held_out, sample, sample_subject
from . import pretrain
from .clip import read, read_number, read_pair

SHARES = {"class": 0.99, "colour": 0.98, "scene": 0.99}  # of the reader's own on drawn pictures
BARS = {
    **{f"{what} / ceiling": share for what, share in SHARES.items()}, "one subject": 0.95, "all in place": 0.95,
    "all own": 0.90, "psnr": 31.0, "psnr inside": 27.0, "marks kept": 0.97, "kid / v1": 1 / 3,
    "seconds for four": 10.0, "seconds beside": 15.0,
}  # fmt: skip
AT_MOST = ("kid / v1", "seconds for four", "seconds beside")
PARTS = ("reader", "vae", "one", "two", "side", "seconds")
READINGS = {
    "one": ("class", "colour", "scene", "number"),
    "two": ("both present", "each its own colour", "binding"),
    "side": ("in place", "own", "all in place", "all own"),
}


def singles() -> list[tuple[str, str, str]]:
    """All held-out (class, colour, scene), in an order in which neighbours share little."""
    every = [c for c in itertools.product(CLASSES, COLORS, SCENES) if held_out(*c)]
    return [every[i] for i in np.random.default_rng(0).permutation(len(every))]


def pairs() -> list[tuple[tuple[str, str], tuple[str, str], str]]:
    """((class, colour), (class, colour), scene): two classes, two colours, both combinations held out; shuffled."""
    rng, found = np.random.default_rng(1), []
    for scene in SCENES:
        here = [(cls, colour) for cls, colour, s in sorted(singles()) if s == scene]
        found += [(*duo, scene) for duo in itertools.combinations(here, 2) if len({*duo[0], *duo[1]}) == 4]
    found = [found[i] for i in rng.permutation(len(found))]
    return [(b, a, scene) if rng.random() < 0.5 else (a, b, scene) for a, b, scene in found]


def side_pairs() -> list[tuple[tuple[str, str], tuple[str, str], str]]:
    """`pairs()` of characters, each from left to right in both orders; shuffled."""
    found = [p for p in pairs() if {p[0][0], p[1][0]} <= set(CHARACTERS)]
    found += [(b, a, scene) for a, b, scene in found]
    return [found[i] for i in np.random.default_rng(2).permutation(len(found))]


def one_prompt(cls: str, colour: str, scene: str) -> str:
    return f"{article(f'{colour} {cls}')} {PLACES[scene][0]}"


def two_prompt(first, second, scene: str) -> str:
    (a, x), (b, y) = first, second
    return f"{article(f'{x} {a}')} and {article(f'{y} {b}')} {PLACES[scene][0]}"


def read_two(image: Image.Image, first, second, scene: str, scorer: Scorer) -> list[bool]:
    """(both present, each its own colour, binding) of a picture of two subjects; see the module's docstring."""
    (a, x), (b, y) = first, second
    both, seen_x, seen_y = read_pair(image, a, b, scorer)
    prompts = [two_prompt(first, second, scene), two_prompt((a, y), (b, x), scene)]
    return [bool(both), bool(both and (seen_x, seen_y) == (x, y)), bool(choose(image, prompts, scorer)[0] == 0)]


def read_side(image: Image.Image, first, second, scene: str, scorer: Scorer) -> list[list[bool]]:
    """(in place, own) of the left and of the right subject, each read in its column; see the module's docstring."""
    (a, x), (b, y) = first, second
    columns = [crop(image, region.box) for region in side_by_side(("left", "right"), friends=0)]
    classes = choose(columns, [article(c) for c in CHARACTERS], scorer)
    pairings = [article(f"{tint} {cls}") for cls in (a, b) for tint in (x, y)]
    nearest = choose(columns, pairings, scorer)
    placed = [CHARACTERS[k] == cls for k, cls in zip(classes, (a, b), strict=True)]
    return [placed, [bool(k == own) for k, own in zip(nearest, (0, 3), strict=True)]]


def drawn_one(cls: str, colour: str, scene: str, n: int, seed: int) -> list[Image.Image]:
    """The world's own pictures of a held-out combination."""
    pictures = []
    for i in range(n):
        rng = np.random.default_rng([seed + i, 31])
        pictures.append(sample(rng, subjects=[sample_subject(rng, cls, colour)], scene=scene))
    return [Image.fromarray(draw_image(p)) for p in pictures]


def drawn_two(first, second, scene: str, seed: int) -> Image.Image:
    """The world's own picture of two subjects, the first on the left, apart enough to be told apart."""
    rng = np.random.default_rng([seed, 32])
    subjects = [sample_subject(rng, *look) for look in (first, second)]
    picture = sample(rng, subjects=subjects, scene=scene, apart=True)
    left, right = sorted(picture.subjects, key=lambda s: s.cls != first[0])
    left.x, right.x = sorted((left.x, right.x))
    return Image.fromarray(draw_image(picture))


class Kept:
    """Readings so far, in a JSON-lines file that names the run; another run's file is started anew."""

    def __init__(self, file: Path, about: dict):
        self.file, self.rows = file, {}
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        if lines and json.loads(lines[0]) == about:
            for line in lines[1:]:
                try:
                    key, value = json.loads(line)
                except ValueError:
                    break  # the line that an interruption cut
                self.rows[key] = value
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [about, *([key, value] for key, value in self.rows.items())]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def get(self, key: str, compute):
        """The value kept under `key`, computed (and kept) if there is none."""
        if key not in self.rows:
            self.put(key, compute())
        return self.rows[key]

    def put(self, key: str, value) -> None:
        self.rows[key] = value
        with open(self.file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps([key, value]) + "\n")


def shares(n: int, parts: int) -> list[int]:
    """n pictures over so many prompts, as evenly as it goes, the first ones get one more."""
    return [n // parts + (i < n % parts) for i in range(parts)]


def rate(hits) -> dict[str, float]:
    """Share of hits with its binomial standard error sqrt(p (1 - p) / n)."""
    p = float(np.mean(hits))
    return {"share": round(p, 4), "error": round(float(np.sqrt(p * (1 - p) / len(hits))), 4), "n": len(hits)}


def read_one(images: list[Image.Image], scorer: Scorer) -> list[list]:
    """What is kept of a picture of one subject: class, colour, scene, number of subjects, feature."""
    features = scorer.image_features(images).numpy().round(4).tolist()
    seen = zip(read(images, scorer), read_number(images, scorer), features, strict=True)
    return [[*names, number, feature] for names, number, feature in seen]


def read_singles(pictures_of, n: int, scorer: Scorer, kept: Kept, name: str) -> tuple[list, np.ndarray]:
    """n readings over all held-out combinations -> [(wanted, seen)], each of READINGS["one"], and features (n, D).

    pictures_of(wanted, start, count) draws the pictures start, start + 1, ... of a combination.
    """
    out, features = [], []
    combinations = list(zip(singles(), shares(n, len(singles())), strict=True))
    for k, (wanted, count) in enumerate(tqdm(combinations, desc=name, unit="prompt")):
        keys = [f"{name} {k} {i}" for i in range(count)]
        missing = [i for i, key in enumerate(keys) if key not in kept.rows]  # the last ones, if any
        if missing:
            rows = read_one(pictures_of(wanted, 1000 * k + missing[0], len(missing)), scorer)
            for i, row in zip(missing, rows, strict=True):
                kept.put(keys[i], row)
        out += [((*wanted, 1), tuple(kept.rows[key][:4])) for key in keys]
        features += [kept.rows[key][4] for key in keys]
    return out, np.array(features)


def read_pairs(read_pair_of, names, found: list, kept: Kept, name: str) -> dict:
    """Rates of `names` over the pairs; read_pair_of(pair, k) reads the k-th, each reading a share in [0, 1]."""
    rows = []
    for k, pair in enumerate(tqdm(found, desc=name, unit="prompt")):
        rows.append(kept.get(f"{name} {k}", lambda k=k, p=pair: read_pair_of(p, k)))
    return {what: rate(column) for what, column in zip(names, zip(*rows, strict=True), strict=True)}


def side_numbers(read: list[list[bool]]) -> list[float]:
    """READINGS["side"] of one picture, from `read_side`."""
    placed, own = read
    return [float(np.mean(placed)), float(np.mean(own)), float(all(placed)), float(all(own))]


def summary(readings) -> dict:
    """Accuracies and what was taken for what most often."""
    result = {}
    for i, what in enumerate(READINGS["one"]):
        hits = [wanted[i] == seen[i] for wanted, seen in readings]
        wrong = Counter(f"{w[i]} read as {s[i]}" for w, s in readings if w[i] != s[i])
        by_name: dict[str, list] = {}
        for (wanted, _), hit in zip(readings, hits, strict=True):
            by_name.setdefault(str(wanted[i]), []).append(hit)
        worst = sorted(by_name, key=lambda name: np.mean(by_name[name]))[:3]
        result[what] = rate(hits) | {
            "worst": {name: round(float(np.mean(by_name[name])), 3) for name in worst},
            "confusions": dict(wrong.most_common(5)),
        }
    result["all four"] = rate([wanted == seen for wanted, seen in readings])
    return result


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """KID (Binkowski et al., 2018) of unit-length features (n, D), (m, D): unbiased MMD^2 with k(a, b) = (a.b + 1)^3.

    0 on average for two draws of one distribution, so it may be a little below.
    """
    xx, yy, xy = ((a @ b.T + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = ((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy))
    return float(sum(within) - 2 * xy.mean())


def distances(x: np.ndarray, y: np.ndarray, blocks: int = 10) -> dict[str, float]:
    """Kernel distance and its standard error, over so many disjoint blocks of the pictures."""
    order = np.random.default_rng(0).permutation(min(len(x), len(y)))
    parts = [kernel_distance(x[i], y[i]) for i in np.array_split(order, min(blocks, len(order) // 2))]
    error = np.std(parts, ddof=1) / len(parts) ** 0.5 if len(parts) > 1 else 0.0
    return {"distance": round(kernel_distance(x, y), 5), "error": round(float(error), 5)}


def measure_vae(model: DiffusionModel, scorer: Scorer, n: int = 64) -> dict:
    """PSNR in dB, {"whole", "inside" the subjects}, of `n` pictures of the world (every second with out-domain marks)
    and of the out-domain concepts' own; share of the marks read from those that are read from reconstructions too."""
    found = {"world": pretrain.held_out_pictures(n)}
    data = {k: ConceptData(concepts_dir() / k) for k, spec in CONCEPTS.items() if spec.domain == "out"}
    pictures = [np.asarray(p.convert("RGB")) for d in data.values() for p in d.pictures]
    masks = [np.asarray(m, np.float32) / 255 for d in data.values() for m in d.masks]
    found["out-domain concepts"] = np.stack(pictures), np.stack(masks)
    result = {}
    for name, (images, cover) in found.items():
        whole, inside = (pretrain.psnr(model.vae, images, model.device, masks=m) for m in (None, cover))
        result[name] = {"whole": round(whole, 2), "inside": round(inside, 2)}
    before, after = [], []
    for name, d in data.items():
        before.append(marks_kept(d.pictures, name, scorer)[0].ravel())
        after.append(marks_kept(model.decode(model.encode_images(d.pictures)), name, scorer)[0].ravel())
    before, after = np.concatenate(before), np.concatenate(after)
    return result | {"marks read": rate(before), "marks kept": rate(after[before])}


def measure_seconds(model: DiffusionModel, draw: dict) -> dict:
    """Median seconds for four pictures over three runs, after one to warm up, alone and beside a busy process."""
    result = {"threads": torch.get_num_threads(), "seconds for four": seconds_for_four(model, draw)}
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        result["seconds beside"] = seconds_for_four(model, draw)
    finally:
        busy.kill()
        busy.wait()
    return result


def seconds_for_four(model: DiffusionModel, draw: dict) -> float:
    seconds = []
    for seed in range(4):
        start = time.perf_counter()
        model.sample("a red cat on the beach", n=4, seed=seed, progress=False, **draw)
        seconds.append(time.perf_counter() - start)
    return round(float(np.median(seconds[1:])), 2)


def earlier(out: Path, about: dict) -> dict:
    """What `out` has from an earlier call; nothing if that was of another model or of other settings."""
    old = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    return old if {k: old.get(k) for k in about} == about else {}


def measure(
    base, out: Path, n: int = 500, n_two: int = 100, steps: int = 25, guidance: float | None = None, seed: int = 0,
    clip=None, parts=PARTS, v1_kid: float | None = None,
) -> dict:  # fmt: skip
    """The bars of a base -> what belongs into `out`; `parts` are measured, the others stay as `out` has them."""
    model, scorer = load_base(base), load_scorer(clip)
    draw = {"steps": steps, "guidance": model.guidance if guidance is None else guidance}
    about = draw | {"seed": seed, "base": model.base_id, "fingerprint": model.fingerprint, "clip": _weights_of(scorer)}
    kept = Kept(out.with_suffix(".part.jsonl"), about)

    def drawn(first, name):
        return read_singles(lambda w, start, count: drawn_one(*w, count, first + start), n, scorer, kept, name)

    def two(draw_pair, name):
        return read_pairs(
            lambda pair, k: read_two(draw_pair(pair, k), *pair, scorer), READINGS["two"], pairs()[:n_two], kept, name
        )

    def side(draw_pair, name):
        return read_pairs(
            lambda pair, k: side_numbers(read_side(draw_pair(pair, k), *pair, scorer)),
            READINGS["side"], side_pairs()[:n_two], kept, name,
        )  # fmt: skip

    def sample_one(wanted, start, count):
        return model.sample(one_prompt(*wanted), n=count, seed=seed + start, progress=False, **draw)

    def sample_two(pair, k):
        return model.sample(two_prompt(*pair), seed=seed + 200_000 + k, progress=False, **draw)[0]

    def sample_side(pair, k):
        *looks, scene = pair
        regions = side_by_side([article(f"{tint} {cls}") for cls, tint in looks], PLACES[scene][0])
        prompt = f"{COUNTS[2][0]} {PLACES[scene][0]}"
        return model.sample(prompt, seed=seed + 300_000 + k, progress=False, regions=regions, **draw)[0]

    def one():
        (readings, x), (_, y), (_, z) = (
            read_singles(sample_one, n, scorer, kept, "one"), drawn(seed, "reader one"),
            drawn(seed + 400_000, "reader again"),
        )  # fmt: skip
        return summary(readings) | {"kid": distances(x, y) | {"floor": distances(z, y)["distance"]}}

    def reader():
        return {
            "one": summary(drawn(seed, "reader one")[0]),
            "two": two(lambda pair, k: drawn_two(*pair, seed + k), "reader two"),
            "side": side(lambda pair, k: drawn_two(*pair, seed + 1000 + k), "reader side"),
        }

    measures = {
        "reader": reader, "vae": lambda: kept.get("vae", lambda: measure_vae(model, scorer)), "one": one,
        "two": lambda: two(sample_two, "two"), "side": lambda: side(sample_side, "side"),
        "seconds": lambda: measure_seconds(model, draw),
    }  # fmt: skip
    old = earlier(out, about)
    result = about | {"v1 kid": old.get("v1 kid") if v1_kid is None else v1_kid}
    result |= {part: measures[part]() if part in parts else old[part] for part in PARTS if part in {*parts, *old}}
    return result | {"bars": verdicts(result)}


def _weights_of(scorer: Scorer) -> str:
    """Tells one trained reader from another: the norm of its weights."""
    return f"{sum(p.double().square().sum().item() for p in scorer.model.parameters()):.6f}"


def verdicts(result: dict) -> dict:
    """Each bar of the issue that was measured -> {"wanted", "measured", "met"}."""
    found = {}
    if {"one", "reader"} <= set(result):
        drawn = result["reader"]["one"]
        found |= {f"{what} / ceiling": result["one"][what]["share"] / drawn[what]["share"] for what in SHARES}
    if "one" in result:
        found["one subject"] = result["one"]["number"]["share"]
        if result.get("v1 kid"):
            found["kid / v1"] = result["one"]["kid"]["distance"] / result["v1 kid"]
    if "side" in result:
        found |= {what: result["side"][what]["share"] for what in ("all in place", "all own")}
    if "vae" in result:
        psnr = result["vae"]["out-domain concepts"]
        found |= {
            "psnr": psnr["whole"],
            "psnr inside": psnr["inside"],
            "marks kept": result["vae"]["marks kept"]["share"],
        }
    found |= {what: result["seconds"][what] for what in ("seconds for four", "seconds beside") if "seconds" in result}
    return {
        what: {
            "wanted": round(BARS[what], 3),
            "measured": round(value, 4),
            "met": value <= BARS[what] if what in AT_MOST else value >= BARS[what],
        }
        for what, value in found.items()
    }


def save(result: dict, out: Path) -> None:
    """Write the JSON, all or nothing, and drop the readings kept beside it."""
    write_text(out, json.dumps(result, indent=1) + "\n")
    out.with_suffix(".part.jsonl").unlink(missing_ok=True)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="pocket", help='"pocket" or a diffusers folder')
    parser.add_argument("--clip", default="pocket", help='"pocket" or an open_clip folder')
    parser.add_argument("--n", type=int, default=500, help="pictures of one subject")
    parser.add_argument("--two", type=int, default=100, help="pictures of two subjects")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, help="default: the model's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--v1-kid", type=float, help="the first version's kernel distance, measured with this reader")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=Path("data/results/pocket_bars.json"))
    args = parser.parse_args(argv)
    if args.n < 2 or args.two < 1:
        parser.error("--n must be at least 2 (a kernel distance needs two pictures) and --two at least 1")
    result = measure(
        args.base, args.out, args.n, args.two, args.steps, args.guidance, args.seed, args.clip, tuple(args.parts),
        args.v1_kid,
    )  # fmt: skip
    words = " ".join(sys.argv[1:] if argv is None else argv)
    save({"command": f"python -m mixofshow_lite.pocket.train.bars {words}".strip()} | result, args.out)
    for what, row in result["bars"].items():
        print(f"{what:18s} {row['measured']:8.3f}   wanted {row['wanted']:g}   {'met' if row['met'] else 'NOT met'}")
    print(args.out)


if __name__ == "__main__":
    main()
