"""Calls in forked children: modules are imported once, and each call gets its own process.

A child that does not end in time dumps its traceback and exits.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import gc
import json
import os
import selectors
import signal
import sys
import tempfile
import threading
import time
import traceback

MOST = 100
"""The most children at a time, including slow ones."""


@dataclasses.dataclass
class Report:
    """The outcome of a call."""

    key: object
    value: dict | None
    """What the call returned, or ``None`` if it did not return."""
    said: str
    """The child's output to stderr."""
    status: int
    """The exit status, negative for a signal, as in ``subprocess``."""

    @property
    def is_hang(self):
        return "Timeout (0:" in self.said or self.status == -signal.SIGKILL


class Child:
    """A forked process that makes one call."""

    def __init__(self, key, call, seconds):
        if threading.active_count() > 1:
            raise AssertionError("a process with threads is not to be forked")
        self._key = key
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed in report())
        self.end, theirs = os.pipe()
        self._begun = time.monotonic()
        self._over = self._begun + 2 * seconds + 10  # in case the child's own watchdog fails
        self._pid = os.fork()
        if not self._pid:
            _be_a_child(call, seconds, theirs, self._stderr)
        os.close(theirs)
        self._told = b""

    @property
    def is_slow(self):
        """Whether the child seems to hang, and so does not use a processor."""
        return time.monotonic() > self._begun + 2

    @property
    def is_overdue(self):
        return time.monotonic() > self._over

    def kill(self):
        os.kill(self._pid, signal.SIGKILL)

    def read(self):
        """Read some output; return whether there may be more."""
        told = os.read(self.end, 1 << 16)
        self._told += told
        return bool(told)

    def report(self):
        os.close(self.end)
        _, status = os.waitpid(self._pid, 0)
        self._stderr.seek(0)
        with self._stderr as file:
            said = file.read().decode(errors="replace")
        value = json.loads(self._told) if self._told else None
        return Report(self._key, value, said, os.waitstatus_to_exitcode(status))


def _be_a_child(call, seconds, pipe, stderr):
    try:
        os.dup2(stderr.fileno(), 2)
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 (it stays open)
        faulthandler.dump_traceback_later(seconds, exit=True, file=stderr)
        value = call()
        gc.collect()  # so that warnings of objects being freed appear now
        with os.fdopen(pipe, "w") as file:
            json.dump(value, file)
        faulthandler.cancel_dump_traceback_later()
    except BaseException:
        traceback.print_exc()
        os._exit(70)
    finally:
        os._exit(0)


def in_children(calls, seconds, at_once):
    """Make each call in a child, several at a time.

    Args:
        calls: Pairs of a key and a call that returns JSON-serializable data.
        seconds: The time limit for a child.
        at_once: The number of children at a time. Children that seem to hang do not count.

    Yields:
        The report of each child, as they end.
    """
    gc.collect()
    gc.freeze()  # keeps the children's collectors from scanning the objects they share
    calls = iter(calls)
    running = set()
    with selectors.DefaultSelector() as selector:
        while True:
            while sum(not child.is_slow for child in running) < at_once and len(running) < MOST:
                key, call = next(calls, (None, None))
                if call is None:
                    break
                child = Child(key, call, seconds)
                running.add(child)
                selector.register(child.end, selectors.EVENT_READ, child)
            if not running:
                return
            for ready, _ in selector.select(1):
                child = ready.data
                if not child.read():
                    selector.unregister(child.end)
                    running.discard(child)
                    yield child.report()
            for child in running:
                if child.is_overdue:
                    child.kill()
