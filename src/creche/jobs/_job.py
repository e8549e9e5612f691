"""A job: a worker while it is unfinished, and what is told of it from then on."""

from __future__ import annotations

import traceback
from dataclasses import replace
from datetime import timedelta
from enum import Enum
from threading import RLock
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, final

from anyio import lowlevel

from creche import Worker, WorkerError, WorkerState

from ._ask import Waiting
from ._errors import JobCancelled, JobExpired, JobFailed, JobInterrupted
from ._status import ErrorInfo, JobStatus, Progress, now, steps_of, text_of

if TYPE_CHECKING:
    import sys
    from datetime import datetime

    from ._status import Question, StatusName

    if sys.version_info >= (3, 11):
        from typing import Self
    else:
        from typing_extensions import Self

T = TypeVar("T")

NAMES: dict[WorkerState, StatusName] = {
    WorkerState.PENDING: "queued",
    WorkerState.RUNNING: "running",
    WorkerState.SUCCESS: "succeeded",
    WorkerState.ERROR: "failed",
    WorkerState.CANCELLED: "cancelled",
}
_NO_PROGRESS = Progress(0, None, 0.0)

# One for all: it is held for a few assignments at a time, and who has none of its own is smaller.
lock = RLock()


class _Gone(Enum):
    RESULT = "not kept"


@final
class Job(Generic[T]):
    """A worker with an id, which is remembered for a while; made by ``Jobs.submit()``."""

    __slots__ = ("__weakref__", "_facts", "_result", "_status", "_waiting", "_worker")

    # All but _waiting are written under the lock. _worker is there until the end, and _status is
    # the final one before it goes; _facts are those that _status tells.

    def __init__(self, status: JobStatus) -> None:
        self._status = status
        self._facts: tuple[object, ...] = ()
        self._worker: Worker[T] | None = None
        self._result: T | _Gone = _Gone.RESULT
        self._waiting: dict[str, Waiting] | None = None  # made when there is any

    def __repr__(self) -> str:
        # Without its id, which is to be kept secret and would get into logs.
        status = self.status
        return f"<Job {status.kind!r:.100} {status.status}>"

    def _begin(self, worker: Worker[T]) -> None:
        """Take the worker as its own; it may have begun, or ended, already."""
        with lock:
            self._status = replace(
                self._status, kind=text_of(worker.name), message=text_of(worker.description)
            )
            self._worker = worker

    @property
    def id(self) -> str:
        """128 random bits in hexadecimal. Whoever knows it may ask for the job."""
        return self._status.id

    @property
    def worker(self) -> Worker[T] | None:
        """The worker; ``None`` once it has ended."""
        return self._worker

    @property
    def status(self) -> JobStatus:
        """The current status; the same object as long as nothing changes.

        Threads:
            Any thread.
        """
        worker = self._worker
        return self._status if worker is None else self._look(worker)

    def _look(self, worker: Worker[T]) -> JobStatus:
        with lock:
            asked = tuple(each.question for each in (self._waiting or {}).values())
            facts = (
                worker.state,
                worker.is_cancelled,
                worker.description,
                worker.completed_steps,
                worker.total_steps,
                worker.attempt,
                asked,
            )
            # Seen from a thread it may have ended, a moment before _end() is called.
            if self._worker is not None and facts != self._facts and not worker.is_finished:
                self._facts = facts
                self._status = self._make(worker, asked, now())
            return self._status

    def _make(
        self, worker: Worker[T], asked: tuple[Question, ...], when: datetime, **final: Any
    ) -> JobStatus:
        before, state = self._status, worker.state
        is_asking = asked and state is WorkerState.RUNNING
        return JobStatus(
            id=before.id,
            kind=before.kind,
            status="input_required" if is_asking else NAMES[state],
            done=worker.is_finished,
            cancel_requested=worker.is_cancelled,
            message=text_of(worker.description),
            progress=_progress_of(worker),
            created=before.created,
            started=before.started or _when_started(worker, before.created, when),
            updated=when,
            attempt=worker.attempt,
            questions=asked,
            owner=before.owner,
            **{"finished": None, "expires": None, "error": None, **final},
        )

    def _end(self, worker: Worker[T], ttl: float, *, with_traceback: bool) -> None:
        """Keep what is to be told of a worker that has ended, and let go of it; on the loop."""
        when = now()
        expires = when + timedelta(seconds=ttl)
        error = None if worker.error is None else _error_of(worker.error, with_traceback)
        with lock:
            self._status = self._make(worker, (), when, finished=when, expires=expires, error=error)
            if worker.state is WorkerState.SUCCESS:
                self._result = cast("T", worker.result)
            self._worker = None
            self._facts = ()

    def _forget_result(self) -> None:
        self._result = _Gone.RESULT

    # what becomes of it

    async def join(self) -> Job[T]:
        """Wait until the job has ended, in whatever way. Errors of the work are not raised.

        Cancelling this call ends the wait; the job goes on.

        Returns:
            The job itself.

        Raises:
            DeadlockError: As for ``Worker.wait()``.
            WorkerError: This is not the event loop of its node.

        Checkpoint:
            Always.

        Threads:
            The node's event loop only.
        """
        worker = self._worker
        if worker is None:
            await lowlevel.checkpoint()
        else:
            await worker.join()
        return self

    async def result(self) -> T:
        """Wait until the job has ended, and return what its work returned.

        Cancelling this call ends the wait; the job goes on.

        Returns:
            What the work returned.

        Raises:
            JobFailed: The work raised; the original is ``__cause__`` if this call was made before
                the end.
            JobCancelled: The job was cancelled.
            JobInterrupted: Its program ended before it did.
            JobExpired: The result is no longer kept.
            DeadlockError: As for ``Worker.wait()``.
            WorkerError: This is not the event loop of its node.

        Checkpoint:
            Always.

        Threads:
            The node's event loop only.
        """
        worker = self._worker
        try:
            await self.join()
            self._check_outcome(None if worker is None else worker.error)
            # Who has waited is given it, be it kept or not.
            result = self._result if worker is None else worker.result
        finally:
            del worker  # the frame is held by the error, and the error by the worker
        if result is _Gone.RESULT:
            raise JobExpired(f"the result of {self._label()} is not kept any more", self._status)
        return cast("T", result)

    def _check_outcome(self, cause: BaseException | None) -> None:
        status = self._status
        try:
            if status.error is not None:
                text = f": {status.error.text}" if status.error.text else ""
                raise JobFailed(
                    f"{self._label()} failed: {status.error.type}{text}", status
                ) from cause
            if status.status == "cancelled":
                raise JobCancelled(f"{self._label()} was cancelled", status)
            if status.status == "interrupted":
                raise JobInterrupted(
                    f"{self._label()} was interrupted by the end of its program; submit it again",
                    status,
                )
        finally:
            del cause  # it holds this frame

    def _label(self) -> str:
        return f"job {self._status.kind!r:.100}"

    def watch(self) -> Watch:
        """Yield the current status, and each new one; for ``async for``.

        Each status is complete. A slow reader misses some of them, but never the final one, with
        which the stream ends. You can start at any time, even after the end, and stop at any time.

        Returns:
            An async iterator of ``JobStatus``.

        Checkpoint:
            Each step.

        Threads:
            The node's event loop only.
        """
        return Watch(self)

    def cancel(self, reason: object = None) -> None:
        """Request cancellation, see ``Worker.cancel()``. Does nothing if the job has ended.

        Args:
            reason: Anything that says why.

        Threads:
            Any thread.
        """
        worker = self._worker
        if worker is not None:
            worker.cancel(reason)
            worker.update()

    # what it asks

    def answer(self, key: str, value: object) -> None:
        """Answer a question of the job, see ``ask()``.

        Args:
            key: The key of the question.
            value: The answer, which is passed to the work unchanged.

        Raises:
            WorkerError: The job does not ask a question with that key, or not any more.

        Threads:
            Any thread.
        """
        with lock:
            waiting = (self._waiting or {}).pop(key, None)
        if waiting is None:
            asked = ", ".join(repr(each.key) for each in self.status.questions) or "none"
            raise WorkerError(
                f"{self._label()} has no open question with the key {key!r:.100}; "
                f"its open questions: {asked}"
            )
        waiting.answer(value)
        self._tell_news()

    async def wait_for_answer(self, question: Question) -> Any:
        """Ask a question, and wait for the answer; for ``ask()``."""
        waiting = Waiting(question)
        with lock:
            if self._status.done:
                raise WorkerError(f"{self._label()} has ended, and cannot ask any more")
            waits = self._waiting = self._waiting or {}
            if question.key in waits:
                raise WorkerError(
                    f"{self._label()} asks {question.key!r:.100} already; use another key"
                )
            waits[question.key] = waiting
        self._tell_news()
        try:
            await waiting.answered.wait()
        finally:
            with lock:
                if waits.get(question.key) is waiting:
                    del waits[question.key]
            self._tell_news()
        return waiting.value

    def _tell_news(self) -> None:
        """Have those who watch look again."""
        worker = self._worker
        if worker is not None:
            worker.update()


class Watch:
    """How a job stands, as a stream; made by ``Job.watch()``.

    Nothing is held between two steps, so one that is left halfway leaves nothing behind.
    """

    def __init__(self, job: Job[Any]) -> None:
        self._job = job
        self._last: JobStatus | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobStatus:
        """Wait until the job stands in another way than it was told last, and tell that.

        Raises:
            StopAsyncIteration: The final status was told.
            WorkerError: This is not the event loop of the job's node.
        """
        await lowlevel.checkpoint()
        last, worker = self._last, self._job.worker
        if last is not None and last.done:
            raise StopAsyncIteration
        if worker is not None and self._job.status is last:
            await self._wait_for_news(worker)
        self._last = self._job.status
        return self._last

    async def _wait_for_news(self, worker: Worker[Any]) -> None:
        kinds = (Worker.StateChanged, Worker.ProgressChanged, Worker.Restarted)
        async with worker.subscribe(*kinds) as events:
            while self._job.status is self._last:  # that of the end is another in any case
                await anext(events)


def interrupted(status: JobStatus, ttl: float) -> JobStatus:
    """Give how a job stands that was unfinished as its program ended."""
    when = now()
    expires = when + timedelta(seconds=ttl)
    return replace(
        status,
        status="interrupted",
        done=True,
        questions=(),
        updated=when,
        finished=when,
        expires=expires,
    )


def _progress_of(worker: Worker[Any]) -> Progress:
    completed, total = worker.completed_steps, worker.total_steps
    if not completed and total is None:
        return _NO_PROGRESS
    return Progress(
        steps_of(completed), None if total is None else steps_of(total), float(worker.progress)
    )


def _when_started(worker: Worker[Any], created: datetime, latest: datetime) -> datetime | None:
    """Tell by the wall clock when a worker started, of which the loop's clock is known."""
    if worker.started_at is None or worker.created_at is None:
        return None
    return min(latest, created + timedelta(seconds=worker.started_at - worker.created_at))


def _error_of(error: BaseException, with_traceback: bool) -> ErrorInfo:
    trace = None
    if with_traceback:
        trace = text_of("".join(traceback.format_exception(error)))
    return ErrorInfo(type(error).__name__, text_of(error), trace)
