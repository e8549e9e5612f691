"""Shows the tree of a running program from another process: ``python -m creche tree PID``.

While ``async with serve_tree(app), app: ...`` is open, a program serves its tree on a socket in a
folder that only its user can enter. The socket only sends text and never reads. On Python 3.14 and
later, a program that does not serve its tree is asked through the debugger interface (PEP 768), if
the system allows that.
"""

from __future__ import annotations

import gc
import itertools
import os
import socket
import stat
import sys
import tempfile
import threading
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from creche import Node, WorkerError, format_tree
from creche._looking.watching import Faults, beside

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from anyio.abc import SocketStream

__all__ = ["read_tree", "serve_tree"]

_PATIENCE = 5.0  # seconds
_numbers = itertools.count(1)


@asynccontextmanager
async def serve_tree(node: Node) -> AsyncGenerator[None, None]:
    """Show a node and all below it to ``python -m creche tree PID`` while the block is open.

    Use ``async with serve_tree(app), app: ...`` to show them for the whole life of the node. The
    socket is in the user's own folder ``creche-UID`` in the directory for temporary files. The
    event loop answers requests, so a blocked loop does not answer. Errors while answering do not
    affect the program: the first one is logged at ERROR by the logger ``creche``.

    Args:
        node: The node, open or not.

    Raises:
        WorkerError: ``node`` is not a ``Node``; or the system has no Unix sockets, like Windows; or
            the folder is not private.
        OSError: The socket cannot be created.

    Checkpoint:
        Always.

    Threads:
        The node's event loop only.
    """
    if not isinstance(node, Node):
        raise WorkerError(f"serve_tree() takes a Node, not {node!r:.100}")
    if not _has_sockets():
        raise WorkerError(
            "serve_tree() needs sockets with names, which this system does not have; "
            "python -m creche tree PID does without it from Python 3.14 on"
        )
    path = _private_folder() / f"{os.getpid()}.{next(_numbers)}"
    faults = Faults("the server of trees")

    async def answer(stream: SocketStream) -> None:
        with faults, suppress(anyio.BrokenResourceError):  # whoever asked may have left
            async with stream:
                with anyio.move_on_after(_PATIENCE):
                    await stream.send(_text_of(node).encode())

    try:
        async with (
            await anyio.create_unix_listener(path, mode=0o600) as listener,
            beside(partial(listener.serve, answer), faults, "server of trees"),
        ):
            yield
    finally:
        path.unlink(missing_ok=True)


def read_tree(pid: int) -> str:
    """Ask a running program of the same user for its tree; this takes at most 5 seconds.

    Args:
        pid: The process ID of the program.

    Returns:
        The text of ``format_tree()`` for each tree.

    Raises:
        WorkerError: There is no such process, this user may not ask it, or it does not answer.

    Threads:
        Any thread, but not in an event loop, because it blocks.
    """
    if _has_sockets():
        _check_process(pid)
        sockets = sorted(_folder().glob(f"{pid}.*")) if _is_private(_folder()) else []
        answers = [text for path in sockets if (text := _ask(path, pid)) is not None]
        if answers:
            return "".join(answers)
    return _ask_as_debugger(pid)


def _has_sockets() -> bool:
    """Whether the system has Unix sockets, and folders that belong to a user."""
    return hasattr(socket, "AF_UNIX") and hasattr(os, "geteuid")


def _folder() -> Path:
    """The folder of the sockets of this user."""
    return Path(tempfile.gettempdir()) / f"creche-{os.geteuid()}"


def _private_folder() -> Path:
    """Return the folder of the sockets; create it if necessary.

    Raises:
        WorkerError: Another user owns it or may enter it.
    """
    folder = _folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    if not _is_private(folder):
        raise WorkerError(
            f"{str(folder)!r} is not a folder that this user alone can enter; remove it, or set "
            "TMPDIR"
        )
    return folder


def _is_private(folder: Path) -> bool:
    """Whether it is a folder, not a link, that this user owns and nobody else may enter."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    is_closed = not stat.S_IMODE(found.st_mode) & 0o077
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and is_closed


def _text_of(node: Node) -> str:
    """Return the text to send, with a line break at the end."""
    return f"{format_tree(node)}\n"


# the side that asks


def _check_process(pid: int) -> None:
    """Raise an error unless the process exists and this user may ask it."""
    try:
        if pid > 0:  # else it stands for a group of processes
            os.kill(pid, 0)  # asks only; not on Windows, where it would send a Ctrl+C
            return
    except (ProcessLookupError, OverflowError):
        pass
    except PermissionError:
        raise WorkerError(
            f"process {pid} belongs to another user; run this command as that user"
        ) from None
    raise WorkerError(f"there is no process {pid}")


def _ask(path: Path, pid: int) -> str | None:
    """Read the text from a socket; return ``None`` if nobody serves it any more."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(str(path))
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except TimeoutError:
            raise _no_answer(pid, "its event loop may be blocked") from None


def _no_answer(pid: int, guess: str) -> WorkerError:
    return WorkerError(f"process {pid} has not answered for {_PATIENCE:g} seconds; {guess}")


def _ask_as_debugger(pid: int) -> str:
    """Make the process write its trees into a folder that only this user can enter."""
    attach: Callable[[int, str], object] | None = getattr(sys, "remote_exec", None)
    if attach is None:
        raise WorkerError(
            f"process {pid} does not show its tree; it has to use creche.remote.serve_tree(), or "
            "both it and this command have to run Python 3.14 or later"
        )
    with tempfile.TemporaryDirectory(prefix="creche-") as place:
        told, script = Path(place) / "tree", Path(place) / "script.py"
        script.write_text(_SCRIPT.format(path=str(told)), encoding="utf-8")
        try:
            attach(pid, str(script))
        except PermissionError:
            raise WorkerError(
                f"this user may not attach to process {pid}; run this command as root, or have the "
                "program use creche.remote.serve_tree()"
            ) from None
        except (OSError, RuntimeError, ValueError, OverflowError) as error:
            raise WorkerError(f"cannot attach to process {pid}: {error}") from None
        end = time.monotonic() + _PATIENCE
        while not told.exists():
            if time.monotonic() > end:
                # Python answers before its next instruction, and one that waits has none.
                raise _no_answer(
                    pid,
                    "it may be blocked, or may have nothing to do; a program that uses "
                    "creche.remote.serve_tree() answers while it waits",
                )
            time.sleep(0.01)
        text = told.read_text(encoding="utf-8")
    if not text:
        raise WorkerError(f"process {pid} does not use Creche")
    return text


# the side that is asked as by a debugger

# One expression: it leaves no name where it runs.
_SCRIPT = """\
(
    __import__("importlib").import_module("creche.remote").tell_soon({path!r})
    if "creche" in __import__("sys").modules
    else open({path!r}, "x").close()
)
"""


def tell_soon(path: str) -> None:
    """Write the trees of this process to a file, in a thread, as this may interrupt any line."""
    threading.Thread(target=_tell, args=(path,), name="creche tree", daemon=True).start()


def _tell(path: str) -> None:
    found: list[Any] = [each for each in gc.get_objects() if issubclass(type(each), Node)]
    trees = [_text_of(node) for node in found if node.parent is None and not node.is_finished]
    part = Path(f"{path}.part")  # whoever waits for the file finds all of it
    with suppress(OSError):  # nobody waits any more
        part.write_text("".join(trees) or "there is no node\n", encoding="utf-8")
        part.replace(path)
