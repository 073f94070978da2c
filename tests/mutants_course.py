"""Break the library or a saved result on purpose and see the course notice: python tests/mutants_course.py [words]

Each mutant is (file, old text, new text, judge). The judge is a test, or cells of a notebook: these are run in order in
a process of their own, and what the last one prints is compared with the notebook's saved output, as nbval does. An
old text that begins with "re:" is a pattern; the first digit after the point of its last find is changed. Arguments
choose mutants by a part of their file, text or judge; --list shows them. Every judge is first tried without a mutant.
pytest does not collect this file. Exit code 1 if any survived.
"""

import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest
from mutants import in_a_child

ROOT = Path(__file__).resolve().parents[1]
KIT = "from mixofshow_lite import course\nkit = course.setup()\nbase = kit.base"
RABBITS = (
    "import numpy as np, torch, mixofshow_lite as mos, tempfile, json\nfrom pathlib import Path\n"
    "from mixofshow_lite.paper import tuned\nnames = ('bibi', 'momo', 'kiki')\n"
    "data = {name: mos.ConceptData(kit.concepts / name) for name in names}\n"
    "bibi, momo, kiki = (tuned(base, data[name], 'ed_lora', 0, kit.tuned) for name in names)"
)
FOLDER = "lifted = [data['bibi'].pictures[0]]\nshared = Path(tempfile.mkdtemp())\nbibi.save(shared / 'bibi')"
PAIR = (
    "import torch, numpy as np, mixofshow_lite as mos\nplace, cat, robot = 'on the beach', 'a red cat', 'a robot'\n"
    "together = f'two friends {place}'\npair = mos.side_by_side((cat, robot), place, friends=1)"
)
JUDGES = {  # notebook and what is run of it: cells by their id, or lines of our own; the last one is a compared cell
    "01 loss": ("01", "c01-f7568b", "c06-42118c", "c08-5b58bd", "c11-1a340f"),
    "01 LoRA": ("01", "c01-f7568b", "c06-42118c", "c08-5b58bd", "c11-1a340f", "c31-0ba152", "c33-a315c7", "c35-efbdf1"),
    "02 recipes": ("02", "c01-f7568b", "c09-176a74"),
    "02 observation 1": ("02", "c01-f7568b", "data = None", "c22-9b6950"),
    "02 observation 2": ("02", "c01-f7568b", "data = None", "c32-61ef66"),
    "02 alpha 0": ("02", KIT, RABBITS, "c26-8c3c42"),
    "02 shown": ("02", "c01-f7568b", "c34-c6645a"),
    "03 formats": ("03", KIT, RABBITS, FOLDER, "c36-0c478c"),
    "03 ablation": ("03", KIT, "data = None", "c25-af17f0", "c27-950a2c"),
    "04 one layer": ("04", "c02-82f481", "c11-1a340f", "c12-8132a6"),
    "04b sweep": ("04b", "b02", "b04", "f3d3bcad"),
    "04b fourteen": ("04b", "b02", "base = kit.base", "c458ea57"),
    "05 by hand": ("05", KIT, PAIR, "c12-8132a6", "c14-ba64f5"),
}
ENGINE = "mixofshow_lite/engine/"
EINSUM = "test_regional.py::test_every_layer_against_the_official_rule_by_einsum"
SLICE = "test_base.py::test_the_unet_gives_each_layer_its_own_slice"
FRIENDS = "test_regional.py::test_friends_are_told_of_as_long_as_the_notebooks_say"
RIDGE = "test_fusion.py::test_the_default_ridge_fits_what_is_one_concepts_own_alike_in_small_and_large_models"
MUTANTS = [
    ("mixofshow_lite/diffusion.py", "(1 - a).sqrt() * noise", "(1 - a) * noise", "01 loss"),
    ("mixofshow_lite/diffusion.py", "a.sqrt() * latents", "a * latents", "01 loss"),
    (ENGINE + "lora.py", 'layer.scaling["default"] = alpha', 'layer.scaling["default"] = 1.0', "01 LoRA"),
    (ENGINE + "recipes.py", 'init=("rand",),', 'init=("class",),', "02 recipes"),
    ("mixofshow_lite/model.py", "in concept.lora.items() if alpha else ()", "in concept.lora.items()", "02 alpha 0"),
    ("mixofshow_lite/paper/study.py", "(0.05, 0.95)", "(0.5, 0.95)", "02 shown"),
    ("data/results/observation_1.csv", r"re:0\.\d+", "", "02 observation 1"),
    ("data/results/observation_2.json", r're:"(?:low|mean)": 0\.\d+', "", "02 observation 2"),
    (ENGINE + "layerwise.py", "[:, self.layer]", "[:, 0]", SLICE),
    ("mixofshow_lite/files/lora_writing.py", "torch.tensor(float(rank))", "torch.tensor(1.0)", "03 formats"),
    ("data/results/ablation.csv", r"re:0\.\d+", "", "03 ablation"),
    (
        ENGINE + "fusion/algebra.py",
        'if towards == "average":\n            moved',
        "if True:\n            moved",
        "04 one layer",
    ),
    (
        ENGINE + "fusion/algebra.py",
        "moved = weight * (down @ gram @ normal.inverse)",
        "moved = down @ gram @ normal.inverse",
        "04 one layer",
    ),
    (ENGINE + "fusion/settings.py", "return RIDGE / max(n, 1)", "return RIDGE", RIDGE),
    (
        ENGINE + "fusion/drift.py",
        "spread = 2 * others",
        "spread = others",
        "test_fusion.py::test_drift_compares_the_same_noise",
    ),
    ("data/results/fusion_sweep.json", r're:\n {8}"identity": 0\.\d+', "", "04b sweep"),
    ("data/results/how_many.json", r're:"14": -?0\.\d+', "", "04b fourteen"),
    (ENGINE + "masks.py", "friends: float = 0.4", "friends: float = 0.5", FRIENDS),
    (ENGINE + "masks.py", "torch.where(share >= most - 1e-4", "torch.where(share > 0", "test_exercises_nb05.py"),
    (ENGINE + "regional.py", "(rest * out).index_add_", "out.index_add_", "05 by hand"),
    (ENGINE + "regional.py", "[i][self.layer] for i in own", "[i][0] for i in own", EINSUM),
    (
        "mixofshow_lite/paper/observations.py",
        "scores.argmax(0)",
        "scores.argmin(0)",
        "test_paper.py::test_identified_and_apart",
    ),
    (
        "mixofshow_lite/paper/observations.py",
        "1 - float(means[name] @ m)",
        "float(means[name] @ m)",
        "test_paper.py::test_identified_and_apart",
    ),
]


def copy_to(folder: Path) -> None:
    """The package, the tests, the notebooks and the saved results are copied; the rest of the data is linked."""
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("mixofshow_lite", "tests", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    (folder / "data").mkdir()
    for part in (ROOT / "data").iterdir():
        if part.name == "results":
            shutil.copytree(part, folder / "data" / "results")
        else:
            (folder / "data" / part.name).symlink_to(part)
    for part in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / part, folder)


def said(cell: dict) -> str:
    """What a cell's saved output has on stdout."""
    return "".join("".join(out["text"]) for out in cell["outputs"] if out.get("name") == "stdout")


def run_cells(folder: Path, number: str, *steps: str) -> bool:
    """Whether the last cell prints what the notebook has saved."""
    (file,) = (folder / "notebooks").glob(f"{number}_*.ipynb")
    cells = {cell["id"]: cell for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]}

    def work() -> int:
        os.chdir(folder / "notebooks")
        sys.path[:0] = [str(folder)]
        import matplotlib

        matplotlib.use("Agg")
        import IPython.display

        IPython.display.display = lambda *things, **options: None  # pictures are not compared
        names = {"display": IPython.display.display, "__name__": "__main__"}
        for step in steps:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile("".join(cells[step]["source"]) if step in cells else step, step, "exec"), names)
        found, wanted = " ".join(out.getvalue().split()), " ".join(said(cells[steps[-1]]).split())
        print(f"printed: {found}\nsaved:   {wanted}")
        return int(found != wanted or not wanted)

    return in_a_child(work, folder)


def run_test(folder: Path, test: str) -> bool:
    """Whether a test file passes."""

    def work() -> int:
        os.chdir(folder)
        sys.path[:0] = [str(folder), str(folder / "tests")]
        return pytest.main(["-x", "-q", "-W", "ignore", "-p", "no:cacheprovider", f"tests/{test}"])

    return in_a_child(work, folder)


def judged(folder: Path, judge: str) -> bool:
    return run_cells(folder, *JUDGES[judge]) if judge in JUDGES else run_test(folder, judge)


def changed(text: str, old: str, new: str, file: str) -> str:
    """The text with the mutation; raises ValueError if it does not fit any more."""
    if old.startswith("re:"):
        finds = list(re.finditer(old[3:], text))
        if not finds:
            raise ValueError(f"{file} has nothing like {old[3:]!r}: bring the mutant up to date.")
        place = text.index(".", finds[-1].start()) + 1
        return text[:place] + str((int(text[place]) + 4) % 10) + text[place + 1 :]
    if text.count(old) != 1:
        raise ValueError(f"{file} has {old!r} {text.count(old)} times, not once: bring the mutant up to date.")
    return text.replace(old, new)


def main(words: list[str]) -> int:
    sys.dont_write_bytecode = True  # a mutant may have the size and the second of the file before it
    chosen = [m for m in MUTANTS if not set(words) - {"--list"} or any(w in " ".join(m) for w in words)]
    for file, old, new, _ in chosen:
        changed((ROOT / file).read_text(encoding="utf-8"), old, new, file)
    if "--list" in words:
        for number, (file, old, new, judge) in enumerate(chosen, start=1):
            print(f"{number:3} {file}: {old!r} -> {new!r}, by {judge}")
        return 0
    import peft  # noqa: F401  slow imports, once for all forks; no name of this package may be among them
    import torch
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel  # noqa: F401

    torch.set_num_threads(1)
    results, sane = [], {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        copy_to(folder)
        for number, (file, old, new, judge) in enumerate(chosen, start=1):
            start = time.time()
            if judge not in sane:
                sane[judge] = judged(folder, judge)
            path = folder / file
            text = path.read_text(encoding="utf-8")
            if not sane[judge]:
                results.append("NO JUDGE")  # red without any mutant: mend that first
                print((folder / "out.txt").read_text()[-1500:])
            else:
                try:
                    path.write_text(changed(text, old, new, file), encoding="utf-8")
                    results.append("SURVIVED" if judged(folder, judge) else "killed")
                finally:
                    path.write_text(text, encoding="utf-8")
            shown = " ".join(f"{old} -> {new or 'another digit'}".split())
            print(f"{number:3} {results[-1]:9} {time.time() - start:5.1f} s  {file}: {shown}, by {judge}", flush=True)
    print(f"{len(results)} mutants: {results.count('killed')} killed, {results.count('SURVIVED')} survived, "
          f"{results.count('NO JUDGE')} without a judge")  # fmt: skip
    return int(results.count("killed") < len(results))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
