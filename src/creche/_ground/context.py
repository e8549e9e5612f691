"""The context variable that tells code which worker runs it, and what tells of a main module."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

current: ContextVar[Any] = ContextVar("active_worker")
"""The worker that runs the current code; public, and typed, as ``active_worker``.

Where the work of a worker runs elsewhere, what stands for it there: a ``Far``.
"""


imports_main = False
"""Whether the main module is being imported by a process that runs work of it elsewhere."""


def without_far(worker: Any) -> Any:
    """Give a worker of this process, ``None`` for what stands for one that is elsewhere.

    What somebody else has put into the variable is given as it is.
    """
    return None if getattr(worker, "_is_far", False) else worker
