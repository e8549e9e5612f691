"""How a machine acts on its trees: nodes are opened, workers are made, and all is kept in mind."""

from __future__ import annotations

import time
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from anyio import lowlevel

from creche import (
    DeadlockError,
    Message,
    Node,
    Worker,
    WorkerCancelled,
    WorkerError,
    WorkerFailed,
)

from ._invariants import Invariants
from ._leaks import busy_threads
from ._model import FREE, ODD, QUEUE, Place, Record, Waiter, find_stuck
from ._recorder import EventRecorder
from ._scripts import Ending, OnCancel, Play, Script
from ._world import PATIENCE, World, broken_log

if TYPE_CHECKING:
    import threading
    from collections.abc import Awaitable, Callable

    from creche import Overflow

_KINDS: dict[str, dict[str, Any]] = {
    "function": {},
    "coroutine": {},
    "partial": {},
    "thread": {"thread": True},
    "abandoned": {"thread": True, "abandon_on_cancel": True},
    "async-thread": {"thread": True},
}


class Posted(Message, bubble=True, namespace="machine"):
    """A message that a rule posts.

    Args:
        place: Where.
        number: Which it is.
        start: What the handler does, if it starts a worker: it gives the record of that.
    """

    def __init__(
        self, place: Place, number: int, start: Callable[[Place], Record] | None = None
    ) -> None:
        self.place = place
        self.number = number
        self.start = start


@dataclass(init=False, repr=False)
class Alike(Node):
    """A node that equals all of its kind, and has no hash."""


class Base(Invariants):
    """A machine without rules."""

    node_class: type[Node] = Node
    """What nodes are made of, unless ``make_node()`` is overridden."""
    _threads: set[threading.Thread]

    # what users may override

    def make_node(self, name: str, parent: Node | None) -> Node:
        """Make a node; to be overridden for a class of one's own.

        Args:
            name: Its name.
            parent: The node above, if it has one already.
        """
        return self.node_class(name, parent=parent)

    def make_worker(self, node: Node, work: Any, **options: Any) -> Worker[Any]:
        """Make a worker of a script; to be overridden for a class of one's own.

        Args:
            node: The node.
            work: The work to run.
            options: The other arguments of ``Worker``.
        """
        return Worker(node, work, **options)

    # the loop

    def do(self, action: Callable[[], object]) -> None:
        """Do one thing on the loop, and let everything happen that follows."""
        self.steps: int = self.steps + 1
        for place in self.places():
            place.highest.clear()
        try:
            self.world.do(action)
        except BaseException:
            self.has_broken = True
            raise
        self._let_loops_unwind()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what a thread does, and for what follows."""
        self.world.until(condition)
        self._let_loops_unwind()

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
            assert ended, f"{workers} were cancelled and go on"
            for record in unwinding:
                record.has_unwound = True

    def begin(self, seed: int = 0, log: str = "") -> None:
        """Start the loop; the seed is for Trio's scheduler, and what raises in the log is named."""
        self._around = ExitStack()
        if log:
            self._around.enter_context(broken_log(log, partial(self.saw, "log that raises")))
        self._threads = set(busy_threads())
        self.world: World = World(self.backend, dict(self.backend_options), seed)

    # nodes

    def add_place(
        self, kind: str, parent: Place | None, limit: int = 1, overflow: Overflow = "restart"
    ) -> Place:
        """Make a node, with its groups; on the loop."""
        number = sum(1 for _ in self.places())
        above = parent.node if parent is not None and kind == "block" else None
        node = self.make_node(f"{kind}{number}", above)
        place = Place(node, kind, parent, EventRecorder(node))
        place.name = f"{parent.name}/{node.name}" if parent is not None else node.name
        place.limits = {FREE: None, QUEUE: limit, ODD: limit}
        setattr(node, Posted.handler_name, partial(_handle, place))
        node.group(FREE)
        node.group(QUEUE, limit=limit)
        node.group(ODD, limit=limit, overflow=overflow)
        if parent is None:
            self.roots.append(place)
        elif node == parent.node:
            self.saw("node that equals its parent")
        return place

    async def subscribe(self, place: Place) -> None:
        """Listen to a node and all below it, until it has closed."""
        ready = anyio.Event()
        self.world.spawn(partial(_listen, place, ready))
        await ready.wait()

    async def open_block(self, place: Place) -> None:
        """Open a node in a task of its own, and stay in its block until it is told to leave."""
        ready = anyio.Event()
        self.world.spawn(partial(self._stay, place, ready))
        await ready.wait()

    async def _stay(self, place: Place, ready: anyio.Event) -> None:
        try:
            with place.scope:
                async with place.node:
                    ready.set()
                    await place.leave.wait()
        except BaseException as error:  # noqa: BLE001 (an invariant looks at it)
            place.raised = error
        finally:
            place.has_ended = True
            ready.set()

    # workers

    def run_worker(
        self,
        place: Place,
        script: Script,
        *,
        group: str = FREE,
        kind: str = "function",
        start: bool = True,
        exclusive: bool = False,
        fatal: bool = False,
        daemon: bool = False,
    ) -> Record:
        """Add a worker to a node and keep in mind what must follow; on the loop."""
        self.made += 1
        name = f"w{self.made}"
        play = Play(script, name)
        record = Record(place, group, play, fatal=fatal, daemon=daemon, kind=kind)
        record.order = self.made
        record.exclusive = exclusive
        play._noted = partial(self._note, record)
        options = {"name": name, "group": group, "exit_on_error": fatal, "daemon": daemon}
        record.worker = self.make_worker(place.node, _work(play, kind), **options, **_KINDS[kind])
        refused = place.refuses
        before = [other for other in place.unfinished(group) if other is not record]
        try:
            place.node.workers.add_worker(record.worker, start=start, exclusive=exclusive)
        except WorkerError:
            assert refused or place.is_closing, f"{place} refused a worker"
            place.records.remove(record)
            play._noted = None
            assert record.worker.is_finished, f"{record} was refused and is unfinished"
            assert not play.is_entered, f"{record} was refused and entered"
        else:
            assert not refused, f"{place} took a worker, and should refuse it"
            if start:
                self.note_start(record, before, exclusive=exclusive)
        return record

    def note_start(self, record: Record, before: list[Record], *, exclusive: bool) -> None:
        """Keep in mind what the start of a worker does to others."""
        self.starts += 1
        record.started = self.starts
        if record.place.has_fallen:
            record.ask("its node has fallen")
            record.may_be_cancelled = True
        elif exclusive:
            for other in before:
                other.ask(f"{record.play.__name__} is exclusive")
                other.may_be_cancelled = True
        elif record.group == ODD:
            for other in (*before, record):
                other.may_be_cancelled = True

    def _note(self, record: Record, what: str) -> None:
        """See what the work does, as it does it."""
        worker = record.worker
        if what in {"raised", "raised base"}:
            self._count_error(record)
        if what == "entered":
            record.entered = self.steps
            inside = [each for each in record.place.unfinished(record.group) if each.play.is_inside]
            place = record.place
            limit = place.highest.get(record.group, place.limits[record.group])
            if limit is not None and len(inside) > limit:
                told = f"{record} was entered as one of {len(inside)}, above {limit}"
                self.violations.append(("never_above_the_limit", told))
        if not worker.is_running and record.kind != "abandoned":
            told = f"{record} was {worker.state.name} as its work {what}"
            self.violations.append(("running_is_inside", told))

    def _count_error(self, record: Record) -> None:
        script = record.play.script
        if "cancelled" not in record.play.log:
            self.saw(script.ending.value)
        else:
            self.saw(script.on_cancel.value)
            if script.ending is Ending.GROUP and script.on_cancel is not OnCancel.RAISE:
                self.saw("cancellation in a group that stays whole")

    def add_waiter(self, record: Record) -> Waiter:
        """Set a task going that waits for a worker; on the loop."""
        waiter = Waiter(record)
        self.world.spawn(partial(_wait, waiter))
        return waiter

    async def wait_in(self, record: Record, awaited: Record) -> None:
        """Wait for a worker within the work of another, or the same."""
        waiter = Waiter(awaited, record)
        waiter.is_ring = record in find_stuck(record.place.root.all_records())
        await _wait(waiter)

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
            self.world.close()
            self._around.close()
            self.count()
        if not self.has_broken:
            self._look_for_threads()

    def _look_for_threads(self) -> None:
        end = time.monotonic() + PATIENCE  # those of a pool end in their own time
        while left := busy_threads().keys() - self._threads:
            assert time.monotonic() < end, f"these threads are left: {left}"
            time.sleep(0.001)

    def _end_all(self) -> None:
        for record in self.records():
            if record.in_thread:
                record.play.open_gate()
        self.do(self._let_everything_go)
        for record in self.records():
            if record.in_thread and record.play.is_entered:
                assert record.play.left.wait(PATIENCE), f"the thread of {record} does not end"
                self.world.until(lambda: not record.worker.is_abandoned)  # noqa: B023 (called here)
        over = self.world.until(lambda: all(place.is_over for place in self.places()))
        assert over, f"{[place for place in self.places() if not place.is_over]} do not end"
        self.all_holds()
        left = self.world.tasks_left()
        assert not left, f"these tasks are left: {left}"
        kept = [weakref.ref(each.worker) for each in self.records() if self._has_to_go(each)]
        for record in self.records():
            del record.worker
            record.waiters.clear()
            record.play._noted = record.play.then = None
            record.play.errors.clear()
        for place in self.places():
            place.recorder.events.clear()
            del place.node, place.recorder
            place.raised = None
            place.records.clear()
            place.got.clear()
            place.heard.clear()
        # Not at once: a thread may be on its way back to its pool.
        gone = self.world.until(lambda: not any(each() for each in kept), patience=5.0)
        assert gone, f"reference cycles keep {[str(each()) for each in kept if each() is not None]}"

    def _has_to_go(self, record: Record) -> bool:
        """Tell whether nothing may keep a worker once the machine has let go of it.

        An error holds the frames that it went through: those of a ``run()`` of its own hold the
        worker. What Trio keeps of its threads, and of a loop in one, is for the collector; and so
        is what AnyIO keeps of a task that was killed natively before its first step.
        """
        if record.place.is_killed and not record.play.is_entered:
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


async def _wait(waiter: Waiter) -> None:
    outcome: tuple[str, object] = ("gave up", None)
    try:
        with waiter.scope:
            outcome = ("value", await waiter.record.worker.wait())
    except WorkerFailed as failed:
        outcome = ("failed", failed.error)
    except WorkerCancelled:
        outcome = ("cancelled", None)
    except DeadlockError:
        outcome = ("deadlock", None)
    finally:
        waiter.outcome = outcome


async def _listen(place: Place, ready: anyio.Event) -> None:
    async with place.node.subscribe(Worker.StateChanged, tree=True) as events:
        ready.set()
        async for message in events:
            place.heard.append(message)


def _handle(place: Place, message: Posted) -> Awaitable[object] | None:
    """Note a message; every other handler is async, unless it starts a worker and gives that."""
    place.got.append((message.place, message.number))
    if message.start is not None:
        return message.start(place).worker
    return lowlevel.checkpoint() if message.number % 2 else None


def _work(play: Play, kind: str) -> Any:
    if kind == "coroutine":
        return play()
    if kind == "partial":
        return partial(play)
    return play.in_thread if kind in {"thread", "abandoned"} else play
