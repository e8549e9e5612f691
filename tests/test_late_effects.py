"""Calls of threads on nodes: none takes effect late or half-way, and each gets an answer."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future

import anyio
import pytest

import creche._ground.bridge
import creche._running.thread
from creche import Message, Node, Worker, WorkerCancelled, WorkerError, get_current_worker
from creche._ground.bridge import Bridge, await_answer
from helpers import (
    CANCELLED,
    ERROR,
    PENDING,
    RENDEZVOUS,
    ExceptionGroup,
    Listener,
    Meeting,
    leaves,
    run_python,
    settle,
    until,
)


class Found(Message):
    pass


class Shown(Node):
    """A node that keeps the messages that its handlers receive."""

    def __init__(self, name):
        super().__init__(name)
        self.shown = []

    def on_found(self, message):
        self.shown.append(message)


ACTS = {
    "post_message": lambda app: app.post_message(Found()),
    "run_worker": lambda app: app.run_worker(settle, name="late"),
    "run_worker of a group": lambda app: app.group("late").run_worker(settle, name="late"),
    "add_worker": lambda app: app.workers.add_worker(Worker(app, settle, name="late")),
    "start_all": lambda app: app.workers.start_all(),
    "group": lambda app: app.group("late", limit=2),
    "limit": lambda app: setattr(app.group("there"), "limit", 5),
    "call_from_thread": lambda app: app.call_from_thread(app.shown.append, "late"),
    "mount": lambda app: app.call_from_thread(app.mount, Node("late")),
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("kind", ["plain", "own loop", "abandoned"])
async def test_nothing_that_a_cancelled_thread_does_takes_effect(act, kind):
    """A call of a cancelled thread on its node is refused; the check and the call are one step."""
    meeting, got = Meeting(), []

    def job():
        meeting()
        try:
            got.append(ACTS[act](app))
        except WorkerCancelled as error:
            got.append(error)
            raise

    async def on_own_loop():
        job()

    async with Shown("app") as app:
        app.group("there", limit=1)
        waiting = app.run_worker(settle, name="waiting", start=False)
        options = {"thread": True, "abandon_on_cancel": kind == "abandoned"}
        worker = await app.start_worker(on_own_loop if kind == "own loop" else job, **options)
        await meeting.until_arrived()
        worker.cancel("superseded")
        meeting.go.set()
        await until(lambda: got and not worker.is_abandoned and worker.is_finished)
        assert worker.state is CANCELLED
        assert waiting.state is PENDING
        assert isinstance(got[0], WorkerCancelled)
        assert str(got[0]) == f"worker {worker.name!r} was cancelled: superseded"
        assert app.shown == []
        assert app.children == ()
        assert app.group("there").limit == 1
        assert [each.name for each in app.workers] == ["waiting"]


async def test_a_message_that_was_on_its_way_as_its_thread_was_cancelled():
    """A message that was on its way when its thread was cancelled is dropped on arrival."""
    before, posted, after = Meeting(), threading.Event(), Meeting()

    def job():
        before()
        assert app.post_message(Found())
        posted.set()
        after()

    async with Shown("app") as app:
        worker = await app.start_worker(job, thread=True)
        await before.until_arrived()
        before.go.set()
        assert posted.wait(RENDEZVOUS)  # blocks the loop, so that the message has to wait
        worker.cancel()
        after.go.set()
    assert app.shown == []


async def test_a_message_of_a_thread_that_has_ended_is_delivered():
    """Cancelling a worker after its end changes nothing, and the message it posted is delivered."""
    async with Shown("app") as app:
        worker = app.run_worker(lambda: app.post_message(Found()), thread=True)
        assert await worker
        worker.cancel()
    assert len(app.shown) == 1


async def test_the_tree_read_from_a_thread_while_it_changes():
    """Reading children, groups and workers raises nothing in any thread."""
    over, counts = threading.Event(), []

    def read():
        seen = 0
        while not over.is_set():
            app.children  # noqa: B018 (it must not raise)
            for group in app.groups:
                names = [worker.name for worker in group]
                assert len(names) == len(set(names)), "one worker was given twice"
            seen += sum(1 for _ in app.workers) + len(app.workers) + bool(app.workers)
            repr(app.workers)
        counts.append(seen)

    async with Node("app") as app:
        group = app.group("some", limit=2)
        reading = threading.Thread(target=read)
        reading.start()
        try:
            for n in range(30):
                panel = await app.mount(Node(str(n)))
                for m in range(20):
                    group.run_worker(anyio.lowlevel.checkpoint, name=f"{n}.{m}")
                    app.run_worker(anyio.lowlevel.checkpoint, group=str(m))
                await panel.remove()
                await settle(3)
        finally:
            over.set()
            await anyio.to_thread.run_sync(reading.join)
    assert len(counts) == 1


@pytest.mark.parametrize("limiter", ["semaphore", "number", "other loop"])
@pytest.mark.parametrize("exit_on_error", [False, True])
async def test_a_thread_that_fails_before_its_work_is_entered(
    anyio_backend, limiter, exit_on_error
):
    """A limiter of the wrong type or of another loop makes the worker fail before it starts."""

    async def make():
        other = anyio.CapacityLimiter(1)
        await other.acquire_on_behalf_of(1)
        return other

    def make_elsewhere():
        name = "asyncio" if anyio_backend[0] == "trio" else "trio"
        return anyio.run(make, backend=name)

    if limiter == "other loop":
        pytest.importorskip("trio")
        wrong = await anyio.to_thread.run_sync(make_elsewhere)
    else:
        wrong = anyio.Semaphore(2) if limiter == "semaphore" else 4
    raised = None
    try:
        async with Listener("app") as app:
            worker = app.run_worker(
                lambda: 5, thread=True, limiter=wrong, exit_on_error=exit_on_error
            )
    except ExceptionGroup as group:
        (raised,) = leaves(group)
    assert worker.state is ERROR
    assert app.told_of(worker) == [PENDING, ERROR]
    assert worker.started_at is None
    assert raised is (worker.error if exit_on_error else None)
    if limiter != "other loop":
        assert "must be a CapacityLimiter of AnyIO" in str(worker.error)


FORKED = """
import os, sys, threading
import anyio
import creche
from creche import Node, WorkerError
from creche._core.parts import lock

def forked(app, worker):
    got = []
    for call in (
        lambda: app.run_worker(anyio.sleep(0)),
        lambda: app.run_worker(anyio.sleep_forever, start=False),
        lambda: app.call_from_thread(print),
    ):
        try:
            call()
        except WorkerError as error:
            got.append(str(error))
    assert len(got) == 3, got
    assert "was forked off" in got[0], got
    assert app.post_message(creche.Message()) is False
    worker.cancel()  # touches no loop
    app.cancel()
    app.workers.cancel_all()
    assert worker.cancelled_event.is_set()

    async def main():
        async with Node("new") as new:
            assert await new.run_worker(lambda: 5, thread=True) == 5

    anyio.run(main, backend=sys.argv[1])

async def main():
    async with Node("app") as app:
        worker = await app.start_worker(anyio.sleep_forever)

        def hold():
            with lock, app._creche_nursery.bridge._lock:
                held.set()
                go.wait()

        def fork():
            child = os.fork()
            if not child:
                status = 1
                try:
                    forked(app, worker)
                    status = 0
                finally:
                    os._exit(status)
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

        held, go, statuses = threading.Event(), threading.Event(), []
        holding = threading.Thread(target=hold)
        holding.start()
        held.wait()
        try:
            await anyio.to_thread.run_sync(fork)
        finally:
            go.set()
            holding.join()
        assert statuses == [0], statuses
        app.cancel()
        await anyio.lowlevel.checkpoint()

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_child_that_was_forked_off(anyio_backend):
    """A forked child finds no lock held and no loop of its parent, and can run its own loop."""
    name, _ = anyio_backend
    done = run_python(FORKED, name, warnings="ignore")
    assert done.returncode == 0, done.stderr


def test_a_call_to_a_loop_that_is_closed_under_it(backend, monkeypatch):
    """A thread does not wait forever for an answer if the event loop is closed."""
    monkeypatch.setattr(creche._ground.bridge, "_PATIENCE", 0.001)

    async def get_token():
        return anyio.lowlevel.current_token()

    token = anyio.run(get_token, **backend)
    with pytest.raises(WorkerError, match="the event loop has ended and did not make the call"):
        await_answer(Future(), token)


async def test_a_call_that_raises_a_timeout():
    """A TimeoutError of the call is raised in the thread, and not mistaken for one of the wait."""

    def call():
        raise TimeoutError("of the call")

    def job():
        with pytest.raises(TimeoutError, match="of the call"):
            app.call_from_thread(call)
        return "told"

    async with Node("app") as app:
        assert await app.run_worker(job, thread=True) == "told"


async def test_a_message_that_arrives_after_its_abandoned_worker_has_ended(monkeypatch):
    """A message that passed the check in its thread is dropped by the second check, in the loop."""
    checked, go, done, post = threading.Event(), threading.Event(), [], Bridge.post

    def slow(bridge, call, **options):
        if threading.current_thread() is not threading.main_thread() and not checked.is_set():
            checked.set()
            assert go.wait(RENDEZVOUS)
        return post(bridge, call, **options)

    meeting = Meeting()

    def job():
        meeting()
        done.append(app.post_message(Found()))

    async with Shown("app") as app:
        worker = await app.start_worker(job, thread=True, abandon_on_cancel=True)
        await meeting.until_arrived()
        monkeypatch.setattr(Bridge, "post", slow)
        meeting.go.set()
        await until(checked.is_set)
        worker.cancel("superseded")
        await until(lambda: worker.is_finished)
        go.set()
        await until(lambda: done and not worker.is_abandoned)
    assert worker.state is CANCELLED
    assert app.shown == []


@pytest.mark.parametrize("how", ["AnyIO's", "the worker's"])
async def test_an_abandoned_thread_that_obeys_is_no_failure(how, caplog):
    """An abandoned thread that ends with the cancellation is not logged, whoever raises it."""
    meeting = Meeting()

    def job():
        meeting()
        if how == "AnyIO's":
            anyio.from_thread.check_cancelled()
        get_current_worker().check_cancelled()

    async with Node("app") as app:
        worker = await app.start_worker(job, thread=True, abandon_on_cancel=True)
        await meeting.until_arrived()
        worker.cancel()
        await until(lambda: worker.is_finished)
        meeting.go.set()
        await until(lambda: not worker.is_abandoned)
    assert [each for each in caplog.records if each.name == "creche"] == []


async def test_an_abandoned_thread_calls_what_it_was_given(monkeypatch):
    """A thread that is abandoned between its first step and the call still runs its work."""
    begun, go, called, run = (
        threading.Event(),
        threading.Event(),
        [],
        creche._running.thread.run_soon,
    )

    def slow(token, call):
        done = run(token, call)
        if "_lift_guard" in getattr(call, "__qualname__", ""):
            begun.set()
            assert go.wait(RENDEZVOUS)
        return done

    monkeypatch.setattr(creche._running.thread, "run_soon", slow)
    async with Node("app") as app:
        worker = app.run_worker(lambda: called.append(1), thread=True, abandon_on_cancel=True)
        await until(begun.is_set)
        worker.cancel()
        await until(lambda: worker.is_finished)
        go.set()
        await until(lambda: not worker.is_abandoned)
    assert worker.started_at is not None
    assert called == [1]
