"""What is asked about jobs, and the answers."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import anyio
from sse_starlette import EventSourceResponse
from starlette.responses import Response

from creche import WorkerError
from creche.jobs import JobCancelled, JobError, JobExpired, JobFailed

from ._answers import (
    body_of,
    job_answer,
    not_modified,
    read_object,
    result_answer,
    tag_of,
    to_json,
    wait_of_query,
    wait_preferred,
)
from ._closing import PATIENCE, closing_of
from ._problems import Problem, unknown_job

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request

    from creche.jobs import Job

    from ._access import Access
    from ._closing import Closing

INTERVAL = 0.25
"""Seconds from one event of a stream to the next, at least; the end comes at once."""
_END = "end"


class JobEndpoints:
    """The answers to requests about jobs."""

    def __init__(self, access: Access) -> None:
        self._access = access

    @property
    def _closing(self) -> Closing:
        return closing_of(self._access.jobs.node)

    async def get(self, request: Request) -> Response:
        """Answer with the job; with ``?wait=`` once it has ended, or is news to the client."""
        job = await self._access.find(request, "read")
        await self._wait(job, request, wait_of_query(request))
        status = job.status
        return not_modified(request, status) or job_answer(status)

    async def _wait(self, job: Job[Any], request: Request, seconds: float) -> None:
        with self._closing.wait(), anyio.move_on_after(seconds):
            if "if-none-match" not in request.headers:
                await job.join()
                return
            async for status in job.watch():
                if not_modified(request, status) is None:
                    return

    async def result(self, request: Request) -> Response:
        """Answer with what the work returned."""
        job = await self._access.find(request, "read")
        if not job.status.done:
            headers = {"Retry-After": "1"}
            raise Problem(HTTPStatus.CONFLICT, "the job has not ended yet", headers)
        try:
            return result_answer(await job.result())
        except JobFailed as failed:
            error = failed.status.error
            assert error is not None
            text = f"{error.type}: {error.text}" if error.text else error.type
            raise Problem(
                HTTPStatus.INTERNAL_SERVER_ERROR, f"the job failed: {text}", error=error.type
            ) from None
        except JobCancelled:
            raise Problem(HTTPStatus.GONE, "the job was cancelled, so it has no result") from None
        except JobExpired:
            raise Problem(HTTPStatus.GONE, "the result is not kept any more") from None
        except JobError:
            raise Problem(
                HTTPStatus.GONE, "the job was interrupted by the end of its program; start it again"
            ) from None

    async def cancel(self, request: Request) -> Response:
        """Cancel the job; once it has ended, forget it."""
        job = await self._access.find(request, "cancel")
        if job.status.done:
            if not self._access.jobs.remove(job.id):
                raise unknown_job()  # only a store knows it, which another process fills
            return job_answer(job.status)
        job.cancel("by a request")
        status = job.status
        return job_answer(status, HTTPStatus.OK if status.done else HTTPStatus.ACCEPTED)

    async def answer(self, request: Request) -> Response:
        """Give the work of the job an answer."""
        job = await self._access.find(request, "answer")
        given = await read_object(request)
        if set(given) != {"key", "value"} or not isinstance(given["key"], str):
            raise Problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                'the body must be an object with "key", a text, and "value", and nothing else',
            )
        try:
            job.answer(given["key"], given["value"])
        except WorkerError as error:
            raise Problem(HTTPStatus.CONFLICT, str(error)) from None
        return job_answer(job.status)

    async def list(self, request: Request) -> Response:
        """Answer with the jobs of who asks, the newest first."""
        access = self._access
        if access.owner is None:
            raise Problem(
                HTTPStatus.NOT_FOUND,
                "there is no list of jobs: this program does not say who asks, and a list of all "
                "would show everybody the jobs of others",
            )
        who = await access.who(request)
        await access.check(request, "list")
        if who is None:
            raise Problem(HTTPStatus.UNAUTHORIZED, "it is not known who you are")
        jobs = access.jobs.list(owner=who)
        body = to_json({"jobs": [job.status.to_dict() for job in reversed(jobs)]})
        return Response(
            body, HTTPStatus.OK, {"Cache-Control": "private, no-cache"}, "application/json"
        )

    async def events(self, request: Request) -> Response:
        """Answer with a stream of how the job stands, to its end."""
        job = await self._access.find(request, "read")
        if job.status.done and request.headers.get("last-event-id") == _END:
            # It has heard the end, and asks again as browsers do: this has them stop.
            return Response(None, HTTPStatus.NO_CONTENT)
        return EventSourceResponse(
            _follow(job, self._closing), sep="\n", shutdown_grace_period=PATIENCE
        )


async def _follow(job: Job[Any], closing: Closing) -> AsyncGenerator[dict[str, str]]:
    watch = job.watch()
    status = None
    while status is None or not status.done:
        with closing.wait() as scope:
            if status is not None:
                with anyio.move_on_after(INTERVAL):
                    await job.join()
            status = await anext(watch)
        if scope.cancelled_caught:
            return  # the client comes again, and is told then
        body = body_of(status)
        yield {"event": "job", "id": tag_of(body).strip('"'), "data": body.decode()}
    yield {"event": _END, "id": _END, "data": "{}"}


async def accepted(job: Job[Any], request: Request, location: str | None = None) -> Response:
    """Answer a request that has started a job; await it, and return what it gives.

    The answer is 202 with the job, where to find it (``Location``) and when to ask again
    (``Retry-After``). A client that prefers to wait (``Prefer: wait=5``) is answered once the job
    has ended, with 200, or after that many seconds, at most a minute.

    If this call is cancelled while it waits, the job goes on.

    Args:
        job: The job, as ``Jobs.submit()`` gave it.
        request: The request.
        location: Where the job is found; by default where the routes of ``routes()`` are. To be
            given where there are several of them in one application.

    Returns:
        The answer.

    Raises:
        NoMatchFound: The application has no such routes.

    Checkpoint:
        If the client prefers to wait.

    Threads:
        The node's event loop only.
    """
    if location is None:
        location = request.url_for("creche_job", job_id=job.id).path
    seconds = wait_preferred(request)
    headers = {"Location": location}
    if seconds:
        headers["Preference-Applied"] = f"wait={seconds:g}"
        node = None if job.worker is None else job.worker.node
        with anyio.move_on_after(seconds):
            if node is not None:
                with closing_of(node).wait():
                    await job.join()
    status = job.status
    return job_answer(status, HTTPStatus.OK if status.done else HTTPStatus.ACCEPTED, headers)
