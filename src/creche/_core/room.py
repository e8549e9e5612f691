"""Waiting until a group has room: back-pressure for work that is handed over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyio import lowlevel

from creche._ground.context import current
from creche._ground.errors import DeadlockError, WorkerError
from creche._ground.report import shown

from .deadlock import find_deadlock
from .waiting import is_acting

if TYPE_CHECKING:
    from collections.abc import Collection

    from .deadlock import Waitable
    from .group import WorkerGroup
    from .worker import Worker


class Room:
    """A free slot of a group, as a ``Waitable`` that a worker waits for."""

    __slots__ = ("_group",)

    def __init__(self, group: WorkerGroup) -> None:
        self._group = group

    @property
    def is_finished(self) -> bool:
        """Whether there is a free slot."""
        return self._group._has_room

    def _creche_needs_all(self) -> Collection[Waitable]:
        return ()

    def _creche_needs_one(self) -> Collection[Waitable]:
        return self._group._holders()

    def _creche_label(self) -> str:
        return f"room in group {shown(self._group.name)}"


async def wait_for_room(group: WorkerGroup) -> None:
    """Wait until a group has room, see ``WorkerGroup.room()``."""
    nursery = group._node._creche_nursery
    if nursery.bridge.is_elsewhere:
        raise WorkerError(
            f"room() of group {shown(group.name)} is for the event loop of its node; from a thread "
            "use node.call_from_thread(group.room)"
        )
    await lowlevel.checkpoint()
    if group._has_room:
        return
    me: Worker[Any] | None = current.get(None)
    if me is None or not is_acting(me):
        await _wait(group)
        return
    ties = me._rare_parts()
    ties.waits = (Room(group),)
    me._node._creche_waiting[id(me)] = me
    try:
        ring = find_deadlock(me)
        if ring is not None:
            raise DeadlockError(f"waiting would never end: {ring}; let one of them go first")
        await _wait(group)
    finally:
        ties.waits = ()
        if not ties.opened:
            me._node._creche_waiting.pop(id(me), None)


async def _wait(group: WorkerGroup) -> None:
    # Each task that is woken checks again: the one before may have taken the slot.
    while not group._has_room:
        if group._left_one is None:
            group._left_one = group._node._creche_nursery.new_event()
        await group._left_one.wait()
