"""A worker: what is known of it, and what may be asked of it.

Its life has one path each way, and each has a module. One way in: ``admission``, then its group,
which finds it a slot and launches its task, see ``run``. One cancellation: ``cancelling``. One end:
``ending``. The package tells more.
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
from .parts import HAS_GIL, Description, RareParts, ThreadPart, lock
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

    from anyio import CapacityLimiter

    from creche._ground.message import MessageT
    from creche._ground.options import AllOptions
    from creche._ground.states import WorkerState
    from creche._ground.way import Way
    from creche._nursery.nursery import Nursery
    from creche._running.runner import OwnTask

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
    """One named, grouped, cancellable, observable unit of work, owned by a node.

    Usually made by ``Node.run_worker()`` or ``@work``. One that is made directly is given to
    ``Node.workers.add_worker()``. A subclass may implement ``run()`` and then needs no ``work``.
    It may give ``node`` and ``state`` another meaning: the library reads what it keeps itself.

    Args:
        node: The node that owns the worker.
        work: A coroutine function, an awaitable, or, with ``thread``, a plain callable; anything
            callable without arguments whose result is awaitable will do. ``None`` only for a
            subclass that implements ``run()``.
        name: A short name for messages and logs.
        group: The group, within the node, that the worker belongs to.
        description: A longer text for people.
        exit_on_error: Whether an error of the work fails the node. If not, it is stored and logged.
            ``None`` for what the node says.
        thread: Whether to run the work in a thread; async work has an event loop of its own there.
        daemon: Whether the node may close without waiting for the worker, which it then cancels.
        abandon_on_cancel: Whether a cancelled thread is left to itself rather than waited for.
        limiter: What bounds the number of threads; by default AnyIO's default thread limiter.
        where: What runs the work elsewhere, see ``Node.run_worker()``.

    Raises:
        WorkerError: An argument makes no sense. A coroutine object given as work is closed.
    """

    StateChanged: TypeAlias = events.StateChanged
    ProgressChanged: TypeAlias = events.ProgressChanged
    Ready: TypeAlias = events.Ready
    Restarted: TypeAlias = events.Restarted
    Stalled: TypeAlias = events.Stalled

    __slots__ = (
        *("__weakref__", "_cancellation", "_completed", "_context", "_created_at", "_description"),
        *("_finished_at", "_handle", "_holds", "_node", "_order", "_outcome", "_place", "_rare"),
        *("_started", "_started_at", "_state", "_thread", "_total", "_work"),
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
        description: str | Description,
        exit_on_error: bool,
        thread: bool,
        daemon: bool,
    ) -> None:
        # What these say together, at any moment that a thread may see:
        # - _state is written by move() alone, with the time of it, under the lock.
        # - _outcome is set before the final state; the state says whether it is result or error.
        # - _cancellation is set once, under the lock, and never after the final state.
        # - _place is the group that knows it; _started is whether it was started there. _handle is
        #   what runs its task, from its first step to its end.
        # - _holds is whether it is counted in the nursery: from its start to its end, daemons not.
        # - after the end, _work, _handle and _context are None: nothing of the work is kept.
        self._node = node
        self._work = work
        self.name = name
        self.group = group
        # Or what makes it, once somebody reads it.
        if type(description) is not str and not hasattr(type(description), "condensed"):
            description = text_of(description)
        self._description = description
        self.exit_on_error = exit_on_error
        self.daemon = daemon
        self._thread = ThreadPart() if thread else None
        self._state = PENDING
        self._outcome: object = None  # the result or the error: the state says which
        self._cancellation: tuple[float, object] | None = None  # when, and the reason
        self._started = False
        self._holds = False
        self._place: WorkerGroup | None = None
        self._handle: OwnTask | None = None
        self._context: Context | None = None
        self._rare: RareParts | None = None
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
        """A number that no other worker of the process has; a later one has a higher one."""
        return self._order

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
        return self._thread is not None and self._thread.run is None

    @property
    def where(self) -> str:
        """Where the work runs that was given ``where=``, once that is known: ``process 4711``."""
        return "" if self._thread is None else self._thread.where

    @property
    def state(self) -> WorkerState:
        """The state, see ``WorkerState``.

        It may be assigned for a worker that was not started here: that is how an adapter runs the
        work elsewhere. A change that the table of states allows is made and announced. Once the
        worker was started here only CANCELLED may be assigned, which is ``cancel()``. The node
        does not wait for a worker that runs elsewhere; it is CANCELLED when the node closes.

        Raises:
            WorkerError: On assignment: the change is not allowed; nothing was changed.

        Threads:
            To be read and assigned in any thread.
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
        """Whether the state is a final one."""
        return self._state in FINAL

    @property
    def is_queued(self) -> bool:
        """Whether it was started and waits: for a slot, for a thread, to begin elsewhere."""
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
        return event_of(self)

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

    def result_or(self, default: T) -> ResultType | T:
        """Get the result if the worker is SUCCESS, else a default; in any thread."""
        return cast("ResultType", self._outcome) if self._state is SUCCESS else default

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

    # whether it serves

    @property
    def is_ready(self) -> bool:
        """Whether the work runs and has said that it is ready."""
        return is_ready(self)

    @property
    def attempt(self) -> int:
        """The number of the attempt: 1, and one more each time that the work begins again."""
        service = None if self._rare is None else self._rare.service
        return 1 if service is None else service.attempt

    def ready(self, value: object = None) -> None:
        """Say that the work is ready to be used. The first call counts, until it begins again.

        Once the worker was cancelled or has ended, this changes nothing.

        Args:
            value: What ``until_ready()`` gives to who waits for it: an address, for instance.

        Threads:
            Any thread.
        """
        say_ready(self, value)

    async def until_ready(self) -> Any:
        """Wait until the work has said that it is ready.

        Cancelling this call ends the wait; the worker goes on.

        Returns:
            What it was ready with.

        Raises:
            WorkerError: It returned without being ready; or what ``wait()`` raises, as the work
                failed or was cancelled before it was ready.

        Checkpoint:
            If it is not ready yet.

        Threads:
            The node's event loop only.
        """
        return await until_ready(self)

    def restarted(self, error: BaseException, delay: float = 0.0) -> None:
        """Note that the work has failed and begins again; for what runs work, as a service does.

        The attempt counts up, the steps begin anew, and the work has to be ready anew. It is
        announced as ``Worker.Restarted`` and told in the log.

        Args:
            error: What the work raised.
            delay: In how many seconds it begins again.

        Raises:
            WorkerError: The worker is not RUNNING.

        Threads:
            Any thread.
        """
        self._node._creche_bridge.call(partial(restart, self, error, delay))

    def watch_stalls(self, seconds: float) -> None:
        """Announce, from now on and in any thread, where the work does not get on for so long.

        Raises:
            WorkerError: That is no time.
        """
        self._node._creche_bridge.call(partial(watch_stalls, self, seconds))

    # how far it is

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
        set_steps(self, completed_steps, total_steps, description)

    @overload
    def track(self, iterable: Iterable[T], total: int | None = None) -> Iterator[T]: ...

    @overload
    def track(self, iterable: AsyncIterable[T], total: int | None = None) -> AsyncIterator[T]: ...

    def track(
        self, iterable: Iterable[T] | AsyncIterable[T], total: int | None = None
    ) -> Iterator[T] | AsyncIterator[T]:
        """Iterate, and advance by one step as each item has been dealt with.

        An item that the loop is left at does not count. The total is set at once: the steps
        completed so far and the number of items.

        Args:
            iterable: What to iterate. For an async iterable, use ``async for``.
            total: The number of items; by default what ``len()`` or the iterable's length hint
                says. Where there is neither, the total stays as it is.

        Raises:
            WorkerError: It is not iterable.

        Threads:
            Any thread.
        """
        return track(self, iterable, total)

    # who listens to it, who waits for it, and for whom it waits

    @overload
    def subscribe(self) -> Subscription[events.StateChanged | events.ProgressChanged]: ...

    @overload
    def subscribe(self, first: type[M1], /) -> Subscription[M1]: ...

    @overload
    def subscribe(self, first: type[M1], second: type[M2], /) -> Subscription[M1 | M2]: ...

    @overload
    def subscribe(self, *types: type[MessageT]) -> Subscription[MessageT]: ...

    def subscribe(self, *types: type[Any]) -> Subscription[Any]:
        """Listen to this worker alone; what others on its node do costs nothing.

        ``async with worker.subscribe() as events`` opens the stream and ``async for event in
        events`` reads it, whenever: it begins with how things stand and ends after the final
        change, also when the worker has ended.

        Args:
            types: What to listen to: ``Worker.StateChanged``, ``Worker.ProgressChanged``; by
                default both.

        Returns:
            The subscription, see ``Node.subscribe()``.

        Raises:
            WorkerError: Something is no class of messages.

        Threads:
            Any thread; the subscription is for the node's event loop only.
        """
        wanted: tuple[type[Any], ...] = types or (self.StateChanged, self.ProgressChanged)
        return Subscription(WorkerSource(self), wanted)

    async def wait(self) -> ResultType:
        """Wait until the worker has ended, and return its result.

        Cancelling this call ends the wait; the worker goes on. ``await worker`` is the same.

        Returns:
            What the work returned.

        Raises:
            WorkerFailed: The work raised; the original is ``error`` and ``__cause__``.
            WorkerCancelled: The worker was cancelled.
            DeadlockError: Called by a worker whose own end this one needs, in whatever way; the
                message names the ring. Also where a timeout would have ended the wait.
            WorkerError: The worker was never started; or this is not its node's event loop.

        Checkpoint:
            Always, also when the worker has ended.

        Threads:
            The node's event loop only; from a thread, ``node.call_from_thread(worker.wait)``.
        """
        await wait_for((self,))
        raise_outcome(self)
        return cast("ResultType", self._outcome)

    async def join(self) -> Worker[ResultType]:
        """Wait until the worker has ended, whichever way; no outcome of the work is raised.

        Cancelling this call ends the wait; the worker goes on.

        Returns:
            The worker itself.

        Raises:
            DeadlockError, WorkerError: As for ``wait()``.

        Checkpoint:
            Always, also when the worker has ended.

        Threads:
            The node's event loop only.
        """
        await wait_for((self,))
        return self

    def add_done_callback(self, callback: Callable[[Worker[ResultType]], object]) -> None:
        """Have a function called with the worker in the step of its end; at once if it has ended.

        Threads:
            Any thread. The function is called on the event loop, where it must not wait; what it
            raises is logged.
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

    # the way in: its task

    def run(self) -> Coroutine[Any, Any, ResultType]:
        """Run the work and return its result; called once, by the node, and awaited.

        A subclass may implement this as ``async def run(self)``, in place of work or round
        ``await super().run()``. It runs in a task on the node's loop.
        """
        if self._thread is None:
            try:
                return in_task(self)
            finally:
                del self  # see errors: frames
        return run_aside(self, self._thread)

    def _has_own_run(self) -> bool:
        return type(self).run is not _RUN

    def _keep_context(self) -> None:
        if self._context is None:
            self._context = copy_context()  # of the caller, for a task that is started later

    def _be_started(self) -> None:
        """Count as started; the node waits for it from now on, unless it is a daemon."""
        self._started = True
        if not self.daemon:
            nursery = self._node._creche_nursery
            self._holds, nursery.holds = True, nursery.holds + 1  # in one line, see Nursery.holds

    def _hold(self) -> None:
        nursery = self._node._creche_nursery
        self._holds, nursery.holds = True, nursery.holds + 1  # as above

    def _let_go(self) -> None:
        nursery = self._node._creche_nursery
        if self._holds:
            self._holds, nursery.holds = False, nursery.holds - 1
        if nursery.holds <= nursery.blocks:
            nursery.check_idle()

    def _launch(self) -> None:
        """Start the task; it has a slot.

        Raises:
            BaseException: The task cannot be made; nothing was changed.
        """
        if self._context is None:
            self._context = copy_context()
        self._node._creche_runners.launch(self)

    def _task_name(self) -> str:
        name, place = self.name, self._place
        if place is None or type(name) is not str:
            return label(self)  # it was set since
        return (place._path or place._make_path()) + (name or type(self).__name__)

    def _main(self, task: OwnTask) -> Coroutine[Any, Any, None]:
        return main(self, task)

    def _lose_task(self, fault: BaseException) -> None:
        lose_task(self, fault)

    def _is_to_await(self, value: object) -> bool:
        return is_awaitable(value) and not is_a(value, cast("type[object]", Worker))

    def _waits_for_thread(self) -> bool:
        return self._thread is not None and self._thread.is_waiting

    # cancellation

    def cancel(self, reason: object = None) -> None:
        """Request cancellation. The first request counts; on a finished worker it changes nothing.

        A worker that has not begun is CANCELLED at once and its work is never called. A running one
        gets its backend's cancellation at the next checkpoint and never reports SUCCESS, whatever
        it does. A thread cannot be stopped: it has to ask, see ``check_cancelled()``.

        Args:
            reason: Anything that tells why; see ``cancel_reason``.

        Threads:
            Any thread.
        """
        cancel(self, reason, self._node._creche_bridge.run)

    def check_cancelled(self) -> None:
        """Raise an error if cancellation was requested.

        Raises:
            WorkerCancelled: It was. Let it out of the work, and the worker ends CANCELLED.

        Threads:
            Any thread.
        """
        if self._cancellation is not None:
            raise WorkerCancelled(tell_of(self))

    @property
    def _nursery(self) -> Nursery:
        return self._node._creche_nursery


_RUN = cast("type[Worker[object]]", Worker).run
