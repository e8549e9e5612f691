"""Calls between threads and event loops arrive, or the sender gets an error."""

from __future__ import annotations

import asyncio
import sys
import threading

import anyio
import pytest

from creche import Node, WorkerCancelled, WorkerError
from creche._ground.backend import get_backend
from creche._ground.bridge import Bridge, run_soon
from creche._nursery.nursery import Nursery
from helpers import CANCELLED, RENDEZVOUS, run_python, settle, until


async def test_failing_call_is_logged(caplog):
    """A posted call that raises is logged, and the loop continues."""
    assert run_soon(anyio.lowlevel.current_token(), lambda: 1 // 0) is True

    def told():  # by this logger; asyncio's own logs slow calls on a busy machine
        return [record for record in caplog.records if record.name == "creche"]

    await until(told)
    (record,) = told()
    assert record.getMessage() == "a call from another thread failed on the event loop"
    assert isinstance(record.exc_info[1], ZeroDivisionError)


async def test_bridge_stays_open_for_what_is_on_its_way():
    """A bridge does not close while a call is in flight."""
    arrived = []
    bridge = Bridge(lambda: arrived.append("landed"))
    assert bridge.post(lambda: None) is False
    bridge.open(get_backend(anyio.lowlevel.current_token()))
    thread = threading.Thread(target=lambda: bridge.post(lambda: arrived.append("call")))
    thread.start()
    thread.join(RENDEZVOUS)
    assert bridge.close() is False
    await until(lambda: arrived)
    assert arrived == ["call", "landed"]
    assert bridge.close() is True
    assert bridge.post(lambda: None) is False


async def test_call_that_is_broken_off_on_its_way(monkeypatch):
    """If a call fails on arrival, the waiting thread gets the error and none is in flight."""
    told = []

    def fail(self, call):
        raise MemoryError("on its way")

    def ask():
        try:
            bridge.call(int)
        except MemoryError as error:
            told.append(str(error))

    bridge = Bridge(lambda: None)
    bridge.open(get_backend(anyio.lowlevel.current_token()))
    monkeypatch.setattr(Bridge, "_arrive", fail)
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    await until(lambda: not thread.is_alive())
    assert told == ["on its way"]
    assert bridge.close() is True


def test_loop_that_has_ended(backend):
    """Posting to a loop that has ended returns False."""
    bridge = Bridge(lambda: None)

    async def open_bridge():
        bridge.open(get_backend(anyio.lowlevel.current_token()))
        return anyio.lowlevel.current_token()

    token = anyio.run(open_bridge, **backend)
    assert run_soon(token, lambda: None) is False
    assert bridge.post(lambda: None) is False
    assert bridge.in_flight == 0


async def test_call_that_was_killed_before_its_first_step(anyio_backend):
    """A thread whose call is cancelled natively before its first step gets an error."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio has no native cancellation of a task")
    got = []

    def kill():
        for task in asyncio.all_tasks():
            if task.get_name() == "app: call from a thread":
                task.cancel()

    def make():
        asyncio.get_running_loop().call_soon(kill)  # runs before the new task does
        return settle()

    def call():
        try:
            app.call_from_thread(make)
        except WorkerCancelled as error:
            got.append(str(error))

    with pytest.raises(WorkerError, match="before its first step"):
        async with Node("app") as app:
            thread = threading.Thread(target=call)
            thread.start()
            await anyio.sleep_forever()
    thread.join(RENDEZVOUS)
    assert got == ["node 'app' was cancelled"]


async def test_handlers_that_were_killed_before_their_first_step(anyio_backend):
    """Handlers that are cancelled natively before their first step still get the events."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio has no native cancellation of a task")

    class App(Node):
        def __init__(self):
            super().__init__("app")
            self.told = []

        def on_worker_state_changed(self, event):
            self.told.append(event.state)

    app = App()
    with pytest.raises(WorkerError, match="before its first step"):
        async with app:
            worker = app.run_worker(anyio.sleep_forever)
            for task in asyncio.all_tasks():
                if task.get_name() == "handlers of node 'app'":
                    task.cancel()
            await anyio.sleep_forever()
    assert worker.state is CANCELLED
    assert app.told[-1] is CANCELLED


@pytest.mark.parametrize("deserted", [False, True])
async def test_nursery_does_not_close_over_a_late_post(anyio_backend, deserted):
    """What a thread posts between a nursery's last check and its closing runs before it closes."""
    if deserted and anyio_backend[0] != "asyncio":
        pytest.skip("Trio itself fails the task that leaves a nursery open")
    done = []

    class Owner:
        asked = 0

        def nurseries(self, *, blocks=False):
            return [] if blocks else [nursery]

        def on_empty(self):
            done.append("empty")

        def on_closed(self):
            done.append("closed")

        def on_idle(self):
            self.asked += 1
            if self.asked == 1:
                thread = threading.Thread(
                    target=lambda: nursery.bridge.post(lambda: done.append("late"))
                )
                thread.start()
                thread.join(RENDEZVOUS)
            return False

        def label(self):
            return "the nursery"

        def on_cancel(self, reason, *, by_scope):
            pass

        def reap(self):
            pass

    nursery = Nursery(Owner())
    nursery.begin()
    if deserted:
        await asyncio.create_task(nursery.open())
        await nursery.end.close_deserted()
    else:
        await nursery.open()
        await nursery.end.close(None)
    assert done == ["late", "empty", "closed"]


PROGRAM = """
import os, signal, sys, threading
import anyio
import creche

async def work():
    ready.set()
    if sys.argv[1] == "asyncio":  # which may not wake from its sleep if a thread sends the signal
        os.kill(os.getpid(), signal.SIGINT)
    await anyio.sleep_forever()

def interrupt():
    ready.wait()
    if sys.argv[1] == "trio":  # which raises in user code if there is any at that moment
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

async def main():
    async with creche.Node() as app:
        workers.append(app.run_worker(work))

ready, workers = threading.Event(), []
thread = threading.Thread(target=interrupt)
thread.start()
try:
    anyio.run(main, backend=sys.argv[1])
except KeyboardInterrupt:
    print("interrupted", workers[0].state.name)
thread.join()
"""


def test_ctrl_c_while_the_block_is_left(anyio_backend):
    """Ctrl+C while the block waits for its workers cancels them and raises KeyboardInterrupt."""
    name, _ = anyio_backend
    if sys.version_info < (3, 11) and name == "asyncio":
        pytest.skip("on 3.10 AnyIO itself ends in CancelledError on Ctrl+C")
    done = run_python(PROGRAM, name)
    assert done.stdout in ("interrupted CANCELLED\n", "interrupted ERROR\n"), done
    assert done.stderr == ""
