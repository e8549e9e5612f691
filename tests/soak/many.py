"""Run very many jobs elsewhere: does memory stay level, and is hanging work killed under load?

``python tests/soak/many.py processes [--jobs 1000000] [--backend NAME]``: the jobs are submitted
in batches, as in docs/elsewhere.md. The program's memory is measured after the first jobs, after
each tenth, and at the end.

``python tests/soak/many.py dask [--jobs 15000]``: the same on a local cluster of two processes.

``python tests/soak/many.py kill [--times 100] [--backend NAME]``: all processors are busy with
jobs. Work that hangs is cancelled, and has to end within 100 ms in the median.
"""

# ruff: noqa: T201 (it prints what it finds)

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))

import anyio

import farwork
from creche import Node
from creche.ways import Processes

BACKENDS = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
MOST_MEGABYTES = 8.0
"""Growth that does not count: memory that the allocator keeps."""
MOST_OBJECTS = 100
"""Growth in objects of Creche that counts as none. An engine has caches of its own."""
MOST_SECONDS = 0.1
"""The limit for the median time from the cancellation of hanging work to its end."""
PAGE = os.sysconf("SC_PAGE_SIZE")


def held():
    """Measure what this process holds: megabytes, and objects of Creche."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    objects = [each for each in gc.get_objects() if str(type(each)).startswith("<class 'creche.")]
    return pages * PAGE / 1e6, len(objects)


class Many:
    """Jobs that are submitted in batches."""

    def __init__(self, jobs, in_flight, warm):
        self.jobs = jobs
        self.in_flight = in_flight
        self.warm = warm  # after this many jobs, the caches of libraries are filled
        self.total = 0

    async def run(self, app, where):
        """Run the jobs, print what is held, and check that it does not grow."""
        group = app.group("jobs", limit=self.in_flight)
        warm, tenth = self.warm, max(self.jobs // 10, 1)
        begun, first = 0.0, (0.0, 0)
        for number in range(self.jobs):
            if number == warm:
                await group.wait()
                first, begun = held(), time.monotonic()
                print(f"after {number:,} jobs: {first[0]:.1f} MB, {first[1]:,} objects", flush=True)
            elif number % tenth == 0:
                megabytes, objects = held()
                print(f"at {number:,} jobs: {megabytes:.1f} MB, {objects:,} objects", flush=True)
            await group.room()
            worker = group.run_worker(partial(farwork.add, number, 1), "job", where=where)
            worker.add_done_callback(self.add)
        await group.wait()
        took, last = time.monotonic() - begun, held()
        print(f"after {self.jobs:,} jobs: {last[0]:.1f} MB, {last[1]:,} objects", flush=True)
        print(f"{took / (self.jobs - warm) * 1e6:.0f} microseconds a job", flush=True)
        assert self.total == self.jobs * (self.jobs + 1) // 2, "a value is wrong or missing"
        assert last[0] - first[0] < MOST_MEGABYTES, "memory has grown"
        assert last[1] - first[1] < MOST_OBJECTS, "objects are left"

    def add(self, worker):
        """Add up the value of a job."""
        self.total += worker.result


async def processes(options):
    """Run the jobs in one process for each processor."""
    async with Node("many") as app:
        await Many(options.jobs or 1_000_000, in_flight=100, warm=1_000).run(app, Processes())


CLUSTER = """
import sys
sys.path.insert(0, sys.argv[1])
from distributed import LocalCluster
with LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=":0") as cluster:
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
"""
"""A cluster in another process: its scheduler remembers much of what it has done."""


async def dask(options):
    """Run the jobs on a cluster of two processes."""
    from distributed import Client  # noqa: PLC0415 (an extra)

    from creche.dask import OnDask  # noqa: PLC0415 (as above)

    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", CLUSTER, str(Path(farwork.__file__).parent)]
    with subprocess.Popen(command, text=True, **pipes) as cluster:  # noqa: ASYNC220 (at the start)
        address = cluster.stdout.readline().strip()
        with Client(address) as client:
            async with Node("many") as app:
                # The client of Dask fills its caches with the first 5,000.
                many = Many(options.jobs or 15_000, in_flight=40, warm=5_000)
                await many.run(app, OnDask(client))


def spin(seconds):
    """Keep a processor busy."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


async def kill(options):
    """Cancel hanging work while all processors are busy."""
    took = []
    async with Node("kill") as app:
        with tempfile.TemporaryDirectory() as folder:
            load = app.run_worker(partial(keep_busy, app), daemon=True)
            where = Processes(1)
            for number in range(options.times):
                sign = Path(folder, str(number))
                worker = app.run_worker(partial(farwork.ignore, str(sign)), where=where)
                await there(sign)
                begun = time.monotonic()
                worker.cancel("to see how long it takes")
                await worker.join()
                took.append(time.monotonic() - begun)
            load.cancel()
    took.sort()
    print(
        f"from cancel() to CANCELLED, {len(took)} times: median {median(took) * 1e3:.1f} ms, "
        f"95 of 100 within {took[len(took) * 95 // 100] * 1e3:.1f} ms, "
        f"longest {took[-1] * 1e3:.1f} ms"
    )
    assert median(took) < MOST_SECONDS, "work is not killed in time"


async def there(sign):
    """Wait until a file exists."""
    path = anyio.Path(sign)
    while not await path.exists():  # noqa: ASYNC110 (another process makes it)
        await anyio.sleep(0.002)


async def keep_busy(app):
    """Keep all processors busy."""
    group, where = app.group("load", limit=20), Processes()
    while True:
        await group.room()
        group.run_worker(partial(spin, 0.002), where=where)


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    runs = {"processes": processes, "dask": dask, "kill": kill}
    parser.add_argument("what", choices=runs)
    parser.add_argument("--jobs", type=int, help="how many")
    parser.add_argument("--times", type=int, default=100, help="how many are killed")
    parser.add_argument("--backend", choices=BACKENDS, default="asyncio")
    options = parser.parse_args()
    name, backend_options = BACKENDS[options.backend]
    run = runs[options.what]
    anyio.run(run, options, backend=name, backend_options=backend_options)


if __name__ == "__main__":
    main()
