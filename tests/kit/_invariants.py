"""What must hold whenever nothing moves, whatever was done before."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from hypothesis.stateful import RuleBasedStateMachine, invariant

from creche import Worker, WorkerState
from creche._state import FINAL

from ._model import QUEUE, leaves
from ._recorder import what_is_wrong

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._model import Place, Record
    from ._world import World


NAMED: dict[str, str] = {}
"""The name of each invariant, and what it says."""

Method = TypeVar("Method", bound="Callable[..., None]")


def named(method: Method) -> Method:
    """Count a method as an invariant."""
    NAMED[method.__name__] = inspect.getdoc(method) or ""
    return method


class Invariants(RuleBasedStateMachine):
    """The invariants, each a method of its own; the loop is quiet when they are looked at."""

    backend: ClassVar[str] = "asyncio"
    """The backend of AnyIO that the machine runs on."""
    backend_options: ClassVar[dict[str, Any]] = {}
    """The options of the backend."""

    world: World
    steps: int
    made: int
    starts: int
    has_broken: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Place] = []
        self.violations: list[str] = []
        self.steps = 0
        self.made = 0
        self.starts = 0

    # what it looks at

    def places(self) -> Iterator[Place]:
        """Give all nodes of all trees."""
        for root in self.roots:
            yield from root.below()

    def records(self) -> Iterator[Record]:
        """Give all workers of all trees."""
        for place in self.places():
            yield from place.records

    def expected_states(self, record: Record) -> set[WorkerState]:
        """Tell the states that a worker may end in, of what its work did.

        To be overridden for workers that make something else of the outcome of their work.

        Args:
            record: The worker, with the log of its work in ``play.log``.
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

    # the invariants

    @invariant()
    def all_holds(self) -> None:
        """Look at each invariant; one that is broken is told by its name and what it says."""
        for name, meaning in NAMED.items():
            try:
                getattr(self, name)()
            except AssertionError as error:
                self.has_broken = True
                raise AssertionError(f"{name}: {error}\n({meaning})") from error

    @named
    def what_was_seen_on_the_way(self) -> None:
        """Work is entered by a RUNNING worker, never above the limit, and left by a RUNNING one."""
        assert not self.violations, "; ".join(self.violations)

    @named
    def changes_are_announced_once_and_in_order(self) -> None:
        """The announcements are a life as the table allows it, and the last one is the state."""
        for record in self.records():
            wrong = what_is_wrong(record.worker, record.place.recorder.states(record.worker))
            assert wrong is None, wrong

    @named
    def final_states_are_final(self) -> None:
        """A worker that has ended never changes again."""
        for record in self.records():
            state = record.worker.state
            assert record.final in {None, state}, f"{record} was {record.final}, is {state}"
            if state in FINAL:
                record.final = state

    @named
    def cancelled_while_pending_was_never_entered(self) -> None:
        """The work of a worker that never was RUNNING was never entered."""
        for record in self.records():
            states = record.place.recorder.states(record.worker)
            if WorkerState.RUNNING not in states:
                assert not record.play.is_entered, f"{record} never ran, but {record.play}"

    @named
    def cancel_is_final(self) -> None:
        """A worker of which cancellation was asked says so, and never ends in SUCCESS."""
        for record in self.records():
            if record.asked is not None:
                worker = record.worker
                assert worker.is_cancelled, f"{record}: {record.asked} was not noticed"
                assert worker.cancelled_event.is_set(), f"{record}: cancelled_event is not set"
                assert worker.state is not WorkerState.SUCCESS, (
                    f"{record} is SUCCESS though {record.asked}"
                )

    @named
    def running_is_inside(self) -> None:
        """A worker is RUNNING if and only if its work is inside."""
        for record in self.records():
            running = record.worker.is_running
            inside = record.play.is_inside
            if inside and record.kind != "abandoned":
                assert running, f"{record} is {record.worker.state.name}, but {record.play}"
            if running and is_plain(record):
                assert inside, f"{record} is RUNNING, but {record.play}"

    @named
    def the_end_fits_the_log(self) -> None:
        """A worker ends as its work did."""
        for record in self.records():
            state = record.worker.state
            if state in FINAL:
                expected = self.expected_states(record)
                names = " or ".join(sorted(each.name for each in expected))
                assert state in expected, (
                    f"{record} is {state.name}, expected {names}: {record.play}"
                )

    @named
    def nobody_else_is_cancelled(self) -> None:
        """A worker is cancelled only where something was done that explains it."""
        for record in self.records():
            if record.worker.is_cancelled or record.worker.state is WorkerState.CANCELLED:
                assert record.may_end_cancelled, (
                    f"{record} was cancelled, and nothing explains it: "
                    f"{record.worker.cancel_reason}"
                )

    @named
    def what_is_cancelled_ends(self) -> None:
        """A worker of which cancellation was asked ends, unless its work holds on."""
        for record in self.records():
            if record.worker.is_cancelled and not record.holds_on:
                assert record.worker.is_finished, f"{record} was cancelled and goes on"

    @named
    def waiters_agree(self) -> None:
        """Every waiter learns how the worker ended; one that gave up is the only exception."""
        for record in self.records():
            for waiter in record.waiters:
                self._check_waiter(record, waiter.outcome)

    def _check_waiter(self, record: Record, outcome: tuple[str, object] | None) -> None:
        worker = record.worker
        if outcome is None:
            assert not worker.is_finished, f"{record} has ended and its waiter waits on"
            return
        told, what = outcome
        if told == "value":
            assert worker.state is WorkerState.SUCCESS, f"a waiter for {record} got a value"
            assert what is worker.result, f"a waiter for {record} got another value"
        elif told == "failed":
            assert worker.state is WorkerState.ERROR, f"a waiter for {record} was told of an error"
            assert what is worker.error, f"a waiter for {record} got another error"
        elif told == "cancelled":
            assert worker.state is WorkerState.CANCELLED, f"a waiter for {record}: cancelled"

    @named
    def the_manager_has_what_is_unfinished(self) -> None:
        """The manager and every group have exactly their unfinished workers, in order."""
        for root in self.roots:
            there = [record for place in root.below() for record in place.unfinished()]
            there.sort(key=lambda record: record.order)
            expected = [record.worker for record in there]
            assert list(root.node.workers) == expected, f"{root.node.workers!r} is not {expected}"
            assert len(root.node.workers) == len(expected)
            for place in root.below():
                for name in place.limits:
                    group = [record.worker for record in place.unfinished(name)]
                    assert list(place.node.group(name)) == group

    @named
    def slots_are_used(self) -> None:
        """While a slot is free nobody waits for one."""
        for place in self.places():
            for name, limit in place.limits.items():
                started = [each for each in place.unfinished(name) if each.started is not None]
                running = [each for each in started if each.play.is_inside]
                if limit is None or len(running) < limit:
                    waiting = [
                        each for each in started if not each.play.is_entered and is_plain(each)
                    ]
                    assert not waiting, f"{waiting} wait, and {len(running)} of {limit} run"

    @named
    def first_in_first_out(self) -> None:
        """Of two workers of a queue the one that was started first is not entered last."""
        for place in self.places():
            queue = [each for each in place.records if each.group == QUEUE and each.started]
            queue.sort(key=lambda each: each.started or 0)
            latest = 0
            for record in queue:
                if record.entered is not None:
                    assert record.entered >= latest, f"{record} was entered before its turn"
                    latest = record.entered
                elif not record.worker.is_finished:
                    latest = self.steps + 1  # nobody behind this one may be inside

    @named
    def errors_come_out_once(self) -> None:
        """A block raises exactly the errors of its workers that count, each one time."""
        for place in self.places():
            if place.is_over and place.kind != "mounted":
                due = Counter(
                    id(record.worker.error)
                    for each in place.mounted()
                    for record in each.records
                    if record.worker.state is WorkerState.ERROR and record.has_failed
                )
                out = Counter(id(error) for error in leaves(place.raised))
                assert out == due, f"{place} raised {place.raised!r}, due were {len(due)} errors"

    @named
    def what_has_to_end_ends(self) -> None:
        """A node that is told to leave, or has fallen, is over once nothing holds it."""
        for place in self.places():
            if place.has_fallen or place.is_leaving:
                holders = [
                    record
                    for each in place.below()
                    for record in each.unfinished()
                    if record.holds_on or (record.started is not None and not record.daemon)
                ]
                blocks = [each for each in place.children if each.kind == "block"]
                if not holders and all(each.is_over for each in blocks):
                    assert place.is_over, f"nothing holds {place} and it is not over"

    @named
    def a_left_node_is_empty(self) -> None:
        """A node that was left has no unfinished worker, and no work but abandoned is inside."""
        for place in self.places():
            if place.is_over:
                left = place.unfinished()
                inside = [
                    record
                    for record in place.records
                    if record.play.is_inside and record.kind != "abandoned"
                ]
                assert not left, f"{place} was left with {left}"
                assert not inside, f"{place} was left while {inside} run"

    @named
    def no_coroutine_is_forgotten(self) -> None:
        """No coroutine was dropped that nobody awaited."""
        forgotten = self.world.never_awaited() if hasattr(self, "world") else []
        assert not forgotten, "; ".join(forgotten)


def is_plain(record: Record) -> bool:
    """Tell whether the worker does nothing but its work: a ``run()`` of its own may do more."""
    return type(record.worker).run is Worker[Any].run
