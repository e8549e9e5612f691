"""The way that runs work on a Dask cluster."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from distributed import Client, Future

from creche import WorkerError

from ._line import Entry, Failure, Line
from ._there import PARTIAL, Datum, There, run

if TYPE_CHECKING:
    from creche.ways import Job

__tracebackhide__ = True  # in the traceback of what the work raises


class OnDask:
    """Run work on a Dask cluster: a way, for ``where=``.

    A worker is PENDING while its work waits on the cluster, and RUNNING once the work begins there.
    If it is cancelled before that, its work is never called. Workers that are cancelled together
    need one message to the cluster. If it is cancelled later, the work is told, and the worker
    waits for it unless ``abandon_on_cancel`` is set, because a thread of a machine cannot be
    killed. Work with ``isolate`` can be killed.

    If a machine is lost, Dask starts the work again on another one, three times by default. Each
    time, ``attempt`` goes up by one and the steps start at 0 again. After that, the worker fails
    with ``WorkerCrashed``.

    If an argument of a ``functools.partial`` is a future of the client, such as scattered data, the
    work gets its value.

    Args:
        client: The client, synchronous or asynchronous; under Trio, a synchronous one. Creche does
            not close it.
        isolate: Whether to run each piece of work in its own process beside that of the machine.
            Cancellation kills it, and it is started only once: if the process or its machine is
            lost, the worker fails with ``WorkerCrashed``.
        grace: Seconds that isolated work has to end by itself before it is killed.
        **as_for_submit: Other arguments of ``Client.submit()``: ``workers``, ``resources``,
            ``priority`` and so on.

    Raises:
        WorkerError: An argument is invalid.
    """

    def __init__(
        self, client: Client, *, isolate: bool = False, grace: float = 0.0, **as_for_submit: Any
    ) -> None:
        if not isinstance(client, Client):
            raise WorkerError(f"OnDask() takes a client of distributed, not {client!r:.100}")
        if not isinstance(grace, int | float) or not grace >= 0:
            raise WorkerError(f"grace must be 0 seconds or more, not {grace!r:.100}")
        if grace and not isolate:
            raise WorkerError("grace is for work that can be killed; add isolate=True")
        wrong = as_for_submit.keys() & {"key", "pure", "actor", "actors"}
        if wrong:
            raise WorkerError(f"{', '.join(sorted(wrong))} cannot be chosen for work of a worker")
        self._client: Any = client
        self._isolate = isolate
        self._grace = grace
        self._options = as_for_submit

    def __repr__(self) -> str:
        return f"OnDask({self._client!r})"

    async def __call__(self, job: Job) -> Any:
        """Run a job; see ``creche.ways.Way``."""
        work, data = _apart(job.work)
        entry = Entry(job)
        try:
            line = job.resource(self._client, partial(Line, self._client))
            payload = job.pack(There(work, isolate=self._isolate, grace=self._grace))
            key = line.expect(entry)
            submitted = self._client.submit(
                run, line.topic, key, payload, self._isolate, data, key=key, **self._options
            )
        except WorkerError:
            raise
        except Exception as error:
            raise WorkerError(
                f"{job.label} cannot be handed over: {type(error).__name__}: {error}"
            ) from error
        try:
            return await _Call(entry, line, key).run(submitted)
        finally:
            line.forget(key)


def _apart(work: Any) -> tuple[Any, list[Any]]:
    """Take the futures out of the work's arguments; Dask sends their values to the machine."""
    futures: list[Any] = []

    def stand_in(value: Any) -> Any:
        if not isinstance(value, Future):
            return value
        futures.append(value)
        return Datum(len(futures) - 1)

    if not isinstance(work, PARTIAL):
        return work, futures
    keywords = {name: stand_in(value) for name, value in work.keywords.items()}
    return partial(work.func, *map(stand_in, work.args), **keywords), futures


class _Call:
    """A job on the cluster."""

    def __init__(self, entry: Entry, line: Line, key: str) -> None:
        self._entry = entry
        self._job = entry.job
        self._line = line
        self._key = key

    async def run(self, future: Any) -> Any:
        pending, is_kept = self._line.expect_outcome(self._entry, future), False
        try:
            outcome = await pending.wait()
        except anyio.get_cancelled_exc_class():
            self._job.notice_cancellation()
            if not await self._still_runs(future):
                raise
            if self._job.abandon_on_cancel:
                self._job.abandon()
                self._line.watch(self._job, pending, future)
                is_kept = True
                raise
            outcome = await self._job.outlast(pending.wait)
        finally:
            if not is_kept:
                future.release()
            del future  # a traceback with this frame would keep it on the cluster
        if isinstance(outcome, Failure):
            raise outcome.as_error(self._job)
        return self._job.open(outcome)

    async def _still_runs(self, future: Any) -> bool:
        """Handle a cancellation, and return whether the work still runs."""
        job, line = self._job, self._line
        reason = None if job.cancel_reason is None else str(job.cancel_reason)
        if await job.outlast(partial(line.call_off, self._key, reason)):
            return True
        # It does not begin any more: only now may the scheduler be told to forget it. It thinks
        # that what it cancels does not run.
        await job.outlast(partial(line.cancel, future))
        return False
