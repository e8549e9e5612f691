"""What type checkers must infer about the public API; they check this file, and it never runs.

Each ``type: ignore`` marks a line that must be an error. mypy complains if it is not, and so does
pyright, because of the setting below.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import concurrent.futures
import functools
import pathlib
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import Context, ContextVar
from typing import Any

import anyio
import anyio.abc
import trio
from fastapi import APIRouter, FastAPI
from mcp import Client
from mcp.server.mcpserver import MCPServer
from mcp_types import CallToolResult
from rich.console import Console
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from textual.app import App
from textual.widget import Widget

from creche import (
    FrameSnapshot,
    GroupSnapshot,
    Message,
    Node,
    NodeSnapshot,
    Overflow,
    RemoteError,
    Subscription,
    Worker,
    WorkerCrashed,
    WorkerFailed,
    WorkerGroup,
    WorkerManager,
    WorkerSnapshot,
    WorkerState,
    WorkType,
    active_worker,
    format_tree,
    get_current_worker,
    work,
)
from creche.agents import JobTools
from creche.board import Board, live_board
from creche.hosting import Host, SignalReceived, stop_on_signals
from creche.jobs import Job, Jobs, JobStatus, SQLiteStore, Store, ask, ask_from_thread
from creche.mcp import ClientTasks, RemoteTask, Tasks, TaskStatus, start_task
from creche.otel import metered, traced
from creche.remote import read_tree, serve_tree
from creche.services import Backoff, NotRestartable, Restart, RestartsExhausted, service, watchdog
from creche.textual import Creche
from creche.trace import Trace, record
from creche.ways import Far, OnExecutor, Processes
from creche.ways import Job as FarJob
from creche.web import Action, accepted, lifespan, router, routes

if sys.version_info >= (3, 11):
    from typing import assert_type
else:
    from typing_extensions import assert_type


async def fetch() -> bytes:
    """Take nothing."""
    return b""


async def add(first: int, second: float) -> float:
    """Take two."""
    return first + second


def crunch() -> int:
    """Block, so that it has to run in a thread."""
    return 1


def scale(text: str, factor: int) -> str:
    """Block, and take arguments."""
    return text * factor


class Fetcher:
    """An object that is called like a coroutine function."""

    async def __call__(self) -> bytes:
        return b""


class Panel(Node):
    """A user's node class, with decorated work."""

    @work
    async def load(self, path: str, *, deep: bool = False) -> list[str]:
        """Use the decorator without options."""
        return [path] if deep else []

    @work(exclusive=True, group="search", exit_on_error=False)
    async def search(self, text: str) -> int:
        """Use the decorator with options."""
        return len(text)

    @work(thread=True)
    def scan(self, size: int) -> bytes:
        """Run in a thread."""
        return bytes(size)

    @work(thread=True)
    def begin(self) -> Worker[bytes]:
        """Start another worker, which is never awaited."""
        return self.run_worker(fetch)

    @work(thread=True, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
    async def talk(self) -> str:
        """Run async work on an event loop in a thread."""
        return ""

    @work(limit=2, overflow="keep_latest", description="", daemon=True)
    async def draw(self) -> None:
        """Run in a group with a limit."""

    @work(where=Processes(2, grace=1.0), limit=4)
    @staticmethod
    def shrink(path: str, size: int = 128) -> bytes:
        """Run elsewhere, without the node."""
        return path.encode() * size

    @work(where=Processes(), abandon_on_cancel=True)
    @staticmethod
    async def ask(question: str) -> int:
        """Run elsewhere, on an event loop there."""
        return len(question)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Handle."""
        assert_type(event.worker, Worker[Any])
        assert_type(event.state, WorkerState)
        assert_type(event.worker.node, Node)
        assert_type(event.worker.node.group("x"), WorkerGroup)
        assert_type(event.worker.node.children, tuple[Node, ...])
        self.workers.cancel_node(event.worker.node)

    def owner_of(self, worker: Worker[int]) -> Node:
        """Get the node of a worker, whose type is Node."""
        return worker.node


@work
async def sync_files(node: Node, count: int) -> str:
    """Take the node as a function's first argument."""
    return node.name * count


@work(thread=True)
def hash_files(node: Panel, name: str) -> int:
    """Take a node of one class."""
    return hash((node.name, name))


class Saved(Message, bubble=True, namespace="editor"):
    """A user's message class."""


class Sleeper(Worker[float]):
    """A user's worker class."""

    async def run(self) -> float:
        """Do the work."""
        await anyio.sleep(1)
        return 1.0


async def run_worker(node: Node) -> None:
    """run_worker() infers the type of the result from the work."""
    assert_type(node.run_worker(fetch), Worker[bytes])
    assert_type(node.run_worker(fetch()), Worker[bytes])
    assert_type(node.run_worker(add(1, 2.0), "add", "sums"), Worker[float])
    assert_type(node.run_worker(functools.partial(add, 1, 2.0)), Worker[float])
    assert_type(node.run_worker(lambda: add(1, 2.0), exclusive=True), Worker[float])
    assert_type(node.run_worker(Fetcher()), Worker[bytes])
    assert_type(node.run_worker(crunch, thread=True), Worker[int])
    assert_type(node.run_worker(functools.partial(scale, "a", 2), thread=True), Worker[str])
    assert_type(node.run_worker(lambda: scale("a", 2), thread=True), Worker[str])
    assert_type(
        node.run_worker(
            fetch,
            "name",
            "group",
            "description",
            exit_on_error=False,
            start=False,
            exclusive=True,
            thread=True,
            daemon=True,
            abandon_on_cancel=True,
            limiter=anyio.CapacityLimiter(1),
        ),
        Worker[bytes],
    )
    # A worker that the work returns is the result and is not awaited: rare, so the types ignore it.
    assert_type(node.run_worker(lambda: node.run_worker(fetch)), Worker[bytes])
    # A worker that is given as the work is awaited.
    assert_type(node.run_worker(node.run_worker(fetch)), Worker[bytes])

    node.run_worker(add)  # type: ignore[arg-type]  # needs arguments
    node.run_worker(1)  # type: ignore[call-overload]  # is not work
    node.run_worker(fetch, thraed=True)  # type: ignore[call-overload]  # is not an option
    node.run_worker(fetch, start="no")  # type: ignore[call-overload]  # is not a flag


async def start_worker(node: Node) -> None:
    """start_worker() infers the type of the result, too."""
    assert_type(await node.start_worker(fetch), Worker[bytes])
    assert_type(await node.start_worker(fetch()), Worker[bytes])
    assert_type(await node.start_worker(crunch, thread=True), Worker[int])
    assert_type(await node.start_worker(functools.partial(add, 1, 2.0)), Worker[float])
    assert_type(await node.start_worker(lambda: node.run_worker(fetch)), Worker[bytes])
    await node.start_worker(fetch, start=False)  # type: ignore[call-overload]  # waits for the start


async def groups(node: Node) -> None:
    """Groups run work with the same types as nodes."""
    group = node.group("downloads", limit=4, overflow="enqueue")
    assert_type(group, WorkerGroup)
    assert_type(group.run_worker(fetch), Worker[bytes])
    assert_type(group.run_worker(fetch(), "name", "description", exclusive=True), Worker[bytes])
    assert_type(group.run_worker(crunch, thread=True), Worker[int])
    assert_type(group.run_worker(lambda: node.run_worker(fetch)), Worker[bytes])
    assert_type(await group.start_worker(fetch), Worker[bytes])
    assert_type(await group.start_worker(crunch, thread=True), Worker[int])
    assert_type(await group.start_worker(lambda: node.run_worker(fetch)), Worker[bytes])
    assert_type(iter(group), Iterator[Worker[Any]])
    assert_type(group.limit, int | None)
    assert_type(group.total_steps, int | None)
    assert_type(group.progress, float)
    assert_type(group.overflow, Overflow)
    assert_type(await group.wait(), None)
    group.limit = None
    node.group("downloads", overflow="queue")  # type: ignore[arg-type]  # is not a rule
    node.group("downloads", limit="4")  # type: ignore[arg-type]  # is not a number


async def workers(node: Node) -> None:
    """Worker() infers the type of its result from the work."""
    assert_type(Worker(node, fetch), Worker[bytes])
    assert_type(Worker(node, fetch(), name="n", group="g", description="d"), Worker[bytes])
    assert_type(Worker(node, crunch, thread=True, exit_on_error=False), Worker[int])
    assert_type(Worker(node, functools.partial(add, 1, 2.0)), Worker[float])
    assert_type(Worker(node, lambda: node.run_worker(fetch)), Worker[bytes])
    assert_type(Worker(node, node.run_worker(fetch)), Worker[bytes])
    sleeper = Sleeper(node, name="sleeper")
    assert_type(await sleeper.wait(), float)
    Worker(fetch)  # type: ignore[call-overload]  # the node is missing
    Worker(node, 1)  # type: ignore[call-overload]  # is not work

    worker = node.run_worker(fetch)
    assert_type(await worker, bytes)
    assert_type(await worker.wait(), bytes)
    assert_type(await worker.join(), Worker[bytes])
    assert_type(worker.result_or(None), bytes | None)
    worker.add_done_callback(lambda ended: assert_type(ended, Worker[bytes]))
    assert_type(sum(len(each.result_or(b"")) for each in [worker]), int)
    assert_type(worker.subscribe(Worker.StateChanged), Subscription[Worker.StateChanged])
    either = worker.subscribe()
    assert_type(either, Subscription[Worker.StateChanged | Worker.ProgressChanged])
    assert_type(worker.number, int)
    assert_type(await worker.run(), bytes)
    assert_type(worker.result, bytes | None)
    assert_type(worker.error, BaseException | None)
    assert_type(worker.state, WorkerState)
    assert_type(worker.progress, float)
    assert_type(worker.total_steps, int | None)
    assert_type(worker.cancelled_event, threading.Event)
    assert_type(worker.is_cancelled, bool)
    assert_type(worker.started_at, float | None)
    assert_type(worker.elapsed, float)
    assert_type(worker.cancel("reason"), None)
    worker.advance()
    worker.update(completed_steps=1, total_steps=None)
    worker.state = WorkerState.CANCELLED
    worker.result = b""  # type: ignore[misc]  # only the work sets it


async def managers(node: Node) -> None:
    """The manager contains workers of all types."""
    manager = node.workers
    assert_type(manager, WorkerManager)
    assert_type(list(manager), list[Worker[Any]])
    assert_type(list(reversed(manager)), list[Worker[Any]])
    assert_type(len(manager), int)
    assert_type(manager.cancel_group(node, "group"), list[Worker[Any]])
    assert_type(manager.cancel_node(node), list[Worker[Any]])
    manager.add_worker(Worker(node, fetch), start=False, exclusive=False)
    manager.add_worker(Sleeper(node))
    await manager.wait_for_complete()
    await manager.wait_for_complete([node.run_worker(fetch), node.run_worker(crunch, thread=True)])


def decorated(panel: Panel, node: Node) -> None:
    """Decorated work keeps its parameters and its result, bound and unbound."""
    assert_type(panel.load("/", deep=True), Worker[list[str]])
    assert_type(Panel.load(panel, "/"), Worker[list[str]])
    assert_type(panel.search("text"), Worker[int])
    assert_type(Panel.search(panel, text="text"), Worker[int])
    assert_type(panel.scan(1), Worker[bytes])
    assert_type(Panel.scan(panel, size=1), Worker[bytes])
    assert_type(panel.begin(), Worker[bytes])
    assert_type(panel.talk(), Worker[str])
    assert_type(panel.draw(), Worker[None])
    assert_type(sync_files(node, 1), Worker[str])
    assert_type(sync_files(panel, count=1), Worker[str])
    assert_type(hash_files(panel, "name"), Worker[int])

    panel.load()  # type: ignore[call-arg]  # the path is missing
    panel.load(1)  # type: ignore[arg-type]  # the path is not a number
    panel.load("/", shallow=True)  # type: ignore[call-arg]  # is not a parameter
    panel.search(1)  # type: ignore[arg-type]  # the text is not a number
    panel.scan("1")  # type: ignore[arg-type]  # the size is a number
    sync_files(node)  # type: ignore[call-arg]  # the count is missing
    hash_files(node, "name")  # type: ignore[arg-type]  # is not a Panel


def declarations() -> None:
    """The decorator refuses what cannot be a worker, and unknown options."""
    work(crunch)  # type: ignore[arg-type]  # blocks, so thread=True
    work(exclusive=True)(crunch)  # type: ignore[arg-type]  # the same
    work(abandon_on_cancel=True)  # type: ignore[call-overload]  # is for threads
    work(overflow="queue")  # type: ignore[call-overload]  # is not a rule
    work(thraed=True)  # type: ignore[call-overload]  # is not an option
    work(1)  # type: ignore[call-overload]  # is not a function


async def through(job: FarJob) -> object:
    """A user's own way to run work elsewhere."""
    payload: bytes = job.pack()
    job.begin("here")
    far = Far(payload, print, begun=True)
    assert_type(far.run(), bytes)
    assert_type(list(far.track([1, 2])), list[int])
    return job.open(far.run())


async def elsewhere(panel: Panel, pool: concurrent.futures.Executor) -> None:
    """Run work elsewhere, and ask where it runs."""
    assert_type(panel.shrink("a", size=1), Worker[bytes])
    assert_type(await panel.shrink("a"), bytes)
    assert_type(await panel.ask("why"), int)
    assert_type(panel.run_worker(crunch, where=pool), Worker[int])
    assert_type(panel.run_worker(fetch, where=through), Worker[bytes])
    assert_type(await panel.start_worker(crunch, where=Processes()), Worker[int])
    assert_type(panel.group("x").run_worker(crunch, where=OnExecutor(pool)), Worker[int])
    assert_type(await panel.group("x").room(), None)
    assert_type(Worker(panel, crunch, where=through), Worker[int])
    assert_type(panel.shrink("a").where, str)
    assert_type(WorkerCrashed("gone", -9).exitcode, int | None)
    assert_type(RemoteError("a.B", "c").type_name, str)
    panel.shrink(1)  # type: ignore[arg-type]  # takes a string
    panel.run_worker(crunch, where="there")  # type: ignore[call-overload]  # is not a way


def threads(node: Node) -> None:
    """Calls from a thread take the arguments of the function and give its result."""
    assert_type(node.call_from_thread(crunch), int)
    assert_type(node.call_from_thread(scale, "a", 2), str)
    assert_type(node.call_from_thread(fetch), bytes)
    assert_type(node.call_from_thread(add, 1, 2.0), float)
    assert_type(node.call_from_thread(node.run_worker(fetch).wait), bytes)
    assert_type(node.call_from_thread(node.run_worker, fetch), Worker[bytes])
    assert_type(node.call_from_thread(lambda: node.run_worker(fetch)), Worker[bytes])
    assert_type(node.post_message(Saved()), bool)
    node.call_from_thread(scale, "a")  # type: ignore[arg-type]  # the factor is missing
    node.call_from_thread(crunch, 1)  # type: ignore[arg-type]  # takes no arguments
    node.post_message("saved")  # type: ignore[arg-type]  # is not a message


async def trees() -> None:
    """A node keeps its type when it is entered or mounted."""
    async with Node("app") as app, Panel("panel", parent=app) as panel:
        assert_type(app, Node)
        assert_type(panel, Panel)
        mounted = await app.mount(Panel("panel"))
        assert_type(mounted, Panel)
        assert_type(await mounted.remove(), None)
        assert_type(app.attach(Panel("another")), Panel)
        assert_type(app.children, tuple[Node, ...])
        assert_type(app.parent, Node | None)
        assert_type(app.root, Node)
        assert_type(app.path, str)
        await app.shutdown(grace=1)
        app.cancel()
    Node("page", app)  # type: ignore[call-arg]  # the parent is keyword-only
    await app.mount("panel")  # type: ignore[type-var]  # is not a node
    app.attach("panel")  # type: ignore[type-var]  # is not a node


async def timelines(node: Node) -> None:
    """Record a timeline and save it."""
    async with record(node, keep=5) as trace:
        assert_type(trace, Trace)
    assert_type(trace.dropped, int)
    trace.save("run.json")
    trace.save(pathlib.Path("run.html"))
    record("node")  # type: ignore[arg-type]  # is not a node
    record(node, 5)  # type: ignore[call-arg]  # is keyword-only
    trace.dropped = 5  # type: ignore[misc]  # it is read-only


async def subscriptions(node: Node, worker: Worker[bytes]) -> None:
    """A subscription infers the types of its events from the given classes."""
    changes = node.subscribe(Worker.StateChanged, tree=True)
    assert_type(changes, Subscription[Worker.StateChanged])
    async with changes as events:
        assert_type(events, Subscription[Worker.StateChanged])
        async for event in events:
            assert_type(event, Worker.StateChanged)
            assert_type(event.worker, Worker[Any])
            assert_type(event.state, WorkerState)
            assert_type(event.previous, WorkerState | None)
            assert_type(event.time, float)
            assert_type(event.number, int)
            assert_type(event.origin, Worker[Any] | None)
            assert_type(event.context, Context | None)
            event.state = WorkerState.ERROR  # type: ignore[misc]  # it is read-only
        assert_type(events.take_all(), list[Worker.StateChanged])
    async with node.subscribe(Worker.ProgressChanged) as progress:
        assert_type((await anext(progress)).worker, Worker[Any])
    two = node.subscribe(Worker.StateChanged, Saved)
    assert_type(two, Subscription[Worker.StateChanged | Saved])
    async with node.subscribe(Worker.StateChanged, Worker.ProgressChanged, Saved) as all_kinds:
        async for each in all_kinds:
            if isinstance(each, Worker.StateChanged):
                assert_type(each.state, WorkerState)
            elif isinstance(each, Saved):
                assert_type(each, Saved)
    assert_type(worker.track([1, 2]), Iterator[int])
    assert_type(worker.track(changes, 3), AsyncIterator[Worker.StateChanged])
    assert_type(worker.cancelled_at, float | None)
    worker.update(description="half way")
    worker.track(3)  # type: ignore[call-overload]  # cannot be iterated
    node.subscribe("StateChanged")  # type: ignore[call-overload]  # is not a class
    node.subscribe(int)  # type: ignore[type-var]  # is not a message class


async def pictures(node: Node, worker: Worker[bytes]) -> None:
    """Draw trees, take snapshots, and make spans."""
    assert_type(format_tree(node), str)
    assert_type(format_tree(node, stacks=True), str)
    taken = node.snapshot()
    assert_type(taken, NodeSnapshot)
    assert_type(taken.children, tuple[NodeSnapshot, ...])
    assert_type(taken.groups, tuple[GroupSnapshot, ...])
    assert_type(taken.groups[0].workers, tuple[WorkerSnapshot, ...])
    assert_type(taken.groups[0].workers[0].stack, tuple[FrameSnapshot, ...] | None)
    assert_type(worker.thread, bool)
    async with traced(node) as nothing:
        assert_type(nothing, None)
    taken.name = "other"  # type: ignore[misc]  # it is read-only
    format_tree(worker)  # type: ignore[arg-type]  # is not a node
    traced("app")  # type: ignore[arg-type]  # is not a node
    async with metered(node, lag_every=0.5) as nothing:
        assert_type(nothing, None)
    metered("app")  # type: ignore[arg-type]  # is not a node
    async with serve_tree(node) as nothing:
        assert_type(nothing, None)
    serve_tree("app")  # type: ignore[arg-type]  # is not a node
    assert_type(read_tree(1), str)
    async with live_board(node, console=Console()) as board:
        assert_type(board, Board)
        assert_type(board.node, Node)
    live_board("app")  # type: ignore[arg-type]  # is not a node
    assert_type(node.groups, tuple[WorkerGroup, ...])
    async with node.subscribe(Worker.StateChanged) as changes:
        assert_type(changes.take_all(), list[Worker.StateChanged])


class Hosted(Node):
    """A user's node class."""


async def hosts(tasks: anyio.abc.TaskGroup, nursery: trio.Nursery) -> None:
    """Run nodes in tasks of their own, and stop them on signals."""
    host = Host(Hosted("app"), task_group=tasks)
    assert_type(host, Host[Hosted])
    assert_type(host.node, Hosted)
    await host.start()
    await host.stop(grace=0.5)
    async with Host(Hosted(), task_group=nursery) as app:
        assert_type(app, Hosted)
    async with stop_on_signals(app, grace=5) as nothing:
        assert_type(nothing, None)
    assert_type(SignalReceived(15).signal, signal.Signals)
    Host("app")  # type: ignore[type-var]  # is not a node
    Host(app, task_group=3)  # type: ignore[arg-type]  # is not a task group
    stop_on_signals(host)  # type: ignore[arg-type]  # is not a node


def current() -> None:
    """Get the current worker, of any type."""
    assert_type(get_current_worker(), Worker[Any])
    assert_type(active_worker, ContextVar[Worker[Any]])
    assert_type(WorkerFailed(ValueError()).error, BaseException)


def accepts(node: Node, anything: WorkType[int]) -> Worker[int]:
    """Take anything that a worker can run."""
    return node.run_worker(anything)


def work_types() -> None:
    """WorkType is the type of anything that a worker can run."""
    each: list[WorkType[bytes]] = [fetch, fetch(), Fetcher(), functools.partial(fetch), bytes]
    assert_type(len(each), int)


async def listen(*, task_status: anyio.abc.TaskStatus[int]) -> bytes:
    """Report that the worker is ready."""
    task_status.started(3)
    return b""


async def listen_positional(
    task_status: anyio.abc.TaskStatus[int] = anyio.TASK_STATUS_IGNORED,
) -> bytes:
    """Report that the worker is ready, if asked to."""
    task_status.started(3)
    return b""


async def needs_one(argument: int) -> None:
    """Require an argument."""


async def check_services(app: Node) -> None:
    """Services keep the types of their functions; events and errors have types, too."""
    restart = Restart(max=None, within=60, backoff=Backoff(0.1, 30), reset_after=1.5)
    assert_type(app.run_worker(service(fetch, restart=restart)), Worker[bytes])
    assert_type(app.run_worker(service(fetch, stall_after=30)), Worker[bytes])
    assert_type(app.run_worker(service(listen, on=OSError, always=True)), Worker[bytes])
    assert_type(app.run_worker(service(listen_positional)), Worker[bytes])
    assert_type(
        app.run_worker(service(lambda: 3, on=(OSError, KeyError)), thread=True), Worker[int]
    )
    again = service(functools.partial(needs_one, 3), on=lambda error: "no" in str(error))
    assert_type(await again(), None)
    worker = await app.start_worker(service(listen), ready=True, stall_after=30)
    assert_type(worker.attempt, int)
    async with app.subscribe(Worker.Ready, Worker.Restarted, Worker.Stalled) as served:
        async for event in served:
            assert_type(event, Worker.Ready | Worker.Restarted | Worker.Stalled)
            assert_type(event.time, float)
            if isinstance(event, Worker.Restarted):
                assert_type(event.attempt, int)
            elif isinstance(event, Worker.Stalled):
                assert_type(event.seconds, float)
    assert_type(app.snapshot().groups[0].workers[0].is_stalled, bool)
    error = worker.error
    if isinstance(error, RestartsExhausted):
        assert_type(error.message, str)
    async with watchdog(app, blocked=0.25) as nothing:
        assert_type(nothing, None)
    service(needs_one)  # type: ignore[arg-type, call-overload, unused-ignore]  # needs an argument
    service(fetch, on=3)  # type: ignore[call-overload]  # is not a class or function
    service(fetch, restart=3)  # type: ignore[call-overload]  # is not a Restart
    raise NotRestartable("no")


async def check_jobs(app: Node) -> None:
    """Start jobs, and ask for their state."""
    jobs = Jobs(app, keep=10, ttl=60.0, store=SQLiteStore("jobs.db"))
    job = jobs.submit(fetch, name="fetch", owner="me", group="few", exclusive=True)
    assert_type(job, Job[bytes])
    assert_type(jobs.submit(crunch, thread=True), Job[int])
    assert_type(jobs.submit(crunch, where=Processes()), Job[int])
    assert_type(jobs.submit(fetch(), "fetch"), Job[bytes])
    assert_type(await job.result(), bytes)
    assert_type(await job.join(), Job[bytes])
    assert_type(job.worker, Worker[bytes] | None)
    assert_type(job.status, JobStatus)
    assert_type(job.status.progress.total, int | None)
    assert_type(job.cancel("why"), None)
    assert_type(job.answer("key", 5), None)
    async for status in job.watch():
        assert_type(status, JobStatus)
    assert_type(jobs.get(job.id), Job[Any] | None)
    assert_type(jobs.list(), tuple[Job[Any], ...])
    assert_type(jobs.list(owner="me"), tuple[Job[Any], ...])
    assert_type(jobs.remove(job.id), bool)
    assert_type(await ask("key", "a question", schema={"type": "string"}), Any)
    assert_type(ask_from_thread("key", "a question"), Any)
    store: Store = SQLiteStore(pathlib.Path("jobs.db"))
    assert_type(store.get(job.id), JobStatus | None)
    jobs.submit(fetch, start=False)  # type: ignore[call-overload]  # a job is started
    jobs.submit(fetch, owner=5)  # type: ignore[call-overload]  # is not a string


async def check_mcp(app: Node) -> None:
    """Serve tools as tasks, and call them."""
    tasks = Tasks(Jobs(app), poll_interval=0.5)

    @tasks.tool(required=True, options={"group": "few"}, title="Add")
    async def added(first: int) -> float:
        return await add(first, 1.0)

    assert_type(await added(1), float)
    server = MCPServer("server", extensions=[tasks])
    async with Client(server, extensions=[ClientTasks(on_status=print)]) as client:
        task = await start_task(client, "added", {"first": 1})
        assert_type(task, RemoteTask | CallToolResult)
        assert isinstance(task, RemoteTask)
        status = await task.status()
        assert_type(status, TaskStatus)
        assert_type(status.result, CallToolResult | None)
        assert_type(await task.answer({"key": {"action": "decline"}}), None)
        assert_type(await task.cancel(), None)
        assert_type(await task.result(), CallToolResult)
    tasks.tool(options={"start": False})  # type: ignore[arg-type]  # as for submit()


async def check_agents(app: Node) -> None:
    """Give an agent tools."""
    tools = JobTools(Jobs(app), owner="ada", limit=2, most=10, group="few")

    @tools.kind
    def counted(words: str) -> int:
        return len(words)

    assert_type(counted("words"), int)
    start, *_ = tools.functions("job_")
    assert_type(await start("counted", {"words": "one"}), dict[str, Any])
    JobTools(app)  # type: ignore[arg-type]  # takes jobs


async def check_web(app: Node, jobs: Jobs, request: Request) -> None:
    """Serve jobs."""
    assert_type(routes(jobs), list[Route])
    assert_type(router(jobs, prefix="/work", page=True), APIRouter)
    assert_type(await accepted(jobs.submit(fetch), request), Response)
    assert_type(await accepted(jobs.submit(fetch), request, location="/here"), Response)
    Starlette(routes=routes(jobs), lifespan=lifespan(app, grace=1.5))
    FastAPI(lifespan=lifespan(app))

    async def authorize(request: Request, action: Action, status: JobStatus | None) -> bool:
        return bool(request.headers) and action == "read" and status is not None

    routes(jobs, authorize=authorize, owner=lambda request: request.headers.get("x-user"))
    routes(jobs, authorize=5)  # type: ignore[arg-type]  # is not a function
    routes(app)  # type: ignore[arg-type]  # are not jobs


class Terminal(Creche, App[int]):
    """A Textual app with the one changed line."""


async def check_textual(app: Terminal, widget: Widget) -> None:
    """The adapter keeps the types of Textual, and returns the node of a widget."""
    assert_type(app.workers.root, Node)
    assert_type(app.workers.home(widget).group("one", limit=1), WorkerGroup)
    assert_type(await app.workers.leave(widget), None)
    assert_type(await app.run_async(headless=True), int | None)
    assert_type(app.call_from_thread(crunch), int)
    app.workers.home("one")  # type: ignore[arg-type]  # is not a widget
