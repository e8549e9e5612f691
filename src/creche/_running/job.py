"""What a way of running asks of its worker, and what all ways do with the work."""

from __future__ import annotations

import inspect
from functools import partial
from types import AsyncGeneratorType, CoroutineType, FunctionType, GeneratorType, MethodType
from typing import TYPE_CHECKING, Any, Protocol, cast

from creche._ground.errors import WorkerError
from creche._ground.interrupts import interruptible
from creche._ground.report import is_a, is_awaitable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextvars import Context

    from .runner import Runner

COROUTINE: type[Any] = CoroutineType


class TaskJob(Protocol):
    """What running in a task asks of its worker."""

    _context: Context | None
    """What to run in; ``None`` once the worker was called off."""
    _work: Any
    """What to call, or to await."""

    def _task_name(self) -> str:
        """Return the name of the task."""
        ...

    def _main(self, runner: Runner | None = None) -> Coroutine[Any, Any, None]:
        """Return the coroutine to run, which must not raise.

        Without a runner it has its own task, and first gets that from ``Runners.begin()``.
        """
        ...

    def _is_to_await(self, value: object) -> bool:
        """Whether a value that the work returned is to be awaited."""
        ...

    def _lose_task(self, fault: BaseException) -> None:
        """End: no task could be made, or a runner was interrupted between two steps."""
        ...

    def _creche_label(self) -> str:
        """Name the worker in a sentence."""
        ...


class Job(Protocol):
    """What running in a thread asks of its worker."""

    def label(self) -> str:
        """Name the worker in a sentence."""
        ...

    def on_cancel(self, stop: Callable[[], object]) -> None:
        """Call ``stop`` when the worker is cancelled, or at once if it already is."""
        ...

    @property
    def worker(self) -> object:
        """The worker itself."""
        ...

    @property
    def work(self) -> Any:
        """What to call, or to await; dropped once the worker has ended."""
        ...

    def is_to_await(self, value: object) -> bool:
        """Whether a value that the work returned is to be awaited."""
        ...

    def is_cancellation(self, error: BaseException) -> bool:
        """Whether an error says that the work was cancelled."""
        ...

    def enter(self) -> None:
        """Record that the work is entered now, or raise if it was called off."""
        ...

    def wait_for_thread(self) -> None:
        """Note that the job waits for a thread."""
        ...

    def notice_cancellation(self) -> None:
        """Record a cancellation that came from outside."""
        ...

    def note_abandoned(self, *, abandoned: bool) -> None:
        """Record that the thread was abandoned, or that it has ended since."""
        ...

    def log_fields(self) -> dict[str, str | int | None]:
        """Return the fields for a log record."""
        ...


@interruptible
def call(work: Any) -> object:
    """Call the work, or return it if it is an awaitable."""
    if type(work) in FUNCTIONS or not is_awaitable(work):
        return work()
    return work


# These cannot be awaited; checking anything else takes twenty times as long.
FUNCTIONS = (FunctionType, MethodType, partial)


def check_no_generator(value: object, label: Callable[[], str]) -> None:
    """Raise an error if the work returned a generator, of which no line has run.

    Raises:
        WorkerError: It is.
    """
    if is_a(value, (GeneratorType, AsyncGeneratorType)):
        raise WorkerError(
            f"the work of {label()} returned a generator, of which nothing has run; "
            "iterate over it in the work and return a value, with no yield"
        )


def is_unawaited(value: object) -> bool:
    """Whether something is a coroutine that was never awaited, which causes a warning."""
    return is_a(value, COROUTINE) and inspect.getcoroutinestate(value) == inspect.CORO_CREATED


def close_unawaited(value: object) -> None:
    """Close such a coroutine: the function that made it was interrupted before awaiting it."""
    if is_unawaited(value):
        cast("CoroutineType[Any, Any, Any]", value).close()


def leaked(label: str) -> WorkerError:
    """Make the error for a cancellation that nobody had asked for."""
    return WorkerError(
        f"the work of {label} raised a cancellation that nobody had asked for; "
        "let cancellation out of the scope it belongs to only"
    )
