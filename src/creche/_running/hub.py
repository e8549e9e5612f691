"""The home end of the lines from the processes of an executor; see ``line``.

It listens on this machine alone. Who calls has to prove that it knows the key before a byte of it
is read as anything.
"""

from __future__ import annotations

import hmac
import itertools
import secrets
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
from anyio.abc import SocketListener

from .line import DONE, GO, HEAD, LONGEST, PATIENCE, PROOF, STAY, STOP, frame, prove
from .wire import BEGIN, read_message
from .wire import message as make_message

if TYPE_CHECKING:
    from anyio.abc import SocketStream

    from creche._ground.way import Job

    from .line import Address

_LOST = (
    *(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError),
    OSError,
)


class Hub:
    """Where the processes of executors call, for one tree of nodes."""

    def __init__(self) -> None:
        self.key: bytes = secrets.token_bytes(32)
        """What both ends know."""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address: Address = self._socket.getsockname()
        """Where it listens."""
        self._jobs: dict[int, Job] = {}
        self._lines: dict[int, _Caller] = {}  # of jobs that have asked to begin
        self._numbers = itertools.count(1)

    async def run(self) -> None:
        """Take calls."""
        self._socket.settimeout(0)
        async with await SocketListener.from_socket(self._socket) as listener:
            await listener.serve(self._hear)

    def expect(self, job: Job) -> int:
        """Give the number by which a job is known on the lines."""
        number = next(self._numbers)
        self._jobs[number] = job
        return number

    def forget(self, number: int) -> None:
        """Expect a job no more: should it ask to begin, it must not."""
        self._jobs.pop(number, None)
        self._lines.pop(number, None)

    async def stop(self, number: int, reason: str | None) -> None:
        """Tell a job that has begun that it was cancelled."""
        caller = self._lines.get(number)
        if caller is not None:
            with suppress(*_LOST):  # what it runs in is gone
                await caller.say(number, STOP + make_message("", reason))

    async def _hear(self, stream: SocketStream) -> None:
        async with stream:
            with suppress(*_LOST):
                caller = _Caller(stream)
                if not await caller.meet(self.key):
                    return
                while True:
                    number, message = await caller.listen()
                    await self._take(caller, number, message)

    async def _take(self, caller: _Caller, number: int, message: bytes) -> None:
        answers: list[bool] = []
        job = self._jobs.get(number)
        if message == DONE:
            answers.append(True)
        elif job is not None:
            self._lines.setdefault(number, caller)
            job.receive(message, answers.append)
        elif read_message(message)[0] == BEGIN:
            answers.append(False)  # it was cancelled
        for may_begin in answers:
            await caller.say(number, GO if may_begin else STAY)


class _Caller:
    """A process of an executor, on the line."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._lock = anyio.Lock(fast_acquire=True)

    async def meet(self, key: bytes) -> bool:
        """Have it prove that it knows the key, and prove it too."""
        with anyio.move_on_after(PATIENCE):
            mine = secrets.token_bytes(PROOF)
            await self._stream.send(mine)
            await self._fill(2 * PROOF)
            proof, theirs = bytes(self._buffer[:PROOF]), bytes(self._buffer[PROOF : 2 * PROOF])
            del self._buffer[: 2 * PROOF]
            if hmac.compare_digest(proof, prove(key, mine, b"far")):
                await self._stream.send(prove(key, theirs, b"home"))
                return True
        return False

    async def listen(self) -> tuple[int, bytes]:
        """Give the next message, and the number of its job."""
        await self._fill(HEAD.size)
        size, number = HEAD.unpack_from(self._buffer)
        if size > LONGEST:
            raise OSError(f"a frame of {size} bytes is longer than any")
        await self._fill(HEAD.size + size)
        message = bytes(self._buffer[HEAD.size : HEAD.size + size])
        del self._buffer[: HEAD.size + size]
        return number, message

    async def _fill(self, size: int) -> None:
        while len(self._buffer) < size:
            self._buffer += await self._stream.receive()

    async def say(self, number: int, message: bytes) -> None:
        """Say something of a job; to be shielded, as half a frame makes the line useless."""
        async with self._lock:
            await self._stream.send(frame(number, message))
