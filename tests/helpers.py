"""Helpers that the tests share."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import threading
from contextlib import contextmanager

import anyio
from anyio import lowlevel

from creche import Node, Worker, WorkerState, get_current_worker

PENDING, RUNNING, CANCELLED, ERROR, SUCCESS = WorkerState

if sys.version_info >= (3, 11):
    from builtins import BaseExceptionGroup, ExceptionGroup
else:
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

__all__ = ["BaseExceptionGroup", "ExceptionGroup"]

HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
ROOM = 200
"""How many more frames the stack has room for in ``shallow()``."""
RENDEZVOUS = 10.0
"""Seconds until a wait gives up; reaching them is a failure, never a normal delay."""


class Listener(Node):
    """A node that keeps the state changes that its handler gets."""

    def __init__(self, name="app", **kwargs):
        super().__init__(name, **kwargs)
        self.told = []

    def on_worker_state_changed(self, event: Worker.StateChanged):
        self.told.append((event.worker, event.state))

    def told_of(self, worker):
        return [state for each, state in self.told if each is worker]


class Meeting:
    """A rendezvous at which a thread and the test wait for each other."""

    def __init__(self):
        self.arrived = threading.Event()
        self.go = threading.Event()

    def __call__(self):
        self.arrived.set()
        assert self.go.wait(RENDEZVOUS), "nobody came"

    async def until_arrived(self):
        await anyio.to_thread.run_sync(self._wait)

    def _wait(self):
        assert self.arrived.wait(RENDEZVOUS), "the thread did not come"


@contextmanager
def no_collection():
    """Disable the garbage collector, so that only reference counts free objects.

    Disable the log, too: the test runner keeps its records, which hold the errors they report.
    """
    logger = logging.getLogger("creche")
    gc.collect()
    gc.disable()
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False
        gc.enable()


@contextmanager
def shallow():
    """Leave little room on the stack."""
    used, frame = 0, sys._getframe()
    while frame is not None:
        used, frame = used + 1, frame.f_back
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(used + ROOM)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


@contextmanager
def counted():
    """Count the calls of the library's functions, a measure of its work, in a list of one."""
    calls = [0]

    def count(frame, event, arg):
        calls[0] += event == "call" and frame.f_globals.get("__name__", "").startswith("creche")

    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(None)


async def settle(turns=20):
    """Let everything happen that needs only a few iterations of the event loop."""
    for _ in range(turns):
        await lowlevel.checkpoint()


async def let_threads_free():
    """Make an idle thread run: without a GIL, objects that it has created are freed only then."""
    if not HAS_GIL:
        await anyio.to_thread.run_sync(int)
        await settle()


async def until_gone(reference):
    """Run the loop until the object is freed; a thread that held it needs a moment."""
    with anyio.fail_after(RENDEZVOUS):
        while reference() is not None:
            await settle()
            await let_threads_free()


async def set_later(event):
    """Let the loop settle, then set an event."""
    await settle()
    event.set()


async def fail(error):
    """Raise an error, as the work of a worker that fails."""
    raise error


async def fail_late(error):
    """Sleep; once cancelled, raise an error in place of the cancellation."""
    try:
        await anyio.sleep_forever()
    finally:
        raise error


async def give_later(value, gate):
    """Return a value once the gate is open."""
    await gate.wait()
    return value


async def slow_to_leave(gate):
    """Sleep; once cancelled, end only when the gate is open."""
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await gate.wait()


async def limp():
    """Be ready, fail after 5 s, restart 1 s later, then stall; run with stall_after=10."""
    me = get_current_worker()
    me.ready()
    await anyio.sleep(5)
    me.restarted(OSError("lost"), 1)
    await anyio.sleep(25)


def run_python(program, *arguments, warnings="error"):
    """Run a program in a process of its own, and return the finished process with its output."""
    return subprocess.run(
        [sys.executable, "-W", warnings, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,  # a hang is a failure
    )


def trio_random():
    """Return the random number generator that Trio shuffles tasks with."""
    from trio._core import _run  # noqa: PLC0415 (absent where Trio is)

    return _run._r


async def until(condition):
    """Run the loop until a condition holds."""
    with anyio.fail_after(RENDEZVOUS):
        while not condition():
            await lowlevel.checkpoint()


def leaves(error):
    """Return the single errors in an exception group, in order."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]


def told(caplog):
    """Return the records of the library only: asyncio logs slow calls on a busy machine."""
    return [record for record in caplog.records if record.name == "creche"]


def events(response):
    """Yield the type, id and data of each event of an open SSE response of httpx."""
    found = {}
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name:
            found[name] = value
        elif "data" in found:
            yield found["event"], found.get("id"), json.loads(found["data"])
            found = {}
