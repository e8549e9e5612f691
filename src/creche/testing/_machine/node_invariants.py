"""What must hold of nodes, groups and threads whenever nothing moves."""

from __future__ import annotations

from collections import Counter

from creche import WorkerError, WorkerState

from .machine import WorkerMachine, add_invariant
from .model import QUEUE


@add_invariant
def the_manager_has_what_is_unfinished(machine: WorkerMachine) -> None:
    """The manager and every group contain exactly their unfinished workers, in order."""
    for root in machine.roots:
        there = [record for place in root.below() for record in place.unfinished()]
        there.sort(key=lambda record: record.order)
        expected = [record.worker for record in there]
        assert list(root.node.workers) == expected, f"{root.node.workers!r} is not {expected}"
        assert len(root.node.workers) == len(expected)
        for place in root.below():
            for name in place.limits:
                group = [record.worker for record in place.unfinished(name)]
                assert list(place.node.group(name)) == group


@add_invariant
def never_above_the_limit(machine: WorkerMachine) -> None:
    """No work begins while as many as the limit are running."""
    machine.nothing_seen("never_above_the_limit")


@add_invariant
def slots_are_used(machine: WorkerMachine) -> None:
    """No worker waits while a slot is free."""
    for place in machine.places():
        for name, limit in place.limits.items():
            started = [each for each in place.unfinished(name) if each.started is not None]
            running = [each for each in started if each.play.is_inside]
            if limit is None or len(running) < limit:
                waiting = [each for each in started if not each.play.is_entered and each.is_plain]
                assert not waiting, f"{waiting} wait, and {len(running)} of {limit} run"


@add_invariant
def first_in_first_out(machine: WorkerMachine) -> None:
    """Workers of a queue begin in the order in which they were started."""
    for place in machine.places():
        queue = [each for each in place.records if each.group == QUEUE and each.started]
        queue.sort(key=lambda each: each.started or 0)
        latest = 0
        for record in queue:
            if record.entered is not None:
                assert record.entered >= latest, f"{record} was entered before its turn"
                latest = record.entered
            elif not record.worker.is_finished:
                latest = machine.steps + 1  # nobody behind this one may be inside


@add_invariant
def errors_come_out_once(machine: WorkerMachine) -> None:
    """A block raises exactly the errors of its workers that count, each once."""
    for place in machine.places():
        if place.is_over and place.kind != "mounted":
            due = Counter(
                id(error)
                for each in place.mounted()
                for record in each.records
                if record.worker._state is WorkerState.ERROR and record.has_failed
                for error in _singles(record.worker.error)
            )
            out = Counter(id(error) for error in _leaves(place.raised, killed=place.is_killed))
            assert out == due, f"{place} raised {place.raised!r}, due were {len(due)} errors"


@add_invariant
def what_has_to_end_ends(machine: WorkerMachine) -> None:
    """A node that was told to leave, or has failed, ends once nothing holds it open."""
    machine.nothing_seen("what_has_to_end_ends")
    for place in machine.places():
        if place.has_fallen or place.is_leaving:
            holders = [
                record
                for each in place.below()
                for record in each.unfinished()
                if record.holds_on or (record.started is not None and not record.daemon)
            ]
            below = [each for each in place.below() if each is not place]
            blocks = [each for each in below if each.kind == "block"]
            if not holders and all(each.is_over for each in blocks):
                assert place.is_over, f"nothing holds {place} and it is not over"


@add_invariant
def a_left_node_is_empty(machine: WorkerMachine) -> None:
    """A node that was left has no unfinished worker, and only abandoned work still runs."""
    for place in machine.places():
        if place.is_over:
            left = place.unfinished()
            inside = [
                record
                for record in place.records
                if record.play.is_inside and record.kind != "abandoned"
            ]
            assert not left, f"{place} was left with {left}"
            assert not inside, f"{place} was left while {inside} run"


@add_invariant
def subscribers_hear_what_handlers_hear(machine: WorkerMachine) -> None:
    """A subscription to the tree gets every change that the handlers of the nodes get."""
    for root in machine.roots:
        numbers = [message.number for message in root.heard]
        assert numbers == sorted(set(numbers)), f"{root}: the events are not in order"
        for record in root.all_records():
            heard = [each.state for each in root.heard if each.worker is record.worker]
            told = record.place.recorder.states(record.worker)
            assert heard == told, f"{record}: heard were {heard}, told {told}"


@add_invariant
def messages_come_in_order(machine: WorkerMachine) -> None:
    """Messages posted to a node are handled there and above it, once and in order."""
    for place in machine.places():
        for other in place.below():
            got = [number for origin, number in place.got if origin is other]
            # An async handler that a cancelled node cuts short passes nothing on.
            due = other.posted if place is other else other.passed_on
            assert set(due) <= set(got), f"{place} got {got} of {due} from {other}"
            ahead = iter(other.posted)
            assert all(number in ahead for number in got), f"{place} got {got} from {other}"


@add_invariant
def no_late_effects(machine: WorkerMachine) -> None:
    """No call from a thread takes effect after its worker or its node was cancelled."""
    machine.nothing_seen("no_late_effects")


@add_invariant
def no_coroutine_is_forgotten(machine: WorkerMachine) -> None:
    """No coroutine is dropped without having been awaited."""
    forgotten = machine.world.never_awaited() if hasattr(machine, "world") else []
    assert not forgotten, "; ".join(forgotten)


def _singles(error: BaseException | None) -> list[BaseException]:
    """Give the single errors in one that may be a group."""
    inner: tuple[BaseException, ...] | None = getattr(error, "exceptions", None)
    if inner is not None:
        return [leaf for each in inner for leaf in _singles(each)]
    return [] if error is None else [error]


def _leaves(error: BaseException | None, *, killed: bool) -> list[BaseException]:
    """Give the single errors in what a block raised, those behind a bare one included.

    Args:
        error: What it raised.
        killed: Whether it may have raised a ``WorkerError`` of its own: a native cancel hit one of
            its tasks before the first step.
    """
    if error is None or (killed and isinstance(error, WorkerError)):
        return []
    inner: tuple[BaseException, ...] | None = getattr(error, "exceptions", None)
    if inner is not None:
        return [leaf for each in inner for leaf in _leaves(each, killed=False)]
    behind = error.__cause__
    further = _leaves(behind, killed=False) if hasattr(behind, "exceptions") else []
    return [error, *further]
