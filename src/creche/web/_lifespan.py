"""The life of a node in a web server: from its start to the end of its grace."""

from __future__ import annotations

import signal
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
from anyio import lowlevel

from creche import Message, Node, WorkerError
from creche.hosting import Host

from ._closing import served

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from contextlib import AbstractAsyncContextManager
    from types import FrameType

    from anyio.abc import TaskGroup

    from creche import Subscription

    from ._closing import Closing

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)
)


class _Never(Message):
    """What nobody posts."""


def lifespan(node: Node, grace: float = 5) -> Callable[[object], AbstractAsyncContextManager[None]]:
    """Make a lifespan for Starlette or FastAPI: the node is open while the server runs.

    Use ``FastAPI(lifespan=lifespan(node))``. When the server is told to stop by SIGTERM or SIGINT,
    the node is shut down at once: it takes no more work, streams and long polls end, so that the
    server need not wait for them, and running work has the grace period. In your own lifespan,
    use it as a context manager: ``async with lifespan(node)(app): ...``.

    If the node fails, it is closed, and the error is logged at once. The server goes on and
    answers what it can. The error is raised when the server stops.

    Args:
        node: The node, not yet opened.
        grace: Seconds that work may go on after the signal or, if there is none, from the
            moment the server stops the application.

    Returns:
        A function that takes the application and returns an async context manager.

    Raises:
        WorkerError: It is not a node, or grace is negative.

    Checkpoint:
        The context manager: on entering and leaving.

    Threads:
        The event loop of the server. Signals are only noticed in the main thread.
    """
    if not isinstance(node, Node):
        raise WorkerError(f"lifespan() takes a Node, not {node!r:.100}")
    if not isinstance(grace, int | float) or not grace >= 0:
        raise WorkerError(f"grace must be seconds, 0 or more, not {grace!r:.100}")

    @asynccontextmanager
    async def run(app: object) -> AsyncGenerator[None]:
        del app
        failure: BaseException | None = None
        async with anyio.create_task_group() as tasks:
            try:
                async with _serve(node, grace, tasks):
                    yield
            except BaseException as raised:  # noqa: BLE001 (the task group would wrap it)
                failure = raised
            tasks.cancel_scope.cancel()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # it holds this frame

    return run


@asynccontextmanager
async def _serve(node: Node, grace: float, tasks: TaskGroup) -> AsyncGenerator[None]:
    host, end, told = Host(node, task_group=tasks), _End(node, grace), anyio.Event()
    with served(node) as closing:
        async with host, node.subscribe(_Never, until="closing") as events:
            tasks.start_soon(_close_at_end, events, closing)
            tasks.start_soon(end.begin_once, told)
            with _on_signal(told.set):
                yield
            closing.close()
            await host.stop(end.get_grace())


class _End:
    """When the grace is over, from the moment in which the server was told to stop."""

    def __init__(self, node: Node, grace: float) -> None:
        self._node = node
        self._grace = grace
        self._deadline: float | None = None

    async def begin_once(self, told: anyio.Event) -> None:
        """Shut the node down once that is told."""
        await told.wait()
        if not self._node.is_finished:
            await self._node.shutdown(self.get_grace())

    def get_grace(self) -> float:
        """Give the seconds that are left; the first call is when it begins."""
        now = anyio.current_time()
        if self._deadline is None:
            self._deadline = now + self._grace
        return max(0.0, self._deadline - now)


async def _close_at_end(events: Subscription[_Never], closing: Closing) -> None:
    """End the waits as the node takes no more work, by whomever it was shut down."""
    with suppress(StopAsyncIteration):
        await anext(events)  # there are none
    closing.close()


@contextmanager
def _on_signal(begin: Callable[[], object]) -> Generator[None]:
    """Have something called on the loop as the server is told to stop, before what it does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop: Any = lowlevel.current_token().native_token
    call_soon = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
    # Where nobody handles it, the server is not told to stop in order: the program just ends.
    found = {number: signal.getsignal(number) for number in _SIGNALS}
    before = {int(number): handler for number, handler in found.items() if callable(handler)}

    def handle(number: int, frame: FrameType | None) -> None:
        call_soon(begin)
        before[number](number, frame)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, handler)
