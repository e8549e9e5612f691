"""Waiting for room in a group: back-pressure for a long input."""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from creche import DeadlockError, Node, WorkerError, WorkerFailed
from helpers import PENDING, RENDEZVOUS, give_later, settle


async def test_room_bounds_what_is_there():
    """A task that waits for room before each worker never has more workers than the limit."""
    most = 0
    async with Node("app") as app:
        group = app.group("jobs", limit=3)
        for _ in range(20):
            await group.room()
            group.run_worker(partial(settle, 5))
            most = max(most, len(group))
            assert group.queued == 0
    assert most == 3


async def test_room_without_limit():
    """A group without a limit always has room."""
    async with Node("app") as app:
        group = app.group("jobs")
        group.run_worker(anyio.lowlevel.checkpoint)
        await group.room()


async def test_room_before_the_node_is_open():
    """Before the node is open there is room, as nothing runs or is queued yet."""
    app = Node("app")
    group = app.group("jobs", limit=1)
    worker = group.run_worker(anyio.lowlevel.checkpoint, start=False)
    with anyio.fail_after(RENDEZVOUS):
        await group.room()
    assert worker.state is PENDING


async def test_each_that_waits_gets_one():
    """If several tasks wait for room, one of them goes on for each worker that leaves."""
    gates = [anyio.Event() for _ in range(3)]
    made = []

    async def produce(number):
        await group.room()
        made.append(number)
        group.run_worker(partial(give_later, None, gates[number]))

    async with Node("app") as app:
        group = app.group("jobs", limit=1)
        for number in range(3):
            app.run_worker(partial(produce, number))
        await settle()
        assert len(made) == 1
        gates[made[0]].set()
        await settle()
        assert len(made) == 2
        for gate in gates:
            gate.set()
    assert sorted(made) == [0, 1, 2]


async def test_queue_counts():
    """Queued workers count, so there is no room while the queue is not empty."""
    gate = anyio.Event()
    async with Node("app") as app:
        group = app.group("jobs", limit=2)
        workers = [group.run_worker(partial(give_later, None, gate)) for _ in range(3)]
        assert workers[2].state is PENDING
        with anyio.move_on_after(0) as scope:
            await group.room()
        assert scope.cancelled_caught
        workers[0].cancel()
        await settle()
        with anyio.move_on_after(0) as scope:
            await group.room()
        assert scope.cancelled_caught
        gate.set()


async def test_a_higher_limit_makes_room():
    """A task that waits for room goes on when the limit is raised."""
    gate = anyio.Event()
    async with Node("app") as app:
        group = app.group("jobs", limit=1)
        group.run_worker(partial(give_later, None, gate))
        waiting = app.run_worker(group.room)
        await settle()
        assert not waiting.is_finished
        group.limit = 2
        await waiting
        gate.set()


async def test_room_for_oneself():
    """A worker that holds all the room in a group and waits for more gets an error."""
    async with Node("app", exit_on_error=False) as app:
        group = app.group("jobs", limit=1)
        worker = group.run_worker(group.room)
        with pytest.raises(WorkerFailed, match="waits for room in group 'jobs'"):
            await worker
    assert isinstance(worker.error, DeadlockError)


async def test_ring_through_room():
    """A cycle of a worker that waits for room and one that holds it is an error."""
    gate = anyio.Event()
    async with Node("app", exit_on_error=False) as app:
        group = app.group("jobs", limit=1)

        async def hold():
            await gate.wait()
            await waiting.wait()

        holder = group.run_worker(hold)
        waiting = app.run_worker(group.room)
        await settle()
        assert "room in group 'jobs'" in app.snapshot().groups[1].workers[0].waits_for
        gate.set()
        with pytest.raises(WorkerFailed):
            await holder
        await waiting
    assert isinstance(holder.error, DeadlockError)


async def test_worker_that_waits_while_it_has_a_node_open():
    """A worker may wait for room while it has a node of its own open."""
    gate = anyio.Event()

    async def produce():
        async with Node("own"):
            await group.room()

    async with Node("app") as app:
        group = app.group("jobs", limit=1)
        group.run_worker(partial(give_later, None, gate))
        producer = app.run_worker(produce)
        await settle()
        gate.set()
        await producer


async def test_room_from_a_thread():
    """room() is for the event loop, so a thread has to call it through the loop."""

    def produce():
        with pytest.raises(WorkerError, match=r"use node\.call_from_thread"):
            anyio.run(group.room)
        return app.call_from_thread(group.room)

    async with Node("app") as app:
        group = app.group("jobs", limit=1)
        await app.run_worker(produce, thread=True)
