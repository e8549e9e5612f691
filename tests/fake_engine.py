"""An engine that a test controls step by step; its far side runs in threads of this process."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import ClassVar

import anyio

from creche import WorkerCrashed, get_current_worker
from creche.ways import Far
from helpers import RENDEZVOUS


class Attempt:
    """One attempt at some work, in a thread; its machine may be lost."""

    def __init__(self, run):
        self.run = run
        self.commands = SimpleQueue()
        self.is_lost = False
        self.has_moved = threading.Event()  # it is at work, was refused, or has ended
        self.outcome = None
        self.far = Far(run.payload, self._send)
        self.answer = SimpleQueue()
        self._has_asked = False
        self.thread = threading.Thread(target=self._main)

    def _send(self, message):
        if self.is_lost:
            raise ConnectionError("the machine is lost")
        if self._has_asked:
            self.run.job.receive(message)
            return None
        self._has_asked = True
        self.run.job.receive(message, self.answer.put)
        return self.answer.get(timeout=RENDEZVOUS)

    def _main(self):
        outcome = self.far.run()
        if not self.is_lost:
            self.outcome = outcome
        self.has_moved.set()

    def command(self, what):
        """Make the work do something, and wait until it has."""
        self.has_moved.clear()
        self.commands.put(what)
        self.wait()

    def wait(self):
        assert self.has_moved.wait(RENDEZVOUS), "the far side does not move"

    def dismiss(self):
        """End its thread, whatever it waits for."""
        self.commands.put("return")
        self.answer.put(False)  # that it may not begin
        self.thread.join(RENDEZVOUS)

    @property
    def is_working(self):
        return self.thread.is_alive() and self.run.script.where is self


class Script:
    """Work that obeys its attempt; there is one for each worker, wherever it is unpickled."""

    known: ClassVar[dict[int, Script]] = {}

    def __init__(self, engine, number, *, is_slow_to_call_off=False):
        self.known[number] = self
        self.is_slow_to_call_off = is_slow_to_call_off
        self.engine = engine
        self.number = number
        self.calls = 0
        self.where = None
        """The attempt that it runs in, while it runs."""

    def __reduce__(self):
        return _find, (self.number,)

    def __call__(self):
        attempt = self.engine.attempt_of(self.number)
        self.calls += 1
        self.where = attempt
        try:
            while True:
                attempt.has_moved.set()
                what = attempt.commands.get(timeout=RENDEZVOUS)
                if what == "advance":
                    get_current_worker().advance()
                elif what == "check":
                    get_current_worker().check_cancelled()
                elif what == "raise":
                    raise ValueError(f"of {self.number}")
                elif what == "return":
                    return self.number
        finally:
            self.where = None


class Run:
    """A piece of work that was handed to the engine."""

    def __init__(self, engine, job, payload, script):
        self.engine = engine
        self.job = job
        self.payload = payload
        self.script = script
        self.attempts = []
        self.is_over = False
        self.done = anyio.Event()
        self.outcome = None
        self.has_left = False  # nothing at home waits for it
        self.way_is_left = False
        self.is_certain = anyio.Event()  # the engine knows that it will not begin

    def begin(self):
        """Start an attempt; the caller lets the loop answer, and then waits for the attempt."""
        attempt = Attempt(self)
        self.attempts.append(attempt)
        attempt.thread.start()
        return attempt

    def end(self, outcome):
        """Report home that the work is over; without an outcome, it has crashed."""
        self.outcome, self.is_over = outcome, True
        self.done.set()
        if self.has_left:
            self.job.end_abandoned(outcome)


class FakeEngine:
    """A way that keeps its jobs until the test decides how they end."""

    def __init__(self):
        self.runs = {}

    async def __call__(self, job):
        script = job.work
        run = Run(self, job, job.pack(), script)
        self.runs[script.number] = run
        try:
            await run.done.wait()
        except anyio.get_cancelled_exc_class():
            job.notice_cancellation()
            run.has_left = not job.is_running or job.abandon_on_cancel
            for attempt in run.attempts:
                attempt.far.stop(job.cancel_reason)
            if job.is_running and job.abandon_on_cancel:
                job.abandon()
            elif not job.is_running and script.is_slow_to_call_off:
                await job.outlast(run.is_certain.wait)
            if run.has_left:
                raise
            await job.outlast(run.done.wait)
        finally:
            run.way_is_left = True
        if run.outcome is None:
            raise WorkerCrashed("the machine is lost", 9)
        return job.open(run.outcome)

    def attempt_of(self, number):
        """Return the attempt that runs in the current thread."""
        thread = threading.current_thread()
        return next(each for each in self.runs[number].attempts if each.thread is thread)


def _find(number):
    return Script.known[number]
