"""aioresult: results captured from the tasks of an AnyIO task group."""

from __future__ import annotations

import anyio
from aioresult import ResultCapture

from . import Way


class Aioresult(Way):
    name = "aioresult"
    loops = ("asyncio", "trio")

    async def __aenter__(self):
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc):
        return await self._group.__aexit__(*exc)

    async def start(self, job, count):
        start_soon, group = ResultCapture.start_soon, self._group
        return [start_soon(group, job) for _ in range(count)]

    async def cancel_all(self):
        self._group.cancel_scope.cancel()


WAYS = (Aioresult,)
