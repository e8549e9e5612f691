"""Scripts for work: what it does, step by step, and a log of what it did.

A script is data; ``Play`` is one performance of it, to be given to a worker as its work. The log
is what a test believes: not what the worker tells of itself.
"""

from __future__ import annotations

import enum
import inspect
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
from anyio import lowlevel

from creche._bridge import run_soon

if TYPE_CHECKING:
    from collections.abc import Callable

_RENDEZVOUS = 20.0
"""Seconds after which a thread that nobody lets go gives up: a failure, never a delay."""


class Ending(enum.Enum):
    """How scripted work ends if nothing else happens."""

    RETURN = "return"
    """It returns ``Play.value``."""
    RAISE = "raise"
    """It raises a ``ScriptError``."""
    RAISE_BASE = "raise base"
    """It raises a ``ScriptBaseError``, which is no ``Exception``."""


class OnCancel(enum.Enum):
    """What scripted work does when it is cancelled."""

    OBEY = "obey"
    """It unwinds at once."""
    RESIST = "resist"
    """It unwinds after some shielded checkpoints."""
    HOLD = "hold"
    """It unwinds once it is let go, see ``Play.let_go()``."""
    SWALLOW = "swallow"
    """It returns ``Play.value`` all the same."""
    RAISE = "raise"
    """It raises a ``ScriptError``."""


class ScriptError(Exception):
    """The error of scripted work."""


class ScriptBaseError(BaseException):
    """The error of scripted work that is no ``Exception``, as ``SystemExit`` is not."""


@dataclass(frozen=True)
class Script:
    """What work does: some checkpoints, a gate, some checkpoints, an end."""

    before: int = 0
    """Checkpoints before the gate."""
    gated: bool = True
    """Whether to wait at the gate for ``Play.open_gate()``."""
    after: int = 0
    """Checkpoints after the gate."""
    ending: Ending = Ending.RETURN
    """How it ends."""
    on_cancel: OnCancel = OnCancel.OBEY
    """What it does when it is cancelled."""
    unwinding: int = 1
    """Shielded checkpoints, where it resists."""


class Play:
    """A performance of a script: give it, or its ``in_thread``, to a worker as the work.

    Args:
        script: What to do.
        name: A name for error messages.
        noted: Called with each entry of the log, where it happens.
    """

    def __init__(
        self, script: Script, name: str = "play", noted: Callable[[str], object] | None = None
    ) -> None:
        self.script = script
        self.__name__ = name
        self.log: list[str] = []
        """What was done: ``"entered"``, ``"at the gate"``, ``"cancelled"``, and last one of
        ``"returned"``, ``"raised"``, ``"raised base"``, ``"unwound"``."""
        self.value: object = object()
        """What it returns if it does."""
        self.errors: list[BaseException] = []
        """What it raised."""
        self.arrived: threading.Event = threading.Event()
        """Set when the work is at its gate, or past it."""
        self.left: threading.Event = threading.Event()
        """Set when the work has left."""
        self.then: Callable[[], object] | None = None
        """What more to do past the gate, where a script is not enough; an awaitable is awaited."""
        self.thread: threading.Thread | None = None
        """The thread that ``in_thread`` was called in."""
        self._noted = noted
        self._gate = threading.Event()
        self._free = threading.Event()
        self._wakers: list[tuple[anyio.Event, int, lowlevel.EventLoopToken]] = []

    def __repr__(self) -> str:
        return f"<Play {self.__name__!r}: {', '.join(self.log) or 'not entered'}>"

    @property
    def is_entered(self) -> bool:
        """Whether the work was ever entered."""
        return bool(self.log)

    @property
    def is_inside(self) -> bool:
        """Whether the work has been entered and has not left."""
        return bool(self.log) and self.log[-1] not in ENDS

    def open_gate(self) -> None:
        """Let the work pass the gate, now or when it comes there.

        Threads:
            Any.
        """
        self._gate.set()
        self._wake()

    def let_go(self) -> None:
        """Let the work unwind, if it was cancelled and holds on.

        Threads:
            Any.
        """
        self._free.set()
        self._wake()

    def _wake(self) -> None:
        wakers, self._wakers = self._wakers, []
        for event, thread, token in wakers:
            if thread == threading.get_ident():
                event.set()
            else:  # async work in a thread has a loop of its own
                run_soon(token, event.set)

    async def _until(self, flag: threading.Event) -> None:
        while not flag.is_set():
            waker = anyio.Event()
            self._wakers.append((waker, threading.get_ident(), lowlevel.current_token()))
            # It may have been set in another thread just now.
            if not flag.is_set():  # pragma: no branch (as fast as that no test is)
                await waker.wait()

    def _note(self, what: str) -> None:
        self.log.append(what)
        if what in ENDS:
            self.left.set()
        if self._noted is not None:
            self._noted(what)

    async def __call__(self) -> object:
        """Do what the script says."""
        self._note("entered")
        cancelled = anyio.get_cancelled_exc_class()
        try:
            value = await self._act(cancelled)
        except cancelled:
            self._note("unwound")
            raise
        except BaseException as error:
            self._note("raised" if isinstance(error, Exception) else "raised base")
            raise
        self._note("returned")
        return value

    async def _act(self, cancelled: type[BaseException]) -> object:
        try:
            for _ in range(self.script.before):
                await lowlevel.checkpoint()
            self._note("at the gate")
            self.arrived.set()
            if self.script.gated:
                await self._until(self._gate)
            more = self.then() if self.then is not None else None
            if inspect.isawaitable(more):
                await more
            for _ in range(self.script.after):
                await lowlevel.checkpoint()
        except cancelled:
            self._note("cancelled")
            if self.script.on_cancel is OnCancel.SWALLOW:
                return self.value
            if self.script.on_cancel is not OnCancel.RAISE:
                with anyio.CancelScope(shield=True):
                    await self._hold_on()
                raise
        else:
            return self._end(self.script.ending)
        return self._end(Ending.RAISE)  # out of the handler: the cancellation is not its context

    async def _hold_on(self) -> None:
        if self.script.on_cancel is OnCancel.RESIST:
            for _ in range(self.script.unwinding):
                await lowlevel.checkpoint()
        elif self.script.on_cancel is OnCancel.HOLD:
            await self._until(self._free)

    def _end(self, ending: Ending) -> object:
        if ending is Ending.RETURN:
            return self.value
        kind = ScriptError if ending is Ending.RAISE else ScriptBaseError
        error = kind(f"the script of {self.__name__} says so")
        self.errors.append(error)
        try:
            raise error
        finally:
            del error, self

    def in_thread(self) -> object:
        """Do what the script says, in a thread; its checkpoints do nothing there."""
        self.thread = threading.current_thread()
        self._note("entered")
        self._note("at the gate")
        self.arrived.set()
        try:
            if self.script.gated and not self._gate.wait(_RENDEZVOUS):
                raise AssertionError(f"nobody opened the gate of {self.__name__}")
            if self.then is not None:
                self.then()
            value = self._end(self.script.ending)
        except BaseException as error:
            self._note("raised" if isinstance(error, Exception) else "raised base")
            raise
        self._note("returned")
        return value


ENDS = frozenset({"returned", "raised", "raised base", "unwound"})
"""The last entries of a log."""
