"""The command line: thin commands over the library's public names, errors as one sentence.

Each command has a `check`, which says within a second what is wrong with its arguments, a `run`, which may import torch
and diffusers, and `kept`, which says truthfully what is left after Ctrl-C.

concepts   tune, convert, rename
fusing     fuse
pictures   sample, evaluate
papers     paper
shows      demo, lab
doctor     doctor
options    what may stand behind an option
speak      one line a sentence, in the command line's own words
"""

import argparse
import sys

from .. import __version__
from ..engine.allocator import keep_freed_memory
from ..threads import wait_passively
from . import concepts, doctor, fusing, papers, pictures, shows
from .speak import any_encoding, complain, plain_warnings, sentence

SAID = (ValueError, TypeError, KeyError, OSError, ImportError, RecursionError, OverflowError)  # in one sentence
NO_ROOM = "memory", "alloc"  # how torch says that memory is too small, in a RuntimeError


def main(argv: list[str] | None = None) -> int:
    """Run one command -> exit status: 0 done, 1 an error said in one sentence, 130 interrupted."""
    any_encoding()
    wait_passively()
    args = parser().parse_args(argv)
    with plain_warnings():
        try:
            args.check(args)
            return run_command(args) or 0
        except KeyboardInterrupt:
            print(f"\nstopped; {args.kept(args)}", file=sys.stderr)
            return 130
        except SAID as error:
            complain(sentence(error))
        except (MemoryError, RuntimeError) as error:
            if not any(word in str(error) for word in NO_ROOM) and not isinstance(error, MemoryError):
                raise
            complain("there is not enough memory for this: ask for fewer or smaller pictures, or close other programs")
    return 1


def run_command(args: argparse.Namespace) -> int | None:
    """The slow half of a command, after its arguments are checked -> exit status, which only doctor gives."""
    keep_freed_memory()
    return args.run(args)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with an argument in one sentence, without the usage."""

    def __init__(self, **options):
        super().__init__(**options, formatter_class=Help)

    def error(self, message: str) -> None:
        self.exit(2, f"mixofshow: {' '.join(message.split())}; `{self.prog} --help` lists what there is\n")


class Help(argparse.HelpFormatter):
    """Adds "(default: ...)" to every option that has one and does not say it itself."""

    def _get_help_string(self, action: argparse.Action) -> str:
        says = action.help or ""
        if action.default in (None, False, argparse.SUPPRESS) or not action.option_strings or "default" in says:
            return says
        return f"{says} (default: %(default)s)" if action.default != [] and action.default != () else says


def parser() -> argparse.ArgumentParser:
    """All commands; nothing slow is imported for it."""
    top = Parser(prog="mixofshow", description="Mix-of-Show: tune concepts, fuse them, draw them together.")
    top.add_argument("--version", action="version", version=f"mixofshow {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        shows.add_demo,
        concepts.add_tune,
        fusing.add_fuse,
        pictures.add_sample,
        pictures.add_evaluate,
        concepts.add_convert,
        concepts.add_rename,
        papers.add_paper,
        doctor.add_doctor,
        shows.add_lab,
    ):
        add(commands)
    return top
