"""Why a job has no result, and what may be wrong with a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from creche import WorkerError

if TYPE_CHECKING:
    from ._status import JobStatus


class StoreError(WorkerError):
    """A store cannot be opened, read or written."""


class JobError(WorkerError):
    """A job has no result; base of the errors that say why.

    Args:
        message: The message.
        status: The status of the job.
    """

    def __init__(self, message: str, status: JobStatus) -> None:
        super().__init__(message)
        self.status = status
        """How the job stands."""

    def __reduce__(self) -> tuple[type[JobError], tuple[str, JobStatus]]:
        return type(self), (str(self), self.status)


class JobFailed(JobError):  # noqa: N818 (as WorkerFailed)
    """The work of the job raised an error: ``__cause__``, for those that awaited its end."""


class JobCancelled(JobError):  # noqa: N818 (as WorkerCancelled)
    """The job was cancelled."""


class JobInterrupted(JobError):  # noqa: N818 (as the others)
    """The program of the job ended before the job did; nothing is resumed."""


class JobExpired(JobError):  # noqa: N818 (as the others)
    """The job has succeeded, and its result is no longer kept."""
