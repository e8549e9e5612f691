"""How a worker is created, what it can run, and what its properties say."""

from __future__ import annotations

import contextvars
import functools
import gc
import weakref

import anyio
import pytest

from creche import (
    NoActiveWorker,
    Node,
    Worker,
    WorkerCancelled,
    WorkerDeclarationError,
    WorkerError,
    WorkerFailed,
    active_worker,
    get_current_worker,
    work,
)
from helpers import CANCELLED, PENDING, RUNNING, SUCCESS, Listener, settle

variable = contextvars.ContextVar("variable", default="unset")


async def five():
    await anyio.lowlevel.checkpoint()
    return 5


async def double(number, *, plus=0):
    return 2 * number + plus


class AsyncCallable:
    async def __call__(self):
        return 5


class Awaitable:
    def __await__(self):
        return five().__await__()


KINDS = {
    "coroutine function": lambda: five,
    "coroutine object": five,
    "partial": lambda: functools.partial(double, 2, plus=1),
    "partial of a partial": lambda: functools.partial(functools.partial(double, 2), plus=1),
    "async callable": AsyncCallable,
    "awaitable": Awaitable,
    "lambda": lambda: lambda: five(),  # noqa: PLW0108 (a lambda is meant)
    "partial of an async callable": lambda: functools.partial(AsyncCallable()),
}


@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_kinds_of_work(kind, thread):
    """Each kind of async work runs on the event loop, and in a thread on a loop of its own."""
    async with Listener() as app:
        worker = app.run_worker(KINDS[kind](), thread=thread)
        assert (worker.state, worker.result) == (PENDING, None)
        assert await worker.wait() == 5
        assert (worker.state, worker.result, worker.error) == (SUCCESS, 5, None)
        await settle()
        assert app.told_of(worker) == [PENDING, RUNNING, SUCCESS]


@pytest.mark.parametrize("kind", KINDS)
async def test_kinds_of_work_called_off(kind):
    """Each kind of work that is cancelled before it begins is closed, with no warning."""
    async with Node() as app:
        worker = app.run_worker(KINDS[kind]())
        worker.cancel()
        assert worker.state is CANCELLED
        with pytest.raises(WorkerCancelled):
            await worker


@pytest.mark.parametrize("bad", [5, "text", None, ValueError()])
async def test_bad_work(bad):
    """run_worker() raises WorkerError for an object that cannot be run."""
    async with Node() as app:
        with pytest.raises(WorkerError, match="cannot make a worker of"):
            app.run_worker(bad)
        assert len(app.workers) == 0


async def test_bad_node():
    """A worker needs a node, and closes the coroutine that it cannot run."""
    with pytest.raises(WorkerError, match="node must be a Node, not 'app'"):
        Worker("app", five())


class Counter(Worker[int]):
    """A worker that overrides run()."""

    async def run(self):
        self.update(total_steps=2)
        self.advance()
        await anyio.lowlevel.checkpoint()
        self.advance()
        return self.completed_steps


async def test_subclass():
    """A subclass implements run() and needs no work."""
    async with Listener() as app:
        worker = Counter(app, name="counter")
        app.workers.add_worker(worker)
        assert await worker == 2
        assert worker.progress == 100.0
        await settle()
        assert app.told_of(worker) == [PENDING, RUNNING, SUCCESS]


@pytest.mark.parametrize("thread", [False, True])
async def test_subclass_round_super(thread):
    """A subclass may run the work through super().run(), in a thread too."""

    class Doubled(Worker[int]):
        async def run(self):
            assert self.state is RUNNING
            return 2 * await super().run()

    async with Listener() as app:
        worker = Doubled(app, five, thread=thread)
        app.workers.add_worker(worker)
        assert await worker == 10
        await settle()
        assert app.told_of(worker) == [PENDING, RUNNING, SUCCESS]


async def test_attributes_are_as_given():
    """A worker has the attributes that it was given, and its repr shows them."""
    async with Node("app") as app:
        worker = app.run_worker(
            five, "name", "group", "description", exit_on_error=False, start=False
        )
        assert (worker.node, worker.name, worker.group) == (app, "name", "group")
        assert (worker.description, worker.exit_on_error) == ("description", False)
        assert repr(worker) == "<Worker 'name' PENDING group='group' node='app'>"
        unnamed = Worker(app, five)
        assert (unnamed.name, unnamed.group, unnamed.description) == ("", "default", "")
        assert app.run_worker(functools.partial(five)).name == "five"
        assert app.run_worker(AsyncCallable()).name == ""


async def test_flags_follow_the_state():
    """is_running and is_finished follow from the state."""
    gate = anyio.Event()
    async with Node() as app:
        worker = app.run_worker(gate.wait)
        assert (worker.is_running, worker.is_finished) == (False, False)
        await settle()
        assert (worker.is_running, worker.is_finished) == (True, False)
        gate.set()
        await worker
        assert (worker.is_running, worker.is_finished) == (False, True)


async def test_times():
    """Times are read from the loop's clock, and elapsed is the time between start and finish."""
    gate = anyio.Event()
    app = Node()
    early = app.run_worker(five, start=False)
    assert early.elapsed == 0.0
    async with app:
        worker = app.run_worker(gate.wait)
        assert worker.created_at <= anyio.current_time()
        assert (worker.started_at, worker.finished_at, worker.elapsed) == (None, None, 0.0)
        await settle()
        assert 0.0 <= worker.elapsed <= anyio.current_time() - worker.started_at
        gate.set()
        await worker
        assert worker.created_at <= worker.started_at <= worker.finished_at
        assert worker.elapsed == worker.finished_at - worker.started_at


async def test_update_sets():
    """update() sets the steps, advance() adds to them, and progress is clamped to 0 to 100."""
    async with Node() as app:
        worker = app.run_worker(anyio.sleep_forever)
        assert (worker.completed_steps, worker.total_steps, worker.progress) == (0, None, 0.0)
        worker.update(5)
        worker.update(5)
        assert worker.completed_steps == 5
        assert worker.progress == 0.0
        worker.update(total_steps=20)
        assert (worker.completed_steps, worker.progress) == (5, 25.0)
        worker.advance(5)
        worker.advance()
        assert worker.completed_steps == 11
        worker.update(30)
        assert worker.progress == 100.0
        worker.update(-5)
        assert worker.progress == 0.0
        worker.update(1, total_steps=0)
        assert worker.progress == 0.0
        worker.update(total_steps=-5)
        assert worker.total_steps == 0
        worker.update(total_steps=None)
        assert (worker.total_steps, worker.completed_steps) == (None, 1)
        worker.cancel()


async def test_cancelled_event():
    """cancel() sets cancelled_event, whether it was first accessed before or after."""
    async with Node() as app:
        worker = app.run_worker(anyio.sleep_forever)
        assert not worker.cancelled_event.is_set()
        worker.cancel()
        assert worker.cancelled_event.is_set()
        other = app.run_worker(anyio.sleep_forever)
        other.cancel()
        assert other.cancelled_event.is_set()


async def test_current_worker():
    """Work and the tasks that it spawns get the current worker; other code gets an error."""
    seen = []

    async def look():
        seen.append(get_current_worker())

    async def spread():
        await look()
        async with anyio.create_task_group() as group:
            group.start_soon(look)

    async with Node() as app:
        worker = app.run_worker(spread)
        await worker
        assert seen == [worker, worker]
        assert active_worker.get(None) is None
        with pytest.raises(NoActiveWorker, match="no worker runs this code"):
            get_current_worker()


async def test_check_cancelled_in_async_work():
    """check_cancelled() raises once cancellation was requested, and the worker ends CANCELLED."""

    async def busy():
        worker = get_current_worker()
        worker.check_cancelled()
        worker.cancel("by itself")
        worker.check_cancelled()

    async with Node() as app:
        worker = app.run_worker(busy)
        with pytest.raises(WorkerCancelled, match="worker 'busy' was cancelled: by itself"):
            await worker
    assert worker.state is CANCELLED


async def test_context_of_the_creator():
    """A worker runs in the context of its creation, however late it starts."""

    async def read():
        return variable.get()

    async with Node() as app:
        app.group("one", limit=1)
        gate = anyio.Event()
        variable.set("first")
        holder = app.run_worker(gate.wait, group="one")
        early = app.run_worker(read, group="one")
        late = app.run_worker(read, start=False)
        later = app.run_worker(read, group="one", start=False)
        direct = Worker(app, read)
        variable.set("second")
        app.workers.start_all()
        app.workers.add_worker(direct, exclusive=False)
        gate.set()
        assert [await each for each in (early, late, later, direct)] == ["first"] * 4
        assert await app.run_worker(read) == "second"
        assert holder.state is SUCCESS
        variable.set("unset")


async def test_wait_for_a_worker_that_was_never_started():
    """Waiting for a worker that was never started raises an error that says how to start it."""
    async with Node() as app:
        worker = app.run_worker(five, start=False, name="lazy")
        with pytest.raises(
            WorkerError, match="cannot wait for worker 'lazy', which was never started; start it"
        ):
            await worker.wait()


async def test_wait_is_a_checkpoint():
    """wait() is a checkpoint, even if the worker has ended."""
    async with Node() as app:
        worker = app.run_worker(five)
        await worker
        with anyio.CancelScope() as scope:
            scope.cancel()
            await worker
        assert scope.cancelled_caught


async def test_finished_worker_lets_go():
    """A finished worker does not keep its work alive."""

    class Work:
        async def __call__(self):
            return 5

    async with Node() as app:
        thing = Work()
        ref = weakref.ref(thing)
        worker = app.run_worker(thing)
        del thing
        await worker
        await settle()
        gc.collect()
        assert ref() is None
        assert worker.result == 5


# the decorator


class App(Listener):
    def __init__(self):
        super().__init__("app")
        self.calls = []

    @work
    async def bare(self, number, *, plus=0):
        return 2 * number + plus

    @work(name="named", group="g", exit_on_error=False, description="told", daemon=True)
    async def optioned(self):
        await anyio.sleep_forever()

    @work(thread=True)
    def threaded(self, number):
        return number + 1

    @work(thread=True)
    async def on_a_loop_of_its_own(self):
        return 7

    @work(exclusive=True)
    async def search(self, text):
        self.calls.append(text)
        await anyio.sleep_forever()

    @work(exclusive=True)
    async def save(self):
        await anyio.sleep_forever()

    @work(limit=1)
    async def download(self):
        await anyio.sleep_forever()

    @work(overflow="drop", limit=1, group="button")
    async def press(self):
        await anyio.sleep_forever()


@work
async def on_a_function(node, number):
    return number


async def test_decorator():
    """@work turns methods and functions into workers, with their arguments and results."""
    async with App() as app:
        worker = app.bare(2, plus=1)
        assert (worker.name, worker.group) == ("bare", "default")
        assert worker.description == "bare(2, plus=1)"
        assert await worker == 5
        assert await app.threaded(1) == 2
        assert await app.on_a_loop_of_its_own() == 7
        assert await on_a_function(app, 3) == 3
        optioned = app.optioned()
        assert (optioned.name, optioned.group) == ("named", "g")
        assert (optioned.description, optioned.exit_on_error) == ("told", False)
        assert optioned.daemon
        assert App.bare.__name__ == "bare"


async def test_decorator_exclusive():
    """A new call of an exclusive function cancels the earlier call of that function only."""
    async with App() as app:
        saving = app.save()
        first = app.search("a")
        await settle()
        second = app.search("ab")
        await settle()
        assert [w.state for w in (saving, first, second)] == [RUNNING, CANCELLED, RUNNING]
        assert app.calls == ["a", "ab"]
        assert (saving.group, first.group) == ("save", "search")
        app.workers.cancel_all()


async def test_decorator_limit():
    """limit= and overflow= of @work configure the group of the function."""
    async with App() as app:
        first, second = app.download(), app.download()
        await settle()
        assert (first.state, second.state) == (RUNNING, PENDING)
        assert app.group("download").limit == 1
        pressed, again = app.press(), app.press()
        assert again.state is CANCELLED
        assert again.cancel_reason == "dropped: its group is full"
        assert pressed.group == "button"
        app.workers.cancel_all()


async def test_description_of_arguments_without_repr():
    """An argument whose repr fails does not keep the work from starting."""

    class Broken:
        def __repr__(self):
            raise ValueError

    async with App() as app:
        assert on_a_function(app, Broken()).description == "on_a_function(<unprintable Broken>)"


def test_declaration_errors():
    """@work refuses a plain function without thread=True, and anything but a function."""
    with pytest.raises(WorkerDeclarationError, match="'plain' is not async; add thread=True"):

        @work
        def plain(self):
            pass

    with pytest.raises(WorkerDeclarationError, match="@work takes a function, not 'name'"):
        work("name")


async def test_decorated_function_without_a_signature():
    """Without a signature, arguments that do not fit fail the worker, not the call."""

    def plain(node):
        return node.name

    plain.__signature__ = 5
    start = work(plain, thread=True)
    async with Node("app") as app:
        assert await start(app) == "app"
        worker = start(app, "one too many")
        worker.exit_on_error = False
        with pytest.raises(WorkerFailed, match="takes 1 positional argument but 2 were given"):
            await worker


async def test_decorated_function_needs_a_node():
    """Calling a decorated function raises WorkerError if the first argument is not a node."""
    with pytest.raises(WorkerError, match="its first argument must be a Node, not 5"):
        on_a_function(5, 6)
    with pytest.raises(WorkerError, match="must be a Node, not None"):
        on_a_function()
