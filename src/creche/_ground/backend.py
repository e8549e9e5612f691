"""What the core asks asyncio and Trio directly, because it asks for every worker.

AnyIO's functions detect the running backend on each call: ``current_time()`` and
``current_effective_deadline()`` together were a quarter of the cost of a worker. And AnyIO does not
offer some of it, for example whether a task has ended.
"""

from __future__ import annotations

import inspect
import sys
import time
from abc import ABC, abstractmethod
from functools import partial
from gc import get_referents
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from weakref import getweakrefcount

from .interrupts import keep_interrupts_out

if TYPE_CHECKING:
    import asyncio
    from asyncio import AbstractEventLoop, Future, Task
    from collections.abc import Awaitable, Callable, Generator
    from contextvars import Context
    from types import ModuleType

    import anyio
    import trio
    from anyio.lowlevel import EventLoopToken
    from trio.lowlevel import Abort, RaiseCancelT
    from trio.lowlevel import Task as TrioTask

Event: TypeAlias = "asyncio.Event | trio.Event | anyio.Event"
"""An event; where the loop is known, its own, which costs less."""


def _cannot_count(_: object) -> int:  # pragma: no cover (on PyPy and free-threaded builds)
    raise AttributeError


# Counts the references to an object, if the interpreter counts them.
_has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
getrefcount = getattr(sys, "getrefcount", _cannot_count) if _has_gil else _cannot_count


def _maybe() -> bool:
    return True


def _not_yet() -> bool:
    return False


class CancelProbe(ABC):
    """Notices at once that a cancel scope around its task was cancelled, before the task does.

    Both backends cancel what a task waits for in the same step as the scope.
    """

    @abstractmethod
    async def listen(self) -> None:
        """Wait in the current task until it is cancelled, by whatever means."""

    @abstractmethod
    async def until_listening(self) -> None:
        """Let the task that was just spawned call ``listen()`` before any later task begins."""

    has_heard: Callable[[], bool]
    """Tells whether there may have been a cancellation; if not, there was none."""


class Host(ABC):
    """The task in which a nursery was opened."""

    task: Any
    """The task itself, as the backend has it."""

    @abstractmethod
    def is_current(self) -> bool:
        """Whether it is the current task."""

    @abstractmethod
    def is_done(self) -> bool:
        """Whether it has ended."""

    @abstractmethod
    def when_done(self, call: Callable[[], object]) -> None:
        """Make a call on the loop once it has ended; Trio cancels what it left open."""


class Backend(ABC):
    """One event loop."""

    clock: Callable[[], float]
    """Its clock, in seconds, for use in its thread."""

    get_task: Callable[[], Any]
    """Gives the current task of this loop, ``None`` if the caller is in none.

    Then it is in a signal handler while the loop sleeps, in a bare callback, or in a task of
    another loop in the same thread.
    """

    @abstractmethod
    def is_in_eager_task(self) -> bool:
        """Whether the current task was started within a step of another, which goes on after."""

    @abstractmethod
    def get_host(self) -> Host:
        """Return the current task."""

    @abstractmethod
    def new_cancel_probe(self) -> CancelProbe:
        """Make a cancel probe."""

    @abstractmethod
    def has_open_scope(self, handle: anyio.TaskHandle[Any] | None) -> bool:
        """Whether the task has left a cancel scope open within its own, as far as is known."""

    new_event: Callable[[], Event]
    """Make an event; AnyIO's would detect the running loop each time it is used."""

    checkpoint: Callable[[], Awaitable[None]]
    """Let the loop run, and raise a cancellation that is due; as ``anyio.lowlevel.checkpoint``."""

    new_sleep: Callable[[], Awaitable[None]]
    """Make what the current task is about to await, once; cheaper than an event."""

    @abstractmethod
    def wake(self, sleep: Any) -> None:
        """Wake the task that awaits it, or will; safe to call again or after a cancellation."""

    # for tasks that run one job after another

    @abstractmethod
    async def pause(self) -> None:
        """Let the loop run for one turn."""

    @abstractmethod
    def renamer(self, task: Any) -> Callable[[str], object]:
        """Return what gives a task another name."""

    enter_context: Callable[[Any, Context], Context] | None
    """Make a task run in another context from its next step on, and give the one it had.

    ``None`` where the context of a task cannot be changed.
    """

    @abstractmethod
    def shares_tasks(self) -> bool:
        """Whether tasks may run one job after another: nothing else creates this loop's tasks."""

    @abstractmethod
    def traces(self, task: Any) -> object:
        """Return what changes when someone keeps a reference to the task.

        Returns:
            Something to compare within one task; ``None`` where there is no way to know.
        """

    @abstractmethod
    def is_kept(self, traces: Any) -> bool:
        """Whether someone may hold a new task already, by its traces in its first step."""


# The smallest counts that a task had in its first step, for each kind of loop.
_fewest: dict[tuple[object, bool], tuple[int, ...]] = {}


class _AsyncioProbe(CancelProbe):
    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self.has_heard = _maybe

    async def listen(self) -> None:
        waiter = self._loop.create_future()
        self.has_heard = waiter.done
        await waiter

    async def until_listening(self) -> None:
        """Do nothing: tasks start in order."""


class _AsyncioHost(Host):
    def __init__(self, get_task: Callable[[], Task[Any] | None]) -> None:
        self._get_task = get_task
        self.task: Task[Any] = cast("Task[Any]", get_task())

    def is_current(self) -> bool:
        return self._get_task() is self.task

    def is_done(self) -> bool:
        return self.task.done()

    def when_done(self, call: Callable[[], object]) -> None:
        self.task.add_done_callback(lambda _: call())


class _Asyncio(Backend):
    def __init__(self, loop: AbstractEventLoop) -> None:
        # It is running; under Trio it is not needed.
        from asyncio import BaseEventLoop, Event, sleep, tasks  # noqa: PLC0415

        self._loop = loop
        self.new_event: Callable[[], Event] = Event
        self.enter_context = None
        self.checkpoint: Callable[[], Awaitable[None]] = partial(sleep, 0)
        self.new_sleep: Callable[[], Awaitable[None]] = loop.create_future
        # The usual loop's clock is a wrapper of this one.
        self.clock = time.monotonic if type(loop).time is BaseEventLoop.time else loop.time
        # Before 3.12 asyncio's function is written in Python, and asks this.
        asyncio_tasks, is_old = cast("Any", tasks), sys.version_info < (3, 12)
        look = asyncio_tasks._current_tasks.get if is_old else asyncio_tasks.current_task
        self.get_task: Callable[[], Task[Any] | None] = partial(look, loop)

    def is_in_eager_task(self) -> bool:
        task = cast("Task[Any]", self.get_task())
        # AnyIO's tasks are never started eagerly; this is what they run.
        name = getattr(task.get_coro(), "__qualname__", "")
        return not name.startswith("TaskHandle.")

    def wake(self, sleep: Future[None]) -> None:
        if not sleep.done():
            sleep.set_result(None)

    async def pause(self) -> None:
        await self.checkpoint()

    def renamer(self, task: Task[Any]) -> Callable[[str], object]:
        return task.set_name

    def traces(self, task: Any) -> object:
        # The collector sees attributes and callbacks that were added to it. A pending cancellation
        # has no public name.
        try:
            return (
                getrefcount(task),
                getweakrefcount(task),
                len(get_referents(task)),
                task._must_cancel,
            )
        except AttributeError:  # a custom task class
            return None

    def shares_tasks(self) -> bool:
        return self._loop.get_task_factory() is None

    def is_kept(self, traces: Any) -> bool:
        # If someone got it from asyncio.all_tasks(), it has more references than most tasks. A task
        # factory may keep all tasks, or make tasks that store their callbacks elsewhere.
        loop = self._loop
        kind = (cast("object", type(loop)), loop.get_debug())
        counts: tuple[int, ...] = traces[:3]
        _fewest[kind] = tuple(map(min, counts, _fewest.get(kind, counts)))
        return counts != _fewest[kind] or not self.shares_tasks()

    def get_host(self) -> Host:
        return _AsyncioHost(self.get_task)

    def new_cancel_probe(self) -> CancelProbe:
        return _AsyncioProbe(self._loop)

    def has_open_scope(self, handle: Any) -> bool:
        # There is no public name for this; without these, AnyIO notices it later.
        try:
            return bool(handle._cancel_scope._child_scopes)
        except AttributeError:
            return False


class _TrioSleep:
    __slots__ = ("_is_woken", "_lowlevel", "_task")

    def __init__(self, lowlevel: ModuleType) -> None:
        self._lowlevel = lowlevel
        self._task: TrioTask | None = None
        self._is_woken = False

    def __await__(self) -> Generator[Any, Any, None]:
        if not self._is_woken:
            lowlevel = self._lowlevel
            self._task = lowlevel.current_task()
            yield from lowlevel.wait_task_rescheduled(self._abort).__await__()

    def _abort(self, _: RaiseCancelT) -> Abort:
        self._task = None
        return cast("Abort", self._lowlevel.Abort.SUCCEEDED)

    def wake(self) -> None:
        self._is_woken = True
        task, self._task = self._task, None
        if task is None:
            return
        lowlevel = self._lowlevel
        if task is _current_or_none(lowlevel.current_task):  # a signal handler, before it sleeps
            self._task = task
            lowlevel.current_trio_token().run_sync_soon(self.wake)
        else:
            lowlevel.reschedule(task)


class _TrioProbe(CancelProbe):
    def __init__(self) -> None:
        self.has_heard = _maybe

    async def listen(self) -> None:
        from trio import lowlevel  # noqa: PLC0415 (an extra; it is running)

        def abort(_: RaiseCancelT) -> Abort:
            self.has_heard = _maybe
            return lowlevel.Abort.SUCCEEDED

        self.has_heard = _not_yet
        await lowlevel.wait_task_rescheduled(abort)

    async def until_listening(self) -> None:
        from trio import lowlevel  # noqa: PLC0415 (as above)

        await lowlevel.cancel_shielded_checkpoint()  # tasks start in any order


class _TrioHost(Host):
    def __init__(self, current_task: Callable[[], TrioTask]) -> None:
        self._current_task = current_task
        self.task = current_task()

    def is_current(self) -> bool:
        return self._current_task() is self.task

    def is_done(self) -> bool:
        return inspect.getcoroutinestate(self.task.coro) == inspect.CORO_CLOSED

    def when_done(self, call: Callable[[], object]) -> None:
        """Do nothing: Trio cancels the nurseries that an ended task has left open."""


def _current_or_none(current_task: Callable[[], TrioTask]) -> TrioTask | None:
    try:
        return current_task()
    except RuntimeError:
        return None


def _enter_context(task: TrioTask, context: Context) -> Context:
    own, task.context = task.context, context
    return own


class _Trio(Backend):
    def __init__(self) -> None:
        from trio import Event, lowlevel  # noqa: PLC0415 (as above)

        self.new_event: Callable[[], Event] = Event
        self.enter_context = _enter_context
        self.checkpoint: Callable[[], Awaitable[None]] = lowlevel.checkpoint
        self.new_sleep: Callable[[], Awaitable[None]] = partial(_TrioSleep, lowlevel)
        self.clock = lowlevel.current_clock().current_time
        self._current_task = lowlevel.current_task
        self.get_task = partial(_current_or_none, lowlevel.current_task)
        keep_interrupts_out(lowlevel.enable_ki_protection, lowlevel.disable_ki_protection)

    def is_in_eager_task(self) -> bool:
        return False  # Trio has none

    def wake(self, sleep: _TrioSleep) -> None:
        sleep.wake()

    async def pause(self) -> None:
        from trio import lowlevel  # noqa: PLC0415 (as above)

        await lowlevel.cancel_shielded_checkpoint()

    def renamer(self, task: TrioTask) -> Callable[[str], object]:
        return partial(setattr, task, "name")

    def shares_tasks(self) -> bool:
        return True

    def traces(self, task: TrioTask) -> object:
        # It cannot be cancelled from outside, but locks and limiters refer to it as their owner.
        # The scope that it is in has no public name.
        try:
            scope = task._cancel_status
            return getrefcount(task), getweakrefcount(task), scope, len(task.child_nurseries)
        except AttributeError:  # where references are not counted
            return None

    def is_kept(self, traces: object) -> bool:  # noqa: ARG002 (as asyncio's)
        return False  # nothing gives it away

    def get_host(self) -> Host:
        return _TrioHost(self._current_task)

    def new_cancel_probe(self) -> CancelProbe:
        return _TrioProbe()

    def has_open_scope(self, handle: Any) -> bool:
        try:
            return bool(handle._cancel_scope._CancelScope__original._cancel_status._children)
        except AttributeError:
            return False


def get_backend(token: EventLoopToken) -> Backend:
    """Return the backend of the running loop; call it in its thread."""
    if hasattr(token.native_token, "create_future"):
        return _Asyncio(cast("AbstractEventLoop", token.native_token))
    return _Trio()
