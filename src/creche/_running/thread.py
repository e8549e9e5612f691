"""Running work in a worker thread of AnyIO's."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import anyio
from anyio import lowlevel, to_thread

from creche._ground.bridge import backend_name, run_soon
from creche._ground.errors import WorkerError, strip_traceback
from creche._ground.report import is_a, shown, tell

from .job import call, check_no_generator, close_unawaited, leaked
from .own_loop import on_own_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from anyio import CapacityLimiter

    from .job import Job


def in_thread(
    job: Job, limiter: CapacityLimiter | None, token: lowlevel.EventLoopToken, *, abandon: bool
) -> Coroutine[Any, Any, Any]:
    """Run a plain callable in a worker thread, or async work on an event loop of its own there."""
    if limiter is None:
        limiter = _default_limiter(token)
    elif not callable(getattr(limiter, "acquire_on_behalf_of_nowait", None)):
        raise WorkerError(
            f"the limiter of {job.label()} must be a CapacityLimiter of AnyIO, "
            f"not {shown(limiter, 100)}"
        )
    return ThreadCall(job, limiter, token, abandon=abandon).run()


_limiters: WeakKeyDictionary[object, CapacityLimiter] = WeakKeyDictionary()


def _default_limiter(token: lowlevel.EventLoopToken) -> CapacityLimiter:
    """Give the loop's default limiter; AnyIO would look it up each time, which is expensive."""
    limiter = _limiters.get(token)
    if limiter is None:
        limiter = _limiters[token] = to_thread.current_default_thread_limiter()
    return limiter


class ThreadCall:
    """A call in a worker thread, which also acts as its limiter for AnyIO.

    As a limiter it acquires the real token and then, with no checkpoint in between, records that
    the work is entered: from there on the call is certain. AnyIO releases a token when the task
    stops waiting; this one is released when the thread has really ended.
    """

    _called_off = False
    _begun = False
    _ended = False
    _left: Callable[[], object] | None = None
    _has_token = False
    _value: object = None
    _error: BaseException | None = None

    def __init__(
        self, job: Job, limiter: CapacityLimiter, token: lowlevel.EventLoopToken, *, abandon: bool
    ) -> None:
        self._job = job
        self._limiter = limiter
        self._token = token
        self._abandon = abandon
        self._guard = anyio.CancelScope() if abandon else None
        self._lock = threading.Lock()  # protects the first four below, for the thread and its host

    # the limiter

    async def acquire_on_behalf_of(self, _borrower: object) -> None:
        self._job.wait_for_thread()
        try:
            # AnyIO has had a checkpoint; two more would cost as much as the thread.
            self._limiter.acquire_on_behalf_of_nowait(self)
        except anyio.WouldBlock:
            await self._limiter.acquire_on_behalf_of(self)
        self._has_token = True
        self._job.enter()
        # If a call were abandoned before a thread takes it, it would never be made. So abandoning
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
            if self._guard is None:
                # A scope is expensive, and without one AnyIO shields the call.
                await to_thread.run_sync(self._in_thread, limiter=cast("CapacityLimiter", self))
            else:
                with self._guard:
                    await to_thread.run_sync(
                        self._in_thread,
                        abandon_on_cancel=True,
                        limiter=cast("CapacityLimiter", self),
                    )
        except BaseException as error:
            if not await self._outlive_cancellation():
                raise
            if is_a(error, anyio.get_cancelled_exc_class()):
                # The thread was faster than a native cancellation, which nothing else has noticed.
                self._job.notice_cancellation()
            else:
                self._keep(error)
        self._give_back()
        if self._error is None:
            return self._value
        return await self._raise_error(self._error)

    async def _outlive_cancellation(self) -> bool:
        """Handle a wait that was cut short; return whether there is an outcome anyway."""
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
            self._job.note_abandoned(abandoned=True)
            return False
        # A native Task.cancel() got through AnyIO's shield. The thread cannot be killed, so the
        # work is still running.
        self._job.notice_cancellation()
        while not over.is_set():
            try:
                with anyio.CancelScope(shield=True):
                    await over.wait()
            except anyio.get_cancelled_exc_class():  # another native cancellation
                continue
        return True

    async def _raise_error(self, error: BaseException) -> object:
        self._error = None
        try:
            if is_a(error, anyio.get_cancelled_exc_class()):
                await lowlevel.checkpoint_if_cancelled()
                raise leaked(self._job.label())
            raise error
        finally:
            del error  # see errors: frames

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
                self._leave()  # otherwise the host would wait forever

    def _run_in_thread(self) -> None:
        with self._lock:
            if self._called_off:
                return
            self._begun = True
        work = self._job.work  # before the worker can be abandoned and ends
        if self._guard is not None:
            run_soon(self._token, self._lift_guard)
        try:
            self._value = self._do(work)
        except BaseException as error:  # noqa: BLE001 (as above)
            self._error = error

    def _keep(self, fault: BaseException) -> None:
        """Keep an error that interrupted one of our steps, unless the work has raised."""
        if self._error is None:
            self._error = fault
        else:
            tell(
                logging.ERROR,
                "the thread of %s was interrupted",
                self._job.label(),
                error=fault,
            )

    def _leave(self) -> None:
        """Report, in the thread, that it has ended; safe to call again."""
        with self._lock:
            self._ended = True
            left = self._left
        if left is not None:
            self._report_late(left)
        self._left = None  # it may be a method of this object: a cycle

    def _lift_guard(self) -> None:
        assert self._guard is not None
        self._guard.shield = False

    def _do(self, work: object) -> object:
        value: object = None
        try:
            value = call(work)
            if self._job.is_to_await(value):
                return on_own_loop(
                    self._job.label(),
                    self._job.on_cancel,
                    cast("Awaitable[Any]", value),
                    backend_name(self._token),
                )
            check_no_generator(value, self._job.label)
            return value
        finally:
            close_unawaited(value)

    def _report_late(self, left: Callable[[], object]) -> None:
        if self._abandon:
            self._job.note_abandoned(abandoned=False)
            if self._error is not None and not self._job.is_cancellation(self._error):
                strip_traceback(self._error)
                tell(
                    logging.ERROR,
                    "the abandoned thread of %s failed",
                    self._job.label(),
                    error=self._error,
                    fields=self._job.log_fields(),
                )
            self._value = self._error = None
        run_soon(self._token, left)
