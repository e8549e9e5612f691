"""The table of state transitions, tested with every trigger in every state."""

from __future__ import annotations

import math

import anyio
import pytest

from creche import Node, Worker, WorkerCancelled, WorkerError, WorkerState
from creche._ground.states import FINAL, NURSERY_TRANSITIONS, TRANSITIONS, NurseryState
from helpers import CANCELLED, ERROR, PENDING, RUNNING, SUCCESS, Listener, settle

CONTRACT = {
    PENDING: {RUNNING, CANCELLED, ERROR},
    RUNNING: {SUCCESS, ERROR, CANCELLED},
    CANCELLED: set(),
    ERROR: set(),
    SUCCESS: set(),
}


def test_table_is_the_contract():
    """The table has a row for each state, with the transitions that the contract allows."""
    assert {state: set(following) for state, following in TRANSITIONS.items()} == CONTRACT
    assert {CANCELLED, ERROR, SUCCESS} == FINAL
    assert [(state.name, state.value) for state in WorkerState] == [
        ("PENDING", 1),
        ("RUNNING", 2),
        ("CANCELLED", 3),
        ("ERROR", 4),
        ("SUCCESS", 5),
    ]


def test_table_cannot_be_changed():
    """The table is read-only."""
    with pytest.raises(TypeError):
        TRANSITIONS[PENDING] = frozenset()


def test_life_of_a_nursery_only_goes_on():
    """A nursery never goes back to an earlier stage of its life."""
    order = list(NurseryState)
    for life, following in NURSERY_TRANSITIONS.items():
        assert all(order.index(later) > order.index(life) for later in following)


async def reach(node, state):
    """Create a worker that is not started, and set its state step by step."""
    worker = node.run_worker(anyio.sleep_forever, start=False)
    path = {PENDING: [], RUNNING: [RUNNING], CANCELLED: [CANCELLED]}.get(state, [RUNNING, state])
    for each in path:
        worker.state = each
    assert worker.state is state
    return worker


@pytest.mark.parametrize("new", list(WorkerState))
@pytest.mark.parametrize("old", list(WorkerState))
async def test_setter_on_a_worker_not_started_here(old, new):
    """An adapter can set only the states that the table allows; each change is posted once."""
    async with Listener() as app:
        worker = await reach(app, old)
        await settle()
        before = app.told_of(worker)
        if new in CONTRACT[old]:
            worker.state = new
            assert worker.state is new
            await settle()
            assert app.told_of(worker) == [*before, new]
        else:
            with pytest.raises(WorkerError, match=f"is {old.name} and cannot become {new.name}"):
                worker.state = new
            assert worker.state is old
            await settle()
            assert app.told_of(worker) == before


async def bring(node, state, gate):
    """Have the node run a worker until it is in the given state."""

    async def work():
        await gate.wait()
        if state is ERROR:
            raise ValueError("planned")

    if state is PENDING:
        node.group("one", limit=1)
        node.run_worker(gate.wait, group="one")
        worker = node.run_worker(work, group="one")
        await settle()
        assert worker.is_queued
        return worker
    worker = node.run_worker(work, exit_on_error=False)
    await settle()
    if state is not RUNNING:
        if state is CANCELLED:
            worker.cancel("planned")
        gate.set()
        await settle()
    assert worker.state is state
    return worker


TRIGGERS = {
    "cancel": lambda app, worker: worker.cancel("again"),
    "start_all": lambda app, worker: app.workers.start_all(),
    "cancel_group": lambda app, worker: app.workers.cancel_group(app, worker.group),
    "cancel_node": lambda app, worker: app.workers.cancel_node(app),
    "cancel_all": lambda app, worker: app.workers.cancel_all(),
    "set PENDING": lambda app, worker: setattr(worker, "state", PENDING),
    "set RUNNING": lambda app, worker: setattr(worker, "state", RUNNING),
    "set CANCELLED": lambda app, worker: setattr(worker, "state", CANCELLED),
    "set ERROR": lambda app, worker: setattr(worker, "state", ERROR),
    "set SUCCESS": lambda app, worker: setattr(worker, "state", SUCCESS),
    "advance": lambda app, worker: worker.advance(),
    "open the gate": lambda app, worker: None,
}
CANCELLING = {"cancel", "cancel_group", "cancel_node", "cancel_all", "set CANCELLED"}


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("old", list(WorkerState))
async def test_triggers_on_a_worker_started_here(caplog, old, trigger):
    """Every trigger in every state has the effect that the contract says, and is posted."""
    gate = anyio.Event()
    async with Listener() as app:
        worker = await bring(app, old, gate)
        final = old in FINAL
        if trigger.startswith("set ") and not (trigger == "set CANCELLED" and not final):
            with pytest.raises(WorkerError, match="was started here, cannot be set to"):
                TRIGGERS[trigger](app, worker)
            assert worker.state is old
        else:
            TRIGGERS[trigger](app, worker)
        if trigger in CANCELLING and not final:
            assert worker.is_cancelled
            assert worker.state is (CANCELLED if old is PENDING else RUNNING)
            await settle()
            expected = CANCELLED
        elif trigger == "open the gate" and not final:
            gate.set()
            await settle()
            expected = SUCCESS
        else:
            await settle()
            expected = old
        assert worker.state is expected
        path = {SUCCESS: [RUNNING, SUCCESS], ERROR: [RUNNING, ERROR], RUNNING: [RUNNING]}
        told = [PENDING, *path.get(expected, [])]
        if expected is CANCELLED:
            told = [PENDING, CANCELLED] if old is PENDING else [PENDING, RUNNING, CANCELLED]
        assert app.told_of(worker) == told
        gate.set()


async def test_first_reason_wins():
    """Calling cancel() again changes nothing: the first reason stays."""
    async with Listener() as app:
        worker = app.run_worker(anyio.sleep_forever)
        worker.cancel("first")
        worker.cancel("second")
        assert worker.cancel_reason == "first"
        assert worker.state is CANCELLED  # it had not begun
        worker.cancel("third")
        assert worker.cancel_reason == "first"


async def test_cancel_of_a_finished_worker_changes_nothing():
    """Cancelling a worker that has ended does nothing."""
    async with Listener() as app:
        worker = app.run_worker(anyio.lowlevel.checkpoint)
        await worker.wait()
        worker.cancel()
        assert not worker.is_cancelled
        assert not worker.cancelled_event.is_set()
        assert worker.state is SUCCESS


async def test_cancelled_while_pending_is_never_entered():
    """A worker cancelled before its first step is CANCELLED at once, and its work never runs."""
    entered = []

    async def work():
        entered.append(True)

    async with Listener() as app:
        never = app.run_worker(work)
        never.cancel()
        assert never.state is CANCELLED
        coroutine = app.run_worker(work())
        coroutine.cancel()
        unstarted = app.run_worker(work, start=False)
        unstarted.cancel()
        app.workers.start_all()
        await settle()
        assert unstarted.state is CANCELLED
        assert app.told_of(never) == [PENDING, CANCELLED]
    assert entered == []


async def test_adapter_cannot_report_success_after_cancel():
    """After cancel() an adapter can only set CANCELLED or ERROR."""
    async with Listener() as app:
        worker = await reach(app, RUNNING)
        worker.cancel("no longer wanted")
        assert worker.state is RUNNING
        assert worker.cancelled_event.is_set()
        with pytest.raises(WorkerError, match="was cancelled; only CANCELLED or ERROR can follow"):
            worker.state = SUCCESS
        worker.state = CANCELLED
        with pytest.raises(WorkerCancelled, match="no longer wanted"):
            await worker.wait()


async def test_adapter_in_another_thread():
    """The state can be set from any thread; a transition that is not allowed raises there."""

    def adapt(worker):
        worker.state = RUNNING
        with pytest.raises(WorkerError, match="cannot become PENDING"):
            worker.state = PENDING
        worker.state = SUCCESS

    async with Listener() as app:
        worker = app.run_worker(anyio.sleep_forever, start=False)
        await anyio.to_thread.run_sync(adapt, worker)
        assert await worker.wait() is None
        await settle()
        assert app.told_of(worker) == [PENDING, RUNNING, SUCCESS]


@pytest.mark.parametrize("limit", [None, 1])
async def test_adding_leaves_an_adapters_worker_alone(limit):
    """A worker that already runs elsewhere when it is added takes no slot and is not started."""
    async with Listener() as app:
        group = app.group("one", limit)
        worker = Worker(app, anyio.sleep_forever, group="one")
        worker.state = RUNNING
        app.workers.add_worker(worker)
        await settle()
        assert (worker.state, worker.is_cancelled) == (RUNNING, False)
        assert (list(group), group.running, group.queued) == ([worker], 0, 0)
        worker.state = SUCCESS
        assert list(group) == []


async def test_adapters_worker_that_is_refused_goes_on():
    """A closed node cancels a worker it refuses; one that runs elsewhere stays RUNNING for now."""
    async with Node("app") as app:
        pass
    waiting, running = [Worker(app, anyio.sleep_forever) for _ in range(2)]
    running.state = RUNNING
    for worker in (waiting, running):
        with pytest.raises(WorkerError, match="which is closed"):
            app.workers.add_worker(worker)
        assert worker.is_cancelled
    assert (waiting.state, running.state) == (CANCELLED, RUNNING)


async def test_start_all_leaves_an_adapters_worker_alone():
    """start_all() does not start a worker that an adapter runs."""
    async with Listener() as app:
        worker = await reach(app, RUNNING)
        app.workers.start_all()
        await settle()
        assert app.told_of(worker) == [PENDING, RUNNING]


async def test_start_all_on_a_closing_node_where_nothing_waits():
    """start_all() on a node that shuts down is no error if an adapter runs the only candidate."""
    async with Listener() as app, anyio.create_task_group() as tasks:
        worker = await reach(app, RUNNING)
        held = app.run_worker(anyio.sleep_forever)
        tasks.start_soon(app.shutdown, math.inf)
        await settle()
        app.workers.start_all()
        assert worker.state is RUNNING
        held.cancel()


async def test_adapter_that_never_ends_is_cancelled_with_the_node():
    """Work that runs elsewhere does not keep a node open, and is cancelled with it."""
    async with Listener() as app:
        running = await reach(app, RUNNING)
        pending = await reach(app, PENDING)
    assert running.state is CANCELLED
    assert pending.state is CANCELLED
    assert app.told_of(running) == [PENDING, RUNNING, CANCELLED]


async def test_success_after_cancel_is_never_reported():
    """Work that swallows its cancellation and returns is CANCELLED; its result is kept."""

    async def stubborn():
        try:
            await anyio.sleep_forever()
        except BaseException:
            return "late"

    async with Listener() as app:
        worker = app.run_worker(stubborn)
        await settle()
        worker.cancel()
        await settle()
        assert worker.state is CANCELLED
        assert worker.result == "late"
        with pytest.raises(WorkerCancelled):
            await worker.wait()
        assert app.told_of(worker) == [PENDING, RUNNING, CANCELLED]


async def test_state_of_a_worker_that_was_never_added():
    """An adapter can run a worker that was never added to its node."""
    async with Listener() as app:
        worker = Worker(app, anyio.sleep_forever)
        worker.state = RUNNING
        worker.state = SUCCESS
        await settle()
        assert app.told_of(worker) == [RUNNING, SUCCESS]


async def test_worker_that_is_added_to_no_node_outlives_its_own():
    """A worker that was never added may outlive its node, without events and without a trace."""

    class App(Listener):
        def on_worker_progress_changed(self, event):
            self.told.append((event.worker, event))

    async with App() as app:
        worker = Worker(app, anyio.sleep_forever)
    worker.advance()
    await anyio.to_thread.run_sync(worker.advance)
    worker.state = RUNNING
    await settle()
    assert (worker.state, worker.completed_steps) == (RUNNING, 2)
    assert app.told == []
    assert not app._creche_audience._advanced
