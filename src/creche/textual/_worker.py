"""A worker of both Creche and Textual, and the translation of Creche's errors to Textual's."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, TypeVar, cast

from textual import worker as stock

import creche

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from textual.dom import DOMNode

ResultType = TypeVar("ResultType")

STATES = {state: stock.WorkerState[state.name] for state in creche.WorkerState}
"""Textual's names for the states."""
_active_worker: ContextVar[Any] = cast("Any", stock).active_worker
_creches: Any = creche.Worker
_state_of: Callable[[creche.Worker[Any]], creche.WorkerState] = vars(creche.Worker)["state"].fget


class Cancelled(creche.WorkerCancelled, stock.WorkerCancelled):
    """Raised in a cancelled thread, as the ``WorkerCancelled`` of both Textual and Creche."""


@contextmanager
def as_textual(work: object = None) -> Generator[None]:
    """Raise Creche's errors as Textual's, and close work that will not run because of them."""
    try:
        yield
    except BaseException as error:
        if inspect.iscoroutine(work):
            work.close()
        if not isinstance(error, creche.WorkerError):
            raise
        if isinstance(error, creche.WorkerFailed):
            raise stock.WorkerFailed(error.error) from error.error
        kind: type[Exception] = stock.WorkerError
        if isinstance(error, creche.WorkerCancelled):
            kind = Cancelled
        elif isinstance(error, creche.DeadlockError):
            kind = stock.DeadlockError
        raise kind(*error.args) from None


# Of the two interfaces, which are alike, Creche's counts.
class Worker(creche.Worker[ResultType], stock.Worker[ResultType]):  # type: ignore[misc,override]
    """A Creche worker that is also a Textual worker, with the widget as ``node``.

    Usually created by ``run_worker()`` or ``@work``. It cannot be awaited, because Textual awaits
    whatever handlers and actions return; use ``await worker.wait()``. ``exit_on_error`` is always
    ``False``, because no Creche node fails when the worker does; see ``exits_app``.

    Args:
        node: The app, screen or widget that owns the worker.
        work: What to run.
        name: A short name.
        group: The name of its group within the node.
        description: A longer text for people.
        exit_on_error: Whether the app exits if the work fails.
        thread: Whether to run the work in a thread.

    Raises:
        WorkerError: Textual's: an argument is invalid, or the app is not running. If ``work`` is a
            coroutine, it is closed.
    """

    StateChanged = stock.Worker.StateChanged  # type: ignore[assignment]  # what widgets get
    __await__: Any = None  # it would block the message pump to its end

    def __init__(
        self,
        node: DOMNode,
        work: stock.WorkType[ResultType],
        *,
        name: str = "",
        group: str = "default",
        description: str = "",
        exit_on_error: bool = True,
        thread: bool = False,
    ) -> None:
        self._owner = node
        self.exits_app: bool = exit_on_error
        """Whether the app exits if the work fails."""
        # As with Textual, a thread has nothing of its creator's context. There are the types of
        # messages that are prevented, in a list, which it would share.
        context = Context() if thread else copy_context()
        options = {"name": name, "group": group, "description": description, "thread": thread}
        with as_textual(work):
            home = cast("Any", node).app.workers.home(node)
            context.run(self._make, home, work, options)

    def _make(self, home: creche.Node, work: Any, options: Any) -> None:
        _active_worker.set(self)  # in the context that the work runs in
        _creches.__init__(self, home, work, exit_on_error=False, **options)

    @property
    def node(self) -> DOMNode:  # type: ignore[override]  # Textual's
        """The app, screen or widget that owns the worker."""
        return self._owner

    @property  # type: ignore[misc]  # it cannot be assigned
    def state(self) -> stock.WorkerState:  # type: ignore[override]  # Textual's
        """The state, as Textual's ``WorkerState``."""
        return STATES[_state_of(self)]

    async def wait(self) -> ResultType:
        """Wait until the worker has ended, and return its result.

        Cancelling this call only ends the wait; the worker keeps running.

        Raises:
            WorkerFailed: The work raised; its exception is the ``__cause__``. This and the other
                errors are Textual's.
            WorkerCancelled: The worker was cancelled.
            DeadlockError: The caller is the worker itself, or one that this worker waits for.
            WorkerError: The worker was never started.

        Checkpoint:
            Always.

        Threads:
            The app's event loop only.
        """
        with as_textual():
            result: ResultType = await _creches.wait(self)
            return result
