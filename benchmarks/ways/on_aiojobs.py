"""aiojobs: a scheduler, which has a limit of its own."""

from __future__ import annotations

from aiojobs import Scheduler

from . import Way


class Aiojobs(Way):
    name = "aiojobs"

    async def __aenter__(self):
        # Without a timeout: it would give up on a tenth of a second, and not wait for the rest.
        self._scheduler = Scheduler(
            close_timeout=None, limit=self.limit, pending_limit=0, wait_timeout=None
        )
        return self

    async def __aexit__(self, *exc):
        await self._scheduler.wait_and_close()

    async def start(self, job, count):
        spawn = self._scheduler.spawn
        return [await spawn(job()) for _ in range(count)]

    async def start_limited(self, job, count):
        spawn = self._scheduler.spawn
        for _ in range(count):
            await spawn(job())

    async def cancel_all(self):
        await self._scheduler.close()

    async def cancel_each(self, handles):
        for job in handles:
            await job.close()


WAYS = (Aiojobs,)
