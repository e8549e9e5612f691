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
        self._parent = parent
        self._children: dict[Branch, None] = {}
        self._nursery = Nursery(self)
        self._mailbox = Mailbox(self, self._nursery)
        self._groups: dict[str, WorkerGroup] = {}
        self._waiting: set[Party] = set()
        self._leave: anyio.Event | None = None  # set to tell a mounted node to leave
        self._gone: anyio.Event | None = None  # set once it has left
        self._opener: Worker[Any] | None = None
        self._hear(())
        self._heed_logger()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r} {self._nursery.life.name}>"

    @property
    def path(self) -> str:
        """The names of the nodes from the root to this one, joined by slashes."""
        return self.name if self._parent is None else f"{self._parent.path}/{self.name}"

    def _below(self) -> Iterator[Branch]:
        yield self
        for child in list(self._children):
            yield from child._below()

    def _spoken(self) -> str:
        return f"node {self.path!r}"

    # messages, and who hears them

    def _pass_on(self, message: Message) -> None:
        if self._parent is not None:  # who listens to the tree has heard it
            self._parent._take(message, self._heard_by)

    def _post(self, message: Message) -> bool:
        bridge = self._nursery.bridge
        if bridge.is_foreign:
            return bridge.post(lambda: self._take(message))
        return self._take(message)

    def _take(self, message: Message, told: Collection[Listener] = ()) -> bool:
        if self._nursery.life is CLOSED:
            return False
        self._join()
        for subscription in self._heard_by:
            if subscription not in told:
                subscription._put(message)
        return self._mailbox.post(message)

    def _hear(self, heard_by: tuple[Listener, ...]) -> None:
        """Take note of who listens: then events are made, and only then."""
        self._heard_by = heard_by
        self._handles_changes = self._handles(Worker.StateChanged)
        self._tells_changes = self._is_heard(Worker.StateChanged)
        self._tells_progress = self._is_heard(Worker.ProgressChanged)

    def _is_heard(self, kind: type[Message]) -> bool:
        return self._handles(kind) or any(each._wants(kind) for each in self._heard_by)

    def _handles(self, kind: type[Message]) -> bool:
        return getattr(self, kind.handler_name, None) is not None

    def _heed_logger(self) -> None:
        self._log_level = logger.level
        others = tuple(each for each in self._heard_by if each is not LOG)
        self._hear((LOG, *others) if is_wanted() else others)

    def _join(self) -> None:
        """Take the place below the parent, once the node is open or holds something."""
        parent = self._parent
        if parent is not None and self not in parent._children:
            parent._join()
            parent._children[self] = None
            inherit(self, parent)

    # the block

    async def __aenter__(self) -> Self:
        """Open the node.

        Raises:
            WorkerError: It was opened before, or its parent is not open.
        """
        parent = self._parent
        if self._nursery.life is not NEW:
            raise WorkerError(
                f"{self._spoken()} was entered before; make a new Node for each block"
            )
        if parent is not None and parent._nursery.life is not OPEN:
            raise WorkerError(
                f"cannot enter {self._spoken()}: its parent is {parent._nursery.life.value}"
            )
        if parent is not None and parent._nursery.bridge.is_foreign:
            raise WorkerError(
                f"cannot enter {self._spoken()} in another thread than its parent's event loop"
            )
        await self._nursery.open()
        self._heed_logger()  # and hear: its user may have given it a handler
        for group in self._groups.values():
            for worker in group:
                worker._created_at = self._nursery.now()  # the clock was not known before
        if parent is not None:
            self._nursery.tree = parent._nursery.tree
            self._join()
            if self._leave is None:
                parent._nursery.blocks += 1
                parent._nursery.holds += 1
            if parent._nursery.is_cancelled:
                self._nursery.cancel(parent._nursery.cancel_reason)
        opener: Worker[Any] | None = current.get(None)
        if opener is not None and opener._is_acting():
            self._opener = opener
            opener._tied().opened += (self,)
            opener._node._waiting.add(opener)
        self._mailbox.open(copy_context())
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
            return await self._nursery.close(exc)
        finally:
            if self._nursery.life is CLOSED:
                self._detach()
            del exc, traceback

    def _detach(self) -> None:
        parent, opener = self._parent, self._opener
        if parent is not None:
            parent._children.pop(self, None)
            if self._leave is None:
                parent._nursery.blocks -= 1
                parent._nursery.release()
        if opener is not None:
            ties = opener._tied()
            ties.opened = tuple(node for node in ties.opened if node is not self)
            if not ties.opened:
                opener._node._waiting.discard(opener)
            self._opener = None
        for subscription in self._heard_by:
            subscription._has_left(self)
        self._hear(())

    def cancel(self, reason: object = None) -> None:
        """Cancel all that runs below the node, the body of its block too; the block ends normally.

        Work that is started on the node afterwards ends CANCELLED at once.

        Args:
            reason: See ``Worker.cancel_reason``.

        Threads:
            Any thread.
        """
        told = reason if reason is not None else f"{self._spoken()} was cancelled"
        self._nursery.bridge.run(lambda: self._nursery.cancel(told))

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
        if self._nursery.life is NEW or self._nursery.bridge.is_foreign:
            raise WorkerError(
                f"shutdown() is for an open node and its own event loop; {self._spoken()} is "
                f"{self._nursery.life.value}"
            )
        for node in self._below():
            node._nursery.refuse()
        caller: Worker[Any] | None = current.get(None)
        below: list[object] = list(self._below())
        if caller is not None and caller._holds and caller._is_acting() and caller._node in below:
            caller._let_go()
        with anyio.move_on_after(grace):
            await self._settle()
        for node in list(self._below()):
            node._mailbox.hurry()
            if node._leave is not None and node is not self:
                node._nursery.cancel("shut down")
            for group in list(node._groups.values()):
                group._cancel_all("shut down")
        await self._settle()

    async def _settle(self) -> None:
        """Wait until nothing is left below but the blocks of nodes."""
        for node in reversed(list(self._below())):
            if node._nursery.life not in (NEW, CLOSED):
                await node._nursery.quiet(blocks=True)

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
        self._nursery.check_admission()
        if self._nursery.is_cancelled or self._nursery.bridge.is_foreign:
            raise WorkerError(f"cannot mount on {self._spoken()}: cancelled, or in another thread")
        if child._nursery.life is not NEW or child._parent not in (None, self):
            raise WorkerError(
                f"cannot mount {child._spoken()} on {self._spoken()}: it was opened before, or has "
                "a parent already; mount a new Node"
            )
        if child._leave is not None:
            raise WorkerError(f"{child._spoken()} is being mounted already")
        child._parent = self
        child._leave, child._gone = anyio.Event(), anyio.Event()
        ready = anyio.Event()
        self._nursery.spawn_held(
            partial(self._house, child, ready),
            partial(self._unhouse, child, ready),
            name=child.path,
        )
        with anyio.CancelScope(shield=True):
            await ready.wait()
        return child

    async def _house(self, child: Branch, ready: anyio.Event) -> None:
        leave = cast("anyio.Event", child._leave)
        try:
            async with child:
                ready.set()
                self._nursery.release()  # a mounted node keeps nothing open until told to leave
                await leave.wait()
        except BaseException as error:  # noqa: BLE001 (nothing may leave a task of the nursery)
            failure = uncancelled(
                error, lambda leaf: isinstance(leaf, self._nursery.cancelled_class)
            )
            if failure is not None:
                errors = list(getattr(failure, "exceptions", (failure,)))
                while errors:
                    self._nursery.fail(errors.pop(0))
            del failure  # this frame is in its traceback: a cycle, with all the errors in it
        finally:
            if ready.is_set() and not leave.is_set():
                self._nursery.holds += 1
            self._unhouse(child, ready)

    def _unhouse(self, child: Branch, ready: anyio.Event) -> None:
        cast("anyio.Event", child._gone).set()
        ready.set()

    def _tell_to_leave(self) -> bool:
        """Tell a mounted node to leave; whether that was news to it."""
        if self._leave is None or self._leave.is_set() or self._parent is None:
            return False
        self._leave.set()
        self._parent._nursery.holds += 1
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
        if self._gone is None:
            raise WorkerError(f"{self._spoken()} was not mounted; leave its block instead")
        self._tell_to_leave()
        self.cancel(f"{self._spoken()} was removed")
        await self._gone.wait()

    # what the nursery asks

    def _on_cancel(self, reason: object) -> None:
        for group in list(self._groups.values()):
            group._cancel_with_nursery(reason)
        for child in list(self._children):
            child._nursery.cancel(reason)

    def _on_quiet(self) -> bool:
        told = [child._tell_to_leave() for child in list(self._children)]
        if any(told):
            return True
        rest = [worker for group in list(self._groups.values()) for worker in group]
        daemons = [worker for worker in rest if worker._started]
        for worker in daemons:
            worker._hold()  # before it is cancelled, for one that is queued ends at once
            worker.cancel("only daemons were left")
        if daemons:
            return True
        for child in self._children:  # what is left of them was never opened
            for node in child._below():
                rest += [worker for group in node._groups.values() for worker in group]
        for worker in rest:
            worker._disown()
        return bool(rest)

    @property
    def is_finished(self) -> bool:
        """Whether the node has been left."""
        return self._nursery.life is CLOSED

    def _needs_all(self) -> Collection[Party]:
        held = [party for party in self._waiting if not cast("Worker[Any]", party).daemon]
        return (*held, *self._children)

    def _needs_one(self) -> Collection[Party]:
        return ()

    def _is_opened_by_a_worker(self) -> bool:
        if self._opener is not None:
            return True
        return self._parent is not None and self._parent._is_opened_by_a_worker()
