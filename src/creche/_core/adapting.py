"""Workers that run elsewhere: an adapter assigns their states, as far as the table allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from creche._ground.errors import WorkerError
from creche._ground.states import CANCELLED, FINAL, SUCCESS, TRANSITIONS

from .cancelling import request
from .ending import end
from .moving import move

if TYPE_CHECKING:
    from creche._ground.states import WorkerState

    from .worker import Worker


def assign(worker: Worker[Any], state: WorkerState) -> None:
    """Change the state on behalf of an adapter, see ``Worker.state``.

    Raises:
        WorkerError: The change is not allowed; nothing was changed.
    """
    label = worker._creche_label()
    if worker._started:
        if state is not CANCELLED or worker._state in FINAL:
            raise WorkerError(
                f"the state of {label}, which is {worker._state.name} and was started here, "
                f"cannot be set to {state.name}; only to CANCELLED before it has ended"
            )
        worker.cancel()
    elif state is SUCCESS and worker.is_cancelled and worker._state not in FINAL:
        raise WorkerError(f"{label} was cancelled; only CANCELLED or ERROR can follow")
    elif state not in FINAL or state not in TRANSITIONS[worker._state]:
        if not move(worker, state):  # which raises for what the table does not allow
            raise WorkerError(f"{label} is CANCELLED and cannot become RUNNING")
    else:
        if state is CANCELLED:
            request(worker, None)
        end(worker, state)
