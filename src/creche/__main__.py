# ruff: noqa: PTH114, PTH116, PTH118, PTH123, PTH208
# Names are bytes here, as the system has them; pathlib has none for those.
"""A tour of Creche on real files: ``python -m creche [PATH ...]`` prints their SHA-256 sums.

The node is the class ``Tour``. A thread worker finds the files. Then a worker hands them out, a few
at a time, to thread workers in a group with a limit, one for each file. Where there is a terminal a
live board shows all of these. In a node around it a daemon waits for Ctrl+C.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import stat
import sys
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from creche import Node, Worker, get_current_worker, work

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from contextlib import AbstractAsyncContextManager

    from creche import WorkerGroup

CHUNK = 256 * 1024
"""How many bytes a thread reads between two looks at whether it was cancelled."""
INTERVAL = 0.1
"""Seconds from one look at the tour to the next, where there is no board."""
INTERRUPTED = 130
"""The exit status after Ctrl+C, as shells have it."""


class Tour(Node):
    """Finds files and hashes them.

    Args:
        workers: How many files to hash at once.
    """

    def __init__(self, workers: int) -> None:
        super().__init__("tour")
        self.hashes: WorkerGroup = self.group("hashes", limit=workers)
        self.files: list[tuple[bytes, int]] = []  # path and size
        self.sums: list[tuple[bytes, bytes]] = []  # path and digest
        self.problems: list[tuple[bytes, str]] = []  # path and what is wrong with it
        self.hashing: Worker[None] | None = None
        self.is_stopped: bool = False

    async def run(self, paths: Sequence[str]) -> None:
        """Do it all, and leave what came of it in the attributes.

        Raises:
            KeyboardInterrupt: At Ctrl+C, when all has ended.
        """
        async with Node("outside") as outside:
            await outside.start_worker(self.stop_at_ctrl_c, daemon=True)
            async with live_view(self), self:
                await self.find(paths)
                self.hashing = self.hash_all()
        if self.is_stopped:
            raise KeyboardInterrupt

    async def stop_at_ctrl_c(self) -> None:
        """Cancel the tour at Ctrl+C; goes on until it has ended, so a second one does no harm.

        Left to themselves, event loops differ in what they do, and Trio may do it at any line.
        """
        # asyncio has no such thing on Windows; there it cancels the main task, which will do.
        with suppress(NotImplementedError), anyio.open_signal_receiver(signal.SIGINT) as signals:
            async for _ in signals:
                self.is_stopped = True
                self.cancel("Ctrl+C")

    @work(thread=True)
    def find(self, paths: Sequence[str]) -> None:
        """Find the files below the paths, those that links lead to as well."""
        worker = get_current_worker()
        nothing: frozenset[tuple[int, int]] = frozenset()
        waiting = [(os.fsencode(path), nothing) for path in paths]  # each with the folders above it
        while waiting:
            worker.check_cancelled()
            path, above = waiting.pop()
            try:
                found = os.stat(path)
                folder = (found.st_dev, found.st_ino)
                if not stat.S_ISDIR(found.st_mode):
                    self.files.append((path, size_of(found)))
                elif folder in above:
                    raise OSError("A loop: the folder is within itself")
                else:
                    worker.update(description=str(self))
                    above |= {folder}
                    waiting += [(os.path.join(path, name), above) for name in os.listdir(path)]
            except OSError as error:
                broken = isinstance(error, FileNotFoundError) and os.path.islink(path)
                self.complain(path, OSError("Broken link") if broken else error)
        self.files.sort()

    @work(name="all")
    async def hash_all(self) -> None:
        """Hand out the files. The steps of this worker are the bytes of all of them."""
        whole = get_current_worker()
        whole.update(total_steps=sum(size for _, size in self.files))
        threads = anyio.CapacityLimiter(self.hashes.limit or 1)
        for path, _ in self.files:
            # Returns once the worker has a slot and a thread: so at most one worker ever waits.
            await self.hashes.start_worker(
                partial(self.hash_file, path, whole), spoken(path), thread=True, limiter=threads
            )
        await self.hashes.wait()

    def hash_file(self, path: bytes, whole: Worker[Any]) -> None:
        """Hash a file; runs in a thread."""
        worker = get_current_worker()
        digest = hashlib.sha256()
        try:
            with open(path, "rb", buffering=0, opener=open_at_once) as file:
                size = size_of(os.fstat(file.fileno()))
                worker.update(total_steps=size)
                while chunk := file.read(CHUNK):
                    worker.check_cancelled()
                    digest.update(chunk)
                    worker.advance(len(chunk))
                    whole.advance(len(chunk))
                    whole.update(description=self.so_far(whole))
                if chunk is None:
                    raise OSError("Has to be waited for")
                if size_of(os.fstat(file.fileno())) < size:
                    raise OSError("Shrank while it was read")
        except OSError as error:
            self.complain(path, error)
        else:
            self.sums.append((path, digest.digest()))

    def complain(self, path: bytes, error: OSError) -> None:
        """Take note of what is wrong with a path."""
        self.problems.append((path, error.strerror or str(error)))

    def so_far(self, whole: Worker[Any]) -> str:
        """Tell how many bytes and files are done."""
        done, total = whole.completed_steps, whole.total_steps or 0
        files = f"{len(self.sums):,} of {len(self.files):,} files"
        return f"{in_bytes(done)} of {in_bytes(total)}, {files}"

    def __str__(self) -> str:
        if self.hashing is None:
            return f"{len(self.files):,} files found"
        rate = self.hashing.completed_steps / max(self.hashing.elapsed, 0.001)
        return f"{self.so_far(self.hashing)}, {in_bytes(rate)}/s"


def live_view(tour: Tour) -> AbstractAsyncContextManager[object]:
    """Show the tour while it goes on, if there is a terminal: on a board, or else in a line."""
    if not sys.stderr.isatty():
        return nullcontext()
    try:
        from creche.board import live_board  # noqa: PLC0415 (needs Rich, which may be missing)
    except ImportError:
        return one_line(tour)
    return live_board(tour)


@asynccontextmanager
async def one_line(tour: Tour) -> AsyncGenerator[None]:
    """Tell in one line how far the tour is, again and again."""

    async def draw() -> None:
        while sys.stderr.isatty():  # until the terminal is closed
            at_work = [worker for worker in tour.hashes if worker.is_running]
            words = [str(tour), *(f"{worker.progress:.0f}% {worker.name}" for worker in at_work)]
            room = os.get_terminal_size(sys.stderr.fileno()).columns - len("^C") - 1
            # Some letters are wider than others, so the terminal is told not to wrap the line.
            show(f"\r\x1b[?7l{' | '.join(words)[:room]}\x1b[K\x1b[?7h")
            await anyio.sleep(INTERVAL)

    async with Node("view") as view:
        view.run_worker(draw, daemon=True)
        yield
    show("\r\x1b[K")


def open_at_once(path: str, flags: int) -> int:
    """Open a file that may be a pipe by now, without waiting for who writes to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has neither


def size_of(found: os.stat_result) -> int:
    """Tell the size of a file; to read what is no regular one could take for ever."""
    if not stat.S_ISREG(found.st_mode):
        raise OSError("Not a regular file")
    return found.st_size


def in_bytes(number: float) -> str:
    """Tell a number of bytes."""
    power = min(max(int(number).bit_length() - 1, 0) // 10, 4)
    return f"{number / 1024**power:.{min(power, 1)}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def spoken(path: bytes) -> str:
    """Tell a path in one line of plain text, whatever bytes it is made of."""
    text = path.decode(errors="backslashreplace")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def written(path: bytes, digest: bytes) -> bytes:
    """Put a sum in a line as ``sha256sum`` does, which marks those with an escaped name."""
    name = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    mark = b"" if name == path else b"\\"
    return b"%s%s  %s\n" % (mark, digest.hex().encode(), name)


def show(text: str) -> None:
    """Write to standard error, which is for people; what cannot be written there is no failure."""
    try:
        print(end=text, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # it is full, or closed
        with suppress(OSError, ValueError):
            sys.stderr.close()  # or Python would try once more, at its end
        hush()


def hush() -> None:
    """Let standard error lead nowhere."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for as long as this runs)


def say(text: str) -> None:
    """Write a line for people, away from the sums."""
    show(f"creche: {text}\n")


def write_sums(sums: Sequence[tuple[bytes, bytes]]) -> bool:
    """Write the sums to standard output; tell whether that went well."""
    if sys.stdout is None:  # python -m creche >&-
        say("cannot write the sums: standard output is closed")
        return False
    try:
        sys.stdout.buffer.writelines(written(path, digest) for path, digest in sums)
        sys.stdout.buffer.flush()
    except OSError as error:
        with suppress(OSError):
            sys.stdout.close()  # or Python would try once more, at its end
        if not isinstance(error, BrokenPipeError):  # that is "| head": no reason to complain
            say(f"cannot write the sums: {error.strerror}")
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the tour.

    Args:
        arguments: Those of the command line.

    Returns:
        The exit status: 0, or 1 if anything went wrong, or 130 after Ctrl+C.
    """
    if sys.stderr is None:  # python -m creche 2>&-
        hush()
    try:
        return take(options_of(arguments))
    finally:
        show("")  # and what others have tried to write there


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m creche",
        description="Print the SHA-256 sums of files as sha256sum does, sorted by path. "
        "A file that is given twice is printed twice. After Ctrl+C no sums are printed.",
    )
    parser.add_argument(
        "paths", nargs="*", default=["."], metavar="PATH", help="file or folder [.]"
    )
    parser.add_argument("--backend", choices=anyio.get_available_backends(), default="asyncio")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error("--workers must be 1 or more")
    return options


def take(options: argparse.Namespace) -> int:
    """Take the tour, and tell what came of it; give the exit status."""
    tour = Tour(options.workers)
    try:
        try:
            anyio.run(tour.run, options.paths, backend=options.backend)
        finally:
            for path, problem in sorted(tour.problems):
                say(f"{spoken(path)}: {problem}")
        if not tour.files:
            say("no files found")
        elif sys.stderr.isatty():
            say(str(tour))
        is_written = write_sums(sorted(tour.sums))
    except KeyboardInterrupt:
        say(f"stopped by Ctrl+C: {tour}")
        return INTERRUPTED
    return 1 if tour.problems or not is_written else 0


if __name__ == "__main__":
    sys.exit(main())
