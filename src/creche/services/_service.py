"""Work that is run again when it fails."""

from __future__ import annotations

import functools
import inspect
import math
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar, cast, overload

import anyio

from creche import Worker, WorkerError, get_current_worker

from ._attempts import Attempts
from ._function import check_function, is_async, name_of, takes_status
from ._restart import Restart, matcher

if TYPE_CHECKING:
    import sys
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskStatus

    from ._restart import Which

    if sys.version_info >= (3, 11):
        from typing import Unpack
    else:
        from typing_extensions import Unpack

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class _WithStatus(Protocol[T_co]):
    """A function that is told where to say that it is ready."""

    def __call__(self, *, task_status: TaskStatus[Any]) -> T_co: ...


class _Status:
    """What says for work that it is ready; it does not keep the worker alive."""

    def __init__(self, worker: Worker[Any]) -> None:
        self._worker = weakref.ref(worker)

    def started(self, value: object = None) -> None:
        """Say that the work is ready, see ``Worker.ready()``."""
        worker = self._worker()
        if worker is not None:
            worker.ready(value)


class _Options(TypedDict, total=False):
    """The options of a service."""

    restart: Restart
    always: bool
    on: Which
    stall_after: float | None


@overload
def service(
    fn: Callable[[], Awaitable[T]], **options: Unpack[_Options]
) -> Callable[[], Awaitable[T]]: ...


@overload
def service(
    fn: _WithStatus[Awaitable[T]], **options: Unpack[_Options]
) -> Callable[[], Awaitable[T]]: ...


@overload
def service(fn: Callable[[], T], **options: Unpack[_Options]) -> Callable[[], T]: ...


@overload
def service(fn: _WithStatus[T], **options: Unpack[_Options]) -> Callable[[], T]: ...


def service(
    fn: Callable[..., Any],
    *,
    restart: Restart = Restart(),  # noqa: B008 (it cannot be changed)
    always: bool = False,
    on: Which = Exception,
    stall_after: float | None = None,
) -> Callable[[], Any]:
    """Make work that runs a function, and runs it again when it raises an error.

    Use ``app.run_worker(service(consume), name="consumer")``. The worker stays RUNNING meanwhile.
    Each restart is counted in ``worker.attempt``, announced by ``Worker.Restarted`` and logged. Too
    many restarts in a short time end the work with ``RestartsExhausted``.

    The work always ends when the function returns (unless ``always`` is set), when it is cancelled,
    even while it waits for the next attempt, and when the function raises something that is not an
    ``Exception``, ``NotRestartable``, or a ``WorkerError``: that one means that Creche was misused
    or that the node takes no more work. An error after the cancellation changes nothing and is
    only logged. ``WorkerFailed`` and ``WorkerCancelled`` are about other workers, and are errors
    like any other.

    Args:
        fn: An async function, or a plain one for ``run_worker(..., thread=True)``. It is
            called without arguments, or with ``task_status=`` if it has such a parameter; its
            ``started(value)`` is ``worker.ready(value)``.
        restart: How often it may be run again, and after how long.
        always: Whether it is also run again when it returns; that counts as an error.
        on: For which errors it is run again: a class, several classes, or a function that gets the
            error and returns a bool. For an exception group, all errors must match.
        stall_after: Seconds without ``advance()`` or ``update()`` in an attempt, after which
            ``Worker.Stalled`` is announced; it overrides that of ``run_worker()``.

    Returns:
        A function without arguments, for ``run_worker()``, ``start_worker()`` and so on. It is
        async if ``fn`` is, has its name, and returns what ``fn`` returns. It can be used for any
        number of workers; each has its own budget of restarts. It raises what ends the service, and
        ``NoActiveWorker`` if it is called outside of a worker.

    Raises:
        WorkerError: An argument is invalid. A coroutine object is closed.

    Checkpoint:
        The function: before each further attempt.

    Threads:
        Any.
    """
    is_coroutine = check_function(fn)
    if not isinstance(restart, Restart):
        raise WorkerError(f"restart must be a Restart(), not {restart!r:.100}")
    if is_async(on):
        raise WorkerError("on must tell at once whether to run the work again; give a plain def")
    name = name_of(fn)
    _check_stall_after(stall_after)
    made = _Service(
        fn,
        name,
        restart,
        matcher(on),
        always=always,
        takes_status=takes_status(fn),
        stall_after=stall_after,
    )

    async def run() -> Any:
        return await made.run()

    def run_in_thread() -> Any:
        return made.run_in_thread()

    work: Any = run if is_coroutine else run_in_thread
    functools.update_wrapper(work, fn, updated=())
    work.__name__ = name
    work.__signature__ = inspect.Signature()  # else it would be that of fn
    return cast("Callable[[], Any]", work)


class _Service:
    """A function, and when it is run again.

    The frames of what it raises are kept with the error, and so by the worker that has failed. None
    of them may know the worker by then: that would be a reference cycle. The two ways to run it
    differ in how they call the function and wait; ``Attempts`` decides what comes next.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        name: str,
        restart: Restart,
        is_wanted: Callable[[Exception], object],
        *,
        always: bool,
        takes_status: bool,
        stall_after: float | None,
    ) -> None:
        self._fn = fn
        self._name = name
        self._restart = restart
        self._is_wanted = is_wanted
        self._always = always
        self._takes_status = takes_status
        self._stall_after = stall_after

    def _begin(
        self,
        worker: Worker[Any],
        clock: Callable[[], float],
        is_cancelled: Callable[[Worker[Any]], bool],
    ) -> Attempts:
        if self._stall_after is not None:
            worker.watch_stalls(self._stall_after)
        return Attempts(
            f"{self._name}()",
            worker,
            self._restart,
            self._is_wanted,
            always=self._always,
            clock=clock,
            is_cancelled=is_cancelled,
        )

    def _options(self, worker: Worker[Any]) -> dict[str, Any]:
        return {"task_status": _Status(worker)} if self._takes_status else {}

    async def run(self) -> Any:
        worker = get_current_worker()
        attempts = self._begin(worker, anyio.current_time, _is_cancelled)
        try:
            while True:
                with attempts:
                    value = await self._awaitable(self._fn(**self._options(worker)))
                    if attempts.is_result():
                        return value
                    del value
                await anyio.sleep(attempts.next_delay())
        finally:
            del worker, attempts  # they hold errors, which hold this frame

    def run_in_thread(self) -> Any:
        worker = get_current_worker()
        attempts = self._begin(worker, time.monotonic, _is_told)
        try:
            if not worker.thread:
                raise WorkerError(
                    f"{self._name}() is a plain function, so it is a service of a thread; run it "
                    "with thread=True, or make it an async function"
                )
            while True:
                with attempts:
                    value = self._plain(self._fn(**self._options(worker)))
                    if attempts.is_result():
                        return value
                    del value
                worker.cancelled_event.wait(min(attempts.next_delay(), threading.TIMEOUT_MAX))
                worker.check_cancelled()
        finally:
            del worker, attempts  # as above

    def _awaitable(self, value: object) -> Awaitable[Any]:
        if inspect.isawaitable(value):
            return value
        raise WorkerError(
            f"{self._name}() must be an async function, and returned {value!r:.100}, which is not "
            "awaitable"
        )

    def _plain(self, value: object) -> object:
        if not inspect.isawaitable(value):
            return value
        if inspect.iscoroutine(value):
            value.close()
        raise WorkerError(
            f"{self._name}() is a plain function and returned something to be awaited; give "
            "service() the async function itself, with arguments as functools.partial(fn, ...)"
        )


def _is_cancelled(worker: Worker[Any]) -> bool:
    """Whether the worker was cancelled; or a scope round its node, of which it may not know yet."""
    return worker.is_cancelled or anyio.current_effective_deadline() == -math.inf


def _is_told(worker: Worker[Any]) -> bool:
    return worker.is_cancelled


def _check_stall_after(seconds: object) -> None:
    is_time = isinstance(seconds, int | float) and type(seconds) is not bool and seconds > 0
    if seconds is not None and not is_time:
        raise WorkerError(f"stall_after must be seconds, more than 0, not {seconds!r:.100}")
