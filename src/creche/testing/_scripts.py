"""Scripts for work: what it does, step by step, and a log of what it did.

A script is data; ``Play`` is one performance of it, to be passed to a worker as its work. A test
believes the log, not what the worker says about itself.
"""

from __future__ import annotations

import enum
import inspect
import sys
import threading
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import anyio
from anyio import lowlevel

from creche._ground.bridge import run_soon

if TYPE_CHECKING:
    from collections.abc import Callable

if sys.version_info < (3, 11):  # pragma: no cover (one of the two branches runs on any version)
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

_RENDEZVOUS = 20.0
"""Seconds after which a thread that nobody lets go gives up: a failure, never a delay."""


class Ending(enum.Enum):
    """How scripted work ends if nothing else happens."""

    RETURN = "return"
    """It returns ``Play.value``."""
    RAISE = "raise"
    """It raises a ``ScriptError``."""
    RAISE_BASE = "raise base"
    """It raises a ``ScriptBaseError``, which is not an ``Exception``."""
    FROZEN = "raise frozen"
    """It raises a ``ScriptError`` that is a frozen dataclass: nothing can be set on it, and it
    equals others."""
    FROZEN_BASE = "raise frozen base"
    """The same, with a ``ScriptBaseError``."""
    STUBBORN = "raise stubborn"
    """It raises a ``ScriptError`` whose ``str()``, ``add_note()`` and ``__notes__`` raise."""
    GROUP = "raise group"
    """It raises a group with a ``ScriptError`` in it, whose ``split()`` and ``derive()`` raise.
    If a cancellation is being handled, the group contains that too."""


class OnCancel(enum.Enum):
    """What scripted work does when it is cancelled."""

    OBEY = "obey"
    """It unwinds at once."""
    RESIST = "resist"
    """It unwinds after some shielded checkpoints."""
    HOLD = "hold"
    """It unwinds after ``Play.let_go()``."""
    SWALLOW = "swallow"
    """It returns ``Play.value`` anyway."""
    RAISE = "raise"
    """It raises a ``ScriptError``."""
    RAISE_WITHIN = "raise within"
    """It raises where it catches the cancellation: the error of its end, or a ``ScriptError``."""
    RAISE_FINALLY = "raise finally"
    """The same in a ``finally``, after some shielded checkpoints."""


class ScriptError(Exception):
    """The error of scripted work."""


class ScriptBaseError(BaseException):
    """The error of scripted work that is not an ``Exception``, like ``SystemExit``."""


@dataclass(frozen=True)
class _FrozenError(ScriptError):
    text: str = field(compare=False)


@dataclass(frozen=True)
class _FrozenBaseError(ScriptBaseError):
    text: str = field(compare=False)


class _StubbornError(ScriptError):
    def _refuse(self, *_: object) -> Any:
        raise TypeError("this error has nothing done to it")

    __notes__: Any = property(_refuse)
    __str__ = __setattr__ = add_note = _refuse


class _Whole:
    def _refuse(self, *_: object) -> Any:
        raise TypeError("this group stays whole")

    split = derive = _refuse


class _Group(_Whole, ExceptionGroup[Exception]):
    pass


class _BaseGroup(_Whole, BaseExceptionGroup[BaseException]):
    pass


_ERRORS: dict[Ending, type[ScriptError | ScriptBaseError]] = {
    Ending.RAISE: ScriptError,
    Ending.RAISE_BASE: ScriptBaseError,
    Ending.FROZEN: _FrozenError,
    Ending.FROZEN_BASE: _FrozenBaseError,
    Ending.STUBBORN: _StubbornError,
    Ending.GROUP: ScriptError,
}


@dataclass(frozen=True, repr=False)
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
    """How many shielded checkpoints there are, if it resists."""

    def __repr__(self) -> str:
        values = ((each, getattr(self, each.name)) for each in fields(self))
        # The text of an enum is its name: what is told can be pasted into a program.
        told = (f"{each.name}={value}" for each, value in values if value != each.default)
        return f"Script({', '.join(told)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ARG002 (so it is called)
        """Be one line of what Hypothesis reports."""
        printer.text(repr(self))


class Play:
    """A performance of a script. Pass it, or its ``in_thread``, to a worker as the work.

    Args:
        script: What to do.
        name: A name for error messages.
        noted: Called with each entry of the log, when it is made.
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
        """What it raised; of a group, the one in it that is an error."""
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
        """Whether the work has started."""
        return bool(self.log)

    @property
    def is_inside(self) -> bool:
        """Whether the work has started and not ended."""
        return bool(self.log) and self.log[-1] not in ENDS

    def open_gate(self) -> None:
        """Let the work pass the gate, now or when it gets there.

        Threads:
            Any.
        """
        self._gate.set()
        self._wake()

    def let_go(self) -> None:
        """Let the work unwind, if it was cancelled and resists.

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

    def _note_raised(self, error: BaseException) -> None:
        meant = self.errors[-1] if self.errors else error
        self._note("raised" if isinstance(meant, Exception) else "raised base")

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
            self._note_raised(error)
            raise
        self._note("returned")
        return value

    async def _act(self, cancelled: type[BaseException]) -> object:
        try:
            await self._go()
        except cancelled as cancellation:
            self._note("cancelled")
            if self.script.on_cancel is OnCancel.SWALLOW:
                return self.value
            if self.script.on_cancel is OnCancel.RAISE_WITHIN:
                self._fail(cancellation)
            if self.script.on_cancel is not OnCancel.RAISE:
                try:
                    with anyio.CancelScope(shield=True):
                        await self._hold_on()
                    raise
                finally:
                    if self.script.on_cancel is OnCancel.RAISE_FINALLY:
                        self._fail(cancellation)
        else:
            return self._end(self.script.ending)
        return self._end(Ending.RAISE)  # out of the handler: the cancellation is not its context

    async def _go(self) -> None:
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

    def _fail(self, *cancellation: BaseException) -> None:
        """Raise, come what may: that is how the clean-up of many a program fails."""
        ending = self.script.ending
        try:
            self._end(Ending.RAISE if ending is Ending.RETURN else ending, *cancellation)
        finally:
            del cancellation, self  # this frame is in the traceback of the error

    async def _hold_on(self) -> None:
        if self.script.on_cancel in {OnCancel.RESIST, OnCancel.RAISE_FINALLY}:
            for _ in range(self.script.unwinding):
                await lowlevel.checkpoint()
        elif self.script.on_cancel is OnCancel.HOLD:
            await self._until(self._free)

    def _end(self, ending: Ending, *beside: BaseException) -> object:
        if ending is Ending.RETURN:
            return self.value
        error: Any = _ERRORS[ending](f"the script of {self.__name__} says so")
        self.errors.append(error)
        if ending is Ending.GROUP:
            told = "a script"
            error = _BaseGroup(told, [*beside, error]) if beside else _Group(told, [error])
        try:
            raise error
        finally:
            del error, beside, self

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
            self._note_raised(error)
            raise
        self._note("returned")
        return value


ENDS = frozenset({"returned", "raised", "raised base", "unwound"})
"""The last entries of a log."""
