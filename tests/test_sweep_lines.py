"""The sweep over lines: the core is interrupted once at each of its lines, and recovers.

A fault is planted at a line of the way in, of the end, of a handler or of a call from a thread: it
is raised there before the line does anything, as memory that runs out or a Ctrl+C would be. Which
lines there are, and how often each is reached, is not a list: each program is run once to find out,
and then once for each of them. What must hold then is the same everywhere: nothing hangs, whatever
was admitted has ended, nothing is held, and the fault itself is told.
"""

from __future__ import annotations

import gc
import linecache
import logging
import sys
import threading
import time
import warnings
from collections import Counter
from contextlib import contextmanager

import anyio
import pytest
from anyio import lowlevel

from creche import Message, Node, Worker
from creche._core import admission, cancelling, ending, moving, run
from creche._core.audience import Audience
from creche._core.calls import _await, _go_on, begin_call, make_call
from creche._core.group import WorkerGroup, forget
from creche._core.life import Life
from creche._core.log import tell_failure
from creche._core.tree import join
from creche._ground.bridge import Bridge
from creche._messages.mailbox import Mailbox
from creche._nursery.end import End
from creche._nursery.held import HeldTask
from creche._nursery.nesting import Nesting
from creche._nursery.nursery import Nursery
from creche._nursery.watcher import Watcher
from creche._running.task import in_task
from creche._running.thread import ThreadCall
from creche.testing._leaks import busy_threads
from helpers import RENDEZVOUS, SUCCESS, BaseExceptionGroup, leaves, settle, trio_random, until

PATIENCE = 60.0
"""Seconds after which a program hangs: a failure, never a delay."""
THROUGH = object()
"""What long work returns that nobody has stopped."""
MOST = 2
"""How often a line is interrupted within one program; a tenth time shows nothing new."""
NOWHERE = (
    "def release_on_behalf_of(",  # does nothing; Trio drops what it would raise
    "try:",
    "with ",
    "del ",
    "was_arriving = False",
    "self._arriving = was_arriving",
    "lost = None",
    "steps.busy -= 1",
    "bridge.steps.busy -= 1",
    "self.bridge.steps.busy -= 1",
    "way._lose_one()",
    "self.in_flight -= 1",
    "for way in ways",
    "if worker._created_at is not None:",
    "if worker._state in FINAL:",
)
"""The beginnings of lines at which nothing can be raised: they call nothing and make nothing.

And of those at which a lock is released, where Python reports the line once more.
"""

THE_END = [
    *(ending.end, ending._take_end, ending._tell, moving.move, moving.announce, tell_failure),
    *(run._end_by_error, run._end_by_return, run.main, run.notice_cancellation),
    *(cancelling.cancel, cancelling.cancel_here, cancelling.cancel_surely),
    *(cancelling.request, cancelling.deliver, cancelling.break_off, cancelling.reap),
    *(WorkerGroup._left, WorkerGroup._settle, ending.close_work),
    WorkerGroup._cancel_with_nursery,
    *(
        Nursery.fail,
        Nursery.cancel,
        Nursery._cancel_all,
        Nursery.cancel_from_outside,
        Nursery.check_idle,
        Nursery.wake,
        Nursery.shut,
    ),
    *(End._take_in, End._fail_in_body, End._take_leave, Nesting.leave, Watcher.stop),
    *(Life.on_closed, Life._close_unopened, Life._leave_parent, Life._forget_opener),
    *(Life.let_parent_go, Life.hold_parent),
    *(HeldTask.run, HeldTask.hold, HeldTask.hold_no_more, HeldTask.let_go, HeldTask.reap),
]
THE_WAY_IN = [
    *(admission.admit, admission._admit_here, admission._take_back),
    *(WorkerGroup.admit, WorkerGroup._start, forget),
    *(
        WorkerGroup._supersede,
        WorkerGroup._make_way,
        WorkerGroup._take_slot,
        Worker._keep_context,
    ),
    *(Worker._hold, run.begin, in_task, cancelling.refuse, cancelling.disown),
    *(Nursery.spawn, Nursery.spawn_held, Nursery.check_admission, Nursery.check_loop),
    *(Audience.announce, Audience._tell, join, Life.on_cancel),
]
CALLS = [
    *(Node.call_from_thread, make_call, begin_call, _await, _go_on),
    *(Bridge.post, Bridge.call, Bridge.run),
]
HANDLERS = [Mailbox.post, Mailbox._deliver, Mailbox._run, Mailbox._fail, Mailbox._again]
THREADS = [each for each in vars(ThreadCall).values() if callable(each)]


def codes(functions):
    """Return the code of functions, and of those defined in them."""
    ahead = [function.__code__ for function in functions]
    while ahead:
        code = ahead.pop()
        yield code
        ahead.extend(each for each in code.co_consts if hasattr(each, "co_code"))


NAMES = {
    code: f"{function.__qualname__}{'' if code is function.__code__ else ' ' + code.co_name}"
    for function in (*THE_END, *THE_WAY_IN, *CALLS, *HANDLERS, *THREADS)
    for code in codes([function])
}


class Planted(Exception):
    pass


class PlantedBase(BaseException):
    pass


class Boom(Exception):
    pass


class Plant:
    """Records each line that is reached, and raises a fault at one of them."""

    def __init__(self, site, fault):
        self.site, self.fault = site, fault
        self.reached = Counter()
        self.is_done = False
        self.lock = threading.RLock()  # the collector may come while it is held, and be traced

    def _call(self, frame, event, arg):
        return self._line if frame.f_code in NAMES else None

    def _line(self, frame, event, arg):
        code, number = frame.f_code, frame.f_lineno
        if event != "line" or self.is_done:
            return self._line
        text = linecache.getline(code.co_filename, number).strip()
        if not text.startswith(NOWHERE):
            with self.lock:
                place = (NAMES[code], number, text)
                self.reached[place] += 1
                self.is_done = (place, self.reached[place]) == self.site
            if self.is_done:
                raise self.fault
        return self._line

    def sites(self):
        """Return the lines that were reached, each as often as it is to be interrupted."""
        for place, times in self.reached.items():
            for time_ in range(1, min(times, MOST) + 1):
                yield place, time_

    @contextmanager
    def here(self):
        """Watch what the current thread does.

        Coverage does not count meanwhile. It keeps a stack of its own of the calls that are under
        way, but Python tells nobody how calls end once a tracer has raised; and what coverage is
        told from then on it takes for lines of other files.
        """
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(before)


class Told(logging.Handler):
    """Keeps the errors that are logged."""

    def __init__(self):
        super().__init__()
        self.errors = []

    def emit(self, record):
        if record.exc_info:
            self.errors.append(record.exc_info[1])


class Saved(Message, namespace="run"):
    pass


class App(Node):
    """A node whose handlers, sync and async, get all messages."""

    def on_worker_state_changed(self, event):
        pass

    async def on_run_saved(self, event):
        await lowlevel.checkpoint()


class Run:
    """One run of a program, with a fault or without."""

    def __init__(self, program, told, site=None, fault=None):
        self.program, self.told, self.fault = program, told, fault
        self.plant = Plant(site, fault)
        self.app = App("app")
        self.admitted, self.refused, self.caught, self.outcomes, self.answers = [], [], [], {}, []
        self.asked = 0
        self.raised = None
        self.is_over = False

    async def go(self):
        self.tasks = {task.id for task in anyio.get_running_tasks()}
        self.threads = set(busy_threads())
        end = time.monotonic() + PATIENCE
        async with anyio.create_task_group() as self.group:
            with self.plant.here():
                self.group.start_soon(self.live)
                while not self.is_over and time.monotonic() < end:
                    await lowlevel.checkpoint()
            hangs = "" if self.is_over else f"it hangs: {self.admitted}"
            if hangs:
                self.let_go()
            await settle(6)
            self.group.cancel_scope.cancel()
        assert not hangs, hangs
        await until(lambda: not busy_threads().keys() - self.threads)  # one may be abandoned
        await settle(2)

    def let_go(self):
        """Release what holds the node, so that the test ends although the wait is shielded."""
        nursery = self.app._creche_nursery
        nursery.cancel("it hangs")
        nursery.holds = nursery.blocks = nursery.bridge.in_flight = 0
        nursery.wake()

    async def live(self):
        try:
            async with self.app:
                await self.program(self)
        except BaseException as error:
            self.raised = error
        finally:
            self.is_over = True

    @contextmanager
    def catching(self):
        """Keep the errors that a call raises."""
        try:
            yield
        except Exception as error:
            self.caught.append(error)
        except PlantedBase as error:
            self.caught.append(error)

    def add(self, work, *, start=True, exclusive=False, **options):
        """Add a worker, and have a task wait for it."""
        worker = Worker(self.app, work, **options)
        self.refused.append(worker)
        with self.catching():
            self.app.workers.add_worker(worker, start=start, exclusive=exclusive)
            self.admitted.append(self.refused.pop())
            if start:
                self.outcomes[worker] = None
                self.group.start_soon(self.wait, worker)
        return worker

    async def wait(self, worker):
        try:
            await worker.wait()
        except Exception:  # how it ended, its state tells
            self.outcomes[worker] = "told"
        else:
            self.outcomes[worker] = "told"

    def check(self):
        """Check the invariants."""
        nursery = self.app._creche_nursery
        assert self.app.is_finished
        assert all(worker.is_finished for worker in self.admitted), self.admitted
        for worker in self.refused:
            assert worker.state is not SUCCESS, "its caller was told of an error, and it ran"
            assert worker.is_finished or worker.created_at is None, "refused, and not ended"
        for worker in self.admitted:
            went_on = worker.is_cancelled and worker.result is THROUGH
            assert not went_on, f"{worker} was cancelled, and was not told"
        assert all(self.outcomes.values()), "a waiter learnt nothing"
        for group in self.app._creche_groups.values():
            assert (len(group), group.running, group.queued) == (0, 0, 0), group
        assert nursery.holds == nursery.blocks == nursery.bridge.steps.busy == 0, "it is held"
        assert not any(task._holds for task in nursery.held), "a task holds it"
        assert len(self.answers) == self.asked, "a thread got no answer"
        raised = self.all_raised()
        assert len(set(map(id, raised))) == len(raised), f"raised twice: {raised}"
        failures = [worker.error for worker in self.admitted if worker.error is not None]
        for worker in self.admitted:
            if worker.error is not None and worker.exit_on_error:
                assert id(worker.error) in map(id, raised), f"not raised: {worker.error!r}"
        left = [task.name for task in anyio.get_running_tasks() if task.id not in self.tasks]
        assert not left, f"tasks are left: {left}"
        if self.plant.is_done:
            caught = [leaf for error in self.caught for leaf in leaves(error)]
            told = [*raised, *caught, *self.answers, *self.told, *failures]
            assert id(self.fault) in map(id, told), "it is lost"

    def all_raised(self):
        """Return the single errors that the block raised."""
        raised = leaves(self.raised) if self.raised is not None else []
        behind = getattr(self.raised, "__cause__", None)
        return [*raised, *(leaves(behind) if hasattr(behind, "exceptions") else [])]


# what the programs do


async def turns(times=12):
    for _ in range(times):
        await lowlevel.checkpoint()


async def returns():
    await lowlevel.checkpoint()


async def raises():
    await lowlevel.checkpoint()
    raise Boom


async def long():
    await turns(40)
    return THROUGH


async def returning(run):
    run.add(returns)
    await turns()


async def raising(run):
    run.add(long)
    run.add(raises)
    await turns()


async def storing(run):
    run.add(raises, exit_on_error=False)
    await turns()


async def cancelled(run):
    late, early = run.add(long), run.add(long, daemon=True)
    with run.catching():
        early.cancel("at once")
    await turns(3)
    with run.catching():
        late.cancel()
    run.add(long, start=False)
    await turns()


async def cancelled_with_the_node(run):
    run.app.group("g", limit=1)
    run.add(long, group="g")
    run.add(long, group="g")
    run.add(long, group="g", start=False)
    await turns(3)
    with run.catching():
        run.app.cancel()
    await turns()


async def raising_in_the_body(run):
    run.add(long)
    await turns(3)
    raise Boom


async def queued(run):
    run.app.group("g", limit=1)
    run.add(raises, group="g", exit_on_error=False)
    run.add(returns, group="g")
    with run.catching():
        run.add(returns, group="g").cancel()
    run.add(returns, group="g")
    await turns(20)


async def restarting(run):
    run.app.group("g", limit=1, overflow="restart")
    run.add(long, group="g")
    await turns(2)
    run.add(long, group="g")
    run.add(returns, group="g")
    await turns(20)


async def crowded(run):
    run.app.group("g", limit=1, overflow="keep_latest")
    run.app.group("d", limit=1, overflow="drop")
    for group in ("g", "g", "g", "d", "d"):
        run.add(returns, group=group)
    await turns(20)


async def exclusive(run):
    run.add(long)
    run.add(long, start=False)
    await turns(3)
    run.add(returns, exclusive=True)
    await turns(20)


async def started_late(run):
    run.app.group("g", limit=1)
    for group in ("g", "default", "g"):
        run.add(returns, group=group, start=False)
    with run.catching():
        run.app.workers.start_all()
    await turns(20)


async def coroutines(run):
    run.app.group("g", limit=1)
    for group in ("g", "g", "default"):
        with run.catching():
            run.admitted.append(run.app.run_worker(returns(), group=group))
    await turns(20)


async def handling(run):
    for _ in range(2):
        with run.catching():
            run.app.post_message(Saved())
        await turns(3)


async def mounting(run):
    child = App("child")
    with run.catching():
        await run.app.mount(child)
        run.admitted.append(child.run_worker(long))
        await turns(5)
        await child.remove()
    await turns(5)


async def in_thread(run):
    run.add(lambda: None, thread=True)
    await turns(3)


async def raising_in_thread(run):
    def work():
        raise Boom

    run.add(work, thread=True)
    await turns(3)


async def async_in_thread(run):
    run.add(returns, thread=True)
    await turns(3)


async def calling_from_thread(run):
    def work():
        for fn in (int, returns, raises):
            run.asked += 1
            try:
                run.answers.append(run.app.call_from_thread(fn))
            except BaseException as error:
                run.answers.append(error)

    run.add(work, thread=True)
    await turns(3)


async def adding_from_thread(run):
    def work():
        with run.catching():
            run.app.run_worker(returns)
        with run.catching():
            run.app.post_message(Saved())

    run.add(work, thread=True)
    await turns(3)


async def cancelled_in_thread(run, **options):
    here, go = threading.Event(), threading.Event()

    def work():
        here.set()
        assert go.wait(RENDEZVOUS)
        raise Boom

    worker = run.add(work, thread=True, **options)
    try:
        while worker in run.admitted and not (here.is_set() or worker.is_finished):
            await lowlevel.checkpoint()
        with run.catching():
            worker.cancel()
        await turns(5)
    finally:
        go.set()


async def abandoned(run):
    await cancelled_in_thread(run, abandon_on_cancel=True)


PROGRAMS = [
    *(returning, raising, storing, cancelled, cancelled_with_the_node, raising_in_the_body),
    *(queued, restarting, crowded, exclusive, started_late, coroutines, handling, mounting),
    *(in_thread, raising_in_thread, async_in_thread, calling_from_thread, adding_from_thread),
    *(cancelled_in_thread, abandoned),
]


@pytest.fixture
def anyio_backend(anyio_backend):
    """The backends without the debug mode of asyncio, which takes three times as long."""
    name, options = anyio_backend
    return name, {key: options[key] for key in options if key != "debug"}


@pytest.fixture
def told():
    """Keep what is logged, and show it nowhere else."""
    logger, handler = logging.getLogger("creche"), Told()
    logger.addHandler(handler)
    logger.propagate = False
    yield handler.errors
    logger.propagate = True
    logger.removeHandler(handler)


@pytest.fixture
def watched(monkeypatch):
    """Watch AnyIO's threads, too, from the first line of the library on."""
    original, runs = ThreadCall._in_thread, []

    def in_thread(self):
        with runs[-1].plant.here():
            original(self)

    monkeypatch.setattr(ThreadCall, "_in_thread", in_thread)
    return runs


@pytest.mark.parametrize("program", PROGRAMS)
async def test_each_line(program, anyio_backend, told, watched):
    """Whichever line of the core is interrupted, nothing hangs or is kept, all is reported."""

    async def go(site=None, fault=None):
        if anyio_backend[0] == "trio":
            trio_random().seed(1)
        told.clear()
        run = Run(program, told, site, fault)
        watched[:] = [run]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            await run.go()
            run.check()
        assert not caught, caught[0].message
        return run

    first = await go()
    sites = list(first.plant.sites())
    assert len(sites) >= 90, "too little of the core was reached"
    # asyncio has them all; on the others, whose tasks take turns otherwise, some will do.
    stride = 10 if anyio_backend[1].get("use_uvloop") else 2 if anyio_backend[0] == "trio" else 1
    for number, site in list(enumerate(sites))[::stride]:
        fault = (Planted, PlantedBase)[number % 2](site)
        try:
            await go(site, fault)
        except (AssertionError, BaseExceptionGroup) as error:
            raise AssertionError(f"{program.__name__}, {fault!r}: {error}") from error
    gc.collect()  # so that what was never awaited is told here
