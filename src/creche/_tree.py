"""The tree of nodes: their blocks, how they end, and nodes that are mounted on others."""

from __future__ import annotations

from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio

from ._context import current
from ._errors import WorkerError, uncancelled
from ._log import LOG, is_wanted
from ._mailbox import Mailbox
from ._nursery import CLOSED, NEW, OPEN, Nursery
from ._record import logger
from ._subscription import inherit
from ._worker import Worker

if TYPE_CHECKING:
    import sys
    from collections.abc import Collection, Iterator
    from types import TracebackType

    from ._group import WorkerGroup
    from ._message import Message
    from ._subscription import Listener
    from ._waiting import Party

    if sys.version_info >= (3, 11):
        from typing import Self
    else:
        from typing_extensions import Self

BranchType = TypeVar("BranchType", bound="Branch")


class Branch:
    """A node, but for the calls that its users make to have work done."""

    def __init__(self, name: str, parent: Branch | None) -> None:
        self.name: str = name
        """The name of the node."""
        self._creche_parent = parent
        self._creche_children: dict[Branch, None] = {}
        self._creche_nursery = Nursery(self)
        self._creche_mailbox = Mailbox(self, self._creche_nursery)
        self._creche_groups: dict[str, WorkerGroup] = {}
        self._creche_waiting: set[Party] = set()
        self._creche_leave: anyio.Event | None = None  # set to tell a mounted node to leave
        self._creche_gone: anyio.Event | None = None  # set once it has left
        self._creche_opener: Worker[Any] | None = None
        self._creche_hear(())
        self._creche_heed_logger()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r} {self._creche_nursery.life.name}>"

    @property
    def path(self) -> str:
        """The names of the nodes from the root to this one, joined by slashes."""
        return (
            self.name if self._creche_parent is None else f"{self._creche_parent.path}/{self.name}"
        )

    def _creche_below(self) -> Iterator[Branch]:
        yield self
        for child in list(self._creche_children):
            yield from child._creche_below()

    def _creche_spoken(self) -> str:
        return f"node {self.path!r}"

    # messages, and who hears them

    def _creche_pass_on(self, message: Message) -> None:
        if self._creche_parent is not None:  # who listens to the tree has heard it
            self._creche_parent._creche_take(message, self._creche_heard_by)

    def _creche_post(self, message: Message) -> bool:
        bridge = self._creche_nursery.bridge
        if bridge.is_foreign:
            return bridge.post(lambda: self._creche_take(message))
        return self._creche_take(message)

    def _creche_take(self, message: Message, told: Collection[Listener] = ()) -> bool:
        if self._creche_nursery.life is CLOSED:
            return False
        self._creche_join()
        for subscription in self._creche_heard_by:
            if subscription not in told:
                subscription._put(message)
        return self._creche_mailbox.post(message)

    def _creche_hear(self, heard_by: tuple[Listener, ...]) -> None:
        """Take note of who listens: then events are made, and only then."""
        self._creche_heard_by = heard_by
        self._creche_handles_changes = self._creche_handles(Worker.StateChanged)
        self._creche_tells_changes = self._creche_is_heard(Worker.StateChanged)
        self._creche_tells_progress = self._creche_is_heard(Worker.ProgressChanged)

    def _creche_is_heard(self, kind: type[Message]) -> bool:
        return self._creche_handles(kind) or any(
            each._wants(kind) for each in self._creche_heard_by
        )

    def _creche_handles(self, kind: type[Message]) -> bool:
        return getattr(self, kind.handler_name, None) is not None

    def _creche_heed_logger(self) -> None:
        self._creche_log_level = logger.level
        others = tuple(each for each in self._creche_heard_by if each is not LOG)
        self._creche_hear((LOG, *others) if is_wanted() else others)

    def _creche_join(self) -> None:
        """Take the place below the parent, once the node is open or holds something."""
        parent = self._creche_parent
        if parent is not None and self not in parent._creche_children:
            parent._creche_join()
            parent._creche_children[self] = None
            inherit(self, parent)

    # the block

    async def __aenter__(self) -> Self:
        """Open the node.

        Raises:
            WorkerError: It was opened before, or its parent is not open.
        """
        parent = self._creche_parent
        if self._creche_nursery.life is not NEW:
            raise WorkerError(
                f"{self._creche_spoken()} was entered before; make a new Node for each block"
            )
        if parent is not None and parent._creche_nursery.life is not OPEN:
            raise WorkerError(
                f"cannot enter {self._creche_spoken()}: its parent is {parent._creche_nursery.life.value}"
            )
        if parent is not None and parent._creche_nursery.bridge.is_foreign:
            raise WorkerError(
                f"cannot enter {self._creche_spoken()} in another thread than its parent's event loop"
            )
        await self._creche_nursery.open()
        self._creche_heed_logger()  # and hear: its user may have given it a handler
        for group in self._creche_groups.values():
            for worker in group:
                worker._created_at = self._creche_nursery.now()  # the clock was not known before
        if parent is not None:
            self._creche_nursery.tree = parent._creche_nursery.tree
            self._creche_join()
            if self._creche_leave is None:
                parent._creche_nursery.blocks += 1
                parent._creche_nursery.holds += 1
            if parent._creche_nursery.is_cancelled:
                self._creche_nursery.cancel(parent._creche_nursery.cancel_reason)
        opener: Worker[Any] | None = current.get(None)
        if opener is not None and opener._is_acting():
            self._creche_opener = opener
            opener._tied().opened += (self,)
            opener._node._creche_waiting.add(opener)
        self._creche_mailbox.open(copy_context())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Leave the node, see the class.

        Raises:
            ExceptionGroup: What workers, handlers and the body raised, each once.
            WorkerError: Left in another task than it was entered in; or a native cancellation hit
                the task of a worker before its first step.
        """
        try:
            return await self._creche_nursery.close(exc)
        finally:
            if self._creche_nursery.life is CLOSED:
                self._creche_detach()
            del exc, traceback

    def _creche_detach(self) -> None:
        parent, opener = self._creche_parent, self._creche_opener
        if parent is not None:
            parent._creche_children.pop(self, None)
            if self._creche_leave is None:
                parent._creche_nursery.blocks -= 1
                parent._creche_nursery.release()
        if opener is not None:
            ties = opener._tied()
            ties.opened = tuple(node for node in ties.opened if node is not self)
            if not ties.opened:
                opener._node._creche_waiting.discard(opener)
            self._creche_opener = None
        for subscription in self._creche_heard_by:
            subscription._has_left(self)
        self._creche_hear(())

    def cancel(self, reason: object = None) -> None:
        """Cancel all that runs below the node, the body of its block too; the block ends normally.

        Work that is started on the node afterwards ends CANCELLED at once.

        Args:
            reason: See ``Worker.cancel_reason``.

        Threads:
            Any thread.
        """
        told = reason if reason is not None else f"{self._creche_spoken()} was cancelled"
        self._creche_nursery.bridge.run(lambda: self._creche_nursery.cancel(told))

    async def shutdown(self, grace: float = 0) -> None:
        """End all work below the node, while its block stays open.

        No more work is admitted. What there is may go on for the time of grace and is cancelled
        then; daemons and mounted nodes as when the block is left. A worker below the node that
        calls this counts as a daemon from here on: it is cancelled when the others have ended.
        Cancelling this call ends the wait; the node stays shut.

        Args:
            grace: Seconds.

        Raises:
            WorkerError: The node is not open; or grace is negative.

        Checkpoint:
            If there is anything to wait for.

        Threads:
            The node's event loop only.
        """
        if not grace >= 0:
            raise WorkerError(f"grace must be 0 seconds or more, not {grace!r}")
        if self._creche_nursery.life is NEW or self._creche_nursery.bridge.is_foreign:
            raise WorkerError(
                f"shutdown() is for an open node and its own event loop; {self._creche_spoken()} is "
                f"{self._creche_nursery.life.value}"
            )
        for node in self._creche_below():
            node._creche_nursery.refuse()
        caller: Worker[Any] | None = current.get(None)
        below: list[object] = list(self._creche_below())
        if caller is not None and caller._holds and caller._is_acting() and caller._node in below:
            caller._let_go()
        with anyio.move_on_after(grace):
            await self._creche_settle()
        for node in list(self._creche_below()):
            node._creche_mailbox.hurry()
            if node._creche_leave is not None and node is not self:
                node._creche_nursery.cancel("shut down")
            for group in list(node._creche_groups.values()):
                group._cancel_all("shut down")
        await self._creche_settle()

    async def _creche_settle(self) -> None:
        """Wait until nothing is left below but the blocks of nodes."""
        for node in reversed(list(self._creche_below())):
            if node._creche_nursery.life not in (NEW, CLOSED):
                await node._creche_nursery.quiet(blocks=True)

    # mounted nodes

    async def mount(self, child: BranchType) -> BranchType:
        """Open a node that has no block of its own; it lives in this one's nursery.

        It lives until ``remove()``, or until this node is left. Its errors are raised by this
        node's block. Cancelling this call has no effect: it takes no time.

        Args:
            child: A node that was not opened yet, without a parent.

        Returns:
            The node, open.

        Raises:
            WorkerError: This node is not open or was cancelled, or the child has a parent or was
                opened before.

        Checkpoint:
            Always.

        Threads:
            The node's event loop only.
        """
        self._creche_nursery.check_admission()
        if self._creche_nursery.is_cancelled or self._creche_nursery.bridge.is_foreign:
            raise WorkerError(
                f"cannot mount on {self._creche_spoken()}: cancelled, or in another thread"
            )
        if child._creche_nursery.life is not NEW or child._creche_parent not in (None, self):
            raise WorkerError(
                f"cannot mount {child._creche_spoken()} on {self._creche_spoken()}: it was opened before, or has "
                "a parent already; mount a new Node"
            )
        if child._creche_leave is not None:
            raise WorkerError(f"{child._creche_spoken()} is being mounted already")
        child._creche_parent = self
        child._creche_leave, child._creche_gone = anyio.Event(), anyio.Event()
        ready = anyio.Event()
        self._creche_nursery.spawn_held(
            partial(self._creche_house, child, ready),
            partial(self._creche_unhouse, child, ready),
            name=child.path,
        )
        with anyio.CancelScope(shield=True):
            await ready.wait()
        return child

    async def _creche_house(self, child: Branch, ready: anyio.Event) -> None:
        leave = cast("anyio.Event", child._creche_leave)
        try:
            async with child:
                ready.set()
                self._creche_nursery.release()  # a mounted node keeps nothing open until told to leave
                await leave.wait()
        except BaseException as error:  # noqa: BLE001 (nothing may leave a task of the nursery)
            failure = uncancelled(
                error, lambda leaf: isinstance(leaf, self._creche_nursery.cancelled_class)
            )
            if failure is not None:
                errors = list(getattr(failure, "exceptions", (failure,)))
                while errors:
                    self._creche_nursery.fail(errors.pop(0))
            del failure  # this frame is in its traceback: a cycle, with all the errors in it
        finally:
            if ready.is_set() and not leave.is_set():
                self._creche_nursery.holds += 1
            self._creche_unhouse(child, ready)

    def _creche_unhouse(self, child: Branch, ready: anyio.Event) -> None:
        cast("anyio.Event", child._creche_gone).set()
        ready.set()

    def _creche_tell_to_leave(self) -> bool:
        """Tell a mounted node to leave; whether that was news to it."""
        if self._creche_leave is None or self._creche_leave.is_set() or self._creche_parent is None:
            return False
        self._creche_leave.set()
        self._creche_parent._creche_nursery.holds += 1
        return True

    async def remove(self) -> None:
        """Cancel a mounted node and wait until it has left.

        May be called again. Cancelling this call ends the wait; the node leaves all the same.

        Raises:
            WorkerError: The node was not mounted.

        Checkpoint:
            Always.

        Threads:
            The node's event loop only.
        """
        if self._creche_gone is None:
            raise WorkerError(f"{self._creche_spoken()} was not mounted; leave its block instead")
        self._creche_tell_to_leave()
        self.cancel(f"{self._creche_spoken()} was removed")
        await self._creche_gone.wait()

    # what the nursery asks

    def _creche_on_cancel(self, reason: object) -> None:
        for group in list(self._creche_groups.values()):
            group._cancel_with_nursery(reason)
        for child in list(self._creche_children):
            child._creche_nursery.cancel(reason)

    def _creche_on_quiet(self) -> bool:
        told = [child._creche_tell_to_leave() for child in list(self._creche_children)]
        if any(told):
            return True
        rest = [worker for group in list(self._creche_groups.values()) for worker in group]
        daemons = [worker for worker in rest if worker._started]
        for worker in daemons:
            worker._hold()  # before it is cancelled, for one that is queued ends at once
            worker.cancel("only daemons were left")
        if daemons:
            return True
        for child in self._creche_children:  # what is left of them was never opened
            for node in child._creche_below():
                rest += [worker for group in node._creche_groups.values() for worker in group]
        for worker in rest:
            worker._disown()
        return bool(rest)

    @property
    def is_finished(self) -> bool:
        """Whether the node has been left."""
        return self._creche_nursery.life is CLOSED

    def _creche_needs_all(self) -> Collection[Party]:
        held = [party for party in self._creche_waiting if not cast("Worker[Any]", party).daemon]
        return (*held, *self._creche_children)

    def _creche_needs_one(self) -> Collection[Party]:
        return ()

    def _creche_is_opened_by_a_worker(self) -> bool:
        if self._creche_opener is not None:
            return True
        return (
            self._creche_parent is not None and self._creche_parent._creche_is_opened_by_a_worker()
        )
