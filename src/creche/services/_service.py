"""Work that is run again when it fails."""

from __future__ import annotations

import functools
import inspect
import math
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, overload

import anyio

from creche import Worker, WorkerError, get_current_worker

from ._restart import Budget, Restart, is_final, matcher

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from anyio.abc import TaskStatus

    from ._restart import Which

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


@overload
def service(
    fn: Callable[[], Awaitable[T]], *, restart: Restart = ..., always: bool = ..., on: Which = ...
) -> Callable[[], Awaitable[T]]: ...


@overload
def service(
    fn: _WithStatus[Awaitable[T]], *, restart: Restart = ..., always: bool = ..., on: Which = ...
) -> Callable[[], Awaitable[T]]: ...


@overload
def service(
    fn: Callable[[], T], *, restart: Restart = ..., always: bool = ..., on: Which = ...
) -> Callable[[], T]: ...


@overload
def service(
    fn: _WithStatus[T], *, restart: Restart = ..., always: bool = ..., on: Which = ...
) -> Callable[[], T]: ...


def service(
    fn: Callable[..., Any],
    *,
    restart: Restart = Restart(),  # noqa: B008 (it cannot be changed)
    always: bool = False,
    on: Which = Exception,
) -> Callable[[], Any]:
    """Make work that runs a function, and runs it again when that raises an error.

    ``app.run_worker(service(consume), name="consumer")``. The worker stays RUNNING meanwhile. Each
    restart counts in ``worker.attempt`` and is told by ``Worker.Restarted`` and in the log. Too
    many of them in a short time end the work with ``RestartsExhausted``.

    What ends it in any case is a return, unless it is to run always; cancellation, a wait for the
    next attempt included; what is no ``Exception``; ``NotRestartable``; and a ``WorkerError``,
    which says that Creche was not used well or that the node takes no more work.
    ``WorkerFailed`` and ``WorkerCancelled`` are errors as any other: they tell of another worker.

    Args:
        fn: An async function, or a plain one, which is for ``run_worker(..., thread=True)``. It is
            called without arguments; with ``task_status=`` if it has such a parameter, whose
            ``started(value)`` is ``worker.ready(value)``.
        restart: How often it may be run again, and after how long.
        always: Whether it is run again as well when it returns; that counts as an error.
        on: For which errors it is run again: a class, several, or a function that is given the
            error and tells. Of an exception group all errors have to be of the classes.

    Returns:
        A function without arguments, for ``run_worker()``, ``start_worker()`` and the like. It is
        async if ``fn`` is, has its name, and returns what that returns. It can be used for any
        number of workers: each has a budget of its own. It raises what ends the service, as told
        above, and ``NoActiveWorker`` if it is not called in the work of a worker.

    Raises:
        WorkerError: An argument makes no sense. A coroutine object is closed.

    Checkpoint:
        The function: before each further attempt.

    Threads:
        Any.
    """
    is_async = _check_function(fn)
    if not isinstance(restart, Restart):
        raise WorkerError(f"restart must be a Restart(), not {restart!r:.100}")
    if _is_async(on):
        raise WorkerError("on must tell at once whether to run the work again; give a plain def")
    name = _name_of(fn)
    made = _Service(fn, name, restart, matcher(on), always=always, takes_status=_takes_status(fn))

    async def run() -> Any:
        return await made.run()

    def run_in_thread() -> Any:
        return made.run_in_thread()

    work: Any = run if is_async else run_in_thread
    functools.update_wrapper(work, fn, updated=())
    work.__name__ = name
    work.__signature__ = inspect.Signature()  # else it would be that of fn
    return cast("Callable[[], Any]", work)


class _Service:
    """A function, and when it is run again.

    The frames of what it raises are kept with the error, and so by the worker that has failed. None
    of them may know the worker by then: that would be a reference cycle.
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
    ) -> None:
        self._fn = fn
        self._name = name
        self._restart = restart
        self._is_wanted = is_wanted
        self._always = always
        self._takes_status = takes_status

    def _options(self, worker: Worker[Any]) -> dict[str, Any]:
        return {"task_status": _Status(worker)} if self._takes_status else {}

    def _is_restartable(self, error: Exception) -> bool:
        return not is_final(error) and bool(self._is_wanted(error))

    def _returned(self) -> Exception:
        return RuntimeError(f"{self._name}() returned, and is to run always")

    async def run(self) -> Any:
        worker, failure = get_current_worker(), None
        budget = Budget(self._restart, f"{self._name}()")
        try:
            while True:
                began = anyio.current_time()
                try:
                    value = await self._awaitable(self._fn(**self._options(worker)))
                    if not self._always or _is_cancelled(worker):
                        return value
                    failure, value = self._returned(), None
                except Exception as error:
                    if _is_cancelled(worker) or not self._is_restartable(error):
                        raise
                    failure = _without_head(error)
                now = anyio.current_time()
                delay = budget.take(failure, now, now - began)
                worker.restarted(failure, delay)
                failure = None
                await anyio.sleep(delay)
        finally:
            del worker, failure, budget  # it holds errors, which hold this frame

    def run_in_thread(self) -> Any:
        worker, failure = get_current_worker(), None
        budget = Budget(self._restart, f"{self._name}()")
        try:
            if not worker.thread:
                raise WorkerError(
                    f"{self._name}() is a plain function, so it is a service of a thread; run it "
                    "with thread=True, or make it an async function"
                )
            while True:
                began = time.monotonic()
                try:
                    value = self._plain(self._fn(**self._options(worker)))
                    if not self._always or worker.is_cancelled:
                        return value
                    failure, value = self._returned(), None
                except Exception as error:
                    if worker.is_cancelled or not self._is_restartable(error):
                        raise
                    failure = _without_head(error)
                now = time.monotonic()
                delay = budget.take(failure, now, now - began)
                worker.restarted(failure, delay)
                failure = None
                worker.cancelled_event.wait(min(delay, threading.TIMEOUT_MAX))
                worker.check_cancelled()
        finally:
            del worker, failure, budget  # it holds errors, which hold this frame

    def _awaitable(self, value: object) -> Awaitable[Any]:
        if inspect.isawaitable(value):
            return value
        raise WorkerError(
            f"{self._name}() was to be an async function, and returned no awaitable but "
            f"{value!r:.100}"
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


def _without_head(error: Exception) -> Exception:
    """Have the traceback of an error begin in the function, not in the frame that keeps it."""
    error.__traceback__ = cast("TracebackType", error.__traceback__).tb_next
    return error


def _check_function(fn: object) -> bool:
    """Tell whether a function is an async one.

    Raises:
        WorkerError: It is not certain, or it is no function that can be called again.
    """
    if inspect.isawaitable(fn):
        name = getattr(fn, "__name__", "fn")
        if inspect.iscoroutine(fn):
            fn.close()  # nobody awaits it
        raise WorkerError(
            f"service() takes a function, to be called for each attempt, not {fn!r:.100}, which "
            f"runs once; give {name}, or functools.partial({name}, ...) if there are arguments"
        )
    if not callable(fn) or isinstance(fn, type):
        raise WorkerError(f"service() takes a function, async or plain, not {fn!r:.100}")
    _check_parameters(fn)
    if _is_async(fn):
        return True
    for each in _layers(fn):
        if inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each):
            raise WorkerError(
                f"{_name_of(fn)}() is a generator, of which nothing would run; iterate over it "
                "in a function, and give that"
            )
    if not inspect.isroutine(_layers(fn)[-1]):
        raise WorkerError(
            f"it cannot be told whether {fn!r:.100} is async or plain; give a function, "
            "async def or def, that calls it"
        )
    return False


def _check_parameters(fn: Callable[..., object]) -> None:
    for name, parameter in _parameters(fn).items():
        is_left_out = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        is_given = name == "task_status" and parameter.kind is not parameter.POSITIONAL_ONLY
        if parameter.default is parameter.empty and not (is_left_out or is_given):
            called = _name_of(fn)
            raise WorkerError(
                f"{called}() needs an argument, {name!r}, and a service is called without; give "
                f"service(functools.partial({called}, ...))"
            )


def _takes_status(fn: Callable[..., object]) -> bool:
    parameter = _parameters(fn).get("task_status")
    return parameter is not None and parameter.kind in (
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.KEYWORD_ONLY,
    )


def _parameters(fn: Callable[..., object]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(fn).parameters)
    except (TypeError, ValueError):  # of some that are written in C nobody knows
        return {}


def _layers(fn: object) -> list[object]:
    """Give a callable, and what is in it: of a partial, of an object, of decorators."""
    layers = [fn]
    while True:
        inner: Any = layers[-1]
        if isinstance(inner, functools.partial):
            inner = inner.func
        elif hasattr(inner, "__wrapped__"):
            inner = inner.__wrapped__
        elif not inspect.isroutine(inner) and inspect.isroutine(type(inner).__call__):
            inner = type(inner).__call__
        else:
            return layers
        layers.append(inner)


def _is_async(fn: object) -> bool:
    return any(map(inspect.iscoroutinefunction, _layers(fn)))


def _name_of(fn: object) -> str:
    called = next(each for each in _layers(fn) if not isinstance(each, functools.partial))
    name = getattr(called, "__name__", None)
    return name if isinstance(name, str) else type(called).__name__
