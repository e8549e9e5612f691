"""The workers of an app, with Textual's interface, and the Creche nodes that they belong to."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from contextvars import Context
from typing import TYPE_CHECKING, Any, cast

from textual import worker as stock
from textual import worker_manager

import creche
from creche.hosting import Host

from ._worker import STATES, Worker, as_textual

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator

    from textual.app import App
    from textual.dom import DOMNode


class Home(creche.Node):
    """The node of an app, a screen or a widget."""

    def __init__(self, owner: DOMNode, manager: WorkerManager) -> None:
        super().__init__(owner.css_identifier)
        self._owner = owner
        self._manager = manager

    def on_worker_state_changed(self, event: creche.Worker.StateChanged) -> None:
        """Tell the widget about the change, and the app about an error.

        A worker that was started on the node itself is a plain one, which Textual does not know.
        """
        worker: Any = event.worker
        if issubclass(type(worker), Worker):
            self._owner.post_message(stock.Worker.StateChanged(worker, STATES[event.state]))
        self._manager._tell(worker)

    async def __aexit__(self, *error: object) -> bool:
        """Leave the node and forget it: if the widget starts work again, it gets a new node."""
        try:
            return await super().__aexit__(*cast("Any", error))
        finally:
            self._manager._homes.pop(self._owner, None)


class WorkerManager(worker_manager.WorkerManager):
    """Manages the workers of an app, like Textual's manager, and the nodes that they belong to.

    Args:
        app: The app.
    """

    def __init__(self, app: App[Any]) -> None:
        cast("Any", super()).__init__(app)
        self._owner: Any = app
        self.root: creche.Node = Home(app, self)
        """The node of the app, for ``record()``, ``subscribe()``, ``format_tree()`` and so on."""
        self._homes: dict[DOMNode, creche.Node] = {app: self.root}
        self._untold: list[BaseException] = []

    def home(self, node: DOMNode) -> creche.Node:
        """Return the node of a screen or a widget, for example to set up its groups.

        The first call creates the node.

        Args:
            node: The screen or the widget, or the app, whose node is ``root``.

        Returns:
            The node. It closes when Textual unmounts the widget.

        Raises:
            WorkerError: Textual's: the app is not running, and so has no node for a widget.

        Threads:
            The app's event loop only.
        """
        home = self._homes.get(node)
        if home is None:
            home = Home(node, self)
            with as_textual():
                # Its handlers run in this context, which has nothing of whoever makes it.
                Context().run(self.root.attach, home)
            self._homes[node] = home
        return home

    async def leave(self, node: DOMNode) -> None:
        """Wait until the work of a removed widget has ended.

        ``await widget.remove()`` does not wait for that. Cancelling this call only ends the wait.

        Args:
            node: The widget. If it is still mounted, its work is cancelled.

        Checkpoint:
            If there is something to wait for.

        Threads:
            The app's event loop only.
        """
        home = self._homes.get(node)
        if home is not None:
            with as_textual():
                await home.remove()

    @asynccontextmanager
    async def _life(self) -> AsyncGenerator[None]:
        """Keep the nodes open while the app runs."""
        host = Host(self.root)
        await host.start()
        try:
            yield
        finally:
            await host.stop()
        if self._untold:  # the app had ended when the first came
            raise stock.WorkerFailed(self._untold[0]) from self._untold[0]

    def _tell(self, worker: Worker[Any]) -> None:
        """Log a change in the developer console, and tell the app about an error that ends it."""
        error = worker.error
        self._owner.log.worker(worker, *([] if error is None else ["failed", repr(error)]))
        if error is not None and getattr(worker, "exits_app", worker.exit_on_error):
            self._untold.append(error)
            self._owner.call_later(self._fail, error)

    def _fail(self, error: BaseException) -> None:
        self._untold.clear()  # as with Textual, the first counts
        raise stock.WorkerFailed(error) from error

    # Textual's interface

    def __iter__(self) -> Iterator[Any]:
        return iter(self.root.workers)

    def __reversed__(self) -> Iterator[Any]:
        return reversed(self.root.workers)

    def __bool__(self) -> bool:
        return bool(self.root.workers)

    def __len__(self) -> int:
        return len(self.root.workers)

    def __contains__(self, worker: object) -> bool:
        return worker in self.root.workers

    def __rich_repr__(self) -> Generator[tuple[str, int]]:
        yield from Counter(worker.state.name for worker in self).items()

    def _new_worker(
        self,
        work: Any,
        node: DOMNode,
        *,
        start: bool = True,
        exclusive: bool = False,
        **options: Any,
    ) -> Worker[Any]:
        options["name"] = options.get("name") or getattr(work, "__name__", "") or ""
        options["description"] = options.get("description") or repr(work)
        worker: Worker[Any] = Worker(node, work, **options)
        self.add_worker(worker, start, exclusive)
        return worker

    def add_worker(self, worker: Any, start: bool = True, exclusive: bool = True) -> None:
        """Add a worker that you created yourself.

        Args:
            worker: The worker, of the class ``creche.textual.Worker``.
            start: Whether to start it.
            exclusive: Whether to cancel the unfinished workers of its group when it starts.

        Raises:
            WorkerError: Textual's: the worker has already been added or has another class, or the
                app is not running.
        """
        with as_textual():
            if not issubclass(type(worker), Worker):
                raise creche.WorkerError(f"worker must be a creche.textual.Worker, not {worker!r}")
            self.root.workers.add_worker(worker, start, exclusive and bool(worker.group))

    def start_all(self) -> None:
        """Start all workers that were added with ``start=False``."""
        with as_textual():
            self.root.workers.start_all()

    def cancel_all(self) -> None:
        """Cancel all workers."""
        self.root.workers.cancel_all()

    def cancel_group(self, node: DOMNode, group: str) -> list[Any]:
        """Cancel the workers of a node's group, and return those that are unfinished."""
        return self._cancel(node, lambda worker: worker.group == group)

    def cancel_node(self, node: DOMNode) -> list[Any]:
        """Cancel the workers of a node, and return those that are unfinished.

        Textual calls this for each widget that it unmounts. This also closes the widget's node.
        """
        found = self._cancel(node, lambda _: True)
        home = self._homes.get(node)
        if home is not None and home is not self.root and not node.is_running:
            home.cancel("its widget was removed")
        return found

    def _cancel(self, node: DOMNode, which: Callable[[Any], bool]) -> list[Any]:
        home = self._homes.get(node)
        every = [worker for group in home.groups for worker in group] if home is not None else []
        found: list[Any] = [worker for worker in every if which(worker)]
        for worker in found:
            worker.cancel()
        return found

    async def wait_for_complete(self, workers: Iterable[Any] | None = None) -> None:
        """Wait until workers have ended, then raise an error if one of them did not succeed.

        Cancelling this call only ends the wait; the workers keep running.

        Args:
            workers: The workers; by default, all workers of the app.

        Raises:
            WorkerFailed: One of them failed. This and the other errors are Textual's.
            WorkerCancelled: One of them was cancelled.
            WorkerError: One of them was never started.

        Checkpoint:
            Always.

        Threads:
            The app's event loop only.
        """
        waited = list(self if workers is None else workers)
        with as_textual():
            await self.root.workers.wait_for_complete(waited)
        for worker in waited:
            await worker.wait()
