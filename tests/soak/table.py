"""The table of what actors do: how often, where, and the name that switches it off."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

TABLE = []
LOOP = ("body", "worker", "handler", "task", "call")
THREADS = ("thread", "foreign")
SIGNAL = (*LOOP, *THREADS, "signal")


@dataclass
class Act:
    name: str
    function: Any
    weight: float
    feature: str | None
    places: tuple[str, ...]
    is_async: bool

    def is_for(self, place):
        return place in self.places


def act(weight=1.0, feature=None, places=None):
    """Add a function to the table, with its weight, the feature it belongs to, and its places."""

    def add(function):
        is_async = inspect.iscoroutinefunction(function)
        where = places or (LOOP if is_async else (*LOOP, *THREADS))
        TABLE.append(Act(function.__name__, function, weight, feature, where, is_async))
        return function

    return add
