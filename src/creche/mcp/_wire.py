"""The messages on the wire: the requests of the extension and their results.

The server builds results as plain dictionaries, because ``ttlMs`` must be present even if null.
"""

from __future__ import annotations

from typing import Any, Literal

from mcp_types import CallToolResult, ErrorData, InputRequest, Request, RequestParams, Result
from pydantic import Field

EXTENSION = "io.modelcontextprotocol/tasks"
VERSIONS = frozenset({"2026-07-28"})
"""The revisions of the protocol that support the extension."""


class TaskParams(RequestParams):
    """The parameters of ``tasks/get`` and ``tasks/cancel``."""

    task_id: str


class UpdateParams(TaskParams):
    """The parameters of ``tasks/update``."""

    input_responses: dict[str, Any]


class TaskRequest(Request[UpdateParams | TaskParams, str]):
    """A request about a task; the SDK puts the task's id into the header ``Mcp-Name``."""

    name_param = "taskId"


class Task(Result):
    """The fields that every task has."""

    task_id: str
    status: Literal["working", "input_required", "completed", "cancelled", "failed"]
    status_message: str | None = None
    created_at: str
    last_updated_at: str
    ttl_ms: int | None = None
    poll_interval_ms: int | None = None


class CreatedTask(Task):
    """The server's answer to a tool call that became a task."""

    result_type: Literal["task"] = "task"


class TaskStatus(Task):
    """The status of a task, with its questions, its result or its error if it has them."""

    result_type: Literal["complete"] = "complete"
    input_requests: dict[str, InputRequest] = Field(default_factory=dict)
    result: CallToolResult | None = None
    error: ErrorData | None = None
