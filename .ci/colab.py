"""make colab: the notebooks on Colab's versions, installed as on Colab.

1. An environment of what Colab brings (tests/colab/requirements.txt), kept in .venv-colab.
2. The set-up cell, run in an empty folder, with a stand-in for google.colab and this checkout's wheel as its source.
   What the environment had before must be there afterwards, in the same versions; run again, it installs nothing.
3. Every notebook, executed from a copy in out/colab that is no part of the checkout.

    make colab PYTHON=python3.13 ARGS="00 07"     only these notebooks
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "out" / "colab"
STAND_IN = ROOT / "tests" / "colab"


def versions(python: str) -> dict[str, str]:
    """What is installed, name -> version or address."""
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    return dict(line.split("==", 1) for line in listed.stdout.splitlines() if "==" in line)


def moved(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Sentences on packages that were there and are gone or have another version."""
    return [
        f"{name} was {version} and is {after.get(name, 'gone')}"
        for name, version in before.items()
        if after.get(name) != version
    ]


def wheel(python: str) -> Path:
    """This checkout's wheel, built into out/colab."""
    for old in PLACE.glob("*.whl"):
        old.unlink()
    subprocess.run([python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(PLACE), str(ROOT)], check=True)
    return next(PLACE.glob("*.whl"))


def main(wanted: list[str]) -> int:
    """0 if nothing moved and every notebook ran."""
    python = sys.executable
    PLACE.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(STAND_IN), "MIXOFSHOW_SOURCE": str(wheel(python))}
    installed = versions(python).get("mixofshow_lite")
    if installed:
        subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "mixofshow_lite"], check=True)
    before = versions(python)
    for _ in range(2):  # the second run finds everything there
        subprocess.run([python, str(ROOT / ".ci" / "setup_cell.py")], cwd=PLACE, env=environment, check=True)
    after = versions(python)
    wrong = moved(before, after)
    print("\n".join(wrong) or f"nothing moved; new: {', '.join(sorted(after.keys() - before.keys()))}")
    files = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for file in (file for file in files if not wanted or file.name[:2] in wanted):
        copy = PLACE / file.name
        shutil.copy(file, copy)
        ran = subprocess.run([python, str(ROOT / ".ci" / "notebooks.py"), str(copy)], cwd=PLACE, env=environment)
        if ran.returncode:
            wrong.append(f"{file.name} does not run")
    print("\n".join(wrong) or "Colab: all is well")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main([word for word in sys.argv[1:] if re.fullmatch(r"\d\d\w?", word)]))
