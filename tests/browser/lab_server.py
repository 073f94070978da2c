"""A JupyterLab of its own, with its own settings, for the browser tests and `make browser`."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

from bare_page import SLOW

OWN = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
OWN |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def settings(home: Path, extension: str, file: str, text: str) -> None:
    """Write one of JupyterLab's settings files."""
    path = home / "settings" / "@jupyterlab" / extension / f"{file}.jupyterlab-settings"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@contextmanager
def lab_server(home: Path, root: Path, windowing: str = "full") -> Iterator[str]:
    """Start a JupyterLab that serves `root` and keeps all that it writes in `home`; gives its address.

    `windowing` is Lab's way to keep cells that are out of view: "full" takes them out of the page, "none" does not.
    Raises RuntimeError, with the end of its log, where it does not start.
    """
    settings(home, "notebook-extension", "tracker", f'{{"windowingMode": "{windowing}"}}')
    settings(home, "apputils-extension", "notification", '{"fetchNews": "false"}')
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}"]
    command += ["--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", f"--ServerApp.root_dir={root}"]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate"]
    with open(home / "log", "w") as log:
        environment = os.environ | {key: str(home / folder) for key, folder in OWN.items()}
        process = subprocess.Popen(command, env=environment, cwd=root, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 120 * SLOW
            while not answers(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"JupyterLab did not start:\n{(home / 'log').read_text()[-3000:]}")
                time.sleep(0.5)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/api", timeout=5).close()
    except OSError:
        return False
    return True


def is_outside(url: str) -> bool:
    """Whether an address is on another machine."""
    parts = urlparse(url)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1"
