"""What the core asks of asyncio and Trio themselves, since it asks for every worker.

AnyIO's functions find out each time what runs: its ``current_time()`` and
``current_effective_deadline()`` together were a quarter of what a worker costs. And some of it
AnyIO does not tell: whether a task has ended, and how to keep a Ctrl+C out of the library's steps.
"""

from __future__ import annotations

import inspect
import sys
from functools import partial
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future, Task
    from collections.abc import Awaitable, Callable, Iterator

    import anyio
    from anyio.lowlevel import EventLoopToken
    from trio.lowlevel import Abort, RaiseCancelT
    from trio.lowlevel import Task as TrioTask

    FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

ArgT = TypeVar("ArgT")
ResultT = TypeVar("ResultT")


class CancelProbe(Protocol):
    """Hears at once when a cancel scope round its task is cancelled: before the task itself does.

    Both backends cancel what a task waits for in the same step as the scope.
    """

    async def listen(self) -> None:
        """Wait in the current task until it is cancelled, by whatever."""
        ...

    async def until_listening(self) -> None:
        """Have the task that was spawned last, to listen, begin before any that follows."""
        ...

    def has_heard(self) -> bool:
        """Whether there may have been a cancellation; certainly none if ``False``."""
        ...


class Host(Protocol):
    """The task in which a nursery was opened."""

    @property
    def task(self) -> object:
        """The task itself, as the backend has it."""
        ...

    def is_current(self) -> bool:
        """Whether it is the one that runs now."""
        ...

    def is_done(self) -> bool:
        """Whether it has ended."""
        ...

    def when_done(self, call: Callable[[], object]) -> None:
        """Have a call made on the loop once it has ended; Trio cancels what it left open."""
        ...


class Backend(Protocol):
    """One event loop."""

    clock: Callable[[], float]
    """Its clock, in seconds, for use in its thread."""

    def get_task(self) -> object:
        """Give the current task of this loop, ``None`` if the caller is in none.

        Then it is in a signal handler while the loop sleeps, in a bare callback, or in a task of
        another loop in the same thread.
        """
        ...

    def is_in_eager_task(self) -> bool:
        """Whether the current task was begun within the step of another, which goes on after."""
        ...

    def get_host(self) -> Host:
        """Give the current task."""
        ...

    def new_cancel_probe(self) -> CancelProbe:
        """Make an ear."""
        ...

    def has_open_scope(self, handle: anyio.TaskHandle[Any]) -> bool:
        """Whether the task has left a cancel scope open within its own, as far as can be told."""
        ...


class _AsyncioProbe:
    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._waiter: Future[None] | None = None

    async def listen(self) -> None:
        self._waiter = self._loop.create_future()
        await self._waiter

    async def until_listening(self) -> None:
        """Do nothing: tasks begin in order."""

    def has_heard(self) -> bool:
        return self._waiter is None or self._waiter.done()


class _AsyncioHost:
    def __init__(self, get_task: Callable[[], Task[Any] | None]) -> None:
        self._get_task = get_task
        self.task: Task[Any] = cast("Task[Any]", get_task())

    def is_current(self) -> bool:
        return self._get_task() is self.task

    def is_done(self) -> bool:
        return self.task.done()

    def when_done(self, call: Callable[[], object]) -> None:
        self.task.add_done_callback(lambda _: call())


class _Asyncio:
    def __init__(self, loop: AbstractEventLoop) -> None:
        from asyncio import current_task  # noqa: PLC0415 (it is running; under Trio it is not needed)

        self._loop = loop
        self.clock = loop.time
        self.get_task: Callable[[], Task[Any] | None] = partial(current_task, loop)

    def is_in_eager_task(self) -> bool:
        task = cast("Task[Any]", self.get_task())
        # AnyIO's own tasks are never begun eagerly; this is what they run.
        name = getattr(task.get_coro(), "__qualname__", "")
        return not name.startswith("TaskHandle.")

    def get_host(self) -> Host:
        return _AsyncioHost(self.get_task)

    def new_cancel_probe(self) -> CancelProbe:
        return _AsyncioProbe(self._loop)

    def has_open_scope(self, handle: anyio.TaskHandle[Any]) -> bool:
        # No public name tells; without these, nothing is found out before AnyIO does.
        scope = getattr(handle, "_cancel_scope", None)
        return bool(getattr(scope, "_child_scopes", None))


class _TrioProbe:
    def __init__(self) -> None:
        self._heard = True

    async def listen(self) -> None:
        from trio import lowlevel  # noqa: PLC0415 (an extra; it is running)

        def abort(_: RaiseCancelT) -> Abort:
            self._heard = True
            return lowlevel.Abort.SUCCEEDED

        self._heard = False
        await lowlevel.wait_task_rescheduled(abort)

    async def until_listening(self) -> None:
        from trio import lowlevel  # noqa: PLC0415 (as above)

        await lowlevel.cancel_shielded_checkpoint()  # tasks begin in any order

    def has_heard(self) -> bool:
        return self._heard


class _TrioHost:
    def __init__(self, current_task: Callable[[], TrioTask]) -> None:
        self._current_task = current_task
        self.task = current_task()

    def is_current(self) -> bool:
        return self._current_task() is self.task

    def is_done(self) -> bool:
        return inspect.getcoroutinestate(self.task.coro) == inspect.CORO_CLOSED

    def when_done(self, call: Callable[[], object]) -> None:
        """Do nothing: Trio cancels the nurseries that an ended task has left open."""


class _Trio:
    def __init__(self) -> None:
        from trio import lowlevel  # noqa: PLC0415 (as above)

        self.clock = lowlevel.current_clock().current_time
        self._current_task = lowlevel.current_task
        _keep_interrupts_out(lowlevel.enable_ki_protection, lowlevel.disable_ki_protection)

    def get_task(self) -> object:
        try:
            return self._current_task()
        except RuntimeError:
            return None

    def is_in_eager_task(self) -> bool:
        return False  # Trio has none

    def get_host(self) -> Host:
        return _TrioHost(self._current_task)

    def new_cancel_probe(self) -> CancelProbe:
        return _TrioProbe()

    def has_open_scope(self, handle: anyio.TaskHandle[Any]) -> bool:
        scope = getattr(getattr(handle, "_cancel_scope", None), "_CancelScope__original", None)
        return bool(getattr(getattr(scope, "_cancel_status", None), "_children", None))


def get_backend(token: EventLoopToken) -> Backend:
    """Give what the core asks of the running loop, in its thread."""
    if hasattr(token.native_token, "create_future"):
        return _Asyncio(cast("AbstractEventLoop", token.native_token))
    return _Trio()


# Ctrl+C under Trio, which raises KeyboardInterrupt wherever the main thread is, unless the code is
# protected: https://trio.readthedocs.io/en/stable/reference-core.html#exceptions-and-warnings.
# All of the core is, but for the few functions that call what the user wrote.

_interruptible: list[CodeType] = []
_protected = False


def interruptible(function: FunctionT) -> FunctionT:
    """Mark a function that calls the user's code: a Ctrl+C under Trio may come in it.

    Whatever it does must be safe to be broken off at any line.
    """
    _interruptible.append(cast("FunctionType", function).__code__)
    return function


@interruptible
def call_users(function: Callable[[ArgT], ResultT], argument: ArgT) -> ResultT:
    """Call a function of the user's from a step of the library."""
    return function(argument)


@interruptible
async def await_users(awaitable: Awaitable[ResultT]) -> ResultT:
    """Await something of the user's in a step of the library."""
    return await awaitable


class _Code:
    """What Trio's decorators take: something that has code."""

    def __init__(self, code: CodeType) -> None:
        self.__code__ = code


def _keep_interrupts_out(enable: Callable[[Any], Any], disable: Callable[[Any], Any]) -> None:
    global _protected  # noqa: PLW0603 (done once, by the first node on Trio)
    if _protected:
        return
    core = "creche._"
    for name, module in list(sys.modules.items()):
        if name.startswith(core):
            for code in _codes(module):
                enable(_Code(code))
    for code in _interruptible:
        disable(_Code(code))
    _protected = True


_FOLDER = __file__.rpartition("_ground")[0]
_PARTS = ("__func__", "fget", "fset")  # of static and class methods, and of properties


def _codes(scope: object) -> Iterator[CodeType]:
    """Give the code of all functions of this package that a module or a class defines."""
    for value in list(vars(scope).values()):
        if isinstance(value, type) and value.__module__.partition(".")[0] == "creche":
            yield from _codes(value)
        for function in (value, *(getattr(value, part, None) for part in _PARTS)):
            code = getattr(function, "__code__", None)
            if isinstance(code, CodeType) and code.co_filename.startswith(_FOLDER):
                yield from _nested(code)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
