"""The cost of being watched: workers that are followed one by one, and a loop with a watchdog."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from hashlib import sha256
from time import perf_counter, process_time

import anyio

from creche import Node, get_current_worker
from creche.services import watchdog

UNFOLLOWED, STREAM, QUEUE = "Creche, unfollowed", "AnyIO's stream", "asyncio.Queue"
TURNS, STEPS = 10, 100
"""How often a worker sleeps, and how many steps it reports before each sleep."""
CHUNK = bytes(65_536)
"""What a worker that does real work hashes before it reports a step."""
IDLE = 5
"""Seconds for which a loop does nothing but answer the watchdog."""


def run(loop, main, *args):
    """Run a measurement on an event loop of its own."""
    backend = "trio" if loop == "trio" else "asyncio"
    options = {"use_uvloop": True} if loop == "uvloop" else {}
    return anyio.run(main, *args, backend=backend, backend_options=options)


def _count(worker):
    for _ in range(STEPS):
        worker.advance()


def _hash(worker):
    sha256(CHUNK)
    worker.advance()


async def _work(do, tell=None):
    worker = get_current_worker()
    for _ in range(TURNS):
        do(worker)
        if tell is not None:
            tell(None)
        await anyio.sleep(0.001)


async def _follow(worker):
    async with worker.subscribe() as events:
        async for _ in events:
            pass


async def _read_stream(stream):
    async with stream:
        for _ in range(TURNS):
            await stream.receive()


async def _read_queue(queue):
    for _ in range(TURNS):
        await queue.get()


async def _spend(size, way, do):
    begun = process_time(), perf_counter()
    async with anyio.create_task_group() as tasks, Node("app") as app:
        for _ in range(size):
            tell = None
            if way == STREAM:
                sender, stream = anyio.create_memory_object_stream(math.inf)
                tell = sender.send_nowait
                tasks.start_soon(_read_stream, stream)
            elif way == QUEUE:
                queue = asyncio.Queue()
                tell = queue.put_nowait
                tasks.start_soon(_read_queue, queue)
            worker = app.run_worker(partial(_work, do, tell))
            if way == "Creche":
                tasks.start_soon(_follow, worker)
    return (process_time() - begun[0]) / size, (perf_counter() - begun[1]) / size


def followed(way, loop, size, do, amount=None):
    """Return the seconds a worker takes, on both clocks, with or without a follower.

    Args:
        way: ``Creche`` subscribes to each worker. With AnyIO's stream or ``asyncio.Queue``, each
            worker sends an item once a turn: the minimum, without states or coalesced progress.
        loop: The event loop.
        size: How many workers.
        do: What each does before it reports: ``"count"`` or ``"hash"``.
        amount: How many workers, in place of the size.
    """
    return run(loop, partial(_spend, amount or size, way, _hash if do == "hash" else _count))


async def _idle():
    async with Node("app") as app, watchdog(app):
        await anyio.sleep(0.1)
        begun = process_time(), perf_counter()
        await anyio.sleep(IDLE)
        spent, passed = process_time() - begun[0], perf_counter() - begun[1]
    return 100 * spent / passed


def watched(loop, _amount=None):
    """Return the share of a processor that a watchdog takes, in percent."""
    return run(loop, _idle)
