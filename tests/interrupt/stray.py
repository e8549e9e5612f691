"""Ctrl+C to a busy program at random moments: a real process, a real signal, its exit status."""

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
LATE = ("ignored", "never retrieved")  # a second one may meet what Python does at its own end


def strike(backend, runs, seconds):
    """Interrupt the program again and again, each second time twice; tell how often it failed."""
    chance = random.Random(5)  # noqa: S311 (no secret)
    outcomes = collections.Counter()
    for number in range(runs):
        outcomes[_interrupt(backend, chance, seconds, twice=number % 2 == 1)] += 1
    right = outcomes.pop("right", 0)
    print(f"random on {backend}: {runs} runs, {runs - right} failed", flush=True)
    for outcome, count in outcomes.most_common():
        print(f"  {count:4} x {outcome}")
    return runs - right


def _interrupt(backend, chance, seconds, *, twice):
    process = subprocess.Popen(
        [sys.executable, str(BUSY), backend],
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
        try:
            _, said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return "hangs" + (" after two" if twice else "")
    return _judge(process.returncode, said, backend, twice=twice)


def _judge(status, said, backend, *, twice):
    expected = [-signal.SIGINT]
    if sys.version_info < (3, 11) and backend != "trio":
        expected.append(1)  # plain AnyIO ends with CancelledError there
    if status not in expected:
        lines = said.strip().splitlines() or [""]
        return f"status {status}{' after two' if twice else ''}: {lines[-1]}"
    for word in NOISE:
        if word in said and not (twice and word in LATE):
            return next(line for line in said.splitlines() if word in line)
    return "right"
