"""The server that the MCP conformance suite expects, built on ``creche.mcp``."""

from __future__ import annotations

import sys
from typing import Annotated

import anyio
from mcp.server.mcpserver import Elicit, MCPServer, Resolve
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR
from pydantic import BaseModel

from creche import Node
from creche.jobs import Jobs, ask
from creche.mcp import Tasks

CONFIRM = {
    "type": "object",
    "properties": {"confirm": {"type": "boolean"}},
    "required": ["confirm"],
}


class Name(BaseModel):
    """What the tool that asks before it is a task wants to know."""

    name: str


def ask_for_name() -> Elicit[Name]:
    """Ask for a name, in the round before the call."""
    return Elicit("What is your name?", Name)


def declare(tasks: Tasks) -> None:
    """Declare the tools that the scenarios call."""

    @tasks.tool()
    async def slow_compute(seconds: float, label: str = "") -> str:
        await anyio.sleep(seconds)
        return f"computed {label} for {seconds} s"

    @tasks.tool(required=True)
    async def failing_job() -> str:
        await anyio.sleep(1)
        raise ToolError("it fails, as it should")

    @tasks.tool()
    async def protocol_error_job() -> str:
        await anyio.sleep(0.1)  # a call that ends at once does not become a task
        raise MCPError(INTERNAL_ERROR, "it breaks, as it should")

    @tasks.tool()
    async def confirm_delete(filename: str) -> str:
        answer = await ask("delete", f"Delete {filename}?", schema=CONFIRM)
        return f"{filename}: {answer}"

    @tasks.tool()
    async def multi_input() -> str:
        async with anyio.create_task_group() as both:
            for key in ("first", "second"):
                both.start_soon(lambda key: ask(key, f"The {key}?", schema=CONFIRM), key)
        return "both are answered"

    @tasks.tool(required=True)
    async def test_tool_with_task(name: Annotated[Name, Resolve(ask_for_name)]) -> str:
        await anyio.sleep(0.1)
        return f"Hello, {name.name}!"


async def main(port: int) -> None:
    """Serve until the process is killed."""
    async with Node("conformance") as node:
        tasks = Tasks(Jobs(node), poll_interval=0.1)
        declare(tasks)
        server = MCPServer("conformance", extensions=[tasks], log_level="WARNING")

        @server.tool()
        def greet(name: str) -> str:
            return f"Hello, {name}!"

        await server.run_streamable_http_async(port=port)


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]))
