"""Events about a worker: its state changed, it made progress, it is ready, it was restarted."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from creche._ground.context import current, without_far
from creche._ground.message import Message
from creche._ground.states import PENDING, RUNNING, WorkerState

if TYPE_CHECKING:
    from contextvars import Context

    from .worker import Worker

_numbers = itertools.count(1)
_set = object.__setattr__  # for frozen classes


@dataclass(init=False, repr=False, eq=False, frozen=True)
class StateChanged(Message, bubble=False, namespace="worker"):
    """The state of a worker changed; handled by ``on_worker_state_changed``.

    Its attributes cannot be assigned, since all listeners get the same object.

    Args:
        worker: The worker.
        state: Its new state.
        context: In the first event of a worker, the context variables that it was made in.
    """

    worker: Worker[Any]
    """The worker."""
    state: WorkerState
    """Its new state."""
    number: int
    """A number that grows with each event of any worker."""
    context: Context | None = None
    """The context variables that the worker was made in; only in its first event."""

    def __init__(
        self, worker: Worker[Any], state: WorkerState, context: Context | None = None
    ) -> None:
        # There are three for each worker, so they do not copy what the worker keeps.
        facts = vars(self)
        facts["worker"] = worker
        facts["state"] = state
        facts["number"] = next(_numbers)
        if context is not None:
            facts["context"] = context

    @property
    def previous(self) -> WorkerState | None:
        """The previous state; ``None`` in the first event, when the worker was added."""
        if self.state is PENDING:
            return None
        is_late = self.state is not RUNNING and self.worker._started_at is not None
        return RUNNING if is_late else PENDING

    @property
    def time(self) -> float:
        """When it changed, in seconds of the loop's clock."""
        worker = self.worker
        if self.state is PENDING:
            time = worker._created_at
        else:
            time = worker._started_at if self.state is RUNNING else worker._finished_at
        return time if time is not None else worker._nursery.now()

    @property
    def origin(self) -> Worker[Any] | None:
        """The worker in which this one was made; only in the first event."""
        return None if self.context is None else without_far(self.context.get(current))

    def __repr__(self) -> str:
        return f"<StateChanged {self.worker._creche_label()} {self.state.name}>"


@dataclass(init=False, repr=False, eq=False, frozen=True)
class ProgressChanged(Message, bubble=False, namespace="worker"):
    """A worker made progress or its description changed; handled by ``on_worker_progress_changed``.

    Read the progress from the worker. At most one such event for each worker waits for a handler or
    in a subscription, and none comes after the worker has ended.

    Args:
        worker: The worker.
    """

    worker: Worker[Any]
    """The worker."""
    number: int
    """A number that grows with each event of any worker."""

    def __init__(self, worker: Worker[Any]) -> None:
        # Thousands of them may wait, and each would have a dict that the collector tracks.
        _set(self, "worker", worker)
        _set(self, "number", next(_numbers))
        _set(self, "_key", worker._order)

    def _be_taken(self) -> None:
        """Let the next progress make an event again."""
        rare = self.worker._rare
        if rare is not None:
            rare.is_hungry = bool(rare.followers)

    def __repr__(self) -> str:
        return f"<ProgressChanged {self.worker._creche_label()}>"


@dataclass(init=False, repr=False, eq=False, frozen=True)
class _Timed(Message, bubble=False):
    """The rarer events; created on the loop when they happen."""

    worker: Worker[Any]
    """The worker."""
    number: int = field(init=False)
    """A number that grows with each event of any worker."""
    time: float = field(init=False)
    """When that was, in seconds of the loop's clock."""

    def __post_init__(self) -> None:
        vars(self).update(number=next(_numbers), time=self.worker._nursery.now())


@dataclass(repr=False, eq=False, frozen=True)
class Ready(_Timed, namespace="worker"):
    """The work of a worker has called ``ready()``; handled by ``on_worker_ready``.

    Args:
        worker: The worker.
    """

    def __repr__(self) -> str:
        return f"<Ready {self.worker._creche_label()}>"


@dataclass(repr=False, eq=False, frozen=True)
class Restarted(_Timed, namespace="worker"):
    """The work of a worker has failed and starts again; handled by ``on_worker_restarted``.

    Args:
        worker: The worker.
        error: What the work raised.
        delay: Seconds until it starts again.
    """

    error: BaseException
    """What the work raised."""
    delay: float
    """Seconds until it starts again."""
    attempt: int = field(init=False)
    """The number of the next attempt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        vars(self).update(attempt=self.worker.attempt)

    def __repr__(self) -> str:
        return f"<Restarted {self.worker._creche_label()} in {self.delay:.3g} s>"


@dataclass(repr=False, eq=False, frozen=True)
class Stalled(_Timed, namespace="worker"):
    """A worker has made no progress for a while; handled by ``on_worker_stalled``.

    Announced once, until it makes progress again. Nothing else is done about it.

    Args:
        worker: The worker.
        seconds: For how long, at least, it has called neither ``advance()`` nor ``update()``.
    """

    seconds: float
    """For how long, at least, it has called neither ``advance()`` nor ``update()``."""

    def __repr__(self) -> str:
        return f"<Stalled {self.worker._creche_label()} for {self.seconds:.3g} s>"


for _event in (StateChanged, ProgressChanged, Ready, Restarted, Stalled):
    _event.__qualname__ = f"Worker.{_event.__name__}"  # where users find it
