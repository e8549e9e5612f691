"""The routes: of Starlette, and a router of FastAPI that documents them."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request  # noqa: TC002 (FastAPI reads the annotations)
from starlette.responses import Response  # noqa: TC002 (the same)
from starlette.routing import Route

from creche import WorkerError
from creche.jobs import Jobs, StoreError

from ._access import Access
from ._documented import documentation
from ._jobs import JobEndpoints
from ._page import PageEndpoints
from ._problems import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from fastapi import APIRouter

    from ._access import Authorize, Owner

    Endpoint = Callable[[Request], Awaitable[Response]]


_METHODS = ("DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE")


class Call(NamedTuple):
    """What is asked at a path, by a method."""

    method: str
    path: str
    name: str
    endpoint: Endpoint


def routes(
    jobs: Jobs,
    *,
    prefix: str = "/jobs",
    authorize: Authorize | None = None,
    owner: Owner | None = None,
    page: bool = False,
) -> list[Route]:
    """Make the routes of jobs for Starlette: ``Starlette(routes=[..., *routes(jobs)])``.

    The id of a job is what lets a client access it. Whoever has it may read, cancel and answer,
    unless the program says otherwise.

    Args:
        jobs: The jobs.
        prefix: The path below which all routes are.
        authorize: Called with the request, the action, and the status of the job if it is
            about one; returns whether that is allowed, or raises an ``HTTPException``. It may be
            async. Actions are ``"read"``, ``"cancel"``, ``"answer"``, ``"list"``; for the
            page, ``"watch"`` and ``"cancel_worker"``, which is not allowed without this.
        owner: Called with the request; returns who makes it, as a string, or ``None``. It may be
            async, or raise an ``HTTPException``. With it, callers can list their own jobs, and
            the jobs of others are unknown to them.
        page: Whether there is a page, at ``{prefix}/page``, that shows all workers of the tree.

    Returns:
        The routes.

    Raises:
        WorkerError: An argument is invalid.

    Threads:
        Any thread.
    """
    made: list[Route] = []
    for path, found, refuse, others in _by_path(calls(jobs, prefix, authorize, owner, page)):
        made += [
            Route(path, each.endpoint, methods=[each.method], name=each.name) for each in found
        ]
        made.append(Route(path, refuse, methods=others, name="creche_refused"))
    return made


def router(
    jobs: Jobs,
    *,
    prefix: str = "/jobs",
    authorize: Authorize | None = None,
    owner: Owner | None = None,
    page: bool = False,
) -> APIRouter:
    """Make a FastAPI router with the same routes: ``app.include_router(router(jobs))``.

    The routes are in the OpenAPI document, with their models. ``include_router()`` takes its usual
    arguments, such as dependencies.

    Args:
        jobs: The jobs.
        prefix: As for ``routes()``, and so are the others.
        authorize: Returns whether a request is allowed.
        owner: Returns who makes a request.
        page: Whether there is a page.

    Returns:
        The router.

    Raises:
        ImportError: FastAPI is not installed.
        WorkerError: An argument is invalid.

    Threads:
        Any thread.
    """
    try:
        from fastapi import APIRouter  # noqa: PLC0415 (it is needed here alone)
    except ImportError:
        raise ImportError("router() needs FastAPI: pip install fastapi; or use routes()") from None
    made = APIRouter()
    for path, found, refuse, others in _by_path(calls(jobs, prefix, authorize, owner, page)):
        for each in found:
            told = documentation(each.method, path.removeprefix(prefix))
            methods = [each.method]
            made.add_api_route(path, each.endpoint, methods=methods, name=each.name, **told)
        made.add_route(path, refuse, methods=others, include_in_schema=False)
    return made


def calls(
    jobs: Jobs, prefix: str, authorize: Authorize | None, owner: Owner | None, page: bool
) -> list[Call]:
    """Give all that may be asked."""
    if not isinstance(jobs, Jobs):
        raise WorkerError(f"routes are for Jobs, not {jobs!r:.100}")
    if not isinstance(prefix, str) or not prefix.startswith("/") or prefix.endswith("/"):
        raise WorkerError(
            f"prefix must be a path with a slash before and none behind, not {prefix!r:.100}"
        )
    for name, given in (("authorize", authorize), ("owner", owner)):
        if given is not None and not callable(given):
            raise WorkerError(f"{name} must be a function of the request, not {given!r:.100}")
    access = Access(jobs, authorize, owner)
    of_jobs = JobEndpoints(access)
    found = [
        ("GET", "", "creche_jobs", of_jobs.list),
        ("GET", "/{job_id}", "creche_job", of_jobs.get),
        ("DELETE", "/{job_id}", "creche_cancel", of_jobs.cancel),
        ("GET", "/{job_id}/result", "creche_result", of_jobs.result),
        ("GET", "/{job_id}/events", "creche_events", of_jobs.events),
        ("POST", "/{job_id}/answers", "creche_answer", of_jobs.answer),
    ]
    if page:
        of_page = PageEndpoints(access)
        found[:0] = [
            ("GET", "/page", "creche_page", of_page.page),
            ("GET", "/tree", "creche_tree", of_page.tree),
            ("GET", "/tree/events", "creche_tree_events", of_page.events),
            ("POST", "/workers/{number}/cancel", "creche_cancel_worker", of_page.cancel),
        ]
    return [Call(method, prefix + path, name, _guarded(call)) for method, path, name, call in found]


def _by_path(found: list[Call]) -> Iterator[tuple[str, list[Call], Endpoint, list[str]]]:
    """Give the calls of each path, and what answers its other methods: says which there are."""
    paths: dict[str, list[Call]] = {}
    for call in found:
        paths.setdefault(call.path, []).append(call)
    for path, of_path in paths.items():
        allowed = [call.method for call in of_path]
        others = [each for each in _METHODS if each not in allowed]
        yield path, of_path, _refuse(", ".join(allowed)), others


def _refuse(allowed: str) -> Endpoint:
    async def refuse(request: Request) -> Response:
        detail = f"{request.method} is not allowed here; there is {allowed}"
        return Problem(HTTPStatus.METHOD_NOT_ALLOWED, detail, {"Allow": allowed}).answer()

    return refuse


def _guarded(endpoint: Endpoint) -> Endpoint:
    """Have what goes wrong answered as a problem."""

    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Problem as problem:
            return problem.answer()
        except HTTPException as error:  # of the program's own functions
            return Problem(error.status_code, str(error.detail), error.headers).answer()
        except StoreError as error:
            return Problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error)).answer()

    return guarded
