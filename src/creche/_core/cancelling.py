"""The cancellation of a worker: one, whoever asks for it, and in one order.

It is *requested* in the calling thread: from there on the worker never ends SUCCESS. Then it is
*delivered* on the loop: work that has not begun ends at once; else what runs in a thread is told,
and the cancel scope of the task is cancelled. The first request counts.
"""

from __future__ import annotations

import inspect
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from creche._ground.errors import WorkerError
from creche._ground.report import text_of
from creche._ground.states import CANCELLED, FINAL, PENDING

from .ending import close_work, end
from .parts import lock

if TYPE_CHECKING:
    from collections.abc import Callable

    from .worker import Worker


def cancel(
    worker: Worker[Any], reason: object, run: Callable[[Callable[[], object]], object]
) -> None:
    """Cancel a worker, see ``Worker.cancel()``.

    Args:
        worker: The worker.
        reason: Why.
        run: What has a call made on the loop, now or soon.
    """
    try:
        if request(worker, reason):
            run(partial(deliver, worker))
    except BaseException:
        if worker._cancellation is not None:
            run(partial(deliver, worker))  # once more, as no further request would
        raise


def cancel_here(worker: Worker[Any], reason: object) -> None:
    """Cancel a worker within a step of the library on the loop."""
    cancel(worker, reason, _at_once)


def cancel_with_nursery(worker: Worker[Any], reason: object, *, by_scope: bool) -> None:
    """Cancel a worker with its nursery, which may cancel the scope of all its tasks at once."""
    request(worker, reason)
    deliver(worker, by_nursery=by_scope)


def _at_once(call: Callable[[], object]) -> None:
    call()


def request(worker: Worker[Any], reason: object) -> bool:
    """Note the time and the reason, in any thread; return whether this was the first request."""
    with lock:
        rare, asked = worker._rare, (worker._node._creche_nursery.now(), reason)
        # From here on there is no call, see move().
        if worker._cancellation is not None or worker._state in FINAL:
            return False
        worker._cancellation = asked
    if rare is not None and rare.cancelled is not None:
        rare.cancelled.set()
    return True


def deliver(worker: Worker[Any], *, by_nursery: bool = False) -> None:
    """Do on the loop what follows from a request; safe to call again.

    Args:
        worker: The worker.
        by_nursery: Whether the nursery cancels the scope, with those of all others.
    """
    bridge = worker._nursery.bridge
    bridge.steps.busy += 1
    try:
        handle, rare, thread = worker._handle, worker._rare, worker._thread
        if rare is not None and rare.cancelled is not None:
            rare.cancelled.set()  # in case that the one who requested it was interrupted
        if worker._state is PENDING and (thread is None or not thread.is_handed_over):
            end(worker, CANCELLED)
        if thread is not None:
            for stop in thread.stops:
                stop()
        if rare is not None:
            for call in rare.loop_calls:
                call.cancel()
        if handle is not None and not by_nursery:
            handle.cancel()
    finally:
        bridge.steps.busy -= 1


def event_of(worker: Worker[Any]) -> threading.Event:
    """Return an event that is set when cancellation is requested, made if need be."""
    with lock:
        rare = worker._rare_parts()
        if rare.cancelled is None:
            rare.cancelled = threading.Event()
            if worker._cancellation is not None:
                rare.cancelled.set()
        return rare.cancelled


def tell_of(worker: Worker[Any]) -> str:
    """Say that a worker was cancelled, and why."""
    why = worker._cancellation[1] if worker._cancellation is not None else None
    reason = f": {text_of(why)}" if why is not None else ""
    return f"{worker._creche_label()} was cancelled{reason}"


# where nobody asks for it


def break_off(worker: Worker[Any]) -> None:
    """End in place of a task that does not, or to the last step where it was interrupted."""
    request(worker, "its task has died")
    end(worker, worker._state if worker._state in FINAL else CANCELLED)


def reap(worker: Worker[Any]) -> None:
    """End if the task has died without doing so; see ``Nursery``."""
    coro = None if worker._handle is None else worker._handle.coro
    if coro is not None and inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED:
        break_off(worker)


def disown(worker: Worker[Any]) -> None:
    """End a worker that its closing node never started."""
    request(worker, "its node closed")
    end(worker, CANCELLED)


def refuse(worker: Worker[Any]) -> None:
    """Have it CANCELLED without having been heard of; in any thread, for no node knows of it."""
    request(worker, "refused")
    with lock:
        if PENDING is worker._state:
            worker._state = CANCELLED
    close_work(worker)
    worker._context = None


def refuse_ended(worker: Worker[Any]) -> NoReturn:
    """Raise an error, as a worker that has ended is to be added to a node.

    Raises:
        WorkerError: Always.
    """
    raise WorkerError(f"{worker._creche_label()} has ended; add one that has not")
