"""A timeline of what ran: recorded while it runs, saved as a page or for Perfetto.

Use ``async with record(app) as trace, app: ...`` and then ``trace.save("run.html")``, for one
self-contained page, or ``trace.save("run.json")`` for https://ui.perfetto.dev
and ``chrome://tracing``.
"""

from __future__ import annotations

from ._recorder import Trace, record

__all__ = ["Trace", "record"]

for _public in (Trace, record):
    _public.__module__ = __name__
