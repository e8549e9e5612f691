"""The context variable that tells code which worker runs it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

current: ContextVar[Any] = ContextVar("active_worker")
"""The worker that runs the current code; public, and typed, as ``active_worker``."""
