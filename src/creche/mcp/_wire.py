"""What goes over the wire: the requests of the extension and their results.

The server makes plain dictionaries for results, as ``ttlMs`` has to be there when it is null.
"""

from __future__ import annotations

from typing import Any, Literal

from mcp_types import CallToolResult, ErrorData, InputRequest, Request, RequestParams, Result
from pydantic import Field

EXTENSION = "io.modelcontextprotocol/tasks"
VERSIONS = frozenset({"2026-07-28"})
"""The revisions of the protocol that have the extension."""


class TaskParams(RequestParams):
    """The parameters of ``tasks/get`` and ``tasks/cancel``."""

    task_id: str


class UpdateParams(TaskParams):
    """The parameters of ``tasks/update``."""

    input_responses: dict[str, Any]


class TaskRequest(Request[UpdateParams | TaskParams, str]):
    """Any request about a task; the SDK puts its id into the header ``Mcp-Name``."""

    name_param = "taskId"


class Task(Result):
    """What is told of every task."""

    task_id: str
    status: Literal["working", "input_required", "completed", "cancelled", "failed"]
    status_message: str | None = None
    created_at: str
    last_updated_at: str
    ttl_ms: int | None = None
    poll_interval_ms: int | None = None


class CreatedTask(Task):
    """A server's answer to a call of a tool that became a task."""

    result_type: Literal["task"] = "task"


class TaskStatus(Task):
    """How a task is: with its questions, its result or its error, where its status has one."""

    result_type: Literal["complete"] = "complete"
    input_requests: dict[str, InputRequest] = Field(default_factory=dict)
    result: CallToolResult | None = None
    error: ErrorData | None = None
