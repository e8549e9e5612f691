"""What is asked of one worker alone: to end, its result, its number, and what happens to it."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from functools import partial

import anyio
import pytest

from creche import DeadlockError, Node, Worker, WorkerError, get_current_worker, work
from helpers import (
    CANCELLED,
    ERROR,
    PENDING,
    RUNNING,
    SUCCESS,
    ExceptionGroup,
    Meeting,
    counted,
    no_collection,
    settle,
)


async def fail():
    raise ValueError("no luck")


async def one():
    return 1


async def read(stream):
    return [
        event.state if isinstance(event, Worker.StateChanged) else event.worker.completed_steps
        async for event in stream
    ]


# The end, the result and the number of a worker.


@pytest.mark.parametrize(
    ("job", "state"), [(one, SUCCESS), (fail, ERROR), (anyio.sleep_forever, CANCELLED)]
)
async def test_join_raises_for_no_outcome(job, state):
    """join() returns the worker however it ends, and again after that."""
    async with Node("app") as app:
        worker = app.run_worker(job, exit_on_error=False)
        if state is CANCELLED:
            worker.cancel()
        assert await worker.join() is worker
        assert worker.state is state
        assert await worker.join() is worker


async def test_join_of_oneself():
    """join() raises for a wait that cannot end, and outside the loop."""
    async with Node("app") as app:
        with pytest.raises(WorkerError, match="never started"):
            await app.run_worker(one, start=False).join()
        worker = app.run_worker(lambda: get_current_worker().join(), exit_on_error=False)
        await worker.join()
    assert isinstance(worker.error, DeadlockError)


async def test_result_or():
    """result_or() returns the default for an unfinished, failed or cancelled worker."""
    async with Node("app", exit_on_error=False) as app:
        workers = [app.run_worker(job) for job in (one, fail, anyio.sleep_forever)]
        assert [worker.result_or(5) for worker in workers] == [5, 5, 5]
        await workers[1].join()
        workers[2].cancel()
    assert [worker.result_or(5) for worker in workers] == [1, 5, 5]
    none = Worker(app, one)
    assert none.result_or("none") == "none"


async def test_numbers_grow():
    """Each worker has its own number, and later workers have higher ones."""
    async with Node("app") as app, Node("page", parent=app) as page:
        numbers = [node.run_worker(one).number for node in (app, page, app)]
        assert numbers == list(range(numbers[0], numbers[0] + 3))
        assert Worker(app, one).number == numbers[-1] + 1


# The stream of one worker.


async def test_a_stream_begins_with_how_things_stand():
    """A stream begins with the current state, and ends after the final change."""
    go = anyio.Event()

    async def job():
        worker.update(total_steps=2)
        worker.advance()
        await go.wait()
        worker.advance()

    async with Node("app") as app:
        worker = app.run_worker(job)
        other = app.run_worker(one)
        async with worker.subscribe() as pending:
            await settle()
            async with worker.subscribe() as running, worker.subscribe(Worker.StateChanged) as few:
                go.set()
                assert await read(running) == [RUNNING, 2, SUCCESS]
                assert await read(few) == [RUNNING, SUCCESS]
            assert await read(pending) == [PENDING, RUNNING, 2, SUCCESS]
        assert other.state is SUCCESS
        async with worker.subscribe() as late:
            assert await read(late) == [2, SUCCESS]
    async with worker.subscribe() as closed:
        assert await read(closed) == [2, SUCCESS]


async def test_a_stream_that_is_opened_before_the_worker_is_added():
    """A stream that is opened early begins with the first announcement."""
    async with Node("app") as app:
        worker = Worker(app, one)
        async with worker.subscribe(Worker.StateChanged) as stream:
            app.workers.add_worker(worker)
            events = [event async for event in stream]
    assert [event.state for event in events] == [PENDING, RUNNING, SUCCESS]
    assert events[0].context is not None


@pytest.mark.parametrize("way", ["cancelled", "refused", "with the node", "dropped", "unstarted"])
async def test_a_stream_ends_however_the_worker_does(way):
    """A stream ends however its worker ends, even if the work never ran."""
    async with Node("app") as app:
        if way == "refused":
            app.cancel()
        if way == "dropped":
            app.group("few", 1, "drop").run_worker(anyio.sleep_forever, daemon=True)
        worker = Worker(app, anyio.sleep_forever, group="few")
        async with worker.subscribe(Worker.StateChanged) as stream, anyio.create_task_group() as tg:
            app.workers.add_worker(worker, start=way != "unstarted", exclusive=False)
            if way == "with the node":
                tg.start_soon(app.shutdown)
            elif way in ("cancelled", "unstarted"):
                worker.cancel()
            assert (await read(stream))[-1] is CANCELLED


async def test_a_stream_costs_others_nothing():
    """No event is created for a worker that nobody follows."""
    gate = anyio.Event()
    async with Node("app") as app:
        followed = app.run_worker(gate.wait)
        await settle()
        counts = []
        for streams in (0, 0, 20):  # what is made once is made in the first round
            opened = [followed.subscribe() for _ in range(streams)]
            for each in opened:
                await each.__aenter__()
            with counted() as calls:
                for _ in range(10):
                    app.run_worker(one)
                await settle()
            counts.append(calls[0])
        assert counts[1] == counts[2]
        gate.set()
        for each in opened:
            assert (await read(each))[-1] is SUCCESS
            await each.__aexit__(None, None, None)


@pytest.mark.parametrize("followers", [1, 20])
async def test_progress_that_waits_is_not_told_again(followers):
    """However often a worker advances, each follower that has not read yet gets one event."""
    steps = [0, 1_000, 1]

    async def job():
        for number in steps:
            with counted() as calls:
                for _ in range(number):
                    get_current_worker().advance()
            costs.append(calls[0])
            await go.wait()

    costs, go = [], anyio.Event()
    async with Node("app") as app:
        worker = app.run_worker(job)
        streams = [worker.subscribe(Worker.ProgressChanged) for _ in range(followers)]
        for stream in streams:
            await stream.__aenter__()
        go.set()
        await worker.join()
        assert costs[1] <= 2 * 1_000 + 20 * followers + 40  # get_current_worker() and advance()
        for stream in streams:
            assert [event.worker.completed_steps async for event in stream] == [1_001]
            await stream.__aexit__(None, None, None)


async def test_progress_is_news_again_once_it_was_read():
    """Progress is reported again after a read, to each follower, also a late one."""
    gates = [anyio.Event() for _ in range(4)]

    async def job():
        for gate in gates:
            await gate.wait()
            get_current_worker().advance()
        await anyio.sleep_forever()

    async def steps_of(stream):
        return [event.worker.completed_steps for event in stream.take_all()]

    async with Node("app") as app:
        worker = app.run_worker(job, daemon=True)
        async with worker.subscribe(Worker.ProgressChanged) as first:
            gates[0].set()
            await settle()
            async with worker.subscribe(Worker.ProgressChanged) as second:
                assert await steps_of(second) == [1]
                gates[1].set()
                await settle()
                assert await steps_of(second) == [2]
            assert await steps_of(first) == [2]
            gates[2].set()
            await settle()
            assert await steps_of(first) == [3]
        async with worker.subscribe(Worker.ProgressChanged) as third:
            assert await steps_of(third) == [3]
            gates[3].set()
            await settle()
            assert await steps_of(third) == [4]


async def test_a_stream_that_is_left_hears_no_more():
    """A closed stream gets no more events, and keeps nothing alive."""
    gate = anyio.Event()
    async with Node("app") as app:
        worker = app.run_worker(gate.wait)
        async with worker.subscribe() as stream:
            pass
        gate.set()
        await worker.join()
        assert await read(stream) == []


async def test_who_followed_keeps_no_worker_alive():
    """A stream keeps its worker alive only while there is something to report."""
    with no_collection():
        async with Node("app") as app:
            worker = app.run_worker(one)
            async with worker.subscribe() as stream:
                await read(stream)
            reference = weakref.ref(worker)
            del worker, stream
            await settle()
            assert reference() is None


async def test_a_stream_names_its_worker():
    """A stream names its worker in its repr and in errors."""
    async with Node("app") as app:
        stream = app.run_worker(one).subscribe(Worker.StateChanged)
        assert repr(stream) == "<Subscription to Worker.StateChanged of worker 'one'>"


async def test_what_is_no_message():
    """subscribe() of a worker refuses what is not a message, like that of a node."""
    async with Node("app") as app:
        with pytest.raises(WorkerError, match="takes classes of messages"):
            app.run_worker(one).subscribe(int)


# The last progress.


async def test_the_last_progress_of_a_thread_is_told_before_the_end():
    """A reader gets the last progress before the final change."""
    meeting = Meeting()

    def job():
        meeting()
        for _ in range(100):
            get_current_worker().advance()

    async with Node("app") as app:
        worker = await app.start_worker(job, thread=True)
        async with worker.subscribe() as mine, app.subscribe(Worker.ProgressChanged) as all_of_app:
            await meeting.until_arrived()
            meeting.go.set()
            events = await read(mine)
        assert events[-2:] == [100, SUCCESS]
    told = [event.worker.completed_steps async for event in all_of_app]
    assert told == [] or told[-1] == 100


async def test_the_last_progress_that_is_still_on_its_way(anyio_backend):
    """Progress from a bare callback, one turn late, is reported before the final change."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio has nothing like it")

    async def job():
        asyncio.get_running_loop().call_soon(get_current_worker().advance)
        await asyncio.sleep(0)

    async with Node("app") as app:
        worker = app.run_worker(job)
        async with worker.subscribe() as mine, app.subscribe(Worker.ProgressChanged) as all_of_app:
            assert await read(mine) == [PENDING, RUNNING, 1, SUCCESS]
            assert [event.worker for event in all_of_app.take_all()] == [worker]


# What the node says of errors.


@pytest.mark.parametrize("root", [None, True, False])
@pytest.mark.parametrize("page", [None, True, False])
@pytest.mark.parametrize("call", [None, True, False])
async def test_whose_word_counts_on_errors(root, page, call):
    """The first handler counts: the call's, the node's or one above. If none, the root fails."""

    class Page(Node):
        @work(exit_on_error=call)
        async def decorated(self):
            raise ValueError("no luck")

    def add(node):
        worker = Worker(node, fail, exit_on_error=call)
        node.workers.add_worker(worker)
        return worker

    def start(node):
        return node.run_worker(fail, exit_on_error=call)

    said = next((word for word in (call, page, root) if word is not None), True)
    for make in (start, Page.decorated, add):
        caught = []
        try:
            async with (
                Node("app", exit_on_error=root) as app,
                Page("page", parent=app, exit_on_error=page) as node,
            ):
                worker = make(node)
                assert worker.exit_on_error is said
        except ExceptionGroup as group:
            caught.append(group)
        assert bool(caught) is said


async def test_a_mounted_node_takes_the_word_of_the_one_above():
    """A mounted node, which has no parent when it is created, uses the setting of the one above."""
    async with Node("app", exit_on_error=False) as app:
        panel = await app.mount(Node("panel"))
        assert panel.run_worker(fail).exit_on_error is False
        waiting = Node("page", parent=app)
        assert waiting.run_worker(fail, start=False).exit_on_error is False


# A failure names the call.


async def fetch(path, *, retries=0):
    raise OSError(f"no {path} in {retries + 1}")


class Fetcher(Node):
    @work
    async def fetch(self, path):
        raise OSError(path)


@pytest.mark.parametrize("way", ["partial", "decorated", "in a thread"])
async def test_a_failure_names_the_call(way, caplog):
    """The log says at once which of many calls of one function has failed."""
    caplog.set_level(logging.ERROR, "creche")
    told = []
    with pytest.raises(ExceptionGroup):
        async with Fetcher("app") as app:
            if way == "partial":
                worker = app.run_worker(partial(fetch, "/4", retries=2))
            elif way == "decorated":
                worker = app.fetch("/4")
            else:
                worker = app.run_worker(partial(int, "/4"), thread=True)
            with anyio.CancelScope(shield=True):
                await worker.join()
                told += [record.getMessage() for record in caplog.records]
    call = {"partial": "fetch('/4', retries=2)", "decorated": "fetch('/4')"}.get(way, "int('/4')")
    name = call.partition("(")[0]
    assert told == [f"worker {name!r} failed in {call}, and with it node 'app'"]
    assert caplog.records[0].creche_number == worker.number


async def test_a_failure_of_what_is_called_names_no_more_than_it_can():
    """A failed partial of an object without a name can be described."""

    class Nameless:
        async def __call__(self, number):
            raise ValueError(number)

    async with Node("app", exit_on_error=False) as app:
        worker = await app.run_worker(partial(Nameless(), 1), "some").join()
    assert worker.state is ERROR


# What is called as it ends.


@pytest.mark.parametrize(
    ("job", "state"), [(one, SUCCESS), (fail, ERROR), (anyio.sleep_forever, CANCELLED)]
)
async def test_done_callbacks(job, state):
    """Each callback is called once, in the step of the worker's end, before waiters continue."""
    told = []
    async with Node("app") as app:
        worker = app.run_worker(job, exit_on_error=False)
        for number in (1, 2):
            worker.add_done_callback(lambda ended, number=number: told.append((number, ended)))
        if state is CANCELLED:
            worker.cancel()
        await worker.join()
        assert told == [(1, worker), (2, worker)]
        assert worker.state is state
        worker.add_done_callback(told.append)
        assert told.pop() is worker
    assert len(told) == 2


async def test_done_callback_that_fails(caplog):
    """An error of a done callback is logged, and affects neither the worker nor other callbacks."""
    told = []

    def bad(worker):
        raise ValueError("no luck")

    async with Node("app") as app:
        worker = app.run_worker(one)
        worker.add_done_callback(bad)
        worker.add_done_callback(told.append)
        assert await worker == 1
    assert told == [worker]
    (record,) = (each for each in caplog.records if "callback" in each.getMessage())
    assert record.levelno == logging.ERROR
    assert "test_done_callback_that_fails" in record.getMessage()
    assert "worker 'one'" in record.getMessage()


async def test_done_callback_from_a_thread():
    """A callback added in a thread runs on the loop, or in the thread if the node has closed."""
    told = []
    threads = []

    def call(worker):
        threads.append(threading.get_ident())
        told.append(worker)

    async with Node("app") as app:
        worker = app.run_worker(anyio.sleep_forever)
        await anyio.to_thread.run_sync(worker.add_done_callback, call)
        worker.cancel()
    await anyio.to_thread.run_sync(worker.add_done_callback, call)
    assert told == [worker, worker]
    assert threads[0] == threading.get_ident() != threads[1]
