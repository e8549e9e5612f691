"""A live board: the tree of nodes, groups and workers in the terminal, while it works.

``async with live_board(app), app: ...`` is all. It needs Rich: ``pip install 'creche[rich]'``.
"""

from __future__ import annotations

import io
import math
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio

from creche import Node, Subscription, WorkerError
from creche._ground.text import path_of
from creche._looking.watching import Faults, beside, report

try:
    from rich.console import Console
except ImportError:
    raise ImportError("creche.board needs Rich: pip install 'creche[rich]'") from None

from ._lines import Lines
from ._notebook import Notebook, in_notebook
from ._picture import Board
from ._tally import CHANGES
from ._terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from ._tally import Change

__all__ = ["Board", "live_board"]

_SHARE = 0.1
"""How much of the time may be taken for drawing, however many workers there are."""


@asynccontextmanager
async def live_board(node: Node, *, console: Console | None = None) -> AsyncGenerator[Board]:
    """Show a node and everything below it in the terminal, live.

    ``async with live_board(app), app: ...`` shows the node to its end. If you open it within the
    block of the node, it shows the node until its own block is left. It draws when something
    happens, at most ten times a second, and once a second while only ages change; less often if
    drawing would take more than a tenth of the time. It is never taller than the terminal. The
    last picture stays. What is printed or logged meanwhile appears above it.

    In a notebook, the picture is shown below the cell, without widgets, at most four times a
    second. If the console is not a terminal, lines are written instead: one for each worker that
    starts or ends, at most twenty a second, failures first.

    The board does not keep the node open and never fails the program. If it cannot be drawn, for
    instance because the terminal is gone, it ends; the logger ``creche`` logs that at ERROR, and
    the work goes on. Objects that cannot be converted to text are shown as ``<unprintable ...>``.

    Args:
        node: The node. It may be opened later.
        console: Where to draw; by default below the cell of a notebook, and elsewhere on a Rich
            console on standard error.

    Returns:
        A context manager that gives the board. Rich can print that elsewhere too.

    Raises:
        WorkerError: It is not a node, or the node is closed; or this is not the thread of the
            node's event loop.

    Checkpoint:
        On leaving the block.

    Threads:
        The node's event loop only.
    """
    if not isinstance(node, Node):
        raise WorkerError(f"live_board() takes a Node, not {node!r:.100}")
    async with Node.subscribe(node, *CHANGES, tree=True) as events:
        name = f"board of node {path_of(node)!r}"
        faults = Faults(f"the {name}")
        board = Board(node, events, faults)
        view = _View(board, console)
        try:
            async with beside(partial(view.follow, events), faults, name):
                yield board
        finally:
            view.finish()


class _View:
    """Has a board shown when something happens, until that fails."""

    def __init__(self, board: Board, console: Console | None) -> None:
        self._board = board
        self._is_broken = False
        nowhere = Console(file=io.StringIO())
        self._shown: Terminal | Notebook | Lines = Lines(board, nowhere)  # not yet
        self._attempt(partial(self._begin, console))

    def _begin(self, console: Console | None) -> None:
        if console is None and in_notebook():
            self._shown = Notebook(self._board)
        else:
            console = console or Console(stderr=True)
            can_draw = console.is_terminal and console.is_interactive
            self._shown = (Terminal if can_draw else Lines)(self._board, console)
        self._shown.begin()

    async def follow(self, events: Subscription[Change]) -> None:
        """Show what happens until the node has closed."""
        with suppress(StopAsyncIteration):
            while True:
                age = self._shown.age if self._board._is_at_work else math.inf
                with anyio.move_on_after(age):
                    self._board._take(await anext(events))
                begun = time.thread_time()
                self._attempt(self._shown.show)
                if self._is_broken:
                    self._board._news()  # or they would pile up
                cost = time.thread_time() - begun
                await anyio.sleep(max(self._shown.interval, cost / _SHARE))

    def finish(self) -> None:
        """Show what is left, and leave it there."""
        self._attempt(self._shown.show)
        self._attempt(self._shown.end)

    def _attempt(self, step: Callable[[], None]) -> None:
        if self._is_broken:
            return
        try:
            step()
        except (Exception, SystemExit):  # noqa: BLE001 (it is reported; Rich exits where a pipe broke)
            self._is_broken = True
            with suppress(Exception, SystemExit):
                self._shown.end()
            report(f"the live board of node {path_of(self._board.node)!r} cannot be drawn")


for _public in (live_board, Board):
    _public.__module__ = __name__
