"""The connection between one tree of nodes, called home, and a cluster.

Messages from jobs arrive as events of a topic of the scheduler, in the order in which they were
sent, and before the outcome. Messages from home go to all processes at once, with ``Client.run()``.
Those that arise during such a call go with the next one, so cancelling many workers together takes
one call.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import secrets
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import ReferenceType, ref

import anyio
from anyio import lowlevel
from distributed.scheduler import KilledWorker

from creche import WorkerCrashed, WorkerError
from creche._ground.bridge import run_soon

from ._there import Told, hear

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from creche.ways import Job

__tracebackhide__ = True  # in the traceback of what the work raises
T = TypeVar("T")
_PATIENCE = 5.0
"""Seconds that the last call to the cluster may take."""
_LOOK = 2.0
"""Seconds from one look at the machines of the cluster to the next."""


@dataclass(frozen=True)
class Failure:
    """Why there is no outcome: Dask's error as text, because its traceback keeps the future."""

    text: str
    is_crash: bool = False

    def as_error(self, job: Job) -> WorkerError:
        """Create the error of the worker."""
        if self.is_crash:
            return WorkerCrashed(f"what ran {job.label} is gone: {self.text}")
        return WorkerError(
            f"{job.label} could not be run on the cluster: {self.text}; Creche and the module of "
            "the work have to be installed there"
        )


_LOST = Failure("its machine was lost", is_crash=True)


class Entry:
    """A job that is on the cluster, or on its way there."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.machine = ""
        """The address of the machine where it has begun, if it had to ask; it may begin once."""
        self.outcome: Outcome[bytes | Failure]


class _Batch:
    """The messages that home sends next."""

    def __init__(self) -> None:
        self.told = Told()
        self.done = anyio.Event()
        self.running: frozenset[str] | None = None
        """Which of the cancelled jobs run; ``None`` if that cannot be told."""


class Line:
    """Connects a tree of nodes to its jobs on a cluster.

    Args:
        client: The client of the cluster.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._loop = client.loop.asyncio_loop
        self._is_here = lowlevel.current_token().native_token is self._loop
        self._token = lowlevel.current_token()
        self.topic: str = f"creche-{secrets.token_hex(8)}"
        """The topic of the messages."""
        self._entries: dict[str, Entry] = {}
        self._batch = _Batch()
        self._wanted = anyio.Event()
        self._has_once = anyio.Event()  # set when work that may begin once has begun
        self._group: TaskGroup = anyio.create_task_group()
        client.subscribe_topic(self.topic, partial(_hand_over, ref(self)))

    # jobs

    def expect_outcome(self, entry: Entry, future: Any) -> Outcome[bytes | Failure]:
        """Start waiting for the outcome of a job, on the client's event loop."""
        running = self._begin(partial(_outcome, self._client, future))
        entry.outcome = Outcome(running, self._token)
        return entry.outcome

    async def cancel(self, future: Any) -> None:
        """Make the scheduler forget a cancelled job."""
        await self.there(lambda: self._client.cancel([future], asynchronous=True))

    def watch(self, job: Job, outcome: Outcome[bytes | Failure], future: Any) -> None:
        """Wait for the end of an abandoned job, after its way has returned."""
        self._group.create_task(_watch(job, outcome, future), context=Context())

    def expect(self, entry: Entry) -> str:
        """Register a job, and return the key of its messages."""
        key = f"{self.topic}-{secrets.token_hex(8)}"
        self._entries[key] = entry
        return key

    def forget(self, key: str) -> None:
        """Ignore further messages of a job."""
        self._entries.pop(key, None)

    def take(self, key: str, machine: str, message: bytes) -> None:
        """Receive a message, on the client's loop; with its machine, a job asks to begin there."""
        call = partial(self._receive, key, machine, message)
        if self._is_here:
            call()
        else:
            run_soon(self._token, call)

    def _receive(self, key: str, machine: str, message: bytes) -> None:
        entry = self._entries.get(key)
        if entry is None:
            if machine:
                self._answer(key, may_begin=False)
        elif machine and entry.machine:
            self._answer(key, may_begin=False)
            entry.outcome.give(_LOST)
        else:
            if machine:
                entry.machine = machine
                self._has_once.set()
            entry.job.receive(message, partial(self._answer, key) if machine else None)

    async def _watch_machines(self) -> None:
        """Find out about machines that are lost, while there is work that may begin once.

        Dask begins it again, and then it asks again. But where no other machine comes, it never
        does, and the client is not told.
        """
        while True:
            await self._has_once.wait()
            self._has_once = anyio.Event()
            while running := [entry for entry in self._entries.values() if entry.machine]:
                await anyio.sleep(_LOOK)
                with suppress(Exception):  # the cluster is gone: Dask says so of each future
                    there = await self.there(lambda: self._client.nthreads(asynchronous=True))
                    for entry in running:
                        if entry.machine not in there:
                            entry.outcome.give(_LOST)

    def _answer(self, key: str, may_begin: bool) -> None:
        self._batch.told.answers[key] = may_begin
        self._wanted.set()

    # what home says

    async def call_off(self, key: str, reason: str | None) -> bool:
        """Announce that a job was cancelled; return whether it runs, or ``True`` if unknown."""
        batch = self._batch
        batch.told.stops[key] = reason
        self._wanted.set()
        await batch.done.wait()
        return batch.running is None or key in batch.running

    async def run(self) -> None:
        """Send messages until cancelled."""
        try:
            async with self._group:
                self._group.start_soon(self._watch_machines)
                while True:
                    await self._wanted.wait()
                    await lowlevel.checkpoint()  # the others that are cancelled in this turn
                    self._wanted = anyio.Event()
                    batch, self._batch = self._batch, _Batch()
                    await self._say(batch)
        finally:
            with anyio.move_on_after(_PATIENCE, shield=True):
                await self._leave()

    async def _say(self, batch: _Batch) -> None:
        try:
            told = await self.there(
                lambda: self._client.run(hear, batch.told, on_error="ignore", asynchronous=True)
            )
            batch.running = frozenset(key for begun in told.values() for key in begun)
        except Exception:  # noqa: BLE001 (the cluster is gone: what waits for it will hear of that)
            batch.running = None
        finally:
            batch.done.set()

    async def _leave(self) -> None:
        """Clean up on the cluster."""
        try:
            await self.there(
                lambda: self._client.run_on_scheduler(_forget, self.topic, asynchronous=True)
            )
        except Exception:  # noqa: BLE001 (it has no Creche, or is gone; then it keeps a few messages)
            with suppress(Exception):
                self._client.unsubscribe_topic(self.topic)

    async def there(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run a call on the client's event loop, and wait until it has ended."""
        outcome = Outcome(self._begin(call), self._token)
        return await outcome.wait()

    def _begin(
        self, call: Callable[[], Awaitable[T]]
    ) -> asyncio.Future[T] | concurrent.futures.Future[T]:
        if self._is_here:
            return asyncio.ensure_future(_await(call))
        return asyncio.run_coroutine_threadsafe(_await(call), self._loop)


class Outcome(Generic[T]):
    """The outcome of a call that runs on the client's event loop.

    The call is never cancelled, because Dask's calls do not handle cancellation well.
    """

    def __init__(
        self,
        running: asyncio.Future[T] | concurrent.futures.Future[T],
        token: lowlevel.EventLoopToken,
    ) -> None:
        self._running = running
        self._done = anyio.Event()
        running.add_done_callback(partial(_tell, token, self._done))

    def give(self, value: T) -> None:
        """Have another outcome, unless there is one."""
        if not self._running.done():
            given: concurrent.futures.Future[T] = concurrent.futures.Future()
            given.set_result(value)
            self._running = given
            self._done.set()

    async def wait(self) -> T:
        """Wait for it."""
        await self._done.wait()
        return self._running.result()


def _tell(token: lowlevel.EventLoopToken, done: anyio.Event, _: object) -> None:
    run_soon(token, done.set)


async def _await(call: Callable[[], Awaitable[T]]) -> T:
    return await call()


def _hand_over(to: ReferenceType[Line], event: tuple[float, tuple[str, str, bytes]]) -> None:
    """Receive a message, on the client's loop; weak, as the client never drops its handlers."""
    line = to()
    if line is not None:
        line.take(*event[1])


async def _watch(job: Job, outcome: Outcome[bytes | Failure], future: Any) -> None:
    try:
        given = await outcome.wait()
        job.end_abandoned(None if isinstance(given, Failure) else given)
    finally:
        future.release()
        del future


def _forget(topic: str, dask_scheduler: Any) -> None:
    """Drop the events of a topic that the scheduler keeps; it has no method for that."""
    dask_scheduler._broker._topics.pop(topic, None)


async def _outcome(client: Any, future: Any) -> bytes | Failure:
    try:
        given: bytes = await client.gather(future, asynchronous=True)
    except (KilledWorker, concurrent.futures.CancelledError) as error:
        return Failure(str(error), is_crash=True)
    except Exception as error:  # noqa: BLE001 (Dask's)
        return Failure(f"{type(error).__name__}: {error}")
    finally:
        del future
    return given
