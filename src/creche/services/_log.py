"""What services say to the log, in the form of the library's own records."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from creche import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from creche import Node, WorkerState

logger = logging.getLogger("creche")
# A subclass of Worker may have another ``node`` and ``state``.
node_of: Callable[[Worker[Any]], Node] = vars(Worker)["node"].fget
_state_of: Callable[[Worker[Any]], WorkerState] = vars(Worker)["state"].fget


def fields_of(worker: Worker[Any]) -> dict[str, object]:
    """Give what a record about a worker has of its own."""
    return {
        "creche_worker": worker.name,
        "creche_number": worker.number,
        "creche_group": worker.group,
        "creche_node": node_of(worker).path,
        "creche_state": _state_of(worker).name,
        "creche_previous": None,
        "creche_reason": None,
    }
