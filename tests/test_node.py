"""Nodes: what keeps them open, how they end, trees, mounting, shutdown, daemons."""

from __future__ import annotations

import asyncio
import math
import threading
from contextlib import AsyncExitStack, suppress
from functools import partial

import anyio
import pytest

from creche import (
    Message,
    Node,
    ShutdownTimeout,
    Worker,
    WorkerCancelled,
    WorkerError,
    get_current_worker,
)
from helpers import (
    CANCELLED,
    ERROR,
    PENDING,
    RENDEZVOUS,
    RUNNING,
    SUCCESS,
    ExceptionGroup,
    Listener,
    Meeting,
    fail,
    leaves,
    set_later,
    settle,
    until,
)


async def test_leaving_waits():
    """Leaving the block waits for every started worker, including queued ones."""
    gate = anyio.Event()
    order = []

    async def work(number):
        await gate.wait()
        order.append(number)

    async with Node() as app:
        app.group("one", limit=1)
        workers = [app.run_worker(work(n), group="one") for n in range(5)]
        app.run_worker(set_later(gate))
    assert order == [0, 1, 2, 3, 4]
    assert {worker.state for worker in workers} == {SUCCESS}


async def test_work_may_start_more_work_while_leaving():
    """A worker may start others on its node while the block is being left."""
    done = []

    async def chain(depth):
        await anyio.lowlevel.checkpoint()
        if depth:
            app.run_worker(chain(depth - 1))
        done.append(depth)

    async with Node() as app:
        app.run_worker(chain(10))
    assert sorted(done) == list(range(11))


async def test_never_started_work_ends_cancelled():
    """A worker never started does not hold its node open; it is CANCELLED, its coroutine closed."""

    async def work():
        raise AssertionError("must not run")

    async with Listener() as app:
        worker = app.run_worker(work(), start=False)
    assert worker.state is CANCELLED
    assert worker.cancel_reason == "its node closed"
    assert app.told_of(worker) == [PENDING, CANCELLED]


async def test_queued_work_never_runs_after_a_failure():
    """If the body raises, queued workers are CANCELLED and their work never runs."""
    entered = []

    async def work():
        entered.append(True)

    with pytest.raises(ExceptionGroup):
        async with Node() as app:
            app.group("one", limit=1)
            holder = app.run_worker(anyio.sleep_forever, group="one")
            queued = [app.run_worker(work, group="one") for _ in range(3)]
            await settle()
            raise ValueError("body")
    assert holder.state is CANCELLED
    assert {worker.state for worker in queued} == {CANCELLED}
    assert entered == []


async def test_start_false():
    """A worker may be created before its node is opened, and started later."""
    app = Listener()
    worker = app.run_worker(anyio.lowlevel.checkpoint, start=False)
    assert list(app.workers) == [worker]
    with pytest.raises(WorkerError, match="which is not open yet; enter its block first"):
        app.workers.start_all()
    assert worker.state is PENDING
    async with app:
        app.workers.start_all()
        await worker
        await settle()
        assert app.told_of(worker) == [PENDING, RUNNING, SUCCESS]


async def test_refusal():
    """Starting work on a node that is not open is an error, and the coroutine is closed."""

    async def work():
        pass

    app = Node("app")
    with pytest.raises(WorkerError, match="cannot start work on node 'app', which is not open yet"):
        app.run_worker(work())
    async with app:
        pass
    with pytest.raises(WorkerError, match="which is closed; use a node that is open"):
        app.run_worker(work())
    with pytest.raises(WorkerError, match="which is closed"):
        app.run_worker(work(), start=False)
    worker = Worker(app, work())
    with pytest.raises(WorkerError, match="which is closed"):
        app.workers.add_worker(worker)
    assert worker.state is CANCELLED


async def test_entered_once():
    """A node can be entered only once."""
    app = Node("app")
    async with app:
        with pytest.raises(WorkerError, match="node 'app' was entered before"):
            await app.__aenter__()
    with pytest.raises(WorkerError, match="node 'app' was entered before"):
        await app.__aenter__()


async def test_left_in_another_task():
    """Leaving a node in another task than the one that entered it is a clear error."""
    app = Node("app")
    errors = []

    async def leave():
        try:
            await app.__aexit__(None, None, None)
        except WorkerError as error:
            errors.append(str(error))

    async with app, anyio.create_task_group() as group:
        group.start_soon(leave)
    (error,) = errors
    assert error.startswith("node 'app' is left in another task than the one that entered it")


# trees


async def test_tree():
    """Nodes know their place in the tree; all of them share the manager of the root."""
    async with Node("app") as app, Node("page", parent=app) as page:
        panel = await page.mount(Node("panel"))
        assert (app.parent, page.parent, panel.parent) == (None, app, page)
        assert (app.children, page.children, panel.children) == ((page,), (panel,), ())
        assert (app.root, panel.root) == (app, app)
        assert (app.path, panel.path) == ("app", "app/page/panel")
        assert repr(panel) == "<Node 'app/page/panel' OPEN>"
        worker = panel.run_worker(anyio.sleep_forever)
        other = app.run_worker(anyio.sleep_forever)
        assert list(app.workers) == list(page.workers) == [worker, other]
        app.workers.cancel_all()
    assert (app.children, page.children) == ((), ())


async def test_manager_is_a_container():
    """The manager contains the unfinished workers, in order of creation."""
    async with Node("app") as app, Node("page", parent=app) as page:
        nodes = [app, page, app, page]
        workers = [
            node.run_worker(anyio.sleep_forever, group=str(n)) for n, node in enumerate(nodes)
        ]
        manager = app.workers
        assert list(manager) == workers
        assert list(reversed(manager)) == workers[::-1]
        assert len(manager) == 4
        assert bool(manager)
        assert workers[0] in manager
        assert "worker" not in manager
        await settle()
        assert repr(manager) == "<WorkerManager of 'app': 4 RUNNING>"
        workers[1].cancel()
        await settle()
        assert workers[1] not in manager
        assert list(manager) == [workers[0], workers[2], workers[3]]
        manager.cancel_all()
        await manager.wait_for_complete()
        assert not manager
        assert repr(manager) == "<WorkerManager of 'app': no workers>"


async def test_add_worker():
    """A worker can be added only once, and only to its own tree."""
    async with Node("app") as app, Node("other") as other:
        worker = Worker(app, anyio.sleep_forever, name="w")
        with pytest.raises(
            WorkerError, match="worker 'w' is of node 'app', which is not in the tree"
        ):
            other.workers.add_worker(worker)
        app.workers.add_worker(worker, start=False)
        assert worker.state is PENDING
        with pytest.raises(WorkerError, match="worker 'w' was added before"):
            app.workers.add_worker(worker)
        app.workers.start_all()
        app.workers.start_all()
        await settle()
        assert worker.state is RUNNING
        second = Worker(app, anyio.sleep_forever)
        app.workers.add_worker(second)  # exclusive, like the call that it is ported from
        await settle()
        assert (worker.state, second.state) == (CANCELLED, RUNNING)
        second.cancel()


async def test_add_worker_to_a_node_that_was_left():
    """A worker added to a removed node is refused and cancelled."""

    async def work():
        pass

    async with Node("app") as app:
        panel = await app.mount(Node("panel"))
        await panel.remove()
        worker = Worker(panel, work())
        with pytest.raises(WorkerError, match="node 'app/panel', which is closed"):
            panel.workers.add_worker(worker)
        assert worker.state is CANCELLED


async def test_waits_that_are_given_up_leave_nothing_behind():
    """A worker that runs for long does not collect the waits for it that were cancelled."""
    async with Node("app") as app:
        worker = await app.start_worker(anyio.sleep_forever)
        for wait in (worker.wait, worker.join, partial(app.workers.wait_for_complete, [worker])):
            with anyio.move_on_after(0):
                await wait()
        assert app._creche_sleepers == {}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.join)
            await settle()
            with anyio.move_on_after(0):
                await worker.join()
            assert [len(sleepers) for sleepers in app._creche_sleepers.values()] == [1]
            worker.cancel()
        assert app._creche_sleepers == {}


async def test_wait_for_complete():
    """wait_for_complete() waits for all started workers, however they end."""
    gate = anyio.Event()

    async with Node() as app:
        workers = [
            app.run_worker(gate.wait),
            app.run_worker(fail(ValueError), exit_on_error=False),
            app.run_worker(anyio.sleep_forever),
            app.run_worker(anyio.sleep_forever, start=False),
        ]
        workers[2].cancel()
        await app.workers.wait_for_complete([])
        assert not workers[0].is_finished  # [] means none, not all
        await settle()
        gate.set()
        await app.workers.wait_for_complete(workers)
        assert [w.is_finished for w in workers] == [True, True, True, False]
        await app.workers.wait_for_complete()


async def test_child_ends_before_its_parent():
    """A parent waits for the block of a child that another task has open."""
    order = []
    gate = anyio.Event()

    async def child():
        async with Node("page", parent=app):
            inside.set()
            await gate.wait()
        order.append("child")

    inside = anyio.Event()
    async with anyio.create_task_group() as group:
        async with Node("app") as app:
            group.start_soon(child)
            await inside.wait()
            app.run_worker(set_later(gate))
        order.append("parent")
    assert order == ["child", "parent"]


async def test_failure_of_the_parent_ends_a_child_in_another_task():
    """A child that another task has open is cancelled with its parent; its block exits normally."""
    workers = []

    async def child():
        async with Node("page", parent=app) as page:
            workers.append(page.run_worker(anyio.sleep_forever))
            inside.set()
            await anyio.sleep_forever()
        workers.append("after")

    inside = anyio.Event()
    async with anyio.create_task_group() as group:
        with pytest.raises(ExceptionGroup):
            async with Node("app") as app:
                group.start_soon(child)
                await inside.wait()
                raise ValueError("body")
        assert workers[1] == "after"
    assert workers[0].state is CANCELLED


async def test_parent_has_to_be_open():
    """A node can be entered only while its parent is open."""
    app = Node("app")
    with pytest.raises(
        WorkerError, match="cannot enter node 'app/page': its parent is not open yet"
    ):
        async with Node("page", parent=app):
            pass
    with pytest.raises(WorkerError, match="parent must be a Node, not 'app'"):
        Node("page", parent="app")
    async with app:
        app.cancel("over")
        with anyio.CancelScope(shield=True):
            async with Node("page", parent=app) as page:
                assert page.run_worker(anyio.sleep_forever).cancel_reason == "over"


async def test_parent_in_another_thread():
    """A node cannot be entered on another event loop than that of its parent."""

    async def elsewhere():
        with pytest.raises(WorkerError, match="outside the event loop of its parent"):
            async with Node("page", parent=app):
                pass

    async with Node("app") as app:
        await app.run_worker(elsewhere, thread=True)


async def test_work_given_to_a_child_that_is_never_opened():
    """Work given to a child that is never opened is cancelled with the parent."""
    async with Node("app") as app:
        page = Node("page", parent=app)
        worker = page.run_worker(anyio.sleep_forever, start=False)
        assert list(app.workers) == [worker]
        assert app.children == ()
    assert worker.state is CANCELLED


# mounted nodes


async def test_mount_and_remove():
    """Removing a mounted node cancels its workers and takes it out of the tree."""
    async with Node("app") as app:
        panel = await app.mount(Listener("panel"))
        worker = panel.run_worker(anyio.sleep_forever)
        await settle()
        await panel.remove()
        assert worker.state is CANCELLED
        assert worker.cancel_reason == "node 'app/panel' was removed"
        assert panel.told_of(worker) == [PENDING, RUNNING, CANCELLED]
        assert app.children == ()
        await panel.remove()
        with pytest.raises(WorkerError, match="which is closed"):
            panel.run_worker(anyio.sleep_forever)


async def test_mounted_nodes_are_told_to_leave():
    """When its parent is left, a mounted node waits for its own workers and then closes."""
    gate = anyio.Event()

    async with Node("app") as app:
        panel = await app.mount(Node("panel"))
        inner = await panel.mount(Node("inner"))
        workers = [inner.run_worker(gate.wait), panel.run_worker(gate.wait)]
        app.run_worker(set_later(gate))
    assert {worker.state for worker in workers} == {SUCCESS}


async def test_mounted_node_may_start_work_on_its_parent_while_leaving():
    """Leaving waits for work that a mounted node starts on its parent meanwhile, too."""
    done = []

    async def last():
        done.append("last")

    async def start():
        await settle()
        app.run_worker(last)

    async with Node("app") as app:
        panel = await app.mount(Node("panel"))
        panel.run_worker(start)
    assert done == ["last"]


async def test_remove_by_a_worker_of_the_removed_node():
    """A worker may remove its own node, and is cancelled with it."""
    async with Node("app") as app:
        panel = await app.mount(Node("panel"))
        worker = panel.run_worker(panel.remove)
        await until(lambda: not app.children)
    assert worker.state is CANCELLED


async def test_mount_refused():
    """A node that cannot be mounted is refused at the call."""
    app = Node("app")
    with pytest.raises(WorkerError, match="which is not open yet"):
        await app.mount(Node("panel"))
    async with app:
        with pytest.raises(WorkerError, match="cannot mount node 'app' on node 'app'"):
            await app.mount(app)
        with pytest.raises(
            WorkerError, match="it was opened before, is being mounted or has a parent already"
        ):
            await app.mount(Node("page", parent=Node("other")))
        with pytest.raises(
            WorkerError, match="node 'app' was not mounted; leave its block instead"
        ):
            await app.remove()
        app.cancel()
        with pytest.raises(WorkerError, match="cannot mount on node 'app': it is cancelled"):
            await app.mount(Node("panel"))


async def test_mount_of_something_else():
    """mount() refuses what is not a node, and changes nothing."""
    async with Node("app") as app:
        with pytest.raises(WorkerError, match=r"mount\(\) takes a Node, not 'panel'"):
            await app.mount("panel")
        assert app.children == ()


async def test_mounting_that_is_cancelled_natively(anyio_backend):
    """mount() raises WorkerCancelled if the node's task is killed before its first step."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio has no native cancellation of a task")
    app, told = Node("app"), []

    def kill():
        (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "app/panel"]
        task.cancel()

    with pytest.raises(WorkerError, match=r"a native Task\.cancel"):
        async with app:
            # It runs before the new task.
            asyncio.get_running_loop().call_soon(kill)
            try:
                await app.mount(Node("panel"))
            except WorkerCancelled as error:
                told.append(str(error))
    assert told == ["mounting node 'app/panel' was cancelled natively"]


async def test_remove_from_elsewhere():
    """A node can be removed only on its own event loop; elsewhere nothing happens to it."""
    async with Node("app") as app:
        panel = await app.mount(Node("panel"))
        with pytest.raises(WorkerError, match="is removed outside its event loop"):
            await anyio.to_thread.run_sync(partial(anyio.run, panel.remove))
        assert app.children == (panel,)
        assert await panel.run_worker(anyio.lowlevel.checkpoint) is None


async def test_mounting_twice_at_once():
    """A node that is being mounted cannot be mounted again."""
    async with Node("app") as app:
        panel = Node("panel")
        errors = []

        async def mount():
            try:
                await app.mount(panel)
            except WorkerError as error:
                errors.append(str(error))

        async with anyio.create_task_group() as group:
            group.start_soon(mount)
            group.start_soon(mount)
    (error,) = errors
    assert "is being mounted already" in error or "it was opened before" in error


async def test_mount_on_a_node_that_fails_meanwhile():
    """A node that is mounted while its parent fails is closed at once, and nothing hangs."""
    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            app.run_worker(fail(ValueError("meanwhile")))
            panel = await app.mount(Node("panel"))
            await anyio.sleep_forever()
    assert [str(leaf) for leaf in leaves(caught.value)] == ["meanwhile"]
    assert panel.is_finished


# daemons


async def test_waiting_for_all_passes_over_daemons():
    """wait_for_complete() does not wait for daemons, unless they are named."""
    async with Node() as app:
        daemon = app.run_worker(anyio.sleep_forever, daemon=True)
        worker = app.run_worker(settle)
        await app.workers.wait_for_complete()
        assert worker.is_finished
        assert not daemon.is_finished
        with anyio.move_on_after(0) as scope:
            await app.workers.wait_for_complete([daemon])
        assert scope.cancelled_caught


async def test_daemon():
    """A daemon does not keep its node open; it is cancelled when only daemons are left."""
    gate = anyio.Event()

    async def open_gate():
        await settle()
        assert daemon.state is RUNNING
        gate.set()

    async with Listener() as app:
        daemon = app.run_worker(anyio.sleep_forever, daemon=True)
        worker = app.run_worker(gate.wait)
        app.run_worker(open_gate)
    assert (daemon.state, worker.state) == (CANCELLED, SUCCESS)
    assert daemon.cancel_reason == "only daemons were left"
    assert app.told_of(daemon) == [PENDING, RUNNING, CANCELLED]


async def test_daemon_that_starts_work_as_it_ends():
    """Work that a daemon starts while it unwinds is waited for."""
    done = []

    async def last():
        await settle()
        done.append("last")

    async def daemon():
        try:
            await anyio.sleep_forever()
        finally:
            app.run_worker(last)

    async with Node() as app:
        app.run_worker(daemon, daemon=True)
        await settle()
    assert done == ["last"]


async def test_queued_daemon():
    """A daemon queued for a slot that another daemon holds does not keep its node open."""
    async with Node() as app:
        app.group("g", limit=1)
        daemons = [app.run_worker(anyio.sleep_forever, group="g", daemon=True) for _ in range(3)]
        await settle()
    assert {daemon.state for daemon in daemons} == {CANCELLED}


async def test_start_all_is_all_or_nothing():
    """If one node of the tree is not open, start_all() starts nothing."""
    async with Node("app") as app:
        worker = app.run_worker(anyio.sleep_forever, start=False)
        page = Node("page", parent=app)
        other = page.run_worker(anyio.sleep_forever, start=False)
        with pytest.raises(WorkerError, match="node 'app/page', which is not open yet"):
            app.workers.start_all()
        await settle()
        assert (worker.state, other.state) == (PENDING, PENDING)


async def test_daemon_that_fails():
    """A daemon's error fails the node like any other."""
    with pytest.raises(ExceptionGroup):
        async with Node() as app:
            app.run_worker(fail(ValueError("daemon")), daemon=True)
            await anyio.sleep_forever()


# shutdown


async def test_shutdown_without_grace():
    """shutdown() cancels all workers below and waits for them; the body of the block goes on."""
    async with Listener("app") as app, Node("page", parent=app) as page:
        panel = await app.mount(Node("panel"))
        workers = [node.run_worker(anyio.sleep_forever) for node in (app, page, panel)]
        workers.append(app.run_worker(anyio.sleep_forever, daemon=True))
        await settle()
        await app.shutdown()
        assert {worker.state for worker in workers} == {CANCELLED}
        assert not app.workers
        assert panel.is_finished
        with pytest.raises(WorkerError, match="node 'app', which is shutting down"):
            app.run_worker(anyio.sleep_forever)
        with pytest.raises(WorkerError, match="node 'app/page', which is shutting down"):
            page.run_worker(anyio.sleep_forever)
        assert app.told_of(workers[0]) == [PENDING, RUNNING, CANCELLED]


async def test_shutdown_with_grace():
    """Workers may finish within the grace period, including queued ones."""
    gate = anyio.Event()

    async with Node() as app, anyio.create_task_group() as group:
        app.group("one", limit=1)
        workers = [app.run_worker(gate.wait, group="one") for _ in range(3)]
        group.start_soon(set_later, gate)
        await app.shutdown(grace=math.inf)
        assert {worker.state for worker in workers} == {SUCCESS}


async def test_shutdown_after_grace():
    """Workers still running at the end of the grace period are cancelled."""
    async with Node() as app:
        worker = app.run_worker(anyio.sleep_forever)
        quick = app.run_worker(anyio.lowlevel.checkpoint)
        await quick.join()  # not within the grace period, which may be too short on a slow machine
        await app.shutdown(grace=0.01)
        assert (worker.state, quick.state) == (CANCELLED, SUCCESS)
        assert worker.cancel_reason == "shut down"


async def test_shutdown_by_a_worker():
    """A worker that shuts its node down counts as a daemon: it is cancelled after the others."""
    gate = anyio.Event()

    async def stop():
        await app.shutdown(grace=math.inf)

    async with Node() as app:
        worker = app.run_worker(gate.wait)
        caller = app.run_worker(stop)
        await settle()
        assert (worker.state, caller.state) == (RUNNING, RUNNING)
        gate.set()
    assert (worker.state, caller.state) == (SUCCESS, CANCELLED)


@pytest.mark.parametrize("grace", [0, math.inf])
async def test_a_worker_that_has_called_shutdown_goes_on_to_its_end(grace):
    """It stays RUNNING until its work has ended, and what that raises then is its error."""
    states = []

    async def stop():
        try:
            await app.shutdown(grace)
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            states.append(get_current_worker().state)
            raise ValueError("cleanup failed") from None

    async with Node("app") as app:
        app.run_worker(settle)
        caller = app.run_worker(stop, exit_on_error=False)
    assert states == [RUNNING]
    assert (caller.state, str(caller.error)) == (ERROR, "cleanup failed")


class Stop(Message, bubble=False):
    pass


class Stopping(Node):
    """Shuts the root down, shielded, and records which workers were left by then."""

    left = None

    async def stop(self):
        with anyio.fail_after(RENDEZVOUS, shield=True):
            await self.root.shutdown(grace=RENDEZVOUS)
        self.root.left = {each.name for each in self.root.workers} - {"caller"}

    async def on_stop(self, message):
        await self.stop()

    def from_thread(self):
        with suppress(WorkerCancelled):  # like a daemon
            self.call_from_thread(self.stop)


@pytest.mark.parametrize("where", ["root", "block", "mounted"])
@pytest.mark.parametrize("by", ["worker", "daemon", "two workers", "handler", "thread"])
async def test_shutdown_by_a_caller_that_is_shielded(by, where):
    """A caller of shutdown() waits for all but itself and those that cannot end before it."""
    async with AsyncExitStack() as stack:
        app = node = await stack.enter_async_context(Stopping("app"))
        if where == "block":
            node = await stack.enter_async_context(Stopping("page", parent=app))
        elif where == "mounted":
            node = await app.mount(Stopping("page"))
        app.run_worker(settle, name="other")
        node.run_worker(settle, name="neighbour")
        if by == "handler":
            node.post_message(Stop())
        elif by == "thread":
            node.run_worker(node.from_thread, thread=True, name="caller")
        else:
            for _ in range(2 if by == "two workers" else 1):
                node.run_worker(node.stop, daemon=by == "daemon", name="caller")
        if by == "daemon":  # else leaving the blocks cancels it before it begins
            await until(lambda: app.left is not None)
    assert app.left == set()


async def test_a_daemon_that_has_given_up_a_shutdown():
    """A worker whose call of shutdown() was cancelled still counts as a daemon."""
    gate = anyio.Event()

    async def stop():
        with anyio.CancelScope() as scope:
            scope.cancel()
            await app.shutdown(grace=math.inf)
        gate.set()
        await anyio.sleep_forever()

    async with Node("app") as app:
        page = await app.mount(Node("page"))
        callers = [node.run_worker(stop) for node in (app, page)]
        other = app.run_worker(gate.wait)
    assert [caller.cancel_reason for caller in callers] == ["only daemons were left"] * 2
    assert other.state is SUCCESS


async def test_a_shutdown_by_a_worker_names_others_only():
    """ShutdownTimeout does not name the worker that called shutdown()."""

    async def stop():
        with anyio.CancelScope(shield=True):
            try:
                await app.shutdown(deadline=1e-3)
            finally:
                gate.set()

    async def be_deaf():
        with anyio.CancelScope(shield=True):
            await gate.wait()

    gate = anyio.Event()
    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            deaf = await app.start_worker(be_deaf)
            app.run_worker(stop)
    (error,) = caught.value.exceptions
    assert isinstance(error, ShutdownTimeout)
    assert error.workers == (deaf,)


async def test_shutdown_while_a_handler_hangs():
    """shutdown() cancels a handler that does not end."""
    inside = anyio.Event()

    class App(Node):
        async def on_worker_state_changed(self, event):
            inside.set()
            await anyio.sleep_forever()

    async with App() as app:
        app.run_worker(anyio.sleep_forever)
        await inside.wait()
        await app.shutdown()
        assert not app.workers


async def test_shutdown_misused():
    """shutdown() needs an open node, a valid grace period, and the event loop of the node."""
    app = Node("app")
    with pytest.raises(WorkerError, match=r"which is not open yet$"):
        await app.shutdown()

    async def elsewhere():
        with pytest.raises(WorkerError, match="outside its event loop; from a thread use"):
            await app.shutdown()

    async with app:
        for bad in (-1, math.nan):
            with pytest.raises(WorkerError, match="grace must be 0 seconds or more"):
                await app.shutdown(bad)
        await app.run_worker(elsewhere, thread=True)
    await app.shutdown()  # closed, so it returns at once


async def test_cancelled_shutdown():
    """Cancelling a call of shutdown() ends the wait; the node still takes no new work."""
    async with Node("app") as app:
        worker = app.run_worker(anyio.sleep_forever)
        await settle()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await app.shutdown(grace=math.inf)
        assert worker.state is RUNNING
        with pytest.raises(WorkerError, match="shutting down"):
            app.run_worker(anyio.sleep_forever)
        worker.cancel()


# threads as the node ends


async def test_thread_is_waited_for():
    """A cancelled block waits until its thread has really ended."""
    meeting = Meeting()
    ended = []

    def work():
        meeting()
        ended.append(True)

    async with anyio.create_task_group() as tasks:
        async with Node() as app:
            app.run_worker(work, thread=True)
            await meeting.until_arrived()
            app.cancel()
            tasks.start_soon(set_later, meeting.go)
        assert ended == [True]


async def test_messages_on_their_way_from_threads_are_waited_for():
    """Messages posted from a foreign thread before the block ends are handled."""

    class Note(Message):
        pass

    class App(Node):
        got = 0

        def on_note(self, message):
            self.got += 1

    for _ in range(20):
        posted = threading.Event()
        results = []

        def post(app, results=results, posted=posted):
            results.extend(app.post_message(Note()) for _ in range(10))
            posted.set()

        async with App() as app:
            thread = threading.Thread(target=post, args=(app,))
            thread.start()
            assert posted.wait(RENDEZVOUS)  # blocks the loop, so they cannot have been handled yet
        thread.join()
        assert results == [True] * 10
        assert app.got == 10
        assert app.post_message(Note()) is False


async def test_long_lived_node_does_not_grow():
    """Finished workers, removed nodes and empty groups leave nothing in the tree."""
    async with Node() as app:
        for n in range(50):
            await app.run_worker(anyio.lowlevel.checkpoint, group=str(n))
            worker = app.run_worker(anyio.sleep_forever)
            worker.cancel()
            panel = await app.mount(Node())
            await panel.remove()
        await settle()
        assert app._creche_groups == {}
        assert not app._creche_runners._ready
        assert app._creche_children == {}
        assert app._creche_waiting == {}


def test_private_names_have_a_prefix_of_their_own():
    """All private names of a Node have a prefix, so a subclass may use any other."""
    names = [name for cls in Node.__mro__[:-1] for name in vars(cls)] + list(vars(Node("app")))
    private = [name for name in names if name.startswith("_") and not name.startswith("__")]
    assert [name for name in private if not name.startswith("_creche_")] == []


@pytest.mark.parametrize("daemon", [False, True])
async def test_work_that_wants_to_start_more_as_its_node_shuts_down(daemon):
    """Work refused by a node shutting down fails alone; others keep their grace period."""
    gate, asked = anyio.Event(), anyio.Event()

    async def consume():
        await asked.wait()
        app.run_worker(gate.wait)

    async def hold_out():
        asked.set()
        await settle()
        return 1

    async with Node("app") as app:
        consumer = app.run_worker(consume, daemon=daemon)
        other = app.run_worker(hold_out)
        await app.shutdown(RENDEZVOUS)
        assert (consumer.state, other.result) == (ERROR, 1)
        assert "shutting down" in str(consumer.error)


async def test_work_that_wants_to_start_more_on_another_node():
    """Starting work on a node that has closed is a mistake, so it fails the worker's node."""
    async with Node("gone") as gone:
        pass

    async def consume():
        gone.run_worker(settle)

    with pytest.raises(ExceptionGroup):
        async with Node("app") as app:
            app.run_worker(consume)
