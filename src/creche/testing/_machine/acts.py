"""What rules do on the loop: open nodes, make workers and wait for them.

All of it is kept in mind in the model, with what must follow.
"""

from __future__ import annotations

import asyncio
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
    get_current_worker,
)
from creche.services import Backoff, Restart, service
from creche.testing._recorder import EventRecorder
from creche.testing._scripts import Ending, OnCancel, Play, Script

from .model import FREE, ODD, QUEUE, Place, Record, Waiter, find_stuck

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from creche import Overflow, Subscription

    from .machine import WorkerMachine

KINDS: dict[str, dict[str, Any]] = {
    "function": {},
    "coroutine": {},
    "partial": {},
    "service": {},
    "thread": {"thread": True},
    "abandoned": {"thread": True, "abandon_on_cancel": True},
    "async-thread": {"thread": True},
}


CRASHES = 2
"""The attempts of a service that crash; the next follows the script."""


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


# nodes


def add_place(
    machine: WorkerMachine,
    kind: str,
    parent: Place | None,
    limit: int = 1,
    overflow: Overflow = "restart",
) -> Place:
    """Make a node, with its groups; on the loop."""
    number = sum(1 for _ in machine.places())
    above = parent.node if parent is not None and kind == "block" else None
    node = machine.make_node(f"{kind}{number}", above)
    place = Place(node, kind, parent, EventRecorder(node))
    place.name = f"{parent.name}/{node.name}" if parent is not None else node.name
    place.limits = {FREE: None, QUEUE: limit, ODD: limit}
    setattr(node, Posted.handler_name, partial(_handle, place))
    node.group(FREE)
    node.group(QUEUE, limit=limit)
    node.group(ODD, limit=limit, overflow=overflow)
    if parent is None:
        machine.roots.append(place)
    elif node == parent.node:
        machine.saw("node that equals its parent")
    return place


async def subscribe(machine: WorkerMachine, place: Place) -> None:
    """Listen to a node and all below it, until it has closed."""
    ready = anyio.Event()
    machine.world.spawn(partial(_listen, machine, place, ready))
    await ready.wait()


async def open_block(machine: WorkerMachine, place: Place) -> None:
    """Open a node in a task of its own, and stay in its block until it is told to leave."""
    ready = anyio.Event()
    machine.world.spawn(partial(_stay, place, ready))
    await ready.wait()


async def _stay(place: Place, ready: anyio.Event) -> None:
    try:
        with place.scope:
            try:
                async with place.node:
                    ready.set()
                    await place.leave.wait()
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # noqa: BLE001 (an invariant looks at it)
                # In here: a cancelled scope splits what passes through it, and a group may refuse.
                place.raised = error
    finally:
        place.has_ended = True
        ready.set()


# workers


def run_worker(
    machine: WorkerMachine,
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
    machine.made += 1
    name = f"w{machine.made}"
    play = Play(script, name)
    record = Record(place, group, play, fatal=fatal, daemon=daemon, kind=kind)
    record.order = machine.made
    record.exclusive = exclusive
    play._noted = partial(_note, machine, record)
    options = {"name": name, "group": group, "exit_on_error": fatal, "daemon": daemon}
    record.worker = machine.make_worker(place.node, _work(play, kind), **options, **KINDS[kind])
    refused = place.refuses
    before = [other for other in place.unfinished(group) if other is not record]
    try:
        machine.add_worker(place.node, record.worker, start=start, exclusive=exclusive)
    except WorkerError:
        # A node that has fallen closes some turns of the loop before its block has been left.
        has_closed = place.has_fallen and place.node.is_finished
        machine.check(refused or place.is_closing or has_closed, f"{place} refused a worker")
        place.records.remove(record)
        play._noted = None
        machine.check(record.worker.is_finished, f"{record} was refused and is unfinished")
        machine.check(not play.is_entered, f"{record} was refused and entered")
    else:
        machine.check(not refused, f"{place} took a worker, and should refuse it")
        if start:
            note_start(machine, record, before, exclusive=exclusive)
    return record


def note_start(
    machine: WorkerMachine, record: Record, before: list[Record], *, exclusive: bool
) -> None:
    """Keep in mind what the start of a worker does to others."""
    machine.starts += 1
    record.started = machine.starts
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


def _note(machine: WorkerMachine, record: Record, what: str) -> None:
    """See what the work does, as it does it."""
    worker = record.worker
    look_at_progress(machine, record)
    if what in {"raised", "raised base"}:
        _count_error(machine, record)
    if what == "entered":
        record.entered = machine.steps
        inside = [each for each in record.place.unfinished(record.group) if each.play.is_inside]
        place = record.place
        limit = place.highest.get(record.group, place.limits[record.group])
        if limit is not None and len(inside) > limit:
            told = f"{record} was entered as one of {len(inside)}, above {limit}"
            machine.violate("never_above_the_limit", told)
    if not worker.is_running and record.kind != "abandoned":
        told = f"{record} was {worker._state.name} as its work {what}"
        machine.violate("running_is_inside", told)


def look_at_progress(machine: WorkerMachine, record: Record) -> None:
    """See how far a worker is; may be called in any thread."""
    worker = record.worker
    done, before, total = worker.completed_steps, record.completed, worker.total_steps
    record.completed = done
    if total is not None and done > total:
        told = f"{record} has completed {done} steps of {total}"
        machine.violate("progress_stays_within_the_total", told)
    if done < before and not machine.progress_may_go_back:
        told = f"{record} has completed {done} steps, and had completed {before}"
        machine.violate("progress_never_goes_back_by_itself", told)


def _count_error(machine: WorkerMachine, record: Record) -> None:
    script = record.play.script
    if "cancelled" not in record.play.log:
        machine.saw(script.ending.value)
    else:
        machine.saw(script.on_cancel.value)
        if script.ending is Ending.GROUP and script.on_cancel is not OnCancel.RAISE:
            machine.saw("cancellation in a group that stays whole")


def add_waiter(machine: WorkerMachine, record: Record) -> Waiter:
    """Set a task going that waits for a worker; on the loop."""
    waiter = Waiter(record)
    machine.world.spawn(partial(_wait, waiter))
    return waiter


async def wait_in(record: Record, awaited: Record) -> None:
    """Wait for a worker within the work of another, or the same."""
    waiter = Waiter(awaited, record)
    waiter.is_ring = record in find_stuck(record.place.root.all_records())
    await _wait(waiter)


def open_root(machine: WorkerMachine, limit: int = 1, overflow: Overflow = "restart") -> Place:
    """Open a root; a step of its own."""
    place: list[Place] = []

    async def act() -> None:
        place.append(add_place(machine, "root", None, limit, overflow))
        await subscribe(machine, place[0])
        await open_block(machine, place[0])

    machine.do(act)
    return place[0]


async def remove_node(machine: WorkerMachine, place: Place) -> None:
    """Remove a mounted node, which nothing keeps where it has ended."""
    if place.is_over:
        machine.saw("removal of a node that has ended")
    await place.node.remove()
    if not place.is_over:
        machine.violate("what_has_to_end_ends", f"{place} was removed and is not over")


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


async def _listen(machine: WorkerMachine, place: Place, ready: anyio.Event) -> None:
    events: Subscription[Worker.StateChanged | Worker.ProgressChanged]
    events = place.node.subscribe(Worker.StateChanged, Worker.ProgressChanged, tree=True)
    async with events:
        ready.set()
        async for message in events:
            if isinstance(message, Worker.StateChanged):
                place.heard.append(message)
            else:
                for record in place.all_records():
                    if record.worker is message.worker:
                        look_at_progress(machine, record)


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
    if kind == "service":
        return service(partial(_serve, play), on=_Crash, restart=_AT_ONCE)
    return play.in_thread if kind in {"thread", "abandoned"} else play


class _Crash(Exception):  # noqa: N818 (it says what it is)
    """What a service begins again for."""


_AT_ONCE = Restart(max=None, backoff=Backoff(0))


async def _serve(play: Play) -> object:
    """Crash in the first attempts, each ready by then, and follow the script after that."""
    worker = get_current_worker()
    crashes = worker.attempt <= CRASHES
    worker.ready(worker.attempt)
    del worker  # it would be in the traceback of the error
    if crashes:
        await lowlevel.checkpoint()
        raise _Crash
    return await play()


def ask(records: Iterable[Record], who: str) -> None:
    """Note who asks for the cancellation of workers."""
    for record in records:
        record.ask(who)


def ask_and_cancel(record: Record, who: str) -> None:
    """Cancel a worker; on the loop."""
    record.ask(who)
    record.worker.cancel()


def fall(place: Place, cancel: Callable[[], object], *, promptly: bool = True) -> None:
    """Make a node fall, with all below it; on the loop.

    Args:
        place: The node.
        cancel: What makes it fall.
        promptly: Whether each worker is cancelled as it is called.
    """
    if not place.is_over:
        # Once more it changes nothing: not for what was added since, and not started.
        standing = [each for each in place.below() if promptly and not each.has_fallen]
        place.is_cancelled = True
        for each in standing:
            ask(each.unfinished(), f"{place.name} was cancelled")
        cancel()


def find_task(record: Record) -> asyncio.Task[Any] | None:
    """Find the task of a worker; before its first step it may have none."""
    name = f"{record.place.node.path}/{record.group}/{record.play.__name__}"
    return next((each for each in asyncio.all_tasks() if each.get_name() == name), None)
