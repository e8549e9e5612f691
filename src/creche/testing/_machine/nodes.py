"""Rules that open nodes and end them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import consumes, initialize, precondition, rule

from creche import Node

from .acts import Alike, add_place, fall, open_block, open_root, remove_node
from .bundles import NOTHING, limits, overflows, places
from .machine import WorkerMachine, add_rule

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
