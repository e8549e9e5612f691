"""Steps of the core that are interrupted, one at a time, and how the core recovers.

The sweep over lines interrupts each line and checks that the invariants hold. The tests here check
what the user gets. Running out of memory, or a Ctrl+C at the wrong line, has the same effect.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import Future
from contextlib import contextmanager, suppress

import anyio
import pytest
from anyio import lowlevel

from creche import Message, Node, Worker, WorkerError
from creche._core import admission, calls, cancelling, log
from creche._core import group as group_module
from creche._core.audience import Audience
from creche._core.group import WorkerGroup
from creche._core.life import Life
from creche._ground import bridge as bridge_module
from creche._ground.backend import get_backend
from creche._ground.bridge import Bridge
from creche._messages.mailbox import Mailbox
from creche._nursery import end
from creche._nursery.held import HeldTask
from creche._running import thread as thread_module
from creche._running.runner import Runners
from creche._running.thread import ThreadCall
from helpers import (
    CANCELLED,
    ERROR,
    RENDEZVOUS,
    RUNNING,
    SUCCESS,
    ExceptionGroup,
    Listener,
    Meeting,
    leaves,
    settle,
    told,
    until,
)


class Note(Message):
    pass


@contextmanager
def broken_off(owner, name, *, times=1, late=False):
    """Make a function of the library raise, either before it does anything or after it is done.

    Yields the list of faults that were raised.
    """
    original, faults = getattr(owner, name), []

    def broken(*args, **kwargs):
        if late:
            original(*args, **kwargs)
        if len(faults) < times:
            faults.append(MemoryError(f"{name} {len(faults)}"))
            raise faults[-1]
        return None if late else original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, broken)
        yield faults


def raised_by(caught):
    """Return the single errors that a block raised."""
    return leaves(caught.value)


# cancellation


async def test_cancel_of_one():
    """The caller of cancel() gets the fault, and the worker is CANCELLED anyway."""
    async with Node("app") as app:
        worker = app.run_worker(anyio.sleep_forever)
        with broken_off(cancelling, "deliver"), pytest.raises(MemoryError):
            worker.cancel()
        assert worker.state is CANCELLED
        worker = await app.start_worker(anyio.sleep_forever)
        with broken_off(cancelling, "deliver"), pytest.raises(MemoryError):
            worker.cancel()
        with anyio.fail_after(RENDEZVOUS):
            await app.workers.wait_for_complete([worker])


async def test_cancel_of_one_before_it_is_marked():
    """If cancel() fails before it marks the worker, the worker is not cancelled."""
    async with Node("app") as app:
        worker = await app.start_worker(lowlevel.checkpoint)
        with broken_off(cancelling, "request"), pytest.raises(MemoryError):
            worker.cancel()
    assert worker.state is SUCCESS


async def test_cancel_of_a_node_at_one_of_its_workers():
    """If cancelling one worker fails, all are cancelled, and the block raises the fault."""
    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            group = app.group("one", limit=1)
            workers = [group.run_worker(anyio.sleep_forever) for _ in range(3)]
            with broken_off(group_module, "deliver") as faults:
                app.cancel("all")
            assert [worker.cancel_reason for worker in workers] == ["all"] * 3
            assert [worker.state for worker in workers] == [CANCELLED] * 3
    assert raised_by(caught) == faults


async def test_cancel_of_a_node():
    """The caller of Node.cancel() gets the fault, and everything below is cancelled anyway."""
    async with Node("app") as app:
        group = app.group("one", limit=1)
        workers = [group.run_worker(anyio.sleep_forever) for _ in range(2)]
        with broken_off(Life, "on_cancel"), pytest.raises(MemoryError):
            app.cancel()
        assert [worker.state for worker in workers] == [CANCELLED] * 2
        with pytest.raises(anyio.get_cancelled_exc_class()):
            await lowlevel.checkpoint()


async def test_failure_of_the_body():
    """The block raises both the body's error and the fault, and the workers are cancelled."""
    failure = ValueError("of the body")
    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            worker = app.run_worker(anyio.sleep_forever)
            with broken_off(Life, "on_cancel") as faults:
                # Left by hand, because on_cancel() must work again when the block itself ends.
                await app.__aexit__(ValueError, failure, None)
    assert raised_by(caught) == [failure, *faults]
    assert worker.state is CANCELLED


# the end of a nursery


async def test_leaving_of_the_tree():
    """A node that is interrupted while it leaves the tree has left it anyway."""
    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            page = Node("page", parent=app)
            await page.__aenter__()
            with broken_off(Life, "on_closed") as faults:
                await page.__aexit__(None, None, None)
    assert raised_by(caught) == faults
    assert app.children == page.children == ()
    assert page.is_finished


def test_wait_for_the_end_that_fails_again_and_again(backend):
    """The wait for the end of a block survives some faults and then gives up."""

    raised = []

    async def main():
        try:
            async with Node("app"):
                pass
        except (MemoryError, ExceptionGroup) as error:
            raised.append(error)

    with (
        broken_off(Life, "on_idle", times=20) as faults,
        suppress(RuntimeError),  # Trio's error for a task group that is never left
    ):
        anyio.run(main, **backend)
    assert len(faults) == end._MOST_FAULTS + 1
    assert raised == faults[-1:]


async def test_last_step_may_be_taken_again():
    """shut() is safe to call again on a closed nursery, and returns True."""
    async with Node("app") as app:
        pass
    assert app._creche_nursery.shut() is True
    assert app.is_finished


async def test_error_that_comes_too_late_for_its_node(caplog):
    """An error after its node has closed is logged, because no block is left to raise it."""
    async with Listener("app") as app:
        worker = Worker(app, anyio.sleep_forever)
    with broken_off(Audience, "announce") as faults:
        worker.state = RUNNING
    (record,) = [each for each in caplog.records if each.name == "creche"]
    assert record.getMessage() == "an error came too late for its node"
    assert record.exc_info[1] is faults[0]


# groups and queues


async def test_worker_that_is_broken_off_on_its_way_into_the_queue():
    """A worker whose queueing is interrupted is removed, and its group does not count it."""

    class Queue(dict):
        def __setitem__(self, order, worker):
            super().__setitem__(order, worker)
            raise MemoryError

    async with Node("app") as app:
        group = app.group("one", limit=1)
        first = group.run_worker(anyio.sleep_forever)
        group._queue = Queue()
        with pytest.raises(MemoryError):
            group.run_worker(anyio.sleep_forever)
        assert (len(group), group.running, group.queued) == (1, 1, 0)
        assert list(group) == [first]
        first.cancel()


async def test_task_factory_that_runs_work(anyio_backend):
    """Work that a task factory starts while the queue advances waits its turn in the same group."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio has no task factories")
    loop = asyncio.get_running_loop()
    gate = anyio.Event()
    more = []

    def factory(loop, coro, **options):
        loop.set_task_factory(None)  # only for the first task
        more.append(group.run_worker(settle))
        return asyncio.Task(coro, loop=loop, **options)

    async with Node("app") as app:
        group = app.group("one", limit=1)
        group.run_worker(gate.wait)
        await settle()
        second = group.run_worker(settle)
        loop.set_task_factory(factory)
        try:
            group.limit = 3
        finally:
            loop.set_task_factory(None)
        gate.set()
        await second
        await more[0]
        assert second.state is more[0].state is SUCCESS


async def test_worker_that_is_cancelled_as_it_is_added(monkeypatch):
    """A worker that a signal handler cancels before it has a place is refused, without an event."""
    async with Node("app") as app, Node("child", parent=app) as child:
        worker = Worker(child, settle)
        with monkeypatch.context() as patch:
            patch.setattr(admission, "join", lambda _: worker.cancel())
            with pytest.raises(WorkerError, match="has ended"):
                app.workers.add_worker(worker)
        assert worker.state is CANCELLED
        assert not app.workers


async def test_exclusive_worker_as_it_supersedes():
    """If an exclusive worker fails to cancel the others, its work never runs."""
    entered = []

    async def work():
        entered.append(True)

    async with Node("app") as app:
        other = app.run_worker(settle)
        with broken_off(WorkerGroup, "_supersede"), pytest.raises(MemoryError):
            app.run_worker(work, exclusive=True)
        assert list(app.workers) == [other]
    assert other.state is SUCCESS
    assert entered == []


async def test_long_queue_of_which_no_task_can_be_made():
    """A long queue of workers for which no task can be made fails without recursion."""
    launch, many = Runners.launch, sys.getrecursionlimit()

    def refuse(self, job):
        if job.group == "one" and job.name != "last":
            raise MemoryError(job.name)
        return launch(self, job)

    async with Node("app") as app:
        group = app.group("one", limit=1)
        first = group.run_worker(anyio.sleep_forever)
        queued = [group.run_worker(settle, exit_on_error=False) for _ in range(many)]
        final = group.run_worker(settle, "last")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Runners, "launch", refuse)
            first.cancel()
            await final
        assert {worker.state for worker in queued} == {ERROR}
        assert {type(worker.error) for worker in queued} == {MemoryError}


# the log


async def test_failure_whose_end_is_broken_off_is_told_once(caplog):
    """If the end of a failed worker is interrupted and repeated, the failure is logged once."""

    async def work():
        raise ValueError

    with pytest.raises(ExceptionGroup) as caught, broken_off(WorkerGroup, "_left") as faults:
        async with Node("app") as app:
            worker = app.run_worker(work)
    assert raised_by(caught) == [worker.error, *faults]
    assert [each.getMessage() for each in told(caplog) if "failed" in each.getMessage()] == [
        "worker 'work' failed, and with it node 'app'"
    ]


async def test_failure_of_which_not_all_can_be_told(caplog):
    """If logging a failure fails, the worker is ERROR anyway, and that fault is logged."""
    async with Node("app") as app:

        async def burn():
            raise ValueError("burnt")

        with broken_off(log, "add_note") as faults:
            worker = app.run_worker(burn, exit_on_error=False)
            await until(lambda: worker.is_finished)
    assert worker.state is ERROR
    assert str(worker.error) == "burnt"
    (record,) = [each for each in caplog.records if each.name == "creche"]
    assert record.getMessage() == "could not log everything about a failed worker"
    assert record.exc_info[1] is faults[0]


# handlers


async def test_handlers_as_they_let_go_of_the_node():
    """The handlers' task no longer holds the node, and the block raises the fault."""
    with broken_off(HeldTask, "let_go") as faults, pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            app.post_message(Note())
            await anyio.sleep_forever()
    assert raised_by(caught) == faults
    assert not app._creche_nursery.held


async def test_handlers():
    """If reporting a handler's error is interrupted, the next message is still handled."""
    told = []

    class App(Node):
        def on_note(self, event):
            told.append(event)
            if len(told) == 1:
                raise ValueError("handled badly")

    notes = [Note(), Note()]
    with broken_off(Mailbox, "_fail") as faults, pytest.raises(ExceptionGroup) as caught:
        async with App("app") as app:
            for note in notes:
                app.post_message(note)
            await anyio.sleep_forever()
    assert told == notes
    assert raised_by(caught) == faults


# calls from threads


async def ask(app, fn):
    """Make a call from a thread, and return its outcome."""
    answers = []

    def call():
        try:
            answers.append(app.call_from_thread(fn))
        except BaseException as error:
            answers.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    with anyio.CancelScope(shield=True):
        await until(lambda: not thread.is_alive())
    return answers


async def test_call_of_a_thread():
    """The thread and the node both get the fault that killed the task of the call."""
    app = Node("app")
    with broken_off(calls, "_go_on") as faults, pytest.raises(ExceptionGroup) as caught:
        async with app:
            answers = await ask(app, settle)
    assert answers == faults
    assert raised_by(caught) == faults


async def test_call_of_a_thread_that_has_its_answer():
    """A call that continues after its thread got a fault does not change the answer."""

    class Slow:
        is_over = False

        def __await__(self):
            yield from lowlevel.checkpoint().__await__()
            self.is_over = True

    slow = Slow()
    meeting = Meeting()
    answers = []

    def work():
        meeting()
        try:
            answers.append(app.call_from_thread(lambda: slow))
        except MemoryError as error:
            answers.append(error)

    async with Node("app") as app:
        worker = await app.start_worker(work, thread=True)
        await meeting.until_arrived()
        with broken_off(Worker, "_rare_parts") as faults:
            meeting.go.set()
            with anyio.fail_after(RENDEZVOUS):
                while not worker.is_finished or not slow.is_over:
                    await lowlevel.checkpoint()
    assert answers == faults
    assert worker.state is SUCCESS


async def test_answer_that_comes_too_late():
    """A thread gets the first answer to its call, and a later one is ignored."""
    future = Future()
    bridge_module.fail(future, ValueError("first"))
    bridge_module.fail(future, ValueError("second"))
    with pytest.raises(ValueError, match="first"):
        bridge_module.await_answer(future, lowlevel.current_token())


async def test_thread_waits_while_the_loop_lives(monkeypatch):
    """A thread with a long call checks now and then that the loop is alive, and keeps waiting."""
    asked, run_soon = threading.Event(), bridge_module.run_soon

    def noted(token, call):
        if call is int:
            asked.set()
        return run_soon(token, call)

    async def long():
        await until(asked.is_set)
        return "soup"

    monkeypatch.setattr(bridge_module, "_PATIENCE", 0.0)
    monkeypatch.setattr(bridge_module, "run_soon", noted)
    async with Node("app") as app:
        assert await ask(app, long) == ["soup"]


async def test_landing_of_a_call():
    """A block that waits for calls in flight is woken even if one of them is interrupted."""
    landed, faults = [], [MemoryError("landing")]

    def land():
        if faults:
            raise faults.pop()
        landed.append(True)

    bridge = Bridge(land)
    bridge.open(get_backend(lowlevel.current_token()))
    bridge.post(lambda: None)
    await until(lambda: bridge.in_flight == 0)
    await settle()
    assert landed == [True]
    assert bridge.close() is True


# threads


async def test_thread_at_its_first_lines():
    """If a thread is interrupted at its start, its work is not called, and the worker fails."""
    called = []
    with (
        broken_off(ThreadCall, "_run_in_thread") as faults,
        pytest.raises(ExceptionGroup) as caught,
    ):
        async with Node("app") as app:
            worker = app.run_worker(lambda: called.append(True), thread=True)
    assert raised_by(caught) == [worker.error] == faults
    assert called == []


async def test_abandoned_thread_as_it_leaves(caplog):
    """A fault as an abandoned thread ends is logged, and the thread's token is returned."""
    meeting, limiter = Meeting(), anyio.CapacityLimiter(1)
    async with Node("app") as app:
        worker = app.run_worker(meeting, thread=True, abandon_on_cancel=True, limiter=limiter)
        await meeting.until_arrived()
        with broken_off(ThreadCall, "_leave") as faults:
            worker.cancel()
            await app.workers.wait_for_complete([worker])
            assert worker.is_abandoned
            meeting.go.set()
            with anyio.fail_after(RENDEZVOUS):
                async with limiter:
                    assert not worker.is_abandoned
    told = [each for each in caplog.records if "abandoned thread" in each.getMessage()]
    assert [each.exc_info[1] for each in told] == faults


@pytest.mark.parametrize("late", [False, True])
async def test_thread_as_it_leaves(late):
    """The loop learns that the thread has ended, and the worker fails with the fault."""
    with (
        broken_off(ThreadCall, "_leave", late=late) as faults,
        pytest.raises(ExceptionGroup) as caught,
    ):
        async with Node("app") as app:
            worker = app.run_worker(lambda: None, thread=True)
    assert raised_by(caught) == [worker.error] == faults


async def test_thread_as_it_leaves_with_an_error(caplog):
    """The worker fails with the error of its work, and the fault is logged."""

    def burn():
        raise ValueError("burnt")

    with broken_off(ThreadCall, "_leave") as faults:
        async with Node("app") as app:
            worker = app.run_worker(burn, "cook", thread=True, exit_on_error=False)
    assert str(worker.error) == "burnt"
    told = [each for each in caplog.records if "interrupted" in each.getMessage()]
    assert [each.getMessage() for each in told] == ["the thread of worker 'cook' was interrupted"]
    assert told[0].exc_info[1] is faults[0]


async def test_wait_for_a_thread_that_has_ended(monkeypatch):
    """A fault that comes after the thread has ended fails the worker."""
    run_sync, fault = thread_module.to_thread.run_sync, MemoryError("as it came back")

    async def broken(call, **options):
        await run_sync(call, **options)
        raise fault

    with pytest.raises(ExceptionGroup) as caught, monkeypatch.context() as patch:
        async with Node("app") as app:
            patch.setattr(thread_module.to_thread, "run_sync", broken)
            worker = app.run_worker(lambda: "soup", thread=True)
    assert raised_by(caught) == [fault]
    assert worker.error is fault


async def test_async_work_in_a_thread_that_never_begins():
    """Async work whose thread fails before its loop begins is closed, with no warning."""
    with (
        broken_off(thread_module, "on_own_loop") as faults,
        pytest.raises(ExceptionGroup) as caught,
    ):
        async with Node("app") as app:
            worker = app.run_worker(settle, thread=True)
    assert raised_by(caught) == [worker.error] == faults


async def test_worker_whose_task_has_died_is_reaped():
    """A worker is ended by reap() if its task has died."""

    async def nothing():
        pass

    dead = nothing()
    dead.close()
    async with Node("app") as app:
        worker = await app.start_worker(anyio.sleep_forever)
        worker._handle.coro = dead
        app._creche_life.reap()
        assert worker.state is CANCELLED
        assert worker.cancel_reason == "its task has died"
        app.cancel()


async def test_error_of_the_body_that_is_not_taken_in_at_once(monkeypatch):
    """A fault as a block begins to end is raised with the body's error, and all work ends."""
    faults, take_in = [MemoryError("fault")], end.End._take_in

    def fail_once(self, error):
        if faults:
            raise faults.pop()
        return take_in(self, error)

    monkeypatch.setattr(end.End, "_take_in", fail_once)
    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            worker = app.run_worker(anyio.sleep_forever)
            raise ValueError("error")
    assert [str(error) for error in leaves(caught.value)] == ["fault", "error"]
    assert worker.state is CANCELLED
    assert app.is_finished
