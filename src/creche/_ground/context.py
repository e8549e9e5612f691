"""The context variable of the current worker, and the flag for importing a main module."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

current: ContextVar[Any] = ContextVar("active_worker")
"""The worker that runs the current code; public, and typed, as ``active_worker``.

Where the work of a worker runs elsewhere, it is the counterpart there, a ``Far``.
"""


imports_main = False
"""Whether the main module is being imported by a process that runs its work elsewhere."""


def without_far(worker: Any) -> Any:
    """Return a worker of this process, but ``None`` for the counterpart of one elsewhere.

    Anything else that was put into the variable is returned as it is.
    """
    return None if getattr(worker, "_is_far", False) else worker
