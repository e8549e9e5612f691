"""Workers that are services: whether they are ready, and how often they were restarted.

Few workers are. What they need is stored separately, and created on demand.
"""

from __future__ import annotations

import inspect
import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from creche._ground.errors import WorkerError
from creche._ground.options import check_seconds
from creche._ground.report import shown, tell
from creche._ground.states import FINAL, OPEN, RUNNING

from .ending import close_work
from .events import ProgressChanged, Ready, Restarted, Stalled, StateChanged
from .log import fields_of
from .parts import lock
from .tree import walk_down
from .waiting import raise_outcome, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from .node import Node
    from .parts import ServicePart
    from .worker import Worker


def is_ready(worker: Worker[Any]) -> bool:
    """Whether a worker is running and has called ``ready()``."""
    rare = worker._rare
    service = None if rare is None else rare.service
    return service is not None and service.is_ready and worker._state is RUNNING


def is_node_ready(node: Node) -> bool:
    """Whether a node is open, and every worker below it that has to be ready is."""
    nursery = node._creche_nursery
    if nursery.state is not OPEN or nursery.is_cancelled:
        return False
    return all(
        is_ready(worker)
        for each in walk_down(node)
        for group in list(each._creche_groups.values())
        for worker in group
        if worker._rare is not None
        and worker._rare.service is not None
        and worker._rare.service.is_asked
    )


def say_ready(worker: Worker[Any], value: object) -> None:
    """Record that a worker is ready, and wake those that wait for it; in any thread."""
    service = ask(worker)
    with lock:
        if service.is_ready or worker._cancellation is not None or worker._state in FINAL:
            return
        service.value, service.is_ready = value, True
    worker._node._creche_bridge.run(partial(_tell_ready, worker, service))


def _tell_ready(worker: Worker[Any], service: ServicePart) -> None:
    service.wake()
    if worker._state is RUNNING:
        label, fields = worker._creche_label(), fields_of(worker, worker._state)
        tell(logging.DEBUG, "%s is ready", label, fields=fields)
        worker._node._creche_audience.announce_event(worker, Ready(worker))


def ask(worker: Worker[Any]) -> ServicePart:
    """Require a worker to be ready: its node is not ready before."""
    service = worker._rare_parts().service_part()
    service.is_asked = True
    return service


async def until_ready(worker: Worker[Any]) -> Any:
    """Wait until a worker is ready, see ``Worker.until_ready()``."""
    service = ask(worker)
    if not service.is_ready:
        await wait_for((worker,), _until_ready)
    if service.is_ready:
        return service.value
    await wait_for((worker,))
    raise_outcome(worker)
    raise WorkerError(f"{worker._creche_label()} has returned without being ready")


async def _until_ready(worker: Worker[Any]) -> None:
    service = ask(worker)
    while not service.is_ready and worker._state not in FINAL:
        # Created before the check whether to wait: a signal handler may run in between.
        ready = service.ready
        service.ready = ready = ready if ready is not None else worker._nursery.new_event()
        if not service.is_ready and worker._state not in FINAL:
            await ready.wait()


class TaskStatus:
    """The ``task_status`` for work that takes one, as with ``anyio.TaskGroup.start()``."""

    worker: Worker[Any]
    """The worker, set before its work begins."""

    def started(self, value: object = None) -> None:
        """Report that the worker is ready, see ``Worker.ready()``."""
        self.worker.ready(value)


def with_status(work: Any) -> tuple[Any, TaskStatus]:
    """Pass work its ``task_status``, if it takes one."""
    status = TaskStatus()
    if _takes_status(work):
        return partial(work, task_status=status), status
    return work, status


def _takes_status(work: Callable[..., Any]) -> bool:
    try:
        return "task_status" in inspect.signature(work).parameters
    except (TypeError, ValueError):
        return False


def restart(worker: Worker[Any], error: BaseException, delay: float) -> None:
    """Record that work failed and starts again, see ``Worker.restarted()``; on the loop."""
    if worker._state is not RUNNING:
        raise WorkerError(f"{worker._creche_label()} is {worker._state.name}, not RUNNING")
    service = worker._rare_parts().service_part()
    service.wake()  # those that wait now wait for the next attempt
    with lock:
        service.attempt += 1
        service.is_ready, service.value, service.ready = False, None, None
        service.due = worker._nursery.now() + delay
        worker._completed, worker._total = 0, None
    tell(
        logging.WARNING,
        "%s failed and is started again in %.3g s (attempt %d): %s",
        worker._creche_label(),
        delay,
        service.attempt,
        shown(error, 200),
        error=error,
        fields=fields_of(worker, worker._state),
    )
    worker._node._creche_audience.announce_event(worker, Restarted(worker, error, delay))


def watch_new(worker: Worker[Any], seconds: float) -> None:
    """Announce stalls of a new worker, once it runs.

    Raises:
        WorkerError: That is not a valid time; the work is closed.
    """
    try:
        watch_stalls(worker, seconds)
    except BaseException:
        close_work(worker)
        raise


def watch_stalls(worker: Worker[Any], seconds: float) -> None:
    """Announce stalls of a worker, see ``Worker.watch_stalls()``."""
    check_seconds("stall_after", seconds)
    service = worker._rare_parts().service_part()
    service.stall_after = seconds
    if service.watch is not None:
        service.watch.deadline = worker._nursery.clock() + seconds
    elif worker._state is RUNNING:
        begin_watch(worker)


def begin_watch(worker: Worker[Any]) -> None:
    """Announce stalls of a running worker until it has ended, if wanted; on the loop."""
    service = worker._rare_parts().service_part()
    if service.stall_after < math.inf:
        service.watch = anyio.CancelScope()  # replaced once the task begins
        name = f"stalls of {worker._task_name()}"
        # It ends with the worker, which holds the nursery unless it is a daemon.
        worker._nursery.spawn_held(
            partial(_watch_stalls, worker, service), int, name=name
        ).hold_no_more()


async def _watch_stalls(worker: Worker[Any], service: ServicePart) -> None:
    try:
        async with worker.subscribe(StateChanged, ProgressChanged, Restarted) as events:
            while worker._state not in FINAL:
                event = None
                # Until the next attempt starts, no progress is expected.
                pause = max(0.0, service.due - worker._nursery.clock())
                with anyio.move_on_after(pause + service.stall_after) as service.watch:
                    event = await anext(events, None)
                if event is not None:
                    service.is_stalled = False
                elif worker._state is RUNNING and not service.is_stalled:
                    service.is_stalled = True
                    _tell_stalled(worker, service.stall_after)
    except worker._nursery.cancelled_class:
        pass  # cancelled with the node: nothing is announced any more


def _tell_stalled(worker: Worker[Any], seconds: float) -> None:
    label, fields = worker._creche_label(), fields_of(worker, worker._state)
    tell(logging.WARNING, "%s has made no progress for %.3g s", label, seconds, fields=fields)
    worker._node._creche_audience.announce_event(worker, Stalled(worker, seconds))
