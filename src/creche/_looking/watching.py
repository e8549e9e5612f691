"""What all watchers have in common: they never fail the program that they watch.

What goes wrong in a recorder, a board, a tracer or the log is reported once, by the logger
``creche``. It neither cancels the block beside which they run nor replaces what that raises.
"""

from __future__ import annotations

import logging
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from creche._ground.report import tell

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from types import TracebackType


def report(what: str) -> None:
    """Log the error that is being handled. If that fails too, report it as ``logging`` does.

    Args:
        what: What went wrong, in words.
    """
    tell(logging.ERROR, "%s", what, error=sys.exc_info()[1])


class Faults:
    """Keeps the errors of a watcher out of the program: ``with faults: ...``.

    The first is reported; the others are dropped, as there may be one for each event.

    Args:
        watcher: The watcher, in words.
    """

    def __init__(self, watcher: str) -> None:
        self._watcher = watcher
        self._is_told = False

    def __enter__(self) -> None:
        """Begin a step that may go wrong."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """End the step, and swallow errors, but not a cancellation and the like."""
        if not isinstance(exc, Exception):
            return False
        if not self._is_told:
            self._is_told = True
            report(f"{self._watcher} missed an event; it continues, and logs no further errors")
        return True


@asynccontextmanager
async def beside(
    watch: Callable[[], Awaitable[object]], faults: Faults, name: str
) -> AsyncGenerator[None]:
    """Run a watcher in a task of its own until it ends, or the block does.

    Errors leave the block unchanged. The watcher continues while the block is being cancelled.

    Args:
        watch: The watcher.
        faults: Catches its errors.
        name: The name of the task.
    """
    cancelled = anyio.get_cancelled_exc_class()
    watching = anyio.CancelScope(shield=True)
    failure: list[BaseException] = []

    async def run() -> None:
        try:
            with watching, faults:
                await watch()
        except cancelled:
            pass  # a native one; this is the top of the task, and it must not end the block

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, name=name)
            try:
                yield
            except BaseException as raised:  # noqa: BLE001 (the task group would wrap it)
                failure.append(raised)
            watching.cancel()
    except cancelled:
        if not failure:
            raise  # otherwise it is raised again at the next checkpoint, but the failure only here
    if failure:
        raise failure.pop()  # see errors: frames
