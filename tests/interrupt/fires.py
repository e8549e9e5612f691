"""The disturbances of programs: Ctrl+C and calls in signal handlers, at chosen places.

Each function returns JSON-compatible data: the places that it hit, and the faults at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import sys
import threading
import time
import traceback
import warnings

import anyio
from places import Places
from programs import ALL, ASLEEP, Poke, Stage, slower

from creche import WorkerState
from creche.testing._leaks import busy_threads

BACKENDS = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
STRUCK = "struck: "
FAILS = "worker 'fails' failed"
seconds = 15.0
"""A program that runs longer counts as hung. At 70 % of that, its tasks are printed."""
GRACE = 5.0
"""Seconds within which all threads must have ended after the program, or that is a fault."""


class Run:
    """One run of a program on a backend, with the faults that it found."""

    def __init__(self, backend, program, *, looks=True):
        self._options = BACKENDS[backend]
        self._program = {**ALL, **ASLEEP}[program]
        self._looks = looks
        self.stage = Stage()
        self.faults = []
        self.outcome = "nothing"

    def go(self, places):
        """Run the program, and store how it ended in ``outcome``."""
        self.places = places
        warnings.simplefilter("always")
        logging.getLogger("creche").addFilter(lambda record: record.getMessage() != FAILS)
        logging.getLogger("asyncio").addFilter(self._hear)
        if "trio" in sys.modules:
            sys.modules["trio"]._core._run._r.seed(0)  # Trio shuffles tasks with it
        if self._looks:
            signal.signal(signal.SIGALRM, self._look)
            signal.setitimer(signal.ITIMER_REAL, 0.7 * seconds)
        try:
            with places:
                anyio.run(self._program, self.stage, **self._options)
        except BaseException as error:
            self.outcome = _named(error)
            self.error = error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _look(self, *_):
        """Print where each task is, because the program does not end or is very slow."""
        self.faults.append("does not end by itself")
        sys.stderr.write(STRUCK + " then ".join(self.places.hit) + "\n")
        with contextlib.suppress(Exception):
            tell_tasks()
            for each in (*self.stage.nodes, *self.stage.groups, *self.stage.workers):
                sys.stderr.write(f"{each!r}\n")

    def _hear(self, record):
        # asyncio logs this for any program that gets two Ctrl+C.
        return "unhandled exception during asyncio.run() shutdown" not in record.getMessage()

    def expect(self, *outcomes):
        if self.outcome not in outcomes:
            self.faults.append(f"ended with {self.outcome}")
            with contextlib.suppress(AttributeError):
                traceback.print_exception(type(self.error), self.error, self.error.__traceback__)

    def look_at_what_is_left(self, untold=0):
        """Check that nothing is left behind, and that each worker went through valid states.

        Args:
            untold: How many changes the handlers may have missed. Under Trio, a Ctrl+C just as a
                handler is called prevents the call.
        """
        stage, told = self.stage, {}
        self._untold = untold
        for worker, state in stage.events:
            told.setdefault(worker, []).append(state)
        for node in stage.nodes:
            if " OPEN>" in repr(node) or " CLOSING>" in repr(node):
                self.faults.append(f"left open: {node!r}")
            holds = node._creche_nursery.holds
            if node.is_finished and holds:
                self.faults.append(f"holds left: {holds} on {node!r}")
        entered = [worker for worker in told if worker.node.is_finished]
        for worker in {*entered, *(each for each in stage.workers if each.node.is_finished)}:
            self._check(worker, told.get(worker))
        for group in stage.groups:
            if len(group) or group.running or group.queued:
                self.faults.append(f"held: {group!r}")
        if stage.root is not None and len(stage.root.workers):
            self.faults.append(f"held: {stage.root.workers!r}")
        for limiter in stage.limiters:
            if limiter.borrowed_tokens:
                self.faults.append("held: tokens of a limiter")
        end = time.monotonic() + GRACE
        while _threads() and time.monotonic() < end:
            time.sleep(0.001)
        self.faults += [f"thread left: {told}" for told in _threads()]

    def _check(self, worker, told):
        if worker.created_at is None:
            return  # it was never added
        if not worker.is_finished:
            self.faults.append(f"not ended: {worker!r}")
        elif worker.is_cancelled and worker.state is WorkerState.SUCCESS:
            self.faults.append(f"cancelled, and a success: {worker!r}")
        if told is None:
            return
        passed = [WorkerState.PENDING, worker.state]
        if worker.started_at is not None:
            passed.insert(1, WorkerState.RUNNING)
        self._untold -= len(passed) - len(told)
        if worker.name == "early" and {*told} == {*passed}:
            return  # before its node is open, a handler's call takes effect at once, however early
        if [each for each in passed if each in told] != told or self._untold < 0:
            names = ", ".join(each.name for each in told)
            self.faults.append(f"told in the wrong order: {names}, of {worker!r}")

    def result(self):
        return {"hit": self.places.hit, "faults": self.faults}


def _threads():
    """Return what each busy thread does, except this one."""
    here = threading.current_thread()
    return [told for thread, told in busy_threads().items() if thread is not here]


def warm_up(backend):
    """Do the imports of a first run on a backend, so that forked children need not repeat them."""

    async def main():
        async with Stage().node() as app:
            await app.run_worker(slower)

    anyio.run(main, **BACKENDS[backend])


def _named(error):
    name = type(error).__name__
    if hasattr(error, "exceptions"):
        return f"{name}[{', '.join(map(_named, error.exceptions))}]"
    return name


def tell_tasks():
    """Print the stack of each task to stderr."""
    try:
        for task in asyncio.all_tasks():
            task.print_stack(file=sys.stderr)
    except RuntimeError:
        from trio.lowlevel import current_root_task  # noqa: PLC0415 (an extra)

        _tell_trio(current_root_task())


def _tell_trio(task):
    sys.stderr.write(f"{task!r}\n")
    coro = task.coro
    while coro is not None:
        frame = getattr(coro, "cr_frame", None)
        if frame is not None:
            code = frame.f_code
            sys.stderr.write(f"  {code.co_filename}:{frame.f_lineno} {code.co_name}\n")
        coro = getattr(coro, "cr_await", None)
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            _tell_trio(child)


# Ctrl+C


def interrupt():
    signal.raise_signal(signal.SIGINT)


def undisturbed(backend, program, **options):
    """Run a program undisturbed, and return all its places in order."""
    run = Run(backend, program)
    trail = []
    run.go(Places({}, trail=trail, **options))
    run.expect("nothing")
    run.look_at_what_is_left()
    return {**run.result(), "trail": trail}


def ctrl_c(backend, program, moments, *, unwinding=False, **options):
    """Press Ctrl+C at places, and with ``unwinding`` once more while a worker unwinds."""
    run = Run(backend, program)
    places = Places(dict.fromkeys(moments, interrupt), **options)

    def again():
        run.stage.unwinds = lambda: None
        if places.hit:
            places.hit.append("while a worker unwinds")
            interrupt()

    if unwinding:
        run.stage.unwinds = again
    run.go(places)
    expected = ["KeyboardInterrupt"] if places.hit else ["nothing"]
    if sys.version_info < (3, 11) and backend != "trio" and places.hit:
        expected.append("CancelledError")  # as in plain AnyIO
    run.expect(*expected)
    if len(places.hit) > 1 and not unwinding and backend != "trio":
        # asyncio raises the second one in any code that runs. The program only has to end.
        return {**run.result(), "is_rough": True}
    run.look_at_what_is_left(untold=len(places.hit) if backend == "trio" else 0)
    return run.result()


# calls in a signal handler


def newest(stage):
    """Return the newest unfinished worker that a program knows of, even if it is not added yet."""
    return next((each for each in reversed(stage.workers) if not each.is_finished), None)


def cancel_newest(stage):
    worker = newest(stage)
    if worker is not None:
        worker.cancel("signal")
        return [worker]
    return []


def cancel_found(stage):
    found = [worker for worker in stage.root.workers if not worker.is_finished][-1:]
    for worker in found:
        worker.cancel("signal")
    return found


def cancel_all(stage):
    stage.root.workers.cancel_all("signal")
    return []


def cancel_groups(stage):
    for node in stage.nodes:
        for name in ("some", "one", "limited", "default", "slower"):
            node.workers.cancel_group(node, name)
    return []


def cancel_group(stage):
    for group in stage.groups:
        group.cancel("signal")
    return []


def cancel_node(stage):
    node = next((each for each in reversed(stage.nodes) if not each.is_finished), None)
    if node is not None:
        node.cancel("signal")
    return []


def cancel_root(stage):
    stage.root.cancel("signal")
    return []


def post(stage):
    for number, node in enumerate(stage.nodes):
        stage.sent[number] = node.post_message(Poke(number))
    return []


DEEDS = {
    "worker": cancel_newest,
    "found": cancel_found,
    "manager": cancel_all,
    "manager's group": cancel_groups,
    "group": cancel_group,
    "node": cancel_node,
    "root": cancel_root,
    "message": post,
}


class Handler:
    """A signal handler that makes a call on the nodes or workers of a program."""

    def __init__(self, run, deed):
        self._run = run
        self._deed = DEEDS[deed]
        self._cancelled = []

    def __call__(self, *_):
        stage = self._run.stage
        try:
            if stage.root is not None:
                self._cancelled += self._deed(stage)
        except BaseException as error:
            self._run.faults.append(f"the call in the handler raised: {error!r}")
            traceback.print_exc()

    def look_at_what_came_of_it(self):
        run = self._run
        for worker in self._cancelled:
            if not worker.is_cancelled:
                run.faults.append(f"cancelled, and is not: {worker!r}")
        for number, sent in run.stage.sent.items():
            node, told = run.stage.nodes[number], run.stage.poked[number]
            if hasattr(node, "on_poke") and told != int(sent):
                run.faults.append(f"message not told once: {told} times, {sent} on {node!r}")


def in_handler(backend, program, moments, deed, **options):
    """Make a call in a signal handler at each of the given places."""
    run = Run(backend, program)
    handler = Handler(run, deed)
    signal.signal(signal.SIGUSR1, handler)
    act = functools.partial(signal.raise_signal, signal.SIGUSR1)
    run.go(Places(dict.fromkeys(moments, act), **options))
    run.expect("nothing")
    run.look_at_what_is_left()
    handler.look_at_what_came_of_it()
    return run.result()


def while_asleep(backend, program, deed):
    """Make a call in a signal handler while the event loop sleeps."""
    run = Run(backend, program, looks=False)
    handler = Handler(run, deed)

    def act(*args):
        signal.setitimer(signal.ITIMER_REAL, 0)
        handler(*args)

    signal.signal(signal.SIGALRM, act)
    # By then the loop sleeps; if not, the run proves nothing. The timer repeats, because Python
    # does not run the handler of a signal that comes just before the sleep.
    run.stage.falls_asleep = functools.partial(signal.setitimer, signal.ITIMER_REAL, 0.05, 0.05)
    run.go(Places({}))
    run.expect("nothing")
    run.look_at_what_is_left()
    handler.look_at_what_came_of_it()
    return {**run.result(), "hit": ["asleep"]}
