"""The scenarios, and the cases of each: one way to run jobs, on one event loop, at one size.

Each ``async def`` measures one way once; setup is not timed. Those that measure time return seconds
(per job, if the size is a number of jobs) on two clocks: CPU time, which other programs disturb
less, and wall time. Those that measure memory return bytes per job, as the system sees them
(``/proc``, so on Linux only): the difference between before the jobs are started and once they all
sleep or are queued, each read after a garbage collection.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING

import anyio
import elsewhere
import trio
import watching
from instructions import environment
from report import SMALLEST
from ways import ALL, WAVE, WAYS

if TYPE_CHECKING:
    from collections.abc import Callable

FLOOR = ("raw", "AnyIO")
ABREAST = 40
"""How many threads run at once: as many as AnyIO's default limiter admits."""
LIMIT, THREADS = 10, 4
"""How many jobs, and how many threads, a limit lets run at once."""
TIMES = 30
"""How often work is replaced or a group cancelled while other jobs are alive."""
STATUS = Path("/proc/self/status")
IMPORTS = {
    "python": "pass",
    "AnyIO": "import anyio, anyio.to_thread, anyio.from_thread",
    "Creche": "import creche",
}


@dataclass(frozen=True)
class Case:
    """One way to run jobs, on one event loop, at one size."""

    way: str
    loop: str
    size: int
    run: Callable[..., float | tuple[float, ...]] = field(compare=False)
    """Measure once, and return the time on each clock, or another value.

    An amount may be given in place of the size, to count more or fewer instructions.
    """

    @property
    def key(self):
        """The name of the case on a command line."""
        return f"{self.way}/{self.loop}/{self.size}"


@dataclass
class Scenario:
    """Cases that are measured in turn, and the ways that they are compared with."""

    name: str
    title: str
    against: tuple[str, ...]
    cases: list[Case]
    unit: str = ""
    """The unit of values that are shown; empty for times, of which only ratios are shown."""
    clock: str = "processor"
    """The clock of ``CLOCKS`` that counts: wall time for threads, which wait for each other."""

    def base_of(self, case: Case, name: str) -> Case | None:
        """Find the case that a case is compared with."""
        for other in self.cases:
            if other.loop != case.loop:
                continue
            if name == SMALLEST and other.way == case.way:
                return other
            if other.way == name and other.size == case.size:
                return other
        return None


class Jobs:
    """The jobs to run, written directly for one event loop, so that they involve no library."""

    def __init__(self, loop):
        self.sleeps = partial(trio.sleep if loop == "trio" else asyncio.sleep, 0)
        self.forever = trio.sleep_forever if loop == "trio" else self._forever

    @staticmethod
    async def returns():
        pass

    @staticmethod
    async def _forever():
        await asyncio.get_running_loop().create_future()

    async def settle(self):
        """Let every task that is ready run, several times."""
        for _ in range(10):
            await self.sleeps()


def measure(way, loop, scenario, *args):
    """Run one measurement on an event loop of its own."""

    async def main():
        async with way.host():
            return await scenario(way, Jobs(loop), *args)

    backend = "trio" if loop == "trio" else "asyncio"
    return anyio.run(
        main,
        backend=backend,
        backend_options={"use_uvloop": True} if loop == "uvloop" else {},
    )


def each(scenario, sizes, *args, needs, loops=ALL, ways=None, limit=None):
    """Create the cases of all ways that have the methods needed, on all loops, at all sizes.

    Args:
        scenario: ``async def scenario(way, jobs, size, *args)``, which returns what it measured.
        sizes: The sizes.
        args: More arguments for the scenario.
        needs: The methods that a way must have.
        loops: The loops.
        ways: The names of the ways; None for all.
        limit: How many of the jobs of ``start_limited()`` may run at once.
    """

    def make(kind, loop, size):
        def run(amount=None):
            return measure(kind(limit), loop, scenario, amount or size, *args)

        return Case(kind.name, loop, size, run)

    return [
        make(kind, loop, size)
        for size in sizes
        for loop in loops
        for kind in WAYS
        if loop in kind.loops and all(hasattr(kind, need) for need in needs)
        if ways is None or kind.name in ways
    ]


def clocks():
    """Read the clocks, as ``CLOCKS`` names them."""
    return process_time(), perf_counter()


def since(begun, times):
    """Return the seconds that have passed on both clocks, divided by a number of repetitions."""
    return tuple((now - then) / times for now, then in zip(clocks(), begun, strict=True))


async def spawn(way, jobs, size, start, job):
    """Start jobs and wait until all have ended."""
    begun = clocks()
    async with way:
        await getattr(way, start)(getattr(jobs, job), size)
    return since(begun, size)


async def cancel_all(way, jobs, size):
    """Cancel sleeping jobs all at once, and wait until all have ended."""
    async with way:
        await way.start(jobs.forever, size)
        await jobs.settle()
        begun = clocks()
        await way.cancel_all()
    return since(begun, size)


async def cancel_each(way, jobs, size):
    """Cancel sleeping jobs one by one, and wait until all have ended."""
    async with way:
        handles = await way.start_each(jobs.forever, size)
        await jobs.settle()
        begun = clocks()
        await way.cancel_each(handles)
    return since(begun, size)


async def exclusive(way, jobs, others):
    """Start work that replaces earlier work, while other jobs are alive in groups of their own."""
    async with way:
        await way.start_others(jobs.forever, others)
        await way.replace(jobs.forever)
        await jobs.settle()
        begun = clocks()
        for _ in range(TIMES):
            await way.replace(jobs.forever)
            await jobs.sleeps()
            await jobs.sleeps()
        passed = since(begun, TIMES)
        await way.cancel_all()
    return passed


async def cancel_group(way, jobs, others):
    """Cancel a group of ten jobs, while others are alive in groups of their own."""
    passed = 0.0, 0.0
    async with way:
        await way.start_others(jobs.forever, others)
        for _ in range(TIMES):
            await way.start(jobs.forever, 10)
            await jobs.settle()
            begun = clocks()
            await way.cancel_group()
            await jobs.sleeps()
            await jobs.sleeps()
            passed = tuple(map(sum, zip(passed, since(begun, TIMES), strict=True)))
        await way.cancel_all()
    return passed


def nothing():
    """Do nothing, in a thread."""


async def threads_in_turn(way, _jobs, size):
    """Run a function in a thread and wait for it, again and again."""
    async with way:
        await way.run_thread(nothing)
        begun = clocks()
        for _ in range(size):
            await way.run_thread(nothing)
        return since(begun, size)


async def threads_abreast(way, _jobs, size):
    """Run a function in many threads at once and wait for all, again and again."""
    async with way:
        await way.run_threads(nothing, ABREAST)
        begun = clocks()
        for _ in range(size):
            await way.run_threads(nothing, ABREAST)
        return since(begun, size * ABREAST)


async def threads_limited(way, _jobs, size):
    """Run a function in many threads, few of them at once, and wait until all have ended."""
    begun = clocks()
    async with way:
        await way.start_threads_limited(nothing, size)
    return since(begun, size)


async def advance(way, _jobs, size):
    """Report progress, a hundred steps per unit of the size."""
    async with way:
        begun = clocks()
        await way.advance(size * 100)
        return since(begun, size)


def resident():
    """Read the resident set size of this process, in bytes."""
    gc.collect()
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


async def live(way, jobs, size):
    """Measure the bytes per sleeping job; the caller keeps a handle of each."""
    async with way:
        # Warm up with few jobs that suspend. Few, because the memory of tasks that have ended is
        # reused. For jobs that return at once, some ways create a task each, others one for all.
        await way.start(jobs.sleeps, 20)
        await jobs.settle()
        before = resident()
        handles = await way.start(jobs.forever, size)
        await jobs.settle()
        tell_and_end((resident() - before) / size)
        del handles


async def queued(way, jobs, size):
    """Measure the bytes per job that is queued behind a sleeping one."""
    async with way:
        await jobs.settle()
        before = resident()
        await way.start_limited(jobs.forever, size)
        await jobs.settle()
        tell_and_end((resident() - before) / size)


def tell_and_end(value):
    """Print what was measured and exit at once, without any teardown."""
    print(value, flush=True)
    os._exit(0)


def _followed(name, title, do):
    """Create a scenario of 200 workers that are watched one by one."""
    ways = (watching.UNFOLLOWED, watching.STREAM, watching.QUEUE, "Creche")
    cases = [
        Case(way, loop, 200, partial(watching.followed, way, loop, 200, do))
        for loop in ALL
        for way in ways
        if (way, loop) != (watching.QUEUE, "trio")
    ]
    return Scenario(name, title, (watching.UNFOLLOWED,), cases)


def _in_processes(loop, size, amount=None):
    return elsewhere.creche(loop, size, in_pool=False, amount=amount)


def _in_pool(loop, size, amount=None):
    return elsewhere.creche(loop, size, in_pool=True, amount=amount)


def spent_on(program):
    """Run a program in a process of its own, and return the seconds it took on both clocks."""
    begun, before = perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], env=environment(), check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, perf_counter() - begun


def scenarios(*, full):
    """Return all scenarios, at the quick or the full size."""
    jobs = [5_000 if full else 300]
    limited = [100_000 if full else 1_000]
    cancelled = [10_000 if full else 500]
    others = [10, 1_000, 10_000] if full else [10, 1_000]
    grown = [1_000, 10_000, 100_000] if full else [500, 5_000]
    threads = 500 if full else 50
    calls, kills = (500, 20) if full else (50, 3)
    made = [
        Scenario(
            "return",
            "a job that returns at once",
            (*FLOOR, "Textual"),
            each(spawn, jobs, "start", "returns", needs=["start"]),
        ),
        Scenario(
            "sleep",
            "a job that sleeps 0",
            FLOOR,
            each(spawn, jobs, "start", "sleeps", needs=["start"]),
        ),
        Scenario(
            "handler",
            "a job that returns, with a handler",
            ("AnyIO", "Textual"),
            each(spawn, jobs, "start_handled", "returns", needs=["start_handled"]),
        ),
        Scenario(
            "watched",
            "a job that returns, by who watches",
            ("Creche, unwatched",),
            each(spawn, jobs, "start_watched", "returns", needs=["start_watched"]),
        ),
        _followed(
            "followed",
            "a job of 1,000 steps of progress in 10 turns of the loop, followed by one who listens",
            "count",
        ),
        _followed(
            "followed-hash",
            "a job that hashes 64 kB before each of 10 steps of progress, followed",
            "hash",
        ),
        Scenario(
            "processes",
            f"a function in {elsewhere.PROCESSES} processes: the program's processor time",
            (elsewhere.BARE,),
            [
                Case(way, loop, calls, partial(call, loop, calls))
                for loop in ALL
                for way, call in ((elsewhere.BARE, elsewhere.to_process), ("Creche", _in_processes))
            ],
        ),
        Scenario(
            "executor",
            "a function in a pool of processes: the program's processor time",
            (elsewhere.SUBMIT,),
            [
                Case(way, "asyncio", calls, partial(call, "asyncio", calls))
                for way, call in ((elsewhere.SUBMIT, elsewhere.submit), ("Creche", _in_pool))
            ],
        ),
        Scenario(
            "dask",
            "a function on a Dask cluster: the program's processor time",
            (elsewhere.SUBMIT,),
            [
                Case(way, "asyncio", calls, partial(call, "asyncio", calls))
                for way, call in (
                    (elsewhere.SUBMIT, elsewhere.dask_submit),
                    ("Creche", elsewhere.dask_creche),
                )
            ],
        ),
        Scenario(
            "kill",
            "from the cancellation of work in a process to its end",
            (elsewhere.KILL,),
            [
                Case(way, "asyncio", kills, partial(call, "asyncio", kills))
                for way, call in (
                    (elsewhere.KILL, elsewhere.bare_kill),
                    ("Creche", elsewhere.cancel),
                )
            ],
            clock="wall",
        ),
        Scenario(
            "watchdog",
            "a watchdog of a loop that has nothing to do",
            (),
            [Case("Creche", loop, 1, partial(watching.watched, loop)) for loop in ALL],
            unit="% of a processor",
        ),
        Scenario(
            "limit",
            f"a job that returns, {LIMIT} at once",
            (*FLOOR, "aiojobs"),
            each(
                *(spawn, limited, "start_limited", "returns"),
                needs=["start_limited"],
                limit=LIMIT,
            ),
        ),
        Scenario(
            "limit-sleep",
            f"a job that sleeps 0, {LIMIT} at once",
            (*FLOOR, "aiojobs"),
            each(
                *(spawn, limited, "start_limited", "sleeps"),
                needs=["start_limited"],
                limit=LIMIT,
            ),
        ),
        Scenario(
            "waves",
            f"a job that sleeps 0, {WAVE} at a time: all are waited for before the next",
            FLOOR,
            each(spawn, jobs, "run_waves", "sleeps", needs=["run_waves"]),
        ),
        Scenario(
            "in-turn",
            "a job that returns, waited for before the next",
            FLOOR,
            each(spawn, jobs, "run_in_turn", "returns", needs=["run_in_turn"]),
        ),
        Scenario(
            "in-turn-sleep",
            "a job that sleeps 0, waited for before the next",
            FLOOR,
            each(spawn, jobs, "run_in_turn", "sleeps", needs=["run_in_turn"]),
        ),
        Scenario(
            "cancel-node",
            "cancel all at once",
            FLOOR,
            each(cancel_all, cancelled, needs=["start", "cancel_all"]),
        ),
        Scenario(
            "cancel-each", "cancel one by one", FLOOR, each(cancel_each, cancelled, needs=["start"])
        ),
        Scenario(
            "exclusive",
            "an exclusive start, with others alive",
            (SMALLEST, "Textual"),
            each(exclusive, others, needs=["replace"]),
        ),
        Scenario(
            "group-cancel",
            "cancelling a group of ten, with others alive",
            (SMALLEST, "Textual"),
            each(cancel_group, others, needs=["cancel_group"]),
        ),
        Scenario(
            "threads-in-turn",
            "threads one after another",
            ("AnyIO", "AnyIO, in a task"),
            each(threads_in_turn, [threads], needs=["run_thread"]),
            clock="wall",
        ),
        Scenario(
            "threads-abreast",
            f"{ABREAST} threads at once",
            ("AnyIO",),
            each(threads_abreast, [threads // 10], needs=["run_threads"]),
            clock="wall",
        ),
        Scenario(
            "threads-limit",
            f"threads, {THREADS} at once",
            ("AnyIO",),
            each(threads_limited, [threads * 4], needs=["start_threads_limited"], limit=THREADS),
            clock="wall",
        ),
        Scenario(
            "progress",
            "a hundred updates of progress",
            ("raw", "Textual"),
            # It does not involve the event loop.
            each(advance, [1_000 if full else 200], needs=["advance"], loops=["asyncio"]),
        ),
        Scenario(
            "growth",
            "cost of a job, by the size of the batch",
            (SMALLEST, "AnyIO"),
            each(
                *(spawn, grown, "start", "returns"),
                needs=["start"],
                ways=["AnyIO", "Creche", "Textual"],
            ),
        ),
        Scenario(
            "import",
            "import, the start of Python included",
            ("AnyIO",),
            [Case(way, "-", 1, partial(spent_on, text)) for way, text in IMPORTS.items()],
        ),
    ]
    if STATUS.exists():
        made += [
            Scenario(
                "memory-live",
                "bytes of a job that is alive",
                FLOOR,
                each(live, [50_000 if full else 5_000], needs=["start"]),
                unit="bytes",
            ),
            Scenario(
                "memory-queued",
                "bytes of a job that is queued",
                FLOOR,
                each(queued, [100_000 if full else 20_000], needs=["start_limited"], limit=1),
                unit="bytes",
            ),
        ]
    return made
