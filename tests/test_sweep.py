"""The sweep: each kind of worker, at each moment of its life, meets each fault.

Nothing is sampled, and the moments are not a list. The fault comes one turn of the loop after the
start, then two turns, and so on, until it comes too late; each time once ahead of whatever else is
due in that turn and once behind it. Trio shuffles what is due; there it is twice that, with two
seeds. A thread is held at its gate while the fault comes; in another run it has left its gate, and
the loop has yet to hear of it.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
import time

import anyio
import pytest
from anyio import lowlevel

from creche import Node, Worker, WorkerCancelled, WorkerError, WorkerFailed
from creche.testing import Ending, EventRecorder, Play, Script, assert_nothing_left
from creche.testing._leaks import busy_threads
from helpers import CANCELLED, ERROR, RENDEZVOUS, RUNNING, SUCCESS, leaves, settle, trio_random


class OwnRun(Worker):
    """A subclass that does its work itself."""

    play: Play

    async def run(self):
        return await self.play()


class AsyncCallable:
    def __init__(self, play):
        self.play = play

    async def __call__(self):
        return await self.play()


def subclass(node, play, **options):
    worker = OwnRun(node, **options)
    worker.play = play
    return worker


async def call(play):
    return await play()


KINDS = {
    "function": lambda node, play, **options: Worker(node, play.__call__, **options),
    "coroutine": lambda node, play, **options: Worker(node, play(), **options),
    "partial": lambda node, play, **options: Worker(node, functools.partial(call, play), **options),
    "callable": lambda node, play, **options: Worker(node, AsyncCallable(play), **options),
    "subclass": subclass,
    "thread": lambda node, play, **options: Worker(node, play.in_thread, thread=True, **options),
    "abandoned": lambda node, play, **options: Worker(
        node, play.in_thread, thread=True, abandon_on_cancel=True, **options
    ),
    "async-thread": lambda node, play, **options: Worker(
        node, play.__call__, thread=True, **options
    ),
}
THREADS = {"thread", "abandoned", "async-thread"}


class Run:
    """One run: a node with a worker, its sibling and a waiter, and a fault at a moment."""

    def __init__(self, kind, fault, moment, *, early=False, left=False):
        self.kind, self.fault, self.moment, self.left = kind, fault, moment, left
        self.early = early
        ending = {"exception": Ending.RAISE, "base": Ending.RAISE_BASE}.get(fault, Ending.RETURN)
        gated = kind in THREADS or ending is not Ending.RETURN
        self.threads = set(busy_threads())
        self.play = Play(Script(before=1, gated=gated, after=2, ending=ending))
        self.beside = Play(Script(ending=Ending.RAISE if fault == "sibling" else Ending.RETURN))
        self.top = Node("top")
        self.app = Node("app", parent=self.top)
        self.recorder = EventRecorder(self.app)
        self.outer, self.waiter = anyio.CancelScope(), anyio.CancelScope()
        self.over = anyio.Event()
        self.worker = self.sibling = self.raised = None
        self.asked = self.is_last = self.is_entered = False
        self.waited = []

    def __repr__(self):
        where = "left" if self.left else "early" if self.early else "late"
        return f"<{self.kind} x {self.fault} at {self.moment} {where}: {self.worker} {self.play}>"

    async def go(self):
        async with anyio.create_task_group() as self.group:
            tasks = [self.live, self.strike]
            for task in reversed(tasks) if self.early else tasks:
                self.group.start_soon(task)

    async def live(self):
        try:
            with self.outer:
                async with self.top, self.app as app, anyio.create_task_group() as group:
                    self.sibling = app.run_worker(self.beside, name="sibling", group="other")
                    self.worker = KINDS[self.kind](app, self.play, name="w")
                    app.workers.add_worker(self.worker)
                    group.start_soon(self.wait)
                    await self.over.wait()
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            self.raised = error

    async def wait(self):
        with self.waiter:
            try:
                self.waited.append(await self.worker.wait())
            except (WorkerFailed, WorkerCancelled) as error:
                self.waited.append(error)

    async def strike(self):
        await self.turn(self.moment)
        while self.left and not self.play.left.is_set():
            await self.turn(1)
            if self.play.arrived.is_set():
                self.play.open_gate()
                assert self.play.left.wait(RENDEZVOUS)
                if self.moment:
                    self.let_thread_report()
                await self.turn(self.moment)
        worker = self.worker
        if worker is not None:
            self.is_last = worker.is_finished or (not self.left and self.play.arrived.is_set())
            self.is_last &= worker.is_finished or self.play.script.gated
            self.asked = self.fault in CANCELS and not worker.is_finished
            self.is_entered = self.play.is_entered
            FAULTS[self.fault](self)
        self.play.open_gate()
        with anyio.move_on_after(RENDEZVOUS):
            while self.app.is_finished is False and not (worker and worker.is_finished):
                await lowlevel.checkpoint()
                worker = self.worker
        await settle()
        self.beside.open_gate()
        self.over.set()

    def let_thread_report(self):
        """Hold the loop until the thread is back in its pool, so that its speed does not matter."""
        end = time.monotonic() + RENDEZVOUS
        while busy_threads().keys() - self.threads:
            assert time.monotonic() < end, "the thread does not end"

    async def turn(self, times):
        for _ in range(times):
            await lowlevel.checkpoint()
            if self.kind in THREADS and self.worker is not None and self.worker.is_running:
                assert self.play.arrived.wait(RENDEZVOUS), "the thread did not come"

    def check(self):
        """Check the invariants."""
        worker, log = self.worker, self.play.log
        self.recorder.assert_orderly()
        assert worker.is_finished
        assert worker.is_cancelled or not self.asked
        (first, *_) = leaves(self.raised)
        unborn = isinstance(first, WorkerError) and "before its first step" in str(first)
        assert not unborn or self.fault == "task"
        if log and not worker.is_abandoned and self.kind != "abandoned":
            expected = {"returned": SUCCESS, "unwound": CANCELLED}.get(log[-1], ERROR)
            assert worker.state is (
                CANCELLED if worker.is_cancelled and not worker.error else expected
            )
        if self.asked:
            assert worker.state is CANCELLED
            assert worker.is_cancelled
            assert worker.cancelled_event.is_set()
        elif self.fault in {"nothing", "waiter"}:
            assert worker.state is SUCCESS
            assert worker.result is self.play.value
        if RUNNING not in self.recorder.states(worker):
            assert not log, "it never ran, and was entered"
        due = [each.error for each in (worker, self.sibling) if each.error is not None]
        assert unborn or leaves(self.raised) == (due or [None])
        assert len(self.app.workers) == 0
        if self.fault not in WIDE and not due and not unborn:
            assert self.sibling.state is SUCCESS, "the sibling was not spared"
        for outcome in self.waited:
            if isinstance(outcome, WorkerFailed):
                assert outcome.error is worker.error
            else:
                wanted = CANCELLED if isinstance(outcome, WorkerCancelled) else SUCCESS
                assert worker.state is wanted
        if not self.waited:
            assert self.fault in {"waiter", *WIDE} or due or unborn, "the waiter learnt nothing"


def cancel_task(run):
    for task in asyncio.all_tasks():
        if task.get_name() == "top/app/default/w":
            task.cancel()
            return
    run.asked = False  # before its first step it may have no task yet


def cancel_in_thread(run):
    thread = threading.Thread(target=run.worker.cancel)
    thread.start()
    thread.join(RENDEZVOUS)


def supersede(run):
    run.app.run_worker(settle, group="default", exclusive=True)


def expire(run):
    run.outer.deadline = anyio.current_time()


def assign(run):
    if not run.worker.is_finished:
        run.worker.state = CANCELLED


FAULTS = {
    "nothing": lambda run: None,
    "exception": lambda run: None,  # the script raises once its gate is open
    "base": lambda run: None,
    "waiter": lambda run: run.waiter.cancel(),
    "worker": lambda run: run.worker.cancel(),
    "group": lambda run: run.app.workers.cancel_group(run.app, "default"),
    "assignment": assign,
    "foreign thread": cancel_in_thread,
    "exclusive": supersede,
    "manager": lambda run: run.app.workers.cancel_all(),
    "node": lambda run: run.app.cancel(),
    "parent": lambda run: run.top.cancel(),
    "sibling": lambda run: run.beside.open_gate(),  # which then raises
    "shutdown": lambda run: run.group.start_soon(run.app.shutdown),
    "scope": lambda run: run.outer.cancel(),
    "deadline": expire,
    "task": cancel_task,
}
LATE = {"sibling", "shutdown", "deadline"}  # these cancel some turns later, or too late
CANCELS = set(FAULTS) - {"nothing", "exception", "base", "waiter"} - LATE
WIDE = {"manager", "node", "parent", "sibling", "shutdown", "scope", "deadline"}


@pytest.mark.parametrize("kind", KINDS)
async def test_sweep(kind, anyio_backend, quiet):
    """The invariants hold for every fault at every moment."""
    backend = anyio_backend[0]
    seeds = (1, 2) if backend == "trio" else (None,)
    async with assert_nothing_left():
        for fault, early, seed in itertools.product(FAULTS, (False, True), seeds):
            if fault == "task" and backend != "asyncio":
                continue  # Trio has no native cancellation of a task
            await sweep(kind, fault, seed, early=early)
            if kind in THREADS and fault not in {"exception", "base"}:
                await sweep(kind, fault, seed, early=early, left=True)


async def sweep(kind, fault, seed, **options):
    for moment in itertools.count():
        if seed is not None:
            trio_random().seed(seed)
        run = Run(kind, fault, moment, **options)
        await run.go()
        try:
            run.check()
        except AssertionError as error:
            raise AssertionError(f"{run}: {error}") from error
        if run.is_last:
            break
        assert moment < 200, "it does not end"
