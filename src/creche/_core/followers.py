"""Listening to one worker only, whose cost does not depend on the rest of its node."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from creche._ground.report import shown, tell
from creche._ground.states import FINAL

from .events import ProgressChanged, StateChanged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from creche._ground.bridge import Bridge
    from creche._ground.message import Message
    from creche._messages.subscription import Listener
    from creche._nursery.nursery import Nursery

    from .worker import Worker


class WorkerSource:
    """What a subscription to one worker listens to; see ``Source``.

    A stream begins with the current state and ends after the final change, so nothing is missed
    whenever it is opened.
    """

    __slots__ = ("_worker",)

    def __init__(self, worker: Worker[Any]) -> None:
        self._worker = worker

    @property
    def _nursery(self) -> Nursery:
        """The nursery of its node."""
        return self._worker._nursery

    @property
    def _bridge(self) -> Bridge:
        """The way into the event loop of its node."""
        return self._worker._node._creche_bridge

    def below(self) -> Iterable[WorkerSource]:  # pragma: no cover (asked of nodes only)
        """Return this source: nothing is below a worker."""
        return (self,)

    def label(self) -> str:
        """Name the worker in a sentence."""
        return self._worker._creche_label()

    @property
    def hearers(self) -> dict[Listener, Any]:
        """The listeners of the worker."""
        rare = self._worker._rare_parts()
        rare.followers = rare.followers or {}
        return rare.followers

    def check(self) -> None:
        """Do nothing: one can listen to a worker that has ended."""

    def add(self, listener: Listener) -> None:
        """Add a listener, and send it the current state."""
        worker = self._worker
        self.hearers[listener] = self
        worker._rare_parts().is_hungry = True
        events: list[Message] = []
        if worker._created_at is not None:
            events.append(StateChanged(worker, worker._state))
        if worker._completed or worker._total is not None:
            events.append(ProgressChanged(worker))
        if worker._state in FINAL:
            events.reverse()  # nothing comes after the final change
        for event in events:
            listener._put(event)
        if worker._state in FINAL:
            leave(worker)

    def drop(self, listener: Listener) -> None:
        """Remove a listener; does nothing if it is not there."""
        self.hearers.pop(listener, None)
        self._worker._rare_parts().is_hungry = bool(self.hearers)


def followers_of(worker: Worker[Any]) -> tuple[Listener, ...]:
    """Return a copy of the listeners of a worker."""
    return () if worker._rare is None else tuple(worker._rare.followers or ())


def leave(worker: Worker[Any]) -> None:
    """Notify the listeners of a worker that it has ended; safe to call again."""
    followers = worker._rare_parts().followers or {}
    for listener, source in list(followers.items()):
        listener._has_left(source)
        followers.pop(listener, None)


def add_callback(worker: Worker[Any], callback: Callable[[Any], object]) -> None:
    """Call a function when a worker ends, see ``Worker.add_done_callback()``; on the loop."""
    rare = worker._rare_parts()
    rare.callbacks = deque() if rare.callbacks is None else rare.callbacks
    rare.callbacks.append(callback)
    if worker._state in FINAL:
        call_back(worker)


def call_back(worker: Worker[Any]) -> None:
    """Call the callbacks of a worker that ends, each once; safe to call again."""
    rare = worker._rare_parts()
    while rare.callbacks:
        callback = rare.callbacks.popleft()
        try:
            callback(worker)
        except Exception as error:  # noqa: BLE001 (the end continues)
            about = (shown(callback), worker._creche_label())
            tell(logging.ERROR, "the callback %s of %s failed", *about, error=error)
