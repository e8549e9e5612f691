"""Rules of the machine that random runs rarely reach, called directly."""

from __future__ import annotations

import pytest

from creche import WorkerState
from creche.testing import Ending, OnCancel, Script, WorkerMachine
from creche.testing._machine.model import QUEUE
from helpers import CANCELLED, RUNNING, SUCCESS


@pytest.fixture
def machine(anyio_backend, quiet):
    """A machine with one open node. Its invariants are checked at the end of the test."""

    class Machine(WorkerMachine):
        backend, backend_options = anyio_backend

    machine = Machine()
    machine.open_tree(seed=0, limit=1, overflow="restart")
    yield machine
    machine.all_holds()
    machine.teardown()


@pytest.fixture
def place(machine):
    return machine.roots[0]


def create(machine, place, **options):
    return machine.create(place=place, script=Script(), group="free", kind="function", **options)


def test_assigned_states(machine, place):
    """An adapter may assign the states that the table allows, and no others."""
    running, cancelled, ended = (create(machine, place) for _ in range(3))
    machine.assign_state(record=running, state=RUNNING)
    machine.assign_state(record=cancelled, state=CANCELLED)
    for state in (RUNNING, SUCCESS, *WorkerState):
        machine.assign_state(record=ended, state=state)
    assert running.worker.is_running
    assert cancelled.asked == "CANCELLED was assigned"
    assert ended.elsewhere is SUCCESS
    started = machine.run(place=place, script=Script())
    machine.assign_state(record=started, state=SUCCESS)
    machine.assign_state(record=started, state=CANCELLED)
    coroutine = machine.create(place=place, script=Script(), group="free", kind="coroutine")
    machine.assign_state(record=coroutine, state=RUNNING)
    assert coroutine.elsewhere is None


def test_start_all(machine, place):
    """When many workers start at once, their order decides which ones an exclusive one replaces."""
    records = [create(machine, place, exclusive=exclusive) for exclusive in (False, True, False)]
    machine.start_all(place=place)
    assert any(record.worker.is_running for record in records)


def test_start_all_of_a_node_that_refuses(machine, place):
    """start_all() starts nothing on a node that is shutting down."""
    machine.run(place=place, script=Script())
    record = create(machine, place)
    machine.shut_down(place=place, grace=3600.0)
    machine.start_all(place=place)
    assert record.started is None


def test_shut_down_with_a_mounted_node(machine, place):
    """Shutting down a node without a grace period cancels the nodes mounted on it."""
    child = machine.open_child(parent=place, kind="mounted", limit=1)
    record = machine.run(place=child, script=Script())
    machine.shut_down(place=place, grace=0.0)
    assert child.is_cancelled
    assert record.worker.is_cancelled


def test_call_to_a_fallen_node(machine, place):
    """A thread cannot call into a node that is cancelled but has not ended yet."""
    record = machine.run(place=place, script=Script(on_cancel=OnCancel.HOLD))
    machine.cancel_node(place=place)
    machine.call_from_a_thread(place=place)
    machine.let_go(record=record)
    machine.call_from_a_thread(place=place)


def test_thread_on_a_fallen_node(machine, place):
    """No thread starts on a cancelled node, so none has to end."""
    held = machine.run(place=place, script=Script(on_cancel=OnCancel.HOLD))
    machine.cancel_node(place=place)
    record = machine.run_thread(
        place=place, ending=Ending.RETURN, kind="thread", on_cancel=OnCancel.OBEY
    )
    machine.finish_thread(record=record)
    assert not record.play.is_entered
    machine.let_go(record=held)


def test_cancelled_waiter(machine, place):
    """Cancelling a waiter affects neither the worker nor another waiter."""
    record = machine.run(place=place, script=Script())
    first, second = (machine.wait(record=record) for _ in range(2))
    machine.cancel_waiter(waiter=first)
    machine.open_gate(record=record)
    assert (first.outcome, second.outcome) == (("gave up", None), ("value", record.play.value))


def test_scope_of_a_mounted_node(machine, place):
    """A mounted node has no surrounding scope that a machine could cancel."""
    child = machine.open_child(parent=place, kind="mounted", limit=1)
    assert machine.cancel_outer_scope(place=child) is child
    assert not child.is_cancelled
    assert machine.remove(place=place) is place


def test_wait_for_what_is_queued(machine, place):
    """A worker may not wait for one that is queued for its slot, but another worker may."""
    holder = machine.run(place=place, script=Script(), group=QUEUE)
    queued = machine.run(place=place, script=Script(), group=QUEUE)
    other = machine.run(place=place, script=Script())
    machine.wait_within(record=other, awaited=queued)
    (waiter,) = queued.waiters
    assert repr(waiter) == "<waiter for w2>"
    assert not waiter.is_ring
    machine.wait_within(record=holder, awaited=queued)
    assert queued.waiters[1].is_ring
    machine.open_gate(record=queued)
    assert waiter.outcome == ("value", queued.play.value)


def test_ring_of_two(machine, place):
    """The wait that closes a cycle is refused. The wait before it is not."""
    first, second = (machine.run(place=place, script=Script()) for _ in range(2))
    machine.wait_within(record=first, awaited=second)
    machine.wait_within(record=second, awaited=first)
    assert not second.waiters[0].is_ring
    assert first.waiters[0].outcome == ("deadlock", None)


@pytest.mark.parametrize("ending", list(Ending))
@pytest.mark.parametrize("kind", ["thread", "abandoned", "async-thread"])
def test_threads(machine, place, kind, ending):
    """Work in a thread reaches its gate and ends as its script says."""
    first, second = (
        machine.run_thread(place=place, ending=ending, kind=kind, on_cancel=OnCancel.RAISE)
        for _ in range(2)
    )
    machine.cancel_thread(record=first)
    machine.all_holds()
    machine.finish_thread(record=second)
    machine.all_holds()
    machine.finish_thread(record=first)


def test_many_threads(machine, place):
    """However often the rule is drawn, AnyIO has a thread left for the next worker."""
    for _ in range(45):
        machine.run_thread(
            place=place, ending=Ending.RETURN, kind="thread", on_cancel=OnCancel.OBEY
        )
    assert 0 < len(place.records) < 40
    machine.race_thread_returns_as_it_is_cancelled(where=place, swap=False, between=0, whole=False)


def test_removal_of_what_has_ended(machine, place):
    """A mounted node that has failed can be removed, and its parent ends."""
    child = machine.open_child(parent=place, kind="mounted", limit=1)
    machine.run(place=child, script=Script(gated=False, ending=Ending.RAISE), fatal=True)
    assert child.is_over
    machine.remove(place=child)
    assert "removal of a node that has ended" in machine._seen
    assert place.is_over


def test_handlers_that_start_workers(machine, place):
    """Each handler that a bubbling message reaches starts a worker, and none waits for it."""
    child = machine.open_child(parent=place, kind="block", limit=1)
    machine.post(place=child, number=2, script=Script())
    assert [len(each.records) for each in (place, child)] == [2, 2]
    assert len(place.got) == 2


@pytest.mark.parametrize("then", ["", "worker", "node", "parent", "remove"])
def test_attached_nodes(machine, place, then):
    """Nodes that are still opening, or their work, can be cancelled in each of these ways."""
    children = machine.attach(parent=place, depth=2, turns=0, then=then)
    assert [child.kind for child in children.values] == ["mounted", "mounted"]
    assert "work on a node that is being opened" in machine._seen
    children = machine.attach(parent=place, depth=1, turns=3, then=then)
    if then == "parent":
        assert children.values == ()


def test_no_more_nodes_than_there_may_be(machine, place):
    """No node is attached when there are enough of them."""
    for _ in range(4):
        machine.attach(parent=place, depth=2, turns=0, then="")
    assert len(list(machine.places())) <= 8
