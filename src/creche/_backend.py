"""What the core asks of asyncio and Trio themselves, since it asks for every worker.

AnyIO's functions find out each time what runs: its ``current_time()`` and
``current_effective_deadline()`` together were a quarter of what a worker costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Callable

    from anyio.lowlevel import EventLoopToken
    from trio.lowlevel import Abort, RaiseCancelT


class Ear(Protocol):
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


class _AsyncioEar:
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


class _TrioEar:
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


def get_ready(token: EventLoopToken) -> tuple[Callable[[], float], Ear]:
    """Give the clock of the running loop, in seconds, for use in its thread; and a new ear."""
    if hasattr(token.native_token, "create_future"):
        loop = cast("AbstractEventLoop", token.native_token)
        return loop.time, _AsyncioEar(loop)
    from trio.lowlevel import current_clock  # noqa: PLC0415 (an extra; it is running)

    return current_clock().current_time, _TrioEar()
