"""What has become of the workers of each group, kept from the events of the tree.

What runs and waits is read as somebody looks; what has ended is gone by then, so it is counted.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from creche import Worker, WorkerState

from ._text import NAME, cut, read, told

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from creche import NodeSnapshot

Event: TypeAlias = Worker.StateChanged | Worker.ProgressChanged | Worker.Restarted | Worker.Stalled
KINDS: tuple[type[Event], ...] = (
    Worker.StateChanged,
    Worker.ProgressChanged,
    Worker.Restarted,
    Worker.Stalled,
)
"""What a tally listens to."""
_KEPT = 100
"""How many failures are kept, the newest."""
_MOST = 1_000
"""Of how many groups the ends are counted; what was counted first is forgotten."""
_SPAN = 10.0
"""Seconds over which a rate is taken."""
ENDS = {
    WorkerState.SUCCESS: "succeeded",
    WorkerState.ERROR: "failed",
    WorkerState.CANCELLED: "cancelled",
}


def walk(picture: NodeSnapshot) -> Iterator[NodeSnapshot]:
    """Give a node and all below it, each before those below it."""
    ahead = [picture]
    while ahead:
        node = ahead.pop()
        yield node
        ahead += reversed(node.children)


@dataclass
class Group:
    """What has ended of a group since it was last empty."""

    ended: Counter[str] = field(default_factory=Counter[str])
    unfinished: int = 0
    """How many are there that have not ended."""
    recent: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])
    """When how many have ended, of the last seconds."""

    def rate(self, now: float) -> float | None:
        """Tell how many end per second."""
        while self.recent and self.recent[0][0] < now - _SPAN:
            self.recent.popleft()
        if not self.recent:
            return None
        span = max(1.0, now - self.recent[0][0])
        return float(f"{sum(number for _, number in self.recent) / span:.2g}")


class Tally:
    """Counts the ends; a group is known by the path of its node and its name."""

    def __init__(self) -> None:
        self.groups: dict[tuple[str, str], Group] = {}
        self.failures: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self.failed = 0
        """How many have failed in all."""
        self.ended: dict[int, str] = {}
        """What has ended since that was last taken, by number, and how."""
        self.stalled: set[int] = set()

    def begin(self, picture: NodeSnapshot) -> None:
        """Take note of what there is, before the first event."""
        for node in walk(picture):
            for each in node.groups:
                if each.workers:
                    group = self._group(cut(node.path, NAME), cut(each.name, NAME))
                    group.unfinished = len(each.workers)

    def take(self, events: Iterable[Event], now: float, clock: float) -> None:
        """Take note of what happened.

        Args:
            events: What happened.
            now: The time of the wall clock.
            clock: That of the loop's.
        """
        for event in events:
            number = event.worker.number
            if isinstance(event, Worker.Stalled):
                self.stalled.add(number)
                continue
            self.stalled.discard(number)
            if not isinstance(event, Worker.StateChanged):
                continue
            if event.state is WorkerState.PENDING:
                self._begin(event.worker)
            elif event.state in ENDS:
                self._end(event, now - clock + event.time, clock)

    def _begin(self, worker: Worker[Any]) -> None:
        group = self._group(read(worker.node, "path"), read(worker, "group"))
        if not group.unfinished:
            group.ended.clear()
        group.unfinished += 1

    def _end(self, event: Worker.StateChanged, when: float, clock: float) -> None:
        worker = event.worker
        path, name = read(worker.node, "path"), read(worker, "group")
        group = self._group(path, name)
        group.unfinished -= 1
        group.ended[ENDS[event.state]] += 1
        if group.recent and clock - group.recent[-1][0] < _SPAN / 40:
            group.recent[-1] = (group.recent[-1][0], group.recent[-1][1] + 1)
        else:
            group.recent.append((clock, 1))
        self.ended[worker.number] = event.state.name
        if event.state is WorkerState.ERROR:
            self.failed += 1
            self.failures.append(
                {
                    "number": worker.number,
                    "node": path,
                    "group": name,
                    "name": read(worker, "name"),
                    "time": round(when, 3),
                    "error": told(worker.error),
                    "attempt": worker.attempt,
                }
            )

    def _group(self, path: str, name: str) -> Group:
        group = self.groups.get((path, name))
        if group is None:
            if len(self.groups) >= _MOST:
                del self.groups[next(iter(self.groups))]
            group = self.groups[path, name] = Group()
        return group
