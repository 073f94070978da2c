"""Threads wait passively where it can still be said: before torch is loaded."""

import os
import subprocess
import sys

import pytest

from mixofshow_lite import threads


def test_nothing_changes_once_torch_is_there(monkeypatch):
    import torch  # noqa: F401

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert threads.wait_passively() is False and "OMP_WAIT_POLICY" not in os.environ


def waiting_after(code: str, **more) -> str:
    """OMP_WAIT_POLICY in a fresh process after that code."""
    env = {k: v for k, v in os.environ.items() if k not in threads.PASSIVE} | more
    code += "; import os; print(os.environ.get('OMP_WAIT_POLICY'))"
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return run.stdout.split()[-1]


def test_the_users_own_choice_stays():
    code = "from mixofshow_lite.threads import wait_passively; assert wait_passively()"
    assert waiting_after(code) == "passive" and waiting_after(code, OMP_WAIT_POLICY="active") == "active"


@pytest.mark.parametrize(
    "door", ["from mixofshow_lite import cli; cli.main(['tune', 'nowhere'])", "from mixofshow_lite import course"]
)
def test_the_command_line_and_the_notebooks_ask_for_it(door):
    assert waiting_after(door) == "passive"
