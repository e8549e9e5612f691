"""Tasks of the Model Context Protocol: tool calls run as jobs that the client can follow.

Implements the extension ``io.modelcontextprotocol/tasks`` (SEP-2663, revision 2026-07-28) for the
official Python SDK: ``Tasks`` for servers, ``ClientTasks`` for clients. Needs ``creche[mcp]``.
"""

from __future__ import annotations

import importlib

try:
    importlib.import_module("mcp.server.extension")  # which older versions do not have
except ImportError:
    raise ImportError("creche.mcp needs mcp 2.3 or newer: pip install 'creche[mcp]'") from None

from ._client import ClientTasks, RemoteTask, start_task
from ._server import Tasks
from ._wire import CreatedTask, TaskStatus

__all__ = ["ClientTasks", "CreatedTask", "RemoteTask", "TaskStatus", "Tasks", "start_task"]

for _name in __all__:
    globals()[_name].__module__ = __name__
