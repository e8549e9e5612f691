"""quattro: a task group with a limit of its own."""

from __future__ import annotations

from quattro import TaskGroup

from . import Way


class Quattro(Way):
    name = "quattro"

    async def __aenter__(self):
        self._group = TaskGroup(concurrency_limit=self.limit)
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc):
        return await self._group.__aexit__(*exc)

    async def start(self, job, count):
        create = self._group.create_task
        return [create(job()) for _ in range(count)]

    async def start_limited(self, job, count):
        create = self._group.create_task
        for _ in range(count):
            create(job())

    async def cancel_each(self, handles):
        for task in handles:
            task.cancel()


WAYS = (Quattro,)
