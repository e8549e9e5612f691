"""Work in an executor: it asks to begin, whatever the executor says of it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from functools import partial

import anyio
import pytest

import farwork
from creche import Node, Worker, WorkerCrashed
from creche._running import hub, line
from creche._running.far import Far
from creche.ways import OnExecutor
from engines import pool
from helpers import (
    CANCELLED,
    ERROR,
    PENDING,
    RENDEZVOUS,
    RUNNING,
    SUCCESS,
    Listener,
    Meeting,
    settle,
    until,
)


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Start the threads of shared executors, so that they do not count as left by one test."""
    pool("spawn")


class ByHand(Executor):
    """An executor that a test controls, in threads. Its futures may report any state."""

    def __init__(self):
        self.calls = []
        self.threads = []
        self.is_shut = False

    def submit(self, fn, /, *args, **kwargs):
        if self.is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future = Future()
        self.calls.append((future, partial(fn, *args, **kwargs)))
        return future

    def run(self, number=0):
        """Run a call to its end, in a thread."""
        future, call = self.calls[number]

        def give():
            outcome = call()
            if not future.done():
                future.set_result(outcome)

        self.threads.append(threading.Thread(target=give))
        self.threads[-1].start()

    def join(self):
        for thread in self.threads:
            thread.join(RENDEZVOUS)
            assert not thread.is_alive()


@pytest.fixture
def by_hand():
    """An executor that the test controls; its far side runs in threads of this process."""
    executor = ByHand()
    yield executor
    executor.join()
    for key, each in list(line._lines.items()):
        each._socket.close() if not each.is_lost else None
        del line._lines[key]


async def submitted(executor, number=1):
    await until(lambda: len(executor.calls) == number)


async def test_running_is_true(by_hand):
    """A worker is PENDING and queued until its work begins, whatever its future reports."""
    async with Listener() as app:
        worker = app.run_worker(partial(farwork.add, 1, 2), where=by_hand)
        await submitted(by_hand)
        by_hand.calls[0][0].set_running_or_notify_cancel()
        await settle()
        assert worker.state is PENDING
        assert worker.is_queued
        by_hand.run()
        assert await worker == 3
    assert app.told_of(worker) == [PENDING, RUNNING, SUCCESS]


@pytest.mark.parametrize("lies", [False, True])
async def test_cancelled_in_the_queue(by_hand, lies):
    """A worker that is cancelled in the executor's queue ends, and its work never begins."""
    calls = []
    async with Listener() as app:
        worker = app.run_worker(calls.append, where=by_hand)
        await submitted(by_hand)
        if lies:  # it is as good as running, and cannot be cancelled
            by_hand.calls[0][0].set_running_or_notify_cancel()
        worker.cancel()
        assert worker.state is PENDING  # handed over: it ends as its way does
        await worker.join()
        by_hand.run()
        await until(lambda: not by_hand.threads[0].is_alive())
    assert app.told_of(worker) == [PENDING, CANCELLED]
    assert calls == []


async def test_work_that_is_left_until_the_node_is_gone(by_hand):
    """Work does not begin if its home is gone when it asks."""
    async with Node("app") as app:
        worker = app.run_worker(partial(farwork.fail, "called"), where=by_hand)
        await submitted(by_hand)
        app.cancel()
    assert worker.state is CANCELLED
    by_hand.run()


async def test_cancel_against_begin(by_hand):
    """If work begins and is cancelled at once, whichever reaches home first counts."""
    async with Listener() as app:
        worker = app.run_worker(farwork.until_cancelled, where=by_hand)
        await submitted(by_hand)
        by_hand.run()
        await until(lambda: worker.state is RUNNING)
        worker.cancel("too late")
        await worker.join()
    assert app.told_of(worker) == [PENDING, RUNNING, CANCELLED]


async def test_abandon(by_hand, caplog):
    """Abandoned work keeps running, and its late error is logged."""
    meeting = Meeting()
    async with Node("app") as app:
        options = {"where": by_hand, "abandon_on_cancel": True}
        for number, error in enumerate([None, ValueError("late")]):
            farwork.meet = meeting = Meeting()
            worker = app.run_worker(partial(farwork.meet_and_fail, error), **options)
            await submitted(by_hand, number + 1)
            by_hand.run(number)
            await meeting.until_arrived()
            worker.cancel()
            await worker.join()
            assert worker.state is CANCELLED
            assert worker.is_abandoned
            meeting.go.set()
            await until(lambda: not worker.is_abandoned)  # noqa: B023 (awaited here)

    def told():
        return [each.getMessage() for each in caplog.records if "abandoned" in each.getMessage()]

    await until(told)  # in the thread that has called back
    assert told() == ["the abandoned work of worker 'meet_and_fail' failed"]


async def test_abandoned_work_in_an_executor_that_breaks(by_hand):
    """Abandoned work has ended when its executor breaks."""
    farwork.meet = meeting = Meeting()
    async with Node("app") as app:
        options = {"where": by_hand, "abandon_on_cancel": True}
        worker = app.run_worker(partial(farwork.meet_and_fail, None), **options)
        await submitted(by_hand)
        by_hand.run()
        await meeting.until_arrived()
        worker.cancel()
        await worker.join()
        by_hand.calls[0][0].set_exception(OSError("broken"))
        assert not worker.is_abandoned
        meeting.go.set()


async def test_executor_that_is_shut(by_hand):
    """Work that an executor refuses or cancels by itself is an ERROR that says so."""
    async with Listener(exit_on_error=False) as app:
        dropped = app.run_worker(farwork.pid, where=by_hand)
        await submitted(by_hand)
        by_hand.calls[0][0].cancel()
        await dropped.join()
        by_hand.is_shut = True
        late = await app.run_worker(farwork.pid, where=by_hand).join()
    assert app.told_of(dropped) == app.told_of(late) == [PENDING, ERROR]
    assert str(dropped.error).startswith("the executor has cancelled worker 'pid'; shut it down")
    assert "cannot be handed over: RuntimeError: cannot schedule new futures" in str(late.error)


async def test_broken_pool():
    """If a pool breaks, each of its jobs crashes, and so do later ones."""
    async with Node("app", exit_on_error=False) as app:
        with ProcessPoolExecutor(1, mp_context=pool("spawn")._mp_context) as broken:
            first = app.run_worker(farwork.leave_at_once, where=broken)
            second = app.run_worker(farwork.pid, where=broken)
            await first.join()
            await second.join()
            third = await app.run_worker(farwork.pid, where=broken).join()
    for worker in (first, second, third):
        assert isinstance(worker.error, WorkerCrashed)
        assert worker.error.exitcode is None


async def test_outcome_that_says_stay_by_itself(by_hand):
    """Work that never begins although nobody cancelled it is an error."""
    async with Node("app", exit_on_error=False) as app:
        worker = app.run_worker(farwork.pid, where=by_hand)
        await submitted(by_hand)
        future, call = by_hand.calls[0]
        future.set_result(Far(call.args[3], lambda _: False).run())
    assert "was not begun, and nobody had cancelled it" in str(worker.error)


async def test_home_that_cannot_be_reached(by_hand):
    """Work that cannot ask whether to begin is an error that says so."""
    async with Node("app", exit_on_error=False) as app:
        worker = app.run_worker(farwork.pid, where=by_hand)
        await submitted(by_hand)
        future, call = by_hand.calls[0]
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            address = nobody.getsockname()
        future.set_result(call.func(address, *call.args[1:]))
    assert worker.state is ERROR
    assert "as this process cannot be reached from where it was to run" in str(worker.error)


async def test_wrong_key(by_hand):
    """A connection without the key is closed before anything else is read from it."""
    async with Node("app", exit_on_error=False) as app:
        worker = app.run_worker(farwork.pid, where=by_hand)
        await submitted(by_hand)
        future, call = by_hand.calls[0]
        wrong = partial(call.func, call.args[0], b"wrong", *call.args[2:])
        future.set_result(await anyio.to_thread.run_sync(wrong))
    assert "ConnectionError: home has hung up" in str(worker.error)


async def test_home_that_does_not_know_the_key():
    """The far side does not trust a server at home's address that does not know the key."""
    with socket.create_server(("127.0.0.1", 0)) as impostor:

        def answer():
            connection, _ = impostor.accept()
            with connection:
                connection.sendall(bytes(2 * line.PROOF))
                connection.recv(2 * line.PROOF)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConnectionError, match="what answers does not know the key"):
            line.Line(impostor.getsockname(), b"key")
        thread.join()


async def test_silent_caller(monkeypatch):
    """A connection that sends nothing is closed after a while."""
    monkeypatch.setattr(hub, "PATIENCE", 0.01)
    here = hub.Hub()
    async with anyio.create_task_group() as group:
        group.start_soon(here.run)
        await anyio.lowlevel.checkpoint()
        with line._connect(here.address) as caller:
            heard = await anyio.to_thread.run_sync(caller.recv, line.PROOF)
            assert len(heard) == line.PROOF
            assert await anyio.to_thread.run_sync(caller.recv, 1) == b""
        group.cancel_scope.cancel()


async def test_frame_that_is_too_long(monkeypatch, by_hand):
    """A frame that is too long is neither read nor sent."""
    meeting = farwork.meet = Meeting()
    async with Node("app", exit_on_error=False) as app:
        worker = app.run_worker(partial(farwork.meet_and_fail, None), where=by_hand)
        await submitted(by_hand)
        by_hand.run()
        await meeting.until_arrived()
        (one,) = line._lines.values()
        one._send(7, bytes(line.LONGEST + 1))  # which it does not
        assert not one.is_lost
        one._socket.sendall(line.HEAD.pack(line.LONGEST + 1, 7))
        await until(lambda: one.is_lost)
        far_is_told = worker.state is RUNNING
        meeting.go.set()
        await worker.join()
    assert far_is_told
    assert worker.state is SUCCESS


async def test_message_of_no_interest(by_hand):
    """Progress of abandoned work is dropped, and so are messages from home to no job."""
    meeting = farwork.meet = Meeting()
    async with Node("app", exit_on_error=False) as app:
        options = {"where": by_hand, "abandon_on_cancel": True}
        worker = app.run_worker(farwork.meet_and_advance, **options)
        await submitted(by_hand)
        by_hand.run()
        await meeting.until_arrived()
        (one,) = line._lines.values()
        one._take(99, line.GO)
        worker.cancel()
        await worker.join()
        meeting.go.set()
        await until(lambda: not worker.is_abandoned)
    assert worker.completed_steps == 0


class Own(Worker):
    """A worker whose run() does something before the work."""

    async def run(self):
        return await super().run()


async def test_run_of_ones_own(by_hand):
    """A worker with a custom run() is RUNNING before its work begins, and ends as the work does."""
    async with Node("app") as app:
        first, second = (Own(app, farwork.until_cancelled, where=by_hand) for _ in range(2))
        for number, worker in enumerate((first, second)):
            app.workers.add_worker(worker, exclusive=False)
            await submitted(by_hand, number + 1)
        assert first.state is RUNNING
        by_hand.run(0)
        await until(lambda: first.where)
        assert first.attempt == 1
        first.cancel()
        second.cancel()
        by_hand.run(1)
    assert first.state is second.state is CANCELLED
    assert second.where == ""


async def test_outcome_does_not_overtake(by_hand):
    """An outcome waits until home has handled everything that the work sent before."""
    meeting = farwork.meet = Meeting()
    async with Node("app") as app:
        worker = app.run_worker(farwork.meet_and_advance, where=by_hand)
        await submitted(by_hand)
        by_hand.run()
        await meeting.until_arrived()
        meeting.go.set()
        by_hand.threads[0].join(0.1)  # home takes nothing meanwhile
        assert by_hand.threads[0].is_alive()
        await worker
    assert worker.completed_steps == 1


async def test_line_of_a_home_that_is_gone(by_hand):
    """Work is asked to stop when its home hangs up. The next home gets its own connection."""
    meeting = farwork.meet = Meeting()
    async with Node("app") as app:
        options = {"where": by_hand, "abandon_on_cancel": True}
        worker = app.run_worker(farwork.meet_and_wait, **options)
        await submitted(by_hand)
        by_hand.run()
        await meeting.until_arrived()
        app.cancel()
    assert worker.is_abandoned
    meeting.go.set()
    await until(lambda: not worker.is_abandoned)


async def test_line_that_is_lost(by_hand):
    """Work that loses its connection is asked to stop, and can still be cancelled at home."""
    meeting = farwork.meet = Meeting()
    async with Node("app") as app:
        worker = app.run_worker(farwork.meet_and_wait, where=by_hand)
        await submitted(by_hand)
        by_hand.run()
        await meeting.until_arrived()
        (one,) = line._lines.values()
        one._socket.shutdown(socket.SHUT_RDWR)
        await until(lambda: one.is_lost)
        await settle()
        worker.cancel()
        await settle()
        meeting.go.set()
    assert worker.state is CANCELLED


async def test_fork_server(anyio_backend_name):
    """The start method ``forkserver`` works."""
    if anyio_backend_name != "trio":
        pytest.skip("once is enough")
    context = __import__("multiprocessing").get_context("forkserver")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        async with Node("app") as app:
            assert await app.run_worker(farwork.pid, where=executor) != os.getpid()


def test_executor_tells_what_it_is():
    """The repr of a way names its executor."""
    assert repr(OnExecutor(ByHand())) == "OnExecutor(ByHand)"


async def test_loky():
    """Loky's executor works."""
    loky = pytest.importorskip("loky")
    with contextlib.ExitStack() as stack:
        executor = loky.ProcessPoolExecutor(1)
        stack.callback(executor.shutdown)
        async with Node("app") as app:
            assert await app.run_worker(farwork.pid, where=executor) != os.getpid()
