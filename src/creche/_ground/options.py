"""The options that several calls share, and their checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict, get_args

from .errors import WorkerError
from .report import is_a, shown

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from anyio import CapacityLimiter

    from .way import Way

Overflow: TypeAlias = Literal["enqueue", "restart", "drop", "keep_latest"]
"""What happens to a new worker when the limit of its group is reached."""

OVERFLOWS: tuple[Overflow, ...] = get_args(Overflow)


class WorkerOptions(TypedDict, total=False):
    """The options of a worker."""

    exit_on_error: bool | None
    thread: bool
    daemon: bool
    abandon_on_cancel: bool
    limiter: CapacityLimiter | None
    where: Way | Executor | None


class AllOptions(WorkerOptions, total=False):
    """The options of a worker that is made directly."""

    name: str
    group: str
    description: str


class RunOptions(WorkerOptions, total=False):
    """The options of work that is started."""

    exclusive: bool
    stall_after: float | None


class ReadyOptions(RunOptions, total=False):
    """The options of work that is started and waited for."""

    ready: bool


class StartOptions(RunOptions, total=False):
    """The options of work that may be started later."""

    start: bool


class StreamOptions(TypedDict, total=False):
    """The options of a subscription."""

    tree: bool
    until: Literal["closed", "closing"]


def check_limit(limit: object) -> int | None:
    """Make sure that something is a limit.

    Raises:
        WorkerError: It is not.
    """
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise WorkerError(f"limit must be 1 or more, or None for no limit, not {shown(limit)}")
    return limit


def check_overflow(overflow: object) -> Overflow:
    """Make sure that something is a rule of overflow.

    Raises:
        WorkerError: It is not.
    """
    for each in OVERFLOWS:
        if overflow == each:
            return each
    raise WorkerError(f"overflow must be one of {', '.join(OVERFLOWS)}, not {shown(overflow)}")


def check_seconds(what: str, seconds: object) -> float:
    """Make sure that something is a time, in seconds.

    Raises:
        WorkerError: It is not.
    """
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not seconds > 0:
        raise WorkerError(f"{what} must be seconds, more than 0, not {shown(seconds)}")
    return seconds


def check_text(what: str, text: object) -> str:
    """Make sure that something is a text.

    Raises:
        WorkerError: It is not.
    """
    if not is_a(text, str):
        raise WorkerError(f"{what} must be a text, not {shown(text)}")
    return text
