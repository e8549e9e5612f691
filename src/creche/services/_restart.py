"""How often work may be run again, and after how long."""

from __future__ import annotations

import math
import random
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from creche import WorkerCancelled, WorkerError, WorkerFailed

if sys.version_info < (3, 11):  # pragma: no cover (one of the two branches runs on any version)
    from exceptiongroup import ExceptionGroup

if TYPE_CHECKING:
    from collections.abc import Sequence

ErrorT = TypeVar("ErrorT", bound=Exception)

Which: TypeAlias = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], object]
"""Which errors work is run again for."""


class NotRestartable(WorkerError):  # noqa: N818 (what it says of an error reads better so)
    """A service should not run again. Raise it, or a subclass, where a retry would be useless."""


class RestartsExhausted(ExceptionGroup[Exception]):
    """A service has failed too often. The group contains the errors that used up its restarts."""

    def derive(self, excs: Sequence[ErrorT], /) -> ExceptionGroup[ErrorT]:  # type: ignore[override]
        """Make the same of some of the errors, for ``split()`` and ``except*``."""
        return cast("ExceptionGroup[ErrorT]", RestartsExhausted(self.message, excs))


@dataclass(frozen=True)
class Backoff:
    """How long a service waits before it runs again; each wait is longer than the one before.

    Args:
        first: Seconds before the first restart.
        longest: The maximum, in seconds.
        factor: Each wait is the one before times this, 1 or more.
        jitter: The part of each wait, from 0 to 1, that is random, so that services that
            failed together do not all come back at the same moment. It makes waits shorter.

    Raises:
        WorkerError: A number is invalid.
    """

    first: float = 0.1
    longest: float = 30.0
    factor: float = 2.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        _check("first", self.first, least=0)
        _check("longest", self.longest, least=self.first)
        _check("factor", self.factor, least=1)
        _check("jitter", self.jitter, least=0, most=1)


@dataclass(frozen=True)
class Restart:
    """How often a service is run again before it is given up.

    Args:
        max: How many restarts are allowed within the time; ``None`` for any number, 0 for none.
        within: That time, in seconds.
        backoff: How long it waits before each restart.
        reset_after: Seconds that the work must run for the waits to start again from the first.

    Raises:
        WorkerError: A number is invalid.
    """

    max: int | None = 5
    within: float = 60.0
    backoff: Backoff = field(default_factory=Backoff)
    reset_after: float = 60.0

    def __post_init__(self) -> None:
        if self.max is not None:
            if type(self.max) is not int:
                raise WorkerError(f"max must be a whole number, or None, not {self.max!r:.100}")
            _check("max", self.max, least=0)
        _check("within", self.within, least=0)
        if not isinstance(self.backoff, Backoff):
            raise WorkerError(f"backoff must be a Backoff(), not {self.backoff!r:.100}")
        _check("reset_after", self.reset_after, least=0)


def _check(name: str, number: object, *, least: float, most: float = sys.float_info.max) -> None:
    if isinstance(number, int | float) and type(number) is not bool and least <= number <= most:
        return
    limits = f"{least} or more" if most == sys.float_info.max else f"from {least} to {most}"
    raise WorkerError(f"{name} must be a number, {limits}, not {number!r:.100}")


class Budget:
    """The failures of one run of a service, and how long it has waited.

    Args:
        restart: What it may do.
        label: The name of the service.
    """

    def __init__(self, restart: Restart, label: str) -> None:
        self._restart = restart
        self._label = label
        self._failures: deque[tuple[float, Exception]] = deque()  # and when they were
        self._wait = math.nan  # the last one, without what was left to chance

    def take(self, error: Exception, now: float, lasted: float) -> float:
        """Take a restart out of the budget.

        Args:
            error: Why there has to be one.
            now: When that is.
            lasted: For how long the work has run.

        Returns:
            In how many seconds it is due.

        Raises:
            RestartsExhausted: There are none left.
        """
        restart, failures = self._restart, self._failures
        if restart.max is not None:
            failures.append((now, error))
            while failures[0][0] < now - restart.within:
                failures.popleft()
            if len(failures) > restart.max:
                raise RestartsExhausted(
                    f"{self._label} failed {len(failures)} times within {restart.within:g} s, "
                    f"which is more than max={restart.max} restarts",
                    [each for _, each in failures],
                )
        backoff = restart.backoff
        if math.isnan(self._wait) or lasted >= restart.reset_after:
            self._wait = float(backoff.first)
        else:
            self._wait = min(self._wait * backoff.factor, float(backoff.longest))
        return self._wait * (1 - backoff.jitter * random.random())  # noqa: S311 (no secret)


def matcher(on: Which) -> Callable[[Exception], object]:
    """Give what tells whether work is run again for an error.

    Raises:
        WorkerError: It is neither a class of errors, nor several, nor a function.
    """
    kinds = cast("tuple[type[Exception], ...]", on if isinstance(on, tuple) else (on,))
    if all(isinstance(each, type) and issubclass(each, Exception) for each in kinds):
        return lambda error: _is_all(error, kinds)
    if not isinstance(on, type | tuple) and callable(on):
        return on
    raise WorkerError(
        "on must be a class of exceptions, a tuple of such classes, or a function that is given "
        f"the exception and tells whether to run the work again, not {on!r:.100}"
    )


def is_final(error: Exception) -> bool:
    """Whether another attempt would be no use, whatever was asked for.

    So it is where Creche refuses something: its misuse, or work on a node that takes no more.
    """
    if isinstance(error, ExceptionGroup):
        return any(map(is_final, cast("ExceptionGroup[Exception]", error).exceptions))
    return isinstance(error, WorkerError) and not isinstance(error, WorkerFailed | WorkerCancelled)


def _is_all(error: Exception, kinds: tuple[type[Exception], ...]) -> bool:
    if isinstance(error, kinds):
        return True
    if not isinstance(error, ExceptionGroup):
        return False
    parts = cast("ExceptionGroup[Exception]", error).exceptions
    return all(_is_all(each, kinds) for each in parts)
