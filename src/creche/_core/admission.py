"""The one way into a node for a worker, from any thread and however it was made.

What can fail comes first, so nothing is known or announced of a worker that is refused.
"""

from __future__ import annotations

import warnings
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

from creche._ground.errors import WorkerError
from creche._ground.report import logger, shown
from creche._ground.states import FINAL, NEW, OPEN

from .calls import ask
from .cancelling import cancel_with_nursery, refuse, refuse_ended
from .giving_way import code_of
from .group import forget, get_group
from .readiness import with_status
from .tree import is_lost, join
from .waiting import until_begun, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from creche._ground.options import ReadyOptions

    from .node import Node
    from .worker import Worker, WorkType


def admit(node: Node, worker: Worker[Any], supersedes: object, start: bool) -> None:
    """Admit a worker to a node, or refuse it: then it is CANCELLED, without an event.

    Args:
        node: The node.
        worker: The worker.
        supersedes: See ``WorkerGroup.admit()``.
        start: Whether to start it.

    Raises:
        WorkerError: It is refused.
        WorkerCancelled: Called by the thread of a cancelled worker.
        BaseException: Its task cannot be created.
    """
    try:
        nursery = node._creche_nursery
        if (
            nursery.bridge.thread == get_ident()
            and nursery.state is OPEN
            and nursery.get_task() is not None
        ):
            _place(node, worker, supersedes, start)
        else:
            worker._keep_context()
            ask(node, partial(_admit_here, node, worker, supersedes, start))
    except BaseException:
        if worker._place is None and worker._state not in FINAL:
            refuse(worker)
        raise


def _admit_here(node: Node, worker: Worker[Any], supersedes: object, start: bool) -> None:
    """Admit a worker, on the loop or before there is a loop."""
    nursery = node._creche_nursery
    if start or nursery.state is not NEW or nursery.bridge.is_gone:
        nursery.check_admission()
    elif is_lost(node):
        raise WorkerError(
            f"cannot add work to {node._creche_label()}, whose parent is closed; "
            "use a node that is open"
        )
    _place(node, worker, supersedes, start)


def _place(node: Node, worker: Worker[Any], supersedes: object, start: bool) -> None:
    """Put a worker into a group of the node."""
    if node._creche_parent is not None:
        join(node)
    if logger.level != node._creche_audience.log_level:
        node._creche_audience.heed_logger()
    group = node._creche_groups.get(worker.group)
    steps = node._creche_nursery.bridge.steps
    steps.busy += 1
    try:
        # In the same step, because a signal handler may have cancelled it before.
        if worker._state in FINAL:
            refuse_ended(worker)
        if group is None:
            group = get_group(node, worker.group)
        group.admit(worker, supersedes, start)
    except BaseException:
        if worker._place is not None:
            # The caller does not know it. It may be marked already, so it is not requested.
            cancel_with_nursery(worker, "it could not be started", by_scope=False)
        if group is not None and not len(group):
            forget(group)
        raise
    finally:
        steps.busy -= 1


async def start(
    node: Node,
    work: WorkType[Any],
    name: str,
    group: str | None,
    description: str,
    options: ReadyOptions,
) -> Worker[Any]:
    """Run work, and wait until it has begun or is ready, see ``Node.start_worker()``."""
    ready, status = options.pop("ready", False), None
    if ready:
        work, status = with_status(work)
    run_worker: Callable[..., Worker[Any]] = node.run_worker
    worker = run_worker(work, name, group, description, **options)
    if status is not None:
        status.worker = worker
    try:
        if ready:
            await worker.until_ready()
        else:
            await wait_for((worker,), until_begun)
    except BaseException:
        worker.cancel("withdrawn: the caller of start_worker() was cancelled")
        raise
    return worker


def group_of_exclusive(work: object, called: str, group: str | None) -> tuple[str, object]:
    """Return the group of exclusive work, and what it supersedes, see ``WorkerGroup.admit()``.

    Args:
        work: The work.
        called: The name of its function.
        group: The group that was asked for, if any was.
    """
    if group is not None:
        return group, True
    if not called.isidentifier():
        warnings.warn(
            f"exclusive=True without a group for {shown(work)}, which has no name of its own: only "
            'runs of this very object are superseded; add group="..."',
            RuntimeWarning,
            stacklevel=3,
        )
    return called or "default", code_of(work)
