"""Messages: what nodes pass to their handlers and to subscribers."""

from __future__ import annotations

import re
from collections import deque
from typing import ClassVar, TypeVar

_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def _snake(name: str) -> str:
    return _WORD_START.sub("_", name).lower()


class Message:
    """Something that happened, on its way to a node's handler.

    A subclass may be declared with ``class Saved(Message, bubble=True, namespace="editor")``. Its
    handler is then the node's method ``on_editor_saved``. Without a namespace, the name comes from
    the last two parts of the qualified name: ``Editor.Saved`` is also handled by
    ``on_editor_saved``, and a class ``Saved`` at module level by ``on_saved``.
    """

    bubble: ClassVar[bool] = True
    """Whether the message bubbles up to the parent of the node that handled it."""
    handler_name: ClassVar[str] = "on_message"
    """The name of the method that handles messages of this class."""

    _stopped: bool = False
    _key: object = None  # of messages with the same key, at most one waits in a queue

    def __init_subclass__(cls, *, bubble: bool | None = None, namespace: str | None = None) -> None:
        """Work out the handler's name.

        Args:
            bubble: Whether messages of this class go on to the parent node; inherited if ``None``.
            namespace: The first part of the handler's name; by default the enclosing class.
        """
        super().__init_subclass__()
        if bubble is not None:
            cls.bubble = bubble
        if "handler_name" in vars(cls):
            # Set in the class; or dataclass(slots=True) makes the class again, without the keywords
            # and the qualified name.
            return
        parts = cls.__qualname__.rpartition("<locals>.")[2].split(".")[-2:]
        if namespace is not None:
            parts = [namespace, cls.__name__]
        cls.handler_name = "on_" + "_".join(_snake(part) for part in parts)

    def stop(self) -> None:
        """Keep the message from bubbling up to the parent node.

        Threads:
            For the handler to call.
        """
        object.__setattr__(self, "_stopped", True)  # a message may be a frozen dataclass

    @property
    def is_stopped(self) -> bool:
        """Whether ``stop()`` was called."""
        return self._stopped

    def _be_taken(self) -> None:
        """Note that a handler or subscriber has read it; only for messages with a key."""


MessageT = TypeVar("MessageT", bound=Message)


class Backlog(deque[MessageT]):
    """Messages that wait, in order.

    Of messages with the same key, only the first is kept: its reader sees the state at that time.
    """

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        super().__init__()
        self._keys: set[object] = set()

    def put(self, message: MessageT) -> None:
        """Add a message, unless one with the same key is waiting."""
        key = message._key
        if key is not None:
            if key in self._keys:
                return
            self._keys.add(key)
        self.append(message)

    def take(self) -> MessageT:
        """Take out the first message."""
        message = self.popleft()
        if message._key is not None:
            self._keys.discard(message._key)
            message._be_taken()
        return message

    def take_all(self) -> list[MessageT]:
        """Take out all messages."""
        return [self.take() for _ in range(len(self))]

    def clear(self) -> None:
        """Drop all messages."""
        super().clear()
        self._keys.clear()
