"""Jobs in a real server: its start and its shutdown, interrupted streams, many clients."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import anyio
import pytest

from creche import Node, WorkerError, get_current_worker
from creche.jobs import Jobs
from helpers import (
    RENDEZVOUS,
    SUCCESS,
    ExceptionGroup,
    events,
    fail,
    settle,
    slow_to_leave,
    until,
)

pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
pytest.importorskip("sse_starlette")

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

import creche.web
from creche.web import _closing, accepted, lifespan, routes

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


# the lifespan of a node in a server


async def test_lifespan():
    """The node is open inside the lifespan and ended after it. Work gets the grace period."""
    node = Node("app")
    async with lifespan(node)(None):
        worker = node.run_worker(settle)
        cut = node.run_worker(settle)
        cut.cancel()
    assert node.is_finished
    assert worker.result_or("none") is None
    async with lifespan(node := Node("app"), grace=0)(None):
        worker = node.run_worker(anyio.sleep_forever)
    assert worker.is_cancelled


async def test_node_that_fails():
    """The server goes on after the node has failed, and raises the error once when it stops."""
    node = Node("app")
    error = ValueError("no luck")
    with pytest.raises(ExceptionGroup) as info:
        async with lifespan(node)(None):
            node.run_worker(partial(fail, error))
            await until(lambda: node.is_finished)
            await settle()
            with pytest.raises(WorkerError):
                node.run_worker(settle)
    assert info.value.exceptions == (error,)


async def test_error_of_the_body():
    """An error of the body is raised unchanged, and the node is closed."""
    node = Node("app")
    with pytest.raises(ZeroDivisionError):
        async with lifespan(node)(None):
            worker = node.run_worker(anyio.sleep_forever)
            raise ZeroDivisionError
    assert worker.is_cancelled


async def test_waits_end_with_the_node():
    """Waits end when the node is shut down by anything, and before its work has ended."""
    node = Node("app")
    gate = anyio.Event()
    async with lifespan(node, grace=0)(None):
        worker = node.run_worker(partial(slow_to_leave, gate))
        ended = []

        async def wait():
            with _closing.closing_of(node).wait() as scope:
                await anyio.sleep_forever()
            ended.append(scope.cancelled_caught)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await settle()
            tasks.start_soon(node.shutdown)
            await until(lambda: ended)
            assert not worker.is_finished
            with _closing.closing_of(node).wait() as scope:
                await anyio.sleep_forever()
            assert scope.cancelled_caught  # so do later ones
            gate.set()
    with _closing.closing_of(node).wait() as scope:
        await settle()
    assert not scope.cancelled_caught  # the node is no longer served


@contextmanager
def handled(*handlers):
    """Install signal handlers, as a server does."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(*each) for each in zip(numbers, handlers, strict=True)]
    try:
        yield numbers
    finally:
        for each in zip(numbers, before, strict=True):
            signal.signal(*each)


@needs_signals
async def test_signal():
    """A signal shuts the node down at once, and the server's handler gets it as before."""
    told = []

    def handle(number, frame):
        told.append(number)

    node = Node("app")
    with handled(signal.SIG_IGN, handle):
        async with lifespan(node, grace=60)(None):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # it stays ignored
            gate = anyio.Event()
            worker = node.run_worker(gate.wait)
            await until(lambda: worker.is_running)
            signal.raise_signal(signal.SIGTERM)
            assert told == [signal.SIGTERM]
            with _closing.closing_of(node).wait():
                await anyio.sleep_forever()
            with pytest.raises(WorkerError):
                node.run_worker(settle)
            assert not worker.is_cancelled
            signal.raise_signal(signal.SIGTERM)
            await settle()
            gate.set()
        assert signal.getsignal(signal.SIGTERM) is handle
    assert worker.state is SUCCESS


@needs_signals
async def test_signal_after_a_failure():
    """A signal after the node has failed has nothing to shut down."""
    node = Node("app", exit_on_error=True)
    with handled(signal.SIG_IGN, lambda number, frame: None), pytest.raises(ExceptionGroup):
        async with lifespan(node)(None):
            node.run_worker(partial(fail, ValueError()))
            await until(lambda: node.is_finished)
            signal.raise_signal(signal.SIGTERM)
            await settle()


@needs_signals
async def test_handler_of_somebody_else():
    """A handler that was set inside the lifespan is not replaced."""

    def later(number, frame):
        pass

    with handled(signal.SIG_IGN, lambda number, frame: None):
        async with lifespan(Node("app"))(None):
            signal.signal(signal.SIGTERM, later)
        assert signal.getsignal(signal.SIGTERM) is later


async def test_another_thread(backend):
    """In a thread that cannot handle signals, no handler is installed."""
    before = signal.getsignal(signal.SIGINT)

    async def main():
        async with lifespan(node := Node("app"))(None):
            assert signal.getsignal(signal.SIGINT) is before
        return node.is_finished

    assert await anyio.to_thread.run_sync(partial(anyio.run, main, **backend))


@pytest.mark.parametrize("grace", [-1, None, "x", float("nan")])
def test_lifespan_that_makes_no_sense(grace):
    """An invalid argument is an error at once, and the message says what is wrong."""
    with pytest.raises(WorkerError, match=r"^grace must be seconds, 0 or more, not"):
        lifespan(Node("app"), grace)
    with pytest.raises(WorkerError, match=r"^lifespan\(\) takes a Node, not 5$"):
        lifespan(5)


# in a server in a thread of the test, on the event loop of asyncio


async def work():
    for _ in get_current_worker().track(range(5)):
        await anyio.lowlevel.checkpoint()
    return "done"


class Served:
    """Jobs in a server in a thread, and what its clients need."""

    def __init__(self, **options):
        self.node = Node("app", exit_on_error=False)
        self.jobs = Jobs(self.node)
        self.gate = threading.Event()
        self.works = {
            "work": work,
            "long": anyio.sleep_forever,
            "fail": partial(fail, ValueError()),
        }
        app = Starlette(
            routes=[
                Route("/start/{kind}", self.start, methods=["POST"]),
                *routes(self.jobs, page=True, **options),
            ],
            lifespan=lifespan(self.node, grace=0),
        )
        config = uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=5)
        self.server = uvicorn.Server(config)
        self.started = threading.Event()
        self.server.startup = self.note_start(self.server.startup)
        self.thread = threading.Thread(target=self.server.run)

    def note_start(self, startup):
        async def start(sockets=None):
            await startup(sockets)
            self.started.set()

        return start

    async def start(self, request):
        return await accepted(self.jobs.submit(self.works[request.path_params["kind"]]), request)

    def client(self):
        port = self.server.servers[0].sockets[0].getsockname()[1]
        return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=RENDEZVOUS)


@contextmanager
def serve(**options):
    served = Served(**options)
    served.thread.start()
    assert served.started.wait(RENDEZVOUS)
    try:
        yield served
    finally:
        served.server.should_exit = True
        served.thread.join()


def test_stream_that_is_broken_off():
    """A client that reconnects with its last event ID gets the current state, and the rest."""
    with serve() as served, served.client() as client:
        path = client.post("/start/long").headers["location"]
        with client.stream("GET", f"{path}/events") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            kind, last, status = next(stream := events(response))
            while status["status"] != "running":
                kind, last, status = next(stream)
            assert kind == "job"
        with client.stream("GET", f"{path}/events", headers={"last-event-id": last}) as response:
            kind, again, status = next(stream := events(response))
            assert (again, status["status"]) == (last, "running")
            assert client.delete(path).status_code == 202
            heard = list(stream)
        assert heard[-2][2]["status"] == "cancelled"
        assert heard[-1] == ("end", "end", {})
        headers = {"last-event-id": "end"}
        assert client.get(f"{path}/events", headers=headers).status_code == 204


def test_bodies_that_are_too_large():
    """A body that is too large is refused as soon as that is known, and the server goes on."""

    def endless():
        for _ in range(1_000):
            yield b" " * 1_000

    with serve() as served, served.client() as client:
        path = client.post("/start/long").headers["location"]
        headers = {"content-type": "application/json"}
        answer = client.post(f"{path}/answers", content=endless(), headers=headers)
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
        assert client.get(path).status_code == 200


def test_many_clients():
    """Each stream reports how its job ended, and nothing is left."""
    ends = {"work": "succeeded", "long": "cancelled", "fail": "failed"}

    def use(number):
        kinds = [*ends] * 3
        with served.client() as client:
            for kind in kinds[number % 3 :]:
                path = client.post(f"/start/{kind}").headers["location"]
                with client.stream("GET", f"{path}/events") as response:
                    if kind == "long":
                        client.delete(path)
                    heard = list(events(response))
                assert [each[0] for each in heard[-2:]] == ["job", "end"]
                assert heard[-2][2]["status"] == ends[kind]
            for _ in range(20):
                assert client.get(f"/jobs/{os.urandom(16).hex()}").status_code == 404
        return len(kinds[number % 3 :])

    with serve() as served:
        with ThreadPoolExecutor(10) as pool:
            numbers = list(pool.map(use, range(10)))
        assert len(served.jobs.list()) == sum(numbers)
        with served.client() as client:
            assert client.get("/jobs/tree").json()["workers"] == []
    assert list(served.node.workers) == []


# in a process that gets a signal to stop


APP = """
import anyio
from starlette.applications import Starlette
from starlette.routing import Route
from creche import Node
from creche.jobs import Jobs
from creche.web import accepted, lifespan, routes

node = Node("app")
jobs = Jobs(node)

async def work():
    await anyio.sleep(20)

async def start(request):
    return await accepted(jobs.submit(work), request)

app = Starlette(
    routes=[Route("/start", start, methods=["POST"]), *routes(jobs, page=True)],
    lifespan=lifespan(node, grace=1),
)
"""


def free_port():
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return each.getsockname()[1]


@needs_signals
def test_told_to_stop(tmp_path):
    """With open streams, long polls and a running job, the server ends after the grace period."""
    (tmp_path / "app.py").write_text(APP)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
    streams = 50
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            said = ""
            while "unning on" not in said:
                line = process.stderr.readline()
                assert line, said
                said += line
            limits = httpx.Limits(max_connections=None)
            url = f"http://127.0.0.1:{port}"
            with (
                httpx.Client(base_url=url, timeout=60, limits=limits) as client,
                ThreadPoolExecutor(streams + 1) as pool,
            ):
                path = client.post("/start").headers["location"]
                begun, sent = threading.Semaphore(0), threading.Event()

                def trace(step, _):
                    if step == "http11.send_request_body.complete":
                        sent.set()

                def listen(number):
                    where = "/jobs/tree/events" if number % 10 == 0 else f"{path}/events"
                    with client.stream("GET", where) as response:
                        stream = response.iter_lines()
                        next(stream)
                        begun.release()
                        return [line for line in stream if line.startswith("event:")]

                # The poll is sent first, so it has arrived when the streams have begun.
                poll = pool.submit(client.get, f"{path}?wait=60", extensions={"trace": trace})
                assert sent.wait(RENDEZVOUS)
                listening = [pool.submit(listen, number) for number in range(streams)]
                for _ in range(streams):
                    assert begun.acquire(timeout=RENDEZVOUS)
                before = time.monotonic()
                process.send_signal(signal.SIGTERM)
                heard = [each.result(60) for each in listening]
                assert poll.result(60).status_code == 200
                said += process.stderr.read()
                process.wait(60)
                took = time.monotonic() - before
        finally:
            process.kill()
    assert heard[0][-1] == "event: end"
    assert took < 10, took  # the grace period of a second, and what a busy machine needs
    assert "Traceback" not in said, said
    assert "ERROR" not in said, said


def test_without_its_libraries(monkeypatch):
    """The error says which library is missing, and how to install it."""
    monkeypatch.setitem(sys.modules, "sse_starlette", None)
    monkeypatch.delitem(sys.modules, "creche.web")
    with pytest.raises(ImportError, match=r"needs Starlette and sse-starlette: pip install"):
        __import__("creche.web")
    monkeypatch.setitem(sys.modules, "creche.web", creche.web)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(ImportError, match=r"^router\(\) needs FastAPI: pip install fastapi; or"):
        creche.web.router(Jobs(Node("app")))
