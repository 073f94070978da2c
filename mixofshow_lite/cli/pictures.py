"""sample, evaluate: pictures are drawn and scored."""

import argparse
import json
import re
from pathlib import Path

from ..files.writing import atomic_file, check_target
from . import options
from .concepts import add_overwrite
from .speak import next_command

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
EXAMPLE = "0,0.1,0.5,1:a red cat"
AT_ONCE = 8  # pictures drawn before they are saved


def add_sample(commands) -> None:
    c = commands.add_parser("sample", help="draw pictures of a prompt")
    c.add_argument("prompt", nargs="?", help="what to draw; may be left out where the file of --region says it")
    c.add_argument("--concept", type=Path, help="a concept folder to draw with")
    c.add_argument("--alpha", type=options.number(-10, 10), default=1.0, help="strength of the concept's LoRA")
    c.add_argument(
        "--region",
        action="append",
        default=[],
        metavar="LEFT,TOP,RIGHT,BOTTOM:PROMPT",
        help="a prompt of its own for a part of the picture, in fractions of it, may be repeated; or the .json file "
        "that the canvas exports",
    )
    c.add_argument("--isolate", action="store_true", help="regions do not look at each other in self-attention either")
    c.add_argument("--negative-prompt", help="what not to draw")
    c.add_argument("-n", type=options.whole(1), default=1, help="pictures")
    c.add_argument("--size", type=options.size, metavar="WIDTHxHEIGHT", help="in pixels (default: the model's own)")
    c.add_argument("--steps", type=options.whole(1, 1000), help="of denoising (default: 25)")
    c.add_argument(
        "--guidance", type=options.number(-100, 100), help="how much the prompt counts (default: the model's)"
    )
    c.add_argument("--seed", type=options.whole(0), help="of the first picture, the next has one more (default: 0)")
    c.add_argument(
        "--out", type=Path, default=Path("out/pictures"), help="folder for the pictures, named by their seed"
    )
    add_overwrite(c, "a picture of the same seed (default: 0000-2.png beside 0000.png)")
    options.add_base(c)
    c.set_defaults(check=check_sample, run=run_sample, kept=kept_sample, saved=0)


def check_sample(args: argparse.Namespace) -> None:
    args.boxes = [split_region(text) for text in args.region if not text.endswith(".json")]
    args.files = [Path(text) for text in args.region if text.endswith(".json")]
    if len(args.files) > 1 or (args.files and args.boxes):
        raise ValueError("give --region one file, or boxes with their prompts, and not both")
    for key, value in (read_canvas(args.files[0]) if args.files else {}).items():
        if getattr(args, key, "") is None:  # what the command line says counts more
            setattr(args, key, value)
    if not (args.prompt or "").strip():
        raise ValueError('say what to draw: mixofshow sample "a red cat on the beach"')
    if args.concept:
        options.about_concept(args.concept)
    options.check_base(args.base)
    check_target(args.out / "0000.png")


def split_region(text: str) -> tuple[str, tuple[float, float, float, float]]:
    """ "0,0.1,0.5,1:a red cat" -> (prompt, box), the box in fractions of the picture; never evaluated."""
    place, _, prompt = text.partition(":")
    try:
        left, top, right, bottom = (float(side) for side in place.split(","))
    except ValueError:
        raise ValueError(f"the region {text!r} is not LEFT,TOP,RIGHT,BOTTOM:PROMPT, e.g. {EXAMPLE}") from None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1) or not prompt.strip():
        raise ValueError(
            f"the region {text!r} lies not in the picture or has no prompt: give fractions from 0 to 1, e.g. {EXAMPLE}"
        )
    return prompt.strip(), (left, top, right, bottom)


def read_canvas(file: Path) -> dict:
    """prompt, negative_prompt, seed and steps of a canvas file; its regions are read when the size is known."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file} of regions: export one from the canvas")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{file} is damaged or no JSON: export it from the canvas again") from None
    if not isinstance(document, dict) or document.get("format") != "mixofshow-regions":
        raise ValueError(f"{file} holds no regions: give the file that the canvas exports")
    kinds = {"prompt": str, "negative_prompt": str, "seed": int, "steps": int}
    return {key: document[key] for key, kind in kinds.items() if isinstance(document.get(key), kind) and document[key]}


def regions_of(args: argparse.Namespace, size: tuple[int, int]) -> list | None:
    """The regions of the command line for a picture of size (height, width), None if there are none."""
    from .. import Region

    if not args.files:
        return [Region(prompt, box=box) for prompt, box in args.boxes] or None
    from ..course.widgets.scene import from_json, raster, to_regions

    try:
        return to_regions(from_json(args.files[0].read_text(encoding="utf-8"), raster(size))[1]) or None
    except ValueError as error:
        raise ValueError(f"{args.files[0]}: {error}") from error


def run_sample(args: argparse.Namespace) -> None:
    from .. import Concept

    concept = Concept.load(args.concept) if args.concept else None
    model = options.load(args)
    if concept:
        model = model.with_concept(concept, args.alpha)
    how = {"steps": args.steps or 25, "guidance": args.guidance, "negative_prompt": args.negative_prompt or ""}
    how |= {"size": args.size, "regions": regions_of(args, args.size or model.size), "isolate": args.isolate}
    seed, files = args.seed or 0, []
    for start in range(0, args.n, AT_ONCE):
        pictures = model.sample(args.prompt, min(AT_ONCE, args.n - start), seed + start, **how)
        for i, picture in enumerate(pictures, start=start):
            files.append(save_picture(picture, args.out, seed + i, args.overwrite))
            args.saved = len(files)
            print(files[-1])
    named = re.search(options.CONCEPT_WORD, args.prompt) and args.concept
    with_words = ("--concept", args.concept) if named else ()
    print(f"score them: {next_command('evaluate', *files[:4], '--prompt', args.prompt, *with_words)}")


def save_picture(picture, folder: Path, seed: int, overwrite: bool) -> Path:
    """Write a picture as 0007.png for seed 7; if that is taken as 0007-2.png, 0007-3.png, ..., unless `overwrite`."""
    number = 1
    while True:
        file = folder / (f"{seed:04d}.png" if number == 1 else f"{seed:04d}-{number}.png")
        try:
            with atomic_file(file, replace=overwrite) as temporary:
                picture.save(temporary, "PNG")
            return file
        except FileExistsError:
            number += 1


def kept_sample(args: argparse.Namespace) -> str:
    return f"{args.saved} of {args.n} pictures are saved" + (f" in {args.out}" if args.saved else "")


def add_evaluate(commands) -> None:
    c = commands.add_parser(
        "evaluate", help="score pictures: text-alignment with a prompt, image-alignment with references"
    )
    c.add_argument("pictures", nargs="+", type=Path, help="pictures, or folders of them")
    c.add_argument("--prompt", help="as sampled")
    c.add_argument(
        "--concept", nargs="*", type=Path, default=[], help="concept folders whose words stand in the prompt"
    )
    c.add_argument("--references", nargs="*", type=Path, default=[], help="pictures or folders, e.g. a concept's own")
    c.add_argument("--clip", default="pocket", help='"pocket", "sd15" (ViT-B/32) or an open_clip folder')
    c.add_argument("--device", type=options.device, help="cpu, cuda or mps (default: a GPU if there is one)")
    c.set_defaults(check=check_evaluate, run=run_evaluate, kept=lambda args: "nothing was written")


def check_evaluate(args: argparse.Namespace) -> None:
    if not (args.prompt or args.references):
        raise ValueError("nothing to compare with: give --prompt, --references or both")
    if args.clip not in ("pocket", "sd15") and not Path(args.clip).is_dir():
        raise FileNotFoundError(f'there is no CLIP {args.clip}: say "pocket", "sd15" or an open_clip folder')
    known = {word for folder in args.concept for word in options.words_of(options.about_concept(folder))}
    unknown = [word for word in options.CONCEPT_WORD.findall(args.prompt or "") if word not in known]
    if unknown:
        raise ValueError(f"CLIP does not know the concept word {unknown[0]}: give the folder it is from by --concept")
    args.pictures = [file for path in args.pictures for file in picture_files(path)]
    args.references = [file for path in args.references for file in picture_files(path)]


def picture_files(path: Path) -> list[Path]:
    """A picture itself, or the pictures in a folder by name, those that are masks left out."""
    if not path.exists():
        raise FileNotFoundError(f"there is no picture or folder {path}: check its name")
    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    files = [file for file in files if not file.stem.endswith("_mask")]
    if not files:
        raise FileNotFoundError(f"{path} holds no pictures: give PNG or JPEG files, or a folder of them")
    return files


def run_evaluate(args: argparse.Namespace) -> None:
    from .. import Concept, image_alignment, text_alignment
    from ..engine.evaluation import load_scorer
    from ..files.pictures import open_rgb

    pictures = [open_rgb(file) for file in args.pictures]
    references = [open_rgb(file) for file in args.references]
    concepts = [Concept.load(folder) for folder in args.concept]
    scorer = load_scorer(args.clip, args.device)
    if args.prompt:
        print(f"text-alignment   {text_alignment(pictures, args.prompt, scorer, concepts):.4f}")
    if references:
        print(f"image-alignment  {image_alignment(pictures, references, scorer):.4f}")
