"""A picture of a tree of nodes at one moment, as plain data.

All the cost is borne by whoever takes one: nothing is kept for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from ._nursery import NEW
from ._stacks import FrameSnapshot, find_calls, find_stack

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ._group import WorkerGroup
    from ._nursery import Nursery
    from ._worker import Worker


@dataclass(frozen=True)
class WorkerSnapshot:
    """An unfinished worker as it stood."""

    name: str
    """Its name, or that of its class if it has none."""
    description: str
    """Its longer text for people."""
    state: str
    """The name of its state: PENDING or RUNNING."""
    is_cancelled: bool
    """Whether its cancellation was requested."""
    cancel_reason: str | None
    """The reason that was given for it."""
    is_started: bool
    """Whether it was started; else it waited for ``WorkerManager.start_all()``."""
    is_queued: bool
    """Whether it waited for a slot of its group or for a thread."""
    queue_position: int | None
    """Its place in the queue of its group, from 1 on; ``None`` if it was not in it."""
    thread: bool
    """Whether it runs in a thread."""
    daemon: bool
    """Whether its node may close without waiting for it."""
    age: float | None
    """For how many seconds it had been there; ``None`` if its node was not open yet."""
    elapsed: float
    """For how many seconds the work had run; 0.0 if it had not been entered."""
    progress: float
    """How much was done, in percent; 0.0 while the total is unknown or 0."""
    completed_steps: int
    """The number of completed steps."""
    total_steps: int | None
    """The number of steps in all, ``None`` if that is not known."""
    waits_for: tuple[str, ...]
    """The unfinished workers for whose end it waited, as ``path/group/name``."""
    stack: tuple[FrameSnapshot, ...] | None
    """Where it stood, the innermost frame last; ``None`` if that was not asked for."""


@dataclass(frozen=True)
class GroupSnapshot:
    """A group as it stood."""

    name: str
    """Its name."""
    limit: int | None
    """How many of its workers might run at once, ``None`` for any number."""
    overflow: str
    """What happens to a new worker when as many are running."""
    running: int
    """How many workers held a slot."""
    queued: int
    """How many workers waited for a slot."""
    workers: tuple[WorkerSnapshot, ...]
    """The unfinished workers, in order of creation."""


@dataclass(frozen=True)
class NodeSnapshot:
    """A node as it stood, with all below it.

    It is plain data, of which ``dataclasses.asdict()`` makes what JSON can hold. Nothing alive is
    held by it.
    """

    name: str
    """Its name."""
    path: str
    """The names of the nodes from the root to this one, joined by slashes."""
    life: str
    """``"not open yet"``, ``"open"``, ``"shutting down"`` or ``"closed"``."""
    is_cancelled: bool
    """Whether it was cancelled."""
    cancel_reason: str | None
    """The reason for that."""
    opened_by: str | None
    """The worker that had its block open, if one had, as ``path/group/name``."""
    groups: tuple[GroupSnapshot, ...]
    """Its groups."""
    children: tuple[NodeSnapshot, ...]
    """The nodes right below."""


class Pictured(Protocol):
    """What is asked of a node to picture it."""

    name: str
    _creche_nursery: Nursery
    _creche_opener: Worker[Any] | None

    @property
    def path(self) -> str: ...

    @property
    def _creche_groups(self) -> Mapping[str, WorkerGroup]: ...

    @property
    def _creche_children(self) -> Mapping[int, Any]: ...


def label(worker: Worker[Any]) -> str:
    """Name a worker as its task is named."""
    return f"{worker.node.path}/{worker.group}/{worker.name or type(worker).__name__}"


def take(node: Pictured, *, stacks: float) -> NodeSnapshot:
    """Picture a node and all below it; on its event loop.

    Args:
        node: The node.
        stacks: Of how many workers that have a task to tell the stack, in each group.

    Raises:
        ImportError: Stacks are asked for, and the library that reads them is not installed.
    """
    return _take_node(node, stacks, find_calls() if stacks else {})


def _take_node(node: Pictured, stacks: float, calls: dict[object, Any]) -> NodeSnapshot:
    nursery = node._creche_nursery
    return NodeSnapshot(
        name=node.name,
        path=node.path,
        life=nursery.life.value,
        is_cancelled=nursery.is_cancelled,
        cancel_reason=_told(nursery.cancel_reason),
        opened_by=None if node._creche_opener is None else label(node._creche_opener),
        groups=tuple(
            _take_group(group, stacks, calls) for group in list(node._creche_groups.values())
        ),
        children=tuple(
            _take_node(child, stacks, calls) for child in list(node._creche_children.values())
        ),
    )


def _take_group(group: WorkerGroup, stacks: float, calls: dict[object, Any]) -> GroupSnapshot:
    waiting = [worker for worker in list(group._queue) if not worker.is_finished]
    positions = {worker._order: number for number, worker in enumerate(waiting, 1)}
    workers: list[WorkerSnapshot] = []
    for worker in group:
        stack = None
        if stacks > 0 and worker._handle is not None:
            stacks -= 1
            stack = find_stack(worker, calls)
        workers.append(_take_worker(worker, positions.get(worker._order), stack))
    return GroupSnapshot(
        name=group.name,
        limit=group.limit,
        overflow=group.overflow,
        running=group.running,
        queued=group.queued,
        workers=tuple(workers),
    )


def _take_worker(
    worker: Worker[Any], position: int | None, stack: tuple[FrameSnapshot, ...] | None
) -> WorkerSnapshot:
    nursery = worker._nursery
    waits = cast("Collection[Worker[Any]]", worker._ties.waits if worker._ties else ())
    return WorkerSnapshot(
        name=worker.name or type(worker).__name__,
        description=worker.description,
        state=worker.state.name,
        is_cancelled=worker.is_cancelled,
        cancel_reason=_told(worker.cancel_reason),
        is_started=worker._started,
        is_queued=worker.is_queued,
        queue_position=position,
        thread=worker.thread,
        daemon=worker.daemon,
        age=None if nursery.life is NEW else nursery.now() - (worker.created_at or 0.0),
        elapsed=worker.elapsed,
        progress=worker.progress,
        completed_steps=worker.completed_steps,
        total_steps=worker.total_steps,
        waits_for=tuple(label(other) for other in waits if not other.is_finished),
        stack=stack,
    )


def _told(reason: object) -> str | None:
    return None if reason is None else str(reason)
