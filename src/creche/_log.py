"""The logger ``creche`` as one of those who hear a node: each change of state, at DEBUG.

So nothing is asked of the logger where a change is announced. Whether it hears a node is decided as
the node is made and as it is opened, and again with the next worker that is added once the level of
the logger itself has been changed, which is one look at an attribute.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ._record import logger
from ._worker import Worker

if TYPE_CHECKING:
    from ._message import Message
    from ._subscription import Source


class Log:
    """A listener that writes changes of state to the log."""

    _tree = False

    def _wants(self, kind: type[Message]) -> bool:
        return issubclass(kind, Worker.StateChanged)

    def _put(self, message: Message) -> None:
        if isinstance(message, Worker.StateChanged):
            worker, previous = message.worker, message.previous
            logger.debug(
                "%s of group %r on node %r: %s -> %s",
                worker._creche_spoken(),
                worker.group,
                worker.node.path,
                "new" if previous is None else previous.name,
                message.state.name,
                extra=worker._log_fields(message.state, previous),
            )

    def _has_left(self, node: Source) -> None:
        """Take note of nothing: the log outlasts all nodes."""


LOG = Log()


def is_wanted() -> bool:
    """Tell whether the logger takes changes of state at present."""
    return logger.isEnabledFor(logging.DEBUG)
