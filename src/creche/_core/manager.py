"""The manager of a tree's workers: a view of the tree without any state."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from creche._ground.errors import WorkerError
from creche._ground.states import FINAL, PENDING

from .admission import admit
from .calls import ask
from .cancelling import refuse_ended
from .group import WorkerGroup, cancel_each, in_order
from .tree import walk_up
from .waiting import wait_for
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .node import Node


class WorkerManager:
    """The unfinished workers of a whole tree of nodes, oldest first.

    You get it from ``Node.workers``. ``len()``, ``bool()``, ``in``, iteration and ``reversed()``
    refer to the unfinished workers.
    """

    __slots__ = ("_root",)

    def __init__(self, root: Node) -> None:
        self._root = root

    def _all_groups(self) -> Iterator[WorkerGroup]:
        for node in self._root._creche_below():
            yield from list(node._creche_groups.values())

    def _all(self) -> Iterator[Worker[Any]]:
        for group in self._all_groups():
            yield from group

    def _sorted(self) -> list[Worker[Any]]:
        # Each group is sorted, and sorted() merges sorted runs.
        return sorted(self._all(), key=in_order)

    def __iter__(self) -> Iterator[Worker[Any]]:
        return iter(self._sorted())

    def __reversed__(self) -> Iterator[Worker[Any]]:
        return iter(self._sorted()[::-1])

    def __len__(self) -> int:
        return sum(len(group) for group in self._all_groups())

    def __contains__(self, worker: object) -> bool:
        return (
            isinstance(worker, Worker)
            and worker._place is not None
            and worker in worker._place
            and any(node is self._root for node in walk_up(worker._node))
        )

    def __repr__(self) -> str:
        counts = Counter(worker._state for worker in self._all())
        told = ", ".join(f"{counts[state]} {state.name}" for state in counts)
        return f"<WorkerManager of {self._root.path!r}: {told or 'no workers'}>"

    def add_worker(self, worker: Worker[Any], start: bool = True, exclusive: bool = True) -> None:
        """Add a worker that was made directly.

        Args:
            worker: The worker; its node must be in this tree.
            start: Whether to start it. If not, see ``start_all()``.
            exclusive: Whether its start cancels the unfinished workers of its group.

        Raises:
            WorkerError: The worker was added before, or belongs to another tree, or should be
                started and its node is not open. In the last case it is cancelled silently.
            WorkerCancelled: Called by the thread of a worker that was cancelled.

        Threads:
            Any thread.
        """
        node: Any = worker._node
        if node.root is not self._root:
            raise WorkerError(
                f"{worker._creche_label()} is of {node._creche_label()}, which is not in the "
                f"tree of {self._root.path!r}; add it to node.workers of its own node"
            )
        if worker._created_at is not None:
            raise WorkerError(f"{worker._creche_label()} was added before")
        if worker._state in FINAL:
            refuse_ended(worker)
        admit(node, worker, True if exclusive else None, start=start)

    def start_all(self) -> None:
        """Start all workers of the tree that were added with ``start=False``, oldest first.

        Raises:
            WorkerError: A node with such workers is not open.
            WorkerCancelled: Called by the thread of a worker that was cancelled.
            BaseException: A task could not be created; that worker is CANCELLED, the others start.

        Threads:
            Any thread.
        """
        ask(self._root, self._start_all)

    def _start_all(self) -> None:
        # Workers whose state was assigned run elsewhere, and are not started.
        waiting = [
            (group, worker)
            for group in self._all_groups()
            for worker, _ in list(group._unstarted.values())
            if worker._state is PENDING
        ]
        for group, _ in waiting:
            group._node._creche_nursery.check_admission()
        fault: BaseException | None = None
        for group, worker in sorted(waiting, key=lambda each: each[1]._order):
            bridge = group._node._creche_nursery.bridge
            bridge.steps.busy += 1
            try:
                group._start(worker)
            except BaseException as raised:  # noqa: BLE001 (raised after the others)
                fault = fault or raised
            finally:
                bridge.steps.busy -= 1
        if fault is not None:
            raise fault

    def cancel_all(self, reason: object = None) -> None:
        """Cancel all unfinished workers of the tree.

        Args:
            reason: See ``Worker.cancel_reason``.

        Threads:
            Any thread, and a signal handler.
        """
        cancel_each(self, reason)

    def cancel_group(self, node: Node, group: str) -> list[Worker[Any]]:
        """Cancel the unfinished workers of a group.

        Args:
            node: The node that the group is in.
            group: The name of the group.

        Returns:
            The workers that were cancelled by this call.

        Threads:
            Any thread.
        """
        found = node._creche_groups.get(group)
        if found is None:
            return []
        return cancel_each(found, None)

    def cancel_node(self, node: Node) -> list[Worker[Any]]:
        """Cancel the unfinished workers of a node, but not those of the nodes below it.

        Args:
            node: The node.

        Returns:
            The workers that were cancelled by this call.

        Threads:
            Any thread.
        """
        every = [worker for group in list(node._creche_groups.values()) for worker in group]
        return cancel_each(sorted(every, key=in_order), None)

    async def wait_for_complete(self, workers: Iterable[Worker[Any]] | None = None) -> None:
        """Wait until started workers have ended, in whatever way. Raises no errors of theirs.

        Cancelling this call ends the wait; the workers go on.

        Args:
            workers: The workers; those that were never started are skipped. By default all workers
                that are in the tree now, except daemons, which may run as long as their node.
                ``[]`` means none.

        Raises:
            DeadlockError: Called by one of the workers, or by one that they need to end.

        Checkpoint:
            Always.

        Threads:
            The node's event loop only.
        """
        if workers is None:
            workers = [worker for worker in self if not worker.daemon]
        await wait_for([worker for worker in workers if worker._started])
