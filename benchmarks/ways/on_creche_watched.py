"""Creche: workers of a node that somebody watches."""

from __future__ import annotations

import io
from contextlib import AsyncExitStack

import anyio
from rich.console import Console

from creche import Node, Worker
from creche.board import live_board
from creche.trace import record

from . import Way


class Watched(Way):
    """Workers of a node that is watched in some way: what that costs them."""

    loops = ("asyncio", "uvloop", "trio")

    async def __aenter__(self):
        self._node = Node("bench")
        self._around = AsyncExitStack()
        await self.watch(self._around)
        await self._node.__aenter__()
        return self

    async def __aexit__(self, *exc):
        async with self._around:
            return await self._node.__aexit__(*exc)

    async def watch(self, around):
        """Begin, and have the stack end it."""

    async def start_watched(self, job, count):
        for _ in range(count):
            self._node.run_worker(job)


class Unwatched(Watched):
    name = "Creche, unwatched"


class Subscribed(Watched):
    subscribers = 1
    name = "Creche, 1 subscriber"

    async def watch(self, around):
        opened = [
            await around.enter_async_context(self._node.subscribe(Worker.StateChanged, tree=True))
            for _ in range(self.subscribers)
        ]
        tasks = await around.enter_async_context(anyio.create_task_group())
        for events in opened:
            tasks.start_soon(self._read, events)

    async def _read(self, events):
        async for _ in events:
            pass


class TenSubscribed(Subscribed):
    subscribers = 10
    name = "Creche, 10 subscribers"


class OnBoard(Watched):
    name = "Creche, live board"

    async def watch(self, around):
        console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
        await around.enter_async_context(live_board(self._node, console=console))


class Recorded(Watched):
    name = "Creche, recorded"

    async def watch(self, around):
        await around.enter_async_context(record(self._node))


WAYS = (Unwatched, Subscribed, TenSubscribed, OnBoard, Recorded)
