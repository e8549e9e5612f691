"""What a way of running work elsewhere is, and what it sees of the worker: its job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias, TypeVar

T = TypeVar("T")


class Resource(Protocol):
    """What an engine needs for as long as a tree of nodes uses it: a line, processes."""

    async def run(self) -> None:
        """Be there until cancelled, and then leave nothing behind."""
        ...


ResourceT = TypeVar("ResourceT", bound=Resource)


class Job(Protocol):
    """The work of one worker, as the way that runs it elsewhere sees it.

    It is there until the way has returned, for the event loop of the worker's node, but for what
    says otherwise.
    """

    @property
    def label(self) -> str:
        """The worker in a sentence: ``worker 'thumbnail'``."""
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
        """Whether cancellation was requested; in any thread."""
        ...

    @property
    def cancel_reason(self) -> object:
        """The reason that came with the request."""
        ...

    @property
    def abandon_on_cancel(self) -> bool:
        """Whether work that has begun, and cannot be stopped, is left to itself once cancelled."""
        ...

    # the way there

    def pack(self, work: Callable[[], object] | None = None) -> bytes:
        """Give the bytes for a ``Far`` to run; the work is handed over with this call.

        From here on a cancelled worker ends as its way is left, not before.

        Args:
            work: What to call there, if that is not the work itself: something that calls it.

        Raises:
            WorkerError: The work cannot be pickled.
        """
        ...

    def begin(self, where: str = "") -> None:
        """Say that the work begins; the worker is RUNNING. On a RUNNING one nothing happens.

        It is for a way that knows this by itself. Else the ``Far`` asks, and ``receive()`` answers.

        Args:
            where: Where it runs, in words: ``process 4711``.

        Raises:
            WorkerCancelled: The worker was cancelled; the work must not begin.
        """
        ...

    def receive(self, message: bytes, answer: Callable[[bool], object] | None = None) -> None:
        """Take a message that a ``Far`` has sent.

        Args:
            message: The message.
            answer: Given whether the work may begin, if the message asks for that. It is called on
                the event loop, within this call if that is made there.

        Threads:
            Any thread. A call from another one returns before the message has been taken.
        """
        ...

    # the way back

    def open(self, outcome: bytes) -> Any:
        """Give what the work returned, or raise what it raised.

        Args:
            outcome: What ``Far.run()`` has given.

        Returns:
            The value.

        Raises:
            WorkerCancelled: The work did not begin, as the worker was cancelled.
            RemoteError: The work raised an error that cannot travel.
            WorkerError: The value or the work cannot be read where it has arrived.
            BaseException: What the work raised, with the traceback from there as its cause.
        """
        ...

    # cancellation

    async def outlast(self, wait: Callable[[], Awaitable[T]]) -> T:
        """Await something to its end, whatever is cancelled meanwhile: the end of the far side.

        Args:
            wait: What to await; called again if a native ``Task.cancel()`` broke it off.
        """
        ...

    def notice_cancellation(self) -> None:
        """Record a cancellation that has reached the way, whatever caused it."""
        ...

    def abandon(self) -> None:
        """Say that the work is left to itself; see ``abandon_on_cancel``. Then leave the way."""
        ...

    def end_abandoned(self, outcome: bytes | None) -> None:
        """Say that work which was abandoned has ended; an error of its own is logged.

        Args:
            outcome: What ``Far.run()`` has given, if it has.

        Threads:
            Any thread, also when the way has been left.
        """
        ...

    def resource(self, key: object, make: Callable[[], ResourceT]) -> ResourceT:
        """Give what the worker's tree of nodes has for an engine; made at the first call.

        It runs until the root of the tree has nothing else left, and is ended before that closes.

        Args:
            key: What it is for, as a rule the engine itself; compared by identity.
            make: What makes it. Its ``run()`` is cancelled at the end, and may take its time to
                leave.

        Raises:
            WorkerError: The root is being closed.
        """
        ...


Way: TypeAlias = Callable[[Job], Awaitable[object]]
"""What runs work elsewhere: it takes the job and gives what the work gave, or raises it."""
