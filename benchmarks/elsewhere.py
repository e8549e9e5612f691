"""The cost of calling a function in another process, and of cancelling one that hangs there."""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter, process_time

import anyio
import anyio.to_process

from creche import Node
from creche.ways import Processes

PROCESSES = 2
BARE = "AnyIO"
SUBMIT = "submit"
KILL = "bare kill"


def run(loop, main, *args):
    """Run a measurement on an event loop of its own."""
    backend = "trio" if loop == "trio" else "asyncio"
    options = {"use_uvloop": True} if loop == "uvloop" else {}
    return anyio.run(main, *args, backend=backend, backend_options=options)


async def timed(call, size):
    """Return the seconds for each call in this process, on both clocks, after a warm-up."""
    await call(2 * PROCESSES)
    begun = process_time(), perf_counter()
    await call(size)
    return (process_time() - begun[0]) / size, (perf_counter() - begun[1]) / size


def to_process(loop, size, amount=None):
    """Call a function with ``anyio.to_process``."""

    async def call(count):
        limiter = anyio.CapacityLimiter(PROCESSES)
        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(partial(anyio.to_process.run_sync, int, limiter=limiter))

    return run(loop, timed, call, amount or size)


def submit(_loop, size, amount=None):
    """Submit a function to a process pool, and wait for all of its futures."""

    async def main():
        with new_pool() as pool:

            async def call(count):
                made = [pool.submit(int) for _ in range(count)]
                await asyncio.gather(*map(asyncio.wrap_future, made))

            return await timed(call, amount or size)

    return asyncio.run(main())


def new_pool():
    """Make a pool of processes."""
    return ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn"))


def creche(loop, size, in_pool, amount=None):
    """Call a function in workers, in processes of a tree or in a pool."""

    if not in_pool:
        return run(loop, in_workers, Processes(PROCESSES), amount or size)
    with new_pool() as pool:
        return run(loop, in_workers, pool, amount or size)


async def in_workers(where, size):
    """Call a function in workers, of which at most 20 for each process exist at a time."""
    async with Node("bench") as app:

        async def call(count):
            group = app.group("elsewhere", 20 * PROCESSES)
            for _ in range(count):
                await group.room()
                group.run_worker(int, where=where)
            await group.wait()

        return await timed(call, size)


CLUSTER = f"""
if __name__ == "__main__":
    import sys
    from distributed import LocalCluster
    with LocalCluster(
        n_workers={PROCESSES}, threads_per_worker=1, dashboard_address=":0", silence_logs=50
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


@contextmanager
def new_client():
    """Make a client of a Dask cluster whose scheduler and machines are other processes."""
    from distributed import Client  # noqa: PLC0415 (slow to import)

    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "cluster.py"  # a file, because its processes import it
        program.write_text(CLUSTER)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, program], **pipes) as cluster:
            with Client(cluster.stdout.readline().strip()) as client:
                yield client
            cluster.stdin.close()


def dask_submit(_loop, size, amount=None):
    """Submit a function to a Dask cluster, and get the result of each future."""

    async def main():
        with new_client() as client:

            async def call(count):
                for future in [client.submit(int, pure=False) for _ in range(count)]:
                    future.result()

            return await timed(call, amount or size)

    return asyncio.run(main())


def dask_creche(_loop, size, amount=None):
    """Call a function in workers on a Dask cluster."""
    from creche.dask import OnDask  # noqa: PLC0415 (as above)

    async def main():
        with new_client() as client:
            return await in_workers(OnDask(client), amount or size)

    return asyncio.run(main())


def hang(path):
    """Create a file as a sign that the work runs, and hang."""
    Path(path).touch()
    time.sleep(60)


async def until_there(path):
    """Wait until a file exists."""
    while not path.exists():  # noqa: ASYNC110 (another process makes it)
        await anyio.sleep(0.005)


def bare_kill(loop, size, amount=None):
    """Kill a process that has the same modules loaded, and wait for its end as AnyIO does."""
    program = "import creche.ways; print(flush=True); input()"

    async def main():
        passed = 0.0
        for _ in range(amount or size):
            async with await anyio.open_process([sys.executable, "-c", program]) as process:
                await process.stdout.receive()
                begun = perf_counter()
                process.kill()
                await process.wait()
                passed += perf_counter() - begun
        return passed / (amount or size), passed / (amount or size)

    return run(loop, main)


def cancel(loop, size, amount=None):
    """Cancel work that hangs in a process, and wait until it has ended."""

    async def main():
        passed, way = 0.0, Processes(1)
        async with Node("bench") as app:
            for _ in range(amount or size):
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "runs"
                    worker = app.run_worker(partial(hang, str(path)), where=way)
                    await until_there(path)
                    begun = perf_counter()
                    worker.cancel()
                    await worker.join()
                    passed += perf_counter() - begun
        return passed / (amount or size), passed / (amount or size)

    return run(loop, main)
