"""An MCP server with a tool that takes a while: it finds files that are copies of others.

The client sees the progress, is asked what to report, and can cancel the task. Run it from a
client, which talks to it over standard input and output:

    python examples/mcp_server.py

or as an HTTP server, at http://127.0.0.1:8000/mcp:

    python examples/mcp_server.py --http
"""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from creche import Node, get_current_worker
from creche.jobs import Jobs, ask_from_thread
from creche.mcp import Tasks

if TYPE_CHECKING:
    from creche import Worker

REPORT = {"type": "string", "enum": ["names", "number"], "description": "What to report"}


def digest(path: Path, worker: Worker[object]) -> bytes:
    """Hash a file, and stop between two chunks if the task is cancelled."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            worker.check_cancelled()
            hashed.update(piece)
    return hashed.digest()


def find_copies(folder: str) -> str:
    """Find the files in a folder that are copies of others; it reads all of them."""
    worker = get_current_worker()
    if not Path(folder).is_dir():
        raise ToolError(f"there is no folder {folder}")
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    same = defaultdict[bytes, list[str]](list)
    worker.update(total_steps=len(paths))
    for path in paths:
        worker.description = f"reading {path.name}"
        same[digest(path, worker)].append(str(path.relative_to(folder)))
        worker.advance()
    copies = [name for names in same.values() for name in names[1:]]
    if not copies:
        return "no copies"
    worker.description = "waiting for an answer"
    question = f"{len(copies)} files are copies of others. Their names, or only the number?"
    report = ask_from_thread("report", question, schema=REPORT)
    return "\n".join(copies) if report == "names" else f"{len(copies)} copies"


async def main(transport: str) -> None:
    """Serve until the client disconnects or the process is told to stop."""
    async with Node("copies") as node:
        tasks = Tasks(Jobs(node), poll_interval=0.2)
        node.group("reading", limit=2)  # more would not make the disk any faster
        tasks.tool(options={"group": "reading"})(find_copies)
        server = MCPServer("copies", extensions=[tasks], log_level="WARNING")
        if transport == "--http":
            await server.run_streamable_http_async()
        else:
            await server.run_stdio_async()
        node.cancel("the server ends")


if __name__ == "__main__":
    anyio.run(main, "".join(sys.argv[1:]))
