"""Hosts, which run a node's block in a task of its own, and shutdown on a signal."""

from __future__ import annotations

import ast
import asyncio
import gc
import inspect
import math
import re
import signal
import subprocess
import sys
import weakref
from contextlib import suppress

import anyio
import anyio.from_thread
import pytest
from anyio import lowlevel

from creche import Message, Node, WorkerError, hosting
from creche.hosting import Host, SignalReceived, stop_on_signals
from creche.testing import assert_nothing_left
from helpers import (
    CANCELLED,
    SUCCESS,
    ExceptionGroup,
    fail,
    leaves,
    no_collection,
    run_python,
    set_later,
    settle,
    slow_to_leave,
    told,
    until,
)


def is_trio(anyio_backend):
    return anyio_backend[0] == "trio"


@pytest.fixture(params=["a task of its own", "a task group"])
async def where(request, anyio_backend):
    """The argument that says where a host runs its task: nothing on asyncio, or a task group."""
    if request.param == "a task of its own":
        if is_trio(anyio_backend):
            pytest.skip("Trio has no tasks without a nursery")
        yield {}
        return
    async with anyio.create_task_group() as group:
        yield {"task_group": group}
        group.cancel_scope.cancel()


class Slow(Node):
    """A node that opens slowly, and may fail when it is cancelled meanwhile."""

    error = None

    def __init__(self, name="app"):
        super().__init__(name)
        self.gate = anyio.Event()
        self.is_opening = False

    async def __aenter__(self):
        self.is_opening = True
        try:
            await self.gate.wait()
        finally:
            if self.error is not None:
                raise self.error
        return await super().__aenter__()


class Refusing(Node):
    """A node that cannot be opened."""

    def __init__(self, error):
        super().__init__("app")
        self.error = error

    async def __aenter__(self):
        await lowlevel.checkpoint()
        raise self.error


# start and stop


async def test_start_and_stop(where):
    """start() opens the node. stop() ends everything, and may be called twice."""
    async with assert_nothing_left():
        host = Host(Node("app"), **where)
        assert repr(host) == "<Host of node 'app', new>"
        await host.start()
        assert repr(host) == "<Host of node 'app', running>"
        worker = await host.node.start_worker(anyio.sleep_forever)
        await host.stop()
        assert worker.state is CANCELLED
        assert host.node.is_finished
        assert repr(host) == "<Host of node 'app', ended>"
        await host.stop()
        await host.wait()


async def test_stop_with_grace(where):
    """stop(grace) lets work finish, and wait() returns when the host has ended."""
    host, gate, ended = Host(Node("app"), **where), anyio.Event(), []

    async def listen():
        await host.wait()
        ended.append(worker.state)

    async with anyio.create_task_group() as group:
        await host.start()
        group.start_soon(listen)
        worker = host.node.run_worker(gate.wait)
        group.start_soon(set_later, gate)
        await host.stop(grace=math.inf)
        assert worker.state is SUCCESS
    assert ended == [SUCCESS]


async def test_stop_after_grace(where):
    """Work that has not ended when the grace period is over is cancelled."""
    host = Host(Node("app"), **where)
    await host.start()
    worker = await host.node.start_worker(anyio.sleep_forever)
    await host.stop(grace=0.01)
    assert worker.state is CANCELLED


async def test_block(where):
    """``async with`` yields the node, and cancels what is left, as stop() does."""
    async with Host(Node("app"), **where) as app:
        worker = await app.start_worker(anyio.sleep_forever)
    assert worker.state is CANCELLED
    assert app.is_finished


async def test_failure_is_told_once(where, caplog):
    """A node that fails ends its host at once. The error is logged, and raised by one stop()."""
    host = Host(Node("app"), **where)
    await host.start()
    sibling = host.node.run_worker(anyio.sleep_forever)
    host.node.run_worker(fail(ValueError("burnt")), name="cook")
    await host.wait()
    assert sibling.state is CANCELLED
    assert [record.getMessage() for record in told(caplog)] == [
        "worker 'cook' failed, and with it node 'app'"
    ]
    with pytest.raises(ExceptionGroup) as caught:
        await host.stop()
    assert [str(error) for error in leaves(caught.value)] == ["burnt"]
    await host.stop()
    assert len(told(caplog)) == 1


@pytest.mark.parametrize("when", ["before it is opened", "open"])
async def test_cancelled_node(where, when):
    """node.cancel() ends the host without an error, whether the node is open yet or not."""
    host = Host(Node("app"), **where)
    if when == "open":
        await host.start()
        host.node.cancel()
    else:
        host.node.cancel()
        await host.start()
    await host.wait()
    await host.stop()


async def test_mistakes(where):
    """Each mistake gets an error that says what was wrong, and changes nothing."""
    with pytest.raises(WorkerError, match=r"Host\(\) takes a Node, not 3"):
        Host(3)
    with pytest.raises(WorkerError, match="task_group must be a task group of AnyIO or a nursery"):
        Host(Node("app"), task_group=3)
    host = Host(Node("app"), **where)
    with pytest.raises(WorkerError, match=r"'app' was not started, .* call start\(\) first"):
        await host.wait()
    await host.stop()  # nothing to stop
    await host.start()
    with pytest.raises(WorkerError, match="the host of node 'app' was started before; make a new"):
        await host.start()
    with pytest.raises(WorkerError, match="grace must be 0 seconds or more, not -1"):
        await host.stop(-1)
    with pytest.raises(WorkerError, match=r"'app/child' has a parent.*parent\.mount\(node\)"):
        Host(Node("child", parent=host.node))
    assert not host.node.is_finished
    await host.stop()
    with pytest.raises(WorkerError, match="was started before"):
        await host.start()


async def test_trio_needs_a_place(anyio_backend):
    """Under Trio, starting a host without a task group is an error that names the argument."""
    host = Host(Node("app"))
    if not is_trio(anyio_backend):
        async with host:
            return
    with pytest.raises(WorkerError, match=r"Host\(node, task_group=nursery\)"):
        await host.start()
    await host.stop()


async def test_nursery_of_trio(anyio_backend):
    """A Trio nursery can be the task group of a host."""
    if not is_trio(anyio_backend):
        pytest.skip("for Trio")
    import trio  # noqa: PLC0415 (absent where it is not tested)

    async with trio.open_nursery() as nursery, Host(Node("app"), task_group=nursery) as app:
        worker = app.run_worker(anyio.sleep_forever)
    assert worker.state is CANCELLED


async def test_cancelled_task_group():
    """Cancelling the task group ends the node, which does not make stop() fail."""
    async with anyio.create_task_group() as group:
        host = Host(Node("app"), task_group=group)
        await host.start()
        group.cancel_scope.cancel()
    assert host.node.is_finished
    await host.stop()


async def test_task_group_that_is_over():
    """A host whose task group is closed does not start, and there is nothing to wait for."""
    async with anyio.create_task_group() as group:
        pass
    host = Host(Node("app"), task_group=group)
    with pytest.raises(RuntimeError):
        await host.start()
    await host.wait()
    await host.stop()


# opening


@pytest.mark.parametrize(
    "error",
    [OSError("no room"), ExceptionGroup("all", [OSError("one")]), SystemExit(3)],
    ids=["error", "group", "exit"],
)
async def test_error_of_opening(where, error):
    """start() raises the error of opening the node unchanged, and only once."""
    host = Host(Refusing(error), **where)
    with pytest.raises(type(error)) as caught:
        await host.start()
    assert caught.value is error
    await host.stop()


@pytest.mark.parametrize("error", [None, ValueError("of the opening")])
async def test_cancelled_start(where, error):
    """A cancelled start() closes the node. An error from that takes precedence."""
    async with assert_nothing_left():
        host = Host(Slow(), **where)
        host.node.error = error
        caught = []

        async def start():
            try:
                await host.start()
            except BaseException as raised:
                caught.append(raised)
                raise

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(start)
                await until(lambda: host.node.is_opening)
                group.cancel_scope.cancel()
        except ExceptionGroup:
            assert error
        if error is None:
            assert isinstance(caught[0], anyio.get_cancelled_exc_class())
        else:
            assert caught == [error]
        await host.wait()
        await host.stop()


async def test_stop_while_starting(where):
    """A stop() during start() waits until the node is open, and closes it."""
    host = Host(Slow(), **where)
    async with anyio.create_task_group() as group:
        group.start_soon(host.start)
        await until(lambda: host.node.is_opening)
        group.start_soon(host.stop)
        await settle()
        host.node.gate.set()
    assert host.node.is_finished


async def test_stop_while_opening_fails(where):
    """start() raises the error of opening the node, even if stop() waits for it as well."""
    host, caught = Host(Slow(), **where), []
    host.node.error = ValueError("of the opening")

    async def start():
        with pytest.raises(ValueError, match="of the opening"):
            await host.start()
        caught.append("start")

    async with anyio.create_task_group() as group:
        group.start_soon(start)
        await until(lambda: host.node.is_opening)
        group.start_soon(host.stop)
        await settle()  # so that stop() waits for the opening
        host.node.gate.set()
    assert caught == ["start"]


async def test_stop_after_a_sudden_failure_of_opening(where):
    """A node that fails at once has ended, whether start() has returned or not."""

    class Sudden(Node):
        async def __aenter__(self):
            raise ValueError("of the opening")

    host, caught = Host(Sudden("app"), **where), []

    async def start():
        with pytest.raises(ValueError, match="of the opening"):
            await host.start()
        caught.append("start")

    async with anyio.create_task_group() as group:
        group.start_soon(start)
        await settle(2)
        await host.stop()  # on asyncio before start() returns
    assert caught == ["start"]


def tasks_of(host):
    """The tasks that run the block of a host's node on asyncio."""
    name = f"host of node {host.node.path!r}"
    return [task for task in asyncio.all_tasks() if task.get_name() == name]


@pytest.mark.parametrize("with_starter", [False, True])
@pytest.mark.parametrize("in_group", [False, True])
async def test_task_that_is_killed_before_its_first_step(in_group, with_starter, anyio_backend):
    """start() raises an error, and nothing waits for the dead task.

    The starter may be cancelled natively at the same time, as at the end of a program.
    """
    if is_trio(anyio_backend):
        pytest.skip("Trio has no native Task.cancel()")
    with suppress(asyncio.CancelledError):  # AnyIO cancels the group in its own way
        async with anyio.create_task_group() as group:
            host = Host(Node("app"), task_group=group if in_group else None)
            starting = asyncio.ensure_future(host.start())
            while not tasks_of(host):
                await lowlevel.checkpoint()
            tasks_of(host)[0].cancel()
            if with_starter:
                starting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await starting
            else:
                told = "'app' was cancelled before the node was open"
                with pytest.raises(WorkerError, match=told):
                    await starting
    await host.wait()
    if not with_starter:
        await host.stop()


async def test_task_that_is_killed(where, anyio_backend):
    """A native cancellation of the task ends the node and does not cancel stop()."""
    if is_trio(anyio_backend):
        pytest.skip("Trio has no native Task.cancel()")
    if where:
        pytest.skip("it is the task of somebody's group")
    host = Host(Node("app"), **where)
    await host.start()
    worker = await host.node.start_worker(anyio.sleep_forever)
    (task,) = tasks_of(host)
    task.cancel()
    await host.wait()
    assert worker.state is CANCELLED
    await host.stop()


# who stops


async def test_stop_by_a_worker(where):
    """A stop() by a worker returns at once, and the worker gets the same grace period as others."""
    host, gate = Host(Node("app"), **where), anyio.Event()

    async def work():
        with anyio.CancelScope(shield=True):
            await host.stop(grace=math.inf)
        await gate.wait()

    async with host as app:
        worker = await (await app.mount(Node("panel"))).start_worker(work)
        await settle()
        assert not worker.is_cancelled
        with pytest.raises(WorkerError, match="shutting down"):
            app.run_worker(work)
        gate.set()
        await host.wait()
        assert worker.state is SUCCESS


async def test_stop_by_a_worker_without_grace(where):
    """A worker that calls stop() without grace is cancelled; another stop() raises the errors."""
    host = Host(Node("app"), **where)

    async def work():
        await host.stop()
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("of the worker")

    await host.start()
    host.node.run_worker(work)
    await host.wait()
    with pytest.raises(ExceptionGroup):
        await host.stop()


@pytest.mark.parametrize("shield", [False, True])
async def test_stop_by_a_handler(where, shield):
    """A handler may stop the host of its node."""

    class Quit(Message):
        pass

    class App(Node):
        async def on_quit(self, event):
            with anyio.CancelScope(shield=shield):
                await host.stop()

    host = Host(App("app"), **where)
    await host.start()
    worker = await host.node.start_worker(anyio.sleep_forever)
    host.node.post_message(Quit())
    await host.wait()
    assert worker.state is CANCELLED
    await host.stop()


async def test_stop_by_a_thread(where):
    """The thread of a worker may stop the host."""
    host = Host(Node("app"), **where)

    def work():
        host.node.call_from_thread(host.stop, math.inf)

    async with host as app:
        worker = app.run_worker(work, thread=True)
        await host.wait()
    assert worker.state is SUCCESS


async def test_stop_by_many(where):
    """Concurrent calls all wait, the shortest grace period counts, and one of them raises."""
    host, ends = Host(Node("app"), **where), []

    async def stop(grace):
        try:
            await host.stop(grace)
            ends.append("returned")
        except ExceptionGroup:
            ends.append("raised")
        assert host.node.is_finished

    async def work():
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("of the worker")

    await host.start()
    await host.node.start_worker(work)
    async with anyio.create_task_group() as group:
        for grace in (math.inf, 0, math.inf):
            group.start_soon(stop, grace)
            await settle()
    assert sorted(ends) == ["raised", "returned", "returned"]


async def test_cancelled_stop(where):
    """Cancelling stop() ends the grace period and the wait for slow work. The node still ends."""
    host, gate = Host(Node("app"), **where), anyio.Event()
    await host.start()
    worker = await host.node.start_worker(slow_to_leave(gate))
    async with anyio.create_task_group() as group:
        group.start_soon(host.stop, math.inf)
        await settle()
        assert not worker.is_cancelled
        group.cancel_scope.cancel()
    assert worker.is_cancelled
    assert worker.is_running
    assert worker.cancel_reason == "the stop() of its host was cancelled"
    gate.set()
    await host.wait()
    await host.stop()


async def test_stop_that_is_cancelled_at_the_end(where):
    """An error that a cancelled stop() did not raise is raised by the next."""
    host = Host(Node("app"), **where)
    await host.start()
    host.node.run_worker(fail(ValueError("of the worker")))
    await host.wait()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await host.stop()
    assert scope.cancelled_caught
    with pytest.raises(ExceptionGroup):
        await host.stop()


@pytest.mark.parametrize("call", ["stop", "wait"])
def test_another_loop(backend, call):
    """A host belongs to the loop that it was started in, until it has ended."""
    told = []

    async def main():
        async with anyio.create_task_group() as group:
            host = Host(Node("app"), task_group=group)
            async with host:

                def elsewhere():
                    with pytest.raises(WorkerError) as caught:
                        anyio.run(getattr(host, call), **backend)
                    told.append(str(caught.value))

                await anyio.to_thread.run_sync(elsewhere)
                assert not host.node.is_finished
        return host

    host = anyio.run(main, **backend)
    assert told == [
        f"the host of node 'app' runs in another event loop; {call}() is for tasks of that one"
    ]
    anyio.run(getattr(host, call), **backend)


# the block


async def test_block_that_another_task_leaves(where):
    """A block may be left in another task, as fixtures are."""
    host = Host(Node("app"), **where)
    async with anyio.create_task_group() as group:
        group.start_soon(host.__aenter__)
        await until(lambda: "running" in repr(host))
    worker = await host.node.start_worker(anyio.sleep_forever)
    async with anyio.create_task_group() as group:
        group.start_soon(host.__aexit__, None, None, None)
    assert worker.state is CANCELLED


async def test_error_of_the_body(where):
    """An error of the body propagates unchanged, and the work has ended."""
    with pytest.raises(ValueError, match="of the body"):
        async with Host(Node("app"), **where) as app:
            worker = await app.start_worker(anyio.sleep_forever)
            raise ValueError("of the body")
    assert worker.state is CANCELLED


async def test_error_of_the_node(where):
    """An error of the node is raised by the host's block when the body has ended."""
    with pytest.raises(ExceptionGroup):
        async with Host(Node("app"), **where) as app:
            app.run_worker(fail(OSError("of the worker")))
            await settle()


async def test_errors_of_the_body_and_of_the_node(where):
    """The node's error is raised, with the body's as its context."""
    body = ValueError("of the body")
    with pytest.raises(ExceptionGroup) as caught:
        async with Host(Node("app"), **where) as app:
            app.run_worker(fail(OSError("of the worker")))
            await settle()
            raise body
    assert [str(error) for error in leaves(caught.value)] == ["of the worker"]
    assert caught.value.__context__ is body


async def test_exit_of_the_body(where, caplog):
    """A SystemExit of the body takes precedence over an error of the node, which is logged."""
    with pytest.raises(SystemExit):
        async with Host(Node("app"), **where) as app:
            app.run_worker(fail(OSError("of the worker")))
            await settle()
            raise SystemExit(3)
    assert len(told(caplog)) == 1


async def test_cancelled_block(where):
    """A cancelled block waits until all work has ended, like that of a node."""
    gate, app = anyio.Event(), None

    async def use():
        nonlocal app, worker
        async with Host(Node("app"), **where) as app:
            worker = await app.start_worker(slow_to_leave(gate))
            await anyio.sleep_forever()

    worker = None
    async with anyio.create_task_group() as group:
        group.start_soon(use)
        await until(lambda: worker is not None)
        group.cancel_scope.cancel()
        group.start_soon(set_shielded, gate)
    assert worker.state is CANCELLED
    assert app.is_finished


async def set_shielded(gate):
    with anyio.CancelScope(shield=True):
        await set_later(gate)


async def test_cancelled_block_of_a_failed_node(where):
    """A failure of the node takes precedence over the cancellation of the block."""
    with pytest.raises(ExceptionGroup), anyio.CancelScope() as scope:
        async with Host(Node("app"), **where) as app:
            app.run_worker(fail(OSError("of the worker")))
            await settle()
            scope.cancel()
            await lowlevel.checkpoint()


async def test_a_task_that_only_waits_is_kept(anyio_backend):
    """A host keeps a reference to its task, because asyncio does not."""
    if is_trio(anyio_backend):
        pytest.skip("Trio keeps its tasks")

    async def start():
        host = Host(Node("app"))
        await host.start()
        return weakref.ref(host)

    ref = await start()
    await settle()
    gc.collect()
    assert ref() is not None
    await ref().stop()
    await settle()
    assert ref() is None


async def test_host_that_has_ended_is_no_cycle(where):
    """A host is freed without the garbage collector once its error has been raised."""

    async def use():
        host = Host(Node("app"), **where)
        await host.start()
        host.node.run_worker(fail(ValueError("of the worker")))
        await host.wait()
        with pytest.raises(ExceptionGroup):
            await host.stop()
        return weakref.ref(host)

    with no_collection():
        ref = await use()
        await settle()
        assert ref() is None


# threads, runs and programs


def test_portal(anyio_backend):
    """Foreign threads start and stop a host through an AnyIO portal."""
    if is_trio(anyio_backend):
        pytest.skip("a portal has no task group to live in")
    with anyio.from_thread.start_blocking_portal() as portal:
        host = Host(Node("app"))
        portal.call(host.start)
        worker = host.node.run_worker(anyio.sleep_forever)
        portal.call(host.stop)
    assert worker.state is CANCELLED


def test_runs_that_are_over(anyio_backend):
    """When the loop's run ends, the node ends, too. A stop() in the next run has nothing to do."""
    if is_trio(anyio_backend):
        pytest.skip("Trio has no tasks that outlive a call")
    host = Host(Node("app"))

    async def start():
        await host.start()
        return await host.node.start_worker(anyio.sleep_forever)

    worker = asyncio.run(start())
    assert worker.state is CANCELLED
    asyncio.run(host.stop())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of 3.12")
def test_eager_tasks(anyio_backend):
    """start() does not deadlock with a task that starts eagerly within it."""
    if is_trio(anyio_backend):
        pytest.skip("Trio has no eager tasks")

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with Host(Node("app")) as app:
            worker = await app.start_worker(anyio.sleep_forever)
        assert worker.state is CANCELLED
        with pytest.raises(OSError, match="at once"):
            await Host(Sudden("app")).start()

    class Sudden(Node):
        async def __aenter__(self):
            raise OSError("at once")

    asyncio.run(main())


PROGRAM = """
import asyncio, sys
from creche import Node
from creche.hosting import Host

async def work():
    {work}

async def main():
    asyncio.get_running_loop().slow_callback_duration = 3600  # slow machines are none of its affair
    host = Host(Node("app"))
    await host.start()
    host.node.run_worker(work)
    for _ in range(9):
        await asyncio.sleep(0)
    {main}

asyncio.run(main(), debug=True)
print("the end")
"""
FAILS = 'raise ValueError("of the worker")'
LOGGED = """worker 'work' failed, and with it node 'app'
Traceback (most recent call last):
  File "<string>", line 7, in work
ValueError: of the worker
in worker 'work' of group 'default' on node 'app'
"""


@pytest.mark.parametrize(
    ("work", "main", "status", "said"),
    [
        (FAILS, "", 0, LOGGED),
        ("await asyncio.sleep(3600)", "", 0, ""),
        ("sys.exit(3)", "await asyncio.sleep(3600)", 3, ""),
        (
            "[await asyncio.sleep(0) for _ in range(50)]; sys.exit(3)",
            "await host.stop(grace=60)",
            3,
            "",
        ),
        ("await asyncio.sleep(3600)", "raise SystemExit(4)", 4, ""),
    ],
)
def test_program_without_a_stop(work, main, status, said):
    """A program ends with the right status, and reports the error of a worker once."""
    done = run_python(PROGRAM.format(work=work, main=main))
    assert done.returncode == status, done
    # From Python 3.13 on, the traceback contains the source line, too.
    assert done.stderr.replace(f"    {FAILS}\n", "") == said
    assert done.stdout == ("" if status else "the end\n")


def test_public_names_only():
    """The module uses only public names of the library."""
    imported = set()
    for node in ast.walk(ast.parse(inspect.getsource(hosting))):
        if isinstance(node, ast.Attribute) and re.match("_(?!_init__$)", node.attr):
            assert ast.unparse(node.value) == "self", ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            imported.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
    assert {name for name in imported if "._" in name} == set()
    assert "creche.Node" in imported


# signals


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers():
    """Install foreign signal handlers, which have to be restored."""
    came = []
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def handle(number, frame):
        came.append(number)

    for number in SIGNALS:
        signal.signal(number, handle)
    yield came
    for number in SIGNALS:
        assert signal.getsignal(number) is handle
        signal.signal(number, before[number])


class Nest:
    """A node and ``stop_on_signals()``, nested in either order."""

    def __init__(self, outer, grace, node=None):
        app = self.app = node or Node("app")
        signals = stop_on_signals(app, grace)
        self.blocks = (signals, app) if outer == "signals" else (app, signals)

    async def __aenter__(self):
        await self.blocks[0].__aenter__()
        await self.blocks[1].__aenter__()
        return self.app

    async def __aexit__(self, *error):
        try:
            if await self.blocks[1].__aexit__(*error):
                error = (None, None, None)
        except BaseException as raised:
            error = (type(raised), raised, raised.__traceback__)
            if not await self.blocks[0].__aexit__(*error):
                raise
            return True
        return await self.blocks[0].__aexit__(*error)


@pytest.fixture(params=["signals", "node"])
def outer(request):
    return request.param


@pytest.mark.parametrize("number", SIGNALS)
async def test_signal(outer, number, handlers):
    """The work gets its grace period, then the body is cancelled, and SystemExit is raised."""
    gate, ends = anyio.Event(), []

    async def work():
        await gate.wait()
        ends.append("work")

    with pytest.raises(SignalReceived) as caught:
        async with Nest(outer, math.inf) as app:
            try:
                app.run_worker(work)
                signal.raise_signal(number)
                await set_later(gate)
                await anyio.sleep_forever()
            finally:
                ends.append("body")
    assert ends == ["work", "body"]
    assert caught.value.code == 128 + number
    assert caught.value.signal is number
    assert isinstance(caught.value, SystemExit)
    assert app.is_finished
    assert handlers == []


async def test_grace_that_is_over(outer):
    """Work that has not ended when the grace period is over is cancelled."""
    with pytest.raises(SignalReceived):
        async with Nest(outer, 0.01) as app:
            worker = await app.start_worker(anyio.sleep_forever)
            signal.raise_signal(signal.SIGTERM)
            await anyio.sleep_forever()
    assert worker.cancel_reason == "shut down"


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at_once", [False, True])
async def test_second_signal(outer, at_once, second):
    """A second signal ends the grace period, even at once. The exit status is that of the first."""
    with pytest.raises(SignalReceived) as caught:
        async with Nest(outer, math.inf) as app:
            worker = await app.start_worker(anyio.sleep_forever)
            signal.raise_signal(signal.SIGTERM)
            if not at_once:
                await settle()
                assert not worker.is_cancelled
            signal.raise_signal(second)
            await anyio.sleep_forever()
    assert worker.state is CANCELLED
    assert worker.cancel_reason == f"told by {second.name}, the second signal"
    assert caught.value.signal is signal.SIGTERM


async def test_third_signal(outer, handlers):
    """A third signal goes to the previous handler: stuck work cannot block the program."""
    gate = anyio.Event()
    with pytest.raises(SignalReceived):
        async with Nest(outer, math.inf) as app:
            await app.start_worker(slow_to_leave(gate))
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)
            assert handlers == [signal.SIGTERM]
            gate.set()
            await anyio.sleep_forever()


async def test_no_signal(outer):
    """Without a signal, stop_on_signals() changes nothing."""
    async with Nest(outer, 0) as app:
        worker = app.run_worker(lowlevel.checkpoint)
    assert worker.state is SUCCESS
    with pytest.raises(ValueError, match="of the body"):
        async with stop_on_signals(Node("app")):
            raise ValueError("of the body")


async def test_cancellation_from_outside():
    """A cancellation from outside propagates."""
    with anyio.CancelScope() as scope:
        async with stop_on_signals(Node("app")):
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    with anyio.CancelScope() as scope:
        async with stop_on_signals(Node("app")):
            scope.cancel()
    assert scope.cancel_called


async def test_body_that_waits_for_its_worker(outer):
    """A body that waits for a worker which the shutdown cancels does not fail."""
    with pytest.raises(SignalReceived):
        async with Nest(outer, 0) as app:
            worker = await app.start_worker(anyio.sleep_forever)
            signal.raise_signal(signal.SIGTERM)
            await worker


async def test_body_that_starts_work(outer, caplog):
    """A body that is refused work during the shutdown does not fail, and that is logged."""
    with pytest.raises(SignalReceived):
        async with Nest(outer, math.inf) as app:
            signal.raise_signal(signal.SIGTERM)
            while True:
                app.run_worker(lowlevel.checkpoint)
                await lowlevel.checkpoint()
    (record,) = told(caplog)
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(
        "while node 'app' was shut down by a signal: cannot start work on node 'app', which is "
    )


async def test_error_goes_first(outer):
    """An error of the body or of a worker is raised in place of the exit."""
    with pytest.raises((ExceptionGroup, ValueError)) as caught:
        async with Nest(outer, math.inf):
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("of the body")
    assert [str(error) for error in leaves(caught.value)] == ["of the body"]
    with pytest.raises(ExceptionGroup):
        async with Nest(outer, math.inf) as app:
            worker = app.run_worker(fail(ValueError("of the worker")))
            signal.raise_signal(signal.SIGTERM)
            await worker


async def test_body_that_ends_meanwhile(outer):
    """The end of the body does not shorten the grace period of the work."""
    gate = anyio.Event()
    with pytest.raises(SignalReceived):
        async with Nest(outer, math.inf) as app:
            worker = app.run_worker(gate.wait)
            app.run_worker(set_later(gate))
            signal.raise_signal(signal.SIGTERM)
    assert worker.state is SUCCESS


async def test_signal_at_the_end():
    """A signal that comes too late to stop anything still decides the exit status."""

    class Late(Node):
        async def __aexit__(self, *error):
            await super().__aexit__(*error)
            signal.raise_signal(signal.SIGTERM)

    app = Late("app")
    with pytest.raises(SignalReceived):
        async with stop_on_signals(app), app:
            pass


async def test_signal_before_the_node_is_open():
    """After an early signal, the node is not opened, or ends at once."""
    app, reached = Node("app"), []
    with pytest.raises(SignalReceived):
        async with stop_on_signals(app):
            signal.raise_signal(signal.SIGTERM)
            with suppress(anyio.get_cancelled_exc_class()):
                await anyio.sleep_forever()
            async with app:
                await anyio.sleep_forever()
            reached.append(True)
    assert app.is_finished


async def test_signal_and_a_host(where):
    """stop_on_signals() works with the node of a host."""
    host = Host(Node("app"), **where)
    await host.start()
    worker = await host.node.start_worker(anyio.sleep_forever)
    with pytest.raises(SignalReceived):
        async with stop_on_signals(host.node, 0):
            signal.raise_signal(signal.SIGTERM)
            await host.wait()
    assert worker.state is CANCELLED
    await host.stop()


async def test_mistakes_with_signals(backend):
    """Each mistake gets an error that says what was wrong. The signals are handled as before."""
    with pytest.raises(WorkerError, match=r"stop_on_signals\(\) takes a Node, not 3"):
        async with stop_on_signals(3):
            pass
    with pytest.raises(WorkerError, match="grace must be 0 seconds or more, not nan"):
        async with stop_on_signals(Node("app"), math.nan):
            pass

    async def main():
        async with stop_on_signals(Node("app")):
            pass

    def elsewhere():
        with pytest.raises(WorkerError, match="is for the main thread"):
            anyio.run(main, **backend)

    await anyio.to_thread.run_sync(elsewhere)


async def test_handler_that_is_not_of_python(handlers, monkeypatch):
    """A handler that Python cannot restore is replaced by the system's default."""
    ours = {number: signal.getsignal(number) for number in SIGNALS}
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda number: None)
        async with stop_on_signals(Node("app")):
            pass
    assert {signal.getsignal(number) for number in SIGNALS} == {signal.SIG_DFL}
    for number in SIGNALS:
        signal.signal(number, ours[number])


DAEMON = """
import sys
import anyio
from creche import Node
from creche.hosting import stop_on_signals

async def serve():
    try:
        print("ready", flush=True)
        await anyio.sleep_forever()
    finally:
        print("tidied up", flush=True)

async def main():
    app = Node("app")
    async with stop_on_signals(app, grace=0), app:
        app.run_worker(serve)
        await anyio.sleep_forever()

anyio.run(main, backend=sys.argv[1], backend_options=eval(sys.argv[2]))
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_program_that_is_sent_a_signal(anyio_backend, number):
    """A daemon whose loop sleeps gets the signal, cleans up and has the right status."""
    name, options = anyio_backend
    command = [sys.executable, "-W", "error", "-c", DAEMON, name, repr(options)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        said, errors = process.communicate(timeout=60)
    assert (process.returncode, said, errors) == (128 + number, "tidied up\n", "")
