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

_MOST = 20
"""How many lines are written at once."""
_WORDS = {WorkerState.RUNNING: "running", **ENDS}


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
        news = [
            event
            for event in self._board._news()
            if isinstance(event, Worker.StateChanged) and event.state in _WORDS
        ]
        news.sort(key=lambda event: event.state is not WorkerState.ERROR)
        for event in sorted(news[:_MOST], key=lambda event: event.number):
            self._write(_told(event))
        if rest := Counter(_WORDS[event.state] for event in news[_MOST:]):
            self._write(f"... {counted({f'more {what}': rest[what] for what in rest})}")

    def end(self) -> None:
        """Sum up."""
        self._write(f"{path_of(self._board.node)}: {self._board._summary()}")

    def _write(self, line: str) -> None:
        # Not by Rich, which exits where a pipe has broken.
        print(plain(line, self._console.encoding), file=self._console.file, flush=True)


def _told(event: Worker.StateChanged) -> str:
    facts, words = facts_of(event.worker), _WORDS[event.state]
    if event.state is not WorkerState.RUNNING and facts.started_at is not None:
        words += f" after {duration(facts.elapsed)}"
    reason = in_short(facts.error) or facts.reason
    if event.state in (WorkerState.ERROR, WorkerState.CANCELLED) and reason:
        words += f": {reason}"
    return f"{label(event.worker)}: {words}"
