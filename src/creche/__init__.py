"""Creche looks after background work in async programs: named, grouped, observable and owned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._core.group import WorkerGroup
from ._core.manager import WorkerManager
from ._core.node import Node
from ._core.run import active_worker, get_current_worker
from ._core.worker import ResultType, Worker, WorkType
from ._decorator import work
from ._ground.errors import (
    DeadlockError,
    NoActiveWorker,
    RemoteError,
    ShutdownTimeout,
    WorkerCancelled,
    WorkerCrashed,
    WorkerDeclarationError,
    WorkerError,
    WorkerFailed,
)
from ._ground.message import Message
from ._ground.options import Overflow
from ._ground.public import publish
from ._ground.states import WorkerState
from ._messages.subscription import Subscription

if TYPE_CHECKING:
    from ._core.snapshot import GroupSnapshot, NodeSnapshot, WorkerSnapshot
    from ._looking.format import format_tree
    from ._running.stacks import FrameSnapshot
else:  # not for type checkers: to them any name would do then

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from ._looking import format as _  # noqa: F401, PLC0415 (it publishes all of them)

        return globals()[name]


__all__ = [
    "DeadlockError",
    "FrameSnapshot",
    "GroupSnapshot",
    "Message",
    "NoActiveWorker",
    "Node",
    "NodeSnapshot",
    "Overflow",
    "RemoteError",
    "ResultType",
    "ShutdownTimeout",
    "Subscription",
    "WorkType",
    "Worker",
    "WorkerCancelled",
    "WorkerCrashed",
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

# Most programs never look at a tree: what that takes is imported when it is first asked for.
_LATER = ("FrameSnapshot", "GroupSnapshot", "NodeSnapshot", "WorkerSnapshot", "format_tree")

publish(*(globals()[_name] for _name in __all__ if _name not in _LATER))


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
