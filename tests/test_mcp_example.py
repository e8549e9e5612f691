"""The example of an MCP server, used by a real client over its standard input and output."""

from __future__ import annotations

import sys

import anyio
import pytest

pytest.importorskip("mcp.server.extension")  # older versions do not have it

from mcp import Client, StdioServerParameters
from mcp_types import ElicitResult

from creche import WorkerCancelled
from creche.mcp import ClientTasks, start_task
from helpers import RENDEZVOUS
from pages import ROOT

EXAMPLE = ROOT / "examples" / "mcp_server.py"

pytestmark = pytest.mark.skipif(not EXAMPLE.exists(), reason="the wheel is tested without it")


@pytest.fixture
def folder(tmp_path):
    """A folder with four files, two of which are copies of the others."""
    for name, text in {"a": "one", "b": "two", "c": "one", "d/e": "two"}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return str(tmp_path)


async def test_the_example(folder):
    """The tool reports progress, asks, continues with the answer, and can be cancelled."""
    asked, statuses, answers = [], [], ["names", "number"]

    async def elicit(context, params):
        asked.append(params.message)
        return ElicitResult(action="accept", content={"report": answers.pop(0)})

    server = StdioServerParameters(command=sys.executable, args=[str(EXAMPLE)])
    extensions = [ClientTasks(statuses.append)]
    with anyio.fail_after(RENDEZVOUS):
        async with Client(server, extensions=extensions, elicitation_callback=elicit) as client:
            for expected in ("c\nd/e", "2 copies"):
                result = await client.call_tool("find_copies", {"folder": folder})
                assert result.structured_content == {"result": expected}
            assert (await client.call_tool("find_copies", {"folder": "/none"})).is_error
            task = await start_task(client, "find_copies", {"folder": folder})
            await task.cancel()
            with pytest.raises(WorkerCancelled):
                await task.result()
    assert asked == ["2 files are copies of others. Their names, or only the number?"] * 2
    assert "waiting for an answer, 4 of 4 (100 %)" in [each.status_message for each in statuses]
