"""A headless Chromium for the widgets; these tests are skipped where Chromium or playwright is missing.

CHROMIUM=/path/to/chromium   the browser, if it is not on PATH
SLOW=4                       multiplies every waiting time, for a busy machine
"""

import os
import shutil
from pathlib import Path

import pytest

SHOTS = Path(__file__).parents[2] / "out" / "browser"


def find_chromium() -> str | None:
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install '.[browser]'")
    executable = find_chromium()
    if executable is None:
        pytest.skip("there is no Chromium: apt-get install chromium, or set CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def shot():
    """Save a screenshot to out/browser, for people to look at."""

    def save(page, name, locator=None):
        SHOTS.mkdir(parents=True, exist_ok=True)
        (locator or page).screenshot(path=SHOTS / f"{name}.png")

    return save
