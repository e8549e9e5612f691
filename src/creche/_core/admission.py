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
from .cancelling import cancel_surely, refuse, refuse_ended
from .giving_way import code_of
from .group import forget, get_group
from .readiness import with_status
from .tree import is_lost, join
from .waiting import until_begun, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from creche._ground.options import ReadyOptions

    from .group import WorkerGroup
    from .node import Node
    from .worker import Worker, WorkType


def admit(
    node: Node, worker: Worker[Any], supersedes: object, start: bool, is_checked: bool = False
) -> None:
    """Admit a worker to a group of a node, or refuse it: then it is CANCELLED, without an event.

    Args:
        node: The node.
        worker: The worker.
        supersedes: See ``WorkerGroup.admit()``.
        start: Whether to start it.
        is_checked: Whether the node admits work, and this is called on its loop or before it has
            one. Otherwise that is checked here, and the loop is asked if necessary.

    Raises:
        WorkerError: It is refused.
        WorkerCancelled: Called by the thread of a cancelled worker.
        BaseException: Its task cannot be created.
    """
    try:
        nursery = node._creche_nursery
        if not is_checked and (
            nursery.bridge.thread != get_ident()
            or nursery.state is not OPEN
            or nursery.get_task() is None
        ):
            worker._keep_context()
            ask(node, partial(_admit_here, node, worker, supersedes, start))
            return
        if node._creche_parent is not None:
            join(node)
        if logger.level != node._creche_audience.log_level:
            node._creche_audience.heed_logger()
        group, steps = node._creche_groups.get(worker.group), nursery.bridge.steps
        steps.busy += 1
        try:
            # In the same step, because a signal handler may have cancelled it before.
            if worker._state in FINAL:
                refuse_ended(worker)
            if group is None:
                group = get_group(node, worker.group)
            group.admit(worker, supersedes, start)
        except BaseException:
            _take_back(worker, group)
            raise
        finally:
            steps.busy -= 1
    except BaseException:
        if worker._place is None and worker._state not in FINAL:
            refuse(worker)
        raise


def _take_back(worker: Worker[Any], group: WorkerGroup | None) -> None:
    """Undo what was done to admit a worker, which the caller does not know."""
    if worker._place is not None:
        cancel_surely(worker, "it could not be started")
    if group is not None and not len(group):
        forget(group)


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
    admit(node, worker, supersedes, start, is_checked=True)


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
