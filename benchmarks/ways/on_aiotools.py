"""aiotools: a task scope."""

from __future__ import annotations

from aiotools import TaskScope

from . import Way


class Aiotools(Way):
    name = "aiotools TaskScope"

    async def __aenter__(self):
        self._scope = TaskScope()
        await self._scope.__aenter__()
        return self

    async def __aexit__(self, *exc):
        return await self._scope.__aexit__(*exc)

    async def start(self, job, count):
        create = self._scope.create_task
        return [create(job()) for _ in range(count)]

    async def cancel_all(self):
        self._scope.abort()

    async def cancel_each(self, handles):
        for task in handles:
            task.cancel()


WAYS = (Aiotools,)
