"""Calls into an event loop from other threads and from signal handlers.

A Python signal handler runs in the main thread between any two steps of the program: while the loop
sleeps in its selector, or in the middle of a step of the library or of the backend. So being in the
thread of the loop is not enough to make a call at once. It is made at once in a task of the loop,
unless it interrupts one of the library's own steps, which are marked (``Steps``). All other calls
are posted, as from another thread, which also wakes a loop that sleeps.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswerYet
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakSet

import anyio
from anyio import lowlevel

from .errors import WorkerError, strip_traceback
from .report import tell

if TYPE_CHECKING:
    from collections.abc import Callable

    from .backend import Backend

T = TypeVar("T")

_ERROR = 40  # logging's number
_PATIENCE = 1.0
"""Seconds after which a thread that waits for an answer checks whether the loop has ended."""


def run_soon(token: lowlevel.EventLoopToken, call: Callable[[], object]) -> bool:
    """Make a call on an event loop, from any thread, without waiting for it.

    Args:
        token: The token of the loop.
        call: What to call; an exception that it raises is logged, as it would end a Trio run.

    Returns:
        ``False`` if the loop has ended already.
    """

    def guarded() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 (logged, see above)
            tell(_ERROR, "a call from another thread failed on the event loop", error=error)

    try:
        # This is call_soon_threadsafe() or run_sync_soon(); AnyIO's public functions all wait for
        # the call.
        token.backend_class.run_sync_soon(guarded, (), token.native_token)
    except anyio.RunFinishedError:
        return False
    return True


def backend_name(token: lowlevel.EventLoopToken) -> str:
    """Return AnyIO's name of the backend of a loop."""
    return _backend_name(token.backend_class.__module__)


@cache
def _backend_name(module: str) -> str:
    return next(name for name in anyio.get_all_backends() if name in module)


class _Raised:
    """An answer: the call raised an error. It is emptied when the thread raises that.

    A future evaluates ``bool(exception)``, which may raise for a user's error.
    """

    __slots__ = ("kept",)

    def __init__(self, error: BaseException) -> None:
        self.kept = [error]


def await_answer(future: Future[T], token: lowlevel.EventLoopToken) -> T:
    """Wait in a thread for the result of a posted call; a loop that was closed never sends one.

    Raises:
        WorkerError: The loop has ended without making the call.
        BaseException: What the call raised.
    """
    answer: Any = None
    while True:
        try:
            answer = future.result(_PATIENCE)
            break
        except NoAnswerYet:
            if not future.done() and not run_soon(token, int):
                raise WorkerError(
                    "the event loop has ended and did not make the call of this thread"
                ) from None
    if type(answer) is _Raised:
        # The frames that made the call refer to the future: see errors: frames.
        raise answer.kept.pop()
    return cast("T", answer)


class Steps:
    """The steps of the library that are in progress in one thread, of any node."""

    __slots__ = ("busy",)

    def __init__(self) -> None:
        self.busy = 0
        """How many, each nested in the one before."""

    def __enter__(self) -> None:
        self.busy += 1

    def __exit__(self, *_: object) -> None:
        self.busy -= 1


_steps: dict[int, Steps] = {}  # by thread


class Bridge:
    """The way into the event loop of one nursery, open as long as the nursery is.

    Everything that was posted while it was open arrives: the nursery does not close before that.

    Args:
        landed: Called on the loop after each arrival.
    """

    __slots__ = (
        "__weakref__",
        "_arriving",
        "_backend",
        "_is_open",
        "_landed",
        "_lock",
        "_token",
        "in_flight",
        "is_gone",
        "steps",
        "thread",
    )

    def __init__(self, landed: Callable[[], None]) -> None:
        self._lock = threading.RLock()  # a signal handler may run while it is held
        self._is_open = False
        self._landed = landed
        self.thread: int | None = None
        """The thread of the loop, once it is known."""
        self.is_gone = False
        """Whether this process was forked from that of the loop."""
        self._token: lowlevel.EventLoopToken | None = None
        self._backend: Backend | None = None
        self.in_flight = 0
        self.steps = Steps()
        """Those in progress in the thread of the loop."""
        self._arriving = False

    def open(self, backend: Backend) -> None:
        """Connect the bridge to the running loop and the current thread."""
        self._backend = backend
        self._token = lowlevel.current_token()
        self.thread = threading.get_ident()
        self.steps = _steps.setdefault(self.thread, self.steps)
        self._is_open = True
        _open_bridges.add(self)

    def close(self) -> bool:
        """Close for good, unless a call is in flight: then do nothing and return ``False``."""
        with self._lock:
            self._is_open = False  # first, in case a signal handler posts in between
            self._is_open = self.in_flight > 0
            return not self._is_open

    @property
    def token(self) -> lowlevel.EventLoopToken:
        """The token of the loop."""
        assert self._token is not None, "the bridge was never opened"
        return self._token

    @property
    def is_foreign(self) -> bool:
        """Whether the caller is in a thread other than the loop's, once the loop is known."""
        return self.thread is not None and self.thread != threading.get_ident()

    @property
    def is_elsewhere(self) -> bool:
        """Whether the caller is in no task of the loop, and so cannot await anything on it.

        It is in another thread, another loop in the same thread, a bare callback or a signal
        handler.
        """
        if self._backend is None:
            return False
        return self.thread != threading.get_ident() or self._backend.get_task() is None

    def can_act(self) -> bool:
        """Whether a call can be made at once: in a task of the loop, and not during a busy step."""
        if self._backend is None:
            return True  # there is no loop yet
        if self.thread != threading.get_ident() or self.steps.busy:
            return False
        return self._arriving or self._backend.get_task() is not None

    def post(
        self,
        call: Callable[[], object],
        lost: Callable[[BaseException], object] | None = None,
        *,
        to: Bridge | None = None,
    ) -> bool:
        """Make a call on the loop soon.

        Args:
            call: What to call.
            lost: Called with the error if the call is interrupted, so that nothing waits for it.
            to: The bridge of a node below that the call is for and that is not open yet: if it is
                opened meanwhile, it does not close before the call either.

        Returns:
            Whether it will: ``False`` before the bridge is open and after it was closed.
        """
        ways = [self] if to is None or to is self else [self, to]

        def arrive() -> None:
            nonlocal lost
            try:
                self._arrive(call)
            except BaseException as error:
                if lost is not None:
                    lost(error)
                raise
            finally:
                lost = None  # see errors: frames
                for way in ways:
                    way._lose_one()
                for way in ways:
                    way._land()

        counted, is_posted = 0, False
        try:
            for way in ways:
                with way._lock:
                    if way is self and not self._is_open:
                        return False
                    way.in_flight, counted = way.in_flight + 1, counted + 1  # in one line
            is_posted = run_soon(self.token, arrive)
        finally:
            if not is_posted:
                for way in ways[:counted]:
                    way._lose_one()
        return is_posted

    def _arrive(self, call: Callable[[], object]) -> None:
        was_arriving, self._arriving = self._arriving, True
        try:
            call()
        finally:
            self._arriving = was_arriving

    def _land(self) -> None:
        try:
            self._landed()
        except BaseException:
            self._landed()  # otherwise nothing would check whether calls are in flight
            raise

    def _lose_one(self) -> None:
        with self._lock:
            self.in_flight -= 1

    def run(self, call: Callable[[], object]) -> None:
        """Make a call that returns nothing: at once if that is safe or there is no loop, or soon.

        Once the bridge is closed, nothing is left that a call from elsewhere could act on, so it is
        not made.
        """
        if self.can_act():
            call()
        else:
            self.post(call)

    def call(self, call: Callable[[], T]) -> T:
        """Make a call on the loop and return its value; directly if this is the loop's thread.

        Once the bridge is closed, the call is made in the calling thread: it raises the error, and
        must not touch the loop.

        Raises:
            BaseException: What the call raised.
        """
        if not self.is_foreign:
            return call()
        future: Future[T] = Future()
        if not self.post(partial(_answer, call, future), partial(fail, future)):
            return call()
        return await_answer(future, self.token)


def _answer(call: Callable[[], T], future: Future[T]) -> None:
    """Make a call on the loop, and send its result to the thread that waits."""
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 (it belongs to the calling thread)
        fail(future, error)


def fail(future: Future[Any], error: BaseException) -> None:
    """Send an error to the thread that waits, unless it has an answer."""
    strip_traceback(error)
    if not future.done():
        future.set_result(_Raised(error))


_open_bridges: WeakSet[Bridge] = WeakSet()


def _forget_loops() -> None:  # pragma: no cover (in a forked child, whose coverage is lost)
    """In a forked child: the parent's loops do not run here, and no lock is held."""
    for bridge in list(_open_bridges):
        bridge._lock = threading.RLock()
        bridge._is_open = False
        bridge.is_gone = True
        bridge.thread = -1  # no thread's


if hasattr(os, "register_at_fork"):  # pragma: no branch (absent on Windows)
    os.register_at_fork(after_in_child=_forget_loops)
