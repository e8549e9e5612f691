"""Calls that threads make on the event loop of a node, without late effects."""

from __future__ import annotations

import inspect
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from ._errors import WorkerCancelled, strip_traceback
from ._worker import Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Future

    from ._tree import Branch

_OWN_FRAMES = f"{__package__}._"


def begin_call(
    node: Branch,
    caller: Worker[Any] | None,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    future: Future[Any],
) -> None:
    """Make the call of a thread, on the loop; async functions go on in a task."""
    try:
        _check_call(node, caller)
        value = fn(*args)
    except BaseException as error:  # noqa: BLE001 (it belongs to the calling thread)
        _fail(future, error)
        del caller, future  # Python 3.11's frames hold those that called them
        return
    if not inspect.isawaitable(value) or isinstance(value, Worker):
        future.set_result(value)
        return

    def lost() -> None:
        _close(value)
        future.set_exception(WorkerCancelled("a call from a thread was cancelled natively"))

    async def go_on() -> None:
        nonlocal caller, future
        await _go_on(node, caller, value, future)
        if caller is not None:
            ties = caller._tied()
            ties.hops = tuple(hop for hop in ties.hops if hop is not handle)
        del caller, future  # as above

    handle = node._creche_nursery.spawn_held(
        go_on,
        lost,
        name=f"{node.path}: call from a thread",
        context=copy_context(),
    )
    if caller is not None:
        caller._tied().hops += (handle,)


def _close(awaitable: object) -> None:
    if inspect.iscoroutine(awaitable):
        awaitable.close()  # one that was never awaited would be warned about


def _check_call(node: Branch, caller: Worker[Any] | None) -> None:
    if caller is not None:
        caller.check_cancelled()
    if node._creche_nursery.is_cancelled:
        raise WorkerCancelled(f"{node._creche_spoken()} was cancelled")


async def _go_on(
    node: Branch, caller: Worker[Any] | None, awaitable: Awaitable[Any], future: Future[Any]
) -> None:
    try:
        try:
            _check_call(node, caller)
        except WorkerCancelled:
            _close(awaitable)
            raise
        value = await awaitable
    except node._creche_nursery.cancelled_class:
        told = (
            caller._tell_cancellation()
            if caller is not None
            else f"{node._creche_spoken()} was cancelled"
        )
        future.set_exception(WorkerCancelled(told))
    except BaseException as error:  # noqa: BLE001 (it belongs to the calling thread)
        _fail(future, error)
        del caller, future  # as above
    else:
        future.set_result(value)


def _fail(future: Future[Any], error: BaseException) -> None:
    # The frames of these calls hold the future, and with it the error: a cycle.
    strip_traceback(error, _OWN_FRAMES)
    future.set_exception(error)
