"""The tree of nodes: their blocks, how they end, and nodes that are mounted on others."""

from __future__ import annotations

from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio

from creche._ground.context import current
from creche._ground.errors import (
    WorkerCancelled,
    WorkerError,
    parts_of,
    strip_traceback,
    uncancelled,
)
from creche._ground.options import check_text
from creche._ground.report import is_a, logger, shown, text_of
from creche._ground.text import path_of
from creche._messages.mailbox import Mailbox
from creche._messages.subscription import inherit
from creche._nursery.nursery import CLOSED, CLOSING, NEW, OPEN, Nursery

from .log import LOG, is_wanted
from .waiting import is_acting
from .worker import Worker

if TYPE_CHECKING:
    import sys
    from collections.abc import Callable, Collection, Iterator
    from types import TracebackType

    from creche._ground.bridge import Bridge
    from creche._ground.message import Message
    from creche._messages.subscription import Listener

    from .deadlock import Party
    from .group import WorkerGroup

    if sys.version_info >= (3, 11):
        from typing import Self
    else:
        from typing_extensions import Self

BranchType = TypeVar("BranchType", bound="Branch")
T = TypeVar("T")


def _call_checked(caller: Worker[Any], call: Callable[[], T]) -> T:
    caller.check_cancelled()
    return call()


class Branch:
    """A node, but for the calls that its users make to have work done."""

    def __init__(self, name: str, parent: Branch | None) -> None:
        check_text("the name of a node", name)
        self.name: str = str.__str__(name)
        """The name of the node."""
        self._creche_parent = parent
        # By id(): nodes may be dataclasses, equal to others or without a hash.
        self._creche_children: dict[int, Branch] = {}
        self._creche_nursery = Nursery(self)
        self._creche_mailbox = Mailbox(self, self._creche_nursery)
        self._creche_groups: dict[str, WorkerGroup] = {}
        self._creche_waiting: dict[int, Party] = {}  # workers of the node, by id() as well
        self._creche_leave: anyio.Event | None = None  # set to tell a mounted node to leave
        self._creche_gone: anyio.Event | None = None  # set once it has left
        self._creche_holds = False
        self._creche_opener: Worker[Any] | None = None
        self._creche_hear(())
        self._creche_heed_logger()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r} {self._creche_nursery.life.name}>"

    def __reduce_ex__(self, protocol: object) -> str | tuple[Any, ...]:
        raise WorkerError(
            f"{self._creche_spoken()} can be neither copied nor pickled; make another"
        )

    @property
    def path(self) -> str:
        """The names of the nodes from the root to this one, joined by slashes."""
        names: list[object] = [node.name for node in self._creche_above()]
        # Somebody may have set one to what is no text; the end must not fail of it.
        return "/".join(name if type(name) is str else text_of(name) for name in reversed(names))

    def _creche_above(self) -> Iterator[Branch]:
        """Give the node and all above it."""
        node: Branch | None = self
        while node is not None:
            yield node
            node = node._creche_parent

    def _creche_below(self) -> Iterator[Branch]:
        """Give the node and all below it, each before those below it."""
        ahead: list[Branch] = [self]
        while ahead:
            node = ahead.pop()
            yield node
            ahead.extend(reversed(list(node._creche_children.values())))

    def _creche_nurseries(self, *, blocks: bool = False) -> Iterator[Nursery]:
        if not blocks:
            return (node._creche_nursery for node in self._creche_below())
        return (
            child._creche_nursery
            for child in list(self._creche_children.values())
            if child._creche_leave is None and child._creche_nursery.life in (OPEN, CLOSING)
        )

    def _creche_spoken(self) -> str:
        return f"node {shown(path_of(self))}"

    # from elsewhere

    @property
    def _creche_bridge(self) -> Bridge:
        """The way to the node's event loop: its own, or that of the node above that knows it."""
        own = self._creche_nursery
        if own.life is NEW:
            for node in self._creche_above():
                if node._creche_nursery.life is not NEW:
                    return node._creche_nursery.bridge
        return own.bridge

    def _creche_ask(self, call: Callable[[], T]) -> T:
        """Make a call on the loop, but for none of a thread whose worker was cancelled.

        Nothing that a superseded thread does takes effect; the check and the call are one step.
        """
        bridge = self._creche_bridge
        caller: Worker[Any] | None = current.get(None) if bridge.is_foreign else None
        if caller is None:
            return bridge.call(call)

        try:
            return bridge.call(partial(_call_checked, caller, call))
        finally:
            del caller  # the error holds this frame

    # messages, and who hears them

    def _creche_pass_on(self, message: Message) -> None:
        if self._creche_parent is not None:  # who listens to the tree has heard it
            self._creche_parent._creche_take(message, self._creche_heard_by)

    def _creche_is_started(self, outcome: object) -> bool:
        return is_a(outcome, cast("type[object]", Worker))

    def _creche_post(self, message: Message) -> bool:
        bridge = self._creche_bridge
        caller: Worker[Any] | None = current.get(None) if bridge.is_foreign else None
        if caller is not None:
            caller.check_cancelled()

        def arrive() -> None:
            # Once more, as it may have been superseded while the message was on its way.
            if caller is None or not caller.is_cancelled:
                self._creche_take(message)

        if bridge.can_act():
            return self._creche_take(message)
        return bridge.post(arrive, to=self._creche_nursery.bridge)

    def _creche_take(self, message: Message, told: Collection[Listener] = ()) -> bool:
        life = self._creche_nursery.life
        if life is CLOSED or (life is NEW and self._creche_is_lost()):
            return False
        if self._creche_parent is not None:
            self._creche_join()
        for subscription in self._creche_heard_by:
            if subscription not in told:
                subscription._put(message)
        return self._creche_mailbox.post(message)

    def _creche_is_lost(self) -> bool:
        """Whether the node can never be opened, as one above it has closed."""
        return any(node._creche_nursery.life is CLOSED for node in self._creche_above())

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
        joining: list[Branch] = []
        for node in self._creche_above():
            parent = node._creche_parent
            if parent is None or id(node) in parent._creche_children:
                break
            joining.append(node)
        for node in reversed(joining):
            parent = cast("Branch", node._creche_parent)
            parent._creche_children[id(node)] = node
            inherit(node, parent)

    # the block

    async def __aenter__(self) -> Self:
        """Open the node.

        Raises:
            WorkerError: It was opened before, or its parent is not open.
            BaseException: It could not be opened; it is closed then.
        """
        parent, nursery = self._creche_parent, self._creche_nursery
        if nursery.life is not NEW:
            raise WorkerError(
                f"{self._creche_spoken()} was entered before; make a new Node for each block"
            )
        if parent is not None:
            above = parent._creche_nursery
            # A mounted one was admitted when it was mounted.
            if above.life is not OPEN and (self._creche_leave is None or above.life is CLOSED):
                raise WorkerError(
                    f"cannot enter {self._creche_spoken()}: its parent is {above.life.value}"
                )
            if above.bridge.is_elsewhere:
                raise WorkerError(
                    f"cannot enter {self._creche_spoken()} outside the event loop of its parent"
                )
        self._creche_heed_logger()  # and hear: its user may have given it a handler
        try:
            if self._creche_leave is None:
                self._creche_hold_parent()  # it may be left while this one is being opened
            await nursery.open()
            self._creche_begin(parent)
        except BaseException:
            await nursery.abandon()
            self._creche_let_parent_go()
            raise
        return self

    def _creche_begin(self, parent: Branch | None) -> None:
        """Take the node's place in the tree, now that its nursery is open."""
        nursery = self._creche_nursery
        for group in list(self._creche_groups.values()):
            for worker in group:
                worker._created_at = nursery.now()  # the clock was not known before
        if parent is not None:
            above = parent._creche_nursery
            nursery.tree = above.tree
            self._creche_join()
            if above.is_cancelled:
                nursery.cancel(above.cancel_reason)
            if above.life is not OPEN:
                nursery.refuse()
        opener: Worker[Any] | None = current.get(None)
        if opener is not None and is_acting(opener):
            self._creche_opener = opener
            opener._tied().opened += (self,)
            opener._node._creche_waiting[id(opener)] = opener
        self._creche_mailbox.open(copy_context())

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Leave the node, see the class.

        Raises:
            ExceptionGroup: What workers, handlers and the body raised, each once.
            DeadlockError: Left before a child that was entered later in the same task, which would
                wait for ever. Both are closed then, as is what was entered in between.
            WorkerError: Left in another task than it was entered in; all work was cancelled and
                has ended. Or a native cancellation hit the task of a worker before its first step.
        """
        try:
            return await self._creche_nursery.close(exc)
        finally:
            del exc, traceback

    # A child holds its parent's nursery for as long as its block is open; a mounted one while it
    # begins and from when it was told to leave.

    def _creche_hold_parent(self) -> None:
        parent, block = self._creche_parent, self._creche_leave is None
        if parent is None or self._creche_holds:
            return
        above = parent._creche_nursery  # what follows is one line, see Nursery.holds
        self._creche_holds, above.holds, above.blocks = True, above.holds + 1, above.blocks + block

    def _creche_let_parent_go(self) -> None:
        parent, block = self._creche_parent, self._creche_leave is None
        if parent is None or not self._creche_holds:
            return
        above = parent._creche_nursery
        self._creche_holds, above.holds, above.blocks = False, above.holds - 1, above.blocks - block
        above.look_whether_idle()

    def _creche_on_closed(self) -> None:
        parent, opener = self._creche_parent, self._creche_opener
        for node in reversed(list(self._creche_below())):  # what is left was never opened
            if node._creche_nursery.life is NEW:
                node._creche_nursery.never_open()
        if parent is not None:
            parent._creche_children.pop(id(self), None)
            if self._creche_leave is None:
                self._creche_let_parent_go()
        if opener is not None:
            ties = opener._tied()
            ties.opened = tuple(node for node in ties.opened if node is not self)
            if not ties.opened and not ties.waits:
                opener._node._creche_waiting.pop(id(opener), None)
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
            Any thread, and a signal handler.
        """
        told = reason if reason is not None else f"{self._creche_spoken()} was cancelled"
        self._creche_bridge.run(lambda: self._creche_nursery.cancel(told))

    async def shutdown(self, grace: float = 0) -> None:
        """End all work below the node, while its block stays open.

        No more work is admitted. What there is may go on for the time of grace and is cancelled
        then; daemons and mounted nodes as when the block is left. A worker below the node that
        calls this counts as a daemon from here on: it is cancelled when the others have ended. So
        does a handler, and nobody waits for a call from a thread that made this call.
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
        if self._creche_nursery.life is NEW or self._creche_nursery.bridge.is_elsewhere:
            raise WorkerError(
                f"shutdown() is for an open node and its own event loop; {self._creche_spoken()} "
                f"is {self._creche_nursery.life.value}"
            )
        below = list(self._creche_below())
        for node in below:
            node._creche_nursery.refuse()
        self._creche_excuse(below)
        with anyio.move_on_after(grace):
            await self._creche_settle()
        for node in list(self._creche_below()):
            node._creche_mailbox.hurry()
            if node._creche_leave is not None and node is not self:
                node._creche_nursery.cancel("shut down")
            for group in list(node._creche_groups.values()):
                group.cancel("shut down")
        await self._creche_settle()

    def _creche_excuse(self, below: list[Branch]) -> None:
        """Have those who wait for all below hold nothing themselves: nobody waits for itself."""
        caller: Worker[Any] | None = current.get(None)
        if (
            caller is not None
            and is_acting(caller)
            and any(cast("object", node) is caller._node for node in below)
        ):
            caller._let_go()
        for node in below:  # a handler, or a call of a thread
            for task in list(node._creche_nursery.held):
                if task.is_acting():
                    task.hold_no_more()

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
        nursery = self._creche_nursery
        nursery.check_admission()
        if nursery.is_cancelled or nursery.bridge.is_elsewhere:
            raise WorkerError(
                f"cannot mount on {self._creche_spoken()}: it is cancelled, or this is not its "
                "event loop"
            )
        if not isinstance(child, Branch):
            raise WorkerError(f"mount() takes a Node, not {shown(child)}")
        is_new = child._creche_nursery.life is NEW and child._creche_leave is None
        if not is_new or (child._creche_parent is not None and child._creche_parent is not self):
            raise WorkerError(
                f"cannot mount {child._creche_spoken()} on {self._creche_spoken()}: it was opened "
                "before, is being mounted or has a parent already; mount a new Node"
            )
        had_parent = child._creche_parent
        child._creche_parent = self
        child._creche_leave, child._creche_gone = anyio.Event(), anyio.Event()
        ready = anyio.Event()
        troubles: list[BaseException] = []
        child._creche_hold_parent()
        try:
            nursery.spawn_held(
                partial(self._creche_house, child, ready, troubles),
                partial(self._creche_unhouse, child, ready),
                name=child.path,
            ).hold_no_more()  # the hold of the child is enough
        except BaseException:
            self._creche_unhouse(child, ready)
            child._creche_leave = child._creche_gone = None
            child._creche_parent = had_parent
            raise
        with anyio.CancelScope(shield=True):
            await ready.wait()
        try:
            if troubles:
                raise troubles.pop()
            if child._creche_nursery.life is NEW:
                raise WorkerCancelled(f"mounting {child._creche_spoken()} was cancelled natively")
        finally:
            del troubles
        return child

    async def _creche_house(
        self, child: Branch, ready: anyio.Event, troubles: list[BaseException]
    ) -> None:
        leave = cast("anyio.Event", child._creche_leave)
        try:
            async with child:
                child._creche_let_parent_go()  # it keeps nothing open until it is told to leave
                ready.set()
                await leave.wait()
        except BaseException as error:  # noqa: BLE001 (nothing may leave a task of the nursery)
            cancelled = self._creche_nursery.cancelled_class
            failure = uncancelled(error, lambda leaf: is_a(leaf, cancelled))
            if failure is not None and not ready.is_set():
                strip_traceback(failure)
                troubles.append(failure)  # it could not be opened: for who mounts it
            elif failure is not None:
                errors = list(parts_of(failure))
                while errors:
                    self._creche_nursery.fail(errors.pop(0))
            del failure  # this frame is in its traceback: a cycle, with all the errors in it
        finally:
            self._creche_unhouse(child, ready)

    def _creche_unhouse(self, child: Branch, ready: anyio.Event) -> None:
        cast("anyio.Event", child._creche_gone).set()
        ready.set()
        child._creche_let_parent_go()

    def _creche_tell_to_leave(self) -> bool:
        """Tell a mounted node to leave; whether that was news to it."""
        leave, gone = self._creche_leave, self._creche_gone
        if leave is None or leave.is_set() or gone is None or gone.is_set():
            return False
        self._creche_hold_parent()
        leave.set()
        return True

    async def remove(self) -> None:
        """Cancel a mounted node and wait until it has left; nothing happens if it has already.

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
        if self._creche_nursery.bridge.is_elsewhere:
            raise WorkerError(f"{self._creche_spoken()} is removed outside its event loop")
        self._creche_tell_to_leave()
        self.cancel(f"{self._creche_spoken()} was removed")
        await self._creche_gone.wait()

    # what the nursery asks

    def _creche_on_cancel(self, reason: object, *, by_scope: bool) -> None:
        for group in list(self._creche_groups.values()):
            group._cancel_with_nursery(reason, by_scope=by_scope)
        if not by_scope:  # what runs in the nursery beside the workers
            self._creche_mailbox.hurry()
            for child in list(self._creche_children.values()):
                child._creche_tell_to_leave()

    def _creche_on_quiet(self) -> bool:
        children = list(self._creche_children.values())
        told = [child._creche_tell_to_leave() for child in children]
        if any(told):
            return True
        rest = [worker for group in list(self._creche_groups.values()) for worker in group]
        daemons = [worker for worker in rest if worker._started]
        for worker in daemons:
            worker._hold()  # before it is cancelled, for one that is queued ends at once
            worker._cancel_here("only daemons were left")
        if daemons:
            return True
        for child in children:  # what is left of them was never opened
            for node in child._creche_below():
                groups = list(node._creche_groups.values())
                rest += [worker for group in groups for worker in group]
        for worker in rest:
            worker._disown()
        return bool(rest)

    def _creche_reap(self) -> None:
        for group in list(self._creche_groups.values()):
            for worker in group:
                worker._reap()

    @property
    def is_finished(self) -> bool:
        """Whether the node has been left."""
        return self._creche_nursery.life is CLOSED

    def _creche_needs_all(self) -> Collection[Party]:
        waiting = list(self._creche_waiting.values())
        held = [party for party in waiting if not cast("Worker[Any]", party).daemon]
        return (*held, *self._creche_children.values())

    def _creche_needs_one(self) -> Collection[Party]:
        return ()

    def _creche_is_opened_by_a_worker(self) -> bool:
        return any(node._creche_opener is not None for node in self._creche_above())
