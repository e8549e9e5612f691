"""Creche: workers of a node."""

from __future__ import annotations

from creche import Node, get_current_worker

from . import Way


class HandlingNode(Node):
    def on_worker_state_changed(self, event):
        pass


class Creche(Way):
    name = "Creche"
    loops = ("asyncio", "uvloop", "trio")

    async def __aenter__(self):
        self._node = await Node("bench").__aenter__()
        return self

    async def __aexit__(self, *exc):
        return await self._node.__aexit__(*exc)

    async def start(self, job, count):
        run = self._node.run_worker
        return [run(job) for _ in range(count)]

    async def start_handled(self, job, count):
        async with HandlingNode("handling") as node:
            for _ in range(count):
                node.run_worker(job)

    async def start_limited(self, job, count):
        group = self._node.group("limited", self.limit)
        for _ in range(count):
            group.run_worker(job)

    async def start_others(self, job, count):
        for number in range(count):
            self._node.run_worker(job, group=f"other {number}")

    async def replace(self, job):
        self._node.run_worker(job, group="search", exclusive=True)

    async def cancel_all(self):
        self._node.cancel()

    async def cancel_group(self):
        self._node.group("default").cancel()

    async def cancel_each(self, handles):
        for worker in handles:
            worker.cancel()

    async def run_thread(self, call):
        await self._node.run_worker(call, thread=True)

    async def run_threads(self, call, count):
        workers = [self._node.run_worker(call, thread=True) for _ in range(count)]
        await self._node.workers.wait_for_complete(workers)

    async def advance(self, count):
        async def job():
            advance = get_current_worker().advance
            for _ in range(count):
                advance()

        await self._node.run_worker(job)


WAYS = (Creche,)
