"""The states of a worker and the one table of the changes between them."""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class WorkerState(enum.Enum):
    """Where a worker is in its life."""

    PENDING = 1
    """Created, or waiting for a slot in its group or for a thread; the work was not entered."""
    RUNNING = 2
    """The work has been entered and has not left."""
    CANCELLED = 3
    """Final: the worker was cancelled."""
    ERROR = 4
    """Final: the work raised something that is not cancellation."""
    SUCCESS = 5
    """Final: the work returned, and nobody had asked for its cancellation."""


_PENDING, _RUNNING, _CANCELLED, _ERROR, _SUCCESS = WorkerState

TRANSITIONS: Mapping[WorkerState, frozenset[WorkerState]] = MappingProxyType(
    {
        _PENDING: frozenset({_RUNNING, _CANCELLED}),
        _RUNNING: frozenset({_SUCCESS, _ERROR, _CANCELLED}),
        _CANCELLED: frozenset(),
        _ERROR: frozenset(),
        _SUCCESS: frozenset(),
    }
)
"""From each state, the states that may follow; ``Worker._move`` alone looks it up."""

FINAL = frozenset(state for state, following in TRANSITIONS.items() if not following)
"""The states that nothing follows."""
