"""AnyIO: a task group with ``start_soon`` or ``create_task``, a limiter, ``anyio.to_thread``."""

from __future__ import annotations

import anyio
import anyio.to_thread

from . import Way


class StartSoon(Way):
    name = "AnyIO start_soon"
    loops = ("asyncio", "uvloop", "trio")

    async def __aenter__(self):
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc):
        return await self._group.__aexit__(*exc)

    async def start(self, job, count):
        start_soon = self._group.start_soon
        for _ in range(count):
            start_soon(job)

    async def start_each(self, job, count):
        async def scoped(scope):
            with scope:
                await job()

        scopes = [anyio.CancelScope() for _ in range(count)]
        for scope in scopes:
            self._group.start_soon(scoped, scope)
        return scopes

    async def start_limited(self, job, count):
        limiter = anyio.CapacityLimiter(self.limit)

        async def held():
            async with limiter:
                await job()

        start_soon = self._group.start_soon
        for _ in range(count):
            start_soon(held)

    async def cancel_all(self):
        self._group.cancel_scope.cancel()

    cancel_group = cancel_all  # a group is a task group of its own

    async def cancel_each(self, handles):
        for scope in handles:
            scope.cancel()


class CreateTask(StartSoon):
    name = "AnyIO create_task"

    async def start(self, job, count):
        create = self._group.create_task
        return [create(job()) for _ in range(count)]

    start_each = start

    async def start_handled(self, job, count):
        async def handled():
            await job()
            self._handle()

        create = self._group.create_task
        for _ in range(count):
            create(handled())

    def _handle(self):
        pass

    async def start_limited(self, job, count):
        limiter = anyio.CapacityLimiter(self.limit)

        async def held():
            async with limiter:
                await job()

        create = self._group.create_task
        for _ in range(count):
            create(held())


class Threads(Way):
    name = "anyio.to_thread"
    loops = ("asyncio", "uvloop", "trio")

    async def run_thread(self, call):
        await anyio.to_thread.run_sync(call)

    async def run_threads(self, call, count):
        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(anyio.to_thread.run_sync, call)


class ThreadsOfTasks(Way):
    """What a thread costs that somebody owns: a task waits for it, and is waited for."""

    name = "anyio.to_thread in a task"
    loops = ("asyncio", "uvloop", "trio")

    async def __aenter__(self):
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *raised):
        return await self._group.__aexit__(*raised)

    async def run_thread(self, call):
        await self._group.create_task(anyio.to_thread.run_sync(call))


WAYS = (StartSoon, CreateTask, Threads, ThreadsOfTasks)
