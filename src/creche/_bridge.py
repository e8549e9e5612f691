"""Hops from other threads into an event loop."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio import lowlevel

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
_logger = logging.getLogger("creche")


def run_soon(token: lowlevel.EventLoopToken, call: Callable[[], object]) -> bool:
    """Have an event loop make a call, from any thread and without waiting for it.

    Args:
        token: Stands for the loop.
        call: What to call; an exception of its own is logged, as it would end a Trio run.

    Returns:
        ``False`` if the loop has ended already.
    """

    def guarded() -> None:
        try:
            call()
        except BaseException:
            _logger.exception("a call from another thread failed on the event loop")

    try:
        # The backends' own way (call_soon_threadsafe, run_sync_soon); AnyIO's public functions
        # all wait for the call.
        token.backend_class.run_sync_soon(guarded, (), token.native_token)
    except anyio.RunFinishedError:
        return False
    return True


class Bridge:
    """The way into the event loop of one nursery, open from its first to its last moment.

    What was sent while it was open does arrive: the nursery does not close before.

    Args:
        landed: Called on the loop after each arrival.
    """

    __slots__ = ("_is_open", "_landed", "_lock", "_token", "in_flight", "thread")

    def __init__(self, landed: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._is_open = False
        self._landed = landed
        self.thread: int | None = None
        """The thread of the loop, once it is known."""
        self._token: lowlevel.EventLoopToken | None = None
        self.in_flight = 0

    def open(self) -> None:
        """Take the running loop and the current thread as the far end."""
        self._token = lowlevel.current_token()
        self.thread = threading.get_ident()
        self._is_open = True

    def close(self) -> bool:
        """Close for good, unless something is on its way: then do nothing and return ``False``."""
        with self._lock:
            if self.in_flight:
                return False
            self._is_open = False
            return True

    @property
    def token(self) -> lowlevel.EventLoopToken:
        """Stands for the loop."""
        assert self._token is not None, "the bridge was never opened"
        return self._token

    @property
    def is_foreign(self) -> bool:
        """Whether the caller is in another thread than the loop's, once the loop is known."""
        return self.thread is not None and self.thread != threading.get_ident()

    def post(self, call: Callable[[], object]) -> bool:
        """Have the loop make a call soon.

        Returns:
            Whether it will: ``False`` before the bridge is open and after it was closed.
        """

        def arrive() -> None:
            with self._lock:
                self.in_flight -= 1
            try:
                call()
            finally:
                self._landed()

        with self._lock:
            if not self._is_open:
                return False
            self.in_flight += 1
        if run_soon(self.token, arrive):
            return True
        with self._lock:
            self.in_flight -= 1
        return False

    def run(self, call: Callable[[], object]) -> None:
        """Make a call that returns nothing: now if on the loop or if there is none, else soon."""
        if self.thread == threading.get_ident() or not self.post(call):
            call()

    def call(self, call: Callable[[], T]) -> T | None:
        """Make a call on the loop and wait for its value: at once if on the loop or there is none.

        Raises:
            BaseException: What the call raised.
        """
        if not self.is_foreign:
            return call()
        future: Future[T] = Future()

        def run() -> None:
            try:
                value = call()
            except BaseException as error:  # noqa: BLE001 (it belongs to the calling thread)
                future.set_exception(error)
            else:
                future.set_result(value)

        if not self.post(run):
            return call()  # closed: the call itself is what says so
        return future.result()
