"""Work on a Dask cluster: the way itself."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from distributed import Client, Future

from creche import WorkerCrashed, WorkerError

from ._line import Entry, Failure, Line
from ._there import PARTIAL, Datum, There, run

if TYPE_CHECKING:
    from creche.ways import Job


class OnDask:
    """Run work on a Dask cluster: a way, for ``where=``.

    A worker is PENDING while its work waits on the cluster, and RUNNING once it begins there. One
    that is cancelled before that is not called; all that are cancelled together take one message to
    the cluster. After that the work is told, and waited for unless ``abandon_on_cancel`` is set: a
    thread of a machine cannot be killed. With ``isolate`` it can.

    If a machine is lost, Dask begins the work again elsewhere, three times as a rule: ``attempt``
    counts, and the steps begin at 0. Then the worker fails with ``WorkerCrashed``.

    Futures of the client that stand among the arguments of a ``functools.partial``, scattered data
    for instance, arrive as their values.

    Args:
        client: The client, of either kind; it stays the caller's. Under Trio it is one that is not
            asynchronous.
        isolate: Whether to run each piece of work in a process of its own beside that of the
            machine. It is killed on cancellation, and begun once: if it or its machine is lost, the
            worker fails with ``WorkerCrashed``.
        grace: Seconds that isolated work has to end by itself before it is killed.
        **as_for_submit: What ``Client.submit()`` takes as well: ``workers``, ``resources``,
            ``priority`` and others.

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
    """Take the futures out of the arguments of work: Dask brings their values to where it runs."""
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
        pending, is_kept = self._line.expect_outcome(future), False
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
        if self._entry.is_lost:
            raise WorkerCrashed(f"what ran {self._job.label} is gone: its machine was lost")
        if isinstance(outcome, Failure):
            raise outcome.as_error(self._job)
        return self._job.open(outcome)

    async def _still_runs(self, future: Any) -> bool:
        """Deal with a cancellation; tell whether the work runs all the same."""
        job, line = self._job, self._line
        reason = None if job.cancel_reason is None else str(job.cancel_reason)
        if await job.outlast(partial(line.call_off, self._key, reason)):
            return True
        # It does not begin any more: only now may the scheduler be told to forget it. It thinks
        # that what it cancels does not run.
        await job.outlast(partial(line.cancel, future))
        return False
