"""Checks of the arguments of a new worker or a new node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from creche._ground.errors import WorkerError
from creche._ground.options import check_text
from creche._ground.report import is_a, is_awaitable, shown

from .ending import close_work

if TYPE_CHECKING:
    from anyio import CapacityLimiter

    from .worker import Worker


def check_new(
    worker: Worker[Any],
    abandon_on_cancel: bool,
    limiter: CapacityLimiter | None,
    where: object,
) -> None:
    """Raise an error if the arguments of a worker are invalid, and close its work.

    Args:
        worker: The worker; the other arguments, which are rare, are stored in it.
        abandon_on_cancel: Whether a cancelled thread is left behind.
        limiter: Limits the number of threads.
        where: What runs the work elsewhere.

    Raises:
        WorkerError: An argument is invalid.
    """
    work = worker._work
    wrong = _check_texts(worker) or _check_work(worker)
    if not wrong and where is not None:
        from .elsewhere import set_way  # noqa: PLC0415 (most programs do not need it)

        wrong = set_way(worker, where, limiter)
    part = worker._thread
    if not wrong and part is not None:
        part.abandon_on_cancel, part.limiter = abandon_on_cancel, limiter
    elif not wrong and (abandon_on_cancel or limiter is not None):
        wrong = "abandon_on_cancel and limiter are for threads; add thread=True"
    if wrong:
        close_work(worker)
        raise WorkerError(f"cannot make a worker of {shown(work)}: {wrong}")


def _check_work(worker: Worker[Any]) -> str:
    """Return what is wrong with its work."""
    work = worker._work
    if callable(work) or is_awaitable(work):
        return ""
    if work is not None:
        return "work must be a coroutine function, a callable or an awaitable"
    return "" if worker._has_own_run() else "give it work to do, or implement run() in a subclass"


def check_node(name: object, parent: object) -> str:
    """Raise an error if the arguments of a node are invalid; return its name as plain text.

    Raises:
        WorkerError: An argument is invalid.
    """
    if parent is not None and not hasattr(parent, "_creche_nursery"):
        raise WorkerError(f"parent must be a Node, not {shown(parent)}")
    return str.__str__(check_text("the name of a node", name))


def _check_texts(worker: Worker[Any]) -> str:
    """Make the name and the group plain strings; return what is wrong if they are not text."""
    name, group = worker.name, worker.group
    if not is_a(name, str) or not is_a(group, str):
        what, text = ("group", group) if is_a(name, str) else ("name", name)
        return (
            f"the {what} must be a str, not {shown(text)}; arguments are passed to the work with "
            "functools.partial(work, ...)"
        )
    worker.name, worker.group = str.__str__(name), str.__str__(group)
    return ""
