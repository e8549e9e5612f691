"""Make the picture of a timeline that docs/watching.md shows.

    python docs/pictures_timeline.py

Needs Playwright and a browser, as ``nox -s browser`` does, and Trio, whose clock jumps here.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

import anyio
from trio.testing import MockClock

from creche import Node, work
from creche.trace import record

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))

import browser as browsers  # noqa: E402 (from the folder of the tests)


class Crawler(Node):
    """A program that has something of everything."""

    @work(group="crawl")
    async def crawl(self, depth):
        for number in range(4):
            await anyio.sleep(0.11 + 0.07 * (number * depth % 3))
            self.fetch(f"/{'abc'[depth]}/{number}")
        if depth < 2:
            self.crawl(depth + 1)
        await anyio.sleep(0.25)

    @work(group="fetch", limit=3, exit_on_error=False)
    async def fetch(self, url):
        await anyio.sleep(0.23 + 0.05 * (sum(map(ord, url)) * 7 % 9))
        if url == "/b/1":
            raise OSError("connection reset by peer")
        self.parse(url)

    @work(group="parse")
    async def parse(self, url):
        await anyio.sleep(0.06 + 0.03 * (sum(map(ord, url)) % 5))

    @work(group="search", exclusive=True)
    async def search(self, text):
        try:
            await anyio.sleep(1.0)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.14)


async def run(path):
    app = Crawler("crawler")
    async with record(app) as trace, app:
        app.crawl(0)
        for text in ("c", "cre", "creche"):
            await anyio.sleep(0.41)
            app.search(text)
    trace.save(path)


def timeline(picture):
    """Run a program, and take a picture of its timeline in a browser."""
    with tempfile.TemporaryDirectory() as folder, browsers.opened() as (browser, reason):
        if browser is None:
            raise SystemExit(reason)
        page_file = Path(folder) / "run.html"
        clock = MockClock(autojump_threshold=0)
        anyio.run(partial(run, page_file), backend="trio", backend_options={"clock": clock})
        page = browser.new_page(viewport={"width": 1160, "height": 510}, device_scale_factor=1.5)
        page.goto(page_file.as_uri())
        # The date would make each picture another one.
        page.evaluate("$('about').textContent = $('about').textContent.replace(/ · rec.*/, '')")
        page.wait_for_timeout(200)
        page.screenshot(path=picture)


if __name__ == "__main__":
    target = HERE / "pictures" / "timeline.png"
    timeline(target)
    print(target)
