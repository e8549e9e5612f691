"""Errors leave no reference cycles in frames: see the comment on frames in ``errors``.

Each test fails if one of the places that refer to that comment keeps its reference. The garbage
collector is off, so objects have to be freed by reference counting alone.
"""

from __future__ import annotations

import weakref
from functools import partial

import anyio
import pytest
from anyio import lowlevel

from creche import Message, Node, WorkerCancelled
from creche._running.runner import MOST
from creche.testing._leaks import busy_threads
from helpers import (
    ERROR,
    RENDEZVOUS,
    BaseExceptionGroup,
    leaves,
    let_threads_free,
    no_collection,
    settle,
)


class Boom(Exception):
    """The error that work, bodies and handlers raise."""


class Stop(BaseException):
    """An error that leaves a block without an exception group."""


class Kept:
    """Records objects that must be freed, and checks that they are."""

    def __init__(self):
        self.references = []
        self.threads = set(busy_threads())

    def make(self, kind=Boom):
        error = kind()
        self.watch(error)
        return error

    def watch(self, thing):
        self.references.append(weakref.ref(thing))

    async def check(self, count):
        with anyio.fail_after(RENDEZVOUS):  # threads take a while to return to their pool
            while busy_threads().keys() - self.threads:
                await settle()
        await settle()
        await let_threads_free()
        assert [each() for each in self.references] == [None] * count


@pytest.fixture
def kept():
    with no_collection():
        yield Kept()


@pytest.fixture
def on_asyncio(anyio_backend):
    if anyio_backend[0] == "trio":
        pytest.skip("frames of AnyIO and Trio keep a thread that raises, until the collector runs")


# errors of workers


class Awaitable:
    """Work that is an awaitable, but not a coroutine."""

    def __init__(self, kept):
        self.kept = kept

    def __await__(self):
        yield from lowlevel.checkpoint().__await__()
        raise self.kept.make()


async def at_once(kept):
    raise kept.make()


async def later(kept):
    await lowlevel.checkpoint()
    raise kept.make()


def plainly(kept):
    raise kept.make()


async def by_another(app, kept):
    await app.run_worker(partial(later, kept), exit_on_error=False)


async def run_until_it_fails(app, kept, work, **options):
    """Run a worker until it fails, and keep no reference to it."""
    worker = app.run_worker(work, exit_on_error=False, **options)
    await app.workers.wait_for_complete([worker])
    assert worker.state is ERROR
    kept.watch(worker)
    kept.watch(worker.error)


@pytest.mark.parametrize("place", ["a runner", "a task of its own"])
@pytest.mark.parametrize("way", [at_once, later, plainly, Awaitable])
async def test_worker_that_fails_is_no_cycle(kept, way, place):
    """A worker that fails is freed, whichever task and kind of work it had."""
    async with Node("app") as app:
        for _ in range(MOST + 1 if place == "a task of its own" else 0):
            app.run_worker(anyio.sleep_forever, daemon=True)
        await settle()
        work = Awaitable(kept) if way is Awaitable else partial(way, kept)
        await run_until_it_fails(app, kept, work)
        del work
        await kept.check(3)


async def test_worker_that_fails_by_another_is_no_cycle(kept):
    """A worker that fails because it waited for a failed worker is freed, and so is the other."""
    async with Node("app") as app:
        await run_until_it_fails(app, kept, partial(by_another, app, kept))
        await kept.check(3)


@pytest.mark.usefixtures("on_asyncio")
@pytest.mark.parametrize("way", [later, plainly])
async def test_worker_that_fails_in_a_thread_is_no_cycle(kept, way):
    """A worker that fails in a thread is freed, whether its work is plain or async."""
    async with Node("app") as app:
        await run_until_it_fails(app, kept, partial(way, kept), thread=True)
        await kept.check(3)


@pytest.mark.usefixtures("on_asyncio")
async def test_thread_that_lets_its_cancellation_out_is_no_cycle(kept):
    """A WorkerCancelled that a thread lets propagate is freed."""

    def work(app):
        anyio.from_thread.run_sync(app.workers.cancel_all)
        raise kept.make(WorkerCancelled)

    async with Node("app") as app:
        app.run_worker(partial(work, app), thread=True)
    await kept.check(1)


@pytest.mark.usefixtures("on_asyncio")
@pytest.mark.parametrize("way", ["work", "a group", "a message", "a call"])
async def test_worker_that_fails_with_a_refusal_is_no_cycle(kept, way):
    """A worker that fails because a call in its thread was refused is freed."""

    def ask(page, spec):
        if way == "work":
            page.run_worker(settle)
        elif way == "a group":
            spec.group("g", limit=2)
        elif way == "a message":
            page.post_message(5)
        else:
            page.call_from_thread(list)

    async with Node("app") as app:
        app.group("g", limit=1)
        page = await app.mount(Node("page"))
        await page.remove()
        await run_until_it_fails(app, kept, partial(ask, page, app), thread=True)
        await kept.check(2)


@pytest.mark.parametrize("way", [at_once, later, plainly, "asked"])
async def test_error_of_a_call_from_a_thread_is_no_cycle(kept, way):
    """An error raised by a call from a thread is kept by neither the thread nor the event loop."""

    def call(app):
        try:
            if way == "asked":
                app._creche_bridge.call(partial(plainly, kept))
            else:
                app.call_from_thread(way, kept)
        except Boom:
            pass

    async with Node("app") as app:
        await app.run_worker(partial(call, app), thread=True)
        await kept.check(1)


@pytest.mark.usefixtures("on_asyncio")
@pytest.mark.parametrize("way", [at_once, later, plainly])
async def test_worker_that_fails_by_its_call_to_the_loop_is_no_cycle(kept, way):
    """A worker that fails because its call to the event loop raises is freed."""

    def call(app):
        app.call_from_thread(way, kept)

    async with Node("app") as app:
        await run_until_it_fails(app, kept, partial(call, app), thread=True)
        await kept.check(3)


async def test_call_of_a_superseded_thread_is_no_cycle(kept):
    """The WorkerCancelled that a cancelled thread gets from its calls is freed."""

    def call(app):
        anyio.from_thread.run_sync(app.workers.cancel_all)
        for ask in (partial(app.run_worker, settle), partial(app.call_from_thread, list)):
            try:
                ask()
            except WorkerCancelled as error:
                kept.watch(error)

    async with Node("app") as app:
        app.run_worker(partial(call, app), thread=True)
    await kept.check(2)


async def test_handler_that_fails_is_no_cycle(kept):
    """The task that runs the handlers keeps neither the error of a handler nor its message."""

    class Note(Message):
        pass

    class App(Node):
        async def on_note(self, _note):
            await lowlevel.checkpoint()
            raise kept.make()

    try:
        async with App("app") as app:
            note = Note()
            kept.watch(note)
            app.post_message(note)
            del note
            await anyio.sleep_forever()
    except BaseExceptionGroup as group:
        assert [type(leaf) for leaf in leaves(group)] == [Boom]
    await kept.check(2)


async def test_older_error_ends_no_handler():
    """A worker that raises an error caught by an earlier handler does not end a waiting handler."""

    class Note(Message):
        pass

    class Wait(Message):
        pass

    class App(Node):
        def on_note(self, _note):
            try:
                raise Boom
            except Boom as error:
                self.older = error

        async def on_wait(self, _wait):
            waits.set()
            await release.wait()
            self.is_done = True

    waits, release = anyio.Event(), anyio.Event()

    async def raise_older():
        raise app.older

    async with App("app") as app:
        app.post_message(Note())
        app.post_message(Wait())
        await waits.wait()
        await app.workers.wait_for_complete([app.run_worker(raise_older, exit_on_error=False)])
        release.set()
    assert app.is_done


# errors that leave a block


async def live(kept, way, scope):
    async with Node("app") as app:
        app.run_worker(anyio.sleep_forever)
        await settle()
        if way.startswith("the body"):
            raise kept.make(Stop if "bare" in way else Boom)
        if way.startswith("a worker"):
            app.run_worker(partial(stop if "bare" in way else at_once, kept))
        elif way == "a child":
            child = await app.mount(Node("child"))
            child.run_worker(partial(at_once, kept))
        elif way == "a child that does not open":
            await app.mount(Closed(kept))
        elif way == "a cancellation":
            scope.cancel()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class() as cancellation:
            if way == "a cancellation":
                kept.watch(cancellation)
            raise


async def stop(kept):
    raise kept.make(Stop)


class Closed(Node):
    """A node that cannot be opened."""

    def __init__(self, kept):
        super().__init__("closed")
        self.kept = kept

    async def __aenter__(self):
        raise self.kept.make()


@pytest.mark.parametrize(
    "way",
    [
        *("the body", "the body, bare", "a worker", "a worker, bare"),
        *("a child", "a child that does not open", "a cancellation"),
    ],
)
async def test_what_leaves_a_block_is_no_cycle(kept, way):
    """The error or cancellation that ended a block is freed."""

    async def host():
        with anyio.CancelScope() as scope:
            try:
                await live(kept, way, scope)
            except (Boom, Stop) as error:
                assert "bare" in way or isinstance(error, Boom)
            except BaseExceptionGroup as group:
                assert [type(leaf) for leaf in leaves(group)] == [Boom]

    async with anyio.create_task_group() as group:
        group.start_soon(host)
    await kept.check(1)
