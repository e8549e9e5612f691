"""Whether what a new worker was given makes sense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from creche._ground.errors import WorkerError
from creche._ground.report import is_a, is_awaitable, shown

from .ending import close_work

if TYPE_CHECKING:
    from .worker import Worker


def check_new(worker: Worker[Any], *, is_for_thread: bool) -> None:
    """Raise an error if what a worker was given makes no sense; its work is closed then.

    Args:
        worker: The worker, of which nobody knows yet.
        is_for_thread: Whether there is anything that only a thread has.

    Raises:
        WorkerError: It makes no sense.
    """
    work = worker._work
    wrong = _check_texts(worker)
    if is_for_thread and worker._thread is None:
        wrong = "abandon_on_cancel and limiter are for threads; add thread=True"
    elif not (callable(work) or is_awaitable(work)):
        if work is not None:
            wrong = "work must be a coroutine function, a callable or an awaitable"
        elif not worker._has_own_run():
            wrong = "give it work to do, or implement run() in a subclass"
    if wrong:
        close_work(worker)
        raise WorkerError(f"cannot make a worker of {shown(work)}: {wrong}")


def _check_texts(worker: Worker[Any]) -> str:
    """Make plain texts of the name and the group; tell what is wrong, if they are none."""
    name, group = worker.name, worker.group
    if not is_a(name, str) or not is_a(group, str):
        return f"name {shown(name)} and group {shown(group)} must both be a text"
    worker.name, worker.group = str.__str__(name), str.__str__(group)
    return ""
