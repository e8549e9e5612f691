"""Subscriptions: what happens on nodes, as streams of events.

Each node knows its listeners: the subscriptions to it, and those to the nodes above that cover the
whole tree. It counts which events they want as subscriptions and nodes come and go, so announcing
something without listeners costs one check.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, final

from anyio import lowlevel

from creche._ground.backend import get_backend
from creche._ground.bridge import run_soon
from creche._ground.errors import WorkerError
from creche._ground.message import Backlog, Message, MessageT
from creche._ground.report import shown
from creche._ground.states import CLOSED, CLOSING, NEW

if TYPE_CHECKING:
    import sys
    from collections.abc import Awaitable, Iterable
    from types import TracebackType

    from creche._ground.backend import Backend
    from creche._ground.bridge import Bridge
    from creche._nursery.nursery import Nursery

    if sys.version_info >= (3, 11):
        from typing import Self
    else:
        from typing_extensions import Self


class Listener(Protocol):
    """Gets the messages of nodes."""

    @property
    def _tree(self) -> bool: ...

    def _wants(self, kind: type[Message]) -> bool: ...

    def _put(self, message: Message) -> None: ...

    def _is_closing(self, source: Source) -> None: ...

    def _has_left(self, source: Source) -> None: ...


class Source(Protocol):
    """What a subscription listens to: the audience of a node, or of one worker."""

    @property
    def _nursery(self) -> Nursery: ...

    @property
    def _bridge(self) -> Bridge: ...

    @property
    def hearers(self) -> dict[Listener, Any]:
        """The listeners, in the order in which they get messages."""
        ...

    def check(self) -> None:
        """Raise an error if nothing can happen there any more."""
        ...

    def add(self, listener: Listener) -> None:
        """Send messages to a listener from now on."""
        ...

    def drop(self, listener: Listener) -> None:
        """Send it no more messages."""
        ...

    def below(self) -> Iterable[Source]:
        """Return this source, and those of all nodes below."""
        ...

    def label(self) -> str:
        """Name the node or worker in a sentence."""
        ...


def _is_message_class(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Message)


@final
class Subscription(Generic[MessageT]):
    """A stream of what happens on a node; made by ``Node.subscribe()``, see there.

    ``async with`` opens it. From then on events are kept in it, in order, until they are read.
    ``async for`` reads it. It ends after the last event once the node has closed, or when the
    block of the subscription is left. One task at a time may read; a read that is cancelled loses
    nothing.
    """

    __slots__ = (
        "_backend",
        "_backlog",
        "_bridge",
        "_is_over",
        "_is_read",
        "_news",
        "_source",
        "_thread",
        "_token",
        "_tree",
        "_types",
        "_until_closing",
    )

    def __init__(
        self,
        source: Source,
        types: tuple[type[MessageT], ...],
        *,
        tree: bool = False,
        until: str = "closed",
    ) -> None:
        if until not in ("closed", "closing"):
            raise WorkerError(f'until must be "closed" or "closing", not {shown(until)}')
        given: tuple[Any, ...] = types or (None,)
        for each in given:
            if not _is_message_class(each):
                raise WorkerError(
                    f"subscribe() takes classes of messages, not {shown(each)}; "
                    "for all that happens, Message"
                    if types
                    else "subscribe() needs the classes of messages that are wanted; "
                    "for all that happens, Message"
                )
        self._source = source
        self._types = types
        self._tree = tree
        self._until_closing = until == "closing"
        self._backlog: Backlog[MessageT] | None = None  # set when it is opened
        self._news: Awaitable[None] | None = None
        self._bridge = source._bridge
        self._backend: Backend
        self._is_read = False
        self._is_over = False
        self._token: lowlevel.EventLoopToken  # of the reader's loop, as is the next
        self._thread: int

    def __repr__(self) -> str:
        names = ", ".join(each.__qualname__ for each in self._types)
        return f"<Subscription to {names} of {self._source.label()}>"

    # what the node calls

    def _wants(self, kind: type[Message]) -> bool:
        return issubclass(kind, self._types)

    def _put(self, message: Message) -> None:
        """Keep a message for the reader if its class is wanted; on the loop."""
        if self._backlog is not None and isinstance(message, self._types):
            self._backlog.put(message)
            if self._news is not None:
                self._wake()

    def _is_closing(self, source: Source) -> None:
        """End if that is wanted, because a node admits no more work."""
        if self._until_closing:
            self._has_left(source)

    def _has_left(self, source: Source) -> None:
        """End if the node itself has closed, not one below."""
        if source is self._source:
            self._is_over = True
            self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, None
        if news is None:
            return
        # Nodes that are not open yet, be it this one or one below, act at once in any thread, and
        # in a signal handler.
        if self._thread == threading.get_ident() and self._backend.get_task() is not None:
            self._backend.wake(news)
        else:
            run_soon(self._token, partial(self._backend.wake, news))

    # for its user

    async def __aenter__(self) -> Self:
        """Begin to listen.

        Raises:
            WorkerError: It was opened before; the node is closed, so that a stream without events
                would look like a node where nothing happened; or this is not the thread of the
                node's event loop.

        Checkpoint:
            Never.

        Threads:
            The node's event loop only.
        """
        if self._backlog is not None:
            raise WorkerError(f"{self!r} was opened before; subscribe again")
        self._source.check()
        self._check_thread()
        nursery = self._source._nursery
        self._token, self._thread = lowlevel.current_token(), threading.get_ident()
        if nursery.state is NEW or nursery.state is CLOSED:
            self._backend = get_backend(self._token)
        else:
            self._backend = nursery.backend
        self._backlog = Backlog()
        for source in self._reach():
            source.add(self)
        if self._until_closing and (nursery.is_cancelled or nursery.state is CLOSING):
            self._is_over = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop listening; unread events are dropped, and a reader in another task ends.

        Raises:
            WorkerError: This is not the thread of the node's event loop.
        """
        self._check_thread()
        for source in self._reach():
            source.drop(self)
        self._opened().clear()
        self._is_over = True
        self._wake()

    def _reach(self) -> list[Source]:
        return list(self._source.below()) if self._tree else [self._source]

    def _check_thread(self, *, waits: bool = False) -> None:
        bridge = self._bridge
        if bridge.is_elsewhere if waits else bridge.is_foreign:
            raise WorkerError(f"{self!r} is used outside the event loop of its node")

    def _opened(self) -> Backlog[MessageT]:
        if self._backlog is None:
            raise WorkerError(f"{self!r} is not open; read it in its block: async with ... as ...")
        return self._backlog

    def __aiter__(self) -> Self:
        """Read the events, each once."""
        return self

    async def __anext__(self) -> MessageT:
        """Return the next event; wait for it if there is none.

        Cancelling this call loses nothing: the next one gets the event.

        Raises:
            StopAsyncIteration: The node has closed and all was read; or the block was left.
            WorkerError: It is not open, is being read already, or this is another thread.

        Checkpoint:
            Always.

        Threads:
            The node's event loop only.
        """
        backlog, thread = self._backlog, self._bridge.thread
        if backlog is None or (thread is not None and thread != threading.get_ident()):
            backlog = self._opened()
            self._check_thread()
        if self._is_read:
            raise WorkerError(
                f"{self!r} is being read by another task; subscribe once for each reader"
            )
        self._is_read = True
        try:
            if backlog or self._is_over:
                await self._backend.checkpoint()
            while not backlog:
                if self._is_over:
                    raise StopAsyncIteration
                # Created before the second check: a signal handler may run in between.
                news = self._news = self._backend.new_sleep()
                if not backlog and not self._is_over:
                    if self._backend.get_task() is None:
                        self._check_thread(waits=True)
                    await news
            return backlog.take()
        finally:
            self._is_read = False

    def take_all(self) -> list[MessageT]:
        """Take out all events that are waiting now.

        For consumers that poll, and look at many events at once: reading them one by one takes a
        turn of the event loop for each.

        Returns:
            The events, in order; empty if there are none.

        Raises:
            WorkerError: It is not open, or this is another thread.

        Checkpoint:
            Never.

        Threads:
            The node's event loop only.
        """
        backlog = self._opened()
        self._check_thread()
        return backlog.take_all()


def inherit(source: Source, above: Source) -> None:
    """Add those who listen to the tree above a node to that node and those below it."""
    of_tree = [each for each in above.hearers if each._tree]
    for each in source.below():
        for listener in of_tree:
            each.add(listener)
