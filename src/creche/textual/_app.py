"""The base class that an app adds."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import creche

from ._manager import WorkerManager
from ._worker import as_textual

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Creche:
    """Runs the workers of a Textual app on Creche: ``class MyApp(Creche, App): ...``."""

    _creche_workers: WorkerManager | None = None

    @property
    def workers(self) -> WorkerManager:
        """The workers of the app, and their nodes."""
        if self._creche_workers is None:
            self._creche_workers = WorkerManager(cast("Any", self))
        return self._creche_workers

    if not TYPE_CHECKING:  # pragma: no branch (for type checkers App's own signatures count)

        async def run_async(self, **options: Any) -> Any:
            """Run the app as ``App.run_async()`` does, inside its node."""
            async with self.workers._life():
                return await super().run_async(**options)

        @asynccontextmanager
        async def run_test(self, **options: Any) -> AsyncGenerator[Any]:
            """Run the app for a test as ``App.run_test()`` does, inside its node."""
            async with self.workers._life(), super().run_test(**options) as pilot:
                yield pilot

        def call_from_thread(self, callback: Any, *args: Any, **kwargs: Any) -> Any:
            """Call a function as ``App.call_from_thread()`` does, unless the worker was cancelled.

            Raises:
                WorkerCancelled: Textual's and Creche's: it was cancelled, and nothing was called.
            """
            worker = creche.active_worker.get(None)

            def call() -> Any:
                if worker is not None:
                    with as_textual():
                        worker.check_cancelled()
                return callback(*args, **kwargs)

            return super().call_from_thread(call)
