"""The scenarios of memory: bytes a job, as the system sees them, each in a process of its own.

What is read is the resident set (``/proc``, so on Linux only), after a collection, before the jobs
are started and once they all sleep, or wait for their turn. The caller keeps what stands for each
job where the way gives something.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

from cases import Scenario, each

STATUS = Path("/proc/self/status")
MEGABYTE = 2**20


def resident(field="VmRSS"):
    """Read the resident set of this process in bytes, or its peak, ``VmHWM``."""
    gc.collect()
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no {field}")


async def live(way, jobs, size):
    """Bytes a job of jobs that all sleep."""
    async with way:
        await way.start(jobs.returns, 1_000)
        await jobs.settle()
        before = resident()
        handles = await way.start(jobs.forever, size)
        await jobs.settle()
        _tell((resident() - before) / size)
        del handles


async def queued(way, jobs, size):
    """Bytes a job of jobs that wait for one that sleeps."""
    async with way:
        await jobs.settle()
        before = resident()
        await way.start_limited(jobs.forever, size)
        await jobs.settle()
        _tell((resident() - before) / size)


async def million(way, jobs, size):
    """Megabytes before, at the peak of, and after very many jobs that run a hundred at once."""
    warm = type(way)(limit=way.limit)
    async with warm:
        await warm.start_limited(jobs.returns, 1_000)
    before = resident()
    async with way:
        await way.start_limited(jobs.returns, size)
    del way, warm
    await jobs.settle()
    _tell([round(each / MEGABYTE, 1) for each in (before, resident("VmHWM"), resident())])


def _tell(value):
    """Hand over what was measured and end, without taking down what was set up."""
    print(value, flush=True)
    os._exit(0)


def scenarios(ways, loops, *, full):
    """Give all scenarios of memory, in quick or in full size."""
    if not STATUS.exists():
        return []
    loops = [loop for loop in loops if full or loop != "uvloop"]  # which is nearly as asyncio here
    few = [way for way in ways if way.name in ("AnyIO start_soon", "Creche")]

    def make(scenario, size, needs, ways=ways, **options):
        return each(ways, loops, scenario, [size], needs=[needs], **options)

    return [
        Scenario(
            "memory-live",
            "bytes of a job that is alive",
            ("raw", "AnyIO create_task"),
            make(live, 50_000 if full else 5_000, "start"),
            own_process=True,
            unit="bytes",
            rounds=5,
        ),
        Scenario(
            "memory-queued",
            "bytes of a job that is queued",
            ("AnyIO start_soon", "raw"),
            make(queued, 100_000 if full else 20_000, "start_limited", limit=1),
            own_process=True,
            unit="bytes",
            rounds=5,
        ),
        Scenario(
            "million",
            "very many jobs through a limit of 100: memory before, at the peak, after",
            (),
            make(million, 1_000_000 if full else 20_000, "start_limited", few, limit=100),
            own_process=True,
            unit="MB",
            rounds=1,
        ),
    ]
