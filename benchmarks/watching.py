"""What it costs to be watched: workers that are followed one by one, and a loop with a watchdog."""

from __future__ import annotations

from functools import partial
from time import perf_counter, process_time

import anyio

from creche import Node, get_current_worker
from creche.services import watchdog

TURNS, STEPS = 10, 100
"""How often a worker sleeps, and of how many steps it tells before."""
IDLE = 5
"""Seconds for which a loop has nothing to do but to answer the watchdog."""


def run(loop, main, *args):
    """Run a measurement on an event loop of its own."""
    backend = "trio" if loop == "trio" else "asyncio"
    options = {"use_uvloop": True} if loop == "uvloop" else {}
    return anyio.run(main, *args, backend=backend, backend_options=options)


async def _work():
    worker = get_current_worker()
    for _ in range(TURNS):
        for _ in range(STEPS):
            worker.advance()
        await anyio.sleep(0.001)


async def _follow(worker):
    async with worker.subscribe() as events:
        async for _ in events:
            pass


async def _spend(size, *, is_followed):
    begun = process_time(), perf_counter()
    async with anyio.create_task_group() as tasks, Node("app") as app:
        for worker in [app.run_worker(_work) for _ in range(size)]:
            if is_followed:
                tasks.start_soon(_follow, worker)
    return (process_time() - begun[0]) / size, (perf_counter() - begun[1]) / size


def followed(loop, size, *, is_followed, amount=None):
    """Give the seconds a worker takes, on both clocks, with or without one who follows it."""
    return run(loop, partial(_spend, amount or size, is_followed=is_followed))


async def _idle():
    async with Node("app") as app, watchdog(app):
        await anyio.sleep(0.1)
        begun = process_time(), perf_counter()
        await anyio.sleep(IDLE)
        spent, passed = process_time() - begun[0], perf_counter() - begun[1]
    return 100 * spent / passed


def watched(loop, _amount=None):
    """Give the part of a processor that a watchdog takes, in percent."""
    return run(loop, _idle)
