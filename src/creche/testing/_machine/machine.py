"""The machine: what it knows, how it does one step, how it looks, and how it ends a program.

It has no rule and no invariant of its own. Those are functions of a machine in the modules beside
this one, which add them with the decorators at the end of this file.
"""

from __future__ import annotations

import gc
import inspect
import sys
import time
import weakref
from collections import Counter
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

import anyio
from hypothesis import currently_in_test_context, event
from hypothesis.stateful import RuleBasedStateMachine, invariant

from creche import Node, Worker, WorkerState
from creche._ground.states import FINAL
from creche.testing._leaks import busy_threads

from .logs import quiet_log
from .world import PATIENCE, World

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncGenerator, Callable, Iterator

    from anyio.abc import TaskStatus
    from hypothesis import settings

    from .model import Place, Record

HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
NAMED: dict[str, str] = {}
"""The name of each invariant, in the order they are looked at, and what it says."""
RACES: set[str] = set()
"""The names of the races."""
IMPATIENCE = 0.1
"""Real seconds to wait for a thread, in a machine that has waited for one in vain before."""


class WorkerMachine(RuleBasedStateMachine):
    """Does everything to a tree of nodes that a program can do, and checks what must hold.

    A Hypothesis ``RuleBasedStateMachine``. Work is scripted, see ``Play``, and the invariants
    believe the logs of the scripts. To test your own class of workers, override ``make_worker``
    in a subclass, and run that as a test case::

        class TestMine(MyMachine.TestCase): ...

    ``backend`` and ``backend_options`` say what it runs on. If your workers change the
    outcome of their work, override ``expected_states`` as well.

    Raises:
        AssertionError: From the test case: something that must hold does not. The message has the
            name of the invariant, what it says, and which worker or node violates it.

    Threads:
        The event loop has its own thread. Each rule is one visit to it, after which nothing moves
        until the next.
    """

    backend: ClassVar[str] = "asyncio"
    """The backend of AnyIO that the machine runs on."""
    backend_options: ClassVar[dict[str, Any]] = {}
    """The options of the backend."""
    examples: ClassVar[int] = 0
    """How many programs were run so far."""
    races: ClassVar[Counter[str]] = Counter()
    """In how many of them each race was seen."""
    progress_may_go_back: ClassVar[bool] = False
    """Whether the workers may set their progress back themselves, as one does that starts over."""

    world: World
    has_broken: bool = False
    _patience: ClassVar[float] = PATIENCE
    _around: ExitStack
    _leave: anyio.Event | None
    _threads: set[threading.Thread]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Count the programs of each machine on their own."""
        super().__init_subclass__(**kwargs)
        cls.examples = 0
        cls.races = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Place] = []
        self.violations: list[tuple[str, str]] = []
        """What was seen between the steps: an invariant, and how it was violated."""
        self.node_class: type[Node] = Node
        """What nodes are made of, unless ``make_node()`` is overridden."""
        self.steps: int = 0
        self.made = 0
        self.starts = 0
        self.posts = 0
        self._seen: set[str] = set()

    # what users may override

    def make_node(self, name: str, parent: Node | None) -> Node:
        """Make a node; override it to use a class of your own.

        Args:
            name: Its name.
            parent: The node above, if it has one already.

        Returns:
            The node, not yet opened.
        """
        return self.node_class(name, parent=parent)

    def make_worker(self, node: Node, work: Any, **options: Any) -> Worker[Any]:
        """Make a worker for a script; override it to use a class of your own.

        Args:
            node: The node.
            work: The work to run.
            options: The other arguments of ``Worker``.

        Returns:
            The worker, not yet added to the node.
        """
        return Worker(node, work, **options)

    def expected_states(self, record: Record) -> set[WorkerState]:
        """Tell the states that a worker may end in, of what its work did.

        To be overridden for workers that make something else of the outcome of their work.

        Args:
            record: The worker, with the log of its work in ``play.log``.

        Returns:
            The final states that are right.
        """
        last = record.play.log[-1] if record.play.log else None
        if last == "returned":
            told = "cancelled" in record.play.log and not record.is_deaf
            if told or record.asked is not None:
                return {WorkerState.CANCELLED}
            if record.may_end_cancelled:
                return {WorkerState.CANCELLED, WorkerState.SUCCESS}
            return {WorkerState.SUCCESS}
        if last in {"raised", "raised base"}:
            return {WorkerState.ERROR} if record.kind != "abandoned" else set(FINAL)
        return {WorkerState.CANCELLED}

    def add_worker(self, node: Node, worker: Worker[Any], *, start: bool, exclusive: bool) -> None:
        """Add a worker to its node; override it where your code does that in another way.

        Args:
            node: The node.
            worker: What ``make_worker()`` has made.
            start: Whether to start it.
            exclusive: Whether it replaces the unfinished workers of its group.

        Raises:
            WorkerError: The node refuses it.
        """
        node.workers.add_worker(worker, start=start, exclusive=exclusive)

    @asynccontextmanager
    async def around(self) -> AsyncGenerator[None]:
        """Stay open while a program runs; override it to have a server, a client or an app there.

        It is entered in a task of the event loop before the first node is opened, and left once
        the last one has ended.
        """
        yield  # pragma: no cover (one that is not overridden is not entered)

    async def look(self) -> None:
        """Check what your own code says about the workers; override it.

        It is called in the event loop after each step, and at the end of the program, once all
        workers have ended. ``records()`` has the workers.

        Raises:
            AssertionError: Something is not as it should be.
        """

    # what it knows

    def places(self) -> Iterator[Place]:
        """Give all nodes of all trees."""
        for root in self.roots:
            yield from root.below()

    def records(self) -> Iterator[Record]:
        """Give all workers of all trees."""
        for place in self.places():
            yield from place.records

    # a step

    def begin(self, seed: int = 0, log: str = "") -> None:
        """Start the loop.

        Args:
            seed: The seed of Trio's scheduler.
            log: What raises in the log: ``"filter"``, ``"handler"``, or nothing.
        """
        self._around = ExitStack()
        self._around.enter_context(quiet_log(log, partial(self.saw, "log that raises")))
        self._threads = set(busy_threads())
        self.world = World(self.backend, dict(self.backend_options), seed, self._forget)
        self._leave = None
        if type(self).around is not WorkerMachine.around:
            self.world.do(partial(self.world.start, self._stay_around))

    async def _stay_around(self, *, task_status: TaskStatus[None]) -> None:
        async with self.around():
            self._leave = anyio.Event()
            task_status.started()
            await self._leave.wait()
        self._leave = None

    def _leave_around(self) -> None:
        if self._leave is not None:
            self.world.do(self._leave.set)
            self.world.until(lambda: self._leave is None)

    def do(self, action: Callable[[], object]) -> None:
        """Do one thing on the loop, and let everything happen that follows.

        Args:
            action: A function, sync or async.
        """
        self.steps += 1
        for place in self.places():
            place.highest.clear()
        try:
            self.world.do(action)
        except BaseException:
            self.has_broken = True
            raise
        self._let_loops_unwind()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what a thread does, and for what follows; not forever, if it does not come."""
        if not self.world.until(condition, self._patience):
            type(self)._patience = IMPATIENCE
        self._let_loops_unwind()

    def await_thread(self, flag: threading.Event, failure: str) -> None:
        """Wait for what a thread does.

        Args:
            flag: What the thread sets.
            failure: What it means that it does not come.

        Raises:
            AssertionError: It has not come in time. This machine waits less long from then on:
                each program that shrinks the failure would take as long.
        """
        cls = type(self)
        if not flag.wait(cls._patience):
            cls._patience = IMPATIENCE
            self.fail(failure)

    def _let_loops_unwind(self) -> None:
        """Wait for the loops in threads whose workers were cancelled: they take their own time.

        One that has ended by now may have done so a moment ago, with its end yet to be announced;
        so each of them is waited for once, whatever its state.
        """
        while unwinding := [
            record
            for record in self.records()
            if record.kind == "async-thread"
            and record.worker.is_cancelled
            and not record.has_unwound
        ]:
            workers = [record.worker for record in unwinding]
            ended = self.world.until(lambda: all(each.is_finished for each in workers))  # noqa: B023 (called here)
            if not ended:  # pragma: no cover (it takes all of its patience)
                self.fail(f"{workers} were cancelled and go on")
            for record in unwinding:
                record.has_unwound = True

    def saw(self, race: str) -> None:
        """Count a race that came about, or another thing that is feared."""
        self._seen.add(race)

    def _count(self) -> None:
        """Count this program, and the races that it saw."""
        cls = type(self)
        cls.examples += 1
        cls.races.update(self._seen)
        for race in self._seen if currently_in_test_context() else ():
            event(f"met: {race}")

    # what must hold

    @invariant()
    def all_holds(self) -> None:
        """Look at each invariant; one that is broken is reported with its name and what it says."""
        __tracebackhide__ = True
        for name, meaning in NAMED.items():
            broken = self._look(name)
            if broken is not None:
                self.fail(f"{name}: {broken}\n({meaning})")
        broken = self._look("_look_on_the_loop")
        if broken is not None:
            self.fail(f"look: {broken}")

    def _look_on_the_loop(self) -> None:
        if type(self).look is not WorkerMachine.look:
            self.world.do(self.look)

    def check_invariants(
        self, settings: settings, output: Callable[[str], object], runtimes: dict[str, float]
    ) -> None:
        """Look at the invariants, as Hypothesis does, without a line of the report for each look.

        Args:
            settings: Those of the test.
            output: Takes the lines of the report.
            runtimes: How long each invariant takes.
        """

        def report(line: str) -> None:
            if not line.startswith("state.all_holds("):  # pragma: no branch
                output(line)  # pragma: no cover (only what fails is reported)

        __tracebackhide__ = True
        super().check_invariants(settings, report, runtimes)

    def _look(self, name: str) -> str | None:
        try:
            getattr(self, name)()
        except AssertionError as error:
            return str(error)
        return None

    def violate(self, name: str, told: str) -> None:
        """Note what violates an invariant between the looks; may be called in any thread."""
        self.violations.append((name, told))

    def check(self, condition: bool, told: str) -> None:
        """Note what a call has done, unless it is what it says; may be called in any thread.

        Args:
            condition: Whether it is.
            told: What it has done.
        """
        if not condition:
            self.violate("calls_do_what_they_say", told)

    def fail(self, told: str) -> NoReturn:
        """End the program because something does not hold."""
        # All faults are raised in this line, out of any handler: so Hypothesis takes them for one,
        # of which it reports the simplest program, with one traceback.
        self.has_broken = True
        raise AssertionError(told)

    def nothing_seen(self, name: str) -> None:
        """Look at what was seen of an invariant between the steps."""
        told = [what for violated, what in self.violations if violated == name]
        assert not told, "; ".join(told)

    # the end

    def teardown(self) -> None:
        """End everything, look once more, and see that nothing is left."""
        if not hasattr(self, "world"):
            return
        try:
            if not self.has_broken:
                self._end_all()
        finally:
            for record in self.records():
                record.play.open_gate()
                record.play.let_go()
            self._leave_around()
            self.world.close()
            self._around.close()
            self._count()
        if not self.has_broken:
            self._look_for_threads()

    def _look_for_threads(self) -> None:
        end = time.monotonic() + PATIENCE  # those of a pool end in their own time
        while left := busy_threads().keys() - self._threads:
            if time.monotonic() >= end:
                self.fail(f"these threads are left: {left}")
            time.sleep(0.001)

    def _end_all(self) -> None:
        for record in self.records():
            if record.in_thread:
                record.play.open_gate()
        self.do(self._let_everything_go)
        for record in self.records():
            if record.in_thread and record.play.is_entered:
                self.await_thread(record.play.left, f"the thread of {record} does not end")
                self.world.until(lambda: not record.worker.is_abandoned)  # noqa: B023 (called here)
        over = self.world.until(lambda: all(place.is_over for place in self.places()))
        if not over:
            self.fail(f"{[place for place in self.places() if not place.is_over]} do not end")
        self.all_holds()
        self._leave_around()
        left = self.world.tasks_left()
        if left:
            self.fail(f"these tasks are left: {left}")
        kept = [weakref.ref(each.worker) for each in self.records() if self._has_to_go(each)]
        self._forget()
        # Not at once: a thread may be on its way back to its pool.
        gone = self.world.until(lambda: not any(each() for each in kept), patience=5.0)
        if not gone:
            there = [str(each()) for each in kept if each() is not None]
            self.fail(f"reference cycles keep {there}")

    def _forget(self) -> None:
        """Let go of all nodes and workers; may be called again."""
        kept = [weakref.ref(each.worker) for each in self.records() if hasattr(each, "worker")]
        for record in self.records():
            record.forget()
        for place in self.places():
            place.forget()
        # A coroutine that is dropped later would be told of another program. What this one has made
        # is young, so that it need not take long.
        for generation in (0, 1, 2) if self.has_broken else ():
            if any(each() is not None for each in kept):
                gc.collect(generation)

    def _has_to_go(self, record: Record) -> bool:
        """Tell whether nothing may keep a worker once the machine has let go of it.

        An error holds the frames that it went through: those of a ``run()`` of its own hold the
        worker. What Trio keeps of its threads, and of a loop in one, is for the collector; and so
        is what AnyIO keeps of a task that was killed natively before its first step. Without a GIL
        what a thread has made is freed when that thread next runs, which may be never.
        """
        if not HAS_GIL or (record.place.is_killed and not record.play.is_entered):
            return False
        if self.backend == "trio" and record.in_thread:
            return record.kind != "async-thread" and record.worker.error is None
        return record.worker.error is None or record.is_plain

    def _let_everything_go(self) -> None:
        for place in self.places():
            place.is_cancelled = True
            if not place.is_over:
                place.node.cancel("the end of the test")
        for record in self.records():
            record.play.let_go()


# how functions are added to it

Step = TypeVar("Step", bound="Callable[..., Any]")
Look = TypeVar("Look", bound="Callable[[WorkerMachine], None]")


def add_rule(step: Step) -> Step:
    """Give the machine a rule of Hypothesis; its subclasses inherit it.

    Args:
        step: A function of the machine, already decorated by ``@rule`` or ``@initialize``.
    """
    setattr(WorkerMachine, step.__name__, step)
    return step


def add_race(*names: str) -> Callable[[Step], Step]:
    """Give the machine a rule that sets up a race.

    Args:
        names: What the race is counted as, by ``saw()``, where it has come about.
    """
    RACES.update(names)
    return add_rule


def add_invariant(look: Look) -> Look:
    """Give the machine an invariant, which raises ``AssertionError`` where it is broken.

    Args:
        look: A function of the machine; its docstring says what must hold.
    """
    NAMED[look.__name__] = inspect.getdoc(look) or ""
    setattr(WorkerMachine, look.__name__, look)
    return look
