"""The page that shows all workers, and what it asks."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from sse_starlette import EventSourceResponse
from starlette.responses import Response

from creche import Worker, WorkerError

from ._answers import read_object, to_json
from ._closing import PATIENCE, closing_of
from ._problems import Problem
from ._tree import Tree, Viewer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request

    from creche import Node

    from ._access import Access

_HEADERS = {
    # It has all within itself, and asks nobody but this server.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@cache
def _page() -> bytes:
    return (files("creche.web") / "page.html").read_bytes()


class PageEndpoints:
    """The answers to the page."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._node = access.jobs.node
        self._tree = Tree(self._node)

    async def page(self, request: Request) -> Response:
        """Answer with the page."""
        await self._access.check(request, "watch")
        return Response(_page(), HTTPStatus.OK, _HEADERS, "text/html; charset=utf-8")

    async def tree(self, request: Request) -> Response:
        """Answer with the whole tree."""
        await self._begin(request)
        body = await self._whole(request)
        return Response(body, HTTPStatus.OK, {"Cache-Control": "no-store"}, "application/json")

    async def _begin(self, request: Request) -> None:
        await self._access.check(request, "watch")
        try:
            self._tree.begin()
        except WorkerError as error:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None

    async def _whole(self, request: Request) -> str:
        may_cancel = await self._access.allows(request, "cancel_worker")
        return self._tree.whole(may_cancel=may_cancel)

    async def events(self, request: Request) -> Response:
        """Answer with the whole tree, and then with what changes in it."""
        await self._begin(request)
        return EventSourceResponse(self._follow(request), sep="\n", shutdown_grace_period=PATIENCE)

    async def _follow(self, request: Request) -> AsyncGenerator[dict[str, Any]]:
        viewer, kind = Viewer(), ""
        with self._tree.seen_by(viewer):
            while kind != "end":
                with closing_of(self._node).wait() as scope:
                    kind, change = await viewer.next()
                    text = await self._whole(request) if change is None else change
                if scope.cancelled_caught:
                    kind, text = "end", "{}"
                yield {"event": kind, "data": text, "retry": 2_000}

    async def cancel(self, request: Request) -> Response:
        """Cancel a worker."""
        await self._access.check(request, "cancel_worker")
        given = await read_object(request)
        worker = self._find(request.path_params["number"])
        worker.cancel(str(given.get("reason") or "by somebody at the page"))
        worker.update()  # who watches looks again
        return Response(
            to_json({"number": worker.number, "is_cancelled": True}),
            HTTPStatus.ACCEPTED,
            media_type="application/json",
        )

    def _find(self, number: str) -> Worker[Any]:
        for worker in self._node.workers:  # of the whole tree, of which this may be a part
            if str(worker.number) == number and _is_below(worker.node, self._node):
                return worker
        raise Problem(HTTPStatus.NOT_FOUND, "there is no such worker; it may have ended")


def _is_below(node: Node | None, top: Node) -> bool:
    while node is not None and node is not top:
        node = node.parent
    return node is not None
