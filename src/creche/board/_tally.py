"""What the events of a tree of nodes have told so far."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any, TypeAlias

from creche import Worker, WorkerState
from creche._core.facts import below, facts_of
from creche._ground.text import error_text, label, number, text, text_of

from ._pace import Pace

if TYPE_CHECKING:
    from collections.abc import Collection

    from creche import Node, WorkerGroup
    from creche._core.facts import Facts

Change: TypeAlias = (
    Worker.StateChanged | Worker.ProgressChanged | Worker.Ready | Worker.Restarted | Worker.Stalled
)
CHANGES: tuple[type[Change], ...] = (
    *(Worker.StateChanged, Worker.ProgressChanged),
    *(Worker.Ready, Worker.Restarted, Worker.Stalled),
)
"""What a board listens to."""
_KEPT = 100
"""How many failures are kept, the newest; no terminal is higher."""
_LONGEST = 1_000
"""How many characters are kept of each; no terminal is wider."""


def in_short(error: BaseException | None) -> str:
    """Tell an error in a line."""
    return error_text(error)[:_LONGEST].partition("\n")[0] if error is not None else ""


class Total:
    """How many workers of a group have ended since it was last seen empty, and how fast.

    Args:
        begun: When the first of them began.
    """

    def __init__(self, begun: float) -> None:
        self.ended = 0
        self._pace = Pace(begun)

    def take(self, now: float) -> None:
        """Count one more."""
        self.ended += 1
        self._pace.note(now, self.ended)

    def rate(self, now: float) -> float:
        """Tell how many end per second."""
        return self._pace.rate(now, self.ended)


class Tally:
    """Which workers run, in the order in which they began, and what has become of the others.

    Kept from the events, as to look through all workers for each picture would take longer the
    more of them wait.

    Args:
        node: The topmost node. What happens from now on is told by ``take()``.
    """

    def __init__(self, node: Node) -> None:
        # By group and by the id of the worker: what users make of either may be equal to another.
        self._running: dict[object, dict[int, Worker[Any]]] = {}
        self._groups: dict[int, object] = {}
        """The group of each that runs, by the id of the worker; who has ended is in none."""
        self.ended: Counter[WorkerState] = Counter()
        """How many have ended, by state."""
        self.failures: deque[str] = deque(maxlen=_KEPT)
        """The newest failures, each in a line."""
        self._paces: dict[int, Pace] = {}
        """How fast workers that run and have done steps do more of them, by the id of each."""
        self._totals: dict[tuple[int, str], Total] = {}
        """What has ended of groups that are not empty, by the id of the node and their name."""
        for each in below(node):
            for group in list(each._creche_groups.values()):
                for worker in group:
                    if worker._state is WorkerState.RUNNING:
                        self._begin(worker)

    @property
    def is_at_work(self) -> bool:
        """Whether any worker runs."""
        return bool(self._running)

    def running(self, group: WorkerGroup) -> Collection[Worker[Any]]:
        """Give the running workers of a group."""
        return self._running.get(group, {}).values()

    def total(self, node: Node, group: WorkerGroup) -> Total | None:
        """Give what has ended of a group, if anything has."""
        return self._totals.get((id(node), text(group.name)))

    def rate(self, worker: Worker[Any], facts: Facts) -> float:
        """Tell how many steps a worker does per second."""
        pace = self._paces.get(id(worker))
        if pace is None or facts.started_at is None:
            return 0.0
        return pace.rate(facts.started_at + facts.elapsed, facts.completed)

    def take(self, event: Change) -> None:
        """Take note of what happened."""
        if not isinstance(event, Worker.StateChanged):
            if isinstance(event, Worker.ProgressChanged):
                self._note(event.worker)
            return
        if event.state is WorkerState.RUNNING:
            self._begin(event.worker)
        elif event.state is not WorkerState.PENDING:
            self._end(event.worker, event.state)

    def _begin(self, worker: Worker[Any]) -> None:
        group = worker._place
        if group is not None:  # else it has ended since, which is told next
            self._running.setdefault(group, {})[id(worker)] = worker
            self._groups[id(worker)] = group
            self._note(worker)

    def _note(self, worker: Worker[Any]) -> None:
        """Note how far a worker is."""
        begun, completed = worker._started_at, number(worker._completed)
        if begun is None or id(worker) not in self._groups:
            return
        pace = self._paces.get(id(worker))
        if pace is None:
            if not completed:
                return
            pace = self._paces[id(worker)] = Pace(begun)
        pace.note(worker._nursery.now(), completed)

    def _count(self, worker: Worker[Any]) -> None:
        """Count a worker that has ended, unless its group is empty."""
        node, name = worker._node, text_of(worker, "group")
        group = node._creche_groups.get(name)
        if not group:  # or there is none any more
            self._totals.pop((id(node), name), None)
            return
        now = worker._nursery.now()
        total = self._totals.get((id(node), name))
        if total is None:
            begun = worker._started_at
            total = self._totals[id(node), name] = Total(now if begun is None else begun)
        total.take(now)

    def _end(self, worker: Worker[Any], state: WorkerState) -> None:
        self._paces.pop(id(worker), None)
        self._count(worker)
        group = self._groups.pop(id(worker), None)
        if group is not None:
            others = self._running[group]
            del others[id(worker)]
            if not others:
                del self._running[group]
        self.ended[state] += 1
        if state is WorkerState.ERROR:
            where, told = label(worker), in_short(facts_of(worker).error)
            self.failures.append(f"{where}: {told}"[:_LONGEST] if told else where[:_LONGEST])
