"""A picture of a tree of nodes at one moment, as plain data.

Only taking one has a cost: nothing is stored for it in advance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from creche._ground.public import publish
from creche._ground.states import NEW
from creche._ground.text import label, path_of, text, text_of
from creche._running.stacks import FrameSnapshot, find_calls, find_stack

from .facts import facts_of
from .room import Room

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .group import WorkerGroup
    from .node import Node
    from .parts import RareParts
    from .worker import Worker


@dataclass(frozen=True)
class WorkerSnapshot:
    """The state of an unfinished worker at one moment."""

    number: int
    """Its number, see ``Worker.number``."""
    name: str
    """Its name, or that of its class if it has none."""
    description: str
    """Its description, for people."""
    state: str
    """The name of its state: PENDING or RUNNING."""
    is_cancelled: bool
    """Whether it was cancelled."""
    cancel_reason: str | None
    """The reason for that."""
    is_started: bool
    """Whether it was started; if not, it waited for ``WorkerManager.start_all()``."""
    is_queued: bool
    """Whether it waited for a slot of its group or for a thread."""
    queue_position: int | None
    """Its place in the queue of its group, from 1 on; ``None`` if it was not in it."""
    thread: bool
    """Whether it runs in a thread."""
    where: str
    """Where its work runs, if it runs elsewhere: ``process 4711``; otherwise empty."""
    daemon: bool
    """Whether its node may close without waiting for it."""
    age: float | None
    """How many seconds ago it was added; ``None`` if its node was not open yet."""
    elapsed: float
    """For how many seconds the work had run; 0.0 if it had not started."""
    progress: float
    """How much was done, in percent; 0.0 while the total is unknown or 0."""
    completed_steps: int
    """The number of completed steps."""
    total_steps: int | None
    """The total number of steps; ``None`` if it is not known."""
    attempt: int
    """The number of its attempt: 1, and one more each time its work started again."""
    is_ready: bool | None
    """Whether it had called ``ready()``; ``None`` if nobody had asked it to."""
    is_stalled: bool
    """Whether it had made no progress for ``stall_after`` seconds."""
    waits_for: tuple[str, ...]
    """The unfinished workers that it waited for, as ``path/group/name``."""
    stack: tuple[FrameSnapshot, ...] | None
    """Where in the code it was, the innermost frame last; ``None`` if that was not requested."""


@dataclass(frozen=True)
class GroupSnapshot:
    """The state of a group at one moment."""

    name: str
    """Its name."""
    limit: int | None
    """How many of its workers could run at once; ``None`` for any number."""
    overflow: str
    """What happens to a new worker when the limit is reached."""
    running: int
    """How many workers held a slot."""
    queued: int
    """How many workers waited for a slot."""
    workers: tuple[WorkerSnapshot, ...]
    """The unfinished workers, oldest first."""


@dataclass(frozen=True)
class NodeSnapshot:
    """The state of a node and of all below it at one moment.

    It is plain data: ``dataclasses.asdict()`` turns it into what JSON can hold. It keeps no worker
    or node alive. Taking one works at any depth of the tree. But whatever recurses through
    ``children`` raises ``RecursionError`` if nodes are some hundreds of levels deep: ``asdict()``,
    ``repr()``, ``==`` and ``copy.deepcopy()``. Walk through ``children`` yourself there.
    """

    name: str
    """Its name."""
    path: str
    """The names of the nodes from the root to this one, joined by slashes."""
    life: str
    """``"not open yet"``, ``"being opened"``, ``"open"``, ``"shutting down"`` or ``"closed"``."""
    is_cancelled: bool
    """Whether it was cancelled."""
    cancel_reason: str | None
    """The reason for that."""
    opened_by: str | None
    """The worker that had opened its block, if one had, as ``path/group/name``."""
    groups: tuple[GroupSnapshot, ...]
    """Its groups."""
    children: tuple[NodeSnapshot, ...]
    """The child nodes."""


def take(node: Node, *, stacks: bool, most: float = math.inf) -> NodeSnapshot:
    """Take a snapshot of a node and all below it, on its event loop, from any thread.

    Args:
        node: The node.
        stacks: Whether to include the stacks of workers that have a task.
        most: Of how many workers in each group.

    Raises:
        ImportError: Stacks are requested, and the library that reads them is not installed.
    """
    return node._creche_bridge.call(lambda: _take_tree(node, most if stacks else 0))


def _take_tree(node: Node, stacks: float) -> NodeSnapshot:
    calls = find_calls() if stacks else {}
    below: dict[int | None, list[NodeSnapshot]] = {None: []}
    # From the last to the first, so that nodes come after those below them.
    for number, (each, path, above) in reversed(list(enumerate(_walk(node)))):
        children = below.pop(number, [])
        picture = _take_node(each, path, tuple(reversed(children)), stacks, calls)
        below.setdefault(above, []).append(picture)
    return below[None][0]


def _walk(top: Node) -> Iterator[tuple[Node, str, int | None]]:
    """Yield each node with its path and the number of the one above it, which comes earlier."""
    waiting: list[tuple[Node, str, int | None]] = [(top, path_of(top), None)]
    number = 0
    while waiting:
        node, path, above = waiting.pop()
        yield node, path, above
        children = reversed(list(node._creche_children.values()))
        waiting += ((child, f"{path}/{text_of(child, 'name')}", number) for child in children)
        number += 1


def _take_node(
    node: Node,
    path: str,
    children: tuple[NodeSnapshot, ...],
    stacks: float,
    calls: dict[int, Any],
) -> NodeSnapshot:
    nursery = node._creche_nursery
    return NodeSnapshot(
        name=text_of(node, "name"),
        path=path,
        life=nursery.state.value,
        is_cancelled=nursery.is_cancelled,
        cancel_reason=_told(nursery.cancel_reason),
        opened_by=None if node._creche_life.opener is None else label(node._creche_life.opener),
        groups=tuple(
            _take_group(group, stacks, calls) for group in list(node._creche_groups.values())
        ),
        children=children,
    )


def _take_group(group: WorkerGroup, stacks: float, calls: dict[int, Any]) -> GroupSnapshot:
    positions = {order: number for number, order in enumerate(list(group._queue), 1)}
    nursery = group._node._creche_nursery
    now = None if nursery.state is NEW else nursery.now()
    workers: list[WorkerSnapshot] = []
    for worker in group:
        stack = None
        if stacks > 0 and worker._order in group._running:
            stacks -= 1
            stack = find_stack(worker, worker._handle, calls)
        workers.append(_take_worker(worker, positions.get(worker._order), stack, now))
    return GroupSnapshot(
        name=text(group.name),
        limit=group.limit,
        overflow=text(group.overflow),
        running=group.running,
        queued=group.queued,
        workers=tuple(workers),
    )


def _take_worker(
    worker: Worker[Any],
    position: int | None,
    stack: tuple[FrameSnapshot, ...] | None,
    now: float | None,
) -> WorkerSnapshot:
    facts = facts_of(worker, now)
    # Without __init__(): that of a frozen class would take as long as all the rest, and there may
    # be a hundred thousand of them, which would block the loop.
    picture = object.__new__(WorkerSnapshot)
    vars(picture).update(
        number=worker._order,
        name=facts.name,
        description=facts.description,
        state=facts.state.name,
        is_cancelled=facts.cancelled_at is not None,
        cancel_reason=facts.reason,
        is_started=worker._started,
        is_queued=worker.is_queued,
        queue_position=position,
        thread=facts.thread,
        where=facts.where,
        daemon=facts.daemon,
        age=None if now is None else now - (facts.created_at or 0.0),
        elapsed=facts.elapsed,
        progress=facts.progress,
        completed_steps=int(facts.completed),
        total_steps=None if facts.total is None else int(facts.total),
        attempt=facts.attempt,
        is_ready=facts.is_ready,
        is_stalled=facts.is_stalled,
        waits_for=() if worker._rare is None else _waits_of(worker._rare),
        stack=stack,
    )
    return picture


def _waits_of(ties: RareParts) -> tuple[str, ...]:
    return tuple(
        other._creche_label() if type(other) is Room else label(other)
        for other in ties.waits
        if not other.is_finished
    )


def _told(reason: object) -> str | None:
    return None if reason is None else text(reason)


publish(WorkerSnapshot, GroupSnapshot, NodeSnapshot)
