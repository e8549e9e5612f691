"""Groups: slots, queues, overflow rules and back-pressure."""

from __future__ import annotations

import itertools
import threading
from functools import partial

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from creche import Node, WorkerCancelled, WorkerError, WorkerGroup, WorkerState
from creche._running.runner import Runners
from helpers import (
    CANCELLED,
    ERROR,
    PENDING,
    RUNNING,
    SUCCESS,
    ExceptionGroup,
    Listener,
    Meeting,
    fail,
    set_later,
    settle,
    slow_to_leave,
    until,
)

RULES = ["enqueue", "restart", "drop", "keep_latest"]


async def test_group_is_a_name_within_a_node():
    """group() returns the existing group of that name, and raises if other settings are given."""
    async with Node("app") as app, Node("page", parent=app) as page:
        group = app.group("downloads", limit=4, overflow="drop")
        assert app.group("downloads") is group
        assert app.group("downloads", 4, "drop") is group
        assert page.group("downloads") is not group
        with pytest.raises(
            WorkerError, match=r"was made with limit and overflow \(4, 'drop'\), not"
        ):
            app.group("downloads", limit=5, overflow="drop")
        assert (group.name, group.limit, group.overflow) == ("downloads", 4, "drop")
        assert repr(group) == (
            "<WorkerGroup 'downloads' of 'app': 0 running, 0 queued, limit=4, overflow='drop'>"
        )
        group.limit = 2
        assert app.group("downloads", 4, "drop").limit == 2


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "4"])
async def test_bad_limit(bad):
    """A limit that is neither a positive integer nor None raises WorkerError."""
    async with Node() as app:
        with pytest.raises(WorkerError, match="limit must be 1 or more, or None for no limit, not"):
            app.group("g", limit=bad)
        group = app.group("g")
        with pytest.raises(WorkerError, match="limit must be 1 or more"):
            group.limit = bad
        assert group.limit is None


async def test_bad_overflow():
    """An unknown overflow rule raises WorkerError, which lists the valid ones."""
    async with Node() as app:
        with pytest.raises(
            WorkerError, match="overflow must be one of enqueue, restart, drop, keep"
        ):
            app.group("g", limit=1, overflow="queue")


async def test_container():
    """A group iterates its unfinished workers in order of creation, and counts them."""
    async with Node() as app:
        group = app.group("g", limit=2)
        unstarted = group.run_worker(anyio.sleep_forever, start=False)
        workers = [group.run_worker(anyio.sleep_forever) for _ in range(4)]
        await settle()
        assert list(group) == [unstarted, *workers]
        assert (len(group), group.running, group.queued) == (5, 2, 2)
        assert [worker.state for worker in workers] == [RUNNING, RUNNING, PENDING, PENDING]
        assert [worker.is_queued for worker in workers] == [False, False, True, True]
        assert not unstarted.is_queued
        assert workers[3] in group
        workers[2].cancel()
        assert workers[2] not in group
        assert list(group) == [unstarted, workers[0], workers[1], workers[3]]
        assert (len(group), group.running, group.queued) == (4, 2, 1)
        group.cancel("enough")
        await group.wait()
        assert len(group) == 0
        assert {worker.cancel_reason for worker in workers} == {None, "enough"}


async def test_progress_is_summed():
    """A group sums the steps of its unfinished workers."""
    async with Node() as app:
        group = app.group("g")
        assert (group.completed_steps, group.total_steps, group.progress) == (0, 0, 0.0)
        first, second = (group.run_worker(anyio.sleep_forever) for _ in range(2))
        first.update(1, 4)
        assert (group.completed_steps, group.total_steps, group.progress) == (1, None, 0.0)
        second.update(3, 4)
        assert (group.completed_steps, group.total_steps, group.progress) == (4, 8, 50.0)
        second.update(300)
        assert group.progress == 100.0
        group.cancel()


async def test_wait_raises_for_nobody():
    """WorkerGroup.wait() waits for the started workers and never raises their errors."""
    async with Node() as app:
        group = app.group("g")
        failed = group.run_worker(fail(ValueError), exit_on_error=False)
        cancelled = group.run_worker(anyio.sleep_forever)
        unstarted = group.run_worker(anyio.sleep_forever, start=False)
        cancelled.cancel()
        await group.wait()
        assert (failed.state, cancelled.state, unstarted.state) == (ERROR, CANCELLED, PENDING)


@pytest.mark.parametrize("limit", [1, 3])
async def test_first_in_first_out(limit):
    """Queued workers start in the order of arrival, and no more than the limit run at once."""
    order, running, most = [], 0, 0

    async def work(n):
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(n)
        await settle(5)  # without shared tasks, one tick's workers begin in several
        running -= 1

    async with Node() as app:
        group = app.group("g", limit=limit)
        for n in range(20):
            group.run_worker(work(n))
    assert most == limit
    assert sorted(order) == list(range(20))
    # Trio starts the tasks of one tick in any order, so places may differ by less than the limit.
    assert all(abs(n - place) < limit for place, n in enumerate(order))


async def test_limit_at_run_time():
    """Raising the limit starts queued workers at once. Lowering it stops no running worker."""
    async with Node() as app:
        group = app.group("g", limit=1)
        workers = [group.run_worker(anyio.sleep_forever) for _ in range(6)]
        await settle()
        assert (group.running, group.queued) == (1, 5)
        group.limit = 3
        await settle()
        assert [worker.state for worker in workers[:4]] == [RUNNING] * 3 + [PENDING]
        group.limit = 1
        assert (group.running, group.queued) == (3, 3)
        workers[0].cancel()
        workers[1].cancel()
        await settle()
        assert (group.running, group.queued) == (1, 3)
        workers[2].cancel()
        await settle()
        assert (group.running, group.queued) == (1, 2)
        group.limit = None
        await settle()
        assert (group.running, group.queued) == (3, 0)
        group.cancel()


@pytest.mark.parametrize("way", ["group", "all", "of the node", "by name"])
async def test_cancelling_many_launches_nobody(monkeypatch, way):
    """Queued workers are cancelled before those that have a slot, so that no slot is passed on."""
    launched, launch = [], Runners.launch

    def note(runners, job):
        launched.append(job)
        launch(runners, job)

    monkeypatch.setattr(Runners, "launch", note)
    async with Node("app") as app:
        group = app.group("one", limit=1)
        workers = [group.run_worker(settle) for _ in range(3)]
        if way == "group":
            group.cancel()
        elif way == "all":
            app.workers.cancel_all()
        elif way == "of the node":
            app.workers.cancel_node(app)
        else:
            app.workers.cancel_group(app, "one")
        assert [worker.state for worker in workers] == [CANCELLED] * 3
    assert launched == workers[:1]


async def test_limit_from_a_thread():
    """The limit can be set, and the group cancelled, from any thread."""
    async with Node() as app:
        group = app.group("g", limit=1)
        for _ in range(3):
            group.run_worker(anyio.sleep_forever)

        def set_limit():
            group.limit = 3

        await anyio.to_thread.run_sync(set_limit)
        assert group.running == 3
        thread = threading.Thread(target=group.cancel)
        thread.start()
        await until(lambda: len(group) == 0)
        thread.join()


async def test_implicit_group_becomes_limited():
    """A group that was created implicitly, by naming it in run_worker(), can be given a limit."""
    async with Node() as app:
        workers = [app.run_worker(anyio.sleep_forever, group="g") for _ in range(3)]
        group = app.group("g", limit=1)
        late = app.run_worker(anyio.sleep_forever, group="g")
        assert (group.running, group.queued) == (3, 1)
        assert late.is_queued
        assert list(group) == [*workers, late]
        group.cancel()


# the rules, for every way of running


def gated(kind, meeting):
    """Make work of the given kind that runs until it is released or cancelled."""

    async def wait():
        meeting.arrived.set()
        while not meeting.go.is_set():
            await anyio.lowlevel.checkpoint()

    return (meeting, True) if kind == "thread" else (wait, kind == "own loop")


@pytest.mark.parametrize("kind", ["task", "thread", "own loop"])
@pytest.mark.parametrize("rule", RULES)
async def test_rules(rule, kind):
    """Each overflow rule does what its documentation says, for each way of running."""
    meetings = [Meeting() for _ in range(3)]
    async with Listener() as app:
        group = app.group("g", limit=1, overflow=rule)
        workers = []
        for meeting in meetings:
            work, thread = gated(kind, meeting)
            workers.append(group.run_worker(work, thread=thread))
            if len(workers) == 1:
                await until(meetings[0].arrived.is_set)
        first, second, third = workers
        await settle()
        if rule == "restart" and kind == "thread":
            assert (first.state, first.is_cancelled) == (RUNNING, True)  # the slot is not free yet
            assert third.is_queued
            meetings[0].go.set()
        for worker in workers if rule != "enqueue" else ():
            if worker.is_cancelled:
                await app.workers.wait_for_complete([worker])
        expected = {
            "enqueue": [RUNNING, PENDING, PENDING],
            "restart": [CANCELLED, CANCELLED, RUNNING],
            "drop": [RUNNING, CANCELLED, CANCELLED],
            "keep_latest": [RUNNING, CANCELLED, PENDING],
        }[rule]
        if expected[2] is RUNNING:
            await until(meetings[2].arrived.is_set)
        assert [worker.state for worker in workers] == expected
        assert not meetings[1].arrived.is_set()
        for meeting in meetings:
            meeting.go.set()
    last = SUCCESS if rule != "drop" else CANCELLED
    assert third.state is last
    assert second.state is (SUCCESS if rule == "enqueue" else CANCELLED)


ENDS = ["leave", "fail", "cancel", "outer"]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", ["task", "thread", "own loop"])
@pytest.mark.parametrize("rule", RULES)
async def test_rules_when_the_node_ends(rule, kind, end):
    """A block that is left normally runs its queue; otherwise queued work never starts."""
    meetings = [Meeting() for _ in range(3)]
    with anyio.CancelScope() as scope:
        try:
            async with Node() as app:
                group = app.group("g", limit=1, overflow=rule)
                workers = []
                for meeting in meetings:
                    work, thread = gated(kind, meeting)
                    workers.append(group.run_worker(work, thread=thread))
                    if len(workers) == 1:
                        await until(meetings[0].arrived.is_set)
                entered = [meeting.arrived.is_set() for meeting in meetings]
                if end == "cancel":
                    app.cancel()
                elif end == "outer":
                    scope.cancel()
                for meeting in meetings:
                    meeting.go.set()
                if end == "fail":
                    raise ValueError
                if end == "outer":
                    await anyio.lowlevel.checkpoint()
        except ExceptionGroup:
            assert end == "fail"
    assert all(worker.is_finished for worker in workers)
    if end == "leave":
        ran = [True, rule == "enqueue", rule != "drop"]
        assert [meeting.arrived.is_set() for meeting in meetings] == ran
    else:
        assert [meeting.arrived.is_set() for meeting in meetings] == entered
        assert workers[2].state is CANCELLED


@pytest.mark.parametrize("kind", ["task", "thread", "own loop"])
@pytest.mark.parametrize("rule", RULES)
async def test_cancelled_at_any_moment(rule, kind):
    """If one of three workers is cancelled at any time, the others end and no slot is lost."""
    for victim, turns in itertools.product(range(3), range(0, 12, 3)):
        async with Node() as app:
            group = app.group("g", limit=1, overflow=rule)
            workers = []
            for _ in range(3):
                meeting = Meeting()
                meeting.go.set()
                work, thread = gated(kind, meeting)
                workers.append(group.run_worker(work, thread=thread))
            await settle(turns)
            workers[victim].cancel()
        assert all(worker.is_finished for worker in workers)
        assert (group.running, group.queued, len(group)) == (0, 0, 0)
        if rule == "enqueue":
            others = [w.state for n, w in enumerate(workers) if n != victim]
            assert others == [SUCCESS, SUCCESS]


async def test_restart_lets_the_newest_run():
    """With "restart", a newer worker replaces the one that still waits for the slot."""
    gate = anyio.Event()

    async with Node() as app:
        group = app.group("g", limit=1, overflow="restart")
        first = group.run_worker(slow_to_leave(gate))
        await settle()
        second, third = (group.run_worker(anyio.sleep_forever) for _ in range(2))
        assert (first.state, first.is_cancelled) == (RUNNING, True)
        assert (second.state, third.state) == (CANCELLED, PENDING)
        gate.set()
        await settle()
        assert third.state is RUNNING
        group.cancel()


async def test_restart_cancels_the_oldest():
    """With "restart", the oldest worker is cancelled, and the newest keep running."""
    async with Node() as app:
        group = app.group("g", limit=2, overflow="restart")
        workers = [group.run_worker(anyio.sleep_forever) for _ in range(2)]
        await settle()
        for number in (2, 3):
            workers.append(group.run_worker(anyio.sleep_forever))
            await settle()
            told = [worker.state for worker in workers]
            assert told == [CANCELLED] * (number - 1) + [RUNNING] * 2
        group.cancel()


async def test_restart_while_all_are_on_their_way_out():
    """If all running workers are cancelled already, a new worker just waits for a slot."""
    gate = anyio.Event()

    async with Node() as app:
        group = app.group("g", limit=1, overflow="restart")
        first = group.run_worker(slow_to_leave(gate))
        await settle()
        first.cancel("mine")
        second = group.run_worker(anyio.sleep_forever)
        assert first.cancel_reason == "mine"
        assert second.is_queued
        gate.set()
        await settle()
        assert second.state is RUNNING
        group.cancel()


async def test_a_cancelled_node_makes_no_tasks_for_what_is_queued():
    """Cancelling a node creates no tasks for queued workers, though slots become free at once."""
    async with Node() as app:
        group = app.group("g", limit=1)
        workers = [group.run_worker(anyio.sleep_forever) for _ in range(20)]
        tasks = len(anyio.get_running_tasks())
        app.cancel()
        assert len(anyio.get_running_tasks()) == tasks
    assert {worker.state for worker in workers} == {CANCELLED}


# exclusive


async def test_exclusive():
    """exclusive=True cancels what is unfinished in its node and group, and starts at once."""
    async with Node() as app, Node("page", parent=app) as page:
        elsewhere = page.run_worker(anyio.sleep_forever, group="g")
        other = app.run_worker(anyio.sleep_forever, group="other")
        old = app.run_worker(anyio.sleep_forever, group="g")
        await settle()
        new = app.run_worker(anyio.sleep_forever, group="g", exclusive=True)
        assert old.is_cancelled
        await settle()
        states = [worker.state for worker in (elsewhere, other, old, new)]
        assert states == [RUNNING, RUNNING, CANCELLED, RUNNING]
        assert old.cancel_reason == "superseded by an exclusive worker"
        app.workers.cancel_all()


async def test_exclusive_acts_at_the_start():
    """An exclusive worker cancels the others when it starts, not when it is created."""
    async with Node() as app:
        old = app.run_worker(anyio.sleep_forever, group="g")
        await settle()
        late = app.run_worker(anyio.sleep_forever, group="g", exclusive=True, start=False)
        await settle()
        assert old.state is RUNNING
        app.workers.start_all()
        await settle()
        assert (old.state, late.state) == (CANCELLED, RUNNING)
        late.cancel()


async def test_exclusive_supersedes_what_was_not_started():
    """An exclusive worker also cancels earlier workers that were never started."""
    async with Node() as app:
        waiting = app.run_worker(anyio.sleep_forever, group="g", start=False)
        new = app.run_worker(anyio.lowlevel.checkpoint, group="g", exclusive=True)
        assert waiting.state is CANCELLED
        assert waiting.cancel_reason == "superseded by an exclusive worker"
    assert new.state is SUCCESS


async def test_exclusive_does_not_cancel_twice():
    """An exclusive worker does not change the reason of a worker that is cancelled already."""
    gate = anyio.Event()

    async with Node() as app:
        old = app.run_worker(slow_to_leave(gate), exclusive=True)
        await settle()
        old.cancel("mine")
        new = app.run_worker(slow_to_leave(gate), exclusive=True)
        await settle()
        assert old.group == "slow_to_leave"
        assert old.cancel_reason == "mine"
        assert (old.state, new.state) == (RUNNING, RUNNING)
        gate.set()
        new.cancel()


@pytest.mark.parametrize("rule", RULES)
async def test_exclusive_in_a_limited_group(rule):
    """The limit takes precedence, so an exclusive worker starts only when a slot is free."""
    gate = anyio.Event()

    async with Node() as app:
        group = app.group("g", limit=1, overflow=rule)
        old = group.run_worker(slow_to_leave(gate))
        await settle()
        new = group.run_worker(anyio.sleep_forever, exclusive=True)
        await settle()
        assert old.is_cancelled
        assert new.is_queued
        gate.set()
        await settle()
        assert (old.state, new.state) == (CANCELLED, RUNNING)
        new.cancel()


# back-pressure


async def test_start_worker():
    """start_worker() returns once the worker is RUNNING."""
    gate = anyio.Event()
    async with Node() as app:
        group = app.group("g", limit=1)
        first = await group.start_worker(gate.wait)
        assert first.state is RUNNING
        app.run_worker(set_later(gate))
        second = await app.start_worker(anyio.sleep_forever, group="g")
        assert (first.state, second.state) == (SUCCESS, RUNNING)
        second.cancel()


async def test_start_worker_that_is_dropped():
    """start_worker() returns a dropped worker, which is CANCELLED."""
    async with Node() as app:
        group = app.group("g", limit=1, overflow="drop")
        first = await group.start_worker(anyio.sleep_forever)
        second = await group.start_worker(anyio.sleep_forever)
        assert (first.state, second.state) == (RUNNING, CANCELLED)
        first.cancel()


async def test_start_worker_cancelled():
    """start_worker() removes its worker from the queue if it is cancelled while it waits."""
    async with Node() as app:
        group = app.group("g", limit=1)
        first = await group.start_worker(anyio.sleep_forever)
        with anyio.CancelScope() as scope:

            async def cancel():
                await settle()
                assert group.queued == 1
                scope.cancel()

            app.run_worker(cancel)
            await group.start_worker(anyio.sleep_forever)
        assert scope.cancelled_caught
        assert list(group) == [first]
        assert group.queued == 0
        first.cancel()


async def test_producer_holds_a_bounded_number():
    """A producer that calls start_worker() never has more workers than the limit."""
    most = 0
    async with Node() as app:
        group = app.group("g", limit=4)
        for _ in range(200):
            await group.start_worker(settle)
            most = max(most, len(group))
    assert most <= 4


async def test_cancelled_in_the_queue_do_not_pile_up():
    """Workers cancelled in the queue are removed even if the slot never becomes free."""
    async with Node() as app:
        group = app.group("g", limit=1)
        holder = group.run_worker(anyio.sleep_forever)
        waiting = group.run_worker(anyio.sleep_forever)
        for _ in range(1000):
            group.run_worker(anyio.sleep_forever).cancel()
        assert len(group._queue) == 1
        assert list(group) == [holder, waiting]
        group.cancel()


async def test_cancelled_in_the_middle_of_the_queue_are_passed_over():
    """A worker that leaves the queue while it moves up does not hold up those behind it."""
    begun = []

    async def work(name, gate):
        begun.append(name)
        await gate.wait()

    async with Node() as app:
        group, gates = app.group("g", limit=1), {name: anyio.Event() for name in "abcdefg"}
        workers = {name: group.run_worker(partial(work, name, gates[name])) for name in "abcde"}
        gates["a"].set()
        await until(lambda: "b" in begun)
        workers |= {name: group.run_worker(partial(work, name, gates[name])) for name in "fg"}
        for name in "cdf":
            workers[name].cancel()
        assert [group.running, group.queued] == [1, 2]
        for gate in gates.values():
            gate.set()
    assert begun == ["a", "b", "e", "g"]


async def test_a_cancelled_node_launches_no_queued_worker(monkeypatch):
    """If a node is cancelled before its workers begin, those in the queue get no task."""
    launched, launch = [], Runners.launch

    def noted(self, job):
        launched.append(job)
        launch(self, job)

    monkeypatch.setattr(Runners, "launch", noted)
    async with Node() as app:
        group = app.group("g", limit=2)
        workers = [group.run_worker(anyio.sleep_forever) for _ in range(20)]
        app.cancel()
    assert launched == workers[:2]
    assert {worker.state for worker in workers} == {CANCELLED}


async def test_nothing_is_kept_of_a_queue_that_is_empty():
    """A group forgets the turns of its queued workers once none is left."""
    async with Node() as app:
        group = app.group("g", limit=1)
        running = group.run_worker(anyio.sleep_forever)
        queued = [group.run_worker(anyio.sleep_forever) for _ in range(3)]
        running.cancel()
        await until(lambda: queued[0].is_running)
        assert len(group._turns) == 2
        for worker in queued:
            worker.cancel()
        await group.wait()
        assert not group._turns
        assert not group


async def test_cancelled_in_the_queue_are_passed_over():
    """A free slot goes to the next queued worker that is not cancelled."""
    gate = anyio.Event()
    async with Node() as app:
        group = app.group("g", limit=1)
        group.run_worker(gate.wait)
        queued = [group.run_worker(anyio.sleep_forever) for _ in range(4)]
        queued[0].cancel()
        await settle()
        gate.set()
        await settle()
        assert [worker.state for worker in queued] == [CANCELLED, RUNNING, PENDING, PENDING]
        assert (group.running, group.queued) == (1, 2)
        group.cancel()


async def test_failure_in_a_group():
    """A failed worker frees its slot, and the next one runs if the error was only stored."""
    async with Node() as app:
        group = app.group("g", limit=1)
        failed = group.run_worker(fail(ValueError), exit_on_error=False)
        following = group.run_worker(anyio.lowlevel.checkpoint)
        await group.wait()
        assert (failed.state, following.state) == (ERROR, SUCCESS)
        with pytest.raises(WorkerCancelled):
            cancelled = group.run_worker(anyio.sleep_forever)
            cancelled.cancel()
            await cancelled


# random programs against the table


class Model:
    """A simple model of the overflow rules, in which workers are numbers."""

    def __init__(self, rule, limit):
        self.rule, self.limit = rule, limit
        self.running, self.waiting = [], []
        self.stubborn, self.leaving = set(), set()
        self.ends = {}

    def free(self):
        return self.limit is None or len(self.running) < self.limit

    def start(self, new, *, stubborn, exclusive):
        if stubborn:
            self.stubborn.add(new)
        if exclusive:
            for other in [*self.waiting, *self.running]:
                self.cancel(other)
        if not exclusive and not self.free():
            if self.rule == "drop":
                self.ends[new] = CANCELLED
                return
            if self.rule == "keep_latest":
                for other in list(self.waiting):
                    self.cancel(other)
            if self.rule == "restart":
                # The newest keep running, as many as the limit allows.
                staying = [n for n in self.running if n not in self.leaving] + self.waiting
                if len(staying) >= self.limit:
                    self.cancel(staying[0])
        self.waiting.append(new)

    def cancel(self, worker):
        if worker in self.waiting:
            self.waiting.remove(worker)
            self.ends[worker] = CANCELLED
        elif worker in self.running and worker not in self.leaving:
            self.leaving.add(worker)

    def end(self, worker, state):
        if worker in self.running and worker not in self.leaving:
            self.running.remove(worker)
            self.ends[worker] = state

    def leave(self, worker):
        """Let a stubborn worker that was cancelled go."""
        self.stubborn.discard(worker)

    def settle(self):
        while True:
            gone = [n for n in self.running if n in self.leaving and n not in self.stubborn]
            for worker in gone:
                self.running.remove(worker)
                self.ends[worker] = CANCELLED
            if not (self.waiting and self.free()):
                return
            self.running.append(self.waiting.pop(0))

    def state(self, worker):
        if worker in self.running:
            return RUNNING
        return PENDING if worker in self.waiting else self.ends[worker]


class Driver:
    """The counterpart of the model with real workers, each with a gate of its own."""

    def __init__(self, group):
        self.group = group
        self.workers, self.gates, self.entered = [], [], []

    def start(self, *, stubborn, exclusive):
        number = len(self.workers)
        gate = {"event": anyio.Event(), "then": None, "released": anyio.Event()}

        async def work():
            self.entered.append(number)
            try:
                await gate["event"].wait()
            except BaseException:
                if stubborn:
                    with anyio.CancelScope(shield=True):
                        await gate["released"].wait()
                raise
            if gate["then"] is ERROR:
                raise ValueError

        self.gates.append(gate)
        self.workers.append(self.group.run_worker(work, exclusive=exclusive, exit_on_error=False))

    def end(self, number, state):
        self.gates[number]["then"] = state
        self.gates[number]["event"].set()


actions = st.one_of(
    st.tuples(st.just("start"), st.booleans(), st.sampled_from([False, False, True])),
    st.tuples(st.just("start"), st.just(False), st.just(False)),
    st.tuples(st.just("finish"), st.integers(0, 30)),
    st.tuples(st.just("fail"), st.integers(0, 30)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("release"), st.integers(0, 30)),
    st.tuples(st.just("limit"), st.sampled_from([1, 2, 3, None])),
    st.tuples(st.just("cancel all")),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rule=st.sampled_from(RULES),
    limit=st.sampled_from([1, 2, 3]),
    program=st.lists(actions, min_size=3, max_size=25),
    close=st.sampled_from(["leave", "cancel", "fail"]),
    seed=st.random_module(),
)
def test_random_programs(backend, caplog, rule, limit, program, close, seed):
    """After each step of a random program, all states, counts and orders match the model."""
    caplog.set_level("CRITICAL", logger="creche")
    anyio.run(run_program, rule, limit, program, close, **backend)


async def run_program(rule, limit, program, close):
    model = Model(rule, limit)
    try:
        async with Node() as app:
            group = app.group("g", limit=limit, overflow=rule)
            driver = Driver(group)
            for action in program:
                perform(action, model, driver)
                model.settle()
                await settle(12)
                compare(model, driver)
            unfinished = [*model.running, *model.waiting]
            for gate in driver.gates:
                gate["released"].set()
            if close == "leave":
                for gate in driver.gates:
                    gate["event"].set()
            elif close == "cancel":
                app.cancel()
            else:
                raise ValueError
    except ExceptionGroup:
        assert close == "fail"
    for number, worker in enumerate(driver.workers):
        if number not in unfinished:
            assert worker.state is model.ends[number]
        elif close == "leave":
            left = number in model.leaving
            assert worker.state is (CANCELLED if left else SUCCESS)
        else:
            assert worker.state is CANCELLED
            assert number in model.running or number not in driver.entered


def perform(action, model, driver):
    kind, *args = action
    count = len(driver.workers)
    if kind == "start":
        stubborn, exclusive = args
        model.start(count, stubborn=stubborn, exclusive=exclusive)
        driver.start(stubborn=stubborn, exclusive=exclusive)
    elif kind == "limit":
        model.limit = args[0]
        driver.group.limit = args[0]
    elif kind == "cancel all":
        for number in range(count):
            model.cancel(number)
        driver.group.cancel()
    elif count:
        number = args[0] % count
        if kind == "cancel":
            model.cancel(number)
            driver.workers[number].cancel()
        elif kind == "release":
            model.leave(number)
            driver.gates[number]["released"].set()
        elif number in model.running:
            state = SUCCESS if kind == "finish" else ERROR
            model.end(number, state)
            driver.end(number, state)


def compare(model, driver):
    numbers = range(len(driver.workers))
    assert [driver.workers[n].state for n in numbers] == [model.state(n) for n in numbers]
    group: WorkerGroup = driver.group
    assert (group.running, group.queued) == (len(model.running), len(model.waiting))
    assert list(group) == [driver.workers[n] for n in sorted([*model.running, *model.waiting])]
    assert all(isinstance(worker.state, WorkerState) for worker in driver.workers)


async def test_a_node_tells_its_groups():
    """Node.groups holds the declared groups, and others for as long as they have workers."""
    async with Node("app") as app:
        declared = app.group("declared", limit=2)
        worker = app.run_worker(anyio.sleep_forever, group="other")
        assert app.groups == (declared, worker.node.group("other"))
        passing = app.run_worker(anyio.sleep_forever, group="passing")
        assert [group.name for group in app.groups] == ["declared", "other", "passing"]
        passing.cancel()
        await app.workers.wait_for_complete([passing])
        assert [group.name for group in app.groups] == ["declared", "other"]
        app.cancel()


async def test_a_group_that_was_forgotten_leaves_nothing_of_its_limit():
    """A group that was forgotten leaves no limit behind for a later group of the same name."""
    async with Node("app") as app:
        worker = app.run_worker(settle, group="some")
        (group,) = app.groups
        group.limit = 1
        await worker.join()
        assert app.groups == ()
        workers = [app.run_worker(settle, group="some") for _ in range(2)]
        (group,) = app.groups
        assert (group.limit, group.running) == (None, 2)
        for each in workers:
            await each.join()
