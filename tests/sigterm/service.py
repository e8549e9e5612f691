"""A service under load that is ended by SIGTERM and reports how it ended.

On two nodes it serves streams, queues jobs, and runs threads, daemons and work that crashes and is
restarted. It writes lines to stdout: ``caught`` once signals are handled, ``port 12345`` once it
serves, the faults it found, as JSON, and ``step`` with the times of each step of its end.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import signal
import time
from contextlib import asynccontextmanager
from functools import partial

import anyio

from creche import Node, Worker, WorkerError, get_current_worker
from creche.hosting import stop_on_signals
from creche.services import Backoff, Restart, service

GRACE = 0.3
"""Seconds that work may continue after the signal."""
DEAF = 13.0
"""Seconds for which the deaf thread delays the end, long enough to be named in the log."""
_AGAIN = Restart(max=None, backoff=Backoff(0.001, longest=0.02))


def say(line):
    os.write(1, f"{line}\n".encode())


def step(name):
    """Report an event, its time and the processor time used so far."""
    say(f"step {time.monotonic():.4f} {time.process_time():.4f} {name}")


@asynccontextmanager
async def told(name):
    """Report the end of what runs within the block."""
    try:
        yield
    finally:
        step(name)


def tell_of_signal():
    """Report when SIGTERM is handled, then call the previous handler."""
    handle = signal.getsignal(signal.SIGTERM)

    def handle_and_tell(number, frame):
        step("the signal is handled")
        handle(number, frame)

    signal.signal(signal.SIGTERM, handle_and_tell)


class Service:
    """One run of the service.

    Args:
        seed: Seeds its random choices.
        is_deaf: Whether to run a thread that ignores its cancellation.
    """

    def __init__(self, seed, *, is_deaf=False):
        self._chance = random.Random(seed)
        self._is_deaf = is_deaf
        self._app = Node("app")
        self._made = []

    async def run(self):
        everything = self._app.subscribe(Worker.StateChanged, tree=True)
        async with everything:
            try:
                async with (
                    told("the signals are left to others"),
                    stop_on_signals(self._app, grace=GRACE),
                    told("the outer node has closed"),
                    self._app as app,
                    told("the inner node has closed"),
                    Node("front", parent=app) as front,
                ):
                    tell_of_signal()
                    say("caught")
                    await self._start(app, front)
            finally:
                wrong = self._find_wrong(everything.take_all())
                say(json.dumps({"wrong": wrong, "workers": len(self._made)}))

    async def _start(self, app, front):
        self._run(app, service(self._crash, restart=_AGAIN), name="consumer", daemon=True)
        self._run(app, service(self._crash_in_thread, restart=_AGAIN), name="poller", thread=True)
        self._run(app, partial(self._tick, 0.002), name="ticker", daemon=True, stall_after=0.05)
        if self._is_deaf:
            self._run(app, partial(time.sleep, DEAF), name="deaf", thread=True)
        server = self._run(front, service(self._serve), name="server")
        self._run(front, partial(self._take_jobs, front), name="jobs", daemon=True)
        say(f"port {await server.until_ready()}")

    def _run(self, node, job, **options):
        worker = node.run_worker(job, **options)
        self._made.append(worker)
        return worker

    async def _take_jobs(self, front):
        jobs = front.group("jobs", limit=3)
        threads = front.group("threads", limit=3)
        while True:
            kind = self._chance.randrange(3)
            if kind == 0:
                self._run(jobs, partial(self._work, self._chance.random() / 100))
            elif kind == 1:
                self._run(jobs, self._fail, exit_on_error=False)
            else:
                self._run(threads, partial(self._work_in_thread, 3), thread=True)
            await anyio.sleep(self._chance.random() / 200)

    # work

    async def _tick(self, seconds):
        while True:
            await anyio.sleep(seconds)
            get_current_worker().advance()

    async def _crash(self):
        await anyio.sleep(self._chance.random() / 50)
        raise ConnectionError("reset by peer")

    def _crash_in_thread(self):
        get_current_worker().cancelled_event.wait(0.01)
        get_current_worker().check_cancelled()
        raise ConnectionError("refused")

    async def _work(self, seconds):
        worker = get_current_worker()
        for _ in worker.track(range(4)):
            await anyio.sleep(seconds)

    async def _fail(self):
        await anyio.lowlevel.checkpoint()
        raise ValueError("a bad order")

    def _work_in_thread(self, rounds):
        worker = get_current_worker()
        for _ in worker.track(range(rounds)):
            worker.cancelled_event.wait(0.005)
            worker.check_cancelled()

    async def _serve(self):
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", backlog=100)
        async with listener:
            port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 (no query)
            get_current_worker().ready(port)
            await listener.serve(self._answer)

    async def _answer(self, client):
        changes = self._app.subscribe(Worker.StateChanged, tree=True, until="closing")
        try:
            async with client, changes:
                await client.send(b"hello\n")
                async for _ in changes:
                    changes.take_all()  # one dot for all changes since the last one
                    await client.send(b".")
                await client.send(b"\nbye\n")
        except (anyio.BrokenResourceError, WorkerError):
            pass  # the reader is gone, or the node had closed before the stream started

    # checks at the end

    def _find_wrong(self, events):
        """Return the workers that did not end properly or whose end was not reported."""
        told = {}
        for event in events:
            told.setdefault(event.worker.number, []).append(event.state.name)
        wrong = []
        for worker in self._made:
            states = told.get(worker.number, [])
            finals = [state for state in states if state not in {"PENDING", "RUNNING"}]
            if states[:1] != ["PENDING"] or finals != states[-1:] or finals != [worker.state.name]:
                wrong.append(f"{worker!r} was told as {states}")
            if worker.is_finished and worker.error is None and worker.state.name == "ERROR":
                wrong.append(f"{worker!r} has no error")
        return wrong


def run(backend, seed, *, is_deaf=False):
    """Run the service until a signal ends it, which raises ``SignalReceived``."""
    name = "trio" if backend == "trio" else "asyncio"
    options = {"use_uvloop": True} if backend == "uvloop" else {}
    atexit.register(step, "the threads have ended, the interpreter ends")
    try:
        anyio.run(Service(seed, is_deaf=is_deaf).run, backend=name, backend_options=options)
    finally:
        step("the loop has closed")
