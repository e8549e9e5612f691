"""Rules that run work: on the loop, in threads, and elsewhere, as an adapter does."""

from __future__ import annotations

from functools import partial
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import consumes, rule

from creche import Worker, WorkerError, WorkerState
from creche._ground.states import FINAL, TRANSITIONS
from creche.testing._scripts import Ending, OnCancel, Script
from creche.testing._strategies import scripts

from .acts import note_start, run_worker
from .bundles import NOTHING, groups, kinds, places, started, sure, threads, unstarted
from .machine import WorkerMachine, add_rule
from .model import ODD, QUEUE, Place, Record

MOST_THREADS = 8
"""With more threads than these at their gates, none is started.

AnyIO has 40 of them: one more would wait until the gates of the others give up.
"""


@add_rule
@rule(
    target=started,
    place=places,
    script=scripts(),
    group=groups,
    kind=kinds,
    exclusive=sure,
    fatal=sure,
    daemon=sure,
)
def run(machine: WorkerMachine, place: Place, script: Script, **options: Any) -> Any:
    """Run a worker."""
    return _run(machine, place, script, **options)


@add_rule
@rule(target=started, place=places, script=scripts(), group=groups, fatal=sure, daemon=sure)
def serve(machine: WorkerMachine, place: Place, script: Script, **options: Any) -> Any:
    """Run a service, which begins again before it follows the script."""
    return _run(machine, place, script, kind="service", **options)


def _run(machine: WorkerMachine, place: Place, script: Script, **options: Any) -> Any:
    made: list[Record] = []
    machine.do(lambda: made.append(run_worker(machine, place, script, **options)))
    return made[0] if made[0] in place.records else NOTHING


@add_rule
@rule(target=unstarted, place=places, script=scripts(), group=groups, kind=kinds, exclusive=sure)
def create(machine: WorkerMachine, place: Place, script: Script, **options: Any) -> Any:
    """Add a worker without starting it."""
    return _run(machine, place, script, start=False, **options)


@add_rule
@rule(place=places)
def start_all(machine: WorkerMachine, place: Place) -> None:
    """Start whatever was not started in a tree."""
    waiting = [
        record
        for each in place.root.below()
        for record in each.unfinished()
        if record.started is None and record.elsewhere is None
    ]
    if any(record.place.refuses for record in waiting):
        return

    def act() -> None:
        for record in waiting:
            if record.exclusive:  # what it replaces depends on the order
                for other in record.place.unfinished(record.group):
                    other.may_be_cancelled = True
        place.root.node.workers.start_all()
        for record in sorted(waiting, key=lambda record: record.order):
            before = record.place.unfinished(record.group)
            note_start(machine, record, before, exclusive=False)

    machine.do(act)


@add_rule
@rule(
    target=threads,
    place=places,
    ending=st.sampled_from(Ending),
    kind=st.sampled_from(["thread", "abandoned", "async-thread"]),
    on_cancel=st.sampled_from([each for each in OnCancel if each is not OnCancel.HOLD]),
)
def run_thread(
    machine: WorkerMachine, place: Place, ending: Ending, kind: str, on_cancel: OnCancel
) -> Any:
    """Run a worker in a thread, up to its gate."""
    if sum(each.in_thread and each.play.is_inside for each in machine.records()) >= MOST_THREADS:
        return NOTHING
    record = _run(machine, place, Script(ending=ending, on_cancel=on_cancel), kind=kind)
    if isinstance(record, Record) and not record.worker.is_finished:
        machine.await_thread(record.play.arrived, f"the thread of {record} did not come")
    return record


@add_rule
@rule(record=consumes(threads))
def finish_thread(machine: WorkerMachine, record: Record) -> None:
    """Let a thread end."""
    record.play.open_gate()
    if record.play.is_entered:
        machine.await_thread(record.play.left, f"the thread of {record} does not end")
        machine.until(lambda: record.worker.is_finished and not record.worker.is_abandoned)
        machine.check(
            not record.worker.is_abandoned, f"{record} is abandoned though its thread ended"
        )


@add_rule
@rule(record=started)
def open_gate(machine: WorkerMachine, record: Record) -> None:
    """Let work go on to its end."""
    machine.do(record.play.open_gate)


@add_rule
@rule(record=started)
def let_go(machine: WorkerMachine, record: Record) -> None:
    """Let work that holds on unwind."""
    machine.do(record.play.let_go)


@add_rule
@rule(place=places, limit=st.integers(1, 3), group=st.sampled_from([QUEUE, ODD]))
def change_limit(machine: WorkerMachine, place: Place, limit: int, group: str) -> None:
    """Change the limit of a group."""
    machine.do(partial(place.change_limit, group, limit))


@add_rule
@rule(record=st.one_of(unstarted, started), state=st.sampled_from(WorkerState))
def assign_state(machine: WorkerMachine, record: Record, state: WorkerState) -> None:
    """Assign a state, as an adapter does that runs the work elsewhere; legal or not."""
    if record.kind == "coroutine":
        return  # it would be the adapter's to await or to close

    def act() -> None:
        worker = record.worker
        before = worker._state
        if record.started is not None:
            is_legal = before not in FINAL and state is WorkerState.CANCELLED
        else:
            is_late = state is WorkerState.SUCCESS and worker.is_cancelled
            is_legal = state in TRANSITIONS[before] and not is_late
        if is_legal and state is WorkerState.CANCELLED:
            record.ask("CANCELLED was assigned")
        elif is_legal:
            record.elsewhere = state
        try:
            vars(Worker)["state"].__set__(worker, state)  # a subclass may read it in other words
        except WorkerError:
            machine.check(not is_legal, f"{record}: {state} was refused")
            machine.check(worker._state is before, f"{record}: {state} was refused, and changed it")
        else:
            machine.check(is_legal, f"{record}: {state} was assigned to a worker that was {before}")

    machine.do(act)
