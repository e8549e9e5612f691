"""Shutting a node down: all work below it ends, while its block stays open."""

from __future__ import annotations

import math
from itertools import takewhile
from typing import TYPE_CHECKING, Any, cast

import anyio

from creche._ground.context import current
from creche._ground.errors import ShutdownTimeout, WorkerError
from creche._ground.options import check_seconds
from creche._ground.states import CLOSED, NEW

from .late import late_workers, report_on
from .tree import walk_down, walk_up
from .waiting import is_acting

if TYPE_CHECKING:
    from creche._nursery.nursery import Nursery

    from .mounting import Mount
    from .node import Node
    from .worker import Worker


async def shut_down(top: Node, grace: float, deadline: float | None) -> None:
    """End all work below a node, see ``Node.shutdown()``."""
    if deadline is not None:
        check_seconds("deadline", deadline)
    _check(top, grace)
    nodes, caller = list(walk_down(top)), _Caller(top)
    try:
        for node in nodes:
            node._creche_nursery.refuse()
            node._creche_audience.close()
        caller.leave_aside(nodes)
        await _end_all(top, grace, deadline, caller)
    finally:
        caller.take_back()


async def _end_all(top: Node, grace: float, deadline: float | None, caller: _Caller) -> None:
    with anyio.move_on_after(grace):
        await _settle(top)
    for node in list(walk_down(top)):
        node._creche_mailbox.hurry()
        if node._creche_mount is not None and node is not top:
            node._creche_nursery.cancel("shut down")
        for group in list(node._creche_groups.values()):
            group.cancel("shut down")
        node._creche_nursery.lose_patience()
    with anyio.move_on_after(math.inf if deadline is None else deadline) as scope:
        await _settle(top)
    if scope.cancelled_caught:
        left = [each for each in late_workers(walk_down(top)) if each is not caller.worker]
        raise ShutdownTimeout(
            f"{top._creche_label()} has not ended {deadline} s after its grace; what is left goes "
            f"on:\n{report_on(left)}",
            tuple(left),
        )


def _check(node: Node, grace: float) -> None:
    if not grace >= 0:
        raise WorkerError(f"grace must be 0 seconds or more, not {grace!r}")
    nursery = node._creche_nursery
    if nursery.state is NEW:
        raise WorkerError(f"cannot shut down {node._creche_label()}, which is not open yet")
    if nursery.bridge.is_elsewhere:
        raise WorkerError(
            f"cannot shut down {node._creche_label()} outside its event loop; from a thread use "
            "node.call_from_thread(node.shutdown)"
        )


class _Caller:
    """The caller of shutdown(), if it runs in one of the nodes: it must not wait for itself.

    What cannot end before the call gets a hold, so that blocks wait for it, and is ignored by waits
    such as ``until_idle(blocks=True)``.
    """

    def __init__(self, top: Node) -> None:
        self.worker: Worker[Any] | None = None
        self._top = top
        self._nursery: Nursery | None = None  # where the caller is ignored
        self._mounts: list[Mount] = []

    def leave_aside(self, nodes: list[Node]) -> None:
        """Find the caller, and ignore it in waits."""
        worker: Worker[Any] | None = current.get(None)
        if (
            worker is not None
            and is_acting(worker)
            and any(cast("object", node) is worker._node for node in nodes)
        ):
            self.worker = worker
            self._leave_aside(worker)
        for node in nodes:  # a handler, or a call from a thread
            for task in list(node._creche_nursery.held):
                if task.is_acting():
                    task.hold_no_more()
                    self._leave_mounts_aside(node)

    def _leave_aside(self, worker: Worker[Any]) -> None:
        if not worker._holds:  # a daemon
            worker._hold()
        self._nursery = worker._nursery
        self._nursery.blocks += 1
        self._leave_mounts_aside(worker._node)

    def _leave_mounts_aside(self, node: Node) -> None:
        """Ignore the mounted nodes that it is in: they cannot end before it does."""
        for each in takewhile(lambda each: each is not self._top, walk_up(node)):
            if each._creche_mount is not None:
                self._mounts.append(each._creche_mount)
                each._creche_mount.leave_aside()

    def take_back(self) -> None:
        """Stop ignoring the caller. It counts as a daemon from here on."""
        while self._mounts:
            self._mounts.pop().take_back()
        if self._nursery is not None:
            self._nursery.blocks -= 1
        worker, self.worker = self.worker, None  # see errors: frames
        if worker is not None and worker._holds and worker._cancellation is None:
            nursery = worker._nursery
            worker._holds, nursery.holds = False, nursery.holds - 1  # in one line, see its holds
            nursery.check_idle()


async def _settle(top: Node) -> None:
    """Wait until nothing is left below except the blocks of nodes."""
    for node in reversed(list(walk_down(top))):
        if node._creche_nursery.state not in (NEW, CLOSED):
            await node._creche_nursery.until_idle(blocks=True)
