"""The table of what actors do: how often each, where, and by what name it is switched off."""

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
    """Put a function into the table: how often, what switches it off, and where it may be done."""

    def add(function):
        is_async = inspect.iscoroutinefunction(function)
        where = places or (LOOP if is_async else (*LOOP, *THREADS))
        TABLE.append(Act(function.__name__, function, weight, feature, where, is_async))
        return function

    return add
