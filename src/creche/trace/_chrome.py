"""A timeline in the Chrome trace event format, for Perfetto and ``chrome://tracing``.

A lane is a process there and a row a thread; a worker is a slice in the row in which it ran, and
one in the row in which it waited.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ._layout import Bar, Lane, Picture

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


def _named(picture: Picture) -> Iterator[dict[str, Any]]:
    def name(kind: str, process: int, thread: int, **args: object) -> dict[str, Any]:
        return {"ph": "M", "name": kind, "pid": process, "tid": thread, "ts": 0, "args": args}

    for process, lane in enumerate(picture.lanes, 1):
        yield name("process_name", process, 0, name=f"{lane.path}/{lane.group}")
        yield name("process_sort_index", process, 0, sort_index=process)
        for thread in range(1, lane.rows + lane.queue_rows + 1):
            what = "running" if thread <= lane.rows else "queued"
            yield name("thread_name", process, thread, name=what)
            yield name("thread_sort_index", process, thread, sort_index=thread)


def _happened(picture: Picture) -> Iterator[dict[str, Any]]:
    if picture.whole_since:
        yield {
            "ph": "i",
            "s": "g",
            "name": "older workers were dropped",
            "cat": "recorder",
            "ts": picture.whole_since,
            "pid": 1,
            "tid": 1,
        }
    numbered = {bar.entry.number: bar for bar in picture.bars}
    for bar in picture.bars:
        lane = picture.lanes[bar.lane]
        yield from _slices(bar, lane)
        yield from _instants(bar, lane)
        origin = numbered.get(bar.entry.origin or 0)
        if origin is not None and origin.started is not None:
            yield from _arrow(origin, bar, picture)


def _place(bar: Bar, lane: Lane, *, queued: bool = False) -> dict[str, int]:
    if bar.row is None or queued:
        assert bar.queue_row is not None
        return {"pid": bar.lane + 1, "tid": lane.rows + bar.queue_row + 1}
    return {"pid": bar.lane + 1, "tid": bar.row + 1}


def _slices(bar: Bar, lane: Lane) -> Iterator[dict[str, Any]]:
    entry = bar.entry
    told = {"description": entry.description, "reason": entry.reason, "error": entry.error}
    args = {
        "worker": entry.number,
        "state": entry.state.name,
        "group": entry.group,
        "node": entry.path,
        **{key: text for key, text in told.items() if text},
    }
    if bar.queue_row is not None:
        yield {
            **{"ph": "X", "name": entry.name, "cat": "queued", "cname": "grey"},
            **{"ts": bar.created, "dur": bar.waited - bar.created},
            **_place(bar, lane, queued=True),
            "args": args,
        }
    if bar.started is not None:
        yield {
            **{"ph": "X", "name": entry.name, "cat": "running"},
            **{"cname": _COLOURS[entry.state.name]},
            **{"ts": bar.started, "dur": bar.end - bar.started},
            **_place(bar, lane),
            "args": args,
        }


def _instants(bar: Bar, lane: Lane) -> Iterator[dict[str, Any]]:
    entry = bar.entry
    if bar.cancelled is not None:
        queued = bar.queue_row is not None and bar.cancelled < bar.waited
        yield {
            **{"ph": "i", "s": "t", "name": "cancellation requested", "cat": "cancel"},
            **{"ts": bar.cancelled, **_place(bar, lane, queued=queued)},
            "args": {"worker": entry.number, "name": entry.name, "reason": entry.reason},
        }
    if entry.state.name == "ERROR":
        yield {
            **{"ph": "i", "s": "t", "name": "error", "cat": "error"},
            **{"ts": bar.end, **_place(bar, lane)},
            "args": {"worker": entry.number, "name": entry.name, "error": entry.error},
        }


def _arrow(origin: Bar, bar: Bar, picture: Picture) -> Iterator[dict[str, Any]]:
    """From the worker in which another was made, to where that one began."""
    assert origin.started is not None
    flow = {"name": "started", "cat": "started", "id": bar.entry.number}
    # What a worker spawned may have made another one after it had ended.
    leaves = min(max(bar.created, origin.started), origin.end)
    comes = bar.created if bar.started is None else bar.started
    lanes = picture.lanes
    yield {"ph": "s", "ts": leaves, **flow, **_place(origin, lanes[origin.lane])}
    yield {"ph": "f", "bp": "e", "ts": comes, **flow, **_place(bar, lanes[bar.lane])}


def _counted(picture: Picture) -> Iterator[dict[str, Any]]:
    for process, lane in enumerate(picture.lanes, 1):
        changes: dict[int, tuple[int, int]] = {}
        for bar in lane.bars:
            running = 0 if bar.started is None else 1
            for when, more, waiting in (
                (bar.created, 0, 1),
                (bar.waited, running, -1),
                *([(bar.end, -1, 0)] if running else []),
            ):
                before = changes.get(when, (0, 0))
                changes[when] = (before[0] + more, before[1] + waiting)
        number, queued = 0, 0
        for when in sorted(changes):
            number, queued = number + changes[when][0], queued + changes[when][1]
            yield {
                **{"ph": "C", "name": "workers", "ts": when, "pid": process, "tid": 0},
                "args": {"running": number, "queued": queued},
            }
