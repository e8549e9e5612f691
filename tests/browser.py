"""A headless browser, where there is one: an installed Chromium, or that of Playwright."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

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
    """Open a browser; gives ``None`` and the reason where there is none."""
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
