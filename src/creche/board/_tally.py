"""What the events of a tree of nodes have told so far."""

from __future__ import annotations

import traceback
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, TypeAlias

from creche import Worker, WorkerState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from creche import Node, WorkerGroup

Change: TypeAlias = Worker.StateChanged | Worker.ProgressChanged
CHANGES: tuple[type[Change], ...] = (Worker.StateChanged, Worker.ProgressChanged)
"""What a board listens to."""
_KEPT = 100
"""How many failures are kept, the newest; no terminal is higher."""


def below(node: Node) -> Iterator[Node]:
    """Give a node and all nodes below it."""
    yield node
    for child in node.children:
        yield from below(child)


def path_of(worker: Worker[Any]) -> str:
    """Tell where a worker is."""
    return f"{worker.node.path}/{worker.group}/{worker.name}"


def in_short(error: BaseException | None) -> str:
    """Tell an error in a line."""
    return "".join(traceback.format_exception_only(error)[:1]).partition("\n")[0] if error else ""


class Tally:
    """Which workers run, in the order in which they began, and what has become of the others.

    Kept from the events, as to look through all workers for each picture would take longer the
    more of them wait.

    Args:
        node: The topmost node. What happens from now on is told by ``take()``.
    """

    def __init__(self, node: Node) -> None:
        self._running: dict[tuple[object, str], dict[Worker[Any], None]] = {}
        self.ended: Counter[WorkerState] = Counter()
        """How many have ended, by state."""
        self.failures: deque[str] = deque(maxlen=_KEPT)
        """The newest failures, each in a line."""
        for each in below(node):
            for group in each.groups:
                for worker in group:
                    if worker.is_running:
                        self._begin(worker)

    @property
    def is_at_work(self) -> bool:
        """Whether any worker runs."""
        return bool(self._running)

    def running(self, node: Node, group: WorkerGroup) -> Mapping[Worker[Any], None]:
        """Give the running workers of a group."""
        return self._running.get((node, group.name), {})

    def take(self, events: Iterable[Change]) -> None:
        """Take note of what happened."""
        for event in events:
            if not isinstance(event, Worker.StateChanged):
                continue
            if event.state is WorkerState.RUNNING:
                self._begin(event.worker)
            elif event.state is not WorkerState.PENDING:
                self._end(event.worker)

    def _begin(self, worker: Worker[Any]) -> None:
        self._running.setdefault((worker.node, worker.group), {})[worker] = None

    def _end(self, worker: Worker[Any]) -> None:
        place = (worker.node, worker.group)
        others = self._running.get(place, {})
        others.pop(worker, None)
        if not others:
            self._running.pop(place, None)
        self.ended[worker.state] += 1
        if worker.state is WorkerState.ERROR:
            told = in_short(worker.error)
            self.failures.append(f"{path_of(worker)}: {told}" if told else path_of(worker))
