"""Iterating with progress: a step for each item that has been dealt with."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from operator import length_hint
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from creche._ground.backend import interruptible
from creche._ground.errors import WorkerError
from creche._ground.report import shown

if TYPE_CHECKING:
    import sys

    if sys.version_info >= (3, 11):
        from typing import Self
    else:
        from typing_extensions import Self

T = TypeVar("T")


class Counter(Protocol):
    """What counts the steps."""

    @property
    def completed_steps(self) -> int: ...

    def advance(self, steps: int = 1) -> None: ...

    def update(self, completed_steps: int | None = None, total_steps: int | None = -1) -> None: ...


def track(
    counter: Counter, iterable: Iterable[T] | AsyncIterable[T], total: int | None
) -> Iterator[T] | AsyncIterator[T]:
    """Give the items of an iterable, and advance by one as each has been dealt with."""
    if not isinstance(iterable, Iterable | AsyncIterable):
        raise WorkerError(f"track() takes an iterable or an async one, not {shown(iterable)}")
    expected = length_hint(iterable, -1) if total is None else total
    if expected >= 0:
        counter.update(total_steps=counter.completed_steps + expected)
    if isinstance(iterable, Iterable):
        return _track(counter, iterable)
    return _AsyncTrack(counter, iterable)


@interruptible
def _track(counter: Counter, iterable: Iterable[T]) -> Iterator[T]:
    for item in iterable:
        yield item
        counter.advance()


class _AsyncTrack(AsyncIterator[T], Generic[T]):
    # No async generator: one that is not read to its end wants to be closed.

    def __init__(self, counter: Counter, iterable: AsyncIterable[T]) -> None:
        self._counter = counter
        self._items = aiter(iterable)
        self._is_at_work = False

    def __aiter__(self) -> Self:
        return self

    @interruptible
    async def __anext__(self) -> T:
        if self._is_at_work:
            self._is_at_work = False
            self._counter.advance()
        item = await anext(self._items)
        self._is_at_work = True
        return item
