"""The tree as the page is told of it: whole, and what has changed in it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from ._tally import ENDS
from ._text import LINE, NAME, cut

if TYPE_CHECKING:
    from creche import GroupSnapshot, NodeSnapshot, WorkerSnapshot

    from ._tally import Group, Tally

Row = dict[str, Any]
_COPIED = (
    *("state", "is_queued", "is_cancelled", "thread", "daemon"),
    *("completed_steps", "total_steps", "attempt", "is_ready"),
)
HIDDEN = "creche.web"
"""The group of the worker that watches for the page, which is not shown."""


class State:
    """Rows of nodes, groups and workers, by numbers, as they were told last."""

    def __init__(self) -> None:
        self.nodes: dict[int, Row] = {}
        self.groups: dict[int, Row] = {}
        self.workers: dict[int, Row] = {}
        self._numbers: dict[tuple[object, ...], int] = {}  # of the nodes and groups there are
        self._next = itertools.count()
        self._failed = 0

    def whole(self, tally: Tally) -> Row:
        """Give all of it."""
        return {
            "nodes": [*self.nodes.values()],
            "groups": [*self.groups.values()],
            "workers": [*self.workers.values()],
            "failures": [*tally.failures],
        }

    def renew(self, picture: NodeSnapshot, tally: Tally, now: float, clock: float) -> Row:
        """Take the tree as it stands now, and give what has changed since.

        Args:
            picture: The tree.
            tally: What has ended.
            now: The time of the wall clock.
            clock: That of the loop's.
        """
        nodes, groups, workers = self.nodes, self.groups, self.workers
        self._take(picture, tally, now, clock)
        failed, self._failed = tally.failed - self._failed, tally.failed
        ended, tally.ended = tally.ended, {}
        return {
            "nodes": _news(nodes, self.nodes),
            "nodes_gone": [each for each in nodes if each not in self.nodes],
            "groups": _news(groups, self.groups),
            "groups_gone": [each for each in groups if each not in self.groups],
            "workers": [
                _changed(workers.get(number, {}), row)
                for number, row in self.workers.items()
                if workers.get(number) != row
            ],
            "ended": [
                {"number": each, "state": ended.get(each, "CANCELLED")}
                for each in workers
                if each not in self.workers
            ],
            "failures": [*tally.failures][-failed:] if failed else [],
        }

    def _take(self, picture: NodeSnapshot, tally: Tally, now: float, clock: float) -> None:
        before, known = self.workers, self._numbers
        self.nodes, self.groups, self.workers, self._numbers = {}, {}, {}, {}
        ahead: list[tuple[NodeSnapshot, int | None]] = [(picture, None)]
        while ahead:
            node, parent = ahead.pop()
            number = self._number(known, parent, node.name)
            self.nodes[number] = _node_row(node, number, parent)
            ahead += ((child, number) for child in reversed(node.children))
            for group in node.groups:
                if group.name == HIDDEN:
                    continue
                key = self._number(known, number, "group", group.name)
                ended = tally.groups.get((cut(node.path, NAME), cut(group.name, NAME)))
                self.groups[key] = _group_row(group, key, number, ended, clock)
                for each in group.workers:
                    old = before.get(each.number)
                    row = _worker_row(each, key, old, now, is_stalled=each.number in tally.stalled)
                    self.workers[each.number] = row

    def _number(self, known: dict[tuple[object, ...], int], *key: object) -> int:
        """Give the number of a node or a group; names may be there several times."""
        for again in itertools.count():
            whole = (*key, again)
            if whole not in self._numbers:
                number = known.get(whole)
                self._numbers[whole] = next(self._next) if number is None else number
                return self._numbers[whole]
        raise AssertionError  # pragma: no cover (it has counted to the end of all numbers)


def _news(before: dict[int, Row], rows: dict[int, Row]) -> list[Row]:
    return [row for number, row in rows.items() if before.get(number) != row]


def _changed(before: Row, row: Row) -> Row:
    """Give the fields that have changed, and the number."""
    if not before:
        return row
    return {name: value for name, value in row.items() if name == "number" or before[name] != value}


def _node_row(node: NodeSnapshot, number: int, parent: int | None) -> Row:
    return {
        "id": number,
        "parent": parent,
        "name": cut(node.name, NAME),
        "path": cut(node.path, NAME),
        "life": node.life,
        "is_cancelled": node.is_cancelled,
        "cancel_reason": _line(node.cancel_reason),
    }


def _group_row(
    group: GroupSnapshot, number: int, node: int, ended: Group | None, clock: float
) -> Row:
    counts = {name: 0 if ended is None else ended.ended[name] for name in ENDS.values()}
    rate, unfinished = None if ended is None else ended.rate(clock), len(group.workers)
    return {
        "id": number,
        "node": node,
        "name": cut(group.name, NAME),
        "limit": group.limit,
        "overflow": group.overflow,
        "running": group.running,
        "queued": group.queued,
        "total": sum(counts.values()) + unfinished,
        **counts,
        "rate": rate,
        "left": round(unfinished / rate, 1) if rate and unfinished else None,
    }


def _worker_row(
    worker: WorkerSnapshot, group: int, old: Row | None, now: float, *, is_stalled: bool
) -> Row:
    row: Row = {
        "number": worker.number,
        "group": group,
        "name": cut(worker.name, NAME),
        "description": cut(worker.description, LINE),
        "where": cut(worker.where, NAME),
        "cancel_reason": _line(worker.cancel_reason),
        # As they were told first: to be taken from ages, they would differ a bit each time.
        "created": old["created"] if old else round(now - (worker.age or 0.0), 3),
        "started": old["started"] if old else None,
        "progress": round(worker.progress, 2),
        "stalled": is_stalled,
    }
    if row["started"] is None and worker.state == "RUNNING":
        row["started"] = round(now - worker.elapsed, 3)
    facts = vars(worker)
    for name in _COPIED:
        row[name] = facts[name]
    return row


def _line(text: str | None) -> str | None:
    return None if text is None else cut(text, LINE)
