"""The one end of a worker, whatever the cause.

``end()`` can be called at any time before the end, and again if it was interrupted: each of its
steps can be repeated.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from creche._ground.errors import WorkerError, WorkerFailed
from creche._ground.report import harmless, is_a
from creche._ground.states import CLOSING, FINAL
from creche._running.job import COROUTINE, is_unawaited

from .followers import call_back, leave
from .log import tell_failure
from .moving import move

if TYPE_CHECKING:
    from creche._ground.states import WorkerState

    from .parts import RareParts
    from .worker import Worker


def end(worker: Worker[Any], state: WorkerState, error: BaseException | None = None) -> None:
    """End a worker, whatever happens: if a step is interrupted it is repeated, and the node fails.

    It may be interrupted by a lack of memory, a Ctrl+C at the wrong line, or a bug of ours.
    """
    steps = worker._node._creche_nursery.bridge.steps
    steps.busy += 1
    try:
        try:
            _take_end(worker, state, error)
        except BaseException as fault:  # noqa: BLE001 (handed to the node)
            try:
                _take_end(worker, state, error)
            finally:
                worker._nursery.fail(fault)
    finally:
        steps.busy -= 1


def _take_end(  # noqa: C901 (calls are expensive)
    worker: Worker[Any], state: WorkerState, error: BaseException | None
) -> None:
    """End, in the order that threads which read without a lock rely on."""
    fatal = error is not None and _tell(worker, error, state)
    if worker._state not in FINAL:
        if error is not None:
            worker._outcome = error
        move(worker, state)
    # Before the node is cancelled, so that those who wait get the reason.
    if worker._node._creche_sleepers:
        _wake_sleepers(worker)
    rare = worker._rare
    if rare is not None:
        _wake_all(worker, rare)
    if fatal and error is not None:
        worker._nursery.fail(error)
    if worker._place is not None:
        worker._place._left(worker)
    # Work that was entered closes itself; in an abandoned thread it may still run.
    work = worker._work
    if worker._started_at is None or (type(work) is COROUTINE and is_unawaited(work)):
        close_work(worker)
    worker._work = worker._handle = worker._context = None
    if not isinstance(worker._description, str):
        worker._description = worker._description.condensed()
    if worker._thread is not None:
        worker._thread.limiter, worker._thread.stops = None, ()
    nursery = worker._node._creche_nursery
    if worker._holds:
        worker._holds, nursery.holds = False, nursery.holds - 1  # in one line, see Nursery.holds
    if nursery.holds <= nursery.blocks:
        nursery.check_idle()


def _tell(worker: Worker[Any], error: BaseException, state: WorkerState) -> bool:
    """Report that a worker has failed; return whether that fails the node."""
    fatal = _is_fatal(worker, error)
    if worker._outcome is not error:
        tell_failure(worker, error, state, fatal=fatal)
    if fatal and not is_a(error, WorkerFailed):
        worker._note_report(worker._nursery.tree)
    return fatal


def _is_fatal(worker: Worker[Any], error: BaseException) -> bool:
    if is_a(error, WorkerError) and error._is_refusal and worker._nursery.state is CLOSING:
        return False  # it tried to start more work, which need not end the others at once
    with harmless:  # the user may set it to anything
        return not is_a(error, Exception) or bool(worker.exit_on_error)
    return True


def _wake_sleepers(worker: Worker[Any]) -> None:
    """Wake those that wait for the end of a worker."""
    node = worker._node
    sleepers = node._creche_sleepers.get(worker._order)
    if sleepers is not None:
        wake = node._creche_nursery.backend.wake
        for sleep in list(sleepers):
            wake(sleep)
        node._creche_sleepers.pop(worker._order, None)


def _wake_all(worker: Worker[Any], rare: RareParts) -> None:
    if rare.begun is not None:
        rare.begun.set()
    if rare.service is not None:
        rare.service.wake()
    if rare.followers:
        leave(worker)
    if rare.callbacks:
        call_back(worker)


def close_work(worker: Worker[Any]) -> None:
    """Let go of the work: a coroutine that was never awaited would cause a warning."""
    work, worker._work = worker._work, None
    if is_a(work, Coroutine):
        work.close()  # pyright: ignore[reportUnknownMemberType]  # of unknown result
