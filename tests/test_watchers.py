"""Watchers: whatever they are shown and wherever they write, the watched program goes on."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import importlib.util
import io
import json
import logging
import sys
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from enum import Enum
from types import SimpleNamespace

import anyio
import pytest

import creche._core.log
import creche._looking.watching
import creche.trace._recorder
from creche import Node, Worker, WorkerError, active_worker, format_tree
from creche._ground.text import error_text, number, path_of, text, text_of
from creche._looking.watching import Faults, beside, report
from creche.testing import EventRecorder
from creche.trace import record
from helpers import ERROR, PENDING, RUNNING, SUCCESS, ExceptionGroup, leaves, settle, until

MISSED = "missed an event; it continues, and logs no further errors"
HAS_RICH = importlib.util.find_spec("rich") is not None
HAS_OTEL = all(map(importlib.util.find_spec, ("opentelemetry", "opentelemetry.sdk")))


class Mute:
    """An object whose str() and repr() raise."""

    def __str__(self):
        raise RuntimeError("mute")

    __repr__ = __format__ = __str__


class Untold(Exception):
    """An error whose str() raises."""

    def __str__(self):
        raise RuntimeError("untold")


class Other(Worker):
    """A worker that overrides public names with something else once it has started."""

    async def run(self):
        await anyio.sleep_forever()

    @classmethod
    @contextmanager
    def renamed(cls, **others):
        for name, value in others.items():
            setattr(cls, name, value)
        try:
            yield
        finally:
            for name in others:
                delattr(cls, name)


class Overridden(Node):
    """A node that overrides many public names with something else."""

    path = children = groups = workers = root = parent = None

    def subscribe(self):
        raise AssertionError

    def post_message(self):
        raise AssertionError

    def snapshot(self):
        raise AssertionError


async def returns():
    pass


async def fail(error=None):
    raise error or ValueError("no luck")


@asynccontextmanager
async def traced(node, tracer=None):
    """Trace a node, and yield the list of spans that have ended."""
    pytest.importorskip("opentelemetry.sdk", reason="it is an extra")
    import creche.otel  # noqa: PLC0415 (an extra)

    spans = []

    class Exporter(SpanExporter):
        def export(self, ended):
            spans.extend(ended)

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Exporter()))
    async with creche.otel.traced(node, provider.get_tracer("tests") if tracer is None else tracer):
        yield spans


@asynccontextmanager
async def board(node, *, terminal, file=None):
    """Show a node on a board. Yield the file it writes to and a function that returns its lines."""
    pytest.importorskip("rich")
    from rich.console import Console  # noqa: PLC0415 (an extra)

    import creche.board  # noqa: PLC0415 (an extra)

    file = file or io.StringIO()
    console = Console(file=file, width=120, height=30, force_terminal=terminal, _environ={})
    async with creche.board.live_board(node, console=console) as seen:

        def lines():
            paper = Console(file=io.StringIO(), width=120, height=30, _environ={})
            paper.print(seen)
            return [line.rstrip() for line in paper.file.getvalue().splitlines()]

        yield SimpleNamespace(file=file, lines=lines)


@asynccontextmanager
async def logged(node):
    """Log each change of state, and yield the records."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("creche")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    node._creche_audience.heed_logger()
    try:
        yield records
    finally:
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(handler)


@asynccontextmanager
async def subscribed(node):
    """Subscribe to a node and its whole subtree, and read nothing."""
    async with node.subscribe(Worker.StateChanged, Worker.ProgressChanged, tree=True) as events:
        yield events


def shown(node):
    """A board that writes lines, as it does without a terminal."""
    return board(node, terminal=False)


def drawn(node):
    """A board in a terminal."""
    return board(node, terminal=True)


if HAS_OTEL:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

TRACED = pytest.param(traced, marks=pytest.mark.skipif(not HAS_OTEL, reason="it is an extra"))


@pytest.fixture(
    params=[record, drawn, shown, TRACED, logged, subscribed], ids=lambda it: it.__name__
)
def watched(request):
    """Each way of watching a node."""
    return request.param


@pytest.fixture(params=[record, drawn, TRACED], ids=lambda it: it.__name__)
def reader(request):
    """Each watcher that reads in a task of its own."""
    return request.param


def saved(trace, path):
    """Return what a recording says about each worker, by name."""
    trace.save(path)
    events = json.loads(path.read_text())["traceEvents"]
    return {each["name"]: each["args"] for each in events if each["ph"] == "X"}


def told(caplog):
    """Return the messages of the library's warnings and errors."""
    return [
        each.getMessage()
        for each in caplog.records
        if each.name == "creche" and each.levelno >= logging.WARNING
    ]


@contextmanager
def only_the_faults_of_watchers(caplog):
    """Check that nothing but failures of workers was logged."""
    yield
    assert [each for each in told(caplog) if not each.endswith("failed")] == []


# text and numbers


class Name(str, Enum):
    """A string Enum, as many people use for names."""

    FETCH = "fetch"


class Loud(str):
    """A string whose str() raises."""

    __slots__ = ()

    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("plain", "plain"),
        ("Ж😀", "Ж😀"),
        ("caf\udce9", r"caf\udce9"),
        (5, "5"),
        (None, "None"),
        (Name.FETCH, "fetch"),
        (Loud("own"), "own"),
        (Mute(), "<unprintable Mute>"),
        (Untold(), "<unprintable Untold>"),
        (type("Wrong", (), {"__str__": lambda _: 5})(), "<unprintable Wrong>"),
        (type("Odd", (), {"__str__": lambda _: Loud("odd")})(), "odd"),
    ],
    ids=range(11),
)
def test_everything_has_a_text(value, words):
    """text() returns a plain, encodable string for any object."""
    assert text(value) == words
    assert type(text(value)) is str
    assert text(value).encode()


def test_an_interrupt_is_no_lack_of_text():
    """A KeyboardInterrupt raised by ``__str__`` propagates."""

    class Interrupted:
        def __str__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        text(Interrupted())


def test_an_attribute_has_a_text():
    """text_of() returns a text for any attribute, and an empty one for None."""

    class Thing:
        none, five = None, 5
        broken = property(lambda self: 1 / 0)

    assert [text_of(Thing(), name) for name in ("none", "five", "broken", "missing")] == [
        "",
        "5",
        "<unreadable broken>",
        "<unreadable missing>",
    ]


def test_an_error_has_a_text():
    """error_text() starts with the error's class, and has no colon if the error has no text."""
    assert [error_text(each) for each in (ValueError("x"), ValueError(), Untold())] == [
        "ValueError: x",
        "ValueError",
        "Untold: <unprintable Untold>",
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        (True, 1),
        (0.5, 0.5),
        (float("nan"), 0),
        (float("inf"), 10**18),
        (float("-inf"), -(10**18)),
        (10**5000, 10**18),
        ("seven", 0),
        (Mute(), 0),
        (None, 0),
    ],
    ids=["int", "bool", "float", "nan", "inf", "-inf", "huge", "word", "object", "none"],
)
def test_a_number_is_finite_and_short(value, expected):
    """number() turns any object into a finite number that is short to print."""
    assert number(value) == expected
    assert len(str(number(value))) < 22


# what watchers are shown


async def test_texts_that_cannot_be_had(watched, caplog, tmp_path):
    """Names, descriptions, reasons and errors whose str() raises do not disturb a watcher."""
    with only_the_faults_of_watchers(caplog):
        app = Node("app")
        async with watched(app), app:
            one = app.run_worker(anyio.sleep_forever, "one", description=Mute())
            two = app.run_worker(returns, "two", description=Mute())
            app.run_worker(fail(Untold()), "three", exit_on_error=False)
            await app.start_worker(anyio.sleep_forever, "four")
            one.name, one.group = Mute(), Mute()
            app.name = 5
            one.description = Mute()
            await settle()
            one.cancel(Mute())
            format_tree(app)
            await until(lambda: one.is_finished)
            app.cancel(Mute())
    assert two.state is SUCCESS


async def test_what_has_no_text_is_told_all_the_same(caplog, tmp_path):
    """An object whose str() raises is shown by the name of its class."""
    app = Node("app")
    async with record(app) as trace, logged(app) as records, app:
        worker = app.run_worker(anyio.sleep_forever, "one", description=Mute())
        await settle()
        worker.name, worker.group = Mute(), 7
        worker.cancel(Mute())
        app.name = Mute
        tree = app.snapshot()
        (seen,) = tree.groups[0].workers
        assert (seen.name, seen.description) == ("<unprintable Mute>",) * 2
        assert seen.cancel_reason == "<unprintable Mute>"
        assert "<unprintable Mute>: running" in format_tree(app)
        assert tree.name == tree.path == str(Mute)
        await until(lambda: worker.is_finished)
    args = saved(trace, tmp_path / "run.json")["one"]
    assert (args["description"], args["reason"]) == ("<unprintable Mute>",) * 2
    last = records[-1]
    assert last.getMessage() == (
        f"worker '<unprintable Mute>' of group '7' on node {str(Mute)!r}: RUNNING -> CANCELLED"
    )
    assert last.creche_reason == "<unprintable Mute>"


@pytest.mark.skipif(not HAS_RICH, reason="it is an extra")
async def test_a_board_tells_what_has_no_text():
    """A board shows an object whose str() raises by its class, in a terminal and in a pipe."""
    app = Node("app")
    async with drawn(app) as picture, shown(app) as lines, app:
        worker = app.run_worker(anyio.sleep_forever, "one", description=Mute())
        await settle()
        worker.name, worker.group = Mute(), 7
        app.run_worker(fail(Untold()), "two", exit_on_error=False)
        await settle()
        seen = picture.lines()
        assert seen[2].startswith("  ● <unprintable Mute> <unprintable Mute> ")
        assert seen[3] == "✗ app/default/two: Untold: <unprintable Untold>"
        worker.cancel(Mute())
    ended = "app/7/<unprintable Mute>: cancelled after 0s: <unprintable Mute>"
    assert ended in lines.file.getvalue()


async def test_a_span_tells_what_has_no_text():
    """An error whose str() raises is still recorded in its span as an exception."""
    app = Node("app")
    async with traced(app) as spans, app:
        app.run_worker(fail(Untold()), "one", exit_on_error=False)
        worker = app.run_worker(anyio.sleep_forever, "two", description=Mute())
        worker.cancel(Mute())
    one, two = sorted(spans, key=lambda span: span.name)
    (event,) = (each for each in one.events if each.name == "exception")
    assert dict(event.attributes) == {
        "exception.type": "Untold",
        "exception.message": "<unprintable Untold>",
    }
    assert one.status.description == "<unprintable Untold>"
    assert two.attributes["creche.description"] == "<unprintable Mute>"
    assert two.attributes["creche.cancel_reason"] == "<unprintable Mute>"


async def test_names_of_half_characters(watched, tmp_path):
    """Surrogates, which cannot be written to a file, are escaped in what watchers get."""
    app = Node("app")
    async with watched(app) as watcher, app:
        await app.run_worker(returns, "caf\udce9", description="\ud800")
        await settle()
    if watched is traced:
        (span,) = watcher
        assert span.name == span.attributes["creche.worker"] == r"caf\udce9"
    if watched is logged:
        assert watcher[0].creche_worker == r"caf\udce9"


async def test_progress_of_any_kind(watched, caplog):
    """Steps that are not numbers, not finite or too large do not disturb a watcher."""
    with only_the_faults_of_watchers(caplog):
        app = Node("app")
        async with watched(app) as watcher, app:
            for done, total in [
                (float("nan"), float("nan")),
                (float("inf"), float("inf")),
                (10**400, 3),
                (10**5000, 10**5000),
                (-(10**5000), None),
                (1, 10**5000),
                (5e-324, 10**18),
                (0.5, 2.5),
                ("many", None),
                (Mute(), 7),
            ]:
                worker = await app.start_worker(anyio.sleep_forever)
                worker._completed, worker._total = done, total  # update() would refuse some
            await settle()
            assert "100" in format_tree(app)
            seen = app.snapshot().groups[0].workers
            most = 10**18
            assert [each.completed_steps for each in seen] == [
                *(0, most, most, most, -most),
                *(1, 0, 0, 0, 0),
            ]
            assert [each.total_steps for each in seen] == [
                *(0, most, 3, most, None),
                *(most, most, 2, None, 7),
            ]
            assert [round(each.progress) for each in seen] == [0, 100, 100, 100, 0, 0, 0, 20, 0, 0]
            assert json.loads(json.dumps(dataclasses.asdict(app.snapshot())))
            if watched is drawn:
                assert len(watcher.lines()) > 10
            app.cancel()


async def test_events_of_work_that_was_refused(watched, caplog):
    """Work that a node refuses does not disturb a watcher or the block."""
    with only_the_faults_of_watchers(caplog):
        app = Node("app")
        went_on = False
        async with watched(app), app:
            await app.run_worker(returns)
            await app.shutdown()
            with pytest.raises(WorkerError, match="shutting down"):
                app.run_worker(anyio.sleep_forever, "late")
            await settle()
            went_on = True
        assert went_on


async def test_workers_that_nobody_was_told_of(watched, caplog, tmp_path):
    """The first event of an adapter's worker that was never added is RUNNING, or its end."""
    with only_the_faults_of_watchers(caplog):
        app = Node("app")
        async with watched(app) as watcher, app:
            for name, states in {
                "runs": (RUNNING, SUCCESS),
                "fails": (RUNNING, ERROR),
                "goes on": (RUNNING,),
            }.items():
                worker = Worker(app, returns, name=name)
                for state in states:
                    worker.state = state
                    await settle()
            lone = Worker(app, returns, name="lone")
            lone.cancel()
            await settle()
            if watched is record:
                del worker
                found = saved(watcher, tmp_path / "run.json")
                assert (found["runs"]["state"], found["fails"]["state"]) == ("SUCCESS", "ERROR")
                assert found["lone"]["state"] == "CANCELLED"
                assert "goes on" not in found  # it is gone, and so will never end


async def test_workers_that_mean_something_else_by_their_names(watched, caplog, tmp_path):
    """Watchers see the true node and state even if a subclass overrides ``node`` and ``state``."""
    with only_the_faults_of_watchers(caplog):
        app = Node("app")
        async with watched(app) as watcher, app:
            worker = Other(app, name="other")
            app.workers.add_worker(worker)
            with Other.renamed(node=None, state="of mind"):
                await settle()
                assert (worker.node, worker.state) == (None, "of mind")
                assert "other: running" in format_tree(app)
                worker.cancel("enough")
                await until(lambda: worker.is_finished)
                await settle()
        if watched is record:
            assert saved(watcher, tmp_path / "run.json")["other"]["state"] == "CANCELLED"
        if watched is logged:
            assert watcher[-1].creche_node == "app"
            assert watcher[-1].creche_state == "CANCELLED"
        if watched is traced:
            assert watcher[0].attributes["creche.state"] == "CANCELLED"
        if watched is shown:
            assert "app/default/other: cancelled after 0s: enough" in watcher.file.getvalue()


async def test_a_recorder_of_events_reads_the_facts():
    """EventRecorder sees the true node and state too."""
    app = Node("app")
    recorder = EventRecorder(app)
    async with app:
        worker = Other(app, name="other")
        app.workers.add_worker(worker)
        with Other.renamed(node=None, state="of mind"):
            await settle()
            recorder.assert_orderly()
            with pytest.raises(AssertionError, match="worker 'other' of app/default: RUNNING"):
                recorder.assert_states(worker, PENDING)
        worker.cancel()


async def test_properties_that_raise(watched, caplog, tmp_path):
    """If properties of a subclass raise, watchers show "unreadable" in their place and go on."""
    broken = property(lambda self: 1 / 0)
    names = ["name", "group", "description", "daemon", "thread", "progress", "elapsed", "error"]
    names += ["is_cancelled", "cancel_reason", "cancelled_at", "started_at", "completed_steps"]
    with only_the_faults_of_watchers(caplog):
        app = Node("app")
        async with watched(app) as watcher, app:
            worker = Other(app, name="other", daemon=True)
            app.workers.add_worker(worker)
            await settle()
            with Other.renamed(**dict.fromkeys(names, broken)):
                assert "<unreadable name>: running, " in format_tree(app)
                if watched is drawn:
                    assert "● <unreadable name> <unreadable description>" in watcher.lines()[2]
                worker.cancel("enough")
                await until(lambda: worker.is_finished)
                await settle()
        if watched is record:
            other = saved(watcher, tmp_path / "run.json")["other"]
            assert (other["description"], other["reason"]) == ("<unreadable description>", "enough")
        if watched is shown:
            assert ": cancelled after 0s: enough" in watcher.file.getvalue()


async def test_nodes_that_mean_something_else_by_their_names(watched, caplog):
    """Watchers work with nodes whose subclass overrides public names."""
    with only_the_faults_of_watchers(caplog):
        app = Node("app")
        async with watched(app), app, Overridden("page", parent=app) as page:
            page.run_worker(returns, "one")
            await settle()
        top = Overridden("top")
        async with AsyncExitStack() as stack:
            if watched is not subscribed:  # that is the node's own method
                await stack.enter_async_context(watched(top))
            async with top, Node("below", parent=top) as below:
                worker = below.run_worker(returns, "one")
                await settle()
                assert path_of(below) == "top/below"
                assert format_tree(top).startswith("node top: open\n  node below: open")
        assert worker.state is SUCCESS


async def test_workers_that_are_equal(watched, caplog, tmp_path):
    """Watchers distinguish workers by identity, not by equality."""

    class Equal(Worker):
        def __eq__(self, other):
            return True

        def __hash__(self):
            return 1

    with only_the_faults_of_watchers(caplog):
        app = Node("app")
        async with watched(app) as watcher, app:
            for name in ("one", "two"):
                app.workers.add_worker(Equal(app, anyio.sleep_forever, name=name, group=name))
            await settle()
            tree = format_tree(app)
            assert "one: running" in tree
            assert "two: running" in tree
            if watched is drawn:
                assert watcher.lines()[-1] == "2 running"
            app.cancel()
        if watched is record:
            assert saved(watcher, tmp_path / "run.json").keys() == {"one", "two"}
        if watched is traced:
            assert sorted(span.name for span in watcher) == ["one", "two"]


async def test_a_context_variable_that_was_made_something_else(watched, caplog):
    """A value in ``active_worker`` that is not a worker does not disturb a watcher."""
    with only_the_faults_of_watchers(caplog):
        app = Node("app")
        async with watched(app), app:
            token = active_worker.set("me")
            app.run_worker(returns)
            active_worker.reset(token)
            await settle()


# what watchers write to


async def test_a_filter_of_the_log_that_raises(caplog, capsys, monkeypatch):
    """A failing filter stops no work. The first lost record is reported, and logging goes on."""

    class WantsRequest(logging.Filter):
        is_at_fault = True

        def filter(self, record):
            return not self.is_at_fault or record.request_id

    logger, wants = logging.getLogger("creche"), WantsRequest()
    app = Node("app")
    async with logged(app) as records, app:
        logger.addFilter(wants)
        try:
            worker = await app.run_worker(returns, "lost")
            wants.is_at_fault = False
            await app.run_worker(returns, "kept")
            wants.is_at_fault = True
            await app.run_worker(returns, "lost again")
        finally:
            logger.removeFilter(wants)
        app.run_worker(returns, "kept")
    assert worker is None
    assert [each.creche_worker for each in records] == ["kept"] * 6
    said = capsys.readouterr().err
    assert said.count("AttributeError: 'LogRecord' object has no attribute 'request_id'") == 4
    assert said.count("the log failed to tell: a change of a worker's state cannot be logged") == 2


async def test_a_handler_of_the_log_that_raises(caplog):
    """The failure of one log handler is logged through the other handlers."""

    class Disk(logging.Handler):
        def emit(self, record):
            if record.levelno < logging.ERROR:
                raise OSError("no space left on device")

    logger, disk = logging.getLogger("creche"), Disk()
    app = Node("app")
    async with logged(app), app:
        logger.addHandler(disk)
        try:
            worker = app.run_worker(returns)
            await worker
        finally:
            logger.removeHandler(disk)
    assert worker.state is SUCCESS
    assert told(caplog) == ["a change of a worker's state cannot be logged"]


def test_a_fault_that_nobody_can_be_told_of(capsys, monkeypatch):
    """When both the log and standard error fail, report() is silent and does not raise."""

    def emit(record):
        raise OSError

    logger, handler = logging.getLogger("creche"), logging.Handler()
    handler.emit = emit
    logger.addHandler(handler)
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    try:
        report("all is lost")
    finally:
        logger.removeHandler(handler)


async def test_a_watcher_and_a_log_that_both_fail(reader, caplog, monkeypatch, capsys):
    """A watcher that fails and cannot log that does not disturb the block."""

    def lose(*_):
        raise OSError("no network")

    monkeypatch.setattr(logging.getLogger("creche"), "makeRecord", lose)
    monkeypatch.setattr(creche._messages.subscription.Subscription, "take_all", lose)
    monkeypatch.setattr(creche._messages.subscription.Subscription, "__anext__", lose)
    app = Node("app")
    async with reader(app), app:
        worker = app.run_worker(returns)
    assert worker.state is SUCCESS


@pytest.mark.skipif(not HAS_OTEL, reason="it is an extra")
@pytest.mark.parametrize("step", ["on_start", "on_end"])
async def test_a_span_processor_that_raises(caplog, step):
    """A span processor that fails for one span still gets the others. The first error is logged."""
    seen = []

    class Processor(SpanProcessor):
        def on_start(self, span, parent_context=None):
            self.note("on_start", span)

        def on_end(self, span):
            self.note("on_end", span)

        def note(self, where, span):
            if where == step and span.name == "bad":
                raise OSError("no network")
            seen.append((where, span.name))

    provider = TracerProvider()
    provider.add_span_processor(Processor())
    app = Node("app")
    async with traced(app, provider.get_tracer("tests")), app:
        for name in ("bad", "good", "bad"):
            await app.run_worker(returns, name)
        app.run_worker(anyio.sleep_forever, "bad", daemon=True)
    assert [each for each in seen if each[1] == "good"] == [
        ("on_start", "good"),
        ("on_end", "good"),
    ]
    assert told(caplog) == [f"the tracer of node 'app' {MISSED}"]


@pytest.mark.skipif(not HAS_OTEL, reason="it is an extra")
async def test_a_span_that_takes_nothing_is_ended(caplog):
    """A span is ended even if it rejects every call. Open spans are ended with the block."""
    ended = []

    class Span:
        def add_event(self, *_, **__):
            raise OSError("no network")

        set_attribute = set_status = record_exception = add_event

        def end(self, when=None):
            ended.append(when is not None)
            if when is None:
                raise OSError("no network")

    class Tracer:
        def start_span(self, *_, **__):
            return Span()

        def __bool__(self):
            raise AssertionError

    async with Node("app") as app:
        async with traced(app, Tracer()):
            app.run_worker(fail, "one", exit_on_error=False)
            app.run_worker(anyio.sleep_forever, "two")
            app.run_worker(anyio.sleep_forever, "three")
            await settle()
        app.cancel()
    assert ended == [True, False, False]
    assert told(caplog) == ["worker 'one' failed", f"the tracer of node 'app' {MISSED}"]


# watchers do not change what happens in the block


async def test_an_error_of_their_own_stays_with_them(reader, caplog, monkeypatch):
    """A watcher that fails on an event skips it, logs that once, and gets the next event."""
    heard = []
    app = Node("app")
    bad = RuntimeError("of the watcher")

    def lose(real):
        def take(self, event):
            heard.append(event.worker.name)
            if event.worker.name == "bad":
                raise bad
            return real(self, event)

        return take

    if reader is record:
        owner, name = creche.trace.Trace, "_take"
    elif reader is traced:
        owner, name = pytest.importorskip("creche.otel._spans")._Spans, "_note"
    else:
        pytest.importorskip("rich")
        owner, name = importlib.import_module("creche.board._tally").Tally, "take"
    monkeypatch.setattr(owner, name, lose(getattr(owner, name)))
    async with reader(app), app:
        for name in ("bad", "bad", "good"):
            await app.run_worker(returns, name)
            await settle()
    assert heard.count("good") == 3
    assert [each.endswith(MISSED) for each in told(caplog)] == [True]


async def test_an_error_of_their_own_does_not_replace_that_of_the_body(reader, caplog, monkeypatch):
    """The block raises what its body raised, even if a watcher fails too."""

    def lose(*_):
        raise RuntimeError("of the watcher")

    monkeypatch.setattr(creche._messages.subscription.Subscription, "take_all", lose)
    monkeypatch.setattr(creche._messages.subscription.Subscription, "__anext__", lose)
    error = KeyError("of the body")
    with pytest.raises(KeyError) as caught:
        async with reader(Node("app")):
            raise error
    assert caught.value is error
    app = Node("app")
    async with reader(app), app:
        worker = app.run_worker(returns)
        await settle()
    assert worker.state is SUCCESS
    app = Node("app")
    with pytest.raises(ExceptionGroup) as group:
        async with reader(app), app:
            app.run_worker(fail)
    assert [str(each) for each in leaves(group.value)] == ["no luck"]


async def test_their_task_may_be_cancelled_natively(reader, anyio_backend_name, caplog):
    """Natively cancelling a watcher's asyncio task ends the watching, but not the block."""
    if anyio_backend_name != "asyncio":
        pytest.skip("there is no such cancellation")
    app = Node("app")
    async with reader(app), app:
        await settle()
        others = [task for task in asyncio.all_tasks() if task.get_name().endswith("of node 'app'")]
        for task in others:
            if "watcher" not in task.get_name():
                task.cancel()
        assert len(others) == 2
        await settle()
        worker = app.run_worker(returns)
        await settle()
    assert worker.state is SUCCESS
    assert told(caplog) == []


async def test_faults_are_told_once_and_cancellations_pass(caplog):
    """Faults logs only the first error, and lets anything that is not an Exception pass."""
    faults = Faults("somebody")
    with faults:
        pass
    for _ in range(2):
        with faults:
            raise ValueError
    with pytest.raises(KeyboardInterrupt), faults:
        raise KeyboardInterrupt
    assert told(caplog) == [f"somebody {MISSED}"]


async def test_a_body_and_a_cancellation_at_once():
    """An error of the body is not lost if a surrounding scope is cancelled as the block is left."""

    async def watch():
        await anyio.sleep_forever()

    with anyio.CancelScope() as scope:
        with pytest.raises(ValueError, match="of the body"):
            async with beside(watch, Faults("somebody"), "somebody"):
                await settle()
                scope.cancel()
                raise ValueError("of the body")
    with anyio.CancelScope() as scope:
        async with beside(watch, Faults("somebody"), "somebody"):
            scope.cancel()
    assert scope.cancel_called
