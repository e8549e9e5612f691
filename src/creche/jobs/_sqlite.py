"""A store in a file, by the standard library's ``sqlite3``.

All that is kept is in memory as well, so nobody waits for the disk: it is read once, and written by
a thread that lives as long as there is anything to be written. The file is locked by the one
program that uses it. Its journal is a write-ahead log: a program that is killed in the midst of a
write leaves the file as it was before.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ._errors import StoreError
from ._status import JobStatus

if TYPE_CHECKING:
    import sys
    from collections.abc import Iterator
    from types import TracebackType

    if sys.version_info >= (3, 11):
        from typing import Self
    else:
        from typing_extensions import Self

_logger = logging.getLogger("creche")
_VERSION = 1
"""Of the table, kept in the file."""
_PAUSE = 1.0
"""Seconds from a write that has failed to the next attempt, at least."""
_PUT = (
    "INSERT INTO jobs (id, status) VALUES (?, ?) "
    "ON CONFLICT (id) DO UPDATE SET status = excluded.status"
)
_DELETE = "DELETE FROM jobs WHERE id = ?"


class SQLiteStore:
    """Keeps the history of jobs in an SQLite file: ``Jobs(app, store=SQLiteStore("jobs.db"))``.

    Only one program at a time uses the file. A thread writes it, soon after each change, and at the
    latest when the program ends or ``close()`` is called. If it cannot be written, for instance
    because the disk is full, that is logged, and everything is written once it works again.

    Args:
        path: The file. It is created if it does not exist.

    Raises:
        StoreError: It cannot be opened or written, is not such a file, or another program uses it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._lock = threading.Lock()  # of all below but the last two
        self._statuses: dict[str, JobStatus] = {}
        self._news: dict[str, JobStatus | None] = {}  # what is to be written; None is to be deleted
        self._writer: threading.Thread | None = None
        self._is_closed = False
        self._is_behind = (
            False  # whether the file lacks something else, so that all is to be written
        )
        self._retry_at = 0.0  # and not before this time
        self._is_told = False
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self._path, timeout=0, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._refused(error) from error
        try:
            self._prepare(connection)
            self._statuses = dict(self._load(connection))
        except (sqlite3.Error, KeyError, TypeError, ValueError) as error:
            connection.close()
            raise self._refused(error) from error
        except StoreError:
            connection.close()
            raise
        return connection

    def _refused(self, error: Exception) -> StoreError:
        told = str(error)
        if told == "database is locked":
            told = "another program uses it; a history has one program at a time"
        return StoreError(f"the history of jobs {self._path!r} cannot be opened: {told}")

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise StoreError(
                f"the history of jobs {self._path!r} was written by another version of Creche "
                f"(table of version {version}, not {_VERSION}); use another file"
            )
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS jobs "
            "(number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, status TEXT NOT NULL)"
        )
        connection.execute(f"PRAGMA user_version = {_VERSION}")  # a write, where that is forbidden
        connection.execute("COMMIT")

    def _load(self, connection: sqlite3.Connection) -> Iterator[tuple[str, JobStatus]]:
        for job_id, status in connection.execute("SELECT id, status FROM jobs ORDER BY number"):
            yield job_id, JobStatus.from_dict(json.loads(status))

    # what a store is asked

    def put(self, status: JobStatus) -> None:
        """Keep the status of a job; it is written soon.

        Raises:
            StoreError: The store was closed.

        Threads:
            Any thread.
        """
        with self._lock:
            self._check_open()
            self._statuses[status.id] = status
            self._write_soon(status.id, status)

    def get(self, job_id: str) -> JobStatus | None:
        """Return what was last kept of a job; ``None`` if nothing was.

        Threads:
            Any thread.
        """
        with self._lock:
            return self._statuses.get(job_id)

    def list(self) -> tuple[JobStatus, ...]:
        """Return everything that is kept, the jobs that were put first coming first.

        Threads:
            Any thread.
        """
        with self._lock:
            return tuple(self._statuses.values())

    def delete(self, job_id: str) -> None:
        """Delete what is kept of a job.

        Raises:
            StoreError: The store was closed.

        Threads:
            Any thread.
        """
        with self._lock:
            self._check_open()
            if self._statuses.pop(job_id, None) is not None:
                self._write_soon(job_id, None)

    def flush(self) -> None:
        """Wait until everything has been written, or could not be.

        Threads:
            Any thread, which is blocked meanwhile.
        """
        with self._lock:
            writer = self._writer
        if writer is not None:
            writer.join()

    def close(self) -> None:
        """Write what is left, and release the file. Safe to call again.

        Threads:
            Any thread; blocks until the file is written.
        """
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
        self.flush()
        if not was_closed:
            self._write()  # what has failed before
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # All has been written by then: the thread that writes holds it.
        with suppress(AttributeError):  # it could not be opened
            self._connection.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreError(f"the history of jobs {self._path!r} was closed; open it again")

    # the thread that writes

    def _write_soon(self, job_id: str, status: JobStatus | None) -> None:
        """Have it written; called with the lock held."""
        if not self._is_behind:
            self._news[job_id] = status
        elif time.monotonic() < self._retry_at:
            return
        if self._writer is None:
            # No daemon: a program does not end before it has written.
            writer = threading.Thread(target=self._write, name=f"history of jobs {self._path}")
            writer.start()
            self._writer = writer

    def _write(self) -> None:
        """Write until there is nothing more to be written, or it fails."""
        while True:
            with self._lock:
                news, self._news = self._news, {}
                every = tuple(self._statuses.values()) if self._is_behind else None
                if not news and every is None:
                    self._writer = None
                    return
                self._is_behind = False
            try:
                self._write_down(news, every)
            except Exception as error:  # noqa: BLE001 (told, and tried again)
                self._fail(error)
                return
            if self._is_told:
                self._is_told = False
                _logger.warning("the history of jobs %r can be written again", self._path)

    def _write_down(
        self, news: dict[str, JobStatus | None], every: tuple[JobStatus, ...] | None
    ) -> None:
        execute = self._connection.execute
        execute("BEGIN")
        try:
            if every is not None:
                execute("DELETE FROM jobs")
                news = {status.id: status for status in every}
            for job_id, status in news.items():
                if status is None:
                    execute(_DELETE, (job_id,))
                else:
                    execute(_PUT, (job_id, json.dumps(status.to_dict())))
            execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # it may have been taken back already
                execute("ROLLBACK")
            raise

    def _fail(self, error: Exception) -> None:
        with self._lock:
            # What has failed is not kept beside what there is: that would grow for as long.
            self._is_behind, self._news = True, {}
            self._retry_at = time.monotonic() + _PAUSE
            self._writer = None
        if not self._is_told:
            self._is_told = True
            _logger.error(
                "the history of jobs %r cannot be written: %s; the jobs go on; it is tried again",
                self._path,
                error,
            )
