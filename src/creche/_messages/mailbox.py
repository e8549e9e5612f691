"""The mailbox of a node: messages are handled one at a time, in order.

The pump is a task for each burst of messages: it starts with the first, ends with the last, and
holds the nursery meanwhile.
"""

from __future__ import annotations

import logging
from types import CoroutineType
from typing import TYPE_CHECKING

from creche._ground.errors import (
    WorkerError,
    WorkerFailed,
    add_note,
    drop_cancellation,
    strip_traceback,
    uncancelled,
)
from creche._ground.interrupts import await_users, call_users
from creche._ground.message import Backlog, Message
from creche._ground.report import is_a, is_awaitable, tell
from creche._ground.states import CLOSED
from creche._ground.text import text_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from creche._nursery.held import HeldTask
    from creche._nursery.nursery import Nursery


class Mailbox:
    """Messages on their way to the handlers of one node.

    Args:
        node: The node, which has the handlers.
        nursery: The nursery of the node.
        pass_on: Hands a message to the parent once it was handled.
        is_started: Whether what a handler returned is a worker, which runs by itself.
    """

    __slots__ = (
        "_context",
        "_hurried",
        "_is_started",
        "_node",
        "_nursery",
        "_pass_on",
        "_pump",
        "_waiting",
    )

    def __init__(
        self,
        node: object,
        nursery: Nursery,
        pass_on: Callable[[Message], object],
        is_started: Callable[[object], bool],
    ) -> None:
        self._node = node
        self._nursery = nursery
        self._pass_on = pass_on
        self._is_started = is_started
        self._waiting = Backlog[Message]()
        self._pump: HeldTask | None = None
        self._context: Context | None = None
        self._hurried = False

    def open(self, context: Context) -> None:
        """Start to deliver, also earlier messages; handlers run in copies of the context."""
        self._context = context
        self._deliver()

    def hurry(self) -> None:
        """From now on, let async handlers run only up to their first await."""
        self._hurried = True
        if self._pump is not None:
            self._pump.cancel()

    def post(self, message: Message) -> bool:
        """Queue a message, on the loop.

        Returns:
            Whether it will be delivered: ``False`` once the nursery is closed.
        """
        if self._nursery.state is CLOSED:
            return False
        self._waiting.put(message)
        if self._pump is None:
            self._deliver()
        return True

    def _deliver(self) -> None:
        if self._pump is None and self._waiting and self._context is not None:
            try:
                # A copy, because a context can be entered only once.
                self._pump = self._nursery.spawn_held(
                    self._run,
                    self._again,
                    name=f"handlers of {self._nursery.owner.label()}",
                    context=self._context.copy(),
                )
            except BaseException as error:
                # Raised in the code that posted, and it fails the node, which cannot handle its
                # messages.
                self._nursery.fail(error)
                raise
            if self._hurried:
                self._pump.cancel()

    def _again(self) -> None:
        self._pump = None
        self._deliver()

    async def _run(self) -> None:
        while self._waiting:
            message = self._waiting.take()
            failure: list[BaseException] = []
            outcome: object = None
            try:
                handler = getattr(self._node, message.handler_name, None)
                if handler is not None:
                    outcome = call_users(handler, message)
                    # A handler under @work has only started a worker.
                    if (
                        outcome is not None
                        and not self._is_started(outcome)
                        and is_awaitable(outcome)
                    ):
                        await await_users(outcome)
                if message.bubble and not message._stopped:
                    self._pass_on(message)
            except BaseException as error:  # noqa: BLE001 (checked, and handed to the nursery)
                failure.append(error)
                if is_a(outcome, CoroutineType):
                    outcome.close()  # it may have been interrupted before it was awaited
            # Outside the handler: the cancellation that follows would have it as its context.
            if failure:
                self._fail(failure.pop(), message)
            handler = outcome = None
        self._pump = None
        self._deliver()  # for messages that a signal handler has posted since the check

    def _fail(self, error: BaseException, message: Message) -> None:
        """Handle an error that a handler raised."""
        cancelled = self._nursery.cancelled_class
        # A cancellation ends this handler at its first await. The other handlers still run.
        failure = uncancelled(error, lambda leaf: is_a(leaf, cancelled))
        if failure is None:
            if not self._hurried and self._nursery.is_scope_cancelled():
                self._nursery.cancel_from_outside()
            return
        where = f"{text_of(message, 'handler_name')} of {self._nursery.owner.label()}"
        if is_a(failure, WorkerError) and failure._is_refusal:
            # It tried to start work while the node, or another, was shutting down.
            tell(logging.WARNING, "%s: %s", where, failure)
            return
        try:
            strip_traceback(failure)
            drop_cancellation(failure, cancelled)
            add_note(failure, f"in {where}")
            if is_a(failure, Exception) and not is_a(failure, WorkerFailed):
                tell(logging.ERROR, "%s failed, and with it the node", where, error=failure)
        finally:
            self._nursery.fail(failure)
