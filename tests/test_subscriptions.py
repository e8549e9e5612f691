"""Subscriptions: all changes arrive once and in order, nobody is delayed, progress is coalesced."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import defaultdict
from contextlib import AsyncExitStack

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from creche import Message, Node, Subscription, Worker, WorkerError, get_current_worker
from creche._core import events as events_module
from helpers import (
    CANCELLED,
    PENDING,
    RUNNING,
    SUCCESS,
    ExceptionGroup,
    Listener,
    Meeting,
    no_collection,
    settle,
    until,
    until_gone,
)


class Saved(Message):
    """A user-defined message, which bubbles."""


class Lost(Saved, bubble=False):
    """A subclass that does not bubble."""


class Watcher(Node):
    """A node that keeps what its handlers received."""

    def __init__(self, name="app", **kwargs):
        super().__init__(name, **kwargs)
        self.got = []

    def on_worker_state_changed(self, event):
        self.got.append(event)

    def on_worker_progress_changed(self, event):
        self.got.append(event)


BOTH = (Worker.StateChanged, Worker.ProgressChanged)


async def rest(events):
    """Read a subscription to its end."""
    with anyio.fail_after(10):
        return [event async for event in events]


async def read(events, into):
    """Read a subscription, event by event."""
    async for event in events:
        into.append(event)


async def work():
    await anyio.lowlevel.checkpoint()


def steps(events):
    return [(event.worker.name, event.state) for event in events]


# changes of state


async def test_every_change_until_the_node_has_closed():
    """Each change comes once and in order, final ones included. Then the stream ends."""
    async with (app := Node("app")).subscribe(Worker.StateChanged) as events:
        async with app:
            app.run_worker(work, name="done")
            app.run_worker(work, name="daemon", daemon=True).cancel()
        seen = await rest(events)
        assert await rest(events) == []
    assert steps(seen) == [
        ("done", PENDING),
        ("daemon", PENDING),
        ("daemon", CANCELLED),
        ("done", RUNNING),
        ("done", SUCCESS),
    ]


@pytest.mark.parametrize("end", ["fails", "cancelled", "outer", "removed"])
async def test_final_changes_of_a_node_that_does_not_end_well(end):
    """A node that failed, was cancelled or was removed still reports how its work ended."""

    async def fail():
        await settle()
        raise ValueError

    page = Node("page")
    async with page.subscribe(Worker.StateChanged) as events:
        with anyio.CancelScope() as scope:
            try:
                async with Node("app") as app:
                    await app.mount(page)
                    page.run_worker(anyio.sleep_forever, name="w")
                    page.run_worker(work, name="unstarted", start=False)
                    await settle()
                    if end == "fails":
                        app.run_worker(fail)
                        await anyio.sleep_forever()
                    elif end == "cancelled":
                        app.cancel()
                        await anyio.sleep_forever()
                    elif end == "outer":
                        scope.cancel()
                        await anyio.sleep_forever()
                    else:
                        await page.remove()
            except ExceptionGroup:
                assert end == "fails"
        assert steps(await rest(events)) == [
            ("w", PENDING),
            ("unstarted", PENDING),
            ("w", RUNNING),
            ("unstarted", CANCELLED),
            ("w", CANCELLED),
        ]


async def test_facts_of_a_change():
    """An event has the previous state, the time, its number and the worker that it comes from."""

    async def inner():
        pass

    async def outer():
        await app.run_worker(inner, name="inner")

    app = Watcher()
    async with app.subscribe(Worker.StateChanged) as one, app.subscribe(Message) as two:
        async with app:
            outer_worker = app.run_worker(outer, name="outer")
            inner_worker = None
            await outer_worker
            app.run_worker(work, name="late").cancel()
        seen = await rest(one)
        assert seen == await rest(two) == app.got  # the same objects: they compare by identity
    inner_worker = seen[2].worker
    assert [(each.worker.name, each.previous, each.state) for each in seen] == [
        ("outer", None, PENDING),
        ("outer", PENDING, RUNNING),
        ("inner", None, PENDING),
        ("inner", PENDING, RUNNING),
        ("inner", RUNNING, SUCCESS),
        ("outer", RUNNING, SUCCESS),
        ("late", None, PENDING),
        ("late", PENDING, CANCELLED),
    ]
    assert [each.time for each in seen[:6]] == [
        outer_worker.created_at,
        outer_worker.started_at,
        inner_worker.created_at,
        inner_worker.started_at,
        inner_worker.finished_at,
        outer_worker.finished_at,
    ]
    assert [each.origin for each in seen] == [None, None, outer_worker, *[None] * 5]
    numbers = [each.number for each in seen]
    assert numbers == sorted(set(numbers))


async def test_origin_of_work_from_a_thread():
    """Work that a worker starts from its thread has that worker as its origin, too."""
    async with (app := Node("app")).subscribe(Worker.StateChanged) as events:
        async with app:
            thread = app.run_worker(lambda: app.run_worker(work, name="w"), thread=True)
        origins = {event.worker.name: event.origin for event in await rest(events) if event.origin}
    assert origins == {"w": thread}


@pytest.mark.parametrize("name", ["worker", "state", "previous", "time", "number", "origin", "x"])
async def test_events_are_frozen(name):
    """No attribute of an event can be assigned, but a handler may still stop it."""
    async with Node() as app:
        event = Worker.StateChanged(app.run_worker(work), PENDING)
        with pytest.raises(AttributeError, match=f"cannot assign to field '{name}'"):
            setattr(event, name, None)
        assert not event.is_stopped
        event.stop()
        assert event.is_stopped


async def test_origin_keeps_nothing_alive():
    """A running worker holds no reference to the worker that it comes from."""

    async def outer():
        app.run_worker(anyio.sleep_forever, name="inner")

    async with (app := Node("app")).subscribe(Worker.StateChanged) as events, app:
        with no_collection():
            worker = app.run_worker(outer)
            await worker
            reference = weakref.ref(worker)
            for _ in range(5):  # both are PENDING and RUNNING, and the outer one SUCCESS
                event = await anext(events)
            assert event.worker.name == "inner"
            assert event.state is RUNNING
            del worker, event
            await until_gone(reference)
        app.cancel()


async def test_numbers_order_the_events_of_several_subscriptions():
    """Numbers put the events of several subscriptions in order."""
    order = []

    class Loud(Node):
        def on_worker_state_changed(self, event):
            order.append(event)

    left, right = Loud("left"), Loud("right")
    async with left.subscribe(Worker.StateChanged) as one, right.subscribe(Message) as two:
        async with left, right:
            for node in (left, right, right, left):
                await node.run_worker(work)
        both = [*await rest(one), *await rest(two)]
    assert sorted(both, key=lambda event: event.number) == order


async def test_all_that_waits_can_be_taken_at_once():
    """Waiting events are returned in order, without a checkpoint. Later ones are read as usual."""
    async with Node("app") as app, app.subscribe(*BOTH) as events:
        assert events.take_all() == []
        worker = app.run_worker(work, name="job", start=False)
        worker.advance()
        worker.state = RUNNING
        first, progress, second = events.take_all()
        assert steps([first, second]) == [("job", PENDING), ("job", RUNNING)]
        assert isinstance(progress, Worker.ProgressChanged)
        assert events.take_all() == []
        worker.advance()  # after it was taken, progress is reported again
        assert isinstance(await anext(events), Worker.ProgressChanged)
    with pytest.raises(WorkerError, match="is not open; read it in its block"):
        app.subscribe(Message).take_all()


# the tree


async def test_tree_hears_all_below():
    """With ``tree``, events of nodes below arrive too, also of those opened or mounted later."""
    app = Node("app")
    early = Node("early", parent=app)
    deep = Node("deep", parent=early)
    deep.run_worker(work, name="unopened", start=False)
    async with (
        app.subscribe(Worker.StateChanged, tree=True) as tree,
        app.subscribe(Worker.StateChanged) as alone,
        early.subscribe(Worker.StateChanged, tree=True) as below,
    ):
        async with app:
            await app.run_worker(work, name="app")
            early.run_worker(work, name="added before the node was opened", start=False)
            async with early:
                await early.run_worker(work, name="early")
                async with deep:
                    await deep.run_worker(work, name="deep")
            assert [event.worker.name for event in await rest(below)].count("deep") == 3
            late = await app.mount(Node("late"))
            await (await late.mount(Node("leaf"))).run_worker(work, name="leaf")
        names = [event.worker.name for event in await rest(tree)]
        assert names == [
            *["app"] * 3,
            "added before the node was opened",
            *["early"] * 3,
            *["deep"] * 3,
            "unopened",
            "added before the node was opened",
            *["leaf"] * 3,
        ]
        assert {event.worker.name for event in await rest(alone)} == {"app"}


async def test_subscribing_to_an_open_tree():
    """A subscription that is opened late gets every later event from all nodes below."""
    async with Node("app") as app, Node("page", parent=app) as page:
        await page.run_worker(work, name="before")
        async with app.subscribe(Worker.StateChanged, tree=True) as events:
            await page.run_worker(work, name="heard")
            seen = [await anext(events) for _ in range(3)]
        assert {event.worker.name for event in seen} == {"heard"}
        assert page._creche_audience.heard_by == app._creche_audience.heard_by == ()


async def test_message_that_bubbles_is_told_once():
    """A message that bubbles reaches each subscription, to a node or to a tree, once."""
    app = Node("app")
    page = Node("page", parent=app)
    async with (
        app.subscribe(Saved, tree=True) as tree,
        app.subscribe(Saved) as above,
        page.subscribe(Saved) as below,
        page.subscribe(Lost) as lost,
    ):
        page.post_message(first := Saved())
        async with app, page:
            page.post_message(second := Lost())
            app.post_message(third := Saved())
        assert not app.post_message(Saved())
        assert await rest(tree) == [first, second, third]
        assert await rest(above) == [third, first]  # when it had bubbled up
        assert await rest(below) == [first, second]
        assert await rest(lost) == [second]


# readers


async def test_slow_reader_delays_and_loses_nothing():
    """A reader that reads nothing delays neither the work nor other readers, and loses nothing."""
    app = Node("app")
    got = []
    async with app.subscribe(Worker.StateChanged) as slow:
        async with app.subscribe(Worker.StateChanged) as quick, anyio.create_task_group() as tasks:
            tasks.start_soon(read, quick, got)
            async with app:
                for _ in range(100):
                    app.run_worker(work)
                await until(lambda: len(got) == 300)
        assert await rest(slow) == got


async def test_taking_all_beside_a_reader():
    """Waiting events can be taken at once, even while another task waits for more."""
    got = []
    app = Node("app")
    async with app.subscribe(Worker.StateChanged) as events, anyio.create_task_group() as tasks:
        tasks.start_soon(read, events, got)
        async with app:
            await settle()  # the reader waits
            app.run_worker(work, start=False, name="w").cancel()
            taken = events.take_all()
            with pytest.raises(WorkerError, match="outside the event loop"):
                await anyio.to_thread.run_sync(events.take_all)
            app.run_worker(work, name="read").cancel()
            await settle()
        assert events.take_all() == []
    assert [event.worker.name for event in taken] == ["w", "w"]
    assert [event.worker.name for event in got] == ["read", "read"]


@pytest.mark.parametrize("order", ["event first", "cancelled first"])
async def test_cancelled_reader_loses_nothing(order):
    """If a reader is cancelled as an event arrives, either it or the next reader gets the event."""
    got = []

    async with Node("app") as app, app.subscribe(Worker.StateChanged) as events:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, events, got)
                await settle()
                if order == "cancelled first":
                    scope.cancel()
                app.run_worker(work)  # wakes the reader, which is cancelled before it runs
                scope.cancel()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anext(events)
        assert scope.cancelled_caught
        got += [await anext(events) for _ in range(3 - len(got))]
        assert [event.state for event in got] == [PENDING, RUNNING, SUCCESS]


async def test_reading_is_a_checkpoint():
    """Other tasks run between one event and the next, however many events wait."""
    turns = []

    async def other():
        while True:
            turns.append(1)
            await anyio.lowlevel.checkpoint()

    async with Node("app") as app, app.subscribe(Worker.StateChanged) as events:
        await app.run_worker(work)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other)
            await settle(2)
            before = len(turns)
            for _ in range(3):
                await anext(events)
            assert len(turns) - before >= 2  # Trio shuffles the tasks of a batch
            tasks.cancel_scope.cancel()


async def test_reader_that_raises_fails_itself_only():
    """An error in a reader stays there: the node and the other readers go on."""
    app = Node("app")

    async def fail(events):
        async for _ in events:
            raise ValueError("mine")

    async with app.subscribe(Worker.StateChanged) as bad, app.subscribe(Message) as good:
        with pytest.raises(ExceptionGroup):
            async with anyio.create_task_group() as tasks:
                async with app:
                    await app.run_worker(work)
                tasks.start_soon(fail, bad)
        assert len(await rest(good)) == 3


async def test_daemon_may_read_its_own_node():
    """A daemon that reads its own node's events to the end does not keep the node open."""
    seen = []

    async def watch():
        async with app.subscribe(Worker.StateChanged) as events:
            await read(events, seen)

    async with Node("app") as app:
        await app.start_worker(watch, daemon=True)
        await app.run_worker(work, name="w")
        await settle()
    assert steps(seen) == [("w", PENDING), ("w", RUNNING), ("w", SUCCESS)]


async def test_one_reader_at_a_time():
    """A second task that reads gets an error, and the first one goes on."""
    got = []
    app = Node("app")
    async with app.subscribe(Worker.StateChanged) as events, anyio.create_task_group() as tasks:
        tasks.start_soon(read, events, got)
        async with app:
            await settle()
            with pytest.raises(WorkerError, match="is being read by another task; subscribe once"):
                await anext(events)
            app.run_worker(work)
    assert len(got) == 3


async def test_leaving_the_block_ends_a_reader_elsewhere():
    """When the subscription is closed, a task that is reading it ends."""
    async with Node("app") as app, anyio.create_task_group() as tasks:
        async with app.subscribe(Worker.StateChanged) as events:
            tasks.start_soon(rest, events)
            await settle()
        await settle()
        assert await rest(events) == []
        await app.run_worker(work)


async def test_left_with_events_unread():
    """Unread events are gone once the block has been left."""
    async with Node("app") as app:
        async with app.subscribe(Message) as events:
            await app.run_worker(work)
        assert await rest(events) == []


# misuse


async def test_types_that_cannot_be_subscribed_to():
    """Only message classes can be subscribed to, and at least one is required."""
    app = Node("app")
    with pytest.raises(WorkerError, match=r"^subscribe\(\) needs the classes of messages"):
        app.subscribe()
    for wrong in (int, "text", None, Saved()):
        with pytest.raises(WorkerError, match=r"^subscribe\(\) takes classes of messages, not "):
            app.subscribe(Saved, wrong)


async def test_a_closed_node_cannot_be_heard():
    """Subscribing to a node that is closed is an error."""
    async with Node("app") as app:
        pass
    with pytest.raises(WorkerError, match=r"^cannot subscribe to node 'app', which is closed; "):
        await app.subscribe(Message).__aenter__()


async def test_entered_twice_and_read_outside():
    """A subscription can be opened only once, and read only while it is open."""
    async with Node("app") as app:
        events = app.subscribe(Saved, Worker.StateChanged)
        assert isinstance(events, Subscription)
        spoken = "<Subscription to Saved, Worker.StateChanged of node 'app'>"
        with pytest.raises(WorkerError, match=f"^{spoken} is not open; read it in its block"):
            await anext(events)
        async with events:
            pass
        with pytest.raises(WorkerError, match=f"^{spoken} was opened before; subscribe again"):
            await events.__aenter__()


async def test_in_another_thread():
    """A subscription can be used only in the thread of the node's event loop."""
    async with Node("app") as app, app.subscribe(Saved) as events:

        async def elsewhere():
            for call in (app.subscribe(Saved).__aenter__, events.__anext__):
                with pytest.raises(WorkerError, match="is used outside the event loop of"):
                    await call()
            with pytest.raises(WorkerError, match="is used outside the event loop of"):
                await events.__aexit__(None, None, None)

        await app.run_worker(elsewhere, thread=True)


async def test_in_no_task(anyio_backend_name):
    """Code that runs in no task of the event loop cannot wait for an event, and gets an error."""
    if anyio_backend_name == "trio":
        pytest.skip("on Trio all that runs is in a task")
    async with Node("app") as app, app.subscribe(Saved) as events:
        told = []

        def read():
            reading = events.__anext__()
            with pytest.raises(WorkerError, match="is used outside the event loop of") as caught:
                reading.send(None)
            told.append(caught)

        asyncio.get_running_loop().call_soon(read)
        await settle()
        assert told


# progress


async def test_progress_is_coalesced_in_its_place():
    """However often a worker advances, one event waits, in the place of the first."""
    app = Watcher()
    async with app.subscribe(Worker.ProgressChanged, Worker.StateChanged) as events:
        async with app:

            async def advance():
                worker = get_current_worker()
                for _ in range(1000):
                    worker.advance()
                app.run_worker(work, name="other")
                worker.update(total_steps=2000, description="half way")

            worker = await app.start_worker(advance)
            await worker
            app.got.append("waited")
        seen = await rest(events)
    kinds = [(type(event).__name__, event.worker.name) for event in seen]
    assert kinds == [
        ("StateChanged", "advance"),
        ("StateChanged", "advance"),
        ("ProgressChanged", "advance"),
        ("StateChanged", "other"),
        ("StateChanged", "advance"),
        ("StateChanged", "other"),
        ("StateChanged", "other"),
    ]
    assert repr(seen[2]) == "<ProgressChanged worker 'advance'>"
    assert (worker.completed_steps, worker.progress) == (1000, 50.0)
    assert worker.description == "half way"
    progress = [event for event in app.got if isinstance(event, Worker.ProgressChanged)]
    assert progress == [seen[2]]  # the handler gets the same object, once as well


async def test_progress_again_once_it_was_taken():
    """Once an event has been taken, further progress makes a new one."""
    async with (app := Watcher()), app.subscribe(Worker.ProgressChanged) as events:
        worker = await app.start_worker(anyio.sleep_forever)
        for _ in range(3):
            worker.advance()
            worker.update(completed_steps=1)
            assert (await anext(events)).worker is worker
            await settle()  # the handler runs
        worker.cancel()
    assert await rest(events) == []
    assert len([event for event in app.got if isinstance(event, Worker.ProgressChanged)]) == 3


async def test_no_progress_after_the_end():
    """No event of a worker follows its end, even if its progress is advanced later."""
    async with (app := Watcher()).subscribe(Worker.ProgressChanged) as events:
        async with app:
            worker = app.run_worker(work)
            await worker
            worker.advance()
            await anyio.to_thread.run_sync(worker.advance)
            assert worker.completed_steps == 2
        assert await rest(events) == []
    assert len(app.got) == 3


async def test_progress_that_lands_after_the_end():
    """A step that reaches the loop after the worker's end is reported once."""
    async with (app := Node("app")).subscribe(Worker.ProgressChanged) as events:
        async with app:
            worker = await app.start_worker(anyio.sleep_forever)
            thread = threading.Thread(target=worker.advance)
            thread.start()
            thread.join()  # the loop is blocked meanwhile
            worker.state = CANCELLED
            await until(lambda: worker.is_finished)
        assert [event.worker.completed_steps for event in await rest(events)] == [1]
    assert not app._creche_audience._advanced


async def test_threads_that_advance():
    """Steps counted in threads are not lost, and the last step is reported."""
    app = Node("app")
    seen = defaultdict(list)
    meeting = Meeting()

    def count():
        worker = get_current_worker()
        for _ in range(1000):
            worker.advance()
        meeting()

    async def look(events):
        async for event in events:
            seen[event.worker].append(event.worker.completed_steps)

    async with app.subscribe(Worker.ProgressChanged) as events, anyio.create_task_group() as tasks:
        tasks.start_soon(look, events)
        async with app:
            workers = [app.run_worker(count, thread=True) for _ in range(2)]
            await until(lambda: all(1000 in seen[worker] for worker in workers))
            meeting.go.set()
    for worker in workers:
        assert seen[worker] == sorted(seen[worker])


async def test_one_hop_for_many_steps(monkeypatch):
    """While the loop is busy, a thread that counts sends it one call, not one for each step."""
    async with Node("app") as app, app.subscribe(Worker.ProgressChanged) as events:
        worker = await app.start_worker(anyio.sleep_forever)

        def count():
            for _ in range(1000):
                worker.advance()

        thread = threading.Thread(target=count)
        thread.start()
        thread.join()  # the loop is blocked meanwhile
        assert app._creche_nursery.bridge.in_flight == 1
        assert (await anext(events)).worker is worker
        assert worker.completed_steps == 1000
        worker.cancel()


async def test_nobody_listens_to_progress(monkeypatch):
    """If nobody listens to progress, no event of it is made, although changes are subscribed to."""

    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(Worker.ProgressChanged, "__init__", refuse)
    app = Listener()
    async with app.subscribe(Worker.StateChanged, tree=True) as events, app:
        await app.run_worker(work)
        worker = app.run_worker(work)
        worker.advance()
        await anyio.to_thread.run_sync(worker.advance)
        await worker
        assert len([await anext(events) for _ in range(6)]) == 6


# tracking


async def items(number):
    for each in range(number):
        await anyio.lowlevel.checkpoint()
        yield each


async def test_track():
    """Each item counts once it has been processed; the total comes from the length."""
    async with Node() as app:
        worker = app.run_worker(anyio.sleep_forever)
        for item in worker.track("abc"):
            assert worker.completed_steps == "abc".index(item)
            assert worker.total_steps == 3
        assert worker.completed_steps == 3
        for _ in worker.track(range(5)):  # adds to the total
            break  # this one was not processed
        assert (worker.completed_steps, worker.total_steps) == (3, 8)
        worker.update(0, None)
        assert list(worker.track(each for each in range(2))) == [0, 1]
        assert (worker.completed_steps, worker.total_steps) == (2, None)
        assert list(worker.track(iter([1, 2]))) == [1, 2]  # an iterator with a length hint
        assert (worker.completed_steps, worker.total_steps) == (4, 4)
        assert list(worker.track(iter(()), 4)) == []
        assert (worker.completed_steps, worker.total_steps) == (4, 8)
        with pytest.raises(WorkerError, match=r"^track\(\) takes an iterable or an async one, not"):
            worker.track(5)
        worker.cancel()


async def test_track_async():
    """An async iterable is tracked in the same way."""
    async with Node() as app:
        worker = app.run_worker(anyio.sleep_forever)
        got = []
        async for item in worker.track(items(3), 4):
            assert worker.completed_steps == item
            got.append(item)
        assert got == [0, 1, 2]
        assert (worker.completed_steps, worker.total_steps) == (3, 4)
        async for _ in aiter(worker.track(items(0))):
            raise AssertionError
        assert (worker.completed_steps, worker.total_steps) == (3, 4)
        worker.cancel()


# when cancellation was requested


async def test_cancelled_at():
    """cancelled_at is the time of the first request, from any thread, and None without one."""
    async with Node() as app:
        worker = await app.start_worker(anyio.sleep_forever)
        done = app.run_worker(work)
        before = anyio.current_time()
        assert worker.cancelled_at is None
        worker.cancel()
        after = anyio.current_time()
        assert before <= worker.cancelled_at <= after
        first = worker.cancelled_at
        worker.cancel()
        assert worker.cancelled_at == first
        await done
        done.cancel()
        assert done.cancelled_at is None
        other = await app.start_worker(anyio.sleep_forever)
        await anyio.to_thread.run_sync(other.cancel)
        assert other.cancelled_at >= after - 0.001
    queued = Node().run_worker(work, start=False)
    queued.cancel()
    assert queued.cancelled_at is not None


# random programs

ACTS = st.one_of(
    st.tuples(
        st.just("run"),
        st.integers(0, 3),
        st.sampled_from(["return", "raise", "sleep", "spawn", "deaf"]),
        st.integers(0, 3),
        st.booleans(),
    ),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("turn"), st.integers(1, 4)),
    st.tuples(st.just("mount"), st.integers(0, 3)),
    st.tuples(st.just("remove"), st.integers(0, 3)),
    st.tuples(st.just("listen"), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("read"), st.integers(0, 5), st.integers(0, 3)),
)


class Program:
    """A random program. The work itself and the handlers record what happens."""

    def __init__(self):
        self.nodes = []
        self.workers = []
        self.done = []  # by the bodies: which worker entered or left, in order
        self.told = {}  # by the handlers of each node
        self.heard = []  # by subscriptions: each, its node, its reach, its first number, its events
        self.stack = AsyncExitStack()

    def make_node(self):
        node = Listener(f"n{len(self.nodes)}")
        self.nodes.append(node)
        return node

    def body(self, end, turns, node):
        async def run():
            me = get_current_worker()
            self.done.append((me, "enters"))
            try:
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                if end == "spawn":
                    self.workers.append(node.run_worker(self.body("return", 1, node)))
                if end == "sleep":
                    await anyio.sleep_forever()
                if end == "deaf":
                    me.cancel()
                if end == "raise":
                    raise ValueError
            finally:
                self.done.append((me, "leaves"))

        return run

    def pick(self, number):
        nodes = [node for node in self.nodes if not node.is_finished]
        return nodes[number % len(nodes)]

    async def act(self, kind, number, *options):
        node = self.pick(number)
        if kind == "run":
            end, turns, start = options
            work = self.body(end, turns, node)
            self.workers.append(node.run_worker(work, exit_on_error=False, start=start))
        elif kind == "cancel" and self.workers:
            self.workers[number % len(self.workers)].cancel()
        elif kind == "turn":
            await settle(number)
        elif kind == "mount":
            await node.mount(self.make_node())
        elif kind == "remove" and node.parent is not None:
            await node.remove()
        elif kind == "listen":
            await self.listen(node, tree=options[0])
        elif kind == "read":
            await self.read(self.heard[number % len(self.heard)], *options)

    async def listen(self, node, *, tree):
        since = next(events_module._numbers)
        events = await self.stack.enter_async_context(
            node.subscribe(Worker.StateChanged, tree=tree)
        )
        self.heard.append((events, node, tree, since, []))

    async def read(self, heard, turns):
        """Read for some turns, then be cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, heard[0], heard[-1])
            await settle(turns)
            tasks.cancel_scope.cancel()

    async def run(self, acts, cancel):
        root = self.make_node()
        async with self.stack:
            await self.listen(root, tree=True)
            await self.listen(root, tree=False)
            async with root:
                for act in acts:
                    await self.act(*act)
                if cancel:
                    root.cancel()
                await settle()
                for worker in self.workers:
                    worker.cancel()
            for events, *_, seen in self.heard:
                seen.extend(await rest(events))


def path(node):
    """Yield the node and all its ancestors."""
    while node is not None:
        yield node
        node = node.parent


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(acts=st.lists(ACTS, max_size=20), cancel=st.booleans())
def test_subscribers_see_exactly_what_happened(backend, acts, cancel):
    """Whatever happens, each subscription gets each change exactly once, in order."""
    program = Program()
    anyio.run(program.run, acts, cancel, **backend)
    everything = program.heard[0][-1]
    numbers = [event.number for event in everything]
    assert numbers == sorted(numbers)
    for node in program.nodes:  # compared with the handlers
        own = [event for event in everything if event.worker.node is node]
        assert [(event.worker, event.state) for event in own] == node.told
    lived = [
        (event.worker, "enters" if event.state is RUNNING else "leaves")
        for event in everything
        if RUNNING in {event.state, event.previous}
    ]
    assert lived == program.done  # compared with the work itself
    for worker in program.workers:
        own = [event for event in everything if event.worker is worker]
        states = [event.state for event in own]
        assert [event.previous for event in own] == [None, *states[:-1]]
        assert states[0] is PENDING
        assert states[-1] is worker.state
    for _, node, tree, since, seen in program.heard:  # compared with each other
        assert seen == [
            event
            for event in everything
            if event.number > since
            and (node in path(event.worker.node) if tree else node is event.worker.node)
        ]
