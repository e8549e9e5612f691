"""The one cancellation of a worker, whatever the cause, in one order.

It is *requested* in the calling thread: from there on the worker never ends SUCCESS. Then it is
*delivered* on the loop: work that has not begun ends at once; otherwise its thread is notified, and
the cancel scope of the task is cancelled. The first request counts.
"""

from __future__ import annotations

import inspect
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from creche._ground.errors import WorkerError
from creche._ground.report import text_of
from creche._ground.states import CANCELLED, FINAL, PENDING, RUNNING

from .ending import close_work, end
from .parts import lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .worker import Worker


def cancel(
    worker: Worker[Any], reason: object, run: Callable[[Callable[[], object]], object]
) -> None:
    """Cancel a worker, see ``Worker.cancel()``.

    Args:
        worker: The worker.
        reason: Why.
        run: Makes a call on the loop, now or soon.
    """
    try:
        if request(worker, reason):
            run(partial(deliver, worker))
    except BaseException:
        if worker._cancellation is not None:
            run(partial(deliver, worker))  # again, because no later request would do it
        raise


def cancel_here(worker: Worker[Any], reason: object) -> None:
    """Cancel a worker within a step of the library on the loop."""
    cancel(worker, reason, _at_once)


def cancel_surely(worker: Worker[Any], reason: object) -> None:
    """Cancel a worker within a step on the loop, even if an earlier request was interrupted."""
    request(worker, reason)
    deliver(worker)


def _at_once(call: Callable[[], object]) -> None:
    call()


def request(worker: Worker[Any], reason: object) -> bool:
    """Note the time and the reason, in any thread; return whether this was the first request."""
    with lock:
        rare, asked = worker._rare, (worker._node._creche_nursery.now(), reason)
        # No function is called from here on, see move().
        if worker._cancellation is not None or worker._state in FINAL:
            return False
        worker._cancellation = asked
    if rare is not None and rare.cancelled is not None:
        rare.cancelled.set()
    return True


def request_each(workers: Iterable[Worker[Any]], asked: tuple[float, object]) -> None:
    """Note the time and the reason for many workers, on the loop; ``deliver()`` does the rest."""
    with lock:
        for worker in workers:
            if worker._cancellation is None and worker._state not in FINAL:
                worker._cancellation = asked


def is_delivered_by_scope(worker: Worker[Any]) -> bool:
    """Whether a worker whose task was cancelled by the nursery's scope needs no ``deliver()``."""
    return worker._state is RUNNING and worker._rare is None and worker._thread is None


def deliver(worker: Worker[Any], *, by_nursery: bool = False) -> None:
    """Act on a request, on the loop; safe to call again.

    Args:
        worker: The worker.
        by_nursery: Whether the nursery cancels the scope, with those of all others.
    """
    bridge = worker._nursery.bridge
    bridge.steps.busy += 1
    try:
        handle, rare, thread = worker._handle, worker._rare, worker._thread
        if rare is not None and rare.cancelled is not None:
            rare.cancelled.set()  # in case the request was interrupted
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
    """Return the event that is set when cancellation is requested; created if necessary."""
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


# without a request


def break_off(worker: Worker[Any]) -> None:
    """End a worker whose task did not, or finish an end that was interrupted."""
    request(worker, "its task has died")
    end(worker, worker._state if worker._state in FINAL else CANCELLED)


def reap(worker: Worker[Any]) -> None:
    """End a worker whose task has died without ending it; see ``Nursery``."""
    coro = None if worker._handle is None else worker._handle.coro
    if coro is not None and inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED:
        break_off(worker)


def disown(worker: Worker[Any]) -> None:
    """End a worker that its closing node never started."""
    request(worker, "its node closed")
    end(worker, CANCELLED)


def refuse(worker: Worker[Any]) -> None:
    """Make a worker CANCELLED without an event; in any thread, because no node knows it."""
    request(worker, "refused")
    with lock:
        if PENDING is worker._state:
            worker._state = CANCELLED
    close_work(worker)
    worker._context = None


def refuse_ended(worker: Worker[Any]) -> NoReturn:
    """Raise the error for adding a worker that has ended to a node.

    Raises:
        WorkerError: Always.
    """
    raise WorkerError(f"{worker._creche_label()} has ended; add one that has not")
