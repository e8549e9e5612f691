"""The watcher of a nursery: it notices what nothing else reports.

A cancellation from outside, of a scope around the block or of a native ``Task.cancel()``, reaches
the tasks of the nursery but not the nursery itself. And a host that ends without leaving the block
does not report that.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import anyio

from creche._ground.states import CLOSED

if TYPE_CHECKING:
    from collections.abc import Callable

    from creche._ground.backend import Backend

    from .nursery import Nursery


class Watcher:
    """A task of a nursery that is cancelled with the others, and that knows the host.

    Made in the host, the task that opens the nursery.
    """

    __slots__ = ("_is_host_watched", "_nursery", "_task", "host", "probe")

    def __init__(self, nursery: Nursery, backend: Backend) -> None:
        self._nursery = nursery
        self.host = backend.get_host()
        self.probe = backend.new_cancel_probe()
        self._task: anyio.TaskHandle[None] | None = None
        self._is_host_watched = False

    async def start(self) -> None:
        """Start to watch, in the open task group of the nursery."""
        name = f"watcher of {self._nursery.owner.label()}"
        self._task = self._nursery.spawn(self._watch, name=name)
        await self.probe.until_listening()

    def stop(self) -> None:
        """Stop watching; safe to call again."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def when_host_ends(self, call: Callable[[], object]) -> None:
        """Call a function once the host has ended; only the first request counts."""
        if not self._is_host_watched:
            self._is_host_watched = True
            self.host.when_done(call)

    def is_scope_cancelled(self) -> bool:
        """Whether a cancel scope around the current task is cancelled: it was not native."""
        # The full check is expensive, and the probe nearly always rules a cancellation out.
        return self.probe.has_heard() and anyio.current_effective_deadline() == -math.inf

    async def _watch(self) -> None:
        nursery = self._nursery
        while True:
            try:
                await self.probe.listen()
            except nursery.cancelled_class:
                if nursery.state is CLOSED:
                    raise
                # A host that ended before anybody cancelled the node has left its block open. A
                # native cancellation then hits all tasks, as the program ends.
                is_deserted = self.host.is_done() and not nursery.is_cancelled
                if is_deserted or self.is_scope_cancelled():
                    break
                # Otherwise it is aimed at this task and is ignored, or the host is about to end.
                self.when_host_ends(self.stop)
        nursery.cancel_from_outside()
        with anyio.CancelScope(shield=True):
            await nursery.reap()
            if is_deserted:
                await nursery.end.close_deserted()
        nursery.wake()  # for blocks of child nodes that are deserted
