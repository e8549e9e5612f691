"""Work that runs elsewhere continues the trace in which its worker was created."""

from __future__ import annotations

import sys

import pytest

import farwork
from creche import Node
from creche._running.tracing import give_trace, take_trace
from engines import WAYS, client, pool

pytest.importorskip("opentelemetry.sdk", reason="it is an extra")

from opentelemetry import baggage, context, propagate
from opentelemetry.sdk.trace import TracerProvider


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Start the shared pools first, so that their threads are not counted for a single test."""
    pool("spawn")
    if "dask" in WAYS:
        client()


@pytest.fixture(params=list(WAYS))
def way(request):
    """Each way to run work elsewhere."""
    with WAYS[request.param]() as made:
        yield made


@pytest.fixture
def span():
    """Make a current span with baggage."""
    with TracerProvider().get_tracer("tests").start_as_current_span("here") as made:
        token = context.attach(baggage.set_baggage("user", "ada"))
        try:
            yield made.get_span_context()
        finally:
            context.detach(token)


@pytest.mark.parametrize("work", [farwork.make_span, farwork.make_span_later])
async def test_span_there_is_a_child_of_the_one_here(way, work):
    """The parent of a span in the work is the span that was current when the worker was created."""
    async with Node("app") as app:
        with TracerProvider().get_tracer("tests").start_as_current_span("here") as made:
            token = context.attach(baggage.set_baggage("user", "ada"))
            worker = app.run_worker(work, where=way)
            context.detach(token)
        here = made.get_span_context()
        assert await worker == (here.trace_id, here.span_id, "ada")


async def test_no_span_here(way):
    """Without a current span, a span in the work is the root of a new trace."""
    async with Node("app") as app:
        _, parent, carried = await app.run_worker(farwork.make_span, where=way)
    assert (parent, carried) == (None, None)


class Broken:
    """A propagator that fails."""

    fields = frozenset[str]()

    def inject(self, *_, **__):
        raise ValueError("broken")

    def extract(self, *_, **__):
        raise ValueError("broken")


async def test_broken_propagator(monkeypatch, span):
    """If the propagator raises, the trace is not carried, and nothing else fails."""
    carrier = give_trace()
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", Broken(), raising=False)
    monkeypatch.setattr(propagate, "propagator", Broken(), raising=False)
    with pytest.raises(ValueError, match="broken"):
        propagate.inject({})
    assert give_trace() == {}
    take_trace(carrier)


def test_program_without_opentelemetry(monkeypatch, span):
    """Without OpenTelemetry, no trace is sent, and a received one is ignored."""
    carrier = give_trace()
    assert sorted(carrier) == ["baggage", "traceparent"]
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert give_trace() == {}
    monkeypatch.setitem(sys.modules, "opentelemetry.propagate", None)
    take_trace(carrier)
