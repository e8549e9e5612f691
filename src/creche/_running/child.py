"""The code of a process of ours: it runs the jobs that it is sent, one after another.

It is loaded by its path, and imports only what it needs of Creche: importing an event loop would
take most of its start-up time. The main thread does the work, because some libraries need that.
Another thread reads the line, a socket whose other end only home has. When that is closed, the
process ends; if it is running work, it kills itself and its whole session.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import queue
import runpy
import signal
import socket
import struct
import sys
import threading
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from creche._running.far import Far

HEAD = struct.Struct("!QB")
"""The length of what follows, and its kind."""
SETUP, JOB, STOP, MESSAGE, OUTCOME = range(5)


def frame(kind: int, told: bytes) -> bytes:
    """Make a frame."""
    return HEAD.pack(len(told), kind) + told


class _Package(ModuleType):
    """The package ``creche``, whose contents are imported when they are first used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        spec = cast("Any", self.__spec__)
        self.__class__ = ModuleType  # type: ignore[assignment]  # a plain module from now on
        spec.loader.exec_module(self)
        return getattr(self, name)


def stand_in_for_package(init: Path) -> None:
    """Make ``import creche._running.far`` import only that, and not all of Creche first."""
    spec = spec_from_file_location("creche", init, submodule_search_locations=[str(init.parent)])
    assert spec is not None
    package = _Package("creche")
    package.__spec__, package.__file__ = spec, str(init)
    package.__loader__, package.__package__ = spec.loader, "creche"
    package.__path__ = [str(init.parent)]
    sys.modules["creche"] = package


class Child:
    """The process, on its line."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._far: Far | None = None
        self._main: tuple[str, str] | None = None

    def run(self) -> None:
        """Run jobs until home closes the line."""
        from creche._running import wire  # noqa: PLC0415 (once the package stands in)

        wire.prepare_main = self._import_main
        threading.Thread(target=self._listen, name="creche line", daemon=True).start()
        while (payload := self._jobs.get()) is not None:
            self._run(payload)

    def _run(self, payload: bytes) -> None:
        from creche._running.far import Far  # noqa: PLC0415 (as above)

        self._far = Far(payload, self._send, begun=True)
        outcome = self._far.run()
        self._far = None
        self._say(OUTCOME, outcome)

    def _send(self, message: bytes) -> None:
        self._say(MESSAGE, message)

    def _say(self, kind: int, told: bytes) -> None:
        with self._lock:
            self._line.sendall(frame(kind, told))

    # what home says

    def _listen(self) -> None:
        try:
            while True:
                size, kind = HEAD.unpack(self._read(HEAD.size))
                self._take(kind, self._read(size))
        except OSError:
            if self._far is not None:  # pragma: no cover (its coverage is lost)
                # Nothing waits for the work any more; a thread cannot be stopped, but a process
                # can.
                os.killpg(0, signal.SIGKILL)
            self._jobs.put(None)

    def _read(self, size: int) -> bytes:
        told = bytearray()
        while len(told) < size:
            more = self._line.recv(min(size - len(told), 1 << 20))
            if not more:
                raise ConnectionError("home has hung up")
            told += more
        return bytes(told)

    def _take(self, kind: int, told: bytes) -> None:
        far = self._far
        if kind == JOB:
            self._jobs.put(told)
        elif kind == SETUP:
            sys.path[:], self._main, sys.argv[:] = pickle.loads(told)  # noqa: S301 (from home)
        elif far is not None:
            far.stop(pickle.loads(told))  # noqa: S301 (from home)

    # the main module

    def _import_main(self) -> None:
        """Load home's main module once it is needed, as ``multiprocessing`` does."""
        if self._main is None:
            return
        (kind, name), self._main = self._main, None
        from creche._ground import context  # noqa: PLC0415 (as above)
        from creche._ground.errors import WorkerError  # noqa: PLC0415 (as above)

        context.imports_main = True
        try:
            run = runpy.run_module if kind == "name" else runpy.run_path
            content = run(name, run_name="__mp_main__")
        except BaseException as error:
            raise WorkerError(
                f"the main module, {name!r}, cannot be imported by a process that runs work of it; "
                'put what the program runs under if __name__ == "__main__":'
            ) from error
        finally:
            context.imports_main = False
        module = ModuleType("__mp_main__")
        module.__dict__.update(content)
        sys.modules["__main__"] = sys.modules["__mp_main__"] = module


def tell_where(report: Any) -> None:
    """Write the Python stack to a file if the process dies, where that is possible."""
    faulthandler.enable(report, all_threads=False)
    if hasattr(faulthandler, "register"):  # pragma: no branch (absent on Windows)
        faulthandler.register(signal.SIGTERM, report, all_threads=False, chain=True)
    leave, process = os._exit, os.getpid()

    def leave_and_tell(status: int) -> None:  # pragma: no cover (its coverage is lost)
        if os.getpid() == process:  # not a process that the work forked
            faulthandler.dump_traceback(report, all_threads=False)
        leave(status)

    os._exit = leave_and_tell  # type: ignore[assignment]  # it never returns either


START = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("creche._running.child", sys.argv[1])
child = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
child.main(*map(int, sys.argv[2:]))
"""
"""The program of such a process; its arguments are this file's path and two descriptors."""


def main(line: int, report: int) -> None:
    """Run the process.

    Args:
        line: The descriptor of the line.
        report: The descriptor of the file for the stack if the process dies.
    """
    stand_in_for_package(Path(__file__).parent.parent / "__init__.py")
    tell_where(os.fdopen(report, "wb", 0))
    with socket.socket(fileno=line) as connection:
        Child(connection).run()
