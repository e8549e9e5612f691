"""Questions that the work of a job asks, and waits for."""

from __future__ import annotations

import json
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from anyio import Event, lowlevel

from creche import WorkerError, active_worker

from ._status import Question, text_of

if TYPE_CHECKING:
    from ._job import Job

current_job: ContextVar[Job[Any]] = ContextVar("current_job")
"""The job whose work runs the current code."""


class Waiting:
    """A question, and the task that waits for the answer, in whatever event loop."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.value: Any = None
        self.answered = Event()
        self._loop: Any = lowlevel.current_token().native_token

    def answer(self, value: object) -> None:
        """Have the task go on; from any thread, and without waiting."""
        self.value = value
        call_soon = getattr(self._loop, "call_soon_threadsafe", None) or self._loop.run_sync_soon
        call_soon(self.answered.set)


async def ask(key: str, question: str, schema: dict[str, Any] | None = None) -> Any:
    """Ask a question in the work of a job, and wait for ``job.answer(key, value)``.

    The job is ``input_required`` meanwhile. Cancelling this call withdraws the question.

    Args:
        key: The key of the question; a job has one question with a key at a time.
        question: The question, for people.
        schema: A JSON schema of the answer, for whoever answers. The answer is not checked.

    Returns:
        The answer, unchanged: check it.

    Raises:
        WorkerError: This is not the work of an unfinished job, the job asks a question with that
            key already, or an argument is invalid.

    Checkpoint:
        Always.

    Threads:
        Any event loop, including that of async work in its own thread. In a plain function that
        runs in a thread, use ``ask_from_thread()``.
    """
    return await find_job("ask()").wait_for_answer(make_question(key, question, schema))


def ask_from_thread(key: str, question: str, schema: dict[str, Any] | None = None) -> Any:
    """Ask a question in the thread of a job, and wait for the answer; see ``ask()``.

    Args:
        key: The key of the question.
        question: The question, for people.
        schema: A JSON schema of the answer.

    Returns:
        The answer, unchanged.

    Raises:
        WorkerCancelled: The job was cancelled.
        WorkerError: As for ``ask()``; or this is the thread of the event loop.

    Threads:
        The thread of a job; blocks until there is an answer.
    """
    job = find_job("ask_from_thread()")
    asked = make_question(key, question, schema)
    return active_worker.get().node.call_from_thread(job.wait_for_answer, asked)


def find_job(call: str) -> Job[Any]:
    """Give the job whose work makes a call.

    Raises:
        WorkerError: There is none.
    """
    job = current_job.get(None)
    if job is None:
        raise WorkerError(
            f"{call} was called outside the work of a job; start the work with Jobs.submit()"
        )
    return job


def make_question(key: object, question: object, schema: Any) -> Question:
    """Make a question of what was given.

    Raises:
        WorkerError: Something of it makes no sense.
    """
    for what, text in (("key", key), ("question", question)):
        if not isinstance(text, str) or not text:
            raise WorkerError(f"{what} must be a str that is not empty, not {text!r:.100}")
    if schema is not None and not isinstance(schema, dict):
        raise WorkerError(f"schema must be a dict, a JSON schema, not {schema!r:.100}")
    try:
        schema = json.loads(json.dumps(schema))  # a copy, which nobody changes
    except (TypeError, ValueError, RecursionError) as error:
        raise WorkerError(f"schema must be what JSON can hold: {error}") from None
    return Question(text_of(key), text_of(question), schema)
