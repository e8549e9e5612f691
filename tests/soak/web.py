"""Fifty clients and a thousand jobs per round in a real server: check for lost events and leaks.

    python tests/soak/web.py --rounds 5

Each client starts jobs that return, fail, ask, or wait to be cancelled. It drops some streams and
reconnects. Each stream must receive the end of its job. After each round no worker may be left, and
memory must not grow.
"""

from __future__ import annotations

import argparse
import gc
import logging
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import anyio
import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from creche import Node, Worker, get_current_worker
from creche.jobs import Job, Jobs, ask
from creche.web import accepted, lifespan, routes
from helpers import events

CLIENTS, EACH = 50, 20
ENDS = {"return": "succeeded", "fail": "failed", "ask": "succeeded", "wait": "cancelled"}


async def work(kind):
    for _ in get_current_worker().track(range(20)):
        await anyio.sleep(0.001)
    if kind == "fail":
        raise ValueError("no luck")
    if kind == "ask":
        return await ask("key", "a question")
    if kind == "wait":
        await anyio.sleep_forever()
    return kind


class Server:
    def __init__(self):
        self.node = Node("app")
        self.jobs = Jobs(self.node, keep=100)

        async def start(request):
            kind = request.path_params["kind"]
            return await accepted(self.jobs.submit(lambda: work(kind), kind), request)

        app = Starlette(
            routes=[Route("/start/{kind}", start, methods=["POST"]), *routes(self.jobs, page=True)],
            lifespan=lifespan(self.node, grace=0),
        )
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def end(self):
        self.server.should_exit = True
        self.thread.join()


def use(url, seed):
    """Run one client."""
    chance = random.Random(seed)
    with httpx.Client(base_url=url, timeout=120) as client:
        for _ in range(EACH):
            kind = chance.choice([*ENDS])
            path = client.post(f"/start/{kind}").headers["location"]
            last = {}
            if chance.random() < 0.3:  # drop the stream and reconnect
                with client.stream("GET", f"{path}/events") as response:
                    _, heard, _ = next(events(response))
                    last = {"last-event-id": heard}
            with client.stream("GET", f"{path}/events", headers=last) as response:
                told = None
                for each, _, status in events(response):
                    if each == "end":
                        break
                    told = status
                    if kind == "wait" and status["status"] == "running":
                        client.delete(path)
                    if status["questions"]:
                        client.post(f"{path}/answers", json={"key": "key", "value": 5})
                else:
                    raise AssertionError("a stream has not heard the end")
            assert told["status"] == ENDS[kind], (kind, told)
            assert client.get(f"/jobs/{chance.getrandbits(128):032x}").status_code == 404


def say(text):
    sys.stdout.write(f"{text}\n")


def memory():
    with open("/proc/self/statm") as file:  # noqa: PTH123 (this script runs on Linux only)
        return int(file.read().split()[1]) * 4096


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    logging.disable()
    server, sizes = Server(), []
    try:
        for number in range(rounds):
            begun = time.monotonic()
            with ThreadPoolExecutor(CLIENTS) as pool:
                list(
                    pool.map(
                        lambda seed: use(server.url, seed),
                        range(number * 100, number * 100 + CLIENTS),
                    )
                )
            took = time.monotonic() - begun
            gc.collect()
            left = list(server.node.workers)
            objects = gc.get_objects()
            jobs = sum(isinstance(each, Job) for each in objects)
            workers = sum(isinstance(each, Worker) for each in objects)
            del objects
            sizes.append(memory())
            say(f"{number + 1}: {CLIENTS * EACH} jobs in {took:.1f} s, {len(left)} workers left")
            say(f"    {jobs} jobs, {workers} workers in memory, {sizes[-1] / 1e6:.0f} MB")
            assert not left, left
            assert jobs <= server.jobs.keep + 5, jobs
            assert workers <= 5, workers
    finally:
        server.end()
    assert sizes[-1] < sizes[min(1, rounds - 1)] * 1.2, sizes
    assert threading.active_count() < 5, threading.enumerate()
    say("every end was heard, nothing is left")


if __name__ == "__main__":
    sys.exit(main())
