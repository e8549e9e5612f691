"""Send SIGTERM to a service under load, at random moments, and check how it ends.

``python tests/sigterm/run.py [--times N] [--backend NAME] [--seed N]``: 1,000 times on asyncio and
on Trio, 20 minutes on two cores. Each service runs in its own process, which is kept busy by
threads, queues, daemons, restarts and 50 open streams. It must exit with status 143 within its
grace period plus half a second, every final state of a worker must have been reported, and every
stream must have ended properly. Time spent waiting for a processor does not count. In one of a
hundred services a thread ignores its cancellation: that service ends late, and its log must name
the thread. Any other late end is reported step by step, with the processor time of each step.
"""

# ruff: noqa: T201 (this program prints its results)

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import service

BACKENDS = ("asyncio", "trio", "uvloop")
STREAMS = 50
SLACK = 0.5  # seconds after the grace period
LATEST = 0.4  # the signal is sent after this many seconds at the latest
STARVED = 0.1  # seconds without a processor, after which streams may not end in time
HANG = 40.0  # seconds after which a process is killed
DEAF = 100  # one in this many services has a deaf thread


class Life:
    """A service in its own process, from start to end. The caller must not have threads (fork).

    Args:
        backend: The backend of the service.
        seed: Seeds the service and the time of the signal.
    """

    def __init__(self, backend, seed):
        self._chance = random.Random(f"signal {seed}")
        self.is_deaf = self._chance.randrange(DEAF) == 0
        self._said = b""
        self._sent = self._alive = 0.0  # when the signal was sent; when it was last seen alive
        self._usage = None  # resource usage of the process, once it has ended
        self._streams = {}
        self._waited = {}  # nanoseconds that each thread has waited for a processor
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in end())
        self._end, theirs = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.dup2(theirs, 1)
            os.dup2(self._log.fileno(), 2)
            os.close(self._end)
            faulthandler.dump_traceback_later(HANG - 5, exit=False)
            service.run(backend, seed, is_deaf=self.is_deaf)
            os._exit(99)  # the signal did not end it
        os.close(theirs)
        os.set_blocking(self._end, False)

    def __call__(self):
        """Run the service; return what was wrong and how many seconds its end took."""
        # Sometimes the signal comes before the service has opened its port.
        self._read_until(b"port " if self._chance.random() < 0.9 else b"caught")
        if b"port " in self._said:
            self._open_streams(int(self._said.partition(b"port ")[2].split()[0]))
        self._read_for(self._chance.random() * LATEST)
        os.kill(self._pid, signal.SIGTERM)
        before, self._sent = sum(self._waited.values()), time.monotonic()
        status = self._wait()
        starved = (sum(self._waited.values()) - before) / 1e9
        # Up to when it was last seen alive, since this program may wait for a processor too.
        took = self._alive - self._sent - starved
        wrong = list(self._find_wrong(status, took, starved))
        self._log.close()
        os.close(self._end)
        return wrong, took

    # reading continuously, so that the service never blocks on a write

    def _read_until(self, word):
        until = time.monotonic() + HANG
        while word not in self._said and time.monotonic() < until:
            self._read_for(0.005)

    def _read_for(self, seconds):
        until = time.monotonic() + seconds
        while True:
            self._read()
            left = min(0.005, until - time.monotonic())
            if left <= 0:
                return
            time.sleep(left)

    def _read(self):
        with suppress(OSError, IndexError):  # Linux only, and a thread may have ended
            for thread in Path(f"/proc/{self._pid}/task").iterdir():
                told = (thread / "schedstat").read_text(encoding="ascii")
                self._waited[thread.name] = int(told.split()[1])
        with suppress(BlockingIOError):
            self._said += os.read(self._end, 65536)
        for stream, got in self._streams.items():
            with suppress(OSError):  # no data yet, or the connection is closed
                while part := stream.recv(65536):
                    got.extend(part)

    def _open_streams(self, port):
        for _ in range(STREAMS):
            stream = socket.create_connection(("127.0.0.1", port))
            stream.setblocking(False)
            self._streams[stream] = bytearray()

    def _wait(self):
        until = time.monotonic() + HANG
        while True:
            now = time.monotonic()
            if os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                self._read()  # the main thread's schedstat is readable until the process is reaped
                _, status, self._usage = os.wait4(self._pid, 0)
                return os.waitstatus_to_exitcode(status)
            self._alive = now
            if time.monotonic() > until:
                os.kill(self._pid, signal.SIGKILL)
                until = float("inf")
            self._read_for(0.005)

    # the outcome

    def _find_wrong(self, status, took, starved):
        self._log.seek(0)
        log = self._log.read().decode(errors="replace")
        tail = log[-2_000:]
        if status != 128 + signal.SIGTERM:
            yield f"exit status {status}\n{tail}"
        if took > service.GRACE + SLACK and not self._is_named(log):
            steps = "\n".join(self._tell_steps(starved))
            yield f"took {took:.2f} s, and names nobody\n{steps}\n{tail}"
        lines = self._said.decode().splitlines()
        *_, last = [line for line in lines if line.startswith("{")] or [""]
        if not last:
            yield f"it gave no account of its end, but {lines[-1:]}"
            return
        yield from json.loads(last)["wrong"]
        for stream in self._streams:
            stream.close()
        broken = [got for got in self._streams.values() if got and not got.endswith(b"\nbye\n")]
        if broken and starved < STARVED:
            yield f"{len(broken)} streams have no end, the first after {bytes(broken[0][-20:])!r}"

    def _tell_steps(self, starved):
        """Report when each step happened, and its processor time."""
        before, used = None, self._usage
        for line in self._said.decode().splitlines():
            word, *rest = line.split(maxsplit=3)
            if word != "step":
                continue
            at, spent = map(float, rest[:2])
            more = "" if before is None else f", {spent - before:.3f} s of them on a processor"
            yield f"  {at - self._sent:7.3f} s: {rest[2]}{more}"
            before = spent
        spent = used.ru_utime + used.ru_stime
        more = "" if before is None else f", {spent - before:.3f} s of them on a processor"
        yield f"  {self._alive - self._sent:7.3f} s: last seen alive{more}"
        yield (
            f"  its threads waited {starved:.3f} s for a processor, all together; it was put "
            f"aside {used.ru_nivcsw} times in its life, and read {used.ru_majflt} pages from disk"
        )

    def _is_named(self, log):
        return self.is_deaf and "worker app/default/deaf: RUNNING for" in log


def run(backend, times, seed):
    """Run that many services on a backend; return how many of them failed."""
    bad, took = 0, []
    for number in range(times):
        name = f"{seed}/{number}"
        life = Life(backend, name)
        wrong, seconds = life()
        if not life.is_deaf:
            took.append(seconds)
        for each in wrong:
            print(f"{backend} {name}: {each}", flush=True)
        bad += bool(wrong)
        if number % 50 == 49:
            print(f"{backend}: {number + 1} ended, {bad} not as they should", flush=True)
    took.sort()
    middle, longest = (took[len(took) // 2], took[-1]) if took else (0, 0)
    print(
        f"{backend}, seed {seed}: {times} ended by SIGTERM, {bad} not as they should; "
        f"{middle:.2f} s after it, at most {longest:.2f} s, with {service.GRACE} s of grace",
        flush=True,
    )
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=1_000, help="on each backend")
    parser.add_argument("--backend", choices=BACKENDS, help="by default asyncio, then trio")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed
    if seed is None:
        seed = random.SystemRandom().randrange(1_000_000)
    backends = [options.backend] if options.backend else BACKENDS[:2]
    return bool(sum([run(backend, options.times, seed) for backend in backends]))


if __name__ == "__main__":
    sys.exit(main())
