"""Trees of a thousand levels can be inspected, at a cost that grows with their size."""

from __future__ import annotations

import io
import sys
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from creche import Node, format_tree
from creche._core.facts import below
from creche._ground.text import path_of
from creche.trace import record
from helpers import counted, settle, shallow

LEVELS = 1000
LAST = LEVELS - 1


@asynccontextmanager
async def deep(app, levels=LEVELS):
    """Open nodes below one another, each with a worker, and yield the lowest."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + 20 * levels)  # opening them is tested elsewhere
    try:
        async with AsyncExitStack() as stack:
            node = app
            for level in range(1, levels):
                node = await stack.enter_async_context(Node(f"n{level}", parent=node))
                node.run_worker(anyio.sleep_forever, f"w{level}", daemon=True)
            await settle()
            yield node
    finally:
        sys.setrecursionlimit(before)


def levels_of(snapshot):
    """Return the nodes from the top to the lowest, each the only child of the one before."""
    nodes = [snapshot]
    while nodes[-1].children:
        nodes += nodes[-1].children
    return nodes


# Results are checked after the blocks have ended: an error that propagates through a thousand
# blocks becomes a deeply nested exception group, which is hard to read.


async def test_a_snapshot_and_a_tree_in_text():
    """A snapshot has each level with its path and worker, and a tree as text has lines for each."""
    async with Node("app") as app, deep(app):
        with shallow():
            tree = app.snapshot()
            lines = format_tree(app).split("\n")
    nodes = levels_of(tree)
    assert len(nodes) == LEVELS
    assert nodes[-1].path == "/".join(["app", *(f"n{level}" for level in range(1, LEVELS))])
    assert [node.name for node in nodes[:3]] == ["app", "n1", "n2"]
    assert [node.groups[0].workers[0].name for node in nodes[1:3]] == ["w1", "w2"]
    assert len(lines) == 1 + 3 * LAST
    assert lines[1] == "  node n1: open"
    assert [line.partition(", ")[0] for line in lines[-3:]] == [
        f"{' ' * 40}node n{LAST}: open",
        f"{' ' * 40}group default: 1 running",
        f"{' ' * 40}w{LAST}: running",
    ]


async def test_a_recording(tmp_path):
    """A recording begins with what is already there at every level."""
    path = tmp_path / "run.json"
    async with Node("app") as app, deep(app) as lowest, record(app) as trace:
        with shallow():
            nodes = list(below(app))
            lowest_path = path_of(lowest)
            trace.save(path)
    assert len(nodes) == LEVELS
    assert lowest_path.count("/") == LAST
    assert path.read_text().count('"cat":"running"') == LAST


async def test_a_board():
    """A board shows what fits, and counts everything."""
    pytest.importorskip("rich")
    from rich.console import Console  # noqa: PLC0415 (an extra)

    from creche.board import live_board  # noqa: PLC0415 (an extra)

    async with Node("app") as app, deep(app):  # noqa: SIM117 (the longer line says less)
        async with live_board(app, console=Console(file=io.StringIO())) as board:
            shown = []
            for height in (4 * LEVELS, 20):
                console = Console(file=io.StringIO(), width=80, height=height, _environ={})
                with shallow():
                    console.print(board)
                shown.append([line.strip() for line in console.file.getvalue().splitlines()])
    whole, part = shown
    assert len(whole) == 3 * LAST + 2
    assert whole[-4] == f"▾ n{LAST}"
    assert whole[-2].startswith(f"● w{LAST} ")
    assert whole[-1] == part[-1] == f"{LAST} running"
    assert part[-2].endswith("more nodes and groups")


@pytest.mark.parametrize("look", [format_tree, Node.snapshot], ids=["format_tree", "snapshot"])
async def test_it_costs_as_much_as_there_are_levels(look):
    """Twice as many levels take twice as many calls."""
    costs = []
    for levels in (200, 400):
        async with Node("app") as app, deep(app, levels):
            with counted() as calls:
                look(app)
        costs += calls
    assert 1.8 * costs[0] < costs[1] < 2.2 * costs[0]
