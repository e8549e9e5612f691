"""A call as text: a function with its arguments, as it was written."""

from __future__ import annotations

from functools import partial
from reprlib import Repr
from typing import TYPE_CHECKING, Any

from .report import shown

if TYPE_CHECKING:
    from collections.abc import Callable


class Call:
    """A call as text, formatted when it is first read: ``repr()`` may be expensive."""

    __slots__ = ("_args", "_called", "_kwargs")

    def __init__(self, called: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._called = called
        self._args = args
        self._kwargs = kwargs

    def __call__(self) -> str:
        return self._tell(_short.repr)

    def condensed(self) -> str:
        """Format the call once it is over, without calling ``repr()`` of the user's objects."""
        return self._tell(_tell_plain)

    def _tell(self, tell: Callable[[Any], str]) -> str:
        told = [tell(value) for value in self._args]
        told += [f"{key}={tell(value)}" for key, value in self._kwargs.items()]
        return f"{self._called}({', '.join(told)})"


class _Short(Repr):
    """Like ``reprlib``, but never reads more of a value than it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.maxother = self.maxstring = _LONGEST

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, str | bytes | bytearray):
            return shown(x, _LONGEST)
        return super().repr1(x, level)

    def repr_instance(self, x: Any, level: int) -> str:  # noqa: ARG002 (the base class's)
        return shown(x, _LONGEST)


def call_of(work: object) -> str:
    """Format work that was given as a partial; empty for other work.

    It does not call ``repr()`` of the user's objects.
    """
    if not isinstance(work, partial):
        return ""
    name = getattr(work.func, "__name__", None)
    called = name if isinstance(name, str) else shown(work.func, 100)
    return Call(called, work.args, work.keywords).condensed()


_LONGEST = 100  # characters of an argument
_short = _Short()
_PLAIN = (str, bytes, bytearray, int, float, complex, bool, type(None))


def _tell_plain(value: object) -> str:
    return shown(value, _LONGEST) if type(value) in _PLAIN else f"<{type(value).__name__}>"
