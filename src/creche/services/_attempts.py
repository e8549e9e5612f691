"""Deciding whether and when failed work runs again; this module neither calls it nor waits."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, cast

from creche import Worker, WorkerCancelled

from ._log import fields_of, logger
from ._restart import Budget, Restart, is_final

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class Attempts:
    """The attempts of one run of a service, one after another.

    Each attempt is a ``with`` block, which catches an error after which the work may run again.
    The caller, in a task or in a thread, returns the value if ``is_result()`` is true, and
    otherwise waits for ``next_delay()``.

    Args:
        label: The name of the service.
        worker: The worker that runs it. It is held weakly: errors keep frames that refer to this.
        restart: How often the work may run again.
        is_wanted: Whether it runs again after an error.
        always: Whether it also runs again after it has returned.
        clock: Returns the time, in seconds.
        is_cancelled: Whether a worker was cancelled.
    """

    def __init__(
        self,
        label: str,
        worker: Worker[Any],
        restart: Restart,
        is_wanted: Callable[[Exception], object],
        *,
        always: bool,
        clock: Callable[[], float],
        is_cancelled: Callable[[Worker[Any]], bool],
    ) -> None:
        self._label = label
        self._worker = cast("Callable[[], Worker[Any]]", weakref.ref(worker))
        self._budget = Budget(restart, label)
        self._is_wanted = is_wanted
        self._always = always
        self._clock = clock
        self._is_cancelled = is_cancelled
        self._began = 0.0
        self._failure: Exception | None = None

    def __enter__(self) -> None:
        self._began = self._clock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception) or not self._is_restartable(error):
            return False
        # The traceback should begin in the function, not in the frame that catches the error.
        error.__traceback__ = cast("TracebackType", error.__traceback__).tb_next
        self._failure = error
        return True

    def _is_restartable(self, error: Exception) -> bool:
        if isinstance(error, WorkerCancelled) and self._worker().is_cancelled:
            return False  # that is how it ends
        return not is_final(error) and bool(self._is_wanted(error))

    def is_result(self) -> bool:
        """Whether the returned value ends the service; if not, the attempt counts as failed."""
        if not self._always or self._is_cancelled(self._worker()):
            return True
        self._failure = RuntimeError(f"{self._label} returned, and is to run always")
        return False

    def next_delay(self) -> float:
        """Take a restart out of the budget for the failed attempt, and announce it.

        Returns:
            Seconds to wait before the next attempt.

        Raises:
            RestartsExhausted: There are none left.
        """
        failure, self._failure = cast("Exception", self._failure), None
        now = self._clock()
        delay = self._budget.take(failure, now, now - self._began)
        worker = self._worker()
        if not self._is_cancelled(worker):
            worker.restarted(failure, delay)
            return delay
        # There is no other attempt.
        told, fields = (worker.name, failure), fields_of(worker)
        logger.warning(
            "worker %r failed while it was cancelled: %.200r", *told, exc_info=failure, extra=fields
        )
        return delay
