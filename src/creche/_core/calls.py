"""Calls to a node from other threads, without late effects.

Nothing that the thread of a superseded worker does takes effect, not even a call that is in flight.
And whatever happens to a call, the thread gets an answer: each way out of here sets its future.
"""

from __future__ import annotations

from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, TypeVar

from creche._ground.bridge import await_answer, fail
from creche._ground.context import current, without_far
from creche._ground.errors import WorkerCancelled, WorkerError
from creche._ground.interrupts import await_users
from creche._ground.message import Message
from creche._ground.report import is_a, is_awaitable, shown

from .cancelling import tell_of
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .node import Node

T = TypeVar("T")


def ask(node: Node, call: Callable[[], T]) -> T:
    """Make a call on the loop, unless it comes from the thread of a cancelled worker.

    Nothing that a superseded thread does takes effect; the check and the call are one step.
    """
    bridge = node._creche_bridge
    if not bridge.is_foreign:
        return bridge.call(call)
    callers: list[Worker[Any] | None] = [current.get(None)]
    return bridge.call(partial(_call_checked, callers, call))


def _call_checked(callers: list[Worker[Any] | None], call: Callable[[], T]) -> T:
    # Popped, because all frames from here to the thread hold the list: see errors: frames.
    _check_caller(callers.pop())
    return call()


def _check_caller(caller: Worker[Any] | None) -> None:
    if caller is not None:
        caller.check_cancelled()


def post(node: Node, message: Message) -> bool:
    """Post a message to a node, see ``Node.post_message()``."""
    if not isinstance(message, Message):
        raise WorkerError(f"post_message() takes a Message, not {shown(message)}")
    bridge = node._creche_bridge
    caller: Worker[Any] | None = current.get(None) if bridge.is_foreign else None
    _check_caller(caller)

    def arrive() -> None:
        # Checked again: it may have been superseded while the message was in flight.
        if caller is None or not caller.is_cancelled:
            node._creche_audience.take(message)

    if bridge.can_act():
        return node._creche_audience.take(message)
    return bridge.post(arrive, to=node._creche_nursery.bridge)


class Caller:
    """The worker whose thread made a call, if any, until the call has ended.

    The frames of the call hold this instead of the worker: see errors: frames.
    """

    __slots__ = ("worker",)

    def __init__(self, worker: Worker[Any] | None) -> None:
        self.worker = worker


def make_call(node: Node, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Call a function on the loop and wait for its value, see ``Node.call_from_thread()``."""
    bridge = node._creche_nursery.bridge
    if bridge.thread is None:
        raise WorkerError(
            f"cannot make a call through {node._creche_label()}, which is not open yet; enter its "
            "block first"
        )
    if not bridge.is_foreign:
        raise WorkerError(
            f"call_from_thread() was called in the thread of the event loop of "
            f"{node._creche_label()}; call the function directly"
        )
    caller, future = Caller(without_far(current.get(None))), Future[Any]()
    begin = partial(begin_call, node, caller, fn, args, future)
    if not bridge.post(begin, partial(fail, future)):
        raise WorkerError(
            f"cannot make a call through {node._creche_label()}, which is "
            f"{node._creche_nursery.state.value}"
        )
    return await_answer(future, bridge.token)


def begin_call(
    node: Node,
    caller: Caller,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    future: Future[Any],
) -> None:
    """Make the call of a thread, on the loop; async functions continue in a task."""
    value: Any = None
    try:
        _check_call(node, caller)
        value = fn(*args)
        if is_awaitable(value) and not is_a(value, Worker):
            _await(node, Caller(caller.worker), value, future)
        else:
            future.set_result(value)
    except BaseException as error:  # noqa: BLE001 (it belongs to the calling thread)
        _close(value)
        fail(future, error)
    finally:
        caller.worker = None


def _await(node: Node, caller: Caller, awaitable: Any, future: Future[Any] | None) -> None:
    """Await the value of a call in a task, which is cancelled with the calling worker."""

    def lost(error: BaseException | None = None) -> None:
        _close(awaitable)
        if future is not None and not future.done():
            fail(future, error or WorkerCancelled(_tell_whose(node, caller)))

    async def go_on() -> None:
        nonlocal future, awaitable
        try:
            assert future is not None
            await _go_on(node, caller, awaitable, future)
            if caller.worker is not None:
                ties = caller.worker._rare_parts()
                ties.loop_calls = tuple(each for each in ties.loop_calls if each is not task)
        except BaseException as error:
            lost(error)  # it was interrupted: everything that it awaits handles errors
            raise
        finally:
            caller.worker = future = awaitable = None  # see errors: frames

    task = node._creche_nursery.spawn_held(
        go_on,
        lost,
        name=f"{node.path}: call from a thread",
        context=copy_context(),
    )
    if caller.worker is not None:
        caller.worker._rare_parts().loop_calls += (task,)


def _close(awaitable: object) -> None:
    if is_a(awaitable, CoroutineType):
        awaitable.close()  # it would cause a warning if it was never awaited


def _check_call(node: Node, caller: Caller) -> None:
    _check_caller(caller.worker)
    if node._creche_nursery.is_cancelled:
        raise WorkerCancelled(f"{node._creche_label()} was cancelled")


async def _go_on(
    node: Node, caller: Caller, awaitable: Awaitable[Any], future: Future[Any]
) -> None:
    try:
        _check_call(node, caller)
        value = await await_users(awaitable)
    except node._creche_nursery.cancelled_class:
        fail(future, WorkerCancelled(_tell_whose(node, caller)))
    except BaseException as error:  # noqa: BLE001 (it belongs to the calling thread)
        fail(future, error)
    else:
        if not future.done():  # by a fault before
            future.set_result(value)
    finally:
        _close(awaitable)  # it may have been interrupted before it was awaited


def _tell_whose(node: Node, caller: Caller) -> str:
    """Describe what was cancelled, and with it the call."""
    if caller.worker is not None and caller.worker._cancellation is not None:
        return tell_of(caller.worker)
    if node._creche_nursery.is_cancelled:
        return f"{node._creche_label()} was cancelled"
    return f"a call from a thread to {node._creche_label()} was cancelled natively"
