"""Calls that threads make on the event loop of a node, without late effects.

Whatever happens on the way, the thread gets an answer: each way out of here sets its future.
"""

from __future__ import annotations

from contextvars import copy_context
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from creche._ground.backend import await_users
from creche._ground.bridge import fail
from creche._ground.errors import WorkerCancelled
from creche._ground.report import is_a, is_awaitable

from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Future

    from .node import Node


def begin_call(
    node: Node,
    caller: Worker[Any] | None,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    future: Future[Any],
) -> None:
    """Make the call of a thread, on the loop; async functions go on in a task."""
    value: Any = None
    try:
        _check_call(node, caller)
        value = fn(*args)
        if is_awaitable(value) and not is_a(value, Worker):
            _await(node, caller, value, future)
        else:
            future.set_result(value)
    except BaseException as error:  # noqa: BLE001 (it belongs to the calling thread)
        _close(value)
        # The frames of these calls hold the future, and with it the error: a cycle.
        fail(future, error)
    finally:
        del caller, future, value  # Python 3.11's frames hold those that called them


def _await(
    node: Node, caller: Worker[Any] | None, awaitable: Any, future: Future[Any] | None
) -> None:
    """Await the value of a call in a task, which is cancelled with the worker that called."""

    def lost(error: BaseException | None = None) -> None:
        _close(awaitable)
        if future is not None and not future.done():
            fail(future, error or WorkerCancelled(_tell_whose(node, caller)))

    async def go_on() -> None:
        nonlocal caller, future, awaitable
        try:
            assert future is not None
            await _go_on(node, caller, awaitable, future)
            if caller is not None:
                ties = caller._rare_parts()
                ties.loop_calls = tuple(each for each in ties.loop_calls if each is not task)
        except BaseException as error:
            lost(error)  # it was broken off: what awaits in it leaves nothing out
            raise
        finally:
            caller = future = awaitable = None  # as above

    task = node._creche_nursery.spawn_held(
        go_on,
        lost,
        name=f"{node.path}: call from a thread",
        context=copy_context(),
    )
    if caller is not None:
        caller._rare_parts().loop_calls += (task,)


def _close(awaitable: object) -> None:
    if is_a(awaitable, CoroutineType):
        awaitable.close()  # one that was never awaited would be warned about


def _check_call(node: Node, caller: Worker[Any] | None) -> None:
    if caller is not None:
        caller.check_cancelled()
    if node._creche_nursery.is_cancelled:
        raise WorkerCancelled(f"{node._creche_label()} was cancelled")


async def _go_on(
    node: Node, caller: Worker[Any] | None, awaitable: Awaitable[Any], future: Future[Any]
) -> None:
    try:
        _check_call(node, caller)
        value = await await_users(awaitable)
    except node._creche_nursery.cancelled_class:
        fail(future, WorkerCancelled(_tell_whose(node, caller)))
    except BaseException as error:  # noqa: BLE001 (it belongs to the calling thread)
        fail(future, error)
    else:
        if not future.done():  # by a fault on the way
            future.set_result(value)
    finally:
        _close(awaitable)  # it may have been broken off before it was awaited
        del caller, future  # as above


def _tell_whose(node: Node, caller: Worker[Any] | None) -> str:
    """Name who was cancelled, and the call with it."""
    if caller is not None and caller._cancellation is not None:
        return caller._tell_cancellation()
    if node._creche_nursery.is_cancelled:
        return f"{node._creche_label()} was cancelled"
    return f"a call from a thread to {node._creche_label()} was cancelled natively"
