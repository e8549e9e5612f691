"""A tour of Creche on real files: ``python -m creche [PATH ...]`` prints their SHA-256 sums.

``python -m creche tree PID`` is for programs that use Creche, see ``creche.remote``.

The node is the class ``Tour``. A thread worker finds the files. Then a worker hands them out to
workers in threads or processes, one for each file, in a group with a limit. A node around it has
two daemons: one waits for Ctrl+C, the other shows how far the tour is where there is no live board.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import stat
import sys
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from creche import Node, Worker, WorkerError, WorkerState, get_current_worker, work

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from creche import WorkerGroup
    from creche.ways import Way

CHUNK = 256 * 1024  # bytes that a thread reads between two looks at whether it was cancelled
INTERVAL = 0.1  # seconds between two lines of progress, where there is no board


class Tour(Node):
    """Finds files and hashes as many at once as there are workers."""

    def __init__(self, workers: int) -> None:
        super().__init__("tour")
        self.where: Way | None = None  # for threads
        self.paths: dict[int, bytes] = {}  # of workers that are elsewhere, by their numbers
        self.hashes: WorkerGroup = self.group("hashes", limit=workers)
        self.threads: anyio.CapacityLimiter = anyio.CapacityLimiter(workers)
        self.files: list[tuple[bytes, int]] = []  # path and size
        self.sums: list[tuple[bytes, bytes]] = []  # path and digest
        self.problems: list[tuple[bytes, str]] = []  # path and what is wrong with it
        self.hashing: Worker[None] | None = None
        self.is_stopped: bool = False

    async def run(self, paths: Sequence[str]) -> None:
        """Do it all; raise KeyboardInterrupt after Ctrl+C, when all work has ended."""
        async with Node("outside") as outside:
            await outside.start_worker(self.stop_at_ctrl_c, daemon=True)
            async with self.live_view(outside), self:
                await self.find(paths)
                self.hashing = self.hash_all()
        if self.is_stopped:
            raise KeyboardInterrupt

    async def stop_at_ctrl_c(self) -> None:
        """Cancel the tour at Ctrl+C; a second one, while it ends, does no harm."""
        # asyncio has no such thing on Windows; there it cancels the main task, which will do.
        with suppress(NotImplementedError), anyio.open_signal_receiver(signal.SIGINT) as signals:
            async for _ in signals:
                self.is_stopped = True
                self.cancel("Ctrl+C")

    @work(thread=True)
    def find(self, paths: Sequence[str]) -> None:
        """Find the files below the paths, those that links lead to as well."""
        worker = get_current_worker()
        folders: frozenset[tuple[int, int]] = frozenset()
        waiting = [(os.fsencode(path), folders) for path in paths]  # with the folders around it
        while waiting:
            worker.check_cancelled()
            path, folders = waiting.pop()
            try:
                found = os.stat(path)
                folder = (found.st_dev, found.st_ino)
                if stat.S_ISREG(found.st_mode):
                    self.files.append((path, found.st_size))
                elif not stat.S_ISDIR(found.st_mode):
                    raise OSError("Not a regular file")
                elif folder in folders:
                    raise OSError("A loop: the folder is within itself")
                else:
                    worker.update(description=str(self))
                    folders |= {folder}
                    waiting += [(os.path.join(path, name), folders) for name in os.listdir(path)]
            except OSError as error:
                broken = isinstance(error, FileNotFoundError) and os.path.islink(path)
                self.problems.append((path, "Broken link" if broken else told(error)))
        self.files.sort()

    @work(name="all")
    async def hash_all(self) -> None:
        """Hand out the files. The steps of this worker are the bytes of all of them."""
        whole = get_current_worker()
        whole.update(total_steps=sum(size for _, size in self.files))
        if self.where is not None:
            await self.hash_elsewhere(self.where)
            return
        start = partial(self.hashes.start_worker, thread=True, limiter=self.threads)
        for path, _ in self.files:
            # Returns once the worker has a slot and a thread: so at most one worker ever waits.
            await start(partial(self.hash_file, path, whole), spoken(path))
        await self.hashes.wait()

    def hash_file(self, path: bytes, whole: Worker[Any]) -> None:
        """Hash a file; runs in a thread."""

        def tell(number: int) -> None:
            whole.advance(number)
            whole.update(description=self.so_far(whole))

        self.take(path, hash_one(path, tell))

    async def hash_elsewhere(self, where: Way) -> None:
        """Hand the files to an engine; what comes of each is taken as its worker ends."""
        for path, _ in self.files:
            await self.hashes.room()
            worker = self.hashes.run_worker(partial(hash_one, path), spoken(path), where=where)
            self.paths[worker.number] = path
        await self.hashes.wait()

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Take what came of a file that was hashed elsewhere."""
        worker, whole = event.worker, self.hashing
        if event.state is WorkerState.SUCCESS and worker.number in self.paths and whole is not None:
            found: Any = worker.result
            self.take(self.paths.pop(worker.number), found)
            whole.advance(worker.completed_steps)
            whole.update(description=self.so_far(whole))

    def take(self, path: bytes, found: bytes | str) -> None:
        """Take what was found of a file: its digest, or a problem."""
        if isinstance(found, str):
            self.problems.append((path, found))
        else:
            self.sums.append((path, found))

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

    def live_view(self, outside: Node) -> AbstractAsyncContextManager[object]:
        """Show the tour while it goes on, if there is a terminal: on a board, or else in a line."""
        if sys.stderr.isatty():
            try:
                from creche.board import live_board  # noqa: PLC0415 (needs Rich, maybe missing)
            except ImportError:
                outside.run_worker(self.draw_line, daemon=True)
            else:
                return live_board(self)
        return nullcontext()

    async def draw_line(self) -> None:
        """Tell in one line how far the tour is, again and again."""
        try:
            while sys.stderr.isatty():  # until the terminal is closed
                at_work = [worker for worker in self.hashes if worker.is_running]
                words = [str(self), *(f"{each.progress:.0f}% {each.name}" for each in at_work)]
                room = os.get_terminal_size(sys.stderr.fileno()).columns - len("^C") - 1
                # Some letters are wide, so the terminal is told not to wrap the line.
                show(f"\r\x1b[?7l{' | '.join(words)[:room]}\x1b[K\x1b[?7h")
                await anyio.sleep(INTERVAL)
        finally:
            show("\r\x1b[K")


def hash_one(path: bytes, tell: Callable[[int], None] = lambda _: None) -> bytes | str:
    """Give the digest of a file, or what is wrong with it; in a thread, or in another process."""
    worker = get_current_worker()
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0, opener=open_at_once) as file:
            size = os.fstat(file.fileno()).st_size
            worker.update(total_steps=size)
            while chunk := file.read(CHUNK):
                worker.check_cancelled()
                digest.update(chunk)
                worker.advance(len(chunk))
                tell(len(chunk))
        if chunk is None:
            raise OSError("Has to be waited for")
        if worker.completed_steps < size:
            raise OSError("Shrank while it was read")
    except OSError as error:
        return told(error)
    return digest.digest()


def open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for it, as for a pipe; a thread that waits cannot be stopped."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has neither


def told(error: OSError) -> str:
    """Tell an error without its number and path."""
    return error.strerror or str(error)


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
    """Write to standard error, for people. If it is full or closed, nothing is shown any more."""
    try:
        print(end=text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            sys.stderr.close()  # or Python would try once more, at its end
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for as long as this runs)


def write_out(what: str, lines: Iterable[bytes]) -> bool:
    """Write lines to standard output; tell whether that went well."""
    if sys.stdout is None:  # python -m creche >&-
        show(f"creche: cannot write {what}: standard output is closed\n")
        return False
    try:
        sys.stdout.buffer.writelines(lines)
        sys.stdout.buffer.flush()
    except OSError as error:
        with suppress(OSError):
            sys.stdout.close()  # or Python would try once more, at its end
        if not isinstance(error, BrokenPipeError):  # that is "| head": no reason to complain
            show(f"creche: cannot write {what}: {told(error)}\n")
        return False
    return True


def print_tree(pid: int) -> int:
    """Print the tree of a running program; give the exit status."""
    from creche.remote import read_tree  # noqa: PLC0415 (the tour does not need it)

    try:
        tree = read_tree(pid)
    except WorkerError as error:
        show(f"creche: {error}\n")
        return 1
    return 0 if write_out("the tree", [tree.encode()]) else 1


@contextmanager
def threads(_: int) -> Generator[None, None, None]:
    """Hash in threads."""
    yield None


@contextmanager
def processes(workers: int) -> Generator[Way, None, None]:
    """Hash in as many processes as there are workers."""
    from creche.ways import Processes  # noqa: PLC0415 (most tours do without)

    yield Processes(workers)


@contextmanager
def on_dask(workers: int) -> Generator[Way, None, None]:
    """Hash on a Dask cluster, of as many processes, that lasts as long as the tour."""
    try:
        from creche.dask import OnDask  # noqa: PLC0415 (most tours do without)
    except ImportError as error:
        sys.exit(f"creche: {error}")
    from distributed import Client, LocalCluster  # noqa: PLC0415 (it is there)

    start: Any = LocalCluster  # without types
    with start(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster:
        connect: Any = Client
        with connect(cluster) as client:
            yield OnDask(client)


ENGINES: dict[str, Callable[[int], AbstractContextManager[Way | None]]] = {
    "threads": threads,
    "processes": processes,
    "dask": on_dask,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the tour; give the exit status: 0, 1 if anything went wrong, 130 after Ctrl+C."""
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 (python -m creche 2>&-)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["tree"] and re.fullmatch("[0-9]{1,10}", "/".join(arguments[1:])):
        return print_tree(int(arguments[1]))  # else "tree" is a path like any other
    parser = argparse.ArgumentParser(
        prog="python -m creche",
        description="Print the SHA-256 sums of files as sha256sum does, sorted by path. "
        "A file that is given twice is printed twice. After Ctrl+C no sums are printed.",
        epilog="python -m creche tree PID prints the nodes and workers of a running program.",
    )
    parser.add_argument("paths", nargs="*", default=["."], metavar="PATH", help="file or folder")
    parser.add_argument("--backend", choices=anyio.get_available_backends(), default="asyncio")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--where", choices=tuple(ENGINES), default="threads")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error("--workers must be 1 or more")
    tour = Tour(options.workers)
    try:
        try:
            with ENGINES[options.where](options.workers) as tour.where:
                anyio.run(tour.run, options.paths, backend=options.backend)
        finally:
            for path, problem in sorted(tour.problems):
                show(f"creche: {spoken(path)}: {problem}\n")
        if not tour.files:
            show("creche: no files found\n")
        elif sys.stderr.isatty():
            show(f"creche: {tour}\n")
        lines = (written(path, digest) for path, digest in sorted(tour.sums))
        is_written = write_out("the sums", lines)
    except KeyboardInterrupt:
        show(f"creche: stopped by Ctrl+C: {tour}\n")
        return 130  # as shells have it
    return 1 if tour.problems or not is_written else 0


if __name__ == "__main__":
    sys.exit(main())
