"""Where the history of jobs is kept beyond the life of a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._status import JobStatus


class Store(Protocol):
    """What ``Jobs`` needs from a store. Only one ``Jobs`` at a time uses it.

    The methods are called from the event loop and from threads, one call at a time, and must not
    block: a slow store writes later, as ``SQLiteStore`` does. What they raise is logged, and the
    jobs go on, except that ``Jobs()`` and ``Jobs.get()`` raise it as ``StoreError``. A store that
    writes later may have a method ``flush()`` that waits until everything is written: it is called
    when the last job ends while the node shuts down.
    """

    def put(self, status: JobStatus) -> None:
        """Keep the status of a job, replacing what was kept of it before."""
        ...

    def get(self, job_id: str) -> JobStatus | None:
        """Return what was last kept of a job; ``None`` if nothing was."""
        ...

    def list(self) -> Iterable[JobStatus]:
        """Return everything that is kept, the jobs that were put first coming first."""
        ...

    def delete(self, job_id: str) -> None:
        """Delete what is kept of a job. Does nothing if nothing is."""
        ...
