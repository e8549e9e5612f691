"""A board where there is no terminal: a line for each worker that began or ended."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from creche import Worker, WorkerState
from creche._core.facts import facts_of
from creche._ground.text import label, path_of

from ._picture import ENDS
from ._tally import in_short
from ._words import counted, duration, plain

if TYPE_CHECKING:
    from rich.console import Console

    from ._picture import Board
    from ._tally import Change

_MOST = 20
"""How many lines are written at once."""
_WORDS = {WorkerState.RUNNING: "running", **ENDS}
_EVENTS: dict[type[object], str] = {
    Worker.Ready: "ready",
    Worker.Restarted: "failed, begins again",
    Worker.Stalled: "stalled",
}
_FAILURES = (ENDS[WorkerState.ERROR], _EVENTS[Worker.Restarted], _EVENTS[Worker.Stalled])


class Lines:
    """Shows a board as lines.

    Args:
        board: The board.
        console: Where.
    """

    interval: float = 1.0
    """Seconds from one burst of lines to the next, at least."""
    age: float = math.inf
    """Ages are not told."""

    def __init__(self, board: Board, console: Console) -> None:
        self._board = board
        self._console = console

    def begin(self) -> None:
        """Write nothing yet."""

    def show(self) -> None:
        """Write about what happened."""
        news = [event for event in self._board._news() if _words(event)]
        news.sort(key=lambda event: _words(event) not in _FAILURES)
        for event in sorted(news[:_MOST], key=lambda event: event.number):
            self._write(_told(event))
        if rest := Counter(map(_words, news[_MOST:])):
            self._write(f"... {counted({f'more {what}': rest[what] for what in rest})}")

    def end(self) -> None:
        """Sum up."""
        self._write(f"{path_of(self._board.node)}: {self._board._summary()}")

    def _write(self, line: str) -> None:
        # Not by Rich, which exits where a pipe has broken.
        print(plain(line, self._console.encoding), file=self._console.file, flush=True)


def _words(event: Change) -> str:
    """Tell what happened in a word or two; nothing of what is not worth a line."""
    if isinstance(event, Worker.StateChanged):
        return _WORDS.get(event.state, "")
    return _EVENTS.get(type(event), "")


def _told(event: Change) -> str:
    facts, words = facts_of(event.worker), _words(event)
    if isinstance(event, Worker.Restarted):
        words += f" in {event.delay:.3g} s (attempt {event.attempt}): {in_short(event.error)}"
    if isinstance(event, Worker.Stalled):
        words += f" for {event.seconds:.3g} s"
    if not isinstance(event, Worker.StateChanged):
        return f"{label(event.worker)}: {words}"
    if event.state is not WorkerState.RUNNING and facts.started_at is not None:
        words += f" after {duration(facts.elapsed)}"
    reason = in_short(facts.error) or facts.reason
    if event.state in (WorkerState.ERROR, WorkerState.CANCELLED) and reason:
        words += f": {reason}"
    return f"{label(event.worker)}: {words}"
