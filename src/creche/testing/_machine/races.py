"""The races that are feared, each with a rule of its own: chance does not find them.

Each sets its own scene and acts without a checkpoint between the two things that race, or with a
drawn number of them. It is counted where it has really come about: the one thing was under way as
the other came. ``--hypothesis-show-statistics`` tells how often each was seen, and so does
``WorkerMachine.races``.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from creche import WorkerCancelled, WorkerState
from creche.testing._leaks import is_back
from creche.testing._scripts import Ending, OnCancel, Play, Script

from .acts import (
    Posted,
    add_place,
    add_waiter,
    ask_and_cancel,
    fall,
    find_task,
    open_root,
    remove_node,
    run_worker,
)
from .bundles import places
from .machine import WorkerMachine, add_race, add_rule
from .model import FREE, QUEUE, Place, Record
from .world import PATIENCE, settle, turn

if TYPE_CHECKING:
    from collections.abc import Callable

RACED = "cancel() was called in a race"
either = st.booleans()
mostly = st.sampled_from([True, True, False])
turns = st.sampled_from([0, 0, 0, 1, 2, 3])
answers = st.sampled_from(OnCancel)
failing = st.sampled_from([OnCancel.RAISE, OnCancel.RAISE_WITHIN, OnCancel.RAISE_FINALLY])
# A group is split only here, and only here are two errors of a node often equal.
endings = st.sampled_from(
    [each for each in Ending if each is not Ending.RETURN]
    + [Ending.FROZEN, Ending.GROUP, Ending.GROUP]
)


def _both(
    first: Callable[[], object], second: Callable[[], object], swap: bool, between: int
) -> Any:
    async def act() -> None:
        one, other = (second, first) if swap else (first, second)
        one()
        await turn(between)
        other()

    return act()


def _nothing() -> None:
    pass


def _find_open(machine: WorkerMachine, place: Place, *, mounted: bool = True) -> Place:
    """Give a place that is open, the given one if it is: a race on another is not seen."""
    for each in (place, *machine.places()):
        is_closed = each.is_over or each.refuses or each.has_fallen or each.is_leaving
        if not is_closed and (mounted or each.kind != "mounted"):
            return each
    return open_root(machine)


@add_race("cancel before the first step")
@rule(where=places, between=turns, kind=st.sampled_from(["function", "coroutine"]))
def race_cancel_before_first_step(
    machine: WorkerMachine, where: Place, between: int, kind: str
) -> None:
    """Start a worker and cancel it before its first step, or some steps later."""
    place = _find_open(machine, where)

    async def act() -> None:
        record = run_worker(machine, place, Script(gated=False, before=2), kind=kind)
        await turn(between)
        if not (record.play.is_entered or record.worker.is_finished):
            machine.saw("cancel before the first step")
        is_pending = record.worker._state is WorkerState.PENDING
        ask_and_cancel(record, RACED)
        if is_pending:
            machine.check(record.worker.is_finished, f"{record} was not cancelled at once")

    machine.do(act)


@add_race("finish and cancel in one tick", "cancel and finish in one tick")
@rule(where=places, swap=either, between=turns, after=turns, answer=answers)
def race_finish_and_cancel(
    machine: WorkerMachine, where: Place, swap: bool, between: int, after: int, answer: OnCancel
) -> None:
    """Let work go to its end and cancel it, in either order, in one tick or nearly so."""
    place = _find_open(machine, where)

    async def act() -> None:
        record = run_worker(machine, place, Script(after=after, on_cancel=answer))
        await settle()
        if record.play.is_inside and not between:
            machine.saw(f"{'cancel and finish' if swap else 'finish and cancel'} in one tick")
        cancel = partial(ask_and_cancel, record, RACED)
        await _both(record.play.open_gate, cancel, swap, between)
        record.play.let_go()

    machine.do(act)


@add_race("waiter cancelled as the worker ends")
@rule(where=places, swap=either, between=turns, ending=st.sampled_from(Ending))
def race_waiter_cancelled_as_worker_ends(
    machine: WorkerMachine, where: Place, swap: bool, between: int, ending: Ending
) -> None:
    """Cancel a waiter as its worker ends, beside another waiter."""
    place = _find_open(machine, where)

    async def act() -> None:
        record = run_worker(machine, place, Script(ending=ending))
        waiter, _ = add_waiter(machine, record), add_waiter(machine, record)
        await settle()
        if record.play.is_inside and between <= 1:  # it takes the worker two turns to end
            machine.saw("waiter cancelled as the worker ends")
        await _both(record.play.open_gate, waiter.scope.cancel, swap, between)

    machine.do(act)


@add_race("exclusive replace during unwinding")
@rule(
    where=places,
    group=st.sampled_from([FREE, QUEUE]),
    answer=st.sampled_from([OnCancel.HOLD, OnCancel.RESIST]),
    between=turns,
)
def race_exclusive_replaces_during_unwinding(
    machine: WorkerMachine, where: Place, group: str, answer: OnCancel, between: int
) -> None:
    """Start exclusive workers while the one before is still on its way out."""
    place = _find_open(machine, where)

    async def act() -> None:
        script = Script(on_cancel=answer, unwinding=5)
        made = [run_worker(machine, place, script, group=group, exclusive=True)]
        await turn(4)
        for _ in range(2):
            await turn(2)
            if "cancelled" in made[0].play.log and made[0].play.is_inside:
                machine.saw("exclusive replace during unwinding")
            made.append(run_worker(machine, place, script, group=group, exclusive=True))
        await turn(between)
        for record in made[:2]:
            record.play.let_go()
        await settle()
        made[2].play.open_gate()

    machine.do(act)


@add_race("start while the node closes")
@rule(where=places, between=turns, swap=either, gated=either)
def race_start_while_the_node_closes(
    machine: WorkerMachine, where: Place, between: int, swap: bool, gated: bool
) -> None:
    """Start work as the block of the node is left."""
    place = _find_open(machine, where, mounted=False)

    def leave() -> None:
        place.is_leaving = True
        place.leave.set()

    def start() -> None:
        if place.is_leaving and not place.is_over:
            machine.saw("start while the node closes")
        run_worker(machine, place, Script(gated=gated), kind="coroutine")

    machine.do(partial(_both, leave, start, swap, between))


@add_race("limit lowered as a worker ends")
@rule(where=places, between=turns, swap=either, limit=st.sampled_from([1, 2, 3]))
def race_limit_changed_as_a_worker_ends(
    machine: WorkerMachine, where: Place, between: int, swap: bool, limit: int
) -> None:
    """Change the limit of a group as one of its workers ends and others wait."""
    place = _find_open(machine, where)
    change = partial(place.change_limit, QUEUE, limit)

    async def act() -> None:
        place.change_limit(QUEUE, 2)
        made = [run_worker(machine, place, Script(), group=QUEUE) for _ in range(3)]
        await settle()
        inside = [record for record in place.unfinished(QUEUE) if record.play.is_inside]
        if limit < len(inside) and not between:
            machine.saw("limit lowered as a worker ends")
        # A run() of its own may never come to its work.
        open_gate = inside[0].play.open_gate if inside else _nothing
        await _both(open_gate, change, swap, between)
        await settle()
        for record in made:
            record.play.open_gate()

    machine.do(act)


@add_race("thread returns as the node is cancelled")
@rule(where=places, swap=either, between=turns, whole=mostly)
def race_thread_returns_as_it_is_cancelled(
    machine: WorkerMachine, where: Place, swap: bool, between: int, whole: bool
) -> None:
    """Let a thread end as its worker or its node is cancelled; the loop has not heard of it."""
    place = _find_open(machine, where)
    record = _run_thread(machine, place)
    if not record.play.is_entered:
        return

    def finish() -> None:
        record.play.open_gate()
        machine.await_thread(record.play.left, f"the thread of {record} does not end")
        while between and not is_back(record.play.thread):
            pass  # the turns that follow are to be those after its report

    def cancel() -> None:
        if whole and record.play.left.is_set() and not record.worker.is_finished:
            machine.saw("thread returns as the node is cancelled")
        if whole:
            fall(place, place.node.cancel)
        else:
            ask_and_cancel(record, RACED)

    if whole:  # the race itself; the others are its neighbours
        swap, between = False, 0
    machine.do(lambda: _both(finish, cancel, swap, between))
    machine.until(lambda: record.worker.is_finished)


def _run_thread(machine: WorkerMachine, place: Place) -> Record:
    """Start a worker in a thread, and see it to its gate if it has not ended before."""
    made: list[Record] = []
    machine.do(lambda: made.append(run_worker(machine, place, Script(), kind="thread")))
    if not made[0].worker.is_finished:
        machine.await_thread(made[0].play.arrived, f"the thread of {made[0]} did not come")
    return made[0]


@add_race("error while another error unwinds")
@rule(where=places, ending=endings, answer=failing, fatal=either, between=turns)
def race_error_while_another_unwinds(
    machine: WorkerMachine,
    where: Place,
    ending: Ending,
    answer: OnCancel,
    fatal: bool,
    between: int,
) -> None:
    """Let one worker fail while others unwind, and fail in doing so."""
    place = _find_open(machine, where)

    async def act() -> None:
        first = run_worker(machine, place, Script(ending=ending), fatal=True)
        second = run_worker(machine, place, Script(ending=ending, on_cancel=answer), fatal=fatal)
        late = run_worker(
            machine, place, Script(ending=Ending.RAISE, on_cancel=OnCancel.RESIST), fatal=fatal
        )
        await settle()
        first.play.open_gate()
        await turn(between)
        late.play.open_gate()
        await settle()
        if first.has_failed and second.play.errors:
            machine.saw("error while another error unwinds")

    machine.do(act)


@add_rule
@rule(target=places, where=places, between=st.sampled_from([32, 0, 1, 2, 3]))
def race_removal_as_the_node_ends(machine: WorkerMachine, where: Place, between: int) -> Place:
    """Remove a mounted node as it ends by itself, or once it has ended; another one stays."""
    above = _find_open(machine, where)
    made: list[Place] = []

    async def act() -> None:
        for _ in range(2):
            made.append(add_place(machine, "mounted", above))
            await above.node.mount(made[-1].node)
            run_worker(machine, made[-1], Script())
        place = made[0]
        fall(place, place.node.cancel)
        await turn(between)
        machine.world.spawn(partial(remove_node, machine, place))

    machine.do(act)
    return made[1]


@add_race("native cancel before the first step")
@precondition(lambda machine: machine.backend == "asyncio")
@rule(where=places, kind=st.sampled_from(["function", "coroutine"]))
def race_native_cancel_before_first_step(machine: WorkerMachine, where: Place, kind: str) -> None:
    """Cancel the native task of a worker before its first step, which ends the whole node."""
    place = _find_open(machine, where, mounted=False)

    def act() -> None:
        record = run_worker(machine, place, Script(), kind=kind)
        task = find_task(record)
        if task is None:
            return  # a task that has run others will take it
        place.is_killed = place.is_cancelled = True
        machine.saw("native cancel before the first step")
        record.ask("its task was cancelled natively before its first step")
        task.cancel()

    machine.do(act)


@add_race("call from a thread as it is cancelled")
@rule(where=places, swap=either, between=turns, whole=either)
def race_call_from_a_thread_as_it_is_cancelled(
    machine: WorkerMachine, where: Place, swap: bool, between: int, whole: bool
) -> None:
    """Let a thread call a function on the loop as its worker or its node is cancelled."""
    place = _find_open(machine, where)
    record = _run_thread(machine, place)
    if not record.play.is_entered:
        return
    calling, cancelled = threading.Event(), threading.Event()
    record.play.then = partial(_call_in_thread, machine, record, calling, cancelled)

    def finish() -> None:
        record.play.open_gate()
        machine.await_thread(calling, f"the thread of {record} does not call")

    def cancel() -> None:
        if calling.is_set():
            machine.saw("call from a thread as it is cancelled")
        if whole:
            fall(place, place.node.cancel)
        else:
            ask_and_cancel(record, RACED)
        cancelled.set()

    machine.do(lambda: _both(finish, cancel, swap, between))
    machine.until(lambda: record.worker.is_finished)


def _call_in_thread(
    machine: WorkerMachine, record: Record, calling: threading.Event, cancelled: threading.Event
) -> None:
    def effect() -> None:
        if record.asked is not None:
            told = f"the thread of {record} had an effect, though {record.asked}"
            machine.violate("no_late_effects", told)

    calling.set()
    try:
        record.place.node.call_from_thread(effect)
    except WorkerCancelled:
        if record.asked is None:
            told = f"the thread of {record} was refused a call"
            machine.violate("no_late_effects", told)
    assert cancelled.wait(PATIENCE), f"nobody cancels {record}"
    node = record.place.node
    machine.saw("calls of a cancelled thread")
    told = f"the cancelled thread of {record} was let in"
    let_in = partial(machine.violate, "no_late_effects", told)
    late = Play(Script(gated=False), "late", lambda _: let_in())
    for call in (
        partial(node.run_worker, late),
        partial(node.post_message, Posted(record.place, 0)),
    ):
        try:
            call()
        except WorkerCancelled:
            continue
        let_in()
