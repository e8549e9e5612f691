"""Work in processes of our own, which can be killed."""

from __future__ import annotations

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import anyio

from creche._ground.errors import WorkerCrashed, WorkerError
from creche._ground.report import shown, text_of

from . import child
from .stream import Stream

if TYPE_CHECKING:
    from anyio.abc import Process, TaskGroup

    from creche._ground.way import Job

_PATIENCE = 5.0
"""Seconds that an idle process has to end before it is killed."""


class Processes:
    """Run work in processes, which can be killed; for ``where=``.

    Each tree of nodes that uses it has its own processes. They are started when there is work, and
    end when the root is left. A worker is PENDING while it waits for one. A process runs one piece
    of work at a time, in its main thread, and is then reused.

    A cancelled worker ends within milliseconds: its process is killed, with everything it has
    started in its session. With ``grace`` it is notified first and has time to leave: async work is
    cancelled there, other work has to ask with ``get_current_worker().check_cancelled()``.

    A process that dies fails the one worker that it ran, with ``WorkerCrashed``; the next work gets
    a new process. If this program is killed, its processes end by themselves.

    Args:
        size: How many at once; by default one for each processor.
        grace: Seconds that cancelled work has to end by itself, before its process is killed; none
            with ``abandon_on_cancel``.
        idle: Seconds after which an idle process ends; ``None`` for never.

    Raises:
        WorkerError: An argument is invalid; or this is Windows, where processes cannot have such
            connections and sessions: use ``ProcessPoolExecutor`` there.
    """

    def __init__(
        self, size: int | None = None, *, grace: float = 0.0, idle: float | None = None
    ) -> None:
        if sys.platform == "win32":  # pragma: no cover (there)
            raise WorkerError(
                "Processes() needs sessions of processes, which Windows has not; give where= a "
                "concurrent.futures.ProcessPoolExecutor"
            )
        if size is not None and (type(size) is not int or size < 1):
            raise WorkerError(f"size must be 1 or more, or None, not {shown(size)}")
        for what, seconds in (("grace", grace), ("idle", 0.0 if idle is None else idle)):
            if not isinstance(seconds, int | float) or not seconds >= 0:
                raise WorkerError(f"{what} must be 0 seconds or more, not {shown(seconds)}")
        self._size = size if size is not None else os.cpu_count() or 1
        self._grace = grace
        self._idle = idle

    def __repr__(self) -> str:
        return f"Processes({self._size})"

    async def __call__(self, job: Job) -> Any:
        """Run a job; see ``creche.ways.Way``."""
        pool = job.resource(self, partial(_Pool, self._size, self._idle))
        async with pool.slots:
            process = await pool.get()
            try:
                payload = job.pack()
                while not await process.give(payload):
                    process = await pool.get()
                job.begin(process.where)
                return job.open(await self._outcome(job, process))
            finally:
                if process.is_busy:
                    await job.outlast(process.kill)
                pool.put_back(process)

    async def _outcome(self, job: Job, process: _Process) -> bytes:
        """Return the outcome of a job that a process was given."""
        try:
            outcome = await process.serve(job)
        except anyio.get_cancelled_exc_class():
            job.notice_cancellation()
            outcome = await job.outlast(partial(self._stop, job, process))
            if outcome is None:
                raise
        if outcome is None:
            raise await job.outlast(partial(process.tell_crash, job.label))
        return outcome

    async def _stop(self, job: Job, process: _Process) -> bytes | None:
        """End cancelled work; return its outcome if it ended by itself."""
        outcome = None
        if self._grace and not job.abandon_on_cancel:
            reason = job.cancel_reason
            with anyio.move_on_after(self._grace):
                await process.tell_stop(None if reason is None else text_of(reason))
                outcome = await process.serve(job)
        if outcome is None:
            await process.kill()
        return outcome


class _Pool:
    """The processes of one tree of nodes.

    They are started and watched by separate tasks: a worker that waits for one may be cancelled,
    and its node left, before it has started.
    """

    def __init__(self, size: int, idle: float | None) -> None:
        self.slots: anyio.Semaphore = anyio.Semaphore(size, fast_acquire=True)
        """Held by each job that has a process, or waits for one that is being started."""
        self._size = size
        self._idle_after = idle
        self._idle: list[_Process] = []
        self._count = 0  # of those that are running or being started
        self._fault: BaseException | None = None  # why none could be started
        self._changed: anyio.Event | None = None  # created by a task that waits for a change
        self._is_open = anyio.Event()
        self._is_closing = False
        self._group: TaskGroup = anyio.create_task_group()

    async def run(self) -> None:
        """Keep the processes until they are not needed any more."""
        async with self._group:
            self._is_open.set()
            try:
                await self._expire()
            finally:
                self._is_closing = True
                for process in self._idle:
                    process.dismiss()

    async def _expire(self) -> None:
        after = self._idle_after
        if not after:  # with 0, none is ever idle
            await anyio.sleep_forever()
        assert after is not None
        while True:
            await anyio.sleep(after)
            oldest = anyio.current_time() - after
            for process in [each for each in self._idle if (each.idle_since or 0) <= oldest]:
                self._idle.remove(process)
                process.dismiss()

    async def get(self) -> _Process:
        """Return an idle process, started if necessary; the caller has a slot.

        Raises:
            WorkerError: None can be started.
        """
        if not self._is_open.is_set():
            await self._is_open.wait()
        while True:
            while self._idle:
                process = self._idle.pop()
                if process.is_alive:
                    return process
            if self._count < self._size:
                self._count += 1
                # An empty context: it would keep the worker's alive.
                self._group.create_task(self._keep(), context=Context(), name="creche process")
            if self._changed is None:
                self._changed = anyio.Event()
            await self._changed.wait()
            fault, self._fault = self._fault, None
            if fault is not None:
                raise WorkerError(
                    f"no process can be started: {type(fault).__name__}: {text_of(fault)}"
                ) from fault

    async def _keep(self) -> None:
        """Start a process, and watch it to its end."""
        try:
            with anyio.CancelScope(shield=True):
                process = _Process()
                try:
                    await process.start()
                except Exception as error:  # noqa: BLE001 (raised by the task that waits for it)
                    self._fault = error
                    return
                self.put_back(process)
                await process.watch()
        finally:
            self._count -= 1
            self._tell()

    def put_back(self, process: _Process) -> None:
        """Put a process among the idle ones, after work or when it is new."""
        is_new = process.idle_since is None
        process.idle_since = anyio.current_time()
        if not process.is_alive:
            process.close()
        elif self._is_closing or (self._idle_after == 0 and not is_new):
            process.dismiss()
        else:
            self._idle.append(process)
            self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()


class _Process:
    """A process, and the line to it."""

    def __init__(self) -> None:
        self.is_busy = False
        """Whether it may have work: from sending that to receiving its outcome."""
        self.idle_since: float | None = None
        """When it was last given back; ``None`` if it is new."""
        self.where = ""
        """Its name."""
        self._process: Process
        self._exited = anyio.Event()
        self._line, self._far_end = socket.socketpair()
        self._line.settimeout(0)
        self._stream = Stream(self._line, child.HEAD, sys.maxsize)
        self._report: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (see close())

    async def start(self) -> None:
        """Start it."""
        fds = (self._far_end.fileno(), self._report.fileno())
        try:
            self._process = await anyio.open_process(
                [*_python(), "-c", child.START, child.__file__, *map(str, fds)],
                stdin=subprocess.DEVNULL,
                stdout=None,
                stderr=None,
                start_new_session=True,  # otherwise a Ctrl+C in the terminal hits it first
                pass_fds=fds,
            )
        except BaseException:
            self.close()
            raise
        finally:
            self._far_end.close()
        self.where = f"process {self._process.pid}"
        try:
            await self._say(child.SETUP, pickle.dumps((sys.path, _main(), sys.argv)))
        except BaseException:  # such as OSError: it has ended already
            self._kill_session()
            await self.watch()
            raise

    async def watch(self) -> None:
        """Wait until it has ended, and record that."""
        await self._process.wait()
        self._exited.set()
        # A process that it forked may hold its end of the line.
        with suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        self._stream.end()
        if not self.is_busy:
            self.close()

    @property
    def is_alive(self) -> bool:
        """Whether it is running, as far as is known."""
        return not self._exited.is_set()

    # work

    async def give(self, payload: bytes) -> bool:
        """Give it work; return whether it was there to take it."""
        self.is_busy = True
        try:
            # A cancellation may leave half a frame on the line. Then the process is unusable; as it
            # is busy, it is killed when it is put back.
            await self._say(child.JOB, payload)
        except OSError:
            await self.kill()
            self.close()
            return False
        return True

    async def serve(self, job: Job) -> bytes | None:
        """Read its messages; return the outcome of its work, ``None`` if it has died."""
        try:
            while True:
                kind, told = await self._stream.receive()
                if kind == child.OUTCOME:
                    self.is_busy = False
                    return told
                job.receive(told)
        except OSError:
            return None

    async def tell_stop(self, reason: str | None) -> None:
        """Tell the work that it was cancelled."""
        with suppress(OSError), anyio.CancelScope(shield=True):
            await self._say(child.STOP, pickle.dumps(reason))

    async def kill(self) -> None:
        """Kill it with all of its session, and wait until it has ended."""
        self._kill_session()
        await self._exited.wait()

    def _kill_session(self) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def dismiss(self) -> None:
        """End it, because there is nothing for it to do."""
        self._line.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the line and the report."""
        self._stream.close()
        self._line.close()
        self._report.close()

    # the line

    async def _say(self, kind: int, told: bytes) -> None:
        await self._stream.send(child.frame(kind, told))

    # its end

    async def tell_crash(self, label: str) -> WorkerCrashed:
        """Describe how it ended, and where its code was."""
        with anyio.move_on_after(_PATIENCE):
            await self._exited.wait()
        await self.kill()  # it may have closed the line and still run
        code = self._process.returncode or 0
        if code < 0:
            what = f"was killed by {_name_of(-code)}"
        else:
            what = f"has ended by itself with exit code {code}"
        place = _place_in(os.pread(self._report.fileno(), 1 << 16, 0).decode(errors="replace"))
        if not place and code == -signal.SIGKILL:
            place = ", by somebody else or by the system for want of memory"
        return WorkerCrashed(f"{label} crashed: {self.where} {what}{place}", code)


def _python() -> list[str]:
    """Return the command that runs this Python with the options of this program."""
    # As multiprocessing does; there is no public function.
    options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *options]


def _main() -> tuple[str, str] | None:
    """Return how the main module can be imported elsewhere if it is needed there."""
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        return "name", name
    path = getattr(main, "__file__", None)
    return None if path is None else ("path", str(Path(path).absolute()))


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


_PLACE = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)
_OURS = str(Path(__file__).parent.parent)


def _place_in(report: str) -> str:
    """Extract where the code was from a report of ``faulthandler``."""
    for file, line, function in _PLACE.findall(report):
        if not file.startswith(_OURS):
            return f" in {function}() at {file}:{line}"
    return ""
