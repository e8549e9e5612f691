"""The ``@work`` decorator."""

from __future__ import annotations

import inspect
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

from ._core.node import Node
from ._ground.call import Call
from ._ground.errors import WorkerDeclarationError, WorkerError
from ._ground.options import check_limit, check_overflow, check_text
from ._ground.report import shown

if TYPE_CHECKING:
    import sys
    from collections.abc import Awaitable, Callable, Coroutine
    from concurrent.futures import Executor
    from typing import Protocol

    from anyio import CapacityLimiter

    from ._core.worker import Worker
    from ._ground.options import Overflow
    from ._ground.way import Way

    if sys.version_info >= (3, 11):
        from typing import TypedDict, Unpack
    else:
        from typing_extensions import TypedDict, Unpack

    class WorkOptions(TypedDict, total=False):
        """The options of ``@work``."""

        name: str
        group: str | None
        exit_on_error: bool
        exclusive: bool
        description: str | None
        daemon: bool
        limit: int | None
        overflow: Overflow

    class ThreadOptions(WorkOptions, total=False):
        """The options of ``@work`` for threads."""

        abandon_on_cancel: bool
        limiter: CapacityLimiter | None

    class WhereOptions(WorkOptions, total=False):
        """The options of ``@work`` for work that runs elsewhere."""

        abandon_on_cancel: bool

    class WhereDecorator(Protocol):
        """What ``@work(where=...)`` gives, to be called on a node, which does not travel."""

        # Type checkers see the function below a @staticmethod, not the object that this makes.

        @overload
        def __call__(
            self, function: Callable[P, Coroutine[Any, Any, R]], /
        ) -> Callable[P, Worker[R]]: ...

        @overload
        def __call__(self, function: Callable[P, R], /) -> Callable[P, Worker[R]]: ...

    class AsyncDecorator(Protocol):
        """What ``@work(...)`` gives without ``thread``."""

        def __call__(self, function: Callable[P, Awaitable[R]], /) -> Callable[P, Worker[R]]: ...

    class ThreadDecorator(Protocol):
        """What ``@work(..., thread=True)`` gives."""

        @overload
        def __call__(self, function: Callable[P, Awaitable[R]], /) -> Callable[P, Worker[R]]: ...

        @overload
        def __call__(self, function: Callable[P, R], /) -> Callable[P, Worker[R]]: ...


P = ParamSpec("P")
R = TypeVar("R")


@overload
def work(function: Callable[P, Awaitable[R]], /) -> Callable[P, Worker[R]]: ...


@overload
def work(*, thread: bool, **options: Unpack[ThreadOptions]) -> ThreadDecorator: ...


@overload
def work(*, where: Way | Executor, **options: Unpack[WhereOptions]) -> WhereDecorator: ...


@overload
def work(**options: Unpack[WorkOptions]) -> AsyncDecorator: ...


def work(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str = "",
    group: str | None = None,
    exit_on_error: bool | None = None,
    exclusive: bool = False,
    description: str | None = None,
    thread: bool = False,
    daemon: bool = False,
    abandon_on_cancel: bool = False,
    limiter: CapacityLimiter | None = None,
    where: Way | Executor | None = None,
    limit: int | None = None,
    overflow: Overflow = "enqueue",
) -> Any:
    """Turn a method of a node, or a function whose first argument is a node, into a worker.

    Calling it starts the worker and returns it at once. The result of the worker is what the
    function returns. Use it plain, ``@work``, or with options.

    Args:
        function: The function: async or, with ``thread``, plain.
        name: A short name for messages and logs; by default that of the function.
        group: The group; by default ``"default"``, or the function's name with ``exclusive`` or
            ``limit``.
        exit_on_error: As for ``Node.run_worker()``.
        exclusive: Whether each call cancels earlier ones on the same node: with ``group`` all work
            in it that is unfinished, otherwise only earlier calls of this function.
        description: A longer text for people; by default the call as it was made.
        thread: Whether to run the function in a thread.
        daemon: Whether the node may close without waiting for the worker.
        abandon_on_cancel: Whether a cancelled thread is left behind instead of waited for.
        limiter: Limits the number of threads.
        where: What runs the function elsewhere, see ``Node.run_worker()``. The function must be a
            ``@staticmethod``, because the node that it is called on stays here.
        limit: How many calls may run at once in the group, see ``Node.group()``.
        overflow: What happens to a call when the limit is reached, see ``Node.group()``.

    Returns:
        The decorated function, or the decorator.

    Raises:
        WorkerDeclarationError: At declaration: a plain function without ``thread=True``, a
            generator function, one with ``where`` that takes the node, or invalid options.
        WorkerError: At the call: the first argument is not a node.
        TypeError: At the call: the arguments do not fit the function.
    """
    is_limited = limit is not None or overflow != "enqueue"
    _check_options({"name": name, "group": group, "description": description}, limit, overflow)

    def decorate(function: Callable[..., Any]) -> Callable[..., Worker[Any]]:
        passes_node = where is None
        if not passes_node:
            function = _without_node(function)
        called = _check_function(function, thread=thread or not passes_node)
        if group is None and (exclusive or is_limited) and not called.isidentifier():
            raise WorkerDeclarationError(
                f'{called!r} has no name to make a group of; add group="..." to @work'
            )
        named_group = called if group is None and is_limited else group
        signature = _signature(function)

        @wraps(function)
        def start(*args: Any, **kwargs: Any) -> Worker[Any]:
            node = args[0] if args else None
            if not isinstance(node, Node):
                raise WorkerError(
                    f"{called}() is decorated with @work; its first argument must be a Node, "
                    f"not {shown(node)}"
                )
            if signature is not None:
                try:
                    signature.bind(*args[not passes_node :], **kwargs)
                except TypeError as error:
                    raise TypeError(f"{called}() {error}") from None
            if is_limited:
                node.group(cast("str", named_group), limit, overflow)
            told: Any = description if description is not None else Call(called, args[1:], kwargs)
            return node.run_worker(
                partial(function, *args[not passes_node :], **kwargs),
                name or called,
                named_group,
                told,
                exit_on_error=exit_on_error,
                exclusive=exclusive,
                thread=thread,
                daemon=daemon,
                abandon_on_cancel=abandon_on_cancel,
                limiter=limiter,
                where=where,
            )

        return start

    return decorate if function is None else decorate(function)


def _check_options(texts: dict[str, str | None], limit: int | None, overflow: Overflow) -> None:
    try:
        for what, text in texts.items():
            if text is not None:
                check_text(f"the {what} of @work", text)
        check_limit(limit)
        check_overflow(overflow)
    except WorkerError as error:
        raise WorkerDeclarationError(str(error)) from None


def _check_function(function: Callable[..., Any], *, thread: bool) -> str:
    """Make sure that a function can be a worker, and give its name."""
    if not callable(function):
        raise WorkerDeclarationError(
            f"@work takes a function, not {shown(function)}; give options by keyword"
        )
    called = getattr(function, "__name__", "") or "work"
    if _is_generator(function):
        raise WorkerDeclarationError(
            f"{called!r} is a generator function, of which nothing would run; iterate in it and "
            "return a value, with no yield"
        )
    if not thread and not inspect.iscoroutinefunction(function):
        raise WorkerDeclarationError(
            f"{called!r} is not async; add thread=True to @work, or make it async"
        )
    return called


def _without_node(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give the function that travels, of one that takes no node."""
    if not isinstance(function, staticmethod):
        called = getattr(function, "__name__", "") or "work"
        raise WorkerDeclarationError(
            f"{called!r} is to run elsewhere, and a node does not travel; put @staticmethod under "
            "@work, and give it all that it needs as arguments"
        )
    return function.__func__


def _is_generator(function: Callable[..., Any]) -> bool:
    """Tell whether a function makes a generator, which nothing would iterate over."""
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    is_awaitable = bool(flags & inspect.CO_ITERABLE_COROUTINE)  # of types.coroutine()
    return bool(flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR)) and not is_awaitable


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None  # of a builtin: the call itself will tell
