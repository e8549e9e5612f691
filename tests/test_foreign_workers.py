"""Workers that override ``node`` and ``state`` work, because the library reads neither."""

from __future__ import annotations

import importlib.util
import io
import logging
import threading
from contextlib import AsyncExitStack
from typing import ClassVar

import anyio
import pytest
from anyio import lowlevel
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from creche import (
    DeadlockError,
    Node,
    Worker,
    WorkerCancelled,
    WorkerError,
    WorkerFailed,
    WorkerState,
    format_tree,
)
from creche.hosting import Host
from creche.services import watchdog
from creche.testing import EventRecorder, WorkerMachine
from creche.trace import record
from helpers import CANCELLED, ERROR, RENDEZVOUS, SUCCESS, ExceptionGroup, fail, settle, until


class Foreign(Worker):
    """A worker whose ``node`` and ``state`` are another library's, so Creche must not read them."""

    @property
    def node(self):
        raise AssertionError("the library asks for node")

    @property
    def state(self):
        raise AssertionError("the library asks for state")


def run(node, work, *, start=True, exclusive=False, **options):
    worker = Foreign(node, work, **options)
    node.workers.add_worker(worker, start=start, exclusive=exclusive)
    return worker


def state_of(worker):
    return Worker.state.fget(worker)


async def test_it_lives_as_any_worker_does(caplog):
    """Nodes, groups, managers and the log treat such a worker like any other."""
    caplog.set_level(logging.DEBUG, "creche")
    heard = []

    class App(Node):
        def on_worker_state_changed(self, event):
            heard.append((event.worker.name, event.state.name, event.previous, event.time))

    async with App("app") as app:
        app.group("one", limit=1)
        sleeper = run(app, anyio.sleep_forever, name="sleeper", group="one")
        queued = run(app, settle, name="queued", group="one")
        failed = run(app, fail(ValueError("no")), name="failed", exit_on_error=False)
        with pytest.raises(WorkerFailed, match="worker 'failed' failed: ValueError: no"):
            await failed
        assert not failed.is_running
        with pytest.raises(WorkerError, match="has returned without being ready"):
            await run(app, settle, name="ready").until_ready()
        with pytest.raises(WorkerFailed):
            await run(app, fail(OSError()), exit_on_error=False).until_ready()
        ring = []
        ring.append(run(app, lambda: ring[0].wait(), exit_on_error=False))  # noqa: PLW0108 (made later)
        await ring[0].join()
        assert isinstance(ring[0].error, DeadlockError)
        sleeper.cancel("enough")
        with pytest.raises(WorkerCancelled, match="enough"):
            await sleeper
        await queued
    assert [state_of(each) for each in (sleeper, queued, failed)] == [CANCELLED, SUCCESS, ERROR]
    assert ("queued", "SUCCESS") in [each[:2] for each in heard]
    assert any("'queued'" in each.getMessage() for each in caplog.records)


async def test_it_is_seen_as_any_worker_is(tmp_path):
    """Snapshots, trees, the board, timelines, spans and recorders show such a worker."""
    async with AsyncExitStack() as stack:
        app = Node("app")
        if importlib.util.find_spec("rich"):
            from rich.console import Console  # noqa: PLC0415 (an extra)

            from creche.board import live_board  # noqa: PLC0415 (an extra)

            for terminal in (True, False):
                console = Console(file=io.StringIO(), force_terminal=terminal)
                await stack.enter_async_context(live_board(app, console=console))
        if importlib.util.find_spec("opentelemetry"):
            from creche.otel import traced  # noqa: PLC0415 (an extra)

            await stack.enter_async_context(traced(app))
        trace = await stack.enter_async_context(record(app))
        recorder = EventRecorder(app)
        await stack.enter_async_context(app)
        worker = run(app, anyio.sleep_forever, name="looked at")
        late = run(app, settle, start=False)
        async with worker.subscribe() as events:
            assert (await anext(events)).worker is worker
        await until(lambda: worker.is_running)
        assert "looked at" in format_tree(app)
        (pictured, _) = app.snapshot().groups[0].workers
        assert (pictured.state, pictured.name) == ("RUNNING", "looked at")
        assert "looked at" in repr(worker)
        worker.cancel()
        await worker.join()
        late.cancel()
    recorder.assert_orderly()
    recorder.assert_states(worker, *list(WorkerState)[:3])
    trace.save(tmp_path / "run.html")
    assert "looked at" in (tmp_path / "run.html").read_text(encoding="utf-8")


async def test_it_may_be_the_one_that_ends_its_host():
    """Such a worker can call ``Host.stop()``, which does not wait for that worker."""
    async with anyio.create_task_group() as tasks:
        host = Host(Node("app"), task_group=tasks)
        await host.start()
        worker = run(host.node, host.stop, exit_on_error=False)
        with anyio.fail_after(RENDEZVOUS):
            await host.stop()
        assert worker.error is None


async def test_it_is_named_where_the_loop_stands_still(caplog):
    """The watchdog reports such a worker if it blocks the loop, with the path of its node."""
    told = threading.Event()

    class Told(logging.Handler):
        def emit(self, record):
            if getattr(record, "creche_worker", None) == "stands still":
                told.path = record.creche_node, record.creche_state
                told.set()

    async def stand_still():
        await lowlevel.checkpoint()
        assert told.wait(RENDEZVOUS)

    logger, handler = logging.getLogger("creche"), Told()
    logger.addHandler(handler)
    try:
        async with Node("app") as app, watchdog(app, 0.05):
            await run(app, stand_still, name="stands still")
    finally:
        logger.removeHandler(handler)
    assert told.path == ("app", "RUNNING")


async def test_it_is_named_where_it_does_not_end():
    """The failure of such a worker fails its node, and is raised once, with a note."""
    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            run(app, fail(ValueError("no")), name="failed")
    (error,) = caught.value.exceptions
    assert error.__notes__ == ["in worker 'failed' of group 'default' on node 'app'"]


@pytest.mark.usefixtures("quiet")
def test_it_is_a_worker_for_the_machine(anyio_backend):
    """The random programs of WorkerMachine pass with such workers."""

    class Machine(WorkerMachine):
        backend = anyio_backend[0]
        backend_options: ClassVar = {k: v for k, v in anyio_backend[1].items() if k != "debug"}

        def make_worker(self, node, work, **options):
            return Foreign(node, work, **options)

    run_state_machine_as_test(Machine, settings=settings(max_examples=15))
