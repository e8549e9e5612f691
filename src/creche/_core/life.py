"""The life of a node: how it is entered, what is cancelled with it, and the order of its end.

*Entering* first checks what can fail, and changes nothing. Then the node joins the tree and admits
work (``begin()``), and then the nursery is opened, which launches that work. A mounted node begins
when it is attached, a turn of the loop or more before its task opens it. If any of this is
interrupted, the node is closed.

*The end* begins once nothing holds the nursery. What does not end by itself is then ended in four
steps, each of which waits for the one before. First, mounted nodes leave. Then daemons are
cancelled, which until then all others could use. Then workers that were never started are disowned:
until then something could have started them. The last are the resources of a root, for example
processes, in which any of these may have run.
"""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, Any, cast

from creche._ground import context
from creche._ground.context import current
from creche._ground.errors import WorkerError
from creche._ground.states import CLOSED, CLOSING, NEW, OPEN, OPENING

from .cancelling import cancel_here, disown, reap
from .late import tell_late
from .resources import end_resources
from .tree import exits_on_error, join, walk_down, walk_up
from .waiting import is_acting

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from creche._nursery.nursery import Nursery

    from .deadlock import Waitable
    from .node import Node
    from .worker import Worker


class Life:
    """The part of a node that is the ``Owner`` of its nursery, and that serves its parent."""

    __slots__ = ("_holds", "_node", "opener")

    def __init__(self, node: Node) -> None:
        self._node = node
        self._holds = False  # whether it keeps the parent open
        self.opener: Worker[Any] | None = None
        """The worker whose work entered the block of the node, if any."""

    def label(self) -> str:
        """Name the node in a sentence."""
        return self._node._creche_label()

    def nurseries(self, *, blocks: bool = False) -> Iterator[Nursery]:
        """Return the nurseries of the node and all below; or of child nodes with a block."""
        if not blocks:
            return (node._creche_nursery for node in walk_down(self._node))
        return (
            child._creche_nursery
            for child in list(self._node._creche_children.values())
            if child._creche_mount is None and child._creche_nursery.state in (OPEN, CLOSING)
        )

    # entering

    async def enter(self) -> None:
        """Open the node, see ``Node.__aenter__()``."""
        self._check_entry()
        node = self._node
        # And listens: the user may have added a handler. The user's code may fail here.
        node._creche_audience.heed_logger()
        try:
            if node._creche_mount is None:
                self.hold_parent()  # the parent may be left while this one is being opened
            if node._creche_nursery.state is NEW:
                self.begin()
            await node._creche_nursery.open()
            self._go_on()
        except BaseException:
            await node._creche_nursery.end.abandon()
            raise

    def _check_entry(self) -> None:
        node = self._node
        parent, mount = node._creche_parent, node._creche_mount
        if context.imports_main:
            raise WorkerError(
                f"cannot enter {self.label()} as a process that is to run work of this program "
                'imports its main module; put what it runs under if __name__ == "__main__":'
            )
        is_new = node._creche_nursery.state is NEW if mount is None else mount.take_turn()
        if not is_new:
            told = "entered" if mount is None else "mounted"
            raise WorkerError(f"{self.label()} was {told} before; make a new Node for each block")
        if parent is None:
            return
        above = parent._creche_nursery
        # A mounted node was admitted when it was mounted.
        if above.state not in (OPENING, OPEN) and (mount is None or above.state is CLOSED):
            raise WorkerError(f"cannot enter {self.label()}: its parent is {above.state.value}")
        if above.bridge.is_elsewhere:
            raise WorkerError(f"cannot enter {self.label()} outside the event loop of its parent")

    def begin(self) -> None:
        """Join the tree, and admit work, which waits until the nursery is open."""
        node = self._node
        node._creche_runners.wait()
        node._creche_nursery.begin()
        for worker in _workers_of(node):
            worker._created_at = node._creche_nursery.now()  # the clock was not known before
        node._creche_exits = exits_on_error(node)
        if node._creche_parent is not None:
            self._follow(node._creche_parent._creche_nursery)

    def _go_on(self) -> None:
        """Launch the waiting work, and deliver messages, now that the nursery is open."""
        self._node._creche_runners.go()
        self._note_opener()
        self._node._creche_mailbox.open(copy_context())

    def _follow(self, above: Nursery) -> None:
        """Join the parent, and get cancelled if that is."""
        nursery = self._node._creche_nursery
        nursery.tree = above.tree
        join(self._node)
        if above.is_cancelled:
            nursery.cancel(above.cancel_reason)

    def _note_opener(self) -> None:
        """Record the worker that runs this: it cannot end before the block is left."""
        opener: Worker[Any] | None = current.get(None)
        if opener is not None and is_acting(opener):
            self.opener = opener
            ties = opener._rare_parts()
            ties.opened = ties.opened or {}
            ties.opened[id(self)] = self
            opener._node._creche_waiting[id(opener)] = opener

    # what it holds

    def hold_parent(self) -> None:
        """Keep the parent open; safe to call again."""
        node = self._node
        parent, block = node._creche_parent, node._creche_mount is None
        if parent is None or self._holds:
            return
        above = parent._creche_nursery  # the next statement is one line, see Nursery.holds
        self._holds, above.holds, above.blocks = True, above.holds + 1, above.blocks + block

    def let_parent_go(self) -> None:
        """Stop keeping the parent open; safe to call again."""
        node = self._node
        parent, block = node._creche_parent, node._creche_mount is None
        if parent is None or not self._holds:
            return
        above = parent._creche_nursery
        self._holds, above.holds, above.blocks = False, above.holds - 1, above.blocks - block
        if above.holds == 0 or not block:  # otherwise it still waits for other blocks
            above.check_idle()

    # what the nursery asks for

    def on_cancel(self, reason: object, *, by_scope: bool) -> None:
        """Mark all workers as cancelled; nothing is launched from now on."""
        self._node._creche_runners.close()
        self._node._creche_audience.close()
        for group in list(self._node._creche_groups.values()):
            group._cancel_with_nursery(reason, by_scope=by_scope)
        if not by_scope:  # the nursery's other tasks
            self._node._creche_mailbox.hurry()

    def on_idle(self) -> bool:
        """End what does not end by itself, one kind at a time; return whether there was any."""
        return (
            self._tell_mounted()
            or self._cancel_daemons()
            or self._disown_unstarted()
            or end_resources(self._node)
        )

    def _tell_mounted(self) -> bool:
        children = list(self._node._creche_children.values())
        mounts = [child._creche_mount for child in children if child._creche_mount is not None]
        told = [mount.tell_to_leave() for mount in mounts]
        return any(told)

    def _cancel_daemons(self) -> bool:
        # A daemon with a hold has called shutdown().
        daemons = [
            worker
            for worker in _workers_of(self._node)
            if worker._started and not (worker._holds and worker._cancellation)
        ]
        for worker in daemons:
            if not worker._holds:
                worker._hold()  # before it is cancelled, because a queued one ends at once
            cancel_here(worker, "only daemons were left")
        return bool(daemons)

    def _disown_unstarted(self) -> bool:
        # The remaining nodes below were never opened. A started worker called shutdown().
        workers = [worker for node in walk_down(self._node) for worker in _workers_of(node)]
        rest = [worker for worker in workers if not worker._started]
        for worker in rest:
            disown(worker)
        return bool(rest)

    def reap(self) -> None:
        """End the workers whose tasks have died silently."""
        for worker in _workers_of(self._node):
            reap(worker)

    def on_late(self) -> None:
        """Log what was cancelled and has not ended."""
        tell_late(self._node)

    def on_empty(self) -> None:
        """End the runners; safe to call again."""
        self._node._creche_runners.close()

    def on_closed(self) -> None:
        """Leave the tree, and notify the listeners; safe to call again."""
        self._node._creche_runners.bury()
        self._close_unopened()
        self._leave_parent()
        self._forget_opener()
        self._node._creche_audience.leave()

    def _close_unopened(self) -> None:
        for node in reversed(list(walk_down(self._node))):  # the remaining ones were never opened
            if node._creche_nursery.state is NEW:
                node._creche_nursery.end.unopened()

    def _leave_parent(self) -> None:
        node = self._node
        if node._creche_parent is not None:
            node._creche_parent._creche_children.pop(id(node), None)
            if node._creche_mount is None:
                self.let_parent_go()

    def _forget_opener(self) -> None:
        opener = self.opener
        if opener is not None:
            ties = opener._rare_parts()
            (ties.opened or {}).pop(id(self), None)
            if not ties.opened and not ties.waits:
                opener._node._creche_waiting.pop(id(opener), None)
            self.opener = None

    # the node as a ``Waitable``

    @property
    def is_finished(self) -> bool:
        """Whether the node has been left."""
        return self._node.is_finished

    def is_opened_by_a_worker(self) -> bool:
        """Whether a worker is in the block of the node, or of one above it."""
        return any(node._creche_life.opener is not None for node in walk_up(self._node))

    def _creche_needs_all(self) -> Collection[Waitable]:
        waiting = list(self._node._creche_waiting.values())
        held = [party for party in waiting if not cast("Worker[Any]", party).daemon]
        children = list(self._node._creche_children.values())
        return (*held, *(child._creche_life for child in children))

    def _creche_needs_one(self) -> Collection[Waitable]:
        return ()

    def _creche_label(self) -> str:
        return self.label()


def _workers_of(node: Node) -> Iterator[Worker[Any]]:
    for group in list(node._creche_groups.values()):
        yield from group
