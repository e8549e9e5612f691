"""Run random work elsewhere, and check that no descriptors, children or threads are left.

``python tests/soak/elsewhere.py [--jobs N] [--backend NAME] [--seed N]``: 880 jobs on each backend,
on several engines and executors. They return, fail, crash their process, are cancelled at any
moment, hang, report progress and log. Their states have to be legal, and nothing may be left.
"""

# ruff: noqa: T201 (it prints what it finds)

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import anyio

import farwork
from creche import Node, Worker, WorkerCrashed, WorkerState
from creche.ways import OnExecutor, Processes
from engines import Threads, pool

BACKENDS = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
FINAL = (WorkerState.CANCELLED, WorkerState.ERROR, WorkerState.SUCCESS)
AT_ONCE = 20


def left():
    """Return how many descriptors, children and threads this process has."""
    gc.collect()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    # Trio keeps an idle thread for ten seconds, under this name.
    threads = [each for each in threading.enumerate() if not each.name.startswith("Trio thread")]
    return len(list(Path("/proc/self/fd").iterdir())), len(children), len(threads)


class Soak:
    """Random jobs on one engine or executor."""

    def __init__(self, chance, where, *, can_be_killed):
        self.chance = chance
        self.where = where
        self.can_be_killed = can_be_killed
        self.histories = {}

    def draw(self, folder, number):
        """Draw the work of a job. Some of it crashes its process, if that is allowed."""
        sign = str(Path(folder) / str(number))
        works = [
            partial(farwork.add, number, 1),
            partial(farwork.add_later, number, 1),
            partial(farwork.fail, str(number)),
            partial(farwork.count, 200),
            partial(farwork.write_log, str(number)),
            farwork.fail_untold,
            farwork.give_unpickled,
            partial(farwork.until_cancelled, sign),
            partial(farwork.sleep_until_cancelled, sign),
            partial(farwork.give_when_cancelled, sign, number),
            partial(len, bytes(self.chance.choice([0, 10, 3_000_000]))),
        ]
        if self.can_be_killed:
            works += [partial(farwork.ignore, sign), farwork.leave_at_once, farwork.kill_itself]
        return self.chance.choice(works)

    async def run(self, jobs):
        """Run the jobs, and check how each of them ended."""
        app = Node("soak", exit_on_error=False)
        with tempfile.TemporaryDirectory() as folder:
            async with app.subscribe(Worker.StateChanged, tree=True) as events:
                async with app:
                    await self.start_all(app.group("jobs", limit=AT_ONCE), jobs, folder)
                for event in events.take_all():
                    self.histories.setdefault(event.worker, []).append(event.state)
        return self.check()

    async def start_all(self, group, jobs, folder):
        for number in range(jobs):
            await group.room()
            group.run_worker(self.draw(folder, number), where=self.where)
            while self.chance.random() < 0.5:
                await self.act(group)
            if len(group) == AT_ONCE:
                await anyio.sleep(0.1)
            if len(group) == AT_ONCE:  # all of them may be waiting to be cancelled
                self.chance.choice(list(group)).cancel("to make room")
        group.cancel("the end")

    async def act(self, group):
        what = self.chance.randrange(3)
        if what == 0:
            await anyio.sleep(self.chance.choice([0, 0.001, 0.01]))
        elif what == 1 and len(group):
            self.chance.choice(list(group)).cancel("drawn")

    def check(self):
        """Check that each history is legal, and count the ends."""
        ends = Counter()
        for worker, states in self.histories.items():
            names = [state.name for state in states]
            assert names[0] == "PENDING", names
            assert states[-1] in FINAL, (worker, names)
            assert names[1:-1] in ([], ["RUNNING"]), names
            if worker.is_cancelled:
                assert states[-1] is not WorkerState.SUCCESS, worker
            ends[type(worker.error).__name__ if worker.error else names[-1]] += 1
            if isinstance(worker.error, WorkerCrashed):
                assert self.can_be_killed, worker
        return ends


def soak(options):
    """Run the jobs on one backend in this process, on each engine and executor."""
    name, backend_options = BACKENDS[options.backend]
    logging.getLogger("creche").disabled = True
    logging.getLogger("farwork").disabled = True
    ways = {
        "processes": (lambda: Processes(4), True),
        "processes, with grace": (lambda: Processes(4, grace=0.05), True),
        "threads of an engine": (Threads, False),
        "pool": (lambda: OnExecutor(pool("spawn")), False),
    }
    pool("spawn")
    for way, (make, can_be_killed) in ways.items():
        chance = random.Random(f"{options.seed}/{options.backend}/{way}")
        one = Soak(chance, make(), can_be_killed=can_be_killed)
        first = Soak(random.Random(0), make(), can_be_killed=can_be_killed)
        run = partial(anyio.run, backend=name, backend_options=backend_options)
        run(first.run, 20)  # for what is made only once
        before = left()
        ends = run(one.run, options.jobs // len(ways))
        after = left()
        told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
        print(f"{options.backend}, {way}: {told}; before {before}, after {after}", flush=True)
        assert after <= before, "something is left"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=880, help="on each backend")
    parser.add_argument("--backend", choices=BACKENDS)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.backend is not None:
        soak(options)
        return
    for backend in BACKENDS:
        arguments = ["--backend", backend, "--jobs", str(options.jobs), "--seed", str(options.seed)]
        subprocess.run(  # a warning, for example of an unclosed socket, is an error
            [sys.executable, "-X", "dev", "-W", "error", __file__, *arguments], check=True
        )


if __name__ == "__main__":
    main()
