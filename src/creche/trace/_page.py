"""A timeline as one page that needs nothing else: ``page.html`` with the data in it."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._layout import Bar, Picture

_MARK = '{"the data": "comes here"}'


def as_page(picture: Picture, about: Mapping[str, object]) -> str:
    """Write a timeline as a page.

    Args:
        picture: The timeline.
        about: What else there is to know, as plain data.
    """
    index = {bar.entry.number: place for place, bar in enumerate(picture.bars)}
    data = {
        **about,
        "length": picture.length,
        "wholeSince": picture.whole_since,
        "lanes": [[lane.path, lane.group, lane.rows, lane.queue_rows] for lane in picture.lanes],
        "workers": [_row(bar, index) for bar in picture.bars],
    }
    # In a string of JSON that is the same, and in a page it ends no element and begins no comment.
    told = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    template = files("creche.trace").joinpath("page.html").read_text(encoding="utf-8")
    head, _, tail = template.partition(_MARK)
    return head + told + tail


def _row(bar: Bar, index: Mapping[int, int]) -> list[object]:
    entry = bar.entry
    return [
        entry.name,
        bar.lane,
        entry.state.name,
        bar.created,
        bar.started,
        bar.end,
        bar.row,
        bar.queue_row,
        bar.cancelled,
        index.get(entry.origin or 0),
        entry.description,
        entry.reason,
        entry.error,
        entry.attempt,
        bar.marks,
        entry.where,
    ]
