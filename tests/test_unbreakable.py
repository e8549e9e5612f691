"""Regression tests, each written for a kind of planted fault that no other test noticed."""

from __future__ import annotations

import asyncio
import contextlib
import dis
import inspect
import logging
import math
import os
import pickle
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswerYet
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace

import anyio
import pytest

from creche import (
    DeadlockError,
    Message,
    Node,
    Subscription,
    Worker,
    WorkerCancelled,
    WorkerError,
    WorkerFailed,
)
from creche._core import cancelling, moving, parts, snapshot
from creche._core import worker as worker_module
from creche._core.group import WorkerGroup
from creche._ground import bridge as bridge_module
from creche._ground import errors
from creche._ground.backend import get_backend
from creche._ground.bridge import Bridge, await_answer, run_soon
from creche._ground.message import Backlog
from creche._nursery.held import HeldTask
from creche._nursery.nursery import Nursery
from creche._running.runner import Runners
from helpers import (
    CANCELLED,
    ERROR,
    PENDING,
    RENDEZVOUS,
    RUNNING,
    SUCCESS,
    ExceptionGroup,
    Meeting,
    fail,
    leaves,
    settle,
    until,
)

TOLD = ContextVar("told", default="nothing")


@contextmanager
def at_each_change(look):
    """Make a call within the step that announces a change of state, from a log handler."""

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


# The order of the end, as seen by threads, by logs and by the next worker.


async def test_outcome_can_be_read_as_the_end_is_told():
    """The result and the error can be read as soon as the final state can."""
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
    """A failed worker fails its node before its slot is free, so queued work gets no task."""
    made = []
    launch = Runners.launch

    def noted(self, job):
        made.append(job.name)
        return launch(self, job)

    monkeypatch.setattr(Runners, "launch", noted)

    async def burn():
        raise ValueError("burnt")

    with pytest.raises(ExceptionGroup):
        async with Node("app") as app:
            group = app.group("one", limit=1)
            group.run_worker(burn)
            after = group.run_worker(anyio.sleep_forever, "after")
            await anyio.sleep_forever()
    assert after.state is CANCELLED
    assert made == ["burn"]


@pytest.mark.parametrize("at", [PENDING, RUNNING, SUCCESS])
async def test_change_goes_on_whatever_who_hears_of_it_does(monkeypatch, at):
    """A fault in a listener to a change fails the node, but the change is made anyway."""
    put = Subscription._put

    def fail_once(self, event):
        if event.state is at:
            raise ZeroDivisionError
        put(self, event)

    monkeypatch.setattr(Subscription, "_put", fail_once)
    app = Node("app")
    with pytest.raises(ExceptionGroup) as caught:
        async with app.subscribe(Worker.StateChanged), app:
            worker = app.run_worker(anyio.lowlevel.checkpoint)
            await anyio.sleep_forever()
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
    assert worker.state is (SUCCESS if at is SUCCESS else CANCELLED)
    assert not app.workers


@pytest.mark.parametrize("times", [1, 4])
async def test_end_is_taken_again_after_a_fault_in_its_midst(times, monkeypatch):
    """A fault during the end of a worker fails the node, and the worker ends anyway.

    After four faults its task is dead, as it tries each of its two ends twice. It is reaped.
    """
    left = WorkerGroup._left
    faults = [MemoryError(str(number)) for number in range(times)]

    def fail_once(self, worker):
        if faults:
            raise faults.pop(0)
        left(self, worker)

    monkeypatch.setattr(WorkerGroup, "_left", fail_once)
    holds = None
    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            worker = app.run_worker(anyio.lowlevel.checkpoint)
            with anyio.CancelScope(shield=True):
                await until(lambda: worker.is_finished)
                await settle()
            holds = app._creche_nursery.holds
            if holds:
                worker._break_off()  # so that the test ends
    assert holds == 0
    assert worker.state is SUCCESS
    assert not app.workers
    told = [str(error) for error in leaves(caught.value)]
    assert told == ["0"] if times == 1 else "0" in told


async def test_task_that_does_not_let_go_is_found(monkeypatch):
    """A handlers' task that is interrupted twice while it releases its node is reaped."""
    hold_no_more, holds = HeldTask.hold_no_more, None
    faults = [MemoryError("once"), MemoryError("twice")]

    def fail_twice(self):
        if faults:
            raise faults.pop(0)
        hold_no_more(self)

    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            monkeypatch.setattr(HeldTask, "hold_no_more", fail_twice)
            app.post_message(Note())
            with anyio.CancelScope(shield=True):
                await until(lambda: not faults)
                await settle()
            nursery = app._creche_nursery
            holds, nursery.holds = nursery.holds, 0  # so that the test ends
            nursery.held.clear()
    assert holds == 0
    assert "twice" in [str(error) for error in leaves(caught.value)]


async def test_worker_is_cancelled_before_its_event_is_set():
    """A thread that is woken by the event finds its worker cancelled."""
    seen = []

    class Event(threading.Event):
        def set(self):
            seen.append((worker.is_cancelled, worker.cancel_reason))
            super().set()

    async with Node("app") as app:
        worker = app.run_worker(anyio.sleep_forever)
        worker._rare_parts().cancelled = Event()
        worker.cancel("enough")
    assert set(seen) == {(True, "enough")}


async def test_work_that_a_thread_starts_has_the_context_of_the_thread():
    """Work runs in the caller's context variables, even if the caller is a foreign thread."""
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


# Cancellation from outside, which only the worker that it reached can notice.


async def test_outer_cancellation_within_the_last_step():
    """Work that returns after an outer cancellation without a checkpoint counts as cancelled."""
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
    """Work that raises after an outer cancellation is ERROR, and still counts as cancelled."""
    with pytest.raises(ExceptionGroup), anyio.CancelScope() as scope:
        async with Node("app") as app:

            async def fail():
                scope.cancel()
                raise ValueError("after all")

            worker = app.run_worker(fail)
            await anyio.sleep_forever()
    assert worker.state is ERROR
    assert worker.cancel_reason == "cancelled from outside"


# Steps that no other thread can interleave with, because it would have to wait for the lock.


def is_locked():
    """Return whether another thread would have to wait for the lock of the core."""
    free = []

    def look():
        if parts.lock.acquire(blocking=False):
            parts.lock.release()
            free.append(True)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(RENDEZVOUS)
    return not free


async def test_first_reason_wins_between_threads(monkeypatch):
    """The check whether a worker is cancelled and the cancellation itself are one step."""
    seen = []
    now = Nursery.now
    monkeypatch.setattr(Nursery, "now", lambda self: (seen.append(is_locked()), now(self))[1])
    async with Node("app") as app:
        worker = await app.start_worker(anyio.sleep_forever)
        seen.clear()
        worker.cancel()
        assert seen == [True]


def test_state_is_changed_in_one_go():
    """With a GIL, threads switch only at calls and backward jumps, and the change has neither."""
    names = {each.opname for each in dis.get_instructions(moving._change)}
    assert not {name for name in names if "CALL" in name or "BACKWARD" in name}
    assert "STORE_ATTR" in names


async def test_no_thread_cancels_while_the_state_changes(monkeypatch):
    """Without a GIL, no thread can cancel between the check of a change and the change itself."""
    seen = []
    monkeypatch.setattr(moving, "change", moving._change_guarded)

    class Table(Mapping):
        def __getitem__(self, state):
            seen.append(is_locked())
            return life_table[state]

        def __iter__(self):
            return iter(life_table)

        def __len__(self):
            return len(life_table)

    life_table = moving._following
    monkeypatch.setattr(moving, "_following", Table())
    async with Node("app") as app:
        await app.run_worker(anyio.lowlevel.checkpoint)
    assert seen == [True, True]


@pytest.mark.parametrize("has_gil", [True, False])
async def test_steps_are_added_in_one_go(monkeypatch, has_gil):
    """Without a GIL, steps are added under the lock, so that no thread loses one."""
    seen = []

    class Steps(int):
        def __add__(self, other):
            seen.append(is_locked())
            return Steps(int(self) + other)

    monkeypatch.setattr(worker_module, "HAS_GIL", has_gil)
    async with Node("app") as app:
        worker = app.run_worker(settle)
        worker.update(completed_steps=Steps(1))
        worker.advance(2)
        assert worker.completed_steps == 3
    assert seen == [not has_gil]


async def test_rare_parts_are_made_once(monkeypatch):
    """Only one thread creates the rare parts of a worker, or what another put in would be lost."""
    seen = []
    made = parts.RareParts
    monkeypatch.setattr(worker_module, "RareParts", lambda: (seen.append(is_locked()), made())[1])
    async with Node("app") as app:
        worker = app.run_worker(anyio.lowlevel.checkpoint)
        assert worker._rare_parts() is worker._rare_parts()
    assert seen == [True]


async def test_numbers_of_one_update_belong_together():
    """Everything that one update() sets is set in one step, as seen from other threads."""
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
    """A thread's loop registers how to stop it and checks for cancellation in one step."""
    seen = []

    class Probe(parts.ThreadPart):
        __slots__ = ()

        @property
        def stops(self):
            return parts.ThreadPart.stops.__get__(self)

        @stops.setter
        def stops(self, stops):
            if stops:
                seen.append(is_locked())
            parts.ThreadPart.stops.__set__(self, stops)

    async with Node("app") as app:
        worker = app.run_worker(anyio.lowlevel.checkpoint, thread=True)
        worker._thread = Probe()
    assert worker.state is SUCCESS
    assert seen == [True]


# Signal handlers may run between any two lines. Here they run as a wait creates what it waits for.


class Note(Message):
    """Something to read."""


@contextmanager
def broken_in_upon(function, call, node=None):
    """Make a call when the named function creates what it waits for, as a signal handler would."""
    calls = [call]

    def then(make):
        def make_and_call():
            made = make()
            if calls and sys._getframe(1).f_code.co_name == function:
                calls.pop()()
            return made

        return make_and_call

    with pytest.MonkeyPatch.context() as patch:
        event = then(anyio.Event)
        patch.setattr(anyio, "Event", event)
        if node is not None:
            nursery = node._creche_nursery
            patch.setattr(nursery, "new_event", event)
            patch.setattr(nursery.backend, "new_sleep", then(nursery.backend.new_sleep))
        yield
    assert not calls, f"{function} created nothing to wait for"


async def test_wake_up_for_idle_is_not_lost():
    """Work that ends just as the wait for it begins is noticed."""
    async with Node("app") as app:
        group = app.group("one", limit=1)
        group.run_worker(anyio.sleep_forever, daemon=True)
        queued = group.run_worker(anyio.sleep_forever)
        with anyio.fail_after(RENDEZVOUS), broken_in_upon("until_idle", queued.cancel):
            await app.shutdown(math.inf)
    assert queued.state is CANCELLED


@pytest.mark.parametrize("what", ["ended", "begun", "ready"])
async def test_wake_up_for_a_worker_is_not_lost(what):
    """A worker that begins or ends just as the wait for that starts is noticed."""
    async with Node("app") as app:
        group = app.group("one", limit=1)
        first = group.run_worker(anyio.sleep_forever)

        def cancel():
            (queued,) = (worker for worker in group if worker is not first)
            queued.cancel()

        name = {"begun": "until_begun", "ready": "_until_ready"}.get(what, "_wait_for")
        with anyio.fail_after(RENDEZVOUS), broken_in_upon(name, cancel, app):
            if what == "ready":
                with pytest.raises(WorkerCancelled):
                    await group.start_worker(anyio.sleep_forever, ready=True)
            elif what == "begun":
                await group.start_worker(anyio.sleep_forever)
            else:
                await app.workers.wait_for_complete([group.run_worker(anyio.sleep_forever)])
        first.cancel()


async def test_wake_up_for_a_reader_is_not_lost(monkeypatch):
    """A message that arrives just as the wait for it begins is read."""
    async with Node("app") as app, app.subscribe(Note) as notes:
        note, loop, posted = Note(), app._creche_nursery.backend, []
        new_sleep = loop.new_sleep

        def post_in_between():
            sleep = new_sleep()
            if not posted:
                posted.append(app.post_message(note))
            return sleep

        monkeypatch.setattr(loop, "new_sleep", post_in_between)
        with anyio.fail_after(RENDEZVOUS):
            assert await anext(notes) is note
    assert posted == [True]


# Tasks that cannot be made.


@contextmanager
def no_task_for(worker):
    """Make it impossible to create a task for workers of a name."""
    launch = Runners.launch

    def refuse(self, job):
        if job.name == worker:
            raise MemoryError(worker)
        return launch(self, job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runners, "launch", refuse)
        yield


async def test_queued_work_whose_task_cannot_be_made_fails():
    """Queued work for which no task can be created is ERROR, and fails its node."""
    with no_task_for("second"), pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            group = app.group("one", limit=1)
            first = group.run_worker(anyio.lowlevel.checkpoint, "first")
            second = group.run_worker(anyio.lowlevel.checkpoint, "second")
    assert (first.state, second.state) == (SUCCESS, ERROR)
    assert caught.value.exceptions == (second.error,)
    assert isinstance(second.error, MemoryError)


async def test_refused_work_leaves_no_group():
    """If the first worker of a group cannot be started, the group is not created.

    Nor is there an event of the worker, which nobody knows yet.
    """
    async with Node("app") as app, app.subscribe(Worker.StateChanged) as events:
        with no_task_for("worker"), pytest.raises(MemoryError):
            app.run_worker(anyio.lowlevel.checkpoint, "worker")
        assert app.groups == ()
        assert events.take_all() == []


async def test_work_is_started_in_the_order_in_which_it_was_added(monkeypatch):
    """start_all() starts workers one by one in order of creation, not group by group."""
    launch, made = Runners.launch, []

    def noted(self, job):
        made.append(job.name)
        return launch(self, job)

    async with Node("app") as app:
        for name, group in (("a", "one"), ("b", "two"), ("c", "one")):
            app.run_worker(anyio.lowlevel.checkpoint, name, group=group, start=False)
        monkeypatch.setattr(Runners, "launch", noted)
        app.workers.start_all()
    assert made == ["a", "b", "c"]


@pytest.mark.parametrize("limit", [None, 1])
async def test_work_that_is_started_later_and_whose_task_cannot_be_made(limit):
    """If start_all() cannot create a task, it raises, and the worker is CANCELLED and removed."""
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


# Steps of the library that a signal handler must not interrupt, and a loop that sleeps.


@pytest.mark.parametrize("at", [PENDING, RUNNING, SUCCESS, CANCELLED])
async def test_call_that_breaks_into_a_step_waits_for_its_end(at):
    """During a change of state, cancel() only marks its worker; the rest follows later."""
    seen = []

    def look(name, state):
        if (name, state) == ("worker", at.name):
            other.cancel("from within")
            seen.append((other.state, other.is_cancelled))

    async with Node("app") as app:
        group = app.group("one", limit=1)
        first = group.run_worker(anyio.sleep_forever)
        other = group.run_worker(anyio.sleep_forever)
        with at_each_change(look):
            worker = app.run_worker(anyio.lowlevel.checkpoint, "worker")
            if at is CANCELLED:
                worker.cancel()
            await settle()
        assert seen == [(PENDING, True)]
        assert (other.state, other.cancel_reason) == (CANCELLED, "from within")
        first.cancel()


async def test_cancel_acts_at_once_also_after_others():
    """A queued worker is CANCELLED at once, however many steps came before."""
    async with Node("app") as app:
        group = app.group("one", limit=1)
        workers = [group.run_worker(anyio.sleep_forever) for _ in range(4)]
        for worker in reversed(workers):
            worker.cancel()
            assert worker.state is CANCELLED
        assert app._creche_bridge.steps.busy == 0


async def test_what_a_thread_calls_acts_at_once():
    """In a call from a thread, a queued worker is CANCELLED at once, as on the loop."""
    async with Node("app") as app:
        group = app.group("one", limit=1)
        first = group.run_worker(anyio.sleep_forever)
        queued = group.run_worker(anyio.sleep_forever)

        def cancel():
            queued.cancel()
            return queued.state

        caller = app.run_worker(lambda: app.call_from_thread(cancel), thread=True)
        assert await caller is CANCELLED
        first.cancel()


def as_the_loop_sleeps(anyio_backend, call):
    """Make a call in the loop's thread but outside any task, just as the loop goes to sleep."""
    name, options = anyio_backend
    if name == "trio":
        import trio  # noqa: PLC0415 (it is running)

        class Sleep(trio.abc.Instrument):
            def before_io_wait(self, timeout):
                if timeout > 0:
                    trio.lowlevel.remove_instrument(self)
                    call()

        trio.lowlevel.add_instrument(Sleep())
    elif options.get("use_uvloop"):
        pytest.skip("uvloop tells nobody that it goes to sleep")
    else:
        loop = asyncio.get_running_loop()
        selector = loop._selector
        select = selector.select

        def sleep(timeout=None):
            if timeout is None or timeout > 0:
                selector.select = select
                call()
            return select(timeout)

        selector.select = sleep


async def test_cancel_while_the_loop_sleeps_wakes_it(anyio_backend):
    """A cancel() from a signal handler while the loop sleeps wakes the loop."""
    async with Node("app") as app:
        worker = await app.start_worker(anyio.sleep_forever)
        await settle()
        with anyio.fail_after(RENDEZVOUS):
            as_the_loop_sleeps(anyio_backend, worker.cancel)
            await app.workers.wait_for_complete([worker])
    assert worker.state is CANCELLED
    assert worker.finished_at - worker.cancelled_at < RENDEZVOUS / 2  # when all would wake


async def test_post_while_the_loop_sleeps_wakes_a_reader(anyio_backend):
    """A signal handler that posts to a node that is not open wakes those who listen to it."""
    node, told = Node("not open"), []
    async with node.subscribe(Message) as events:
        with anyio.fail_after(RENDEZVOUS):
            as_the_loop_sleeps(anyio_backend, lambda: told.append(node.post_message(Message())))
            began = time.monotonic()
            async for _ in events:
                break
    assert told == [True]
    assert time.monotonic() - began < RENDEZVOUS / 2  # when all would wake


@pytest.mark.parametrize("where", ["node", "tree", "worker"])
async def test_a_thread_wakes_a_reader_through_its_loop(where):
    """A thread that acts on a node which is not open wakes those who listen to it, or above it."""
    async with Node("app") as app:
        child = Node("not open", parent=app)
        worker = child.run_worker(anyio.sleep_forever, start=False)
        kind = Worker.ProgressChanged
        events = {
            "node": lambda: child.subscribe(kind),
            "tree": lambda: app.subscribe(kind, tree=True),
            "worker": lambda: worker.subscribe(kind),
        }[where]()
        async with events:
            thread = threading.Thread(target=worker.advance)
            with anyio.fail_after(RENDEZVOUS):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(events.__anext__)
                    await settle()  # the reader sleeps
                    thread.start()
        thread.join()
    assert worker.completed_steps == 1


async def test_arrival_that_raises(anyio_backend):
    """A posted call that raises has landed, and code outside tasks cannot act after it."""
    landed, acts, over = [], [], anyio.Event()
    token = anyio.lowlevel.current_token()
    bridge = Bridge(lambda: landed.append(bridge.in_flight))
    bridge.open(get_backend(token))
    bridge.post(lambda: 1 // 0)
    await until(lambda: bridge.in_flight == 0)
    assert landed == [0]

    def look():
        acts.append(bridge.can_act())
        run_soon(token, over.set)

    with anyio.fail_after(RENDEZVOUS):
        as_the_loop_sleeps(anyio_backend, look)
        await over.wait()
    assert acts == [False]


def test_answer_of_a_loop_that_has_gone(backend):
    """A thread whose loop is gone gets an error, unless its answer is already there."""

    async def get():
        return anyio.lowlevel.current_token()

    class Never(Future):
        asked = 0

        def result(self, timeout=None):
            self.asked += 1
            if self.asked > 3:
                return "too late"
            raise NoAnswerYet

    gone = anyio.run(get, **backend)
    with pytest.raises(WorkerError, match="the event loop has ended"):
        await_answer(Never(), gone)
    answered = Future()
    bridge_module.fail(answered, TimeoutError("of the call itself"))
    with pytest.raises(TimeoutError, match="of the call itself"):
        await_answer(answered, gone)


async def test_message_that_comes_as_the_handlers_end():
    """A message that a signal handler posts as the last one was handled is handled, too."""

    class App(Node):
        def on_note(self, note):
            handled.append(note)

    class Waiting(Backlog):
        def __bool__(self):
            is_empty = not len(self)
            if is_empty and notes and sys._getframe(1).f_code.co_name == "_run":
                app.post_message(notes.pop())
            return not is_empty

    handled, notes = [], [Note(), Note()]
    every = notes[::-1]
    async with App("app") as app:
        app._creche_mailbox._waiting = Waiting()
        app.post_message(notes.pop())
    assert handled == every


# Blocks: which one waits for which, and blocks that are left in another task or never.


async def test_shutdown_waits_from_below():
    """When shutdown() returns, work that the end of a child started above it has ended, too."""

    class App(Node):
        handled = False

        async def on_note(self, note):
            await settle()
            self.handled = True

    async with App("app") as app, Node("page", parent=app) as page:

        async def report():
            await settle()
            page.post_message(Note())

        page.run_worker(report)
        await app.shutdown(math.inf)
        assert app.handled


async def test_shutdown_by_a_handler():
    """A handler that shuts its node down does not wait for itself."""

    class App(Node):
        is_shut = False

        async def on_note(self, note):
            with anyio.fail_after(RENDEZVOUS):
                await self.shutdown(math.inf)
            self.is_shut = True

    async with App("app") as app:
        app.post_message(Note())
    assert app.is_shut


async def in_task_of_its_own(group, go, *nodes):
    """Enter blocks in a task that runs until it is released, and that leaves none of them."""
    entered, ended = anyio.Event(), anyio.Event()

    async def host():
        for node in nodes:
            await node.__aenter__()
        entered.set()
        await go.wait()
        ended.set()

    group.start_soon(host)
    await entered.wait()
    return ended


@contextmanager
def complaint_of_the_backend():
    """Expect at most the error of AnyIO or Trio for a task that has left a block open."""
    try:
        yield
    except ExceptionGroup as group:
        assert [type(each) for each in leaves(group)] == [RuntimeError]


async def test_error_in_a_block_left_in_another_task():
    """A block left in another task raises its error there, and the first task is not cancelled."""
    app, go, error = Node("app"), anyio.Event(), ValueError("of the body")
    with complaint_of_the_backend():
        async with anyio.create_task_group() as group:
            ended = await in_task_of_its_own(group, go, app)
            worker = app.run_worker(anyio.sleep_forever)
            with pytest.raises(ExceptionGroup) as caught:
                await app.__aexit__(ValueError, error, None)
            told = caught.value.exceptions
            assert told[0] is error
            assert "left in another task" in str(told[1])
            assert worker.state is CANCELLED
            go.set()
    assert ended.is_set()  # and not cancelled


@pytest.mark.parametrize("inner", [False, True])
async def test_block_left_in_another_task_is_no_more_open_in_its_own(inner):
    """If a block is left in another task, the blocks around and inside it report no wrong order."""
    nodes = [Node(name) for name in "abc"[: 3 if inner else 2]]
    for node in nodes:
        await node.__aenter__()
    told = []

    async def leave():
        try:
            await nodes[1].__aexit__(None, None, None)
        except WorkerError as error:
            told.append(str(error))

    async with anyio.create_task_group() as group:
        group.start_soon(leave)
    assert len(told) == 1
    assert "left in another task" in told[0]
    told.clear()
    for node in reversed((nodes[0], *nodes[2:])):
        try:
            await node.__aexit__(None, None, None)
        except (WorkerError, ExceptionGroup) as error:
            told += leaves(error)
    # AnyIO and Trio do report it, because they still have the cancel scope of the block.
    assert not [error for error in told if isinstance(error, WorkerError)]
    assert all(node.is_finished for node in nodes)


async def test_what_an_inner_block_raised_is_told_with_the_wrong_order():
    """An error of a worker in the inner block is not lost if the outer block is left first."""
    app = Node("app")
    page = Node("page", parent=app)

    await app.__aenter__()
    await page.__aenter__()
    worker = page.run_worker(fail(ValueError("of the page")))
    with anyio.CancelScope(shield=True):
        await until(lambda: worker.is_finished)
    with pytest.raises(ExceptionGroup) as caught:
        await app.__aexit__(None, None, None)
    first, second = leaves(caught.value)
    assert first is worker.error
    assert isinstance(second, DeadlockError)


async def test_deserted_node_is_told_of(anyio_backend, caplog):
    """A block that is never left is logged as a mistake of the program."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio itself fails the task that leaves a nursery open")

    async def forget(app):
        await Node("page", parent=app).__aenter__()

    async with Node("app") as app:
        await asyncio.create_task(forget(app))
    (told,) = [record for record in caplog.records if record.name == "creche"]
    assert told.levelname == "WARNING"
    assert told.getMessage() == (
        "node 'app/page' was entered and never left; its work is cancelled"
    )


async def test_watcher_that_was_cancelled_before_its_host_ends(anyio_backend):
    """When the program ends and cancels all tasks, the node's own tasks end with their host."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio has no native cancellation of a task")
    app, entered, go = Node("app"), asyncio.Event(), asyncio.Event()

    async def host():
        await app.__aenter__()
        app.run_worker(anyio.sleep_forever)
        entered.set()
        await go.wait()

    task = asyncio.create_task(host())
    await entered.wait()
    await settle()
    (watcher,) = [
        each for each in asyncio.all_tasks() if each.get_name() == "watcher of node 'app'"
    ]
    watcher.cancel()
    await settle()
    assert not app.is_finished
    go.set()
    await task
    await settle()
    assert app.is_finished


async def test_node_that_can_never_be_opened_takes_no_work():
    """Below a closed node, work that is added without being started is refused, too."""
    app = Node("app")
    page = Node("page", parent=app)
    async with app:
        pass
    with pytest.raises(WorkerError, match="whose parent is closed"):
        page.run_worker(anyio.lowlevel.checkpoint, start=False)
    assert not app.workers


async def test_mounted_while_the_parent_shuts_down():
    """A child that was admitted earlier, but opens only now, admits no work either."""
    refused = []

    class Panel(Node):
        async def __aenter__(self):
            group.start_soon(app.shutdown, math.inf)
            await until(lambda: repr(app) == "<Node 'app' CLOSING>")
            return await super().__aenter__()

    async with Node("app") as app, anyio.create_task_group() as group:
        panel = await app.mount(Panel("panel"))
        try:
            panel.run_worker(anyio.lowlevel.checkpoint)
        except WorkerError as error:
            refused.append(str(error))
    assert len(refused) == 1


# Objects that compare equal, as dataclasses do, but are not identical.


class Same(Node):
    """A node that compares equal to any other."""

    def __eq__(self, other):
        return isinstance(other, Same)

    def __hash__(self):
        return id(self)


class Alike(Worker):
    """A worker that compares equal to any other."""

    def __eq__(self, other):
        return isinstance(other, Alike)

    def __hash__(self):
        return 1


async def test_blocks_of_equal_nodes_in_one_worker():
    """When a block ends, an equal node that its worker still has open stays open."""
    waited = []

    async def wait():
        try:
            with anyio.fail_after(RENDEZVOUS):
                await owner
        except DeadlockError as error:
            waited.append(error)

    async def own():
        async with Same("outer") as outer:
            async with Same("inner"):
                pass
            outer.run_worker(wait)

    async with Node("app") as app:
        owner = app.run_worker(own)
    assert len(waited) == 1


async def test_shutdown_of_an_equal_node():
    """A worker that shuts down another node still holds its own open."""
    async with Same("app") as app:

        async def shut():
            await app.shutdown()
            await settle()

        async with Same("own") as own:
            worker = own.run_worker(shut)
    assert worker.state is SUCCESS


async def test_worker_that_waits_for_an_equal_one():
    """A worker that waits for an equal one does not wait for itself."""
    async with Node("app") as app:

        async def wait():
            await first
            return "waited"

        first = Alike(app, anyio.lowlevel.checkpoint)
        second = Alike(app, wait)
        for worker in (first, second):
            app.workers.add_worker(worker, exclusive=False)
        assert await second == "waited"


async def test_exclusive_worker_supersedes_an_equal_one():
    """An exclusive worker replaces one that equals it."""
    async with Node("app") as app:
        first, second = Alike(app, anyio.sleep_forever), Alike(app, anyio.lowlevel.checkpoint)
        app.workers.add_worker(first)
        app.workers.add_worker(second)
    assert (first.state, second.state) == (CANCELLED, SUCCESS)


async def test_mounting_below_an_equal_node():
    """A child that equals its parent is not the parent."""
    async with Same("app") as app:
        panel = await app.mount(Same("panel"))
        assert panel.path == "app/panel"


async def test_mounting_a_child_of_an_equal_node():
    """A node that equals the parent of another is not its parent, and cannot mount it."""
    async with Same("one") as one, Same("other") as other:
        panel = Node("panel", parent=other)
        with pytest.raises(WorkerError, match="has a parent already"):
            await one.mount(panel)
        await other.mount(panel)
        assert panel.path == "other/panel"


async def test_subscription_outlasts_an_equal_node():
    """The stream of a tree ends with its own node, not with an equal one below."""
    async with Same("app") as app, app.subscribe(Note, tree=True) as notes:
        async with Same("page", parent=app):
            pass
        note, read = Note(), []

        async def reader():
            async for each in notes:
                read.append(each)
                break

        async with anyio.create_task_group() as group:
            group.start_soon(reader)
            await settle()
            app.post_message(note)
        assert read == [note]


# Threads: their requests run on the loop, and are refused once their worker is cancelled.


async def test_snapshot_is_taken_on_the_loop(monkeypatch):
    """A snapshot that a thread asks for is taken on the event loop, between two of its steps."""
    threads = []
    take = snapshot._take_tree

    def noted(*args, **options):
        threads.append(threading.get_ident())
        return take(*args, **options)

    monkeypatch.setattr(snapshot, "_take_tree", noted)
    async with Node("app") as app:
        picture = await anyio.to_thread.run_sync(app.snapshot)
    assert picture.name == "app"
    assert threads == [threading.get_ident()]


class Counting(Node):
    """A node that counts the calls from threads."""

    done = 0

    def on_note(self, note):
        self.done += 1

    async def count(self):
        self.done += 1


WISHES = {
    "post_message": lambda app: app.post_message(Note()),
    "run_worker": lambda app: app.run_worker(app.count),
    "coroutine": lambda app: app.run_worker(app.count()),
    "add_worker": lambda app: app.workers.add_worker(Worker(app, app.count)),
    "call_from_thread": lambda app: app.call_from_thread(app.count),
}


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
async def test_cancelled_thread_asks_in_vain(wish):
    """Every request from the thread of a cancelled worker is refused and has no effect."""
    refused = []
    async with Counting("app") as app:

        def ask():
            assert worker.cancelled_event.wait(RENDEZVOUS)
            try:
                wish(app)
            except WorkerCancelled as error:
                refused.append(error)

        worker = app.run_worker(ask, thread=True)
        await until(lambda: worker.is_running)
        worker.cancel()
    assert len(refused) == 1
    assert app.done == 0


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
async def test_thread_that_is_cancelled_while_it_asks(wish, monkeypatch):
    """A call that is in flight when the worker is cancelled is not made."""
    posted, go = threading.Event(), threading.Event()
    async with Counting("app") as app:

        def ask():
            assert go.wait(RENDEZVOUS)
            wish(app)

        worker = app.run_worker(ask, thread=True)
        await until(lambda: worker.is_running)
        run_soon = bridge_module.run_soon

        def noted(token, call):
            try:
                return run_soon(token, call)
            finally:
                posted.set()

        monkeypatch.setattr(bridge_module, "run_soon", noted)
        go.set()
        assert posted.wait(RENDEZVOUS)  # the loop is kept busy, so the call has not arrived
        worker.cancel()
    assert worker.state is CANCELLED
    assert app.done == 0


async def test_worker_forgets_the_calls_of_its_thread():
    """A thread that makes calls for months does not make its worker grow."""
    async with Counting("app") as app:

        def ask():
            for _ in range(3):
                app.call_from_thread(app.count)
            return app.call_from_thread(lambda: worker._rare_parts().loop_calls)

        worker = app.run_worker(ask, thread=True)
        assert await worker == ()
    assert app.done == 3


async def test_cancellation_that_leaves_a_thread_by_itself(anyio_backend):
    """Work in a thread that raises a cancellation without a request fails."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("on Trio nobody can make a Cancelled")

    def leak():
        raise asyncio.CancelledError

    async with Node("app") as app:
        worker = app.run_worker(leak, thread=True, exit_on_error=False)
    assert worker.state is ERROR
    assert "raised a cancellation that nobody had asked for" in str(worker.error)
    assert not worker.is_cancelled


async def test_async_work_in_a_thread_without_a_loop(monkeypatch):
    """If no loop can be created in the thread, the coroutine is closed."""

    def run(*_, **__):
        raise OSError("no more files")

    async def work():
        raise AssertionError

    monkeypatch.setattr(anyio, "run", run)
    coroutine = work()
    async with Node("app") as app:
        worker = app.run_worker(coroutine, thread=True, exit_on_error=False)
        with pytest.raises(WorkerFailed, match="no more files"):
            await worker
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


async def test_limiter_that_is_none():
    """A limiter of the wrong type is refused, with its name."""
    async with Node("app") as app:
        worker = app.run_worker(len, thread=True, limiter=object(), exit_on_error=False)
    assert isinstance(worker.error, WorkerError)
    assert "the limiter of worker 'len' must be a CapacityLimiter" in str(worker.error)


# Other loops and other processes.


async def test_loop_that_is_a_guest_of_the_loop(anyio_backend):
    """A task of another event loop in the same thread cannot start work."""
    trio = pytest.importorskip("trio")
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio is the guest here")
    loop, over, refused = asyncio.get_running_loop(), asyncio.Event(), []

    async def guest():
        for call in (lambda: app.run_worker(settle), lambda: app.run_worker(settle())):
            try:
                call()
            except WorkerError as error:
                refused.append(str(error))

    async with Node("app") as app:
        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=lambda _: over.set(),
            host_uses_signal_set_wakeup_fd=True,
        )
        await over.wait()
        assert not app.workers
    assert len(refused) == 2
    assert "belongs to another event loop" in refused[0]


def test_bare_callback_of_the_loop_starts_work():
    """A callback that runs in no task, such as that of a protocol, may start work, too."""

    async def main():
        async with Node("app") as app:
            group = app.group("one", limit=1)
            made = asyncio.get_running_loop().create_future()
            threading.Thread(
                target=loop_of_thread(lambda: made.set_result(group.run_worker(settle)))
            ).start()
            worker = await made
        assert worker.state is SUCCESS

    def loop_of_thread(call):
        loop = asyncio.get_running_loop()
        return lambda: loop.call_soon_threadsafe(call)

    asyncio.run(main())


def in_a_child(call):
    """Make a call in a forked process, and return its outcome in words."""
    if not hasattr(os, "fork"):  # pragma: no cover (on Windows)
        pytest.skip("there is no fork")
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads
        child = os.fork()
    if not child:  # pragma: no cover (it exits before coverage is saved)
        try:
            told = repr(call())
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(theirs, told.encode())
        os._exit(0)
    os.close(theirs)
    try:
        if not select.select([ours], [], [], RENDEZVOUS)[0]:
            os.kill(child, signal.SIGKILL)
            return "nothing"
        return os.read(ours, 10_000).decode()
    finally:
        os.waitpid(child, 0)
        os.close(ours)


async def test_forked_child_starts_no_work():
    """The parent's loop does not run in a forked child, so starting work there is an error."""
    async with Node("app") as app:
        for call in (
            lambda: app.run_worker(settle),
            lambda: app.run_worker(settle, start=False),
            lambda: app.group("one", limit=1).run_worker(settle),
        ):
            told = in_a_child(call)
            assert told.startswith("WorkerError: ")
            assert "forked off" in told


async def test_forked_child_changes_nothing():
    """A cancel() in a forked child marks its copy of the worker and leaves the tasks alone."""
    async with Node("app") as app:
        group = app.group("one", limit=1)
        first, queued = [group.run_worker(anyio.sleep_forever) for _ in range(2)]

        def touch():
            queued.cancel()
            return queued.state.name, queued.is_cancelled, app.post_message(Note())

        assert in_a_child(touch) == "('PENDING', True, False)"
        assert not queued.is_cancelled
        first.cancel()
        queued.cancel()


@pytest.mark.parametrize("which", ["core", "bridge"])
async def test_forked_child_of_a_process_whose_thread_held_a_lock(which):
    """A lock held by a thread of the parent does not block the child, which has its own locks."""
    meeting = Meeting()
    async with Node("app") as app:
        worker = await app.start_worker(anyio.sleep_forever)

        def hold():
            with parts.lock if which == "core" else app._creche_bridge._lock:
                meeting()

        def touch():
            worker.cancel()
            return app.post_message(Note())

        thread = threading.Thread(target=hold)
        thread.start()
        await meeting.until_arrived()
        try:
            assert in_a_child(touch) == "False"
        finally:
            meeting.go.set()
            thread.join(RENDEZVOUS)
        worker.cancel()


def interrupt():
    """Press Ctrl+C here, and return whether it was raised here."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        return True
    return False


def run_on_trio(main):
    pytest.importorskip("trio")
    with pytest.raises(BaseException) as caught:
        anyio.run(main, backend="trio")
    assert {type(error) for error in leaves(caught.value)} == {KeyboardInterrupt}


@pytest.mark.parametrize("at", [PENDING, RUNNING, SUCCESS])
def test_ctrl_c_in_the_midst_of_a_step_waits_for_its_end(at):
    """Under Trio a Ctrl+C may come anywhere, but it does not interrupt a step of the library."""
    came_within = []

    def look(_, state):
        if state == at.name:
            came_within.append(interrupt())

    async def main():
        async with Node("app") as app:
            app.run_worker(anyio.lowlevel.checkpoint)
            await settle()

    with at_each_change(look):
        run_on_trio(main)
    assert came_within == [False]


def test_ctrl_c_in_the_last_step_of_a_block():
    """A Ctrl+C as the last worker ends is raised by the block, even without another checkpoint."""
    came_within, states = [], []

    def look(_, state):
        if state == "CANCELLED":
            came_within.append(interrupt())

    async def main():
        app = Node("app")
        try:
            async with app:
                worker = app.run_worker(anyio.sleep_forever, start=False)
            raise AssertionError("the block did not raise it")
        finally:
            states.append((app.is_finished, worker.state))

    with at_each_change(look):
        run_on_trio(main)
    assert came_within == [False]
    assert states == [(True, CANCELLED)]


def test_ctrl_c_in_the_midst_of_a_property_waits_for_its_end(monkeypatch):
    """A Ctrl+C does not interrupt properties that create something, either."""
    came_within = []

    def make():
        came_within.append(interrupt())
        return event()

    event = threading.Event

    async def main():
        async with Node("app") as app:
            worker = app.run_worker(anyio.lowlevel.checkpoint)
            with monkeypatch.context() as patch:
                patch.setattr(cancelling.threading, "Event", make)
                assert worker.cancelled_event
            await settle()

    run_on_trio(main)
    assert came_within == [False]


@pytest.mark.parametrize("kind", ["function", "coroutine", "handler", "track", "call"])
def test_ctrl_c_stops_what_the_user_wrote(kind):
    """A Ctrl+C stops work and handlers at once, even if the library is what called them."""
    came_within = []

    async def work():
        came_within.append(interrupt())
        raise KeyboardInterrupt

    def make():
        came_within.append(interrupt())
        raise KeyboardInterrupt

    class App(Node):
        def on_note(self, note):
            make()

    class Items:
        def __iter__(self):
            yield make()

    async def iterate():
        for _ in app.run_worker(settle).track(Items()):
            pass

    async def main():
        nonlocal app
        async with App("app") as app:
            if kind == "handler":
                app.post_message(Note())
            elif kind == "call":
                await anyio.to_thread.run_sync(app.call_from_thread, work)
            else:
                works = {"function": make, "coroutine": work(), "track": iterate}
                app.run_worker(works.pop(kind))
                if "coroutine" in works:
                    works["coroutine"].close()
            await anyio.sleep_forever()

    app = None
    run_on_trio(main)
    assert came_within == [True]


# Errors: reported once, where they happened, and able to cross process boundaries.


async def test_scope_that_work_leaves_open(anyio_backend):
    """Work that returns with a cancel scope open fails, and the error names it."""

    async def leave():
        anyio.CancelScope().__enter__()

    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            worker = app.run_worker(leave)
    assert worker.state is ERROR
    assert "has returned and left a cancel scope or a task group open" in str(worker.error)
    first, second = leaves(caught.value)
    assert first is worker.error
    assert isinstance(second, RuntimeError)  # AnyIO's, or Trio's


async def test_scope_that_cannot_be_found():
    """Without a handle, or with other private names in AnyIO, no scope counts as open."""
    loop = get_backend(anyio.lowlevel.current_token())
    assert loop.has_open_scope(None) is False
    assert loop.has_open_scope(SimpleNamespace(_cancel_scope=object())) is False


async def test_task_group_that_work_leaves_open_as_all_is_cancelled():
    """The block raises the error of AnyIO or Trio, but no cancellation that comes with it."""

    async def leave():
        group = anyio.create_task_group()
        await group.__aenter__()
        group.start_soon(anyio.sleep_forever)
        with contextlib.suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep_forever()

    with anyio.CancelScope() as scope, pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            worker = await app.start_worker(leave)
            scope.cancel()
            await anyio.sleep_forever()
    first, *others = leaves(caught.value)
    assert first is worker.error
    assert {type(each) for each in others} == {RuntimeError}


def told_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "creche"]


async def test_failure_that_is_handed_on_is_logged_once(caplog):
    """A worker that fails because it waited for a failed one is not logged again."""
    with pytest.raises(ExceptionGroup):
        async with Node("app") as app:

            async def burn():
                raise ValueError("burnt")

            async def serve():
                await app.run_worker(burn, exit_on_error=False)

            app.run_worker(serve)
    assert told_of(caplog) == ["worker 'burn' failed"]


async def test_handler_that_fails_is_logged_in_that_moment(caplog):
    """A node that fails because of a handler logs that at once, however long it takes to end."""

    class App(Node):
        def on_note(self, note):
            raise ValueError("no ink")

    with pytest.raises(ExceptionGroup):
        async with App("app") as app:
            app.post_message(Note())
            with anyio.CancelScope(shield=True):
                await until(lambda: app._creche_nursery.is_cancelled)
            told = told_of(caplog)
    assert told == ["on_note of node 'app' failed, and with it the node"]


@pytest.mark.parametrize("kind", ["worker", "handler"])
@pytest.mark.parametrize("deep", [False, True])
async def test_error_while_a_cancellation_was_handled(deep, kind):
    """An error raised instead of a cancellation does not keep it, which would be a cycle."""

    async def wait(*_):
        started.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            try:
                raise ValueError("on the way out")
            except ValueError as error:
                if deep:
                    raise OSError("of the way out") from error
                raise

    class App(Node):
        on_note = wait

    started = anyio.Event()
    with pytest.raises(ExceptionGroup) as caught:
        async with App("app") as app:
            if kind == "worker":
                app.run_worker(wait)
            else:
                app.post_message(Note())
            await started.wait()
            app.cancel()
    (error,) = leaves(caught.value)
    if deep:
        assert str(error) == "of the way out"
        error = error.__context__
    assert str(error) == "on the way out"
    assert error.__context__ is None


class Sealed(Exception):
    """An error that cannot be pickled."""

    def __reduce__(self):
        raise TypeError("sealed")


@pytest.mark.parametrize("error", [ValueError("burnt"), Sealed("burnt")])
async def test_worker_failed_in_another_process(error):
    """WorkerFailed has the same text in another process, whatever the error is."""

    async def cook():
        raise error

    async with Node("app") as app:
        worker = app.run_worker(cook, exit_on_error=False)
        with pytest.raises(WorkerFailed) as caught:
            await worker
    crossed = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 (made in the line itself)
    assert str(caught.value) == f"worker 'cook' failed: {type(error).__name__}: burnt"
    assert str(crossed).startswith("worker 'cook' failed: ")
    assert str(crossed).endswith(f"{type(error).__name__}: burnt")


async def test_report_that_passes_two_blocks():
    """A block further out does not report an error a second time."""

    async def burn():
        raise ValueError("burnt")

    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app, Node("page", parent=app):
            await app.run_worker(burn, exit_on_error=False)
    (error,) = leaves(caught.value)
    assert isinstance(error, WorkerFailed)


def test_group_with_a_split_of_its_own():
    """The rest of an exception group is kept, whatever its own split() returns."""

    class Odd(ExceptionGroup):
        def split(self, condition):
            return self, None

    out, rest = ValueError("out"), KeyError("rest")
    assert leaves(errors.without(Odd("odd", [out, rest]), lambda leaf: leaf is out)) == [rest]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks begin eagerly since Python 3.12")
async def test_task_that_begins_eagerly(anyio_backend):
    """A task that a worker creates is not the worker, even if it starts eagerly."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio begins no task eagerly")
    loop = asyncio.get_running_loop()
    async with Node("app") as app:

        async def make():
            # Not by a task factory: the one of Python 3.13.0 does not take the arguments of uvloop.
            task = asyncio.Task(wait(), loop=loop, eager_start=True)
            await settle()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        async def wait():
            await worker  # make() cancels this task

        worker = app.run_worker(make)
    assert worker.state is SUCCESS
