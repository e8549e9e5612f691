"""The ways of running background work that are compared.

A way runs jobs in the idiom of its library, and its block ends when all jobs have ended. If a
library has no idiom for a method, its way lacks the method and skips the scenarios that need it::

    start(job, count)           start jobs, and return a handle for each
    start_each(job, count)      the same, so that each can be cancelled individually
    start_handled(job, count)   the same, and call a function at each end
    start_watched(job, count)   the same, while something watches
    start_limited(job, count)   at most ``limit`` run at once, the others wait
    run_waves(job, count)       start ten and wait for all, repeatedly
    run_in_turn(job, count)     start one and wait for it, repeatedly
    cancel_all(), cancel_group(), cancel_each(handles)
    start_others(job, count)    each in a group of its own
    replace(job)                start exclusively, which cancels the previous one
    run_thread(call), run_threads(call, count)
    start_threads_limited(call, count)  at most ``limit`` threads at once, the others wait
    advance(count)              progress updates of one job
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import anyio
import anyio.to_thread
import textual.worker
import trio
from aiojobs import Scheduler
from rich.console import Console
from textual.app import App

import creche
from creche import Node, Worker
from creche.board import live_board
from creche.trace import record

UVLOOP = ("uvloop",) if importlib.util.find_spec("uvloop") else ()
ASYNCIO = ("asyncio", *UVLOOP)
ALL = (*ASYNCIO, "trio")
WAVE = 10
"""The number of jobs that are started together and then waited for."""


class Way:
    """One way of running jobs, an async context manager that is entered once."""

    name = ""
    loops: tuple[str, ...] = ("asyncio",)

    def __init__(self, limit=None):
        self.limit = limit

    @classmethod
    @asynccontextmanager
    async def host(cls):
        """Set up what a program has only once, which is not measured."""
        yield

    async def __aenter__(self):
        self._block = self.open()
        self._opened = await self._block.__aenter__()
        return self

    async def __aexit__(self, *raised):
        return await self._block.__aexit__(*raised)

    def open(self):
        """Return the library's own context manager, which the way enters."""
        return AsyncExitStack()

    async def start_each(self, job, count):
        return await self.start(job, count)

    async def cancel_each(self, handles):
        for handle in handles:
            handle.cancel()


class Awaited(Way):
    """A way whose ``start()`` returns awaitables."""

    async def run_in_turn(self, job, count):
        for _ in range(count):
            (handle,) = await self.start(job, 1)
            await handle


class Raw(Awaited):
    """asyncio: a task group, a semaphore, an executor for threads, a plain method."""

    name = "raw"
    loops = ASYNCIO
    completed = 0

    @classmethod
    @asynccontextmanager
    async def host(cls):
        with ThreadPoolExecutor(40) as cls._pool:
            yield

    def open(self):
        return asyncio.TaskGroup()

    async def start(self, job, count):
        create = self._opened.create_task
        return [create(job()) for _ in range(count)]

    async def start_handled(self, job, count):
        create = self._opened.create_task
        for _ in range(count):
            create(job()).add_done_callback(self._handle)

    def _handle(self, task):
        pass

    async def start_limited(self, job, count):
        await self.start(held(job, asyncio.Semaphore(self.limit)), count)

    async def run_waves(self, job, count):
        for _ in range(count // WAVE):
            async with asyncio.TaskGroup() as tasks:
                for _ in range(WAVE):
                    tasks.create_task(job())

    async def run_thread(self, call):
        await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def run_threads(self, call, count):
        run = asyncio.get_running_loop().run_in_executor
        await asyncio.gather(*[run(self._pool, call) for _ in range(count)])

    async def start_threads_limited(self, call, count):
        run = asyncio.get_running_loop().run_in_executor
        with ThreadPoolExecutor(self.limit) as pool:
            await asyncio.gather(*[run(pool, call) for _ in range(count)])

    async def advance(self, count):
        advance = self._advance
        for _ in range(count):
            advance()

    def _advance(self, steps=1):
        self.completed += steps


class RawTrio(Way):
    """Trio: a nursery, a limiter, threads."""

    name = "raw"
    loops = ("trio",)

    def open(self):
        return trio.open_nursery()

    async def start(self, job, count):
        start_soon = self._opened.start_soon
        for _ in range(count):
            start_soon(job)

    async def start_each(self, job, count):
        async def scoped(scope):
            with scope:
                await job()

        scopes = [trio.CancelScope() for _ in range(count)]
        for scope in scopes:
            self._opened.start_soon(scoped, scope)
        return scopes

    async def start_limited(self, job, count):
        await self.start(held(job, trio.CapacityLimiter(self.limit)), count)

    async def run_waves(self, job, count):
        for _ in range(count // WAVE):
            async with trio.open_nursery() as nursery:
                for _ in range(WAVE):
                    nursery.start_soon(job)

    async def run_in_turn(self, job, count):
        for _ in range(count):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(job)

    async def cancel_all(self):
        self._opened.cancel_scope.cancel()

    async def run_thread(self, call):
        await trio.to_thread.run_sync(call)

    async def run_threads(self, call, count):
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(trio.to_thread.run_sync, call)

    async def start_threads_limited(self, call, count):
        limiter = trio.CapacityLimiter(self.limit)
        run = partial(trio.to_thread.run_sync, call, limiter=limiter)
        await self.start(run, count)


def held(job, limiter):
    """Make a job that runs while it holds the limiter."""

    async def run():
        async with limiter:
            await job()

    return run


class AnyIO(Awaited):
    """AnyIO: tasks of a group, a limiter, threads."""

    name = "AnyIO"
    loops = ALL

    def open(self):
        return anyio.create_task_group()

    async def start(self, job, count):
        create = self._opened.create_task
        return [create(job()) for _ in range(count)]

    async def start_handled(self, job, count):
        async def handled():
            await job()
            self._handle()

        await self.start(handled, count)

    def _handle(self):
        pass

    async def start_limited(self, job, count):
        await self.start(held(job, anyio.CapacityLimiter(self.limit)), count)

    async def run_waves(self, job, count):
        for _ in range(count // WAVE):
            async with anyio.create_task_group() as tasks:
                for _ in range(WAVE):
                    tasks.create_task(job())

    async def cancel_all(self):
        self._opened.cancel_scope.cancel()

    async def run_thread(self, call):
        await anyio.to_thread.run_sync(call)

    async def run_threads(self, call, count):
        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(anyio.to_thread.run_sync, call)

    async def start_threads_limited(self, call, count):
        limiter = anyio.CapacityLimiter(self.limit)
        await self.start(partial(anyio.to_thread.run_sync, call, limiter=limiter), count)


class ThreadInTask(Way):
    """The cost of a thread that has an owner: a task waits for it, and the caller for the task."""

    name = "AnyIO, in a task"
    loops = ALL
    open = AnyIO.open

    async def run_thread(self, call):
        await self._opened.create_task(anyio.to_thread.run_sync(call))


class HandlingNode(Node):
    def on_worker_state_changed(self, event):
        pass


class Creche(Awaited):
    """Workers of a node."""

    name = "Creche"
    loops = ALL

    def open(self):
        return Node("bench")

    async def start(self, job, count):
        run = self._opened.run_worker
        return [run(job) for _ in range(count)]

    async def start_handled(self, job, count):
        async with HandlingNode("handling") as node:
            for _ in range(count):
                node.run_worker(job)

    async def start_limited(self, job, count):
        group = self._opened.group("limited", self.limit)
        for _ in range(count):
            group.run_worker(job)

    async def run_waves(self, job, count):
        for _ in range(count // WAVE):
            await self._opened.workers.wait_for_complete(await self.start(job, WAVE))

    async def start_others(self, job, count):
        for number in range(count):
            self._opened.run_worker(job, group=f"other {number}")

    async def replace(self, job):
        self._opened.run_worker(job, group="search", exclusive=True)

    async def cancel_all(self):
        self._opened.cancel()

    async def cancel_group(self):
        self._opened.group("default").cancel()

    async def run_thread(self, call):
        await self._opened.run_worker(call, thread=True)

    async def run_threads(self, call, count):
        workers = [self._opened.run_worker(call, thread=True) for _ in range(count)]
        await self._opened.workers.wait_for_complete(workers)

    async def start_threads_limited(self, call, count):
        group = self._opened.group("limited", self.limit)
        for _ in range(count):
            group.run_worker(call, thread=True)

    async def advance(self, count):
        async def job():
            advance = creche.get_current_worker().advance
            for _ in range(count):
                advance()

        await self._opened.run_worker(job)


class Unwatched(Way):
    """Workers of a node that nothing watches. The subclasses watch it, each in another way."""

    name = "Creche, unwatched"
    loops = ALL

    async def __aenter__(self):
        self._node = Node("bench")
        self._around = AsyncExitStack()
        await self.watch(self._around)
        await self._node.__aenter__()
        return self

    async def __aexit__(self, *raised):
        async with self._around:
            return await self._node.__aexit__(*raised)

    async def watch(self, around):
        """Start to watch, and let the stack stop it."""

    async def start_watched(self, job, count):
        for _ in range(count):
            self._node.run_worker(job)


class Subscribed(Unwatched):
    name = "Creche, 1 subscriber"
    subscribers = 1

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
    name = "Creche, 10 subscribers"
    subscribers = 10


class OnBoard(Unwatched):
    name = "Creche, live board"

    async def watch(self, around):
        console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
        await around.enter_async_context(live_board(self._node, console=console))


class Recorded(Unwatched):
    name = "Creche, recorded"

    async def watch(self, around):
        await around.enter_async_context(record(self._node))


class PlainApp(App):
    pass


class HandlingApp(App):
    ended = 0

    def on_worker_state_changed(self, event):
        self.ended += event.state is textual.worker.WorkerState.SUCCESS


class InApp(Way):
    """Textual's own workers, in an app without a terminal."""

    name = "Textual"
    app: type[App]

    @classmethod
    @asynccontextmanager
    async def host(cls):
        cls._app = cls.app()
        async with cls._app.run_test():
            yield


class TextualHandled(InApp):
    app = HandlingApp

    async def start_handled(self, job, count):
        due = self._app.ended + count
        for _ in range(count):
            self._app.run_worker(job)
        while self._app.ended < due:  # noqa: ASYNC110 (an event would cost more)
            await asyncio.sleep(0)


class Textual(InApp):
    app = PlainApp

    async def __aexit__(self, *raised):
        # Textual's wait_for_complete() creates a task for each worker.
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

    async def run_thread(self, call):
        await self._app.run_worker(call, thread=True).wait()

    async def run_threads(self, call, count):
        workers = [self._app.run_worker(call, thread=True) for _ in range(count)]
        await self._app.workers.wait_for_complete(workers)

    async def advance(self, count):
        async def job():
            advance = textual.worker.get_current_worker().advance
            for _ in range(count):
                advance()

        await self._app.run_worker(job).wait()


class Aiojobs(Way):
    """aiojobs: a scheduler, with its own limit."""

    name = "aiojobs"

    async def __aenter__(self):
        # Without timeouts: by default it gives up after 0.1 s and does not wait for the rest.
        self._scheduler = Scheduler(
            close_timeout=None, limit=self.limit, pending_limit=0, wait_timeout=None
        )
        return self

    async def __aexit__(self, *raised):
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


WAYS = (
    *(Raw, RawTrio, AnyIO, ThreadInTask, Creche),
    *(Unwatched, Subscribed, TenSubscribed, OnBoard, Recorded),
    *(Textual, TextualHandled, Aiojobs),
)
