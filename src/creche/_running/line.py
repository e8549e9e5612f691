"""The far end of the line home: for work in the processes of an executor.

Each process has one line to a home, opened with the first job and kept. It is a connection within
the machine: a Unix socket on Linux, TCP elsewhere. Both ends prove that they know the key, which
travels with the job, before either interprets what the other sends. A frame consists of its length,
the number of the job and a message of at most ``LONGEST`` bytes.
"""

from __future__ import annotations

import hmac
import os
import queue
import secrets
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from . import wire
from .far import Far

if TYPE_CHECKING:
    from collections.abc import Callable

Address = tuple[str, int] | bytes
"""A port on this machine, or the name of a Unix socket in the abstract namespace."""
HEAD = struct.Struct("!IQ")
"""The length of the message, and the number of the job."""
LONGEST = 16 * 1024 * 1024
"""Bytes of a message."""
PROOF = 32
"""Bytes of a nonce, and of the proof of the key."""
PATIENCE = 10.0
"""Seconds that either end waits for the other's proof."""
GO, STAY, STOP = b"go", b"stay", b"stop"
"""Messages from home: the work may begin, must not begin, or was cancelled, with the reason."""
DONE = b""
"""A job's last message; home answers once it has read everything before it."""


def prove(key: bytes, nonce: bytes, side: bytes) -> bytes:
    """Prove to the other end that this one knows the key."""
    return hmac.digest(key, side + nonce, "sha256")


def frame(job: int, message: bytes) -> bytes:
    """Make a frame of a message."""
    return HEAD.pack(len(message), job) + message


def run_far(address: Address, key: bytes, job: int, payload: bytes) -> bytes:
    """Run a job in a process of an executor; this function is submitted to it.

    Args:
        address: The address of home.
        key: The key of its line.
        job: The number of the job there.
        payload: What ``Job.pack()`` gave.

    Returns:
        The outcome, for ``Job.open()``.
    """
    try:
        line = _line_to(address, key)
    except Exception as error:  # noqa: BLE001 (reported at home, if the job is still expected)
        return wire.pack_error(error, None, wire.UNHEARD)
    return line.run(job, payload)


_lines: dict[tuple[int, Address], Line] = {}
_lines_lock = threading.Lock()


def _line_to(address: Address, key: bytes) -> Line:
    which = (os.getpid(), address)  # a forked process inherits the lines of its parent
    with _lines_lock:
        line = _lines.get(which)
        if line is None or line.is_lost:
            line = _lines[which] = Line(address, key)
        return line


class Line:
    """The line from this process to a home.

    Raises:
        OSError: Home cannot be reached, or does not know the key.
    """

    def __init__(self, address: Address, key: bytes) -> None:
        self.is_lost = False
        self._fars: dict[int, tuple[Far, queue.SimpleQueue[bool | None]]] = {}
        self._lock = threading.Lock()
        self._socket = _connect(address)
        try:
            self._meet(key)
            self._socket.settimeout(None)
            _start(self._listen)
        except BaseException:
            self._socket.close()
            raise

    def _meet(self, key: bytes) -> None:
        theirs = self._read(PROOF)
        mine = secrets.token_bytes(PROOF)
        self._socket.sendall(prove(key, theirs, b"far") + mine)
        if not hmac.compare_digest(self._read(PROOF), prove(key, mine, b"home")):
            raise ConnectionError("what answers does not know the key")

    def run(self, job: int, payload: bytes) -> bytes:
        """Run a job."""
        answers: queue.SimpleQueue[bool | None] = queue.SimpleQueue()
        sent = 0

        def send(message: bytes) -> bool | None:
            nonlocal sent
            self._send(job, message)
            sent += 1
            return _next(answers) if sent == 1 else None

        far = Far(payload, send)
        self._fars[job] = (far, answers)
        try:
            if self.is_lost:  # since it was looked up
                answers.put(None)
            outcome = far.run()
            if sent > 1:
                # The outcome takes another path, and must not overtake the messages before it.
                with suppress(OSError):
                    self._send(job, DONE)
                    _next(answers)
            return outcome
        finally:
            del self._fars[job]

    def _send(self, job: int, message: bytes) -> None:
        if len(message) <= LONGEST:
            with self._lock:
                self._socket.sendall(frame(job, message))

    def _read(self, size: int) -> bytes:
        told = bytearray()
        while len(told) < size:
            more = self._socket.recv(size - len(told))
            if not more:
                raise ConnectionError("home has hung up")
            told += more
        return bytes(told)

    def _listen(self) -> None:
        """Read messages from home, in a thread, until it closes the line."""
        try:
            while True:
                size, job = HEAD.unpack(self._read(HEAD.size))
                self._take(job, self._read(min(size, LONGEST)))
        except OSError:
            self.is_lost = True
            for far, answers in list(self._fars.values()):
                answers.put(None)
                far.stop("home has hung up")
            self._socket.close()

    def _take(self, job: int, message: bytes) -> None:
        far, answers = self._fars.get(job, (None, None))
        if far is None or answers is None:
            return  # it has just ended
        if message.startswith(STOP):
            far.stop(wire.read_message(message[len(STOP) :])[1])
        else:
            answers.put(message == GO)


def _connect(address: Address) -> socket.socket:
    """Connect to home."""
    if isinstance(address, tuple):
        made = socket.create_connection(address, PATIENCE)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made
    made = socket.socket(socket.AF_UNIX)
    try:
        made.settimeout(PATIENCE)
        made.connect(address)
    except BaseException:
        made.close()
        raise
    return made


def _next(answers: queue.SimpleQueue[bool | None]) -> bool:
    """Wait for an answer.

    Raises:
        ConnectionError: There is none.
    """
    answer = answers.get()
    if answer is None:
        raise ConnectionError("home has hung up")
    return answer


def _start(listen: Callable[[], Any]) -> None:
    """Start a thread that does not keep its process alive."""
    try:
        threading.Thread(target=listen, name="creche line", daemon=True).start()
    except RuntimeError:  # pragma: no cover (a subinterpreter has no daemons; they come with 3.14)
        threading.Thread(target=listen, name="creche line").start()
