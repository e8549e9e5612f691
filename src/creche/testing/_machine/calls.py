"""Rules that wait, that call from threads, and that post messages."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from hypothesis import strategies as st
from hypothesis.stateful import MultipleResults, consumes, multiple, rule

from creche import WorkerCancelled
from creche.testing._strategies import scripts

from .acts import Posted, add_waiter, run_worker, wait_in
from .bundles import places, started, sure, waiters
from .machine import WorkerMachine, add_rule
from .world import turn

if TYPE_CHECKING:
    from creche.testing._scripts import Script

    from .model import Place, Record, Waiter


@add_rule
@rule(target=waiters, record=started)
def wait(machine: WorkerMachine, record: Record) -> Waiter:
    """Wait for a worker, in a task of its own."""
    made: list[Waiter] = []
    machine.do(lambda: made.append(add_waiter(machine, record)))
    return made[0]


@add_rule
@rule(waiter=consumes(waiters))
def cancel_waiter(machine: WorkerMachine, waiter: Waiter) -> None:
    """Cancel a wait; the worker must not notice."""
    machine.do(waiter.scope.cancel)


@add_rule
@rule(record=started, awaited=started)
def wait_within(machine: WorkerMachine, record: Record, awaited: Record) -> None:
    """Open the gate to work that then waits for a worker, be it itself."""

    def act() -> None:
        record.play.then = partial(wait_in, record, awaited)
        record.play.open_gate()

    machine.do(act)


@add_rule
@rule(place=places)
def call_from_a_thread(machine: WorkerMachine, place: Place) -> None:
    """Call functions on the loop, sync and async, from a thread that belongs to nobody."""
    if place.is_over:
        return
    told: list[str] = []

    async def call(what: str) -> None:
        await turn()
        told.append(what)

    def in_thread() -> None:
        try:
            place.node.call_from_thread(told.append, "called")
            place.node.call_from_thread(call, "awaited")
        except WorkerCancelled:
            told.append("refused")

    machine.do(partial(to_thread.run_sync, in_thread))
    due = ["refused"] if place.has_fallen else ["called", "awaited"]
    machine.check(told == due, f"a thread that called on {place} was {told}, due was {due}")


@add_rule
@rule(
    target=started,
    place=places,
    number=st.integers(1, 3),
    script=st.one_of(st.none(), scripts()),
    fatal=sure,
)
def post(
    machine: WorkerMachine, place: Place, number: int, script: Script | None = None, **options: Any
) -> MultipleResults[Record]:
    """Post some messages at once; they are handled on the node and on those above it.

    With a script, each handler starts a worker and gives that.
    """
    made: list[Record] = []

    def start(where: Place) -> Record:
        assert script is not None
        machine.saw("handler that starts a worker")
        made.append(run_worker(machine, where, script, **options))
        return made[-1]

    def act() -> None:
        for _ in range(number):
            machine.posts += 1
            message = Posted(place, machine.posts, start if script is not None else None)
            if place.node.post_message(message):
                place.posted.append(machine.posts)
                if not (place.has_fallen or place.is_closing):
                    place.passed_on.append(machine.posts)

    machine.do(act)
    return multiple(*(record for record in made if record in record.place.records))
