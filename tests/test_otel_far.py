"""Work that runs elsewhere goes on with the trace in which its worker was made."""

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
    """Keep the threads of what is shared out of the account of a single test."""
    pool("spawn")
    if "dask" in WAYS:
        client()


@pytest.fixture(params=list(WAYS))
def way(request):
    """Each of the ways."""
    with WAYS[request.param]() as made:
        yield made


@pytest.fixture
def span():
    """Make a span that is current, with baggage."""
    with TracerProvider().get_tracer("tests").start_as_current_span("here") as made:
        token = context.attach(baggage.set_baggage("user", "ada"))
        try:
            yield made.get_span_context()
        finally:
            context.detach(token)


@pytest.mark.parametrize("work", [farwork.make_span, farwork.make_span_later])
async def test_span_there_is_a_child_of_the_one_here(way, work):
    """A span of the work has the span as its parent that was current where the worker was made."""
    async with Node("app") as app:
        with TracerProvider().get_tracer("tests").start_as_current_span("here") as made:
            token = context.attach(baggage.set_baggage("user", "ada"))
            worker = app.run_worker(work, where=way)
            context.detach(token)
        here = made.get_span_context()
        assert await worker == (here.trace_id, here.span_id, "ada")


async def test_no_span_here(way):
    """Where no span is current, a span of the work is the root of a trace of its own."""
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
    """A propagator that raises harms nothing: the trace is not carried."""
    carrier = give_trace()
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", Broken(), raising=False)
    monkeypatch.setattr(propagate, "propagator", Broken(), raising=False)
    with pytest.raises(ValueError, match="broken"):
        propagate.inject({})
    assert give_trace() == {}
    take_trace(carrier)


def test_program_without_opentelemetry(monkeypatch, span):
    """Where there is no OpenTelemetry, nothing is given and none is taken."""
    carrier = give_trace()
    assert sorted(carrier) == ["baggage", "traceparent"]
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert give_trace() == {}
    monkeypatch.setitem(sys.modules, "opentelemetry.propagate", None)
    take_trace(carrier)
