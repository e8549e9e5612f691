"""The nursery of a node: a task group, what keeps it open, and who may start work in it.

It knows nothing of trees, names, groups or messages. Its states are a table. What keeps it open is
one number: its owner holds it once for each thing that has to end first, and lets go when that
ends. Leaving the block waits until the number is 0, asks the owner whether anything else has to be
ended, and closes in the same step as the last of these checks.

No task of a nursery raises: an error that left a task would make AnyIO cancel the group in its own
way. Failures are handed to ``fail()``, gathered, and raised once at the end. If a task dies anyway
(a Ctrl+C at the wrong line, out of memory, a bug of ours), AnyIO cancels the group; then all tasks
that died silently are found and reaped, so that nothing waits for them.
"""

from __future__ import annotations

import logging
import threading
import time
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from anyio import lowlevel

from creche._ground.backend import get_backend
from creche._ground.bridge import Bridge
from creche._ground.errors import WorkerError
from creche._ground.report import tell
from creche._ground.states import CLOSED, CLOSING, NEW, NURSERY_TRANSITIONS, OPEN, OPENING

from .end import End
from .failures import Failures
from .held import HeldTask
from .nesting import Nesting
from .watcher import Watcher

try:  # AnyIO asks sniffio which library runs, if it is installed
    from sniffio import current_async_library_cvar as _library
except ImportError:  # pragma: no cover (covered where Trio, which brings sniffio, is missing)
    _library = None  # type: ignore[assignment]  # the module is absent, so there is no variable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from contextvars import Context

    from anyio.abc import TaskGroup

    from creche._ground.backend import Backend, Event
    from creche._ground.states import NurseryState


PATIENCE = 10.0
"""Seconds that a block waits for cancelled work before it logs that; doubled each time."""


def _time_of_any_loop() -> float:
    try:
        return anyio.current_time()
    except anyio.NoEventLoopError:
        return time.monotonic()


def _monotonic(offset: float) -> float:
    return time.monotonic() + offset


class Owner(Protocol):
    """What a nursery asks of the node that it serves."""

    def on_cancel(self, reason: object, *, by_scope: bool) -> None:
        """Mark everything that runs in the nursery as cancelled; called once.

        Args:
            reason: Why.
            by_scope: Whether the scope of the task group, and so all its tasks, will be cancelled.
        """
        ...

    def on_idle(self) -> bool:
        """Start to end what has no end of its own; return whether there was anything."""
        ...

    def on_late(self) -> None:
        """Log what was cancelled and has not ended."""
        ...

    def on_empty(self) -> None:
        """End tasks that wait for something to do: there will be nothing."""
        ...

    def on_closed(self) -> None:
        """Leave the tree: nothing is left in the nursery."""
        ...

    def reap(self) -> None:
        """End the workers whose tasks have died silently."""
        ...

    def nurseries(self, *, blocks: bool = False) -> Iterable[Nursery]:
        """Return the nurseries of this node and all below; or of child nodes with a block."""
        ...

    def label(self) -> str:
        """Name the nursery in a sentence."""
        ...


class Nursery:
    """A task group with admission, holds, gathered failures and one cancellation."""

    __slots__ = (
        "__weakref__",
        "_clock_offset",
        "_idle",
        "_patience",
        "backend",
        "blocks",
        "bridge",
        "cancel_reason",
        "cancelled_class",
        "clock",
        "end",
        "failures",
        "get_task",
        "has_open_scope",
        "held",
        "holds",
        "is_cancelled",
        "is_killed",
        "nesting",
        "new_event",
        "owner",
        "state",
        "task_group",
        "tree",
        "watcher",
    )

    def __init__(self, owner: Owner) -> None:
        # - state is NEW until begin(), and CLOSED from the step in which holds and the calls in
        #   flight are both 0; the bridge is open in between, and only then.
        # - is_cancelled is set before anything below is marked; the scope is cancelled afterwards.
        # - holds counts blocks and held too; blocks <= holds.
        # - task_group exists from open() to the end of the block; its tasks are the watcher's,
        #   those in held, and the owner's workers.
        self.owner = owner
        self.state = NEW
        self.bridge = Bridge(self.wake)
        self.tree: object = self
        """Identifies the whole tree of nurseries, in which no error is reported twice."""
        self.is_cancelled = False
        self.cancel_reason: object = None
        self.cancelled_class: type[BaseException] = BaseException
        self.holds = 0
        """What keeps the nursery open: add 1 for each thing, and subtract it again.

        Code that may be interrupted between two lines changes it in the same line in which it
        records that it did, and then calls ``check_idle()``, which can be repeated.
        """
        self.blocks = 0
        """How many of the holds ``shutdown()`` leaves aside.

        These are blocks of child nodes, which only their own tasks can end, and its callers.
        """
        self._idle: anyio.Event | None = None
        self._patience: float | None = None  # in seconds; set once the work was cancelled
        self.failures = Failures()
        self.is_killed = False
        """Whether AnyIO cancelled the group because a native cancellation killed a task."""
        self.held: dict[HeldTask, None] = {}
        """The tasks that hold the nursery, except workers, which have their own holds."""
        self.clock: Callable[[], float] = _time_of_any_loop
        """The loop's clock, in seconds, for use on the loop; see also ``now()``."""
        self._clock_offset = 0.0
        self.nesting = Nesting(self)
        self.end = End(self)
        self.task_group: TaskGroup | None = None
        self.backend: Backend  # set by begin(); the next two by open()
        self.watcher: Watcher
        self.get_task: Callable[[], object]
        """Return the current task if it belongs to the nursery's loop."""
        self.new_event: Callable[[], Event]
        """Make an event of the nursery's loop."""
        self.has_open_scope: Callable[[anyio.TaskHandle[Any] | None], bool]
        """Return whether the current task, which is about to end, has left a cancel scope open."""

    # life

    def _move(self, state: NurseryState) -> None:
        assert state in NURSERY_TRANSITIONS[self.state], f"{self.state} cannot become {state}"
        self.state = state

    def begin(self) -> None:
        """Admit work, which waits until ``open()``; call it in a task of the loop."""
        backend = self.backend = get_backend(lowlevel.current_token())
        self.get_task, self.has_open_scope = backend.get_task, backend.has_open_scope
        self.new_event, self.clock = backend.new_event, backend.clock
        self.cancelled_class = anyio.get_cancelled_exc_class()
        self._clock_offset = self.clock() - time.monotonic()
        self.bridge.open(backend)
        self._move(OPENING)

    async def open(self) -> None:
        """Enter the task group; the current task is the host and has to call ``end.close()``.

        If this raises, call ``end.abandon()``.
        """
        self.watcher = Watcher(self, self.backend)
        group = anyio.create_task_group()
        await group.__aenter__()
        self.task_group = group
        self.nesting.enter(self.watcher.host.task)
        if self.state is OPENING:  # otherwise it was shut down meanwhile
            self._move(OPEN)
        for task in list(self.held):
            task.start_now()
        await self.watcher.start()
        if self.is_cancelled:
            group.cancel_scope.cancel()

    def refuse(self) -> None:
        """Admit no more work."""
        if self.state in (OPENING, OPEN):
            self._move(CLOSING)

    def shut(self) -> bool:
        """Close, unless a call is in flight; safe to call again."""
        if not self.bridge.close():
            return False
        if self.state is not CLOSED:
            self._move(CLOSED)
        self.clock = partial(_monotonic, self._clock_offset)  # the loop may be closed
        return True

    def check_admission(self) -> None:
        """Raise an error unless work may start.

        Raises:
            WorkerError: The nursery is not open, or another loop runs in the same thread.
        """
        if self.bridge.is_gone:  # pragma: no cover (in a forked child, whose coverage is lost)
            raise WorkerError(
                f"cannot start work on {self.owner.label()}: this process was forked "
                "off from that of its event loop; open a node of its own here"
            )
        if self.state is not OPEN and self.state is not OPENING:
            raise self._refusal()
        if self.get_task() is None:
            self.check_loop()

    def _refusal(self) -> WorkerError:
        error = WorkerError(
            f"cannot start work on {self.owner.label()}, which is {self.state.value}; "
            + ("enter its block first" if self.state is NEW else "use a node that is open")
        )
        error._is_refusal = self.state is not NEW
        return error

    def check_loop(self) -> None:
        """Raise an error if the calling code runs in another event loop than the nursery's.

        Raises:
            WorkerError: It does: one loop is a guest of the other, in the same thread.
        """
        try:
            current = lowlevel.current_token().native_token
        except anyio.NoEventLoopError:
            return  # no loop: a callback, or a thread that asks through the bridge
        if current is not self.bridge.token.native_token:
            raise WorkerError(
                f"{self.owner.label()} belongs to another event loop, which runs in "
                "the same thread; call it from a task of its own loop"
            )

    def now(self) -> float:
        """Return the time of the loop's clock, in seconds; in any thread."""
        if self.bridge.thread == threading.get_ident() and self.state is not CLOSED:
            return self.clock()
        return _monotonic(self._clock_offset)

    # tasks

    def spawn(
        self,
        run: Callable[[], Coroutine[Any, Any, None]],
        name: str,
        context: Context | None = None,
    ) -> anyio.TaskHandle[None]:
        """Start a task, which must not raise; on the loop, while something holds the nursery.

        Raises:
            BaseException: The task cannot be created; nothing was changed.
        """
        assert self.task_group is not None
        coro = run()
        try:
            try:
                return self.task_group.create_task(coro, name=name, context=context)
            except anyio.NoEventLoopError:
                # No task runs: this is a bare callback, or a call from another thread whose context
                # was captured where no loop ran, so sniffio cannot detect the library.
                assert _library is not None
                context = context or copy_context()
                context.run(_library.set, "asyncio")
                return self.task_group.create_task(coro, name=name, context=context)
        except BaseException:
            coro.close()
            raise

    def spawn_held(
        self,
        run: Callable[[], Coroutine[Any, Any, None]],
        lost: Callable[[], object],
        *,
        name: str,
        context: Context | None = None,
    ) -> HeldTask:
        """Start a task that holds the nursery until it ends; if that is not open yet, when it is.

        Args:
            run: What to run; it must not raise.
            lost: Called if the task dies silently, before ``run`` or within it: a native
                ``Task.cancel()`` can kill it before its first step.
            name: The name of the task.
            context: The context variables of the task.

        Raises:
            BaseException: The task cannot be created; nothing was changed.
        """
        task = HeldTask(self, lost)
        try:
            task.hold()
            context = context or copy_context()
            task.start(partial(self.spawn, partial(task.run, run), name=name, context=context))
        except BaseException:
            task.let_go()
            raise
        return task

    async def reap(self) -> None:
        """Find the tasks that have died silently, and do what they did not do.

        If a native ``Task.cancel()`` kills a task before its first step, AnyIO never runs it and
        does not report that. But a task that has not begun two turns of the loop after it was
        spawned never will. By then nearly all cancelled workers have ended and need no check.
        """
        not_begun = [task for task in list(self.held) if not task.has_begun]
        for _ in range(2 if self.holds or not_begun else 0):
            await lowlevel.cancel_shielded_checkpoint()
        for task in list(self.held):
            if (task in not_begun and not task.has_begun) or task.is_dead():
                task.reap()
        self.owner.reap()

    # what keeps it open

    def check_idle(self) -> None:
        """Wake the block that waits for the last hold, if no hold is left."""
        if self._idle is not None and self.holds <= self.blocks:
            self.wake()

    def wake(self) -> None:
        """Make the block that waits for the last hold check again."""
        idle = self._idle  # a signal handler may call this in the middle of it
        if idle is not None:
            idle.set()
            self._idle = None if self._idle is idle else self._idle

    async def until_idle(self, *, blocks: bool = False) -> None:
        """Wait until nothing holds the nursery and the owner has nothing else to end.

        Args:
            blocks: Whether to ignore the blocks of child nodes, and the callers of ``shutdown()``.
        """
        while True:
            while True:
                # Created before the check whether to wait, and read once: a signal handler may run
                # in between.
                idle = self._idle
                if idle is None or idle.is_set():
                    idle = self._idle = anyio.Event()
                if self.blocks and not blocks:
                    await self._close_deserted_blocks()
                if self.holds <= (self.blocks if blocks else 0) and not self.bridge.in_flight:
                    break
                if self._patience is None:
                    await idle.wait()
                else:
                    await self._wait_impatiently(idle)
            if not self.owner.on_idle():
                return

    async def _wait_impatiently(self, idle: anyio.Event) -> None:
        """Wait for work that was cancelled, and log it if that takes long."""
        with anyio.move_on_after(self._patience or 0) as scope:
            await idle.wait()
        if scope.cancelled_caught:
            self._patience = 2 * (self._patience or 0)
            self.owner.on_late()

    def lose_patience(self) -> None:
        """Start to log if the work, which was cancelled, takes long to end."""
        if self._patience is None:
            self._patience = PATIENCE
            self.wake()

    async def _close_deserted_blocks(self) -> None:
        for nursery in self.owner.nurseries(blocks=True):
            if nursery.watcher.host.is_done():
                await nursery.end.close_deserted()
            else:
                nursery.watcher.when_host_ends(partial(self._look_after, nursery))

    def _look_after(self, nursery: Nursery) -> None:
        """Wake up to close a block, unless it was left before its host ended, as most are."""
        if nursery.state is not CLOSED:
            self.wake()

    # failure and cancellation

    def fail(self, error: BaseException) -> None:
        """Gather an error, to be raised by ``end.close()``, and cancel everything."""
        try:
            if self.state is CLOSED and self.task_group is None:
                tell(logging.ERROR, "an error came too late for its node", error=error)
            self.failures.add(error, self.tree)
        finally:
            self.cancel(f"{self.owner.label()} failed")

    def cancel(self, reason: object, *, spare_host: bool = False) -> None:
        """Cancel everything below, the host's body included; on the loop only.

        Args:
            reason: Why.
            spare_host: Whether not to cancel the host, which is in another block by now.
        """
        if self.is_cancelled or self.state is CLOSED:
            return
        below = [
            nursery
            for nursery in self.owner.nurseries()
            if not nursery.is_cancelled and nursery.state is not CLOSED
        ]
        self.bridge.steps.busy += 1
        try:
            try:
                self._cancel_all(below, reason, spare_host=spare_host)
            except BaseException:
                # Repeat what was interrupted: nothing else would end queued workers.
                self._cancel_all(below, reason, spare_host=spare_host)
                raise
        finally:
            self.bridge.steps.busy -= 1

    def _cancel_all(self, below: Iterable[Nursery], reason: object, *, spare_host: bool) -> None:
        """Cancel nurseries, each before those below it; safe to call again."""
        # First mark everything, then cancel the scopes from the bottom up: AnyIO goes down from
        # each scope level by level, and stops at one that is already cancelled.
        for nursery in below:
            nursery.is_cancelled = True
            nursery.cancel_reason = reason
            by_scope = not (spare_host and nursery is self)
            nursery.owner.on_cancel(reason, by_scope=by_scope)
            nursery.lose_patience()
        for nursery in reversed(list(below)):
            if nursery.task_group is not None and not (spare_host and nursery is self):
                nursery.task_group.cancel_scope.cancel()  # otherwise open() does it

    def is_scope_cancelled(self) -> bool:
        """Whether a cancel scope around the current task is cancelled: it was not native."""
        return self.watcher.is_scope_cancelled()

    def is_group_cancelled(self) -> bool:
        """Whether the scope of the task group is cancelled."""
        return self.task_group is not None and self.task_group.cancel_scope.cancel_called

    def is_in_eager_task(self) -> bool:
        """Whether the current task was started within a step of another."""
        return self.backend.is_in_eager_task()

    def cancel_from_outside(self) -> None:
        """Turn a cancellation that reached a task of the nursery from outside into ``cancel()``."""
        if not self.is_cancelled:
            # If nothing here cancelled the group, AnyIO did, because a task was killed.
            self.is_killed = self.is_group_cancelled() and not self.watcher.host.is_done()
        self.cancel("cancelled from outside")
