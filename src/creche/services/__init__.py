"""Services: work that is run again when it fails; and what blocks the event loop.

``node.run_worker(service(consume))`` runs a function again when it raises an error, within a budget
of restarts. ``async with watchdog(node)`` names the worker whose step the event loop stands in.
"""

from __future__ import annotations

from ._restart import Backoff, NotRestartable, Restart, RestartsExhausted
from ._service import service
from ._watchdog import watchdog

__all__ = ["Backoff", "NotRestartable", "Restart", "RestartsExhausted", "service", "watchdog"]

for _public in (Backoff, NotRestartable, Restart, RestartsExhausted, service, watchdog):
    _public.__module__ = __name__
