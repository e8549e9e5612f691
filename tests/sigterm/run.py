"""Send SIGTERM to a service under load, at random moments, and look how it ends.

``python tests/sigterm/run.py [--times N] [--backend NAME] [--seed N]``: 1,000 times on asyncio and
on Trio, 20 minutes on two cores. Each service has a process of its own, which threads, queues,
daemons, restarts and 50 open streams keep busy. It has to exit with 143 within its grace and half a
second, every final change of a worker must have been told, and every stream ended in an orderly
way. Time in which it waits for a processor, as the machine is busy, does not count. In one of a
hundred a thread is deaf: then the end comes late, and the log has to name it. An end that is late
for no such reason is told step by step, with the time of a processor that each took.
"""

# ruff: noqa: T201 (it prints what it finds)

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
SLACK = 0.5  # seconds after the grace
LATEST = 0.4  # seconds after which the signal is sent at the latest
STARVED = 0.1  # seconds without a processor, of those of grace: streams cannot keep up then
HANG = 40.0  # seconds after which a process is killed
DEAF = 100  # one of so many is deaf


class Life:
    """A service in a process of its own, from its start to its end; to be forked without threads.

    Args:
        backend: What it runs on.
        seed: Of its chances, and of the moment of the signal.
    """

    def __init__(self, backend, seed):
        self._chance = random.Random(f"signal {seed}")
        self.is_deaf = self._chance.randrange(DEAF) == 0
        self._said = b""
        self._sent = self._alive = 0.0  # the times of the signal, and when it was last seen alive
        self._usage = None  # of the process, once it has ended
        self._streams = {}
        self._waited = {}  # the nanoseconds that each of its threads has waited for a processor
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in end())
        self._end, theirs = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.dup2(theirs, 1)
            os.dup2(self._log.fileno(), 2)
            os.close(self._end)
            faulthandler.dump_traceback_later(HANG - 5, exit=False)
            service.run(backend, seed, is_deaf=self.is_deaf)
            os._exit(99)  # it has not been ended by the signal
        os.close(theirs)
        os.set_blocking(self._end, False)

    def __call__(self):
        """Give what was wrong with it, and how many seconds the end took."""
        # Before it serves, now and then.
        self._read_until(b"port " if self._chance.random() < 0.9 else b"caught")
        if b"port " in self._said:
            self._open_streams(int(self._said.partition(b"port ")[2].split()[0]))
        self._read_for(self._chance.random() * LATEST)
        os.kill(self._pid, signal.SIGTERM)
        before, self._sent = sum(self._waited.values()), time.monotonic()
        status = self._wait()
        starved = (sum(self._waited.values()) - before) / 1e9
        # To when it was last seen alive: this program too may wait for a processor.
        took = self._alive - self._sent - starved
        wrong = list(self._find_wrong(status, took, starved))
        self._log.close()
        os.close(self._end)
        return wrong, took

    # reading all the time, so that nothing of it is held up

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
        with suppress(OSError, IndexError):  # of Linux; and any may have ended
            for thread in Path(f"/proc/{self._pid}/task").iterdir():
                told = (thread / "schedstat").read_text(encoding="ascii")
                self._waited[thread.name] = int(told.split()[1])
        with suppress(BlockingIOError):
            self._said += os.read(self._end, 65536)
        for stream, got in self._streams.items():
            with suppress(OSError):  # there is no more yet; or the other end has gone
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
                self._read()  # what its first thread has waited can be read until it is reaped
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
        """Tell where the time went: when each step was, and for how long there was a processor."""
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
    """Run so many on a backend; give the number of those with which something was wrong."""
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
