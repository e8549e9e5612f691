"""The failures of a nursery: gathered while it ends, raised once when it has ended."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from creche._ground.errors import (
    get_cause,
    get_context,
    get_traceback,
    parts_of,
    set_cause,
    set_context,
    unreported,
)
from creche._ground.report import harmless, is_a

if sys.version_info < (3, 11):  # pragma: no cover (one of the two branches runs on any version)
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class Leaving:
    """The errors on their way out of a block that is being left.

    The frames of the end refer to this object only, and it is emptied as the block is left: see
    errors: frames.
    """

    __slots__ = ("_context", "_is_bare", "body", "cancellation", "error", "misuse")

    def __init__(self, body: BaseException | None) -> None:
        self.body = body
        """What left the body."""
        self.cancellation: BaseException | None = None
        """The cancellation with which to leave the task group."""
        self.misuse: BaseException | None = None
        """What is wrong with how the block is left."""
        self.error: BaseException | None = None
        """What the block raises; until the end, what it raises if nothing fails."""
        self._is_bare = False
        self._context: BaseException | None = None

    def raise_bare(self, error: BaseException) -> None:
        """Set a failure that is raised as it is, not in a group."""
        self.error, self._is_bare, self._context = error, True, get_context(error)

    def exc_info(
        self,
    ) -> tuple[type[BaseException] | None, BaseException | None, TracebackType | None]:
        """Return the cancellation as arguments for ``__aexit__()``."""
        if self.cancellation is None:
            return None, None, None
        return type(self.cancellation), self.cancellation, get_traceback(self.cancellation)

    def __enter__(self) -> None:
        """Begin to leave the block."""

    def __exit__(self, *_: object) -> None:
        """Let go of all errors."""
        if self._is_bare and self.error is not None:
            # It was raised while the cancellation of the body was handled, which on Trio holds the
            # frames of the cancel, the tasks and so the worker: a cycle.
            set_context(self.error, self._context)
        self.body = self.cancellation = self.misuse = self.error = self._context = None


class Failures:
    """What a block raises at its end."""

    __slots__ = ("_bare", "_errors")

    def __init__(self) -> None:
        self._errors: list[BaseException] = []
        self._bare: BaseException | None = None  # a SystemExit or the like

    def __bool__(self) -> bool:
        return bool(self._errors) or self._bare is not None

    def add(self, error: BaseException, tree: object) -> None:
        """Add an error, unless it is here or its tree reports it already."""
        fresh: BaseException | None = error
        with harmless:  # its attributes may be the user's
            fresh = unreported(error, tree)
        if fresh is None or fresh is self._bare or id(fresh) in map(id, self._errors):
            return
        if is_a(fresh, Exception) or self._bare is not None:
            self._errors.append(fresh)
        else:
            self._bare = fresh

    def conclude(self, where: Callable[[], str], leaving: Leaving) -> bool:
        """Raise what was gathered.

        Args:
            where: Names the block in words.
            leaving: What is on its way out of the block.

        Returns:
            Whether to swallow the error of the body; ``False`` where that itself is to be raised.

        Raises:
            BaseExceptionGroup: The failures.
            BaseException: The one that is raised bare, with the failures as its cause; or
                ``leaving.error`` if nothing was gathered.
        """
        self._hand_over(where, leaving)
        if leaving.error is None:
            return True
        if leaving.error is leaving.body:
            return False
        raise leaving.error

    def _hand_over(self, where: Callable[[], str], leaving: Leaving) -> None:
        errors, bare = self._errors, self._bare
        self._errors, self._bare = [], None
        if bare is not None:
            before = get_cause(bare)
            is_group = is_a(before, BaseExceptionGroup)
            if before is not None and is_group:  # of a node below, from which it came
                errors = [*parts_of(before), *errors]
            if errors and (before is None or is_group):
                set_cause(bare, BaseExceptionGroup("other errors in workers", errors))
            leaving.raise_bare(bare)
        elif errors:
            leaving.error = BaseExceptionGroup(f"unhandled errors in {where()}", errors)
            set_cause(leaving.error, None)  # as "raise from None" does
