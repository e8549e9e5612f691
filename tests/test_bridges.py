"""Random programs of the state machine, observed through the public API of each bridge.

The workers of the machine are jobs that an agent's tools or an MCP client ask about, or they run
below a Textual app. After each step, what the bridge reports has to match each worker: no final
status changes, and no job is lost. A planted fault in each bridge proves that the tests find one.
"""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from functools import partial
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, rule, run_state_machine_as_test

from creche import Node, Worker, WorkerError, WorkerState
from creche.agents import JobTools
from creche.jobs import Jobs
from creche.testing import WorkerMachine

try:
    from textual.app import App

    from creche import textual
except ImportError:
    textual = None

try:
    import mcp
    import mcp.server.extension
    import mcp.server.mcpserver

    from creche import mcp as creche_mcp
except ImportError:
    mcp = None  # not installed, or a version without extensions

pytestmark = pytest.mark.usefixtures("quiet")

PENDING, RUNNING, SUCCESS, ERROR, CANCELLED = (
    WorkerState[name] for name in ("PENDING", "RUNNING", "SUCCESS", "ERROR", "CANCELLED")
)
FEW = settings(
    max_examples=max(5, settings.default.max_examples // 10),
    phases=[Phase.reuse, Phase.generate],  # shrinking takes minutes
    suppress_health_check=[*HealthCheck],
)
FAULTY = settings(
    max_examples=100,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[*HealthCheck],
)


def state_of(worker):
    """Return the state of a worker, even if its class overrides ``state``."""
    return Worker.state.fget(worker)


class Desk(Node):
    """A node on which jobs are submitted, whose workers run on the nodes of the machine."""

    add = None

    def run_worker(self, work, name="", **options):
        return self.add()


class Served(WorkerMachine):
    """Each worker is a job, and ``states`` maps its state to the status that the bridge reports."""

    states: ClassVar = {}

    def begin(self, seed=0, log=""):
        self.desk = Desk("desk")
        self.jobs = Jobs(self.desk, keep=10_000)
        self.ids = {}  # by the numbers of the workers, to which nothing may keep a reference
        self.final = {}
        super().begin(seed, log)

    def add_worker(self, node, worker, *, start, exclusive):
        def add():
            node.workers.add_worker(worker, start=start, exclusive=exclusive)
            return worker

        self.desk.add = add
        try:
            self.ids[worker.number] = self.submit(worker)
        finally:
            self.desk.add = None  # the function refers to the worker

    async def look(self):
        for record in self.records():
            job_id = self.ids.get(record.worker.number)
            if job_id is None:
                continue  # added by the work of another worker, not by the machine
            told = await self.tell(job_id)
            expected = self.states[state_of(record.worker)]
            assert told["status"] == expected, f"{record} is told as {told['status']}"
            if record.worker.is_finished:
                assert self.final.setdefault(job_id, told) == told, f"{record} has changed"
        assert await self.listed() == set(self.ids.values()), "a job is lost"

    async def listed(self):
        return {job.id for job in self.jobs.list()}


class ToolsMachine(Served):
    """An agent's tools start the jobs, report on them and cancel them."""

    states: ClassVar = {
        PENDING: "queued",
        RUNNING: "running",
        SUCCESS: "succeeded",
        ERROR: "failed",
        CANCELLED: "cancelled",
    }
    functions = staticmethod(JobTools.functions)

    def begin(self, seed=0, log=""):
        super().begin(seed, log)
        tools = JobTools(self.jobs, most=10_000)
        tools.kind(work)
        self.start, self.status, self.wait, self.cancel, self.list = self.functions(tools)

    def submit(self, worker):
        told = at_once(self.start("work"))
        if "error" in told:
            raise WorkerError(told["error"])
        return told["id"]

    async def tell(self, job_id):
        told = await self.status(job_id)
        if self.jobs.get(job_id).status.done:
            assert await self.wait([job_id]) == {"jobs": [told]}
        return told

    async def listed(self):
        return {told["id"] for told in (await self.list())["jobs"]}

    @rule(record=Bundle("started"))
    def cancel_by_the_agent(self, record):
        """Cancel a job with the agent's tool."""
        record.ask("the agent has cancelled it")
        self.do(partial(self.cancel, self.ids[record.worker.number]))


def work():
    """Stand for the work of the machine's workers."""


def at_once(coro):
    """Run a coroutine that never waits, and return its result."""
    try:
        coro.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


def run_on(machine, backend, how):
    machine.backend = backend["backend"]
    options = backend["backend_options"]
    machine.backend_options = {key: options[key] for key in options if key != "debug"}
    run_state_machine_as_test(machine, settings=how)


def test_the_tools_of_an_agent(backend):
    """In any program, an agent gets the true status of each job, and no final status changes."""

    class Machine(ToolsMachine):
        pass

    run_on(Machine, backend, FEW)


def test_a_tool_that_is_wrong_is_noticed():
    """The machine finds a tool that reports a failed job as running."""

    def functions(tools):
        start, status, wait, cancel, list_ = JobTools.functions(tools)

        async def hopeful(job_id):
            told = await status(job_id)
            return told | {"status": "running"} if told["status"] == "failed" else told

        return start, hopeful, wait, cancel, list_

    class Machine(ToolsMachine):
        pass

    Machine.functions = staticmethod(functions)
    with pytest.raises(AssertionError, match="look: "):
        run_state_machine_as_test(Machine, settings=FAULTY)


# tasks of MCP


class TasksMachine(Served):
    """The jobs are tasks of an MCP server, and a client asks for the status of each."""

    states: ClassVar = {
        PENDING: "working",
        RUNNING: "working",
        SUCCESS: "completed",
        ERROR: "failed",
        CANCELLED: "cancelled",
    }
    extension: ClassVar = None
    cancel_task = None  # it finds a task by the worker's name, which is the tool's name here

    @asynccontextmanager
    async def around(self):
        """Serve each worker as a call of the tool of the same name."""
        tasks = self.extension(self.jobs)
        tasks.tool()(work)
        server = mcp.server.MCPServer("jobs", extensions=[tasks], log_level="CRITICAL")
        async with mcp.Client(server, extensions=[creche_mcp.ClientTasks()]) as client:
            self.session = client.session
            yield

    def make_worker(self, node, work, **options):
        return super().make_worker(node, work, **{**options, "name": "work"})

    def submit(self, worker):
        (record,) = [each for each in self.records() if each.worker is worker]
        record.play.value = mcp.types.CallToolResult(content=[])
        return self.jobs.submit(work).id

    def task(self, record):
        return creche_mcp.RemoteTask(self.session, self.ids[record.worker.number])

    async def tell(self, job_id):
        status = await creche_mcp.RemoteTask(self.session, job_id).status()
        assert (status.result is not None) == (status.status == "completed")
        assert (status.error is not None) == (status.status == "failed")
        return status.model_dump()

    @rule(record=Bundle("started"))
    def cancel_by_the_client(self, record):
        """Cancel a task with the client's request."""
        record.ask("the client has cancelled it")
        self.do(self.task(record).cancel)

    @rule(record=st.one_of(Bundle("unstarted"), Bundle("started")))
    def assign_state(self, record):
        """Assign no states, because work whose state is assigned has no tool result."""


needs_mcp = pytest.mark.skipif(mcp is None, reason="mcp is an extra")


@needs_mcp
def test_tasks_of_mcp(backend):
    """In any program, a client gets the true status of each task, and no final status changes."""

    class Machine(TasksMachine):
        extension = creche_mcp.Tasks

    run_on(Machine, backend, FEW)


@needs_mcp
def test_tasks_that_are_lost_are_noticed():
    """The machine finds a server that forgets a cancelled task."""

    class Forgetful(creche_mcp.Tasks):
        async def _get(self, ctx, params):
            job = self.jobs.get(params.task_id)
            if job is not None and job.status.cancel_requested:
                self.jobs.remove(job.id)
            return await super()._get(ctx, params)

    class Machine(TasksMachine):
        extension = Forgetful

    with pytest.raises(mcp.shared.exceptions.MCPError, match="there is no such task"):
        run_state_machine_as_test(Machine, settings=FAULTY)


# workers of Textual


needs_textual = pytest.mark.skipif(textual is None, reason="Textual is an extra")


def make_adapted(app, node, work, **options):
    """Make a worker of the Textual adapter with all options of Creche, on a node of the machine."""

    class Adapted(textual.Worker):
        def __init__(self):
            self._owner = app
            Worker.__init__(self, node, work, **options)

        def wait(self):
            return Worker.wait(self)  # this one raises what the machine expects

    return Adapted()


class AppMachine(WorkerMachine):
    """The nodes are below the node of a Textual app, whose manager holds all workers."""

    manager: ClassVar = None
    start_all = cancel_through_the_manager = None  # these rules treat each root as a separate tree

    def begin(self, seed=0, log=""):
        self.final = {}
        super().begin(seed, log)

    @asynccontextmanager
    async def around(self):
        class Shown(textual.Creche, App):
            pass

        self.app = Shown()
        self.workers = (self.manager or type(self.app.workers))(self.app)
        self.app._creche_workers = self.workers
        async with self.app.run_test():
            yield

    def make_node(self, name, parent):
        above = self.workers.root if name.startswith("root") else parent
        return super().make_node(name, above)

    def make_worker(self, node, work, **options):
        return make_adapted(self.app, node, work, **options)

    async def look(self):
        there = list(self.workers)
        assert len(self.workers) == len(there)
        assert there[::-1] == list(reversed(self.workers))
        assert dict(self.workers.__rich_repr__()) == Counter(each.state.name for each in there)
        for record in self.records():
            worker = record.worker
            assert worker.node is self.app
            assert worker.state.name == state_of(worker).name, f"{record} is {worker.state}"
            assert (worker in self.workers) == (not worker.is_finished), f"{record} is lost"
            assert any(each is worker for each in there) == (not worker.is_finished)
            if worker.is_finished:
                told = self.final.setdefault(worker.name, worker.state)
                assert told is worker.state, f"{record} was {told}, is {worker.state}"

    def the_manager_has_what_is_unfinished(self):
        """Check nothing here: one manager holds the workers of all roots, see ``look()``."""

    @rule()
    def cancel_by_the_app(self):
        """Cancel all workers of the app."""
        for record in self.records():
            record.ask("the app has cancelled all")
        self.do(self.workers.cancel_all)


@needs_textual
def test_workers_of_textual():
    """In any program, the app holds the unfinished workers, and no final state changes."""

    class Machine(AppMachine):
        pass

    run_state_machine_as_test(Machine, settings=FEW)


@needs_textual
def test_a_manager_that_loses_workers_is_noticed():
    """The machine finds a manager that forgets a worker as soon as it is cancelled."""

    class Forgetful(textual.WorkerManager):
        def __iter__(self):
            return (each for each in super().__iter__() if not each.is_cancelled)

    class Machine(AppMachine):
        manager = Forgetful

    with pytest.raises(AssertionError, match="look: "):
        run_state_machine_as_test(Machine, settings=FAULTY)
