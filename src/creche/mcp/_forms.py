"""Turns a tool's questions into forms that a client shows to its user, and reads the answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, ElicitResult
from pydantic import ValidationError

if TYPE_CHECKING:
    from creche.jobs import Question


def _is_object(question: Question) -> bool:
    return (question.schema or {}).get("type") == "object"


def form_of(question: Question) -> dict[str, Any]:
    """Turn a question into a form; a schema of another type than object becomes its only field."""
    key, schema = question.key, question.schema or {"type": "string"}
    if not _is_object(question):
        schema = {"type": "object", "properties": {key: schema}, "required": [key]}
    params = {"mode": "form", "message": question.question, "requestedSchema": schema}
    return {"method": "elicitation/create", "params": params}


def answer_of(question: Question, response: Any) -> Any:
    """Return the answer in a form, or None if the user declined or closed it."""
    try:
        result = ElicitResult.model_validate(response)
        if result.action != "accept":
            return None
        content = result.content or {}
        return content if _is_object(question) else content[question.key]
    except (ValidationError, KeyError):
        text = f"no answer to the question {question.key!r}"
        raise MCPError(INVALID_PARAMS, text) from None
