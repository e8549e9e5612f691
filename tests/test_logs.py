"""The logger ``creche``: what it logs, at which level, with which fields, and what it costs."""

from __future__ import annotations

import itertools
import json
import logging

import anyio
import pytest

import creche._core.log
from creche import Message, Node, Worker, active_worker, work
from helpers import CANCELLED, ExceptionGroup, Meeting, fail, settle, until

FIELDS = ("worker", "group", "node", "state", "previous", "reason")


def fields(record):
    """Return the fields of a record that the library adds."""
    return {name: getattr(record, f"creche_{name}") for name in FIELDS}


def records(caplog):
    """Return the library's records. On a busy machine, asyncio's debug mode logs as well."""
    return [each for each in caplog.records if each.name == "creche"]


def changes(caplog):
    """Return the changes of state that were logged."""
    return [
        (each.creche_worker, each.creche_previous, each.creche_state)
        for each in records(caplog)
        if each.levelno == logging.DEBUG
    ]


@pytest.fixture
def debug(caplog):
    """Set the logger's level to DEBUG."""
    caplog.set_level(logging.DEBUG, logger="creche")


async def test_each_change_is_told_at_debug(caplog, debug):
    """Each change of state, including the final one, is logged as a record of its own, in order."""
    async with Node("app") as app:
        app.group("one", limit=1)
        app.run_worker(anyio.lowlevel.checkpoint, "good", group="one")
        app.run_worker(fail(ValueError("broken")), "bad", group="one", exit_on_error=False)
        app.run_worker(anyio.sleep_forever, "gone", group="one").cancel("not needed")
    told = changes(caplog)
    for name, path in {
        "good": [None, "PENDING", "RUNNING", "SUCCESS"],
        "bad": [None, "PENDING", "RUNNING", "ERROR"],
        "gone": [None, "PENDING", "CANCELLED"],
    }.items():
        assert [step[1:] for step in told if step[0] == name] == list(itertools.pairwise(path))
    assert len(told) == 8


async def test_a_record_has_a_sentence_and_fields(caplog, debug):
    """A record's message is readable, and its facts are attributes that are strings or None."""
    async with Node("app") as app, Node("page", parent=app) as page:
        page.run_worker(anyio.sleep_forever, "fetch", group="net").cancel(OSError("unplugged"))
    first, last = records(caplog)
    assert first.getMessage() == "worker 'fetch' of group 'net' on node 'app/page': new -> PENDING"
    assert last.getMessage() == (
        "worker 'fetch' of group 'net' on node 'app/page': PENDING -> CANCELLED"
    )
    assert fields(last) == {
        "worker": "fetch",
        "group": "net",
        "node": "app/page",
        "state": "CANCELLED",
        "previous": "PENDING",
        "reason": "unplugged",
    }
    assert fields(first)["previous"] is None
    assert json.loads(json.dumps(fields(first))) == fields(first)


@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING])
async def test_a_stored_failure_is_told_at_error(caplog, level):
    """A stored failure is logged at ERROR, with its traceback and the same fields."""
    caplog.set_level(level, logger="creche")

    async def fail():
        raise ValueError("broken")

    class Fail(Worker):
        async def run(self):
            await fail()

    async with Node("app") as app:
        app.workers.add_worker(Fail(app, exit_on_error=False))
    (record,) = (each for each in records(caplog) if each.levelno == logging.ERROR)
    assert record.getMessage() == "worker 'Fail' failed"
    assert str(record.exc_info[1]) == "broken"
    assert record.exc_info[2] is not None
    assert fields(record) == {
        "worker": "Fail",
        "group": "default",
        "node": "app",
        "state": "ERROR",
        "previous": "RUNNING",
        "reason": None,
    }


async def test_a_node_that_falls_says_so_in_that_moment(caplog, debug):
    """The failure and the call are logged while the block is still waiting for other work."""

    class App(Node):
        @work
        async def fetch(self, path):
            raise ValueError("broken")

    go = anyio.Event()

    async def unwinds():
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await go.wait()

    def told():
        return [each for each in records(caplog) if each.levelno > logging.DEBUG]

    async def look():
        try:
            await until(told)
        finally:
            go.set()  # in any case, as the block waits for it
        (record,) = told()
        assert record.levelno == logging.ERROR
        where = "worker 'fetch' failed in fetch('/4'), and with it node 'app'"
        assert record.getMessage() == where
        assert isinstance(record.exc_info[1], ValueError)
        assert record.creche_state == "ERROR"
        assert not app.is_finished

    app = App("app")
    async with anyio.create_task_group() as group:
        group.start_soon(look)
        with pytest.raises(ExceptionGroup):
            async with app:
                await app.start_worker(unwinds)
                app.fetch("/4")
    assert len(told()) == 1
    assert ("fetch", "RUNNING", "ERROR") in changes(caplog)


async def test_a_late_failure_of_an_abandoned_thread_has_the_fields(caplog):
    """What an abandoned thread raises is logged with the same fields."""
    meeting = Meeting()

    def fail():
        meeting()
        raise ValueError("late")

    async with Node("app") as app:
        worker = app.run_worker(fail, thread=True, abandon_on_cancel=True)
        await meeting.until_arrived()
        worker.cancel("slow")
        await until(lambda: worker.is_finished)
        meeting.go.set()
        await until(lambda: not worker.is_abandoned and records(caplog))
    (record,) = records(caplog)
    assert fields(record) == {
        "worker": "fail",
        "group": "default",
        "node": "app",
        "state": "CANCELLED",
        "previous": None,
        "reason": "slow",
    }


async def test_a_level_that_is_set_later_counts_from_the_next_worker(caplog):
    """A change of the logger's level takes effect on an open node, both up and down."""
    async with Node("app") as app:
        await app.run_worker(anyio.lowlevel.checkpoint, "before")
        caplog.set_level(logging.DEBUG, logger="creche")
        await app.run_worker(anyio.lowlevel.checkpoint, "told")
        assert creche._core.log.LOG in app._creche_audience.heard_by
        caplog.set_level(logging.INFO, logger="creche")
        await app.run_worker(anyio.lowlevel.checkpoint, "after")
        assert app._creche_audience.heard_by == ()
    assert [name for name, _, _ in changes(caplog)] == ["told"] * 3


async def test_the_level_of_the_root_logger_counts_as_a_node_opens(caplog):
    """Each node reads the inherited level when it is opened."""
    app = Node("app")
    caplog.set_level(logging.DEBUG)
    async with app:
        await app.run_worker(anyio.lowlevel.checkpoint, "above")
        caplog.set_level(logging.INFO)
        async with Node("page", parent=app) as page:
            await page.run_worker(anyio.lowlevel.checkpoint, "below")
        assert page._creche_audience.heard_by == ()
    told = [each for each in changes(caplog) if each[0] in ("above", "below")]
    assert [name for name, _, _ in told] == ["above"] * 3


async def test_messages_are_not_told(caplog, debug):
    """Messages posted to a node are not logged."""
    async with Node("app") as app:
        app.post_message(Message())
    assert records(caplog) == []


async def test_nobody_hears_a_node_of_a_silent_program(caplog):
    """If changes are not logged, the log does not listen. Subscriptions come and go as usual."""
    caplog.set_level(logging.INFO, logger="creche")
    async with Node("app") as app:
        assert app._creche_audience.heard_by == ()
        async with app.subscribe(Worker.StateChanged):
            assert len(app._creche_audience.heard_by) == 1
        assert app._creche_audience.heard_by == ()


async def test_the_log_is_written_beside_subscriptions(caplog, debug):
    """The log and a subscription to the tree get the same changes, once each."""
    seen = []

    async def read(events):
        seen.extend([(event.worker.name, event.state.name) async for event in events])

    app = Node("app")
    async with (
        app.subscribe(Worker.StateChanged, tree=True) as events,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(read, events)
        async with app, Node("page", parent=app) as page:
            page.run_worker(anyio.lowlevel.checkpoint, "work")
            page.run_worker(anyio.lowlevel.checkpoint, "more").update(total_steps=3)
    assert [(name, state) for name, _, state in changes(caplog)] == seen
    assert len(seen) == 6


async def test_records_are_made_where_the_change_happens(caplog, debug):
    """Logging filters see the context variables of the work, such as the active worker."""
    found = []

    def note(record):
        worker = active_worker.get(None)
        found.append((record.creche_state, worker.name if worker else None))
        return True

    logger = logging.getLogger("creche")
    logger.addFilter(note)
    try:
        async with Node("app") as app:
            app.run_worker(anyio.lowlevel.checkpoint, "work")
            await settle()
    finally:
        logger.removeFilter(note)
    assert found == [("PENDING", None), ("RUNNING", "work"), ("SUCCESS", "work")]


class Interrupting(logging.Handler):
    """A logging handler that raises KeyboardInterrupt once."""

    def __init__(self, what):
        super().__init__()
        self.what, self.has_come = what, False

    def emit(self, record):
        if not self.has_come and self.what in record.getMessage():
            self.has_come = True
            raise KeyboardInterrupt


@pytest.fixture
def interrupted(debug):
    """Raise KeyboardInterrupt when a record that contains some text is logged."""
    logger = logging.getLogger("creche")

    def at(what):
        logger.addHandler(Interrupting(what))

    yield at
    for handler in list(logger.handlers):
        if isinstance(handler, Interrupting):
            logger.removeHandler(handler)


@pytest.mark.parametrize("what", ["RUNNING", "'cook' failed in burn"])
async def test_a_ctrl_c_in_a_handler_of_the_log(interrupted, what):
    """If a log handler raises KeyboardInterrupt, the state changes and the block raises it."""

    async def burn():
        raise ValueError("burnt")

    interrupted(what)
    with pytest.raises(KeyboardInterrupt):
        async with Node("app") as app:
            worker = app.run_worker(burn, "cook", description="burn", exit_on_error=False)
            await anyio.sleep_forever()
    assert worker.is_finished
    assert len(app.workers) == 0


async def test_a_ctrl_c_as_a_worker_is_superseded(interrupted):
    """A Ctrl+C as a worker is superseded also cancels the new worker, and the block raises it."""
    interrupted("'old' of group 'one' on node 'app': PENDING -> CANCELLED")
    with pytest.raises(KeyboardInterrupt) as caught:
        async with Node("app") as app:
            group = app.group("one", limit=1)
            old = group.run_worker(anyio.sleep_forever, "old")
            new = group.run_worker(anyio.sleep_forever, "new", exclusive=True)
            assert new.state is old.state is CANCELLED
            assert len(group) == 0
            await anyio.sleep_forever()
    assert caught.value.__cause__ is None
