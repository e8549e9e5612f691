"""A pytest plugin: fixtures that async tests have by name, whichever plugin runs the tests.

In the ``conftest.py`` next to the project's ``pyproject.toml``::

    pytest_plugins = ["creche.testing.plugin"]

There is no entry point. It would load Creche into every run of pytest in the environment, give each
project a fixture called ``node``, and have pytest rewrite the ``assert`` statements of Creche.
"""

from __future__ import annotations

from importlib import import_module
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest

from creche import Node
from creche.hosting import Host

from ._fixtures import virtual_backend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["new_node", "node", "virtual_backend"]


def pytest_configure(config: pytest.Config) -> None:
    """Take in what needs pytest-asyncio, where that runs."""
    if config.pluginmanager.has_plugin("asyncio"):
        config.pluginmanager.register(import_module("creche.testing._of_asyncio"))


@pytest.fixture
def new_node() -> Node:
    """The node that the fixture ``node`` opens: override it to have one of a class of your own."""
    return Node("node")


@pytest.fixture
def node(request: pytest.FixtureRequest) -> Node:
    """An open node that ends with the test: what still runs then is cancelled.

    If a worker fails, the error is logged at once and the node ends. The test goes on, and the
    error is raised when it is over: an error at teardown with AnyIO's plugin and pytest-asyncio, a
    failure of the test with pytest-trio.

    The plugin that runs the test opens the node, so the test must be an async one.

    Raises:
        pytest.UsageError: No plugin runs the test.
    """
    return cast("Node", request.getfixturevalue(_opener(request)))


@pytest.fixture
async def _creche_node(new_node: Node) -> AsyncGenerator[Node, None]:
    # The node lives in a task of its own. With a block here, a worker that fails would cancel the
    # plugin: AnyIO's loses the error on asyncio and hangs on Trio.
    async with anyio.create_task_group() as tasks, Host(new_node, task_group=tasks) as opened:
        yield opened


def _opener(request: pytest.FixtureRequest) -> str:
    """Give the name of the fixture that opens the node with the plugin of a test."""
    test: Any = request.node
    config = request.config
    if "anyio_backend" in request.fixturenames or test.get_closest_marker("trio"):
        return "_creche_node"
    marker = test.get_closest_marker("asyncio")  # the auto mode of pytest-asyncio sets it, too
    if marker is not None and config.pluginmanager.has_plugin("asyncio"):
        default = config.getini("asyncio_default_test_loop_scope")
        return f"_creche_node_in_{marker.kwargs.get('loop_scope', default)}_loop"
    kind = "async test" if iscoroutinefunction(getattr(test, "obj", None)) else "sync test"
    raise pytest.UsageError(
        f"the fixture 'node' is for async tests that a plugin runs, and no plugin runs the {kind} "
        f"{request.node.nodeid!r}; mark it with pytest.mark.anyio, asyncio or trio"
    )
