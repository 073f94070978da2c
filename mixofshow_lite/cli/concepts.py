"""tune, convert, rename: concept folders are made and changed."""

import argparse
from pathlib import Path

from ..files.writing import CONCEPT, LORA_FILE, PEFT_FOLDER, check_target
from . import options
from .speak import next_command, own_options

RECIPES = ("textual_inversion", "p_plus", "lora", "ed_lora", "custom_diffusion")  # as engine.recipes has them
RECIPES += ("ed_lora_research", "ed_lora_research_object")  # of Stable Diffusion only
FORMATS = ("diffusers", "kohya", "peft")  # as files.lora_writing.FORMATS
PICKLES = (".pth", ".pt", ".bin", ".ckpt")  # as files.pickles.ENDINGS
LOADED_BY = {  # format -> who reads it
    "diffusers": "load it with pipe.load_lora_weights of diffusers",
    "kohya": "A1111 and ComfyUI read it",
    "peft": "load each network's folder with PeftModel.from_pretrained of peft",
}


def add_overwrite(command, what: str) -> None:
    command.add_argument("--overwrite", action="store_true", help=f"replace {what} that is there already")


def check_new(path: Path, kind, overwrite: bool, option: str = "--out") -> None:
    """Raise OSError if the result cannot be written there, or if something is there and may not be replaced."""
    check_target(path, kind)
    if not overwrite and path.exists() and (path.is_file() or any(path.iterdir())):
        raise FileExistsError(f"{path} is there already: replace it with --overwrite, or choose another by {option}")


def check_new_lora(path: Path, format: str, overwrite: bool, option: str) -> None:
    """Raise an error unless a LoRA of this format can be written there: a .safetensors file, or a folder of peft's."""
    if format == "peft":
        if path.suffix in options.LORA_FILES:
            raise ValueError(f"{path} becomes a folder in peft's format: give it a name like out/{path.stem}")
        return check_new(path, PEFT_FOLDER, overwrite, option)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is no name of a LoRA file: end it in .safetensors, or choose --format peft")
    check_new(path, LORA_FILE, overwrite, option)


def show_concept(concept, folder: Path, *own: str) -> None:
    """Where a concept lies, how a prompt names it and the command that draws it."""
    print(f"saved {folder}; in a prompt it is written {concept.phrase}")
    print(f"draw with it: {next_command('sample', f'a photo of a {concept.phrase}', '--concept', folder, *own)}")


def add_tune(commands) -> None:
    c = commands.add_parser("tune", help="tune one concept from a folder of pictures")
    c.add_argument("data", type=Path, help="folder of pictures; captions (00.txt beside 00.png) and masks/ help")
    c.add_argument("--class-word", help="what the pictures show in the model's own words, e.g. dog, if no file says it")
    c.add_argument("--recipe", choices=RECIPES, default="ed_lora", help="what is tuned; ed_lora is the paper's")
    c.add_argument("--name", help="the concept's name (default: the folder's)")
    c.add_argument("--words", nargs="+", metavar="WORD", help="its words in a prompt (default: <name1> <name2>)")
    c.add_argument("--steps", type=options.whole(1), help="of tuning (default: the recipe's own)")
    c.add_argument("--seed", type=options.whole(0), default=0, help="of everything random")
    c.add_argument("--out", type=Path, help="concept folder to write (default: out/concepts/NAME)")
    add_overwrite(c, "a concept")
    options.add_base(c)
    c.set_defaults(check=check_tune, run=run_tune, kept=kept_tune)


def check_tune(args: argparse.Namespace) -> None:
    options.check_data(args.data, args.class_word)
    options.check_base(args.base)
    args.words = options.concept_words(args.words)
    args.name = (args.name or args.data.resolve().name).strip()
    if not args.name or "/" in args.name or "\\" in args.name or args.name.startswith("."):
        raise ValueError(f"--name {args.name} is no name: give a word, like bibi")
    args.out = args.out or Path("out/concepts") / args.name
    check_new(args.out, CONCEPT, args.overwrite)


def run_tune(args: argparse.Namespace) -> None:
    from ..files.data import ConceptData

    data = ConceptData(args.data, args.class_word)
    from .. import tune
    from ..engine.checkpoint import discard

    base = options.load(args)
    own = {"name": args.name, "words": args.words, "checkpoint": checkpoint(args)}
    concept = tune(base, data, args.recipe, args.seed, args.steps, **own)
    check_new(args.out, CONCEPT, args.overwrite)  # tuning takes long: somebody else may have been quicker
    concept.save(args.out)
    discard(checkpoint(args))
    show_concept(concept, args.out, *own_options(args))


def checkpoint(args: argparse.Namespace) -> Path:
    return args.out.with_name(args.out.name + ".checkpoint")


def kept_tune(args: argparse.Namespace) -> str:
    if checkpoint(args).is_file():
        from ..engine.checkpoint import steps_kept

        steps = f"{steps_kept(checkpoint(args))} steps"
        return f"{steps} are kept in {checkpoint(args)}: the same command goes on from there"
    return "nothing is kept, no step was finished yet; what was there before is as it was"


def add_convert(commands) -> None:
    c = commands.add_parser("convert", help="LoRA file (kohya, diffusers, peft, official) -> concept folder, and back")
    c.add_argument("source", type=Path, help="a LoRA file, or a concept folder to write as one")
    c.add_argument("out", type=Path, help="the concept folder, or the .safetensors file (a folder in peft's format)")
    c.add_argument("--class-word", default="", help="what it is in the model's own words; needed to read a LoRA")
    c.add_argument("--name", help="the concept's name (default: the file's)")
    c.add_argument("--phrase", default="", help="the trigger words of a LoRA (default: the class word)")
    c.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of the LoRA to write")
    add_overwrite(c, "a concept or LoRA file")
    options.add_base(c)
    c.set_defaults(check=check_convert, run=run_convert, kept=kept_nothing)


def check_convert(args: argparse.Namespace) -> None:
    if not args.source.exists():
        raise FileNotFoundError(f"there is no {args.source}: give a LoRA file or a concept folder")
    if (args.source / "concept.json").is_file():
        return check_new_lora(args.out, args.format, args.overwrite, "another name")
    if args.source.suffix not in PICKLES:  # which may be an official file: with words of its own
        check_named(args)
    if args.out.suffix in options.LORA_FILES:
        raise ValueError(f"{args.out} becomes a concept folder: give it a name like out/concepts/{args.source.stem}")
    options.check_base(args.base)
    check_new(args.out, CONCEPT, args.overwrite, "another name")


def check_named(args: argparse.Namespace) -> None:
    """Raise ValueError if nothing says how a prompt names what a LoRA draws."""
    if not (args.class_word or args.phrase).strip():
        raise ValueError("a LoRA file has no words of its own: say what it draws with --class-word, e.g. rabbit")


def run_convert(args: argparse.Namespace) -> None:
    from .. import Concept
    from ..files.official import is_official

    if (args.source / "concept.json").is_file():
        print(f"saved {Concept.load(args.source).to_lora(args.out, args.format)}; the words stay in {args.source}")
        print(LOADED_BY[args.format])
        return
    if args.source.suffix in PICKLES and is_official(args.source):
        concept = Concept.from_official(args.source, options.load(args), args.name, args.class_word)
    else:
        check_named(args)
        concept = Concept.from_lora(args.source, options.load(args), args.class_word, args.name, args.phrase)
    concept.save(args.out)
    show_concept(concept, args.out, *own_options(args))


def add_rename(commands) -> None:
    c = commands.add_parser("rename", help="a concept under another name and with other words, in a folder beside it")
    c.add_argument("concept", type=Path, help="concept folder; it stays as it is")
    c.add_argument("name", help="the new name")
    c.add_argument("--words", nargs="+", metavar="WORD", help="its words in a prompt (default: <name1> <name2>)")
    c.add_argument("--out", type=Path, help="concept folder to write (default: NAME beside the old one)")
    add_overwrite(c, "a concept")
    c.set_defaults(check=check_rename, run=run_rename, kept=kept_nothing)


def check_rename(args: argparse.Namespace) -> None:
    about = options.about_concept(args.concept)
    args.words = options.concept_words(args.words)
    if args.words and about and len(args.words) != len(options.words_of(about)):
        raise ValueError(f"{args.concept} has {len(options.words_of(about))} words: give as many by --words")
    args.out = args.out or args.concept.resolve().parent / args.name
    check_new(args.out, CONCEPT, args.overwrite)


def run_rename(args: argparse.Namespace) -> None:
    from .. import Concept

    concept = Concept.load(args.concept).renamed(args.name, args.words)
    concept.save(args.out)
    show_concept(concept, args.out)


def kept_nothing(args: argparse.Namespace) -> str:
    return "nothing was written, what was there before is as it was"
