"""The scenarios that are timed. Each function measures one way once; setting up is not timed.

All give seconds, a job where the size is a number of jobs that run; they are turned into ratios.
They are seconds of the processor, which other programs disturb less than a clock on the wall, but
for those of threads, which wait for each other.
"""

from __future__ import annotations

from time import perf_counter, process_time

from cases import SMALLEST, Scenario, each

ABREAST = 40
"""How many threads at once: what AnyIO's default limiter admits."""


async def spawn(way, jobs, size, start, job):
    """Start jobs and wait for the end of all."""
    begun = process_time()
    async with way:
        await getattr(way, start)(getattr(jobs, job), size)
    return (process_time() - begun) / size


async def cancel(way, jobs, size, how):
    """Cancel jobs that all sleep, and wait for the end of all."""
    async with way:
        if how == "cancel_each":
            handles = await way.start_each(jobs.forever, size)
            await jobs.settle()
            begun = process_time()
            await way.cancel_each(handles)
        else:
            await way.start(jobs.forever, size)
            await jobs.settle()
            begun = process_time()
            await getattr(way, how)()
    return (process_time() - begun) / size


async def exclusive(way, jobs, others, times):
    """Start work that takes the place of its like, while others live in groups of their own."""
    async with way:
        await way.start_others(jobs.forever, others)
        await way.replace(jobs.forever)
        await jobs.settle()
        begun = process_time()
        for _ in range(times):
            await way.replace(jobs.forever)
            await jobs.sleeps()
            await jobs.sleeps()
        passed = process_time() - begun
        await way.cancel_all()
    return passed / times


async def cancel_group(way, jobs, others, times):
    """Cancel a group of ten, while others live in groups of their own."""
    passed = 0.0
    async with way:
        await way.start_others(jobs.forever, others)
        for _ in range(times):
            await way.start(jobs.forever, 10)
            await jobs.settle()
            begun = process_time()
            await way.cancel_group()
            await jobs.sleeps()
            await jobs.sleeps()
            passed += process_time() - begun
        await way.cancel_all()
    return passed / times


def nothing():
    """Take no time, in a thread."""


async def threads_in_turn(way, _jobs, size):
    """Run a function in a thread and wait for it, time after time."""
    async with way:
        await way.run_thread(nothing)
        begun = perf_counter()
        for _ in range(size):
            await way.run_thread(nothing)
        return (perf_counter() - begun) / size


async def threads_abreast(way, _jobs, size):
    """Run a function in many threads at once and wait for all, time after time."""
    async with way:
        await way.run_threads(nothing, ABREAST)
        begun = perf_counter()
        for _ in range(size):
            await way.run_threads(nothing, ABREAST)
        return (perf_counter() - begun) / size / ABREAST


async def advance(way, _jobs, size):
    """Tell of steps of progress, a hundred for each of the size."""
    async with way:
        begun = process_time()
        await way.advance(size * 100)
        return (process_time() - begun) / size


def scenarios(ways, loops, *, full):
    """Give all scenarios that are timed, in quick or in full size."""
    floor = ("raw", "AnyIO create_task")
    jobs = [5_000 if full else 300]
    cancelled = [10_000 if full else 500]
    others = [10, 1_000, 10_000] if full else [10, 1_000]
    times = 200 if full else 30
    threads = [500 if full else 50]
    grown = [way for way in ways if way.name in ("AnyIO create_task", "Creche", "Textual")]

    one_loop = [loop for loop in loops if loop == "asyncio"]  # progress has no part in the loop

    def make(scenario, sizes, *args, needs, **options):
        return each(ways, loops, scenario, sizes, *args, needs=needs, **options)

    def make_spawn(sizes, start, job, **options):
        return make(spawn, sizes, start, job, needs=[start], **options)

    def make_cancel(how, start="start"):
        return make(cancel, cancelled, how, needs=[start, how])

    return [
        Scenario(
            "return",
            "a job that returns at once",
            (*floor, "Textual"),
            make_spawn(jobs, "start", "returns"),
        ),
        Scenario("sleep", "a job that sleeps 0", floor, make_spawn(jobs, "start", "sleeps")),
        Scenario(
            "handler",
            "a job that returns, with a handler",
            ("AnyIO create_task", "Textual"),
            make_spawn(jobs, "start_handled", "returns"),
        ),
        Scenario(
            "watched",
            "a job that returns, by who watches",
            ("Creche, unwatched",),
            make_spawn(jobs, "start_watched", "returns"),
        ),
        Scenario(
            "limit",
            "a job that returns, 10 at once",
            ("AnyIO start_soon", "raw", "aiojobs"),
            make_spawn([100_000 if full else 1_000], "start_limited", "returns", limit=10),
        ),
        Scenario("cancel-node", "cancel all at once", floor, make_cancel("cancel_all")),
        Scenario("cancel-group", "cancel a group", floor, make_cancel("cancel_group")),
        Scenario(
            "cancel-each", "cancel one by one", floor, make_cancel("cancel_each", "start_each")
        ),
        Scenario(
            "exclusive",
            "an exclusive start, with others alive",
            (SMALLEST, "Textual"),
            make(exclusive, others, repeats=times, needs=["replace"]),
        ),
        Scenario(
            "group-cancel",
            "cancelling a group of ten, with others alive",
            (SMALLEST, "Textual"),
            make(cancel_group, others, repeats=times, needs=["start_others", "cancel_group"]),
        ),
        Scenario(
            "threads-in-turn",
            "threads one after another",
            ("anyio.to_thread", "anyio.to_thread in a task"),
            make(threads_in_turn, threads, needs=["run_thread"]),
        ),
        Scenario(
            "threads-abreast",
            f"{ABREAST} threads at once",
            ("anyio.to_thread",),
            make(threads_abreast, [threads[0] // 10 if full else 4], needs=["run_threads"]),
        ),
        Scenario(
            "progress",
            "a hundred updates of progress",
            ("bare method", "Textual"),
            each(ways, one_loop, advance, [1_000 if full else 200], needs=["advance"]),
        ),
        Scenario(
            "growth",
            "cost of a job, by the size of the batch",
            (SMALLEST, "AnyIO create_task"),
            each(
                *(grown, loops, spawn),
                [1_000, 10_000, 100_000] if full else [500, 5_000],
                *("start", "returns"),
                needs=["start"],
            ),
        ),
    ]
