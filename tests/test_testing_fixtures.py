"""The fixture of the virtual clock, used as in a user's module."""

from __future__ import annotations

import anyio
import pytest

from creche import Node
from creche.testing import virtual_backend

anyio_backend = virtual_backend


@pytest.fixture
async def app():
    async with Node("app") as app:
        yield app


async def test_ten_minute_timeout(app):
    """A test of a ten-minute timeout finishes at once, with async fixtures too."""
    start = anyio.current_time()
    worker = app.run_worker(anyio.sleep_forever)
    with anyio.move_on_after(600):
        await worker
    assert anyio.current_time() - start == pytest.approx(600)
    worker.cancel()


async def test_clock_of_its_own(app):
    """Each test has a clock of its own."""
    start = anyio.current_time()
    await anyio.sleep(3600)
    assert anyio.current_time() - start == pytest.approx(3600)
