"""What is sent to the far side and back, as bytes: work, messages, outcomes.

Bytes in, bytes out: an engine that pickles by itself breaks if an error cannot be unpickled, and
some engines then fail all other work too. A job and an outcome consist of a head, which is plain
data, followed by the user's objects, so the head can always be read.

Pickle sends only the name of a function. The name of a decorated function refers to the decorator's
result, so it is sent as what that wraps.
"""

from __future__ import annotations

import copyreg
import importlib
import io
import os
import pickle
import sys
import traceback
from concurrent.futures import CancelledError as ThreadCancelledError
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from creche._ground.errors import (
    RemoteError,
    WorkerCancelled,
    WorkerError,
    set_cause,
    strip_traceback,
)
from creche._ground.report import text_of

if TYPE_CHECKING:
    from collections.abc import Callable

CANCELLATIONS = (WorkerCancelled, ThreadCancelledError)
"""What work that runs elsewhere raises when it was cancelled."""

BEGIN, STEPS, LOG = "begin", "steps", "log"
"""The messages of the far side: it asks to begin, reports its steps, or sends a log record."""
VALUE, ERROR, STAY, UNREAD, UNHEARD = "value", "error", "stay", "unread", "unheard"
"""The outcomes: returned, raised, refused to begin, unreadable, or could not ask."""

_DEEPEST = 100  # decorators on a function


def whoami() -> tuple[int, bytes]:
    """Identify this interpreter."""
    return os.getpid(), _interpreter


_interpreter = os.urandom(16)  # a forked process has the same one, but another process number


class Head(NamedTuple):
    """What the far side learns about the worker."""

    name: str
    group: str
    description: str
    path: str
    label: str
    backend: str
    level: int
    """The level of the root logger at home."""
    home: tuple[int, bytes]
    """The interpreter that the worker is in, see ``whoami()``."""
    trace: dict[str, str]
    """The trace that the work belongs to, see ``tracing``."""


Progress = tuple[int, "int | None", "str | None"]
"""Completed steps, all steps, and the description if it was changed."""


class OutcomeHead(NamedTuple):
    """How the work ended."""

    kind: str
    steps: Progress | None = None
    type_name: str = ""
    text: str = ""
    trace: str = ""
    """The traceback from there."""


class FarTraceback(Exception):  # noqa: N818 (it shows where one was raised)
    """Where an error was raised on the far side: the cause of the error here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


# pickling


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, BaseException) and _is_for_tracebacks(type(obj)):
            return obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        if isinstance(obj, FunctionType | type) and obj.__module__ == "__main__":
            _check_main(obj)
        if type(obj) is FunctionType:
            depth = _depth_of(obj)
            if depth:
                return _unwrap, (obj.__module__, obj.__qualname__, depth)
        return NotImplemented


def _is_for_tracebacks(kind: type) -> bool:
    """Whether a class is pickled by tblib, which is installed by Dask for all errors.

    Errors are then made again without their arguments: a SystemExit has no code.
    """
    how = copyreg.dispatch_table.get(kind)
    return str(getattr(how, "__module__", "")).startswith("tblib.")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        name = "__main__" if module_name == "__mp_main__" else module_name
        if name == "__main__":
            prepare_main()
        return super().find_class(name, global_name)


def _no_preparation() -> None:
    """Do nothing: the main module is loaded already."""


prepare_main: Callable[[], None] = _no_preparation
"""Loads home's main module; set by a process of ours."""


def _check_main(thing: Any) -> None:
    main = sys.modules["__main__"]
    if getattr(main, "__file__", None) is None and getattr(main, "__spec__", None) is None:
        raise pickle.PicklingError(
            f"{thing.__qualname__} was defined in a session, which no other process can import"
        )


def _depth_of(function: FunctionType) -> int:
    """Count the decorators that hide a function from its name; 0 if it can be found, or never."""
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    for depth in range(_DEEPEST):
        if found is function:
            return depth
        found = getattr(found, "__wrapped__", None)
    return 0


def _unwrap(module: str, qualname: str, depth: int) -> Any:
    if module in ("__main__", "__mp_main__"):
        prepare_main()
        module = "__main__"
    found: Any = importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    for _ in range(depth):
        found = found.__wrapped__
    return found


def pack(value: Any) -> bytes:
    """Pickle a user's object, by cloudpickle if that is needed and installed."""
    into = io.BytesIO()
    try:
        _Pickler(into, pickle.HIGHEST_PROTOCOL).dump(value)
    except Exception:
        try:
            cloudpickle = importlib.import_module("cloudpickle")  # for lambdas and notebooks
        except ImportError:
            pass
        else:
            told: bytes = cloudpickle.dumps(value)
            return told
        raise
    return into.getvalue()


def unpack(told: bytes, start: int = 0) -> Any:
    """Unpickle what ``pack()`` returned, from an offset on."""
    source = io.BytesIO(told)
    source.seek(start)
    return _Unpickler(source).load()


def _split(told: bytes) -> tuple[Any, int]:
    """Read the head; return it and where the rest begins."""
    source = io.BytesIO(told)
    return pickle.load(source), source.tell()  # noqa: S301 (the engine has to be trusted)


def _join(head: tuple[object, ...], body: bytes) -> bytes:
    # A plain one: its class would take more than all the rest.
    return pickle.dumps(tuple(head), pickle.HIGHEST_PROTOCOL) + body


# jobs


def pack_job(work: Any, head: Head, label: str) -> bytes:
    """Pack work for the way there.

    Raises:
        WorkerError: It cannot be pickled.
    """
    try:
        return _join(head, pack(work))
    except Exception as error:  # noqa: BLE001 (from the user's __reduce__, for example)
        raise WorkerError(
            f"the work of {label} cannot be pickled, and so cannot run elsewhere: "
            f"{type(error).__name__}: {text_of(error)}; give it a function of a module and values "
            "that pickle takes (pip install cloudpickle for lambdas and notebooks; a node does not "
            "travel: put @staticmethod under @work)"
        ) from None


def read_job(payload: bytes) -> tuple[Head, int]:
    """Read the head of a job, and where the work begins."""
    head, start = _split(payload)
    return Head(*head), start


# messages


def message(kind: str, *told: object) -> bytes:
    """Make a message, of plain data."""
    return pickle.dumps((kind, *told), pickle.HIGHEST_PROTOCOL)


def read_message(told: bytes) -> tuple[Any, ...]:
    """Read a message."""
    read: tuple[Any, ...] = pickle.loads(told)  # noqa: S301 (as above)
    return read


# outcomes


def pack_value(value: Any, steps: Progress | None) -> bytes:
    """Pack what the work returned, or the error that it cannot be pickled."""
    try:
        body = pack(value)
    except Exception as error:  # noqa: BLE001 (from the user's __reduce__, for example)
        refusal = WorkerError(
            f"the work returned a {type(value).__name__} that cannot be pickled, and so cannot "
            f"come back: {type(error).__name__}: {text_of(error)}; return plain data"
        )
        return pack_error(refusal, steps)
    return _join(OutcomeHead(VALUE, steps), body)


def pack_error(error: BaseException, steps: Progress | None, kind: str = ERROR) -> bytes:
    """Pack what the work raised; as text, if it cannot be unpickled."""
    strip_traceback(error)
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    head = OutcomeHead(kind, steps, _name_of(type(error)), text_of(error), trace)
    try:
        body = pack(error)
        if type(unpack(body)) is not type(error):
            body = b""
    except BaseException:  # noqa: BLE001 (from a user's class)
        body = b""
    return _join(head, body)


def pack_none(kind: str) -> bytes:
    """Pack that the work has not begun."""
    return _join(OutcomeHead(kind), b"")


def _name_of(kind: type[BaseException]) -> str:
    name = kind.__qualname__
    return name if kind.__module__ == "builtins" else f"{kind.__module__}.{name}"


def read_outcome(outcome: bytes) -> tuple[OutcomeHead, bytes]:
    """Read the head of an outcome; the rest is the value or error."""
    head, start = _split(outcome)
    return OutcomeHead(*head), outcome[start:]


def open_outcome(head: OutcomeHead, body: bytes, label: str) -> Any:
    """Return what the work returned, or raise what it raised; see ``Job.open()``."""
    if head.kind == VALUE:
        try:
            return unpack(body)
        except Exception as error:
            raise WorkerError(
                f"what the work of {label} returned cannot be read here: "
                f"{type(error).__name__}: {text_of(error)}"
            ) from error
    if head.kind == STAY:
        raise WorkerCancelled(f"{label} was cancelled before it began elsewhere")
    if head.kind == UNREAD:
        raise WorkerError(
            f"the work of {label} cannot be read where it was to run: "
            f"{head.type_name}: {head.text}; let its module be importable there, and put what a "
            'program runs under if __name__ == "__main__":'
        ) from FarTraceback(head.trace)
    if head.kind == UNHEARD:
        raise WorkerError(
            f"{label} was not begun, as this process cannot be reached from where it was to run: "
            f"{head.type_name}: {head.text}; the line is local to this machine"
        ) from FarTraceback(head.trace)
    raise _read_error(head, body)


def _read_error(head: OutcomeHead, body: bytes) -> BaseException:
    """Recreate the error of the work, with the traceback from there as its cause."""
    error: BaseException
    try:
        read = unpack(body) if body else None
    except Exception:  # noqa: BLE001 (its class may differ here)
        read = None
    error = read if isinstance(read, BaseException) else RemoteError(head.type_name, head.text)
    set_cause(error, FarTraceback(head.trace))
    return error
