"""What FastAPI shows of the routes: parameters, models, and what may go wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from creche.jobs import JobStatus

from ._problems import MEDIA_TYPE


@dataclass(frozen=True)
class JobList:
    """The jobs of an owner, the newest first."""

    jobs: tuple[JobStatus, ...]


_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}
_ID = {
    "name": "job_id",
    "in": "path",
    "required": True,
    "description": "The id of the job.",
    "schema": {"type": "string"},
}
_WAIT = {
    "name": "wait",
    "in": "query",
    "required": False,
    "description": "Seconds to wait for the end, or, with If-None-Match, for a change; at most 60.",
    "schema": {"type": "number", "minimum": 0},
}
_ANSWER = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["key", "value"],
                "additionalProperties": False,
                "properties": {
                    "key": {"type": "string", "description": "The key of the question."},
                    "value": {"description": "The answer."},
                },
            }
        }
    },
}
_REASON = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"type": "object", "properties": {"reason": {"type": "string"}}}
        }
    },
}
_NUMBER = {
    "name": "number",
    "in": "path",
    "required": True,
    "description": "The number of the worker.",
    "schema": {"type": "integer"},
}
_WRONG = {
    400: "The body is no JSON.",
    401: "It is not known who you are.",
    403: "You are not allowed to do this.",
    404: "There is no such job, or it lives in another process.",
    409: "Not as the job stands.",
    410: "There is no result any more, or there never will be.",
    413: "The body is too large.",
    415: "The body is no application/json.",
    422: "Something has another form.",
    500: "The job failed.",
    503: "The store of the history, or the node, is not there.",
}


def _answers(*codes: int, **more: Any) -> dict[str, Any]:
    answers: dict[int | str, Any] = {int(code[1:]): told for code, told in more.items()}
    for code in (403, 404, 503, *codes):
        content = {MEDIA_TYPE: {"schema": _PROBLEM}}
        answers[code] = {"description": _WRONG[code], "content": content}
    return {"responses": answers}


_JOB = {"model": JobStatus, "description": "The job."}
_STREAM = {
    "description": "A stream of Server-Sent Events.",
    "content": {
        "text/event-stream": {
            "schema": {
                "type": "object",
                "required": ["event", "data"],
                "properties": {
                    "event": {"type": "string"},
                    "id": {"type": "string"},
                    "data": {"type": "string", "contentMediaType": "application/json"},
                },
            }
        }
    },
}
_JSON: dict[str, Any] = {
    "description": "The value.",
    "content": {"application/json": {"schema": {}}},
}

_TABLE: dict[tuple[str, str], dict[str, Any]] = {
    ("GET", ""): {
        "summary": "The jobs of who asks",
        **_answers(401, _200={"model": JobList, "description": "The jobs."}),
    },
    ("GET", "/{job_id}"): {
        "summary": "How a job stands",
        "openapi_extra": {"parameters": [_ID, _WAIT]},
        **_answers(422, _200=_JOB, _304={"description": "As the client has it."}),
    },
    ("DELETE", "/{job_id}"): {
        "summary": "Cancel a job, or forget one that has ended",
        "openapi_extra": {"parameters": [_ID]},
        **_answers(
            _200={"model": JobStatus, "description": "It has ended."},
            _202={"model": JobStatus, "description": "Its cancellation is requested."},
        ),
    },
    ("GET", "/{job_id}/result"): {
        "summary": "What came of a job",
        "openapi_extra": {"parameters": [_ID]},
        **_answers(409, 410, 500, _200=_JSON),
    },
    ("GET", "/{job_id}/events"): {
        "summary": "How a job stands, as a stream to its end",
        "openapi_extra": {"parameters": [_ID]},
        **_answers(_200=_STREAM, _204={"description": "The end was told already."}),
    },
    ("POST", "/{job_id}/answers"): {
        "summary": "Answer what a job asks",
        "openapi_extra": {"parameters": [_ID], "requestBody": _ANSWER},
        **_answers(400, 409, 413, 415, 422, _200=_JOB),
    },
    ("GET", "/page"): {"include_in_schema": False},
    ("GET", "/tree"): {"summary": "All workers of the tree", **_answers(_200=_JSON)},
    ("GET", "/tree/events"): {"summary": "All workers, as a stream", **_answers(_200=_STREAM)},
    ("POST", "/workers/{number}/cancel"): {
        "summary": "Cancel a worker",
        "openapi_extra": {"parameters": [_NUMBER], "requestBody": _REASON},
        **_answers(400, 413, 415, 422, _202=_JSON),
    },
}


def documentation(method: str, path: str) -> dict[str, Any]:
    """Give what FastAPI is told of a route, as arguments of ``add_api_route()``."""
    return {"tags": ["jobs"], "response_model": None, **_TABLE[method, path]}
