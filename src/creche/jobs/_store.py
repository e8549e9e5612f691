"""Where the history of jobs is kept beyond the life of a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._status import JobStatus


class Store(Protocol):
    """What ``Jobs`` asks of a store. One ``Jobs`` at a time uses it.

    The calls come from the event loop and from threads, one at a time, and must not wait: a store
    that does so writes later, as ``SQLiteStore`` does. What they raise is logged, and the jobs go
    on; ``Jobs.get()`` and the making of ``Jobs`` raise it as ``StoreError``. A store that writes
    later may have a method ``flush()`` that waits until all is written: it is called as the last
    job ends while the node shuts down.
    """

    def put(self, status: JobStatus) -> None:
        """Keep how a job stands, in place of what was kept of it before."""
        ...

    def get(self, job_id: str) -> JobStatus | None:
        """Give what was kept of a job last, ``None`` if nothing is."""
        ...

    def list(self) -> Iterable[JobStatus]:
        """Give all that is kept, the jobs that were put first coming first."""
        ...

    def delete(self, job_id: str) -> None:
        """Keep nothing of a job; nothing happens if nothing was kept."""
        ...
