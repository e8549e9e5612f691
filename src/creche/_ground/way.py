"""What a way of running work elsewhere is, and its view of the worker: a job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias, TypeVar

T = TypeVar("T")


class Resource(Protocol):
    """What an engine needs while a tree of nodes uses it: a connection, processes."""

    async def run(self) -> None:
        """Run until cancelled, and then leave nothing behind."""
        ...


ResourceT = TypeVar("ResourceT", bound=Resource)


class Job(Protocol):
    """The work of one worker, as seen by the way that runs it elsewhere.

    It exists until the way has returned. It is for the event loop of the worker's node, unless a
    method says otherwise.
    """

    @property
    def label(self) -> str:
        """The worker, for use in a sentence: ``worker 'thumbnail'``."""
        ...

    @property
    def work(self) -> Any:
        """The work itself: what to call."""
        ...

    @property
    def is_running(self) -> bool:
        """Whether the work has begun, as far as this side knows."""
        ...

    @property
    def is_cancelled(self) -> bool:
        """Whether cancellation was requested. Any thread."""
        ...

    @property
    def cancel_reason(self) -> object:
        """The reason that was given."""
        ...

    @property
    def abandon_on_cancel(self) -> bool:
        """Whether cancelled work that has begun, and cannot be stopped, is left behind."""
        ...

    # the way there

    def pack(self, work: Callable[[], object] | None = None) -> bytes:
        """Return the bytes for a ``Far`` to run. This call hands the work over.

        From now on a cancelled worker ends when its way returns, not before.

        Args:
            work: What to call there, if that is not the work itself: something that calls it.

        Raises:
            WorkerError: The work cannot be pickled.
        """
        ...

    def begin(self, where: str = "") -> None:
        """Say that the work begins, which makes the worker RUNNING. Does nothing if it is already.

        It is for a way that knows this itself. Else the ``Far`` asks and ``receive()`` answers.

        Args:
            where: Where it runs, in words: ``process 4711``.

        Raises:
            WorkerCancelled: The worker was cancelled; the work must not begin.
        """
        ...

    def receive(self, message: bytes, answer: Callable[[bool], object] | None = None) -> None:
        """Take a message from a ``Far``.

        Args:
            message: The message.
            answer: Called with whether the work may begin, if the message asks for that. It is
                called on the event loop, and within this call if this is called there.

        Threads:
            Any thread. A call from another thread returns before the message is handled.
        """
        ...

    # the way back

    def open(self, outcome: bytes) -> Any:
        """Return what the work returned, or raise what it raised.

        Args:
            outcome: What ``Far.run()`` returned.

        Returns:
            The value.

        Raises:
            WorkerCancelled: The work did not begin, because the worker was cancelled.
            RemoteError: The work raised an error that could not be sent here.
            WorkerError: The value or the work cannot be unpickled.
            BaseException: What the work raised, with the traceback from there as its cause.
        """
        ...

    # cancellation

    async def outlast(self, wait: Callable[[], Awaitable[T]]) -> T:
        """Await something to its end, even if cancelled meanwhile: the end of the far side.

        Args:
            wait: What to await; called again if a native ``Task.cancel()`` interrupted it.
        """
        ...

    def notice_cancellation(self) -> None:
        """Record a cancellation that has reached the way, whatever caused it."""
        ...

    def abandon(self) -> None:
        """Say that the work is left behind, see ``abandon_on_cancel``. Then leave the way."""
        ...

    def end_abandoned(self, outcome: bytes | None) -> None:
        """Say that abandoned work has ended; an error that it raised is logged.

        Args:
            outcome: What ``Far.run()`` returned, if it did.

        Threads:
            Any thread, even after the way has returned.
        """
        ...

    def resource(self, key: object, make: Callable[[], ResourceT]) -> ResourceT:
        """Return what the worker's tree of nodes keeps for an engine; the first call makes it.

        It runs until the root of the tree has nothing else left, and ends before the root closes.

        Args:
            key: What it is for, usually the engine itself; compared by identity.
            make: Makes it. Its ``run()`` is cancelled at the end, and may take its time to
                leave.

        Raises:
            WorkerError: The root is closing.
        """
        ...


Way: TypeAlias = Callable[[Job], Awaitable[object]]
"""What runs work elsewhere: it takes the job and gives what the work gave, or raises it."""
