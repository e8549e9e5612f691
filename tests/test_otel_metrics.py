"""Metrics of workers, as read by the OpenTelemetry SDK."""

from __future__ import annotations

import logging
import math

import anyio
import pytest

from creche import Node, Worker, WorkerError
from helpers import fail, settle, until

pytest.importorskip("opentelemetry.sdk", reason="it is an extra")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from creche.otel import metered

WORKERS = ("started", "ended", "queued", "running", "wait_time", "run_time")


class Recorded:
    """A meter and its recorded metrics."""

    def __init__(self):
        self._reader = InMemoryMetricReader()
        provider = MeterProvider([self._reader])
        self.meter = provider.get_meter("tests")

    def metrics(self):
        """Return all metrics by name."""
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        (resource,) = data.resource_metrics
        (scope,) = resource.scope_metrics
        return {metric.name: metric for metric in scope.metrics}

    def points(self, name):
        """Return the data points of a metric by the values of their attributes."""
        metric = self.metrics().get(f"creche.{name}")
        points = [] if metric is None else metric.data.data_points
        return {
            tuple(value for _, value in sorted(point.attributes.items())): point for point in points
        }

    def values(self, name):
        return {key: point.value for key, point in self.points(f"worker.{name}").items()}

    def counts(self, name):
        return {key: point.count for key, point in self.points(f"worker.{name}").items()}


@pytest.fixture
def recorded():
    return Recorded()


async def test_workers_are_counted_by_what_became_of_them(recorded, quiet):
    """Each worker in the tree is counted when it starts and when it ends, by group and node."""
    app = Node("app")
    async with metered(app, recorded.meter), app, Node("page", parent=app) as page:
        app.run_worker(anyio.lowlevel.checkpoint)
        app.run_worker(anyio.lowlevel.checkpoint)
        page.run_worker(lambda: None, group="files", thread=True)
        app.run_worker(fail(ValueError("broken")), exit_on_error=False)
        app.run_worker(fail(WorkerError("of ours")), exit_on_error=False)
        page.run_worker(anyio.sleep_forever, daemon=True)
        page.run_worker(anyio.lowlevel.checkpoint).cancel()  # it never runs
    assert recorded.values("started") == {
        ("default", "app"): 4,
        ("files", "app/page"): 1,
        ("default", "app/page"): 2,
    }
    assert recorded.values("ended") == {
        ("default", "app", "SUCCESS"): 2,
        ("files", "app/page", "SUCCESS"): 1,
        ("default", "app", "ERROR", "ValueError"): 1,
        ("default", "app", "ERROR", "creche.WorkerError"): 1,
        ("default", "app/page", "CANCELLED"): 2,
    }
    for name in ("queued", "running"):
        assert set(recorded.values(name).values()) == {0}
    assert sum(recorded.counts("wait_time").values()) == 6
    assert recorded.counts("run_time") == {
        ("default", "app", "SUCCESS"): 2,
        ("files", "app/page", "SUCCESS"): 1,
        ("default", "app", "ERROR"): 2,
        ("default", "app/page", "CANCELLED"): 1,
    }


async def test_workers_that_run_and_that_wait(recorded):
    """Running and queued workers are counted until the block of metered() ends."""
    app, key = Node("app"), ("jobs", "app")
    async with app:
        app.group("jobs", limit=1)
        app.run_worker(anyio.sleep_forever, group="before")
        async with metered(app, recorded.meter):
            first = app.run_worker(anyio.sleep_forever, group="jobs")
            app.run_worker(anyio.sleep_forever, group="jobs")
            app.run_worker(anyio.sleep_forever, group="jobs")
            await until(lambda: recorded.values("running") == {key: 1})
            assert recorded.values("queued") == {key: 2}
            first.cancel()
            await until(lambda: recorded.values("queued") == {key: 1})
            assert recorded.values("running") == {key: 1}
        assert recorded.values("running") == recorded.values("queued") == {key: 0}
        assert recorded.values("ended") == {("jobs", "app", "CANCELLED"): 1}
        app.cancel()
    assert recorded.values("started") == {key: 3}


async def test_what_happens_last_is_recorded(recorded):
    """Events that have not been read when the block exits are still recorded."""
    async with Node("app") as app:
        async with metered(app, recorded.meter):
            app.run_worker(settle)  # no checkpoint before the block ends
        assert recorded.values("started") == {("default", "app"): 1}
        assert recorded.values("queued") == {("default", "app"): 0}


async def test_times_are_those_of_the_events(recorded):
    """Wait time and run time are differences between the times of the worker's events."""
    app = Node("app")
    async with app.subscribe(Worker.StateChanged) as events:
        async with metered(app, recorded.meter), app:
            app.run_worker(settle)
        added, running, ended = [event.time for event in events.take_all()]
    (wait,) = recorded.points("worker.wait_time").values()
    (run,) = recorded.points("worker.run_time").values()
    assert (wait.sum, run.sum) == (running - added, ended - running)


async def test_lag_of_the_loop(recorded):
    """The lag of a blocked event loop is measured by how late a sleeping task wakes."""

    async def block():
        until = anyio.current_time() + 0.05
        while anyio.current_time() < until:
            pass

    app = Node("app")
    async with metered(app, recorded.meter, lag_every=0.001), app:
        await until(lambda: recorded.points("loop.lag"))  # it is asleep again
        app.run_worker(block)
        await until(lambda: recorded.points("loop.lag")[("app",)].max > 0.04)
    assert recorded.points("loop.lag")[("app",)].min >= 0


async def test_instruments_have_units_and_buckets_of_seconds(recorded):
    """Every instrument has a unit, and the buckets of histograms suit seconds."""
    app = Node("app")
    async with metered(app, recorded.meter, lag_every=0.001), app:
        app.run_worker(settle)
        await until(lambda: recorded.points("loop.lag"))
    units = {name: metric.unit for name, metric in recorded.metrics().items()}
    assert units == {
        **{f"creche.worker.{name}": "{worker}" for name in WORKERS[:4]},
        **{f"creche.worker.{name}": "s" for name in WORKERS[4:]},
        "creche.loop.lag": "s",
    }
    for name, longest in (("worker.wait_time", 3600), ("worker.run_time", 3600), ("loop.lag", 5)):
        for point in recorded.points(name).values():
            assert point.explicit_bounds[-1] == longest


async def test_an_error_that_is_told_elsewhere(recorded):
    """A worker whose state was set to ERROR without an error is counted with type _OTHER."""
    app = Node("app")
    async with metered(app, recorded.meter), app:
        worker = Worker(app, settle, exit_on_error=False)
        app.workers.add_worker(worker, start=False)
        worker.state = worker.state.RUNNING
        worker.state = worker.state.ERROR
    assert recorded.values("ended") == {("default", "app", "ERROR", "_OTHER"): 1}


async def test_errors_of_the_meter_disturb_nobody(recorded, caplog):
    """An error of the meter is logged once, and the workers and the block continue."""

    class Broken:
        def __init__(self, inner):
            self._inner = inner

        def __getattr__(self, name):
            def create(*args, **kwargs):
                made = getattr(self._inner, name)(*args, **kwargs)
                if "counter" in name:
                    made.add = refuse
                return made

            return create

    def refuse(*_):
        raise OSError("no meter")

    app = Node("app")
    async with metered(app, Broken(recorded.meter)), app:
        app.run_worker(settle)
        app.run_worker(settle)
        app.run_worker(anyio.sleep_forever, daemon=True)
    (told,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert told.name == "creche"
    assert told.getMessage() == (
        "the meter of node 'app' missed an event; it continues, and logs no further errors"
    )


async def test_misuse():
    """metered() refuses an argument that is not a node, and an invalid ``lag_every``."""
    with pytest.raises(WorkerError, match=r"metered\(\) takes a Node, not 'app'"):
        async with metered("app"):
            pass
    for lag_every in (0, -1, math.nan):
        with pytest.raises(WorkerError, match="lag_every must be above 0 seconds, not "):
            async with metered(Node("app"), lag_every=lag_every):
                pass


async def test_the_global_provider_is_the_default():
    """Without a meter, metered() uses the global provider, which records nothing here."""
    app = Node("app")
    async with metered(app), app:
        app.run_worker(settle)
