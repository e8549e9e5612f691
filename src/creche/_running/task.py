"""Running async work in a task on the node's loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from creche._ground.errors import WorkerError
from creche._ground.interrupts import await_users, interruptible
from creche._ground.report import is_awaitable, shown

from .job import COROUTINE, FUNCTIONS, call, check_no_generator, close_unawaited

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from .job import TaskJob


@interruptible
def in_task(job: TaskJob) -> Coroutine[Any, Any, Any]:
    """Run async work in the current task, on the node's loop.

    Returns:
        What to await for it: usually the work's own coroutine, because one around it would be the
        largest object of a worker.
    """
    value: Any = None
    try:
        work = job._work
        value = work() if type(work) in FUNCTIONS else call(work)
        if type(value) is COROUTINE:
            own: Coroutine[Any, Any, Any] = value
            return own
        if job._is_to_await(value):
            return await_users(value)
        if is_awaitable(value):
            return _give(value)  # a worker: it is not awaited here
        check_no_generator(value, job._creche_label)
        raise WorkerError(
            f"the work of {job._creche_label()} is a plain function that returned "
            f"{shown(value, 100)}, which is not awaitable; run it with thread=True, or make it an "
            "async function"
        )
    except BaseException:
        close_unawaited(value)
        raise


async def _give(value: Any) -> Any:
    return value
