"""The line to a far side, as the event loop at home reads and writes it."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys

import anyio
import pytest

from creche._running import hub
from creche._running.line import HEAD, PROOF, _connect, frame
from creche._running.stream import Stream
from helpers import RENDEZVOUS, settle

LONGEST = 1 << 24


@pytest.fixture
async def pair():
    """Yield a stream, and the socket at its other end."""
    line, other = socket.socketpair()
    for each in (line, other):
        each.settimeout(0)
    stream = Stream(line, HEAD, LONGEST)
    with line, other:
        yield stream, other
        stream.close()


async def say(other, data):
    """Send from the other end as fast as the reader reads."""
    left = memoryview(data)
    while left:
        try:
            left = left[other.send(left) :]
        except BlockingIOError:
            await anyio.wait_writable(other)


async def test_frames_in_one_piece_and_in_many(pair):
    """Frames come one by one, whether several arrive at once or one byte after another."""
    stream, other = pair
    other.send(frame(1, b"one") + frame(2, b"") + frame(3, b"three"))
    assert [await stream.receive() for _ in range(3)] == [(1, b"one"), (2, b""), (3, b"three")]
    async with anyio.create_task_group() as group:

        async def drip():
            for byte in frame(4, b"four"):
                other.send(bytes([byte]))
                await settle(2)

        group.start_soon(drip)
        assert await stream.receive() == (4, b"four")


async def test_what_comes_while_nobody_waits(pair):
    """Data that arrives while nobody receives is kept for the next receive()."""
    stream, other = pair
    other.send(frame(1, b"one"))
    assert await stream.receive() == (1, b"one")
    other.send(frame(2, b"two"))
    await settle(5)
    assert not stream._is_watched  # or the loop would report it at each turn
    assert await stream.receive() == (2, b"two")


async def test_cancelled_in_the_midst_of_a_frame(pair):
    """If a reader is cancelled while a frame arrives, the next reader gets the whole frame."""
    stream, other = pair
    told = frame(7, b"something")
    async with anyio.create_task_group() as group:
        group.start_soon(stream.receive)
        await settle(3)
        other.send(told[: HEAD.size + 2])
        await settle(3)
        group.cancel_scope.cancel()
    other.send(told[HEAD.size + 2 :])
    assert await stream.receive() == (7, b"something")


async def test_long_frames_both_ways(pair):
    """A frame larger than all buffers arrives whole, and so do those of two tasks at once."""
    stream, other = pair
    long = bytes(range(256)) * 20_000
    async with anyio.create_task_group() as group:
        group.start_soon(say, other, frame(1, long))
        assert await stream.receive() == (1, long)
    back = Stream(other, HEAD, LONGEST)
    async with anyio.create_task_group() as group:
        group.start_soon(stream.send, frame(2, long))
        await settle(3)
        group.start_soon(stream.send, frame(3, b"short"))
        assert [await back.receive() for _ in range(2)] == [(2, long), (3, b"short")]
    back.close()


async def test_send_on_a_line_that_is_full(pair):
    """A sender waits while the line is full."""
    stream, other = pair
    full = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            full += bytes(stream._line.send(bytes(4096)))
    async with anyio.create_task_group() as group:
        group.start_soon(stream.send, frame(1, b"late"))
        await settle(3)
        heard = Stream(other, HEAD, LONGEST)
        assert await heard.receive_exactly(len(full)) == full
        assert await heard.receive() == (1, b"late")
        heard.close()


async def test_frame_longer_than_any(pair):
    """A frame that is longer than allowed is an error before any of it is read."""
    stream, other = pair
    other.send(HEAD.pack(LONGEST + 1, 1))
    with pytest.raises(OSError, match="longer than any"):
        await stream.receive()


async def test_other_end_that_is_gone(pair):
    """A closed line is an error once everything was received, and stays one."""
    stream, other = pair
    other.send(frame(1, b"last") + b"half")
    other.close()
    assert await stream.receive() == (1, b"last")
    for _ in range(2):
        with pytest.raises(ConnectionError, match="the other end has hung up"):
            await stream.receive()


async def test_other_end_that_is_gone_with_something_unread(pair, anyio_backend_options):
    """A line that was reset by its other end counts as closed."""
    if "use_uvloop" in anyio_backend_options:
        pytest.skip("uvloop does not tell, see the next test")
    stream, other = pair
    await stream.send(b"unread")
    other.close()
    with pytest.raises(ConnectionError, match="the other end has hung up"):
        await stream.receive()


async def test_other_end_that_has_left_something_unread(pair):
    """``end()`` wakes the waiter, as uvloop does not. No data is lost."""
    stream, other = pair
    await stream.send(b"unread")
    heard = []

    async def receive_all():
        with pytest.raises(ConnectionError, match="the other end has hung up"):
            while True:
                heard.append(await stream.receive())

    with anyio.fail_after(RENDEZVOUS):
        async with anyio.create_task_group() as group:
            group.start_soon(receive_all)
            await settle(3)
            other.send(frame(1, b"last"))
            other.close()
            await settle(3)
            with contextlib.suppress(OSError):
                stream._line.shutdown(socket.SHUT_RDWR)
            stream.end()
    assert heard in ([(1, b"last")], [])  # the system may drop what was on its way


async def test_what_nobody_has_read_by_the_end(pair):
    """``end()`` reads what has arrived, and the next calls of ``receive()`` return it."""
    stream, other = pair
    other.send(frame(1, b"one") + frame(2, b"last"))
    stream.end()  # in the same step, so the loop has read nothing
    assert [await stream.receive() for _ in range(2)] == [(1, b"one"), (2, b"last")]
    with pytest.raises(ConnectionError, match="the other end has hung up"):
        await stream.receive()


class Reluctant(socket.socket):
    """A listener that has no descriptor for the first call."""

    refused = 0

    def accept(self):
        if not self.refused:
            self.refused += 1
            raise OSError(errno.EMFILE, "too many open files")
        return super().accept()


async def test_call_that_cannot_be_taken_yet(monkeypatch):
    """A connection for which there is no descriptor is accepted later, without harm to others."""
    monkeypatch.setattr(hub, "_PAUSE", 0)
    here = hub.Hub()
    listener = here._socket = Reluctant(fileno=here._socket.detach())
    listener.settimeout(0)
    async with anyio.create_task_group() as group:
        group.start_soon(here.run)
        with _connect(here.address) as caller:
            assert len(await anyio.to_thread.run_sync(caller.recv, PROOF)) == PROOF
        group.cancel_scope.cancel()
    assert listener.refused == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the line is TCP")
def test_a_home_that_is_gone_is_no_leak():
    """A connection that nobody accepts is an error, and leaves no socket open."""
    with socket.socket(socket.AF_UNIX) as nobody:
        nobody.bind("")  # a name of its own
        address = nobody.getsockname()
    with pytest.raises(ConnectionError):
        _connect(address)


def test_head_of_a_frame():
    """A frame is its length, its number and the message."""
    assert frame(5, b"abc") == struct.pack("!IQ", 3, 5) + b"abc"
