"""Metrics of the event loop and of a tree's workers: their number, states and times.

Like spans, they come from a subscription, so they delay no worker. The attributes have few possible
values, because a metric is kept for each combination: a worker's group and node, but not its name.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import anyio
from opentelemetry import metrics

from creche import Node, Worker, WorkerError, WorkerState
from creche._core.facts import facts_of
from creche._ground.text import path_of, text_of
from creche._looking.watching import Faults, beside

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Iterable

# The boundaries of buckets, in seconds; the default ones are made for milliseconds.
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


@asynccontextmanager
async def metered(
    node: Node, meter: metrics.Meter | None = None, *, lag_every: float = 1.0
) -> AsyncGenerator[None, None]:
    """Record metrics of the workers of a node and all nodes below it while the block is open.

    Use ``async with metered(app), app: ...`` to count all workers. The instruments:

    - ``creche.worker.started``, a counter: workers that were added.
    - ``creche.worker.ended``, a counter: workers that ended, with the attribute ``creche.state``
      and, for ERROR, ``error.type``.
    - ``creche.worker.queued``, an up-down counter: workers that are PENDING.
    - ``creche.worker.running``, an up-down counter: workers that are RUNNING.
    - ``creche.worker.wait_time``, a histogram: seconds from when a worker was added until it was
      RUNNING.
    - ``creche.worker.run_time``, a histogram: seconds that a worker was RUNNING, with the attribute
      ``creche.state``.
    - ``creche.loop.lag``, a histogram: how many seconds late the event loop woke a sleeping task.

    All instruments have the attribute ``creche.node``, the path of the node; those of workers also
    have ``creche.group``. Workers that were added before the block was entered are not counted.
    Workers that have not ended when the block exits are removed from the up-down counters. Errors
    of the meter do not affect the program: the first one is logged at ERROR by the logger
    ``creche``.

    Args:
        node: The node, open or not yet open.
        meter: Creates the instruments; by default, the global provider's meter ``creche``.
        lag_every: Seconds between two measurements of the event loop's lag.

    Raises:
        WorkerError: ``node`` is not a ``Node`` or is closed; or ``lag_every`` is not above 0.

    Checkpoint:
        On leaving the block; everything that happened before is then recorded.

    Threads:
        The node's event loop only.
    """
    if not isinstance(node, Node):
        raise WorkerError(f"metered() takes a Node, not {node!r:.100}")
    if not lag_every > 0:
        raise WorkerError(f"lag_every must be above 0 seconds, not {lag_every!r}")
    name = f"meter of node {path_of(node)!r}"
    faults = Faults(f"the {name}")
    async with Node.subscribe(node, Worker.StateChanged, tree=True) as events:
        recorder = _Recorder(meter if meter is not None else metrics.get_meter("creche"), faults)
        try:
            async with AsyncExitStack() as stack:
                for watch in (
                    partial(recorder.follow, events),
                    partial(recorder.measure_lag, node, lag_every),
                ):
                    await stack.enter_async_context(beside(watch, faults, name))
                yield
        finally:
            recorder.finish(events.take_all())


class _Counted:
    """A worker that has not ended."""

    __slots__ = ("attributes", "is_running", "since", "worker")

    def __init__(self, worker: Worker[Any], since: float, attributes: dict[str, str]) -> None:
        self.worker = worker  # so that no other has its id meanwhile
        self.since = since
        """When it entered its current state, in seconds of the loop's clock."""
        self.attributes = attributes
        self.is_running = False


class _Recorder:
    """The instruments, and the workers that they currently count."""

    def __init__(self, meter: metrics.Meter, faults: Faults) -> None:
        self._faults = faults
        self._counted: dict[int, _Counted] = {}  # by the id of the worker
        self._started = meter.create_counter(
            "creche.worker.started", "{worker}", "Workers that were added."
        )
        self._ended = meter.create_counter(
            "creche.worker.ended", "{worker}", "Workers that ended, by their final state."
        )
        self._queued = meter.create_up_down_counter(
            "creche.worker.queued", "{worker}", "Workers that were added and do not run yet."
        )
        self._running = meter.create_up_down_counter(
            "creche.worker.running", "{worker}", "Workers whose work runs."
        )
        self._wait_time = meter.create_histogram(
            "creche.worker.wait_time",
            "s",
            "How long workers waited before they ran.",
            explicit_bucket_boundaries_advisory=_LONG,
        )
        self._run_time = meter.create_histogram(
            "creche.worker.run_time",
            "s",
            "How long workers ran.",
            explicit_bucket_boundaries_advisory=_LONG,
        )
        self._lag = meter.create_histogram(
            "creche.loop.lag",
            "s",
            "By how much the event loop woke a sleeping task too late.",
            explicit_bucket_boundaries_advisory=_SHORT,
        )

    async def follow(self, events: AsyncIterable[Worker.StateChanged]) -> None:
        """Record events as they arrive."""
        async for event in events:
            self._take(event)

    def finish(self, events: Iterable[Worker.StateChanged]) -> None:
        """Record the last events, and stop counting the workers that have not ended."""
        for event in events:
            self._take(event)
        for counted in self._counted.values():
            with self._faults:
                self._instrument_of(counted).add(-1, counted.attributes)

    def _take(self, event: Worker.StateChanged) -> None:
        with self._faults:
            if event.previous is None:
                self._begin(event)
            elif id(event.worker) in self._counted:
                self._go_on(event, self._counted[id(event.worker)])

    def _begin(self, event: Worker.StateChanged) -> None:
        worker = event.worker
        attributes = {
            "creche.node": path_of(worker._node),
            "creche.group": text_of(worker, "group"),
        }
        self._counted[id(worker)] = _Counted(worker, event.time, attributes)
        self._started.add(1, attributes)
        self._queued.add(1, attributes)

    def _go_on(self, event: Worker.StateChanged, counted: _Counted) -> None:
        lasted, attributes = event.time - counted.since, counted.attributes
        self._instrument_of(counted).add(-1, attributes)
        if event.state is WorkerState.RUNNING:
            counted.is_running, counted.since = True, event.time
            self._running.add(1, attributes)
            self._wait_time.record(lasted, attributes)
            return
        del self._counted[id(counted.worker)]
        ended = {**attributes, "creche.state": event.state.name}
        if counted.is_running:
            self._run_time.record(lasted, ended)
        if event.state is WorkerState.ERROR:  # a copy: the SDK may have kept the other
            ended = {**ended, "error.type": _type_of(facts_of(counted.worker).error)}
        self._ended.add(1, ended)

    def _instrument_of(self, counted: _Counted) -> metrics.UpDownCounter:
        return self._running if counted.is_running else self._queued

    async def measure_lag(self, node: Node, every: float) -> NoReturn:
        """Sleep repeatedly, and record how late each sleep ended."""
        attributes = {"creche.node": path_of(node)}
        while True:
            due = anyio.current_time() + every
            await anyio.sleep(every)
            with self._faults:
                self._lag.record(max(0.0, anyio.current_time() - due), attributes)


def _type_of(error: BaseException | None) -> str:
    """Return the class name of an error, following OpenTelemetry's conventions."""
    if error is None:
        return "_OTHER"  # it failed elsewhere
    kind = type(error)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
