"""The recorder: what it hears of workers it keeps as rows of plain data."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias, final
from weakref import WeakValueDictionary

import anyio

from creche import Node, Worker, WorkerError, WorkerState
from creche._core.facts import below, facts_of
from creche._ground.text import error_text, name_of, path_of, text_of
from creche._looking.watching import Faults, beside

from ._chrome import as_json
from ._layout import Entry, Mark, lay_out
from ._page import as_page

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    if sys.version_info >= (3, 11):
        from typing import Self
    else:
        from typing_extensions import Self

_Event: TypeAlias = Worker.StateChanged | Worker.Ready | Worker.Restarted | Worker.Stalled
_EVENTS: tuple[type[_Event], ...] = (
    *(Worker.StateChanged, Worker.Ready),
    *(Worker.Restarted, Worker.Stalled),
)
_LONGEST = 1_000  # characters of a text
_MARKS = 100  # of a worker are kept, the newest
_UNFINISHED = {WorkerState.PENDING, WorkerState.RUNNING}
_FORMATS = {".html": as_page, ".json": as_json}


def record(node: Node, *, keep: int = 10_000) -> Trace:
    """Record what the workers of a node and of all nodes below it do.

    ``async with record(app) as trace, app: ...`` records the whole life of a node. You can open
    the block while the node is open, too; the workers that are there already are recorded. It does
    not keep the node open, delays no worker, and keeps none alive. If something cannot be
    recorded, it is missing, and the logger ``creche`` logs that once at ERROR. Objects that cannot
    be converted to text become ``<unprintable ...>``.

    Args:
        node: The node.
        keep: How many finished workers to keep. The oldest are dropped first, and the timeline
            says so. A worker takes less than a kilobyte, not counting long texts.

    Returns:
        The recording, to be opened as a block.

    Raises:
        WorkerError: It is not a node, or ``keep`` is less than 1.

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
    """What workers did, during the recording and afterwards; made by ``record()``, see there."""

    def __init__(self, node: Node, keep: int) -> None:
        self._node = node
        self._keep = keep
        self._events = Node.subscribe(node, *_EVENTS, tree=True)
        # Those that have not ended, by number. They are held by their nodes.
        self._entries: dict[int, Entry] = {}
        self._workers: WeakValueDictionary[int, Worker[Any]] = WeakValueDictionary()
        self._finished: deque[Entry] = deque()
        self._unfinished: list[Entry] = []  # those that are left when the recording is over
        self._dropped = 0
        self._whole_since: float | None = None
        self._begin: float | None = None
        self._end: float | None = None
        self._thread = 0
        self._recorded = datetime.now(timezone.utc)
        self._clock_offset = 0.0
        self._faults = Faults(f"the recorder of node {path_of(node)!r}")
        self._beside: AbstractAsyncContextManager[None] | None = None

    def __repr__(self) -> str:
        return f"<Trace of node {path_of(self._node)!r}, {self._dropped} workers dropped>"

    @property
    def dropped(self) -> int:
        """How many finished workers were dropped because more than ``keep`` have finished.

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
        with self._faults:
            groups = [group for each in below(self._node) for group in each._creche_groups.values()]
            for worker in sorted((each for group in groups for each in group), key=number_of):
                self._meet(worker)
        name = f"recorder of node {path_of(self._node)!r}"
        self._beside = beside(self._read, self._faults, name)
        await self._beside.__aenter__()
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
        assert self._beside is not None
        with self._faults:
            self._end = self._now()
            self._catch_up()
            self._unfinished = self._running()
        try:
            await self._beside.__aexit__(exc_type, exc, traceback)
        finally:
            await self._events.__aexit__(None, None, None)

    # what is heard

    async def _read(self) -> None:
        async for event in self._events:
            self._note(event)
            del event  # it holds the worker
            self._catch_up()

    def _catch_up(self) -> None:
        """Take note of all that has happened."""
        for event in self._events.take_all():
            self._note(event)

    def _note(self, event: _Event) -> None:
        with self._faults:
            self._take(event)

    def _take(self, event: _Event) -> None:
        worker = event.worker
        entry = self._entries.get(number_of(worker))
        if entry is None:
            entry = self._meet(worker)
        if not isinstance(event, Worker.StateChanged):
            entry.marks = (*entry.marks[1 - _MARKS :], _mark(event))
            return
        if isinstance(event.origin, Worker):  # anything can be put into a context variable
            entry.origin = number_of(event.origin)
        if event.state in _UNFINISHED:
            return  # what it is in the midst of is read from it when it is wanted
        del self._entries[entry.number], self._workers[entry.number]
        _update(entry, worker)
        self._finished.append(entry)
        if len(self._finished) > self._keep:
            self._whole_since = self._finished.popleft().finished
            self._dropped += 1

    def _meet(self, worker: Worker[Any]) -> Entry:
        entry = Entry(
            number_of(worker),
            _short(name_of(worker)),
            sys.intern(_short(path_of(worker._node))),  # the same for many
            sys.intern(_short(text_of(worker, "group"))),
            self._begin or 0.0,
        )
        self._entries[entry.number] = entry
        self._workers[entry.number] = worker
        return entry

    def _running(self) -> list[Entry]:
        """Tell of the workers that have not ended how they stand now."""
        found: list[Entry] = []
        for number, entry in list(self._entries.items()):
            worker = self._workers.get(number)
            if worker is None:
                del self._entries[number]  # nobody holds it, so it will never end
            else:
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

        A name that ends in ``.html`` makes a self-contained page for a browser. A name that ends in
        ``.json`` makes a trace in the Chrome trace event format, for https://ui.perfetto.dev or
        ``chrome://tracing``. Both have a lane for each group, with as many rows as its workers need
        that ran at the same time. You can call this again, and during the recording; workers
        that have not ended are shown up to now. An existing file is replaced.

        Args:
            path: The file.

        Raises:
            WorkerError: The name ends in something else; the recording was not opened; or it is
                still open, and this is another thread.
            OSError: The file cannot be written. If it was created, it is empty.

        Threads:
            The node's event loop, which is blocked meanwhile, for about a tenth of a second for a
            thousand workers; any thread, once the block was left.
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
            "node": _short(path_of(self._node)),
            "recorded": self._recorded.isoformat(timespec="seconds"),
            "workers": len(picture.bars),
            "dropped": self._dropped,
            "keep": self._keep,
        }
        _write(Path(path), form(picture, about))


def _mark(event: Worker.Ready | Worker.Restarted | Worker.Stalled) -> Mark:
    if isinstance(event, Worker.Restarted):
        return Mark(event.time, f"attempt {event.attempt}", _short(error_text(event.error)))
    if isinstance(event, Worker.Stalled):
        return Mark(event.time, "stalled", f"for {event.seconds:.3g} s")
    return Mark(event.time, "ready")


def number_of(worker: Worker[Any]) -> int:
    """Give the number of a worker, which grows from one that is made to the next."""
    return worker._order


def _update(entry: Entry, worker: Worker[Any]) -> None:
    """Read from a worker how it stands."""
    facts = facts_of(worker)
    times = (facts.created_at, facts.started_at, facts.finished_at)
    # Told anew when the node is opened; and an adapter's worker may never have been added.
    entry.created = next((time for time in times if time is not None), entry.created)
    entry.state = facts.state
    entry.started = facts.started_at
    entry.finished = facts.finished_at
    entry.cancelled = facts.cancelled_at
    entry.description = _short(facts.description)
    entry.reason = _short(facts.reason or "")
    entry.where = _short(facts.where)
    entry.attempt = facts.attempt
    entry.error = _short(error_text(facts.error)) if facts.error is not None else ""


def _write(path: Path, told: str) -> None:
    """Write a file: all of it or, as half of it is worse than nothing, nothing."""
    with path.open("wb", buffering=0) as file:
        try:
            left = memoryview(told.encode())
            while left:
                left = left[file.write(left) :]
        except BaseException:
            with suppress(OSError):  # it may be something that has no length
                file.truncate(0)
            raise


def _short(told: str) -> str:
    return told if len(told) <= _LONGEST else told[: _LONGEST - 1] + "…"
