"""Attached nodes: they accept work at once, and open in the background."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from concurrent.futures import Future

import anyio
import pytest
from anyio import lowlevel

from creche import Message, Node, WorkerCancelled, WorkerError, WorkerFailed
from creche._core.calls import Caller, begin_call
from creche._core.life import Life
from helpers import (
    CANCELLED,
    PENDING,
    RENDEZVOUS,
    RUNNING,
    SUCCESS,
    ExceptionGroup,
    Listener,
    fail,
    leaves,
    settle,
    slow_to_leave,
    told,
    until,
)


class Late(Node):
    """A node whose ``__aenter__()`` fails after it has opened."""

    async def __aenter__(self):
        await super().__aenter__()
        raise ValueError("after all")


class Early(Node):
    """A node whose ``__aenter__()`` fails before it has opened."""

    async def __aenter__(self):
        raise ValueError("no entry")


async def test_work_waits_until_the_node_is_open():
    """Work for a node that is not open takes its slot at once. It starts when the node opens."""
    entered = []
    gate = anyio.Event()

    async def work(number):
        entered.append((number, panel.is_ready))
        await gate.wait()
        return number

    async with Node("app") as app:
        panel = app.attach(Listener("panel"))
        group = panel.group("one", limit=1)
        free = panel.run_worker(lambda: work(1))
        first, second = (group.run_worker(lambda n=n: work(n)) for n in (2, 3))
        assert (group.running, group.queued, second.is_queued) == (1, 1, True)
        assert {each.state for each in app.workers} == {PENDING}
        assert list(app.workers) == [free, first, second]
        assert (panel.is_ready, app.snapshot().children[0].life) == (False, "being opened")
        assert app.children == (panel,)
        assert free.created_at is not None
        await until(lambda: first.is_running)
        assert entered == [(1, True), (2, True)]
        gate.set()
        assert [await each.wait() for each in (free, first, second)] == [1, 2, 3]
        await settle()
        assert panel.told_of(second) == [PENDING, RUNNING, SUCCESS]


async def test_nodes_nest_at_once():
    """Nodes can be attached to nodes that are not open yet, and are in the tree at once."""
    async with Node("app") as app:
        nodes = [app]
        for level in range(5):
            nodes.append(nodes[-1].attach(Node(f"n{level}")))
        workers = [node.run_worker(settle, exclusive=True) for node in nodes]
        assert nodes[-1].path == "app/n0/n1/n2/n3/n4"
        assert nodes[2].children == (nodes[3],)
        assert list(app.workers) == workers
        with anyio.fail_after(RENDEZVOUS):
            await app.workers.wait_for_complete()
        assert {worker.state for worker in workers} == {SUCCESS}
    assert all(node.is_finished for node in nodes)


async def test_a_block_below_a_node_that_is_being_opened():
    """A node with its own ``async with`` can be opened below a node that is not open yet."""
    async with Node("app") as app:
        panel = app.attach(Node("panel"))
        async with Node("page", parent=panel) as page:
            assert page.path == "app/panel/page"
            worker = page.run_worker(settle)
        assert worker.state is SUCCESS
        assert not panel.is_finished


@pytest.mark.parametrize("depth", [1, 3])
async def test_the_parent_is_left_at_once(depth):
    """If the parent's block ends at once, attached nodes still open, do their work and close."""
    panels = []
    async with Node("app") as app:
        above = app
        for _ in range(depth):
            above = above.attach(Node("panel"))
            panels.append(above)
        workers = [panel.run_worker(settle) for panel in panels]
    assert {worker.state for worker in workers} == {SUCCESS}
    assert all(panel.is_finished for panel in panels)


async def test_the_parent_is_cancelled_at_once():
    """If the parent is cancelled at once, the work of attached nodes never starts."""
    async with Node("app") as app:
        panel = app.attach(Node("panel"))
        below = panel.attach(Node("below"))
        workers = [panel.run_worker(settle), below.run_worker(settle())]
        app.cancel("too late")
        assert {worker.state for worker in workers} == {CANCELLED}
        with pytest.raises(WorkerError, match="it is cancelled"):
            panel.attach(Node("another"))
        assert below.run_worker(settle).state is CANCELLED
    assert {worker.started_at for worker in workers} == {None}
    assert {worker.cancel_reason for worker in workers} == {"too late"}
    assert panel.is_finished
    assert below.is_finished


@pytest.mark.parametrize("waits", [False, True])
async def test_removing_at_once(waits):
    """A node that is removed before it opens never starts its work, and its parent waits for it."""
    states = []
    async with Node("app") as app:
        panel = app.attach(Listener("panel"))
        worker = panel.run_worker(settle())
        if waits:
            await panel.remove()
            assert panel.is_finished
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(panel.remove)
                await lowlevel.checkpoint()
                states.append(panel.is_finished)
    assert states == ([] if waits else [False])
    assert worker.state is CANCELLED
    assert panel.told_of(worker) == [PENDING, CANCELLED]
    assert app._creche_nursery.holds == 0


async def test_a_node_that_was_told_to_leave_before_it_is_open_holds_its_parent():
    """The parent closes after a node that was told to leave before it was open."""
    order = []

    class Slow(Node):
        async def __aexit__(self, *exc):
            try:
                return await super().__aexit__(*exc)
            finally:
                order.append(app.is_finished)

    async with Node("app") as app:
        panel = app.attach(Slow("panel"))
        panel._creche_mount.tell_to_leave()
    assert order == [False]


async def test_shut_down_before_it_is_open():
    """shutdown() before a node opens refuses new work and finishes the work already accepted."""
    async with Node("app") as app:
        panel = app.attach(Node("panel"))
        below = panel.attach(Node("below"))
        worker = below.run_worker(settle)
        await panel.shutdown(RENDEZVOUS)
        assert worker.state is SUCCESS
        for node in (panel, below):
            with pytest.raises(WorkerError, match=r"shutting down|closed"):
                node.run_worker(settle)
            with pytest.raises(WorkerError, match=r"shutting down|closed"):
                node.attach(Node("another"))
        assert not panel.is_finished
        assert below.is_finished


async def test_what_is_left_of_it_ends_as_with_any_node():
    """start_all() works before the node opens. Daemons and unstarted workers end CANCELLED."""
    async with Node("app") as app:
        panel = app.attach(Node("panel"))
        daemon = panel.run_worker(anyio.sleep_forever, daemon=True)
        late, never = (panel.run_worker(settle, start=False) for _ in range(2))
        never.cancel()
        app.workers.start_all()
        unstarted = panel.run_worker(settle, start=False)
    assert (daemon.state, late.state) == (CANCELLED, SUCCESS)
    assert (never.state, unstarted.state) == (CANCELLED, CANCELLED)


async def test_a_worker_cancelled_before_the_node_is_open():
    """A worker cancelled before its node opens is CANCELLED at once and gives up its slot."""
    async with Node("app") as app:
        panel = app.attach(Node("panel"))
        panel.group("one", limit=1)
        first, second = (panel.run_worker(settle(), group="one") for _ in range(2))
        first.cancel("never mind")
        assert (first.state, second.state) == (CANCELLED, PENDING)
        await second
        with pytest.raises(WorkerCancelled, match="never mind"):
            await first


async def test_messages_wait_until_the_node_is_open():
    """Messages posted before a node opens are handled in order once it is open."""
    got = []

    class Said(Message):
        def __init__(self, text):
            self.text = text

    class Panel(Node):
        async def on_said(self, message):
            await lowlevel.checkpoint()
            got.append((message.text, self.is_ready))

    async with Node("app") as app:
        panel = app.attach(Panel("panel"))
        async with panel.subscribe(Said) as events:
            assert panel.post_message(Said("one"))
            assert panel.post_message(Said("two"))
            assert [each.text for each in events.take_all()] == ["one", "two"]
        assert got == []
    assert got == [("one", True), ("two", True)]


async def test_calls_of_threads_are_served():
    """A plain function is called when the call arrives, an async one once the node is open."""
    ready, outcome = [], Future()

    def call():
        ready.append(panel.is_ready)
        return later()

    async def later():
        ready.append(panel.is_ready)
        return 5

    async with Node("app") as app:
        panel = app.attach(Node("panel"))
        begin_call(panel, Caller(None), call, (), outcome)
        await until(outcome.done)
    assert outcome.result() == 5
    assert ready == [False, True]


async def test_a_call_of_a_thread_that_waits_is_called_off_with_its_worker():
    """A call that waits for the node to open is dropped if the worker that made it is cancelled.

    A shutdown meanwhile handles a caller that is not a task.
    """
    called, go, outcome = [], threading.Event(), Future()

    async def effect():
        called.append(True)

    async with Node("app") as app:
        worker = app.run_worker(lambda: go.wait(RENDEZVOUS), thread=True)
        await until(lambda: worker.is_running)
        panel = app.attach(Node("panel"))
        begin_call(panel, Caller(worker), effect, (), outcome)
        worker.cancel("superseded")
        await panel.shutdown()
        go.set()
    assert worker.state is CANCELLED
    with pytest.raises(WorkerCancelled, match="superseded"):
        raise outcome.result().kept.pop()
    assert called == []


@pytest.mark.parametrize("kind", [Early, Late])
async def test_an_attached_node_that_cannot_be_opened_fails_its_parent(caplog, kind):
    """The error is reported at once and raised by the parent's block, and no work is entered."""
    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            panel = app.attach(kind("panel"))
            below = panel.attach(Node("below"))
            workers = [node.run_worker(settle()) for node in (panel, below)]
            await anyio.sleep_forever()
    assert [type(each) for each in leaves(caught.value)] == [ValueError]
    (record,) = [each for each in told(caplog) if each.levelno == logging.ERROR]
    assert record.getMessage() == (
        "node 'app/panel' could not be opened, and with it node 'app' fails"
    )
    assert {worker.state for worker in workers} == {CANCELLED}
    assert panel.is_finished
    assert below.is_finished


@pytest.mark.parametrize("kind", [Early, Late])
async def test_a_mounted_node_that_cannot_be_opened_leaves_nothing(kind):
    """The caller of mount() gets the error, the node's work has ended, and its parent continues."""
    async with Node("app") as app:
        panel = kind("panel")
        waiting = panel.run_worker(settle, start=False)
        with pytest.raises(ValueError, match=r"entry|after all"):
            await app.mount(panel)
        assert panel.is_finished
        assert waiting.state is CANCELLED
        assert await app.run_worker(lowlevel.checkpoint) is None
        assert app.children == ()


async def test_an_attached_node_whose_task_is_killed(anyio_backend):
    """A native cancellation of the node's task cancels its work and is reported by the block."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio has no native cancellation of a task")
    heard = []

    class Ear(Node):
        def on_worker_state_changed(self, event):
            heard.append(event.state)

    with pytest.raises(WorkerError, match=r"a native Task\.cancel"):
        async with Node("app") as app:
            panel = app.attach(Ear("panel"))
            below = panel.attach(Ear("below"))
            workers = [node.run_worker(settle()) for node in (panel, below)]
            (task,) = [each for each in asyncio.all_tasks() if each.get_name() == "app/panel"]
            task.cancel()
            with pytest.raises(anyio.get_cancelled_exc_class()):
                await anyio.sleep_forever()
    assert {worker.state for worker in workers} == {CANCELLED}
    assert panel.is_finished
    assert below.is_finished
    with pytest.raises(WorkerError, match="closed"):
        below.run_worker(settle)


async def test_what_cannot_be_attached():
    """attach() refuses anything but a new node without a parent."""
    async with Node("app") as app, Node("other") as other:
        panel = app.attach(Node("panel"))
        for parent, child in (
            (app, "panel"),
            (app, panel),
            (other, panel),
            (app, other),
            (app, app),
            (panel, panel),
            (app, Node("below", parent=other)),
        ):
            with pytest.raises(WorkerError, match=r"cannot mount|takes a Node"):
                parent.attach(child)
        assert app.children == (panel,)
        with pytest.raises(WorkerError, match="'app/panel' was mounted before"):
            await panel.__aenter__()
        with pytest.raises(WorkerError, match="without having been entered"):
            await panel.__aexit__(None, None, None)
        assert await panel.run_worker(lowlevel.checkpoint) is None
        with pytest.raises(WorkerError, match="'app/panel' was mounted before"):
            await panel.__aenter__()
    for parent in (app, Node("new")):
        with pytest.raises(WorkerError, match=r"closed|not open yet"):
            parent.attach(Node("panel"))


async def test_attaching_from_elsewhere():
    """attach() in a thread raises WorkerError and attaches nothing."""
    async with Node("app") as app:
        panel = Node("panel")
        with pytest.raises(WorkerError, match="this is not its event loop"):
            await anyio.to_thread.run_sync(app.attach, panel)
        assert app.children == ()
        app.attach(panel)


async def test_attaching_that_is_broken_off(monkeypatch):
    """If attach() is interrupted after the node's task was created, the node opens and leaves."""
    follow = Life._follow

    def break_off(self, above):
        follow(self, above)
        raise KeyboardInterrupt

    async with Node("app") as app:
        panel = Node("panel")
        with monkeypatch.context() as patch:
            patch.setattr(Life, "_follow", break_off)
            with pytest.raises(KeyboardInterrupt):
                app.attach(panel)
        await until(lambda: panel.is_finished and not app._creche_nursery.holds)
        assert app.children == ()


async def test_an_error_of_the_work_fails_the_parent():
    """An error in the work of an attached node is raised once by the parent's block, not nested."""
    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            panel = app.attach(Node("panel"))
            worker = panel.run_worker(fail(ValueError("of the work")))
            with pytest.raises(WorkerFailed):
                await worker
            await anyio.sleep_forever()
    assert [str(each) for each in leaves(caught.value)] == ["of the work"]


async def test_what_the_node_does_on_the_way_out_is_waited_for():
    """remove() of a node that was attached waits for its work."""
    gate = anyio.Event()
    async with Node("app") as app:
        panel = app.attach(Node("panel"))
        worker = panel.run_worker(slow_to_leave(gate))
        await until(lambda: worker.is_running)
        async with anyio.create_task_group() as group:
            group.start_soon(panel.remove)
            await settle()
            assert not panel.is_finished
            gate.set()
        assert worker.state is CANCELLED


async def test_a_factory_of_tasks_that_begins_them_at_once(anyio_backend):
    """With an eager task factory, work can be added to attached nodes as usual."""
    if sys.version_info < (3, 12) or anyio_backend[0] != "asyncio":
        pytest.skip("eager tasks are of asyncio, and of 3.12")
    loop = asyncio.get_running_loop()
    async with Node("app") as app:
        loop.set_task_factory(asyncio.eager_task_factory)
        try:
            panel = app.attach(Node("panel"))
            worker = panel.attach(Node("below")).run_worker(settle)
            assert await worker is None
        finally:
            loop.set_task_factory(None)


async def test_a_factory_of_tasks_that_fails(anyio_backend):
    """If the task factory fails, attach() raises its error, and the node can be attached later."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio has no task factories")
    loop = asyncio.get_running_loop()
    async with Node("app") as app:
        panel = Node("panel")

        def refuse(*_, **__):
            raise OSError("no more tasks")

        loop.set_task_factory(refuse)
        try:
            with pytest.raises(OSError, match="no more tasks"):
                app.attach(panel)
        finally:
            loop.set_task_factory(None)
        assert app.children == ()
        assert app._creche_nursery.holds == 0
        assert await app.attach(panel).run_worker(lowlevel.checkpoint) is None
