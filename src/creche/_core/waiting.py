"""Waiting for workers to end, or to begin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
from anyio import lowlevel

from creche._ground.context import current
from creche._ground.errors import DeadlockError, WorkerError
from creche._ground.states import FINAL, PENDING

from .deadlock import find_deadlock

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .worker import Worker


async def wait_for(workers: Iterable[Worker[Any]], *, begun: bool = False) -> None:
    """Wait until workers have ended, or have begun, whichever way; raises none of their errors.

    Raises:
        DeadlockError: The caller is a worker, and what it waits for needs it to end first.
        WorkerError: One of the workers was never started; or it belongs to another event loop.
    """
    waited = [worker for worker in workers if worker._state not in FINAL]
    for worker in waited:
        if not worker._started and worker._state is PENDING:
            raise WorkerError(
                f"cannot wait for {worker._creche_spoken()}, which was never started; "
                "start it first"
            )
        if worker._nursery.bridge.is_elsewhere:
            raise WorkerError(
                f"cannot wait for {worker._creche_spoken()} outside the event loop of its node; "
                "from a thread use node.call_from_thread(worker.wait)"
            )
    me: Worker[Any] | None = current.get(None)
    if not waited or me is None or me._state in FINAL or not me._is_acting():
        await _wait_for(waited, begun=begun)
        return
    ties = me._tied()
    ties.waits = waited
    me._node._creche_waiting[id(me)] = me
    try:
        is_judged = me._is_needed() or any(me is worker for worker in waited)
        ring = find_deadlock(me) if is_judged else None
        if ring is not None:
            raise DeadlockError(f"waiting would never end: {ring}; let one of them go first")
        await _wait_for(waited, begun=begun)
    finally:
        ties.waits = []
        if not ties.opened:
            me._node._creche_waiting.pop(id(me), None)


async def _wait_for(waited: list[Worker[Any]], *, begun: bool) -> None:
    if not waited:
        await lowlevel.checkpoint()
    # The events are made before it is looked whether to wait: a signal handler may come in between.
    for worker in waited:
        ties = worker._tied()
        if begun:
            while worker._state is PENDING:
                ties.begun = ties.begun or anyio.Event()
                if worker._state is PENDING:
                    await ties.begun.wait()
        elif worker._state not in FINAL:
            ties.done = ties.done or anyio.Event()
            if worker._state not in FINAL:
                await ties.done.wait()
