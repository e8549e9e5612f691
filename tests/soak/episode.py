"""One episode from beginning to end, and the watch over all of them."""

# ruff: noqa: T201 (it prints what it finds)

from __future__ import annotations

import asyncio
import faulthandler
import logging
import math
import signal
import sys
import threading
import time
import warnings
from collections import Counter

import anyio
from books import leaves
from jobs import open_block

from creche import WorkerError

PATIENCE = 2.0  # seconds for abandoned threads to end
ENDS = 15.0  # seconds for idle threads to end; those of Trio wait for 10
EARLY = 3.0  # seconds before the stacks are dumped, to print the state of the episode


class Watch(logging.Handler):
    """Collects errors that are reported without being raised, for the current episode."""

    def __init__(self, options):
        super().__init__(logging.ERROR)
        self.options = options
        self.world = None
        self.number = None
        self.refusals = Counter()
        self.tolerated = Counter()
        self._stray = []
        self._deadline = math.inf
        self._is_over = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def begin(self):
        logger = logging.getLogger("creche")
        logger.addHandler(self)
        logger.propagate = False
        warnings.simplefilter("always")
        warnings.showwarning = self._warn
        sys.unraisablehook = lambda told: self.fail(f"unraisable: {told.exc_value!r} {told.object}")
        threading.excepthook = lambda told: self.fail(f"a thread ended with {told.exc_value!r}")
        signal.signal(signal.SIGUSR1, self._on_signal)
        self._watcher.start()
        if self.options.backend != "trio":
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, told: self.fail(f"the loop tells of {told}"))
            self._tasks = lambda: tell_tasks(asyncio.all_tasks(loop))
        else:
            import trio  # noqa: PLC0415 (an extra)

            root = trio.lowlevel.current_root_task()
            self._tasks = lambda: tell_tasks(_below(root))

    def end(self):
        self._is_over.set()
        self._watcher.join()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def fail(self, text):
        (self.world.books.fail if self.world is not None else self._stray.append)(text)

    def _warn(self, message, category, *_, **__):
        self.fail(f"{category.__name__}: {message}")

    def emit(self, record):
        error = record.exc_info[1] if record.exc_info else None
        if self.world is None:
            self._stray.append(record.getMessage())
        elif "abandoned thread" in record.msg:
            self.world.books.surface(error, "the log")
        elif "a call from another thread failed" in record.msg:
            self.fail(f"logged: {record.getMessage()}: {error!r}")
        elif getattr(record, "creche_worker", None) is not None:
            self.world.books.stored_logged[record.creche_worker] += 1

    def _on_signal(self, *_):
        if self.world is None or not self.world.nodes:
            return
        actor = self.world.signaller
        try:
            actor.step_sync()
        except BaseException as error:
            self.fail(f"a signal handler raised {error!r}")

    # hangs

    def enter(self, world, number):
        self.world, self.number = world, number
        self._deadline = time.monotonic() + self.options.hang - EARLY
        faulthandler.dump_traceback_later(self.options.hang, exit=True)

    def leave(self):
        self._deadline = math.inf
        faulthandler.cancel_dump_traceback_later()
        failures = self.world.books.failures
        failures += self._stray
        self._stray.clear()
        for text in self.options.tolerate:
            known = [each for each in failures if text in each]
            failures[:] = [each for each in failures if text not in each]
            self.tolerated[text] += len(known)
        self.tell(self.world)
        self.world = None

    def _watch(self):
        while not self._is_over.wait(0.5):
            if time.monotonic() > self._deadline:
                self._deadline = math.inf
                self._tell_of_hang()

    def _tell_of_hang(self):
        world = self.world
        world.books.fail("HANG: what has not ended and the stacks follow")
        for job in world.books.jobs:
            if job.worker is not None and not job.worker.is_finished:
                world.books.fail(f"not ended: {job.told} {_tell_waits(job.worker)}")
        for node in world.nodes:
            nursery = node._creche_nursery
            world.books.fail(
                f"{node!r}: {nursery.holds} holds, {nursery.bridge.in_flight} under way"
            )

        for each in self._tasks():
            world.books.fail(f"waits: {each}")
        self.tell(world)

    def tell(self, world):
        if not world.books.failures:
            return
        print(
            f"FAILED seed {self.options.seed}, episode {self.number} "
            f"(--backend {self.options.backend} --seed {self.options.seed} --episode {self.number})"
        )
        for each in world.books.failures[:60]:
            print(f"  {each}")
        if self.options.verbose:
            print("  the last steps:", *world.history, sep="\n    ")
        sys.stdout.flush()

    def find_threads(self):
        """Find the threads that are left once the loop has ended."""
        until = time.monotonic() + ENDS
        while threading.active_count() > 1 and time.monotonic() < until:
            time.sleep(0.05)
        left = [each for each in threading.enumerate() if each is not threading.main_thread()]
        return [f"thread left: {each!r}" for each in left] + self._stray


def _below(task):
    """Return a Trio task and all its descendants."""
    below = [each for nursery in task.child_nurseries for each in nursery.child_tasks]
    return [task, *(each for child in below for each in _below(child))]


def tell_tasks(tasks):
    """Describe where each task is suspended."""
    told = []
    for task in tasks:
        coro = task.get_coro() if hasattr(task, "get_coro") else task.coro
        name = task.get_name() if hasattr(task, "get_name") else task.name
        frames = []
        while coro is not None:
            frame = getattr(coro, "cr_frame", None) or getattr(coro, "gi_frame", None)
            if frame is not None:
                place = frame.f_code.co_filename.rpartition("/")[2]
                frames.append(f"{place}:{frame.f_lineno} {frame.f_code.co_name}")
            coro = getattr(coro, "cr_await", None) or getattr(coro, "gi_yieldfrom", None)
        told.append(f"{name}: {' > '.join(frames)}")
    return told


def _tell_waits(worker):
    ties = worker._rare
    if ties is None:
        return ""
    return f"waits for {list(ties.waits)}, opened {list(ties.opened.values())}"


def _live_as_foreign_thread(actor):
    """Act from a thread that Creche did not start."""
    world = actor.world
    for _ in range(actor.rng.randint(3, 40)):
        actor.sleep()
        try:
            actor.step_sync()
        except BaseException as error:
            world.books.surface(error, "a foreign thread")
            for leaf in leaves(error):
                world.note(f"a foreign thread got {leaf!r}")


async def run_episode(world, number, watch):
    """Run one episode, and return its books."""
    world.signaller = world.actor("signal")
    watch.enter(world, number)
    threads = [
        threading.Thread(target=_live_as_foreign_thread, args=(world.actor("foreign"),))
        for _ in range(world.rng.choice((0, 1, 3)) * ("foreign" in world.enabled))
    ]
    root = world.actor("task")
    nodes = [world.new_node(world.rng) for _ in range(world.rng.choice((1, 1, 2)))]
    async with anyio.create_task_group() as world.tasks:
        for thread in threads:
            thread.start()
        for node in nodes:
            world.spawn(root, open_block, node)
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join)
    await _settle(world)
    world.books.check()
    world.tasks = None
    watch.leave()
    return world.books


async def _settle(world):
    """Wait for abandoned threads, and cancel workers of nodes that were never opened."""
    for job in world.books.jobs:
        worker = job.worker
        if worker is not None and not job.node.was_opened and not worker.is_finished:
            try:
                worker.cancel("never started")
            except WorkerError as error:
                world.books.fail(f"cancel() raised {error!r}: {job.told}")
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        abandoned = [job for job in world.books.jobs if job.worker and job.worker.is_abandoned]
        running = [job for job in world.books.jobs if job.entered != job.left]
        if not abandoned and not running and not world.books.unseen():
            return
        await anyio.sleep(0.005)
