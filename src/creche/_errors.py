"""The errors of the library, and what is done to errors on their way to the user."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable

if sys.version_info < (3, 11):  # pragma: no cover (one of the two branches runs on any version)
    from exceptiongroup import BaseExceptionGroup


class WorkerError(Exception):
    """Something about a worker, or the way it was used, is wrong; base of the library's errors."""


class WorkerCancelled(WorkerError):
    """The worker was cancelled, so there is no result to wait for."""


class DeadlockError(WorkerError):
    """Waiting would never end: the worker waited for cannot finish before the waiter does."""


class NoActiveWorker(WorkerError):
    """``get_current_worker()`` was called by code that no worker runs."""


class WorkerDeclarationError(WorkerError):
    """``@work`` was put on something that cannot be run as a worker."""


class WorkerFailed(WorkerError):
    """The work of a worker raised an error.

    The message names the type and the text of the original error, however many handed it on.

    Args:
        error: What the work raised; also the ``__cause__`` where ``Worker.wait()`` raises this.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error
        """What the work raised."""
        self._source: Source | None = None
        self._is_the_report = False

    def __str__(self) -> str:
        error: BaseException = self
        while isinstance(error, WorkerFailed):  # not repr(error): its escapes double at each relay
            error = error.error
        text = str(error)
        return f"worker failed: {type(error).__name__}" + (f": {text}" if text else "")


class Report(Protocol):
    """Where it is noted which tree has reported an error."""

    reported_in: object


class Source(Protocol):
    """What is asked of the worker whose failure a ``WorkerFailed`` relays."""

    @property
    def error(self) -> BaseException | None: ...

    def _tied(self) -> Report: ...


def unreported(error: BaseException, tree: object) -> BaseException | None:
    """Take out of an error what its tree reports already.

    A failed worker that fails its node is reported by the node's block. Whoever awaited the worker
    gets a ``WorkerFailed`` of the same error; if that leaves a body or fails another worker, it is
    a second report, whichever of the two arrives first at whichever block.

    Args:
        error: What a body or a worker raised, possibly a group.
        tree: What stands for the tree in which it was raised.

    Returns:
        The error, or the part of the group, that is still to be reported; ``None`` if nothing is.
    """
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return group.split(lambda leaf: _is_second_report(leaf, tree))[1]
    return None if _is_second_report(error, tree) else error


def _is_second_report(error: BaseException, tree: object) -> bool:
    if not isinstance(error, WorkerFailed):
        return False
    source, root = error._source, error._source
    while source is not None:  # the worker in which the original error was raised
        root = source
        source = source.error._source if isinstance(source.error, WorkerFailed) else None
    if root is None:
        return False  # not made by wait(): the user's own
    ties = root._tied()
    if ties.reported_in is tree:
        return not error._is_the_report
    ties.reported_in = tree
    error._is_the_report = True  # this very exception is the one report; it may pass several blocks
    return False


def uncancelled(
    error: BaseException, is_cancellation: Callable[[BaseException], bool]
) -> BaseException | None:
    """Take the cancellation out of an error.

    Trio puts a cancellation in one group with other errors; AnyIO on asyncio does not.

    Returns:
        What is left, ``None`` if it was nothing but cancellation.
    """
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        # Before Python 3.13 split() takes plain functions only, no bound methods.
        return group.split(lambda leaf: is_cancellation(leaf))[1]  # noqa: PLW0108 (see above)
    return None if is_cancellation(error) else error


def add_note(error: BaseException, note: str) -> None:
    """Put a note on an error, once."""
    notes: list[str] = getattr(error, "__notes__", [])
    if note not in notes:
        if sys.version_info >= (3, 11):
            error.add_note(note)
        else:  # pragma: no cover (3.10: the exceptiongroup package prints these)
            error.__notes__ = [*notes, note]  # type: ignore[attr-defined]  # unknown to 3.10


def strip_traceback(error: BaseException, package: str) -> None:
    """Drop the library's own frames from the head of a traceback.

    They hold the worker, which holds the error: a reference cycle; and they tell the user nothing.
    """
    traceback = error.__traceback__
    while traceback and traceback.tb_frame.f_globals.get("__name__", "").startswith(package):
        traceback = traceback.tb_next
    error.__traceback__ = traceback
