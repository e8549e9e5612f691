"""The client side: follows a call that became a task until it ends."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
from mcp.client.context import ClientRequestContext
from mcp.client.extension import ClientExtension, ResultClaim
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, CallToolResult, EmptyResult, ErrorData

from creche import WorkerCancelled

from ._wire import EXTENSION, CreatedTask, TaskParams, TaskRequest, TaskStatus, UpdateParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mcp import Client
    from mcp.client import ClientSession
    from mcp.client.extension import ClaimContext

_PATIENCE = 5
"""Seconds that the server has to accept a task's cancellation when its call is cancelled."""


class RemoteTask:
    """A task that runs on a server: check its status, answer it, cancel it or wait for it.

    Keep the id to find the task again later, even from another session of the same client.

    Args:
        session: The session for the requests: ``client.session``.
        task_id: The id that the server gave the task.
    """

    def __init__(self, session: ClientSession, task_id: str) -> None:
        self._session = session
        self.id = task_id
        """The id of the task on the server."""

    async def status(self) -> TaskStatus:
        """Ask the server for the status of the task.

        Raises:
            MCPError: The server does not know the task, or there is no connection.

        Checkpoint:
            Always.
        """
        request = TaskRequest(method="tasks/get", params=TaskParams(task_id=self.id))
        return await self._session.send_request(request, TaskStatus)

    async def answer(self, responses: dict[str, Any]) -> None:
        """Answer questions of the task, by their keys in ``TaskStatus.input_requests``.

        An answer is what the client's callback would return, such as an ``ElicitResult``. The
        server ignores keys without an open question.

        Raises:
            MCPError: The server does not know the task, or rejects an answer.

        Checkpoint:
            Always.
        """
        params = UpdateParams(task_id=self.id, input_responses=responses)
        request = TaskRequest(method="tasks/update", params=params)
        await self._session.send_request(request, EmptyResult)

    async def cancel(self) -> None:
        """Ask the server to cancel the task. That can take a while: check with ``status()``.

        Raises:
            MCPError: The server does not know the task, or there is no connection.

        Checkpoint:
            Always.
        """
        request = TaskRequest(method="tasks/cancel", params=TaskParams(task_id=self.id))
        await self._session.send_request(request, EmptyResult)

    async def result(
        self, on_status: Callable[[TaskStatus], object] | None = None
    ) -> CallToolResult:
        """Wait until the task has ended, and return its result.

        This polls at the interval that the server suggests. The client's callbacks answer the
        task's questions, each one once. Cancelling this call does not cancel the task.

        Args:
            on_status: Called with each status that differs from the one before.

        Raises:
            WorkerCancelled: The task was cancelled.
            MCPError: The task failed, or the server no longer knows it, or a callback of the client
                refused to answer.

        Checkpoint:
            Always.
        """
        last: TaskStatus | None = None
        answered: set[str] = set()
        while True:
            status = await self.status()
            if on_status is not None and status != last:
                on_status(status)
            last = status
            if status.result is not None:
                return status.result
            text = f"task {self.id!r} was {status.status}: {status.status_message}"
            if status.status == "cancelled":
                raise WorkerCancelled(text)
            if status.status not in ("working", "input_required"):
                error = status.error or ErrorData(code=INTERNAL_ERROR, message=text)
                raise MCPError.from_error_data(error)
            questions = {k: v for k, v in status.input_requests.items() if k not in answered}
            for key, question in questions.items():
                context = ClientRequestContext(session=self._session, request_id=key)
                response = await self._session.dispatch_input_request(context, question)
                if isinstance(response, ErrorData):
                    raise MCPError.from_error_data(response)
                answered.add(key)
                await self.answer({key: response})
            if not questions:
                await anyio.sleep((status.poll_interval_ms or 1000) / 1000)


class ClientTasks(ClientExtension):
    """An extension for ``Client``: waits for calls that become tasks, and returns their results.

    Use it as ``Client(..., extensions=[ClientTasks()])``. Then ``call_tool()`` returns the result
    of the task. If ``call_tool()`` is cancelled or fails, the task is cancelled.

    Args:
        on_status: Called with each ``TaskStatus`` that differs from the one before, for example to
            show the progress of the task.
    """

    identifier = EXTENSION

    def __init__(self, on_status: Callable[[TaskStatus], object] | None = None) -> None:
        self._on_status = on_status

    def claims(self) -> Sequence[ResultClaim[Any]]:
        """Tell the SDK how to recognize a task; it calls this."""
        return [ResultClaim(result_type="task", model=CreatedTask, resolve=self._resolve)]

    async def _resolve(self, created: CreatedTask, context: ClaimContext) -> CallToolResult:
        task = RemoteTask(context.session, created.task_id)
        try:
            return await task.result(self._on_status)
        except BaseException:
            # If the task has ended, this does nothing. Whatever comes of it, what has ended the
            # wait is what the caller is told.
            with suppress(Exception), anyio.move_on_after(_PATIENCE, shield=True):
                await task.cancel()
            raise


async def start_task(
    client: Client, name: str, arguments: dict[str, Any] | None = None
) -> RemoteTask | CallToolResult:
    """Call a tool, and return its task as soon as the server has created it.

    The client needs the extension ``ClientTasks()``.

    Args:
        client: A connected client.
        name: The name of the tool.
        arguments: The arguments for the tool.

    Returns:
        The task, or the result if the server returned it directly.

    Raises:
        MCPError: The server refused the call.

    Checkpoint:
        Always.
    """
    result = await client.session.call_tool(name, arguments, allow_claimed=True)
    if isinstance(result, CreatedTask):
        return RemoteTask(client.session, result.task_id)
    assert isinstance(result, CallToolResult)  # nothing else is claimed
    return result
