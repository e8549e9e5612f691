"""The fixture ``node`` of ``creche.testing.plugin``, with each plugin that runs async tests.

Each runs in a pytest process of its own, as users run it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

CONFTEST = """
import threading

pytest_plugins = ["creche.testing.plugin"]


def pytest_unconfigure(config):
    print("threads left:", threading.active_count() - 1)
"""
CODE = """
import anyio
import pytest

from creche import Node, WorkerState


class App(Node):
    pass


async def fail():
    raise ValueError("of the worker")


async def test_work(node):
    forever = node.run_worker(anyio.sleep_forever)  # cancelled as the test ends
    worker = node.run_worker(anyio.lowlevel.checkpoint)
    await worker
    assert worker.state is WorkerState.SUCCESS and type(node) is Node


async def test_failure(node):
    node.run_worker(fail)
    while not node.is_finished:
        await anyio.lowlevel.checkpoint()


class TestOwnNode:
    @pytest.fixture
    def new_node(self):
        return App("app")

    async def test_own_node(self, node):
        assert type(node) is App and not node.is_finished
"""
MARKED = "\n\npytestmark = pytest.mark.{}\n"
TOLD = "worker 'fail' failed, and with it node 'node'"
PLUGINS = {"anyio": "anyio", "asyncio": "pytest_asyncio", "trio": "pytest_trio"}
needs_trio = pytest.mark.skipif(not find_spec("pytest_trio"), reason="needs pytest-trio")
needs_asyncio = pytest.mark.skipif(not find_spec("pytest_asyncio"), reason="needs pytest-asyncio")


def pytest_in(folder, code, plugin, *settings):
    """Run tests with one of the async plugins only, and return the output of pytest."""
    (folder / "test_it.py").write_text(code)
    (folder / "conftest.py").write_text(CONFTEST)
    ini = ["[pytest]", "filterwarnings = error", *settings]
    if plugin == "asyncio":
        ini.append("asyncio_default_fixture_loop_scope = function")  # unset, it warns
    (folder / "pytest.ini").write_text("\n".join(ini))
    others = [each for name in PLUGINS if name != plugin for each in ("-p", f"no:{name}")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *others],
        cwd=folder,
        env={**os.environ, "PYTHONDEVMODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,  # a hang is a failure
    )
    assert "threads left: 0" in done.stdout, done.stdout
    assert not re.search("never awaited|never retrieved|was destroyed|unclosed", done.stdout)
    return done.stdout


BACKENDS = 1 + bool(find_spec("trio"))
AT_TEARDOWN = "ERROR at teardown of test_failure"
GROUP = "ExceptionGroup: unhandled errors in node 'node'"
TOLD_BY = {
    "anyio": (f"{3 * BACKENDS} passed, {BACKENDS} error", f"{AT_TEARDOWN}[asyncio", BACKENDS),
    "asyncio": ("3 passed, 1 error", AT_TEARDOWN, 1),
    "trio": ("1 failed, 2 passed", "ValueError: of the worker", None),
}
"""The output of pytest with each plugin: the counts, the error, the number of groups."""


@pytest.mark.parametrize("is_auto", [False, True])
@pytest.mark.parametrize(
    "plugin",
    ["anyio", pytest.param("asyncio", marks=needs_asyncio), pytest.param("trio", marks=needs_trio)],
)
def test_plugins(tmp_path, plugin, is_auto):
    """A failed worker is an error at teardown; with pytest-trio it fails the test itself."""
    mode = "true" if plugin == "trio" else "auto"
    code, settings = CODE + MARKED.format(plugin), ()
    if is_auto:
        code, settings = CODE, (f"{plugin}_mode = {mode}",)
    said = pytest_in(tmp_path, code, plugin, *settings)
    counts, error, groups = TOLD_BY[plugin]
    assert counts in said, said
    assert error in said
    assert groups in (said.count(GROUP), None)
    assert TOLD in said


@needs_asyncio
@pytest.mark.parametrize("is_default", [False, True])
def test_loop_of_a_module(tmp_path, is_default):
    """If the tests of a module share an event loop, the node is opened in that loop."""
    code, settings = CODE + MARKED.format("asyncio(loop_scope='module')"), ()
    if is_default:
        code = CODE + MARKED.format("asyncio")
        settings = ("asyncio_default_test_loop_scope = module",)
    said = pytest_in(tmp_path, code, "asyncio", *settings)
    assert "3 passed, 1 error" in said, said


def test_virtual_clock(tmp_path):
    """The fixture of the virtual clock can be used as anyio_backend."""
    code = """
import anyio
import pytest

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual_backend):
    return virtual_backend


async def test_an_hour(node):
    start = anyio.current_time()
    await node.run_worker(anyio.sleep(3600))
    assert anyio.current_time() - start == pytest.approx(3600)
"""
    said = pytest_in(tmp_path, code, "anyio")
    assert f"{1 + bool(find_spec('trio'))} passed" in said, said


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_no_plugin(tmp_path, kind):
    """In a test that no plugin runs, the fixture raises an error that names the marks."""
    prefix = "" if kind == "sync" else "async "
    code = f"{prefix}def test_it(node): pass\n"
    said = pytest_in(tmp_path, code, "anyio")
    assert "1 error" in said, said
    assert (
        "the fixture 'node' is for async tests that a plugin runs, and no plugin runs the "
        f"{kind} test 'test_it.py::test_it'; mark it with pytest.mark.anyio, asyncio or trio"
    ) in said
