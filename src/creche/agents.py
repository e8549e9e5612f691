"""Background jobs as tools for an agent: five functions that work with any agent framework.

An agent waits while one of its tools runs. With these tools, it starts jobs, does something else,
checks their progress, waits for whichever ends first, and cancels those that it no longer needs.
"""

from __future__ import annotations

import inspect
import json
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import anyio

from creche import WorkerError
from creche.jobs import Job, JobExpired, Jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from creche.jobs import JobOptions, JobStatus

    Tool: TypeAlias = Callable[..., Coroutine[Any, Any, dict[str, Any]]]

KindT = TypeVar("KindT", bound="Callable[..., Any]")


class JobTools:
    """Tools with which an agent starts, checks, awaits and cancels jobs.

    Declare what the agent may start with ``@tools.kind``, and pass ``tools.functions()`` to the
    framework: ``start``, ``status``, ``wait``, ``cancel`` and ``list``. They return plain data, and
    for a mistake of the model, instead of an exception, ``{"error": ...}`` that says what to do.

    Args:
        jobs: Runs the jobs.
        owner: The owner of the jobs. The tools see no other jobs, so give each agent its own owner.
        limit: How many jobs may run at once; the others are queued.
        most: How many jobs may be unfinished at once; ``start()`` refuses more.
        group: The node's group that the limit applies to. Agents with the same group share it.

    Raises:
        WorkerError: An argument is invalid.
    """

    def __init__(
        self,
        jobs: Jobs,
        *,
        owner: str = "agent",
        limit: int = 4,
        most: int = 100,
        group: str = "agents",
    ) -> None:
        if not isinstance(jobs, Jobs):
            raise WorkerError(f"JobTools() takes Jobs, not {jobs!r:.100}")
        if not isinstance(owner, str) or not owner:
            raise WorkerError(f"owner must be a str that is not empty, not {owner!r:.100}")
        if not isinstance(most, int) or most < 1:
            raise WorkerError(f"most must be a number of jobs, 1 or more, not {most!r:.100}")
        jobs.node.group(group, limit=limit)
        self.jobs = jobs
        """The ``Jobs`` that run the jobs."""
        self.owner = owner
        """The owner of the jobs."""
        self._most = most
        self._group = group
        self._kinds: dict[str, Callable[..., Any]] = {}

    def kind(self, fn: KindT) -> KindT:
        """Declare a function as a kind of job. The model sees its name and its docstring.

        An async function runs in the event loop, a plain one in a thread. ``get_current_worker()``
        and ``creche.jobs.ask()`` work as in any job. Return values that can be written as JSON; for
        other values, the model gets ``str(value)``.

        Raises:
            WorkerError: There is already a kind with that name; or the function has no name.
        """
        name = getattr(fn, "__name__", "")
        if not callable(fn) or not name.isidentifier():
            raise WorkerError(f"a kind of job must be a function with a name, not {fn!r:.100}")
        if name in self._kinds:
            raise WorkerError(f"there is a kind {name!r} already; give the function another name")
        self._kinds[name] = fn
        return fn

    def functions(self, prefix: str = "") -> list[Tool]:
        """Return the five tools. Declare the kinds first: the docstring of ``start()`` lists them.

        Args:
            prefix: A prefix for their names, such as ``"job_"``, for frameworks that have other
                tools with these names.
        """

        async def start(kind: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
            return await self._tell(self._start(kind, arguments or {}))

        async def status(id: str) -> dict[str, Any]:  # noqa: A002 (models know it by that name)
            """Get the status of a job, its progress, and its result once it has ended.

            The status is queued, running, input_required (it is waiting for a person's answer),
            succeeded, failed, cancelled or interrupted.

            Args:
                id: The id that start gave.
            """
            return await self._tell(self._find(id))

        async def wait(
            ids: list[str],
            until: Literal["all", "any"] = "all",
            timeout: float = 60,  # noqa: ASYNC109 (a model has no other way to say it)
        ) -> dict[str, Any]:
            """Wait for jobs, and get the status of each. Better than calling status repeatedly.

            Args:
                ids: The ids that start gave.
                until: "all" waits until all of them have ended, "any" until one has.
                timeout: The longest time to wait, in seconds. The jobs keep running after that.
            """
            jobs = [self._find(each) for each in ids]
            fault = await _wait([job for job in jobs if isinstance(job, Job)], until, timeout)
            return fault or {"jobs": [await self._tell(job) for job in jobs]}

        async def cancel(id: str, reason: str = "") -> dict[str, Any]:  # noqa: A002 (as above)
            """Cancel a job that is no longer needed. A job that has ended does not change.

            Args:
                id: The id that start gave.
                reason: Why, in a few words.
            """
            job = self._find(id)
            if isinstance(job, Job):
                job.cancel(reason or "the agent has cancelled it")
            return await self._tell(job)

        async def list_() -> dict[str, Any]:
            """List all jobs that were started, oldest first, without their results."""
            return {"jobs": [_brief(job.status) for job in self.jobs.list(owner=self.owner)]}

        start.__doc__ = _START.format(kinds="\n".join(map(_described, self._kinds.values())))
        tools: list[Tool] = [start, status, wait, cancel, list_]
        for tool in tools:
            tool.__name__ = tool.__qualname__ = prefix + tool.__name__.rstrip("_")
        return tools

    def _find(self, job_id: str) -> Job[Any] | str:
        job = self.jobs.get(job_id)
        if job is None or job.status.owner != self.owner:
            return f"there is no job {job_id!r:.100}; list shows all jobs"
        return job

    def _start(self, kind: str, arguments: dict[str, Any]) -> Job[Any] | str:
        fn = self._kinds.get(kind)
        if fn is None:
            return f"there is no kind {kind!r:.100}; the kinds are {', '.join(self._kinds)}"
        signature = inspect.signature(fn)
        try:
            signature.bind(**arguments)
        except TypeError as error:
            return f"{error}; call it as {kind}{signature}"
        if sum(not job.status.done for job in self.jobs.list(owner=self.owner)) >= self._most:
            return f"{self._most} jobs are unfinished; wait for some, or cancel some"
        options: JobOptions = {"group": self._group, "thread": not inspect.iscoroutinefunction(fn)}
        try:
            return self.jobs.submit(partial(fn, **arguments), kind, self.owner, **options)
        except WorkerError as error:  # the node is closing
            return str(error)

    async def _tell(self, job: Job[Any] | str) -> dict[str, Any]:
        if isinstance(job, str):  # what is wrong
            return {"error": job}
        told = _brief(job.status)
        try:
            if job.status.status == "succeeded":
                told["result"] = _plain(await job.result())
        except JobExpired as error:
            told["error"] = str(error)
        return told


async def _wait(jobs: Iterable[Job[Any]], until: str, seconds: float) -> dict[str, Any] | None:
    """Wait for jobs; return an error if that is not possible."""
    if until not in ("all", "any") or not 0 <= seconds <= 60 * 60:
        return {"error": 'until must be "all" or "any", timeout 0 to 3600 seconds'}
    with anyio.move_on_after(seconds) as scope:
        if until == "any":
            async with anyio.create_task_group() as tasks:
                for job in jobs:
                    tasks.start_soon(_wait_for_first, job, scope)
        else:
            try:
                for job in jobs:  # in this task: no deadlock is found of a wait in another
                    await job.join()
            except WorkerError as error:  # an agent that is a job itself would wait for ever
                return {"error": str(error)}
    return None


async def _wait_for_first(job: Job[Any], scope: anyio.CancelScope) -> None:
    await job.join()
    scope.cancel()


def _brief(status: JobStatus) -> dict[str, Any]:
    """Describe a job, without its result."""
    completed, total = status.progress.completed, status.progress.total
    facts = {
        "id": status.id,
        "kind": status.kind,
        "status": status.status,
        "doing": status.message,
        "progress": f"{completed} of {total}" if total else str(completed or ""),
        "asks": [each.question for each in status.questions],
        "error": status.error and f"{status.error.type}: {status.error.text}",
    }
    return {name: value for name, value in facts.items() if value}


def _plain(value: Any) -> Any:
    """Return the value if it can be written as JSON, else its text."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)
    return value


def _described(fn: Callable[..., Any]) -> str:
    """Describe a kind of job in one line, for the model."""
    purpose = inspect.cleandoc(fn.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    return f"- {fn.__name__}{inspect.signature(fn)}: {purpose}"


_START = """Start a job in the background, and return its id at once.

Use this for work that takes a while: start it, do other things, and get the result with wait.
Several jobs can run at the same time.

The kinds of jobs, with their arguments:

{kinds}

Args:
    kind: The name of one of these kinds.
    arguments: The arguments of that kind, by name.
"""
