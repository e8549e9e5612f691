"""Work that runs elsewhere: behaviour that is the same for every way."""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import anyio
import pytest

import farwork
from creche import (
    Node,
    RemoteError,
    WorkerDeclarationError,
    WorkerError,
    WorkerFailed,
    format_tree,
    get_current_worker,
    work,
)
from creche._core.elsewhere import WorkerJob
from creche._running import wire
from creche.trace import record
from creche.ways import OnExecutor, Processes
from engines import WAYS, Threads, client, pool
from helpers import CANCELLED, ERROR, PENDING, RUNNING, SUCCESS, Listener, until


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Start the shared pools first, so that their threads are not counted for a single test."""
    pool("spawn")
    if "dask" in WAYS:
        client()


AT_HOME = ("Threads", "OnDask")
"""The ways that, in these tests, run work in threads of this process."""


@pytest.fixture(params=list(WAYS))
def way(request):
    """Each way to run work elsewhere."""
    with WAYS[request.param]() as made:
        yield made


@pytest.fixture
def sign(tmp_path):
    """The path of a file that the work creates once it runs."""
    return tmp_path / "runs"


async def begun(app, call, sign, **options):
    """Run work that creates the file ``sign``, and wait until it runs."""
    worker = app.run_worker(call, **options)
    await until(lambda: sign.exists() and worker.state is RUNNING)
    return worker


async def test_values_come_back(way):
    """Plain and async work returns its result, and ``where`` names the process."""
    async with Listener() as app:
        worker = app.run_worker(partial(farwork.add, 1, 2), where=way)
        assert await worker == 3
        assert await app.run_worker(partial(farwork.add_later, "a", "b"), where=way) == "ab"
        assert worker.where.startswith("process ")
        assert not worker.thread
    assert app.told_of(worker) == [PENDING, RUNNING, SUCCESS]


async def test_error_is_the_original(way):
    """An error keeps its class. Its cause shows the remote traceback, without Creche's frames."""
    async with Node("app") as app:
        worker = app.run_worker(partial(farwork.fail, "burnt"), where=way, exit_on_error=False)
        with pytest.raises(WorkerFailed, match=r"worker 'fail' failed: ValueError: burnt$"):
            await worker
    assert type(worker.error) is ValueError
    assert worker.error.__traceback__ is None
    there = str(worker.error.__cause__)
    assert "in fail" in there
    assert "/_running/" not in there


async def test_error_that_cannot_travel(way):
    """An error that cannot be unpickled becomes a RemoteError, and other work is not affected."""
    async with Node("app", exit_on_error=False) as app:
        worker = await app.run_worker(farwork.fail_untold, where=way).join()
        assert await app.run_worker(partial(farwork.add, 1, 2), where=way) == 3
    assert isinstance(worker.error, RemoteError)
    assert worker.error.type_name == "farwork.TwoArguments"
    assert worker.error.text == "this and that"
    assert str(worker.error) == "farwork.TwoArguments: this and that"
    assert "in fail_untold" in str(worker.error.__cause__)


async def test_work_that_cannot_travel(way):
    """Work that cannot be pickled or unpickled ends in ERROR with an error that says so."""
    async with Listener(exit_on_error=False) as app:
        local = await app.run_worker(partial(farwork.add, 1, threading.Lock()), where=way).join()
        unread = await app.run_worker(farwork.Unreadable(), where=way).join()
    assert app.told_of(local) == [PENDING, ERROR]
    assert "cannot be pickled, and so cannot run elsewhere" in str(local.error)
    assert unread.state is ERROR
    assert "cannot be read where it was to run: ValueError: unreadable" in str(unread.error)


async def test_lambda_travels_by_cloudpickle(monkeypatch):
    """A lambda needs cloudpickle. If it is missing, the error says what to install."""
    async with Node("app", exit_on_error=False) as app:
        if importlib.util.find_spec("cloudpickle"):
            assert await app.run_worker(lambda: 1, where=Threads()) == 1
        monkeypatch.setitem(sys.modules, "cloudpickle", None)
        worker = await app.run_worker(lambda: 1, where=Threads()).join()
    assert "pip install cloudpickle" in str(worker.error)


def test_what_a_session_defines(monkeypatch):
    """A function defined in an interactive session cannot be pickled without cloudpickle."""
    here = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "__main__", here)
    monkeypatch.setattr(here, "__file__", None)
    monkeypatch.setattr(here, "__spec__", None)
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    monkeypatch.setattr(test_no_worker_here, "__module__", "__main__")
    with pytest.raises(pickle.PicklingError, match="was defined in a session, which no other"):
        wire.pack(test_no_worker_here)


async def test_value_that_cannot_travel(way):
    """A result that cannot be pickled or unpickled raises an error that says so."""
    async with Node("app", exit_on_error=False) as app:
        unpickled = await app.run_worker(farwork.give_unpickled, where=way).join()
        unread = await app.run_worker(farwork.give_unreadable, where=way).join()
        generator = await app.run_worker(farwork.make_generator, where=way).join()
    assert "returned a lock that cannot be pickled" in str(unpickled.error)
    assert "returned cannot be read here: ValueError: unreadable" in str(unread.error)
    assert "returned a generator" in str(generator.error)


async def test_steps_come_home(way):
    """Progress is reported to the worker, and is complete when the result arrives."""
    async with Node("app") as app:
        worker = app.run_worker(partial(farwork.count, 1000), where=way)
        assert await worker == 100.0
    assert (worker.completed_steps, worker.total_steps) == (1000, 1000)
    assert worker.description == "counted"


async def test_work_is_told_of_its_cancellation(way, sign):
    """Work that cooperates ends CANCELLED, and a result that it still returns is kept."""
    async with Listener() as app:
        worker = await begun(app, partial(farwork.until_cancelled, sign), sign, where=way)
        assert "until_cancelled: running" in format_tree(app)
        worker.cancel("enough")
        await worker.join()
        sign.unlink()
        second = partial(farwork.give_when_cancelled, sign, "all the same")
        giver = await begun(app, second, sign, where=way)
        giver.cancel("enough")
        await giver.join()
    assert app.told_of(worker) == [PENDING, RUNNING, CANCELLED]
    assert giver.state is CANCELLED
    assert giver.result == ("all the same", True, "enough")


async def test_error_of_cancelled_work(way, sign):
    """Work that raises an error while it is cancelled ends in ERROR."""
    async with Node("app", exit_on_error=False) as app:
        worker = await begun(app, partial(farwork.fail_when_cancelled, sign), sign, where=way)
        worker.cancel()
    assert worker.state is ERROR
    assert str(worker.error) == "late"


async def test_async_work_is_cancelled(way, sign):
    """Async work elsewhere is cancelled at its checkpoint, even by a scope outside the node."""
    with anyio.CancelScope() as scope:
        async with Node("app") as app:
            worker = await begun(app, partial(farwork.sleep_until_cancelled, sign), sign, where=way)
            scope.cancel()
    assert worker.state is CANCELLED


async def test_exit_counts_as_everywhere(way):
    """SystemExit raised by the work leaves the node's block without an exception group."""
    with pytest.raises(SystemExit) as exited:
        async with Node("app") as app:
            app.run_worker(partial(farwork.leave, 3), where=way)
    assert exited.value.code == 3


async def test_get_current_worker_gives_what_stands_for_it(way):
    """get_current_worker() elsewhere gives name, progress and cancellation, but not the node."""
    async with Node("app", exit_on_error=False) as app:
        options = {"where": way, "group": "far", "description": "tells"}
        told = await app.run_worker(farwork.tell_all, "teller", **options)
        assert told == ("teller", "far", "tells", "app/far/teller", False, None)
        worker = await app.run_worker(partial(farwork.ask_for, "node"), where=way).join()
        assert "has no 'node'; do it at home" in str(worker.error)
        worker = await app.run_worker(partial(farwork.ask_for, "_node"), where=way).join()
        assert type(worker.error) is AttributeError


async def test_node_of_its_own(way):
    """Work elsewhere can open its own nodes and run workers there."""
    async with Node("app") as app:
        assert await app.run_worker(farwork.open_node, where=way) == "there"


async def test_limit_holds(way, tmp_path):
    """A group with a limit frees a slot only when the work elsewhere has really ended."""
    async with Node("app") as app:
        group = app.group("far", limit=1)
        first = partial(farwork.give_when_cancelled, tmp_path / "1", 1)
        before = await begun(app, first, tmp_path / "1", group="far", where=way)
        after = group.run_worker(partial(farwork.add, 1, 1), where=way)
        assert after.is_queued
        before.cancel()
        assert before.state is RUNNING
        assert after.state is PENDING
        assert await after == 2
        assert before.finished_at <= after.started_at


# in this process


@pytest.mark.parametrize("options", [{"thread": True}, {"limiter": anyio.CapacityLimiter(1)}])
async def test_no_thread_elsewhere(options):
    """``where=`` together with ``thread=`` or ``limiter=`` is refused."""
    async with Node("app") as app:
        with pytest.raises(WorkerError, match="leave them out, and bound it by the limit of a"):
            app.run_worker(farwork.pid, where=Processes(1), **options)


async def test_no_awaitable_elsewhere():
    """An awaitable cannot run elsewhere. It is refused and closed."""
    async with Node("app") as app:
        with pytest.raises(WorkerError, match="give the function itself"):
            app.run_worker(farwork.add_later(1, 2), where=Processes(1))


async def test_no_threads_of_an_executor():
    """A thread pool is refused, and the error says to use ``thread=True``."""
    with ThreadPoolExecutor(1) as executor:
        async with Node("app") as app:
            with pytest.raises(WorkerError, match="use thread=True"):
                app.run_worker(farwork.pid, where=executor)


@pytest.mark.parametrize("where", ["there", Processes])
async def test_no_way(where):
    """A ``where`` that is not a way is refused."""
    async with Node("app") as app:
        with pytest.raises(WorkerError, match="where must be a way of creche"):
            app.run_worker(farwork.pid, where=where)
    with pytest.raises(WorkerError, match="takes an executor, not 'there'"):
        OnExecutor("there")


async def test_executor_itself():
    """An executor can be given as ``where`` directly."""
    async with Node("app") as app:
        worker = app.run_worker(farwork.pid, where=pool("spawn"))
        assert await worker != os.getpid()
        assert worker.where.startswith(f"process {worker.result} on ")


async def test_static_method(way):
    """``@work(where=...)`` accepts a static method, which another process finds by its name."""

    async def through(job):
        return await way(job)

    farwork.App.twice = work(where=through)(staticmethod(farwork.App.twice.__wrapped__))
    async with farwork.App("app") as app:
        assert await app.twice(21) == 42
        with pytest.raises(TypeError, match=r"twice\(\) missing a required argument: 'value'"):
            app.twice()


def test_node_does_not_travel():
    """A method that takes ``self`` is refused when it is declared with ``where=``."""
    with pytest.raises(WorkerDeclarationError, match="put @staticmethod under @work"):

        @work(where=Processes(1))
        def crunch(self):
            """Be refused."""


async def test_way_of_ones_own():
    """Any async function can be a way. Without ``begin()``, the work is RUNNING once it ends."""

    async def way(job):
        assert job.label == "worker 'add'"
        assert repr(job) == "<Job of worker 'add'>"
        return job.work()

    async with Listener() as app:
        worker = app.run_worker(partial(farwork.add, 1, 2), where=way)
        assert await worker == 3
    assert app.told_of(worker) == [PENDING, RUNNING, SUCCESS]
    assert worker.where == ""


async def test_job_after_its_way():
    """When its way has returned, a job reports that it is cancelled, and refuses to be packed."""
    jobs = []

    async def way(job):
        jobs.append(job)

    async with Node("app") as app:
        await app.run_worker(farwork.pid, where=way)
    assert jobs[0].is_cancelled
    assert jobs[0].cancel_reason is None
    assert not jobs[0].is_running
    with pytest.raises(WorkerError, match="the job of worker 'pid' is over"):
        jobs[0].pack()


async def test_records_come_home(caplog, way):
    """Log records from elsewhere go to the logger of the same name, with the worker's fields."""
    caplog.set_level(logging.INFO)
    async with Node("app") as app:
        await app.run_worker(partial(farwork.write_log, "news"), where=way)
        await app.run_worker(farwork.log_in_thread, where=way)
    told, failed, threaded = [each for each in caplog.records if each.name == "farwork"]
    assert told.getMessage() == "here is news"
    assert "ValueError: news" in caplog.text
    assert threaded.getMessage() == "from a thread"
    if type(way).__name__ not in AT_HOME:  # in threads nothing is carried over
        assert told.creche_worker == "write_log"
        assert told.colour == "blue"
        assert "ValueError: news" in failed.exc_text


def test_no_worker_here():
    """get_current_worker() raises WorkerError outside of any work."""
    with pytest.raises(WorkerError, match="no worker runs this code"):
        get_current_worker()


async def test_who_watches_is_told_where(tmp_path):
    """The tree, a snapshot, the board, a timeline and a span show where the work runs."""
    rich, sdk = (pytest.importorskip(name) for name in ("rich.console", "opentelemetry.sdk.trace"))
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    board, otel = (importlib.import_module(f"creche.{name}") for name in ("board", "otel"))
    gate, kept, provider = anyio.Event(), memory.InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(kept))
    console = rich.Console(width=100, file=io.StringIO())

    async def way(job):
        job.begin("process 4711 on mars")
        await gate.wait()

    app = Node("app")
    tracer = provider.get_tracer("tests")
    watch = board.live_board(app, console=console)
    async with record(app) as trace, otel.traced(app, tracer), watch as shown, app:
        worker = await app.start_worker(farwork.pid, "rover", where=way)
        console.print(shown)
        assert "rover process 4711 on mars" in console.file.getvalue()
        assert worker.where == "process 4711 on mars"
        assert " s, process 4711 on mars" in format_tree(app)
        assert app.snapshot().groups[0].workers[0].where == worker.where
        gate.set()
    for name in ("run.json", "run.html"):
        trace.save(tmp_path / name)
        assert worker.where in (tmp_path / name).read_text()
    (span,) = kept.get_finished_spans()
    assert span.attributes["creche.where"] == worker.where


async def test_job_that_is_asked_in_a_thread_as_it_ends():
    """Questions from another thread are answered even if the job ends while it asks."""
    answers = []

    class Ending(WorkerJob):
        """A job that ends as soon as its worker has been read."""

        @property
        def _worker(self):
            worker, self.kept = self.kept, None
            return worker

        @_worker.setter
        def _worker(self, worker):
            self.kept = worker

    async def way(job):
        for ask in ("is_running", "is_cancelled", "cancel_reason", "work"):
            asked = Ending(job._alive(), None)
            answers.append(await anyio.to_thread.run_sync(getattr, asked, ask))

    async with Node("app") as app:
        await app.run_worker(farwork.pid, where=way)
    assert answers == [False, False, None, farwork.pid]
