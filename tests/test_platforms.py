"""Creche works on a system without some functions, which are removed before it is imported.

This shows that each use is guarded. It proves nothing for Windows, whose event loop differs.
"""

from __future__ import annotations

import sys

import pytest

from helpers import run_python

PROGRAM = """
import asyncio, enum, faulthandler, os, signal, subprocess, sys
import tempfile, threading, time
import anyio, anyio.from_thread, anyio._backends._asyncio
try:
    import anyio._backends._trio
except ImportError:
    pass
backend = sys.argv[1]

BREAK = signal.SIGUSR2
for module, names in {
    os: "O_NONBLOCK fork forkpty geteuid getuid killpg pread register_at_fork setsid",
    signal: "SIGHUP SIGKILL SIGQUIT SIGUSR1 SIGUSR2 pthread_kill pthread_sigmask setitimer",
    time: "CLOCK_BOOTTIME CLOCK_MONOTONIC clock_gettime pthread_getcpuclockid",
    faulthandler: "register",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
members = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGBREAK": BREAK}
signal.Signals = enum.IntEnum("Signals", members)
signal.SIGBREAK = signal.Signals.SIGBREAK

def add_signal_handler(*_):
    raise NotImplementedError

asyncio.SelectorEventLoop.add_signal_handler = add_signal_handler
asyncio.new_event_loop().close()  # it keeps to this kind of loop
sys.platform = "win32"

import creche.__main__
from creche import Node, WorkerError, format_tree
from creche.hosting import stop_on_signals
from creche.remote import serve_tree
from creche.services import watchdog
from creche.trace import record

async def works():
    app = Node("app")
    async with record(app) as trace, app:
        async with watchdog(app):
            await app.run_worker(anyio.lowlevel.checkpoint)
            assert await app.run_worker(threading.get_ident, thread=True) != threading.get_ident()
            assert "node app: open" in format_tree(app)
            async def in_thread():
                await anyio.sleep(0)
            await app.run_worker(in_thread, thread=True)
    trace.save("run.html")

async def refuses():
    try:
        async with serve_tree(Node("app")):
            pass
    except WorkerError as error:
        assert "which this system does not have" in str(error)
    else:
        raise AssertionError

async def stops(number):
    app = Node("app")
    async with stop_on_signals(app, grace=0), app:
        app.run_worker(anyio.sleep_forever)
        await anyio.lowlevel.checkpoint()
        signal.raise_signal(number)
        await anyio.sleep_forever()

def run(function, *args):
    anyio.run(function, *args, backend=backend)

run(works)
run(refuses)
for number in (signal.SIGINT, signal.SIGTERM, BREAK):
    try:
        run(stops, number)
    except SystemExit as stopped:
        assert stopped.code == 128 + number, stopped.code
    else:
        raise AssertionError
with open("file", "w") as file:
    file.write("content")
assert creche.__main__.main(["--backend", backend, "file"]) == 0
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it is the real one")
def test_without_what_windows_does_not_have(backend, monkeypatch, tmp_path):
    """Work, threads, signals, the watchdog, timelines and the tour work without it."""
    monkeypatch.chdir(tmp_path)
    done = run_python(PROGRAM, backend["backend"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split()[0] == (
        "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    )
