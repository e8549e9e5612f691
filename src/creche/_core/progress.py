"""Sets the steps of a worker, and announces that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from creche._ground.options import check_text
from creche._ground.steps import check_steps

from .parts import lock

if TYPE_CHECKING:
    from .worker import Worker


def set_steps(
    worker: Worker[Any], completed: int | None, total: int | None, description: str | None
) -> None:
    """Set the steps of a worker and its description, see ``Worker.update()``."""
    for steps in (completed, total):
        if steps is not None and type(steps) is not int:
            check_steps(steps)
    if description is not None:
        check_text("description", description)
    with lock:
        if completed is not None:
            worker._completed = completed
        if total != -1:
            worker._total = None if total is None else max(0, total)
        if description is not None:
            worker._description = description
    rare, audience = worker._rare, worker._node._creche_audience
    if audience.tells_progress or (rare is not None and rare.is_hungry):
        audience.announce_progress(worker)
