"""Progress: a rule that reports some, and what must hold of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import rule

from .acts import look_at_progress
from .bundles import started
from .machine import WorkerMachine, add_invariant, add_rule

if TYPE_CHECKING:
    from .model import Record


@add_rule
@rule(
    record=started,
    steps=st.integers(1, 3),
    more=st.integers(0, 3),
    known=st.booleans(),
    anew=st.sampled_from([True, True, False]),
)
def report_progress(
    machine: WorkerMachine, record: Record, steps: int, more: int, known: bool, anew: bool
) -> None:
    """Report progress for a worker, and maybe tell it to begin anew."""
    if not record.is_plain:
        return  # it reports its own

    def act() -> None:
        worker = record.worker
        before, _ = record.reported
        done = before + steps
        total = done + more if known else None
        worker.update(total_steps=total)
        worker.advance(steps)
        if anew:
            machine.saw("progress set back")
            done = record.completed = 0
            worker.update(completed_steps=done)
        record.reported = done, total

    machine.do(act)


@add_invariant
def progress_stays_within_the_total(machine: WorkerMachine) -> None:
    """No worker completes more steps than there are."""
    for record in machine.records():
        look_at_progress(machine, record)
    machine.nothing_seen("progress_stays_within_the_total")


@add_invariant
def progress_never_goes_back_by_itself(machine: WorkerMachine) -> None:
    """The completed steps never decrease, unless the worker is told to start over."""
    machine.nothing_seen("progress_never_goes_back_by_itself")


@add_invariant
def progress_is_what_was_reported(machine: WorkerMachine) -> None:
    """The completed steps of a worker are those that its work reported."""
    for record in machine.records():
        if record.is_plain:
            worker = record.worker
            got = worker.completed_steps, worker.total_steps
            assert got == record.reported, f"{record} is at {got}, reported was {record.reported}"
            done, total = record.reported
            percent = done * 100 / total if total else 0.0
            assert worker.progress == percent, f"{record} is at {worker.progress} %"
