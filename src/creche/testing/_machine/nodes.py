"""Rules that open nodes and end them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import consumes, initialize, multiple, precondition, rule

from creche import Node
from creche.testing._scripts import Script

from .acts import (
    Alike,
    add_place,
    ask_and_cancel,
    fall,
    open_block,
    open_root,
    remove_node,
    run_worker,
)
from .bundles import NOTHING, limits, overflows, places
from .machine import WorkerMachine, add_race, add_rule
from .model import QUEUE
from .world import turn

if TYPE_CHECKING:
    from creche import Overflow

    from .model import Place

MOST_PLACES = 5
"""With more nodes than these, none is added: it would be the same once more."""


@add_rule
@initialize(
    target=places,
    seed=st.integers(0, 2**32),
    limit=limits,
    overflow=overflows,
    nodes=st.sampled_from([Node, Alike]),
    log=st.sampled_from(["", "", "", "filter", "handler"]),
)
def open_tree(
    machine: WorkerMachine,
    seed: int,
    limit: int,
    overflow: Overflow,
    nodes: type[Node] = Node,
    log: str = "",
) -> Place:
    """Open the first root; the seed is for Trio's scheduler."""
    machine.node_class = nodes
    machine.begin(seed, log)
    return open_root(machine, limit, overflow)


@add_rule
@precondition(lambda machine: all(root.is_over or root.has_fallen for root in machine.roots))
@rule(target=places, limit=limits, overflow=overflows)
def open_another_tree(machine: WorkerMachine, limit: int, overflow: Overflow) -> Place:
    """Open a root where no other is open."""
    return open_root(machine, limit, overflow)


@add_rule
@rule(target=places, parent=places, kind=st.sampled_from(["mounted", "block"]), limit=limits)
def open_child(machine: WorkerMachine, parent: Place, kind: str, limit: int) -> Any:
    """Open a node below another, mounted or with a block of its own."""
    if parent.refuses or parent.has_fallen or len(list(machine.places())) > MOST_PLACES:
        return NOTHING
    made: list[Place] = []

    async def act() -> None:
        made.append(add_place(machine, kind, parent, limit))
        if kind == "mounted":
            await parent.node.mount(made[0].node)
        else:
            await open_block(machine, made[0])

    machine.do(act)
    return made[0]


@add_race("work on a node that is being opened")
@rule(
    target=places,
    parent=places,
    depth=st.integers(1, 2),
    turns=st.sampled_from([0, 0, 1, 2, 3]),
    then=st.sampled_from(["", "", "worker", "node", "parent", "remove"]),
)
def attach(machine: WorkerMachine, parent: Place, depth: int, turns: int, then: str) -> Any:
    """Attach nodes and start work on them at once; then cancel a worker or a node, or remove it."""
    if parent.refuses or parent.has_fallen or len(list(machine.places())) > MOST_PLACES:
        return NOTHING
    made = [parent]

    async def act() -> None:
        for _ in range(depth):
            made.append(add_place(machine, "mounted", made[-1]))
            made[-2].node.attach(made[-1].node)
        scripts = [Script(), Script()]
        records = [run_worker(machine, made[-1], each, group=QUEUE) for each in scripts]
        await turn(turns)
        if not records[0].play.is_entered:
            machine.saw("work on a node that is being opened")
        if then == "worker":
            ask_and_cancel(records[0], "a worker was cancelled as its node opens")
        elif then == "remove":
            remove = partial(machine.world.spawn, partial(remove_node, machine, made[1]))
            fall(made[1], remove, promptly=False)
        elif then:
            place = parent if then == "parent" else made[1]
            fall(place, partial(place.node.cancel, "as it opens"))

    machine.do(act)
    return multiple(*made[1:])


@add_rule
@rule(place=places)
def leave(machine: WorkerMachine, place: Place) -> None:
    """Leave the block of a node."""

    def act() -> None:
        if place.kind != "mounted":
            place.is_leaving = True
            place.leave.set()

    machine.do(act)


@add_rule
@rule(target=places, place=consumes(places))
def remove(machine: WorkerMachine, place: Place) -> Any:
    """Remove a mounted node, be it one that has ended by itself."""
    if place.kind != "mounted":
        return place
    remove = partial(machine.world.spawn, partial(remove_node, machine, place))
    machine.do(partial(fall, place, remove, promptly=False) if not place.is_over else remove)
    return NOTHING


@add_rule
@rule(place=places, grace=st.sampled_from([3600.0, 0.0]))
def shut_down(machine: WorkerMachine, place: Place, grace: float) -> None:
    """Shut a node down, at once or with all the time there is."""

    def act() -> None:
        if place.is_over:
            return
        for each in place.below():
            each.is_shut = True
            if not grace and each is not place and each.kind == "mounted":
                each.is_cancelled |= not each.is_over
            for record in each.unfinished():
                record.may_be_cancelled = True
        machine.world.spawn(partial(place.node.shutdown, grace))

    machine.do(act)
