"""Every kind of cancellation gives the right state at once and spares the siblings."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import weakref
from contextlib import nullcontext, suppress

import anyio
import pytest

from creche import Node, WorkerCancelled, WorkerError
from helpers import (
    CANCELLED,
    ERROR,
    PENDING,
    RUNNING,
    SUCCESS,
    ExceptionGroup,
    Listener,
    fail,
    fail_late,
    give_later,
    leaves,
    no_collection,
    run_python,
    settle,
    slow_to_leave,
    until,
)


@pytest.fixture
def native(anyio_backend):
    """Skip on Trio, which has no native cancellation of a task."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio has no native cancellation of a task")


def native_task(name):
    """The one asyncio task with this name."""
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == name]
    return task


async def test_cancel_spares_siblings_and_body():
    """Cancelling one worker leaves the others and the body alone."""
    async with Listener() as app:
        first = app.run_worker(anyio.sleep_forever)
        second = app.run_worker(anyio.sleep_forever)
        await settle()
        first.cancel()
        await settle()
        assert (first.state, second.state) == (CANCELLED, RUNNING)
        second.cancel()


async def test_group_and_node_of_the_manager():
    """The manager cancels a group, or a node without its children, and returns those workers."""
    async with Listener() as app, Node("page", parent=app) as page:
        a = app.run_worker(anyio.sleep_forever, group="a")
        b = app.run_worker(anyio.sleep_forever, group="b")
        below = page.run_worker(anyio.sleep_forever, group="a")
        await settle()
        assert app.workers.cancel_group(app, "a") == [a]
        assert app.workers.cancel_group(app, "nobody") == []
        await settle()
        assert [w.state for w in (a, b, below)] == [CANCELLED, RUNNING, RUNNING]
        assert app.workers.cancel_node(app) == [b]
        await settle()
        assert below.state is RUNNING
        app.workers.cancel_all("over")
        await settle()
        assert below.state is CANCELLED
        assert below.cancel_reason == "over"


async def test_node_cancel_ends_body_and_block_normally():
    """Node.cancel() cancels workers, children and the body; the block ends without an error."""
    reached = False
    async with Listener() as app:
        worker = app.run_worker(anyio.sleep_forever)
        panel = await app.mount(Node("panel"))
        below = panel.run_worker(anyio.sleep_forever)
        await settle()
        app.cancel("enough")
        assert worker.is_cancelled
        assert below.is_cancelled
        assert worker.cancel_reason == "enough"
        late = app.run_worker(anyio.sleep_forever())
        assert late.state is CANCELLED
        assert late.cancel_reason == "enough"
        await anyio.sleep_forever()
        reached = True
    assert not reached
    assert worker.state is CANCELLED
    assert below.state is CANCELLED


async def test_cancel_before_the_block_is_entered():
    """A node that was cancelled before it is entered is cancelled from the start."""
    app = Listener()
    waiting = app.run_worker(anyio.sleep_forever, start=False)
    app.cancel("not today")
    assert waiting.state is CANCELLED
    async with app:
        assert app.run_worker(anyio.sleep_forever).state is CANCELLED
        await anyio.sleep_forever()
    assert app.told_of(waiting) == [PENDING, CANCELLED]


async def test_outer_scope():
    """A cancelled outer scope ends the workers CANCELLED, and the cancellation propagates."""
    with anyio.CancelScope() as scope:
        async with Listener() as app:
            worker = app.run_worker(anyio.sleep_forever)
            event = worker.cancelled_event
            await settle()
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert worker.state is CANCELLED
    assert worker.is_cancelled
    assert event.is_set()
    assert app.told_of(worker) == [PENDING, RUNNING, CANCELLED]


async def test_outer_scope_while_the_block_is_left():
    """The same holds when the body has already ended."""
    with anyio.CancelScope() as scope:
        async with Listener() as app:
            worker = app.run_worker(anyio.sleep_forever)
            app.run_worker(cancel_soon(scope))
    assert scope.cancelled_caught
    assert worker.state is CANCELLED


async def cancel_soon(scope):
    await settle()
    scope.cancel()


async def test_deadline():
    """A deadline outside that expires ends the workers CANCELLED and raises TimeoutError."""
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.01):
            async with Node() as app:
                worker = app.run_worker(anyio.sleep_forever)
    assert worker.state is CANCELLED
    assert worker.is_cancelled


@pytest.mark.parametrize("thread", [False, True])
async def test_cancelled_in_a_thread_before_its_first_step_is_never_entered(thread):
    """Even if the loop reaches the first step before the thread's request, the work never runs."""
    entered = []

    async def work():
        entered.append("task")

    def work_in_thread():
        entered.append("thread")

    for _ in range(10):  # Trio runs the two in any order
        async with Listener() as app:
            worker = app.run_worker(work_in_thread if thread else work, thread=thread)
            foreign = threading.Thread(target=worker.cancel)
            foreign.start()
            foreign.join()
            assert (worker.state, worker.is_cancelled) == (PENDING, True)
        assert (app.told_of(worker), entered) == ([PENDING, CANCELLED], [])


async def test_the_reason_is_the_outer_cancellation_whoever_hears_of_it_first():
    """The reason is the outer cancellation, whether the worker or its node is cancelled first."""
    reasons = set()
    for _ in range(30):
        with anyio.CancelScope() as scope:
            async with Node() as app:
                workers = [app.run_worker(anyio.sleep_forever) for _ in range(3)]
                await settle()
                scope.cancel()
        reasons.update(worker.cancel_reason for worker in workers)
    assert reasons == {"cancelled from outside"}


async def test_cancelled_in_the_tick_in_which_it_returns():
    """A worker that returns after an outer scope was cancelled never reports SUCCESS."""
    gate = anyio.Event()

    async def work():
        with anyio.CancelScope(shield=True):
            await gate.wait()
        return "late"

    with anyio.CancelScope() as scope:
        async with Node() as app:
            worker = app.run_worker(work)
            await settle()
            scope.cancel()
            gate.set()
    assert worker.state is CANCELLED
    assert worker.result == "late"


async def test_waiter_cancelled():
    """Cancelling a task that waits for a worker leaves the worker alone."""
    gate = anyio.Event()

    async with Node() as app:
        worker = app.run_worker(give_later(5, gate))
        with anyio.CancelScope() as scope:
            app.run_worker(cancel_soon(scope))
            await worker.wait()
        assert scope.cancelled_caught
        assert worker.state is RUNNING
        assert not worker.is_cancelled
        gate.set()
        assert await worker == 5


async def test_many_waiters():
    """Several tasks may wait for one worker, and each gets the result."""
    gate = anyio.Event()
    got = []

    async def wait(worker):
        got.append(await worker)

    async with Node() as app:
        worker = app.run_worker(give_later(5, gate))
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(wait, worker)
            await settle()
            gate.set()
    assert got == [5] * 10


async def test_error_while_cancelled():
    """A worker that raises while it is being cancelled ends ERROR, and the error propagates."""

    with pytest.raises(ExceptionGroup) as caught:
        async with Node() as app:
            worker = app.run_worker(fail_late(ValueError("while unwinding")))
            await settle()
            worker.cancel()
    assert worker.state is ERROR
    assert [str(leaf) for leaf in leaves(caught.value)] == ["while unwinding"]


async def test_error_beside_an_outer_cancellation():
    """An error is not lost when an outer scope is cancelled as well."""

    with pytest.raises(ExceptionGroup, match="unhandled errors in node 'app'"):
        with anyio.CancelScope() as scope:
            async with Node("app") as app:
                app.run_worker(fail_late(ValueError("while unwinding")))
                await settle()
                scope.cancel()


async def test_from_a_signal_handler():
    """cancel() may be called in a signal handler, which interrupts code anywhere."""
    app = Node()
    worker = app.run_worker(anyio.sleep_forever, start=False)
    old = signal.signal(signal.SIGUSR1, lambda *_: worker.cancel("signal"))
    try:
        async with app:
            app.workers.start_all()
            await settle()
            os.kill(os.getpid(), signal.SIGUSR1)
            await until(lambda: worker.is_finished)
            assert worker.cancel_reason == "signal"
    finally:
        signal.signal(signal.SIGUSR1, old)


async def test_from_a_foreign_thread():
    """cancel() from another thread marks the worker and sets its event before it returns.

    The event loop does not run in between, so nothing else can have set the event.
    """
    seen = []
    async with Node() as app:
        worker = app.run_worker(anyio.sleep_forever)
        event = worker.cancelled_event
        await settle()

        def cancel():
            worker.cancel("from afar")
            seen.extend([worker.is_cancelled, event.is_set()])

        thread = threading.Thread(target=cancel)
        thread.start()
        thread.join()
        assert seen == [True, True]
        await until(lambda: worker.is_finished)
        assert worker.state is CANCELLED


async def test_node_cancel_from_a_foreign_thread():
    """Node.cancel() may be called from any thread."""
    async with Node() as app:
        worker = app.run_worker(anyio.sleep_forever)
        await settle()
        thread = threading.Thread(target=app.cancel)
        thread.start()
        await anyio.sleep_forever()
    thread.join()
    assert worker.state is CANCELLED


# native cancellation, which only asyncio has


async def test_native_cancel_of_a_worker(native):
    """A native Task.cancel() of one worker's task ends it CANCELLED and spares all others."""
    async with Listener() as app:
        first = app.run_worker(anyio.sleep_forever, name="first")
        second = app.run_worker(anyio.sleep_forever, name="second")
        await settle()
        native_task("app/default/first").cancel()
        await settle()
        assert (first.state, second.state) == (CANCELLED, RUNNING)
        assert first.is_cancelled
        assert first.cancel_reason == "its task was cancelled natively"
        assert not second.is_cancelled
        assert app.told_of(first) == [PENDING, RUNNING, CANCELLED]
        second.cancel()
    with pytest.raises(WorkerCancelled):
        await first.wait()


async def test_native_cancel_together_with_cancel(native):
    """A native cancellation in the same step as cancel() spares the other workers too."""
    async with Listener() as app:
        first = app.run_worker(anyio.sleep_forever, name="first")
        second = app.run_worker(anyio.sleep_forever, name="second")
        await settle()
        first.cancel()
        native_task("app/default/first").cancel()
        await settle()
        assert (first.state, second.state) == (CANCELLED, RUNNING)
        second.cancel()


async def test_native_cancel_before_the_first_step(native):
    """If a native cancellation makes AnyIO cancel every task, the block raises WorkerError."""
    with pytest.raises(WorkerError, match="before its first step, so AnyIO cancelled them all"):
        async with Listener() as app:
            first = app.run_worker(anyio.sleep_forever, name="first")
            second = app.run_worker(anyio.sleep_forever, name="second")
            native_task("app/default/first").cancel()
            await anyio.sleep_forever()
    assert (first.state, second.state) == (CANCELLED, CANCELLED)


async def test_native_cancel_before_the_first_step_while_leaving(native):
    """The same holds when the body has already ended."""
    with pytest.raises(WorkerError, match="before its first step"):
        async with Listener() as app:
            first = app.run_worker(anyio.sleep_forever, name="first")
            native_task("app/default/first").cancel()
    assert first.state is CANCELLED


@pytest.mark.skipif(
    sys.version_info >= (3, 12),
    reason="a coroutine that was closed unstarted keeps its arguments, and AnyIO the coroutine",
)
async def test_native_cancel_before_the_first_step_keeps_nothing(native):
    """A node does not keep a worker that was cancelled natively before its first step."""
    with no_collection():
        with pytest.raises(WorkerError, match="before its first step"):
            async with Node() as app:
                worker = weakref.ref(app.run_worker(anyio.sleep_forever, name="first"))
                native_task("Node/default/first").cancel()
        await settle()
        assert worker() is None


async def test_native_cancel_of_the_host(native):
    """A native cancellation of the host task cancels all workers and propagates."""
    app = Listener()
    ended = []

    async def host():
        async with app:
            ended.append(app.run_worker(anyio.sleep_forever))
            await anyio.sleep_forever()

    task = asyncio.create_task(host())
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert ended[0].state is CANCELLED
    assert app.told_of(ended[0]) == [PENDING, RUNNING, CANCELLED]


async def test_native_cancel_of_the_host_while_leaving(native):
    """The same holds while the block is being left, even for a second cancellation."""
    app = Listener()
    gate = anyio.Event()
    ended = []

    async def host():
        async with app:
            ended.append(app.run_worker(slow_to_leave(gate)))

    task = asyncio.create_task(host())
    await settle()
    task.cancel()
    await settle()
    task.cancel()
    await settle()
    assert ended[0].state is RUNNING
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended[0].state is CANCELLED


async def test_native_cancel_of_every_task(native):
    """If every task is cancelled, as at the end of a loop, all workers and the block end."""
    app = Listener()
    workers = []

    async def host():
        async with app:
            workers.append(app.run_worker(anyio.sleep_forever))
            await settle()
            workers.append(app.run_worker(anyio.sleep_forever))  # not started, nor is its handler
            inside.set()
            await anyio.sleep_forever()

    inside = anyio.Event()
    before = asyncio.all_tasks()
    task = asyncio.create_task(host())
    await inside.wait()
    for each in asyncio.all_tasks() - before:
        each.cancel()
    with anyio.fail_after(5):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [worker.state for worker in workers] == [CANCELLED, CANCELLED]


async def test_native_cancel_of_the_watcher(native):
    """A native cancellation of only the node's watcher task has no effect."""
    with anyio.CancelScope() as scope:
        async with Node("app") as app:
            await settle()
            native_task("watcher of node 'app'").cancel()
            worker = app.run_worker(anyio.sleep_forever)
            await settle()
            assert worker.state is RUNNING
            scope.cancel()
            await until(lambda: False)
    assert worker.state is CANCELLED


async def test_awaiting_something_that_was_cancelled(native):
    """A worker that awaits a cancelled asyncio future ends CANCELLED, and the others run on."""
    future = asyncio.get_running_loop().create_future()

    async def work():
        await future

    async with Node() as app:
        first = app.run_worker(work)
        second = app.run_worker(anyio.sleep_forever)
        await settle()
        future.cancel()
        await settle()
        assert (first.state, second.state) == (CANCELLED, RUNNING)
        second.cancel()


PROGRAM = """
import anyio, os, signal, sys
import creche

async def work():
    try:
        await anyio.sleep_forever()
    finally:
        print("unwound", flush=True)

class App(creche.Node):
    def on_worker_state_changed(self, event):
        print(event.state.name, event.worker.is_cancelled, flush=True)

async def main():
    async with App() as app:
        app.run_worker(work)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        os.kill(os.getpid(), signal.SIGINT)
        await anyio.sleep_forever()

try:
    anyio.run(main, backend=sys.argv[1])
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c(anyio_backend):
    """Ctrl+C ends the workers CANCELLED and raises KeyboardInterrupt."""
    name, options = anyio_backend
    if options.get("use_uvloop"):
        pytest.skip("the same runner as asyncio's")
    if sys.version_info < (3, 11) and name == "asyncio":
        pytest.skip("on 3.10 AnyIO itself ends in CancelledError on Ctrl+C")
    done = run_python(PROGRAM, name)
    assert done.stdout.split("\n")[-4:-1] == ["unwound", "CANCELLED True", "interrupted"], done
    assert done.stderr == ""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 does not count cancellations")
async def test_native_cancel_in_the_turn_of_another_is_not_lost(native):
    """A native cancellation, or Ctrl+C, is not lost if AnyIO cancels a scope in the same step."""

    async def main():
        async with Node("app") as app:
            workers = [app.run_worker(anyio.sleep_forever) for _ in range(2)]

            async def interrupt():
                scope.cancel()
                host.cancel()

            try:
                with anyio.CancelScope() as scope:
                    app.run_worker(interrupt)
                    await anyio.sleep_forever()
            finally:
                for worker in workers:
                    worker.cancel()
        outlived.append(True)

    outlived = []
    host = asyncio.create_task(main())
    await asyncio.wait([host])
    assert host.cancelled()
    assert not outlived


@pytest.mark.parametrize("way", ["mounted, cancelled", "mounted, failed", "block, failed"])
async def test_node_that_is_cancelled_from_above_is_no_cycle(way):
    """A cancellation from above keeps no worker alive: no frame in its traceback refers to one."""

    async def end(app):
        if "failed" in way:
            app.run_worker(fail)
        else:
            app.cancel()
        await anyio.sleep_forever()

    async def live():
        with suppress(ExceptionGroup):
            async with Node("app") as app:
                page = Node("page", parent=app) if "block" in way else await app.mount(Node("page"))
                async with page if "block" in way else nullcontext():
                    kept.append(weakref.ref(page.run_worker(anyio.sleep_forever)))
                    await settle()
                    await end(app)

    kept = []
    with no_collection():
        async with anyio.create_task_group() as group:
            group.start_soon(live)
        await settle()
        assert [each() for each in kept] == [None]


async def test_swallowed_native_cancel_is_no_cancellation(native):
    """A worker that swallows a native cancellation succeeds: Creche was not asked to cancel it."""

    async def stubborn():
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            return 5

    async with Node("app") as app:
        worker = app.run_worker(stubborn)
        await settle()
        native_task("app/default/stubborn").cancel()
        await settle()
        assert worker.state is SUCCESS


async def test_an_ended_worker_keeps_nothing_of_its_run():
    """An ended worker keeps neither its task, its work nor its context variables."""
    async with Node() as app:
        group = app.group("one", limit=1)

        ends = [
            group.run_worker(settle, "returns"),
            group.run_worker(fail(ValueError), "raises", exit_on_error=False),
            group.run_worker(anyio.sleep_forever, "sleeps"),
            group.run_worker(anyio.sleep_forever, "queued"),
            app.run_worker(anyio.sleep_forever, "never_run"),
        ]
        ends[-1].cancel()
        await until(lambda: ends[1].is_finished)
        group.cancel()
    told = [each.state for each in ends]
    assert told == [SUCCESS, ERROR, CANCELLED, CANCELLED, CANCELLED]
    for worker in ends:
        kept = {type(each).__name__ for each in gc.get_referents(worker)}
        assert not kept & {"TaskHandle", "coroutine", "Context", "function"}, worker
