"""The server side: runs tool calls as jobs, and presents each job to the client as a task.

The whole call is the job. The steps before the tool itself may end the call without a task: wrong
arguments give an error, and a resolver puts a question into the response and the client calls
again. So the client gets its response once the tool's function has started or the job has ended.
"""

from __future__ import annotations

import inspect
import math
from contextvars import ContextVar
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary

import anyio
import mcp_types
from anyio import to_thread
from mcp.server.extension import Extension, MethodBinding, ToolBinding
from mcp.server.mcpserver import authenticated_principal
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value

from creche import WorkerError
from creche.jobs import JobError, Jobs

from ._forms import answer_of, form_of
from ._wire import EXTENSION, VERSIONS, TaskParams, UpdateParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

    from creche.jobs import Job, JobOptions, JobStatus, Question

    Context = ServerRequestContext[Any, Any]

ToolT = TypeVar("ToolT", bound="Callable[..., Any]")

TASKS: dict[str, Any] = {"extensions": {EXTENSION: {}}}
FORMS: dict[str, Any] = {"elicitation": {}}
# The status of a task by that of its job, where they differ.
STATUSES = {"queued": "working", "running": "working", "succeeded": "completed"}

_begun: ContextVar[anyio.Event | None] = ContextVar("_begun", default=None)


def _announced(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a tool's function to signal when it starts; a plain function runs in a thread."""
    is_async = any(map(inspect.iscoroutinefunction, (fn, type(fn).__call__)))

    @wraps(fn)
    async def announced(*args: Any, **kwargs: Any) -> Any:
        begun = _begun.get()
        if begun is not None:
            begun.set()
        call = partial(fn, *args, **kwargs)
        return await call() if is_async else await to_thread.run_sync(call)

    return announced


class Tasks(Extension):
    """An extension for ``MCPServer``: calls of its tools become tasks.

    Each call runs as a job of ``jobs``. A tool reports progress through ``get_current_worker()``,
    and asks the client's user with ``creche.jobs.ask()``. A plain function runs in a thread.

    Declare the tools first, then create the server: ``MCPServer(..., extensions=[tasks])``.

    Args:
        jobs: Runs the calls, and sets how long they are kept. Its node must be open before the
            first call.
        poll_interval: Seconds that a client should wait between two requests for the status.

    Raises:
        WorkerError: An argument is invalid.
    """

    identifier = EXTENSION

    def __init__(self, jobs: Jobs, *, poll_interval: float = 1.0) -> None:
        if not isinstance(jobs, Jobs):
            raise WorkerError(f"Tasks() takes Jobs, not {jobs!r:.100}")
        if not isinstance(poll_interval, int | float) or not 0 < poll_interval < math.inf:
            raise WorkerError(
                f"poll_interval must be a positive number of seconds, not {poll_interval!r:.100}"
            )
        self.jobs = jobs
        """The ``Jobs`` that run the calls."""
        self._interval = math.ceil(poll_interval * 1000)
        self._is_taken = False
        self._tools: dict[str, tuple[ToolBinding, bool, JobOptions]] = {}
        self._errors: WeakKeyDictionary[Job[Any], mcp_types.ErrorData] = WeakKeyDictionary()
        self._asked: WeakKeyDictionary[Job[Any], list[Question]] = WeakKeyDictionary()

    def tool(
        self, *, required: bool = False, options: JobOptions | None = None, **kwargs: Any
    ) -> Callable[[ToolT], ToolT]:
        """Declare a tool whose calls become tasks.

        A client without the extension gets a response when the tool has ended, or the error
        -32021 if the tool asks a question or ``required`` is set.

        Args:
            required: Whether clients need the extension to call the tool.
            options: Options for ``jobs.submit()``, such as ``{"group": "imports"}``.
            kwargs: Arguments of ``MCPServer.tool()``: ``name``, ``title``, ``description`` ...

        Raises:
            WorkerError: There is already a tool with that name; or a server has already been
                created with the tools; or ``options`` contains ``thread``.
        """

        def declare(fn: ToolT) -> ToolT:
            name = str(kwargs.get("name") or getattr(fn, "__name__", ""))
            if name in self._tools:
                raise WorkerError(f"there is a tool {name!r} already; give the other one a name=")
            if options and "thread" in options:
                raise WorkerError(f"a plain tool runs in a thread anyway; no thread= for {name!r}")
            if self._is_taken:
                raise WorkerError(f"declare the tool {name!r} before the server is made")
            binding = ToolBinding(_announced(fn), kwargs=kwargs)
            self._tools[name] = (binding, required, options or {})
            return fn

        return declare

    def tools(self) -> Sequence[ToolBinding]:
        """Return the tools; the server calls this."""
        self._is_taken = True
        return [binding for binding, *_ in self._tools.values()]

    def methods(self) -> Sequence[MethodBinding]:
        """Return the methods of the extension; the server calls this."""
        return [
            MethodBinding("tasks/get", TaskParams, self._get, VERSIONS),
            MethodBinding("tasks/update", UpdateParams, self._update, VERSIONS),
            MethodBinding("tasks/cancel", TaskParams, self._cancel, VERSIONS),
        ]

    async def intercept_tool_call(
        self, params: mcp_types.CallToolRequestParams, ctx: Context, call_next: CallNext
    ) -> HandlerResult:
        """Run a call as a job, and return the task once the tool has started."""
        if params.name not in self._tools:
            return await call_next(ctx)
        is_task = ctx.protocol_version in VERSIONS and _has(ctx, TASKS)
        if self._tools[params.name][1] and not is_task:
            raise _missing(TASKS)
        begun = anyio.Event()
        job = self._submit(params.name, ctx, call_next, begun)
        is_told = False
        try:
            if is_task:
                if job.worker is not None and not job.worker.is_queued:
                    job.worker.add_done_callback(lambda _: begun.set())
                    await begun.wait()
                is_told = not job.status.done
                if is_told:
                    return {"resultType": "task", **self._task(job.status)}
            else:
                async for status in job.watch():
                    if status.questions:
                        raise _missing(TASKS)
            return await self._result(job)
        finally:
            if not is_told:
                job.cancel("the request has ended")

    def _submit(
        self, name: str, ctx: Context, call_next: CallNext, begun: anyio.Event
    ) -> Job[HandlerResult]:
        async def run() -> HandlerResult:
            _begun.set(begun)
            try:
                return await call_next(ctx)
            except MCPError as error:
                self._errors[job] = error.error
                raise

        options = self._tools[name][2]
        job = self.jobs.submit(run, name, authenticated_principal(ctx), **options)
        return job

    async def _get(self, ctx: Context, params: TaskParams) -> HandlerResult:
        job = self._find(ctx, params)
        status, task = job.status, self._task(job.status)
        if status.questions:
            if not _has(ctx, FORMS):
                raise _missing(FORMS)
            questions = self._questions(job, status)
            task["inputRequests"] = {key: form_of(each) for key, each in questions.items()}
        elif status.done and status.status != "cancelled":
            try:
                result = await self._result(job)
                task["result"] = result.model_dump(by_alias=True, mode="json", exclude_none=True)
            except MCPError as error:
                task |= {"status": "failed", "statusMessage": error.message}
                task["error"] = error.error.model_dump(mode="json", exclude_none=True)
        return task

    async def _update(self, ctx: Context, params: UpdateParams) -> HandlerResult:
        job = self._find(ctx, params)
        questions = self._questions(job, job.status)
        answers = [
            (questions[key].key, answer_of(questions[key], response))
            for key, response in params.input_responses.items()
            if key in questions  # others are answered already, or were never asked
        ]
        for key, answer in answers:
            job.answer(key, answer)
        return {}

    async def _cancel(self, ctx: Context, params: TaskParams) -> HandlerResult:
        self._find(ctx, params).cancel("the client has cancelled the task")
        return {}

    def _find(self, ctx: Context, params: TaskParams) -> Job[Any]:
        """Return the job of a task that this client may see."""
        if not _has(ctx, TASKS):
            raise _missing(TASKS)
        headers = getattr(ctx.request, "headers", None)
        named = headers and decode_header_value(headers.get(MCP_NAME_HEADER))
        if headers and named != params.task_id:
            text = f"the header {MCP_NAME_HEADER} is not the taskId"
            raise MCPError(mcp_types.HEADER_MISMATCH, text)
        job = self.jobs.get(params.task_id)
        if (
            job is None
            or job.status.kind not in self._tools  # a job of another part of the program
            or job.status.owner != authenticated_principal(ctx)
        ):
            text = "there is no such task; it may have expired"
            raise MCPError(mcp_types.INVALID_PARAMS, text)
        return job

    def _questions(self, job: Job[Any], status: JobStatus) -> dict[str, Question]:
        """Return the open questions by keys that are unique within the job.

        A tool may ask twice with the same key, but a client takes each key for one question.
        """
        asked = self._asked.setdefault(job, [])
        known = set(map(id, asked))
        asked += [each for each in status.questions if id(each) not in known]
        now = set(map(id, status.questions))
        return {f"{each.key}-{n}": each for n, each in enumerate(asked, 1) if id(each) in now}

    def _task(self, status: JobStatus) -> dict[str, Any]:
        """Return the fields that every task has."""
        lifetime = status.expires and status.expires - status.created
        return {
            "taskId": status.id,
            "status": STATUSES.get(status.status, status.status),
            "statusMessage": _message(status),
            "createdAt": status.created.isoformat(),
            "lastUpdatedAt": status.updated.isoformat(),
            "ttlMs": lifetime and math.ceil(lifetime.total_seconds() * 1000),
            "pollIntervalMs": self._interval,
        }

    async def _result(self, job: Job[Any]) -> mcp_types.CallToolResult:
        """Return the result of an ended job; of its errors, the client may see only an MCPError."""
        try:
            return cast("mcp_types.CallToolResult", await job.result())
        except JobError as error:
            default = mcp_types.ErrorData(
                code=mcp_types.INTERNAL_ERROR, message=f"the tool was {error.status.status}"
            )
            raise MCPError.from_error_data(self._errors.get(job, default)) from None


def _has(ctx: Context, needed: dict[str, Any]) -> bool:
    return ctx.session.check_client_capability(mcp_types.ClientCapabilities(**needed))


def _missing(needed: dict[str, Any]) -> MCPError:
    text = f"the client has to have the capability {needed}"
    data = {"requiredCapabilities": needed}
    return MCPError(mcp_types.MISSING_REQUIRED_CLIENT_CAPABILITY, text, data)


def _message(status: JobStatus) -> str:
    """Describe a job in one line, with the worker's description and progress."""
    completed, total = status.progress.completed, status.progress.total
    steps = f"{completed} of {total} ({status.progress.percent:.0f} %)" if total else ""
    return ", ".join(filter(None, (status.message, steps))) or status.status
