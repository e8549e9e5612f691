"""A job and its result as the answers to requests, and what requests say."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import aclosing
from dataclasses import fields, is_dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from starlette.responses import Response

from ._problems import Problem

if TYPE_CHECKING:
    from starlette.requests import Request

    from creche.jobs import JobStatus

LONGEST_WAIT = 60.0
"""Seconds that an answer is waited for at most, whatever is asked for."""
LARGEST_BODY = 64 * 1024
"""Bytes of a request that are read."""
_RETRY_AFTER = "1"


def job_answer(
    status: JobStatus, code: int = HTTPStatus.OK, headers: dict[str, str] | None = None
) -> Response:
    """Answer with a job."""
    body = body_of(status)
    given = {"ETag": tag_of(body), "Cache-Control": "private, no-cache", **(headers or {})}
    if not status.done:
        given["Retry-After"] = _RETRY_AFTER
    return Response(body, code, given, "application/json")


def not_modified(request: Request, status: JobStatus) -> Response | None:
    """Answer with nothing, if the client has the job as it stands."""
    tag = tag_of(body_of(status))
    given = request.headers.get("if-none-match", "")
    known = [each.strip().removeprefix("W/") for each in given.split(",")]
    if tag not in known and "*" not in known:
        return None
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if not status.done:
        headers["Retry-After"] = _RETRY_AFTER
    return Response(None, HTTPStatus.NOT_MODIFIED, headers)


def body_of(status: JobStatus) -> bytes:
    """Write a job as JSON."""
    return to_json(status.to_dict())


def tag_of(body: bytes) -> str:
    """Give what differs wherever a body does, in quotes."""
    return f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'


def to_json(value: object) -> bytes:
    """Write a value as JSON, dataclasses and models of Pydantic as well.

    Raises:
        TypeError: Something in it is nothing that JSON can hold.
        ValueError: A number is not finite, or it contains itself.
        RecursionError: It is too deep.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    return text.encode("utf-8", "backslashreplace")


def _plain(value: Any) -> object:
    for name, options in (("model_dump", {"mode": "json"}), ("isoformat", {})):
        method = getattr(value, name, None)
        if method is not None:
            return method(**options)
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    raise TypeError(f"{type(value).__name__} is nothing that JSON can hold")


def result_answer(value: object) -> Response:
    """Answer with a result."""
    try:
        body = to_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise Problem(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            f"the result of the job cannot be written as JSON: {error}",
        ) from None
    return Response(body, HTTPStatus.OK, {"Cache-Control": "private"}, "application/json")


def wait_of_query(request: Request) -> float:
    """Give how many seconds the query asks to wait: ``?wait=30``."""
    given = request.query_params.get("wait")
    if given is None:
        return 0.0
    try:
        seconds = float(given) if re.fullmatch(r"[0-9.eE+-]{1,50}", given) else -1.0
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, "wait must be a number of seconds, 0 or more"
        )
    return min(seconds, LONGEST_WAIT)


def wait_preferred(request: Request) -> float:
    """Give how many seconds the client prefers to wait, RFC 7240: ``Prefer: wait=5``."""
    for each in ",".join(request.headers.getlist("prefer")).split(","):
        found = re.fullmatch(r'\s*wait\s*=\s*"?([0-9]{1,9})"?\s*(;.*)?', each, re.IGNORECASE)
        if found:
            return min(float(found[1]), LONGEST_WAIT)
    return 0.0


async def read_object(request: Request) -> dict[str, Any]:
    """Read the body of a request, an object of JSON.

    Raises:
        Problem: It is something else, or too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which no form of another site can send
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json")
    body = b""
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > LARGEST_BODY:
                raise Problem(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"the body must have at most {LARGEST_BODY} bytes",
                )
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(HTTPStatus.BAD_REQUEST, "the body must be valid JSON") from None
    if not isinstance(value, dict):
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "the body must be an object")
    return cast("dict[str, Any]", value)
