"""What a job costs, compared with handwritten code: a dict, a queue and a task.

    python benchmarks/jobs.py

Times and bytes depend on the machine. The times are medians.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import statistics
import sys
import threading
import time
import tracemalloc
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import anyio
import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from creche import Node, get_current_worker
from creche.jobs import Jobs
from creche.web import lifespan, routes

ROUNDS = 2_000
KEPT = 10_000
WATCHERS = 200


@dataclass
class ByHand:
    """What a program keeps by hand: a status, times, a result."""

    status: str = "queued"
    created: float = field(default_factory=time.time)
    finished: float | None = None
    result: object = None
    done: asyncio.Event = field(default_factory=asyncio.Event)


async def enter(begun, entered):
    entered.append(time.perf_counter() - begun)
    return time.perf_counter()


async def by_hand():
    """Measure the same with a dict, a queue, and a task that serves the queue."""
    jobs, queue = {}, asyncio.Queue()

    async def serve():
        while True:
            job, work = await queue.get()
            job.status = "running"
            job.result = await work()
            job.status, job.finished = "succeeded", time.time()
            job.done.set()

    task = asyncio.create_task(serve())
    entered, seen = [], []
    for _ in range(ROUNDS):
        begun = time.perf_counter()

        job = ByHand()
        jobs[uuid.uuid4().hex] = job
        queue.put_nowait((job, partial(enter, begun, entered)))
        await job.done.wait()
        seen.append(time.perf_counter() - job.result)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return entered, seen


async def by_jobs():
    """Measure from submit() to the first line of the work, and from its last line to the waiter."""
    entered, seen = [], []
    async with Node("app") as app:
        jobs = Jobs(app, keep=ROUNDS)
        for _ in range(ROUNDS):
            begun = time.perf_counter()

            job = jobs.submit(partial(enter, begun, entered))
            ended = await job.result()
            seen.append(time.perf_counter() - ended)
    return entered, seen


async def kept():
    """Measure the memory of a job, and the lookup of one, when many are kept."""

    async def work():
        return None

    async with Node("app") as app:
        jobs = Jobs(app, keep=KEPT)
        await jobs.submit(work, name="import").join()
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        ids = []
        for _ in range(KEPT):
            job = jobs.submit(work, name="import", owner="ada")
            await job.join()
            ids.append(job.id)
        del job
        gc.collect()
        size = (tracemalloc.get_traced_memory()[0] - before) / KEPT
        tracemalloc.stop()
        times = []
        for each in ids:
            begun = time.perf_counter()
            jobs.get(each).status  # noqa: B018 (that is what is measured)
            times.append(time.perf_counter() - begun)
        table = dict.fromkeys(ids, 1)
        bare = []
        for each in ids:
            begun = time.perf_counter()
            table[each]
            bare.append(time.perf_counter() - begun)
    return size, times, bare


class Service:
    """A server in a thread. The thread's processor time is measured while 200 jobs work."""

    def __init__(self):
        self.node = Node("app")
        self.jobs = Jobs(self.node)
        app = Starlette(
            routes=[Route("/run", self.run, methods=["POST"]), *routes(self.jobs)],
            lifespan=lifespan(self.node, grace=0),
        )
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"
        self.go = None
        self.spent = 0.0

    async def run(self, request):
        self.go = self.go or asyncio.Event()
        if request.query_params.get("go"):
            begun = time.thread_time()
            self.go.set()
            for job in self.jobs.list():
                await job.join()
            self.spent = time.thread_time() - begun
            return JSONResponse({"cpu": self.spent})
        ids = [self.jobs.submit(self.work).id for _ in range(WATCHERS)]
        return JSONResponse({"ids": ids})

    async def work(self):
        await self.go.wait()
        worker = get_current_worker()
        for _ in worker.track(range(100)):  # two seconds, with a little computing
            until = time.thread_time() + 50e-6
            while time.thread_time() < until:
                pass
            await anyio.sleep(0.02)

    def end(self):
        self.server.should_exit = True
        self.thread.join()


def watched(watchers):
    """Return the processor time of the server's thread with this number of event streams."""
    service = Service()

    async def main():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=service.url, timeout=120, limits=limits) as client:
            ids = (await client.post("/run")).json()["ids"]
            listening = 0

            async def listen(job_id):
                nonlocal listening
                async with client.stream("GET", f"/jobs/{job_id}/events") as response:
                    first = True
                    async for _ in response.aiter_raw():
                        listening += first
                        first = False

            async with anyio.create_task_group() as tasks:
                for each in ids[:watchers]:
                    tasks.start_soon(listen, each)
                while listening < watchers:  # noqa: ASYNC110 (not what is measured)
                    await anyio.sleep(0.01)
                return (await client.post("/run?go=1")).json()["cpu"]

    try:
        return anyio.run(main)
    finally:
        service.end()


def micro(times):
    return f"{statistics.median(times) * 1e6:.1f} us"


def main():
    logging.disable()
    for _ in range(2):  # the first round is a warm-up
        hand, jobs = asyncio.run(by_hand()), asyncio.run(by_jobs())
    size, looks, bare = asyncio.run(kept())
    rows = [
        ("from accepted to entered", micro(jobs[0]), micro(hand[0]), "100 us"),
        ("from the result to who waits", micro(jobs[1]), micro(hand[1]), "150 us"),
        (f"get() and status, {KEPT:,} kept", micro(looks), micro(bare), "30 us"),
        ("bytes of a finished job", f"{size:.0f}", "", "1,000"),
    ]
    if "--no-streams" not in sys.argv:
        with_, without = watched(WATCHERS), watched(0)
        ratio = f"{with_ / without:.2f} x"
        rows.append((f"{WATCHERS} streams of {WATCHERS} jobs, CPU", ratio, "none: 1", "2 x"))
    for row in [("", "Creche", "by hand", "target"), *rows]:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
