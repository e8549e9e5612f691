"""The far side of work that runs elsewhere: the counterpart of the worker there.

It imports no event loop unless the work is async, so a new process is ready soon. It gets a
function that sends its messages home, and with the first one asks whether to begin.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import traceback
from contextvars import copy_context
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from creche._ground.context import current
from creche._ground.errors import WorkerCancelled, WorkerError
from creche._ground.options import check_text
from creche._ground.report import harmless, is_awaitable, text_of
from creche._ground.steps import check_steps, percent, track

from . import wire
from .job import call, check_no_generator, close_unawaited
from .tracing import take_trace

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator

T = TypeVar("T")
INTERVAL = 0.05
"""The least number of seconds between two messages about steps."""


def here() -> str:
    """Return where this is, for people."""
    return f"process {os.getpid()} on {platform.node()}"


class Far:
    """The counterpart of a worker where its work runs; ``get_current_worker()`` returns it there.

    An engine makes one from the bytes of ``Job.pack()``, and sends home what ``run()`` returns.

    Args:
        payload: What ``Job.pack()`` returned.
        send: Sends a message home, to ``Job.receive()``; called in any thread. The first message
            asks whether to begin: if ``send`` returns ``False``, or raises, the work is not called.
            If it raises later, the work is told to stop.
        begun: Whether home knows already that the work has begun: then it does not ask.
    """

    # For the core, if the work opens its own nodes: a worker that belongs to none of them.
    _is_far = True
    _handle = None
    _state = None

    def __init__(
        self, payload: bytes, send: Callable[[bytes], object], *, begun: bool = False
    ) -> None:
        self._payload = payload
        self._head, self._start = wire.read_job(payload)
        self._send = send
        self._has_begun = begun
        self._lock = threading.RLock()
        self._is_over = False
        self._completed = 0
        self._total: int | None = None
        self._description: str | None = None  # set when it is changed
        self._told_at = -INTERVAL
        self._timer: threading.Timer | None = None
        self._cancelled = threading.Event()
        self._reason: object = None
        self._stops: list[Callable[[], object]] = []

    def __repr__(self) -> str:
        return f"<Far {self._head.path!r}>"

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse attributes that only the worker itself has."""
        if name.startswith("_"):
            raise AttributeError(name)
        raise WorkerError(
            f"{self._head.label} runs elsewhere, where it has no {name!r}; do it at home: with "
            "what the work returns, or in a worker there"
        )

    # what is known of it

    @property
    def name(self) -> str:
        """The name of the worker."""
        return self._head.name

    @property
    def group(self) -> str:
        """The name of its group."""
        return self._head.group

    @property
    def description(self) -> str:
        """Its description, for people."""
        return self._head.description if self._description is None else self._description

    @property
    def path(self) -> str:
        """Where the worker belongs: ``path/group/name``."""
        return self._head.path

    # how far it is

    @property
    def completed_steps(self) -> int:
        """The number of completed steps."""
        return self._completed

    @property
    def total_steps(self) -> int | None:
        """The total number of steps; ``None`` if it is not known."""
        return self._total

    @property
    def progress(self) -> float:
        """How much is done, in percent from 0.0 to 100.0; 0.0 if the total is unknown or 0."""
        return percent(self._completed, self._total)

    def advance(self, steps: int = 1) -> None:
        """Add to the number of completed steps; reported home at most 20 times a second.

        Args:
            steps: How many to add.

        Raises:
            WorkerError: It is not a finite number.

        Threads:
            Any thread.
        """
        check_steps(steps)
        with self._lock:
            self._completed += steps
        self._tell_steps()

    def update(
        self,
        completed_steps: int | None = None,
        total_steps: int | None = -1,
        *,
        description: str | None = None,
    ) -> None:
        """Set the steps or the description, like ``Worker.update()``.

        Args:
            completed_steps: The number of completed steps; ``None`` leaves it unchanged.
            total_steps: The total; ``None`` if it is not known, -1 leaves it unchanged.
            description: What the work is doing now, for people; ``None`` leaves it unchanged.

        Raises:
            WorkerError: A number is not finite. Nothing is changed.

        Threads:
            Any thread.
        """
        for steps in (completed_steps, total_steps):
            if steps is not None:
                check_steps(steps)
        if description is not None:
            check_text("description", description)
        with self._lock:
            if completed_steps is not None:
                self._completed = completed_steps
            if total_steps != -1:
                self._total = None if total_steps is None else max(0, total_steps)
            if description is not None:
                self._description = description
        self._tell_steps()

    @overload
    def track(self, iterable: Iterable[T], total: int | None = None) -> Iterator[T]: ...

    @overload
    def track(self, iterable: AsyncIterable[T], total: int | None = None) -> AsyncIterator[T]: ...

    def track(
        self, iterable: Iterable[T] | AsyncIterable[T], total: int | None = None
    ) -> Iterator[T] | AsyncIterator[T]:
        """Iterate, and advance by one step after each item, like ``Worker.track()``.

        Args:
            iterable: What to iterate over.
            total: The number of items; by default what the iterable says.

        Returns:
            An iterator over the items.

        Raises:
            WorkerError: It is not iterable.
        """
        return track(self, iterable, total)

    def _tell_steps(self) -> None:
        """Send the progress home, now or when the interval has passed."""
        with self._lock:
            if self._is_over or self._timer is not None:
                return
            wait = self._told_at + INTERVAL - monotonic()
            if wait > 0:
                self._timer = threading.Timer(wait, self._tell_late)
                self._timer.start()
                return
        self._tell_now()

    def _tell_late(self) -> None:
        with self._lock:
            self._timer = None
        self._tell_now()

    def _tell_now(self) -> None:
        with self._lock:
            if self._is_over:
                return
            self._told_at = monotonic()
            steps = self._steps()
        self._carry(wire.message(wire.STEPS, *steps))

    def _steps(self) -> wire.Progress:
        return self._completed, self._total, self._description

    def _carry(self, message: bytes) -> None:
        """Send a message home; if that fails, nothing waits for the work, so it is stopped."""
        try:
            self._send(message)
        except Exception as error:  # noqa: BLE001 (the engine's)
            self.stop(f"home cannot be reached: {text_of(error)}")

    # whether it was cancelled

    @property
    def is_cancelled(self) -> bool:
        """Whether cancellation was requested, as far as this side knows."""
        return self._cancelled.is_set()

    @property
    def cancel_reason(self) -> object:
        """The reason that was given, as text."""
        return self._reason

    @property
    def cancelled_event(self) -> threading.Event:
        """An event that is set when this side learns that cancellation was requested."""
        return self._cancelled

    def check_cancelled(self) -> None:
        """Raise an error if cancellation was requested.

        Raises:
            WorkerCancelled: It was. Let it leave the work, and the worker ends CANCELLED.

        Threads:
            Any thread.
        """
        if self.is_cancelled:
            raise WorkerCancelled(self._tell_cancelled())

    def _tell_cancelled(self) -> str:
        reason = "" if self._reason is None else f": {self._reason}"
        return f"{self._head.label} was cancelled{reason}"

    def stop(self, reason: object = None) -> None:
        """Tell the work that its worker was cancelled; for engines. Only the first call counts.

        Async work is cancelled at its next checkpoint; other work has to ask.

        Args:
            reason: Why.

        Threads:
            Any thread.
        """
        with self._lock:
            if self._cancelled.is_set():
                return
            self._reason = reason
            self._cancelled.set()
            stops, self._stops = self._stops, []
        for stop in stops:
            stop()

    def _on_stop(self, stop: Callable[[], object]) -> None:
        with self._lock:
            if not self._cancelled.is_set():
                self._stops.append(stop)
                return
        stop()

    # running it

    def run(self) -> bytes:
        """Run the work and return the outcome; it never raises.

        Returns:
            The outcome, for ``Job.open()``.

        Threads:
            Any thread, which is blocked meanwhile. Async work gets its own event loop in it.
        """
        try:
            return copy_context().run(self._run)
        except BaseException as error:  # noqa: BLE001 (a bug of ours, or a Ctrl+C at the wrong line)
            return wire.pack_error(error, None)
        finally:
            self._end()

    def _end(self) -> None:
        with self._lock:
            self._is_over = True
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            timer.join()

    def _run(self) -> bytes:
        current.set(self)
        take_trace(self._head.trace)
        try:
            work = wire.unpack(self._payload, self._start)
        except BaseException as error:  # noqa: BLE001 (reported at home)
            return wire.pack_error(error, None, wire.UNREAD)
        self._payload = b""
        if not self._has_begun:
            try:
                if self._send(wire.message(wire.BEGIN, here())) is False:
                    return wire.pack_none(wire.STAY)
            except Exception as error:  # noqa: BLE001 (the engine's)
                return wire.pack_error(error, None, wire.UNHEARD)
        with telling(self):
            try:
                value = self._call(work)
            except BaseException as error:  # noqa: BLE001 (raised at home)
                return wire.pack_error(error, self._steps())
        return wire.pack_value(value, self._steps())

    def _call(self, work: Any) -> object:
        value: object = None
        try:
            value = call(work)
            if is_awaitable(value):
                from .own_loop import on_own_loop  # noqa: PLC0415 (imports AnyIO)

                return on_own_loop(self._head.label, self._on_stop, value, self._head.backend)
            check_no_generator(value, lambda: self._head.label)
            return value
        finally:
            close_unawaited(value)


# the log


class _HomeHandler(logging.Handler):
    """Sends log records home, to the logger of the same name there."""

    def __init__(self) -> None:
        super().__init__()
        self.fars: list[Far] = []

    def emit(self, record: logging.LogRecord) -> None:
        far = current.get(None)
        if not isinstance(far, Far):  # a thread that the work started
            far = self.fars[0] if len(self.fars) == 1 else None
        if far is not None and far in self.fars:
            far._carry(wire.message(wire.LOG, _plain(record)))


_handler: _HomeHandler | None = None
_handler_lock = threading.Lock()


class telling:  # noqa: N801 (a block)
    """Send the log records of the work home while the block is open, unless this is home."""

    def __init__(self, far: Far) -> None:
        self._far = far

    def __enter__(self) -> None:
        if self._far._head.home != wire.whoami():
            _handler_for(self._far._head.level).fars.append(self._far)

    def __exit__(self, *_: object) -> None:
        if _handler is not None and self._far in _handler.fars:
            _handler.fars.remove(self._far)


def _handler_for(level: int) -> _HomeHandler:
    """Return the handler of this process; if logging is not set up, use home's level."""
    global _handler  # noqa: PLW0603 (there is one root logger)
    root = logging.getLogger()
    with _handler_lock:
        if _handler is None:
            _handler = _HomeHandler()
            root.addHandler(_handler)
        if root.handlers == [_handler]:
            root.setLevel(level)
        return _handler


_LONGEST = 100_000  # characters of a text in a record
_PLAIN = (str, int, float, bool, type(None))
_NOT_SENT = ("args", "exc_info", "msg", "message", "exc_text")


def _plain(record: logging.LogRecord) -> dict[str, Any]:
    """Return a record as plain data."""
    told = {
        key: value[:_LONGEST] if isinstance(value, str) else value
        for key, value in vars(record).items()
        if key not in _NOT_SENT and type(value) in _PLAIN
    }
    with harmless:
        told["msg"] = record.getMessage()[:_LONGEST]
    told.setdefault("msg", text_of(record.msg))
    if record.exc_info and record.exc_info[1] is not None:
        lines = traceback.format_exception(*record.exc_info)
        told["exc_text"] = "".join(lines).rstrip("\n")[-_LONGEST:]
    return told
