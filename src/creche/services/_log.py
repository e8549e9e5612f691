"""What services say to the log, in the form of the library's own records."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from creche import Worker

logger = logging.getLogger("creche")


def fields_of(worker: Worker[Any]) -> dict[str, object]:
    """Give what a record about a worker has of its own."""
    return {
        "creche_worker": worker.name,
        "creche_number": worker.number,
        "creche_group": worker.group,
        "creche_node": worker.node.path,
        "creche_state": worker.state.name,
        "creche_previous": None,
        "creche_reason": None,
    }
