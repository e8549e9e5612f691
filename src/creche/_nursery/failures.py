"""The failures of a nursery: gathered while it ends, raised once when it has ended."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from creche._ground.errors import (
    get_cause,
    get_context,
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


class Failures:
    """What is to be raised by a block when all is over."""

    __slots__ = ("_bare", "_errors")

    def __init__(self) -> None:
        self._errors: list[BaseException] = []
        self._bare: BaseException | None = None  # a SystemExit or the like

    def __bool__(self) -> bool:
        return bool(self._errors) or self._bare is not None

    def add(self, error: BaseException, tree: object) -> None:
        """Take in an error, unless it is here or its tree reports it already."""
        fresh: BaseException | None = error
        with harmless:  # what it tells of its worker may be the user's own
            fresh = unreported(error, tree)
        if fresh is None or fresh is self._bare or id(fresh) in map(id, self._errors):
            return
        if is_a(fresh, Exception) or self._bare is not None:
            self._errors.append(fresh)
        else:
            self._bare = fresh

    def conclude(
        self,
        where: Callable[[], str],
        error: BaseException | None,
        leaving: BaseException | None,
    ) -> bool:
        """Raise what was gathered.

        Args:
            where: Names the block in words.
            error: What left the body of the block.
            leaving: What is to be raised if nothing was gathered.

        Returns:
            Whether to swallow the error of the body; ``False`` where that itself is to be raised.

        Raises:
            BaseExceptionGroup: The failures.
            BaseException: The one that goes bare, with the failures as its cause; or ``leaving``.
        """
        errors, bare = self._errors, self._bare
        self._errors, self._bare = [], None
        context = get_context(bare) if bare is not None else None
        try:
            if bare is not None:
                before = get_cause(bare)
                is_group = is_a(before, BaseExceptionGroup)
                if before is not None and is_group:  # of a node below, from which it came
                    errors = [*parts_of(before), *errors]
                if errors and (before is None or is_group):
                    set_cause(bare, BaseExceptionGroup("other errors in workers", errors))
                leaving = bare
            elif errors:
                raise BaseExceptionGroup(f"unhandled errors in {where()}", errors) from None
            if leaving is None:
                return True
            if leaving is error:
                return False
            raise leaving
        finally:
            if bare is not None:
                # It was raised while the cancellation of the body was handled, which on Trio holds
                # the frames of the cancel, the tasks and so the worker: a cycle.
                set_context(bare, context)
            del errors, bare, error, leaving, context  # see errors: frames
