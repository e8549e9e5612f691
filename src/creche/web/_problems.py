"""Errors as the answers to requests: problem details, RFC 9457."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Mapping

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):  # noqa: N818 (as RFC 9457 calls it)
    """An error that is the answer to a request.

    Args:
        status: The status of HTTP.
        detail: What to say, for people.
        headers: Headers of the answer.
        more: Further members of the problem.
    """

    def __init__(
        self, status: int, detail: str, headers: Mapping[str, str] | None = None, **more: object
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers
        self.more = more

    def answer(self) -> Response:
        """Make the answer of it."""
        try:
            title = HTTPStatus(self.status).phrase
        except ValueError:  # one that a program has of its own
            title = "Error"
        told = {"type": "about:blank", "title": title, "status": self.status}
        body = json.dumps({**told, "detail": self.detail, **self.more})
        return Response(body, self.status, self.headers, MEDIA_TYPE)


def unknown_job() -> Problem:
    """Say that there is no job of an id."""
    return Problem(
        HTTPStatus.NOT_FOUND,
        "there is no such job: it is unknown, or not kept any more, or another process took it; "
        "a job lives in the process that took it, so where several serve, each knows only its own",
    )
