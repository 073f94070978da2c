"""pyproject.toml, environment.yml, Makefile and the wheel say the same thing."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from mixofshow_lite.files import resources

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "pyproject.toml").is_file():
    pytest.skip("these tests read the checkout", allow_module_level=True)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYPI_NAME = {"pytorch": "torch"}  # conda-forge's name -> PyPI's, where they differ in more than - and _
COLAB = {  # what Colab had preinstalled in late 2026: our floors must not move any of it
    "torch": (2, 11), "torchvision": (0, 26), "diffusers": (0, 39), "transformers": (5, 15), "peft": (0, 20),
    "accelerate": (1, 14), "safetensors": (0, 8), "numpy": (2, 1, 3), "matplotlib": (3, 10), "ipywidgets": (7, 7, 1),
    "anywidget": (0, 9, 21), "pytest": (8, 4),
}  # fmt: skip


def floors(requirements):
    """["Pkg_a>=1.2"] -> {"pkg-a": (1, 2)}; anything but one floor is an error."""
    found = {}
    for text in requirements:
        name, floor = re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", text).groups()
        found[re.sub(r"[-_.]+", "-", name).lower()] = tuple(map(int, floor.split(".")))
    return found


def everything(without=()):
    extras = [extra for name, extra in PROJECT["optional-dependencies"].items() if name not in without]
    return floors(PROJECT["dependencies"] + sum(extras, []))


def test_requirements_are_floors_without_upper_pins():
    assert set(PROJECT["optional-dependencies"]) == {"metrics", "lab", "test", "browser", "flower"}
    assert len(everything()) == len(PROJECT["dependencies"]) + sum(map(len, PROJECT["optional-dependencies"].values()))
    assert PROJECT["requires-python"] == ">=3.11"


def test_floors_admit_colab():
    asked = everything()
    assert not [name for name, version in COLAB.items() if name in asked and asked[name] > version]


def test_the_conda_environment_is_the_same_set():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(d["pip"] for d in listed if isinstance(d, dict))
    conda = [d for d in listed if isinstance(d, str) and "python>=" not in d and d != "pip"]
    found = floors([*conda, *(p for p in pip if not p.startswith("-e"))])
    assert {PYPI_NAME.get(name, name): floor for name, floor in found.items()} == everything(without={"flower"})
    assert "python>=3.11" in listed and "-e ." in pip


def test_installed_packages_meet_the_floors():
    from importlib import metadata

    for name, floor in floors(PROJECT["dependencies"]).items():
        have = tuple(int(x) for x in re.findall(r"\d+", metadata.version(name))[: len(floor)])
        assert have >= floor, name


@pytest.mark.parametrize(
    "target",
    "demo test lab bench pretrain results notebooks colab browser offline slides site".split(),
)
def test_make_knows_its_targets_and_installs_first(target, tmp_path):
    result = subprocess.run(
        ["make", "-n", target, f"VENV={tmp_path / 'v'}", f"COLAB_VENV={tmp_path / 'c'}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = result.stdout
    assert "-m venv" in lines and "pip install" in lines and lines.index("-m venv") < lines.index("pip install")


def test_make_refuses_an_old_python(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\necho "mixofshow_lite needs Python 3.11 or newer" >&2\nexit 1\n')
    old.chmod(0o755)
    result = subprocess.run(
        ["make", "test", f"PYTHON={old}", f"VENV={tmp_path / 'v'}"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode and "3.11 or newer" in result.stderr and not (tmp_path / "v").exists()


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and "make test" in script.read_text()


def test_the_checkout_s_data_is_found():
    assert resources.data_dir() == ROOT / "data"


def test_missing_data_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "mixofshow_lite")
    with pytest.raises(FileNotFoundError, match="reinstall"):
        resources.data_dir()
    (tmp_path / "mixofshow_lite" / "_data").mkdir(parents=True)
    assert resources.data_dir() == tmp_path / "mixofshow_lite" / "_data"  # the wheel's copy comes first
    with pytest.raises(FileNotFoundError, match="pocket"):
        resources.pocket_dir()


SHIPPED = (ROOT / "data" / "pocket" / "model_index.json").is_file() and (ROOT / "data" / "concepts").is_dir()


@pytest.mark.skipif(not SHIPPED, reason="the shipped model is not there yet")
def test_the_wheel_works_alone(tmp_path):
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True,
        capture_output=True,
    )  # fmt: skip
    wheel = next(tmp_path.glob("*.whl"))
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        assert "LICENSE" in {Path(name).name for name in archive.namelist()}
    code = (
        "import mixofshow_lite as mos, sys; from mixofshow_lite.files.resources import concepts_dir, data_dir;"
        "assert data_dir().is_relative_to(sys.argv[1]), data_dir();"
        "base = mos.load_base('pocket'); found = sorted(concepts_dir().glob('*/metadata.jsonl'));"
        "assert len(found) >= 14; mos.ConceptData(found[0].parent);"
        "assert len(base.sample('a red cat', steps=1, progress=False)) == 1;"
        "from mixofshow_lite.course.widgets import page;"
        "assert 'export default' in page.module() and page.STYLE.is_file()"
    )
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code, str(site)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
