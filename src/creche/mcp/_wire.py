"""The messages on the wire: requests and results of the extension, and questions as forms.

The server builds results as plain dictionaries, because ``ttlMs`` must be present even if null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import mcp_types
from mcp.shared.exceptions import MCPError
from pydantic import Field, ValidationError

if TYPE_CHECKING:
    from creche.jobs import Question

EXTENSION = "io.modelcontextprotocol/tasks"
VERSIONS = frozenset({"2026-07-28"})
"""The revisions of the protocol that support the extension."""


class TaskParams(mcp_types.RequestParams):
    """The parameters of ``tasks/get`` and ``tasks/cancel``."""

    task_id: str


class UpdateParams(TaskParams):
    """The parameters of ``tasks/update``."""

    input_responses: dict[str, Any]


class TaskRequest(mcp_types.Request[UpdateParams | TaskParams, str]):
    """A request about a task; the SDK puts the task's id into the header ``Mcp-Name``."""

    name_param = "taskId"


class Task(mcp_types.Result):
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
    input_requests: dict[str, mcp_types.InputRequest] = Field(default_factory=dict)
    result: mcp_types.CallToolResult | None = None
    error: mcp_types.ErrorData | None = None


def form_of(question: Question) -> dict[str, Any]:
    """Turn a question into a form; a schema of another type than object becomes its only field."""
    key, schema = question.key, question.schema or {"type": "string"}
    if schema.get("type") != "object":
        schema = {"type": "object", "properties": {key: schema}, "required": [key]}
    params = {"mode": "form", "message": question.question, "requestedSchema": schema}
    return {"method": "elicitation/create", "params": params}


def answer_of(question: Question, response: Any) -> Any:
    """Return the answer in a form, or None if the user declined or closed it."""
    try:
        result = mcp_types.ElicitResult.model_validate(response)
        if result.action != "accept":
            return None
        content = result.content or {}
        is_form = (question.schema or {}).get("type") == "object"
        return content if is_form else content[question.key]
    except (ValidationError, KeyError):
        text = f"no answer to the question {question.key!r}"
        raise MCPError(mcp_types.INVALID_PARAMS, text) from None
