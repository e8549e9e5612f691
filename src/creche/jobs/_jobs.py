"""The jobs of a node: those that are unfinished, and the history of those that have ended."""

from __future__ import annotations

import inspect
import logging
import secrets
from collections import OrderedDict
from enum import Enum
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, overload

from creche import Node, Worker, WorkerError

from ._ask import current_job
from ._errors import StoreError
from ._job import Job, interrupted, lock
from ._status import JobStatus, Progress, now, text_of

if TYPE_CHECKING:
    import sys
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor

    from anyio import CapacityLimiter

    from creche import WorkType
    from creche.ways import Way

    from ._store import Store

    if sys.version_info >= (3, 11):
        from typing import Unpack
    else:
        from typing_extensions import Unpack

T = TypeVar("T")

_logger = logging.getLogger("creche")
_LONGEST_TTL = 100 * 365 * 86_400


class _Every(Enum):
    OWNER = "every owner"


class JobOptions(TypedDict, total=False):
    """The options of ``Node.run_worker()`` that ``Jobs.submit()`` takes."""

    group: str | None
    description: str
    exit_on_error: bool | None
    exclusive: bool
    thread: bool
    daemon: bool
    abandon_on_cancel: bool
    limiter: CapacityLimiter | None
    where: Way | Executor | None
    stall_after: float | None


class Jobs:
    """Workers with an id, which can be looked up while they run and for a while afterwards.

    ``jobs = Jobs(app)``; ``job = jobs.submit(work)``; ``jobs.get(job.id)``.

    A job that has ended is kept for ``ttl`` seconds, as long as it is among the newest ``keep``.
    What is kept is plain data and the result, but nothing of the worker. Jobs live in this
    process; a store keeps the plain data beyond its end.

    Args:
        node: The node that the workers belong to. It may be opened later.
        keep: How many ended jobs are kept at most.
        ttl: For how many seconds each of them is kept.
        store: Where the history is kept beyond the life of the program. Unfinished jobs in it
            become ``interrupted``: nothing is resumed.
        tracebacks: Whether the error of a job includes where it was raised; for programs whose
            users may see that.

    Raises:
        WorkerError: An argument is invalid.
        StoreError: The store cannot be read.
    """

    def __init__(
        self,
        node: Node,
        keep: int = 1_000,
        ttl: float = 3600,
        store: Store | None = None,
        *,
        tracebacks: bool = False,
    ) -> None:
        if not isinstance(node, Node):
            raise WorkerError(f"Jobs() takes a Node, not {node!r:.100}")
        if store is not None and not hasattr(store, "put"):
            raise WorkerError(f"store must be a Store, as SQLiteStore(path), not {store!r:.100}")
        if not isinstance(keep, int) or isinstance(keep, bool) or keep < 0:
            raise WorkerError(f"keep must be a number of jobs, 0 or more, not {keep!r:.100}")
        if not isinstance(ttl, int | float) or not 0 < ttl <= _LONGEST_TTL:
            raise WorkerError(
                f"ttl must be seconds, more than 0 and at most 100 years, not {ttl!r:.100}"
            )
        self.node: Node = node
        """The node that the workers belong to."""
        self.keep: int = keep
        """How many jobs that have ended are kept at most."""
        self.ttl: float = ttl
        """For how many seconds each of them is kept."""
        self._tracebacks = tracebacks
        self._store = store
        self._is_store_broken = False
        self._unfinished: dict[str, Job[Any]] = {}
        self._ended: OrderedDict[str, Job[Any]] = OrderedDict()  # in the order in which they did
        if store is not None:
            self._take_over(store)

    def __repr__(self) -> str:
        return (
            f"<Jobs of node {self.node.path!r}: {len(self._unfinished)} unfinished, "
            f"{len(self._ended)} kept>"
        )

    @overload
    def submit(
        self,
        work: Callable[[], Awaitable[T]] | Awaitable[T],
        name: str = "",
        owner: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Job[T]: ...

    @overload
    def submit(
        self,
        work: Callable[[], T],
        name: str = "",
        owner: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Job[T]: ...

    def submit(
        self,
        work: WorkType[Any],
        name: str = "",
        owner: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Job[Any]:
        """Run work in a worker of the node, as a job. Returns at once.

        An error of the work is reported by the job, and fails the node only with
        ``exit_on_error=True``.

        Args:
            work: As for ``Node.run_worker()``.
            name: What kind of job it is; by default the name of the function.
            owner: Whose job it is, see ``list()``.
            options: The other arguments of ``Node.run_worker()``, except ``start``.

        Returns:
            The job.

        Raises:
            WorkerError: The node is not open, or an argument is invalid. A coroutine object
                passed as work is closed.

        Threads:
            Any thread.
        """
        wrong = ""
        if owner is not None and not isinstance(owner, str):
            wrong = f"owner must be a text, or None, not {owner!r:.100}"
        elif "start" in options:
            wrong = "a job is started at once; leave start= out"
        if wrong:
            if inspect.iscoroutine(work):
                work.close()  # nobody awaits it
            raise WorkerError(wrong)
        options.setdefault("exit_on_error", False)
        job = Job[Any](_new_status(owner))
        before = current_job.set(job)
        try:
            worker = self.node.run_worker(work, name, **options)
        finally:
            current_job.reset(before)
        job._begin(worker)
        with lock:
            self._unfinished[job.id] = job
            self._put(job._status)
        worker.add_done_callback(lambda ended: self._end(job, ended))
        return job

    def _end(self, job: Job[Any], worker: Worker[Any]) -> None:
        job._end(worker, self.ttl, with_traceback=self._tracebacks)
        with lock:
            del self._unfinished[job.id]
            self._ended[job.id] = job
            self._put(job._status)
            self._sweep()
            is_last = not self._unfinished and not self.node.is_ready
        if is_last:
            self._flush()

    def get(self, job_id: str) -> Job[Any] | None:
        """Return a job by its id.

        Args:
            job_id: The id. Any other string is simply unknown.

        Returns:
            The job; ``None`` if there is none with that id, or it is no longer kept.

        Raises:
            StoreError: The store cannot be read.

        Threads:
            Any thread.
        """
        with lock:
            self._sweep()
            job = self._unfinished.get(job_id) or self._ended.get(job_id)
            if job is None and self._store is not None:
                return self._read(self._store, job_id)
        return job

    def list(self, *, owner: str | _Every | None = _Every.OWNER) -> tuple[Job[Any], ...]:
        """Return all jobs, or those of an owner, in the order in which they were submitted.

        Args:
            owner: Whose jobs; ``None`` for those without an owner. If left out, all jobs, for
                callers who may see them.

        Returns:
            The jobs, including those that have ended and are kept.

        Threads:
            Any thread.
        """
        with lock:
            self._sweep()
            every = [*self._ended.values(), *self._unfinished.values()]
        if owner is not _Every.OWNER:
            every = [job for job in every if job._status.owner == owner]
        return tuple(sorted(every, key=lambda job: job._status.created))

    def remove(self, job_id: str) -> bool:
        """Forget a job that has ended, with its result and its entry in the store.

        Args:
            job_id: The id.

        Returns:
            Whether a job was forgotten; unfinished jobs are not.

        Threads:
            Any thread.
        """
        with lock:
            job = self._ended.pop(job_id, None)
            if job is not None:
                self._forget(job)
        return job is not None

    # what is not kept any more

    def _sweep(self) -> None:
        ended = self._ended
        while ended:
            job = next(iter(ended.values()))
            expires = job._status.expires
            if len(ended) <= self.keep and expires is not None and expires > now():
                return
            del ended[job.id]
            self._forget(job)

    def _forget(self, job: Job[Any]) -> None:
        job._forget_result()
        if self._store is not None:
            self._try(self._store.delete, job.id)

    # the store

    def _take_over(self, store: Store) -> None:
        """Take over the history, in which nothing is unfinished from here on."""
        try:
            statuses = tuple(store.list())
        except Exception as error:
            raise StoreError(f"the history of jobs cannot be read: {text_of(error)}") from error
        for status in statuses:
            if not status.done:
                status = interrupted(status, self.ttl)  # noqa: PLW2901 (it is that one from here on)
                self._put(status)
            self._ended[status.id] = Job(status)
        order = sorted(self._ended.values(), key=lambda job: job._status.finished or now())
        self._ended = OrderedDict((job.id, job) for job in order)
        self._sweep()

    def _read(self, store: Store, job_id: str) -> Job[Any] | None:
        """Look for a job that was not submitted here."""
        try:
            status = store.get(job_id)
        except Exception as error:
            raise StoreError(f"the history of jobs cannot be read: {text_of(error)}") from error
        return None if status is None else Job(status)

    def _put(self, status: JobStatus) -> None:
        if self._store is not None:
            self._try(self._store.put, status)

    def _flush(self) -> None:
        """Have all written, as the node ends: a program that is told to may not end in order."""
        flush = getattr(self._store, "flush", None)
        if flush is not None:
            flush()

    def _try(self, write: Callable[[Any], None], value: object) -> None:
        """Write to the store. If that fails it is logged, once until it works again."""
        try:
            write(value)
        except Exception:
            if not self._is_store_broken:
                _logger.exception(
                    "the history of the jobs of node %r cannot be written; the jobs go on",
                    self.node.path,
                )
            self._is_store_broken = True
        else:
            self._is_store_broken = False


def _new_status(owner: str | None) -> JobStatus:
    when = now()
    return JobStatus(
        id=secrets.token_hex(16),
        kind="",
        status="queued",
        done=False,
        cancel_requested=False,
        message="",
        progress=Progress(0, None, 0.0),
        created=when,
        started=None,
        updated=when,
        finished=None,
        expires=None,
        attempt=1,
        questions=(),
        error=None,
        owner=owner,
    )
