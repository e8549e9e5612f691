"""Tasks of the Model Context Protocol, over the SDK's in-memory transport and over HTTP."""

from __future__ import annotations

import threading
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Annotated

import anyio
import anyio.to_thread
import pytest

pytest.importorskip("mcp.server.extension")  # absent from older versions

import httpx2
import mcp_types
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp import Client
from mcp.client.extension import ClaimContext, advertise
from mcp.client.streamable_http import streamable_http_client
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Elicit, MCPServer, Resolve
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import ElicitRequestFormParams, ElicitResult, ErrorData
from pydantic import BaseModel

from creche import Node, WorkerCancelled, WorkerError, get_current_worker
from creche.jobs import Jobs, SQLiteStore, ask, ask_from_thread
from creche.mcp import ClientTasks, CreatedTask, RemoteTask, Tasks, TaskStatus, start_task
from creche.mcp._wire import TaskParams, TaskRequest
from helpers import RENDEZVOUS, run_python, settle, until

MISSING = mcp_types.MISSING_REQUIRED_CLIENT_CAPABILITY
OBJECT = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


class World:
    """A server with the tools that a test declares, its jobs, and clients in memory."""

    def __init__(self, node, **options):
        self.node = node
        self.jobs = Jobs(node, **options)
        self.tasks = Tasks(self.jobs, poll_interval=0.001)
        self.statuses = []

    def client(self, *, elicit=None, extensions=None, **options):
        server = MCPServer("world", extensions=[self.tasks], log_level="CRITICAL")
        known = [ClientTasks(self.statuses.append)] if extensions is None else extensions
        return Client(server, extensions=known, elicitation_callback=elicit, **options)

    def job(self):
        """Return the only job."""
        (job,) = self.jobs.list()
        return job


@asynccontextmanager
async def world(**options):
    async with Node("server") as node:
        yield World(node, **options)


def text(result):
    return result.content[0].text


async def answering(context, params):
    """A user who fills in every field."""
    return ElicitResult(
        action="accept", content=dict.fromkeys(params.requested_schema["properties"], "yes")
    )


async def test_a_call_becomes_a_task():
    """A call of a tool becomes a job whose progress and result the client follows."""
    seen = anyio.Event()
    async with world() as here:

        @here.tasks.tool(title="Count")
        async def count(n: int) -> int:
            """Count up."""
            worker = get_current_worker()
            worker.update(completed_steps=1, total_steps=n)
            worker.description = "counting"
            await seen.wait()
            return n

        here.statuses = Watched(seen)
        async with here.client() as client:
            (tool,) = (await client.list_tools()).tools
            assert (tool.name, tool.title, tool.description) == ("count", "Count", "Count up.")
            assert list(tool.input_schema["properties"]) == ["n"]
            result = await client.call_tool("count", {"n": 4})
            assert result.structured_content == {"result": 4}
        first, *_, last = here.statuses
        assert (first.status, first.status_message) == ("working", "counting, 1 of 4 (25 %)")
        assert first.ttl_ms is None
        assert first.poll_interval_ms == 1
        assert last.status == "completed"
        assert last.ttl_ms >= 3_600_000
        assert here.job().status.kind == "count"
        assert here.job().id == first.task_id


class Watched(list):
    """A list that sets an event when an item is appended."""

    def __init__(self, event):
        super().__init__()
        self.event = event

    def append(self, item):
        super().append(item)
        self.event.set()


async def test_a_call_that_ends_at_once_is_no_task():
    """A call that ends at once, or has invalid arguments, is answered directly, without a task."""
    async with world() as here:

        @here.tasks.tool()
        async def double(n: int) -> int:
            return 2 * n

        async with here.client() as client:
            assert (await client.call_tool("double", {"n": 4})).structured_content == {"result": 8}
            wrong = await client.call_tool("double", {"n": "four"})
            assert wrong.is_error
            assert await start_task(client, "double", {"n": 1}) == mcp_types.CallToolResult(
                content=[mcp_types.TextContent(type="text", text="2")],
                structured_content={"result": 2},
                _meta=wrong.meta,
            )
        assert here.statuses == []


async def test_other_tools_are_left_alone():
    """A tool that is not declared through the extension does not become a job."""
    async with world() as here:
        server = MCPServer("world", extensions=[here.tasks], log_level="CRITICAL")

        @server.tool()
        async def plain() -> str:
            return "plain"

        async with Client(server, extensions=[ClientTasks()]) as client:
            assert text(await client.call_tool("plain")) == "plain"
        assert here.jobs.list() == ()


async def test_the_program_may_call_a_tool_itself():
    """A tool that the program calls through the server becomes neither a job nor a task."""
    async with world() as here:

        @here.tasks.tool()
        def double(n: int) -> int:
            return 2 * n

        server = MCPServer("world", extensions=[here.tasks], log_level="CRITICAL")
        assert (await server.call_tool("double", {"n": 2})).structured_content == {"result": 4}
        assert here.jobs.list() == ()


async def test_questions_are_answered_by_the_user():
    """A tool's question is shown to the user as a form, and the tool gets the answer."""
    asked = []

    async def elicit(context, params):
        asked.append((params.message, params.requested_schema))
        return await answering(context, params)

    async with world() as here:

        @here.tasks.tool()
        async def survey() -> list[str]:
            plain = await ask("name", "Your name?")
            number = await ask("age", "Your age?", schema={"type": "integer"})
            return [plain, number, str(await ask("form", "All?", schema=OBJECT))]

        async with here.client(elicit=elicit) as client:
            result = await client.call_tool("survey")
        assert result.structured_content == {"result": ["yes", "yes", "{'a': 'yes'}"]}
    field = {"type": "string"}
    assert asked == [
        (
            "Your name?",
            {"type": "object", "properties": {"name": field}, "required": ["name"]},
        ),
        (
            "Your age?",
            {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]},
        ),
        ("All?", OBJECT),
    ]


@pytest.mark.parametrize("action", ["decline", "cancel"])
async def test_a_question_may_be_declined(action):
    """The tool gets None if the user declines or closes the form."""

    async def elicit(context, params):
        return ElicitResult(action=action)

    async with world() as here:

        @here.tasks.tool()
        async def survey() -> str:
            return repr(await ask("name", "Your name?"))

        async with here.client(elicit=elicit) as client:
            assert text(await client.call_tool("survey")) == "None"


async def test_a_plain_function_runs_in_a_thread():
    """A plain function runs in a thread, where it can report and ask. Async callables do not."""
    async with world() as here:
        threads = []

        @here.tasks.tool()
        def plain() -> str:
            threads.append(threading.current_thread())
            get_current_worker().update(completed_steps=1)
            return ask_from_thread("name", "Your name?")

        class Callable:
            """An object whose call is async."""

            async def __call__(self) -> str:
                threads.append(threading.current_thread())
                return await ask("name", "Your name?")

        here.tasks.tool(name="object")(Callable())
        async with here.client(elicit=answering) as client:
            assert text(await client.call_tool("plain")) == "yes"
            assert text(await client.call_tool("object")) == "yes"
        assert threads[0] is not threading.current_thread()
        assert threads[1] is threading.current_thread()


async def test_answers_are_taken_one_by_one():
    """Open questions can be answered one at a time. Answers to other questions are ignored."""
    async with world() as here:

        @here.tasks.tool()
        async def both() -> str:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, "a", "A?")
                tasks.start_soon(ask, "b", "B?")
            return str(await ask("a", "A again?"))

        async with here.client(elicit=answering) as client:
            task = await start_task(client, "both")
            await until(lambda: len(here.job().status.questions) == 2)
            status = await task.status()
            assert status.status == "input_required"
            one, two = sorted(status.input_requests)  # Trio starts tasks in any order
            answer = {"action": "accept", "content": {"a": "1"}}
            with pytest.raises(MCPError, match="no answer to the question 'b'") as info:
                await task.answer({one: answer, two: answer})
            assert info.value.code == mcp_types.INVALID_PARAMS
            with pytest.raises(MCPError, match="no answer to the question 'a'"):
                await task.answer({one: {"action": "perhaps"}})
            await task.answer({one: answer, "never asked": 5})
            assert list((await task.status()).input_requests) == [two]
            await task.answer({one: answer, two: {"action": "decline"}})
            await until(lambda: here.job().status.questions)
            (three,) = (await task.status()).input_requests
            assert three not in (one, two)  # although the tool reuses the key
            await task.answer({three: answer})
            assert text(await task.result()) == "1"


def deaf_tools(tasks, release):
    """Declare tools that handle their cancellation badly, late or not at all."""

    async def swallow() -> str:
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep_forever()
        return "never mind"

    async def shield() -> str:
        with anyio.CancelScope(shield=True):
            await until(release.is_set)
        return "never mind"

    async def fail() -> str:
        try:
            await anyio.sleep_forever()
        finally:
            raise ToolError("it failed")

    async def protocol() -> str:
        try:
            await anyio.sleep_forever()
        finally:
            raise MCPError(1, "it broke")

    def thread() -> str:
        release.wait(RENDEZVOUS)
        return "never mind"

    def heed() -> str:
        release.wait(RENDEZVOUS)
        get_current_worker().check_cancelled()
        return "not reached"

    for tool in (swallow, shield, fail, protocol, thread, heed):
        tasks.tool()(tool)


@pytest.mark.parametrize("name", ["swallow", "shield", "fail", "protocol", "thread", "heed"])
async def test_cancelled_is_never_completed(name, quiet):
    """A task that is cancelled while it runs never has a result, whatever the tool does."""
    release = threading.Event()
    async with world() as here:
        deaf_tools(here.tasks, release)
        async with here.client() as client:
            task = await start_task(client, name)
            assert (await task.status()).status == "working"
            await task.cancel()
            release.set()
            await here.job().join()
            status = await task.status()
            assert status.status in ("cancelled", "failed")
            assert status.result is None
            await task.cancel()  # a second cancel() is not an error
            assert await task.status() == status
            with pytest.raises((WorkerCancelled, MCPError)):
                await task.result()


async def test_a_result_outlives_a_late_cancel():
    """Cancelling a task that has ended does not change its result."""
    async with world() as here:

        @here.tasks.tool()
        async def quick() -> str:
            await settle()
            return "done"

        async with here.client() as client:
            task = await start_task(client, "quick")
            await here.job().join()
            await task.cancel()
            assert text(await task.result()) == "done"


async def test_errors():
    """A tool error becomes an error result. A protocol error fails the task, with code and data."""
    async with world() as here:

        @here.tasks.tool()
        async def wrong(how: str) -> str:
            await settle()
            if how == "protocol":
                raise MCPError(-32050, "no such thing", {"thing": 1})
            raise ToolError("not today") if how == "tool" else ValueError("secret")

        async with here.client() as client:
            result = await client.call_tool("wrong", {"how": "tool"})
            assert result.is_error
            assert "not today" in text(result)
            result = await client.call_tool("wrong", {"how": "crash"})
            assert result.is_error
            assert "secret" not in text(result)
            with pytest.raises(MCPError, match="no such thing") as info:
                await client.call_tool("wrong", {"how": "protocol"})
            assert (info.value.code, info.value.data) == (-32050, {"thing": 1})
            assert here.statuses[-1].status == "failed"
            assert here.statuses[-1].status_message == "no such thing"
            with pytest.raises(MCPError, match="no such thing"):
                task = await start_task(client, "wrong", {"how": "protocol"})
                await task.result()


async def test_a_client_without_tasks():
    """A client without tasks gets the result, or -32021 if the tool needs a task or an answer."""
    async with world() as here:

        @here.tasks.tool()
        async def slow() -> str:
            await settle()
            return "done"

        @here.tasks.tool()
        async def curious() -> str:
            return await ask("name", "Your name?")

        @here.tasks.tool(required=True)
        async def task_only() -> str:
            return "not reached"

        declared = advertise("io.modelcontextprotocol/tasks")  # has no effect in older revisions
        for mode, extension in (("auto", []), ("legacy", []), ("legacy", [declared])):
            async with here.client(mode=mode, extensions=extension) as client:
                assert text(await client.call_tool("slow")) == "done"
                for name in ("curious", "task_only"):
                    with pytest.raises(MCPError, match="has to have the capability") as info:
                        await client.call_tool(name)
                    assert info.value.code == MISSING
                    assert info.value.data == {
                        "requiredCapabilities": {
                            "extensions": {"io.modelcontextprotocol/tasks": {}}
                        }
                    }
        assert {job.status.status for job in here.jobs.list()} == {"succeeded", "cancelled"}
        async with here.client(extensions=[]) as client:
            for action in (RemoteTask.status, RemoteTask.cancel):
                with pytest.raises(MCPError, match="has to have the capability") as info:
                    await action(RemoteTask(client.session, "some"))
                assert info.value.code == MISSING


async def test_a_client_that_cannot_ask():
    """A call from a client that cannot ask its user fails, and cancels the task."""
    async with world() as here:

        @here.tasks.tool()
        async def curious() -> str:
            return await ask("name", "Your name?")

        async def refuse(context, params):
            return ErrorData(code=-32051, message="not now")

        async with here.client() as client:
            with pytest.raises(MCPError, match="elicitation") as info:
                await client.call_tool("curious")
            assert info.value.code == MISSING
        await here.job().join()
        assert here.job().status.status == "cancelled"
        async with here.client(elicit=refuse) as client:
            with pytest.raises(MCPError, match="not now"):
                await client.call_tool("curious")


async def test_ids_that_are_not_the_clients():
    """Jobs that are not tasks, other users' tasks and expired tasks do not exist for a client."""
    async with world() as here:

        @here.tasks.tool()
        async def slow() -> str:
            await settle()
            return "done"

        async with here.client() as client:
            mine = await start_task(client, "slow")
            others = here.jobs.submit(anyio.sleep_forever, "slow", owner="somebody")
            no_task = here.jobs.submit(anyio.sleep_forever, "backup")
            await mine.result()
            assert here.jobs.remove(mine.id)
            for job_id in (mine.id, others.id, no_task.id, "none"):
                task = RemoteTask(client.session, job_id)
                for call in (task.status, task.cancel, lambda task=task: task.answer({})):
                    with pytest.raises(MCPError, match="there is no such task") as info:
                        await call()
                    assert info.value.code == mcp_types.INVALID_PARAMS
            assert not others.status.cancel_requested
            others.cancel()
            no_task.cancel()


async def test_a_queued_call_is_a_task_at_once():
    """If the group of a tool is full, the client gets a queued task without waiting for a slot."""
    gate = anyio.Event()
    async with world() as here:
        here.node.group("one", limit=1)

        @here.tasks.tool(options={"group": "one"})
        async def one(n: int) -> int:
            await gate.wait()
            return n

        async with here.client() as client:
            first = await start_task(client, "one", {"n": 1})
            second = await start_task(client, "one", {"n": 2})
            third = await start_task(client, "one", {"n": 3})
            assert (await second.status()).status_message == "queued"
            await third.cancel()
            assert (await third.status()).status == "cancelled"
            gate.set()
            assert text(await second.result()) == "2"
            assert text(await first.result()) == "1"


class Name(BaseModel):
    """The form that a resolver asks for."""

    name: str


def ask_for_name() -> Elicit[Name]:
    """Ask for a name before the tool starts."""
    return Elicit("Your name?", Name)


async def test_questions_before_the_task():
    """Resolvers ask their questions within the call. The tool then runs as a task."""
    async with world() as here:

        @here.tasks.tool()
        async def greet(name: Annotated[Name, Resolve(ask_for_name)]) -> str:
            await settle()
            return f"Hello, {name.name}!"

        async with here.client(elicit=answering) as client:
            assert text(await client.call_tool("greet")) == "Hello, yes!"
        assert here.statuses[-1].status == "completed"


async def never() -> str:
    """Block a call before its tool starts."""
    get_current_worker().description = "resolving"
    await anyio.sleep_forever()
    return "not reached"


async def test_a_call_that_is_cancelled_before_the_tool_has_begun():
    """If a client gives up before the tool starts, the job of its call is cancelled."""
    async with world() as here:

        @here.tasks.tool()
        async def tool(value: Annotated[str, Resolve(never)]) -> str:
            return value

        async with here.client() as client, anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "tool")
            await until(lambda: [each.status.message for each in here.jobs.list()] == ["resolving"])
            tasks.cancel_scope.cancel()
        await here.job().join()
        assert here.job().status.status == "cancelled"


async def test_cancelling_a_call_cancels_its_task():
    """Cancelling ``call_tool()`` cancels the task. Cancelling ``result()`` does not."""
    async with world() as here:

        @here.tasks.tool()
        async def forever() -> str:
            await anyio.sleep_forever()
            return "not reached"

        async with here.client() as client:
            task = await start_task(client, "forever")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(task.result)
                await settle()
                tasks.cancel_scope.cancel()
            job = here.job()
            assert not job.status.cancel_requested
            here.jobs.list()
            await task.cancel()
            await job.join()
            assert here.jobs.remove(job.id)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.call_tool, "forever")
                await until(lambda: here.statuses)
                tasks.cancel_scope.cancel()
            await here.job().join()
            with pytest.raises(WorkerCancelled, match="was cancelled: cancelled"):
                await RemoteTask(client.session, here.job().id).result()


class Script:
    """A session whose answers are given in advance."""

    def __init__(self, *statuses):
        self.statuses = list(statuses)
        self.sent = []

    async def send_request(self, request, result_type):
        self.sent.append(request)
        if request.method != "tasks/get":
            raise MCPError(1, "the connection is lost")
        status, questions = self.statuses.pop(0)
        form = ElicitRequestFormParams(message="?", requested_schema={"type": "object"})
        return TaskStatus(
            task_id="1",
            status=status,
            created_at="then",
            last_updated_at="now",
            poll_interval_ms=1,
            input_requests={key: mcp_types.ElicitRequest(params=form) for key in questions},
        )

    async def dispatch_input_request(self, context, request):
        self.sent.append(context.request_id)
        return ErrorData(code=2, message="refused")


async def test_what_ends_a_call_is_what_is_raised():
    """The error that ended the call is raised even if the task cannot be cancelled."""
    session = Script(("input_required", ["a"]))
    (claim,) = ClientTasks().claims()
    created = CreatedTask(task_id="1", status="working", created_at="", last_updated_at="")
    context = ClaimContext(session=session, tool_name="tool", read_timeout_seconds=None)
    with pytest.raises(MCPError, match="refused"):
        await claim.resolve(created, context)
    assert session.sent[1] == "a"
    assert session.sent[2].method == "tasks/cancel"


async def test_a_question_is_answered_once():
    """The user is not asked again while the server has yet to process the answer."""

    class Slow(Script):
        async def send_request(self, request, result_type):
            if request.method == "tasks/update":
                self.sent.append(request.params.input_responses["a"].action)
                return mcp_types.EmptyResult()
            return await super().send_request(request, result_type)

        async def dispatch_input_request(self, context, request):
            return ElicitResult(action="decline")

    session = Slow(*[("input_required", ["a"])] * 3, ("failed", []))
    seen = []
    with pytest.raises(MCPError, match="task '1' was failed: None"):
        await RemoteTask(session, "1").result(lambda status: seen.append(status.status))
    assert seen == ["input_required", "failed"]  # each change is reported once
    assert session.sent.count("decline") == 1
    with pytest.raises(WorkerCancelled, match="task '1' was cancelled: None"):
        await RemoteTask(Slow(("cancelled", [])), "1").result()


async def test_a_task_that_the_program_cancels():
    """A client whose job is cancelled by the program gets WorkerCancelled, or an MCPError."""
    async with world() as here:

        @here.tasks.tool()
        async def forever() -> str:
            await anyio.sleep_forever()
            return "not reached"

        async with here.client() as client, anyio.create_task_group() as tasks:

            async def call():
                with pytest.raises(WorkerCancelled):
                    await client.call_tool("forever")

            tasks.start_soon(call)
            await until(lambda: here.statuses)
            here.job().cancel("maintenance")
        async with here.client(extensions=[]) as client, anyio.create_task_group() as tasks:

            async def call_without():
                with pytest.raises(MCPError, match="the state of its job is 'cancelled'"):
                    await client.call_tool("forever")

            tasks.start_soon(call_without)
            await until(lambda: len(here.jobs.list()) == 2)
            await settle()
            here.jobs.list()[1].cancel("maintenance")


async def test_a_call_to_a_server_that_ends():
    """A call that arrives while its node is being cancelled fails at once with an error."""
    gate = anyio.Event()
    async with world() as here:

        @here.tasks.tool()
        async def deaf() -> None:
            with anyio.CancelScope(shield=True):
                await gate.wait()

        with anyio.CancelScope(shield=True):  # cancelling the server must not cancel the client
            async with here.client() as client:
                await start_task(client, "deaf")
                here.node.cancel("the server ends")
                with pytest.raises(MCPError, match="the state of its job is 'cancelled'"):
                    await client.call_tool("deaf")
            gate.set()


async def test_history(tmp_path, quiet):
    """After a restart the end of a task is still known. A task whose result is lost has failed."""
    store = SQLiteStore(tmp_path / "jobs.db")
    try:
        async with world(store=store) as here:

            @here.tasks.tool()
            async def tool(how: str) -> str:
                await settle()
                if how == "wait":
                    await anyio.sleep_forever()
                return how

            async with here.client() as client:
                done = await start_task(client, "tool", {"how": "done"})
                await done.result()
                waits = await start_task(client, "tool", {"how": "wait"})
            here.node.cancel()
        async with world(store=store) as here:
            here.tasks.tool(name="tool")(lambda: None)
            async with here.client() as client:
                status = await RemoteTask(client.session, done.id).status()
                assert (status.status, status.result) == ("failed", None)
                assert status.error.message == (
                    "the tool gave no result; the state of its job is 'succeeded'"
                )
                status = await RemoteTask(client.session, waits.id).status()
                assert status.status == "cancelled"
    finally:
        store.close()


class Tokens:
    """Verifies tokens: each token is the name of its user."""

    async def verify_token(self, token):
        return AccessToken(token=token, client_id="app", scopes=[], subject=token)


@asynccontextmanager
async def over_http(here, **options):
    """Serve over HTTP in this event loop, and yield the address."""
    uvicorn = pytest.importorskip("uvicorn")
    app = MCPServer("world", extensions=[here.tasks], log_level="CRITICAL", **options)
    config = uvicorn.Config(app.streamable_http_app(), port=0, log_config=None, ws="none")
    server = uvicorn.Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve)
        await until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/mcp"
        server.should_exit = True


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"debug": True})])  # uvicorn has no Trio
async def test_tasks_of_other_users():
    """With the SDK's authorization, a task belongs to the user who made the call."""
    urls = {"issuer_url": "http://issuer", "resource_server_url": "http://127.0.0.1/mcp"}
    auth = AuthSettings(**urls, validate_token_resource=False)
    async with world() as here, AsyncExitStack() as stack:

        @here.tasks.tool()
        async def forever() -> str:
            await anyio.sleep_forever()
            return "not reached"

        address = await stack.enter_async_context(
            over_http(here, auth=auth, token_verifier=Tokens())
        )
        clients = []
        for token in ("ada", "bob"):
            headers = {"Authorization": f"Bearer {token}"}
            http = await stack.enter_async_context(httpx2.AsyncClient(headers=headers))
            transport = streamable_http_client(address, http_client=http)
            client = Client(transport, extensions=[ClientTasks()])
            clients.append(await stack.enter_async_context(client))
        task = await start_task(clients[0], "forever")
        assert (await task.status()).status == "working"
        with pytest.raises(MCPError, match="there is no such task"):
            await RemoteTask(clients[1].session, task.id).cancel()
        await task.cancel()


@pytest.fixture
async def address(anyio_backend_name):
    """The address of an HTTP server with some tools, in this event loop."""
    async with world() as here:

        @here.tasks.tool()
        async def survey() -> str:
            get_current_worker().update(completed_steps=1, total_steps=2)
            return await ask("name", "Your name?")

        @here.tasks.tool()
        async def forever() -> str:
            await anyio.sleep_forever()
            return "not reached"

        async with over_http(here) as found:
            yield found
        here.node.cancel()


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"debug": True})])  # uvicorn has no Trio
async def test_over_http(address):
    """Questions, results and cancellation work over HTTP, and a wrong header is refused."""
    statuses = []
    client = Client(
        address, extensions=[ClientTasks(statuses.append)], elicitation_callback=answering
    )
    async with client:
        assert text(await client.call_tool("survey")) == "yes"
        assert statuses[0].status_message == "1 of 2 (50 %)"
        task = await start_task(client, "forever")
        await task.cancel()
        with pytest.raises(WorkerCancelled):
            await task.result()
        with pytest.raises(MCPError, match="the header mcp-name is not the taskId") as info:
            await Mislabelled(client.session, task.id).status()
        assert info.value.code == mcp_types.HEADER_MISMATCH


class Unnamed(TaskRequest):
    """A request without the header."""

    name_param = None


class Mislabelled(RemoteTask):
    """A task whose status is requested without the header."""

    async def status(self):
        request = Unnamed(method="tasks/get", params=TaskParams(task_id=self.id))
        return await self._session.send_request(request, TaskStatus)


FINAL = {"completed": "succeeded", "failed": "failed", "cancelled": "cancelled"}
STEPS = ("turn", "advance", "ask", "thread", "return", "error", "protocol", "deaf")
ACTS = ("call", "get", "get", "cancel", "answer", "turns")


async def script(steps):
    """Do the steps that Hypothesis has drawn, as a tool."""
    worker = get_current_worker()
    for step in steps:
        if step == "turn":
            await settle(3)
        elif step == "advance":
            worker.advance()
        elif step == "ask":
            await ask("name", "Your name?")
        elif step == "thread":
            await anyio.to_thread.run_sync(worker.advance)
        elif step == "error":
            raise ToolError("drawn")
        elif step == "protocol":
            raise MCPError(1, "drawn")
        elif step == "deaf":
            with anyio.CancelScope(shield=True):
                await settle(5)
        else:
            break
    return "done"


class Followed:
    """A task, the statuses seen so far, and whether it was cancelled while it ran."""

    def __init__(self, task, job):
        self.task, self.job = task, job
        self.seen = []
        self.is_cancelled = False

    async def look(self):
        status = await self.task.status()
        if self.seen and self.seen[-1].status in FINAL:
            assert status == self.seen[-1]
        if self.is_cancelled:
            assert status.status != "completed"
        if status.status in FINAL:
            assert self.job.status.status == FINAL[status.status]
        assert (status.result is not None) == (status.status == "completed")
        assert (status.error is not None) == (status.status == "failed")
        assert bool(status.input_requests) == (status.status == "input_required")
        self.seen.append(status)
        return status

    async def cancel(self):
        is_done = self.job.status.done
        await self.task.cancel()
        self.is_cancelled = self.is_cancelled or not is_done

    async def answer(self):
        requests = (await self.look()).input_requests
        await self.task.answer({key: {"action": "decline"} for key in requests})


@given(
    scripts=st.lists(st.lists(st.sampled_from(STEPS), max_size=6), min_size=1, max_size=4),
    acts=st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 9)), max_size=25),
    seed=st.random_module(),
)
@settings(max_examples=40)
def test_random_programs(backend, quiet, scripts, acts, seed):
    """In random programs, no final status changes, no task is lost, and cancel() is final."""

    async def main():
        followed = []
        async with world() as here:
            here.node.group("some", limit=2)

            @here.tasks.tool(options={"group": "some"})
            async def drawn(number: int) -> str:
                return await script(scripts[number])

            async with here.client(elicit=answering) as client:
                for act, number in acts:
                    if act == "call":
                        known = {job.id for job in here.jobs.list()}
                        arguments = {"number": number % len(scripts)}
                        with suppress(MCPError):
                            task = await start_task(client, "drawn", arguments)
                            if isinstance(task, RemoteTask):
                                followed.append(Followed(task, here.jobs.get(task.id)))
                        assert len(here.jobs.list()) == len(known) + 1
                    elif act == "turns":
                        await settle(number)
                    elif followed:
                        one = followed[number % len(followed)]
                        calls = {"get": one.look, "cancel": one.cancel, "answer": one.answer}
                        await calls[act]()
                for one in followed:
                    await one.cancel()
                    await one.job.join()
                    last = await one.look()
                    assert last.status in FINAL
                    assert await one.look() == last

    anyio.run(main, **backend)


def test_misuse():
    """Invalid arguments are refused at once."""
    jobs = Jobs(Node("server"))
    for wrong in (0, -1, float("inf"), float("nan"), "1"):
        with pytest.raises(WorkerError, match="poll_interval must be a positive number"):
            Tasks(jobs, poll_interval=wrong)
    with pytest.raises(WorkerError, match="takes Jobs, not <Node 'server'"):
        Tasks(jobs.node)
    tasks = Tasks(jobs)
    with pytest.raises(WorkerError, match="in a thread anyway; no thread= for 'tool'"):
        tasks.tool(name="tool", options={"thread": True})(anyio.sleep)
    tasks.tool(name="tool")(anyio.sleep)
    with pytest.raises(WorkerError, match="there is a tool 'tool' already; give the other one a"):
        tasks.tool(name="tool")(anyio.sleep)
    MCPServer("server", extensions=[tasks])
    with pytest.raises(WorkerError, match="declare the tool 'late' before the server is made"):
        tasks.tool(name="late")(anyio.sleep)


def test_without_the_sdk():
    """Importing creche.mcp without the SDK, or with an old one, says what to install."""
    run = run_python(
        "import sys; sys.modules['mcp.server.extension'] = None\n"
        "try: import creche.mcp\n"
        "except ImportError as error: print(error)"
    )
    assert run.stdout == "creche.mcp needs mcp 2.3 or newer: pip install 'creche[mcp]'\n"
