"""Creche looks after background work in async programs: named, grouped, observable and owned."""

from __future__ import annotations

from ._core.group import WorkerGroup
from ._core.manager import WorkerManager
from ._core.node import Node
from ._core.run import active_worker, get_current_worker
from ._core.snapshot import GroupSnapshot, NodeSnapshot, WorkerSnapshot
from ._core.worker import ResultType, Worker, WorkType
from ._decorator import work
from ._ground.errors import (
    DeadlockError,
    NoActiveWorker,
    ShutdownTimeout,
    WorkerCancelled,
    WorkerDeclarationError,
    WorkerError,
    WorkerFailed,
)
from ._ground.message import Message
from ._ground.options import Overflow
from ._ground.states import WorkerState
from ._looking.format import format_tree
from ._messages.subscription import Subscription
from ._running.stacks import FrameSnapshot

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
    "ShutdownTimeout",
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
