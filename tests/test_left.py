"""Blocks left in another task, in the wrong order or never: no node outlives its program."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import unittest
from contextlib import AsyncExitStack

import anyio
import pytest

from creche import DeadlockError, Message, Node, Worker, WorkerError
from creche._core.life import Life
from helpers import (
    CANCELLED,
    RENDEZVOUS,
    ExceptionGroup,
    Meeting,
    fail,
    leaves,
    run_python,
    settle,
    until,
)


def program(text, *arguments, status=1):
    """Run a program to its end, and return what it writes to standard error."""
    done = run_python(text, *arguments)
    assert done.returncode == status, done
    return done.stderr


START = """
import sys
import anyio
from creche import Node

async def fail():
    raise ValueError("of the worker")

def sleep():
    gate.wait(0.05)

import threading
gate = threading.Event()
async def main():
    node = await Node("app").__aenter__()
    what = sys.argv[2]
    if what == "work":
        node.run_worker(anyio.sleep_forever)
    elif what == "queued":
        node.group("one", limit=1).run_worker(anyio.sleep_forever)
        node.group("one").run_worker(anyio.sleep_forever)
    elif what == "thread":
        await node.start_worker(sleep, thread=True)
    elif what == "failed":
        node.run_worker(fail, exit_on_error=False)
    elif what == "mounted":
        (await node.mount(Node("panel"))).run_worker(anyio.sleep_forever)
    elif what == "child":
        child = await Node("child", parent=node).__aenter__()
        child.run_worker(anyio.sleep_forever)
    elif what == "handler":
        node.on_worker_state_changed = lambda event: anyio.sleep_forever()
        node._creche_audience.heed_logger()
        node.run_worker(anyio.lowlevel.checkpoint)
    for _ in range(5):
        await anyio.lowlevel.checkpoint()
    raise OSError("the error of the program")

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize(
    "what", ["nothing", "work", "queued", "thread", "failed", "mounted", "child", "handler"]
)
def test_a_start_without_a_stop_ends_with_its_program(anyio_backend, what):
    """A node that is entered and never left neither keeps the program alive nor hides its error."""
    name, options = anyio_backend
    if options.get("use_uvloop"):
        pytest.skip("the same on asyncio's own loop")
    told = program(START, name, what)
    # Trio itself raises TrioInternalError if its main task leaves a nursery open, unless everything
    # in the nursery ends within a turn or two.
    assert "OSError: the error of the program" in told or (
        name == "trio" and "TrioInternalError" in told
    )


BACKGROUND = """
import asyncio
from creche import Node

async def background():
    await Node("app").__aenter__()
    await asyncio.sleep(3600)

async def main():
    task = asyncio.create_task(background())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    raise OSError("the error of the program")

asyncio.run(main())
"""


def test_a_node_of_a_task_that_ends_with_the_program():
    """A node whose host task is cancelled as the program ends does not keep the program alive."""
    assert "OSError: the error of the program" in program(BACKGROUND)


GENERATOR = """
import asyncio
from creche import Node

async def rows():
    async with Node("app") as app:
        app.run_worker(asyncio.sleep(3600))
        yield 1

async def main():
    async for _ in rows():
        break
    raise OSError("the error of the program")

asyncio.run(main())
"""


def test_a_generator_that_is_broken_off():
    """A node in an async generator that is abandoned half-way does not keep the program alive."""
    assert "OSError: the error of the program" in program(GENERATOR)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.Runner is of 3.11")
@pytest.mark.parametrize("fails", [False, True])
def test_a_fixture_of_two_runs(fails):
    """A node that is entered in one run of a Runner and left in another ends with an error."""
    node, workers = Node("app"), []

    async def use():
        workers.append(node.run_worker(anyio.sleep_forever))
        if fails:
            workers.append(node.run_worker(fail(ValueError("of a worker"))))
            await settle()

    with asyncio.Runner() as runner:
        runner.run(node.__aenter__())
        runner.run(use())
        with pytest.raises((WorkerError, ExceptionGroup)) as caught:
            runner.run(node.__aexit__(None, None, None))
        assert node.is_finished
        assert workers[0].state is CANCELLED
    told = [str(each) for each in leaves(caught.value)]
    assert "is left in another task than the one that entered it" in told[-1]
    assert told[:-1] == (["of a worker"] if fails else [])


def test_a_test_case_of_the_standard_library():
    """A node that asyncSetUp() enters and asyncTearDown() does not leave ends with the test."""
    seen = []

    class Case(unittest.IsolatedAsyncioTestCase):
        async def asyncSetUp(self):
            self.app = await Node("app").__aenter__()

        async def test(self):
            seen.append(self.app.run_worker(anyio.sleep_forever))
            await settle()

    result = unittest.TestResult()
    Case("test").run(result)
    assert result.wasSuccessful(), result.errors
    assert seen[0].state is CANCELLED


async def test_left_in_another_task_the_work_is_waited_for():
    """Leaving in another task waits for the work, threads included, and spares the host task."""
    meeting, entered, go = Meeting(), anyio.Event(), anyio.Event()
    app = Node("app")

    async def host():
        await app.__aenter__()
        entered.set()
        await go.wait()  # as if it were in another block by now

    async def let_thread_go():
        await meeting.until_arrived()
        while not worker.is_cancelled:
            await anyio.lowlevel.checkpoint()
        meeting.go.set()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(host)
            await entered.wait()
            worker = await app.start_worker(meeting, thread=True)
            group.start_soon(let_thread_go)
            with pytest.raises(WorkerError, match="left in another task"):
                await app.__aexit__(None, None, None)
            assert worker.state is CANCELLED
            assert app.is_finished
            assert not go.is_set()
            go.set()
    except ExceptionGroup as group:  # what the backend says to a host that left a block open
        assert [type(each) for each in leaves(group)] == [RuntimeError]


async def test_left_in_another_task_the_work_is_cancelled():
    """Each worker is cancelled by itself, since the node's scope would end the host task too."""
    entered, go, way_out = anyio.Event(), anyio.Event(), anyio.Event()
    app, ends = Node("app"), []

    async def host():
        await app.__aenter__()
        entered.set()
        await go.wait()
        ends.append("host")

    async def work():
        try:
            await way_out.wait()
        except anyio.get_cancelled_exc_class():
            ends.append("work")
            raise

    async def let_out():
        """End the work if nothing cancels it, so that the test ends."""
        await until(lambda: worker.is_cancelled)
        await settle()
        way_out.set()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(host)
            await entered.wait()
            worker = app.run_worker(work)
            await settle()
            group.start_soon(let_out)
            with pytest.raises(WorkerError, match="left in another task"):
                await app.__aexit__(None, None, None)
            assert worker.state is CANCELLED
            go.set()
    except ExceptionGroup as group:  # what the backend says to a host that left a block open
        assert [type(each) for each in leaves(group)] == [RuntimeError]
    assert ends == ["work", "host"]


async def test_left_in_another_task_that_has_entered_a_child():
    """Nothing else could leave the child, so it and what was entered after it are closed first."""
    entered, go = anyio.Event(), anyio.Event()
    app = Node("app")
    before, page, other = Node("before"), Node("page", parent=app), Node("other")

    async def host():
        await app.__aenter__()
        entered.set()
        await go.wait()

    async def leave():
        async with before:
            worker = before.run_worker(anyio.sleep_forever)
            async with page, other, Node("pane", parent=page) as pane:
                workers = [node.run_worker(anyio.sleep_forever) for node in (page, other, pane)]
                with pytest.raises(WorkerError, match="left in another task"):
                    await app.__aexit__(None, None, None)
                nodes = (app, page, other, pane)
                assert all(node.is_finished for node in nodes)
                assert {worker.state for worker in workers} == {CANCELLED}
            assert not worker.is_cancelled
            assert not before.is_finished
            worker.cancel()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(host)
            await entered.wait()
            with anyio.fail_after(RENDEZVOUS):
                await leave()
            go.set()
    except ExceptionGroup as group:  # what the backend says to a host that left a block open
        assert [type(each) for each in leaves(group)] == [RuntimeError]


async def test_left_in_another_task_its_mounted_nodes_leave():
    """Leaving in another task also closes mounted nodes, which have no block of their own."""
    entered, go = anyio.Event(), anyio.Event()
    app = Node("app")

    async def host():
        await app.__aenter__()
        entered.set()
        await go.wait()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(host)
            await entered.wait()
            panel = await app.mount(Node("panel"))
            with (
                anyio.fail_after(RENDEZVOUS),
                pytest.raises(WorkerError, match="left in another task"),
            ):
                await app.__aexit__(None, None, None)
            assert panel.is_finished
            assert app.is_finished
            go.set()
    except ExceptionGroup as group:  # what the backend says to a host that left a block open
        assert [type(each) for each in leaves(group)] == [RuntimeError]


@pytest.mark.parametrize("error", [None, ValueError("of the body")])
async def test_parent_left_before_its_child(error):
    """DeadlockError names the child. Both nodes are closed, and leaving the child again is safe."""
    app = Node("app")
    page = Node("page", parent=app)
    await app.__aenter__()
    await page.__aenter__()
    workers = [node.run_worker(anyio.sleep_forever) for node in (app, page)]
    workers[0].cancel()
    with pytest.raises((DeadlockError, ExceptionGroup)) as caught:
        await app.__aexit__(type(error), error, None)
    assert page.is_finished
    assert app.is_finished
    assert [worker.state for worker in workers] == [CANCELLED, CANCELLED]
    *others, told = leaves(caught.value)
    assert isinstance(told, DeadlockError)
    assert "node 'app' is left before node 'app/page'" in str(told)
    assert others == ([error] if error else [])
    assert not await page.__aexit__(None, None, None)
    await settle()


async def test_parent_left_before_its_child_within_a_scope():
    """A parent left before its child raises DeadlockError within a surrounding cancel scope too."""
    app = Node("app")
    page = Node("page", parent=app)
    await app.__aenter__()
    await page.__aenter__()
    with anyio.move_on_after(RENDEZVOUS) as scope:
        with pytest.raises(DeadlockError, match="left before node 'app/page'"):
            await app.__aexit__(None, None, None)
    assert not scope.cancelled_caught
    await settle()


async def test_roots_left_in_the_wrong_order():
    """Leaving roots in the wrong order is an error too, though neither waits for the other."""
    first, second = Node("first"), Node("second")
    await first.__aenter__()
    await second.__aenter__()
    with pytest.raises(WorkerError, match="node 'first' is left before node 'second'") as caught:
        await first.__aexit__(None, None, None)
    assert not isinstance(caught.value, DeadlockError)
    assert second.is_finished


async def test_left_without_having_been_entered():
    """Leaving a node that was not entered raises WorkerError."""
    with pytest.raises(WorkerError, match="left without having been entered"):
        await Node("app").__aexit__(None, None, None)


async def test_a_child_whose_task_has_ended_without_leaving_it(anyio_backend):
    """The parent's block does not wait forever for a child that no task can leave any more."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio itself fails the task that leaves a nursery open")
    children = []

    async def forget(app):
        page = await Node("page", parent=app).__aenter__()
        children.append(page.run_worker(anyio.sleep_forever))

    async with Node("app") as app:
        await asyncio.create_task(forget(app))
    assert children[0].state is CANCELLED
    assert children[0].node.is_finished


async def test_a_child_whose_task_ends_while_its_parent_is_left(anyio_backend):
    """The parent's block ends even if the child's task ends while the parent already waits."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio itself fails the task that leaves a nursery open")
    entered = asyncio.Event()

    async def forget(app):
        await Node("page", parent=app).__aenter__()
        entered.set()
        await settle()

    async with Node("app") as app:
        task = asyncio.create_task(forget(app))
        await entered.wait()
    await task
    assert app.is_finished


async def test_a_child_is_watched_once(monkeypatch):
    """A waiting parent watches its child's host task once, however often the parent wakes."""
    entered, go, asked = anyio.Event(), anyio.Event(), []

    async def host(app):
        async with Node("page", parent=app) as page:
            kind = type(page._creche_nursery.watcher.host)
            monkeypatch.setattr(kind, "when_done", lambda self, call: asked.append(call))
            entered.set()
            await go.wait()

    async with anyio.create_task_group() as group, Node("app") as app:
        group.start_soon(host, app)
        await entered.wait()
        app.run_worker(settle)  # its end wakes the parent
        group.start_soon(until_then, lambda: not app.workers, go.set)
    assert len(asked) == 1


async def until_then(condition, call):
    await until(condition)
    await settle()
    call()


class Page(Node):
    async def on_note(self, event):
        await settle(2)


class Note(Message, namespace=""):
    pass


async def test_a_deserted_child_that_two_find(anyio_backend, caplog):
    """A deserted child that both its watcher and its parent find ends, and is logged once."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio itself fails the task that leaves a nursery open")
    async with Node("app") as app:
        page = Page("page", parent=app)
        await asyncio.create_task(page.__aenter__())
        worker = page.run_worker(anyio.sleep_forever)
        await settle()
        for task in asyncio.all_tasks():
            if task.get_name() == "watcher of node 'app/page'":
                task.cancel()
        page.post_message(Note())  # the watcher checks whether the handler's task starts
        await asyncio.sleep(0)
    assert page.is_finished
    assert worker.state is CANCELLED
    told = [each.getMessage() for each in caplog.records if each.name == "creche"]
    assert told == ["node 'app/page' was entered and never left; its work is cancelled"]


async def test_a_child_that_is_left_after_its_parent_has_closed_it(anyio_backend):
    """A task that leaves a child after the parent has closed it gets the child's failures, once."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio itself fails the task that leaves a nursery open")
    error = ValueError("of the child")
    async with Node("app") as app:
        page = Node("page", parent=app)
        await asyncio.create_task(page.__aenter__())
        worker = page.run_worker(fail(error))
        await until(lambda: worker.is_finished)
    assert page.is_finished
    with pytest.raises(ExceptionGroup) as caught:
        await page.__aexit__(None, None, None)
    assert leaves(caught.value) == [error]
    assert not await page.__aexit__(None, None, None)


async def test_a_deserted_node_that_is_left_as_its_watcher_finds_it(anyio_backend, caplog):
    """The watcher waits for the node's tasks, then finds the node closed and logs nothing."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio itself fails the task that leaves a nursery open")
    app = Node("app")
    await asyncio.create_task(app.__aenter__())
    worker = await app.start_worker(anyio.sleep_forever)
    await settle()
    (watcher,) = [
        each for each in asyncio.all_tasks() if each.get_name() == "watcher of node 'app'"
    ]
    watcher.cancel()
    await worker.join()
    assert not app.is_finished
    with pytest.raises(WorkerError, match="left in another task"):
        await app.__aexit__(None, None, None)
    assert app.is_finished
    await settle()
    assert not [each for each in caplog.records if each.name == "creche"]


async def test_a_native_cancel_of_the_watcher_is_not_obeyed(anyio_backend):
    """A stray Task.cancel() of the watcher ends nothing as long as a task can leave the block."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio has no native cancellation of a task")
    async with Node("app") as app:
        await settle()
        worker = app.run_worker(settle)
        for task in asyncio.all_tasks():
            if task.get_name() == "watcher of node 'app'":
                task.cancel()
        await worker
        await app.run_worker(settle)
        await settle()
    gc.collect()


class Broken(Node):
    """A node that fails to enter after its nursery has been opened."""


@pytest.fixture
def half_way(monkeypatch):
    """Make entering a Broken node fail at the last step."""
    go_on = Life._go_on

    def fail_half_way(self):
        go_on(self)
        if isinstance(self._node, Broken):
            raise ValueError("half-way")

    monkeypatch.setattr(Life, "_go_on", fail_half_way)


@pytest.mark.usefixtures("half_way")
async def test_entering_that_fails_half_way_leaves_nothing():
    """The error propagates bare, the parent can be left, and the cancel scopes are in order."""
    async with Node("app") as app:
        broken = Broken("broken", parent=app)
        waiting = broken.run_worker(anyio.sleep_forever, start=False)
        with pytest.raises(ValueError, match="half-way"):
            await broken.__aenter__()
        assert broken.is_finished
        assert waiting.state is CANCELLED
        assert app.children == ()
        with pytest.raises(ValueError, match="half-way"):
            await app.mount(Broken("mounted"))
        assert await app.run_worker(anyio.lowlevel.checkpoint) is None


def test_entering_without_an_event_loop():
    """Entering without an event loop closes the node and cancels the work it was given."""
    app = Node("app")
    waiting = app.run_worker(anyio.sleep_forever, start=False)
    entering = app.__aenter__()
    with pytest.raises(anyio.NoEventLoopError):
        entering.send(None)
    assert app.is_finished
    assert waiting.state is CANCELLED


@pytest.mark.parametrize("made", range(1, 4))
async def test_entering_where_a_task_cannot_be_made(anyio_backend, made):
    """A task factory that fails as a node is entered or mounted leaves nothing half done."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio has no task factories")
    loop = asyncio.get_running_loop()
    count = 0

    def factory(loop, coro, **options):
        nonlocal count
        count += 1
        if count == made:
            coro.close()
            raise RuntimeError("no more tasks")
        return asyncio.Task(coro, loop=loop, **options)

    loop.set_task_factory(factory)
    try:
        with pytest.raises((RuntimeError, ExceptionGroup)) as caught:
            async with Node("app") as app:
                await app.mount(Node("panel"))
        assert [str(each) for each in leaves(caught.value)] == ["no more tasks"]
    finally:
        loop.set_task_factory(None)
    async with Node("app") as app:
        assert await app.run_worker(anyio.lowlevel.checkpoint) is None


async def test_a_property_that_fails_as_a_node_is_entered():
    """User code that can fail runs before the task group is entered, so a retry succeeds."""

    class Odd(Node):
        is_odd = False

        @property
        def on_worker_state_changed(self):
            if self.is_odd:
                raise ValueError("odd")

    odd = Odd("odd")
    odd.is_odd = True
    with pytest.raises(ValueError, match="odd"):
        await odd.__aenter__()
    odd.is_odd = False
    async with odd:
        pass


async def test_trees_of_a_thousand_levels():
    """A chain of a thousand nodes opens, has paths, is cancelled and closes without recursion."""
    depth = 1000
    nodes = [Node("0")]
    for n in range(1, depth):
        nodes.append(Node(str(n), parent=nodes[-1]))
    workers = []
    async with AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node)
        workers.append(nodes[-1].run_worker(anyio.sleep_forever))
        assert nodes[-1].path.count("/") == depth - 1
        assert nodes[-1].root is nodes[0]
        assert len(nodes[0].workers) == 1
        nodes[0].cancel("all")
        await anyio.sleep_forever()
    assert workers[0].state is CANCELLED
    unopened = [Node("0")]
    async with unopened[0]:
        for n in range(1, depth):
            unopened.append(Node(str(n), parent=unopened[-1]))
        workers.append(unopened[-1].run_worker(anyio.sleep_forever, start=False))
    assert workers[-1].state is CANCELLED
    assert all(node.is_finished for node in unopened)


async def test_a_thread_that_starts_work_as_the_node_is_left():
    """Work that a thread starts as the node is left is refused in that thread."""
    refused, threads = [], []

    def hammer(app):
        while True:
            try:
                app.run_worker(anyio.lowlevel.checkpoint)
            except WorkerError as error:
                refused.append(str(error))
                return

    async def read(app, ready):
        async with app.subscribe(Worker.StateChanged, tree=True) as events:
            ready.set()
            async for _ in events:
                pass

    for _ in range(20):
        async with anyio.create_task_group() as group:
            app, ready = Node("app"), anyio.Event()
            group.start_soon(read, app, ready)
            await ready.wait()
            async with app:
                threads.append(threading.Thread(target=hammer, args=(app,)))
                threads[-1].start()
                await settle(3)
                app.cancel()
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join)
    assert len(refused) == 20


async def test_a_child_that_is_entered_as_its_parent_is_left():
    """A child entered as its parent is left either holds the parent open or is refused."""
    for turns in range(4):
        for _ in range(10):
            pages = []

            async def enter(app, pages=pages):
                try:
                    async with Node("page", parent=app) as page:
                        pages.append(page)
                        page.run_worker(settle)
                except WorkerError as error:
                    assert "its parent is closed" in str(error)

            async with anyio.create_task_group() as group:
                async with Node("app") as app:
                    group.start_soon(enter, app)
                    await settle(turns)
                assert all(page.is_finished for page in pages)
