"""The listeners of a node: events are created only if one of them wants them."""

from __future__ import annotations

from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from creche._ground.errors import WorkerError
from creche._ground.report import is_a, logger
from creche._ground.states import CLOSED, FINAL, NEW, PENDING

from .events import ProgressChanged, StateChanged
from .followers import followers_of
from .log import LOG, is_wanted
from .parts import lock
from .tree import is_lost, join, walk_down
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from creche._ground.bridge import Bridge
    from creche._ground.message import Message
    from creche._ground.states import WorkerState
    from creche._messages.subscription import Listener
    from creche._nursery.nursery import Nursery

    from .node import Node


class Audience:
    """All that listen to one node: its subscriptions, the log, and its own handlers.

    Adding and removing one costs the same for any number: they are counted, and put into a tuple
    before the next event, which takes a step for each of them anyway.
    """

    __slots__ = (
        "_advanced",
        "_hear_changes",
        "_hear_progress",
        "_node",
        "_row",
        "handles_changes",
        "hearers",
        "is_heard",
        "log_level",
        "tells_changes",
        "tells_progress",
    )

    def __init__(self, node: Node) -> None:
        self._node = node
        self._advanced: set[int] = set()  # advanced in other threads, unknown to the loop
        self._empty()
        self.heed_logger()

    def _empty(self) -> None:
        self.hearers: dict[Listener, None] = {}
        """The listeners, in the order in which they get messages; changed only by this class."""
        self._row: tuple[Listener, ...] | None = ()
        self._hear_changes = self._hear_progress = 0  # how many of them

    @property
    def _nursery(self) -> Nursery:
        """The nursery of the node."""
        return self._node._creche_nursery

    @property
    def _bridge(self) -> Bridge:
        """The way into the event loop of the node."""
        return self._node._creche_bridge

    def below(self) -> Iterator[Audience]:
        """Return this audience, and those of all nodes below."""
        return (node._creche_audience for node in walk_down(self._node))

    def label(self) -> str:
        """Name the node in a sentence."""
        return self._node._creche_label()

    @property
    def heard_by(self) -> tuple[Listener, ...]:
        """The listeners; a copy that does not change as they come and go."""
        if self._row is None:
            self._row = tuple(self.hearers)
        return self._row

    def check(self) -> None:
        """Raise an error if nothing can happen here any more.

        Raises:
            WorkerError: The node is closed: a stream without events would look like a node where
                nothing happened.
        """
        if self._node._creche_nursery.state is CLOSED:
            raise WorkerError(
                f"cannot subscribe to {self._node._creche_label()}, which is closed; subscribe "
                "before or while it is open"
            )

    def add(self, listener: Listener) -> None:
        """Add a listener that is not there yet."""
        self.hearers[listener] = None
        self._count(listener, 1)

    def drop(self, listener: Listener) -> None:
        """Remove a listener; does nothing if it is not there."""
        if listener in self.hearers:
            del self.hearers[listener]
            self._count(listener, -1)

    def _count(self, listener: Listener, change: int) -> None:
        self._row = None
        self._hear_changes += change * listener._wants(StateChanged)
        self._hear_progress += change * listener._wants(ProgressChanged)
        self.heed_handlers()

    def heed_handlers(self) -> None:
        """Update which events are wanted, by listeners and by the node's own handlers."""
        self.handles_changes: bool = self._handles(StateChanged)
        self.tells_changes: bool = self.handles_changes or self._hear_changes > 0
        """Whether anybody listens to the changes of all workers; else no event is made."""
        self.tells_progress: bool = self._hear_progress > 0 or self._handles(ProgressChanged)
        """Whether anybody listens to progress; then its last event comes before the end."""
        self.is_heard: bool = self.tells_changes or self.tells_progress
        """Whether anybody listens to any of it."""

    def heed_logger(self) -> None:
        """Make the log a listener, and the first one, if its level is low enough."""
        self.log_level: int = logger.level
        if not is_wanted():
            self.drop(LOG)
        elif LOG not in self.hearers:
            self.hearers = {LOG: None, **self.hearers}
            self._count(LOG, 1)
        self.heed_handlers()

    def close(self) -> None:
        """Notify all listeners that the node admits no more work; safe to call again."""
        for listener in self.heard_by:
            listener._is_closing(self)

    def leave(self) -> None:
        """Notify all listeners that the node has closed."""
        for listener in self.heard_by:
            listener._has_left(self)
        self._empty()
        self.heed_handlers()

    def _handles(self, kind: type[Message]) -> bool:
        return getattr(self._node, kind.handler_name, None) is not None

    def announce(self, worker: Worker[Any], state: WorkerState) -> None:
        """Announce a change of state; on the loop."""
        if self._advanced and state in FINAL and worker._order in self._advanced:
            # Progress from another thread or from a bare callback that has not arrived yet.
            self._tell_progress(worker, is_late=True)
        followers = followers_of(worker) if worker._rare is not None else ()
        if not self.tells_changes and not followers:
            return
        context = None
        if state is PENDING:  # a copy, as the work will set variables in its own
            context = worker._context.copy() if worker._context is not None else copy_context()
        event = StateChanged(worker, state, context)
        if self.hearers or followers:
            self._tell(event, followers, handled=self.handles_changes)
        else:  # most often there is only the handler
            self._node._creche_mailbox.post(event)

    def announce_progress(self, worker: Worker[Any]) -> None:
        """Announce progress, from any thread; at most one call of each worker is in flight."""
        bridge = self._node._creche_nursery.bridge
        if bridge.can_act():
            self._tell_progress(worker)
            return
        with lock:
            if worker._order in self._advanced or worker._state in FINAL:
                return
            self._advanced.add(worker._order)
        if not bridge.post(partial(self._tell_progress, worker)):
            self._advanced.discard(worker._order)

    def _tell_progress(self, worker: Worker[Any], *, is_late: bool = False) -> None:
        if self._advanced:
            # First, as progress from here on needs another call.
            self._advanced.discard(worker._order)
        if worker._state in FINAL and not is_late:
            return
        event, rare = ProgressChanged(worker), worker._rare
        followers = () if rare is None else tuple(rare.followers or ())
        if self.tells_progress:
            self._tell(event, followers, handled=self._handles(ProgressChanged))
        else:
            for listener in followers:
                listener._put(event)
        if rare is not None:
            rare.is_hungry = False  # until it is taken

    def announce_event(self, worker: Worker[Any], event: Message) -> None:
        """Announce another event of a worker; on the loop."""
        self._tell(event, followers_of(worker), handled=self._handles(type(event)))

    def take(self, message: Message, told: Collection[Listener] = ()) -> bool:
        """Deliver a message, on the loop: to all listeners and to the handlers.

        Args:
            message: The message.
            told: The listeners that got it already.

        Returns:
            Whether it will be delivered: ``False`` once the node is closed, or will never open.
        """
        node = self._node
        state = node._creche_nursery.state
        if state is CLOSED or (state is NEW and is_lost(node)):
            return False
        if node._creche_parent is not None:
            join(node)
        for listener in self.heard_by:
            if listener not in told:
                listener._put(message)
        return node._creche_mailbox.post(message)

    def pass_on(self, message: Message) -> None:
        """Pass a message that was handled to the parent."""
        parent = self._node._creche_parent
        if parent is not None:  # those who listen to the tree have got it
            parent._creche_audience.take(message, self.hearers)

    def is_started(self, outcome: object) -> bool:
        """Whether what a handler returned is a worker, which runs by itself."""
        return is_a(outcome, cast("type[object]", Worker))

    def _tell(self, message: Message, followers: Collection[Listener], *, handled: bool) -> None:
        try:
            for listener in self.heard_by:
                listener._put(message)
            if handled:
                self._node._creche_mailbox.post(message)
        finally:
            for listener in followers:
                listener._put(message)
