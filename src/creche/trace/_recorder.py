"""The recorder: what it hears of workers it keeps as rows of plain data."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections import deque
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, final
from weakref import WeakKeyDictionary

import anyio

from creche import Node, Worker, WorkerError, WorkerState

from ._chrome import as_json
from ._layout import Entry, lay_out
from ._page import as_page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    if sys.version_info >= (3, 11):
        from typing import Self
    else:
        from typing_extensions import Self

_LONGEST = 1_000  # characters of a text
_UNFINISHED = {WorkerState.PENDING, WorkerState.RUNNING}
_FORMATS = {".html": as_page, ".json": as_json}


def record(node: Node, *, keep: int = 10_000) -> Trace:
    """Record what the workers of a node and of all nodes below it do.

    ``async with record(app) as trace, app: ...`` records the whole life of a node. The block may
    also be opened while the node is open; workers that are there already are part of the recording.
    It does not keep the node open, delays no worker and holds none alive.

    Args:
        node: The node.
        keep: How many finished workers to keep, the newest; older ones are dropped, and the
            timeline says so. A worker takes less than a kilobyte, long texts apart.

    Returns:
        The recording, to be opened as a block.

    Raises:
        WorkerError: It is no node, or ``keep`` is not 1 or more.

    Threads:
        Any thread; the block is for the node's event loop only.
    """
    if not isinstance(node, Node):
        raise WorkerError(f"record() takes a Node, not {node!r:.100}")
    if not (isinstance(keep, int) and keep >= 1):
        raise WorkerError(f"keep must be a number of workers, 1 or more, not {keep!r:.100}")
    return Trace(node, keep)


@final
class Trace:
    """What workers did, while they do it and afterwards; made by ``record()``, see there."""

    def __init__(self, node: Node, keep: int) -> None:
        self._node = node
        self._keep = keep
        self._events = node.subscribe(Worker.StateChanged, tree=True)
        self._numbers = itertools.count(1)
        # A worker that has not ended is held by its node; one that has is kept for what it started.
        self._known: WeakKeyDictionary[Worker[Any], Entry] = WeakKeyDictionary()
        self._finished: deque[Entry] = deque()
        self._unfinished: list[Entry] = []  # those that are left when the recording is over
        self._dropped = 0
        self._whole_since: float | None = None
        self._begin: float | None = None
        self._end: float | None = None
        self._thread = 0
        self._recorded = datetime.now(timezone.utc)
        self._clock_offset = 0.0
        self._tasks: anyio.abc.TaskGroup | None = None
        self._reading = anyio.CancelScope(shield=True)
        self._done = anyio.Event()

    def __repr__(self) -> str:
        return f"<Trace of node {self._node.path!r}, {self._dropped} workers dropped>"

    @property
    def dropped(self) -> int:
        """How many finished workers were dropped, as more than ``keep`` have finished.

        Threads:
            Any thread.
        """
        return self._dropped

    async def __aenter__(self) -> Self:
        """Begin to record.

        Raises:
            WorkerError: It was opened before; the node is closed; or this is not the thread of the
                node's event loop.

        Checkpoint:
            Never.

        Threads:
            The node's event loop only.
        """
        await self._events.__aenter__()
        self._thread = threading.get_ident()
        self._begin = anyio.current_time()
        self._clock_offset = self._begin - monotonic()
        self._recorded = datetime.now(timezone.utc)
        below = set(_below(self._node))
        for worker in self._node.workers:
            if worker.node in below:
                self._meet(worker)
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._read, name=f"recorder of node {self._node.path!r}")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the recording. Workers that have not ended are shown up to now.

        Checkpoint:
            Always, but it cannot be cancelled here.
        """
        assert self._tasks is not None
        self._end = self._now()
        self._catch_up()
        self._unfinished = self._running()
        self._reading.cancel()
        with anyio.CancelScope(shield=True):
            await self._done.wait()
        # Not with the exception of the body, which it would put into a group.
        await self._tasks.__aexit__(None, None, None)
        await self._events.__aexit__(None, None, None)

    # what is heard

    async def _read(self) -> None:
        try:
            with self._reading:
                async for event in self._events:
                    self._note(event)
                    del event  # it holds the worker
                    self._catch_up()
        finally:
            self._done.set()

    def _catch_up(self) -> None:
        """Take note of all that has happened."""
        for event in self._events.take_all():
            self._note(event)

    def _note(self, event: Worker.StateChanged) -> None:
        entry = self._known.get(event.worker)
        if entry is None:
            entry = self._meet(event.worker)
        if event.origin is not None and event.origin in self._known:
            entry.origin = self._known[event.origin].number
        if event.state in _UNFINISHED:
            return  # what it is in the midst of is read from it when it is wanted
        _update(entry, event.worker)
        self._finished.append(entry)
        if len(self._finished) > self._keep:
            self._whole_since = self._finished.popleft().finished
            self._dropped += 1

    def _meet(self, worker: Worker[Any]) -> Entry:
        entry = Entry(
            next(self._numbers),
            _text(worker.name or type(worker).__name__),
            sys.intern(_text(worker.node.path)),  # the same for many
            sys.intern(_text(worker.group)),
            _created(worker),
        )
        self._known[worker] = entry
        return entry

    def _running(self) -> list[Entry]:
        """Tell of the workers that have not ended how they stand now."""
        found: list[Entry] = []
        for worker, entry in list(self._known.items()):
            if entry.state in _UNFINISHED:
                _update(entry, worker)
                found.append(entry)
        return found

    def _now(self) -> float:
        with suppress(anyio.NoEventLoopError):
            return anyio.current_time()
        return monotonic() + self._clock_offset  # a callback of the loop, or of a signal

    # what is shown

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the timeline to a file.

        A name that ends in ``.html`` makes a page to be opened in a browser, with all that it needs
        in it. One that ends in ``.json`` makes a trace in the Chrome trace event format, to be
        opened in https://ui.perfetto.dev or ``chrome://tracing``. Both have a lane for each group,
        with as many rows as workers of it ran at once. May be called again, also while the
        recording goes on; what has not ended is shown up to now. An existing file is replaced.

        Args:
            path: Where to.

        Raises:
            WorkerError: The name ends in something else; the recording was not opened; or it goes
                on, and this is another thread.
            OSError: The file cannot be written.

        Threads:
            The node's event loop, which is kept busy meanwhile, for about a tenth of a second for a
            thousand workers; once the block was left, any thread.
        """
        form = _FORMATS.get(Path(path).suffix.lower())
        if form is None:
            raise WorkerError(
                f"cannot save a timeline as {os.fspath(path)!r:.200}; let its name end in .html, "
                "for a page, or .json, for Perfetto and chrome://tracing"
            )
        if self._begin is None:
            raise WorkerError(f"{self!r} has recorded nothing; use it as a block: async with")
        unfinished, end = self._unfinished, self._end
        if end is None:
            if threading.get_ident() != self._thread:
                raise WorkerError(
                    f"{self!r} goes on in another thread; save it in that of the node's event "
                    "loop, or after its block"
                )
            end = self._now()
            self._catch_up()
            unfinished = self._running()
        picture = lay_out([*self._finished, *unfinished], self._begin, end, self._whole_since)
        about = {
            "node": _text(self._node.path),
            "recorded": self._recorded.isoformat(timespec="seconds"),
            "workers": len(picture.bars),
            "dropped": self._dropped,
            "keep": self._keep,
        }
        Path(path).write_text(form(picture, about), encoding="utf-8")


def _below(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _below(child)


def _created(worker: Worker[Any]) -> float:
    assert worker.created_at is not None  # it is heard of when it is added
    return worker.created_at


def _update(entry: Entry, worker: Worker[Any]) -> None:
    """Read from a worker how it stands."""
    entry.created = _created(worker)  # told anew when the node is opened
    entry.state = worker.state
    entry.started = worker.started_at
    entry.finished = worker.finished_at
    entry.cancelled = worker.cancelled_at
    entry.description = _text(worker.description)
    if worker.cancel_reason is not None:
        entry.reason = _text(worker.cancel_reason)
    error = worker.error
    if error is not None:
        entry.error = f"{_text(type(error).__name__)}: {_text(error)}"


def _text(value: object) -> str:
    """Put something of the user's into characters that every file can hold."""
    try:
        told = str(value)
    except Exception:  # noqa: BLE001 (what others wrote disturbs nobody's recording)
        told = f"<{type(value).__name__} that cannot be told>"
    if len(told) > _LONGEST:
        told = told[: _LONGEST - 1] + "…"
    if not told.isascii():
        told = told.encode("utf-8", "backslashreplace").decode("utf-8")  # of half characters
    return told
