"""A worker: one named, grouped, observable unit of work.

Its life has one path each way. One way in: its group admits it (``WorkerGroup._start``), finds it a
slot and launches its task, whose first step enters the work. One cancellation: ``cancel()`` marks
the worker in the calling thread, then on the loop tells whatever runs elsewhere and cancels the
scope. One end: ``_end()``.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError as ThreadCancelledError
from contextvars import ContextVar, copy_context
from types import CoroutineType
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    cast,
    overload,
)

import anyio
from anyio import lowlevel

from ._errors import (
    DeadlockError,
    NoActiveWorker,
    WorkerCancelled,
    WorkerError,
    WorkerFailed,
    add_note,
    strip_traceback,
    uncancelled,
)
from ._message import Message
from ._running import in_task, in_thread
from ._state import FINAL, TRANSITIONS, WorkerState
from ._waiting import find_deadlock

if TYPE_CHECKING:
    import sys
    from collections.abc import Collection, Generator, Iterable
    from contextvars import Context

    from anyio import CapacityLimiter

    from ._nursery import Nursery
    from ._waiting import Party

    if sys.version_info >= (3, 11):
        from typing import Unpack
    else:
        from typing_extensions import Unpack

ResultType = TypeVar("ResultType")
"""What the work of a worker returns."""

T = TypeVar("T")

WorkType: TypeAlias = (
    Callable[[], Coroutine[Any, Any, ResultType]] | Callable[[], ResultType] | Awaitable[ResultType]
)
"""What a worker can run: a coroutine function, a plain callable (in a thread), or an awaitable."""

_logger = logging.getLogger("creche")
_OWN_FRAMES = f"{__package__}._"
_order = itertools.count()
# Short steps in which a cancellation from a thread and the loop's own steps must not overlap. Can
# be entered again: a signal handler may call cancel() in the midst of one.
_lock = threading.RLock()


class WorkerNode(Protocol):
    """What a worker asks of the node that owns it."""

    name: str
    _nursery: Nursery
    _waiting: set[Party]

    @property
    def path(self) -> str:
        """The names of the nodes from the root to this one, joined by slashes."""
        ...

    def cancel(self, reason: object = None) -> None:
        """Cancel all below the node, and its body."""
        ...

    def post_message(self, message: Message) -> bool:
        """Hand a message to the node's handler."""
        ...

    def _announce(self, worker: Worker[Any], state: WorkerState) -> None: ...

    def _is_opened_by_a_worker(self) -> bool:
        """Tell whether a worker has the block of the node, or of one above, open."""
        ...


class Place(Protocol):
    """What a worker asks of its place among the others: its group."""

    def _holders(self) -> Collection[Party]:
        """Tell the workers that hold the slots."""
        ...

    def _left(self, worker: Worker[Any]) -> None:
        """Take note that a worker has ended."""
        ...

    @property
    def queued(self) -> int:
        """How many workers wait for a slot."""
        ...


class WorkerOptions(TypedDict, total=False):
    """The options of a worker."""

    exit_on_error: bool
    thread: bool
    daemon: bool
    abandon_on_cancel: bool
    limiter: CapacityLimiter | None


class _AllOptions(WorkerOptions, total=False):
    name: str
    group: str
    description: str


class Worker(Generic[ResultType]):
    """One named, grouped, cancellable, observable unit of work, owned by a node.

    Usually made by ``Node.run_worker()`` or ``@work``. One that is made directly is given to
    ``Node.workers.add_worker()``. A subclass may implement ``run()`` and then needs no ``work``.

    Args:
        node: The node that owns the worker.
        work: A coroutine function, an awaitable, or, with ``thread``, a plain callable; anything
            callable without arguments whose result is awaitable will do. ``None`` only for a
            subclass that implements ``run()``.
        name: A short name for messages and logs.
        group: The group, within the node, that the worker belongs to.
        description: A longer text for people.
        exit_on_error: Whether an error of the work fails the node. If not, it is stored and logged.
        thread: Whether to run the work in a thread; async work has an event loop of its own there.
        daemon: Whether the node may close without waiting for the worker, which it then cancels.
        abandon_on_cancel: Whether a cancelled thread is left to itself rather than waited for.
        limiter: What bounds the number of threads; by default AnyIO's default thread limiter.

    Raises:
        WorkerError: An argument makes no sense. A coroutine object given as work is closed.
    """

    __slots__ = (
        "__weakref__",
        "_abandon_on_cancel",
        "_begun",
        "_cancel_reason",
        "_cancelled",
        "_completed",
        "_context",
        "_created_at",
        "_done",
        "_error",
        "_event",
        "_exclusive",
        "_finished_at",
        "_handle",
        "_holds",
        "_hops",
        "_is_abandoned",
        "_limiter",
        "_node",
        "_opened",
        "_order",
        "_place",
        "_reported_in",
        "_result",
        "_started",
        "_started_at",
        "_state",
        "_stops",
        "_thread",
        "_total",
        "_waits",
        "_waits_for_thread",
        "_work",
        "daemon",
        "description",
        "exit_on_error",
        "group",
        "name",
    )

    class StateChanged(Message, bubble=False, namespace="worker"):
        """The state of a worker changed; handled by ``on_worker_state_changed``.

        Args:
            worker: The worker.
            state: The state that it is in since.
        """

        def __init__(self, worker: Worker[Any], state: WorkerState) -> None:
            self.worker = worker
            self.state = state

        def __repr__(self) -> str:
            return f"<StateChanged {self.worker._spoken()} {self.state.name}>"

    @overload
    def __init__(
        self: Worker[Worker[T]],
        node: WorkerNode,
        work: Callable[[], Worker[T]],
        **options: Unpack[_AllOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        node: WorkerNode,
        work: Callable[[], Awaitable[ResultType]] | Awaitable[ResultType],
        **options: Unpack[_AllOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        node: WorkerNode,
        work: Callable[[], ResultType] | None = None,
        **options: Unpack[_AllOptions],
    ) -> None: ...

    def __init__(
        self,
        node: WorkerNode,
        work: WorkType[Any] | None = None,
        *,
        name: str = "",
        group: str = "default",
        description: str = "",
        exit_on_error: bool = True,
        thread: bool = False,
        daemon: bool = False,
        abandon_on_cancel: bool = False,
        limiter: CapacityLimiter | None = None,
    ) -> None:
        self._node = node
        self._work: object = work
        self.name = name
        """A short name for messages and logs."""
        self.group = group
        """The group, within the node, that the worker belongs to."""
        self.description = description
        """A longer text for people."""
        self.exit_on_error = exit_on_error
        """Whether an error of the work fails the node."""
        self.daemon = daemon
        """Whether the node may close without waiting for the worker."""
        self._thread = thread
        self._abandon_on_cancel = abandon_on_cancel
        self._limiter = limiter
        self._state = WorkerState.PENDING
        self._result: ResultType | None = None
        self._error: BaseException | None = None
        self._cancelled = False
        self._cancel_reason: object = None
        self._event: threading.Event | None = None  # these three are made when asked for
        self._begun: anyio.Event | None = None
        self._done: anyio.Event | None = None
        self._started = False
        self._exclusive = False
        self._holds = False
        self._place: Place | None = None
        self._handle: anyio.TaskHandle[None] | None = None
        self._context: Context | None = copy_context()
        self._hops: tuple[anyio.TaskHandle[None], ...] = ()  # calls of its thread, on the loop
        self._stops: tuple[Callable[[], object], ...] = ()
        self._waits_for_thread = False
        self._is_abandoned = False
        self._waits: Collection[Party] = ()
        self._opened: tuple[Party, ...] = ()
        self._reported_in: object = None
        self._completed = 0
        self._total: int | None = None
        self._created_at: float | None = None
        self._started_at: float | None = None
        self._finished_at: float | None = None
        self._order = next(_order)
        wrong = self._what_is_wrong()
        if wrong is not None:
            self._close_work()
            raise WorkerError(f"cannot make a worker of {work!r:.100}: {wrong}")

    def _what_is_wrong(self) -> str | None:
        if not hasattr(self._node, "_nursery"):
            return f"node must be a Node, not {self._node!r:.100}"
        if self._work is None:
            if not self._has_own_run():
                return "give it work to do, or implement run() in a subclass"
        elif not callable(self._work) and not inspect.isawaitable(self._work):
            return "work must be a coroutine function, a callable or an awaitable"
        if not self._thread and (self._abandon_on_cancel or self._limiter is not None):
            return "abandon_on_cancel and limiter are for threads; add thread=True"
        return None

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.name!r} {self._state.name} group={self.group!r} "
            f"node={self._node.path!r}>"
        )

    # what it is and how it stands; all of it may be read from any thread

    @property
    def node(self) -> WorkerNode:
        """The node that owns the worker."""
        return self._node

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
        self._nursery.bridge.call(lambda: self._assign(state))

    @property
    def is_cancelled(self) -> bool:
        """Whether cancellation was requested; the work may still be running."""
        return self._cancelled

    @property
    def cancel_reason(self) -> object:
        """The reason that came with the first request for cancellation."""
        return self._cancel_reason

    @property
    def cancelled_event(self) -> threading.Event:
        """An event that is set when cancellation is requested, from whatever side."""
        with _lock:
            if self._event is None:
                self._event = threading.Event()
                if self._cancelled:
                    self._event.set()
            return self._event

    @property
    def is_running(self) -> bool:
        """Whether the state is RUNNING."""
        return self._state is WorkerState.RUNNING

    @property
    def is_finished(self) -> bool:
        """Whether the state is a final one."""
        return self._state in FINAL

    @property
    def is_queued(self) -> bool:
        """Whether the worker was started and waits, for a slot of its group or for a thread."""
        return self._state is WorkerState.PENDING and (
            self._waits_for_thread or (self._started and self._handle is None)
        )

    @property
    def is_abandoned(self) -> bool:
        """Whether the worker has ended but its thread has not."""
        return self._is_abandoned

    @property
    def result(self) -> ResultType | None:
        """What the work returned, ``None`` while there is nothing."""
        return self._result

    @property
    def error(self) -> BaseException | None:
        """What the work raised, ``None`` if it did not."""
        return self._error

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
        if not self._total:
            return 0.0
        return max(0.0, min(100.0, self._completed / self._total * 100.0))

    def advance(self, steps: int = 1) -> None:
        """Add to the number of completed steps.

        Threads:
            Any thread; nothing is lost.
        """
        with _lock:
            self._completed += steps

    def update(self, completed_steps: int | None = None, total_steps: int | None = -1) -> None:
        """Set the number of completed steps, or of all steps, or both.

        Args:
            completed_steps: How many steps are completed; ``None`` leaves the number as it is.
            total_steps: How many there are in all; ``None`` if that is not known, -1 leaves it.

        Threads:
            Any thread.
        """
        with _lock:
            if completed_steps is not None:
                self._completed = completed_steps
            if total_steps != -1:
                self._total = None if total_steps is None else max(0, total_steps)

    # running

    async def run(self) -> ResultType:
        """Run the work and return its result; called once, by the node.

        A subclass may implement this, in place of work or round ``await super().run()``. It runs in
        a task on the node's loop.
        """
        try:
            if self._thread:
                value = await in_thread(self, self._limiter, abandon=self._abandon_on_cancel)
            else:
                value = await in_task(self)
            return cast("ResultType", value)
        finally:
            del self  # see in_task()

    @property
    def _nursery(self) -> Nursery:
        return self._node._nursery

    def _has_own_run(self) -> bool:
        return type(self).run is not cast("type[Worker[Any]]", Worker).run

    def _admit(self, place: Place, *, exclusive: bool) -> None:
        """Take a place in a group; the first announcement."""
        self._place = place
        self._exclusive = exclusive
        self._created_at = self._nursery.now()
        self._node._announce(self, self._state)

    def _take_up(self) -> None:
        """Count as started from here on, and keep the nursery open unless a daemon."""
        self._started = True
        if not self.daemon:
            self._hold()

    def _hold(self) -> None:
        if not self._holds:
            self._holds = True
            self._nursery.hold()

    def _let_go(self) -> None:
        if self._holds:
            self._holds = False
            self._nursery.release()

    def _launch(self) -> None:
        """Start the task; it has a slot."""
        context, self._context = self._context, None
        name = f"{self._node.path}/{self.group}/{self.name}"
        self._handle = self._nursery.spawn(self._main(), name=name, context=context)

    async def _main(self) -> None:
        if self._state in FINAL:
            self._nursery.unstepped.pop(self, None)
            return  # cancelled before this first step
        failure: BaseException | None = None
        try:
            active_worker.set(self)
            if not self._thread or self._has_own_run():
                self._enter()
            self._result = await self.run()
        except BaseException as error:  # noqa: BLE001 (nothing may leave a task of the nursery)
            # Cancellation ends here too: this is the top of the task. AnyIO would take a native
            # one that went further for a reason to cancel all the others.
            failure = error
        # Out of the handler: Trio makes the exceptions of a cancellation as it is requested, and
        # they would have this one as their context, a cycle.
        try:
            if failure is not None:
                self._fall(failure)
            else:
                self._notice_cancellation(native=False)
                self._end(WorkerState.SUCCESS)
        finally:
            del failure, self  # this frame is in the traceback of the error

    def _fall(self, error: BaseException) -> None:
        """End because the work raised something."""
        try:
            self._notice_cancellation(native=False)
            if self._state in FINAL:
                return  # cancelled while it waited for a thread
            failure = uncancelled(error, self._is_cancellation)
            if failure is None:
                self._notice_cancellation()
                self._end(WorkerState.CANCELLED)
            else:
                self._end(WorkerState.ERROR, failure)
        finally:
            del error, self

    def _is_cancellation(self, error: BaseException) -> bool:
        if isinstance(error, self._nursery.cancelled_class):
            return True
        # What says so in a thread: call_from_thread() and check_cancelled(); AnyIO's from_thread.
        return self._cancelled and isinstance(error, WorkerCancelled | ThreadCancelledError)

    # the job, as the ways of running see it

    def _call(self) -> object:
        try:
            if inspect.isawaitable(self._work):
                return self._work
            return cast("Callable[[], object]", self._work)()
        finally:
            del self  # see in_task()

    def _is_to_await(self, value: object) -> bool:
        if type(value) is CoroutineType:
            return True
        return inspect.isawaitable(value) and not isinstance(value, Worker)

    def _wait_for_thread(self) -> None:
        self._waits_for_thread = True

    def _enter(self) -> None:
        """Become RUNNING, for the work is entered now; raise if it has been called off."""
        with _lock:
            if self._state is WorkerState.RUNNING:
                return  # a subclass's run() that calls super().run()
            if not self._cancelled:
                self._waits_for_thread = False
                self._move(WorkerState.RUNNING)
                return
        self._unwind()
        raise WorkerCancelled(f"{self._spoken()} was cancelled")

    def _note_abandoned(self, *, abandoned: bool) -> None:
        self._is_abandoned = abandoned

    def _on_cancel(self, stop: Callable[[], object]) -> None:
        with _lock:
            if not self._cancelled:
                self._stops = (*self._stops, stop)
                return
        stop()

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
        if self._mark(reason):
            self._nursery.bridge.run(self._unwind)

    def check_cancelled(self) -> None:
        """Raise an error if cancellation was requested.

        Raises:
            WorkerCancelled: It was. Let it out of the work, and the worker ends CANCELLED.

        Threads:
            Any thread.
        """
        if self._cancelled:
            raise WorkerCancelled(self._tell_cancellation())

    def _tell_cancellation(self) -> str:
        reason = f": {self._cancel_reason}" if self._cancel_reason is not None else ""
        return f"{self._spoken()} was cancelled{reason}"

    def _mark(self, reason: object) -> bool:
        with _lock:
            if self._cancelled or self._state in FINAL:
                return False
            self._cancelled = True
            self._cancel_reason = reason
            event = self._event
        if event is not None:
            event.set()
        return True

    def _unwind(self, *, by_nursery: bool = False) -> None:
        """Do on the loop what follows from the mark."""
        handle = self._handle
        if self._state is WorkerState.PENDING:
            if handle is not None:
                self._nursery.unstepped[self] = handle.coro
            self._end(WorkerState.CANCELLED)
        for stop in self._stops:
            stop()
        for hop in self._hops:
            hop.cancel()
        if handle is not None and not by_nursery:
            handle.cancel()

    def _cancel_with_nursery(self, reason: object) -> None:
        """Be cancelled by the nursery, which cancels the scope of all its tasks at once."""
        self._mark(reason)
        self._unwind(by_nursery=True)

    def _notice_cancellation(self, *, native: bool = True) -> None:
        """Find out about a cancellation that nobody asked this worker for.

        Args:
            native: Whether it is certain that there was one.
        """
        if self._cancelled:
            return
        if self._nursery.is_scope_cancelled():
            self._nursery.cancel_from_outside()  # which comes back to this worker
        elif native:
            self._mark("its task was cancelled natively")

    # the end

    def _move(self, state: WorkerState) -> None:
        """Change the state; the one place that does."""
        with _lock:
            if state is WorkerState.SUCCESS and self._cancelled:
                state = WorkerState.CANCELLED  # cancel is final
            if state not in TRANSITIONS[self._state]:
                raise WorkerError(
                    f"{self._spoken()} is {self._state.name} and cannot become {state.name}"
                )
            self._state = state
            if state is WorkerState.RUNNING:
                self._started_at = self._nursery.now()
            else:
                self._finished_at = self._nursery.now()
        self._node._announce(self, state)
        if self._begun is not None:
            self._begun.set()

    def _end(self, state: WorkerState, error: BaseException | None = None) -> None:
        """End, in the order on which threads that read without a lock rely."""
        # Work that was entered closes itself; in an abandoned thread it may still be running.
        fatal = False
        if error is not None:
            strip_traceback(error, _OWN_FRAMES)
            add_note(
                error,
                f"in {self._spoken()} of group {self.group!r} on node {self._node.path!r}",
            )
            self._error = error
            fatal = self.exit_on_error or not isinstance(error, Exception)
            if not fatal:
                _logger.error("%s failed", self._spoken(), exc_info=error)
            elif not isinstance(error, WorkerFailed):
                self._reported_in = self._nursery.tree
        self._move(state)
        if self._done is not None:
            self._done.set()  # before the node is cancelled: who waits here learns why
        if fatal and error is not None:
            self._nursery.fail(error)
        if self._place is not None:
            self._place._left(self)
        if self._started_at is None:
            self._close_work()
        self._work = self._handle = self._context = self._limiter = None
        self._stops = ()
        self._let_go()
        del error, self

    def _close_work(self) -> None:
        if isinstance(self._work, Coroutine):
            # One that was never awaited would be warned about.
            self._work.close()  # pyright: ignore[reportUnknownMemberType]  # of unknown result
        self._work = None

    def _assign(self, state: WorkerState) -> None:
        """Change the state on behalf of an adapter, see ``state``."""
        if self._started:
            if state is not WorkerState.CANCELLED or self._state in FINAL:
                raise WorkerError(
                    f"the state of {self._spoken()}, which is {self._state.name} and was started "
                    f"here, cannot be set to {state.name}; only to CANCELLED before it has ended"
                )
            self.cancel()
        elif state not in TRANSITIONS[self._state]:
            raise WorkerError(
                f"{self._spoken()} is {self._state.name} and cannot become {state.name}"
            )
        elif state is WorkerState.RUNNING:
            self._enter()
        elif state is WorkerState.SUCCESS and self._cancelled:
            raise WorkerError(f"{self._spoken()} was cancelled; only CANCELLED or ERROR can follow")
        else:
            if state is WorkerState.CANCELLED:
                self._mark(None)
            self._end(state)

    def _disown(self) -> None:
        """End a worker that its closing node never started."""
        self._mark("its node closed")
        if self._state not in FINAL:
            self._end(WorkerState.CANCELLED)

    # waiting

    async def wait(self) -> ResultType:
        """Wait until the worker has ended, and return its result.

        Cancelling this call ends the wait; the worker goes on. Many may wait. ``await worker`` is
        the same.

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
        if self._error is not None and self._state is WorkerState.ERROR:
            failed = WorkerFailed(self._error)  # a fresh one: a traceback grows at each raise
            failed._source = self
            try:
                raise failed from self._error
            finally:
                del failed
        if self._state is WorkerState.ERROR:
            raise WorkerFailed(WorkerError(f"{self._spoken()} failed elsewhere"))
        if self._state is WorkerState.CANCELLED:
            raise WorkerCancelled(self._tell_cancellation())
        return cast("ResultType", self._result)

    def __await__(self) -> Generator[Any, Any, ResultType]:
        """Wait, as ``wait()`` does."""
        return self.wait().__await__()

    def _needs_all(self) -> Collection[Party]:
        # Whoever is cancelled will be woken from its wait: nothing is certain then.
        return () if self._cancelled else (*self._waits, *self._opened)

    def _needs_one(self) -> Collection[Party]:
        if self._place is None or not self.is_queued or self._waits_for_thread:
            return ()
        return self._place._holders()

    def _is_needed(self) -> bool:
        """Whether anything might wait for this worker to end; else no wait of its closes a ring."""
        return (
            self._done is not None
            or (self._place is not None and self._place.queued > 0)
            or self._node._is_opened_by_a_worker()
        )

    def _spoken(self) -> str:
        return f"worker {self.name or type(self).__name__!r}"

    def _is_acting(self) -> bool:
        """Whether the running code is this worker's own task or thread, not one that it spawned."""
        if self._handle is None:
            return False
        for handle in (self._handle, *self._hops):
            # A coroutine runs, in the sense of cr_running, while what it awaits is being run.
            if cast("CoroutineType[Any, Any, Any]", handle.coro).cr_running:
                return True
        if not self._thread:
            return False
        # anyio.from_thread.run() in the worker's thread: AnyIO makes a task for it on asyncio.
        name = getattr(anyio.get_current_task().coro, "__qualname__", "")
        return name.endswith("run_async_from_thread.<locals>.task_wrapper")


async def wait_for(workers: Iterable[Worker[Any]], *, begun: bool = False) -> None:
    """Wait until workers have ended, or have begun, whichever way; raises none of their errors.

    Raises:
        DeadlockError: The caller is a worker, and what it waits for needs it to end first.
        WorkerError: One of the workers was never started; or it belongs to another event loop.
    """
    waited = [worker for worker in workers if not worker.is_finished]
    for worker in waited:
        if not worker._started and worker._state is WorkerState.PENDING:
            raise WorkerError(
                f"cannot wait for {worker._spoken()}, which was never started; start it first"
            )
        if worker._nursery.bridge.is_foreign:
            raise WorkerError(
                f"cannot wait for {worker._spoken()} outside the event loop of its node; "
                "from a thread use node.call_from_thread(worker.wait)"
            )
    me = active_worker.get(None)
    if not waited or me is None or me.is_finished or not me._is_acting():
        await _wait_for(waited, begun=begun)
        return
    me._waits = waited
    me._node._waiting.add(me)
    try:
        ring = find_deadlock(me) if me._is_needed() else None
        if ring is not None:
            raise DeadlockError(f"waiting would never end: {ring}; let one of them go first")
        await _wait_for(waited, begun=begun)
    finally:
        me._waits = ()
        if not me._opened:
            me._node._waiting.discard(me)


async def _wait_for(waited: list[Worker[Any]], *, begun: bool) -> None:
    if not waited:
        await lowlevel.checkpoint()
    for worker in waited:
        if begun:
            while worker._state is WorkerState.PENDING:
                worker._begun = worker._begun or anyio.Event()
                await worker._begun.wait()
        elif not worker.is_finished:
            worker._done = worker._done or anyio.Event()
            await worker._done.wait()


active_worker: ContextVar[Worker[Any]] = ContextVar("active_worker")
"""The worker that runs the current code."""


def get_current_worker() -> Worker[Any]:
    """Get the worker that runs the current code.

    Raises:
        NoActiveWorker: None does.

    Threads:
        Any; a worker's thread and the tasks that its work spawned belong to it.
    """
    try:
        return active_worker.get()
    except LookupError:
        raise NoActiveWorker(
            "no worker runs this code; call it from the work of a worker, or pass the worker on"
        ) from None
