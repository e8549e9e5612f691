"""The states of a worker and of a nursery, each with the one table of the changes between them."""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class WorkerState(enum.Enum):
    """The states of a worker."""

    PENDING = 1
    """Created, or waiting for a slot in its group or for a thread; the work has not started."""
    RUNNING = 2
    """The work has started and has not ended."""
    CANCELLED = 3
    """Final: the worker was cancelled."""
    ERROR = 4
    """Final: the work raised an error."""
    SUCCESS = 5
    """Final: the work returned, and nobody had cancelled it."""


# Enum's own is written in Python, and each step of a worker looks a state up.
WorkerState.__hash__ = object.__hash__  # type: ignore[method-assign]  # the same for all callers
# For the core: a module's name costs a tenth of an Enum's attribute.
PENDING, RUNNING, CANCELLED, ERROR, SUCCESS = WorkerState

TRANSITIONS: Mapping[WorkerState, frozenset[WorkerState]] = MappingProxyType(
    {
        PENDING: frozenset({RUNNING, CANCELLED, ERROR}),  # ERROR: it could not be entered
        RUNNING: frozenset({SUCCESS, ERROR, CANCELLED}),
        CANCELLED: frozenset(),
        ERROR: frozenset(),
        SUCCESS: frozenset(),
    }
)
"""From each state, the states that may follow; ``move()`` alone looks it up."""

FINAL = frozenset(state for state, following in TRANSITIONS.items() if not following)
"""The states that nothing follows."""


class NurseryState(enum.Enum):
    """The states of a nursery."""

    NEW = "not open yet"
    """Nothing can start."""
    OPENING = "being opened"
    """Work is admitted, and launched once the nursery is open."""
    OPEN = "open"
    """Work is admitted, even while the block is being left."""
    CLOSING = "shutting down"
    """No work is admitted; what was admitted continues."""
    CLOSED = "closed"
    """Nothing is left, and nothing can start."""


NEW, OPENING, OPEN, CLOSING, CLOSED = NurseryState

NURSERY_TRANSITIONS: Mapping[NurseryState, frozenset[NurseryState]] = MappingProxyType(
    {
        NEW: frozenset({OPENING, CLOSED}),  # closed if its parent has closed
        OPENING: frozenset({OPEN, CLOSING, CLOSED}),  # it may be shut down before it is open
        OPEN: frozenset({CLOSING, CLOSED}),
        CLOSING: frozenset({CLOSED}),
        CLOSED: frozenset(),
    }
)
"""From each state, the states that may follow; work is admitted in OPENING and OPEN."""
