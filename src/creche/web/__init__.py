"""Jobs over HTTP, for Starlette and FastAPI: find, poll, stream, answer and cancel them.

``routes(jobs)`` returns routes for Starlette, ``router(jobs)`` the same for FastAPI. Your own
route that starts a job returns ``await accepted(job, request)``. ``lifespan(node)`` keeps the node
open while the server runs. It needs Starlette and sse-starlette: ``pip install 'creche[web]'``.
"""

from __future__ import annotations

from importlib import import_module

try:
    import_module("starlette")
    import_module("sse_starlette")
except ImportError:
    raise ImportError(
        "creche.web needs Starlette and sse-starlette: pip install 'creche[web]'"
    ) from None

from ._access import Action, Authorize, Owner
from ._jobs import accepted
from ._lifespan import lifespan
from ._routes import router, routes

__all__ = ["Action", "Authorize", "Owner", "accepted", "lifespan", "router", "routes"]

for _public in (accepted, lifespan, router, routes):
    _public.__module__ = __name__
