"""The client half: a call that became a task is followed to its end."""

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
"""How many seconds a server has to take the cancellation of a task, when its call is cancelled."""


class RemoteTask:
    """A task that a server runs: asked how it is, answered, cancelled, waited for.

    Keep the id to find the task again, also in another session of the same client.

    Args:
        session: The session to ask by: ``client.session``.
        task_id: The id that the server gave it.
    """

    def __init__(self, session: ClientSession, task_id: str) -> None:
        self._session = session
        self.id = task_id
        """What the server knows it by."""

    def __repr__(self) -> str:
        return f"<RemoteTask {self.id!r}>"

    async def status(self) -> TaskStatus:
        """Ask the server how the task is.

        Raises:
            MCPError: The server does not know the task, or there is no connection.

        Checkpoint:
            Always.
        """
        request = TaskRequest(method="tasks/get", params=TaskParams(task_id=self.id))
        return await self._session.send_request(request, TaskStatus)

    async def answer(self, responses: dict[str, Any]) -> None:
        """Answer questions of the task, by their keys in ``TaskStatus.input_requests``.

        An answer is what the client's callback would give, such as an ``ElicitResult``. The server
        ignores keys that are not open.

        Raises:
            MCPError: The server does not know the task, or does not take an answer.

        Checkpoint:
            Always.
        """
        params = UpdateParams(task_id=self.id, input_responses=responses)
        request = TaskRequest(method="tasks/update", params=params)
        await self._session.send_request(request, EmptyResult)

    async def cancel(self) -> None:
        """Ask that the task ends; it may take a while, and ``status()`` says when it has.

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
        """Follow the task to its end, and return its result.

        It asks as often as the server says. The callbacks of the client answer what the task asks,
        each question once. Cancelling this call leaves the task alone.

        Args:
            on_status: Called with each status that differs from the one before.

        Raises:
            WorkerCancelled: The task was cancelled.
            MCPError: The task failed, or the server does not know it any more, or a callback of the
                client refused to answer.

        Checkpoint:
            Always.
        """
        return _outcome(await self.follow(on_status))

    async def follow(self, on_status: Callable[[TaskStatus], object] | None = None) -> TaskStatus:
        """Follow the task to its end as ``result()`` does, and return the final status.

        Args:
            on_status: Called with each status that differs from the one before.

        Raises:
            MCPError: The server does not know the task any more, or a callback of the client
                refused to answer.

        Checkpoint:
            Always.
        """
        answered: set[str] = set()
        last: TaskStatus | None = None
        while True:
            status = await self.status()
            if on_status is not None and status != last:
                on_status(status)
            last = status
            if status.status not in ("working", "input_required"):
                return status
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
    """An extension of a ``Client``: calls that become tasks are followed to their end.

    ``Client(..., extensions=[ClientTasks()])`` is all; ``call_tool()`` returns the result. If
    ``call_tool()`` is cancelled or fails, the task is cancelled.

    Args:
        on_status: Called with each ``TaskStatus`` that differs from the one before, to show the
            progress of the task.
    """

    identifier = EXTENSION

    def __init__(self, on_status: Callable[[TaskStatus], object] | None = None) -> None:
        self._on_status = on_status

    def claims(self) -> Sequence[ResultClaim[Any]]:
        """Give what the SDK needs to know a task by."""
        return [ResultClaim(result_type="task", model=CreatedTask, resolve=self._resolve)]

    async def _resolve(self, created: CreatedTask, context: ClaimContext) -> CallToolResult:
        task = RemoteTask(context.session, created.task_id)
        try:
            status = await task.follow(self._on_status)
        except BaseException:
            # Whatever comes of this, what has ended the wait is what the caller is told.
            with suppress(Exception), anyio.move_on_after(_PATIENCE, shield=True):
                await task.cancel()
            raise
        return _outcome(status)


async def start_task(
    client: Client, name: str, arguments: dict[str, Any] | None = None
) -> RemoteTask | CallToolResult:
    """Call a tool, and return its task as soon as the server has made it.

    The client needs the extension ``ClientTasks()``.

    Args:
        client: A client that is connected.
        name: The tool.
        arguments: Its arguments.

    Returns:
        The task, or the result if the server answered with that.

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


def _outcome(status: TaskStatus) -> CallToolResult:
    text = f"task {status.task_id!r} was {status.status}: {status.status_message}"
    if status.status == "cancelled":
        raise WorkerCancelled(text)
    if status.result is None:
        raise MCPError.from_error_data(status.error or ErrorData(code=INTERNAL_ERROR, message=text))
    return status.result
