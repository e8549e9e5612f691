"""OpenTelemetry: a span for each worker of a tree; ``pip install 'creche[otel]'``.

It watches from outside, by a subscription, and so delays no worker. For the same reason a worker's
span is not the current one inside its work: spans that the work starts are children of the span
that was current where the worker was made, whose context variables the work runs in.
"""

from __future__ import annotations

import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio

from creche import Message, Node, Worker, WorkerError, WorkerState

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
except ImportError:
    raise ImportError(
        "creche.otel needs the package opentelemetry-api; pip install 'creche[otel]'"
    ) from None

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Iterator

__all__ = ["traced"]

_logger = logging.getLogger("creche")


class _Enough(Message, bubble=False):
    """What is told to a subscription after all that it is to read."""


@asynccontextmanager
async def traced(node: Node, tracer: trace.Tracer | None = None) -> AsyncGenerator[None, None]:
    """Make a span of each worker that is added to a node or below it while the block is open.

    ``async with traced(app), app: ...`` has them all. A span lasts from the moment at which its
    worker was added to the one at which it ended, and has the name of the worker. It is the root of
    a trace of its own, as a worker may outlast whoever made it, and is linked to the span that was
    current where the worker was made and to that of the worker it was made in.

    Its events are ``running``, when the work was entered, and ``cancel requested``. The attributes
    are ``creche.worker``, ``creche.group``, ``creche.node``, ``creche.daemon``, ``creche.thread``
    and, as far as there are any, ``creche.description`` and ``creche.cancel_reason``; at its end
    ``creche.state``. Of an ERROR the exception is recorded, and the status of the span is ERROR.
    SUCCESS and CANCELLED leave the status unset.

    The span of a worker that has not ended when the block is left ends there. An error of the
    tracer ends the tracing, is logged, and disturbs nobody.

    Args:
        node: The node, not open yet or open.
        tracer: What makes the spans; by default the one that the global provider has for
            ``creche``.

    Raises:
        WorkerError: It is no ``Node``, or it is closed.

    Checkpoint:
        On leaving the block; its end waits until all that happened is in the spans, and cannot be
        cancelled.

    Threads:
        The node's event loop only.
    """
    if not isinstance(node, Node):
        raise WorkerError(f"traced() takes a Node, not {node!r:.100}")
    spans = _Spans(tracer or trace.get_tracer("creche"))
    enough, done = _Enough(), anyio.Event()
    error: BaseException | None = None
    async with (
        node.subscribe(Worker.StateChanged, _Enough, tree=True) as events,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(spans.follow, events, enough, done)
        try:
            yield
        except BaseException as exc:  # noqa: BLE001 (raised again below)
            # Not through the task group, which would put it into a group.
            error = exc
        node.post_message(enough)  # if the node has closed, the events end by themselves
        with anyio.CancelScope(shield=True):
            await done.wait()
    if error is not None:
        try:
            raise error
        finally:
            del error  # this frame is in its traceback: a cycle


class _Spans:
    """The spans of the workers that have not ended."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer
        self._open: dict[Worker[Any], tuple[trace.Span, int]] = {}

    async def follow(
        self,
        events: AsyncIterable[Message],
        enough: _Enough,
        done: anyio.Event,
    ) -> None:
        """Read the events up to a certain one; nothing may leave this task."""
        try:
            with anyio.CancelScope(shield=True):
                async for event in events:
                    if event is enough:
                        break
                    if isinstance(event, Worker.StateChanged):
                        self._note(event)
                for span, _ in self._open.values():
                    span.end()
        except Exception:
            _logger.exception("the tracer failed; no more spans are made")
        finally:
            done.set()

    def _note(self, event: Worker.StateChanged) -> None:
        worker = event.worker
        if event.previous is None:
            # The two clocks are compared anew for each worker, as they drift.
            offset = time.time_ns() - _nanoseconds(anyio.current_time())
            started = _nanoseconds(event.time) + offset
            self._open[worker] = (self._start(event, started), offset)
        elif worker in self._open:
            span, offset = self._open[worker]
            when = _nanoseconds(event.time) + offset
            if event.state is WorkerState.RUNNING:
                span.add_event("running", timestamp=when)
            else:
                del self._open[worker]
                _finish(span, event, when, offset)

    def _start(self, event: Worker.StateChanged, when: int) -> trace.Span:
        worker = event.worker
        attributes: dict[str, str | bool] = {
            "creche.worker": worker.name or type(worker).__name__,
            "creche.group": worker.group,
            "creche.node": worker.node.path,
            "creche.daemon": worker.daemon,
            "creche.thread": worker.thread,
        }
        if worker.description:
            attributes["creche.description"] = worker.description
        return self._tracer.start_span(
            str(attributes["creche.worker"]),
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
        if event.origin in self._open:
            yield trace.Link(
                self._open[event.origin][0].get_span_context(), {"creche.link": "worker"}
            )


def _finish(span: trace.Span, event: Worker.StateChanged, when: int, offset: int) -> None:
    worker = event.worker
    if worker.cancelled_at is not None:
        requested = _nanoseconds(worker.cancelled_at) + offset
        span.add_event("cancel requested", timestamp=requested)
        if worker.cancel_reason is not None:
            span.set_attribute("creche.cancel_reason", str(worker.cancel_reason))
    if event.state is WorkerState.ERROR:
        if worker.error is not None:
            span.record_exception(worker.error, timestamp=when)
        span.set_status(trace.StatusCode.ERROR, str(worker.error or "failed elsewhere"))
    span.set_attribute("creche.state", event.state.name)
    span.end(when)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
