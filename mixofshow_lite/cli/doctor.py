"""doctor: what could keep this machine from running the kit, as a table: OK or not, what was found, what to do.

Every check is a function that returns one `Row` and imports nothing slow, so that the table is there within two
seconds. Only with --full (or where a base, a device or a precision is named) the base is loaded and draws a step.
"""

import argparse
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ..engine.allocator import SWITCH, keep_freed_memory
from ..files.resources import data_dir, pocket_dir
from ..threads import PASSIVE
from . import options
from .speak import next_command

OK, NOTE, PROBLEM = "OK", "note", "PROBLEM"  # it works; something optional is not there; this has to be mended
NEEDED = "accelerate diffusers matplotlib numpy peft pillow resvg_py safetensors torch tqdm transformers".split()
SCORES = ("open_clip_torch", "torchvision")
WIDGETS = ("anywidget", "ipywidgets", "jupyterlab")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
GIB = 2**30
MEMORY, DISK = 2.0, 1.0  # GiB that a notebook takes at most; that tuned concepts and saved models need
BUSY = 1.5  # running processes per core from which everything takes much longer


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    state: str  # OK, NOTE or PROBLEM
    what: str
    found: str
    do: str = ""  # what to do about it


def number(version: str) -> tuple[int, ...]:
    """ "2.14.1+cpu" -> (2, 14, 1)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def installed(name: str) -> str | None:
    """The version of an installed package, None if it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def floors() -> dict[str, str]:
    """The oldest version of each package that the kit is tried with; {} where the kit itself is not installed."""
    try:
        lines = metadata.requires("mixofshow_lite") or []
    except metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([\w.-]+)>=([\d.]+)", line) for line in lines)
    return {match[1].lower().replace("-", "_"): match[2] for match in found if match}


def check_python() -> Row:
    """Python 3.11 or newer."""
    version = platform.python_version()
    if number(version) < (3, 11):
        return Row(PROBLEM, "Python", version, "install Python 3.11 or newer and make the environment again")
    return Row(OK, "Python", f"{version}, {platform.system()} {platform.machine()}")


def check_packages() -> Row:
    """All that is needed, no older than what the kit is tried with."""
    least, wrong = floors(), []
    for name in NEEDED:
        version = installed(name)
        if version is None:
            wrong.append(f"{name} is missing")
        elif number(version) < number(least.get(name, "0")):
            wrong.append(f"{name} {version} is older than {least[name]}")
    if wrong:
        return Row(
            PROBLEM, "packages", "; ".join(wrong), "pip install --upgrade mixofshow_lite, or in a checkout make lab"
        )
    main = ("torch", "diffusers", "transformers", "peft", "numpy")
    return Row(OK, "packages", ", ".join(f"{name} {installed(name)}" for name in main))


def check_scores() -> Row:
    """open_clip and torchvision, the latter made for the torch that is there."""
    missing = [name for name in SCORES if installed(name) is None]
    if missing:
        what = f"without {' and '.join(missing)} no scores"
        return Row(NOTE, "scores", what, 'pip install "mixofshow_lite[metrics]"')
    torch, vision = installed("torch") or "0", installed("torchvision")
    wanted = next((line for line in metadata.requires("torchvision") or () if line.startswith("torch==")), "torch==0")
    fits = number(wanted.partition("==")[2]) in ((0,), number(torch))
    builds = [version.partition("+")[2] for version in (torch, vision)]
    same_index = ("cpu" in builds[0]) == ("cpu" in builds[1])
    if not fits or not same_index:
        found = f"torch {torch} and torchvision {vision} do not belong together"
        return Row(PROBLEM, "scores", found, "pip install --force-reinstall torch torchvision, both from one index")
    return Row(OK, "scores", f"open_clip {installed('open_clip_torch')}, torchvision {vision}")


def check_waiting() -> Row:
    """OpenMP's threads should sleep while they wait: spinning makes a busy machine ten times slower."""
    if platform.system() != "Linux":
        return Row(OK, "threads", "waiting is a matter of Linux only")
    other = [f"{name}={os.environ[name]}" for name in PASSIVE if os.environ.get(name, PASSIVE[name]) != PASSIVE[name]]
    if other:
        names = " ".join(part.partition("=")[0] for part in other)
        return Row(NOTE, "threads", f"they spin while they wait: {', '.join(other)}", f"unset {names}")
    return Row(OK, "threads", "they wait passively, as set by this program")


def check_cores() -> Row:
    """How many cores this process may use, and how busy they are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    found = f"{cores} cores, {load:.1f} processes want them"
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > cores:
        return Row(NOTE, "cores", f"{found}; OMP_NUM_THREADS={asked}", f"set OMP_NUM_THREADS={cores} or unset it")
    if load > BUSY * cores:
        return Row(NOTE, "cores", found, "end other programs, or expect several times the minutes that are given")
    return Row(OK, "cores", found)


def free_memory() -> float | None:
    """Memory that programs can still have, in GiB; None where nobody says."""
    try:
        text = Path("/proc/meminfo").read_text()
        return int(re.search(r"MemAvailable:\s+(\d+)", text)[1]) / 2**20
    except (OSError, TypeError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    except (AttributeError, ValueError, OSError):
        return None


def check_memory() -> Row:
    """Enough memory for a notebook."""
    free = free_memory()
    if free is None:
        return Row(NOTE, "memory", "this system does not say", f"see that {MEMORY:g} GiB are free")
    if free < MEMORY:
        return Row(PROBLEM, "memory", f"{free:.1f} GiB free", f"close programs until {MEMORY:g} GiB are free")
    return Row(OK, "memory", f"{free:.1f} GiB free")


def check_disk() -> Row:
    """Room for what is tuned and saved here."""
    free = shutil.disk_usage(".").free / GIB
    if free < DISK:
        return Row(PROBLEM, "disk", f"{free:.1f} GiB free here", f"make room: {DISK:g} GiB, or work in another folder")
    return Row(OK, "disk", f"{free:.1f} GiB free here")


def check_writing() -> Row:
    """Whether files can be written where notebooks and commands write, into out/ below this folder."""
    here = Path("out") if Path("out").is_dir() else Path(".")
    try:
        with tempfile.TemporaryFile(dir=here):
            pass
    except OSError as error:
        return Row(PROBLEM, "writing", f"{here.resolve()}: {error.strerror}", "go to a folder that is yours: cd")
    return Row(OK, "writing", f"{here.resolve()} can be written to")


def check_weights() -> Row:
    """The shipped model's files against their checksums."""
    try:
        folder = pocket_dir()
        lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").split("\n")
        wanted = dict(reversed(line.split(maxsplit=1)) for line in lines if line.strip())
        bad = [name for name, digest in wanted.items() if digest_of(folder / name.lstrip("*")) != digest]
    except (OSError, ValueError) as error:
        return Row(PROBLEM, "weights", str(error), "reinstall mixofshow_lite, or check it out again")
    if bad:
        return Row(PROBLEM, "weights", f"damaged or missing: {', '.join(bad)}", "reinstall, or check them out again")
    return Row(OK, "weights", f"{len(wanted)} files in {data_dir()} are as they were shipped")


def digest_of(file: Path) -> str:
    """SHA-256 of a file, "" if it is not there."""
    if not file.is_file():
        return ""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def check_widgets() -> Row:
    """What the notebooks' sliders and the canvas need."""
    missing = [name for name in WIDGETS if importlib.util.find_spec(name) is None]
    if "google.colab" in sys.modules:
        missing = [name for name in missing if name != "jupyterlab"]
    if missing:
        what = f"{', '.join(missing)} not installed: pictures stand still"
        return Row(NOTE, "widgets", what, 'pip install "mixofshow_lite[lab]", or in a checkout make lab')
    return Row(OK, "widgets", ", ".join(f"{name} {installed(name)}" for name in WIDGETS))


def check_browser() -> Row:
    """A browser for the tests; people have their own."""
    names = [name for name in (os.environ.get("CHROMIUM"), *BROWSERS) if name]
    there = next((path for path in map(shutil.which, names) if path), None)
    if there is None:
        return Row(
            NOTE, "browser", "no Chromium: tests of widgets are skipped", "only for `make test`: install Chromium"
        )
    return Row(OK, "browser", there)


CHECKS: tuple[Callable[[], Row], ...] = (
    check_python,
    check_packages,
    check_scores,
    check_waiting,
    check_cores,
    check_memory,
    check_disk,
    check_writing,
    check_weights,
    check_widgets,
    check_browser,
)


def table(rows: list[Row]) -> str:
    """The rows as text: state, what, what was found, and under it what to do."""
    lines = []
    for row in rows:
        lines.append(f"{row.state:<8} {row.what:<9} {row.found}")
        if row.do:
            lines.append(f"{'':<8} {'':<9} -> {row.do}")
    return "\n".join(lines)


def add_doctor(commands) -> None:
    c = commands.add_parser("doctor", help="a table of what works here, what does not, and what to do about it")
    c.add_argument("--full", action="store_true", help="also load the base and draw, which imports torch")
    options.add_base(c)
    c.set_defaults(check=check_doctor, run=run_doctor, kept=lambda args: "nothing was changed")


def check_doctor(args: argparse.Namespace) -> None:
    options.check_base(args.base)
    args.full = args.full or bool(args.device or args.dtype) or args.base != "pocket"


def run_doctor(args: argparse.Namespace) -> int:
    """Print the table -> 1 if there is a problem, else 0."""
    rows = []
    for check in CHECKS:
        rows.append(check())
        print(table(rows[-1:]), flush=True)
    if args.full:
        draw_once(args)
    problems, notes = (sum(row.state == state for row in rows) for state in (PROBLEM, NOTE))
    if problems:
        print(f"{problems} to be mended; what to do stands behind the arrows")
        return 1
    more = f", {notes} optional" if notes else ""
    print(f"nothing to mend{more}; go on with: {next_command('sample', 'a red cat on the beach')}")
    return 0


def draw_once(args: argparse.Namespace) -> None:
    """Load the base, draw one step, load the scorer; raises what these raise."""
    import torch

    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    print(table([Row(OK, "device", device)]))
    if not gpu:
        kept = f"kept for the next layer ({SWITCH}=0 hands it back)" if keep_freed_memory() else "handed back at once"
        print(table([Row(OK, "freed", f"memory is {kept}")]))
    start = time.perf_counter()
    base = options.load(args)
    took = time.perf_counter() - start
    print(
        table([Row(OK, "base", f"{base.base_id}, {len(base.layers)} cross-attention layers, loaded in {took:.1f} s")])
    )
    base.sample("a photo of a cat", steps=1, progress=False)
    print(table([Row(OK, "sampling", "works")]))
    try:
        from ..engine.evaluation import load_scorer

        load_scorer("pocket")
        row = Row(OK, "reading", "Pocket CLIP works")
    except (ImportError, OSError) as error:
        row = Row(NOTE, "reading", str(error), 'pip install "mixofshow_lite[metrics]"')
    print(table([row]))
