"""The home end of the lines from the processes of an executor; see ``line``.

It listens on this machine only. A caller has to prove that it knows the key before anything that it
sends is interpreted.
"""

from __future__ import annotations

import hmac
import itertools
import secrets
import socket
import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import anyio
from anyio import lowlevel

from creche._ground.backend import get_backend

from .line import DONE, GO, HEAD, LONGEST, PATIENCE, PROOF, STAY, STOP, frame, prove
from .stream import Stream
from .wire import BEGIN, read_message
from .wire import message as make_message

if TYPE_CHECKING:
    from creche._ground.backend import Backend
    from creche._ground.way import Job

    from .line import Address

_PAUSE = 0.1
"""Seconds until the next try if a connection cannot be accepted for lack of descriptors."""
_WAITING = 128
"""Connections that may wait to be accepted."""


class Hub:
    """What the processes of executors connect to, for one tree of nodes."""

    def __init__(self) -> None:
        self.key: bytes = secrets.token_bytes(32)
        """The key that both ends know."""
        self._socket = _listen()
        self.address: Address = self._socket.getsockname()
        """The address that it listens on."""
        self.token: lowlevel.EventLoopToken = lowlevel.current_token()
        """The event loop."""
        self.backend: Backend = get_backend(self.token)
        """The backend of the loop."""
        self._jobs: dict[int, Job] = {}
        self._lines: dict[int, Stream] = {}  # of jobs that have asked to begin
        self._numbers = itertools.count(1)

    async def run(self) -> None:
        """Accept connections."""
        with self._socket:
            async with anyio.create_task_group() as callers:
                while True:
                    await anyio.wait_readable(self._socket)
                    try:
                        line, _ = self._socket.accept()
                    except OSError:
                        await anyio.sleep(_PAUSE)
                    else:
                        callers.start_soon(self._hear, line)

    def expect(self, job: Job) -> int:
        """Return the number of a job on the lines."""
        number = next(self._numbers)
        self._jobs[number] = job
        return number

    def forget(self, number: int) -> None:
        """Stop expecting a job: if it asks to begin, the answer is no."""
        self._jobs.pop(number, None)
        self._lines.pop(number, None)

    async def stop(self, number: int, reason: str | None) -> None:
        """Tell a job that has begun that it was cancelled."""
        stream = self._lines.get(number)
        if stream is not None:
            with suppress(OSError):  # its process is gone
                await stream.send(frame(number, STOP + make_message("", reason)))

    async def _hear(self, line: socket.socket) -> None:
        line.settimeout(0)
        stream = Stream(line, HEAD, LONGEST)
        with line, closing(stream), suppress(OSError):
            if not await _meet(stream, self.key):
                return
            while True:
                number, message = await stream.receive()
                await self._take(stream, number, message)

    async def _take(self, stream: Stream, number: int, message: bytes) -> None:
        answers: list[bool] = []
        job = self._jobs.get(number)
        if message == DONE:
            answers.append(True)
        elif job is not None:
            self._lines[number] = stream
            job.receive(message, answers.append)
        elif read_message(message)[0] == BEGIN:
            answers.append(False)  # it was cancelled
        for may_begin in answers:
            await stream.send(frame(number, GO if may_begin else STAY))


def _listen() -> socket.socket:
    """Listen on this machine only."""
    if sys.platform == "linux":
        # No file is left behind, even if this program is killed.
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"\0creche-{secrets.token_hex(16)}")
        listener.listen(_WAITING)
    else:  # pragma: no cover (there)
        listener = socket.create_server(("127.0.0.1", 0), backlog=_WAITING)
    listener.settimeout(0)
    return listener


async def _meet(stream: Stream, key: bytes) -> bool:
    """Make the caller prove that it knows the key, and prove it to the caller."""
    with anyio.move_on_after(PATIENCE):
        mine = secrets.token_bytes(PROOF)
        await stream.send(mine)
        proof, theirs = await stream.receive_exactly(PROOF), await stream.receive_exactly(PROOF)
        if hmac.compare_digest(proof, prove(key, mine, b"far")):
            await stream.send(prove(key, theirs, b"home"))
            return True
    return False
