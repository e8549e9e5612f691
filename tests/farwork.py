"""Functions for tests to run elsewhere, in a module that another process can import."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import threading
import time
from pathlib import Path

import anyio

from creche import Node, get_current_worker, work
from helpers import RENDEZVOUS

logger = logging.getLogger("farwork")


def add(first, second):
    return first + second


async def add_later(first, second):
    await anyio.lowlevel.checkpoint()
    return first + second


def pid():
    return os.getpid()


def machine():
    from distributed import get_worker  # noqa: PLC0415 (where there is one)

    return get_worker().address


def fail(text):
    raise ValueError(text)


class TwoArguments(Exception):
    """An error that can be pickled but not unpickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def fail_untold():
    raise TwoArguments("this", "that")


class Unreadable:
    """An object that can be pickled but not unpickled."""

    def __reduce__(self):
        return fail, ("unreadable",)

    def __call__(self):
        """Do nothing."""


def give_unpickled():
    return threading.Lock()


def give_unreadable():
    return Unreadable()


def leave(status):
    raise SystemExit(status)


def make_generator():
    yield 1


def count(steps):
    worker = get_current_worker()
    for _ in worker.track(range(steps)):
        pass
    worker.update(description="counted")
    return worker.progress


def until_cancelled(path=None):
    """Create a file to say that it runs, and then run until cancelled."""
    worker = get_current_worker()
    tell(path)
    assert worker.cancelled_event.wait(RENDEZVOUS), "nobody cancelled it"
    worker.check_cancelled()


def give_when_cancelled(path, value):
    worker = get_current_worker()
    tell(path)
    assert worker.cancelled_event.wait(RENDEZVOUS), "nobody cancelled it"
    return value, worker.is_cancelled, worker.cancel_reason


def fail_when_cancelled(path):
    get_current_worker().cancelled_event.wait(tell(path) or RENDEZVOUS)
    raise ValueError("late")


async def sleep_until_cancelled(path):
    tell(path)
    with anyio.fail_after(RENDEZVOUS):
        await anyio.sleep_forever()


def ignore(path):
    """Ignore any cancellation until the time limit of the tests."""
    tell(path)
    time.sleep(RENDEZVOUS)


def hold(path, gate):
    """Run until the file ``gate`` exists."""
    tell(path)
    end = time.monotonic() + RENDEZVOUS
    while not Path(gate).exists():
        assert time.monotonic() < end, "nobody opened the gate"
        time.sleep(0.005)


def tell(path):
    if path is not None:
        Path(path).touch(exist_ok=False)


def write_log(text):
    logger.info("here is %s", text, extra={"colour": "blue"})
    try:
        fail(text)
    except ValueError:
        logger.exception("it failed")


def log_in_thread():
    thread = threading.Thread(target=logger.warning, args=("from a thread",))
    thread.start()
    thread.join()


def ask_for(name):
    return getattr(get_current_worker(), name)


def tell_all():
    far = get_current_worker()
    return far.name, far.group, far.description, far.path, far.is_cancelled, far.total_steps


async def open_node():
    async with Node("there") as there:
        worker = there.run_worker(add_later_there)
        return await worker


async def add_later_there():
    return get_current_worker().node.path


class App(Node):
    """A node with a method that runs elsewhere."""

    @work(where=lambda job: job)
    @staticmethod
    def twice(value):
        return value * 2


def make_span():
    """Make a span, and return its trace, its parent, and the baggage that arrived."""
    from opentelemetry import baggage  # noqa: PLC0415 (an extra)
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 (as above)

    with TracerProvider().get_tracer("there").start_as_current_span("there") as span:
        parent = None if span.parent is None else span.parent.span_id
        return span.get_span_context().trace_id, parent, baggage.get_baggage("user")


async def make_span_later():
    await anyio.lowlevel.checkpoint()
    return make_span()


def segfault():
    ctypes.string_at(0)


def leave_at_once():
    os._exit(3)


def kill_itself(number=signal.SIGKILL):
    os.kill(os.getpid(), number)
    time.sleep(RENDEZVOUS)


def hang_up():
    """Close all file descriptors, including the line home."""
    os.closerange(3, 256)


def hang_up_and_stay():
    """Shut down sending on all sockets, and keep running."""
    for number in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(number.name))) as line:
            line.shutdown(socket.SHUT_WR)
    time.sleep(RENDEZVOUS)


meet = None
"""A function that lets work in a thread of this process meet the test. Tests set it."""


def meet_and_fail(error):
    meet()
    if error is not None:
        raise error


def meet_and_advance():
    meet()
    get_current_worker().advance()


def meet_and_wait():
    meet()
    assert get_current_worker().cancelled_event.wait(RENDEZVOUS), "nobody told"
    assert get_current_worker().cancel_reason == "home has hung up"


def advance_and_check():
    get_current_worker().advance()
    get_current_worker().check_cancelled()
