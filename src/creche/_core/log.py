"""The logger ``creche`` as one of those who hear a node: each change of state, at DEBUG.

So nothing is asked of the logger where a change is announced. Whether it hears a node is decided as
the node is made and as it is opened, and again with the next worker that is added once the level of
the logger itself has been changed, which is one look at an attribute.

It is told in the middle of a change. So what raises there, a filter or a handler of the program's,
ends here: the record is lost, and that is told of the first one that is lost after one that was
not, or after a node has closed.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from creche._ground.call import call_of
from creche._ground.errors import WorkerFailed, add_note, drop_cancellation, strip_traceback
from creche._ground.report import is_a, logger, shown, tell
from creche._ground.text import name_of, path_of, text, text_of

from .events import StateChanged

if TYPE_CHECKING:
    from creche._ground.message import Message
    from creche._ground.states import WorkerState
    from creche._messages.subscription import Source

    from .worker import Worker


_LONGEST = 200  # characters of a description


class Log:
    """A listener that writes changes of state to the log."""

    _tree = False

    def __init__(self) -> None:
        self._is_broken = False

    def _wants(self, kind: type[Message]) -> bool:
        return issubclass(kind, StateChanged)

    def _put(self, message: Message) -> None:
        if not isinstance(message, StateChanged):
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

    def _is_closing(self, source: Source) -> None:
        """Go on: what is still to come is told too."""

    def _has_left(self, source: Source) -> None:  # noqa: ARG002 (as each listener has it)
        """Be told again what is wrong: the log outlasts all nodes."""
        self._is_broken = False


def _write(event: StateChanged) -> None:
    worker, state, previous = event.worker, event.state, event.previous
    before = "new" if previous is None else previous.name
    told = (name_of(worker), text_of(worker, "group"), path_of(worker._node), before, state.name)
    fields = fields_of(worker, state, previous)
    logger.debug("worker %r of group %r on node %r: %s -> %s", *told, extra=fields)


def fields_of(
    worker: Worker[Any], state: WorkerState, previous: WorkerState | None = None
) -> dict[str, str | int | None]:
    """Return what a record in the log has of its own, under names that clash with nothing."""
    reason = None if worker._cancellation is None else worker._cancellation[1]
    return {
        "creche_worker": name_of(worker),
        "creche_number": worker._order,
        "creche_group": text_of(worker, "group"),
        "creche_node": path_of(worker._node),
        "creche_state": state.name,
        "creche_previous": None if previous is None else previous.name,
        "creche_reason": None if reason is None else text(reason),
    }


LOG = Log()


def is_wanted() -> bool:
    """Return whether the logger takes changes of state at present."""
    return logger.isEnabledFor(logging.DEBUG)


def tell_failure(
    worker: Worker[Any], error: BaseException, state: WorkerState, *, fatal: bool
) -> None:
    """Put on an error where it happened, and say so in the log in this very moment.

    The node may take its time to end. All of this is as well as can be done.
    """
    try:
        strip_traceback(error)
        drop_cancellation(error, worker._nursery.cancelled_class)
        where = worker._node._creche_label()
        group = shown(text_of(worker, "group"))
        add_note(error, f"in {worker._creche_label()} of group {group} on {where}")
        if fatal and (is_a(error, WorkerFailed) or not is_a(error, Exception)):
            return  # told where it first failed; or no failure, but a wish to end
        call = (text_of(worker, "description") or call_of(worker._work))[:_LONGEST]
        tell(
            logging.ERROR,
            "%s failed%s%s",
            worker._creche_label(),
            f" in {call}" if call else "",
            f", and with it {where}" if fatal else "",
            error=error,
            fields=fields_of(worker, state, worker._state),
        )
    except KeyboardInterrupt:
        raise
    except BaseException as fault:  # noqa: BLE001 (see above)
        tell(logging.ERROR, "could not log everything about a failed worker", error=fault)
