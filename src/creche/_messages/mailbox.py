"""The mailbox of a node: messages are handled one at a time, in order.

The pump is a task for a burst: it starts with the first message, ends with the last, and holds the
nursery meanwhile. Nothing idles.
"""

from __future__ import annotations

import logging
from types import CoroutineType
from typing import TYPE_CHECKING, Protocol

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
    from contextvars import Context

    from creche._nursery.held import HeldTask
    from creche._nursery.nursery import Nursery


class Addressee(Protocol):
    """The node that a mailbox is of."""

    def _creche_label(self) -> str:
        """Name the node in a sentence."""
        ...


class Beyond(Protocol):
    """What a mailbox asks of those who tell messages: what becomes of a message it handled."""

    def pass_on(self, message: Message) -> None:
        """Hand a handled message to the parent."""
        ...

    def is_started(self, outcome: object) -> bool:
        """Tell whether what a handler returned is a worker, which goes on by itself."""
        ...


class Mailbox:
    """Messages on their way to the handlers of one node."""

    __slots__ = ("_addressee", "_beyond", "_context", "_hurried", "_nursery", "_pump", "_waiting")

    def __init__(self, addressee: Addressee, nursery: Nursery, beyond: Beyond) -> None:
        self._addressee = addressee
        self._beyond = beyond
        self._nursery = nursery
        self._waiting = Backlog[Message]()
        self._pump: HeldTask | None = None
        self._context: Context | None = None
        self._hurried = False

    def open(self, context: Context) -> None:
        """Begin to deliver, also what was posted before; handlers run in copies of the context."""
        self._context = context
        self._deliver()

    def hurry(self) -> None:
        """From now on let async handlers run up to their first await only."""
        self._hurried = True
        if self._pump is not None:
            self._pump.cancel()

    def post(self, message: Message) -> bool:
        """Take in a message, on the loop.

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
                # A context can be entered once only, hence the copy.
                self._pump = self._nursery.spawn_held(
                    self._run,
                    self._again,
                    name=f"handlers of {self._addressee._creche_label()}",
                    context=self._context.copy(),
                )
            except BaseException as error:
                # Whoever posted gets it; and the node, whose messages cannot be handled.
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
            failure: BaseException | None = None
            outcome: object = None
            try:
                handler = getattr(self._addressee, message.handler_name, None)
                if handler is not None:
                    outcome = call_users(handler, message)
                    # A handler under @work has started a worker, and that is all.
                    if (
                        outcome is not None
                        and not self._beyond.is_started(outcome)
                        and is_awaitable(outcome)
                    ):
                        await await_users(outcome)
                if message.bubble and not message._stopped:
                    self._beyond.pass_on(message)
            except BaseException as error:  # noqa: BLE001 (weighed, and handed to the nursery)
                failure = error
                if is_a(outcome, CoroutineType):
                    outcome.close()  # it may have been broken off before it was awaited
            # Out of the handler: the cancellation that follows would have it as its context.
            if failure is not None:
                self._fail(failure, message)
            del failure, message  # see errors: frames
            handler = outcome = None
        self._pump = None
        self._deliver()  # for what a signal handler has posted since it was looked

    def _fail(self, error: BaseException, message: Message) -> None:
        """Weigh what a handler raised."""
        cancelled = self._nursery.cancelled_class
        # A cancellation ends this handler, at its first await. The others have their turn.
        failure = uncancelled(error, lambda leaf: is_a(leaf, cancelled))
        if failure is None:
            if not self._hurried and self._nursery.is_scope_cancelled():
                self._nursery.cancel_from_outside()
            return
        where = f"{text_of(message, 'handler_name')} of {self._addressee._creche_label()}"
        if is_a(failure, WorkerError) and failure._is_refusal:
            # It wanted to start work as the node, or another, was shutting down: too late.
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
