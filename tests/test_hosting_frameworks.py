"""The recipes of docs/hosting.md, in the frameworks that they are for, run as users run them.

Each runs in a process of its own. A failed worker is reported, nothing hangs and nothing is left.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from pages import ROOT, blocks

PAGE = ROOT / "docs" / "hosting.md"
ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDEVMODE": "1"}
NOISE = "never awaited|never retrieved|was destroyed|unclosed|Warning"
FAIL = """
async def fail() -> None:
    raise ValueError("of the worker")
"""


def recipe(mark):
    """Return the only block of code in the page that contains the mark."""
    (code,) = [code for code in blocks(PAGE) if mark in code]
    return code


def needs(*packages):
    return pytest.mark.skipif(
        not all(find_spec(package) for package in packages), reason=f"needs {', '.join(packages)}"
    )


def run(folder, *command):
    """Run a module in a folder, and return the finished process with its output."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,  # a hang is a failure
    )


# servers


class Server:
    """A server that listens on a socket in its folder."""

    def __init__(self, process, folder):
        self._process = process
        self._folder = folder
        self.said = ""

    def read_until(self, text):
        while text not in self.said:
            line = self._process.stdout.readline()
            assert line, self.said
            self.said += line

    def ask(self, request):
        """Send the first line of a request, and return the response."""
        before = Path.cwd()
        os.chdir(self._folder)  # the path of a socket must be short
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(60)
                connection.connect("socket")
                connection.sendall(f"{request} HTTP/1.0\r\n\r\n".encode())
                return b"".join(iter(lambda: connection.recv(4096), b"")).decode()
        finally:
            os.chdir(before)

    def end(self):
        """Send SIGTERM to the server, and return its exit status."""
        self._process.send_signal(signal.SIGTERM)
        self.said += self._process.communicate(timeout=60)[0]
        return self._process.returncode


@contextmanager
def serve(folder, code, *command):
    (folder / "app.py").write_text(code)
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield Server(process, folder)
        finally:
            process.kill()


AIOHTTP = ("aiohttp.web", "-U", "socket", "app:make_server")
UVICORN = ("uvicorn", "app:api", "--uds", "socket")
SERVERS = [
    pytest.param("on_startup", AIOHTTP, 0, id="aiohttp-hooks", marks=needs("aiohttp")),
    pytest.param("cleanup_ctx", AIOHTTP, 0, id="aiohttp-context", marks=needs("aiohttp")),
    pytest.param(
        "/reports", UVICORN, -signal.SIGTERM, id="fastapi", marks=needs("fastapi", "uvicorn")
    ),
]


@pytest.mark.skipif(sys.platform == "win32", reason="sockets with names")
@pytest.mark.parametrize(("mark", "command", "status"), SERVERS)
def test_server(tmp_path, mark, command, status):
    """A server starts with its node, and SIGTERM ends both."""
    with serve(tmp_path, recipe(mark), *command) as server:
        server.read_until("unning on")
        assert " 200 OK" in server.ask("GET /health")
        if mark == "/reports":
            assert '{"started":"report"}' in server.ask("POST /reports")
        assert server.end() == status, server.said
    assert not re.search(f"Traceback|{NOISE}", server.said), server.said


@pytest.mark.skipif(sys.platform == "win32", reason="sockets with names")
@pytest.mark.parametrize(("mark", "command", "status"), SERVERS)
def test_server_whose_worker_fails(tmp_path, mark, command, status):
    """A failure is logged at once, GET /health gives 503, and the error is raised at the end."""
    code = recipe(mark)
    broken = re.sub(r"await \w+\.sleep.* # look for news", 'raise ValueError("of us")', code)
    assert broken != code
    with serve(tmp_path, broken, *command) as server:
        server.read_until("unning on")
        server.read_until("worker 'poll' failed, and with it node 'app'")
        server.read_until("ValueError: of us")
        assert " 503 " in server.ask("GET /health")
        told = len(server.said)
        assert server.end() == (status or 1), server.said
    assert "unhandled errors in node 'app' (1 sub-exception)" in server.said[told:]
    assert not re.search(NOISE, server.said), server.said


WAITING = """
import threading

GO = threading.Event()


@api.get("/waiting")
async def waiting() -> int:
    return anyio.to_thread.current_default_thread_limiter().statistics().tasks_waiting


@api.post("/go")
async def go() -> None:
    GO.set()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sockets with names")
@needs("fastapi", "uvicorn")
@pytest.mark.parametrize("has_limiter", [True, False])
def test_threads_of_jobs_and_of_the_framework(tmp_path, has_limiter):
    """A sync endpoint is served while jobs run if they have their own limiter, else it waits."""
    code = recipe("/conversions").replace("time.sleep(0.1)", "GO.wait(60)") + WAITING
    if not has_limiter:
        code = code.replace(", limiter=JOBS", "")
    with serve(tmp_path, code, *UVICORN) as server, ThreadPoolExecutor(1) as aside:
        server.read_until("unning on")
        assert '{"started":45}' in server.ask("POST /conversions")
        health = aside.submit(server.ask, "GET /health")
        if has_limiter:
            assert '{"is_well":true}' in health.result(60)
        else:
            while not server.ask("GET /waiting").endswith("\r\n6"):  # 5 of 45, and the endpoint
                pass
            assert not health.done()
        server.ask("POST /go")
        assert '{"is_well":true}' in health.result(60)
        assert server.end() == -signal.SIGTERM, server.said
    assert not re.search(f"Traceback|{NOISE}", server.said), server.said


# tests


def pytest_in(folder, code, *options):
    (folder / "test_recipe.py").write_text(code)
    (folder / "conftest.py").write_text(
        "import threading\n"
        "def pytest_unconfigure(config):\n"
        "    print('threads left:', threading.active_count() - 1)\n"
    )
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    done = run(folder, "pytest", "-p", "no:cacheprovider", "-rA", *options)
    assert "threads left: 0" in done.stdout, done.stdout
    assert not re.search("never awaited|never retrieved|was destroyed|unclosed", done.stdout)
    return done.stdout


FAILURE = """
async def test_failure(app: Node) -> None:
    app.run_worker(fail)
    while not app.is_finished:
        await anyio.lowlevel.checkpoint()
"""
TOLD = "worker 'fail' failed, and with it node 'app'"
SCOPE = ("-o", "asyncio_default_fixture_loop_scope=function")  # unset, it warns


@needs("pytest_asyncio")
def test_pytest_asyncio(tmp_path):
    """With pytest-asyncio, the fixture holds a host; a failed worker is an error at teardown."""
    options = ("-p", "no:anyio", "-p", "no:trio", *SCOPE)
    code = recipe("pytest_asyncio")
    said = pytest_in(tmp_path, code, *options)
    assert "1 passed" in said, said
    assert "error" not in said.lower()
    said = pytest_in(tmp_path, f"{code}{FAIL}\n\n@pytest.mark.asyncio{FAILURE}", *options)
    assert "2 passed, 1 error" in said, said
    assert "ERROR at teardown of test_failure" in said
    assert TOLD in said
    assert said.count("ExceptionGroup: unhandled errors in node 'app'") == 1


@needs("pytest_trio", "trio")
def test_pytest_trio(tmp_path):
    """With pytest-trio, the host runs in the test's nursery; a failed worker fails the test."""
    options = ("-p", "no:anyio", "-p", "no:asyncio")
    code = recipe("@pytest.mark.trio")
    said = pytest_in(tmp_path, code, *options)
    assert "1 passed" in said, said
    said = pytest_in(tmp_path, f"{code}{FAIL}\n\n@pytest.mark.trio{FAILURE}", *options)
    assert "1 failed, 1 passed" in said, said
    assert TOLD in said
    assert "ValueError: of the worker" in said


def test_plugin_of_anyio(tmp_path):
    """With AnyIO's plugin, the fixture's task group holds a host; failures raise at teardown."""
    options = ("-p", "no:asyncio", "-p", "no:trio")
    backends = ["asyncio", *(["trio"] if find_spec("trio") else [])]
    fixture = f"\n\n@pytest.fixture(params={backends})\ndef anyio_backend(request):"
    code = recipe("@pytest.mark.anyio") + f"{fixture}\n    return request.param\n"
    said = pytest_in(tmp_path, code, *options)
    assert f"{len(backends)} passed" in said, said
    said = pytest_in(tmp_path, f"{code}{FAIL}\n\n@pytest.mark.anyio{FAILURE}", *options)
    assert f"{2 * len(backends)} passed, {len(backends)} error" in said, said
    assert "ERROR at teardown of test_failure[asyncio]" in said
    assert TOLD in said
    assert said.count("ExceptionGroup: unhandled errors in node 'app'") == len(backends)


def test_test_case_of_the_standard_library(tmp_path):
    """A cleanup stops the host that asyncSetUp() started, and raises if a worker failed."""
    code = recipe("IsolatedAsyncioTestCase")
    (tmp_path / "test_recipe.py").write_text(code)
    done = run(tmp_path, "unittest")
    assert done.returncode == 0, done.stdout
    assert "Ran 1 test" in done.stdout
    failure = """
    async def test_failure(self) -> None:
        self.host.node.run_worker(fail)
        await self.host.wait()
"""
    (tmp_path / "test_recipe.py").write_text(f"{code}{failure}{FAIL}")
    done = run(tmp_path, "unittest")
    assert "Ran 2 tests" in done.stdout, done.stdout
    assert "FAILED (errors=1)" in done.stdout
    assert "ERROR: test_failure" in done.stdout
    assert TOLD in done.stdout
    assert not re.search(NOISE, done.stdout), done.stdout


# notebooks


NOTEBOOK = """
import json, sys
from jupyter_client.manager import start_new_kernel

manager, client = start_new_kernel()
told = []

def hook(message):
    content = message["content"]
    told.append(content.get("text") or content.get("data", {}).get(sys.argv[1], ""))
    told.extend(content.get("traceback", ()))

for cell in json.load(sys.stdin):
    told.clear()
    reply = client.execute_interactive(cell, timeout=60, output_hook=hook)
    print(json.dumps([reply["content"]["status"], "".join(told)]))
client.stop_channels()
manager.shutdown_kernel()
assert not manager.is_alive()
"""


def run_notebook(cells, shows="text/plain"):
    """Run cells in a kernel; return the status and the output of each."""
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK, shows],
        input=json.dumps(cells),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs("ipykernel", "jupyter_client")
def test_notebook():
    """A node can be opened in one cell, used in others and closed in the last."""
    cells = re.findall(r"^```ipython\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    left = "worker.state.name, [task for task in asyncio.all_tasks() if 'lab' in task.get_name()]"
    told = run_notebook([*cells, left])
    assert [status for status, _ in told] == ["ok"] * 5, told
    assert "measure: running" in told[2][1]
    assert told[4][1] == "('CANCELLED', [])"

    first, *_, last = cells
    told = run_notebook(
        [first, f"{FAIL}\nhost.node.run_worker(fail); await host.wait()", "1", last, last]
    )
    assert [status for status, _ in told] == ["ok", "ok", "ok", "error", "ok"], told
    assert "worker 'fail' failed, and with it node 'lab'" in told[1][1]
    assert "ValueError: of the worker" in re.sub(r"\x1b\[[\d;]*m", "", told[3][1])


@needs("ipykernel", "jupyter_client")
def test_notebook_that_is_closed():
    """A kernel shuts down even if a node is open in it."""
    cell = "import asyncio\nfrom creche import Node\nfrom creche.hosting import Host\n"
    cell += "host = Host(Node('lab')); await host.start()\n"
    cell += "host.node.run_worker(asyncio.sleep(3600))"
    told = run_notebook([cell])
    assert [status for status, _ in told] == ["ok"], told


BOARD = """
import anyio
from creche import Node, get_current_worker
from creche.board import live_board

async def copy():
    for _ in get_current_worker().track(range(20)):
        await anyio.sleep(0.02)

async with live_board(Node("lab")) as board, board.node as lab:
    lab.run_worker(copy, name="<script>copy")
"""


@needs("ipykernel", "jupyter_client", "rich")
def test_notebook_that_shows_a_board():
    """A live board is one output of its cell, updated in place, and can be displayed again."""
    told = run_notebook([BOARD, "board"], shows="text/html")
    assert [status for status, _ in told] == ["ok", "ok"], told
    assert re.search(r"▾.* lab.*&lt;script&gt;copy.*closed", told[0][1], re.DOTALL)
    assert "<script" not in told[0][1]
    assert told[1][1].count("<pre") == 1
    assert "1 done" in told[1][1]


# a class with start() and stop()


@pytest.mark.parametrize("fails", [False, True])
def test_class_with_start_and_stop(tmp_path, fails):
    """The first program of the page ends by itself, and reports a worker that failed."""
    code = recipe("class Service:")
    if fails:
        code = code.replace("await asyncio.sleep(0.01)", 'raise ValueError("of us")')
    (tmp_path / "program.py").write_text(code)
    done = run(tmp_path, "program")
    assert done.returncode == fails, done.stdout
    assert "looking for news" in done.stdout
    assert ("worker 'poll' failed in" in done.stdout) == fails, done.stdout
    assert not re.search(NOISE, done.stdout), done.stdout
