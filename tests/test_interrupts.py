"""Ctrl+C, and calls in signal handlers, at the executed lines of the library.

What strikes, and what is looked at afterwards, is in ``tests/interrupt``. Here one line of the core
in fifteen is struck, or fewer; ``nox -s interrupts`` strikes all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("interrupt") / "run.py"
WATCHDOG = 120
"""Seconds for one call of the runner, which ends what hangs long before: never a delay."""

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="each line has a process of its own, by os.fork()"
)


def strike(backend, *arguments):
    """Have the runner strike, in a process that has no threads and so can be forked."""
    options = backend["backend_options"]
    name = "uvloop" if options.get("use_uvloop") else backend["backend"]
    # Coverage would take the time of each child; what they execute is executed here too.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    done = subprocess.run(
        [sys.executable, str(RUN), *arguments, "--backend", name],
        capture_output=True,
        text=True,
        check=False,
        timeout=WATCHDOG,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ctrl_c_at_the_lines_of_the_library(backend):
    """Ctrl+C ends a program with KeyboardInterrupt, whatever the library was about to do."""
    strike(backend, "ctrl-c", "--once", "--share", "1/20")


def test_second_ctrl_c_while_a_worker_unwinds(backend):
    """A second Ctrl+C gets through while a worker takes its time to end."""
    strike(backend, "unwinding", "--times", "1", "--share", "2/9", "--program", "unwinding")


def test_calls_in_a_signal_handler(backend):
    """A cancel and a message in a signal handler hold whatever the library was about to do."""
    strike(backend, "handler", "--once", "--share", "1/20")


def test_calls_in_a_signal_handler_while_a_node_waits(backend):
    """A cancel in a signal handler holds between any two lines of the loop that waits for work."""
    where = ["--within", "until_idle", "--program", "calls", "--program", "messages"]
    strike(backend, "handler", *where, "--times", "4", "--deed", "node")


def test_calls_in_a_signal_handler_while_the_loop_sleeps(backend):
    """A cancel and a message in a signal handler wake the event loop."""
    strike(backend, "asleep")


def test_ctrl_c_at_random_moments(backend):
    """A real process ends with the exit status of Ctrl+C, at whatever moment that comes."""
    strike(backend, "random", "--runs", "4")
