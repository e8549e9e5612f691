"""Workers that serve: whether they are ready, how often they restarted, and whether they stall."""

from __future__ import annotations

import logging
import threading

import anyio
import pytest

from creche import (
    DeadlockError,
    Node,
    Worker,
    WorkerCancelled,
    WorkerError,
    WorkerFailed,
    format_tree,
    get_current_worker,
)
from creche.testing import virtual_time
from helpers import CANCELLED, PENDING, RENDEZVOUS, RUNNING, ExceptionGroup, leaves, settle


async def serve():
    """Become ready after some turns of the event loop, and stay so."""
    await settle()
    get_current_worker().ready("here")
    await anyio.sleep_forever()


async def fail():
    await settle()
    raise OSError("port in use")


# Whether a worker is ready.


async def test_who_waits_for_a_worker_to_be_ready():
    """All tasks that wait get the value the worker was ready with. Later ones get it at once."""
    got = []

    async def wait():
        got.append(await worker.until_ready())

    async with Node("app") as app:
        worker = app.run_worker(serve, daemon=True)
        assert not worker.is_ready
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait)
        assert worker.is_ready
        assert worker.state is RUNNING
        await wait()
        worker.ready("elsewhere")
        await wait()
    assert got == ["here"] * 5
    assert not worker.is_ready


async def test_a_worker_that_was_ready_gives_its_value_later_too():
    """until_ready() still returns the value after the worker has ended."""
    async with Node("app") as app:

        async def job():
            get_current_worker().ready(5)

        worker = app.run_worker(job)
        await worker.join()
        assert await worker.until_ready() == 5
        assert not worker.is_ready


@pytest.mark.parametrize("way", ["raises", "is cancelled", "returns", "is queued and cancelled"])
async def test_a_worker_that_ends_before_it_is_ready(way):
    """until_ready() raises what ``wait()`` would, or WorkerError if the work just returned."""
    async with Node("app", exit_on_error=False) as app:
        group = app.group("one", limit=1)
        if way == "is queued and cancelled":
            group.run_worker(anyio.sleep_forever, daemon=True)
        worker = group.run_worker({"raises": fail, "returns": settle}.get(way, anyio.sleep_forever))
        async with anyio.create_task_group() as tasks:
            if "cancelled" in way:

                async def cancel():
                    await settle()
                    worker.cancel("enough")

                tasks.start_soon(cancel)
            expected = {"raises": WorkerFailed, "returns": WorkerError}.get(way, WorkerCancelled)
            with pytest.raises(expected, match="without being ready" if way == "returns" else None):
                await worker.until_ready()


async def test_a_thread_says_that_it_is_ready():
    """A thread worker may call ready() in its thread. A cancelled worker cannot become ready."""
    go = threading.Event()

    def job():
        me = get_current_worker()
        me.ready("thread")
        assert go.wait(RENDEZVOUS)
        return me.is_ready

    async with Node("app") as app:
        worker = await app.start_worker(job, thread=True, ready=True)
        assert await worker.until_ready() == "thread"
        go.set()
        assert await worker.wait() is True

        cancelled = app.run_worker(serve)
        await settle(1)
        cancelled.cancel()
        cancelled.ready("too late")
        with pytest.raises(WorkerCancelled):
            await cancelled.until_ready()


async def test_a_worker_that_waits_for_itself_to_be_ready():
    """A worker that waits for itself to be ready gets DeadlockError."""

    async def job():
        await get_current_worker().until_ready()

    async with Node("app") as app:
        worker = await app.run_worker(job, exit_on_error=False).join()
    assert isinstance(worker.error, DeadlockError)


# start_worker(ready=True) and task_status.


async def with_status(*, task_status):
    await settle()
    task_status.started(8080)
    await anyio.sleep_forever()


async def with_ignored(port=8080, *, task_status=anyio.TASK_STATUS_IGNORED):
    await settle()
    task_status.started(port)
    await anyio.sleep_forever()


@pytest.mark.parametrize("job", [serve, with_status, with_ignored])
async def test_a_server_that_is_started(job):
    """start_worker() returns once the worker is ready, whether by ready() or by ``task_status``."""
    async with Node("app") as app:
        worker = await app.start_worker(job, ready=True, daemon=True)
        assert worker.is_ready
        assert worker.name == job.__name__
        assert await worker.until_ready() in ("here", 8080)
        other = await app.group("some").start_worker(job, ready=True, daemon=True)
        assert other.is_ready


async def test_a_server_that_cannot_be_started():
    """The caller gets WorkerFailed, and the node fails unless ``exit_on_error`` is False."""
    async with Node("app", exit_on_error=False) as app:
        with pytest.raises(WorkerFailed, match="port in use"):
            await app.start_worker(fail, ready=True)
    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            await app.start_worker(fail, ready=True)
    assert [type(error) for error in leaves(caught.value)] == [OSError]


async def test_a_server_that_tells_of_no_arguments():
    """A builtin without a readable signature is called without ``task_status``."""
    async with Node("app") as app:
        with pytest.raises(WorkerError, match="without being ready"):
            await app.start_worker(int, ready=True, thread=True)


async def test_a_start_that_is_cancelled_takes_the_worker_with_it():
    """Cancelling start_worker() cancels the worker, as it does without ``ready``."""
    async with Node("app") as app:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await app.start_worker(anyio.sleep_forever, ready=True)
        await settle()
        assert not app.workers


# Whether a node is ready.


async def test_a_node_is_ready_once_all_are():
    """A node is ready once all awaited workers below it are, and no longer once it shuts down."""
    gate = anyio.Event()

    async def late():
        await gate.wait()
        get_current_worker().ready()
        await anyio.sleep_forever()

    app = Node("app")
    assert not app.is_ready
    async with app, Node("page", parent=app) as page:
        assert app.is_ready
        app.run_worker(anyio.sleep_forever, daemon=True, stall_after=1_000)  # nothing waits for it
        await app.start_worker(serve, ready=True, daemon=True)
        assert app.is_ready
        async with anyio.create_task_group() as tasks:
            worker = page.run_worker(late, daemon=True)
            tasks.start_soon(worker.until_ready)
            await settle()
            assert (app.is_ready, page.is_ready) == (False, False)
            assert ", not ready yet" in format_tree(app)
            gate.set()
        assert (app.is_ready, page.is_ready) == (True, True)
        await app.shutdown()
        assert not app.is_ready
    async with Node("app") as app:
        app.cancel()
        assert not app.is_ready


# Attempts.


class Hearing(Node):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.told = []

    def on_worker_restarted(self, event: Worker.Restarted):
        self.told.append((event.worker, str(event.error), event.delay, event.worker.attempt))


async def test_an_attempt_that_begins_again(caplog):
    """A new attempt is counted, announced and logged, and resets the steps and the readiness."""
    go = anyio.Event()

    async def job():
        me = get_current_worker()
        me.update(3, 4)
        me.ready(1)
        await go.wait()
        me.restarted(OSError("lost"), 0.5)
        assert not me.is_ready
        await settle()
        me.ready(2)
        await anyio.sleep_forever()

    async with Hearing("app") as app:
        worker = app.run_worker(job, daemon=True)
        assert worker.attempt == 1
        assert ", not ready yet" not in format_tree(app)
        assert await worker.until_ready() == 1
        assert ", daemon, ready" in format_tree(app)
        async with (
            app.subscribe(Worker.Restarted) as of_app,
            worker.subscribe(Worker.Restarted) as mine,
        ):
            go.set()
            await settle(4)
            assert await worker.until_ready() == 2
            assert worker.attempt == 2
            assert (worker.completed_steps, worker.total_steps) == (0, None)
            await settle()
            (event,) = of_app.take_all()
            assert mine.take_all()[-1] is event
            assert "in 0.5 s" in repr(event)
            assert ", daemon, ready, attempt 2" in format_tree(app)
    assert app.told == [(worker, "lost", 0.5, 2)]
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert record.getMessage() == (
        "worker 'job' failed and is started again in 0.5 s (attempt 2): OSError('lost')"
    )
    assert record.creche_number == worker.number
    assert record.exc_info[1].args == ("lost",)


async def test_a_worker_that_is_ready_is_told_of(caplog):
    """Ready is announced and logged once per attempt, and only while the worker runs."""
    caplog.set_level(logging.DEBUG, "creche")

    async def job():
        me = get_current_worker()
        me.ready("here")
        me.ready("there")
        me.restarted(OSError("lost"))
        me.ready()

    class App(Node):
        def on_worker_ready(self, event: Worker.Ready):
            ready.append(event)

    ready = []
    async with App("app") as app, app.subscribe(Worker.StateChanged, Worker.Ready) as events:
        worker = app.run_worker(job, name="job")
        early = app.run_worker(settle, name="early")
        early.ready()  # before it runs: nothing is announced
        await early.join()
        *_, told, told_again, last = (each for each in events.take_all() if each.worker is worker)
    assert [told, told_again] == ready
    assert repr(told) == "<Ready worker 'job'>"
    assert told.number < told_again.number < last.number
    assert worker.started_at <= told.time <= told_again.time <= worker.finished_at
    said = [each for each in caplog.records if each.getMessage() == "worker 'job' is ready"]
    assert [each.creche_number for each in said] == [worker.number] * 2


async def test_a_thread_begins_again():
    """A thread worker may call restarted() in its thread."""

    def job():
        get_current_worker().restarted(OSError("lost"))
        return get_current_worker().attempt

    async with Node("app") as app:
        assert await app.run_worker(job, thread=True).wait() == 2


async def test_a_worker_that_does_not_run_cannot_begin_again():
    """restarted() raises WorkerError before the worker runs and after it has ended."""
    async with Node("app") as app:
        worker = app.run_worker(settle)
        with pytest.raises(WorkerError, match="is PENDING, not RUNNING"):
            worker.restarted(OSError())
        await worker.join()
        with pytest.raises(WorkerError, match="is SUCCESS, not RUNNING"):
            worker.restarted(OSError())


# Stalls.


@pytest.mark.parametrize("backend", sorted(anyio.get_available_backends()))
def test_a_worker_that_does_not_get_on(backend):
    """A stall is announced once, and again if there was progress in between."""
    times = []

    class Told(Node):
        def on_worker_stalled(self, event: Worker.Stalled):
            times.append((anyio.current_time(), event.seconds))
            assert repr(event) == "<Stalled worker 'job' for 10 s>"

    async def job():
        me = get_current_worker()
        await anyio.sleep(25)
        me.advance()
        await anyio.sleep(5)
        me.update(description="still at it")
        await anyio.sleep(25)

    async def main():
        async with Told("app") as app:
            times.append(anyio.current_time())
            app.run_worker(job, stall_after=10)

    with virtual_time(backend) as (name, options):
        anyio.run(main, backend=name, backend_options=options)
    start, *stalls = times
    assert stalls == [(pytest.approx(start + 10), 10), (pytest.approx(start + 40), 10)]


@pytest.mark.parametrize("backend", sorted(anyio.get_available_backends()))
def test_what_does_not_get_on_is_shown(backend, caplog):
    """A stall is logged and shown in the tree until there is progress. A restart delay is none."""
    trees = []

    async def job():
        me = get_current_worker()
        me.restarted(OSError("lost"), 20)
        await anyio.sleep(20 + 11)
        trees.append(format_tree(app))
        me.advance()
        await anyio.sleep(1)
        trees.append(format_tree(app))

    async def main():
        nonlocal app
        async with Node("app") as app:
            worker = app.run_worker(job, stall_after=10)
            await anyio.sleep(25)
            assert not app.snapshot().groups[0].workers[0].is_stalled
            await worker.join()

    app = None
    with virtual_time(backend) as (name, options):
        anyio.run(main, backend=name, backend_options=options)
    assert [", stalled" in each for each in trees] == [True, False]
    _, said = (each for each in caplog.records if each.levelno == logging.WARNING)
    assert said.getMessage() == "worker 'job' has made no progress for 10 s"
    assert said.creche_worker == "job"


@pytest.mark.parametrize("backend", sorted(anyio.get_available_backends()))
def test_stalls_that_are_watched_from_the_middle(backend):
    """Work may start watching for stalls itself, and change the limit while it runs."""
    stalls = []

    async def job():
        me = get_current_worker()
        await anyio.sleep(100)
        me.watch_stalls(10)
        await anyio.sleep(15)
        me.watch_stalls(30)
        me.advance()
        await anyio.sleep(50)

    async def main():
        async with Node("app") as app, app.subscribe(Worker.Stalled) as events:
            worker = app.run_worker(job)
            await worker.join()
            stalls.extend((e.time - worker.started_at, e.seconds) for e in events.take_all())
            with pytest.raises(WorkerError, match="stall_after must be seconds, more than 0"):
                worker.watch_stalls(0)
            worker.watch_stalls(1)  # the worker has ended: no effect

    with virtual_time(backend) as (name, options):
        anyio.run(main, backend=name, backend_options=options)
    assert stalls == [(pytest.approx(110), 10), (pytest.approx(145), 30)]


@pytest.mark.parametrize("how", ["thread", "daemon", "queued", "with the node"])
async def test_who_watches_keeps_nothing_open(how):
    """Watching for stalls does not keep a node open."""
    async with Node("app") as app:
        group = app.group("one", limit=1)
        if how == "queued":
            group.run_worker(anyio.sleep_forever, daemon=True)
        job = threading.get_ident if how == "thread" else anyio.sleep_forever
        worker = group.run_worker(
            job, thread=how == "thread", daemon=how != "thread", stall_after=1_000
        )
        if how == "queued":
            assert worker.state is PENDING
        if how == "with the node":
            await settle()
            app.cancel()
    assert worker.state is CANCELLED or how == "thread"


@pytest.mark.parametrize("seconds", [0, -1, "5", True, float("nan")])
async def test_what_is_no_time(seconds):
    """An invalid ``stall_after`` is refused at the call, and the coroutine is closed."""
    async with Node("app") as app:
        with pytest.raises(WorkerError, match="stall_after must be seconds, more than 0"):
            app.run_worker(settle(), stall_after=seconds)
        assert not app.workers
