"""The home end of a local socket to a far side, as used by the event loop.

Messages are as short as their jobs may be, so each turn of the loop and each system call counts.
AnyIO's streams and its ``wait_readable()`` make the loop start and stop watching the socket for
each message, which costs three times as much as reading it. Here, on asyncio, the loop watches it
all the time and reads as soon as there is data.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
from anyio import lowlevel

if TYPE_CHECKING:
    import socket
    from asyncio import AbstractEventLoop, Future
    from struct import Struct

_CHUNK = 1 << 16
"""Bytes to read at once. From 128 kB on, the C library maps and unmaps memory for each read."""
_LARGE_CHUNK = 1 << 20
"""The same while the rest of a long frame is read."""


class Stream:
    """Sends and receives frames on a socket. One task at a time may receive.

    Args:
        line: The socket. It must not block. It stays the caller's, who closes it after the stream.
        head: What comes before each message: its length, and a number.
        longest: Bytes of a message, at most.
    """

    def __init__(self, line: socket.socket, head: Struct, longest: int) -> None:
        self._line = line
        self._head = head
        self._longest = longest
        self._buffer = bytearray()  # what was read stays here if a reader is cancelled
        self._wanted = 0
        self._is_over = False
        self._lock = anyio.Lock(fast_acquire=True)
        loop: Any = lowlevel.current_token().native_token
        can_watch = hasattr(loop, "add_reader") and sys.platform != "win32"
        self._loop: AbstractEventLoop | None = loop if can_watch else None
        self._waiter: Future[None] | None = None
        self._is_watched = False

    def close(self) -> None:
        """Stop watching the socket."""
        if self._is_watched and self._loop is not None:
            self._loop.remove_reader(self._line)
            self._is_watched = False

    async def send(self, data: bytes) -> None:
        """Send bytes. A cancellation may leave half of them sent.

        Raises:
            OSError: The other end is closed.
        """
        left = memoryview(data)
        if not self._lock.locked():  # no other task is sending a frame
            left = left[self._send(left) :]
        if left:
            async with self._lock:
                while left:
                    await anyio.wait_writable(self._line)
                    left = left[self._send(left) :]

    def _send(self, data: memoryview) -> int:
        try:
            return self._line.send(data)
        except BlockingIOError:
            return 0

    async def receive(self) -> tuple[int, bytes]:
        """Return the number and the message of the next frame; a cancellation loses nothing.

        Raises:
            OSError: The other end is closed, or the frame is too long.
        """
        start, end, number = self._head.size, 0, 0
        while True:
            if not end and len(self._buffer) >= start:
                size, number = self._head.unpack_from(self._buffer)
                if size > self._longest:
                    raise OSError(f"a frame of {size} bytes is longer than any")
                end = start + size
            if end and len(self._buffer) >= end:
                return number, self._take(start, end)
            await self._read_more(end or start)

    async def receive_exactly(self, size: int) -> bytes:
        """Return bytes that are in no frame.

        Raises:
            OSError: The other end is closed.
        """
        while len(self._buffer) < size:
            await self._read_more(size)
        return self._take(0, size)

    def _take(self, start: int, end: int) -> bytes:
        taken = bytes(self._buffer[start:end])
        del self._buffer[:end]
        return taken

    # reading

    async def _read_more(self, wanted: int) -> None:
        if self._is_over:
            raise ConnectionError("the other end has hung up")
        self._wanted = wanted
        loop = self._loop
        if loop is None:
            await anyio.wait_readable(self._line)
            self._read()
            return
        if not self._is_watched:
            loop.add_reader(self._line, self._be_readable)
            self._is_watched = True
        self._waiter = loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _be_readable(self) -> None:
        if self._waiter is None or self._waiter.done():
            self.close()  # until the next wait
        else:
            self._read()
            self._waiter.set_result(None)

    def _read(self) -> None:
        missing = self._wanted - len(self._buffer)
        with suppress(BlockingIOError):  # the system may report data that is not there
            try:
                more = self._line.recv(min(max(missing, _CHUNK), _LARGE_CHUNK))
            except ConnectionError:
                more = b""
            self._buffer += more
            self._is_over = not more

    def end(self) -> None:
        """Read what is left, and wake the reader.

        It is for a socket that was shut down. If the other end is gone and has left something
        unread, uvloop says nothing more about the socket.
        """
        with suppress(OSError):
            while more := self._line.recv(_CHUNK):
                self._buffer += more
        self._is_over = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
