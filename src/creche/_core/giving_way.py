"""Which workers give way to a new one: by the rules of overflow, and to exclusive work."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from .cancelling import cancel_here

if TYPE_CHECKING:
    from collections.abc import Callable

    from creche._ground.options import Overflow

    from .group import WorkerGroup


def _is_partial(work: object) -> bool:
    return isinstance(work, partial)


def code_of(work: Any) -> object:
    """Return the code of the function that work calls, if any: it identifies the function."""
    for _ in range(100):  # the chain may be a cycle
        inner = getattr(work, "func" if _is_partial(work) else "__wrapped__", None)
        if inner is None:
            break
        work = inner
    for name in ("__code__", "cr_code"):  # of functions and methods; of coroutines
        code = getattr(work, name, None)
        if code is not None:
            return code
    return work


def _keep_latest(group: WorkerGroup) -> bool:
    for waiting in list(group._queue.values()):
        cancel_here(waiting, "superseded: only the latest is kept")
    return True


def _restart(group: WorkerGroup) -> bool:
    # The newest should run, as many as the limit. So if all running ones are cancelled already, the
    # oldest waiting one gives way.
    every = (*group._running.values(), *group._queue.values())
    alive = [worker for worker in every if worker._cancellation is None]
    if group._limit is not None and len(alive) >= group._limit:
        cancel_here(alive[0], "superseded: the group restarts")
    return True


OVERFLOW: dict[Overflow, Callable[[WorkerGroup], bool]] = {
    "enqueue": lambda _: True,
    "drop": lambda _: False,
    "restart": _restart,
    "keep_latest": _keep_latest,
}
"""What each rule of overflow does to a full group; it returns whether the new worker may wait."""
