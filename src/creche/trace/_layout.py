"""Where things stand in a timeline: lanes, and rows in which nothing overlaps.

A lane is a group of a node. It has as many rows as workers of it ran at once, and as many rows for
those that waited as waited at once. Times are whole microseconds since the first event: they are
cut off, not rounded, so that what did not overlap does not begin to.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from creche import WorkerState

if TYPE_CHECKING:
    from collections.abc import Iterable


class Mark(NamedTuple):
    """Something that a worker did while it ran."""

    time: float
    """When, in seconds of the loop's clock."""
    kind: str
    """``"ready"``, ``"attempt 2"`` and so on, or ``"stalled"``."""
    text: str = ""
    """What else there is to know."""


@dataclass(slots=True)
class Entry:
    """What is known of one worker; times in seconds of the loop's clock."""

    number: int
    """Grows from worker to worker, in the order in which they were made."""
    name: str
    path: str
    """The path of its node."""
    group: str
    created: float
    origin: int | None = None
    """The number of the worker in which it was made."""
    description: str = ""
    state: WorkerState = WorkerState.PENDING
    started: float | None = None
    finished: float | None = None
    cancelled: float | None = None
    """When its cancellation was requested."""
    reason: str = ""
    error: str = ""
    where: str = ""
    """Where it ran, if that was elsewhere."""
    attempt: int = 1
    marks: tuple[Mark, ...] = ()
    """The newest, in order."""


@dataclass(slots=True)
class Bar:
    """A worker in the timeline; times in microseconds."""

    entry: Entry
    created: int
    started: int | None
    end: int
    cancelled: int | None
    marks: list[tuple[int, str, str]]
    """When, of what kind, and what else there is to know."""
    lane: int = 0
    row: int | None = None
    """The row in which it ran, if it did."""
    queue_row: int | None = None
    """The row in which it waited, if it did."""

    @property
    def waited(self) -> int:
        """Until when it waited."""
        return self.end if self.started is None else self.started


@dataclass(slots=True)
class Lane:
    """A group of a node."""

    path: str
    group: str
    bars: list[Bar] = field(default_factory=list["Bar"])
    rows: int = 0
    queue_rows: int = 0


@dataclass(slots=True)
class Picture:
    """A timeline, laid out; times in microseconds."""

    lanes: list[Lane]
    bars: list[Bar]
    """In order of creation."""
    length: int
    whole_since: int
    """From when on no worker is missing."""


def lay_out(
    entries: Iterable[Entry], begin: float, end: float, whole_since: float | None
) -> Picture:
    """Give each worker its lane and its rows; times in seconds of the loop's clock.

    Args:
        entries: The workers.
        begin: Where the timeline begins, if no worker is older.
        end: Where it ends; what has not ended is shown up to here.
        whole_since: From when on no worker is missing; ``None`` if that is so all along.
    """
    in_order = sorted(entries, key=lambda entry: (entry.created, entry.number))
    first = min(begin, in_order[0].created) if in_order else begin

    def at(seconds: float) -> int:
        return int((max(seconds, first) - first) * 1_000_000)

    named: dict[tuple[str, str], Lane] = {}
    bars: list[Bar] = []
    for entry in in_order:
        lane = named.setdefault((entry.path, entry.group), Lane(entry.path, entry.group))
        until = entry.finished
        if until is None:  # a clock that is asked in two ways may seem to go back a little
            until = max(end, entry.started or entry.created)
        bar = Bar(
            entry,
            created=at(entry.created),
            started=None if entry.started is None else at(entry.started),
            end=at(until),
            cancelled=None
            if entry.cancelled is None
            else at(min(max(entry.cancelled, entry.created), until)),
            marks=[(at(min(mark.time, until)), mark.kind, mark.text) for mark in entry.marks],
        )
        bars.append(bar)
        lane.bars.append(bar)
    # Nodes as in the tree, and within a node as its groups were first used: sorting is stable.
    lanes = sorted(named.values(), key=lambda lane: lane.path.split("/"))
    for number, lane in enumerate(lanes):
        _give_rows(number, lane)
    return Picture(
        lanes,
        bars,
        length=max([at(end), *(bar.end for bar in bars)]),
        whole_since=0 if whole_since is None else at(whole_since),
    )


def _give_rows(number: int, lane: Lane) -> None:
    waited = [bar for bar in lane.bars if bar.started is None or bar.started > bar.created]
    ran = sorted(
        (bar for bar in lane.bars if bar.started is not None), key=lambda bar: bar.started or 0
    )
    queue_rows, lane.queue_rows = _pack([(bar.created, bar.waited) for bar in waited])
    rows, lane.rows = _pack([(bar.started or 0, bar.end) for bar in ran])
    for bar, row in zip(waited, queue_rows, strict=True):
        bar.queue_row = row
    for bar, row in zip(ran, rows, strict=True):
        bar.row = row
    for bar in lane.bars:
        bar.lane = number


def _pack(spans: list[tuple[int, int]]) -> tuple[list[int], int]:
    """Give spans, sorted by their starts, the first row that is free; and tell how many rows."""
    rows: list[int] = []
    busy: list[tuple[int, int]] = []  # heaps: until when which row is taken
    free: list[int] = []
    for start, end in spans:
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        row = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (end, row))
        rows.append(row)
    return rows, max(rows, default=-1) + 1
