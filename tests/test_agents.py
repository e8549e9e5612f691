"""The tools of an agent, as plain functions and in two frameworks, without a model."""

from __future__ import annotations

import functools
import json

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from creche import Node, WorkerError, get_current_worker
from creche.agents import JobTools
from creche.jobs import Jobs, SQLiteStore, ask
from creche.testing import virtual_time
from helpers import settle, until

FINAL = {"succeeded", "failed", "cancelled"}


class Kinds:
    """Jobs, the kinds that a test can start, and the five functions."""

    def __init__(self, node, **options):
        self.jobs = Jobs(node)
        self.gate = anyio.Event()
        self.tools = JobTools(self.jobs, **options)
        for kind in (self.slow, self.fail, self.count, self.odd, self.nothing, self.curious):
            self.tools.kind(kind)
        self.start, self.status, self.wait, self.cancel, self.list = self.tools.functions()

    async def slow(self, value: int = 0) -> int:
        """Wait for the gate.

        The model does not see this line.
        """
        worker = get_current_worker()
        worker.description = "waiting"
        worker.update(completed_steps=1, total_steps=4)
        await self.gate.wait()
        return value

    async def fail(self) -> None:
        raise ValueError("no luck")

    def count(self, words: str) -> int:
        """Count words,
        in a thread.
        """
        get_current_worker().advance(len(words.split()))
        return len(words.split())

    async def odd(self) -> object:
        return {1}

    async def nothing(self) -> float:
        return float("nan")

    async def curious(self) -> str:
        return await ask("name", "Your name?")

    async def started(self, kind, **arguments):
        return (await self.start(kind, arguments))["id"]


async def test_the_five_functions():
    """Jobs can be started, looked at, waited for, listed and cancelled, all with plain data."""
    async with Node("app") as app:
        here = Kinds(app)
        told = await here.start("slow", {"value": 7})
        slow = told["id"]
        assert told == {"id": slow, "kind": "slow", "status": "queued"}
        await settle()
        looked = await here.status(slow)
        assert looked == {
            "id": slow,
            "kind": "slow",
            "status": "running",
            "doing": "waiting",
            "progress": "1 of 4",
        }
        count = await here.started("count", words="one two three")
        (counted,) = (await here.wait([count]))["jobs"]
        assert counted == {
            "id": count,
            "kind": "count",
            "status": "succeeded",
            "progress": "3",
            "result": 3,
        }
        other = await here.started("slow")
        assert (await here.cancel(other, "not needed"))["id"] == other
        assert (await here.wait([other]))["jobs"][0]["status"] == "cancelled"
        here.gate.set()
        (ended,) = (await here.wait([slow]))["jobs"]
        assert (ended["status"], ended["result"]) == ("succeeded", 7)
        assert await here.cancel(slow) == ended  # a job that has ended does not change
        listed = (await here.list())["jobs"]
        assert [job["id"] for job in listed] == [slow, count, other]
        assert not any("result" in job for job in listed)
        json.dumps([looked, counted, ended, listed])


async def test_outcomes():
    """The tools return errors as class and text, questions as text, and other results as text."""
    async with Node("app") as app:
        here = Kinds(app)
        *ids, asking = [await here.started(kind) for kind in ("fail", "odd", "nothing", "curious")]
        await until(lambda: here.jobs.get(asking).status.questions)
        failed, odd, nothing = (await here.wait(ids))["jobs"]
        assert (failed["status"], failed["error"]) == ("failed", "ValueError: no luck")
        assert (odd["result"], nothing["result"]) == ("{1}", "nan")  # JSON has neither
        curious = await here.status(asking)
        assert (curious["status"], curious["asks"]) == ("input_required", ["Your name?"])
        await here.cancel(asking)


def test_waits_no_longer_than_that(backend):
    """``any`` waits for the first of some jobs, and ``timeout`` is seconds."""

    async def main():
        async with Node("app") as app:
            here = Kinds(app)
            slow = await here.started("slow")
            fail = await here.started("fail")
            begin = anyio.current_time()
            jobs = (await here.wait([slow, fail], "any"))["jobs"]
            assert [job["status"] for job in jobs] == ["running", "failed"]
            assert anyio.current_time() == pytest.approx(begin, abs=0.1)
            (job,) = (await here.wait([slow], timeout=30))["jobs"]
            assert job["status"] == "running"
            assert anyio.current_time() - begin == pytest.approx(30, abs=0.1)
            await here.cancel(slow)

    if backend["backend_options"].get("use_uvloop"):
        pytest.skip("uvloop has no virtual time")
    with virtual_time(backend["backend"]) as (name, options):
        anyio.run(main, backend=name, backend_options=options)


async def test_what_a_model_does_wrong():
    """A mistake raises nothing: the answer says what is wrong, and no job is started."""
    async with Node("app") as app:
        here = Kinds(app, most=2)
        for told, text in (
            (
                here.start("crawl"),
                "there is no kind 'crawl'; the kinds are slow, fail, count, odd,",
            ),
            (here.start("count"), "missing a required argument: 'words'; call it as count(words"),
            (here.start("count", {"words": "a", "x": 1}), "unexpected keyword argument 'x'; call"),
            (here.status("x"), "there is no job 'x'; list shows all jobs"),
            (here.cancel("x"), "there is no job 'x'; list shows all jobs"),
            (here.wait([], "some"), 'until must be "all" or "any", timeout 0 to 3600 seconds'),
            (here.wait([], timeout=float("nan")), 'until must be "all" or "any", timeout 0 to'),
            (here.wait([], timeout=3601), 'until must be "all" or "any", timeout 0 to'),
        ):
            assert text in (await told)["error"]
        assert "there is no job" in (await here.wait(["x"]))["jobs"][0]["error"]
        assert await here.list() == {"jobs": []}
        ids = [await here.started("slow") for _ in range(2)]
        assert "2 jobs are unfinished; wait for some" in (await here.start("slow"))["error"]
        here.gate.set()
        await here.wait(ids)
    assert "node 'app', which is closed" in (await here.start("odd"))["error"]


async def test_jobs_of_others():
    """An agent neither sees nor cancels the jobs of another, nor those of the program."""
    async with Node("app") as app:
        jobs = Jobs(app)
        one, two = JobTools(jobs, owner="one"), JobTools(jobs, owner="two")
        for tools in (one, two):
            tools.kind(anyio.sleep_forever)
        start, *_ = one.functions()
        _, status, wait, cancel, list_ = two.functions()
        ids = [(await start("sleep_forever"))["id"], jobs.submit(anyio.sleep_forever).id]
        for job_id in ids:
            assert "there is no job" in (await status(job_id))["error"]
            assert "there is no job" in (await cancel(job_id))["error"]
            assert "there is no job" in (await wait([job_id]))["jobs"][0]["error"]
        assert await list_() == {"jobs": []}
        assert not any(job.status.cancel_requested for job in jobs.list())
        app.cancel()


async def test_the_group_bounds_them():
    """No more jobs run at once than the limit allows. The others are reported as queued."""
    async with Node("app") as app:
        here = Kinds(app, limit=2, group="few")
        ids = [await here.started("slow") for _ in range(3)]
        await settle()
        told = [(await here.status(each))["status"] for each in ids]
        assert told == ["running", "running", "queued"]
        here.gate.set()
        await here.wait(ids)


async def test_a_job_that_would_wait_for_itself():
    """An agent that runs as a job and waits for jobs queued behind it gets an error."""
    async with Node("app") as app:
        here = Kinds(app, limit=1)

        @here.tools.kind
        async def agent() -> dict[str, object]:
            ids = [await here.started("odd"), await here.started("odd")]
            return await here.wait(ids)

        here.start = here.tools.functions()[0]
        (told,) = (await here.wait([await here.started("agent")]))["jobs"]
        assert "waiting would never end: worker 'agent' waits for" in told["result"]["error"]


async def test_a_result_that_is_not_kept(tmp_path):
    """After a restart a job is still known, and its status says that its result is gone."""
    store = SQLiteStore(tmp_path / "jobs.db")
    try:
        for expected in ("{1}", None):
            async with Node("app") as app:
                tools = JobTools(Jobs(app, store=store))
                tools.kind(odd)
                start, _, wait, _, list_ = tools.functions()
                ids = [job["id"] for job in (await list_())["jobs"]] or [(await start("odd"))["id"]]
                (told,) = (await wait(ids))["jobs"]
                assert told.get("result") == expected
        assert "not kept any more" in told["error"]
    finally:
        store.close()


async def odd() -> object:
    return {1}


def test_docstrings_are_for_a_model():
    """The docstring of ``start()`` lists the kinds, and names can have a prefix."""
    here = Kinds(Node("app"))
    start, *others = here.tools.functions("job_")
    assert [each.__name__ for each in (start, *others)] == [
        "job_start",
        "job_status",
        "job_wait",
        "job_cancel",
        "job_list",
    ]
    assert "- slow(value: 'int' = 0) -> 'int': Wait for the gate.\n" in start.__doc__
    assert "- count(words: 'str') -> 'int': Count words, in a thread.\n" in start.__doc__
    assert "does not see" not in start.__doc__
    assert all(each.__doc__ for each in others)


def test_misuse():
    """Invalid arguments are refused at once."""
    jobs = Jobs(Node("app"))
    for options, text in (
        ({"owner": ""}, "owner must be a str that is not empty, not ''"),
        ({"owner": None}, "owner must be a str that is not empty, not None"),
        ({"most": 0}, "most must be a number of jobs, 1 or more, not 0"),
        ({"most": 1.5}, "most must be a number of jobs, 1 or more, not 1.5"),
        ({"limit": 0}, "limit"),
    ):
        with pytest.raises(WorkerError, match=text):
            JobTools(jobs, **options)
    with pytest.raises(WorkerError, match="takes Jobs, not <Node 'app'"):
        JobTools(jobs.node)
    tools = JobTools(jobs)
    tools.kind(odd)
    with pytest.raises(WorkerError, match="there is a kind 'odd' already; give the function"):
        tools.kind(odd)
    for wrong in (5, lambda: None, functools.partial(odd)):
        with pytest.raises(WorkerError, match="a kind of job must be a function with a name, not"):
            tools.kind(wrong)


async def test_in_an_mcp_server():
    """The functions are tools of the official MCP SDK, whose client calls them."""
    pytest.importorskip("mcp.server.extension")
    from mcp import Client  # noqa: PLC0415 (absent in some places)
    from mcp.server.mcpserver import MCPServer  # noqa: PLC0415 (as above)

    async with Node("app") as app:
        here = Kinds(app)
        server = MCPServer("jobs", log_level="CRITICAL")
        for function in here.tools.functions("job_"):
            server.add_tool(function)
        async with Client(server) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            assert names == ["job_start", "job_status", "job_wait", "job_cancel", "job_list"]
            arguments = {"kind": "count", "arguments": {"words": "one two"}}
            started = (await client.call_tool("job_start", arguments)).structured_content
            waited = await client.call_tool("job_wait", {"ids": [started["id"]]})
            assert waited.structured_content["jobs"][0]["result"] == 2


@pytest.mark.parametrize("anyio_backend", [("asyncio", {})])  # it supports asyncio only
async def test_in_pydantic_ai():
    """The functions are tools of pydantic-ai, called by its stand-ins for a model."""
    pytest.importorskip("pydantic_ai")
    from pydantic_ai import Agent  # noqa: PLC0415 (absent in some places)
    from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart  # noqa: PLC0415
    from pydantic_ai.models.function import FunctionModel  # noqa: PLC0415
    from pydantic_ai.models.test import TestModel  # noqa: PLC0415

    async with Node("app") as app:
        here = Kinds(app)
        here.gate.set()

        def model(messages, info):
            """Start two jobs, wait for them, and report their results."""
            parts = messages[-1].parts
            if len(messages) == 1:
                assert "- slow(value" in info.function_tools[0].description
                calls = [("slow", {"value": 5}), ("count", {"words": "one two"})]
                return ModelResponse(
                    [ToolCallPart("start", {"kind": k, "arguments": a}) for k, a in calls]
                )
            if len(messages) == 3:
                ids = [part.content["id"] for part in parts]
                return ModelResponse([ToolCallPart("wait", {"ids": ids, "until": "all"})])
            return ModelResponse(
                [TextPart(str([job["result"] for job in parts[0].content["jobs"]]))]
            )

        agent = Agent(FunctionModel(model), tools=here.tools.functions())
        assert (await agent.run("Go on.")).output == "[5, 2]"
        agent = Agent(TestModel(), tools=here.tools.functions())  # it calls each function
        assert "there is no kind 'a'" in (await agent.run("Go on.")).output


ACTS = ("start", "start", "status", "wait", "any", "cancel", "list", "turns", "gate")


@given(
    acts=st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 9)), max_size=30),
    limit=st.integers(1, 3),
    seed=st.random_module(),
)
@settings(max_examples=60)
def test_random_programs(backend, quiet, acts, limit, seed):
    """In random programs, no job is lost, and no job that has ended changes."""

    async def main():
        ended = {}

        def look(told):
            if told["id"] in ended:
                kept = ended[told["id"]]
                assert {**kept, **told} == {**told, **kept}
            elif told["status"] in FINAL:
                ended[told["id"]] = told
            return told

        async with Node("app") as app:
            here = Kinds(app, limit=limit, most=8)
            ids = []
            for act, number in acts:
                one = ids[number % len(ids)] if ids else None
                if act == "start":
                    kind = ("slow", "fail", "odd", "curious")[number % 4]
                    told = await here.start(kind)
                    ids += [look(told)["id"]] if "error" not in told else []
                elif act == "turns":
                    await settle(number)
                elif act == "gate":
                    here.gate.set()
                    here.gate = anyio.Event()
                elif act == "list":
                    assert [look(told)["id"] for told in (await here.list())["jobs"]] == ids
                elif act in ("wait", "any"):
                    until_ = "any" if act == "any" else "all"
                    for told in (await here.wait(ids[-2:], until_, 0))["jobs"]:
                        look(told)
                elif one is not None:
                    look(await (here.status if act == "status" else here.cancel)(one))
            for each in ids:
                look(await here.cancel(each))
            for told in (await here.wait(ids))["jobs"]:
                assert look(told)["status"] in FINAL
            assert [told["id"] for told in (await here.list())["jobs"]] == ids

    anyio.run(main, **backend)
