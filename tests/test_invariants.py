"""Each invariant of the state machine can fail: each test plants a fault that violates one."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import anyio
import pytest

from creche import Node, Subscription, Worker, WorkerError
from creche._core import cancelling, ending
from creche._core.audience import Audience
from creche._core.group import WorkerGroup
from creche._messages.mailbox import Mailbox
from creche._nursery.nursery import Nursery
from creche.testing import Ending, OnCancel, Script, WorkerMachine
from creche.testing._machine.acts import Posted, run_worker
from creche.testing._machine.machine import IMPATIENCE, NAMED
from creche.testing._machine.model import QUEUE
from creche.testing._machine.world import turn
from helpers import ERROR, HAS_GIL, RUNNING

RETURN = Script(gated=False)


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def machine():
    """A machine with one open node, whose rules a test calls itself."""

    class Machine(WorkerMachine):
        pass

    machine = Machine()
    machine.open_tree(seed=0, limit=1, overflow="restart")
    yield machine
    machine.has_broken = True  # the remains are not checked
    if machine.examples == 0:
        machine.teardown()


@pytest.fixture
def place(machine):
    return machine.roots[0]


def violated(machine, name):
    """Check the invariants. The one with this name has to be the first that is violated."""
    with pytest.raises(AssertionError) as caught:
        machine.all_holds()
    told = str(caught.value).splitlines()
    assert told[0].startswith(f"{name}: ")
    assert told[-1] == f"({NAMED[name]})"
    assert machine.has_broken


@pytest.mark.parametrize("told", ["refused a worker", "took a worker"])
def test_call_that_is_answered_wrongly(machine, place, monkeypatch, told):
    """A node refuses work although it is open, or takes work although it is closed."""
    monkeypatch.setattr(type(place), "refuses", told == "took a worker")
    if told == "refused a worker":
        monkeypatch.setattr(Node, "workers", property(lambda self: Refusing()))
    machine.run(place=place, script=RETURN)
    with pytest.raises(AssertionError, match=told):
        machine.calls_do_what_they_say()
    violated(machine, "calls_do_what_they_say")


class Refusing:
    def add_worker(self, worker, **options):
        worker.cancel()
        raise WorkerError("no")


def test_lost_announcement(machine, place, monkeypatch):
    """A change of state is not announced."""
    announce = Audience.announce
    monkeypatch.setattr(
        Audience, "announce", lambda *args: args[-1] is RUNNING or announce(*args), raising=True
    )
    machine.run(place=place, script=RETURN)
    violated(machine, "changes_are_announced_once_and_in_order")


def test_nothing_announced(machine, place, monkeypatch):
    """Nothing at all is announced about a worker."""
    monkeypatch.setattr(Audience, "announce", lambda *args: None)
    machine.run(place=place, script=RETURN)
    violated(machine, "changes_are_announced_once_and_in_order")


def test_end_that_is_no_end(machine, place):
    """A worker changes its state after its end."""
    record = machine.run(place=place, script=RETURN)
    machine.all_holds()
    record.worker._state = ERROR
    place.recorder.events[-1] = (record.worker, ERROR)
    violated(machine, "final_states_are_final")


def test_node_that_has_fallen_before_its_parent(machine, place):
    """It is no violation if unstarted work of a fallen node misses the fall of its parent."""
    (panel,) = machine.attach(parent=place, depth=1, then="", turns=0).values
    record = machine.run_thread(
        place=panel, kind="thread", ending=Ending.RETURN, on_cancel=OnCancel.OBEY
    )
    machine.cancel_node(place=panel)
    late = machine.create(place=panel, script=RETURN, group="free", kind="function")
    machine.cancel_node(place=place)
    assert not late.worker.is_cancelled
    machine.all_holds()
    machine.open_gate(record=record)
    machine.until(lambda: late.worker.is_finished)
    machine.all_holds()


def test_node_falls_when_its_loop_hears_of_an_error(machine, place):
    """Work that starts after a thread has raised, but before the loop knows, is not cancelled."""
    started, script = [], Script(ending=Ending.RAISE)
    machine.do(
        lambda: started.append(run_worker(machine, place, script, kind="thread", fatal=True))
    )
    thread = started.pop().play
    machine.await_thread(thread.arrived, "the thread does not begin")

    def start_in_between():
        thread.open_gate()
        machine.await_thread(thread.left, "the thread does not end")
        started.append(run_worker(machine, place, RETURN))

    machine.do(start_in_between)
    assert [each.asked for each in started] == [None]
    machine.until(lambda: started[0].worker.is_finished)
    machine.all_holds()
    assert place.has_fallen


def test_node_that_has_closed_refuses_work(machine, place):
    """A node that has failed closes before its block has been left, and refuses work from then."""
    has_ended = []

    async def start_once_closed():
        run_worker(machine, place, Script(gated=False, ending=Ending.RAISE), fatal=True)
        while not place.node.is_finished:
            await turn()
        has_ended.append(place.has_ended)
        run_worker(machine, place, RETURN)

    machine.do(start_once_closed)
    assert has_ended == [False]
    assert len(place.records) == 1
    machine.all_holds()


def test_entered_and_never_running(machine, place, monkeypatch):
    """Work is entered although its worker was cancelled before it could run."""
    record = machine.create(place=place, script=RETURN, group="free", kind="function")
    machine.cancel_unstarted(record=record)
    record.play.log.append("entered")
    record.play.log.append("unwound")
    violated(machine, "cancelled_while_pending_was_never_entered")


def test_success_after_cancel(machine, place, monkeypatch):
    """A worker ends SUCCESS although its cancellation was requested."""
    record = machine.run(place=place, script=Script(on_cancel=OnCancel.SWALLOW))
    record.ask("the test says so")
    machine.open_gate(record=record)
    violated(machine, "cancel_is_final")


def test_event_of_cancellation_is_not_set(machine, place):
    """The worker's cancelled_event is not set after its cancellation was requested."""
    record = machine.run(place=place, script=Script(on_cancel=OnCancel.HOLD))
    machine.cancel(record=record)
    record.worker.cancelled_event.clear()
    violated(machine, "cancel_is_final")


def test_running_before_it_is_inside(machine, place, monkeypatch):
    """A worker is RUNNING although its work has not been entered."""
    record = machine.run(place=place, script=Script())
    record.play.log.clear()
    violated(machine, "running_is_inside")


def test_service_that_lost_count(machine, place):
    """A service has restarted more often than it has crashed."""
    record = machine.serve(place=place, script=Script())
    record.worker.restarted(OSError())
    violated(machine, "services_begin_again")


def test_service_that_is_not_ready(machine, place, monkeypatch):
    """A service that has reported that it is ready is not."""
    monkeypatch.setattr(Worker, "is_ready", property(lambda self: False))
    machine.serve(place=place, script=Script())
    violated(machine, "services_begin_again")


def test_entered_before_it_is_running(machine, place, monkeypatch):
    """Work is entered although its worker is not RUNNING."""
    monkeypatch.setattr(Worker, "is_running", property(lambda self: False))
    machine.run(place=place, script=RETURN)
    violated(machine, "running_is_inside")


def test_work_that_is_repeated(machine, place, monkeypatch):
    """A worker runs its work twice."""

    class Twice(Worker):
        async def run(self):
            await super().run()
            return await super().run()

    monkeypatch.setattr(machine, "make_worker", Twice)
    machine.run(place=place, script=RETURN)
    violated(machine, "work_is_not_repeated")


def test_work_that_is_tried_again(machine, place, monkeypatch):
    """A worker that retries failed work violates nothing."""

    class Again(Worker):
        async def run(self):
            try:
                return await super().run()
            except Exception:
                return await super().run()

    monkeypatch.setattr(machine, "make_worker", Again)
    record = machine.run(place=place, script=Script(gated=False, ending=Ending.RAISE))
    assert record.play.log.count("raised") == 2
    machine.all_holds()


def test_end_that_the_log_denies(machine, place, monkeypatch):
    """A worker ends SUCCESS although its work failed."""

    class Tidy(Worker):
        async def run(self):
            try:
                return await super().run()
            except Exception:
                return None

    monkeypatch.setattr(machine, "make_worker", Tidy)
    machine.run(place=place, script=Script(gated=False, ending=Ending.RAISE))
    violated(machine, "the_end_fits_the_log")


def test_cancelled_for_nothing(machine, place):
    """A worker is cancelled although nothing requested it."""
    record = machine.run(place=place, script=Script(on_cancel=OnCancel.HOLD))
    machine.do(record.worker.cancel)
    violated(machine, "nobody_else_is_cancelled")


def test_cancel_that_does_not_reach(machine, place, monkeypatch):
    """A worker goes on although it was cancelled."""
    monkeypatch.setattr(cancelling, "deliver", lambda worker, by_nursery=False: None)
    record = machine.run(place=place, script=Script())
    machine.cancel(record=record)
    violated(machine, "what_is_cancelled_ends")


def test_waiter_that_is_told_otherwise(machine, place):
    """A waiter gets an outcome that does not fit the worker's state."""
    record = machine.run(place=place, script=Script())
    waiter = machine.wait(record=record)
    machine.open_gate(record=record)
    for outcome in [("value", object()), ("failed", None), ("cancelled", None)]:
        waiter.outcome = outcome
        violated(machine, "waiters_agree")


def test_waiter_that_is_forgotten(machine, place):
    """A waiter goes on waiting after the worker has ended."""
    record = machine.run(place=place, script=Script())
    waiter = machine.wait(record=record)
    machine.open_gate(record=record)
    waiter.outcome = None
    violated(machine, "waiters_agree")


def test_ring_that_is_let_in(machine, place, monkeypatch):
    """A worker is allowed to wait for its own end."""
    monkeypatch.setattr("creche._core.waiting.find_deadlock", lambda me: None)
    record = machine.run(place=place, script=Script())
    machine.wait_within(record=record, awaited=record)
    violated(machine, "rings_are_refused")


def test_wait_that_is_refused_for_nothing(machine, place, monkeypatch):
    """A worker may not wait for another one, although that would have ended."""
    monkeypatch.setattr("creche._core.waiting.find_deadlock", lambda me: "nonsense")
    monkeypatch.setattr("creche._core.waiting._is_needed", lambda worker: True)
    first = machine.run(place=place, script=Script())
    second = machine.run(place=place, script=Script())
    machine.wait_within(record=first, awaited=second)
    violated(machine, "rings_are_refused")


def test_worker_that_its_group_has_lost(machine, place, monkeypatch):
    """A group loses a worker."""
    monkeypatch.setattr(WorkerGroup, "__iter__", lambda self: iter(()))
    machine.run(place=place, script=Script())
    violated(machine, "the_manager_has_what_is_unfinished")


def test_more_than_the_limit(machine, place, monkeypatch):
    """A group ignores its limit."""
    admit = WorkerGroup.admit

    def admit_without_limit(group, *args):
        limit, group._limit = group._limit, None
        admit(group, *args)
        group._limit = limit

    monkeypatch.setattr(WorkerGroup, "admit", admit_without_limit)
    for _ in range(2):
        machine.run(place=place, script=Script(), group=QUEUE)
    violated(machine, "never_above_the_limit")


def test_slot_that_nobody_takes(machine, place, monkeypatch):
    """A slot becomes free and is not filled."""
    first = machine.run(place=place, script=Script(), group=QUEUE)
    machine.run(place=place, script=Script(), group=QUEUE)
    monkeypatch.setattr(WorkerGroup, "_settle", lambda self: None)
    machine.open_gate(record=first)
    violated(machine, "slots_are_used")


@pytest.mark.parametrize("are_gated", [True, False])
def test_last_in_first_out(machine, place, are_gated):
    """A queue starts its last worker first."""
    first = machine.run(place=place, script=Script(), group=QUEUE)
    for _ in range(2):
        machine.run(place=place, script=Script(gated=are_gated), group=QUEUE)
    queue = place.node.group(QUEUE)._queue
    machine.do(lambda: [queue.update({order: queue.pop(order)}) for order in reversed([*queue])])
    machine.open_gate(record=first)
    if not are_gated:
        last = place.records[-1]
        machine.run(place=place, script=RETURN, group=QUEUE)
        last.entered -= 1
    violated(machine, "first_in_first_out")


def test_error_that_is_lost(machine, place, monkeypatch):
    """No block raises the error."""
    monkeypatch.setattr(Nursery, "fail", lambda self, error: self.cancel("a fault"))
    machine.run(place=place, script=Script(gated=False, ending=Ending.RAISE), fatal=True)
    violated(machine, "errors_come_out_once")


def test_node_that_does_not_end(machine, place):
    """A node that should leave stays, although nothing keeps it open."""
    place.is_leaving = True
    violated(machine, "what_has_to_end_ends")


def test_node_that_leaves_work_behind(machine, place):
    """A node ends before its work has ended."""
    machine.run(place=place, script=Script())
    place.has_ended = True
    violated(machine, "a_left_node_is_empty")


def test_event_that_no_subscriber_hears(machine, place, monkeypatch):
    """A subscription loses an event."""
    put = Subscription._put
    monkeypatch.setattr(
        Subscription, "_put", lambda self, event: event.state is RUNNING or put(self, event)
    )
    machine.run(place=place, script=Script())
    violated(machine, "subscribers_hear_what_handlers_hear")


def test_messages_in_the_wrong_order(machine, place, monkeypatch):
    """A mailbox delivers messages in the wrong order."""
    post, held = Mailbox.post, []

    def overtaken(self, message):
        if not held:
            held.append(message)
            return True
        return post(self, message) and post(self, held[0])

    monkeypatch.setattr(Mailbox, "post", overtaken)
    machine.post(place=place, number=2)
    violated(machine, "messages_come_in_order")


def test_message_that_is_lost(machine, place, monkeypatch):
    """A message is accepted, but not handled."""
    monkeypatch.setattr(Mailbox, "post", lambda self, message: isinstance(message, Posted))
    machine.post(place=place, number=1)
    violated(machine, "messages_come_in_order")


@pytest.mark.parametrize("swap", [False, True])
def test_late_effect(machine, place, monkeypatch, swap):
    """A thread's call has an effect although it was cancelled, or is refused for no reason."""
    if swap:
        monkeypatch.setattr("creche._core.calls._check_call", lambda node, caller: None)
    else:
        monkeypatch.setattr(
            "creche.testing._machine.races.ask_and_cancel", lambda record, _: record.worker.cancel()
        )
    machine.race_call_from_a_thread_as_it_is_cancelled(
        where=place, swap=True, between=0, whole=False
    )
    with pytest.raises(AssertionError, match="had an effect" if swap else "was refused a call"):
        machine.no_late_effects()


def test_thread_that_is_let_in(machine, place, monkeypatch):
    """The calls of a cancelled thread have an effect."""
    monkeypatch.setattr(Worker, "check_cancelled", lambda self: None)
    machine.race_call_from_a_thread_as_it_is_cancelled(
        where=place, swap=False, between=0, whole=False
    )
    with pytest.raises(AssertionError, match="was let in"):
        machine.no_late_effects()


def test_removal_that_does_nothing(machine, place, monkeypatch):
    """A mounted node stays although it was removed."""

    async def stay(self):
        pass

    page = machine.open_child(parent=place, kind="mounted", limit=1)
    monkeypatch.setattr(Node, "remove", stay)
    machine.remove(place=page)
    violated(machine, "what_has_to_end_ends")


def test_thread_that_does_not_come(machine, monkeypatch):
    """After a machine has waited for a thread in vain once, it waits less long."""
    monkeypatch.setattr(type(machine), "_patience", 0)
    machine.until(lambda: False)
    assert type(machine)._patience == IMPATIENCE


def test_step_that_raises(machine):
    """An error in a step ends the program, and the remains are not checked."""
    with pytest.raises(ZeroDivisionError):
        machine.do(lambda: 1 // 0)
    assert machine.has_broken


def test_forgotten_coroutine(machine, place, monkeypatch):
    """A coroutine is dropped without being closed."""
    monkeypatch.setattr(ending, "close_work", lambda worker: None)
    record = machine.create(place=place, script=RETURN, group="free", kind="coroutine")
    machine.cancel_unstarted(record=record)
    record.worker._work = None
    gc.collect()
    violated(machine, "no_coroutine_is_forgotten")


def reporting(*reports):
    """Return a class of workers that make these reports of progress, one after another."""

    class Reporting(Worker):
        async def run(self):
            for report in reports:
                self.update(**report)
                await turn(3)  # so that listeners get the event
            return await super().run()

    return Reporting


def test_progress_beyond_the_total(machine, place, monkeypatch):
    """A worker reports more completed steps than its total, if only for a while."""
    beyond = {"completed_steps": 3, "total_steps": 2}
    monkeypatch.setattr(machine, "make_worker", reporting(beyond, {"total_steps": 3}))
    machine.run(place=place, script=Script())
    violated(machine, "progress_stays_within_the_total")


def test_progress_that_goes_back(machine, place, monkeypatch):
    """A worker reports fewer completed steps than before, which the machine may allow."""
    reports = [{"completed_steps": steps} for steps in (2, 1, 3)]
    monkeypatch.setattr(machine, "make_worker", reporting(*reports))
    monkeypatch.setattr(type(machine), "progress_may_go_back", True)
    machine.run(place=place, script=Script())
    machine.all_holds()
    monkeypatch.setattr(type(machine), "progress_may_go_back", False)
    machine.run(place=place, script=Script())
    violated(machine, "progress_never_goes_back_by_itself")


def test_progress_that_is_lost(machine, place, monkeypatch):
    """A step is not counted."""
    record = machine.run(place=place, script=Script())
    for anew in (False, True):
        machine.report_progress(record=record, steps=2, more=1, known=True, anew=anew)
        machine.all_holds()
    monkeypatch.setattr(Worker, "advance", lambda self, steps: None)
    machine.report_progress(record=record, steps=1, more=2, known=True, anew=False)
    violated(machine, "progress_is_what_was_reported")


# the end


@pytest.mark.skipif(not HAS_GIL, reason="what threads have made is not freed at once")
def test_reference_cycle(machine, place, monkeypatch):
    """A reference cycle keeps a worker alive."""
    until = machine.world.until
    monkeypatch.setattr(machine.world, "until", lambda condition, **_: until(condition, 0.05))
    record = machine.run(place=place, script=RETURN)
    cycle = [record.worker]
    cycle.append(cycle)
    record = None
    del cycle
    with pytest.raises(AssertionError, match="reference cycles keep"):
        machine.teardown()


def test_task_that_is_left(machine, place, monkeypatch):
    """A task is left running."""
    machine.do(lambda: machine.world.spawn(anyio.sleep_forever))
    with pytest.raises(AssertionError, match="these tasks are left"):
        machine.teardown()


def test_thread_that_is_left(machine, monkeypatch):
    """A thread is left running."""
    monkeypatch.setattr("creche.testing._machine.machine.PATIENCE", 0.0)
    go = threading.Event()
    thread = threading.Thread(target=go.wait, name="straggler")
    thread.start()
    with pytest.raises(AssertionError, match=r"these threads are left.*straggler"):
        machine.teardown()
    go.set()
    thread.join()


def test_thread_that_is_about_to_end(machine, monkeypatch):
    """teardown() waits for a thread that is about to end."""
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()

    def sleep(seconds):
        go.set()
        thread.join()

    monkeypatch.setattr("creche.testing._machine.machine.time.sleep", sleep)
    machine.teardown()


def test_node_that_is_not_over(machine, place, monkeypatch):
    """A node does not end, even when it is cancelled."""
    monkeypatch.setattr(Node, "cancel", lambda self, reason=None: None)
    until = machine.world.until
    monkeypatch.setattr(machine.world, "until", lambda condition: until(condition, 0.05))
    with pytest.raises(AssertionError, match="do not end"):
        machine.teardown()


def test_never_opened():
    """A machine that was never started has nothing to end."""
    WorkerMachine().teardown()


def test_every_invariant_is_here():
    """Each invariant has a test above that violates it."""
    text = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in NAMED if f'"{name}"' not in text and f".{name}()" not in text] == []
