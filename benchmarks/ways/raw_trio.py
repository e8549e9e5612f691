"""Plain Trio: a nursery, a capacity limiter, ``trio.to_thread``."""

from __future__ import annotations

import trio

from . import Way


class Raw(Way):
    name = "raw"
    loops = ("trio",)

    async def __aenter__(self):
        self._creche_manager = trio.open_nursery()
        self._nursery = await self._creche_manager.__aenter__()
        return self

    async def __aexit__(self, *exc):
        return await self._creche_manager.__aexit__(*exc)

    async def start(self, job, count):
        start_soon = self._nursery.start_soon
        for _ in range(count):
            start_soon(job)

    async def start_each(self, job, count):
        async def scoped(scope):
            with scope:
                await job()

        scopes = [trio.CancelScope() for _ in range(count)]
        for scope in scopes:
            self._nursery.start_soon(scoped, scope)
        return scopes

    async def start_limited(self, job, count):
        limiter = trio.CapacityLimiter(self.limit)

        async def held():
            async with limiter:
                await job()

        start_soon = self._nursery.start_soon
        for _ in range(count):
            start_soon(held)

    async def cancel_all(self):
        self._nursery.cancel_scope.cancel()

    cancel_group = cancel_all  # a group is a nursery of its own

    async def cancel_each(self, handles):
        for scope in handles:
            scope.cancel()


class Threads(Way):
    name = "trio.to_thread"
    loops = ("trio",)

    async def run_thread(self, call):
        await trio.to_thread.run_sync(call)

    async def run_threads(self, call, count):
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(trio.to_thread.run_sync, call)


WAYS = (Raw, Threads)
