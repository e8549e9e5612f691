"""The facts about workers and nodes, in a form that can be shown, for watchers.

Subclasses may override public names, for example ``state`` or ``path``. Watchers read what the
library itself keeps, and turn the user's objects into text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from creche._ground.states import ERROR, NEW, RUNNING
from creche._ground.text import name_of, number, text, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from creche._ground.states import WorkerState

    from .worker import Worker


class Facts(NamedTuple):
    """A worker at one moment; times in seconds of the loop's clock."""

    name: str
    """Its name, or that of its class if it has none."""
    group: str
    description: str
    state: WorkerState
    thread: bool
    where: str
    """Where its work runs, if it runs elsewhere."""
    daemon: bool
    created_at: float | None
    started_at: float | None
    finished_at: float | None
    elapsed: float
    cancelled_at: float | None
    """When its cancellation was requested, if it was."""
    reason: str | None
    """Why, if a reason was given."""
    completed: float
    total: float | None
    progress: float
    """In percent."""
    error: BaseException | None
    attempt: int
    """The number of its attempt: 1, and one more each time its work started again."""
    is_ready: bool | None
    """Whether it has called ``ready()``; ``None`` if nothing waits for that."""
    is_stalled: bool
    """Whether it has made no progress for ``stall_after`` seconds."""


def facts_of(worker: Worker[Any], now: float | None = None) -> Facts:
    """Return the facts about a worker.

    Args:
        worker: The worker.
        now: The time, if it is known, for callers that read many at once.
    """
    when, reason = worker._cancellation or (None, None)
    started, finished = worker._started_at, worker._finished_at
    elapsed = 0.0
    if started is not None:
        end = finished if finished is not None else now
        elapsed = (end if end is not None else worker._nursery.now()) - started
    completed = number(worker._completed)
    total = None if worker._total is None else number(worker._total)
    outcome = worker._outcome if worker._state is ERROR else None
    return Facts(
        name_of(worker),
        text_of(worker, "group"),
        text_of(worker, "description"),
        worker._state,
        worker._thread is not None and worker._thread.run is None,
        "" if worker._thread is None else text(worker._thread.where),
        _is_true(worker, "daemon"),
        worker._created_at,
        started,
        finished,
        elapsed,
        when,
        None if reason is None else text(reason),
        completed,
        total,
        max(0.0, min(100.0, completed / total * 100.0)) if total else 0.0,
        outcome if isinstance(outcome, BaseException) else None,
        *_service_of(worker),
    )


def _service_of(worker: Worker[Any]) -> tuple[int, bool | None, bool]:
    service = None if worker._rare is None else worker._rare.service
    if service is None:
        return 1, None, False
    runs = worker._state is RUNNING
    ready = service.is_ready and runs if service.is_asked else None
    return service.attempt, ready, service.is_stalled and runs


def children_of(node: Any) -> list[Any]:
    """Return the nodes right below one that have been opened."""
    return [
        child
        for child in list(node._creche_children.values())
        if child._creche_nursery.state is not NEW
    ]


def below(node: Any) -> Iterator[Any]:
    """Yield a node and all nodes below it that have been opened, each before those below it."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += reversed(children_of(node))


def _is_true(owner: object, attribute: str) -> bool:
    try:
        return bool(getattr(owner, attribute))
    except Exception:  # noqa: BLE001 (a subclass's property)
        return False
