"""Rules that cancel: each way there is."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from hypothesis import strategies as st
from hypothesis.stateful import consumes, precondition, rule

from creche.testing._scripts import OnCancel

from .acts import ask, ask_and_cancel, fall, find_task
from .bundles import NOTHING, cancelled, groups, places, started, threads, unstarted
from .machine import WorkerMachine, add_rule

if TYPE_CHECKING:
    from .model import Place, Record


@add_rule
@rule(target=cancelled, record=consumes(started))
def cancel(machine: WorkerMachine, record: Record) -> Record:
    """Cancel a started worker."""
    return _cancel(machine, record)


@add_rule
@rule(record=consumes(unstarted))
def cancel_unstarted(machine: WorkerMachine, record: Record) -> None:
    """Cancel a worker that may not have been started."""
    _cancel(machine, record)


@add_rule
@rule(record=cancelled)
def cancel_again(machine: WorkerMachine, record: Record) -> None:
    """Cancel a worker once more."""
    _cancel(machine, record)


@add_rule
@rule(record=threads)
def cancel_thread(machine: WorkerMachine, record: Record) -> None:
    """Cancel a worker whose thread is at its gate."""
    _cancel(machine, record)


def _cancel(machine: WorkerMachine, record: Record) -> Record:
    def act() -> None:
        ask_and_cancel(record, "cancel() was called")
        has_heard = record.worker.is_cancelled or record.worker.is_finished
        machine.check(has_heard, f"{record} was cancelled, and knows nothing of it")

    machine.do(act)
    return record


@add_rule
@rule(record=started)
def cancel_from_a_thread(machine: WorkerMachine, record: Record) -> None:
    """Cancel a worker from another thread."""

    async def act() -> None:
        record.ask("cancel() was called in a thread")
        await to_thread.run_sync(record.worker.cancel)

    machine.do(act)


@add_rule
@precondition(lambda machine: machine.backend == "asyncio")
@rule(record=started)
def cancel_task(machine: WorkerMachine, record: Record) -> None:
    """Cancel the native task of a worker whose work is inside."""

    def act() -> None:
        if record.play.is_inside:
            if record.play.script.on_cancel not in {OnCancel.OBEY, OnCancel.RESIST}:
                record.is_deaf = True  # its work alone has learnt of it so far
            else:
                record.ask("its task was cancelled")
            task = find_task(record)
            assert task is not None, f"{record} has no task"
            task.cancel()

    machine.do(act)


@add_rule
@rule(place=places, group=groups)
def cancel_group(machine: WorkerMachine, place: Place, group: str) -> None:
    """Cancel a group."""

    def act() -> None:
        ask(place.unfinished(group), "its group was cancelled")
        place.node.group(group).cancel()

    machine.do(act)


@add_rule
@rule(place=places, whole=st.booleans())
def cancel_through_the_manager(machine: WorkerMachine, place: Place, whole: bool) -> None:
    """Cancel the workers of one node, or those of the tree."""

    def act() -> None:
        manager = place.node.workers
        if whole:
            for each in place.root.below():
                ask(each.unfinished(), "all were cancelled")
            manager.cancel_all()
        else:
            ask(place.unfinished(), "its node's workers were cancelled")
            manager.cancel_node(place.node)

    machine.do(act)


@add_rule
@rule(place=consumes(places))
def cancel_node(machine: WorkerMachine, place: Place) -> None:
    """Cancel a node and all below it."""
    machine.do(partial(fall, place, place.node.cancel))


@add_rule
@rule(target=places, place=consumes(places))
def cancel_outer_scope(machine: WorkerMachine, place: Place) -> Any:
    """Cancel the scope round a node's block."""
    if place.kind == "mounted":
        return place
    machine.do(partial(fall, place, place.scope.cancel, promptly=False))
    return NOTHING
