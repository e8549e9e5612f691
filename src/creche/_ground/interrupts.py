"""How the steps of the library are protected from a Ctrl+C on Trio.

Trio raises KeyboardInterrupt wherever the main thread is, unless the code is protected:
https://trio.readthedocs.io/en/stable/reference-core.html#exceptions-and-warnings. All of the core
is protected, except the few functions that call the user's code; these are marked.
"""

from __future__ import annotations

import sys
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

ArgT = TypeVar("ArgT")
ResultT = TypeVar("ResultT")

_interruptible: list[CodeType] = []
_protected = False


def interruptible(function: FunctionT) -> FunctionT:
    """Mark a function that calls the user's code: on Trio, a Ctrl+C may interrupt it.

    It must be safe to interrupt at any line.
    """
    _interruptible.append(cast("FunctionType", function).__code__)
    return function


@interruptible
def call_users(function: Callable[[ArgT], ResultT], argument: ArgT) -> ResultT:
    """Call a user's function from a step of the library."""
    return function(argument)


@interruptible
async def await_users(awaitable: Awaitable[ResultT]) -> ResultT:
    """Await a user's awaitable in a step of the library."""
    return await awaitable


class _Code:
    """What Trio's decorators take: something with a ``__code__``."""

    def __init__(self, code: CodeType) -> None:
        self.__code__ = code


def keep_interrupts_out(enable: Callable[[Any], Any], disable: Callable[[Any], Any]) -> None:
    """Protect all code of the core from a Ctrl+C, except the marked functions.

    Args:
        enable: Trio's decorator that protects a function.
        disable: Trio's decorator that lets a Ctrl+C interrupt one.
    """
    global _protected  # noqa: PLW0603 (done once, by the first node on Trio)
    if _protected:
        return
    core = "creche._"
    for name, module in list(sys.modules.items()):
        if name.startswith(core):
            for code in _codes(module):
                enable(_Code(code))
    for code in _interruptible:
        disable(_Code(code))
    _protected = True


_FOLDER = __file__.rpartition("_ground")[0]
_PARTS = ("__func__", "fget", "fset")  # of static and class methods, and of properties


def _codes(scope: object) -> Iterator[CodeType]:
    """Yield the code of all functions of this package that a module or a class defines."""
    for value in list(vars(scope).values()):
        if isinstance(value, type) and value.__module__.partition(".")[0] == "creche":
            yield from _codes(value)
        for function in (value, *(getattr(value, part, None) for part in _PARTS)):
            code = getattr(function, "__code__", None)
            if isinstance(code, CodeType) and code.co_filename.startswith(_FOLDER):
                yield from _nested(code)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
