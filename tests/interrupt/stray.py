"""Ctrl+C at random moments in a busy program: a real process, a real signal, its exit status."""

# ruff: noqa: T201 (it prints what it found)

from __future__ import annotations

import collections
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

BUSY = Path(__file__).with_name("busy.py")
NOISE = ("Warning", "never", "ExceptionGroup", "InternalError", "destroyed", "ignored")


def strike(backend, runs, seconds, *, tell):
    """Interrupt the program repeatedly and return how often it failed.

    On Trio every second run gets a second Ctrl+C. On asyncio a second one can stop the loop within
    a step of AnyIO or asyncio itself, which no library can handle.
    """
    chance = random.Random(5)  # noqa: S311 (no secret)
    outcomes = collections.Counter()
    for number in range(runs):
        twice = number % 2 == 1 and backend == "trio"
        fault, said = _interrupt(backend, chance, seconds, twice=twice)
        outcomes[fault and f"{fault}, after {1 + twice} Ctrl+C"] += 1
        if fault and tell:
            print(f"number {number}: {fault}", said, sep="\n")
    right = outcomes.pop("", 0)
    print(f"random on {backend}: {runs} runs, {runs - right} failed", flush=True)
    for outcome, count in outcomes.most_common():
        print(f"  {count:4} x {outcome}")
    return runs - right


def _interrupt(backend, chance, seconds, *, twice):
    """Return what was wrong, or an empty text, and what the program wrote to stderr."""
    process = subprocess.Popen(
        [sys.executable, str(BUSY), backend, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        process.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.1))
        process.send_signal(signal.SIGINT)
        if twice:
            time.sleep(chance.uniform(0.0, 0.01))
            process.send_signal(signal.SIGINT)
        _, said = process.communicate()  # it has a watchdog of its own
    return _judge(process.returncode, said, backend, twice=twice), said


def _judge(status, said, backend, *, twice):
    lines = said.strip().splitlines() or [""]
    if "Timeout (0:" in said:
        return "hangs"
    expected = [-signal.SIGINT]
    if sys.version_info < (3, 11) and backend != "trio":
        expected.append(1)  # plain AnyIO ends with CancelledError there
    if status not in expected:
        return f"status {status}: {lines[-1]}"
    # A second Ctrl+C may interrupt anything, including Python's own shutdown.
    for word in () if twice else NOISE:
        if word in said:
            return next(line.strip() for line in lines if word in line)
    return ""
