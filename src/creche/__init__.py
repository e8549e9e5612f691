"""Creche looks after background work in async programs: named, grouped, observable and owned."""

from __future__ import annotations

from ._decorator import work
from ._errors import (
    DeadlockError,
    NoActiveWorker,
    WorkerCancelled,
    WorkerDeclarationError,
    WorkerError,
    WorkerFailed,
)
from ._format import format_tree
from ._group import WorkerGroup
from ._manager import WorkerManager
from ._message import Message
from ._node import Node
from ._options import Overflow
from ._record import ResultType
from ._snapshot import GroupSnapshot, NodeSnapshot, WorkerSnapshot
from ._stacks import FrameSnapshot
from ._state import WorkerState
from ._subscription import Subscription
from ._worker import Worker, WorkType, active_worker, get_current_worker

__all__ = [
    "DeadlockError",
    "FrameSnapshot",
    "GroupSnapshot",
    "Message",
    "NoActiveWorker",
    "Node",
    "NodeSnapshot",
    "Overflow",
    "ResultType",
    "Subscription",
    "WorkType",
    "Worker",
    "WorkerCancelled",
    "WorkerDeclarationError",
    "WorkerError",
    "WorkerFailed",
    "WorkerGroup",
    "WorkerManager",
    "WorkerSnapshot",
    "WorkerState",
    "active_worker",
    "format_tree",
    "get_current_worker",
    "work",
]


def _adopt(public: object) -> None:
    """Give an object, and what is within it, this module: tracebacks, docs and pickles show it."""
    if str(getattr(public, "__module__", "")).startswith(f"{__name__}._"):
        public.__module__ = __name__
        for inner in vars(public).values() if isinstance(public, type) else ():
            _adopt(inner)


for _name in __all__:
    _adopt(globals()[_name])
