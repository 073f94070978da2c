"""fuse: concept folders become one model."""

import argparse
from pathlib import Path

from ..files.writing import PIPELINE
from . import options
from .concepts import FORMATS, LOADED_BY, add_overwrite, check_new, check_new_lora, kept_nothing
from .speak import next_command

FUSIONS = {  # method -> the options that it knows; gradient fusion knows all
    "gradient": ("solver", "ridge", "weights", "seed"),
    "weight": ("weights",),
    "constrained": ("ridge",),
    **dict.fromkeys(("ties", "ties_svd", "dare_linear", "dare_linear_svd", "svd", "cat"), ("weights", "seed")),
}


def add_fuse(commands) -> None:
    c = commands.add_parser("fuse", help="fuse concept folders into one model")
    c.add_argument("concepts", nargs="+", type=Path, help="concept folders")
    c.add_argument("--method", choices=FUSIONS, default="gradient", help="how; the last six are peft's own merges")
    c.add_argument("--solver", choices=("closed_form", "lbfgs"), help="of gradient fusion (default: closed_form)")
    c.add_argument(
        "--ridge", type=options.ridge, help="of gradient (default: 0.01 / concepts; or auto) or constrained fusion"
    )
    c.add_argument("--weights", type=options.numbers, metavar="W1,W2,...", help="one a concept, in their order")
    c.add_argument("--out", type=Path, default=Path("out/fused"), help="diffusers folder to write")
    c.add_argument("--lora", type=Path, help="also write the update as one LoRA (.safetensors; peft: a folder)")
    c.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of that LoRA")
    c.add_argument("--seed", type=options.whole(0), help="of gradient fusion's recordings and what dare_linear drops")
    add_overwrite(c, "a fused model or LoRA file")
    options.add_base(c)
    c.set_defaults(check=check_fuse, run=run_fuse, kept=kept_nothing)


def check_fuse(args: argparse.Namespace) -> None:
    options.check_clashes(args.concepts)
    check_options(args.method, given(args))
    options.check_base(args.base)
    if args.weights and len(args.weights) != len(args.concepts):
        raise ValueError(f"--weights has {len(args.weights)} numbers for {len(args.concepts)} concepts: give one each")
    check_new(args.out, PIPELINE, args.overwrite)
    if args.lora:
        check_new_lora(args.lora, args.format, args.overwrite, "--lora")


def given(args: argparse.Namespace) -> dict:
    """Those options of fusions that are on the command line."""
    return {name: getattr(args, name) for name in FUSIONS["gradient"] if getattr(args, name) is not None}


def check_options(method: str, options: dict) -> None:
    """Raise ValueError on an option that the method has not."""
    useless = sorted(set(options) - set(FUSIONS[method]))
    if useless:
        raise ValueError(f"the method {method} has no {useless[0]}: leave out --{useless[0]}, or take another method")
    if method != "gradient" and options.get("ridge") == "auto":
        raise ValueError("--ridge auto is gradient fusion's: give a number")


def run_fuse(args: argparse.Namespace) -> None:
    from .. import Concept

    concepts = [Concept.load(folder) for folder in args.concepts]
    fused = fuse(options.load(args), concepts, args.method, given(args))
    print(fused.report)
    fused.save_pipeline(args.out)
    print(f"saved {args.out}, which diffusers loads as well")
    if args.lora:
        print(f"saved {fused.to_lora(args.lora, args.format)}, the update alone; the words stay in {args.out}")
        print(LOADED_BY[args.format])
    print(f"draw with it: {next_command('sample', f'a photo of a {concepts[0].phrase}', '--base', args.out)}")
    if len(concepts) > 1:
        a, b = (f"a {concept.phrase}" for concept in concepts[:2])
        boxes = ("--region", f"0,0.1,0.5,1:{a}", "--region", f"0.5,0.1,1,1:{b}", "--isolate")
        print(f"two of them:  {next_command('sample', 'two friends', '--base', args.out, *boxes)}")


def fuse(base, concepts: list, method: str, options: dict):
    """One of FUSIONS with its options; ValueError on one that the method has not."""
    from .. import constrained_fusion, gradient_fusion, peft_fusion, weight_fusion

    check_options(method, options)
    own = {"gradient": gradient_fusion, "weight": weight_fusion, "constrained": constrained_fusion}
    if method in own:
        return own[method](base, concepts, **options)
    return peft_fusion(base, concepts, method, **options)
