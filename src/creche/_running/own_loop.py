"""Running async work in a thread, on an event loop of its own."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

import anyio
from anyio import lowlevel

from creche._ground.bridge import run_soon
from creche._ground.context import current
from creche._ground.errors import WorkerCancelled, strip_traceback

from .job import leaked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def on_own_loop(
    label: str,
    on_cancel: Callable[[Callable[[], object]], object],
    awaitable: Awaitable[Any],
    backend: str,
) -> object:
    """Await something on a new event loop of a backend, in the current thread.

    Args:
        label: The worker in a sentence.
        on_cancel: Registers a function to call on cancellation; calls it if that has happened.
        awaitable: What to await.
        backend: AnyIO's name of the backend.

    From Python 3.12 on, an error of the work holds all frames below it, including the loop's and
    their contexts. The worker holds the error, so none of these may refer to the worker afterwards.
    """
    has_begun = False
    raised: list[BaseException] = []

    async def main() -> object:
        nonlocal on_cancel, awaitable, has_begun
        has_begun = True
        token = lowlevel.current_token()
        try:
            with anyio.CancelScope() as scope:
                on_cancel(lambda: run_soon(token, scope.cancel))
                try:
                    return await awaitable
                except anyio.get_cancelled_exc_class():
                    if scope.cancel_called:
                        raise
                    # It must not leave this loop: the host would take it for its own cancellation.
                    raised.append(leaked(label))
                    return None
                except BaseException as error:  # noqa: BLE001 (must not pass through the loop's frames)
                    strip_traceback(error)
                    raised.append(error)
                    return None
            raised.append(WorkerCancelled(f"{label} was cancelled"))
            return None
        finally:
            current.set(None)
            del on_cancel, awaitable  # see errors: frames

    # A thread may have inherited the context of a loop: without the GIL, from Python 3.14 on. AnyIO
    # would believe that this loop runs here.
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None:
        sniffio.current_async_library_cvar.set(None)
    try:
        value = anyio.run(main, backend=backend)
    finally:
        current.set(None)
        if not has_begun and inspect.iscoroutine(awaitable):
            awaitable.close()  # no loop could be created
    if raised:
        raise raised.pop()
    return value
