"""Run nodes in programs that have no place for ``async with``, and end programs by a signal.

``Host`` runs the block of a node in its own task, for frameworks that have one hook for the
start and another for the stop. ``stop_on_signals()`` ends a program in an orderly way.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

import anyio
from anyio import lowlevel

from creche import Node, Worker, WorkerCancelled, WorkerError, active_worker

if sys.version_info < (3, 11):  # pragma: no cover (one of the two branches runs on any version)
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
    from types import FrameType, TracebackType

__all__ = ["Host", "SignalReceived", "stop_on_signals"]

NodeT = TypeVar("NodeT", bound=Node)
_node_of: Callable[[Worker[Any]], Node | None] = vars(Worker)["node"].fget
"""Gives the node of a worker; a subclass may have another ``node``."""

_logger = logging.getLogger("creche")

# asyncio itself knows its tasks weakly: one that only waits would be collected.
_tasks: set[asyncio.Task[None]] = set()

# Stands for the host in whose task, or in handlers of whose node, the code runs. It is not the host
# itself, as the node holds the context of its handlers: a reference cycle.
_current: ContextVar[object] = ContextVar("_current")


class _TaskGroup(Protocol):
    """What a task group of AnyIO and a nursery of Trio have in common."""

    @property
    def start_soon(self) -> Callable[..., object]: ...


def _forget(task: asyncio.Task[None]) -> None:
    _tasks.discard(task)
    if not task.cancelled():
        task.exception()  # asyncio complains of those that nobody asks for


class Host(Generic[NodeT]):
    """Runs the block of a node in its own task, from ``start()`` to ``stop()``.

    ``async with Host(App("app")) as app: ...`` does both, and gives the node. The block may be left
    in a different task than the one that entered it, for example in a fixture.

    If the node fails, it ends at once, and its host with it. The failure is logged at that moment
    and raised by ``stop()``. There is one exception: a ``SystemExit`` or ``KeyboardInterrupt`` of a
    worker does not wait for ``stop()``, but ends the program, as in any task.

    Args:
        node: The node, not yet opened, and without a parent; mount child nodes on their parent.
        task_group: The AnyIO task group or Trio nursery in which the task runs. It waits for the
            task, and cancelling it ends the node. Without one, asyncio itself runs the task; Trio
            cannot do that.

    Raises:
        WorkerError: An argument is invalid.
    """

    def __init__(self, node: NodeT, *, task_group: _TaskGroup | None = None) -> None:
        _check_node("Host()", node)
        if node.parent is not None:
            raise WorkerError(
                f"node {node.path!r} has a parent, and is not for a host; make it without one and "
                "use await parent.mount(node)"
            )
        if task_group is not None and not callable(getattr(task_group, "start_soon", None)):
            raise WorkerError(
                "task_group must be a task group of AnyIO or a nursery of Trio, "
                f"not {task_group!r:.100}"
            )
        self.node: NodeT = node
        """The node."""
        self._mark = object()
        self._task_group = task_group
        self._loop: object = None  # that of start()
        self._scope: anyio.CancelScope  # of the task, from start() on
        self._has_begun = False  # whether the task has
        self._is_open = False  # whether the node was ever open
        self._opened = anyio.Event()  # or it will never be
        self._leaving = anyio.Event()
        self._grace = 0.0  # what is left of it, once that is set
        self._ended = anyio.Event()
        self._error: BaseException | None = None  # what the block has raised, until it is told
        self._callers = 0  # how many of start() and stop() are under way, and will tell it

    def __repr__(self) -> str:
        state = "new" if self._loop is None else "ended" if self._ended.is_set() else "running"
        return f"<Host of node {self.node.path!r}, {state}>"

    async def start(self) -> None:
        """Open the node, in its own task. Returns once it is open.

        If this call is cancelled, the node is closed again before it returns.

        Raises:
            WorkerError: It was started before; or this is Trio, and there is no ``task_group``; or
                the task was cancelled before the node was open.
            BaseException: What opening the node raised.

        Checkpoint:
            Always.

        Threads:
            The event loop in which the node should run.
        """
        if self._loop is not None:
            raise WorkerError(
                f"the host of node {self.node.path!r} was started before; make a new Host for a "
                "new node"
            )
        loop = lowlevel.current_token().native_token
        if self._task_group is None and not isinstance(loop, asyncio.AbstractEventLoop):
            raise WorkerError(
                "under Trio every task lives in a nursery, so Host() needs one: "
                "Host(node, task_group=nursery)"
            )
        self._loop, self._scope = loop, anyio.CancelScope()
        run = self._run()
        self._callers += 1
        try:
            self._spawn(run)
            # A native Task.cancel() kills a task before its first step without a word. What has
            # not begun two turns of the loop after it was made never will.
            for _ in range(2):
                await lowlevel.cancel_shielded_checkpoint()
            if self._has_begun:
                await self._opened.wait()
        except BaseException:
            self._scope.cancel()
            with anyio.CancelScope(shield=True):
                if self._has_begun:
                    await self._ended.wait()
            self._tell()  # as a block does: what failed goes before a cancellation
            raise
        finally:
            self._callers -= 1
            if not self._has_begun:
                run.close()
                self._end()
        if not self._is_open:
            self._tell()
            raise WorkerError(
                f"the host of node {self.node.path!r} was cancelled before the node was open"
            )

    def _spawn(self, run: Coroutine[Any, Any, None]) -> None:
        name = f"host of node {self.node.path!r}"
        if self._task_group is not None:
            self._task_group.start_soon(lambda: run, name=name)
        else:
            task = asyncio.get_running_loop().create_task(run, name=name)
            _tasks.add(task)
            task.add_done_callback(_forget)

    async def _run(self) -> None:
        self._has_begun = True
        _current.set(self._mark)
        try:
            with self._scope:
                async with self.node:
                    self._is_open = True
                    self._opened.set()
                    await self._leaving.wait()
                    await self.node.shutdown(self._grace)
        except (anyio.get_cancelled_exc_class(), GeneratorExit):
            raise
        except BaseException as error:
            if not isinstance(error, Exception) and not self._callers:
                raise
            self._error = error
        finally:
            self._end()

    def _end(self) -> None:
        self._ended.set()
        self._opened.set()

    def _tell(self) -> None:
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # it holds this frame

    async def stop(self, grace: float = 0) -> None:
        """Shut the node down, as ``Node.shutdown()`` does, leave its block, and raise its errors.

        What the block raised is raised once, by the first call that returns after the end. Later
        calls do nothing, and neither does a call before ``start()``. Concurrent calls all wait,
        each with its own grace period; the shortest one counts.

        If this call is cancelled, the grace period is over. The node is cancelled and takes its
        time to end; use ``wait()`` to wait for that.

        If a worker or a handler of the node calls this, it returns at once, because the node cannot
        end before they do. They have the same grace period.

        Args:
            grace: Seconds that work may go on before it is cancelled.

        Raises:
            WorkerError: Grace is negative, or this is another event loop and the node is open.
            BaseException: What the block of the node raised.

        Checkpoint:
            Always.

        Threads:
            The event loop of ``start()`` only; any, once the node has ended.
        """
        _check_grace(grace)
        if self._is_over("stop()"):
            await lowlevel.checkpoint()
        elif self._is_inside():
            self._grace = grace
            self._leaving.set()
            await lowlevel.checkpoint()
            return
        else:
            await self._leave(grace)
        if self._is_open:  # else start() tells
            self._tell()

    async def _leave(self, grace: float) -> None:
        self._callers += 1
        try:
            await self._opened.wait()
            if not self._ended.is_set():
                await self.node.shutdown(grace)
            self._leaving.set()
            await self._ended.wait()
        except BaseException:
            self.node.cancel("the stop() of its host was cancelled")
            raise
        finally:
            self._callers -= 1

    def _is_inside(self) -> bool:
        """Whether this is code of a worker or of a handler of the node, which it waits for."""
        worker = active_worker.get(None)
        node = None if worker is None else _node_of(worker)
        while node is not None and node is not self.node:
            node = node.parent
        return node is not None or _current.get(None) is self._mark

    async def wait(self) -> None:
        """Wait until the node has ended. Raises none of its errors; ``stop()`` does that.

        Raises:
            WorkerError: The host was not started, or this is another event loop and the node is
                open.

        Checkpoint:
            Always.

        Threads:
            The event loop of ``start()`` only; any, once the node has ended.
        """
        if self._loop is None:
            raise WorkerError(
                f"the host of node {self.node.path!r} was not started, so there is no end to wait "
                "for; call start() first"
            )
        if self._is_over("wait()"):
            await lowlevel.checkpoint()
        else:
            await self._ended.wait()

    def _is_over(self, call: str) -> bool:
        """Tell whether there is nothing to wait for.

        Raises:
            WorkerError: There is, and this is another event loop.
        """
        if self._loop is None or self._ended.is_set():
            return True
        if lowlevel.current_token().native_token is not self._loop:
            raise WorkerError(
                f"the host of node {self.node.path!r} runs in another event loop; {call} is for "
                "tasks of that one"
            )
        return False

    async def __aenter__(self) -> NodeT:
        """Start, see ``start()``, and give the node."""
        await self.start()
        return self.node

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, see ``stop()``; once cancelled it still waits for the end, as a node's block does.

        Raises:
            BaseException: What the block of the node raised. A ``SystemExit`` or the like of the
                body goes before errors of the node, which are in the log.
        """
        try:
            with anyio.CancelScope(shield=True):
                await self.stop()
        except Exception:
            if exc is None or isinstance(exc, Exception | anyio.get_cancelled_exc_class()):
                raise
        finally:
            del exc, traceback  # they hold this frame


class SignalReceived(SystemExit):
    """A signal has ended the program, in an orderly way: exit status 128 + the signal.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal: signal.Signals = signal.Signals(number)
        """The signal."""


@asynccontextmanager
async def stop_on_signals(node: Node, grace: float = 30) -> AsyncGenerator[None]:
    """Shut a node down and end the program when a signal arrives.

    ``async with stop_on_signals(app), app: ...``: the first SIGINT or SIGTERM shuts
    the node down, and then cancels what is left of the block. A second one cancels the node
    at once. A third is handled as if this block did not exist. When the block has ended,
    ``SignalReceived`` is raised, and the program exits with 128 + the signal.

    An error of the block takes precedence, except errors that only say that the node was shut down,
    such as ``WorkerCancelled``. Without a signal nothing changes. At the end, the previous signal
    handlers are restored.

    On Windows, SIGINT is Ctrl+C, and SIGBREAK (Ctrl+Break) is handled too. Other ways to
    end a program there are not signals and end it at once.

    Args:
        node: The node, open or not.
        grace: Seconds that work may go on after the first signal, see ``Node.shutdown()``.

    Raises:
        WorkerError: It is not a node, or grace is negative; or this is not the main thread, the
            only one in which Python handles signals.
        SignalReceived: A signal was received.

    Checkpoint:
        Always, on leaving.

    Threads:
        The main thread only, in the node's event loop.
    """
    _check_node("stop_on_signals()", node)
    _check_grace(grace)
    if threading.current_thread() is not threading.main_thread():
        raise WorkerError(
            "stop_on_signals() is for the main thread, the only one in which Python handles "
            "signals; in another use node.shutdown() as the thread is told to end"
        )
    cancelled = anyio.get_cancelled_exc_class()
    failure: BaseException | None = None

    async def obey() -> None:
        await signals.first.wait()
        try:
            await node.shutdown(grace)
        except WorkerError:  # it is not open yet
            node.cancel(f"told by {signals.received[0].name}")
        tasks.cancel_scope.cancel()

    signals = _Signals(node)
    try:
        signals.catch()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(obey, name="signals")
            try:
                yield
            except BaseException as raised:  # noqa: BLE001 (the task group would wrap it)
                failure = raised
            if not signals.received:
                tasks.cancel_scope.cancel()
    except cancelled:
        if failure is None and not signals.received:
            raise
    finally:
        signals.release()
    try:
        if signals.received and _is_of_the_end(failure, cancelled, node):
            raise SignalReceived(signals.received[0])
        if failure is not None:
            raise failure
    finally:
        del failure  # it holds this frame


# The third is Windows' own.
_CAUGHT = tuple(each for each in signal.Signals if each.name in {"SIGINT", "SIGTERM", "SIGBREAK"})


class _Signals:
    """The signals that have come since they were caught.

    Args:
        node: Cancelled by the second of them.
    """

    def __init__(self, node: Node) -> None:
        self.received: list[signal.Signals] = []
        self.first = anyio.Event()
        """Set by the first of them."""
        self._node = node
        loop: Any = lowlevel.current_token().native_token
        self._post: Callable[[Callable[[], object]], object] = (
            loop.call_soon_threadsafe
            if isinstance(loop, asyncio.AbstractEventLoop)
            else loop.run_sync_soon
        )
        self._before: dict[int, Any] = {}

    # Not by anyio.open_signal_receiver(): asyncio does not give back the handlers that were there.

    def catch(self) -> None:
        """Handle them from now on."""
        for number in _CAUGHT:
            self._before[number] = signal.getsignal(number)
            signal.signal(number, self._handle)

    def release(self) -> None:
        """Leave them to who handled them before; may be called again."""
        while self._before:
            number, before = self._before.popitem()
            # None stands for a handler that is not Python's, which it cannot set again.
            signal.signal(number, signal.SIG_DFL if before is None else before)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.received.append(signal.Signals(number))
        if len(self.received) == 1:
            self._post(self.first.set)
        else:
            self.release()
            self._node.cancel(f"told by {self.received[-1].name}, the second signal")


def _is_of_the_end(
    failure: BaseException | None, cancelled: type[BaseException], node: Node
) -> bool:
    """Tell whether what left a block, if anything, only says that its node has shut down."""
    for error in _leaves(failure):
        if type(error) is WorkerError:  # it wanted to start work, say
            _logger.warning("while node %r was shut down by a signal: %s", node.path, error)
        elif not isinstance(error, (cancelled, WorkerCancelled)):
            return False
    return True


def _leaves(error: BaseException | None) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(each)
    elif error is not None:
        yield error


def _check_node(call: str, node: Node) -> None:
    if not isinstance(node, Node):
        raise WorkerError(f"{call} takes a Node, not {node!r:.100}")


def _check_grace(grace: float) -> None:
    if not grace >= 0:
        raise WorkerError(f"grace must be 0 seconds or more, not {grace!r}")
