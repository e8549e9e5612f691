"""Ctrl+C, and calls in signal handlers, at the executed lines of the library.

The interruptions and the checks after them are in ``tests/interrupt``. These tests interrupt only
a share of the lines; ``nox -s interrupts`` interrupts at all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("interrupt") / "run.py"
WATCHDOG = 120
"""Timeout in seconds for one call of the runner, which kills hanging children long before."""

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="each line has a process of its own, by os.fork()"
)


def strike(backend, *arguments):
    """Call the runner, in a process that has no threads and so can be forked."""
    options = backend["backend_options"]
    name = "uvloop" if options.get("use_uvloop") else backend["backend"]
    # Coverage would slow down each child, and the lines they run are covered by other tests.
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
    """Ctrl+C ends a program with KeyboardInterrupt at any line of the library."""
    strike(backend, "ctrl-c", "--once", "--share", "1/20")


def test_second_ctrl_c_while_a_worker_unwinds(backend):
    """A second Ctrl+C takes effect while a worker is slow to end."""
    strike(backend, "unwinding", "--times", "1", "--share", "2/9", "--program", "unwinding")


def test_calls_in_a_signal_handler(backend):
    """cancel() and post_message() in a signal handler take effect at any line of the library."""
    strike(backend, "handler", "--once", "--share", "1/20")


def test_calls_in_a_signal_handler_while_a_node_waits(backend):
    """cancel() in a signal handler takes effect at any line of the loop that waits for work."""
    where = ["--within", "until_idle", "--program", "calls", "--program", "messages"]
    strike(backend, "handler", *where, "--times", "4", "--deed", "node")


def test_calls_in_a_signal_handler_while_the_loop_sleeps(backend):
    """cancel() and post_message() in a signal handler wake the event loop."""
    strike(backend, "asleep")


def test_ctrl_c_at_random_moments(backend):
    """A process that gets a real Ctrl+C at a random moment ends with its exit status."""
    strike(backend, "random", "--runs", "4")
