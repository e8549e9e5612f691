"""Jobs: workers with an id, which can be found, watched and stopped, and are kept for a while.

Use ``jobs = Jobs(app)`` and ``job = jobs.submit(work)``. Whoever has the id finds the job
again with ``jobs.get(id)``: its status as plain data, its result, a stream of its changes, while
it runs and for a while afterwards; even after a restart, with ``SQLiteStore``. ``creche.web``
serves them over HTTP.
"""

from __future__ import annotations

from ._ask import ask, ask_from_thread
from ._errors import JobCancelled, JobError, JobExpired, JobFailed, JobInterrupted, StoreError
from ._job import Job, Watch
from ._jobs import JobOptions, Jobs
from ._sqlite import SQLiteStore
from ._status import ErrorInfo, JobStatus, Progress, Question, StatusName
from ._store import Store

__all__ = [
    "ErrorInfo",
    "Job",
    "JobCancelled",
    "JobError",
    "JobExpired",
    "JobFailed",
    "JobInterrupted",
    "JobOptions",
    "JobStatus",
    "Jobs",
    "Progress",
    "Question",
    "SQLiteStore",
    "StatusName",
    "Store",
    "StoreError",
    "Watch",
    "ask",
    "ask_from_thread",
]

for _name in __all__:
    if _name != "StatusName":  # which is no class of its own
        globals()[_name].__module__ = __name__
