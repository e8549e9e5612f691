"""A span for each worker of a tree.

It watches from outside, through a subscription, so it delays no worker. For the same reason a
worker's span is not the current one inside its work: spans that the work starts are children of
the span that was current where the worker was made, whose context variables the work has.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
from opentelemetry import trace
from opentelemetry.context import Context

from creche import Node, Worker, WorkerError, WorkerState
from creche._core.facts import facts_of
from creche._ground.text import path_of, text
from creche._looking.watching import Faults, beside

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator

_Event: TypeAlias = Worker.StateChanged | Worker.Ready | Worker.Restarted | Worker.Stalled
_EVENTS: tuple[type[_Event], ...] = (
    *(Worker.StateChanged, Worker.Ready),
    *(Worker.Restarted, Worker.Stalled),
)


@asynccontextmanager
async def traced(node: Node, tracer: trace.Tracer | None = None) -> AsyncGenerator[None, None]:
    """Make a span for each worker that is added to a node or below it while the block is open.

    Use ``async with traced(app), app: ...``. A span lasts from the moment its worker is added to
    the moment it ends, and has the worker's name. It is the root of its own trace, because a
    worker may outlive the code that made it. It is linked to the span that was current where the
    worker was made, and to the span of the worker in which it was made.

    Its events are ``running`` and ``cancel requested``, and for services also
    ``ready``, ``restarted`` and ``stalled``. The attributes are ``creche.worker``,
    ``creche.group``, ``creche.node``, ``creche.daemon`` and ``creche.thread``; if they exist,
    ``creche.description`` and ``creche.cancel_reason``; at the end ``creche.state``, and
    ``creche.attempt`` if there was more than one attempt. For ERROR, the exception is recorded
    and the status of the span is ERROR. SUCCESS and CANCELLED leave the status unset.

    If a worker has not ended when the block is left, its span ends there. Errors of the tracer
    harm nothing: the span in question is missing, everything else goes on, and the first error is
    logged at ERROR by the logger ``creche``. Objects that cannot be converted to text become
    ``<unprintable ...>``.

    Args:
        node: The node, open or not yet open.
        tracer: Makes the spans; by default the global provider's tracer for ``creche``.

    Raises:
        WorkerError: It is not a ``Node``, or it is closed.

    Checkpoint:
        On leaving the block, when all events have been turned into spans.

    Threads:
        The node's event loop only.
    """
    if not isinstance(node, Node):
        raise WorkerError(f"traced() takes a Node, not {node!r:.100}")
    name = f"tracer of node {path_of(node)!r}"
    maker = tracer if tracer is not None else trace.get_tracer("creche")
    spans = _Spans(maker, Faults(f"the {name}"))
    async with Node.subscribe(node, *_EVENTS, tree=True) as events:
        try:
            async with beside(partial(spans.follow, events), spans.faults, name):
                yield
        finally:
            with spans.faults:
                spans.finish(events.take_all())


class _Spans:
    """The spans of the workers that have not ended."""

    def __init__(self, tracer: trace.Tracer, faults: Faults) -> None:
        self.faults = faults
        self._tracer = tracer
        # By the id of the worker, which is in it as well, so that no other has that id meanwhile.
        self._open: dict[int, tuple[Worker[Any], trace.Span, int]] = {}

    async def follow(self, events: AsyncIterable[_Event]) -> None:
        """Take note of events as they come."""
        async for event in events:
            self.take(event)

    def take(self, event: _Event) -> None:
        """Take note of what happened."""
        with self.faults:
            if isinstance(event, Worker.StateChanged):
                self._note(event)
            elif id(event.worker) in self._open:
                _, span, offset = self._open[id(event.worker)]
                _tell_service(span, event, _nanoseconds(event.time) + offset)

    def finish(self, events: Iterable[_Event]) -> None:
        """Take note of the last events, and end the spans of the workers that have not ended."""
        for event in events:
            self.take(event)
        for _, span, _ in self._open.values():
            with self.faults:
                span.end()

    def _note(self, event: Worker.StateChanged) -> None:
        worker = event.worker
        if event.previous is None:
            # The two clocks are compared anew for each worker, as they drift.
            offset = time.time_ns() - _nanoseconds(anyio.current_time())
            started = _nanoseconds(event.time) + offset
            self._open[id(worker)] = (worker, self._start(event, started), offset)
        elif id(worker) in self._open:
            _, span, offset = self._open[id(worker)]
            when = _nanoseconds(event.time) + offset
            if event.state is WorkerState.RUNNING:
                span.add_event("running", timestamp=when)
            else:
                del self._open[id(worker)]
                try:
                    _tell_end(span, event, when, offset)
                finally:
                    span.end(when)

    def _start(self, event: Worker.StateChanged, when: int) -> trace.Span:
        worker = event.worker
        facts = facts_of(worker)
        attributes: dict[str, str | bool | int] = {
            "creche.worker": facts.name,
            "creche.number": worker.number,
            "creche.group": facts.group,
            "creche.node": path_of(worker._node),
            "creche.daemon": facts.daemon,
            "creche.thread": facts.thread,
        }
        if facts.description:
            attributes["creche.description"] = facts.description
        return self._tracer.start_span(
            facts.name,
            context=Context(),  # no parent
            links=list(self._links(event)),
            attributes=attributes,
            start_time=when,
        )

    def _links(self, event: Worker.StateChanged) -> Iterator[trace.Link]:
        assert event.context is not None  # the first announcement has it
        current = event.context.run(trace.get_current_span).get_span_context()
        if current.is_valid:
            yield trace.Link(current, {"creche.link": "current span"})
        if id(event.origin) in self._open:
            _, origin, _ = self._open[id(event.origin)]
            yield trace.Link(origin.get_span_context(), {"creche.link": "worker"})


def _tell_service(
    span: trace.Span, event: Worker.Ready | Worker.Restarted | Worker.Stalled, when: int
) -> None:
    if isinstance(event, Worker.Restarted):
        told = {"creche.attempt": event.attempt, "creche.delay": event.delay}
        span.add_event("restarted", {**told, **_told_of(event.error)}, when)
    elif isinstance(event, Worker.Stalled):
        span.add_event("stalled", {"creche.seconds": event.seconds}, when)
    else:
        span.add_event("ready", timestamp=when)


def _tell_end(span: trace.Span, event: Worker.StateChanged, when: int, offset: int) -> None:
    facts = facts_of(event.worker)
    span.set_attribute("creche.state", event.state.name)
    if facts.where:
        span.set_attribute("creche.where", facts.where)
    if facts.attempt > 1:
        span.set_attribute("creche.attempt", facts.attempt)
    if facts.cancelled_at is not None:
        requested = _nanoseconds(facts.cancelled_at) + offset
        span.add_event("cancel requested", timestamp=requested)
        if facts.reason is not None:
            span.set_attribute("creche.cancel_reason", facts.reason)
    if event.state is WorkerState.ERROR:
        told = "failed elsewhere" if facts.error is None else text(facts.error)
        span.set_status(trace.StatusCode.ERROR, told)
        if facts.error is not None:
            _record(span, facts.error, when)


def _record(span: trace.Span, error: BaseException, when: int) -> None:
    try:
        span.record_exception(error, timestamp=when)
    except Exception:  # noqa: BLE001 (it asks for the text of the error, which may raise)
        span.add_event("exception", _told_of(error), timestamp=when)


def _told_of(error: BaseException) -> dict[str, str]:
    return {"exception.type": type(error).__qualname__, "exception.message": text(error)}


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
