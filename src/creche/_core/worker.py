"""A worker as its users see it: how it is made, and how it is waited for."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast, overload

import anyio
from anyio import lowlevel

from creche._ground.context import current
from creche._ground.errors import (
    DeadlockError,
    NoActiveWorker,
    WorkerCancelled,
    WorkerError,
    WorkerFailed,
)
from creche._ground.message import Message
from creche._ground.report import is_a, is_awaitable, shown
from creche._ground.states import CANCELLED, ERROR, FINAL, PENDING, RUNNING, WorkerState

from .life import Life
from .record import ResultType
from .track import track
from .waiting import find_deadlock

if TYPE_CHECKING:
    import sys
    from collections.abc import (
        AsyncIterable,
        AsyncIterator,
        Collection,
        Generator,
        Iterable,
        Iterator,
    )
    from contextvars import Context, ContextVar
    from types import CoroutineType

    from anyio import CapacityLimiter

    from creche._ground.options import AllOptions

    from .record import WorkerNode
    from .waiting import Party

    if sys.version_info >= (3, 11):
        from typing import Unpack
    else:
        from typing_extensions import Unpack

T = TypeVar("T")

_numbers = itertools.count(1)  # of events

WorkType: TypeAlias = (
    Callable[[], Coroutine[Any, Any, ResultType]] | Callable[[], ResultType] | Awaitable[ResultType]
)
"""What a worker can run: a coroutine function, a plain callable (in a thread), or an awaitable."""


class Worker(Life[ResultType]):
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

    __slots__ = ()

    @dataclass(init=False, repr=False, eq=False, frozen=True)
    class StateChanged(Message, bubble=False, namespace="worker"):
        """The state of a worker changed; handled by ``on_worker_state_changed``.

        Its attributes cannot be assigned: all who listen get the same object.

        Args:
            worker: The worker.
            state: The state that it is in since.
        """

        worker: Worker[Any]
        """The worker."""
        state: WorkerState
        """The state that it is in since."""
        number: int
        """A number that grows with each event of any worker: later events have higher ones."""
        context: Context | None = None
        """The context variables that it was made in, told by the first announcement only."""

        def __init__(self, worker: Worker[Any], state: WorkerState) -> None:
            # Three of them a worker: what the worker knows for good is not copied.
            facts = vars(self)
            facts["worker"] = worker
            facts["state"] = state
            facts["number"] = next(_numbers)
            if state is PENDING:
                # It keeps the context that it was made in, unless that is this one.
                context = worker._context
                facts["context"] = context if context is not None else copy_context()

        @property
        def previous(self) -> WorkerState | None:
            """The state before; ``None`` for the first announcement, when the worker was added."""
            if self.state is PENDING:
                return None
            is_late = self.state is not RUNNING and self.worker._started_at is not None
            return RUNNING if is_late else PENDING

        @property
        def time(self) -> float:
            """When that was, in seconds of the loop's clock."""
            worker = self.worker
            if self.state is PENDING:
                time = worker._created_at
            else:
                time = worker._started_at if self.state is RUNNING else worker._finished_at
            return time if time is not None else worker._nursery.now()

        @property
        def origin(self) -> Worker[Any] | None:
            """The worker in which this one was made, told by the first announcement only."""
            return self.context.get(current) if self.context is not None else None

        def __repr__(self) -> str:
            return f"<StateChanged {self.worker._creche_spoken()} {self.state.name}>"

    @dataclass(init=False, repr=False, eq=False, frozen=True)
    class ProgressChanged(Message, bubble=False, namespace="worker"):
        """A worker got on, or its status line changed; handled by ``on_worker_progress_changed``.

        How far it is, is read from the worker. At most one for each worker waits for a handler or
        in a subscription, and none comes after the worker has ended.

        Args:
            worker: The worker.
        """

        worker: Worker[Any]
        """The worker."""
        number: int
        """A number that grows with each event of any worker: later events have higher ones."""

        def __init__(self, worker: Worker[Any]) -> None:
            vars(self).update(worker=worker, number=next(_numbers), _key=worker._order)

        def __repr__(self) -> str:
            return f"<ProgressChanged {self.worker._creche_spoken()}>"

    @overload
    def __init__(
        self: Worker[Worker[T]],
        node: WorkerNode,
        work: Callable[[], Worker[T]],
        **options: Unpack[AllOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        node: WorkerNode,
        work: Callable[[], Awaitable[ResultType]] | Awaitable[ResultType],
        **options: Unpack[AllOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        node: WorkerNode,
        work: Callable[[], ResultType] | None = None,
        **options: Unpack[AllOptions],
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
        super().__init__(
            node,
            work,
            name,
            group,
            description,
            exit_on_error,
            thread,
            daemon,
            abandon_on_cancel,
            limiter,
            copy_context(),
        )
        if not hasattr(node, "_creche_nursery"):
            self._close_work()
            raise WorkerError(f"node must be a Node, not {shown(node)}")
        self._check(abandon_on_cancel or limiter is not None)

    def _check(self, is_for_thread: bool) -> None:
        """Raise an error if what the worker was given makes no sense; its work is closed then."""
        work, wrong = self._work, ""
        if is_for_thread and self._thread is None:
            wrong = "abandon_on_cancel and limiter are for threads; add thread=True"
        elif not (callable(work) or is_awaitable(work)):
            if work is not None:
                wrong = "work must be a coroutine function, a callable or an awaitable"
            elif not self._has_own_run():
                wrong = "give it work to do, or implement run() in a subclass"
        if type(self.name) is not str or type(self.group) is not str:
            wrong = wrong or self._check_texts()
        if wrong:
            self._close_work()
            raise WorkerError(f"cannot make a worker of {shown(work)}: {wrong}")

    def _check_texts(self) -> str:
        """Make plain texts of the name and the group; tell what is wrong, if they are none."""
        if not is_a(self.name, str) or not is_a(self.group, str):
            return f"name {shown(self.name)} and group {shown(self.group)} must both be a text"
        self.name, self.group = str.__str__(self.name), str.__str__(self.group)
        return ""

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
        error = self.error
        if error is not None:
            failed = WorkerFailed(error, self)  # a fresh one: a traceback grows at each raise
            try:
                raise failed from error
            finally:
                del error, failed
        if self._state is ERROR:
            raise WorkerFailed(WorkerError("it failed elsewhere"), self)
        if self._state is CANCELLED:
            raise WorkerCancelled(self._tell_cancellation())
        return cast("ResultType", self._outcome)

    def __await__(self) -> Generator[Any, Any, ResultType]:
        """Wait, as ``wait()`` does."""
        return self.wait().__await__()

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

        Returns:
            An iterator over the items.

        Raises:
            WorkerError: It is not iterable.

        Threads:
            Any thread.
        """
        return track(self, iterable, total)

    def _creche_needs_all(self) -> Collection[Party]:
        # Whoever is cancelled will be woken from its wait: nothing is certain then.
        if self._cancellation is not None or self._ties is None:
            return ()
        return (*self._ties.waits, *self._ties.opened)

    def _creche_needs_one(self) -> Collection[Party]:
        if self._place is None or not self.is_queued or self._waits_for_thread():
            return ()
        return self._place._holders()

    def _is_needed(self) -> bool:
        """Whether anything else may wait for this worker; else it closes no ring with others."""
        return (
            (self._ties is not None and self._ties.done is not None)
            or (self._place is not None and self._place.queued > 0)
            or self._node._creche_is_opened_by_a_worker()
        )

    def _is_acting(self) -> bool:
        """Whether the running code is this worker's own task or thread, not one that it spawned."""
        if self._handle is None:
            return False
        hops = self._ties.hops if self._ties is not None else ()
        for coro in (self._handle.coro, *(hop.coro for hop in hops)):
            # A coroutine runs, in the sense of cr_running, while what it awaits is being run; and
            # while a task that it makes is begun eagerly, from Python 3.12 on.
            if cast("CoroutineType[Any, Any, Any]", coro).cr_running:
                return not self._nursery.is_in_eager_task()
        if self._thread is None:
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
    waited = [worker for worker in workers if worker._state not in FINAL]
    for worker in waited:
        if not worker._started and worker._state is PENDING:
            raise WorkerError(
                f"cannot wait for {worker._creche_spoken()}, which was never started; "
                "start it first"
            )
        if worker._nursery.bridge.is_elsewhere:
            raise WorkerError(
                f"cannot wait for {worker._creche_spoken()} outside the event loop of its node; "
                "from a thread use node.call_from_thread(worker.wait)"
            )
    me: Worker[Any] | None = current.get(None)
    if not waited or me is None or me._state in FINAL or not me._is_acting():
        await _wait_for(waited, begun=begun)
        return
    ties = me._tied()
    ties.waits = waited
    me._node._creche_waiting[id(me)] = me
    try:
        is_judged = me._is_needed() or any(me is worker for worker in waited)
        ring = find_deadlock(me) if is_judged else None
        if ring is not None:
            raise DeadlockError(f"waiting would never end: {ring}; let one of them go first")
        await _wait_for(waited, begun=begun)
    finally:
        ties.waits = []
        if not ties.opened:
            me._node._creche_waiting.pop(id(me), None)


async def _wait_for(waited: list[Worker[Any]], *, begun: bool) -> None:
    if not waited:
        await lowlevel.checkpoint()
    # The events are made before it is looked whether to wait: a signal handler may come in between.
    for worker in waited:
        ties = worker._tied()
        if begun:
            while worker._state is PENDING:
                ties.begun = ties.begun or anyio.Event()
                if worker._state is PENDING:
                    await ties.begun.wait()
        elif worker._state not in FINAL:
            ties.done = ties.done or anyio.Event()
            if worker._state not in FINAL:
                await ties.done.wait()


active_worker: ContextVar[Worker[Any]] = current
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
