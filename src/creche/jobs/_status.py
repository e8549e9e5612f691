"""The status of a job: plain data, which JSON can hold and a store can keep."""

# Annotations are no texts here: Pydantic, for one, reads them in the module that the classes say
# they are from.
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from typing import Any, Literal, TypeAlias

StatusName: TypeAlias = Literal[
    "queued", "running", "input_required", "succeeded", "failed", "cancelled", "interrupted"
]
"""How a job stands. The last four are final."""

_TIMES = ("created", "started", "updated", "finished", "expires")
_LONGEST = 10_000
"""How many characters are kept of a message or of the text of an error."""
_MOST = 10**18
"""No number of steps is told that is larger: Python's may be too long to be written."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a job."""

    completed: int
    """The number of completed steps."""
    total: int | None
    """The number of steps in all, ``None`` if that is not known."""
    percent: float
    """How much is done, from 0.0 to 100.0; 0.0 while the total is unknown or 0."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a job, which waits for the answer."""

    key: str
    """The key of the question, see ``Job.answer()``."""
    question: str
    """The question, for people."""
    schema: dict[str, Any] | None
    """A JSON schema of the answer, if the work gave one. Creche does not check answers."""


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """What the work of a job raised."""

    type: str
    """The name of its class."""
    text: str
    """What it says."""
    traceback: str | None
    """Where it was raised, with ``Jobs(tracebacks=True)``."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """The status of a job at one moment. Times are timezone-aware, in UTC."""

    id: str = field(repr=False)
    """128 random bits in hexadecimal. Whoever knows it may ask for the job: keep it secret."""
    kind: str
    """What kind of job it is: the name that it was submitted with."""
    status: StatusName
    """Its status. ``interrupted``: its program ended before it did."""
    done: bool
    """Whether it has ended, in whatever way."""
    cancel_requested: bool
    """Whether cancellation was requested; the work may still be running."""
    message: str
    """What it is doing, for people: the worker's description."""
    progress: Progress
    """Its progress."""
    created: datetime
    """When it was submitted."""
    started: datetime | None
    """When its work started."""
    updated: datetime
    """When this status was first seen."""
    finished: datetime | None
    """When it ended."""
    expires: datetime | None
    """Until when it is kept, once it has ended; less if there are many."""
    attempt: int
    """The number of the attempt, see ``creche.services``."""
    questions: tuple[Question, ...]
    """The questions that it asks now."""
    error: ErrorInfo | None
    """What its work raised."""
    owner: str | None
    """Whose job it is."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as a dictionary for JSON; times in ISO 8601.

        Threads:
            Any thread.
        """
        data = {each: getattr(self, each) for each in FIELDS}
        for name in _TIMES:
            data[name] = None if data[name] is None else data[name].isoformat()
        data["progress"] = _plain(self.progress)
        data["questions"] = [_plain(each) for each in self.questions]
        data["error"] = None if self.error is None else _plain(self.error)
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "JobStatus":
        """Make a status from the result of ``to_dict()``.

        Raises:
            KeyError: Something is missing.
            TypeError: Something has the wrong type.
            ValueError: A time has another form.

        Threads:
            Any thread.
        """
        given = {each: data[each] for each in FIELDS}
        for name in _TIMES:
            given[name] = None if given[name] is None else datetime.fromisoformat(given[name])
        given["progress"] = Progress(**given["progress"])
        given["questions"] = tuple(Question(**each) for each in given["questions"])
        given["error"] = None if given["error"] is None else ErrorInfo(**given["error"])
        return cls(**given)


FIELDS = tuple(each.name for each in fields(JobStatus))


def _plain(value: Any) -> dict[str, Any]:
    return {each.name: getattr(value, each.name) for each in fields(value)}


def now() -> datetime:
    """Give the time of the wall clock."""
    return datetime.now(timezone.utc)


def text_of(value: object) -> str:
    """Put an object of the user's in text that every file can hold, whatever its methods do."""
    try:
        text = str.__str__(value if isinstance(value, str) else str(value))[:_LONGEST]
    except Exception:  # noqa: BLE001 (what others wrote)
        return f"<unprintable {type(value).__name__}>"
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def steps_of(number: float) -> int:
    """Put a number of steps, finite, of whatever kind, in one that JSON can hold."""
    return max(-_MOST, min(_MOST, int(number)))
