"""Spans of workers, as an exporter receives them."""

from __future__ import annotations

import logging
import time

import anyio
import pytest

from creche import Node, Worker, WorkerError, WorkerState, get_current_worker
from creche.testing import virtual_time
from helpers import ExceptionGroup, Meeting, limp, run_python, settle, until

pytest.importorskip("opentelemetry.sdk", reason="it is an extra")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, get_current_span

from creche.otel import traced

SECOND = 1_000_000_000
CLOSE = 60 * SECOND
"""The largest difference between two clocks on a busy machine; wrong times are further apart."""


class Exported:
    """A tracer and the spans that it has exported."""

    def __init__(self):
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("tests")

    @property
    def spans(self):
        return self._exporter.get_finished_spans()

    def __getitem__(self, name):
        (span,) = (each for each in self.spans if each.name == name)
        return span


@pytest.fixture
def exported():
    return Exported()


def links(span):
    """Return the span ids that a span links to, by the kind of link."""
    return {each.attributes["creche.link"]: each.context.span_id for each in span.links}


def between(first, second):
    """Return the nanoseconds between two times of the loop's clock."""
    return round(second * SECOND) - round(first * SECOND)


async def fail():
    raise ValueError("broken")


async def test_a_span_for_each_worker(exported):
    """Each worker of the tree has one span, with its attributes."""
    app = Node("app")
    async with traced(app, exported.tracer), app, Node("page", parent=app) as page:
        first = app.run_worker(anyio.lowlevel.checkpoint, "first")
        page.run_worker(lambda: None, "second", group="files", thread=True, description="reads")
        page.run_worker(anyio.sleep_forever, "third", daemon=True)
    assert {span.name: dict(span.attributes) for span in exported.spans} == {
        "first": {
            "creche.worker": "first",
            "creche.number": first.number,
            "creche.group": "default",
            "creche.node": "app",
            "creche.daemon": False,
            "creche.thread": False,
            "creche.state": "SUCCESS",
        },
        "second": {
            "creche.worker": "second",
            "creche.number": first.number + 1,
            "creche.group": "files",
            "creche.node": "app/page",
            "creche.daemon": False,
            "creche.thread": True,
            "creche.description": "reads",
            "creche.state": "SUCCESS",
        },
        "third": {
            "creche.worker": "third",
            "creche.number": first.number + 2,
            "creche.group": "default",
            "creche.node": "app/page",
            "creche.daemon": True,
            "creche.thread": False,
            "creche.state": "CANCELLED",
            "creche.cancel_reason": "only daemons were left",
        },
    }
    assert {span.status.status_code for span in exported.spans} == {StatusCode.UNSET}


async def test_a_span_is_linked_to_where_its_worker_was_made(exported):
    """A span is a root; it links to the span and the worker in which its worker was created."""

    async def outer():
        app.run_worker(anyio.lowlevel.checkpoint, "inner")
        # It is created here, and ends before a subscriber could read about it.
        with exported.tracer.start_as_current_span("step"):
            app.run_worker(anyio.lowlevel.checkpoint, "in step")
            app.run_worker(anyio.lowlevel.checkpoint, "queued", group="one")
        await settle()

    app = Node("app")
    with exported.tracer.start_as_current_span("request") as request:
        context = request.get_span_context()
        async with traced(app, exported.tracer), app:
            app.group("one", limit=1).run_worker(anyio.lowlevel.checkpoint, "before")
            app.run_worker(outer)
    workers = [span for span in exported.spans if "creche.worker" in span.attributes]
    assert len(workers) == 5
    assert [span.parent for span in workers] == [None] * 5
    assert len({span.context.trace_id for span in (*workers, exported["request"])}) == 6
    worker, step = exported["outer"].context.span_id, exported["step"].context.span_id
    assert links(exported["outer"]) == {"current span": context.span_id}
    assert links(exported["inner"]) == {"current span": context.span_id, "worker": worker}
    assert links(exported["in step"]) == {"current span": step, "worker": worker}
    assert links(exported["queued"]) == {"current span": step, "worker": worker}


async def test_links_from_a_thread(exported):
    """A worker that a thread creates is linked to the current span and worker of that thread."""

    def outer():
        with exported.tracer.start_as_current_span("step"):
            app.run_worker(anyio.lowlevel.checkpoint, "inner")

    app = Node("app")
    async with traced(app, exported.tracer), app:
        app.run_worker(outer, thread=True)
    assert links(exported["inner"]) == {
        "current span": exported["step"].context.span_id,
        "worker": exported["outer"].context.span_id,
    }
    assert links(exported["outer"]) == {}


async def test_links_of_a_worker_that_was_made_directly(exported):
    """A worker is created where ``Worker()`` is called, not where it is added."""
    app = Node("app")
    async with traced(app, exported.tracer), app:
        with exported.tracer.start_as_current_span("making"):
            worker = Worker(app, anyio.lowlevel.checkpoint, name="work")
        with exported.tracer.start_as_current_span("adding"):
            app.workers.add_worker(worker)
    assert links(exported["work"]) == {"current span": exported["making"].context.span_id}


async def test_the_work_has_the_current_span_of_whoever_made_the_worker(exported):
    """The current span in the work is the launcher's: a worker's span is recorded from outside."""
    found = []

    async def work():
        found.append(get_current_span().get_span_context().span_id)

    app = Node("app")
    with exported.tracer.start_as_current_span("request") as request:
        async with traced(app, exported.tracer), app:
            app.run_worker(work)
    assert found == [request.get_span_context().span_id]


async def test_events_and_times(exported):
    """A span lasts from the worker's creation to its end, with its changes as events in between."""
    before = time.time_ns()
    app = Node("app")
    async with traced(app, exported.tracer), app:
        one = app.group("one", limit=1)
        meeting = Meeting()
        blocker = one.run_worker(meeting, "blocker", thread=True)
        waiting = one.run_worker(anyio.lowlevel.checkpoint, "waiting")
        await meeting.until_arrived()
        blocker.cancel("enough")
        meeting.go.set()
        await waiting
    after = time.time_ns()
    for worker in (blocker, waiting):
        span = exported[worker.name]
        assert before - CLOSE <= span.start_time <= span.end_time <= after + CLOSE
        assert span.end_time - span.start_time == between(worker.created_at, worker.finished_at)
        running = next(event for event in span.events if event.name == "running")
        waited = between(worker.created_at, worker.started_at)
        assert running.timestamp - span.start_time == waited
    assert [event.name for event in exported["waiting"].events] == ["running"]
    assert [event.name for event in exported["blocker"].events] == ["running", "cancel requested"]
    assert exported["blocker"].attributes["creche.cancel_reason"] == "enough"
    requested = exported["blocker"].events[1].timestamp - exported["blocker"].start_time
    assert requested == between(blocker.created_at, blocker.cancelled_at)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_services(exported, backend):
    """Readiness, restarts and stalls of a service are events of its span."""

    async def main():
        app = Node("app")
        async with traced(app, exported.tracer), app:
            app.run_worker(limp, stall_after=10)

    with virtual_time(backend) as (name, options):
        anyio.run(main, backend=name, backend_options=options)
    span = exported["limp"]
    assert span.attributes["creche.attempt"] == 2
    events = {each.name: each for each in span.events}
    assert list(events) == ["running", "ready", "restarted", "stalled"]
    ready, restarted, stalled = (events[name] for name in ("ready", "restarted", "stalled"))
    assert restarted.attributes == {
        "creche.attempt": 2,
        "creche.delay": 1,
        "exception.type": "OSError",
        "exception.message": "lost",
    }
    assert stalled.attributes == {"creche.seconds": 10}
    assert restarted.timestamp - ready.timestamp == pytest.approx(5e9, rel=0.001)
    assert stalled.timestamp - ready.timestamp == pytest.approx(16e9, rel=0.001)


async def test_tracing_a_service_from_the_middle(exported):
    """Events of a worker that has no span are ignored."""

    async def job():
        async with traced(app, exported.tracer):
            get_current_worker().ready()

    async with Node("app") as app:
        app.run_worker(job)
    assert exported.spans == ()


async def test_a_cancellation_without_a_reason(exported):
    """A cancellation without a reason is an event, and adds no attribute for the reason."""
    app = Node("app")
    async with traced(app, exported.tracer), app:
        app.run_worker(anyio.sleep_forever, "work").cancel()
    assert [event.name for event in exported["work"].events] == ["cancel requested"]
    assert exported["work"].attributes["creche.state"] == "CANCELLED"
    assert "creche.cancel_reason" not in exported["work"].attributes


async def test_an_error_is_recorded(exported):
    """The span of a failed worker has an exception event and the status ERROR."""
    app = Node("app")
    with pytest.raises(ExceptionGroup) as caught:
        async with traced(app, exported.tracer), app:
            app.run_worker(anyio.sleep_forever, "other")
            await settle()
            app.run_worker(fail)
    assert isinstance(caught.value.exceptions[0], ValueError)
    span = exported["fail"]
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "broken")
    (event,) = (each for each in span.events if each.name == "exception")
    assert event.attributes["exception.type"] == "ValueError"
    assert event.attributes["exception.message"] == "broken"
    assert span.attributes["creche.state"] == "ERROR"
    assert exported["other"].status.status_code is StatusCode.UNSET
    assert exported["other"].attributes["creche.state"] == "CANCELLED"


async def test_work_that_runs_elsewhere(exported):
    """An adapter's worker has a span; if it fails without an error, the status is ERROR."""
    app = Node("app")
    async with traced(app, exported.tracer), app:
        worker = app.run_worker(anyio.sleep_forever, "elsewhere", start=False)
        worker.state = WorkerState.RUNNING
        worker.state = WorkerState.ERROR
    span = exported["elsewhere"]
    assert (span.status.status_code, span.status.description) == (
        StatusCode.ERROR,
        "failed elsewhere",
    )
    assert [event.name for event in span.events] == ["running"]


async def test_an_outer_cancellation_loses_no_span(exported):
    """A cancellation from outside loses no span."""
    app = Node("app")
    with anyio.CancelScope() as scope:
        async with traced(app, exported.tracer), app:
            app.run_worker(anyio.sleep_forever, "work")
            await settle()
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert exported["work"].attributes["creche.state"] == "CANCELLED"
    assert exported["work"].attributes["creche.cancel_reason"] == "cancelled from outside"


async def test_the_error_of_the_body_leaves_as_it_is(exported):
    """An error of the traced block propagates unwrapped."""
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with traced(Node("app"), exported.tracer):
            raise error
    assert caught.value is error


async def test_tracing_may_end_before_the_node(exported):
    """When tracing ends before the node, unfinished workers' spans end there, without a state."""
    async with Node("app") as app:
        early = app.run_worker(anyio.sleep_forever, "early")
        async with traced(app, exported.tracer):
            app.run_worker(anyio.sleep_forever, "work")
            await settle()
            early.cancel()
            await until(lambda: early.is_finished)
        app.run_worker(anyio.lowlevel.checkpoint, "late")
        app.cancel()
    assert [span.name for span in exported.spans] == ["work"]
    assert [event.name for event in exported["work"].events] == ["running"]
    assert "creche.state" not in exported["work"].attributes


async def test_two_may_trace(exported):
    """Two tracers record spans of their own, and neither ends those of the other."""
    other = Exported()
    app = Node("app")
    async with traced(app, exported.tracer), app:
        async with traced(app, other.tracer):
            await app.run_worker(anyio.lowlevel.checkpoint, "both")
        await app.run_worker(anyio.lowlevel.checkpoint, "one")
    assert [span.name for span in other.spans] == ["both"]
    assert [span.name for span in exported.spans] == ["both", "one"]


async def test_workers_that_were_there_before_the_node_was_open(exported):
    """A worker that was added before its node opened has correct times."""
    before = time.time_ns()
    app = Node("app")
    async with traced(app, exported.tracer):
        app.run_worker(anyio.lowlevel.checkpoint, "early", start=False)
        async with app:
            app.workers.start_all()
    span = exported["early"]
    assert before - CLOSE <= span.start_time <= span.end_time <= time.time_ns() + CLOSE


async def test_a_tracer_that_fails_disturbs_nobody(caplog):
    """An error of the tracer is logged, and the program goes on."""

    class Broken:
        def start_span(self, *_, **__):
            raise OSError("no network")

    app = Node("app")
    async with traced(app, Broken()), app:
        worker = app.run_worker(anyio.lowlevel.checkpoint, "work")
    assert worker.state is WorkerState.SUCCESS
    (record,) = (each for each in caplog.records if each.levelno == logging.ERROR)
    assert record.getMessage() == (
        "the tracer of node 'app' missed an event; it continues, and logs no further errors"
    )
    assert str(record.exc_info[1]) == "no network"


async def test_only_open_nodes_are_traced():
    """traced() refuses anything but a node, and a node that is closed."""
    with pytest.raises(WorkerError, match=r"^traced\(\) takes a Node, not 'app'$"):
        async with traced("app"):
            pass
    async with Node("app") as app:
        pass
    with pytest.raises(WorkerError, match="which is closed"):
        async with traced(app):
            pass


def test_the_extra_is_named():
    """Without OpenTelemetry the import raises an error that names the extra to install."""
    program = "import sys; sys.modules['opentelemetry'] = None; import creche.otel"
    done = run_python(program)
    assert done.returncode == 1
    assert "pip install 'creche[otel]'" in done.stderr.splitlines()[-1]
