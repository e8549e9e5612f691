"""The blocks that one task has open, which it has to leave in reverse order.

A nursery that is left before one that its task opened later could never close: the later one may
hold it, and no other task can leave that. So the blocks of each task form a chain, from the
innermost one outwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Collection

    from .nursery import Nursery


# The block that was opened last in each task and is still open.
_innermost: WeakKeyDictionary[Any, Nesting] = WeakKeyDictionary()


class Nesting:
    """Where a nursery stands among the blocks that its host has open."""

    __slots__ = ("_outer", "is_broken", "nursery")

    def __init__(self, nursery: Nursery) -> None:
        self.nursery = nursery
        self._outer: Nesting | None = None  # the innermost block of the host before this one
        self.is_broken = False
        """Whether it was left in the wrong order, which is reported once."""

    def enter(self, host: object) -> None:
        """Become the innermost block of a task."""
        self._outer = _innermost.get(host)
        _innermost[host] = self

    def is_innermost(self, task: object) -> bool:
        """Whether a task may leave this block."""
        return _innermost.get(task) is self

    def find_later(self, task: object, below: Collection[int]) -> list[Nesting]:
        """Find what a task opened later and has not left, starting from the innermost.

        In a task other than the host, that is everything it opened below, and what is in between.

        Args:
            task: The task.
            below: The nurseries below, by ``id()``.
        """
        later: list[Nesting] = []
        inner = _innermost.get(task)
        while inner is not None and inner is not self:
            later.append(inner)
            inner = inner._outer
        while inner is None and later and id(later[-1].nursery) not in below:
            later.pop()
        return later

    def leave(self, host: object) -> None:
        """Leave the chain of the host; safe to call again."""
        inner = _innermost.get(host)
        if inner is self:
            if self._outer is None:
                del _innermost[host]
            else:
                _innermost[host] = self._outer
        while inner is not None and inner is not self:
            if inner._outer is self:
                inner._outer = self._outer
            inner = inner._outer
        self._outer = None
