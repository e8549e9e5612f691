"""Work on a Dask cluster: what is specific to Dask. What holds for all ways is in test_ways.py.

The cluster consists of threads. The loss of a machine is tested in test_dask_machines.py.
"""

from __future__ import annotations

import gc
import logging
import pickle
import signal
import sys
import weakref
from concurrent.futures import CancelledError
from functools import partial
from types import SimpleNamespace

import pytest

import farwork
from creche import Node, WorkerCrashed, WorkerError
from engines import client
from helpers import CANCELLED, ERROR, PENDING, RUNNING, Listener, run_python, until

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

distributed = pytest.importorskip("distributed")

from distributed.scheduler import KilledWorker  # noqa: E402

from creche.dask import OnDask, _line, _there  # noqa: E402 (where it is not installed)
from creche.services import RestartsExhausted  # noqa: E402 (as above)


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Start the cluster first, so that its threads are not taken for leaks of a single test."""
    client()


@pytest.fixture
def on_dask():
    """An OnDask for the cluster that the tests share."""
    return OnDask(client())


@pytest.fixture
def calls(monkeypatch):
    """The calls of Client.run(), by which the home process notifies the cluster."""
    calls, run = [], distributed.Client.run

    def noting(self, function, *args, **options):
        calls.append((function.__name__, *args))
        return run(self, function, *args, **options)

    monkeypatch.setattr(distributed.Client, "run", noting)
    return calls


async def begun(app, call, sign, **options):
    """Run work that creates a file when it begins, and wait until its worker is RUNNING."""
    worker = app.run_worker(call, **options)
    await until(lambda: sign.exists() and worker.state is RUNNING)
    return worker


async def fill(app, way, folder):
    """Keep both threads of the cluster busy until a gate is opened."""
    gate = folder / "gate"
    return gate, [
        await begun(app, partial(farwork.hold, folder / name, gate), folder / name, where=way)
        for name in "ab"
    ]


def test_groups_of_errors_are_pickled():
    """Exception groups survive pickling, although Dask changes how errors are pickled."""
    for group in (ExceptionGroup("g", [ValueError(1)]), RestartsExhausted("s", [ValueError(1)])):
        again = pickle.loads(pickle.dumps(group))  # noqa: S301 (our own)
        assert repr(again) == repr(group)
        assert repr(again.exceptions) == repr(group.exceptions)


def left_on_scheduler(dask_scheduler):
    topics = [topic for topic in dask_scheduler._broker._topics if topic.startswith("creche")]
    return topics, [key for key in dask_scheduler.tasks if str(key).startswith("creche")]


# the queue of the cluster


async def test_cancelled_in_the_queue(on_dask, tmp_path, calls):
    """Work cancelled in the cluster's queue never runs, and one message cancels all of it."""
    async with Listener() as app:
        gate, busy = await fill(app, on_dask, tmp_path)
        signs = [tmp_path / f"sign{number}" for number in range(20)]
        queued = [app.run_worker(partial(farwork.tell, sign), where=on_dask) for sign in signs]
        await until(lambda: all(worker._thread.is_handed_over for worker in queued))
        assert {worker.state for worker in queued} == {PENDING}
        assert queued[0].is_queued
        for worker in queued:
            worker.cancel()
        assert queued[0].state is PENDING  # it may have begun by now
        for worker in queued:
            await worker.join()
        assert [name for name, *_ in calls] == ["hear"]
        gate.touch()
        for worker in busy:
            await worker
    assert app.told_of(queued[0]) == [PENDING, CANCELLED]
    assert {worker.state for worker in queued} == {CANCELLED}
    assert not any(sign.exists() for sign in signs)


async def test_called_off_before_it_comes(on_dask, tmp_path, monkeypatch):
    """A cancelled job does not begin, even if the scheduler is late to forget it."""

    async def be_late(line, future):
        pass

    monkeypatch.setattr(_line.Line, "cancel", be_late)
    async with Node("app") as app:
        gate, _ = await fill(app, on_dask, tmp_path)
        kept = []
        monkeypatch.setattr(distributed.Future, "release", lambda each: kept.append(each))  # noqa: PLW0108 (a method)
        queued = app.run_worker(partial(farwork.tell, tmp_path / "sign"), where=on_dask)
        await until(lambda: queued._thread.is_handed_over)
        queued.cancel()
        await queued.join()
        gate.touch()
        await until(lambda: len(kept) == 3 and all(each.done() for each in kept))
        assert queued.state is CANCELLED
        assert not (tmp_path / "sign").exists()
        monkeypatch.undo()
        for each in kept:
            each.release()


async def test_nothing_is_left(on_dask, tmp_path, monkeypatch):
    """When the root has closed, nothing remains on the scheduler or in the processes."""
    monkeypatch.setattr(_there, "_MEMORY", 0)
    async with Node("app") as app:
        gate, _ = await fill(app, on_dask, tmp_path)
        queued = app.run_worker(farwork.pid, where=on_dask)
        await until(lambda: queued._thread.is_handed_over)
        queued.cancel()
        await queued.join()
        gate.touch()
        assert await app.run_worker(partial(farwork.count, 3), where=on_dask) == 100.0
    await until(lambda: not _there._running and not queued._handle)
    # Dask sends releases in a batch, 10 ms later.
    await until(lambda: client().run_on_scheduler(left_on_scheduler) == ([], []))


# data that is there


async def test_scattered_data(on_dask):
    """Futures among the arguments arrive as their values; others stay as they are."""
    # With unique keys, because the scheduler may just now forget the hashed key of a test before.
    first, second = client().scatter([40, 2], hash=False)
    async with Node("app") as app:
        assert await app.run_worker(partial(farwork.add, first, second=second), where=on_dask) == 42
        assert await app.run_worker(partial(farwork.add, first, 1), where=on_dask) == 41
        isolated = OnDask(client(), isolate=True)
        assert await app.run_worker(partial(farwork.add, first, second), where=isolated) == 42


# work that can be killed


async def test_isolated_work_is_killed(tmp_path):
    """Isolated work runs in a process of its own and is killed if it ignores cancellation."""
    sign = tmp_path / "runs"
    async with Listener() as app:
        way = OnDask(client(), isolate=True)
        assert await app.run_worker(farwork.pid, where=way) != await app.run_worker(
            farwork.pid, where=OnDask(client())
        )
        worker = await begun(app, partial(farwork.ignore, sign), sign, where=way)
        worker.cancel()
        await worker.join()
    assert app.told_of(worker) == [PENDING, RUNNING, CANCELLED]
    assert worker.finished_at - worker.cancelled_at < farwork.RENDEZVOUS


async def test_grace_of_isolated_work(tmp_path):
    """Isolated work reports its steps, and what it returns within its grace period is kept."""
    sign = tmp_path / "runs"
    way = OnDask(client(), isolate=True, grace=farwork.RENDEZVOUS)
    async with Node("app") as app:
        assert await app.run_worker(partial(farwork.count, 5), where=way) == 100.0
        worker = await begun(app, partial(farwork.give_when_cancelled, sign, 7), sign, where=way)
        worker.cancel("enough")
        await worker.join()
    assert (worker.state, worker.result) == (CANCELLED, (7, True, "enough"))


@pytest.mark.parametrize(
    ("work", "exitcode"), [(farwork.leave_at_once, 3), (farwork.kill_itself, -signal.SIGKILL)]
)
async def test_isolated_work_that_crashes(work, exitcode):
    """A crash of isolated work fails its worker with WorkerCrashed and affects no other work."""
    way = OnDask(client(), isolate=True)
    async with Node("app", exit_on_error=False) as app:
        worker = await app.run_worker(work, where=way).join()
        assert await app.run_worker(partial(farwork.add, 1, 2), where=way) == 3
    assert isinstance(worker.error, WorkerCrashed)
    assert (worker.error.exitcode, worker.attempt) == (exitcode, 1)


async def test_error_of_isolated_work():
    """An error of isolated work arrives as the original exception."""
    async with Node("app", exit_on_error=False) as app:
        way = OnDask(client(), isolate=True)
        worker = await app.run_worker(partial(farwork.fail, "burnt"), where=way).join()
    assert repr(worker.error) == "ValueError('burnt')"


# work that cannot be killed


async def test_abandoned_work(on_dask, tmp_path, caplog):
    """Abandoned work keeps running. Its worker is CANCELLED at once, and its error is logged."""
    sign = tmp_path / "runs"
    caplog.set_level(logging.ERROR, "creche")
    async with Node("app") as app:
        worker = await begun(
            app,
            partial(farwork.fail_when_cancelled, sign),
            sign,
            where=on_dask,
            abandon_on_cancel=True,
        )
        worker.cancel()
        await worker.join()
        assert worker.state is CANCELLED
        await until(lambda: not worker.is_abandoned)
    assert "the abandoned work of worker 'fail_when_cancelled' failed" in caplog.text


# the client


async def test_asynchronous_client(anyio_backend, tmp_path):
    """On asyncio, an asynchronous client of the node's event loop works too."""
    if anyio_backend[0] == "trio":
        pytest.skip("an asynchronous client is asyncio's")
    address = client().scheduler_info()["address"]
    async with distributed.Client(address, asynchronous=True) as own, Node("app") as app:
        way = OnDask(own)
        assert await app.run_worker(partial(farwork.count, 3), where=way) == 100.0
        gate, busy = await fill(app, way, tmp_path)
        queued = app.run_worker(farwork.pid, where=way)
        await until(lambda: queued._thread.is_handed_over)
        queued.cancel()
        await queued.join()
        assert queued.state is CANCELLED
        gate.touch()
        for worker in busy:
            await worker


async def test_closed_client():
    """With a closed client, the worker fails, and its error says that handing over failed."""
    closed = distributed.Client(client().scheduler_info()["address"])
    closed.close()
    async with Node("app", exit_on_error=False) as app:
        worker = await app.run_worker(farwork.pid, where=OnDask(closed)).join()
    assert worker.state is ERROR
    assert str(worker.error).startswith("worker 'pid' cannot be handed over: ")


async def test_options_of_submit():
    """OnDask passes further options on to Client.submit()."""
    first, second = client().scheduler_info()["workers"]
    async with Node("app") as app:
        for address in (first, second, first):
            way = OnDask(client(), workers=[address], priority=3)
            assert await app.run_worker(farwork.machine, where=way) == address


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"client": 3}, "takes a client of distributed, not 3"),
        ({"grace": -1, "isolate": True}, "grace must be 0 seconds or more, not -1"),
        ({"grace": 1}, "grace is for work that can be killed; add isolate=True"),
        ({"key": "x"}, "key cannot be chosen for work of a worker"),
    ],
)
def test_arguments(arguments, told):
    """Invalid arguments are refused at the call."""
    with pytest.raises(WorkerError, match=told):
        OnDask(**{"client": client(), **arguments})


def test_shows_its_client(on_dask):
    """The repr of OnDask shows its client."""
    assert repr(on_dask).startswith("OnDask(<Client")


async def test_work_that_is_not_installed_there(on_dask, monkeypatch):
    """An error from Dask that is not a crash says what has to be installed on the workers."""

    def refuse(*_):
        raise ModuleNotFoundError("No module named 'creche'")

    monkeypatch.setattr("creche.dask._way.run", refuse)
    async with Node("app", exit_on_error=False) as app:
        worker = await app.run_worker(farwork.pid, where=on_dask).join()
    assert "could not be run on the cluster: ModuleNotFoundError" in str(worker.error)
    assert worker.state is ERROR


# machines that are lost; see also test_dask_machines.py


def line_of(app):
    """Return the Line that a tree keeps for the cluster."""
    (kept,) = app._creche_resources.values()
    return kept.resource


async def test_isolated_work_begins_once(tmp_path):
    """Isolated work that is begun a second time, after its machine was lost, counts as crashed."""
    sign, gate = tmp_path / "runs", tmp_path / "gate"
    async with Node("app", exit_on_error=False) as app:
        way = OnDask(client(), isolate=True)
        worker = await begun(app, partial(farwork.hold, sign, gate), sign, where=way)
        line = line_of(app)
        (key,) = line._entries
        line.take(key, "another", b"")
        gate.touch()
        await worker.join()
    assert isinstance(worker.error, WorkerCrashed)
    assert (str(worker.error), worker.attempt) == (
        "what ran worker 'hold' is gone: its machine was lost",
        1,
    )


async def test_isolated_work_on_a_lost_machine_alone(tmp_path, monkeypatch):
    """Isolated work on a lost machine counts as crashed, even if no other machine begins it."""
    monkeypatch.setattr(_line, "_LOOK", 0)
    looks = []

    async def look(client, *, asynchronous):
        assert asynchronous
        looks.append(len(looks))
        if len(looks) == 1:
            raise OSError("busy")
        return await client.scheduler.ncores() if len(looks) == 2 else {}

    monkeypatch.setattr(distributed.Client, "nthreads", look)
    sign, gate = tmp_path / "runs", tmp_path / "gate"
    async with Node("app", exit_on_error=False) as app:
        way = OnDask(client(), isolate=True)
        worker = app.run_worker(partial(farwork.hold, sign, gate), where=way)
        await worker.join()
        gate.touch()
        again = app.run_worker(partial(farwork.add, 1, 2), where=way)  # watched again
        await again.join()
        await until(lambda: not _there._running)
    assert str(worker.error) == "what ran worker 'hold' is gone: its machine was lost"
    assert isinstance(worker.error, WorkerCrashed)
    assert looks[:3] == [0, 1, 2]


async def test_nobody_expects_it_any_more(on_dask, monkeypatch):
    """Work that asks whether to begin is refused if its worker no longer exists."""
    said = []

    async def say(_, batch):
        said.append(batch.told)

    monkeypatch.setattr(_line.Line, "_say", say)
    async with Node("app") as app:
        await app.run_worker(farwork.pid, where=on_dask)
        line = line_of(app)
        line.take("lost", "", b"")
        line.take("lost", "machine", b"")
        await until(lambda: said)
    assert said[0].answers == {"lost": False}


async def test_cluster_that_cannot_be_told(on_dask, tmp_path, monkeypatch):
    """If the cluster cannot be notified of a cancellation, the worker waits for the work to end."""

    async def refuse(*_, **__):
        raise OSError("lost")

    async with Listener() as app:
        sign, gate = tmp_path / "runs", tmp_path / "gate"
        worker = await begun(app, partial(farwork.hold, sign, gate), sign, where=on_dask)
        monkeypatch.setattr(distributed.Client, "run", refuse)
        monkeypatch.setattr(distributed.Client, "run_on_scheduler", refuse)
        worker.cancel()
        line = line_of(app)
        await until(lambda: line._batch.told.stops == {} and not line._wanted.is_set())
        assert worker.state is RUNNING
        gate.touch()
        await worker.join()
    assert app.told_of(worker) == [PENDING, RUNNING, CANCELLED]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            KilledWorker("key", SimpleNamespace(address="tcp://lost"), 3),
            "what ran worker 'pid' is gone: Attempted to run task",
        ),
        (CancelledError("lost-client"), "what ran worker 'pid' is gone: lost-client"),
    ],
)
async def test_what_dask_says_of_a_loss(on_dask, monkeypatch, error, told):
    """Work that Dask gives up, or whose cluster is gone, fails with WorkerCrashed."""

    async def give_up(*_, **__):
        raise error

    monkeypatch.setattr(distributed.Client, "gather", give_up)
    async with Node("app", exit_on_error=False) as app:
        worker = await app.run_worker(farwork.pid, where=on_dask).join()
    assert isinstance(worker.error, WorkerCrashed)
    assert str(worker.error).startswith(told)


def test_event_after_the_end():
    """A message that arrives after the tree is gone is ignored."""
    taken = []

    class Taker:
        """A stand-in for a line."""

        def take(self, *message):
            taken.append(message)

    one = Taker()
    hand_over = partial(_line._hand_over, weakref.ref(one))
    hand_over((0.0, ("key", "steps", b"1")))
    del one
    gc.collect()
    hand_over((0.0, ("key", "steps", b"2")))
    assert taken == [("key", "steps", b"1")]


def test_the_extra_is_named():
    """Without distributed installed, importing creche.dask says what to install."""
    program = "import sys; sys.modules['distributed'] = None; import creche.dask"
    done = run_python(program)
    assert done.returncode == 1
    assert "pip install 'creche[dask]'" in done.stderr.splitlines()[-1]
