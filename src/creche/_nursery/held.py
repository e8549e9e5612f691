"""Tasks that hold a nursery open: the pump of a mailbox, a call from a thread, a mounted node."""

from __future__ import annotations

from inspect import CORO_CLOSED, getcoroutinestate
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import CoroutineType

    import anyio

    from .nursery import Nursery


class HeldTask:
    """A task of a nursery that holds it open; made by ``Nursery.spawn_held()``."""

    __slots__ = ("_holds", "_lost", "_nursery", "_start", "handle", "has_begun")

    def __init__(self, nursery: Nursery, lost: Callable[[], object]) -> None:
        self._nursery = nursery
        self._lost = lost
        self._holds = False
        self._start: Callable[[], anyio.TaskHandle[None]] | None = None
        self.handle: anyio.TaskHandle[None] | None = None
        """The task; ``None`` while the nursery is being opened."""
        self.has_begun = False

    @property
    def coro(self) -> Coroutine[Any, Any, None] | None:
        """The coroutine of the task, once there is one."""
        return None if self.handle is None else self.handle.coro

    def start(self, start: Callable[[], anyio.TaskHandle[None]]) -> None:
        """Start the task, or if the nursery is not open yet, as soon as it is."""
        if self._nursery.task_group is None:
            self._start = start
        else:
            self.handle = start()

    def start_now(self) -> None:
        """Start the task now that the nursery is open."""
        start, self._start = self._start, None
        assert start is not None
        self.handle = start()

    async def run(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run the task's function, and let go of the nursery."""
        try:
            self.has_begun = True
            await run()
        except BaseException:
            self._lost()  # it was interrupted: it never raises by itself
            raise
        finally:
            try:
                self.let_go()
            except BaseException:
                self.let_go()  # nothing else would
                raise

    def cancel(self) -> None:
        """Cancel it; if it has not started, it checks for this as it begins."""
        if self.handle is not None:
            self.handle.cancel()

    def hold(self) -> None:
        """Hold the nursery."""
        nursery = self._nursery
        nursery.held[self] = None
        self._holds, nursery.holds = True, nursery.holds + 1

    @property
    def is_holding(self) -> bool:
        """Whether it keeps the nursery open."""
        return self._holds

    def is_acting(self) -> bool:
        """Whether the running code is this task."""
        coro = cast("CoroutineType[Any, Any, Any] | None", self.coro)
        return coro is not None and coro.cr_running

    def is_dead(self) -> bool:
        """Whether it has died without letting go of the nursery."""
        coro = self.coro
        return coro is not None and getcoroutinestate(coro) == CORO_CLOSED

    def hold_no_more(self) -> None:
        """Let the nursery close while the task continues; safe to call again."""
        nursery = self._nursery
        if self._holds:
            self._holds, nursery.holds = False, nursery.holds - 1  # see Nursery.holds
        nursery.check_idle()

    def let_go(self) -> None:
        """Mark it as done and let go of the nursery; safe to call again."""
        self.hold_no_more()
        self._nursery.held.pop(self, None)

    def reap(self) -> None:
        """Do in its place what it did not do."""
        try:
            self._start = None
            if self.coro is not None:
                self.coro.close()
            self._lost()
        finally:
            self.let_go()
