"""Waits that would never end are an error at once. Waits that can end are not."""

from __future__ import annotations

import asyncio
import sys

import anyio
import pytest
from anyio import from_thread

from creche import DeadlockError, Node, WorkerFailed, get_current_worker
from helpers import CANCELLED, RUNNING, SUCCESS, settle


async def waits_for_itself():
    await get_current_worker().wait()


async def test_self_for_whom_nobody_waits():
    """A worker that waits for itself gets an error, even if nothing else waits for it."""
    async with Node() as app:
        worker = app.run_worker(waits_for_itself, exit_on_error=False)
        await settle()
        assert isinstance(worker.error, DeadlockError)
        worker.cancel()


@pytest.mark.parametrize("how", ["wait", "await", "wait_for_complete", "group"])
async def test_self(how):
    """A worker cannot wait for itself, in any way."""

    async def work():
        me = get_current_worker()
        if how == "wait":
            await me.wait()
        elif how == "await":
            await me
        elif how == "wait_for_complete":
            await app.workers.wait_for_complete()
        else:
            await app.group("default").wait()

    async with Node() as app:
        worker = app.run_worker(work, name="me", exit_on_error=False)
        with pytest.raises(WorkerFailed) as caught:
            await worker.wait()
        assert isinstance(caught.value.error, DeadlockError)
        assert str(caught.value.error) == (
            "waiting would never end: worker 'me' waits for itself; leave that out, or wait in "
            "another worker"
        )


@pytest.mark.parametrize("length", [2, 3, 10])
async def test_ring(length):
    """A cycle of any length is detected when it closes, and the error names its workers."""
    workers = []

    async def wait_for_next(n):
        await anyio.lowlevel.checkpoint()
        await workers[(n + 1) % length].wait()

    async with Node() as app:
        workers += [
            app.run_worker(wait_for_next(n), name=f"w{n}", exit_on_error=False)
            for n in range(length)
        ]
        await app.workers.wait_for_complete(workers)
        errors = [worker.error for worker in workers]
        (first,) = [error for error in errors if isinstance(error, DeadlockError)]
        for n in range(length):
            assert (
                f"worker 'w{n}' waits for worker 'w{(n + 1) % length}'" in str(first)
                or n == (errors.index(first) - 1) % length
            )
        assert sum(isinstance(error, WorkerFailed) for error in errors) == length - 1


async def test_owner_of_the_node():
    """A worker cannot wait for the worker that has opened its node."""

    async def owner():
        async with Node("inner") as inner, Node("below", parent=inner) as below:
            await below.run_worker(wait_for_owner, name="child")

    async def wait_for_owner():
        await worker.wait()

    async with Node() as app:
        worker = app.run_worker(owner, name="owner", exit_on_error=False)
        with pytest.raises(WorkerFailed) as caught:
            await worker.wait()
    message = str(caught.value.error.exceptions[0].exceptions[0])
    assert message.startswith("waiting would never end: worker 'child' waits for worker 'owner'")


async def test_ring_through_an_owner():
    """A cycle through a node and a worker of another node is detected, too."""

    async def owner():
        async with Node("inner") as inner:
            inner.run_worker(wait_for_far, name="near")

    async def wait_for_far():
        await far.wait()

    async def far_away():
        await settle()
        await worker.wait()

    async with Node() as app:
        far = app.run_worker(far_away, name="far", exit_on_error=False)
        worker = app.run_worker(owner, name="owner", exit_on_error=False)
        await app.workers.wait_for_complete()
        assert isinstance(far.error, DeadlockError)
        assert "worker 'owner'" in str(far.error)


async def test_daemon_may_wait_for_the_owner():
    """A daemon is cancelled when its node's block ends, so it may wait for the block's task."""

    async def owner():
        async with Node("inner") as inner:
            inner.run_worker(wait_for_owner, daemon=True)
            await settle()

    async def wait_for_owner():
        await worker.wait()

    async with Node() as app:
        worker = app.run_worker(owner)
    assert worker.state is SUCCESS


async def test_queue_behind_oneself():
    """A worker that holds the only slot cannot wait for a worker that is queued behind it."""

    async def work():
        inner = app.run_worker(anyio.lowlevel.checkpoint, group="one", name="inner")
        try:
            await inner.wait()
        finally:
            inner.cancel()

    async with Node() as app:
        app.group("one", limit=1)
        worker = app.run_worker(work, group="one", name="outer", exit_on_error=False)
        with pytest.raises(WorkerFailed) as caught:
            await worker.wait()
        assert str(caught.value.error).startswith(
            "waiting would never end: worker 'outer' waits for worker 'inner' waits for "
            "worker 'outer'"
        )


async def test_start_worker_behind_oneself():
    """A worker that holds the only slot cannot start another and wait. The other is withdrawn."""

    async def work():
        await app.group("one").start_worker(anyio.lowlevel.checkpoint, name="inner")

    async with Node() as app:
        group = app.group("one", limit=1)
        worker = app.run_worker(work, group="one", exit_on_error=False)
        with pytest.raises(WorkerFailed) as caught:
            await worker.wait()
        assert isinstance(caught.value.error, DeadlockError)
        assert len(group) == 0


async def test_all_holders_have_to_be_stuck():
    """A queued worker is stuck only if every worker that holds a slot is stuck."""
    gate = anyio.Event()

    async def work():
        await settle()
        await queued.wait()

    async with Node() as app:
        app.group("two", limit=2)
        first = app.run_worker(work, group="two", exit_on_error=False)
        other = app.run_worker(gate.wait, group="two")
        queued = app.run_worker(anyio.lowlevel.checkpoint, group="two")
        await settle(60)
        assert first.state is RUNNING  # the other slot may still become free
        gate.set()
        await first.wait()
        assert (first.state, other.state, queued.state) == (SUCCESS, SUCCESS, SUCCESS)


async def test_all_holders_stuck():
    """A deadlock is detected when the last worker with a slot waits for the queue, too."""

    async def work(turns):
        await settle(turns)
        await queued.wait()

    async with Node() as app:
        app.group("two", limit=2)
        workers = [app.run_worker(work(n), group="two", exit_on_error=False) for n in (5, 15)]
        queued = app.run_worker(anyio.lowlevel.checkpoint, group="two")
        await app.workers.wait_for_complete()
        assert sum(isinstance(worker.error, DeadlockError) for worker in workers) == 1
        assert queued.state is SUCCESS


async def test_spawned_task_may_wait():
    """A task that a worker spawned in another task group may wait for the worker."""
    got = []

    async def watch(worker):
        got.append(await worker.wait())

    async def work():
        outer.start_soon(watch, get_current_worker())
        await settle()
        return 5

    async with anyio.create_task_group() as outer, Node() as app:
        app.run_worker(work)
    assert got == [5]


async def test_spawned_task_that_outlives_its_worker():
    """A spawned task that outlives its worker may still open nodes and wait for the worker."""
    gate = anyio.Event()
    done = []

    async def later(worker):
        await gate.wait()
        async with Node("later") as later:
            await later.run_worker(anyio.lowlevel.checkpoint)
        done.append(await worker.wait())

    async def work():
        outer.start_soon(later, get_current_worker())
        return 5

    async with anyio.create_task_group() as outer:
        async with Node() as app:
            app.run_worker(work)
        gate.set()
    assert done == [5]


async def test_waiting_for_the_cancelled_is_no_deadlock():
    """A cancelled worker is woken, so waiting for it is not a deadlock."""

    async def first():
        try:
            await b.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await settle()

    async def second():
        await gate.wait()
        await a.wait()

    gate = anyio.Event()
    async with Node() as app:
        a = app.run_worker(first, name="a")
        b = app.run_worker(second, name="b", exit_on_error=False)
        await settle()
        a.cancel()
        gate.set()
        await app.workers.wait_for_complete()
        assert a.state is CANCELLED
        assert not isinstance(b.error, DeadlockError)


WAYS = {
    "from_thread": lambda node, worker: from_thread.run(worker.wait),
    "call_from_thread": lambda node, worker: node.call_from_thread(worker.wait),
}


@pytest.mark.parametrize("way", WAYS)
async def test_threads(way):
    """Waits from a thread are checked, too: for its own worker, and in a cycle."""

    def wait_for_itself():
        WAYS[way](app, get_current_worker())

    def wait_for(other):
        return lambda: WAYS[way](app, workers[other])

    async with Node() as app:
        worker = app.run_worker(wait_for_itself, thread=True, name="t", exit_on_error=False)
        with pytest.raises(WorkerFailed) as caught:
            await worker.wait()
        assert isinstance(caught.value.error, DeadlockError)
        workers = {}
        workers["a"] = app.run_worker(wait_for("b"), thread=True, exit_on_error=False, start=False)
        workers["b"] = app.run_worker(wait_for("a"), thread=True, exit_on_error=False, start=False)
        app.workers.start_all()
        await app.workers.wait_for_complete()
        errors = [worker.error for worker in workers.values()]
        assert sorted(type(error).__name__ for error in errors) == ["DeadlockError", "WorkerFailed"]


async def test_thread_may_wait_for_another():
    """A thread may wait for a worker that can end."""

    async def five():
        await settle()
        return 5

    async with Node() as app:
        other = app.run_worker(five)
        for way in WAYS.values():
            assert await app.run_worker(lambda way=way: way(app, other), thread=True) == 5


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of 3.12")
def test_a_task_that_is_begun_eagerly_is_not_its_maker():
    """A task that starts eagerly within a worker's step may wait for that worker."""

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

        async def wait(worker):
            return await worker.wait()

        async def work():
            task = asyncio.create_task(wait(get_current_worker()))
            await settle()
            assert not task.done()
            tasks.append(task)
            return 5

        async def itself():
            await get_current_worker().wait()

        tasks = []
        async with Node() as app:
            assert await app.run_worker(work) == 5
            assert await tasks[0] == 5
            with pytest.raises(WorkerFailed) as caught:
                await app.run_worker(itself, exit_on_error=False)
            assert isinstance(caught.value.error, DeadlockError)

    asyncio.run(main())
