"""Plain asyncio: a ``TaskGroup`` (of Python 3.11), a semaphore, an executor for threads."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

try:
    from asyncio import TaskGroup
except ImportError:  # Python 3.10
    raise ImportError("asyncio has no TaskGroup in this Python") from None

from . import Way


class Raw(Way):
    name = "raw"
    loops = ("asyncio", "uvloop")

    async def __aenter__(self):
        self._group = TaskGroup()
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc):
        return await self._group.__aexit__(*exc)

    async def start(self, job, count):
        create = self._group.create_task
        return [create(job()) for _ in range(count)]

    async def start_handled(self, job, count):
        create = self._group.create_task
        for _ in range(count):
            create(job()).add_done_callback(self._handle)

    def _handle(self, task):
        pass

    async def start_limited(self, job, count):
        semaphore = asyncio.Semaphore(self.limit)

        async def held():
            async with semaphore:
                await job()

        create = self._group.create_task
        for _ in range(count):
            create(held())

    async def cancel_each(self, handles):
        for task in handles:
            task.cancel()


class Executor(Way):
    name = "ThreadPoolExecutor"
    loops = ("asyncio", "uvloop")
    _pool = None

    @classmethod
    @asynccontextmanager
    async def host(cls):
        with ThreadPoolExecutor(40) as cls._pool:
            yield

    async def run_thread(self, call):
        await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def run_threads(self, call, count):
        run = asyncio.get_running_loop().run_in_executor
        await asyncio.gather(*[run(self._pool, call) for _ in range(count)])


class Counter:
    def __init__(self):
        self.completed = 0

    def advance(self, steps=1):
        self.completed += steps


class Method(Way):
    name = "bare method"

    async def advance(self, count):
        advance = Counter().advance
        for _ in range(count):
            advance()


WAYS = (Raw, Executor, Method)
