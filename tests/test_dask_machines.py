"""Work on a Dask cluster of real processes, which are lost; ``nox -s cluster`` runs it."""

from __future__ import annotations

import os
import signal
from functools import partial

import anyio
import pytest

import farwork
from creche import Node, WorkerCrashed
from helpers import CANCELLED, RENDEZVOUS, RUNNING, SUCCESS, until

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.skipif(
    "CRECHE_CLUSTER" not in os.environ, reason="starts clusters of processes; nox -s cluster"
)

from creche.dask import OnDask  # noqa: E402 (where it is not installed)


@pytest.fixture(autouse=True)
def nothing_left():
    """Do not check for threads, as Dask starts some for each process that it restarts."""


@pytest.fixture
def cluster():
    """Two machines, each a process with one thread, and a nanny that starts it again."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0"
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    """A client of the cluster, once both machines are connected."""
    with distributed.Client(cluster) as client:
        client.wait_for_workers(2, timeout=3 * RENDEZVOUS)
        yield client


async def lose(worker):
    """Kill the process of a machine."""
    await until(lambda: worker.state is RUNNING)
    os.kill(int(worker.where.split()[1]), signal.SIGKILL)


async def test_lost_machine(client, tmp_path):
    """Work on a machine that is lost begins again on another one, with its steps at 0."""
    gate = tmp_path / "gate"
    async with Node("app") as app:
        worker = app.run_worker(partial(farwork.hold, None, gate), where=OnDask(client))
        await lose(worker)
        with anyio.fail_after(6 * RENDEZVOUS):
            while worker.attempt == 1:
                await anyio.lowlevel.checkpoint()
        assert worker.state is RUNNING
        gate.touch()
        await worker.join()
    assert (worker.state, worker.attempt) == (SUCCESS, 2)


async def test_isolated_work_on_a_lost_machine(client, tmp_path):
    """Isolated work on a lost machine has crashed, as it is started only once."""
    async with Node("app", exit_on_error=False) as app:
        way = OnDask(client, isolate=True)
        worker = app.run_worker(partial(farwork.hold, None, tmp_path / "gate"), where=way)
        await lose(worker)
        await worker.join()
    assert isinstance(worker.error, WorkerCrashed)
    assert worker.attempt == 1


async def test_isolated_work_when_the_only_machine_is_lost(tmp_path):
    """Isolated work crashes if the only machine is lost and no other one comes."""
    going = distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0")
    with going, distributed.Client(going) as client:
        async with Node("app", exit_on_error=False) as app:
            hold = partial(farwork.hold, None, tmp_path / "gate")
            worker = app.run_worker(hold, where=OnDask(client, isolate=True))
            await until(lambda: worker.state is RUNNING)
            await anyio.to_thread.run_sync(going.scale, 0)
            with anyio.fail_after(3 * RENDEZVOUS):
                await worker.join()
            (tmp_path / "gate").touch()
    assert isinstance(worker.error, WorkerCrashed)
    assert "its machine was lost" in str(worker.error)


async def test_work_that_kills_its_machines(client):
    """Dask gives up work that kills each of its machines."""
    async with Node("app", exit_on_error=False) as app:
        worker = await app.run_worker(farwork.leave_at_once, where=OnDask(client)).join()
    assert isinstance(worker.error, WorkerCrashed)
    assert "those workers died while running it" in str(worker.error)


async def test_isolated_work_is_killed_there(client, tmp_path):
    """Cancelled isolated work is killed on its machine, which keeps running."""
    sign = tmp_path / "runs"
    async with Node("app") as app:
        way = OnDask(client, isolate=True)
        worker = app.run_worker(partial(farwork.ignore, sign), where=way)
        await until(sign.exists)
        worker.cancel()
        await worker.join()
        assert worker.state is CANCELLED
        assert worker.finished_at - worker.cancelled_at < RENDEZVOUS
        assert await app.run_worker(partial(farwork.add, 1, 2), where=way) == 3


async def test_lost_cluster(tmp_path):
    """If the whole cluster goes away, its work has crashed."""
    going = distributed.LocalCluster(n_workers=1, dashboard_address=":0")
    with going, distributed.Client(going) as client:
        async with Node("app", exit_on_error=False) as app:
            hold = partial(farwork.hold, None, tmp_path / "gate")
            worker = app.run_worker(hold, where=OnDask(client))
            await until(lambda: worker.state is RUNNING)
            await anyio.to_thread.run_sync(going.close)
            await worker.join()
    assert isinstance(worker.error, WorkerCrashed)
