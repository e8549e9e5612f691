"""The errors of the library, and how errors are changed on their way to the user."""

from __future__ import annotations

import pickle
import sys
from contextlib import suppress
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from typing import TYPE_CHECKING, Any, Protocol, cast

from .report import harmless, is_a, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, TracebackType

if sys.version_info < (3, 11):  # pragma: no cover (one of the two branches runs on any version)
    from exceptiongroup import BaseExceptionGroup

# Frames. A worker holds its error, and the traceback of an error holds the frames that it passed
# through. Each of these may hold the frame that called it (when it does, differs between versions
# of Python), and each frame holds its local variables. So a frame that knows the worker, or the
# error itself, makes a reference cycle, which keeps all that the work knew alive until the
# collector runs. There are four cures:
# - strip_traceback() drops our frames from the head of a traceback, and clears those of our plain
#   functions that are still referred to.
# - An error that is kept to be raised is in a list or an attribute, and is taken out as it is
#   raised: ``raise kept.pop()``. The frame then has no name for it.
# - What a coroutine knows of a worker is in an object that is emptied when it ends: ``Leaving``,
#   the caller of a call from a thread, the job of a way.
# - A coroutine that has to know it deletes the names as it ends, with a comment that leads here.
# tests/test_frames.py fails for each place where one of these is missing.


class WorkerError(Exception):
    """The base of the library's errors, except ``RestartsExhausted`` and ``SignalReceived``."""

    _is_refusal = False  # whether a node says that it takes no more work


class ShutdownTimeout(WorkerError):  # noqa: N818 (as TimeoutError is for others)
    """Work below a node has not ended by the deadline of ``shutdown()``.

    Args:
        message: The message.
        workers: The workers that have not ended.
    """

    def __init__(self, message: str, workers: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.workers = workers
        """The workers that have not ended; they go on, as no task or thread can be killed."""


class WorkerCancelled(WorkerError):
    """The worker was cancelled, so there is no result to wait for."""


class DeadlockError(WorkerError):
    """The wait would never end: the awaited worker cannot finish before the one that waits."""


class NoActiveWorker(WorkerError):
    """``get_current_worker()`` was called by code that does not run in a worker."""


class WorkerDeclarationError(WorkerError):
    """``@work`` was used on something that cannot run as a worker."""


class WorkerFailed(WorkerError):
    """The work of a worker raised an error.

    The message names the worker and contains the type and the text of the original error, once, no
    matter how many workers passed it on. It can be pickled: with the original error, but without
    the worker.

    Args:
        error: What the work raised; also the ``__cause__`` when ``Worker.wait()`` raises this.
        worker: The worker that failed, if it is known.
    """

    def __init__(self, error: BaseException, worker: FailedWorker | None = None) -> None:
        super().__init__(error)
        self.error = error
        """What the work raised."""
        self.worker: Any = worker
        """The worker that failed; ``None`` once it has crossed to another process."""
        self._label = "worker" if worker is None else worker._creche_label()
        self._is_the_report = False

    def __str__(self) -> str:
        failed = self
        while is_a(failed.error, WorkerFailed):  # not repr(): escapes double at each relay
            failed = failed.error
        text = text_of(failed.error)
        return f"{failed._label} failed: {type(failed.error).__name__}" + (
            f": {text}" if text else ""
        )

    def __reduce__(self) -> tuple[object, ...]:
        error = self.error
        if not is_a(error, WorkerFailed):
            try:
                pickle.loads(pickle.dumps(error))  # noqa: S301 (pickled in the same line)
            except Exception:  # noqa: BLE001 (what cannot be pickled must not stop the rest)
                error = WorkerError(f"{type(error).__name__}: {text_of(error)}")
        return _unpickle, (type(self), error, self._label)


def _unpickle(kind: type[WorkerFailed], error: BaseException, label: str) -> WorkerFailed:
    failed = kind.__new__(kind, error)
    WorkerFailed.__init__(failed, error)  # a subclass may want other arguments
    failed._label = label
    return failed


class WorkerCrashed(WorkerError):  # noqa: N818 (as WorkerFailed, beside which it stands)
    """What ran the work is gone: its process was killed or has ended, or its machine was lost.

    Args:
        message: The message.
        exitcode: How the process ended, if that is known.
    """

    def __init__(self, message: str, exitcode: int | None = None) -> None:
        super().__init__(message)
        self.exitcode = exitcode
        """The exit code of the process, -9 for one that signal 9 killed; ``None`` if not known."""


class RemoteError(WorkerError):
    """The work raised an error elsewhere that could not be sent here; this reports it as text.

    Args:
        type_name: The name of its class.
        text: What it said.
    """

    def __init__(self, type_name: str, text: str) -> None:
        super().__init__(type_name, text)
        self.type_name = type_name
        """The full name of the class of the error, as ``module.Class``."""
        self.text = text
        """The text of the error."""

    def __str__(self) -> str:
        return f"{self.type_name}: {self.text}" if self.text else self.type_name


class FailedWorker(Protocol):
    """What a ``WorkerFailed`` asks of the worker whose failure it relays."""

    @property
    def error(self) -> BaseException | None: ...

    def _note_report(self, tree: object) -> bool:
        """Note that a tree reports the error; return whether it did not before."""
        ...

    def _creche_label(self) -> str: ...


def unreported(error: BaseException, tree: object) -> BaseException | None:
    """Remove from an error what its tree reports already.

    A worker that fails its node is reported by the node's block. Code that awaits the worker gets a
    ``WorkerFailed`` with the same error; if that leaves a body or fails another worker, it would be
    a second report, no matter which of the two arrives first.

    Args:
        error: What a body or a worker raised, possibly a group.
        tree: The identity of the tree in which it was raised.

    Returns:
        The error, or the part of the group, that is still to be reported; ``None`` if nothing is.
    """
    return without(error, lambda leaf: _is_second_report(leaf, tree))


def _is_second_report(error: BaseException, tree: object) -> bool:
    if not is_a(error, WorkerFailed):
        return False
    source, root = error.worker, error.worker
    while source is not None:  # the worker in which the original error was raised
        root = source
        source = source.error.worker if is_a(source.error, WorkerFailed) else None
    if root is None:
        return False  # not made by wait(): the user's own
    if not root._note_report(tree):
        return not error._is_the_report
    error._is_the_report = True  # this exception is the one report; it may pass several blocks
    return False


def uncancelled(
    error: BaseException, is_cancellation: Callable[[BaseException], bool]
) -> BaseException | None:
    """Remove the cancellation from an error.

    Trio puts a cancellation into one group with other errors; AnyIO on asyncio does not.

    Returns:
        The rest; ``None`` if it was only cancellation.
    """
    return without(error, is_cancellation)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the single errors of a group of any depth, or the error itself."""
    ahead = [error]
    while ahead:
        each = ahead.pop()
        if is_a(each, BaseExceptionGroup):
            ahead.extend(reversed(parts_of(each)))
        else:
            yield each


def without(error: BaseException, is_out: Callable[[BaseException], bool]) -> BaseException | None:
    """Remove some of the single errors from a group, or from a plain error.

    Returns:
        The same object if nothing is removed, ``None`` if everything is, and otherwise a part of
        the group. That is made by ``split()``, unless ``split()`` or ``derive()`` of its class
        raises, or it is nested too deeply for them: then it is a plain, flat group with the same
        message and traceback.
    """
    if not is_a(error, BaseExceptionGroup):
        return None if is_out(error) else error
    group = error
    every = list(leaves(group))
    out = {id(leaf) for leaf in every if is_out(leaf)}
    if not out:
        return group
    rest = [leaf for leaf in every if id(leaf) not in out]
    if not rest:
        return None
    with harmless:  # it is the user's code, and there is a fallback
        part = group.split(lambda leaf: id(leaf) in out)[1]
        if part is not None and list(map(id, leaves(part))) == list(map(id, rest)):
            return part
    flat: BaseException = BaseExceptionGroup(_MESSAGE.__get__(group), rest)
    # As split() does. The group must not be its cause: that holds what was removed, perhaps a
    # cancellation, whose frames hold the worker.
    for told in (_TRACEBACK, _CAUSE, _CONTEXT):
        told.__set__(flat, told.__get__(group))
    return flat


# Attributes of an error are set without its class, which may refuse: a frozen dataclass does.
_TRACEBACK, _CAUSE, _CONTEXT, _DICT = (
    BaseException.__dict__[name]
    for name in ("__traceback__", "__cause__", "__context__", "__dict__")
)

# Those of a group are read in the same way.
_MESSAGE, _PARTS = (BaseExceptionGroup.__dict__[name] for name in ("message", "exceptions"))


def parts_of(group: BaseException) -> tuple[BaseException, ...]:
    """Return the errors of a group of any class, or the error itself if it is not a group."""
    if not is_a(group, BaseExceptionGroup):
        return (group,)
    return cast("tuple[BaseException, ...]", _PARTS.__get__(group))


def get_traceback(error: BaseException) -> TracebackType | None:
    """Return the ``__traceback__`` of an error of any class."""
    return cast("TracebackType | None", _TRACEBACK.__get__(error))


def get_cause(error: BaseException) -> BaseException | None:
    """Return the ``__cause__`` of an error of any class."""
    return cast("BaseException | None", _CAUSE.__get__(error))


def set_cause(error: BaseException, cause: BaseException | None) -> None:
    """Set the ``__cause__`` of an error of any class."""
    _CAUSE.__set__(error, cause)


def get_context(error: BaseException) -> BaseException | None:
    """Return the ``__context__`` of an error of any class."""
    return cast("BaseException | None", _CONTEXT.__get__(error))


def set_context(error: BaseException, context: BaseException | None) -> None:
    """Set the ``__context__`` of an error of any class."""
    _CONTEXT.__set__(error, context)


def drop_cancellation(error: BaseException, cancelled_class: type[BaseException]) -> None:
    """Remove a cancellation from the chain of ``__context__`` of an error.

    It holds the frames in which it was delivered, which hold the worker: a cycle.
    """
    seen: set[int] = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        context = get_context(inner)
        if is_a(context, cancelled_class):
            _CONTEXT.__set__(inner, None)
        inner = context


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an error, once; does nothing if its ``__notes__`` does not allow that."""
    with harmless:
        notes = getattr(error, "__notes__", ())
        if note not in notes:
            _DICT.__get__(error)["__notes__"] = [*notes, note]


def strip_traceback(error: BaseException) -> None:
    """Drop the library's own frames from the head of a traceback.

    They tell the user nothing, and they hold the worker, which holds the error: a reference cycle.
    So those of ours that a later frame still refers to are cleared. A way outside of the core says
    of its modules that they are ours: ``__tracebackhide__ = True``, as pytest has it.
    """
    with harmless:  # code in exec() may have globals of any kind
        traceback = _TRACEBACK.__get__(error)
        while traceback and _is_ours(traceback.tb_frame):
            traceback = traceback.tb_next
        _TRACEBACK.__set__(error, traceback)
        _clear_frames(traceback)


def _is_ours(frame: FrameType) -> bool:
    module = frame.f_globals
    return (
        str(module.get("__name__")).startswith("creche._")
        or module.get("__tracebackhide__") is True
    )


# Clearing the frame of a suspended coroutine would close it, and it may be suspended by now.
_CAN_SUSPEND = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR


def _clear_frames(traceback: TracebackType | None) -> None:
    """Clear the frames of our functions in a traceback, and of those that called them."""
    seen: set[FrameType] = set()
    while traceback is not None:
        frame: FrameType | None = traceback.tb_frame
        while frame is not None and frame not in seen:
            seen.add(frame)
            if _is_ours(frame) and not frame.f_code.co_flags & _CAN_SUSPEND:
                with suppress(RuntimeError):  # it is still running
                    frame.clear()
            frame = frame.f_back
        traceback = traceback.tb_next
