"""What watches the tree for all pages that are open: one worker, whatever their number."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio

from ._state import HIDDEN, State
from ._tally import KINDS, Tally

if TYPE_CHECKING:
    from collections.abc import Generator

    from creche import Node, Subscription, Worker

    from ._tally import Event

INTERVAL = 0.25
"""Seconds from one change that is told to the next, at least."""
_AGE = 1.0
"""Seconds after which it is looked again where nothing has happened: rates go down."""
_SHARE = 0.1
"""How much of the time may be taken to look, however many workers there are."""
_MOST = 20
"""How many changes wait for one who is slow; then it is told the whole instead."""


class Viewer:
    """One page that is open, and what it has not been told yet."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self._needs_whole = True
        self._is_over = False
        self._news = anyio.Event()

    def end(self) -> None:
        """Tell it that nothing comes any more."""
        self._is_over = True
        self._news.set()

    def put(self, change: str) -> None:
        """Tell it a change."""
        if len(self._waiting) >= _MOST:
            self._needs_whole = True
            self._waiting.clear()
        if not self._needs_whole:
            self._waiting.append(change)
        self._news.set()

    async def next(self) -> tuple[str, str | None]:
        """Wait for what is to be told next, and give its kind and its text; no text for all."""
        while not (self._needs_whole or self._waiting or self._is_over):
            self._news = anyio.Event()
            await self._news.wait()
        if self._needs_whole:
            self._needs_whole = False
            self._waiting.clear()
            return "tree", None
        if self._waiting:
            return "change", self._waiting.popleft()
        return "end", "{}"


class Tree:
    """Watches a node and all below it, from the first look on.

    Args:
        node: The node.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._tally = Tally()
        self._state = State()
        self._worker: Worker[None] | None = None
        self._viewers: set[Viewer] = set()
        self._whole = ""
        """What stays the same for all who ask, until it is looked again."""

    def begin(self) -> Worker[None]:
        """Have it watched, from here on; nothing happens if it is.

        Returns:
            The worker that does.

        Raises:
            WorkerError: The node takes no work.
        """
        if self._worker is None or self._worker.is_finished:
            self._worker = self._node.run_worker(
                self._watch, name="page", group=HIDDEN, daemon=True, exit_on_error=False
            )
            self._worker.add_done_callback(self._end)
        return self._worker

    def _end(self, worker: Worker[None]) -> None:
        """Tell all pages that nothing comes any more, also if it was never entered."""
        del worker
        for viewer in self._viewers:
            viewer.end()

    @contextmanager
    def seen_by(self, viewer: Viewer) -> Generator[None]:
        """Have one told what changes, in this block.

        Raises:
            WorkerError: The node takes no work.
        """
        worker = self.begin()
        if not self._viewers:
            self._look()  # nobody has told anybody how it stands
        self._viewers.add(viewer)
        worker.update()  # it waits for something to happen
        try:
            yield
        finally:
            self._viewers.discard(viewer)

    def whole(self, *, may_cancel: bool) -> str:
        """Give all of it as JSON, as it was told last to those who watch, or as it stands now.

        It is long where there are many workers, so it is made once for all pages that ask.

        Args:
            may_cancel: Whether who asks may cancel workers.
        """
        if not self._viewers:
            self._look()
        if not self._whole:
            told = self._state.whole(self._tally)
            self._whole = json.dumps({"node": self._node.path, **told})
        head = json.dumps({"time": round(time.time(), 3), "may_cancel": may_cancel})
        return f"{head[:-1]}, {self._whole[1:]}"

    def _look(self) -> dict[str, Any]:
        """Look how it stands now, and give what has changed."""
        self._whole = ""
        now, clock = time.time(), anyio.current_time()
        change = self._state.renew(self._node.snapshot(), self._tally, now, clock)
        return {"time": round(now, 3), **{name: rows for name, rows in change.items() if rows}}

    async def _watch(self) -> None:
        async with self._node.subscribe(*KINDS, tree=True, until="closing") as events:
            self._tally.begin(self._node.snapshot())
            with suppress(StopAsyncIteration):  # as the node closes
                while True:
                    begun = time.thread_time()
                    if self._viewers:
                        self._tell()
                    cost = time.thread_time() - begun
                    await anyio.sleep(max(INTERVAL, cost / _SHARE))
                    await self._take(events)

    async def _take(self, events: Subscription[Event]) -> None:
        """Wait for something to happen, or for a while."""
        taken: list[Event] = []
        with anyio.move_on_after(_AGE if self._viewers else math.inf):
            taken.append(await anext(events))
        taken += events.take_all()
        self._tally.take(taken, time.time(), anyio.current_time())

    def _tell(self) -> None:
        change = self._look()
        if len(change) > 1:
            text = json.dumps(change)
            for viewer in self._viewers:
                viewer.put(text)
