"""mixofshow doctor: what it finds on a healthy machine and on sick ones, and that it is quick."""

import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from mixofshow_lite.cli import doctor, main
from mixofshow_lite.cli.doctor import NOTE, OK, PROBLEM, Row


def test_the_table_is_there_without_torch(tmp_path):
    code = (
        "import sys; from mixofshow_lite.cli import main; main(['doctor']);"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'numpy', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    seen = [line.split()[1] for line in lines if line.startswith((OK, NOTE, PROBLEM))]
    assert seen == "Python packages scores threads cores memory disk writing weights widgets browser".split()


def test_a_problem_is_an_exit_status_and_an_arrow(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", (lambda: Row(OK, "one", "well"), lambda: Row(PROBLEM, "two", "ill", "rest")))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[1].startswith("PROBLEM  two       ill") and out[2].strip() == "-> rest" and "1 to be mended" in out[3]
    monkeypatch.setattr(doctor, "CHECKS", (lambda: Row(NOTE, "one", "absent"),))
    assert main(["doctor"]) == 0 and "1 optional" in capsys.readouterr().out


@pytest.fixture
def packages(monkeypatch):
    """Installed versions that a test may change, None: not there; and what the kit asks for."""
    versions = dict.fromkeys(doctor.NEEDED, "9.0") | {
        "torch": "2.14.1",
        "torchvision": "0.29.1",
        "open_clip_torch": "3",
    }
    monkeypatch.setattr(doctor, "installed", versions.get)
    asked = {"mixofshow_lite": ["torch>=2.11", "ruff>=0.1; extra == 'test'"], "torchvision": ["numpy", "torch==2.14.1"]}
    monkeypatch.setattr(metadata, "requires", asked.get)
    return versions


def test_packages_that_are_missing_or_old(packages):
    assert doctor.check_packages().state == OK
    packages |= {"peft": None, "torch": "2.9.1"}
    row = doctor.check_packages()
    assert row.state == PROBLEM and "peft is missing" in row.found and "torch 2.9.1 is older than 2.11" in row.found


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, OK),
        ({"open_clip_torch": None}, NOTE),
        ({"torch": "2.13.0"}, PROBLEM),
        ({"torch": "2.14.1+cpu"}, PROBLEM),
        ({"torch": "2.14.1+cpu", "torchvision": "0.29.1+cpu"}, OK),
    ],
)
def test_torch_and_torchvision_belong_together(packages, changes, state):
    packages |= changes
    assert doctor.check_scores().state == state


def test_threads_that_spin_are_told(monkeypatch):
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert doctor.check_waiting().state == OK
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    row = doctor.check_waiting()
    assert row.state == NOTE and row.do == "unset OMP_WAIT_POLICY"


def test_too_many_threads_and_busy_cores(monkeypatch):
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (0.5, 0, 0))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert doctor.check_cores().state == OK
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert "OMP_NUM_THREADS=2" in doctor.check_cores().do
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (7.0, 0, 0))
    assert doctor.check_cores().state == NOTE


def test_little_memory_and_disk(monkeypatch):
    for free, state in ((None, NOTE), (0.5, PROBLEM), (8.0, OK)):
        monkeypatch.setattr(doctor, "free_memory", lambda free=free: free)
        assert doctor.check_memory().state == state
    for free, state in ((2**20, PROBLEM), (2**40, OK)):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda where, free=free: SimpleNamespace(free=free))
        assert doctor.check_disk().state == state


def test_damaged_and_missing_weights(monkeypatch, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    digest = doctor.digest_of(tmp_path / "a.safetensors")
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  a.safetensors\n")
    monkeypatch.setattr(doctor, "pocket_dir", lambda: tmp_path)
    assert doctor.check_weights().state == OK
    (tmp_path / "a.safetensors").write_bytes(b"weightS")
    assert doctor.check_weights().state == PROBLEM
    (tmp_path / "a.safetensors").unlink()
    assert "a.safetensors" in doctor.check_weights().found
    (tmp_path / "SHA256SUMS").unlink()
    assert doctor.check_weights().state == PROBLEM


def test_a_folder_that_is_not_ours(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert doctor.check_writing().state == OK and not list(tmp_path.iterdir())

    def refused(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refused)
    assert doctor.check_writing().state == PROBLEM


def test_widgets_and_browser(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert "anywidget, ipywidgets, jupyterlab" in doctor.check_widgets().found
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.check_browser().state == NOTE
