"""What is known of a worker: what it was given and how it stands. It changes no state."""

from __future__ import annotations

import itertools
import math
import os
import threading
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from creche._ground.errors import WorkerError
from creche._ground.report import is_a, logger, shown, text_of
from creche._ground.states import CANCELLED, ERROR, FINAL, PENDING, RUNNING, SUCCESS, WorkerState
from creche._ground.text import name_of, path_of
from creche._ground.text import text_of as attribute_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from contextvars import Context
    from weakref import WeakSet

    import anyio
    from anyio import CapacityLimiter

    from creche._ground.bridge import Bridge
    from creche._ground.message import Message
    from creche._nursery.nursery import HeldTask, Nursery

    from .waiting import Party

ResultType = TypeVar("ResultType")
"""What the work of a worker returns."""

__all__ = ["Record", "ResultType", "lock", "logger"]

_order = itertools.count()
# For short steps in which a cancellation from a thread and the loop's own steps must not overlap.
# Can be entered again: a signal handler may call cancel() in the midst of one.
lock = threading.RLock()

if hasattr(os, "register_at_fork"):  # pragma: no branch (absent on Windows)
    # Another thread may hold it as this process is forked; in the child nobody would ever let go.
    os.register_at_fork(after_in_child=lambda: cast("Any", lock)._at_fork_reinit())


class WorkerNode(Protocol):
    """What a worker asks of the node that owns it."""

    name: str
    _creche_nursery: Nursery
    _creche_waiting: dict[int, Party]

    @property
    def path(self) -> str:
        """The names of the nodes from the root to this one, joined by slashes."""
        ...

    def _creche_spoken(self) -> str:
        """Name the node in a sentence."""
        ...

    def cancel(self, reason: object = None) -> None:
        """Cancel all below the node, and its body."""
        ...

    @property
    def _creche_bridge(self) -> Bridge:
        """The way into the event loop of the node, or of the one above that is open."""
        ...

    @property
    def run_worker(self) -> Callable[..., Any]:
        """Run work in a worker of the node."""
        ...

    @property
    def call_from_thread(self) -> Callable[..., Any]:
        """Run a function on the node's event loop, from a thread."""
        ...

    def post_message(self, message: Message) -> bool:
        """Hand a message to the node's handler."""
        ...

    _creche_tells_changes: bool
    """Whether anybody listens to changes of state; else no event is made."""
    _creche_tells_progress: bool
    """Whether anybody listens to progress."""

    def _creche_announce(self, worker: Any, state: WorkerState) -> None: ...

    def _creche_announce_progress(self, worker: Any) -> None: ...

    def _creche_is_opened_by_a_worker(self) -> bool:
        """Tell whether a worker has the block of the node, or of one above, open."""
        ...


class Description(Protocol):
    """What makes the longer text for people."""

    def __call__(self) -> str:
        """Give it, once somebody reads it."""
        ...

    def condensed(self) -> str:
        """Give what is kept of it once the worker has ended and nobody has read it."""
        ...


class Place(Protocol):
    """What a worker asks of its place among the others: its group."""

    def _holders(self) -> Collection[Party]:
        """Tell the workers that hold the slots."""
        ...

    def _left(self, worker: Any) -> None:
        """Take note that a worker has ended."""
        ...

    @property
    def queued(self) -> int:
        """How many workers wait for a slot."""
        ...


class ThreadPart:
    """What only a worker that runs in a thread has."""

    __slots__ = ("abandon_on_cancel", "is_abandoned", "is_waiting", "limiter", "stops")

    def __init__(self, limiter: CapacityLimiter | None, *, abandon_on_cancel: bool) -> None:
        self.limiter = limiter
        self.abandon_on_cancel = abandon_on_cancel
        self.is_waiting = False  # for a token of the limiter
        self.is_abandoned = False
        self.stops: tuple[Callable[[], object], ...] = ()
        """What to call on cancellation, to stop what runs in the thread."""


class Ties:
    """What ties a worker to others; made when there first is any of it.

    Most workers wait for nothing, and what is not there need not be stored.
    """

    __slots__ = ("begun", "cancelled", "done", "hops", "opened", "reported_in", "waits")

    def __init__(self) -> None:
        self.begun: anyio.Event | None = None  # these three are made when asked for
        self.done: anyio.Event | None = None
        self.cancelled: threading.Event | None = None
        self.reported_in: WeakSet[Any] | None = None
        """The trees of nurseries that have reported its error, once there is one."""
        self.waits: list[Any] = []
        self.opened: tuple[Party, ...] = ()
        """Nodes in whose blocks it is."""
        self.hops: tuple[HeldTask, ...] = ()
        """Calls of its thread that run on the loop."""


class Record(Generic[ResultType]):
    """The facts of a worker. All of them may be read from any thread.

    They are few: a queued worker is little more than this object. What most workers never have is
    in objects of its own.
    """

    __slots__ = (
        "__weakref__",
        "_cancellation",
        "_completed",
        "_context",
        "_created_at",
        "_description",
        "_finished_at",
        "_handle",
        "_holds",
        "_node",
        "_order",
        "_outcome",
        "_place",
        "_started",
        "_started_at",
        "_state",
        "_thread",
        "_ties",
        "_total",
        "_work",
        "daemon",
        "exit_on_error",
        "group",
        "name",
    )

    def __init__(
        self,
        node: WorkerNode,
        work: object,
        name: str,
        group: str,
        description: str | Description,
        exit_on_error: bool,
        thread: bool,
        daemon: bool,
        abandon_on_cancel: bool,
        limiter: CapacityLimiter | None,
        context: Context | None,
    ) -> None:
        self._node = node
        self._work = work
        self.name: str = name
        """A short name for messages and logs."""
        self.group: str = group
        """The group, within the node, that the worker belongs to."""
        # Or what makes it, once somebody reads it.
        if not is_a(description, str) and not hasattr(type(description), "condensed"):
            description = text_of(description)
        self._description = description
        self.exit_on_error: bool = exit_on_error
        """Whether an error of the work fails the node."""
        self.daemon: bool = daemon
        """Whether the node may close without waiting for the worker."""
        self._thread: ThreadPart | None = None
        if thread:
            self._thread = ThreadPart(limiter, abandon_on_cancel=abandon_on_cancel)
        self._state = PENDING
        self._outcome: object = None  # the result or the error: the state says which
        self._cancellation: tuple[float, object] | None = None  # when, and the reason
        self._started = False
        self._holds = False
        self._place: Place | None = None
        self._handle: anyio.TaskHandle[None] | None = None
        self._context = context
        self._ties: Ties | None = None
        self._completed = 0
        self._total: int | None = None
        self._created_at: float | None = None
        self._started_at: float | None = None
        self._finished_at: float | None = None
        self._order = next(_order)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {shown(self.name)} {self._state.name} "
            f"group={shown(self.group)} node={self._node.path!r}>"
        )

    def __reduce_ex__(self, protocol: object) -> str | tuple[Any, ...]:
        raise WorkerError(
            f"{self._creche_spoken()} can be neither copied nor pickled: it is one piece of work"
        )

    @property
    def node(self) -> WorkerNode:
        """The node that owns the worker."""
        return self._node

    @property
    def description(self) -> str:
        """A longer text for people; of ``@work``, the call, made when it is first read."""
        description = self._description
        if not isinstance(description, str):
            description = self._description = description()
        return description

    @description.setter
    def description(self, description: str) -> None:
        self._description = text_of(description)

    @property
    def thread(self) -> bool:
        """Whether the work runs in a thread."""
        return self._thread is not None

    @property
    def is_cancelled(self) -> bool:
        """Whether cancellation was requested; the work may still be running."""
        return self._cancellation is not None

    @property
    def cancel_reason(self) -> object:
        """The reason that came with the first request for cancellation."""
        return None if self._cancellation is None else self._cancellation[1]

    @property
    def cancelled_at(self) -> float | None:
        """When cancellation was requested, in seconds of the loop's clock; ``None`` if it was not.

        On a node that is not open yet, in seconds of ``time.monotonic()``.
        """
        return None if self._cancellation is None else self._cancellation[0]

    @property
    def cancelled_event(self) -> threading.Event:
        """An event that is set when cancellation is requested, from whatever side."""
        with lock:
            ties = self._tied()
            if ties.cancelled is None:
                ties.cancelled = threading.Event()
                if self._cancellation is not None:
                    ties.cancelled.set()
            return ties.cancelled

    @property
    def is_running(self) -> bool:
        """Whether the state is RUNNING."""
        return self._state is RUNNING

    @property
    def is_finished(self) -> bool:
        """Whether the state is a final one."""
        return self._state in FINAL

    @property
    def is_queued(self) -> bool:
        """Whether the worker was started and waits, for a slot of its group or for a thread."""
        return self._state is PENDING and (
            self._waits_for_thread() or (self._started and self._handle is None)
        )

    @property
    def is_abandoned(self) -> bool:
        """Whether the worker has ended but its thread has not."""
        return self._thread is not None and self._thread.is_abandoned

    @property
    def result(self) -> ResultType | None:
        """What the work returned, also if it was cancelled by then; ``None`` before its end."""
        if self._state is SUCCESS or self._state is CANCELLED:
            return cast("ResultType | None", self._outcome)
        return None

    @property
    def error(self) -> BaseException | None:
        """What the work raised, ``None`` unless the worker is ERROR."""
        return cast("BaseException", self._outcome) if self._state is ERROR else None

    @property
    def created_at(self) -> float | None:
        """When the worker was added to its open node, in seconds of the loop's clock."""
        return self._created_at

    @property
    def started_at(self) -> float | None:
        """When the work was entered, in seconds of the loop's clock."""
        return self._started_at

    @property
    def finished_at(self) -> float | None:
        """When the worker ended, in seconds of the loop's clock."""
        return self._finished_at

    @property
    def elapsed(self) -> float:
        """For how many seconds the work has run, or ran; 0.0 if it was never entered."""
        if self._started_at is None:
            return 0.0
        end = self._finished_at if self._finished_at is not None else self._nursery.now()
        return end - self._started_at

    @property
    def completed_steps(self) -> int:
        """The number of completed steps."""
        return self._completed

    @property
    def total_steps(self) -> int | None:
        """The number of steps in all, ``None`` if that is not known."""
        return self._total

    @property
    def progress(self) -> float:
        """How much is done, from 0.0 to 100.0 percent; 0.0 while the total is unknown or 0."""
        return percent(self._completed, self._total)

    def advance(self, steps: int = 1) -> None:
        """Add to the number of completed steps.

        Args:
            steps: How many.

        Raises:
            WorkerError: It is no finite number.

        Threads:
            Any thread; nothing is lost.
        """
        if type(steps) is not int:
            check_steps(steps)
        # Nothing is lost, nor is it dear: threads take turns only at calls and at jumps back (since
        # CPython 3.10), and there is none in this line. A lock would make it three times as slow.
        self._completed += steps
        if self._node._creche_tells_progress:
            self._node._creche_announce_progress(self)

    def update(
        self,
        completed_steps: int | None = None,
        total_steps: int | None = -1,
        *,
        description: str | None = None,
    ) -> None:
        """Set the number of completed steps, the number of all steps, or the description.

        Args:
            completed_steps: How many steps are completed; ``None`` leaves the number as it is.
            total_steps: How many there are in all; ``None`` if that is not known, -1 leaves it.
            description: What the worker is doing now, for people; ``None`` leaves it as it is.

        Raises:
            WorkerError: One of the numbers is no finite number; nothing is changed.

        Threads:
            Any thread.
        """
        for steps in (completed_steps, total_steps):
            if steps is not None and type(steps) is not int:
                check_steps(steps)
        if description is not None:
            check_text("description", description)
        with lock:
            if completed_steps is not None:
                self._completed = completed_steps
            if total_steps != -1:
                self._total = None if total_steps is None else max(0, total_steps)
            if description is not None:
                self._description = description
        if self._node._creche_tells_progress:
            self._node._creche_announce_progress(self)

    def _waits_for_thread(self) -> bool:
        return self._thread is not None and self._thread.is_waiting

    def _tied(self) -> Ties:
        if self._ties is None:
            with lock:  # asked for in threads too
                ties = Ties()
                # In a line without a call: a signal handler may have come in the one before.
                self._ties = self._ties or ties
        return self._ties

    @property
    def _nursery(self) -> Nursery:
        return self._node._creche_nursery

    def _log_fields(
        self, state: WorkerState | None = None, previous: WorkerState | None = None
    ) -> dict[str, str | None]:
        """Give what a record in the log has of its own, under names that clash with nothing."""
        reason = None if self._cancellation is None else self._cancellation[1]
        return {
            "creche_worker": name_of(self),
            "creche_group": attribute_of(self, "group"),
            "creche_node": path_of(self._node),
            "creche_state": (self._state if state is None else state).name,
            "creche_previous": None if previous is None else previous.name,
            "creche_reason": None if reason is None else text_of(reason),
        }

    def _creche_spoken(self) -> str:
        return f"worker {shown(name_of(self))}"


def percent(completed: float, total: float | None) -> float:
    """Tell how much is done, from 0.0 to 100.0; 0.0 while the total is unknown or 0."""
    if not total or completed <= 0:
        return 0.0
    if completed >= total:
        return 100.0
    return completed * 100 / total


def check_steps(steps: object) -> None:
    """Make sure that something is a number of steps.

    Raises:
        WorkerError: It is not.
    """
    try:
        if math.isfinite(cast("float", steps)):
            return
    except OverflowError:
        return  # finite, as it happens
    except Exception:  # noqa: BLE001, S110 (it is no number, whatever it says to that)
        pass
    raise WorkerError(f"steps must be a finite number, not {shown(steps)}")


def check_text(what: str, text: object) -> None:
    """Make sure that something is a text.

    Raises:
        WorkerError: It is not.
    """
    if not is_a(text, str):
        raise WorkerError(f"{what} must be a text, not {shown(text)}")
