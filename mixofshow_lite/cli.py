"""The command line: thin commands over the library's public names, errors as one sentence."""

import argparse
import sys
from pathlib import Path

VERSIONED = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "numpy",
    "open_clip_torch",
)
FUSION_OPTIONS = ("solver", "ridge", "weights", "seed")
FUSIONS = {  # method -> those options that it knows
    "gradient": ("solver", "ridge", "weights", "seed"),
    "weight": ("weights",),
    "constrained": ("ridge",),
    **dict.fromkeys(("ties", "ties_svd", "dare_linear", "dare_linear_svd", "svd", "cat"), ("weights", "seed")),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command -> exit status: 0 done, 1 an error said in one sentence, 130 interrupted."""
    args = parser().parse_args(argv)
    try:
        args.run(args)
        return 0
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it can", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"mixofshow: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="mixofshow", description="Mix-of-Show: tune concepts, fuse them, draw them together."
    )
    commands = top.add_subparsers(dest="command", required=True)
    _demo(commands), _tune(commands), _convert(commands), _fuse(commands), _sample(commands)
    _evaluate(commands), _doctor(commands)
    lab = commands.add_parser("lab", help="open the notebooks in JupyterLab")
    lab.set_defaults(run=run_lab)
    return top


def _base(command) -> None:
    command.add_argument("--base", default="pocket", help='"pocket", "sd15", a diffusers folder or a hub id')


def _demo(commands) -> None:
    c = commands.add_parser("demo", help="tune two look-alikes, fuse them both ways, draw both in one picture")
    c.add_argument("--out", type=Path, default=Path("out"))
    c.add_argument("--concepts", nargs=2, default=(), metavar=("A", "B"), help="shipped names or imagefolders")
    c.add_argument("--steps", type=int, help="tuning steps of each concept (default: the recipe's own)")
    c.add_argument("--seed", type=int, default=0)
    c.add_argument("-n", type=int, default=4, help="pictures per block of the figure")
    _base(c)
    c.set_defaults(run=run_demo)


def run_demo(args) -> None:
    from .demo import demo

    demo(args.out, tuple(args.concepts), args.base, args.steps, args.seed, args.n, clip_for(args.base))


def clip_for(base: str) -> str:
    """The scorer that goes with a base: Pocket CLIP for the pocket model, ViT-B/32 for all others."""
    return "pocket" if base == "pocket" else "sd15"


def _tune(commands) -> None:
    c = commands.add_parser("tune", help="tune one concept from a folder of pictures and captions")
    c.add_argument("data", type=Path, help="imagefolder with metadata.jsonl")
    c.add_argument("--recipe", default="ed_lora")
    c.add_argument("--class-word", help="what it is in the model's own words, if the data does not say")
    c.add_argument("--steps", type=int)
    c.add_argument("--seed", type=int, default=0)
    c.add_argument("--out", type=Path, help="concept folder to write (default: out/concepts/<name>)")
    _base(c)
    c.set_defaults(run=run_tune)


def run_tune(args) -> None:
    from . import ConceptData, load_base, tune

    data = ConceptData(args.data, args.class_word)
    out = args.out or Path("out/concepts") / data.name
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = out.with_name(out.name + ".checkpoint")
    concept = tune(load_base(args.base), data, args.recipe, args.seed, args.steps, checkpoint=checkpoint)
    concept.save(out)
    print(f"saved {out}; in a prompt it is written {concept.phrase}")


def _convert(commands) -> None:
    c = commands.add_parser("convert", help="LoRA file (kohya, diffusers, peft, official) -> concept folder, and back")
    c.add_argument("source", type=Path, help="a LoRA file, or a concept folder to write as one")
    c.add_argument("out", type=Path, help="the concept folder, or the .safetensors file")
    c.add_argument("--class-word", default="", help="what it is in the model's own words; needed to read a LoRA")
    c.add_argument("--name", help="the concept's name (default: the file's)")
    c.add_argument("--phrase", default="", help="the trigger words of a LoRA (default: the class word)")
    c.add_argument("--format", choices=("diffusers", "kohya"), default="diffusers", help="of the file to write")
    _base(c)
    c.set_defaults(run=run_convert)


def run_convert(args) -> None:
    from . import Concept, load_base

    if (args.source / "concept.json").is_file():
        print(f"saved {Concept.load(args.source).to_lora(args.out, args.format)}; the words stay in {args.source}")
        return
    if args.source.suffix in (".pth", ".pt"):
        concept = Concept.from_official(args.source, load_base(args.base), args.name, args.class_word)
    elif not args.class_word and not args.phrase:
        raise ValueError("a LoRA file has no words of its own: say what it draws with --class-word, e.g. rabbit")
    else:
        concept = Concept.from_lora(args.source, load_base(args.base), args.class_word, args.name, args.phrase)
    print(f"saved {concept.save(args.out)}; in a prompt it is written {concept.phrase}")


def _fuse(commands) -> None:
    c = commands.add_parser("fuse", help="fuse concept folders into one model")
    c.add_argument("concepts", nargs="+", type=Path, help="concept folders")
    c.add_argument("--method", choices=FUSIONS, default="gradient", help="how; the last six are peft's own merges")
    c.add_argument("--solver", choices=("closed_form", "lbfgs"), help="of gradient fusion (default: closed_form)")
    c.add_argument("--ridge", type=_ridge, help="of gradient (default: 0.09 / concepts; or auto) or constrained fusion")
    c.add_argument("--weights", type=_numbers, metavar="W1,W2,...", help="one a concept, in their order")
    c.add_argument("--out", type=Path, default=Path("out/fused"), help="diffusers folder to write")
    c.add_argument("--lora", type=Path, help="also write the update as one LoRA file (.safetensors)")
    c.add_argument("--seed", type=int, help="of gradient fusion's recordings and of what dare_linear drops")
    _base(c)
    c.set_defaults(run=run_fuse)


def _ridge(text: str) -> float | str:
    return "auto" if text == "auto" else float(text)


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def run_fuse(args) -> None:
    from . import Concept, load_base

    base, concepts = load_base(args.base), [Concept.load(folder) for folder in args.concepts]
    fused = fuse(base, concepts, args.method, {name: getattr(args, name) for name in FUSION_OPTIONS})
    print(fused.report)
    fused.save_pipeline(args.out)
    print(f"saved {args.out}; draw with: mixofshow sample --base {args.out} 'a {concepts[0].phrase}'")
    if args.lora:
        print(f"saved {fused.to_lora(args.lora)}")


def fuse(base, concepts: list, method: str, options: dict):
    """One of FUSIONS with those of FUSION_OPTIONS that are not None; ValueError on one that the method has not."""
    from . import constrained_fusion, gradient_fusion, peft_fusion, weight_fusion

    given = {name: value for name, value in options.items() if value is not None}
    useless = sorted(set(given) - set(FUSIONS[method]))
    if useless:
        raise ValueError(f"the method {method} has no {useless[0]}: leave out --{useless[0]}, or take another method")
    if method != "gradient" and given.get("ridge") == "auto":
        raise ValueError("--ridge auto is gradient fusion's: give a number")
    own = {"gradient": gradient_fusion, "weight": weight_fusion, "constrained": constrained_fusion}
    if method in own:
        return own[method](base, concepts, **given)
    return peft_fusion(base, concepts, method, **given)


def _sample(commands) -> None:
    c = commands.add_parser("sample", help="draw pictures of a prompt")
    c.add_argument("prompt")
    c.add_argument("--concept", type=Path, help="a concept folder to draw with")
    c.add_argument("--alpha", type=float, default=1.0, help="strength of the concept's LoRA")
    c.add_argument(
        "--region", action="append", default=[], metavar="LEFT,TOP,RIGHT,BOTTOM:PROMPT", help="may be repeated"
    )
    c.add_argument("--negative-prompt", default="")
    c.add_argument("-n", type=int, default=1)
    c.add_argument("--steps", type=int, default=25)
    c.add_argument("--guidance", type=float)
    c.add_argument("--seed", type=int, default=0)
    c.add_argument("--out", type=Path, default=Path("out/pictures"), help="folder for the pictures")
    _base(c)
    c.set_defaults(run=run_sample)


def parse_region(text: str):
    """ "0,0.1,0.5,1:a red cat" -> Region; fractions of the picture (left, top, right, bottom)."""
    from . import Region

    numbers, colon, prompt = text.partition(":")
    try:
        box = tuple(float(x) for x in numbers.split(","))
    except ValueError:
        box = ()
    if not colon or len(box) != 4:
        raise ValueError(f"the region {text!r} is not LEFT,TOP,RIGHT,BOTTOM:PROMPT, e.g. 0,0.1,0.5,1:a red cat")
    return Region(prompt.strip(), box=box)


def run_sample(args) -> None:
    from . import Concept, load_base
    from .files.writing import atomic_file

    regions = [parse_region(text) for text in args.region] or None
    model = load_base(args.base)
    if args.concept:
        model = model.with_concept(Concept.load(args.concept), args.alpha)
    pictures = model.sample(
        args.prompt, args.n, args.seed, args.steps, args.guidance, args.negative_prompt, regions=regions
    )
    for i, picture in enumerate(pictures):
        file = args.out / f"{args.seed + i:04d}.png"
        with atomic_file(file) as temporary:
            picture.save(temporary, "PNG")
        print(file)


def _evaluate(commands) -> None:
    c = commands.add_parser(
        "evaluate", help="score pictures: text-alignment with a prompt, image-alignment with references"
    )
    c.add_argument("pictures", nargs="+", type=Path)
    c.add_argument("--prompt", help="as sampled")
    c.add_argument(
        "--concept", nargs="*", type=Path, default=[], help="concept folders whose words stand in the prompt"
    )
    c.add_argument("--references", nargs="*", type=Path, default=[], help="pictures, or one concept imagefolder")
    c.add_argument("--clip", default="pocket", help='"pocket", "sd15" (ViT-B/32) or an open_clip folder')
    c.set_defaults(run=run_evaluate)


def run_evaluate(args) -> None:
    from . import Concept, ConceptData, image_alignment, text_alignment
    from .files.pictures import open_rgb

    if not (args.prompt or args.references):
        raise ValueError("nothing to compare with: give --prompt, --references or both")
    pictures = [open_rgb(file) for file in args.pictures]
    if args.prompt:
        concepts = [Concept.load(folder) for folder in args.concept]
        print(f"text-alignment   {text_alignment(pictures, args.prompt, args.clip, concepts):.4f}")
    if args.references:
        folder = args.references[0] if len(args.references) == 1 and args.references[0].is_dir() else None
        references = ConceptData(folder).pictures if folder else [open_rgb(file) for file in args.references]
        print(f"image-alignment  {image_alignment(pictures, references, args.clip):.4f}")


def _doctor(commands) -> None:
    c = commands.add_parser("doctor", help="what is installed, does the base load, is there room on the disk")
    _base(c)
    c.set_defaults(run=run_doctor)


def run_doctor(args) -> None:
    import platform
    import shutil
    import time
    from importlib import metadata

    import torch

    from . import load_base

    print(f"python           {platform.python_version()}")
    for name in VERSIONED:
        try:
            print(f"{name:<16} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name:<16} not installed")
    gpu = torch.cuda.is_available()
    print(f"device           {torch.cuda.get_device_name() if gpu else f'CPU, {torch.get_num_threads()} threads'}")
    print(f"free disk        {shutil.disk_usage('.').free / 2**30:.1f} GiB")
    start = time.perf_counter()
    base = load_base(args.base)
    took = time.perf_counter() - start
    print(f"base             {base.base_id}, {len(base.layers)} cross-attention layers, loaded in {took:.1f} s")
    base.sample("a photo of a cat", steps=1, progress=False)
    print("sampling         works")
    try:
        from .engine.evaluation import load_scorer

        load_scorer("pocket")
        print("evaluation       Pocket CLIP works")
    except (ImportError, OSError) as error:
        print(f"evaluation       {error}")


def run_lab(args) -> None:
    import importlib.util
    import subprocess

    if importlib.util.find_spec("jupyterlab") is None:
        raise ImportError('JupyterLab is not installed: pip install "mixofshow_lite[lab]"')
    notebooks = Path(__file__).resolve().parent.parent / "notebooks"
    subprocess.run(
        [sys.executable, "-m", "jupyterlab", str(notebooks if notebooks.is_dir() else Path.cwd())], check=False
    )


if __name__ == "__main__":
    sys.exit(main())
