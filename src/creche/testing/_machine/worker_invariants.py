"""What must hold of each worker whenever nothing moves, whatever was done before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from creche import WorkerState
from creche._ground.states import FINAL
from creche.testing._recorder import what_is_wrong

from .acts import CRASHES
from .machine import WorkerMachine, add_invariant

if TYPE_CHECKING:
    from .model import Record


@add_invariant
def calls_do_what_they_say(machine: WorkerMachine) -> None:
    """Each call does what its documentation says, or is refused when it should be."""
    machine.nothing_seen("calls_do_what_they_say")


@add_invariant
def changes_are_announced_once_and_in_order(machine: WorkerMachine) -> None:
    """The announced states follow the table of states, and the last one is the worker's state."""
    for record in machine.records():
        wrong = what_is_wrong(record.worker, record.place.recorder.states(record.worker))
        assert wrong is None, wrong


@add_invariant
def final_states_are_final(machine: WorkerMachine) -> None:
    """A worker that has ended never changes again."""
    for record in machine.records():
        state = record.worker._state
        assert record.final in {None, state}, f"{record} was {record.final}, is {state}"
        if state in FINAL:
            record.final = state


@add_invariant
def cancelled_while_pending_was_never_entered(machine: WorkerMachine) -> None:
    """A worker that never was RUNNING never entered its work."""
    for record in machine.records():
        states = record.place.recorder.states(record.worker)
        if WorkerState.RUNNING not in states:
            assert not record.play.is_entered, f"{record} never ran, but {record.play}"


@add_invariant
def cancel_is_final(machine: WorkerMachine) -> None:
    """A worker that was cancelled says so and never ends in SUCCESS."""
    for record in machine.records():
        if record.asked is not None:
            worker = record.worker
            assert worker.is_cancelled, f"{record}: {record.asked} was not noticed"
            assert worker.cancelled_event.is_set(), f"{record}: cancelled_event is not set"
            assert worker._state is not WorkerState.SUCCESS, (
                f"{record} is SUCCESS though {record.asked}"
            )


@add_invariant
def running_is_inside(machine: WorkerMachine) -> None:
    """A worker is RUNNING if and only if its work has begun and not ended."""
    machine.nothing_seen("running_is_inside")
    for record in machine.records():
        running = record.worker.is_running
        inside = record.play.is_inside
        if inside and record.kind != "abandoned":
            assert running, f"{record} is {record.worker._state.name}, but {record.play}"
        if running and record.is_plain:
            assert inside, f"{record} is RUNNING, but {record.play}"


@add_invariant
def services_begin_again(machine: WorkerMachine) -> None:
    """A service begins again after each crash, and is ready only in the attempt that said so."""
    for record in machine.records():
        worker = record.worker
        if record.kind == "service" and record.play.is_inside and record.is_plain:
            machine.saw("service that has begun again")
            told = f"{record} is in its attempt {worker.attempt}, ready: {worker.is_ready}"
            assert worker.attempt == CRASHES + 1, told
            assert worker.is_ready or worker.is_cancelled, told


@add_invariant
def work_is_not_repeated(machine: WorkerMachine) -> None:
    """Work runs once; a worker may only try again what has raised."""
    for record in machine.records():
        log = record.play.log
        again = [number for number, what in enumerate(log) if number and what == "entered"]
        for number in again:
            failed = log[number - 1] in {"raised", "raised base"}
            assert failed, f"{record} was entered again: {record.play}"


@add_invariant
def the_end_fits_the_log(machine: WorkerMachine) -> None:
    """A worker ends as its work did."""
    for record in machine.records():
        state = record.worker._state
        if state in FINAL:
            expected = (
                {record.elsewhere} if record.elsewhere in FINAL else machine.expected_states(record)
            )
            names = " or ".join(sorted(each.name for each in expected))
            assert state in expected, f"{record} is {state.name}, expected {names}: {record.play}"


@add_invariant
def nobody_else_is_cancelled(machine: WorkerMachine) -> None:
    """A worker is cancelled only if something was done that explains it."""
    for record in machine.records():
        if record.worker.is_cancelled or record.worker._state is WorkerState.CANCELLED:
            assert record.may_end_cancelled, (
                f"{record} was cancelled, and nothing explains it: {record.worker.cancel_reason}"
            )


@add_invariant
def what_is_cancelled_ends(machine: WorkerMachine) -> None:
    """A cancelled worker ends, unless its work refuses to."""
    for record in machine.records():
        if record.worker.is_cancelled and not (record.holds_on or record.elsewhere):
            assert record.worker.is_finished, f"{record} was cancelled and goes on"


@add_invariant
def waiters_agree(machine: WorkerMachine) -> None:
    """Every waiter learns how the worker ended, except one that gave up."""
    for record in machine.records():
        for waiter in record.waiters:
            _check_waiter(record, waiter.outcome)


def _check_waiter(record: Record, outcome: tuple[str, object] | None) -> None:
    worker = record.worker
    if outcome is None:
        assert not worker.is_finished, f"{record} has ended and its waiter waits on"
        return
    told, what = outcome
    if told == "value":
        assert worker._state is WorkerState.SUCCESS, f"a waiter for {record} got a value"
        assert what is worker.result, f"a waiter for {record} got another value"
    elif told == "failed":
        assert worker._state is WorkerState.ERROR, f"a waiter for {record} was told of an error"
        assert what is worker.error, f"a waiter for {record} got another error"
    elif told == "cancelled":
        assert worker._state is WorkerState.CANCELLED, f"a waiter for {record}: cancelled"


@add_invariant
def rings_are_refused(machine: WorkerMachine) -> None:
    """A worker that waits for its own end gets an error at once, and no other worker does."""
    for record in machine.records():
        for waiter in record.waiters:
            refused = waiter.outcome is not None and waiter.outcome[0] == "deadlock"
            told = f"{'was' if refused else 'was not'} refused"
            ring = f"it {'closes' if waiter.is_ring else 'does not close'} a ring"
            assert refused == waiter.is_ring, (
                f"the wait of {waiter.within} for {record} {told}, and {ring}"
            )
