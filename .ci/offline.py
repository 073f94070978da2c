"""make offline: everything for a room without a network, in out/offline, to be copied to a stick.

wheels/         this package and all that it needs, for this system and this Python
notebooks/      the notebooks and TEACHING.md
install.py      makes an environment from the wheels, without a network, and says how to begin

python .ci/offline.py [--pip "arguments for pip"]      e.g. an index with PyTorch for CPUs, which is far smaller
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WANTED = "[metrics,lab]"
INSTALL = '''"""Install the kit from this folder, without a network: python install.py [FOLDER OF THE ENVIRONMENT]"""

import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILT_WITH = {python}

if sys.version_info[:2] != BUILT_WITH:
    sys.exit("This pack is for Python %d.%d, this is %d.%d." % (*BUILT_WITH, *sys.version_info[:2]))
place = Path(sys.argv[1] if len(sys.argv) > 1 else "mixofshow-venv")
venv.create(place, with_pip=True)
programs = place / ("Scripts" if sys.platform == "win32" else "bin")
command = [programs / "python", "-m", "pip", "install", "--no-index", "--find-links", HERE / "wheels"]
subprocess.run([*map(str, command), "mixofshow_lite{wanted}"], check=True)
print("Ready. Start the notebooks with:", programs / "jupyter", "lab", HERE / "notebooks")
'''


def pack(place: Path, pip: list[str], run: Callable = subprocess.run) -> Path:
    """Write the pack into `place`, replaced as a whole; raises CalledProcessError where pip fails."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "notebooks").mkdir(parents=True)
    run([sys.executable, "-m", "pip", "wheel", "-w", str(place / "wheels"), *pip, f"{ROOT}{WANTED}"], check=True)
    for file in sorted((ROOT / "notebooks").iterdir()):
        if file.suffix in (".ipynb", ".md"):
            shutil.copy(file, place / "notebooks")
    text = INSTALL.replace("{python}", repr(sys.version_info[:2])).replace("{wanted}", WANTED)
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
