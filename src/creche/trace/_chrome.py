"""A timeline in the Chrome trace event format, for Perfetto and ``chrome://tracing``.

A lane is a process there and a row a thread; a worker is a slice in the row in which it ran, and
one in the row in which it waited.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ._layout import Bar, Lane, Picture

_Event: TypeAlias = dict[str, Any]

_COLOURS = {
    "SUCCESS": "good",
    "ERROR": "terrible",
    "CANCELLED": "bad",
    "RUNNING": "rail_animation",
    "PENDING": "grey",
}
"""Of the names of colours that ``chrome://tracing`` knows; Perfetto has its own."""


def as_json(picture: Picture, about: Mapping[str, object]) -> str:
    """Write a timeline as a trace.

    Args:
        picture: The timeline.
        about: What else there is to know, as plain data.
    """
    timed = [*_happened(picture), *_counted(picture)]
    # At one moment a slice comes before what points at it; sorting is stable.
    timed.sort(key=lambda event: event["ts"])
    return json.dumps(
        {
            "traceEvents": [*_named(picture), *timed],
            "displayTimeUnit": "ms",
            "otherData": {**about, "whole since (us)": picture.whole_since},
        },
        separators=(",", ":"),
    )


def _event(kind: str, name: str, when: int, place: tuple[int, int], **more: object) -> _Event:
    process, thread = place
    return {"ph": kind, "name": name, "ts": when, "pid": process, "tid": thread, **more}


def _named(picture: Picture) -> Iterator[_Event]:
    for process, lane in enumerate(picture.lanes, 1):
        name = f"{lane.path}/{lane.group}"
        yield _event("M", "process_name", 0, (process, 0), args={"name": name})
        yield _event("M", "process_sort_index", 0, (process, 0), args={"sort_index": process})
        for thread in range(1, lane.rows + lane.queue_rows + 1):
            place = (process, thread)
            what = "running" if thread <= lane.rows else "queued"
            yield _event("M", "thread_name", 0, place, args={"name": what})
            yield _event("M", "thread_sort_index", 0, place, args={"sort_index": thread})


def _happened(picture: Picture) -> Iterator[_Event]:
    if picture.whole_since:
        name = "older workers were dropped"
        yield _event("i", name, picture.whole_since, (1, 1), s="g", cat="recorder")
    numbered = {bar.entry.number: bar for bar in picture.bars}
    for bar in picture.bars:
        lane = picture.lanes[bar.lane]
        yield from _slices(bar, lane)
        yield from _instants(bar, lane)
        origin = numbered.get(bar.entry.origin or 0)
        if origin is not None and origin.started is not None:
            yield from _arrow(origin, bar, picture)


def _place(bar: Bar, lane: Lane, *, queued: bool = False) -> tuple[int, int]:
    """Give the process and the thread in which a worker ran; if it never did, it was queued."""
    if bar.row is None or queued:
        assert bar.queue_row is not None
        return bar.lane + 1, lane.rows + bar.queue_row + 1
    return bar.lane + 1, bar.row + 1


def _slices(bar: Bar, lane: Lane) -> Iterator[_Event]:
    entry = bar.entry
    told = {
        "description": entry.description,
        "where": entry.where,
        "reason": entry.reason,
        "error": entry.error,
    }
    args = {
        "worker": entry.number,
        "state": entry.state.name,
        "group": entry.group,
        "node": entry.path,
        **{key: text for key, text in told.items() if text},
        **({"attempt": entry.attempt} if entry.attempt > 1 else {}),
    }
    if bar.queue_row is not None:
        place, length = _place(bar, lane, queued=True), bar.waited - bar.created
        more = {"dur": length, "cat": "queued", "cname": "grey", "args": args}
        yield _event("X", entry.name, bar.created, place, **more)
    if bar.started is not None:
        colour, length = _COLOURS[entry.state.name], bar.end - bar.started
        more = {"dur": length, "cat": "running", "cname": colour, "args": args}
        yield _event("X", entry.name, bar.started, _place(bar, lane), **more)


def _instants(bar: Bar, lane: Lane) -> Iterator[_Event]:
    entry = bar.entry
    args = {"worker": entry.number, "name": entry.name}
    if bar.cancelled is not None:
        queued = bar.queue_row is not None and bar.cancelled < bar.waited
        place, name = _place(bar, lane, queued=queued), "cancellation requested"
        args_of = {**args, "reason": entry.reason}
        yield _event("i", name, bar.cancelled, place, s="t", cat="cancel", args=args_of)
    for when, kind, text in bar.marks:
        args_of = {**args, "told": text} if text else args
        yield _event("i", kind, when, _place(bar, lane), s="t", cat="service", args=args_of)
    if entry.state.name == "ERROR":
        args_of = {**args, "error": entry.error}
        yield _event("i", "error", bar.end, _place(bar, lane), s="t", cat="error", args=args_of)


def _arrow(origin: Bar, bar: Bar, picture: Picture) -> Iterator[_Event]:
    """From the worker in which another was made, to where that one began."""
    assert origin.started is not None
    # What a worker spawned may have made another one after it had ended.
    leaves = min(max(bar.created, origin.started), origin.end)
    comes = bar.created if bar.started is None else bar.started
    flow = {"cat": "started", "id": bar.entry.number}
    there, here = (_place(each, picture.lanes[each.lane]) for each in (origin, bar))
    yield _event("s", "started", leaves, there, **flow)
    yield _event("f", "started", comes, here, bp="e", **flow)


def _counted(picture: Picture) -> Iterator[_Event]:
    for process, lane in enumerate(picture.lanes, 1):
        changes: dict[int, tuple[int, int]] = {}
        for bar in lane.bars:
            ran = 0 if bar.started is None else 1
            for when, more, waiting in (
                (bar.created, 0, 1),
                (bar.waited, ran, -1),
                (bar.end, -ran, 0),
            ):
                before = changes.get(when, (0, 0))
                changes[when] = (before[0] + more, before[1] + waiting)
        running, queued = 0, 0
        for when in sorted(changes):
            running, queued = running + changes[when][0], queued + changes[when][1]
            args = {"running": running, "queued": queued}
            yield _event("C", "workers", when, (process, 0), args=args)
