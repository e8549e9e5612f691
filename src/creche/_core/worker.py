"""The class of workers: its fields, properties and methods.

Its life has three paths, each in a module. One way in: ``admission``, then its group, which finds a
slot and launches its task, see ``run``. One cancellation: ``cancelling``. One end: ``ending``. The
docstring of the package explains more.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast, overload

from creche._ground.errors import WorkerCancelled, WorkerError
from creche._ground.message import Message
from creche._ground.report import is_a, is_awaitable, shown, text_of
from creche._ground.states import CANCELLED, ERROR, FINAL, PENDING, RUNNING, SUCCESS
from creche._ground.steps import check_steps, percent, track
from creche._ground.text import label, name_of
from creche._messages.subscription import Subscription
from creche._running.task import in_task

from . import events
from .adapting import assign
from .cancelling import cancel, event_of, tell_of
from .checks import check_new
from .ending import close_work
from .followers import WorkerSource, add_callback
from .parts import HAS_GIL, RareParts, ThreadPart, lock
from .progress import set_steps
from .readiness import is_ready, restart, say_ready, until_ready, watch_stalls
from .run import lose_task, main, run_aside
from .tree import exits_on_error
from .waiting import raise_outcome, wait_for

if TYPE_CHECKING:
    import sys
    import threading
    from collections.abc import (
        AsyncIterable,
        AsyncIterator,
        Collection,
        Generator,
        Iterable,
        Iterator,
    )
    from concurrent.futures import Executor
    from contextvars import Context

    from anyio import CapacityLimiter, TaskHandle

    from creche._ground.call import Call
    from creche._ground.message import MessageT
    from creche._ground.options import AllOptions
    from creche._ground.states import WorkerState
    from creche._ground.way import Way
    from creche._nursery.nursery import Nursery
    from creche._running.runner import Runner

    from .deadlock import Waitable
    from .group import WorkerGroup
    from .node import Node

    if sys.version_info >= (3, 11):
        from typing import Unpack
    else:
        from typing_extensions import Unpack

T = TypeVar("T")
M1 = TypeVar("M1", bound=Message)
M2 = TypeVar("M2", bound=Message)
ResultType = TypeVar("ResultType")
"""What the work of a worker returns."""

_order = itertools.count(1)
WorkType: TypeAlias = (
    Callable[[], Coroutine[Any, Any, ResultType]] | Callable[[], ResultType] | Awaitable[ResultType]
)
"""What a worker can run: a coroutine function, a plain callable (in a thread), or an awaitable."""


class Worker(Generic[ResultType]):
    """One piece of work, owned by a node: named, grouped, cancellable and observable.

    Usually made by ``Node.run_worker()`` or ``@work``. If you make one yourself, pass it to
    ``Node.workers.add_worker()``. A subclass may implement ``run()`` and then needs no ``work``.
    It may override ``node`` and ``state``: Creche itself uses values of its own.

    Args:
        node: The node that owns the worker.
        work: A coroutine function, an awaitable or, with ``thread``, a plain callable. Anything
            that is called without arguments and returns an awaitable will do. ``None`` only for a
            subclass that implements ``run()``.
        name: A short name for messages and logs.
        group: The group, within the node, that the worker belongs to.
        description: A longer text for people.
        exit_on_error: Whether an error of the work fails the node. If not, it is stored and logged.
            ``None`` means: as the node says.
        thread: Whether to run the work in a thread; async work gets its own event loop there.
        daemon: Whether the node may close without waiting for the worker; it then cancels it.
        abandon_on_cancel: Whether a cancelled thread is left behind instead of waited for.
        limiter: Limits the number of threads; by default AnyIO's default thread limiter.
        where: What runs the work elsewhere, see ``Node.run_worker()``.

    Raises:
        WorkerError: An argument is invalid. A coroutine object passed as work is closed.
    """

    StateChanged: TypeAlias = events.StateChanged
    ProgressChanged: TypeAlias = events.ProgressChanged
    Ready: TypeAlias = events.Ready
    Restarted: TypeAlias = events.Restarted
    Stalled: TypeAlias = events.Stalled

    __slots__ = (
        *("__weakref__", "_cancellation", "_completed", "_context", "_created_at", "_description"),
        *("_finished_at", "_handle", "_holds", "_node", "_order", "_outcome", "_place", "_rare"),
        *("_started_at", "_state", "_thread", "_work"),
        *("daemon", "exit_on_error", "group", "name"),
    )
    _is_far = False  # a ``Far`` stands for one that is elsewhere

    name: str
    """A short name for messages and logs."""
    group: str
    """The group, within the node, that the worker belongs to."""
    exit_on_error: bool
    """Whether an error of the work fails the node."""
    daemon: bool
    """Whether the node may close without waiting for the worker."""

    @overload
    def __init__(
        self,
        node: Node,
        work: Callable[[], Awaitable[ResultType]] | Awaitable[ResultType],
        **options: Unpack[AllOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        node: Node,
        work: Callable[[], ResultType] | None = None,
        **options: Unpack[AllOptions],
    ) -> None: ...

    def __init__(
        self,
        node: Node,
        work: WorkType[Any] | None = None,
        *,
        name: str = "",
        group: str = "default",
        description: str = "",
        exit_on_error: bool | None = None,
        thread: bool = False,
        daemon: bool = False,
        abandon_on_cancel: bool = False,
        limiter: CapacityLimiter | None = None,
        where: Way | Executor | None = None,
    ) -> None:
        if exit_on_error is None:
            exit_on_error = not hasattr(node, "_creche_nursery") or exits_on_error(node)
        self._set_up(node, work, name, group, description, exit_on_error, thread, daemon)
        self._keep_context()
        if not hasattr(node, "_creche_nursery"):
            close_work(self)
            raise WorkerError(f"node must be a Node, not {shown(node)}")
        check_new(self, abandon_on_cancel, limiter, where)

    def _set_up(
        self,
        node: Node,
        work: object,
        name: str,
        group: str,
        description: str | Call,
        exit_on_error: bool,
        thread: bool,
        daemon: bool,
    ) -> None:
        # The invariants between these fields, at any moment that a thread may see:
        # - _state is written by move() alone, with the time of it, under the lock.
        # - _outcome is set before the final state; the state says whether it is result or error.
        # - _cancellation is set once, under the lock, and never after the final state.
        # - _place is the group that stores it. _handle is its task, or the runner whose task it
        #   shares, from its first step to its end.
        # - _holds is None until it is started, then whether the nursery counts it, until its end.
        # - after the end, _work, _handle and _context are None: nothing of the work is kept.
        self._node = node
        self._work = work
        self.name = name
        self.group = group
        # Or a Call, which formats it when it is first read.
        if type(description) is not str and not hasattr(type(description), "condensed"):
            description = text_of(description)
        self._description = description
        self.exit_on_error = exit_on_error
        self.daemon = daemon
        self._thread = ThreadPart() if thread else None
        self._state = PENDING
        self._outcome: object = None  # the result or the error: the state says which
        self._cancellation: tuple[float, object] | None = None  # when, and the reason
        self._holds: bool | None = None
        self._place: WorkerGroup | None = None
        self._handle: Runner | TaskHandle[None] | None = None
        self._context: Context | None = None
        self._rare: RareParts | None = None
        self._completed = 0
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
            f"{self._creche_label()} can be neither copied nor pickled: it is one piece of work"
        )

    def _creche_label(self) -> str:
        return f"worker {shown(name_of(self))}"

    # what is known of it, to be read in any thread

    @property
    def node(self) -> Node:
        """The node that owns the worker."""
        return self._node

    @property
    def number(self) -> int:
        """A number that is unique in the process; later workers have higher numbers."""
        return self._order

    @property
    def description(self) -> str:
        """A longer text for people. For ``@work`` it is the call, created when it is first read."""
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
        return self._thread is not None and self._thread.run is None

    @property
    def where(self) -> str:
        """Where work with ``where=`` runs, once that is known: ``process 4711``."""
        return "" if self._thread is None else self._thread.where

    @property
    def state(self) -> WorkerState:
        """The state, see ``WorkerState``.

        An adapter that runs the work elsewhere assigns it, for a worker that was not started here.
        A change that the table of states allows is made and announced. Once the worker was
        started here, only CANCELLED can be assigned, which is ``cancel()``. The node does
        not wait for a worker that runs elsewhere; it is CANCELLED when the node closes.

        Raises:
            WorkerError: On assignment: the change is not allowed. Nothing was changed.

        Threads:
            Can be read and assigned in any thread.
        """
        return self._state

    @state.setter
    def state(self, state: WorkerState) -> None:
        self._node._creche_bridge.call(partial(assign, self, state))

    @property
    def is_running(self) -> bool:
        """Whether the state is RUNNING."""
        return self._state is RUNNING

    @property
    def is_finished(self) -> bool:
        """Whether the state is final."""
        return self._state in FINAL

    @property
    def is_queued(self) -> bool:
        """Whether it was started and waits for a slot, for a thread, or to begin elsewhere."""
        place = self._place
        return self._state is PENDING and (
            self._waits_for_thread() or (place is not None and place._has_in_queue(self))
        )

    @property
    def is_cancelled(self) -> bool:
        """Whether cancellation was requested; the work may still be running."""
        return self._cancellation is not None

    @property
    def cancel_reason(self) -> object:
        """The reason that was given with the first request for cancellation."""
        return None if self._cancellation is None else self._cancellation[1]

    @property
    def cancelled_at(self) -> float | None:
        """When cancellation was requested, in seconds of the loop's clock; ``None`` if it was not.

        On a node that is not open yet, in seconds of ``time.monotonic()``.
        """
        return None if self._cancellation is None else self._cancellation[0]

    @property
    def cancelled_event(self) -> threading.Event:
        """An event that is set when cancellation is requested, by whatever means."""
        return event_of(self)

    @property
    def is_abandoned(self) -> bool:
        """Whether the worker has ended but its thread has not."""
        return self._thread is not None and self._thread.is_abandoned

    @property
    def result(self) -> ResultType | None:
        """What the work returned, even if the worker was cancelled meanwhile; ``None`` before."""
        if self._state is SUCCESS or self._state is CANCELLED:
            return cast("ResultType | None", self._outcome)
        return None

    @property
    def error(self) -> BaseException | None:
        """What the work raised; ``None`` unless the state is ERROR."""
        return cast("BaseException", self._outcome) if self._state is ERROR else None

    def result_or(self, default: T) -> ResultType | T:
        """Return the result if the state is SUCCESS, else the default. Any thread."""
        return cast("ResultType", self._outcome) if self._state is SUCCESS else default

    @property
    def created_at(self) -> float | None:
        """When the worker was added to its open node, in seconds of the loop's clock."""
        return self._created_at

    @property
    def started_at(self) -> float | None:
        """When the work started, in seconds of the loop's clock."""
        return self._started_at

    @property
    def finished_at(self) -> float | None:
        """When the worker ended, in seconds of the loop's clock."""
        return self._finished_at

    @property
    def elapsed(self) -> float:
        """How many seconds the work has run, or ran; 0.0 if it never started."""
        if self._started_at is None:
            return 0.0
        end = self._finished_at if self._finished_at is not None else self._nursery.now()
        return end - self._started_at

    # whether it serves

    @property
    def is_ready(self) -> bool:
        """Whether the work is running and has called ``ready()``."""
        return is_ready(self)

    @property
    def attempt(self) -> int:
        """The number of the current attempt: 1, and one more each time the work starts again."""
        service = None if self._rare is None else self._rare.service
        return 1 if service is None else service.attempt

    def ready(self, value: object = None) -> None:
        """Say that the work is ready. Only the first call of an attempt counts.

        Does nothing once the worker was cancelled or has ended.

        Args:
            value: What ``until_ready()`` returns to those who wait: an address, for example.

        Threads:
            Any thread.
        """
        say_ready(self, value)

    async def until_ready(self) -> Any:
        """Wait until the work has called ``ready()``.

        Cancelling this call ends the wait; the worker goes on.

        Returns:
            The value passed to ``ready()``.

        Raises:
            WorkerError: The work returned without being ready. If it failed or was cancelled
                before it was ready, this raises what ``wait()`` raises.

        Checkpoint:
            If it is not ready yet.

        Threads:
            The node's event loop only.
        """
        return await until_ready(self)

    def restarted(self, error: BaseException, delay: float = 0.0) -> None:
        """Record that the work has failed and starts again. For code that runs work, like services.

        The attempt is counted, the steps start over, and the work has to become ready again.
        ``Worker.Restarted`` is announced, and the log reports it.

        Args:
            error: What the work raised.
            delay: Seconds until it starts again.

        Raises:
            WorkerError: The worker is not RUNNING.

        Threads:
            Any thread.
        """
        self._node._creche_bridge.call(partial(restart, self, error, delay))

    def watch_stalls(self, seconds: float) -> None:
        """Announce ``Worker.Stalled``, from now on, after this long without progress. Any thread.

        Raises:
            WorkerError: That is not a valid time.
        """
        self._node._creche_bridge.call(partial(watch_stalls, self, seconds))

    # how far it is

    @property
    def _total(self) -> int | None:  # one of those parts that few have
        return None if self._rare is None else self._rare.total

    @_total.setter
    def _total(self, total: int | None) -> None:
        if total is not None or self._rare is not None:
            self._rare_parts().total = total

    @property
    def completed_steps(self) -> int:
        """The number of completed steps."""
        return self._completed

    @property
    def total_steps(self) -> int | None:
        """The total number of steps; ``None`` if it is not known."""
        return self._total

    @property
    def progress(self) -> float:
        """How much is done, in percent from 0.0 to 100.0; 0.0 if the total is unknown or 0."""
        return percent(self._completed, self._total)

    def advance(self, steps: int = 1) -> None:
        """Add to the number of completed steps.

        Args:
            steps: How many to add.

        Raises:
            WorkerError: It is not a finite number.

        Threads:
            Any thread; no step is lost.
        """
        if type(steps) is not int:
            check_steps(steps)
        if HAS_GIL:
            self._completed += steps  # in one go, see HAS_GIL; a lock would be three times as slow
        else:
            with lock:
                self._completed += steps
        audience = self._node._creche_audience
        if audience.tells_progress or (self._rare is not None and self._rare.is_hungry):
            audience.announce_progress(self)

    def update(
        self,
        completed_steps: int | None = None,
        total_steps: int | None = -1,
        *,
        description: str | None = None,
    ) -> None:
        """Set the number of completed steps, the total, or the description.

        Args:
            completed_steps: The number of completed steps; ``None`` leaves it unchanged.
            total_steps: The total; ``None`` if it is not known, -1 leaves it unchanged.
            description: What the worker is doing now, for people; ``None`` leaves it unchanged.

        Raises:
            WorkerError: A number is not finite. Nothing is changed.

        Threads:
            Any thread.
        """
        set_steps(self, completed_steps, total_steps, description)

    @overload
    def track(self, iterable: Iterable[T], total: int | None = None) -> Iterator[T]: ...

    @overload
    def track(self, iterable: AsyncIterable[T], total: int | None = None) -> AsyncIterator[T]: ...

    def track(
        self, iterable: Iterable[T] | AsyncIterable[T], total: int | None = None
    ) -> Iterator[T] | AsyncIterator[T]:
        """Iterate, and advance by one step after each item.

        If you leave the loop early, the current item does not count. The total is set at once: the
        steps completed so far plus the number of items.

        Args:
            iterable: What to iterate over. For an async iterable, use ``async for``.
            total: The number of items; by default what ``len()`` or the iterable's length hint
                says. If there is neither, the total stays as it is.

        Raises:
            WorkerError: It is not iterable.

        Threads:
            Any thread.
        """
        return track(self, iterable, total)

    # listening to it and waiting

    @overload
    def subscribe(self) -> Subscription[events.StateChanged | events.ProgressChanged]: ...

    @overload
    def subscribe(self, first: type[M1], /) -> Subscription[M1]: ...

    @overload
    def subscribe(self, first: type[M1], second: type[M2], /) -> Subscription[M1 | M2]: ...

    @overload
    def subscribe(self, *types: type[MessageT]) -> Subscription[MessageT]: ...

    def subscribe(self, *types: type[Any]) -> Subscription[Any]:
        """Listen to this worker alone. Whatever else happens on its node costs nothing.

        ``async with worker.subscribe() as events`` opens the stream, at any time, and ``async for
        event in events`` reads it. The stream begins with the current state and ends after the
        final change, even if the worker has already ended.

        Args:
            types: What to listen to: the events of ``Worker``; by default ``StateChanged`` and
                ``ProgressChanged``.

        Returns:
            The subscription, see ``Node.subscribe()``.

        Raises:
            WorkerError: Something is not a class of messages.

        Threads:
            Any thread; the subscription is for the node's event loop only.
        """
        wanted: tuple[type[Any], ...] = types or (events.StateChanged, events.ProgressChanged)
        return Subscription(WorkerSource(self), wanted)

    async def wait(self) -> ResultType:
        """Wait until the worker has ended, and return its result.

        Cancelling this call ends the wait; the worker goes on. ``await worker`` is the same.

        Returns:
            What the work returned.

        Raises:
            WorkerFailed: The work raised; the original is ``error`` and ``__cause__``.
            WorkerCancelled: The worker was cancelled.
            DeadlockError: Called by a worker that this one needs, directly or not, in order to end.
                The message names the cycle. A timeout around the wait makes no difference.
            WorkerError: The worker was never started, or this is not its node's event loop.

        Checkpoint:
            Always, even if the worker has ended.

        Threads:
            The node's event loop only; from a thread, ``node.call_from_thread(worker.wait)``.
        """
        await wait_for((self,))
        if self._state is not SUCCESS:
            raise_outcome(self)
        return cast("ResultType", self._outcome)

    async def join(self) -> Worker[ResultType]:
        """Wait until the worker has ended, in whatever way. Errors of the work are not raised.

        Cancelling this call ends the wait; the worker goes on.

        Returns:
            The worker itself.

        Raises:
            DeadlockError, WorkerError: As for ``wait()``.

        Checkpoint:
            Always, even if the worker has ended.

        Threads:
            The node's event loop only.
        """
        await wait_for((self,))
        return self

    def add_done_callback(self, callback: Callable[[Worker[ResultType]], object]) -> None:
        """Call a function with the worker when it ends, in the same step; at once if it has ended.

        Threads:
            Any thread. The function is called on the event loop and must not block. What it raises
            is logged.
        """
        self._node._creche_bridge.call(partial(add_callback, self, callback))

    def __await__(self) -> Generator[Any, Any, ResultType]:
        """Wait, as ``wait()`` does."""
        return self.wait().__await__()

    def _creche_needs_all(self) -> Collection[Waitable]:
        # Whoever is cancelled will be woken from its wait: nothing is certain then.
        if self._cancellation is not None or self._rare is None:
            return ()
        return (*self._rare.waits, *(self._rare.opened or {}).values())

    def _creche_needs_one(self) -> Collection[Waitable]:
        if self._place is None or not self.is_queued or self._waits_for_thread():
            return ()
        return self._place._holders()

    def _rare_parts(self) -> RareParts:
        if self._rare is None:
            with lock:  # asked for in threads too
                ties = RareParts()
                # In a line without a call: a signal handler may have come in the one before.
                self._rare = self._rare or ties
        return self._rare

    def _note_report(self, tree: object) -> bool:
        return self._rare_parts().note_report(tree)

    # the way in: its task

    def run(self) -> Coroutine[Any, Any, ResultType]:
        """Run the work and return its result. The node calls and awaits it once.

        A subclass may implement it as ``async def run(self)``, instead of the work or around
        ``await super().run()``. It runs in a task on the node's event loop.
        """
        return in_task(self) if self._thread is None else run_aside(self, self._thread)

    @property
    def _started(self) -> bool:
        return self._holds is not None

    def _has_own_run(self) -> bool:
        return type(self).run is not _RUN

    def _keep_context(self) -> None:
        if self._context is None:
            self._context = copy_context()  # of the caller, for a task that is started later

    def _be_started(self) -> None:
        """Count as started; the node waits for it from now on, unless it is a daemon."""
        nursery, holds = self._node._creche_nursery, not self.daemon
        self._holds, nursery.holds = holds, nursery.holds + holds  # in one line, see Nursery.holds

    def _hold(self) -> None:
        nursery = self._node._creche_nursery
        self._holds, nursery.holds = True, nursery.holds + 1  # as above

    def _task_name(self) -> str:
        name, place = self.name, self._place
        if place is None or type(name) is not str:
            return label(self)  # it was set since
        return (place._path or place._make_path()) + (name or type(self).__name__)

    _main = main
    _lose_task = lose_task

    def _is_to_await(self, value: object) -> bool:
        return is_awaitable(value) and not is_a(value, cast("type[object]", Worker))

    def _waits_for_thread(self) -> bool:
        return self._thread is not None and self._thread.is_waiting

    # cancellation

    def cancel(self, reason: object = None) -> None:
        """Request cancellation. Only the first request counts; a finished worker does not change.

        If the work has not begun, it is never called, and the worker becomes CANCELLED: at once on
        the event loop, soon after in another thread. In a running worker, the next checkpoint
        raises the backend's cancellation. It never ends SUCCESS then, whatever it does. A thread
        has to ask, see ``check_cancelled()``.

        Args:
            reason: Anything that says why; see ``cancel_reason``.

        Threads:
            Any thread.
        """
        cancel(self, reason, self._node._creche_bridge.run)

    def check_cancelled(self) -> None:
        """Raise an error if cancellation was requested.

        Raises:
            WorkerCancelled: It was. Let it leave the work, and the worker ends CANCELLED.

        Threads:
            Any thread.
        """
        if self._cancellation is not None:
            raise WorkerCancelled(tell_of(self))

    @property
    def _nursery(self) -> Nursery:
        return self._node._creche_nursery


_RUN = cast("type[Worker[object]]", Worker).run
