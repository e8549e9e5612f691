"""The ways of running work.

Each is one coroutine function that takes the job and returns what the work returned. ``job`` is
told when the work is really entered; until then it is still PENDING and can be called off.
"""

from __future__ import annotations

import inspect
import logging
import threading
from contextlib import nullcontext
from types import AsyncGeneratorType, CoroutineType, FunctionType, GeneratorType, MethodType
from typing import TYPE_CHECKING, Any, Protocol, cast

import anyio
from anyio import lowlevel, to_thread

from creche._ground.backend import interruptible
from creche._ground.bridge import run_soon
from creche._ground.context import current
from creche._ground.errors import WorkerCancelled, WorkerError, strip_traceback
from creche._ground.report import is_a, is_awaitable, shown, tell

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from anyio import CapacityLimiter

_COROUTINE: type[Any] = CoroutineType


def _leaked(job: Job) -> WorkerError:
    return WorkerError(
        f"the work of {job._creche_label()} raised a cancellation that nobody had asked for; "
        "let cancellation out of the scope it belongs to only"
    )


class Job(Protocol):
    """What a way of running asks of its worker."""

    _work: Any
    """What to call, or to await; dropped once the worker has ended."""

    def _is_to_await(self, value: object) -> bool:
        """Whether a value that the work returned is to be awaited."""
        ...

    def _is_cancellation(self, error: BaseException) -> bool:
        """Whether an error says that the work was cancelled."""
        ...

    def _enter(self) -> None:
        """Take note that the work is entered now; raises if it was called off."""
        ...

    def _wait_for_thread(self) -> None:
        """Take note that the job waits for a thread."""
        ...

    def _notice_cancellation(self) -> None:
        """Take note of a cancellation that came from outside."""
        ...

    def _on_cancel(self, stop: Callable[[], object]) -> None:
        """Have ``stop`` called when the worker is cancelled; at once if it is already."""
        ...

    def _note_abandoned(self, *, abandoned: bool) -> None:
        """Take note that the thread was left to itself, or that it has ended since."""
        ...

    def _log_fields(self) -> dict[str, str | None]:
        """Give what a record in the log has of its own."""
        ...

    def _creche_label(self) -> str:
        """Name the worker in a sentence."""
        ...


@interruptible
def call(work: Any) -> object:
    """Call the work, or give it, if it is an awaitable."""
    if type(work) in _FUNCTIONS or not is_awaitable(work):
        return work()
    return work


# What cannot be awaited itself; to ask of anything else takes twenty times as long.
_FUNCTIONS = (FunctionType, MethodType)


@interruptible
def in_task(job: Job) -> Coroutine[Any, Any, Any]:
    """Run async work in the current task, on the node's loop.

    Returns:
        What to await for it. That is the work's own coroutine, as a rule: one around it would be
        the largest object of a worker.
    """
    try:
        value: Any = call(job._work)
        if type(value) is _COROUTINE:
            own: Coroutine[Any, Any, Any] = value
            return own
        return _take(job, value)
    finally:
        # The frames of an error's traceback hold the frames below them, this one too, with all
        # that these know: a worker must not be among it, as it holds the error.
        del job


@interruptible
async def _take(job: Job, value: Any) -> Any:
    """Await what the work returned, if it is not a coroutine."""
    try:
        if job._is_to_await(value):
            return await value
        if is_awaitable(value):
            return value  # a worker: whoever wants its result awaits it
        check_no_generator(job, value)
        raise WorkerError(
            f"the work of {job._creche_label()} is a plain function that returned no awaitable "
            f"but {shown(value, 100)}; run it with thread=True, or make it an async function"
        )
    finally:
        del job


def check_no_generator(job: Job, value: object) -> None:
    """Raise an error if what the work returned is a generator, of which not a line has run.

    Raises:
        WorkerError: It is.
    """
    if is_a(value, (GeneratorType, AsyncGeneratorType)):
        raise WorkerError(
            f"the work of {job._creche_label()} returned a generator, of which nothing has run; "
            "iterate over it in the work and return a value, with no yield"
        )


async def in_thread(
    job: Job, limiter: CapacityLimiter | None, token: lowlevel.EventLoopToken, *, abandon: bool
) -> Any:
    """Run a plain callable in a worker thread, or async work on an event loop of its own there."""
    if limiter is None:
        limiter = to_thread.current_default_thread_limiter()
    elif not callable(getattr(limiter, "acquire_on_behalf_of", None)):
        raise WorkerError(
            f"the limiter of {job._creche_label()} must be a CapacityLimiter of AnyIO, "
            f"not {shown(limiter, 100)}"
        )
    call = _ThreadCall(job, limiter, token, abandon=abandon)
    try:
        return await call.run()
    finally:
        del call  # its frames are in the traceback of what it raised


def is_unawaited(value: object) -> bool:
    """Whether something is a coroutine of which not a line has run: it is warned about."""
    return is_a(value, _COROUTINE) and inspect.getcoroutinestate(value) == inspect.CORO_CREATED


class _ThreadCall:
    """A call in a worker thread; and the limiter that AnyIO is given for it.

    As a limiter it takes the real token and then, with no checkpoint in between, notes that the
    work is entered: the call is certain from there on. AnyIO gives a token back when the task
    stops waiting; this one goes back when the thread has really ended.
    """

    def __init__(
        self, job: Job, limiter: CapacityLimiter, token: lowlevel.EventLoopToken, *, abandon: bool
    ) -> None:
        self._job = job
        self._limiter = limiter
        self._token = token
        self._abandon = abandon
        self._guard = anyio.CancelScope() if abandon else None
        self._lock = threading.Lock()  # what follows is decided between the thread and its host
        self._called_off = False
        self._begun = False
        self._ended = False
        self._left: Callable[[], object] | None = None
        self._has_token = False
        self._value: object = None
        self._error: BaseException | None = None

    # the limiter

    async def acquire_on_behalf_of(self, _borrower: object) -> None:
        self._job._wait_for_thread()
        await self._limiter.acquire_on_behalf_of(self)
        self._has_token = True
        self._job._enter()
        # An abandoned call that no thread has picked up yet would never be made. So abandoning
        # has to wait for the thread.
        if self._guard is not None:
            self._guard.shield = True

    def release_on_behalf_of(self, _borrower: object) -> None:
        """Keep the token: see the class."""

    async def __aenter__(self) -> None:
        await self.acquire_on_behalf_of(self)

    async def __aexit__(self, *_: object) -> None:
        self.release_on_behalf_of(self)

    def _give_back(self) -> None:
        if self._has_token:
            self._has_token = False
            self._limiter.release_on_behalf_of(self)

    # the host

    async def run(self) -> object:
        try:
            # A scope is dear, and without it AnyIO shields the call itself.
            with self._guard or nullcontext():
                await to_thread.run_sync(
                    self._in_thread,
                    abandon_on_cancel=self._abandon,
                    limiter=cast("CapacityLimiter", self),
                )
        except BaseException as error:
            if not await self._outlive_cancellation():
                raise
            if is_a(error, anyio.get_cancelled_exc_class()):
                # The thread was quicker than a native cancellation, of which nobody else hears.
                self._job._notice_cancellation()
            else:
                self._keep(error)
        self._give_back()
        return await self._outcome()

    async def _outlive_cancellation(self) -> bool:
        """Deal with a wait that was cut short; tell whether there is an outcome all the same."""
        over = anyio.Event()
        with self._lock:
            if self._ended:
                return True
            if not self._begun:
                self._called_off = True
            elif self._abandon:
                self._left = self._give_back
            else:
                self._left = over.set
        if self._called_off:
            self._give_back()
            return False
        if self._abandon:
            self._job._note_abandoned(abandoned=True)
            return False
        # A native Task.cancel() went through AnyIO's shield. The thread cannot be killed, so the
        # work has not left yet.
        self._job._notice_cancellation()
        while not over.is_set():
            try:
                with anyio.CancelScope(shield=True):
                    await over.wait()
            except anyio.get_cancelled_exc_class():  # native once more
                continue
        return True

    async def _outcome(self) -> object:
        error, self._error = self._error, None
        try:
            if error is None:
                return self._value
            if is_a(error, anyio.get_cancelled_exc_class()):
                await lowlevel.checkpoint_if_cancelled()
                error = _leaked(self._job)
            raise error
        finally:
            del error, self

    # the thread

    def _in_thread(self) -> None:
        try:
            self._run_in_thread()
        except BaseException as error:  # noqa: BLE001 (the host raises it)
            self._error = error
        finally:
            try:
                self._leave()
            except BaseException as fault:  # noqa: BLE001 (as above)
                self._keep(fault)
                self._leave()  # or the host would wait for ever
            finally:
                del self  # see in_task()

    def _run_in_thread(self) -> None:
        work: object = None
        with self._lock:
            if self._called_off:
                return
            self._begun = True
        work = self._job._work  # before the worker can be abandoned, and so ended
        if self._guard is not None:
            run_soon(self._token, self._lift_guard)
        try:
            self._value = self._do(work)
        except BaseException as error:  # noqa: BLE001 (as above)
            self._error = error
        finally:
            del self, work  # as above

    def _keep(self, fault: BaseException) -> None:
        """Keep for the host what broke off a step of our own, unless the work has raised."""
        if self._error is None:
            self._error = fault
        else:
            tell(
                logging.ERROR,
                "the thread of %s was broken off",
                self._job._creche_label(),
                error=fault,
            )

    def _leave(self) -> None:
        """Say in the thread that it has ended; may be called again."""
        with self._lock:
            self._ended = True
            left = self._left
        if left is not None:
            self._report_late(left)
        self._left = None  # may be a method of its own: a cycle

    def _lift_guard(self) -> None:
        assert self._guard is not None
        self._guard.shield = False

    def _do(self, work: object) -> object:
        value: object = None
        try:
            value = call(work)
            if self._job._is_to_await(value):
                return _on_own_loop(self._job, cast("Awaitable[Any]", value), self._token)
            check_no_generator(self._job, value)
            return value
        finally:
            if is_unawaited(value):
                cast("CoroutineType[Any, Any, Any]", value).close()  # it was broken off
            del self, work  # see in_task()

    def _report_late(self, left: Callable[[], object]) -> None:
        if self._abandon:
            self._job._note_abandoned(abandoned=False)
            if self._error is not None and not self._job._is_cancellation(self._error):
                strip_traceback(self._error)
                tell(
                    logging.ERROR,
                    "the abandoned thread of %s failed",
                    self._job._creche_label(),
                    error=self._error,
                    fields=self._job._log_fields(),
                )
            self._value = self._error = None
        run_soon(self._token, left)


def _on_own_loop(job: Job, awaitable: Awaitable[Any], host: lowlevel.EventLoopToken) -> object:
    """Await something on a new event loop of the host's backend, in the current thread.

    What the work raises holds, from Python 3.12 on, all frames that were below it, the loop's with
    their contexts too. The worker holds the error, so none of them may know it in the end.
    """
    has_begun = False

    async def main() -> tuple[object, BaseException | None]:
        nonlocal job, awaitable, has_begun
        has_begun = True
        token = lowlevel.current_token()
        try:
            with anyio.CancelScope() as scope:
                job._on_cancel(lambda: run_soon(token, scope.cancel))
                try:
                    return await awaitable, None
                except anyio.get_cancelled_exc_class():
                    if scope.cancel_called:
                        raise
                    # It must not cross over: the host would take it for a cancellation of its own.
                    return None, _leaked(job)
                except BaseException as error:  # noqa: BLE001 (kept from the machinery of the loop)
                    strip_traceback(error)
                    return None, error
            return None, WorkerCancelled(f"{job._creche_label()} was cancelled")
        finally:
            current.set(None)
            del job, awaitable

    module = host.backend_class.__module__
    backend = next(name for name in anyio.get_all_backends() if name in module)
    try:
        value, error = anyio.run(main, backend=backend)
    finally:
        current.set(None)
        if not has_begun and inspect.iscoroutine(awaitable):
            awaitable.close()  # there was no loop to be had
    if error is not None:
        try:
            raise error
        finally:
            del error
    return value
