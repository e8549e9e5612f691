"""The mailbox of a node: messages are handled one at a time, in order.

The pump is a task for a burst: it starts with the first message, ends with the last, and holds the
nursery meanwhile. Nothing idles.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Protocol

from ._errors import add_note, uncancelled
from ._message import Backlog, Message
from ._nursery import CLOSED

if TYPE_CHECKING:
    from contextvars import Context

    import anyio

    from ._nursery import Nursery


class Addressee(Protocol):
    """What a mailbox asks of its node."""

    def _creche_pass_on(self, message: Message) -> None:
        """Hand a handled message to the parent."""
        ...

    def _creche_spoken(self) -> str:
        """Name the node in a sentence."""
        ...


class Mailbox:
    """Messages on their way to the handlers of one node."""

    __slots__ = ("_addressee", "_context", "_hurried", "_nursery", "_pump", "_waiting")

    def __init__(self, addressee: Addressee, nursery: Nursery) -> None:
        self._addressee = addressee
        self._nursery = nursery
        self._waiting = Backlog[Message]()
        self._pump: anyio.TaskHandle[None] | None = None
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
        if self._nursery.life is CLOSED:
            return False
        self._waiting.put(message)
        if self._pump is None:
            self._deliver()
        return True

    def _deliver(self) -> None:
        if self._pump is None and self._waiting and self._context is not None:
            # A context can be entered once only, hence the copy.
            self._pump = self._nursery.spawn_held(
                self._run,
                self._again,
                name=f"handlers of {self._addressee._creche_spoken()}",
                context=self._context.copy(),
            )
            if self._hurried:
                self._pump.cancel()

    def _again(self) -> None:
        self._pump = None
        self._deliver()

    async def _run(self) -> None:
        cancelled = self._nursery.cancelled_class
        while self._waiting:
            message = self._waiting.take()
            try:
                handler = getattr(self._addressee, message.handler_name, None)
                if handler is not None:
                    outcome = handler(message)
                    if outcome is not None and inspect.isawaitable(outcome):
                        await outcome
                if message.bubble and not message._stopped:
                    self._addressee._creche_pass_on(message)
            except BaseException as error:  # noqa: BLE001 (weighed, and handed to the nursery)
                # A cancellation ends this handler, at its first await. The others have their turn.
                failure = uncancelled(error, lambda leaf: isinstance(leaf, cancelled))
                if failure is None:
                    if not self._hurried and self._nursery.is_scope_cancelled():
                        self._nursery.cancel_from_outside()
                else:
                    add_note(
                        failure, f"in {message.handler_name} of {self._addressee._creche_spoken()}"
                    )
                    self._nursery.fail(failure)
        self._pump = None
