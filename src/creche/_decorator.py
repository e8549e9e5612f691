"""The ``@work`` decorator."""

from __future__ import annotations

import inspect
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

from ._errors import WorkerDeclarationError, WorkerError
from ._node import Node

if TYPE_CHECKING:
    import sys
    from collections.abc import Awaitable, Callable
    from typing import Protocol

    from anyio import CapacityLimiter

    from ._options import Overflow
    from ._worker import Worker

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

    class AsyncDecorator(Protocol):
        """What ``@work(...)`` gives without ``thread``."""

        def __call__(self, function: Callable[P, Awaitable[R]], /) -> Callable[P, Worker[R]]: ...

    class ThreadDecorator(Protocol):
        """What ``@work(..., thread=True)`` gives."""

        @overload
        def __call__(
            self, function: Callable[P, Worker[R]], /
        ) -> Callable[P, Worker[Worker[R]]]: ...

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
def work(**options: Unpack[WorkOptions]) -> AsyncDecorator: ...


def work(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str = "",
    group: str | None = None,
    exit_on_error: bool = True,
    exclusive: bool = False,
    description: str | None = None,
    thread: bool = False,
    daemon: bool = False,
    abandon_on_cancel: bool = False,
    limiter: CapacityLimiter | None = None,
    limit: int | None = None,
    overflow: Overflow = "enqueue",
) -> Any:
    """Turn a method of a node, or a function whose first argument is a node, into a worker.

    Calling it starts the worker and returns it at once; the worker's result is what the function
    returns. To be used bare, ``@work``, or with options.

    Args:
        function: The function: async, or, with ``thread``, plain.
        name: A short name for messages and logs; by default that of the function.
        group: The group; by default ``"default"``, or the function's name with ``exclusive`` or
            ``limit``.
        exit_on_error: As for ``Node.run_worker()``, and so are those without a word here.
        exclusive: Whether each call cancels the calls before it, of the same node and group.
        description: A longer text for people; by default the call as it was made.
        thread: Whether to run the function in a thread.
        daemon: Whether the node may close without waiting.
        abandon_on_cancel: Whether a cancelled thread is left to itself.
        limiter: What bounds the threads.
        limit: How many calls may run at once in the group, see ``Node.group()``.
        overflow: What happens to a call when as many are running, see ``Node.group()``.

    Returns:
        The decorated function, or the decorator.

    Raises:
        WorkerDeclarationError: At declaration: a plain function without ``thread=True``.
        WorkerError: At the call: the first argument is no node.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Worker[Any]]:
        if not callable(function):
            raise WorkerDeclarationError(
                f"@work takes a function, not {function!r:.100}; give options by keyword"
            )
        called = getattr(function, "__name__", "") or "work"
        if not thread and not inspect.iscoroutinefunction(function):
            raise WorkerDeclarationError(
                f"{called!r} is not async; add thread=True to @work, or make it async"
            )
        named_group = group
        if group is None and (exclusive or limit is not None or overflow != "enqueue"):
            named_group = called

        @wraps(function)
        def start(*args: Any, **kwargs: Any) -> Worker[Any]:
            node = args[0] if args else None
            if not isinstance(node, Node):
                raise WorkerError(
                    f"{called}() is decorated with @work; its first argument must be a Node, "
                    f"not {node!r:.100}"
                )
            if limit is not None or overflow != "enqueue":
                node.group(cast("str", named_group), limit, overflow)
            return node.run_worker(
                partial(function, *args, **kwargs),
                name or called,
                named_group,
                _tell(called, args[1:], kwargs) if description is None else description,
                exit_on_error=exit_on_error,
                exclusive=exclusive,
                thread=thread,
                daemon=daemon,
                abandon_on_cancel=abandon_on_cancel,
                limiter=limiter,
            )

        return start

    return decorate if function is None else decorate(function)


def _tell(called: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Put a call in words; arguments whose ``repr`` fails or is long are cut short."""
    try:
        told = [f"{value!r:.100}" for value in args]
        told += [f"{key}={value!r:.100}" for key, value in kwargs.items()]
    except Exception:  # noqa: BLE001 (a broken repr of the user's must not keep the work from starting)
        told = ["..."]
    return f"{called}({', '.join(told)})"
