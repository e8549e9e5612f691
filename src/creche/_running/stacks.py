"""Where in the code a worker is: the frames of its task, or of its thread.

A task is followed through its awaits, which works on every backend. A thread is found by our call
in its stack, so no worker has to remember its thread.
"""

from __future__ import annotations

import functools
import gc
import sys
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from creche._ground.public import publish

from .own_loop import on_own_loop
from .thread import ThreadCall

if TYPE_CHECKING:
    from types import FrameType, ModuleType

    from anyio import TaskHandle

    from .runner import Runner

_MACHINERY = {"anyio", "asyncio", "trio"}
_CALL = ThreadCall._in_thread.__code__
_LOOP = on_own_loop.__code__
_no_collection = threading.RLock()


@dataclass(frozen=True)
class FrameSnapshot:
    """A place in the code at which a worker was."""

    file: str
    """The path of the file."""
    line: int
    """The number of the line in it."""
    function: str
    """The name of the function."""
    code: str
    """The text of the line, empty if it cannot be read."""


publish(FrameSnapshot)


@functools.cache
def _library() -> ModuleType:
    try:
        with warnings.catch_warnings():
            # It makes coroutines to learn their types and never awaits them: Python 3.13 warns.
            warnings.simplefilter("ignore", RuntimeWarning)
            import stackscope  # noqa: PLC0415 (an extra, only for stacks)
    except ImportError:
        raise ImportError(
            "stacks are found by the package stackscope; pip install 'creche[stacks]'"
        ) from None
    return stackscope


def current_frames() -> dict[int, FrameType]:
    """Return the current frame of each thread, by thread number.

    A garbage collection during ``sys._current_frames()`` can deadlock CPython 3.11
    (https://github.com/python/cpython/issues/106883), so there is none.
    """
    with _no_collection:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames()
        finally:
            if was_enabled:
                gc.enable()


def find_calls() -> dict[int, Any]:
    """Find the workers that run in threads.

    Returns:
        By the ``id()`` of each worker, what its stack is taken from: the call in the thread, or
        what is awaited there.

    Raises:
        ImportError: The library that reads stacks is not installed.
    """
    library = _library()
    calls: dict[int, Any] = {}
    for innermost in current_frames().values():
        frame: FrameType | None = innermost
        awaited = None
        while frame is not None:
            if frame.f_code is _LOOP:
                awaited = frame.f_locals.get("awaitable")
            elif frame.f_code is _CALL:
                call: ThreadCall = frame.f_locals["self"]
                place = awaited if awaited is not None else library.StackSlice(outer=frame)
                calls[id(call._job.worker)] = place
            frame = frame.f_back
    return calls


def find_stack(
    worker: object, task: Runner | TaskHandle[None] | None, calls: dict[int, Any]
) -> tuple[FrameSnapshot, ...]:
    """Return the frames of a worker, the outermost first, without our own.

    Of the frames in the event loop's libraries at the end, only the first is included.

    Args:
        worker: The worker.
        task: What runs its task, if it has one.
        calls: What ``find_calls()`` found.
    """
    place = calls.get(id(worker))
    if place is None and task is not None:
        place = task.coro
    if place is None:
        return ()  # it has not begun
    # Including context managers would take ten times as long.
    frames: list[Any] = list(_library().extract(place, with_contexts=False).frames)
    while len(frames) > 1 and all(_package(frame) in _MACHINERY for frame in frames[-2:]):
        frames.pop()
    return tuple(
        FrameSnapshot(frame.filename, frame.lineno, frame.funcname, frame.linetext)
        for frame in frames
        if _package(frame) != "creche"
    )


def _package(frame: Any) -> str:
    name: object = frame.pyframe.f_globals.get("__name__")  # generated code may have any
    return name.partition(".")[0] if isinstance(name, str) else ""
