"""A group: the workers of one name within one node, their slots and their queue.

A worker is stored once, here: not started, holding a slot, or in the queue. The queue is a deque.
One that is cancelled there stays until its turn comes or until such make up half of the queue, so
that every operation costs the same however many wait.
"""

from __future__ import annotations

from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol, overload

from ._options import check_limit
from ._state import PENDING
from ._worker import Worker, wait_for

if TYPE_CHECKING:
    import sys
    from collections.abc import Awaitable, Callable, Collection, Iterator

    from ._nursery import Nursery
    from ._options import Overflow, RunOptions, StartOptions
    from ._record import ResultType
    from ._state import WorkerState
    from ._waiting import Party
    from ._worker import WorkType

    if sys.version_info >= (3, 11):
        from typing import Unpack
    else:
        from typing_extensions import Unpack

in_order = attrgetter("_order")


class GroupNode(Protocol):
    """What a group asks of the node that it is in."""

    _creche_nursery: Nursery

    @property
    def path(self) -> str: ...

    @property
    def run_worker(self) -> Callable[..., Worker[Any]]: ...

    @property
    def start_worker(self) -> Callable[..., Awaitable[Worker[Any]]]: ...

    _creche_tells_changes: bool

    def _creche_announce(self, worker: Any, state: WorkerState) -> None: ...

    def _creche_forget(self, group: WorkerGroup) -> None:
        """Take note that a group has become empty."""
        ...


class WorkerGroup:
    """The unfinished workers of one name within one node.

    Made by ``Node.group()``. Iterating gives the unfinished workers in order of creation.
    """

    __slots__ = (
        "_called_off",
        "_limit",
        "_node",
        "_queue",
        "_running",
        "_unstarted",
        "name",
        "overflow",
    )

    def __init__(
        self, node: GroupNode, name: str, limit: int | None = None, overflow: Overflow = "enqueue"
    ) -> None:
        self._node = node
        self.name: str = name
        """The name of the group."""
        self.overflow: Overflow = overflow
        """What happens to a new worker when as many as the limit are running."""
        self._limit = limit
        self._unstarted: dict[Worker[Any], bool] = {}  # and whether they are exclusive
        self._running: dict[Worker[Any], None] = {}
        self._queue: deque[Worker[Any]] = deque()
        self._called_off = 0  # how many in the queue are cancelled already

    def __repr__(self) -> str:
        return (
            f"<WorkerGroup {self.name!r} of {self._node.path!r}: {self.running} running, "
            f"{self.queued} queued, limit={self._limit}, overflow={self.overflow!r}>"
        )

    def __len__(self) -> int:
        return len(self._unstarted) + self.running + self.queued

    def __iter__(self) -> Iterator[Worker[Any]]:
        waiting = [worker for worker in list(self._queue) if not worker.is_finished]
        return iter(sorted([*self._unstarted, *self._running, *waiting], key=in_order))

    def __contains__(self, worker: object) -> bool:
        return isinstance(worker, Worker) and worker._place is self and not worker.is_finished

    @property
    def running(self) -> int:
        """How many workers hold a slot, those among them that wait for a thread included."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """How many workers wait for a slot."""
        return len(self._queue) - self._called_off

    @property
    def limit(self) -> int | None:
        """How many workers may run at once, ``None`` for any number.

        It may be set at any time: raised, queued workers start at once; lowered, those that run
        go on to their end.

        Raises:
            WorkerError: On setting: it is no number above 0.

        Threads:
            To be read and set in any thread.
        """
        return self._limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        checked = check_limit(limit)

        def change() -> None:
            self._limit = checked
            self._fill()

        self._node._creche_nursery.bridge.call(change)

    @property
    def completed_steps(self) -> int:
        """The completed steps of all unfinished workers of the group together."""
        return sum(worker.completed_steps for worker in self)

    @property
    def total_steps(self) -> int | None:
        """The steps of all unfinished workers together; ``None`` if that of one is not known."""
        total = 0
        for worker in self:
            if worker.total_steps is None:
                return None
            total += worker.total_steps
        return total

    @property
    def progress(self) -> float:
        """How much of all steps is done, from 0.0 to 100.0 percent; 0.0 if that is not known."""
        total = self.total_steps
        return max(0.0, min(100.0, self.completed_steps / total * 100.0)) if total else 0.0

    # work

    @overload
    def run_worker(
        self,
        work: Callable[[], Worker[ResultType]],
        name: str = "",
        description: str = "",
        **options: Unpack[StartOptions],
    ) -> Worker[Worker[ResultType]]: ...

    @overload
    def run_worker(
        self,
        work: Callable[[], Awaitable[ResultType]] | Awaitable[ResultType],
        name: str = "",
        description: str = "",
        **options: Unpack[StartOptions],
    ) -> Worker[ResultType]: ...

    @overload
    def run_worker(
        self,
        work: Callable[[], ResultType],
        name: str = "",
        description: str = "",
        **options: Unpack[StartOptions],
    ) -> Worker[ResultType]: ...

    def run_worker(
        self,
        work: WorkType[Any],
        name: str = "",
        description: str = "",
        **options: Unpack[StartOptions],
    ) -> Worker[Any]:
        """Run work in a worker of this group; as ``Node.run_worker()``."""
        return self._node.run_worker(work, name, self.name, description, **options)

    @overload
    async def start_worker(
        self,
        work: Callable[[], Worker[ResultType]],
        name: str = "",
        description: str = "",
        **options: Unpack[RunOptions],
    ) -> Worker[Worker[ResultType]]: ...

    @overload
    async def start_worker(
        self,
        work: Callable[[], Awaitable[ResultType]] | Awaitable[ResultType],
        name: str = "",
        description: str = "",
        **options: Unpack[RunOptions],
    ) -> Worker[ResultType]: ...

    @overload
    async def start_worker(
        self,
        work: Callable[[], ResultType],
        name: str = "",
        description: str = "",
        **options: Unpack[RunOptions],
    ) -> Worker[ResultType]: ...

    async def start_worker(
        self,
        work: WorkType[Any],
        name: str = "",
        description: str = "",
        **options: Unpack[RunOptions],
    ) -> Worker[Any]:
        """Run work in a worker of this group once there is a slot; as ``Node.start_worker()``."""
        return await self._node.start_worker(work, name, self.name, description, **options)

    # the way in

    def _add(self, worker: Worker[Any], exclusive: bool) -> None:
        """Give a worker its place; the first announcement."""
        self._unstarted[worker] = exclusive
        worker._place = self
        worker._created_at = self._node._creche_nursery.clock()
        if self._node._creche_tells_changes:
            self._node._creche_announce(worker, PENDING)

    def _start(self, worker: Worker[Any]) -> None:
        """Start an admitted worker, once there is a slot."""
        nursery = self._node._creche_nursery
        exclusive = self._unstarted.get(worker)
        if exclusive is None or worker._state is not PENDING:
            return
        worker._started = True
        if not worker.daemon:
            worker._hold()
        if nursery.is_cancelled:
            worker.cancel(nursery.cancel_reason)
            return
        if exclusive:
            self._cancel_all("superseded by an exclusive worker", but=worker)
        elif self._limit is not None and self._is_full and not self._make_room():
            worker.cancel("dropped: its group is full")
            return
        del self._unstarted[worker]
        if self._limit is not None and (self._queue or self._is_full):
            worker._keep_context()
            self._queue.append(worker)
            self._fill()
        else:
            self._running[worker] = None
            worker._launch()

    @property
    def _is_full(self) -> bool:
        return self._limit is not None and len(self._running) >= self._limit

    def _make_room(self) -> bool:
        """Apply the rule of overflow; tell whether the new worker may wait."""
        if self.overflow == "drop":
            return False
        if self.overflow == "keep_latest":
            for waiting in list(self._queue):
                waiting.cancel("superseded: only the latest is kept")
        elif self.overflow == "restart":
            # The newest are to run, as many as the limit. So once all that run are on their way
            # out, it is the oldest of those waiting that gives way.
            alive = [other for other in (*self._running, *self._queue) if not other.is_cancelled]
            if self._limit is not None and len(alive) >= self._limit:
                alive[0].cancel("superseded: the group restarts")
        return True

    def _fill(self) -> None:
        """Start what waits while there are slots."""
        while self._queue and not self._is_full and not self._node._creche_nursery.is_cancelled:
            worker = self._queue.popleft()
            if worker.is_finished:
                self._called_off -= 1
            else:
                self._running[worker] = None
                worker._launch()

    # the way out

    def _left(self, worker: Worker[Any]) -> None:
        if worker in self._running:
            del self._running[worker]
            if self._queue:
                self._fill()
        elif worker in self._unstarted:
            del self._unstarted[worker]
        else:
            self._called_off += 1
            if self._called_off * 2 > len(self._queue):
                self._queue = deque(other for other in self._queue if not other.is_finished)
                self._called_off = 0
        if not (self._running or self._queue or self._unstarted):
            self._node._creche_forget(self)

    def _holders(self) -> Collection[Party]:
        return self._running.keys()

    def _cancel_all(self, reason: object, *, but: Worker[Any] | None = None) -> list[Worker[Any]]:
        cancelled = [worker for worker in self if worker is not but and not worker.is_cancelled]
        for worker in cancelled:
            worker.cancel(reason)
        return cancelled

    def _cancel_with_nursery(self, reason: object) -> None:
        for worker in self:
            worker._cancel_with_nursery(reason)

    def cancel(self, reason: object = None) -> None:
        """Cancel all unfinished workers of the group.

        Args:
            reason: See ``Worker.cancel_reason``.

        Threads:
            Any thread.
        """
        self._node._creche_nursery.bridge.run(lambda: self._cancel_all(reason))

    async def wait(self) -> None:
        """Wait until every started worker that is in the group now has ended; raises for none.

        Cancelling this call ends the wait; the workers go on.

        Raises:
            DeadlockError: Called by a worker of the group, or by one whose end the group needs.

        Checkpoint:
            Always.

        Threads:
            The node's event loop only.
        """
        await wait_for([worker for worker in self if worker._started])
