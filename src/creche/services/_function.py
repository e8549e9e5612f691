"""What can be a service: a function, async or plain, that can be called again without arguments."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from creche import WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable


def check_function(fn: object) -> bool:
    """Tell whether a function is an async one.

    Raises:
        WorkerError: It is not certain, or it is no function that can be called again.
    """
    if inspect.isawaitable(fn):
        name = getattr(fn, "__name__", "fn")
        if inspect.iscoroutine(fn):
            fn.close()  # nobody awaits it
        raise WorkerError(
            f"service() takes a function, to be called for each attempt, not {fn!r:.100}, which "
            f"runs once; give {name}, or functools.partial({name}, ...) if there are arguments"
        )
    if not callable(fn) or isinstance(fn, type):
        raise WorkerError(f"service() takes a function, async or plain, not {fn!r:.100}")
    _check_parameters(fn)
    if is_async(fn):
        return True
    for each in _layers(fn):
        if inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each):
            raise WorkerError(
                f"{name_of(fn)}() is a generator, of which nothing would run; iterate over it "
                "in a function, and give that"
            )
    if not inspect.isroutine(_layers(fn)[-1]):
        raise WorkerError(
            f"it cannot be told whether {fn!r:.100} is async or plain; give a function, "
            "async def or def, that calls it"
        )
    return False


def _check_parameters(fn: Callable[..., object]) -> None:
    for name, parameter in _parameters(fn).items():
        is_left_out = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        is_given = name == "task_status" and parameter.kind is not parameter.POSITIONAL_ONLY
        if parameter.default is parameter.empty and not (is_left_out or is_given):
            called = name_of(fn)
            raise WorkerError(
                f"{called}() needs an argument, {name!r}, and a service is called without; give "
                f"service(functools.partial({called}, ...))"
            )


def takes_status(fn: Callable[..., object]) -> bool:
    """Tell whether a function has a parameter ``task_status`` that can be given by name."""
    parameter = _parameters(fn).get("task_status")
    return parameter is not None and parameter.kind in (
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.KEYWORD_ONLY,
    )


def _parameters(fn: Callable[..., object]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(fn).parameters)
    except (TypeError, ValueError):  # of some that are written in C nobody knows
        return {}


def _layers(fn: object) -> list[object]:
    """Give a callable, and what is in it: of a partial, of an object, of decorators."""
    layers = [fn]
    while True:
        inner: Any = layers[-1]
        if isinstance(inner, functools.partial):
            inner = inner.func
        elif hasattr(inner, "__wrapped__"):
            inner = inner.__wrapped__
        elif not inspect.isroutine(inner) and inspect.isroutine(type(inner).__call__):
            inner = type(inner).__call__
        else:
            return layers
        layers.append(inner)


def is_async(fn: object) -> bool:
    """Tell whether calling something gives a coroutine."""
    return any(map(inspect.iscoroutinefunction, _layers(fn)))


def name_of(fn: object) -> str:
    """Give the name of a function, of what is in a partial, or of the class of an object."""
    called = next(each for each in _layers(fn) if not isinstance(each, functools.partial))
    name = getattr(called, "__name__", None)
    return name if isinstance(name, str) else type(called).__name__
