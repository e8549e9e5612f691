"""A board in a terminal: a picture at the bottom, drawn again and again."""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich.ansi import AnsiDecoder
from rich.console import Group
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from rich.console import Console

    from ._picture import Board


class Above:
    """Stands in for a stream to the terminal, and has whole lines written above the picture.

    Rich has such a thing, but what a thread prints while the picture is drawn could tear that.

    Args:
        stream: What it stands in for, in all other respects.
        console: What the picture is drawn on.
        lock: Held while anything is drawn.
    """

    def __init__(self, stream: TextIO, console: Console, lock: threading.RLock) -> None:
        self.rich_proxied_file = stream  # by this name a console finds it
        self._console = console
        self._lock = lock
        self._decoder = AnsiDecoder()
        self._begun = ""  # a line that has not ended yet

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    def write(self, text: str) -> int:
        """Write what are whole lines by now."""
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
            if lines:
                self._write(lines)
        return len(text)

    def _write(self, lines: list[str]) -> None:
        try:
            shown = Text("\n").join(self._decoder.decode_line(line) for line in lines)
            self._console.print(shown, soft_wrap=True)
        except (Exception, SystemExit):  # noqa: BLE001 (the board's; Rich exits where a pipe broke)
            # Whoever prints is told what is wrong with their stream, if anything is, by that.
            self.rich_proxied_file.write("".join(f"{line}\n" for line in lines))

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several."""
        self.write("".join(lines))

    def finish(self) -> None:
        """Write what is left."""
        if self._begun:
            self.write("\n")


class Terminal:
    """Shows a board as a picture.

    Args:
        board: The board.
        console: Where.
    """

    interval: float = 0.1
    """Seconds from one picture to the next, at least."""
    age: float = 1.0
    """Seconds after which ages are worth a picture."""

    def __init__(self, board: Board, console: Console) -> None:
        self._board = board
        self._console = console
        self._lock = threading.RLock()
        self._open = ExitStack()
        self._live = Live(
            console=console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )

    def begin(self) -> None:
        """Draw the first picture."""
        self._live.start()
        self._open.callback(self._live.stop)
        self._open.enter_context(_prints_above(self._console, self._lock))
        self.show()

    def show(self) -> None:
        """Draw how it stands."""
        self._board._news()
        # One line is left: the picture and what a shell writes after it do not push its head out.
        lines = self._board._lines(self._console, self._console.width, self._console.height - 1)
        with self._lock:
            self._live.update(Group(*lines), refresh=True)

    def end(self) -> None:
        """Leave the last picture where it is."""
        self._open.close()


@contextmanager
def _prints_above(console: Console, lock: threading.RLock) -> Generator[None]:
    """Have what is printed to a terminal, and logged there, written above the picture."""
    with ExitStack() as stack:
        for name in ("stdout", "stderr"):
            stream: TextIO | None = getattr(sys, name)
            if stream is None or not _is_terminal(stream):
                continue
            above = Above(stream, console, lock)
            stack.callback(above.finish)
            stack.callback(setattr, sys, name, stream)
            setattr(sys, name, above)
            for handler in _handlers():
                if handler.stream is stream:
                    handler.setStream(cast("TextIO", above))
                    stack.callback(handler.setStream, stream)
        yield


def _is_terminal(stream: TextIO) -> bool:
    with suppress(Exception):  # it may be closed, or something of the user's that knows of nothing
        return stream.isatty()
    return False


def _handlers() -> Iterator[logging.StreamHandler[TextIO]]:
    """Give all handlers of loggers that write to a stream; most keep the one they were made for."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):  # placeholders have none
            if isinstance(handler, logging.StreamHandler):
                found = cast("logging.StreamHandler[TextIO]", handler)
                if hasattr(found, "stream"):  # a subclass may have forgotten to have it made
                    yield found
