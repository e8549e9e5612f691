"""Progress: steps, percent, and iterating with a step for each item.

For workers, and for their counterparts where work runs elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from operator import length_hint
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, cast

from .errors import WorkerError
from .interrupts import interruptible
from .report import shown

if TYPE_CHECKING:
    import sys

    if sys.version_info >= (3, 11):
        from typing import Self
    else:
        from typing_extensions import Self

T = TypeVar("T")


class Steps(Protocol):
    """What counts steps."""

    @property
    def completed_steps(self) -> int: ...

    def advance(self, steps: int = 1) -> None: ...

    def update(self, completed_steps: int | None = None, total_steps: int | None = -1) -> None: ...


def track(
    worker: Steps, iterable: Iterable[T] | AsyncIterable[T], total: int | None
) -> Iterator[T] | AsyncIterator[T]:
    """Iterate over something, and advance by one step after each item."""
    if not isinstance(iterable, Iterable | AsyncIterable):
        raise WorkerError(f"track() takes an iterable or an async one, not {shown(iterable)}")
    expected = length_hint(iterable, -1) if total is None else total
    if expected >= 0:
        worker.update(total_steps=worker.completed_steps + expected)
    if isinstance(iterable, Iterable):
        return _track(worker, iterable)
    return _AsyncTrack(worker, iterable)


@interruptible
def _track(worker: Steps, iterable: Iterable[T]) -> Iterator[T]:
    for item in iterable:
        yield item
        worker.advance()


class _AsyncTrack(AsyncIterator[T], Generic[T]):
    # Not an async generator: one that is not read to its end has to be closed.

    def __init__(self, worker: Steps, iterable: AsyncIterable[T]) -> None:
        self._worker = worker
        self._items = aiter(iterable)
        self._is_at_work = False

    def __aiter__(self) -> Self:
        return self

    @interruptible
    async def __anext__(self) -> T:
        if self._is_at_work:
            self._is_at_work = False
            self._worker.advance()
        item = await anext(self._items)
        self._is_at_work = True
        return item


def percent(completed: float, total: float | None) -> float:
    """Return how much is done, from 0.0 to 100.0; 0.0 while the total is unknown or 0."""
    if not total or completed <= 0:
        return 0.0
    if completed >= total:
        return 100.0
    return completed * 100 / total


def check_steps(steps: object) -> None:
    """Make sure that something is a number of steps.

    Raises:
        WorkerError: It is not.
    """
    try:
        if math.isfinite(cast("float", steps)):
            return
    except OverflowError:
        return  # finite, as it happens
    except Exception:  # noqa: BLE001, S110 (it is not a number, whatever it raises)
        pass
    raise WorkerError(f"steps must be a finite number, not {shown(steps)}")
