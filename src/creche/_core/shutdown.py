"""Shutting a node down: all work below it ends, while its block stays open."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import anyio

from creche._ground.context import current
from creche._ground.errors import ShutdownTimeout, WorkerError
from creche._ground.options import check_seconds
from creche._ground.states import CLOSED, NEW

from .late import late_workers, report_on
from .tree import walk_down
from .waiting import is_acting

if TYPE_CHECKING:
    from .node import Node
    from .worker import Worker


async def shut_down(top: Node, grace: float, deadline: float | None) -> None:
    """End all work below a node, see ``Node.shutdown()``."""
    if deadline is not None:
        check_seconds("deadline", deadline)
    _check(top, grace)
    nodes = list(walk_down(top))
    for node in nodes:
        node._creche_nursery.refuse()
        node._creche_audience.close()
    _excuse_caller(nodes)
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
        left = late_workers(walk_down(top))
        raise ShutdownTimeout(
            f"{top._creche_label()} has not ended {deadline} s after its grace; what is left goes "
            f"on:\n{report_on(left)}",
            tuple(left),
        )


def _check(node: Node, grace: float) -> None:
    if not grace >= 0:
        raise WorkerError(f"grace must be 0 seconds or more, not {grace!r}")
    nursery = node._creche_nursery
    if nursery.state is NEW or nursery.bridge.is_elsewhere:
        raise WorkerError(
            f"shutdown() is for an open node and its own event loop; {node._creche_label()} "
            f"is {nursery.state.value}"
        )


def _excuse_caller(nodes: list[Node]) -> None:
    """Have those who wait for all the nodes hold nothing themselves: nobody waits for itself."""
    caller: Worker[Any] | None = current.get(None)
    if (
        caller is not None
        and is_acting(caller)
        and any(cast("object", node) is caller._node for node in nodes)
    ):
        caller._let_go()
    for node in nodes:  # a handler, or a call of a thread
        for task in list(node._creche_nursery.held):
            if task.is_acting():
                task.hold_no_more()


async def _settle(top: Node) -> None:
    """Wait until nothing is left below but the blocks of nodes."""
    for node in reversed(list(walk_down(top))):
        if node._creche_nursery.state not in (NEW, CLOSED):
            await node._creche_nursery.until_idle(blocks=True)
