"""How costs grow: ten times as much takes ten times the steps, or no more at all.

Steps are counted, not seconds: the calls of the library's own functions. benchmarks/grows.py
measures seconds.
"""

from __future__ import annotations

import io
import weakref
from contextlib import AsyncExitStack
from functools import partial

import anyio
import pytest
from anyio import lowlevel
from hypothesis import example, given
from hypothesis import strategies as st

from creche import Message, Node, Worker, format_tree
from creche._core import deadlock
from creche._nursery.nursery import Nursery
from helpers import counted, no_collection, settle, shallow, until

LEVELS = 2000
LINEAR = 12
"""The maximum factor by which the steps may grow if the size is ten times as large."""


async def growth(cost, size):
    """Return the factor by which the steps grow if the size is ten times as large."""
    few, many = await cost(size), await cost(10 * size)
    return many / few


# trees: deep, and wide


async def enter(stack, name, above):
    return await stack.enter_async_context(Node(name, parent=above))


async def mount(stack, name, above):
    return await above.mount(Node(name))


@pytest.mark.parametrize("descend", [enter, mount])
async def test_a_chain(descend):
    """A chain of 2,000 nodes is opened, printed, cancelled and closed, with little stack."""
    stack = AsyncExitStack()
    nodes = [await stack.enter_async_context(Node("app"))]
    for number in range(LEVELS):
        nodes.append(await descend(stack, f"n{number}", nodes[-1]))
        nodes[-1].run_worker(anyio.sleep_forever)
    await settle()
    found = []
    with shallow():
        for look in (format_tree, Node.snapshot, Node.cancel):
            try:
                found.append(look(nodes[0]))
            except RecursionError:
                found.append(None)
    scopes = [node._creche_nursery.task_group.cancel_scope for node in nodes]
    cancelled = [scope.cancel_called for scope in scopes]
    for scope in reversed(scopes):  # or it would never end, if the first was not enough
        scope.cancel()
    await stack.aclose()
    assert found[0].count("\n") == 3 * LEVELS
    assert found[1].life == "open"
    assert all(cancelled)
    assert all(node.is_finished for node in nodes)


@pytest.mark.parametrize("descend", [enter, mount])
async def test_a_level_costs_the_same_however_deep_it_is(descend):
    """Opening, cancelling and closing a node visits none of its ancestors."""

    async def cost(size):
        with counted() as calls:
            async with AsyncExitStack() as stack:
                app = node = await stack.enter_async_context(Node("app"))
                for number in range(size):
                    node = await descend(stack, f"n{number}", node)
                app.cancel()
        return calls[0]

    assert await growth(cost, 30) < LINEAR


async def test_a_block_that_ends_well_is_not_named(monkeypatch):
    """The long name of a node in a deep tree is built only when there is something to report."""
    named = []
    label = Node._creche_label
    monkeypatch.setattr(Node, "_creche_label", lambda node: named.append(node) or label(node))
    async with Node("app") as app:
        named.clear()  # the watcher has the name in its own
        await app.run_worker(lowlevel.checkpoint)
    assert named == []


async def live_in(node, ready, gate):
    async with node:
        ready.append(node)
        await gate.wait()


async def test_children_that_leave_one_by_one():
    """A child that leaves does not make its parent look at the other children."""

    async def cost(size):
        gates = [anyio.Event() for _ in range(size)]
        ready = []

        async def leave():
            for gate in gates:
                gate.set()
                await settle(5)

        with counted() as calls:
            async with anyio.create_task_group() as tasks, Node("app") as app:
                for number, gate in enumerate(gates):
                    tasks.start_soon(live_in, Node(f"n{number}", parent=app), ready, gate)
                await until(lambda: len(ready) == size)
                tasks.start_soon(leave)
        return calls[0]

    assert await growth(cost, 20) < LINEAR


async def test_blocks_of_one_worker():
    """A worker that leaves a block does not look at the other blocks that it has open."""

    async def cost(size):
        async def work():
            async with AsyncExitStack() as stack:
                for number in range(size):
                    await stack.enter_async_context(Node(f"n{number}", parent=app))

        with counted() as calls:
            async with Node("app") as app:
                app.run_worker(work)
        return calls[0]

    assert await growth(cost, 60) < LINEAR


async def test_whether_a_worker_is_in_a_tree():
    """``worker in app.workers`` looks at no other group. It is false elsewhere and at the end."""

    async def cost(size):
        async with Node("app") as app, Node("page", parent=app) as page, Node("other") as other:
            workers = [
                page.run_worker(anyio.sleep_forever, group=f"g{number}", start=False)
                for number in range(size)
            ]
            with counted() as calls:
                assert all(worker in app.workers for worker in workers)
            assert workers[0] not in other.workers
            app.cancel()
        assert workers[0] not in app.workers
        assert Worker(app, anyio.sleep_forever) not in app.workers
        assert "worker" not in app.workers
        return calls[0]

    assert await growth(cost, 20) < LINEAR


# the search for deadlocks


@pytest.mark.parametrize("order", [1, -1], ids=["oldest first", "newest first"])
async def test_holders_of_slots_that_wait_for_the_queue(order):
    """A wait that can end examines few of the others, though each needs a slot that they hold."""

    async def cost(size):
        gates = [anyio.Event() for _ in range(size + 1)]

        async def work(number):
            await gates[number].wait()
            await queue[number].wait()

        async with Node("app") as app:
            group = app.group("all", limit=size + 1)
            workers = [group.run_worker(partial(work, number)) for number in range(size + 1)]
            await settle()
            queue = [group.run_worker(anyio.sleep_forever) for _ in workers]
            with counted() as calls:
                for gate in gates[:-1] if order > 0 else gates[:0:-1]:  # all but the last one
                    gate.set()
                    await settle(4)  # otherwise Trio would let them begin to wait in any order
            assert all(worker.is_running for worker in workers)
            app.cancel()
        return calls[0]

    assert await growth(cost, 20) < LINEAR


async def test_a_long_chain_of_waits():
    """A wait at the end of a chain starts no search if no worker waits for the waiting one."""

    async def cost(size):
        gates = [anyio.Event() for _ in range(size)]

        async def work(number):
            await gates[number].wait()
            await made[number - 1].wait()

        async with Node("app") as app, anyio.create_task_group() as tasks:
            made = [app.run_worker(anyio.sleep_forever)]
            made += [app.run_worker(partial(work, number)) for number in range(1, size)]
            for worker in made:  # tasks that are not workers do wait for it
                tasks.start_soon(app.workers.wait_for_complete, [worker])
            await settle()
            with counted() as calls:
                for gate in gates[1:]:
                    gate.set()
                    await settle(2)
            app.cancel()
        return calls[0]

    assert await growth(cost, 20) < LINEAR


class Party:
    """A party that may wait for other parties."""

    def __init__(self, name):
        self.name = name
        self.is_finished = False
        self.every = ()
        self.one = ()

    def __eq__(self, other):
        return True

    __hash__ = None

    def _creche_needs_all(self):
        return self.every

    def _creche_needs_one(self):
        return self.one

    def _creche_label(self):
        return str(self.name)


def plain_search(parties):
    """Return the cycle from the first party on, found by the definition of a deadlock."""
    free = [party.is_finished for party in parties]

    def can_go(party):
        return all(free[other.name] for other in party.every) and (
            not party.one or any(free[other.name] for other in party.one)
        )

    for _ in parties:
        free = [free[party.name] or can_go(party) for party in parties]
    if free[0]:
        return None
    ring = [0]
    while ring.count(ring[-1]) == 1:
        party = parties[ring[-1]]
        stuck = [other.name for other in party.every if not free[other.name]]
        ring.append(stuck[0] if stuck else party.one[0].name)
    return " waits for ".join(map(str, ring))


@st.composite
def waits(draw):
    """Draw parties: those that hold slots, that wait for a slot, and that wait for each other."""
    number = draw(st.integers(1, 8))
    parties = [Party(name) for name in range(number)]
    some = st.lists(st.sampled_from(range(number)), max_size=3, unique=True)
    slots = [tuple(parties[at] for at in draw(some)) for _ in range(2)]
    slots[1] = tuple(party for party in slots[1] if all(party is not each for each in slots[0]))
    for party in parties:
        party.is_finished = draw(st.integers(0, 9)) == 0
        party.every = tuple(parties[at] for at in draw(some))
        party.one = draw(st.sampled_from([(), (), *slots]))
    return parties


def late_slot():
    """A holder that is examined first turns out to be free only after another of its needs is."""
    parties = [Party(name) for name in range(5)]
    parties[0].every = (parties[1], parties[2])
    parties[1].one = parties[2].one = (parties[3], parties[4])
    parties[3].every = (parties[1],)
    return parties


def late_need():
    """A party whose search stopped at a need that turns out to be free, and is needed later."""
    parties = [Party(name) for name in range(5)]
    parties[0].every = (parties[1], parties[3])
    parties[1].one = (parties[2], parties[4])
    parties[2].every = (parties[1],)
    parties[3].every = (parties[2],)
    return parties


def known_slot():
    """A holder that was already found to be free."""
    parties = [Party(name) for name in range(3)]
    parties[0].every = (parties[1], parties[2])
    parties[2].one = (parties[1],)
    return parties


@given(waits())
@example(known_slot())
@example(late_need())
@example(late_slot())
def test_the_search_finds_what_the_definition_says(parties):
    """The search ends early and skips what does not matter, but agrees with the definition."""
    assert deadlock.find_deadlock(parties[0]) == plain_search(parties)


def ring():
    """Two parties that wait for each other."""
    parties = [Party(name) for name in range(2)]
    parties[0].every, parties[1].every = (parties[1],), (parties[0],)
    return parties


@pytest.mark.parametrize("make", [late_need, ring])
def test_a_check_leaves_no_cycles(make):
    """Examined parties are freed without the garbage collector, whether the wait can end or not."""
    parties = make()
    ends = [weakref.ref(party) for party in parties]
    with no_collection():
        deadlock.find_deadlock(parties[0])
        for party in parties:
            party.every = party.one = ()
        del party, parties
        assert not any(end() for end in ends)


# the listeners


class Said(Message):
    """A message that is posted on a node and bubbles up."""


async def test_subscriptions():
    """The cost to open or close a subscription does not depend on how many there are."""

    async def cost(size):
        async with Node("app") as app, Node("page", parent=app) as page:
            with counted() as calls:
                async with AsyncExitStack() as stack:
                    for number in range(size):
                        kind = Worker.ProgressChanged if number % 2 else Said
                        await stack.enter_async_context(app.subscribe(kind, tree=True))
                    assert page._creche_audience.tells_progress
                    assert not page._creche_audience.tells_changes
                assert not page._creche_audience.tells_progress
        return calls[0]

    assert await growth(cost, 20) < LINEAR


async def test_a_message_that_rises_compares_no_listeners():
    """A message that bubbles does not search all listeners above for those that have it already."""
    compared = []

    class Told(tuple):
        __slots__ = ()

        def __contains__(self, listener):
            compared.append(listener)
            return super().__contains__(listener)

    async with Node("app") as app, Node("page", parent=app) as page, AsyncExitStack() as stack:
        events = [await stack.enter_async_context(app.subscribe(Said, tree=True)) for _ in range(3)]
        page._creche_audience._row = Told(page._creche_audience.heard_by)
        page.post_message(Said())
        await settle()
        assert [len(each.take_all()) for each in events] == [1, 1, 1]
    assert compared == []


# snapshots, boards and subscribers


async def test_a_snapshot_reads_the_clock_once_for_each_group(monkeypatch):
    """A snapshot reads the clock once for each group, however many workers there are."""
    asked = []
    now = Nursery.now

    def read(nursery):
        asked.append(nursery)
        return now(nursery)

    async with Node("app") as app:
        for number in range(40):
            app.run_worker(anyio.sleep_forever, group=f"g{number % 2}")
        await settle()
        monkeypatch.setattr(Nursery, "now", read)
        tree = app.snapshot()
        monkeypatch.undo()
        app.cancel()
    assert sum(len(group.workers) for group in tree.groups) == 40
    assert len(asked) == 2


async def test_a_board_makes_no_words_for_which_there_is_no_room(monkeypatch):
    """Of a thousand groups, a board formats only as many as fit the screen."""
    pytest.importorskip("rich")
    from rich.console import Console  # noqa: PLC0415 (an extra)

    from creche.board import _picture, live_board  # noqa: PLC0415 (an extra)

    made = []

    def text(value):
        made.append(value)
        return str(value)

    console = Console(file=io.StringIO(), width=80, height=20, _environ={})
    async with Node("app") as app:
        for number in range(1000):
            app.run_worker(anyio.sleep_forever, group=f"g{number}")
        await settle()
        async with live_board(app, console=Console(file=io.StringIO())) as board:
            monkeypatch.setattr(_picture, "text", text)
            console.print(board)
        app.cancel()
    shown = console.file.getvalue().splitlines()
    assert "more nodes and groups" in shown[-2]
    assert shown[-1].startswith("1,000 running")
    assert 0 < len(made) < 20


async def test_a_subscriber_that_never_reads():
    """An unread subscription keeps one progress event for each worker, but every change."""
    async with Node("app") as app:
        async with app.subscribe(Worker.StateChanged, Worker.ProgressChanged) as events:
            workers = [app.run_worker(anyio.sleep_forever) for _ in range(3)]
            await settle()
            for _ in range(1000):
                for worker in workers:
                    worker.advance()
            await lowlevel.checkpoint()
            told = events.take_all()
        app.cancel()
    assert sum(isinstance(event, Worker.ProgressChanged) for event in told) == 3
    assert len(told) == 9
