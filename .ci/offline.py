"""make offline: everything for a room without a network, in out/offline, to be copied to a stick.

wheels/         this package and all that it needs, for this system and this Python
notebooks/      the notebooks and TEACHING.md
files/          what they link to: source of the library, pictures
install.py      makes an environment and a copy of the notebooks on a machine, without a network, and says how to begin

python .ci/offline.py [--pip "arguments for pip"]      e.g. an index with PyTorch for CPUs, which is far smaller
"""

import argparse
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WANTED = "[metrics,lab]"
LINK = re.compile(r"\]\(\.\./([^)#]+)")  # out of the folder of the notebooks
INSTALL = '''"""Install the kit from this stick, without a network: python install.py [FOLDER]

FOLDER, by default mixofshow in your home, gets the environment and a copy of the notebooks; notebooks that are there
already stay as they are. When this is done the stick can go.
"""

import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON, SYSTEM = {python}, {system}

if sys.version_info[:2] != PYTHON:
    sys.exit("This pack is for Python %d.%d, this is %d.%d." % (*PYTHON, *sys.version_info[:2]))
if (platform.system(), platform.machine()) != SYSTEM:
    sys.exit("This pack is for %s on %s, this is %s on %s." % (*SYSTEM, platform.system(), platform.machine()))
place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path.home() / "mixofshow"
environment = place.resolve() / "environment"
venv.create(environment, with_pip=True)
programs = environment / ("Scripts" if sys.platform == "win32" else "bin")
command = [programs / "python", "-m", "pip", "install", "--no-index", "--find-links", HERE / "wheels"]
subprocess.run([*map(str, command), "mixofshow_lite{wanted}"], check=True)
for folder in ("notebooks", "files"):
    for file in sorted((HERE / folder).rglob("*")):
        copy = place / file.relative_to(HERE)
        if file.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
print("Ready. Start the notebooks with:")
print(f'"{programs / "jupyter"}" lab --ServerApp.root_dir="{place.resolve()}" --LabApp.default_url=/lab/tree/notebooks')
'''


def copy_linked(file: Path, place: Path) -> None:
    """Copy a notebook, or TEACHING.md, into the pack, and beside it the files outside that it links to."""
    text = file.read_text(encoding="utf-8")
    for link in LINK.findall(text):
        target = place / "files" / link
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / link, target)
    (place / "notebooks" / file.name).write_text(LINK.sub(r"](../files/\1", text), encoding="utf-8")


def pack(place: Path, pip: list[str], run: Callable = subprocess.run) -> Path:
    """Write the pack into `place`, replaced as a whole; raises CalledProcessError where pip fails."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "notebooks").mkdir(parents=True)
    run([sys.executable, "-m", "pip", "wheel", "-w", str(place / "wheels"), *pip, f"{ROOT}{WANTED}"], check=True)
    for file in sorted((ROOT / "notebooks").iterdir()):
        if file.suffix in (".ipynb", ".md"):
            copy_linked(file, place)
    words = {
        "{python}": repr(sys.version_info[:2]),
        "{system}": repr((platform.system(), platform.machine())),
        "{wanted}": WANTED,
    }
    text = INSTALL
    for word, value in words.items():
        text = text.replace(word, value)
    (place / "install.py").write_text(text, encoding="utf-8")
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description="Everything for a room without a network.")
    parser.add_argument("--pip", default="", help="arguments for pip, quoted")
    place = pack(ROOT / "out" / "offline", shlex.split(parser.parse_args().pip))
    size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    print(f"{place}: {size / 1e9:.1f} GB. Copy the folder; on each machine: python install.py")


if __name__ == "__main__":
    main()
