"""Work in a user's executor: a pool of processes, from the standard library or loky."""

from __future__ import annotations

import sys
from concurrent.futures import BrokenExecutor, CancelledError, Executor, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from creche._ground.bridge import run_soon
from creche._ground.errors import WorkerCrashed, WorkerError
from creche._ground.report import is_a, shown, text_of

from .hub import Hub
from .line import run_far

if TYPE_CHECKING:
    from concurrent.futures import Future

    from creche._ground.way import Job

_HUB = object()  # one for each tree, for any number of executors

if sys.version_info >= (3, 14):  # pragma: no cover (on CPython 3.14 alone)
    from concurrent.futures import InterpreterPoolExecutor

    _OF_INTERPRETERS: tuple[type, ...] = (InterpreterPoolExecutor,)
else:  # pragma: no cover (as above)
    _OF_INTERPRETERS = ()


class OnExecutor:
    """Run work in an executor that makes processes or interpreters; for ``where=``.

    An executor that is passed to ``where=`` directly is wrapped in one. It still belongs to the
    caller, who has to shut it down. A worker is RUNNING once its work really begins, whatever the
    executor says: the work asks first. A worker that is cancelled before that never begins. One
    that is cancelled later is notified, and waited for unless ``abandon_on_cancel`` is set, because
    work in an executor cannot be killed.

    The connections through which the work asks are local, so it has to run on the same machine.

    Args:
        executor: The executor. Its start method must not be ``fork``, which is unsafe in programs
            with threads.

    Raises:
        WorkerError: It is not an executor, or an executor of threads.
    """

    def __init__(self, executor: Executor) -> None:
        if not is_a(executor, Executor):
            raise WorkerError(f"OnExecutor() takes an executor, not {shown(executor)}")
        if is_a(executor, ThreadPoolExecutor) and not is_a(executor, _OF_INTERPRETERS):
            raise WorkerError(
                f"{type(executor).__name__} runs threads; use thread=True, and limiter= to bound "
                "them"
            )
        self._executor = executor

    def __repr__(self) -> str:
        return f"OnExecutor({type(self._executor).__name__})"

    async def __call__(self, job: Job) -> Any:
        """Run a job; see ``creche.ways.Way``."""
        hub = job.resource(_HUB, Hub)
        payload = job.pack()
        number = hub.expect(job)
        try:
            call = _Call(job, hub, number)
            call.submit(self._executor, payload)
            return await call.run()
        finally:
            hub.forget(number)


class _Call:
    """A job in an executor."""

    def __init__(self, job: Job, hub: Hub, number: int) -> None:
        self._job = job
        self._hub = hub
        self._number = number
        self._done = hub.backend.new_event()
        self._future: Future[bytes]

    def submit(self, executor: Executor, payload: bytes) -> None:
        hub, done = self._hub, self._done
        try:
            self._future = executor.submit(run_far, hub.address, hub.key, self._number, payload)
        except BrokenExecutor as error:
            raise _crash(self._job.label, error) from error
        except Exception as error:
            raise WorkerError(
                f"{self._job.label} cannot be handed over: {type(error).__name__}: {text_of(error)}"
            ) from error
        # Refer to nothing of the job: an executor keeps its futures for a while.
        token = hub.token
        self._future.add_done_callback(lambda _: run_soon(token, done.set))

    async def run(self) -> Any:
        try:
            await self._done.wait()
        except anyio.get_cancelled_exc_class():
            self._job.notice_cancellation()
            if not await self._is_over():
                raise
        return self._job.open(self._outcome())

    async def _is_over(self) -> bool:
        """Handle a cancellation; return whether the work ran to its end anyway."""
        if not self._job.is_running:
            # If it still asks to begin, it is refused. So the answer of the executor, which may be
            # wrong, does not matter.
            self._future.cancel()
            return False
        reason = self._job.cancel_reason
        told = None if reason is None else text_of(reason)
        await self._job.outlast(partial(self._hub.stop, self._number, told))
        if self._job.abandon_on_cancel:
            self._job.abandon()
            self._future.add_done_callback(partial(_end_abandoned, self._job))
            return False
        await self._job.outlast(self._done.wait)
        return True

    def _outcome(self) -> bytes:
        """Return the outcome.

        Raises:
            WorkerCrashed: What it ran in is gone.
        """
        label = self._job.label
        try:
            return self._future.result()
        except CancelledError:
            raise WorkerError(
                f"the executor has cancelled {label}; shut it down after the work in it has ended"
            ) from None
        except BaseException as error:
            raise _crash(label, error) from error


def _crash(label: str, error: BaseException) -> WorkerCrashed:
    return WorkerCrashed(f"what ran {label} is gone: {type(error).__name__}: {text_of(error)}")


def _end_abandoned(job: Job, future: Future[bytes]) -> None:
    outcome = None
    if not future.cancelled() and future.exception() is None:
        outcome = future.result()
    job.end_abandoned(outcome)
