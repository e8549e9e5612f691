"""The one writer of the state of a worker, and the announcement of each change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from creche._ground.errors import WorkerError
from creche._ground.states import CANCELLED, RUNNING, SUCCESS, TRANSITIONS

from .parts import CAN_GO_IN_ONE, lock

if TYPE_CHECKING:
    from creche._ground.states import WorkerState

    from .worker import Worker


def move(worker: Worker[Any], state: WorkerState) -> bool:
    """Change the state of a worker; nothing else does.

    Returns:
        Whether it was changed: work that was called off is not entered.

    Raises:
        WorkerError: The table of states does not allow it.
    """
    node = worker._node
    is_made = change(worker, state, node._creche_nursery.clock())
    if is_made:
        rare = worker._rare
        if node._creche_audience.is_heard or (rare is not None and rare.followers):
            announce(worker, worker._state)
        if rare is not None and rare.begun is not None:
            rare.begun.set()
        return True
    if is_made is None:
        raise WorkerError(
            f"{worker._creche_label()} is {worker._state.name} and cannot become {state.name}"
        )
    return False


def _change(worker: Worker[Any], state: WorkerState, now: float) -> bool | None:
    """Change the state, unless the work was called off; ``None`` if it is not allowed.

    It makes no call, so no thread can cancel between the check and the change.
    """
    if worker._cancellation is not None:
        if state is RUNNING:
            return False
        if state is SUCCESS:
            state = CANCELLED  # cancel is final
    if state not in _following[worker._state]:
        return None
    worker._state = state
    if state is RUNNING:
        worker._started_at = now
    else:
        worker._finished_at = now
    return True


def _change_guarded(worker: Worker[Any], state: WorkerState, now: float) -> bool | None:
    """Change the state where a thread or a signal handler may come between any two lines."""
    with worker._node._creche_nursery.bridge.steps, lock:
        return _change(worker, state, now)


change = _change if CAN_GO_IN_ONE else _change_guarded
_following = dict(TRANSITIONS)  # a lookup through the read-only view is slower


def announce(worker: Worker[Any], state: WorkerState) -> None:
    """Announce a change to all listeners; the node's block raises their errors."""
    node = worker._node
    steps = node._creche_nursery.bridge.steps
    steps.busy += 1
    try:
        node._creche_audience.announce(worker, state)
    except BaseException as fault:  # noqa: BLE001 (the change continues)
        worker._nursery.fail(fault)
    finally:
        steps.busy -= 1
