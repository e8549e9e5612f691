"""Run random episodes on Creche, and check all the time that it keeps its promises.

``python tests/soak/run.py [--backend NAME] [--seconds N] [--seed N]``: 10 minutes on each backend.
In an episode, one or two trees of nodes are opened and left while all kinds of acts happen to them.
A violation is printed with the seed and the number of its episode; ``--episode N`` runs only that
one again, which makes the same choices, although the timing of threads may differ. ``--without
NAME`` switches a feature off, and ``--list`` prints their names. ``--tolerate TEXT`` only counts
known failures.
"""

# ruff: noqa: T201 (it prints what it finds)

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time

import acts  # noqa: F401 (it fills the table, as the next does)
import acts_of_nodes  # noqa: F401
import anyio
from episode import Watch, run_episode
from jobs import FEATURES
from memory import Memory
from table import TABLE
from world import World

BACKENDS = ("asyncio", "trio", "uvloop")
EVERY = 10.0  # seconds between lines
SAMPLES = 2.0  # seconds between samples of the memory
NAMES = sorted({act.feature for act in TABLE if act.feature} | set(FEATURES) | {"foreign"})


class Soak:
    """One run on one backend."""

    def __init__(self, options):
        self.options = options
        self.enabled = set(NAMES) - set(options.without)
        self.watch = Watch(options)
        self.memory = Memory()
        self.episodes = self.workers = self.errors = 0
        self.bad = 0
        self.began = self.told = time.monotonic()

    async def run(self):
        self.watch.begin()
        one = self.options.episode
        number = 0 if one is None else one
        until = self.began + (self.options.seconds if one is None else 0)
        sampled = self.began
        while not self.episodes or time.monotonic() < until:
            await self._one(number)
            if self.bad >= self.options.failures:
                break
            number += 1
            if time.monotonic() - sampled > SAMPLES:
                sampled = time.monotonic()
                self.memory.sample()
            if time.monotonic() - self.told > EVERY:
                self._tell()
        self.watch.end()

    async def _one(self, number):
        world = World(
            f"{self.options.seed}/{number}",
            *(self.options.backend, NAMES, self.enabled, TABLE, self.watch.refusals),
        )
        books = await run_episode(world, number, self.watch)
        self.episodes += 1
        self.workers += len(books.jobs)
        self.errors += books.planted
        self.bad += bool(books.failures)

    def _tell(self):
        self.told = time.monotonic()
        print(
            f"{self.options.backend} {self.told - self.began:5.0f} s: {self.episodes} episodes, "
            f"{self.workers} workers, {self.errors} planted errors, {self.bad} bad episodes, "
            f"{self.memory.told}",
            flush=True,
        )

    def conclude(self):
        """Print a summary, and return the exit status."""
        self._tell()
        wrong = self.watch.find_threads()
        if self.options.episode is None:
            wrong += self.memory.find_growth()
        for each in wrong:
            print(f"FAILED {each}")
        for text, times in self.watch.tolerated.items():
            print(f"  {times:8} x {text}")
        for (act, error), times in sorted(self.watch.refusals.items()):
            if self.options.verbose:
                print(f"  {times:8} x {act}: {error}")
        verdict = "FAILED" if wrong or self.bad else "nothing found"
        print(f"{self.options.backend}, seed {self.options.seed}: {verdict}", flush=True)
        return bool(wrong or self.bad)


def run_all(options):
    """Run on each backend in a process of its own, since its memory is measured."""
    command = [sys.executable, __file__, *sys.argv[1:]]
    status = 0
    for backend in BACKENDS[:2]:
        status |= subprocess.run([*command, "--backend", backend], check=False).returncode
    return status


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, help="by default asyncio, then trio")
    parser.add_argument("--seconds", type=float, default=600.0, help="on each backend")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--episode", type=int, default=None, help="run this one alone")
    parser.add_argument("--without", action="append", default=[], choices=NAMES, metavar="NAME")
    parser.add_argument(
        "--tolerate",
        action="append",
        default=[],
        metavar="TEXT",
        help="only count the failures that contain this",
    )
    parser.add_argument("--hang", type=float, default=30.0, help="seconds for an episode")
    parser.add_argument("--failures", type=int, default=1, help="end after so many bad episodes")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--list", action="store_true", help="tell what can be switched off")
    options = parser.parse_args()
    if options.list:
        print(*NAMES, sep="\n")
        return 0
    if options.backend is None:
        return run_all(options)
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1_000_000)
    print(f"{options.backend}, seed {options.seed}, Python {sys.version.split()[0]}", flush=True)
    soak = Soak(options)
    backend = "trio" if options.backend == "trio" else "asyncio"
    use_uvloop = {"use_uvloop": True} if options.backend == "uvloop" else {}
    anyio.run(soak.run, backend=backend, backend_options=use_uvloop)
    return soak.conclude()


if __name__ == "__main__":
    sys.exit(main())
