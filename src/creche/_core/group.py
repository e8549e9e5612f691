"""A group: the workers of one name within one node, their slots and their queue.

A worker is stored once, here, by its number: not started, in the queue, or holding a slot. It moves
in that order, each time into the next place before it is removed from the last, so a thread always
finds it. ``_settle()`` decides which workers run; it is called when a worker has queued or left and
when the limit has changed. ``_make_way()`` decides what a new worker does to those before it: by
exclusive, or by a rule of overflow.
"""

from __future__ import annotations

from collections import deque
from contextvars import copy_context
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, overload

from creche._ground.errors import WorkerError
from creche._ground.options import check_limit, check_overflow, check_text
from creche._ground.report import shown
from creche._ground.states import ERROR, FINAL, PENDING
from creche._ground.steps import percent

from .calls import ask
from .cancelling import cancel_here, cancel_surely, deliver, is_delivered_by_scope, request_each
from .ending import end
from .giving_way import OVERFLOW, code_of
from .moving import announce
from .room import wait_for_room
from .waiting import wait_for
from .worker import Worker

if TYPE_CHECKING:
    import sys
    from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator

    from creche._ground.backend import Event
    from creche._ground.options import Overflow, ReadyOptions, StartOptions

    from .deadlock import Waitable
    from .node import Node
    from .worker import ResultType, WorkType

    if sys.version_info >= (3, 11):
        from typing import Unpack
    else:
        from typing_extensions import Unpack

in_order = attrgetter("_order")


def cancel_each(workers: Iterable[Worker[Any]], reason: object) -> list[Worker[Any]]:
    """Cancel workers, in any thread; return those that were not cancelled before."""
    cancelled = [worker for worker in workers if worker._cancellation is None]
    for worker in reversed(cancelled):  # otherwise each that leaves would launch the next one
        worker.cancel(reason)
    return cancelled


def declare(node: Node, name: str, limit: int | None, overflow: Overflow) -> WorkerGroup:
    """Get a group by its name and its settings, see ``Node.group()``."""
    check_text("the name of a group", name)
    settings = (check_limit(limit), check_overflow(overflow))
    return ask(node, partial(_declare, node, str.__str__(name), settings))


def _declare(node: Node, name: str, settings: tuple[int | None, Overflow]) -> WorkerGroup:
    group = get_group(node, name)
    declared = node._creche_declared.setdefault(name, settings)
    if declared is settings:
        group.overflow = settings[1]
        group.limit = settings[0]
    elif settings not in ((None, "enqueue"), declared):
        raise WorkerError(
            f"group {shown(name)} of {node._creche_label()} was made with limit and overflow "
            f"{declared}, not {settings}; ask for it by name alone, and set group.limit to change "
            "it"
        )
    return group


def forget(group: WorkerGroup) -> None:
    """Make a node forget a group that is empty, unless ``Node.group()`` created it."""
    node, name = group._node, group.name
    if name not in node._creche_declared and node._creche_groups.get(name) is group:
        del node._creche_groups[name]
        if group._limit is None and group.overflow == "enqueue":
            node._creche_spare = group


def get_group(node: Node, name: str) -> WorkerGroup:
    """Get a group of a node, created if necessary.

    The group that was forgotten last is reused: otherwise each piece of work would create one.
    """
    group = node._creche_groups.get(name)
    if group is None:
        group = node._creche_spare
        if group is None or group.name != name:
            group = WorkerGroup(node, name)
        node._creche_groups[name] = group
    return group


class WorkerGroup:
    """The unfinished workers of one name within one node.

    Made by ``Node.group()``. Iterating over it yields the unfinished workers, oldest first.
    """

    __slots__ = (
        *("_left_one", "_limit", "_node", "_path", "_queue", "_running", "_turns", "_unstarted"),
        *("name", "overflow"),
    )

    def __init__(
        self, node: Node, name: str, limit: int | None = None, overflow: Overflow = "enqueue"
    ) -> None:
        self._node = node
        self.name: str = name
        """The name of the group."""
        self.overflow: Overflow = overflow
        """What happens to a new worker when as many as the limit are running."""
        self._path = ""  # set once, by _make_path()
        self._limit = limit
        # By the number of the worker: a subclass may define ``==``.
        self._unstarted: dict[int, tuple[Worker[Any], object]] = {}  # and what they supersede
        self._queue: dict[int, Worker[Any]] = {}
        # The numbers that were in the queue when this was last empty, some of which have left it.
        # Finding the first item of a dict takes longer the more items were removed before it.
        self._turns: deque[int] = deque()
        self._running: dict[int, Worker[Any]] = {}
        self._left_one: Event | None = None  # created when someone waits for room

    def __repr__(self) -> str:
        return (
            f"<WorkerGroup {shown(self.name)} of {self._node.path!r}: {self.running} running, "
            f"{self.queued} queued, limit={self._limit}, overflow={self.overflow!r}>"
        )

    def __len__(self) -> int:
        return len(self._unstarted) + self.queued + self.running

    def __iter__(self) -> Iterator[Worker[Any]]:
        every = {worker._order: worker for worker in self._members()}
        return iter([every[order] for order in sorted(every)])

    def _members(self) -> list[Worker[Any]]:
        """Return all workers, unordered; in another thread, one that moves may be there twice."""
        return [
            *[worker for worker, _ in list(self._unstarted.values())],
            *list(self._queue.values()),
            *list(self._running.values()),
        ]

    def __contains__(self, worker: object) -> bool:
        return isinstance(worker, Worker) and worker._place is self and worker._state not in FINAL

    @property
    def running(self) -> int:
        """How many workers hold a slot, including those that wait for a thread."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """How many workers wait for a slot."""
        return len(self._queue)

    @property
    def limit(self) -> int | None:
        """How many workers may run at once; ``None`` for any number.

        Can be set at any time. If it is raised, queued workers start at once; if it is lowered,
        running workers finish first.

        Raises:
            WorkerError: On setting: it is not a number above 0.

        Threads:
            Can be read and set in any thread.
        """
        return self._limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        checked = check_limit(limit)

        def change() -> None:
            self._limit = checked
            self._settle()
            self._tell_of_room()

        ask(self._node, change)

    @property
    def completed_steps(self) -> int:
        """The sum of the completed steps of all unfinished workers."""
        return sum(worker.completed_steps for worker in self)

    @property
    def total_steps(self) -> int | None:
        """The sum of the total steps of all unfinished workers; ``None`` if one is not known."""
        total = 0
        for worker in self:
            if worker.total_steps is None:
                return None
            total += worker.total_steps
        return total

    @property
    def progress(self) -> float:
        """How much of all steps is done, in percent from 0.0 to 100.0; 0.0 if that is not known."""
        return percent(self.completed_steps, self.total_steps)

    # work

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
        """Run work in a worker of this group, like ``Node.run_worker()``."""
        if not options:  # to hand on none takes time as well
            return self._node.run_worker(work, name, self.name, description)
        return self._node.run_worker(work, name, self.name, description, **options)

    @overload
    async def start_worker(
        self,
        work: Callable[[], Awaitable[ResultType]] | Awaitable[ResultType],
        name: str = "",
        description: str = "",
        **options: Unpack[ReadyOptions],
    ) -> Worker[ResultType]: ...

    @overload
    async def start_worker(
        self,
        work: Callable[[], ResultType],
        name: str = "",
        description: str = "",
        **options: Unpack[ReadyOptions],
    ) -> Worker[ResultType]: ...

    async def start_worker(
        self,
        work: WorkType[Any],
        name: str = "",
        description: str = "",
        **options: Unpack[ReadyOptions],
    ) -> Worker[Any]:
        """Run work in a worker of this group once there is a slot, like ``Node.start_worker()``."""
        return await self._node.start_worker(work, name, self.name, description, **options)

    # the way in

    def admit(self, worker: Worker[Any], supersedes: object, start: bool) -> None:
        """Add a worker, and start it; what can fail comes first.

        Args:
            worker: The worker.
            supersedes: What its start cancels: ``True`` for all of the group that came before, the
                code of a function for its earlier runs, ``None`` for nothing.
            start: Whether to start it.

        Raises:
            BaseException: Its task cannot be created; the worker was not added.
        """
        node, order = self._node, worker._order
        nursery = node._creche_nursery
        worker._created_at = nursery.clock()
        if worker._context is None:
            worker._context = copy_context()
        is_started = False
        # The place and that it has one are set in one line: nothing can interrupt that.
        if start and worker._state is PENDING and not nursery.is_cancelled:  # as most are
            limit = self._limit
            if limit is None or (not self._queue and len(self._running) < limit):
                node._creche_runners.launch(worker)
                worker._place, self._running[order] = self, worker
                is_started = True
            elif supersedes is None and self.overflow == "enqueue":
                worker._place, self._queue[order] = self, worker
                is_started = True
        if is_started:  # as Worker._be_started() does
            holds = not worker.daemon
            worker._holds, nursery.holds = holds, nursery.holds + holds
        else:
            worker._place, self._unstarted[order] = self, (worker, supersedes)
        if node._creche_audience.tells_changes or worker._rare is not None:
            announce(worker, PENDING)
        if start and not is_started:
            self._start(worker)
        elif is_started and supersedes is not None:
            self._supersede(worker, supersedes)

    def _start(self, worker: Worker[Any]) -> None:
        """Start a worker that is not started, once there is a slot.

        Raises:
            BaseException: Its task cannot be created; the worker has ended.
        """
        if worker._order not in self._unstarted or worker._state is not PENDING:
            return
        try:
            worker._be_started()
            nursery = self._node._creche_nursery
            if nursery.is_cancelled:
                cancel_here(worker, nursery.cancel_reason)
            elif not self._make_way(worker, self._unstarted[worker._order][1]):
                cancel_here(worker, "dropped: its group is full")
            elif (
                worker._state is PENDING
            ):  # otherwise what it superseded cancelled the node, and it
                self._take_slot(worker)
        except BaseException:
            # It may be marked already, so a request is not enough.
            cancel_surely(worker, "it could not be started")
            raise

    def _take_slot(self, worker: Worker[Any]) -> None:
        """Launch a worker if a slot is free; otherwise queue it."""
        if self._queue or self._is_full:
            self._queue[worker._order] = worker
            del self._unstarted[worker._order]
            self._settle()
        else:
            self._node._creche_runners.launch(worker)
            self._running[worker._order] = worker
            del self._unstarted[worker._order]

    def _make_way(self, worker: Worker[Any], supersedes: object) -> bool:
        """Cancel the workers that give way to a new one; return whether that may run or wait."""
        if supersedes is not None:
            self._supersede(worker, supersedes)
            return True
        return not self._is_full or OVERFLOW[self.overflow](self)

    def _supersede(self, worker: Worker[Any], which: object) -> None:
        """Cancel what was there before an exclusive worker, or the earlier runs of its function."""
        before = [other for other in self._members() if other._cancellation is None]
        for other in sorted(before, key=in_order):
            if (
                other is not worker
                and (other._started or other._order < worker._order)
                and (which is True or code_of(other._work) is which)
            ):
                cancel_here(other, "superseded by an exclusive worker")

    def _make_path(self) -> str:
        """Set the prefix of the names of its workers' tasks, now that the node is open."""
        self._path = f"{self._node.path}/{self.name}/"
        return self._path

    @property
    def _is_full(self) -> bool:
        return self._limit is not None and len(self._running) >= self._limit

    def _settle(self) -> None:
        """Start queued workers while there are slots; one that cannot be started fails."""
        node = self._node
        while self._queue and (self._limit is None or len(self._running) < self._limit):
            if node._creche_nursery.is_cancelled:
                return  # else each that ends would launch the next, only for that to end as well
            if not self._turns:
                self._turns = deque(self._queue)
            order = self._turns.popleft()
            worker = self._queue.get(order)
            if worker is None:
                continue  # it has left the queue
            try:
                self._running[order] = worker
                del self._queue[order]  # before a task factory, the user's code, can call back
                node._creche_runners.launch(worker)
            except BaseException as error:  # noqa: BLE001 (it fails the worker, and so its node)
                # Remove it first: an end that calls back here would recurse.
                self._running.pop(order, None)
                self._queue.pop(order, None)
                worker._place = None
                end(worker, ERROR, error)

    # the way out

    def _left(self, worker: Worker[Any]) -> None:
        """Remove a worker that has ended; safe to call again."""
        # If it was interrupted while moving, it is in two places.
        order = worker._order
        if self._running.pop(order, None) is None and self._queue:
            self._queue.pop(order, None)
        if self._unstarted:
            self._unstarted.pop(order, None)
        if self._queue:
            self._settle()
        elif self._turns:
            self._turns.clear()
        if self._left_one is not None:
            self._tell_of_room()
        worker._place = None
        if not (self._running or self._queue or self._unstarted):
            forget(self)

    def _is_waited_for(self) -> bool:
        return bool(self._queue) or self._left_one is not None

    def _tell_of_room(self) -> None:
        event, self._left_one = self._left_one, None
        if event is not None:
            event.set()

    @property
    def _has_room(self) -> bool:
        return self._limit is None or len(self._running) + len(self._queue) < self._limit

    def _has_in_queue(self, worker: Worker[Any]) -> bool:
        return worker._order in self._queue

    def _holders(self) -> Collection[Waitable]:
        return self._running.values()

    def _cancel_with_nursery(self, reason: object, *, by_scope: bool) -> None:
        nursery, workers = self._node._creche_nursery, list(self)
        request_each(workers, (nursery.now(), reason))
        for worker in workers:
            if by_scope and is_delivered_by_scope(worker):
                continue
            try:
                deliver(worker, by_nursery=by_scope)
            except BaseException as fault:  # noqa: BLE001 (raised by the block; the others are still started)
                try:
                    deliver(worker, by_nursery=by_scope)
                finally:
                    nursery.fail(fault)

    def cancel(self, reason: object = None) -> None:
        """Cancel all unfinished workers of the group.

        Args:
            reason: See ``Worker.cancel_reason``.

        Threads:
            Any thread, and a signal handler.
        """
        cancel_each(self, reason)

    async def wait(self) -> None:
        """Wait until all started workers of the group have ended. Raises no errors of theirs.

        Those that are started later are not waited for.

        Cancelling this call ends the wait; the workers go on.

        Raises:
            DeadlockError: Called by a worker of the group, or by one that the group needs to end.

        Checkpoint:
            Always.

        Threads:
            The node's event loop only.
        """
        await wait_for([worker for worker in self if worker._started])

    async def room(self) -> None:
        """Wait until fewer workers than the limit are running or queued. For back-pressure.

        It returns in the same step in which there is room, so a worker that is started next gets
        the slot. Cancelling this call ends the wait.

        Raises:
            DeadlockError: Called by a worker that must end before the group has room.
            WorkerError: This is not the event loop of the node.

        Checkpoint:
            Always.

        Threads:
            The node's event loop only.
        """
        await wait_for_room(self)
