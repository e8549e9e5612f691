"""Work in threads: when it begins and ends, how it learns of cancellation, no late effects."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import sys
import threading
import weakref
from functools import partial

import anyio
import pytest
from anyio import from_thread

from creche import Node, Worker, WorkerCancelled, WorkerError, WorkerFailed, get_current_worker
from creche._running.runner import MOST
from creche._running.thread import ThreadCall
from creche.testing._leaks import busy_threads
from helpers import (
    CANCELLED,
    ERROR,
    PENDING,
    RENDEZVOUS,
    RUNNING,
    SUCCESS,
    ExceptionGroup,
    Listener,
    Meeting,
    leaves,
    let_threads_free,
    no_collection,
    settle,
    told,
    until,
)

variable = contextvars.ContextVar("variable", default="unset")


async def test_plain_callable():
    """A plain callable runs in another thread, and its value is the result."""
    async with Listener() as app:
        worker = app.run_worker(threading.get_ident, thread=True)
        assert await worker != threading.get_ident()
        await settle()
        assert app.told_of(worker) == [PENDING, RUNNING, SUCCESS]


async def test_current_worker_and_context_variables():
    """The thread has its creator's context variables and its current worker."""
    variable.set("set")

    def work():
        return variable.get(), get_current_worker()

    async with Node() as app:
        worker = app.run_worker(work, thread=True)
        assert await worker == ("set", worker)


async def test_error():
    """An error of the function is the error of the worker."""
    with pytest.raises(ExceptionGroup) as caught:
        async with Node() as app:
            worker = app.run_worker(lambda: 1 // 0, thread=True)
    assert leaves(caught.value) == [worker.error]
    assert isinstance(worker.error, ZeroDivisionError)


async def test_stop_iteration():
    """StopIteration, which no future takes, becomes a RuntimeError as in any coroutine."""
    async with Node() as app:
        worker = app.run_worker(lambda: next(iter(())), thread=True, exit_on_error=False)
        with pytest.raises(WorkerFailed, match="RuntimeError: coroutine raised StopIteration"):
            await worker.wait()


async def test_system_exit_in_a_thread():
    """SystemExit in a thread leaves the node bare."""

    def leave():
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        async with Node() as app:
            app.run_worker(leave, thread=True)
            await anyio.sleep_forever()


async def test_waiting_for_a_token_is_pending():
    """A worker is PENDING and queued until its thread has a token, and can be cancelled."""
    meeting = Meeting()
    called = []
    limiter = anyio.CapacityLimiter(1)
    async with Listener() as app:
        first = app.run_worker(meeting, thread=True, limiter=limiter)
        await meeting.until_arrived()
        second = app.run_worker(lambda: called.append(2), thread=True, limiter=limiter)
        third = app.run_worker(lambda: called.append(3), thread=True, limiter=limiter)
        await settle()
        assert (first.state, first.is_queued) == (RUNNING, False)
        assert (second.state, second.is_queued) == (PENDING, True)
        second.cancel()
        assert second.state is CANCELLED
        meeting.go.set()
        await third.wait()
        assert app.told_of(second) == [PENDING, CANCELLED]
    assert called == [3]
    assert limiter.borrowed_tokens == 0


async def test_called_off_before_its_first_step_it_wants_no_thread():
    """A worker that is cancelled before its first step ends at once, even if no thread is free."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    tokens, limiter.total_tokens = limiter.total_tokens, 1
    try:
        async with limiter:
            with anyio.move_on_after(RENDEZVOUS) as scope:
                async with Node() as app:
                    for _ in range(MOST + 1):  # the next has a task of its own
                        app.run_worker(anyio.sleep_forever, daemon=True)
                    await settle()
                    worker = app.run_worker(list, thread=True)
                    worker.cancel()
        assert not scope.cancel_called
        assert worker.state is CANCELLED
    finally:
        limiter.total_tokens = tokens


async def test_cancelled_in_the_moment_it_gets_a_token():
    """The thread does not start, and the token is returned."""
    called = []
    limiter = anyio.CapacityLimiter(1)
    async with Node() as app:
        await limiter.acquire_on_behalf_of("test")
        worker = app.run_worker(lambda: called.append(1), thread=True, limiter=limiter)
        await until(lambda: limiter.statistics().tasks_waiting)
        limiter.release_on_behalf_of("test")
        worker.cancel()
        assert worker.state is CANCELLED
    assert not called
    assert limiter.borrowed_tokens == 0


async def test_outer_cancellation_while_waiting_for_a_token():
    """A cancellation from outside while a worker waits for a token ends it."""
    meeting = Meeting()
    limiter = anyio.CapacityLimiter(1)
    with anyio.CancelScope() as scope:
        async with Node() as app:
            first = app.run_worker(meeting, thread=True, limiter=limiter)
            await meeting.until_arrived()
            second = app.run_worker(meeting, thread=True, limiter=limiter)
            await settle()
            scope.cancel()
            meeting.go.set()
            await anyio.sleep_forever()
    assert (first.state, second.state) == (CANCELLED, CANCELLED)
    assert second.started_at is None
    assert limiter.borrowed_tokens == 0


async def test_cancelled_thread_stays_running():
    """A cancelled thread is RUNNING until its function has returned; its value stays readable."""
    meeting = Meeting()

    def work():
        meeting()
        return "late"

    async with Listener() as app:
        worker = app.run_worker(work, thread=True)
        await meeting.until_arrived()
        worker.cancel()
        await settle()
        assert worker.state is RUNNING
        assert worker.is_cancelled
        meeting.go.set()
        with pytest.raises(WorkerCancelled):
            await worker.wait()
        assert worker.result == "late"
        await settle()
        assert app.told_of(worker) == [PENDING, RUNNING, CANCELLED]


ASK = {
    "is_cancelled": lambda worker: worker.is_cancelled,
    "cancelled_event": lambda worker: worker.cancelled_event.wait(RENDEZVOUS),
    "check_cancelled": lambda worker: raises(WorkerCancelled, worker.check_cancelled),
    "from_thread": lambda worker: raises(BaseException, from_thread.check_cancelled),
}


def raises(kind, call):
    try:
        call()
    except kind:
        return True
    return False


CANCEL = {
    "worker": lambda app, worker, scope: worker.cancel(),
    "node": lambda app, worker, scope: app.cancel(),
    "outer scope": lambda app, worker, scope: scope.cancel(),
    "manager": lambda app, worker, scope: app.workers.cancel_all(),
}


@pytest.mark.parametrize("way", CANCEL)
@pytest.mark.parametrize("ask", ASK)
async def test_truth_in_the_thread(ask, way):
    """Each of the four ways of asking reports a cancellation from each side, and not too early."""
    meeting = Meeting()
    answers = []

    def work():
        worker = get_current_worker()
        if ask != "cancelled_event":  # which would wait
            answers.append(ASK[ask](worker))
        meeting()
        while ask == "from_thread" and not worker.is_cancelled:
            pass  # this one gets it in a later turn of the loop
        answers.append(ASK[ask](worker))

    with anyio.CancelScope() as scope:
        async with Node() as app:
            worker = app.run_worker(work, thread=True)
            await meeting.until_arrived()
            CANCEL[way](app, worker, scope)
            with anyio.CancelScope(shield=True):
                await until(lambda: worker.is_cancelled)
            meeting.go.set()
    assert answers[-1] is True
    assert answers[:-1] in ([], [False])
    assert worker.state is CANCELLED


@pytest.mark.parametrize("abandon", [False, True])
@pytest.mark.parametrize("raising", ["worker", "from_thread"])
async def test_cancellation_let_out_of_the_thread(raising, abandon):
    """A function that lets the error of its cancellation propagate ends CANCELLED."""
    meeting = Meeting()

    def work():
        meeting()
        if raising == "worker":
            get_current_worker().check_cancelled()
        from_thread.check_cancelled()

    async with Node() as app:
        worker = app.run_worker(work, thread=True, abandon_on_cancel=abandon)
        await meeting.until_arrived()
        worker.cancel()
        await settle()
        meeting.go.set()
    assert worker.state is CANCELLED
    await until(lambda: not worker.is_abandoned)


async def test_error_of_a_cancelled_thread():
    """A cancelled thread that raises an error ends ERROR: the error is not lost."""
    meeting = Meeting()

    def work():
        meeting()
        raise ValueError("after all")

    with pytest.raises(ExceptionGroup):
        async with Node() as app:
            worker = app.run_worker(work, thread=True)
            await meeting.until_arrived()
            worker.cancel()
            meeting.go.set()
    assert worker.state is ERROR


async def test_abandoned_thread(caplog):
    """An abandoned worker is CANCELLED at once; its thread's late error goes to the log alone."""
    meeting = Meeting()
    limiter = anyio.CapacityLimiter(1)

    def work():
        meeting()
        raise ValueError("nobody cares")

    async with Listener() as app:
        worker = app.run_worker(
            work, thread=True, abandon_on_cancel=True, limiter=limiter, name="a"
        )
        await meeting.until_arrived()
        worker.cancel()
        await until(lambda: worker.is_finished)
        assert worker.state is CANCELLED
        assert worker.is_abandoned
        assert limiter.borrowed_tokens == 1
    assert worker.is_abandoned  # the node did not wait for it
    meeting.go.set()
    await until(lambda: limiter.borrowed_tokens == 0)
    assert not worker.is_abandoned
    assert (worker.result, worker.error) == (None, None)
    (record,) = told(caplog)
    assert record.getMessage() == "the abandoned thread of worker 'a' failed"


async def test_abandoning_waits_until_the_thread_has_begun():
    """A worker that became RUNNING had its function called, however early it was abandoned."""
    called = threading.Event()
    limiter = anyio.CapacityLimiter(1)

    class App(Node):
        def on_worker_state_changed(self, event):
            if event.state is RUNNING:
                event.worker.cancel()

    async with App() as app:
        workers = [
            app.run_worker(called.set, thread=True, abandon_on_cancel=True, limiter=limiter)
            for _ in range(20)
        ]
        await app.workers.wait_for_complete(workers)
    assert {worker.state for worker in workers} <= {CANCELLED, SUCCESS}
    assert called.wait(RENDEZVOUS)
    await until(lambda: limiter.borrowed_tokens == 0)


async def test_abandoned_async_work():
    """Async work that is abandoned in its thread does not hold the node, and ends by itself."""
    meeting = Meeting()
    ended = []

    async def work():
        try:
            await anyio.lowlevel.checkpoint()
            meeting()
            await anyio.sleep_forever()
        finally:
            ended.append(threading.get_ident())

    async with Node() as app:
        worker = app.run_worker(work(), thread=True, abandon_on_cancel=True)
        await meeting.until_arrived()
        worker.cancel()
        await until(lambda: worker.is_finished)
        assert (worker.state, worker.is_abandoned) == (CANCELLED, True)
        assert ended == []
    meeting.go.set()
    await until(lambda: not worker.is_abandoned)
    assert ended
    assert ended[0] != threading.get_ident()


async def test_native_cancel_of_a_thread_worker(anyio_backend):
    """A native cancellation ignores AnyIO's shield, but the worker waits for its thread."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio has no native cancellation of a task")
    meeting = Meeting()
    limiter = anyio.CapacityLimiter(1)
    async with Node("app") as app:
        other = app.run_worker(anyio.sleep_forever, name="other")
        worker = app.run_worker(meeting, thread=True, name="t", limiter=limiter)
        await meeting.until_arrived()
        for _ in range(3):
            for task in asyncio.all_tasks():
                if task.get_name() == "app/default/t":
                    task.cancel()
            await settle()
            assert worker.state is RUNNING
            assert worker.is_cancelled
            assert limiter.borrowed_tokens == 1
        meeting.go.set()
        await until(lambda: worker.is_finished)
        assert worker.state is CANCELLED
        assert limiter.borrowed_tokens == 0
        assert other.state is RUNNING
        other.cancel()


async def test_native_cancel_as_the_thread_ends(anyio_backend):
    """A native cancellation that comes when the thread has just ended is not lost."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio has no native cancellation of a task")
    meeting = Meeting()
    calls = []

    def work():
        frame = sys._getframe()
        while frame.f_code.co_name != "_in_thread":
            frame = frame.f_back
        calls.append(frame.f_locals["self"])
        meeting()
        return 5

    async with Node("app") as app:
        worker = app.run_worker(work, thread=True, name="t")
        await meeting.until_arrived()
        meeting.go.set()
        while not calls[0]._ended:
            pass  # the loop stands still: the thread's report cannot be heard yet
        for task in asyncio.all_tasks():
            if task.get_name() == "app/default/t":
                task.cancel()
        await until(lambda: worker.is_finished)
        assert worker.state is CANCELLED
        assert worker.is_cancelled
        assert worker.result == 5


async def test_native_cancel_before_the_thread_begins(anyio_backend):
    """A native cancellation between token and thread ends the worker and loses no token."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio has no native cancellation of a task")
    limiter = anyio.CapacityLimiter(1)
    async with Node("app") as app:
        for _ in range(50):
            worker = app.run_worker(settle_not, thread=True, name="t", limiter=limiter)
            await until(lambda worker=worker: worker.started_at is not None)
            for task in asyncio.all_tasks():
                if task.get_name() == "app/default/t":
                    task.cancel()
            await until(lambda worker=worker: worker.is_finished)
            assert worker.state in (CANCELLED, SUCCESS)
            assert limiter.borrowed_tokens == 0


def settle_not():
    return 5


# async work in a thread


async def test_async_work_in_a_thread():
    """Async work with thread=True runs on its own event loop, with the same backend."""

    async def work():
        await anyio.lowlevel.checkpoint()
        return threading.get_ident(), anyio.lowlevel.current_token().backend_class, variable.get()

    variable.set("here")
    async with Node() as app:
        for each in (work, work()):
            ident, backend, value = await app.run_worker(each, thread=True)
            assert ident != threading.get_ident()
            assert backend is anyio.lowlevel.current_token().backend_class
            assert value == "here"
        assert await app.run_worker(lambda: work(), thread=True)  # noqa: PLW0108 (a lambda is meant)


async def test_cancellation_reaches_the_loop_in_the_thread():
    """Cancelling async work in a thread is prompt, from every side."""
    for way in CANCEL.values():
        inside = threading.Event()

        async def work(inside=inside):
            inside.set()
            await anyio.sleep_forever()

        with anyio.CancelScope() as scope:
            async with Node() as app:
                worker = app.run_worker(work, thread=True)
                await until(inside.is_set)
                way(app, worker, scope)
        assert worker.state is CANCELLED


async def test_cancel_before_the_loop_in_the_thread_runs():
    """A cancellation before the loop in the thread runs is not lost."""
    async with Listener() as app:
        worker = app.run_worker(anyio.sleep_forever, thread=True)
        await until(lambda: worker.state is RUNNING)
        worker.cancel()
    assert worker.state is CANCELLED


async def test_error_in_the_loop_in_the_thread():
    """Errors and exception groups pass from the loop in the thread unchanged."""

    async def work():
        async with anyio.create_task_group() as group:
            group.start_soon(fail)

    async def fail():
        raise ValueError("inner")

    with pytest.raises(ExceptionGroup) as caught:
        async with Node() as app:
            app.run_worker(work, thread=True)
    assert [str(leaf) for leaf in leaves(caught.value)] == ["inner"]


async def test_leaked_cancellation(anyio_backend):
    """A cancellation that leaks from the inner loop is an error, and cancels nothing outside."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("on Trio nobody can make a Cancelled")

    async def work():
        raise asyncio.CancelledError

    async with Node() as app:
        other = app.run_worker(anyio.sleep_forever)
        worker = app.run_worker(work, thread=True, exit_on_error=False)
        with pytest.raises(WorkerFailed, match="raised a cancellation that nobody had asked for"):
            await worker.wait()

        def plain():
            raise asyncio.CancelledError

        worker = app.run_worker(plain, thread=True, exit_on_error=False)
        with pytest.raises(WorkerFailed, match="raised a cancellation that nobody had asked for"):
            await worker.wait()
        assert other.state is RUNNING
        other.cancel()


async def test_value_of_a_callable_that_returns_a_worker():
    """A worker that the function returns is the result, and is not awaited."""
    async with Node() as app:
        inner = app.run_worker(anyio.sleep_forever)
        assert await app.run_worker(lambda: inner, thread=True) is inner
        assert await app.run_worker(lambda: inner) is inner
        inner.cancel()


# calls from threads


async def add(a, b):
    await anyio.lowlevel.checkpoint()
    return a + b


async def test_call_from_thread():
    """A thread runs sync and async functions on the loop and gets their value or error."""
    loop_thread = threading.get_ident()

    async def fail():
        raise ValueError("async")

    def work():
        assert app.call_from_thread(threading.get_ident) == loop_thread
        assert app.call_from_thread(add, 1, 2) == 3
        assert app.call_from_thread(lambda: add(3, 4)) == 7
        with pytest.raises(ValueError, match="async"):
            app.call_from_thread(fail)
        with pytest.raises(ZeroDivisionError):
            app.call_from_thread(lambda: 1 // 0)
        with pytest.raises(SystemExit):
            app.call_from_thread(exit_now)
        other = app.call_from_thread(app.run_worker, anyio.sleep_forever)
        assert isinstance(other, Worker)
        other.cancel()
        return True

    def exit_now():
        raise SystemExit

    async with Node() as app:
        assert await app.run_worker(work, thread=True)


async def test_call_from_a_foreign_thread():
    """A thread without a worker may call too, while the node is open."""
    got = concurrent.futures.Future()
    app = Node("app")

    def call():
        got.set_result(app.call_from_thread(add, 1, 2))

    async with app:
        thread = threading.Thread(target=call)
        thread.start()
    thread.join(RENDEZVOUS)
    assert got.result(0) == 3  # on its way as the block was left, so the node waited

    def too_late():
        with pytest.raises(WorkerError, match=r"through node 'app', which is closed$"):
            app.call_from_thread(add, 1, 2)

    await anyio.to_thread.run_sync(too_late)


async def test_call_from_the_loop():
    """On the loop itself the call would never end, so it is an error."""
    async with Node() as app:
        with pytest.raises(WorkerError, match="thread of the event loop of node 'Node'; call the"):
            app.call_from_thread(add, 1, 2)
    with pytest.raises(WorkerError, match="not open yet"):
        Node().call_from_thread(add, 1, 2)


@pytest.mark.parametrize("way", CANCEL)
async def test_no_late_effect(way):
    """Once the worker is cancelled, its calls are refused with an error in the thread."""
    meeting = Meeting()
    effects = []

    def work():
        meeting()
        app.call_from_thread(effects.append, "late")

    with anyio.CancelScope() as scope:
        async with Node() as app:
            worker = app.run_worker(work, thread=True)
            await meeting.until_arrived()
            CANCEL[way](app, worker, scope)
            with anyio.CancelScope(shield=True):
                await until(lambda: worker.is_cancelled)
            meeting.go.set()
    assert effects == []
    assert worker.state is CANCELLED


async def test_call_under_way_is_cancelled_with_its_worker():
    """An async function that a thread has called is cancelled with the worker."""
    unwound = []
    inside = anyio.Event()

    async def long():
        inside.set()
        try:
            await anyio.sleep_forever()
        finally:
            unwound.append(True)

    for abandon in (False, True):
        inside = anyio.Event()
        async with Node() as app:
            worker = app.run_worker(
                lambda app=app: app.call_from_thread(long), thread=True, abandon_on_cancel=abandon
            )
            await inside.wait()
            worker.cancel()
            await until(lambda worker=worker: worker.is_finished)
            assert worker.state is CANCELLED
            await until(lambda worker=worker: not worker.is_abandoned)
    assert unwound == [True, True]


async def test_call_under_way_is_cancelled_natively(anyio_backend):
    """The thread learns that its call was cancelled, although neither worker nor node was."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio has no native cancellation of a task")

    async def cancel():
        asyncio.current_task().cancel()
        await anyio.sleep_forever()

    async with Node("app") as app:
        worker = app.run_worker(
            lambda: app.call_from_thread(cancel), thread=True, exit_on_error=False
        )
        assert worker.thread
        assert not app.run_worker(settle).thread
        with pytest.raises(WorkerFailed) as caught:
            await worker
    assert isinstance(caught.value.error, WorkerCancelled)
    assert str(caught.value.error) == ("a call from a thread to node 'app' was cancelled natively")


async def test_awaitable_that_is_no_coroutine_is_not_entered_either():
    """An awaitable that is not a coroutine is not awaited after the cancellation, either."""
    entered = []
    meeting = Meeting()

    class Effect:
        def __await__(self):
            entered.append(True)
            return anyio.lowlevel.checkpoint().__await__()

    def make():
        worker.cancel()
        return Effect()

    def work():
        meeting()
        app.call_from_thread(make)

    async with Node() as app:
        worker = app.run_worker(work, thread=True)
        await meeting.until_arrived()
        meeting.go.set()
    assert entered == []
    assert worker.state is CANCELLED


async def test_thread_that_ended_as_its_wait_was_cut_short():
    """The value of a thread counts if the thread had ended when the wait was cancelled."""

    class Job:
        def work(self):
            return 5

        def is_to_await(self, value):
            return False

        def label(self):
            return "job"

    limiter = anyio.CapacityLimiter(1)
    token = anyio.lowlevel.current_token()
    call = ThreadCall(Job(), limiter, token, abandon=True)
    await anyio.to_thread.run_sync(call._in_thread)
    assert await call._outlive_cancellation() is True
    assert (call._value, call._error) == (5, None)


async def test_call_that_was_called_off_is_not_made():
    """A thread that reaches a call after its cancellation does not make it."""
    called = []

    class Job:
        def work(self):
            called.append(True)

    token = anyio.lowlevel.current_token()
    call = ThreadCall(Job(), anyio.CapacityLimiter(1), token, abandon=True)
    assert await call._outlive_cancellation() is False
    await anyio.to_thread.run_sync(call._in_thread)
    assert called == []


async def test_call_of_a_foreign_thread_on_a_cancelled_node():
    """A cancelled node refuses calls from threads, including those in flight."""
    got = []
    inside = anyio.Event()

    async def long():
        inside.set()
        await anyio.sleep_forever()

    def call():
        for fn in (long, long):
            try:
                app.call_from_thread(fn)
            except (WorkerCancelled, WorkerError) as error:
                got.append(type(error))

    async with Node() as app:
        thread = threading.Thread(target=call)
        thread.start()
        await inside.wait()
        app.cancel()
    await anyio.to_thread.run_sync(thread.join)
    assert got[0] is WorkerCancelled
    assert issubclass(got[1], WorkerError)


async def test_call_of_a_foreign_thread_while_a_cancelled_node_is_unwinding():
    """A cancelled node that is still open, because a worker resists, accepts nothing new."""
    called = []
    resisting, gate = anyio.Event(), anyio.Event()

    async def resist():
        with anyio.CancelScope(shield=True):
            resisting.set()
            await gate.wait()

    def call():
        with pytest.raises(WorkerCancelled, match="node 'app' was cancelled"):
            app.call_from_thread(called.append, 1)

    async with Node("app") as app:
        app.run_worker(resist)
        await resisting.wait()
        app.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(call)
        gate.set()
    assert not called


async def test_cancel_between_the_call_and_its_first_step():
    """An async function whose worker is cancelled before its first step is not entered."""
    entered = []
    meeting = Meeting()

    async def effect():
        entered.append(True)

    def make():
        worker.cancel()
        return effect()

    def work():
        meeting()
        app.call_from_thread(make)

    async with Node() as app:
        worker = app.run_worker(work, thread=True)
        await meeting.until_arrived()
        meeting.go.set()
    assert entered == []
    assert worker.state is CANCELLED


async def test_run_worker_from_threads():
    """Threads start workers, which have the thread's context variables."""

    async def read():
        return variable.get()

    def work():
        variable.set("of the thread")
        return app.run_worker(read)

    async with Node() as app:
        inner = await app.run_worker(work, thread=True)
        assert await inner == "of the thread"


async def test_run_worker_from_a_foreign_thread_later():
    """A foreign thread may start work late, without a task around it (a plain asyncio.run)."""
    started = concurrent.futures.Future()

    async def read():
        return variable.get()

    def create():
        variable.set("foreign")
        started.set_result(app.run_worker(read, group="one"))

    async with Node() as app:
        group = app.group("one", limit=1)
        gate = anyio.Event()
        group.run_worker(gate.wait)
        thread = threading.Thread(target=create)
        thread.start()
        await until(started.done)
        assert started.result().is_queued
        raiser = threading.Thread(target=lambda: setattr(group, "limit", 2))
        raiser.start()
        assert await started.result() == "foreign"
        gate.set()
    thread.join()
    raiser.join()


def test_under_plain_asyncio_run():
    """Threads can start work in a plain asyncio program, too."""

    async def read():
        await anyio.lowlevel.checkpoint()
        return variable.get()

    def create(app, got):
        variable.set("foreign")
        worker = app.run_worker(read, start=False)
        app.workers.start_all()
        got.set_result(worker)

    async def main():
        got = concurrent.futures.Future()
        async with Listener() as app:
            thread = threading.Thread(target=create, args=(app, got))
            thread.start()
            await until(got.done)
            assert await got.result() == "foreign"
            assert app.told_of(got.result()) == [PENDING, RUNNING, SUCCESS]
        thread.join()

    asyncio.run(main())


async def test_refusal_reaches_the_thread():
    """A thread that starts work on a closed node gets the error, and the coroutine is closed."""
    app = Node("app")
    async with app:
        pass

    def create():
        with pytest.raises(WorkerError, match="cannot start work on node 'app', which is closed"):
            app.run_worker(add(1, 2))

    await anyio.to_thread.run_sync(create)


async def test_progress_of_threads_is_not_lost():
    """advance() may be called by many threads at once."""
    async with Node() as app:
        worker = app.run_worker(anyio.sleep_forever)

        def count():
            for _ in range(5000):
                worker.advance()

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await anyio.to_thread.run_sync(thread.join)
        assert worker.completed_steps == 20000
        worker.cancel()


async def test_elapsed_may_be_read_in_a_thread():
    """The age of a worker can be read in any thread."""
    async with Node() as app:
        worker = app.run_worker(anyio.sleep_forever)
        await settle()
        before = worker.elapsed
        there = await anyio.to_thread.run_sync(lambda: worker.elapsed)
        assert before - 1 < there < before + RENDEZVOUS
        worker.cancel()


async def test_wait_in_a_foreign_loop():
    """wait() on another event loop is an error that names the right way."""

    async def work():
        await other.wait()

    async with Node() as app:
        other = app.run_worker(anyio.sleep_forever)
        worker = app.run_worker(work, thread=True, exit_on_error=False)
        with pytest.raises(WorkerFailed, match=r"use node\.call_from_thread"):
            await worker.wait()
        other.cancel()


async def test_options_for_threads_only():
    """abandon_on_cancel and limiter without thread=True are an error."""
    async with Node() as app:
        with pytest.raises(WorkerError, match="abandon_on_cancel and limiter are for threads"):
            app.run_worker(add(1, 2), abandon_on_cancel=True)
        with pytest.raises(WorkerError, match="are for threads; add thread=True"):
            app.run_worker(add(1, 2), limiter=anyio.CapacityLimiter(1))
        with pytest.raises(WorkerError, match="are for threads; add thread=True"):
            app.run_worker(settle, abandon_on_cancel=True)


@pytest.mark.parametrize("kind", ["refused", "raised", "raised in a task"])
async def test_failed_call_makes_no_cycle(kind):
    """The error of a call from a thread is freed without the garbage collector."""
    kept = []

    class Traceable(Exception):
        pass

    def fail():
        raise Traceable

    async def fail_in_a_task():
        await settle()
        raise Traceable

    def call(app, meeting):
        meeting()
        try:
            app.call_from_thread(fail_in_a_task if kind == "raised in a task" else fail)
        except (WorkerCancelled, Traceable) as error:
            kept.append(weakref.ref(error))

    with no_collection():
        async with Node() as app:
            meeting = Meeting()
            worker = app.run_worker(partial(call, app, meeting), thread=True)
            await meeting.until_arrived()
            if kind == "refused":
                worker.cancel()
            meeting.go.set()
        (error,) = kept
        assert error() is None


async def until_back(before):
    """Wait until the threads are back in their pool and hold nothing."""
    await settle()  # the loop itself holds for a turn what it was to do next
    with anyio.fail_after(RENDEZVOUS):
        while busy_threads().keys() - before:
            await settle()
    await let_threads_free()


async def test_async_work_in_a_thread_without_sniffio(monkeypatch):
    """Async work in a thread does not need sniffio on asyncio."""
    monkeypatch.setitem(sys.modules, "sniffio", None)
    async with Node() as app:
        await app.run_worker(settle, thread=True)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_worker_that_fails_with_the_error_of_its_call_is_no_cycle(anyio_backend, kind):
    """The frames of the call, which would hold the worker, are removed from the error."""
    if anyio_backend[0] == "trio":
        pytest.skip("frames of AnyIO and Trio keep a thread that raises, until the collector runs")
    if (
        kind == "sync"
        and sys.version_info >= (3, 14)
        and isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop)
    ):
        pytest.skip("asyncio keeps its handle in the frame that runs it (_ThreadSafeHandle._run)")

    def fail():
        raise ValueError

    async def fail_in_a_task():
        await settle()
        raise ValueError

    fails = fail if kind == "sync" else fail_in_a_task
    threads = set(busy_threads())
    with no_collection():
        try:
            async with Node() as app:
                call = partial(app.call_from_thread, fails)
                gone = weakref.ref(app.run_worker(call, thread=True))
        except ExceptionGroup as group:
            assert len(group.exceptions) == 1
        await until_back(threads)
        assert gone() is None


@pytest.mark.parametrize("kind", ["on the loop", "closed", "cancelled"])
async def test_worker_that_fails_with_a_refused_call_is_no_cycle(anyio_backend, kind):
    """The error of a refused call keeps no frame that refers to the worker."""
    if anyio_backend[0] == "trio" and kind != "on the loop":
        pytest.skip("frames of AnyIO and Trio keep a thread that raises, until the collector runs")
    unwound = anyio.Event()

    async def linger():
        with anyio.CancelScope(shield=True):
            await unwound.wait()

    def call(page):
        page.call_from_thread(list)

    async def call_on_the_loop(page):
        page.call_from_thread(list)

    threads = set(busy_threads())
    with no_collection():
        async with Node() as app:
            page = await app.mount(Node("page"))
            if kind == "closed":
                await page.remove()
            elif kind == "cancelled":
                await page.start_worker(linger)
                page.cancel()
            fails = call_on_the_loop if kind == "on the loop" else call
            in_thread = kind != "on the loop"
            worker = app.run_worker(partial(fails, page), exit_on_error=False, thread=in_thread)
            await app.workers.wait_for_complete([worker])
            unwound.set()
            assert worker.state is ERROR
            gone = weakref.ref(worker)
            del worker
        await until_back(threads)
        assert gone() is None


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
async def test_async_work_in_a_thread_that_fails_is_no_cycle(anyio_backend, kind):
    """The error does not keep the frames of the thread's loop, which Python 3.12 adds to it."""
    if anyio_backend[0] == "trio":
        pytest.skip("Trio's own loop in a thread is a cycle")

    async def fail():
        await anyio.lowlevel.checkpoint()
        raise kind

    threads = set(busy_threads())
    with no_collection():
        try:
            async with Node() as app:
                gone = weakref.ref(app.run_worker(fail, thread=True))
        except (ExceptionGroup, KeyboardInterrupt) as error:
            assert kind.__name__ in repr(error)
        await until_back(threads)
        assert gone() is None
