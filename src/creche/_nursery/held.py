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

    __slots__ = ("_holds", "_lost", "_nursery", "handle", "has_begun")

    def __init__(self, nursery: Nursery, lost: Callable[[], object]) -> None:
        self._nursery = nursery
        self._lost = lost
        self._holds = False
        self.handle: anyio.TaskHandle[None]
        self.has_begun = False

    @property
    def coro(self) -> Coroutine[Any, Any, None]:
        """The coroutine of the task."""
        return self.handle.coro

    async def run(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do what the task is for, and let go of the nursery."""
        try:
            self.has_begun = True
            await run()
        except BaseException:
            self._lost()  # it was broken off, as it does not raise
            raise
        finally:
            try:
                self.let_go()
            except BaseException:
                self.let_go()  # or nobody would
                raise

    def cancel(self) -> None:
        """Cancel it."""
        self.handle.cancel()

    def hold(self) -> None:
        """Hold the nursery."""
        nursery = self._nursery
        nursery.held.add(self)
        self._holds, nursery.holds = True, nursery.holds + 1

    @property
    def is_holding(self) -> bool:
        """Whether the nursery stays open for it."""
        return self._holds

    def is_acting(self) -> bool:
        """Whether the running code is this task."""
        return cast("CoroutineType[Any, Any, Any]", self.coro).cr_running

    def is_dead(self) -> bool:
        """Whether it has died without letting go of the nursery."""
        return getcoroutinestate(self.coro) == CORO_CLOSED

    def hold_no_more(self) -> None:
        """Let the nursery close, though the task goes on; may be called again."""
        nursery = self._nursery
        if self._holds:
            self._holds, nursery.holds = False, nursery.holds - 1  # see Nursery.holds
        nursery.check_idle()

    def let_go(self) -> None:
        """Be done, and hold the nursery no more; may be called again."""
        self.hold_no_more()
        self._nursery.held.discard(self)

    def reap(self) -> None:
        """Make up for what it did not do."""
        try:
            self.coro.close()
            self._lost()
        finally:
            self.let_go()
