"""What planted faults once got past: each test was written for a kind that no other noticed."""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import anyio
import pytest

from creche import Message, Node
from creche import _life as life
from creche import _record as record
from creche._group import WorkerGroup
from creche._nursery import Nursery
from helpers import (
    CANCELLED,
    ERROR,
    PENDING,
    RENDEZVOUS,
    RUNNING,
    SUCCESS,
    ExceptionGroup,
    settle,
    until,
)

TOLD = ContextVar("told", default="nothing")


@contextmanager
def at_each_change(look):
    """Have a call made in the very step in which a change of state is announced: by the log."""

    class Handler(logging.Handler):
        def emit(self, record):
            if hasattr(record, "creche_state"):
                look(record.creche_worker, record.creche_state)

    logger, handler = logging.getLogger("creche"), Handler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


# The order of the end, which is seen by threads, by logs and by who is next.


async def test_outcome_can_be_read_as_the_end_is_told():
    """The result and the error are there no later than the state that says which of them is."""
    seen, workers = {}, []

    def look(name, state):
        seen[name] = state, [(worker.result, str(worker.error)) for worker in workers]

    async def cook():
        return "soup"

    async def burn():
        raise ValueError("burnt")

    with at_each_change(look):
        async with Node("app") as app:
            workers[:] = [app.run_worker(cook)]
            await settle()
            workers[:] = [app.run_worker(burn, exit_on_error=False)]
    assert seen["cook"] == ("SUCCESS", [("soup", "None")])
    assert seen["burn"] == ("ERROR", [(None, "burnt")])


async def test_no_task_is_made_for_who_waits_behind_a_failure(monkeypatch):
    """The node has failed before the slot of the one that failed it is free."""
    made = []
    spawn = Nursery.spawn

    def noted(self, coro, *, name, context=None):
        made.append(name)
        return spawn(self, coro, name=name, context=context)

    monkeypatch.setattr(Nursery, "spawn", noted)

    async def burn():
        raise ValueError("burnt")

    with pytest.raises(ExceptionGroup):
        async with Node("app") as app:
            group = app.group("one", limit=1)
            group.run_worker(burn)
            after = group.run_worker(anyio.sleep_forever, "after")
            await anyio.sleep_forever()
    assert after.state is CANCELLED
    assert not [name for name in made if name.endswith("/after")]


@pytest.mark.parametrize("at", [PENDING, RUNNING, SUCCESS])
async def test_change_goes_on_whatever_who_hears_of_it_does(at):
    """A fault of who is told of a change fails the node; the change itself is made all the same."""

    def look(_, state):
        if state == at.name:
            raise ZeroDivisionError

    with at_each_change(look), pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            worker = app.run_worker(anyio.lowlevel.checkpoint)
            await anyio.sleep_forever()
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
    assert worker.state is (SUCCESS if at is SUCCESS else CANCELLED)
    assert not app.workers


async def test_end_is_taken_again_after_a_fault_in_its_midst(monkeypatch):
    """A fault in the midst of the end of a worker fails the node, and the worker has ended."""
    left = WorkerGroup._left
    faults = [MemoryError("once")]

    def fail_once(self, worker):
        if faults:
            raise faults.pop()
        left(self, worker)

    monkeypatch.setattr(WorkerGroup, "_left", fail_once)
    holds = None
    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            worker = app.run_worker(anyio.lowlevel.checkpoint)
            with anyio.CancelScope(shield=True):
                await until(lambda: worker.is_finished)
            holds = app._creche_nursery.holds
            worker._let_go()  # if it has not: the test is to end
    assert holds == 0
    assert worker.state is SUCCESS
    assert not app.workers
    assert [str(error) for error in caught.value.exceptions] == ["once"]


async def test_worker_is_cancelled_before_its_event_is_set():
    """A thread that is woken by the event finds its worker cancelled."""
    seen = []

    class Event(threading.Event):
        def set(self):
            seen.append((worker.is_cancelled, worker.cancel_reason))
            super().set()

    async with Node("app") as app:
        worker = app.run_worker(anyio.sleep_forever)
        worker._tied().cancelled = Event()
        worker.cancel("enough")
    assert seen == [(True, "enough")]


async def test_work_that_a_thread_starts_has_the_context_of_the_thread():
    """Work runs in the context variables of the caller, also where that is a thread of nobody's."""
    told = []

    async def tell():
        told.append(TOLD.get())

    async with Node("app") as app:

        def start():
            TOLD.set("thread")
            app.run_worker(tell)

        thread = threading.Thread(target=start)
        thread.start()
        await until(lambda: not thread.is_alive())
    assert told == ["thread"]


# Cancellation from outside, of which only the worker that it reached can tell.


async def test_outer_cancellation_within_the_last_step():
    """Work that returns after an outer cancellation, and never looks, was cancelled by it."""
    with anyio.CancelScope() as scope:
        async with Node("app") as app:

            async def stop():
                scope.cancel()
                return "late"

            worker = app.run_worker(stop)
            await anyio.sleep_forever()
    assert worker.state is CANCELLED
    assert worker.result == "late"
    assert worker.is_cancelled


async def test_outer_cancellation_before_an_error():
    """Work that raises after an outer cancellation is ERROR, and was cancelled all the same."""
    with pytest.raises(ExceptionGroup), anyio.CancelScope() as scope:
        async with Node("app") as app:

            async def fail():
                scope.cancel()
                raise ValueError("after all")

            worker = app.run_worker(fail)
            await anyio.sleep_forever()
    assert worker.state is ERROR
    assert worker.cancel_reason == "cancelled from outside"


# Steps in which a thread may not come between: it would have to wait for the lock.


def is_locked():
    """Whether another thread would have to wait for the lock of the core."""
    free = []

    def look():
        if record.lock.acquire(blocking=False):
            record.lock.release()
            free.append(True)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(RENDEZVOUS)
    return not free


async def test_first_reason_wins_between_threads(monkeypatch):
    """From the look whether a worker was cancelled until it is, nobody else can cancel it."""
    seen = []
    now = Nursery.now
    monkeypatch.setattr(Nursery, "now", lambda self: (seen.append(is_locked()), now(self))[1])
    async with Node("app") as app:
        worker = await app.start_worker(anyio.sleep_forever)
        seen.clear()
        worker.cancel()
        assert seen == [True]


async def test_no_thread_cancels_while_the_state_changes(monkeypatch):
    """From the look whether a change is allowed until it is made, nobody can cancel."""
    seen = []

    class Table(Mapping):
        def __getitem__(self, state):
            seen.append(is_locked())
            return life_table[state]

        def __iter__(self):
            return iter(life_table)

        def __len__(self):
            return len(life_table)

    life_table = life.TRANSITIONS
    monkeypatch.setattr(life, "TRANSITIONS", Table())
    async with Node("app") as app:
        await app.run_worker(anyio.lowlevel.checkpoint)
    assert seen == [True, True]


async def test_rare_parts_are_made_once(monkeypatch):
    """No two threads make the rare parts of a worker: what one puts into its own would be lost."""
    seen = []
    made = record.Ties
    monkeypatch.setattr(record, "Ties", lambda: (seen.append(is_locked()), made())[1])
    async with Node("app") as app:
        worker = app.run_worker(anyio.lowlevel.checkpoint)
        assert worker._tied() is worker._tied()
    assert seen == [True]


async def test_numbers_of_one_update_belong_together():
    """What one update() sets is set in one step, as seen by another thread that updates."""
    seen = []

    class Steps(int):
        def __gt__(self, other):
            seen.append(is_locked())
            return int(self) > other

    async with Node("app") as app:
        worker = app.run_worker(anyio.lowlevel.checkpoint)
        worker.update(1, Steps(3))
        assert (worker.completed_steps, worker.total_steps) == (1, 3)
    assert seen == [True]


async def test_cancel_while_a_thread_begins_its_loop():
    """A thread's loop tells how it is stopped in one step with the look whether it is to stop."""
    seen = []

    class Probe(record.ThreadPart):
        __slots__ = ()

        @property
        def stops(self):
            return record.ThreadPart.stops.__get__(self)

        @stops.setter
        def stops(self, stops):
            if stops:
                seen.append(is_locked())
            record.ThreadPart.stops.__set__(self, stops)

    async with Node("app") as app:
        worker = app.run_worker(anyio.lowlevel.checkpoint, thread=True)
        worker._thread = Probe(None, abandon_on_cancel=False)
    assert worker.state is SUCCESS
    assert seen == [True]


# Signal handlers, which come between any two lines: here where an event is made to be waited for.


class Note(Message):
    """Something to read."""


@contextmanager
def broken_in_upon(function, call):
    """Have a call made as the named function makes its event, and as a signal handler would."""
    made = anyio.Event
    calls = [call]

    def make():
        event = made()
        if calls and sys._getframe(1).f_code.co_name == function:
            calls.pop()()
        return event

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anyio, "Event", make)
        yield
    assert not calls, f"{function} made no event"


async def test_wake_up_for_quiet_is_not_lost():
    """What ends as the wait for it begins is noticed."""
    async with Node("app") as app:
        group = app.group("one", limit=1)
        group.run_worker(anyio.sleep_forever, daemon=True)
        queued = group.run_worker(anyio.sleep_forever)
        with anyio.fail_after(RENDEZVOUS), broken_in_upon("quiet", queued.cancel):
            await app.shutdown(math.inf)
    assert queued.state is CANCELLED


@pytest.mark.parametrize("begun", [False, True])
async def test_wake_up_for_a_worker_is_not_lost(begun):
    """A worker that ends as the wait for its end, or its beginning, begins is noticed."""
    async with Node("app") as app:
        group = app.group("one", limit=1)
        first = group.run_worker(anyio.sleep_forever)

        def cancel():
            (queued,) = (worker for worker in group if worker is not first)
            queued.cancel()

        with anyio.fail_after(RENDEZVOUS), broken_in_upon("_wait_for", cancel):
            if begun:
                await group.start_worker(anyio.sleep_forever)
            else:
                await app.workers.wait_for_complete([group.run_worker(anyio.sleep_forever)])
        first.cancel()


async def test_wake_up_for_a_reader_is_not_lost():
    """A message that comes as the wait for it begins is read."""
    async with Node("app") as app, app.subscribe(Note) as notes:
        note = Note()
        with (
            anyio.fail_after(RENDEZVOUS),
            broken_in_upon("__anext__", lambda: app.post_message(note)),
        ):
            assert await anext(notes) is note


# Tasks that cannot be made.


@contextmanager
def no_task_for(worker):
    """Have no task be made for workers of a name."""
    spawn = Nursery.spawn

    def refuse(self, coro, *, name, context=None):
        if name.endswith(f"/{worker}"):
            coro.close()
            raise MemoryError(worker)
        return spawn(self, coro, name=name, context=context)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Nursery, "spawn", refuse)
        yield


async def test_queued_work_whose_task_cannot_be_made_fails():
    """Nobody waits where a slot becomes free: the worker is ERROR, and fails its node."""
    with no_task_for("second"), pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            group = app.group("one", limit=1)
            first = group.run_worker(anyio.lowlevel.checkpoint, "first")
            second = group.run_worker(anyio.lowlevel.checkpoint, "second")
    assert (first.state, second.state) == (SUCCESS, ERROR)
    assert caught.value.exceptions == (second.error,)
    assert isinstance(second.error, MemoryError)


async def test_refused_work_leaves_no_group():
    """Where the first worker of a group cannot be started, there is no group of it."""
    async with Node("app") as app:
        with no_task_for("worker"), pytest.raises(MemoryError):
            app.run_worker(anyio.lowlevel.checkpoint, "worker")
        assert app.groups == ()


@pytest.mark.parametrize("limit", [None, 1])
async def test_work_that_is_started_later_and_whose_task_cannot_be_made(limit):
    """Who starts it is told; it has ended, and its group knows it no more."""
    async with Node("app") as app:
        group = app.group("any", limit)
        worker = group.run_worker(anyio.lowlevel.checkpoint, "worker", start=False)
        other = group.run_worker(anyio.lowlevel.checkpoint, "other", start=False)
        with no_task_for("worker"), pytest.raises(MemoryError):
            app.workers.start_all()
        assert worker.state is CANCELLED
        assert list(group) == list(app.workers) == [other]
        with anyio.fail_after(RENDEZVOUS):
            await other
