"""The logger ``creche`` as a listener of nodes: it logs each change of state, at DEBUG.

So announcing a change does not check the logger. Whether it listens to a node is decided when the
node is created and when it is opened. If the level of the logger is changed later, it is decided
again when the next worker is added, at the cost of comparing one attribute.

It is called in the middle of a change. So errors of the program's filters and handlers end here:
the record is lost, and that is reported for the first lost record after a good one, or after a node
has closed.
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
        """Continue: later changes are logged too."""

    def _has_left(self, source: Source) -> None:  # noqa: ARG002 (as for each listener)
        """Report lost records again from now on, because the log outlives nodes."""
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
    """Return the fields of a log record, under names that do not clash with others."""
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
    """Return whether the logger currently wants changes of state."""
    return logger.isEnabledFor(logging.DEBUG)


def tell_failure(
    worker: Worker[Any], error: BaseException, state: WorkerState, *, fatal: bool
) -> None:
    """Add a note to an error about where it happened, and log it at once.

    The node may take long to end. All of this is best effort.
    """
    try:
        strip_traceback(error)
        drop_cancellation(error, worker._nursery.cancelled_class)
        where = worker._node._creche_label()
        group = shown(text_of(worker, "group"))
        add_note(error, f"in {worker._creche_label()} of group {group} on {where}")
        if fatal and (is_a(error, WorkerFailed) or not is_a(error, Exception)):
            return  # logged where it first failed; or not a failure, but a request to exit
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
