"""Who may do what: the program says so."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ._problems import Problem, unknown_job

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from creche.jobs import Job, Jobs, JobStatus

Action: TypeAlias = Literal["read", "cancel", "answer", "list", "watch", "cancel_worker"]
"""What a request wants to do: with a job, the list of the caller's jobs, or workers on the page."""

Authorize: TypeAlias = "Callable[[Request, Action, JobStatus | None], bool | Awaitable[bool]]"
"""Tells whether a request is allowed; may raise an ``HTTPException`` instead."""

Owner: TypeAlias = "Callable[[Request], str | Awaitable[str | None] | None]"
"""Tells who makes a request; ``None`` for nobody that is known."""


@dataclass(frozen=True)
class Access:
    """Looks for jobs, and says whether a request may do something.

    Args:
        jobs: The jobs.
        authorize: What the program says, if it does.
        owner: Who makes a request, if the program knows.
    """

    jobs: Jobs
    authorize: Authorize | None
    owner: Owner | None

    async def find(self, request: Request, action: Action) -> Job[Any]:
        """Give the job of a request.

        Raises:
            Problem: There is none, it belongs to somebody else, or this is not allowed.
        """
        job = self.jobs.get(request.path_params["job_id"])
        if job is None:
            raise unknown_job()
        status = job.status
        # Whose job it is, is not told to others, nor that there is one.
        if self.owner is not None and status.owner != await self.who(request):
            raise unknown_job()
        await self.check(request, action, status)
        return job

    async def who(self, request: Request) -> str | None:
        """Tell who makes a request."""
        assert self.owner is not None
        told = self.owner(request)
        return await told if inspect.isawaitable(told) else told

    async def check(
        self, request: Request, action: Action, status: JobStatus | None = None
    ) -> None:
        """Make sure that a request is allowed.

        Raises:
            Problem: It is not.
        """
        if not await self.allows(request, action, status):
            raise Problem(HTTPStatus.FORBIDDEN, f"you are not allowed to do this: {action}")

    async def allows(
        self, request: Request, action: Action, status: JobStatus | None = None
    ) -> bool:
        """Tell whether a request is allowed; without a word of the program, all that needs an id.

        The page is read-only then.
        """
        if self.authorize is None:
            return action != "cancel_worker"
        told = self.authorize(request, action, status)
        return bool(await told if inspect.isawaitable(told) else told)
