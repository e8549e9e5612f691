"""Blocks that do not end: how they report what holds them up, and streams that end in time."""

from __future__ import annotations

import importlib.util
import logging
from functools import partial

import anyio
import pytest

from creche import Message, Node, ShutdownTimeout, WorkerError
from creche.testing import virtual_time
from helpers import CANCELLED, RENDEZVOUS, SUCCESS, ExceptionGroup, Meeting, settle

HAS_STACKSCOPE = importlib.util.find_spec("stackscope") is not None


@pytest.fixture(params=sorted(anyio.get_available_backends()))
def run(request):
    """Run a program with a clock that skips all waiting."""
    with virtual_time(request.param) as (name, options):
        yield partial(anyio.run, backend=name, backend_options=options)


async def be_deaf(seconds):
    """Ignore cancellation for some seconds."""
    with anyio.CancelScope(shield=True):
        await anyio.sleep(seconds)


def warnings_of(caplog):
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


# The deadline of a shutdown.


def test_a_shutdown_that_meets_its_deadline(run):
    """A shutdown that meets its deadline raises nothing and waits no longer than the work takes."""

    async def main():
        async with Node("app") as app:
            worker = app.run_worker(partial(be_deaf, 5))
            await settle()
            start = anyio.current_time()
            await app.shutdown(grace=1, deadline=60)
            assert anyio.current_time() - start == pytest.approx(5)
            assert worker.state is CANCELLED

    run(main)


def test_a_shutdown_that_does_not(run):
    """ShutdownTimeout names what is left, since when, why and where; the node waits on."""

    async def main():
        async with Node("app") as app, Node("page", parent=app) as page:
            app.run_worker(anyio.sleep_forever)
            worker = page.run_worker(partial(be_deaf, 30), name="deaf", group="odd")
            await settle()
            start = anyio.current_time()
            with pytest.raises(ShutdownTimeout) as caught:
                await app.shutdown(grace=1, deadline=4)
            assert anyio.current_time() - start == pytest.approx(5)
            assert caught.value.workers == (worker,)
            told = str(caught.value)
            assert told.startswith(
                "node 'app' has not ended 4 s after its grace; what is left goes on"
            )
            assert "worker app/page/odd/deaf: RUNNING for 5.0 s, cancelled 4.0 s ago" in told
            assert "(shut down)" in told
            assert not HAS_STACKSCOPE or "in be_deaf() at " in told
        assert anyio.current_time() - start == pytest.approx(30)
        assert worker.state is CANCELLED

    run(main)


async def test_a_thread_is_named_as_one():
    """ShutdownTimeout says that a thread cannot be stopped."""
    meeting = Meeting()
    async with Node("app") as app:
        worker = app.run_worker(meeting, thread=True, name="deaf")
        await meeting.until_arrived()
        with pytest.raises(ShutdownTimeout, match="in a thread, which cannot be stopped") as caught:
            await app.shutdown(deadline=1e-3)
        assert caught.value.workers == (worker,)
        meeting.go.set()


def test_many_are_not_all_named(run):
    """The text of ShutdownTimeout names some workers and counts the rest; ``workers`` has all."""

    async def main():
        async with Node("app") as app:
            for _ in range(50):
                app.run_worker(partial(be_deaf, 30))
            await settle()
            with pytest.raises(ShutdownTimeout, match=r"\nand 30 more$") as caught:
                await app.shutdown(deadline=1)
            assert len(caught.value.workers) == 50
            assert str(caught.value).count("\n") == 21

    run(main)


@pytest.mark.parametrize("deadline", [0, -1, "5", True])
async def test_what_is_no_deadline(deadline):
    """An invalid deadline is refused, and the node stays open."""
    async with Node("app") as app:
        with pytest.raises(WorkerError, match="deadline must be seconds, more than 0"):
            await app.shutdown(deadline=deadline)
        await app.run_worker(settle).wait()


@pytest.mark.parametrize("what", ["find_calls", "find_stack"])
@pytest.mark.parametrize("fault", [ImportError, RecursionError])
def test_where_no_stack_can_be_read(run, monkeypatch, what, fault):
    """If a stack cannot be read, ShutdownTimeout reports everything but the place."""

    def absent(*_):
        raise fault

    monkeypatch.setattr(f"creche._running.stacks.{what}", absent)

    async def main():
        async with Node("app") as app:
            app.run_worker(partial(be_deaf, 30))
            await settle()
            with pytest.raises(ShutdownTimeout) as caught:
                await app.shutdown(deadline=1)
            assert "cancelled 1.0 s ago" in str(caught.value)
            assert "be_deaf()" not in str(caught.value)

    run(main)


# The warning of a block that waits.


@pytest.mark.parametrize("way", ["cancelled", "failed", "shut down"])
def test_a_block_that_waits_says_so(run, caplog, way):
    """A waiting block logs which work it waits for and why, after 10, 30 and 70 seconds."""
    caplog.set_level(logging.WARNING, "creche")

    async def main():
        async with Node("app") as app:
            app.run_worker(partial(be_deaf, 71), name="deaf")
            await settle()
            if way == "cancelled":
                app.cancel("enough")
            elif way == "failed":
                raise OSError("body")
            else:
                await app.shutdown()

    if way == "failed":
        with pytest.raises(ExceptionGroup):
            run(main)
    else:
        run(main)
    told = warnings_of(caplog)
    assert len(told) == 3
    assert told[0].startswith("node 'app' waits for work that was cancelled and has not ended:\n")
    for text, seconds in zip(told, ("10.0", "30.0", "70.0"), strict=True):
        assert (
            f"worker app/default/deaf: RUNNING for {seconds} s, cancelled {seconds} s ago" in text
        )


@pytest.mark.parametrize("is_mounted", [False, True])
def test_each_block_tells_of_its_own(run, caplog, is_mounted):
    """Only the lowest node that waits logs a warning, and its ancestors do not."""

    async def fill(page):
        page.run_worker(partial(be_deaf, 15), name="deaf")
        await settle()
        page.parent.cancel()

    async def main():
        async with Node("app") as app:
            if is_mounted:
                await fill(await app.mount(Node("page")))
            else:
                async with Node("page", parent=app) as page:
                    await fill(page)

    run(main)
    (told,) = warnings_of(caplog)
    assert told.startswith("node 'app/page' waits")


def test_a_handler_is_named_too(run, caplog):
    """A handler that holds up the end is reported, although it is not a worker."""

    class Handling(Node):
        async def on_note(self, event):
            await be_deaf(15)

    async def main():
        async with Handling("app") as app:
            app.post_message(Note())
            await settle()
            app.cancel()

    run(main)
    (told,) = warnings_of(caplog)
    assert "  task " in told


def test_work_that_was_not_cancelled_may_take_its_time(run, caplog):
    """A block that waits for uncancelled work logs nothing."""

    async def main():
        async with Node("app") as app:
            app.run_worker(partial(anyio.sleep, 3600))

    run(main)
    assert warnings_of(caplog) == []


# Streams that end when a node accepts no more work.


class Note(Message):
    pass


@pytest.mark.parametrize("way", ["shut down", "cancelled", "cancelled above"])
async def test_a_stream_until_closing(way):
    """A worker that reads a stream until ``"closing"`` does not keep its node open."""
    async with Node("above") as above, Node("app", parent=above) as app:

        async def read():
            async with app.subscribe(Note, until="closing") as notes:
                return [note async for note in notes]

        worker = app.run_worker(read)
        note = Note()
        await settle()
        app.post_message(note)
        await settle()
        if way == "shut down":
            await app.shutdown(grace=RENDEZVOUS)
            assert worker.result == [note]
        else:
            (app if way == "cancelled" else above).cancel()
    assert worker.state is (SUCCESS if way == "shut down" else CANCELLED)


async def test_a_stream_until_closing_that_is_opened_too_late():
    """After shutdown(), a stream until ``"closing"`` has ended; one until ``"closed"`` has not."""
    async with Node("app") as app:
        await app.shutdown()
        async with (
            app.subscribe(Note, until="closing") as closing,
            app.subscribe(Note, until="closed") as closed,
        ):
            app.post_message(Note())
            await settle()
            assert [type(note) for note in closing.take_all()] in ([], [Note])
            assert [note async for note in closing] == []
            assert len(closed.take_all()) == 1


async def test_a_word_that_is_not_known():
    """An unknown value of ``until`` is refused at the call."""
    with pytest.raises(WorkerError, match='until must be "closed" or "closing", not'):
        Node("app").subscribe(Note, until="soon")
