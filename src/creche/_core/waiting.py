"""Waiting for workers to end, or to begin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import anyio
from anyio import lowlevel

from creche._ground.context import current
from creche._ground.errors import DeadlockError, WorkerCancelled, WorkerError, WorkerFailed
from creche._ground.states import CANCELLED, ERROR, FINAL, PENDING

from .cancelling import tell_of
from .deadlock import find_deadlock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable
    from types import CoroutineType

    from .worker import Worker


def wait_for(
    workers: Iterable[Worker[Any]], until: Callable[[Worker[Any]], Awaitable[None]] | None = None
) -> Coroutine[Any, Any, None]:
    """Wait until workers have ended, in whatever way; raises none of their errors.

    Await what it returns at once: another coroutine around it would be expensive.

    Args:
        workers: The workers.
        until: What to wait for of each worker, instead of its end.

    Raises:
        DeadlockError: The caller is a worker, and what it waits for needs it to end first.
        WorkerError: One of the workers was never started; or it belongs to another event loop.
    """
    waited = [worker for worker in workers if worker._state not in FINAL]
    for worker in waited:
        if worker._holds is None and worker._state is PENDING:
            raise WorkerError(
                f"cannot wait for {worker._creche_label()}, which was never started; start it first"
            )
        if worker._node._creche_nursery.bridge.is_elsewhere:
            raise WorkerError(
                f"cannot wait for {worker._creche_label()} outside the event loop of its node; "
                "from a thread use node.call_from_thread(worker.wait)"
            )
    me: Worker[Any] | None = current.get(None)
    if not waited or me is None or me._state in FINAL or not is_acting(me):
        return _wait_for(waited, until)
    return _wait_as(me, waited, until)


async def _wait_as(
    me: Worker[Any],
    waited: list[Worker[Any]],
    until: Callable[[Worker[Any]], Awaitable[None]] | None,
) -> None:
    """Wait in a worker: record who waits for whom, and refuse a cycle."""
    ties = me._rare_parts()
    ties.waits = waited
    me._node._creche_waiting[id(me)] = me
    counted = 0
    try:
        ring = _judge(me, waited)
        if ring is not None and any(me is worker for worker in waited):
            raise DeadlockError(
                f"waiting would never end: {me._creche_label()} waits for itself; leave that out, "
                "or wait in another worker"
            )
        if ring is not None:
            raise DeadlockError(f"waiting would never end: {ring}; let one of them go first")
        for worker in waited:
            parts = worker._rare_parts()
            parts.awaited, counted = parts.awaited + 1, counted + 1  # in one line
        await _wait_for(waited, until)
    finally:
        ties.waits = ()
        for worker in waited[:counted]:
            worker._rare_parts().awaited -= 1
        if not ties.opened:
            me._node._creche_waiting.pop(id(me), None)


async def _wait_for(
    waited: list[Worker[Any]], until: Callable[[Worker[Any]], Awaitable[None]] | None
) -> None:
    if not waited:
        await lowlevel.checkpoint()
    for worker in waited:
        if until is not None:
            await until(worker)
        elif worker._state not in FINAL:
            # A sleep of its own for each that waits: it costs less than an event for all of them,
            # and much less than the rare parts to keep that in.
            node, order = worker._node, worker._order
            sleep = node._creche_nursery.backend.new_sleep()
            sleepers = node._creche_sleepers.setdefault(order, {})
            try:
                sleepers[sleep] = None
                if worker._state not in FINAL:  # a signal handler may have run in between
                    await sleep
            finally:
                sleepers.pop(sleep, None)
                if not sleepers:
                    node._creche_sleepers.pop(order, None)


def raise_outcome(worker: Worker[Any]) -> None:
    """Raise the error for how a worker has ended, unless that is SUCCESS.

    Raises:
        WorkerFailed: The work raised.
        WorkerCancelled: The worker was cancelled.
    """
    error = cast("BaseException | None", worker._outcome) if worker._state is ERROR else None
    if error is not None:
        # A new one, because a traceback grows at each raise; nameless, see errors: frames.
        raise WorkerFailed(error, worker) from error
    if worker._state is ERROR:
        raise WorkerFailed(WorkerError("it failed elsewhere"), worker)
    if worker._state is CANCELLED:
        raise WorkerCancelled(tell_of(worker))


async def until_begun(worker: Worker[Any]) -> None:
    """Wait until a worker is not PENDING any more; for ``wait_for()``."""
    ties = worker._rare_parts()
    while worker._state is PENDING:
        begin = ties.begun
        ties.begun = begin if begin is not None else worker._nursery.new_event()
        if worker._state is PENDING:
            await ties.begun.wait()


def _judge(me: Worker[Any], waited: list[Worker[Any]]) -> str | None:
    """Return the cycle that a wait of the running worker would close, if any."""
    steps = waited[0]._nursery.bridge.steps
    steps.busy += 1  # a signal handler changes nothing meanwhile
    try:
        is_judged = _is_needed(me) or any(me is worker for worker in waited)
        return find_deadlock(me) if is_judged else None
    finally:
        steps.busy -= 1


def _is_needed(worker: Worker[Any]) -> bool:
    """Whether anything may wait for this worker; otherwise it closes no cycle with others."""
    return (
        (worker._rare is not None and worker._rare.awaited > 0)
        or (worker._place is not None and worker._place._is_waited_for())
        or worker._node._creche_life.is_opened_by_a_worker()
    )


def is_acting(worker: Worker[Any]) -> bool:
    """Whether the running code is a worker's own task or thread, not one that it spawned."""
    if worker._handle is None:
        return False
    loop_calls = worker._rare.loop_calls if worker._rare is not None else ()
    for coro in (worker._handle.coro, *(call.coro for call in loop_calls)):
        # cr_running is true while what the coroutine awaits runs; and from Python 3.12 on, while a
        # task that it creates is started eagerly.
        if cast("CoroutineType[Any, Any, Any]", coro).cr_running:
            return not worker._nursery.is_in_eager_task()
    if worker._thread is None:
        return False
    # anyio.from_thread.run() in the worker's thread: AnyIO makes a task for it on asyncio.
    name = getattr(anyio.get_current_task().coro, "__qualname__", "")
    return name.endswith("run_async_from_thread.<locals>.task_wrapper")
