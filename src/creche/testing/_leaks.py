"""What a program must not leave behind."""

from __future__ import annotations

import gc
import threading
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import anyio
from anyio import lowlevel

from creche import Worker
from creche._running.runner import IDLE
from creche._running.stacks import current_frames

if TYPE_CHECKING:
    import sys
    from types import FrameType, TracebackType

    if sys.version_info >= (3, 11):
        from typing import Self
    else:
        from typing_extensions import Self

# The code of a pool: a thread that has no other on its stack waits for something to do.
_POOLS = ("threading", "queue", "concurrent", "anyio", "trio", "outcome", "contextlib")


def assert_nothing_left(grace: float = 1.0) -> NothingLeft:
    """Assert that a block of a test leaves nothing behind.

    Use ``with assert_nothing_left(): anyio.run(main)`` around a whole run. In a running event loop,
    use ``async with assert_nothing_left(): ...``, which checks tasks too. Only what was created in
    the block counts: tasks, threads (but not idle threads of a pool), unfinished workers,
    and coroutines that were never awaited.

    Args:
        grace: For how many seconds, of real time, threads may go on after the block.

    Returns:
        A context manager, of both kinds.

    Raises:
        AssertionError: On leaving: something was left; the message lists it. An exception of the
            block itself takes precedence.

    Threads:
        Any.
    """
    return NothingLeft(grace)


class NothingLeft:
    """What ``assert_nothing_left()`` returns."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._threads: set[threading.Thread] = set()
        self._tasks: dict[int, anyio.TaskInfo] = {}
        self._workers: weakref.WeakSet[Worker[Any]] = weakref.WeakSet()

    def __enter__(self) -> Self:
        self._threads = set(busy_threads())
        self._workers = weakref.WeakSet(_unfinished())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None:
            end = time.monotonic() + self._grace
            while self._find_threads() and time.monotonic() < end:
                time.sleep(0.001)
            _complain(self._find())

    async def __aenter__(self) -> Self:
        self._tasks = running_tasks()
        return self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            return
        end = time.monotonic() + self._grace
        while self._find_threads() and time.monotonic() < end:
            await lowlevel.checkpoint()
        for _ in range(8):  # what is at its end may end
            await lowlevel.checkpoint()
        tasks = [
            f"task {task.name!r}"
            for number, task in running_tasks().items()
            if number not in self._tasks and task.name != IDLE  # an open node keeps a few
        ]
        _complain([*tasks, *self._find()])

    def _find(self) -> list[str]:
        return [*self._find_threads(), *self._find_workers(), *_find_coroutines()]

    def _find_threads(self) -> list[str]:
        return [
            f"thread {thread.name!r}, {occupation}"
            for thread, occupation in busy_threads().items()
            if thread not in self._threads
        ]

    def _find_workers(self) -> list[str]:
        return [repr(worker) for worker in _unfinished() if worker not in self._workers]


def running_tasks() -> dict[int, anyio.TaskInfo]:
    """Give the tasks of the running loop, each by a number that is its own while this is kept.

    The id of a task may be another's once it has ended; what is given holds the coroutine.
    """
    return {id(task.coro): task for task in anyio.get_running_tasks()}


def _unfinished() -> list[Worker[Any]]:
    """Find the workers that were added to a node and have not ended."""
    found = [each for each in gc.get_objects() if issubclass(type(each), Worker)]
    # One that could not be made lacks its state.
    return [each for each in found if getattr(each, "created_at", None) and not each.is_finished]


def busy_threads() -> dict[threading.Thread, str]:
    """Tell what each thread is at, but for those of a pool that wait for something to do."""
    frames = current_frames()
    told = {thread: _occupation(thread, frames) for thread in threading.enumerate()}
    return {thread: occupation for thread, occupation in told.items() if occupation is not None}


def _occupation(thread: threading.Thread, frames: dict[int, FrameType]) -> str | None:
    """Tell what a thread is at, ``None`` if it is one of a pool that waits for something to do."""
    frame = innermost = frames.get(thread.ident or 0)
    while frame is not None:
        if _module(frame) not in _POOLS:
            code = frame.f_code
            return f"in {code.co_name} ({code.co_filename}:{frame.f_lineno})"
        frame = frame.f_back
    if not thread.name.startswith(("AnyIO worker", "Trio")):
        return "which is of no pool"
    waits = innermost is None or (
        _module(innermost) in {"threading", "queue"} or innermost.f_code.co_name == "_work"
    )
    return None if waits else "on its way back to its pool"


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def is_back(thread: threading.Thread | None) -> bool:
    """Whether a thread is back in its pool: what it did has been reported to its loop."""
    return thread is None or _occupation(thread, current_frames()) is None


def _find_coroutines() -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gc.collect()
    return [str(each.message) for each in caught if "never awaited" in str(each.message)]


def _complain(left: list[str]) -> None:
    if left:
        raise AssertionError("\n  ".join(["these were left behind:", *left]))
