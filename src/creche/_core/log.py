"""The logger ``creche`` as one of those who hear a node: each change of state, at DEBUG.

So nothing is asked of the logger where a change is announced. Whether it hears a node is decided as
the node is made and as it is opened, and again with the next worker that is added once the level of
the logger itself has been changed, which is one look at an attribute.

It is told in the midst of a change. So what raises there, a filter or a handler of the program's,
ends here: the record is lost, and that is told of the first one that is lost after one that was
not, or after a node has closed.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from creche._ground.report import logger, tell
from creche._ground.text import name_of, path_of, text, text_of

from .worker import Worker

if TYPE_CHECKING:
    from creche._ground.message import Message
    from creche._messages.subscription import Source


class Log:
    """A listener that writes changes of state to the log."""

    _tree = False

    def __init__(self) -> None:
        self._is_broken = False

    def _wants(self, kind: type[Message]) -> bool:
        return issubclass(kind, Worker.StateChanged)

    def _put(self, message: Message) -> None:
        if not isinstance(message, Worker.StateChanged):
            return
        try:
            _write(message)
            self._is_broken = False
        except KeyboardInterrupt:
            raise
        except BaseException as fault:  # noqa: BLE001 (it is reported)
            if not self._is_broken:
                self._is_broken = True
                tell(logging.ERROR, "a change of a worker's state cannot be logged", error=fault)

    def _has_left(self, node: Source) -> None:  # noqa: ARG002 (a listener is told of each)
        """Be told anew what is wrong: the log outlasts all nodes."""
        self._is_broken = False


def _write(event: Worker.StateChanged) -> None:
    worker, state, previous = event.worker, event.state, event.previous
    name, group, path = name_of(worker), text_of(worker, "group"), path_of(worker._node)
    reason = worker._cancellation[1] if worker._cancellation is not None else None
    fields = {
        "creche_worker": name,
        "creche_group": group,
        "creche_node": path,
        "creche_state": state.name,
        "creche_previous": None if previous is None else previous.name,
        "creche_reason": None if reason is None else text(reason),
    }
    before = "new" if previous is None else previous.name
    told = (name, group, path, before, state.name)
    logger.debug("worker %r of group %r on node %r: %s -> %s", *told, extra=fields)


LOG = Log()


def is_wanted() -> bool:
    """Tell whether the logger takes changes of state at present."""
    return logger.isEnabledFor(logging.DEBUG)
