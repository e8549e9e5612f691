"""No frame that an error went through keeps what it knew: see the comment on frames in ``errors``.

Each test fails where one of the places that lead to that comment does not let go. The collector is
off: what goes, goes by itself.
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
    """What work, bodies and handlers raise."""


class Stop(BaseException):
    """What leaves a block bare."""


class Kept:
    """What has to go, and whether it has."""

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
        with anyio.fail_after(RENDEZVOUS):  # threads go back to their pool in their own time
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


# what a worker raises


class Awaitable:
    """Work that is a plain function."""

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
    """Have a worker fail, and let go of it."""
    worker = app.run_worker(work, exit_on_error=False, **options)
    await app.workers.wait_for_complete([worker])
    assert worker.state is ERROR
    kept.watch(worker)
    kept.watch(worker.error)


@pytest.mark.parametrize("place", ["a runner", "a task of its own"])
@pytest.mark.parametrize("way", [at_once, later, plainly, Awaitable])
async def test_worker_that_fails_is_no_cycle(kept, way, place):
    """In whatever task, and whether its work was a coroutine or not."""
    async with Node("app") as app:
        for _ in range(MOST + 1 if place == "a task of its own" else 0):
            app.run_worker(anyio.sleep_forever, daemon=True)
        await settle()
        work = Awaitable(kept) if way is Awaitable else partial(way, kept)
        await run_until_it_fails(app, kept, work)
        del work
        await kept.check(3)


async def test_worker_that_fails_by_another_is_no_cycle(kept):
    """Neither the one that failed nor the one that waited for it is kept by the wait."""
    async with Node("app") as app:
        await run_until_it_fails(app, kept, partial(by_another, app, kept))
        await kept.check(3)


@pytest.mark.usefixtures("on_asyncio")
@pytest.mark.parametrize("way", [later, plainly])
async def test_worker_that_fails_in_a_thread_is_no_cycle(kept, way):
    """Neither a call in a thread, nor a loop in it, keeps what it was made for."""
    async with Node("app") as app:
        await run_until_it_fails(app, kept, partial(way, kept), thread=True)
        await kept.check(3)


@pytest.mark.usefixtures("on_asyncio")
async def test_thread_that_lets_its_cancellation_out_is_no_cycle(kept):
    """The error by which it said so goes, as nobody keeps it."""

    def work(app):
        anyio.from_thread.run_sync(app.workers.cancel_all)
        raise kept.make(WorkerCancelled)

    async with Node("app") as app:
        app.run_worker(partial(work, app), thread=True)
    await kept.check(1)


@pytest.mark.usefixtures("on_asyncio")
@pytest.mark.parametrize("way", ["work", "a group", "a message", "a call"])
async def test_worker_that_fails_with_a_refusal_is_no_cycle(kept, way):
    """What asked in the thread of a worker knew that worker."""

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
    """Neither the thread that called nor the loop keeps what the call has raised."""

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
    """The frames of the call on the loop know the worker that made it."""

    def call(app):
        app.call_from_thread(way, kept)

    async with Node("app") as app:
        await run_until_it_fails(app, kept, partial(call, app), thread=True)
        await kept.check(3)


async def test_call_of_a_superseded_thread_is_no_cycle(kept):
    """The thread learns that it was cancelled by an error that goes with it."""

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
    """Neither its error nor the message is kept by the task of the handlers."""

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
    """A worker may raise what a handler has kept, while the task of the handlers waits."""

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


# what leaves a block


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
    """No step of the end of the block keeps what it was ended by."""

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
