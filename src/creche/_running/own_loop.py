"""Running async work in a thread, on an event loop of its own."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import anyio
from anyio import lowlevel

from creche._ground.bridge import run_soon
from creche._ground.context import current
from creche._ground.errors import WorkerCancelled, strip_traceback

from .job import leaked

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from .job import LoopJob


def on_own_loop(job: LoopJob, awaitable: Awaitable[Any], backend: str) -> object:
    """Await something on a new event loop of a backend, in the current thread.

    What the work raises holds, from Python 3.12 on, all frames that were below it, the loop's with
    their contexts too. The worker holds the error, so none of them may know it in the end.
    """
    has_begun = False
    raised: list[BaseException] = []

    async def main() -> object:
        nonlocal job, awaitable, has_begun
        has_begun = True
        token = lowlevel.current_token()
        try:
            with anyio.CancelScope() as scope:
                job.on_cancel(lambda: run_soon(token, scope.cancel))
                try:
                    return await awaitable
                except anyio.get_cancelled_exc_class():
                    if scope.cancel_called:
                        raise
                    # It must not cross over: the host would take it for a cancellation of its own.
                    raised.append(leaked(job))
                    return None
                except BaseException as error:  # noqa: BLE001 (kept from the machinery of the loop)
                    strip_traceback(error)
                    raised.append(error)
                    return None
            raised.append(WorkerCancelled(f"{job.label()} was cancelled"))
            return None
        finally:
            current.set(None)
            del job, awaitable  # see errors: frames

    try:
        value = anyio.run(main, backend=backend)
    finally:
        current.set(None)
        if not has_begun and inspect.iscoroutine(awaitable):
            awaitable.close()  # there was no loop to be had
    if raised:
        raise raised.pop()
    return value
