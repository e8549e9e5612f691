"""Nodes without a block of their own: each lives in a task of the nursery above it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from creche._ground.errors import (
    WorkerCancelled,
    WorkerError,
    parts_of,
    strip_traceback,
    uncancelled,
)
from creche._ground.report import is_a, shown, tell
from creche._ground.states import CLOSED, NEW
from creche._ground.text import path_of

if TYPE_CHECKING:
    from .node import Node


class Mount:
    """Replaces the block of a mounted node: a task that opens the node, and leaves it on request.

    Args:
        above: The node in whose nursery that task runs.
        child: The node; it was not opened yet and has no parent.

    Raises:
        WorkerError: The node cannot be mounted there; nothing was changed.
    """

    __slots__ = (
        *("_above", "_callers", "_child", "_is_awaited", "_is_due", "_leave", "_ready"),
        *("_trouble", "gone"),
    )

    def __init__(self, above: Node, child: Node) -> None:
        _check(above, child)
        self._above = above
        self._child = child
        self._callers = 0  # how many calls of shutdown() of nodes above are made in the node
        self._is_awaited = (
            False  # whether mount() waits, and raises the error if it cannot be opened
        )
        self._is_due = False  # whether its task is about to enter it
        self._leave = anyio.Event()  # set to make it leave
        self._ready = anyio.Event()  # set once it is open, or cannot be
        self._trouble: list[BaseException] = []  # why it is not open
        self.gone = anyio.Event()
        """Set once it has left."""
        parent, child._creche_parent, child._creche_mount = child._creche_parent, above, self
        child._creche_life.hold_parent()
        try:
            above._creche_nursery.spawn_held(
                self._live, self._end, name=path_of(child)
            ).hold_no_more()  # the hold of the child is enough
            child._creche_life.begin()
        except BaseException:
            self._leave.set()  # in case there is a task anyway
            if child._creche_nursery.state is NEW:
                self._end()
                child._creche_parent, child._creche_mount = parent, None
            raise

    def take_turn(self) -> bool:
        """Return whether the mount's task is about to enter the node, which it may do once."""
        is_due, self._is_due = self._is_due, False
        return is_due

    async def settle(self) -> None:
        """Wait until the node is open; must not be cancelled.

        Raises:
            BaseException: It could not be opened.
        """
        self._is_awaited = True
        with anyio.CancelScope(shield=True):
            await self._ready.wait()
        if self._trouble:
            raise self._trouble.pop(0)

    def tell_to_leave(self) -> bool:
        """Make the node leave; return whether this was the first request."""
        if self._leave.is_set() or self.gone.is_set():
            return False
        self._child._creche_life.hold_parent()
        self._leave.set()
        return True

    def leave_aside(self) -> None:
        """Ignore it in waits that ignore blocks: it cannot end before its shutdown() call."""
        self._callers += 1
        if self._callers == 1:
            self._child._creche_life.hold_parent()
            self._above._creche_nursery.blocks += 1

    def take_back(self) -> None:
        """Include it again, unless another caller excludes it."""
        self._callers -= 1
        if not self._callers:
            self._above._creche_nursery.blocks -= 1
            if not self._leave.is_set():
                self._child._creche_life.let_parent_go()

    async def _live(self) -> None:
        """Run the task of the node."""
        try:
            self._is_due = True
            async with self._child:
                if not self._leave.is_set():
                    # It does not keep the parent open until it has to leave.
                    self._child._creche_life.let_parent_go()
                self._ready.set()
                await self._leave.wait()
        except BaseException as error:  # noqa: BLE001 (nothing may leave a task of the nursery)
            nursery = self._child._creche_nursery
            if nursery.state is not CLOSED:  # the __aenter__() of a subclass has failed
                await nursery.end.abandon()
            self._fail(error)
        finally:
            self._end()

    def _fail(self, error: BaseException) -> None:
        """Pass on the error that left the block of the node."""
        nursery = self._above._creche_nursery
        failure = uncancelled(error, lambda leaf: is_a(leaf, nursery.cancelled_class))
        if failure is None:
            return
        if not self._ready.is_set():
            strip_traceback(failure)
            if self._is_awaited:
                self._trouble.append(failure)  # it could not be opened: mount() raises this
                return
            where = (self._child._creche_label(), self._above._creche_label())
            tell(
                logging.ERROR, "%s could not be opened, and with it %s fails", *where, error=failure
            )
        for each in parts_of(failure):
            nursery.fail(each)

    def _end(self) -> None:
        nursery = self._child._creche_nursery
        if nursery.task_group is None and nursery.state not in (NEW, CLOSED):
            nursery.end.unopened()
            told = f"mounting {self._child._creche_label()} was cancelled natively"
            self._trouble.append(WorkerCancelled(told))
        self.gone.set()
        self._ready.set()
        self._child._creche_life.let_parent_go()


async def remove(child: Node) -> None:
    """Cancel a mounted node and wait until it has left, see ``Node.remove()``."""
    mount, where = child._creche_mount, child._creche_label()
    if mount is None:
        raise WorkerError(f"{where} was not mounted; leave its block instead")
    if child._creche_nursery.bridge.is_elsewhere:
        raise WorkerError(f"{where} is removed outside its event loop")
    mount.tell_to_leave()
    child.cancel(f"{where} was removed")
    await mount.gone.wait()


def _check(above: Node, child: Node) -> None:
    nursery = above._creche_nursery
    nursery.check_admission()
    if nursery.is_cancelled or nursery.bridge.is_elsewhere:
        raise WorkerError(
            f"cannot mount on {above._creche_label()}: it is cancelled, or this is not its event "
            "loop"
        )
    if not hasattr(child, "_creche_nursery"):
        raise WorkerError(f"mount() takes a Node, not {shown(child)}")
    is_new = child._creche_nursery.state is NEW and child._creche_mount is None
    if not is_new or (child._creche_parent is not None and child._creche_parent is not above):
        raise WorkerError(
            f"cannot mount {child._creche_label()} on {above._creche_label()}: it was opened "
            "before, is being mounted or has a parent already; mount a new Node"
        )
