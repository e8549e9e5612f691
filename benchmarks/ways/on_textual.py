"""Textual's own workers, in an app without a terminal."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from textual.app import App
from textual.worker import WorkerState, get_current_worker

from . import Way


class PlainApp(App):
    pass


class HandlingApp(App):
    ended = 0

    def on_worker_state_changed(self, event):
        self.ended += event.state is WorkerState.SUCCESS


class Textual(Way):
    name = "Textual"
    _app: PlainApp

    @classmethod
    @asynccontextmanager
    async def host(cls):
        cls._app = PlainApp()
        async with cls._app.run_test():
            yield

    async def __aexit__(self, *exc):
        # Its own wait_for_complete() makes a task for each worker.
        while len(self._app.workers):  # noqa: ASYNC110 (it sets no event)
            await asyncio.sleep(0)

    async def start(self, job, count):
        run = self._app.run_worker
        return [run(job) for _ in range(count)]

    async def start_others(self, job, count):
        for number in range(count):
            self._app.run_worker(job, group=f"other {number}")

    async def replace(self, job):
        self._app.run_worker(job, group="search", exclusive=True)

    async def cancel_all(self):
        self._app.workers.cancel_all()

    async def cancel_group(self):
        self._app.workers.cancel_group(self._app, "default")

    async def cancel_each(self, handles):
        for worker in handles:
            worker.cancel()

    async def run_thread(self, call):
        await self._app.run_worker(call, thread=True).wait()

    async def run_threads(self, call, count):
        workers = [self._app.run_worker(call, thread=True) for _ in range(count)]
        await self._app.workers.wait_for_complete(workers)

    async def advance(self, count):
        async def job():
            advance = get_current_worker().advance
            for _ in range(count):
                advance()

        await self._app.run_worker(job).wait()


class TextualHandled(Way):
    name = "Textual"
    _app: HandlingApp

    @classmethod
    @asynccontextmanager
    async def host(cls):
        cls._app = HandlingApp()
        async with cls._app.run_test():
            yield

    async def start_handled(self, job, count):
        due = self._app.ended + count
        for _ in range(count):
            self._app.run_worker(job)
        while self._app.ended < due:  # noqa: ASYNC110 (an event would cost more)
            await asyncio.sleep(0)


WAYS = (Textual, TextualHandled)
