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
        on_cancel: Has a function called when the worker is cancelled; at once if it is already.
        awaitable: What to await.
        backend: AnyIO's name of the backend.

    What the work raises holds, from Python 3.12 on, all frames that were below it, the loop's with
    their contexts too. The worker holds the error, so none of them may know it in the end.
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
                    # It must not cross over: the host would take it for a cancellation of its own.
                    raised.append(leaked(label))
                    return None
                except BaseException as error:  # noqa: BLE001 (kept from the machinery of the loop)
                    strip_traceback(error)
                    raised.append(error)
                    return None
            raised.append(WorkerCancelled(f"{label} was cancelled"))
            return None
        finally:
            current.set(None)
            del on_cancel, awaitable  # see errors: frames

    try:
        value = anyio.run(main, backend=backend)
    finally:
        current.set(None)
        if not has_begun and inspect.iscoroutine(awaitable):
            awaitable.close()  # there was no loop to be had
    if raised:
        raise raised.pop()
    return value
