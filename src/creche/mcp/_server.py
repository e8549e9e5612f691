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
from typing import TYPE_CHECKING, Any, TypeVar
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

from ._wire import EXTENSION, VERSIONS, TaskParams, UpdateParams, answer_of, form_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

    from creche import Worker
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
        # The questions are kept, by their ids, so that no other is given the same id.
        self._asked: WeakKeyDictionary[Job[Any], dict[int, tuple[str, Question]]]
        self._asked = WeakKeyDictionary()

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
        _, required, options = self._tools[params.name]
        is_task = ctx.protocol_version in VERSIONS and _has(ctx, TASKS)
        if required and not is_task:
            raise _missing(TASKS)
        begun = anyio.Event()
        _begun.set(begun)  # the job's context is a copy of this one
        owner = authenticated_principal(ctx)
        job = self.jobs.submit(partial(call_next, ctx), params.name, owner, **options)
        worker = job.worker
        if worker is not None:
            worker.add_done_callback(partial(self._note_end, job, begun))
        try:
            if not is_task:
                async for status in job.watch():
                    if status.questions:
                        raise _missing(TASKS)
            elif worker is not None and not worker.is_queued:
                await begun.wait()
        except BaseException:
            job.cancel("the request has ended")
            raise
        if is_task and not job.status.done:
            return {"resultType": "task", **self._task(job.status)}
        return await self._result(job)

    def _note_end(self, job: Job[Any], begun: anyio.Event, worker: Worker[Any]) -> None:
        begun.set()
        if isinstance(worker.error, MCPError):
            self._errors[job] = worker.error.error

    async def _get(self, ctx: Context, params: TaskParams) -> HandlerResult:
        job = self._find(ctx, params)
        status, task = job.status, self._task(job.status)
        if status.questions:
            if not _has(ctx, FORMS):
                raise _missing(FORMS)
            asked = self._questions(job, status)
            task["inputRequests"] = {key: form_of(each) for key, each in asked.items()}
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
        answers = [
            (each.key, answer_of(each, params.input_responses[key]))
            for key, each in self._questions(job, job.status).items()
            if key in params.input_responses  # what else there is, nobody asks or not any more
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
        if headers and decode_header_value(headers.get(MCP_NAME_HEADER)) != params.task_id:
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
        asked = self._asked.setdefault(job, {})
        for each in status.questions:
            asked.setdefault(id(each), (f"{each.key}-{len(asked)}", each))
        return dict(asked[id(each)] for each in status.questions)

    def _task(self, status: JobStatus) -> dict[str, Any]:
        """Return the fields that every task has."""
        lifetime = status.expires and status.expires - status.created
        completed, total = status.progress.completed, status.progress.total
        steps = f"{completed} of {total} ({status.progress.percent:.0f} %)" if total else ""
        return {
            "taskId": status.id,
            "status": STATUSES.get(status.status, status.status),
            "statusMessage": ", ".join(filter(None, (status.message, steps))) or status.status,
            "createdAt": status.created.isoformat(),
            "lastUpdatedAt": status.updated.isoformat(),
            "ttlMs": lifetime and math.ceil(lifetime.total_seconds() * 1000),
            "pollIntervalMs": self._interval,
        }

    async def _result(self, job: Job[Any]) -> mcp_types.CallToolResult:
        """Return the result of an ended job; of its errors, the client may see only an MCPError."""
        try:
            result: mcp_types.CallToolResult = await job.result()
        except JobError as error:
            code = mcp_types.INTERNAL_ERROR
            text = f"the tool gave no result; the state of its job is {error.status.status!r}"
            data = self._errors.get(job, mcp_types.ErrorData(code=code, message=text))
            raise MCPError.from_error_data(data) from None
        return result


def _has(ctx: Context, needed: dict[str, Any]) -> bool:
    return ctx.session.check_client_capability(mcp_types.ClientCapabilities(**needed))


def _missing(needed: dict[str, Any]) -> MCPError:
    text = f"the client has to have the capability {needed}"
    data = {"requiredCapabilities": needed}
    return MCPError(mcp_types.MISSING_REQUIRED_CLIENT_CAPABILITY, text, data)
