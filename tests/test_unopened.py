"""Nodes that are removed, refused, not yet open or never opened; and nodes that are equal."""

from __future__ import annotations

import dataclasses
import threading
from contextvars import Context

import anyio
import anyio.lowlevel
import pytest

from creche import Message, Node, Worker, WorkerError
from creche._nursery import nursery as nursery_module
from helpers import CANCELLED, PENDING, RENDEZVOUS, SUCCESS, ExceptionGroup, leaves, settle, until


class Ping(Message):
    pass


class Panel(Node):
    async def fail(self):
        raise ValueError("of the panel")


async def in_thread(call):
    """Make a call in another thread, and return what it returned or raised."""
    got = []

    def run():
        try:
            got.append(call())
        except WorkerError as error:
            got.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    return got[0]


async def test_removing_what_has_ended_by_itself():
    """remove() of a mounted node that has ended returns, and nothing keeps the parent open."""
    async with Node("app") as app:
        panel = await app.mount(Panel("panel"))
        panel.cancel("done with it")
        await until(lambda: panel.is_finished)
        await panel.remove()
        await panel.remove()
        assert app._creche_nursery.holds == 0


async def test_removing_what_has_failed():
    """The error of a failed node that is removed in a ``finally`` is raised once; nothing hangs."""
    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            panel = await app.mount(Panel("panel"))
            try:
                panel.run_worker(panel.fail)
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await panel.remove()
    assert [str(each) for each in leaves(caught.value)] == ["of the panel"]


@pytest.mark.parametrize("shutdown_first", [False, True])
async def test_mount_and_shutdown_in_one_turn(shutdown_first):
    """A node that was admitted before shutdown() is opened and closed. A later one is refused."""
    order, outcomes = [], []

    async def mount():
        order.append(mount)
        try:
            outcomes.append(await app.mount(Panel("panel")))
        except WorkerError as error:
            outcomes.append(error)

    async def shutdown():
        order.append(shutdown)
        await app.shutdown()

    async with Node("app") as app, anyio.create_task_group() as group:
        for task in (shutdown, mount) if shutdown_first else (mount, shutdown):
            group.start_soon(task)
    (outcome,) = outcomes
    if order[0] is shutdown:  # Trio starts them in any order
        assert "shutting down" in str(outcome)
    else:
        assert outcome.is_finished


async def test_parent_that_is_left_as_a_child_is_mounted():
    """A child that is being mounted keeps its parent open until it is open; then it is closed."""
    outcomes = []
    panel = Panel("panel")

    async def mount():
        try:
            outcomes.append(await app.mount(panel))
        except WorkerError as error:
            outcomes.append(error)

    async with anyio.create_task_group() as group, Node("app") as app:
        group.start_soon(mount)
        await until(lambda: panel._creche_mount is not None)
    assert outcomes == [panel]
    assert panel.is_finished


async def test_child_that_cannot_be_opened(monkeypatch):
    """A child that fails to open no longer keeps its parent open."""

    def fail(token):
        raise OSError("of the backend")

    async with Node("app") as app:
        page, nursery = Node("page", parent=app), app._creche_nursery
        with monkeypatch.context() as patch:
            patch.setattr(nursery_module, "get_backend", fail)
            with pytest.raises(OSError, match="of the backend"):
                async with page:
                    raise AssertionError
        held = nursery.holds, nursery.blocks
        page._creche_life.let_parent_go()  # in case of a fault, so that the test ends
    assert held == (0, 0)


async def test_mounting_a_node_that_cannot_be_entered():
    """mount() raises the error, and the parent goes on."""

    class Odd(Node):
        async def __aenter__(self):
            raise ValueError("no entry")

    async with Node("app") as app:
        with pytest.raises(ValueError, match="no entry"):
            await app.mount(Odd("odd"))
        assert await app.run_worker(anyio.lowlevel.checkpoint) is None


async def test_a_node_cannot_be_mounted_below_itself():
    """Mounting a node below itself is refused like any node that was opened before."""
    async with Node("app") as app, Node("page", parent=app) as page:
        for node in (app, page):
            with pytest.raises(WorkerError, match="opened before"):
                await page.mount(node)


@pytest.mark.parametrize("what", ["work", "message"])
async def test_an_unopened_child_used_from_a_thread(what):
    """What a thread starts or posts on an unopened child reaches a subscriber of its parent."""
    heard = []

    async def read(ready):
        async with app.subscribe(Message, tree=True) as events:
            ready.set()
            async for event in events:
                heard.append(event)
                break

    def use():
        if what == "work":
            return page.run_worker(anyio.sleep_forever, start=False)
        return page.post_message(Ping())

    async with Node("app") as app:
        page = Node("page", parent=app)
        async with anyio.create_task_group() as group:
            ready = anyio.Event()
            group.start_soon(read, ready)
            await ready.wait()
            await in_thread(use)
            await until(lambda: heard)
    assert isinstance(heard[0], Ping if what == "message" else Worker.StateChanged)


async def test_a_child_that_is_never_opened():
    """An unopened child closes with its parent: its work is cancelled and its streams end."""
    heard = []
    async with Node("app") as app:
        page = Node("page", parent=app)
        below = Node("below", parent=page)
        worker = below.run_worker(anyio.sleep_forever, start=False)
        assert page.post_message(Ping())
        events = below.subscribe(Worker.StateChanged)
        await events.__aenter__()
        assert app.children == ()
    heard = [(event.worker, event.state) async for event in events]
    assert heard == [(worker, CANCELLED)]
    assert below.is_finished
    assert page.is_finished
    assert not page.post_message(Ping())
    with pytest.raises(WorkerError, match="closed"):
        below.run_worker(anyio.sleep_forever, start=False)
    with pytest.raises(WorkerError, match="entered before"):
        await page.__aenter__()


async def test_a_child_that_was_not_heard_of_when_its_parent_closed():
    """An unused child of a node that has closed refuses work, messages and being entered."""
    async with Node("app") as app:
        page = Node("page", parent=app)
    coroutine = anyio.lowlevel.checkpoint()
    with pytest.raises(WorkerError, match="whose parent is closed"):
        page.run_worker(coroutine, start=False)
    assert page.post_message(Ping()) is False
    refused = await in_thread(lambda: page.run_worker(anyio.sleep_forever, start=False))
    assert "whose parent is closed" in str(refused)
    with pytest.raises(WorkerError, match="its parent is closed"):
        await page.__aenter__()


@pytest.mark.parametrize("how", ["loop", "thread"])
async def test_refused_work_is_announced_nowhere(how):
    """Work that a node refuses raises an error, and is not announced to subscribers."""
    app = Node("app")
    async with app.subscribe(Worker.StateChanged) as events, app:
        await app.shutdown()
        worker = Worker(app, anyio.sleep_forever)

        def add():
            app.workers.add_worker(worker)

        if how == "thread":
            assert "shutting down" in str(await in_thread(add))
        else:
            with pytest.raises(WorkerError, match="shutting down"):
                add()
        assert worker.state is CANCELLED
        assert worker.is_cancelled
        assert events.take_all() == []
        with pytest.raises(WorkerError, match="has ended"):
            app.workers.add_worker(worker, start=False)


@dataclasses.dataclass(unsafe_hash=True)
class Equal(Node):
    title: str
    above: Node | None = None

    def __post_init__(self):
        super().__init__(self.title, parent=self.above)


@dataclasses.dataclass
class Unhashable(Node):
    title: str
    above: Node | None = None

    def __post_init__(self):
        super().__init__(self.title, parent=self.above)


@pytest.mark.parametrize("kind", [Equal, Unhashable])
async def test_nodes_are_told_apart_by_identity(kind):
    """Nodes that are equal, or not hashable, are separate children, mounted or with a block."""
    async with Node("app") as app:
        panels = [await app.mount(kind("same")) for _ in range(2)]
        workers = [panel.run_worker(anyio.sleep_forever) for panel in panels]
        assert [each is panel for each, panel in zip(app.children, panels, strict=True)] == [
            True,
            True,
        ]
        async with kind("same", app) as page:
            assert await page.run_worker(anyio.lowlevel.checkpoint) is None
            assert len(app.children) == 3
            page.cancel()
        await panels[0].remove()
        assert workers[0].state is CANCELLED
        assert not workers[1].is_finished
        await panels[1].remove()
    async with Node("app") as app:  # without looking at the children first: both are closed
        ended = [(await app.mount(kind("same"))).run_worker(settle) for _ in range(2)]
    assert [worker.state for worker in ended] == [SUCCESS, SUCCESS]


class Same(Worker):
    """Workers that all compare equal and are not hashable."""

    __hash__ = None

    def __eq__(self, other):
        return isinstance(other, Same)


async def test_workers_are_told_apart_by_identity():
    """Equal workers are kept apart in groups, in queues, and where they wait for each other."""
    async with Node("app") as app:
        app.group("one", limit=1)
        workers = [Same(app, settle, name=str(n), group="one") for n in range(3)]
        for worker in workers:
            app.workers.add_worker(worker, exclusive=False)
        late = Same(app, settle, name="late")
        app.workers.add_worker(late, start=False)
        assert len(app.workers) == 4
        assert [each.name for each in app.workers] == ["0", "1", "2", "late"]
        workers[1].cancel()

        async def wait():
            await workers[2].wait()

        waiting = Same(app, wait, name="waiting")
        app.workers.add_worker(waiting, exclusive=False)
        await app.workers.wait_for_complete([*workers, waiting])
        assert [worker.state for worker in workers] == [SUCCESS, CANCELLED, SUCCESS]
        assert late.state is PENDING
        app.snapshot()


async def test_a_message_to_a_child_that_opens_before_it_arrives():
    """A message that was accepted from a thread is delivered before the child closes."""

    class Page(Node):
        got = 0

        def on_ping(self, message):
            self.got += 1

    said = []
    async with Node("app") as app:
        page = Page("page", parent=app)
        thread = threading.Thread(target=lambda: said.append(page.post_message(Ping())))
        thread.start()
        thread.join()  # holds the loop: the message waits
        async with page:
            pass
    assert (said, page.got) == ([True], 1)


async def test_a_root_that_is_not_open_heard_in_another_thread():
    """A thread that posts to an unopened root wakes the subscriber in the subscriber's own loop."""
    heard = []

    async def read(ready):
        async with app.subscribe(Message) as events:
            ready.set()
            heard.append(await anext(events))

    app = Node("app")
    async with anyio.create_task_group() as group:
        ready = anyio.Event()
        group.start_soon(read, ready)
        await ready.wait()
        await settle()
        assert await in_thread(lambda: app.post_message(Ping())) is True
        await until(lambda: heard)


async def test_shutdown_called_from_a_thread():
    """When shutdown() is called from a thread, neither the call nor the block waits for itself."""
    app = Node("app")
    async with app:
        worker = app.run_worker(settle)
        thread = threading.Thread(target=app.call_from_thread, args=(app.shutdown, RENDEZVOUS))
        thread.start()
    await anyio.to_thread.run_sync(thread.join)
    assert worker.state is SUCCESS
    async with Node("app") as app:
        caller = app.run_worker(lambda: app.call_from_thread(app.shutdown), thread=True)
    assert caller.is_finished


async def test_work_that_is_started_in_a_bare_callback(anyio_backend):
    """A callback of the event loop, which runs in no task, may start work."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio's callbacks run in a task")
    async with Node("app") as app:
        made = []
        loop = anyio.lowlevel.current_token().native_token
        loop.call_soon(lambda: made.append(app.run_worker(settle)), context=Context())
        await until(lambda: made)
    assert made[0].state is SUCCESS
