"""A headless browser, if there is one: an installed Chromium or Playwright's. And axe-core."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

AXE = "axe-core@4.14.1"
ROOT = Path(__file__).parent.parent
NAMES = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
)


def find(playwright):
    """Find the program: the one in the variable CRECHE_BROWSER, an installed one, Playwright's."""
    named = os.environ.get("CRECHE_BROWSER")
    if named:
        return named
    installed = next(filter(None, map(shutil.which, NAMES)), None)
    if installed:
        return installed
    own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


@contextmanager
def opened():
    """Open a browser; yield ``None`` and the reason if there is none."""
    try:
        from playwright.sync_api import sync_playwright  # noqa: PLC0415 (absent in most places)
    except ImportError:
        yield None, "Playwright is not installed; nox -s browser installs it"
        return
    with sync_playwright() as playwright:
        program = find(playwright)
        if program is None:
            yield None, "no browser was found; nox -s browser installs one"
            return
        browser = playwright.chromium.launch(executable_path=program)
        yield browser, ""
        browser.close()


def axe():
    """Return the code of axe-core, or ``None`` if it is not installed."""
    path = ROOT / "node_modules" / "axe-core" / "axe.min.js"
    return path.read_text(encoding="utf-8") if path.exists() else None


def install():
    """Install axe-core with npm and a browser with Playwright, if they are missing."""
    if axe() is None:
        command = ["npm", "install", "--no-save", "--ignore-scripts", "--prefix", str(ROOT), AXE]
        subprocess.run(command, check=True)
    with opened() as (browser, reason):
        if browser is not None:
            print(f"there is a browser: {browser.browser_type.name} {browser.version}")
            return
    print(reason)
    command = [sys.executable, "-m", "playwright", "install", "chromium-headless-shell"]
    raise SystemExit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    install()
