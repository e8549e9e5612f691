"""The nursery of a node: a task group, what keeps it open, and how it ends.

It knows nothing of trees, names, groups or messages. Its life is a table. What keeps it open is one
number: its occupant holds it once for each thing that has to end first, and lets go of it as that
ends. Leaving the block waits until the number is 0, asks the occupant whether it sets anything more
in motion, and closes in the same step as the last of these checks. The wait is shielded: it is a
watcher task that sees a cancellation from outside and turns it into the ordinary ``cancel()``.

No task of a nursery ever raises: an error that left a task would make AnyIO cancel the group in its
own way. Failures are handed to ``fail()``, gathered, and raised once, when all is over.
"""

from __future__ import annotations

import enum
import math
import threading
import time
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from anyio import lowlevel

from ._backend import get_ready
from ._bridge import Bridge
from ._errors import WorkerError, uncancelled
from ._failures import Failures

try:  # AnyIO asks sniffio which library runs, if it is installed
    from sniffio import current_async_library_cvar as _library
except ImportError:  # pragma: no cover (covered where Trio, which brings sniffio, is missing)
    _library = None  # type: ignore[assignment]  # the module is absent, so there is no variable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from contextvars import Context

    from anyio.abc import TaskGroup

    from ._backend import Ear


class Life(enum.Enum):
    """Where a nursery is in its life."""

    NEW = "not open yet"
    """Nothing can start."""
    OPEN = "open"
    """Work is admitted, also while the block is being left."""
    CLOSING = "shutting down"
    """No work is admitted; what was admitted goes on."""
    CLOSED = "closed"
    """Nothing is left, and nothing can start."""


NEW, OPEN, CLOSING, CLOSED = Life

LIVES: Mapping[Life, frozenset[Life]] = MappingProxyType(
    {
        NEW: frozenset({OPEN}),
        OPEN: frozenset({CLOSING, CLOSED}),
        CLOSING: frozenset({CLOSED}),
        CLOSED: frozenset(),
    }
)
"""From each stage, the stages that may follow; work is admitted in OPEN alone."""


def _time_of_any_loop() -> float:
    try:
        return anyio.current_time()
    except anyio.NoEventLoopError:
        return time.monotonic()


def _monotonic(offset: float) -> float:
    return time.monotonic() + offset


class Occupant(Protocol):
    """What a nursery asks of the one that it serves."""

    def _creche_on_cancel(self, reason: object) -> None:
        """Mark all that runs in the nursery as cancelled; called once."""
        ...

    def _creche_on_quiet(self) -> bool:
        """Set in motion what still has to end; tell whether there was anything."""
        ...

    def _creche_spoken(self) -> str:
        """Name the nursery in a sentence."""
        ...


class Nursery:
    """A task group with admission, holds, gathered failures and one cancellation."""

    __slots__ = (
        "_clock_offset",
        "_ear",
        "_failures",
        "_group",
        "_host",
        "_idle",
        "_killed",
        "_occupant",
        "_unborn",
        "_watcher",
        "blocks",
        "bridge",
        "cancel_reason",
        "cancelled_class",
        "clock",
        "holds",
        "is_cancelled",
        "life",
        "tree",
        "unstepped",
    )

    def __init__(self, occupant: Occupant) -> None:
        self._occupant = occupant
        self.life = NEW
        self.bridge = Bridge(self._wake)
        self.tree: object = self
        """Stands for the whole tree of nurseries: no error is reported twice in one."""
        self.is_cancelled = False
        self.cancel_reason: object = None
        self.cancelled_class: type[BaseException] = BaseException
        self.holds = 0
        """What keeps the nursery open: add 1 for it, and call ``release()`` as often."""
        self.blocks = 0
        """How many of the holds are blocks of child nodes, which only their own tasks can end."""
        self._idle: anyio.Event | None = None
        self._failures = Failures()
        self._killed = False
        self._unborn: dict[object, Callable[[], object]] = {}
        self.unstepped: dict[object, Coroutine[Any, Any, Any]] = {}
        """Coroutines of tasks that were called off before their first step; it takes them out."""
        self._host: int | None = None
        self.clock: Callable[[], float] = _time_of_any_loop
        """The loop's clock, in seconds, for use on the loop; see also ``now()``."""
        self._clock_offset = 0.0
        self._ear: Ear  # once it is open
        self._group: TaskGroup | None = None
        self._watcher: anyio.TaskHandle[None] | None = None

    # life

    def _move(self, life: Life) -> None:
        assert life in LIVES[self.life], f"{self.life} cannot become {life}"
        self.life = life

    async def open(self) -> None:
        """Enter the task group; the current task is the host and has to call ``close()``."""
        group = anyio.create_task_group()
        await group.__aenter__()
        self._group = group
        self._host = anyio.get_current_task().id
        self.cancelled_class = anyio.get_cancelled_exc_class()
        self.bridge.open()
        self.clock, self._ear = get_ready(self.bridge.token)
        self._clock_offset = self.clock() - time.monotonic()
        self._move(OPEN)
        self._watcher = self.spawn(
            self._watch(), name=f"watcher of {self._occupant._creche_spoken()}"
        )
        await self._ear.until_listening()
        if self.is_cancelled:
            group.cancel_scope.cancel()

    def refuse(self) -> None:
        """Admit no more work."""
        if self.life is OPEN:
            self._move(CLOSING)

    def check_admission(self) -> None:
        """Raise an error unless work may start.

        Raises:
            WorkerError: The nursery is not open.
        """
        if self.life is not OPEN:
            raise WorkerError(
                f"cannot start work on {self._occupant._creche_spoken()}, which is {self.life.value}; "
                + ("enter its block first" if self.life is NEW else "use a node that is open")
            )

    def now(self) -> float:
        """Tell the time of the loop's clock, in seconds; from any thread."""
        if self.bridge.thread == threading.get_ident() and self.life is not CLOSED:
            return self.clock()
        return _monotonic(self._clock_offset)

    # tasks

    def spawn(
        self, coro: Coroutine[Any, Any, None], *, name: str, context: Context | None = None
    ) -> anyio.TaskHandle[None]:
        """Start a task, which must not raise; on the loop, while something holds the nursery."""
        assert self._group is not None
        try:
            return self._group.create_task(coro, name=name, context=context)
        except anyio.NoEventLoopError:
            # No task runs: this is a call from another thread, and the context was captured where
            # no loop ran, so that sniffio knows no better.
            assert _library is not None
            assert context is not None
            context.run(_library.set, "asyncio")
            return self._group.create_task(coro, name=name, context=context)

    def spawn_held(
        self,
        run: Callable[[], Coroutine[Any, Any, None]],
        lost: Callable[[], object],
        *,
        name: str,
        context: Context | None = None,
    ) -> anyio.TaskHandle[None]:
        """Start a task that holds the nursery until it ends.

        Args:
            run: What to run; it must not raise.
            lost: Called in place of ``run`` if a native ``Task.cancel()`` kills the task before its
                first step.
            name: The name of the task.
            context: The context variables of the task.
        """

        async def main() -> None:
            del self._unborn[key]
            try:
                await run()
            finally:
                self.release()

        def gone() -> None:
            del self._unborn[key]
            coro.close()
            lost()
            self.release()

        key = object()
        coro = main()
        self._unborn[key] = gone
        self.holds += 1
        return self.spawn(coro, name=name, context=context)

    async def _watch(self) -> None:
        while True:
            try:
                await self._ear.listen()
            except self.cancelled_class:
                if self.life is CLOSED:
                    raise
                if self.is_scope_cancelled():
                    break
                # else a native cancellation that was aimed at this very task: not obeyed
        self.cancel_from_outside()
        with anyio.CancelScope(shield=True):
            await self._bury_the_unborn()

    async def _bury_the_unborn(self) -> None:
        """Find the tasks that a native ``Task.cancel()`` killed before their first step.

        AnyIO never enters them and cannot tell. What has not begun two turns of the loop after
        it was spawned never will.
        """
        unborn = list(self._unborn.items())
        if not unborn:
            return
        for _ in range(2):
            await lowlevel.cancel_shielded_checkpoint()
        for key, gone in unborn:
            if key in self._unborn:
                gone()

    # what keeps it open

    def release(self) -> None:
        """Let go of one hold."""
        self.holds -= 1
        if self._idle is not None and self.holds <= self.blocks:
            self._wake()

    def _wake(self) -> None:
        if self._idle is not None:
            self._idle.set()
            self._idle = None

    async def quiet(self, *, blocks: bool = False) -> None:
        """Wait until nothing holds the nursery and the occupant sets nothing more in motion.

        Args:
            blocks: Whether to leave aside the blocks of child nodes.
        """
        while True:
            while self.holds > (self.blocks if blocks else 0) or self.bridge.in_flight:
                if self._idle is None:
                    self._idle = anyio.Event()
                await self._idle.wait()
            if not self._occupant._creche_on_quiet():
                return

    # failure and cancellation

    def fail(self, error: BaseException) -> None:
        """Gather an error, to be raised by ``close()``, and cancel everything."""
        try:
            self._failures.add(error, self.tree)
            self.cancel(f"{self._occupant._creche_spoken()} failed")
        finally:
            del error  # Trio's cancellations hold the frames that led to them

    def cancel(self, reason: object) -> None:
        """Cancel everything, the host's body included; on the loop only."""
        if self.is_cancelled or self.life is CLOSED:
            return
        self.is_cancelled = True
        self.cancel_reason = reason
        self._occupant._creche_on_cancel(reason)
        if self._group is not None:  # else it is done on entering
            self._group.cancel_scope.cancel()

    def is_scope_cancelled(self) -> bool:
        """Whether a cancel scope round the current task is cancelled: else it was native."""
        # The whole truth is dear, and in nearly all cases there was nothing to be heard.
        return self._ear.has_heard() and anyio.current_effective_deadline() == -math.inf

    def cancel_from_outside(self) -> None:
        """Turn a cancellation that reached a task of the nursery from outside into ``cancel()``."""
        assert self._group is not None
        if not self.is_cancelled and self._group.cancel_scope.cancel_called:
            self._killed = True  # nobody here did that: AnyIO did, for a task killed unborn
        self.cancel("cancelled from outside")

    # the end

    async def close(self, error: BaseException | None) -> bool:
        """Wait until nothing is left, leave the task group and raise what was gathered.

        Args:
            error: What left the body of the block, if anything.

        Returns:
            Whether to swallow that error: it was the nursery's own cancellation.

        Raises:
            BaseExceptionGroup: The failures.
            BaseException: The one that goes bare, or a cancellation from outside.
        """
        if anyio.get_current_task().id != self._host:
            raise WorkerError(
                f"{self._occupant._creche_spoken()} is left in another task than the one that entered it; "
                "enter and leave its block in the same task"
            )
        cancellation: BaseException | None = None
        if error is not None:
            failure = uncancelled(error, lambda leaf: isinstance(leaf, self.cancelled_class))
            if failure is not None:
                self.fail(failure)
            else:
                cancellation = error
                self.cancel_from_outside()
        late = await self._drain()
        leaving = await self._leave_group(cancellation or late)
        for coro in self.unstepped.values():
            coro.close()  # killed natively: nobody awaited it
        self.unstepped.clear()
        where = self._occupant._creche_spoken()
        if self._killed and leaving is None:
            leaving = WorkerError(
                f"a native Task.cancel() hit a task of {where} before its first step, so "
                "AnyIO cancelled them all; use Worker.cancel() instead"
            )
        try:
            return self._failures.conclude(where, error, leaving)
        finally:
            del error, cancellation, late, leaving  # they hold this frame

    async def _leave_group(self, cancellation: BaseException | None) -> BaseException | None:
        """Leave the task group, now empty, with a cancellation if there is one.

        Returns:
            The cancellation that goes on its way, as it was not the group's own.
        """
        assert self._group is not None
        assert self._watcher is not None
        self._watcher.cancel()
        try:
            if cancellation is None:  # the wait was shielded, so it may be due
                await lowlevel.checkpoint_if_cancelled()
        except self.cancelled_class as exc:
            cancellation = exc
        kind = type(cancellation) if cancellation is not None else None
        traceback = cancellation.__traceback__ if cancellation is not None else None
        try:
            swallowed = await self._group.__aexit__(kind, cancellation, traceback)
        except self.cancelled_class as exc:
            return exc
        else:
            return None if swallowed else cancellation
        finally:
            self._group = self._watcher = None
            del cancellation, traceback

    async def _drain(self) -> BaseException | None:
        """Wait until nothing is left and close; return what arrived natively in the meantime."""
        late: BaseException | None = None
        while True:
            try:
                with anyio.CancelScope(shield=True):
                    if self.is_cancelled:
                        await self._bury_the_unborn()
                    await self.quiet()
            except self.cancelled_class as exc:
                late = late or exc
                self.cancel_from_outside()
                continue
            except KeyboardInterrupt as exc:
                self.fail(exc)
                continue
            if self.bridge.close():
                self._move(CLOSED)
                self.clock = partial(_monotonic, self._clock_offset)  # the loop may go
                return late
