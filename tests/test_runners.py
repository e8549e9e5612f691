"""Workers that share a task cannot notice it, and nothing passes from one to the next."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import logging
import sys
import traceback
import weakref
from contextlib import suppress

import anyio
import pytest
from anyio import from_thread, lowlevel, to_thread

from creche import Node, WorkerCancelled, format_tree, get_current_worker
from creche._core.cancelling import request
from creche._ground import backend
from creche._running.runner import IDLE, MOST, Runner, Runners
from helpers import (
    CANCELLED,
    ERROR,
    HAS_GIL,
    PENDING,
    RENDEZVOUS,
    RUNNING,
    SUCCESS,
    ExceptionGroup,
    fail,
    leaves,
    no_collection,
    settle,
    until,
)

try:
    import sniffio
except ImportError:  # Trio, which depends on it, is not installed
    sniffio = None

pytestmark = pytest.mark.skipif(
    not HAS_GIL, reason="no task is shared where references are not counted"
)
since_311 = pytest.mark.skipif(sys.version_info < (3, 11), reason="new in 3.11")
since_312 = pytest.mark.skipif(sys.version_info < (3, 12), reason="new in 3.12")

variable = contextvars.ContextVar("variable", default="unset")


@pytest.fixture
def on_asyncio(anyio_backend):
    """Run the test on asyncio only."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio has nothing like it")


@pytest.fixture
def on_trio(anyio_backend):
    """Run the test on Trio only."""
    if anyio_backend[0] != "trio":
        pytest.skip("asyncio has nothing like it")


async def return_at_once():
    """Return in the first step."""


def current_runner():
    """Return what runs the current worker, without holding on to its task."""
    return get_current_worker()._handle


async def tell_runner():
    """Return what ran it, in the first step."""
    return current_runner()


async def suspend_and_tell():
    """Return what ran it, in a later step."""
    await lowlevel.checkpoint()
    return current_runner()


class Place:
    """A kind of task for a worker, and whether the work suspends before the check."""

    def __init__(self, task, suspends):
        self.task = task
        self.suspends = suspends

    async def launch(self, app, look, **options):
        """Launch work that awaits ``look()``, and assert that its task is of the expected kind."""
        expected, gate = None, anyio.Event()
        if self.task == "tenth":
            for n in range(9):
                ran = await app.run_worker((tell_runner, suspend_and_tell)[n % 2])
                assert ran is expected or expected is None
                expected = ran
        if self.task == "own":
            for _ in range(MOST):
                app.run_worker(gate.wait)
            await settle()

        async def work():
            gate.set()
            ran = current_runner()
            assert type(ran) is (anyio.TaskHandle if self.task == "own" else Runner)
            assert ran is expected or expected is None
            del ran
            if self.suspends:
                await lowlevel.checkpoint()
            return await look()

        return app.run_worker(work, "w", **options)

    async def run(self, look, **options):
        """Run work to its end in a node made for it."""
        async with Node("app") as app:
            return await (await self.launch(app, look, **options))


WHERE = {
    f"{task}, {how}": (task, how == "suspended")
    for task in ("fresh", "tenth", "own")
    for how in ("at once", "suspended")
}


@pytest.fixture(params=list(WHERE))
def place(request):
    """Run a test in a fresh task, in one that has run nine workers, and in a worker's own task."""
    return Place(*WHERE[request.param])


@pytest.fixture(params=["at once", "suspended"])
def pause(request):
    """Let work suspend before it continues, or not."""
    return lowlevel.checkpoint if request.param == "suspended" else return_at_once


def native_task(name):
    """Return the one asyncio task with this name."""
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == name]
    return task


def count_idle():
    """Return how many runners are idle."""
    return sum(task.name == IDLE for task in anyio.get_running_tasks())


async def check_next(app):
    """Check that workers still run: at once, with a suspension, and concurrently."""
    results = [app.run_worker(each) for each in (tell_runner, suspend_and_tell) * 8]
    await settle()
    assert {worker.state for worker in results} == {SUCCESS}


# What reveals the task.


async def test_the_task_has_the_name_of_the_worker(place, anyio_backend):
    """AnyIO, asyncio and Trio all give the worker's name as the name of the task."""

    async def look():
        names = {anyio.get_current_task().name}
        if anyio_backend[0] == "asyncio":
            names.add(asyncio.current_task().get_name())
        else:
            import trio  # noqa: PLC0415 (an extra)

            names.add(trio.lowlevel.current_task().name)
        return names

    assert await place.run(look) == {"app/default/w"}


async def test_the_library_is_known(place, anyio_backend):
    """AnyIO and sniffio recognize the async library that runs the work."""

    async def look():
        if sniffio is not None:
            assert sniffio.current_async_library() == anyio_backend[0]
        token = lowlevel.current_token()
        return token, anyio.get_cancelled_exc_class(), anyio.current_effective_deadline()

    expected = await look()
    assert await place.run(look) == expected


async def test_no_error_is_being_handled(place):
    """An error has no ``__context__`` but what the work itself was handling."""

    async def look():
        assert sys.exc_info() == (None, None, None)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep_forever()
        assert sys.exc_info() == (None, None, None)
        raise ValueError

    async with Node("app") as app:
        worker = await place.launch(app, look, exit_on_error=False)
        await until(lambda: worker.is_finished)
    assert type(worker.error) is ValueError
    assert worker.error.__context__ is None


async def test_traceback_of_an_error(place):
    """The traceback of an error begins in the work and shows no frame of the runner."""

    async def look():
        raise ValueError

    async with Node("app") as app:
        worker = await place.launch(app, look, exit_on_error=False)
        await until(lambda: worker.is_finished)
    frames = traceback.extract_tb(worker.error.__traceback__)
    assert [frame.name for frame in frames] == ["work", "look"]


@pytest.mark.parametrize("of", ["thread", "task", "future"])
async def test_traceback_of_an_error_from_elsewhere(place, anyio_backend, of):
    """An error from something that the work awaits keeps the frames of where it was raised."""
    if of != "thread" and anyio_backend[0] != "asyncio":
        pytest.skip("Trio has nothing like it")

    def raise_elsewhere():
        raise ValueError

    async def raise_in_task():
        raise_elsewhere()

    async def look():
        if of == "thread":
            await to_thread.run_sync(raise_elsewhere)
        elif of == "task":
            await asyncio.create_task(raise_in_task())
        else:
            future = asyncio.get_running_loop().create_future()
            try:
                raise_elsewhere()
            except ValueError as error:
                future.set_exception(error)
            await future

    async with Node("app") as app:
        worker = await place.launch(app, look, exit_on_error=False)
        await until(lambda: worker.is_finished)
    frames = traceback.extract_tb(worker.error.__traceback__)
    names = [frame.name for frame in frames]
    assert names[:2] == ["work", "look"]
    assert "raise_elsewhere" in names
    assert not [frame for frame in frames if "creche" in frame.filename.split("/")[-3:]]


async def test_where_a_worker_stands(place):
    """A snapshot with stacks shows only the frames of the work."""
    pytest.importorskip("stackscope")
    gate = anyio.Event()

    async def look():
        await gate.wait()

    async with Node("app") as app:
        await place.launch(app, look)
        await until(lambda: app.group("default").running == 1 and app.workers)
        await settle()
        ((worker,),) = [group.workers for group in app.snapshot(stacks=True).groups]
        tree = format_tree(app, stacks=True)
        gate.set()
    assert [frame.function for frame in worker.stack][:2] == ["work", "look"]
    assert "_running" not in tree
    assert "work" in tree


async def test_where_a_worker_stands_that_has_not_begun():
    """A worker that has not started has an empty stack."""
    pytest.importorskip("stackscope")
    async with Node("app") as app:
        app.run_worker(return_at_once)
        ((worker,),) = [group.workers for group in app.snapshot(stacks=True).groups]
    assert worker.stack == ()


@pytest.mark.parametrize("kind", ["trace", "profile"])
async def test_tracing(place, kind):
    """A debugger and a profiler see the same events for the work in every kind of task."""
    seen = []

    async def look():
        return 1

    def note(frame, event, arg):
        if frame.f_code is look.__code__:
            seen.append(event)
        return note if frame.f_code is look.__code__ else None

    async with Node("app") as app:
        worker = await place.launch(app, look)
        before = sys.gettrace() if kind == "trace" else sys.getprofile()
        use = sys.settrace if kind == "trace" else sys.setprofile
        use(note)
        try:
            await settle()
        finally:
            use(before)
        assert worker.result == 1
    assert seen == (["call", "line", "return"] if kind == "trace" else ["call", "return"])


# The context of a task.


async def test_variables_last_across_awaits(place):
    """A context variable keeps its value across awaits, and a reset restores the one before."""

    async def look():
        assert variable.get() == "maker's"
        token = variable.set("own")
        for _ in range(3):
            await lowlevel.checkpoint()
            assert variable.get() == "own"
            inner = variable.set("inner")
            await lowlevel.checkpoint()
            variable.reset(inner)
        variable.reset(token)
        await lowlevel.checkpoint()
        return variable.get()

    token = variable.set("maker's")
    try:
        assert await place.run(look) == "maker's"
        assert variable.get() == "maker's"
    finally:
        variable.reset(token)


async def test_variables_are_those_of_the_launch(place):
    """A worker does not see what its launcher sets after the launch."""
    token = variable.set("at launch")
    try:
        async with Node("app") as app:

            async def look():
                return variable.get()

            worker = await place.launch(app, look)
            variable.set("later")
            assert await worker == "at launch"
    finally:
        variable.reset(token)


async def test_variables_are_seen_by_what_the_work_starts(place, anyio_backend):
    """Tasks, threads, callbacks and async generators that the work starts see its variables."""

    async def note(where):
        seen[where] = variable.get()

    async def generate():
        yield variable.get()
        variable.set("generated")
        yield variable.get()

    async def look():
        variable.set("own")
        async with anyio.create_task_group() as group:
            group.start_soon(note, "task")
        seen["thread"] = await to_thread.run_sync(variable.get)
        seen["from a thread"] = await to_thread.run_sync(from_thread.run_sync, variable.get)
        if anyio_backend[0] == "asyncio":
            asyncio.get_running_loop().call_soon(lambda: seen.update(callback=variable.get()))
            await asyncio.create_task(note("native task"))
        seen["generator"] = [each async for each in generate()]
        return variable.get()

    seen = {}
    assert await place.run(look) == "generated"
    assert seen.pop("generator") == ["own", "generated"]
    assert set(seen.values()) == {"own"}
    assert variable.get() == "unset"


async def test_variables_of_one_worker_are_not_seen_by_the_next(pause):
    """What a worker sets is not seen by the next worker, by concurrent ones or by its launcher."""

    async def look(name):
        await pause()
        before = variable.get()
        variable.set(name)
        await pause()
        return before, variable.get(), current_runner()

    async with Node("app") as app:
        one_by_one = [await app.run_worker(functools.partial(look, n)) for n in range(5)]
        side_by_side = [app.run_worker(functools.partial(look, n)) for n in range(5)]
        await settle()
        results = [*one_by_one, *[worker.result for worker in side_by_side]]
    assert [result[:2] for result in results] == [("unset", n) for n in range(5)] * 2
    assert len({id(result[2]) for result in one_by_one}) == 1
    assert variable.get() == "unset"


async def test_trio_tells_the_context_of_the_work(place, on_trio):
    """Trio's task has the context of the work, in the first step too."""
    import trio  # noqa: PLC0415 (an extra)

    async def look():
        variable.set("own")
        return trio.lowlevel.current_task().context.get(variable)

    assert await place.run(look) == "own"


class Kept:
    """An object that can be weakly referenced."""


async def test_an_idle_runner_keeps_nothing(place):
    """An idle runner keeps no context, argument, result or error of its last worker."""
    kept = []

    def remember():
        kept.append(weakref.ref(thing := Kept()))
        return thing

    async def work(argument, end):
        variable.set(remember())
        await lowlevel.checkpoint()
        if end == "raise":
            raise ValueError(remember())
        return remember()

    async with Node("app") as app:
        with no_collection():
            for end in ("return", "raise"):
                worker = await place.launch(
                    app, functools.partial(work, remember(), end), exit_on_error=False
                )
                await until(lambda worker=worker: worker.is_finished)
                await settle()
                assert count_idle() > 0
                kept.append(weakref.ref(worker))
                del worker
                await settle()
                assert {each() for each in kept} == {None}
                await app.run_worker(return_at_once)


async def test_a_runner_does_not_keep_the_context_that_it_was_made_in():
    """The context that a runner's first worker was launched with is freed with that worker."""
    async with Node("app") as app:
        with no_collection():
            thing = Kept()
            kept = weakref.ref(thing)
            token = variable.set(thing)
            app.run_worker(tell_runner)
            variable.reset(token)
            del thing, token
            await settle()
            assert count_idle() == 1
            assert kept() is None


async def test_a_waiting_runner_keeps_nothing_from_before():
    """A runner frees what its previous worker held before it runs the next one."""
    async with Node("app") as app:
        with no_collection():
            for work in (tell_runner, suspend_and_tell) * 2:
                argument = Kept()
                kept = weakref.ref(argument)

                async def hold(argument, work=work):
                    return await work()

                ran = await app.run_worker(functools.partial(hold, argument))
                del argument
                sleeper = app.run_worker(anyio.sleep_forever)
                await settle()
                assert sleeper._handle is ran
                assert kept() is None
                sleeper.cancel()
                await settle()


# What libraries do with a task.


async def test_scopes_of_anyio(place):
    """Timeouts, task groups and threads of AnyIO work and leave nothing behind in the task."""

    async def look():
        with anyio.move_on_after(0) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        with pytest.raises(TimeoutError), anyio.fail_after(0):
            await anyio.sleep_forever()
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            group.cancel_scope.cancel()
        with pytest.raises(ExceptionGroup):
            async with anyio.create_task_group() as group:
                group.start_soon(fail, ValueError())
                await anyio.sleep_forever()
        assert await to_thread.run_sync(from_thread.run, return_at_once) is None
        await settle(3)
        return 1

    async with Node("app") as app:
        assert await (await place.launch(app, look)) == 1
        await check_next(app)


@since_311
async def test_scopes_of_asyncio(place, on_asyncio):
    """Timeouts and task groups of asyncio itself work, and leave no count of cancellations."""

    async def look():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anyio.sleep_forever()
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail(ValueError()))
                await anyio.sleep_forever()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anyio.sleep_forever(), 0.001)
        assert await asyncio.wait_for(asyncio.sleep(0, 5), 10) == 5
        await settle(3)
        return asyncio.current_task().cancelling()

    async with Node("app") as app:
        assert await (await place.launch(app, look)) == 0
        await check_next(app)


async def test_async_generators(place):
    """An async generator runs and is closed in the task of the worker."""
    closed = []

    async def generate():
        try:
            yield anyio.get_current_task().id
        finally:
            await lowlevel.checkpoint()
            closed.append(anyio.get_current_task().id)

    async def look():
        generator = generate()
        async for task in generator:
            assert task == anyio.get_current_task().id
            break
        await generator.aclose()
        return anyio.get_current_task().id

    assert await place.run(look) == closed[0]


@since_312
async def test_eager_tasks(place, on_asyncio):
    """A task that starts eagerly within a worker's step does not replace the worker's own task."""

    async def eager():
        names.append(asyncio.current_task().get_name())
        started.append(app.run_worker(tell_runner))
        await lowlevel.checkpoint()
        names.append(asyncio.current_task().get_name())

    async def look():
        loop = asyncio.get_running_loop()
        task = asyncio.Task(eager(), loop=loop, name="eager", eager_start=True)
        names.append(asyncio.current_task().get_name())
        await task
        names.append(asyncio.current_task().get_name())

    names, started = [], []
    async with Node("app") as app:
        await (await place.launch(app, look))
        await settle()
        assert started[0].state is SUCCESS
    assert names == ["eager", "app/default/w", "eager", "app/default/w"]


@pytest.mark.parametrize("kind", ["lock", "limiter"])
async def test_what_a_worker_has_acquired_is_its_own(kind, pause):
    """A lock or limiter that a worker has not released does not belong to the next worker."""
    thing = anyio.Lock() if kind == "lock" else anyio.CapacityLimiter(1)

    async def acquire():
        await pause()
        await thing.acquire()

    async def release():
        with pytest.raises(RuntimeError):
            thing.release()

    async with Node("app") as app:
        await app.run_worker(tell_runner)
        await app.run_worker(acquire)
        await app.run_worker(release)
        waiting = app.run_worker(acquire, exit_on_error=False)
        await settle()
        if waiting.error is None:
            assert waiting.state is RUNNING
            waiting.cancel()
        else:  # Trio's own lock notices that its owner is gone
            assert type(waiting.error).__name__ == "BrokenResourceError"


async def test_attributes_of_the_task(pause, on_asyncio):
    """An attribute that a worker sets on its task is not seen by the next, and is freed."""

    async def put(thing):
        await pause()
        asyncio.current_task().thing = thing

    async def look():
        return getattr(asyncio.current_task(), "thing", None)

    async with Node("app") as app:
        with no_collection():
            await app.run_worker(tell_runner)
            thing = Kept()
            kept = weakref.ref(thing)
            await app.run_worker(functools.partial(put, thing))
            del thing
            assert await app.run_worker(look) is None
            assert kept() is None


# A task that something holds on to.


async def keep_task(how, kept):
    """Keep the current task in the given way."""
    task = asyncio.current_task()
    if how == "reference":
        kept.append(task)
    elif how == "weak reference":
        kept.append(weakref.ref(task))
    elif how == "weak key":
        kept.append(weakref.WeakKeyDictionary({task: 1}))
    else:
        task.add_done_callback(kept.append)


async def test_a_kept_task_is_only_that_of_its_worker(place, on_asyncio):
    """A task that the work keeps ends with its worker; cancelling it later has no effect."""

    async def look():
        await keep_task("reference", kept)

    kept = []
    async with Node("app") as app:
        worker = await place.launch(app, look)
        await worker
        sleeper = app.run_worker(anyio.sleep_forever)
        await settle()
        assert kept[0].done()
        assert kept[0].get_name() == "app/default/w"
        assert kept[0].cancel() is False
        await settle()
        assert (worker.state, sleeper.state) == (SUCCESS, RUNNING)
        await kept[0]
        sleeper.cancel()
        await check_next(app)


async def test_a_kept_task_is_not_that_of_a_worker_that_was_ready(pause, on_asyncio):
    """A kept task is not reused for the workers that were launched in the same turn."""

    async def look():
        kept.append(asyncio.current_task())
        await pause()

    kept = []
    async with Node("app") as app:
        for _ in range(5):
            app.run_worker(look)
        await settle()
        assert len(set(kept)) == 5
        assert all(task.done() for task in kept)


async def test_who_awaits_a_task_goes_on_as_its_worker_ends(pause, on_asyncio):
    """A task that awaits a worker's task resumes when that worker ends, while others still run."""
    kept, order = [], []

    async def first():
        kept.append(asyncio.current_task())
        await pause()
        order.append("end")

    async def wait():
        await kept[0]
        order.append("awaited")

    async def forever():
        await anyio.sleep_forever()

    async with Node("app") as app:
        app.run_worker(first)
        app.run_worker(forever)
        await until(lambda: kept)
        await wait()
        app.cancel()
    assert order == ["end", "awaited"]


async def test_a_callback_for_the_end_of_the_task(place, on_asyncio):
    """A done callback is called once, when the worker ends, with a task that is done."""

    async def look():
        await keep_task("callback", called)

    called = []
    async with Node("app") as app:
        worker = await place.launch(app, look)
        await until(lambda: worker.is_finished)
        await settle(3)
        (task,) = called
        assert task.done()
        await check_next(app)
        assert called == [task]


@pytest.mark.parametrize("how", ["weak reference", "weak key"])
async def test_a_weak_reference_to_the_task(place, on_asyncio, how):
    """A weak reference to the task dies with the worker, so no other worker is found by it."""

    async def look():
        await keep_task(how, kept)

    async def find():
        task = asyncio.current_task()
        return task in kept[0] if how == "weak key" else kept[0]() is task

    kept = []
    async with Node("app") as app:
        worker = await place.launch(app, look)
        await worker
        found = await app.run_worker(find)
        assert found is False
        await settle()
        gc.collect()
        assert not kept[0] if how == "weak key" else kept[0]() is None


@pytest.mark.parametrize("by", ["all_tasks", "callback", "task factory"])
async def test_a_task_that_was_kept_before_its_first_step(pause, on_asyncio, by):
    """A task that was kept before its first step ends with its worker, like one kept later."""
    loop, made = asyncio.get_running_loop(), []

    def factory(loop, coro, **options):
        made.append(asyncio.Task(coro, loop=loop, **options))
        return made[-1]

    async with Node("warm") as warm:
        await warm.run_worker(tell_runner)
    async with Node("app") as app:
        await settle()
        if by == "task factory":
            loop.set_task_factory(factory)
        try:
            worker = app.run_worker(pause, "w")
        finally:
            loop.set_task_factory(None)
        if by != "task factory":
            before = asyncio.all_tasks()
        if by == "callback":
            for task in before:
                task.add_done_callback(made.append)
            del before, task
        await settle()
        assert worker.state is SUCCESS
        if by == "all_tasks":
            made += [task for task in before if task.get_name() == "app/default/w"]
            del before
        sleeper = app.run_worker(anyio.sleep_forever)
        await settle()
        (task,) = made
        task.cancel()
        await settle()
        assert sleeper.state is RUNNING
        assert task.done()
        sleeper.cancel()


async def test_a_task_factory_that_keeps_all_tasks(pause, on_asyncio, monkeypatch):
    """If a task factory keeps every task there is no baseline to compare with: none is shared."""
    loop, made = asyncio.get_running_loop(), []

    def factory(loop, coro, **options):
        made.append(asyncio.Task(coro, loop=loop, **options))
        return made[-1]

    monkeypatch.setattr(backend, "_fewest", {})
    loop.set_task_factory(factory)
    try:
        async with Node("app") as app:
            ran = [await app.run_worker(tell_runner) for _ in range(2)]
            await app.run_worker(pause)
            sleeper = app.run_worker(anyio.sleep_forever)
            await settle()
            assert ran[0] is not ran[1]
            assert [task.done() for task in made[-4:]] == [True, True, True, False]
            sleeper.cancel()
    finally:
        loop.set_task_factory(None)


# Cancellation.


@since_311
@pytest.mark.parametrize("swallows", [True, False])
async def test_requests_that_a_worker_leaves_uncounted(on_asyncio, swallows):
    """asyncio counts cancellation requests by task, but the next worker starts at zero."""

    async def look():
        task = asyncio.current_task()
        counts.append(task.cancelling())
        task.cancel()
        task.cancel()
        if swallows:
            try:
                await lowlevel.checkpoint()
            except asyncio.CancelledError:
                counts.append(task.cancelling())
                return
        await lowlevel.checkpoint()

    async def tell():
        return asyncio.current_task().cancelling()

    counts = []
    async with Node("app") as app:
        await app.run_worker(tell_runner)
        for _ in range(2):
            worker = app.run_worker(look)
            await settle()
            assert worker.state is (SUCCESS if swallows else CANCELLED)
            assert await app.run_worker(tell) == 0
    assert counts == ([0, 2, 0, 2] if swallows else [0, 0])


@since_311
async def test_uncancel_of_what_was_not_delivered(on_asyncio):
    """A request that is withdrawn before it is delivered does not cancel any worker."""

    async def look():
        task = asyncio.current_task()
        task.cancel()
        assert task.uncancel() == 0
        with suppress(asyncio.CancelledError):  # before 3.13 it is delivered anyway
            await lowlevel.checkpoint()

    async with Node("app") as app:
        await app.run_worker(tell_runner)
        assert await app.run_worker(look) is None
        await check_next(app)


async def test_native_cancel_of_a_worker(place, on_asyncio):
    """A native cancellation of a worker's task cancels only that worker."""
    async with Node("app") as app:
        others = [app.run_worker(anyio.sleep_forever) for _ in range(2)]
        worker = await place.launch(app, anyio.sleep_forever)
        await settle()
        native_task("app/default/w").cancel()
        await settle()
        assert worker.state is CANCELLED
        assert {other.state for other in others} == {RUNNING}
        await check_next(app)
        for other in others:
            other.cancel()


async def test_a_task_that_was_cancelled_natively_ends_with_its_worker(on_asyncio):
    """A task keeps its count of cancellations, so one that was cancelled natively is not reused."""
    async with Node("app") as app:
        await app.run_worker(suspend_and_tell)
        assert count_idle() == 1
        worker = app.run_worker(anyio.sleep_forever, "w")
        await settle()
        native_task("app/default/w").cancel()
        await settle()
        assert worker.state is CANCELLED
        assert count_idle() == 0


@pytest.mark.parametrize("when", ["asleep", "just woken", "just woken, and more wait"])
async def test_native_cancel_of_an_idle_runner(on_asyncio, when):
    """Natively cancelling an idle runner cancels no worker; what it was given runs elsewhere."""
    async with Node("app") as app:
        await app.run_worker(return_at_once)
        task = native_task(IDLE)
        workers = []
        if when != "asleep":
            workers.append(app.run_worker(suspend_and_tell))
        if "more" in when:
            workers += [app.run_worker(suspend_and_tell) for _ in range(3)]
        task.cancel()
        await settle()
        assert task.done()
        assert not task.cancelled()
        assert all(worker.state is SUCCESS for worker in workers)
        await check_next(app)


async def test_native_cancel_of_a_runner_that_gives_the_loop_its_turn(on_asyncio):
    """Workers that wait for a runner get another if that one is cancelled as it yields."""
    async with Node("app") as app:

        async def launch():
            started.append(app.run_worker(tell_runner))

        started = []
        app.run_worker(launch, "launch")
        await until(lambda: started)  # the runner has it queued, and yields to the loop
        assert started[0].state is PENDING
        native_task("app/default/launch").cancel()
        await settle()
        assert started[0].state is SUCCESS
        await check_next(app)


@pytest.mark.parametrize("when", ["launched", "idle woken", "own task", "ready", "handed over"])
async def test_cancelled_before_it_begins(when):
    """A worker that is cancelled before it starts is CANCELLED at once, and the others run."""
    entered, sleepers = [], []

    async def never():
        entered.append(1)

    async def last():
        return 5

    async with Node("app") as app:
        if when == "idle woken":
            await app.run_worker(return_at_once)
        if when == "own task":
            sleepers = [app.run_worker(anyio.sleep_forever) for _ in range(MOST)]
            await settle()
        if when in ("ready", "handed over"):
            first = app.run_worker(suspend_and_tell if when == "handed over" else tell_runner)
        worker = app.run_worker(never, "w")
        other = app.run_worker(last)
        if when == "handed over":
            # The first worker suspends, so the ready one is handed to a runner that has not
            # started.
            await until(lambda: first.state is not PENDING)
        assert worker.state is PENDING
        worker.cancel("too late")
        assert worker.state is CANCELLED
        await settle()
        assert other.result == 5
        await check_next(app)
        for sleeper in sleepers:
            sleeper.cancel()
    assert not entered


async def test_cancelled_as_its_runner_suspends(on_asyncio):
    """A worker that was handed over and is cancelled in the same turn does not start."""

    async def first():
        asyncio.get_running_loop().call_soon(workers[0].cancel)
        await lowlevel.checkpoint()

    async with Node("app") as app:
        app.run_worker(first)
        workers = [app.run_worker(tell_runner) for _ in range(3)]
        await settle()
        assert [worker.state for worker in workers] == [CANCELLED, SUCCESS, SUCCESS]
        await check_next(app)


async def test_a_worker_that_cancels_itself(place):
    """A worker that cancels itself and returns ends CANCELLED; no other is cancelled."""

    async def look():
        get_current_worker().cancel("enough")
        return 5

    async with Node("app") as app:
        worker = await place.launch(app, look)
        ready = app.run_worker(suspend_and_tell)
        with pytest.raises(WorkerCancelled):
            await worker
        assert worker.result == 5
        await settle()
        assert ready.state is SUCCESS
        await check_next(app)


async def test_a_worker_that_swallows_its_cancellation(place):
    """A worker that swallows its cancellation is CANCELLED, and the next one starts uncancelled."""

    async def look():
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            return 5

    async with Node("app") as app:
        worker = await place.launch(app, look)
        await settle()
        assert worker.state is RUNNING
        worker.cancel()
        await settle()
        assert (worker.state, worker.result) == (CANCELLED, 5)
        await check_next(app)


@pytest.mark.parametrize("end", ["return", "raise"])
@pytest.mark.parametrize("what", ["scope", "task group"])
async def test_what_a_worker_leaves_open_is_not_round_the_next(pause, what, end):
    """A worker that leaves a scope or task group open fails, and its task is not reused."""
    kept, states = [], []

    async def leave():
        await pause()
        kept.append(anyio.CancelScope() if what == "scope" else anyio.create_task_group())
        await kept[0].__aenter__() if what == "task group" else kept[0].__enter__()
        kept.append(current_runner())
        if end == "raise":
            raise ValueError

    async def follow():
        states.append(current_runner())
        await settle(3)

    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            await app.run_worker(return_at_once)
            worker = app.run_worker(leave, exit_on_error=False)
            after = [app.run_worker(follow, exit_on_error=False) for _ in range(2)]
            await anyio.sleep_forever()
    assert worker.state is ERROR
    assert not [each for each in after if each.state is ERROR]
    assert kept[1] not in states
    assert {type(leaf) for leaf in leaves(caught.value)} == {RuntimeError}


# How runners work together.


async def test_workers_that_are_launched_in_one_turn_begin_in_order(on_asyncio, pause):
    """Workers that are launched in one turn start in order, in whichever kind of task."""
    order = []

    async def work(n):
        order.append(n)
        await pause()

    async with Node("app") as app:
        for first in (0, 30, 60):
            for n in range(first, first + 30):
                app.run_worker(functools.partial(work, n))
            await settle()
    assert order == list(range(90))


@pytest.mark.parametrize("limit", [1, 3])
async def test_the_next_of_a_queue_begins_as_one_ends(on_asyncio, limit):
    """As a worker ends, the next in the queue starts in the same turn; the loop is not starved."""
    order, turns, jobs = [], [0], 30

    async def job():
        order.append(get_current_worker().number)
        await lowlevel.checkpoint()

    async def count():
        while len(order) < jobs:
            turns[0] += 1
            await lowlevel.checkpoint()

    async with Node("app") as app, anyio.create_task_group() as tasks:
        group = app.group("few", limit=limit)
        workers = [group.run_worker(job) for _ in range(jobs)]
        tasks.start_soon(count)
    assert order == [worker.number for worker in workers]
    assert jobs / limit - 1 <= turns[0] <= jobs / limit + 2


async def tell_name(order):
    order.append(get_current_worker().name)


async def test_a_chain_of_workers_starves_nobody():
    """A chain of workers that never suspend, each launching the next, lets other tasks run."""
    turns, links = [0], [0]

    async def link():
        links[0] += 1
        if links[0] < 200:
            app.run_worker(link)

    async def other():
        while links[0] < 200:
            turns[0] += 1
            await lowlevel.checkpoint()

    async with Node("app") as app, anyio.create_task_group() as group:
        group.start_soon(other)
        await lowlevel.checkpoint()
        app.run_worker(link)
    assert turns[0] >= 100


async def test_those_that_are_ready_run_in_one_turn(on_asyncio):
    """Ready workers that return at once all run in one task, in one turn of the loop."""
    async with Node("app") as app:
        workers = [app.run_worker(tell_runner) for _ in range(30)]
        await settle(2)
        assert {worker.state for worker in workers} == {SUCCESS}
        assert len({id(worker.result) for worker in workers}) == 1


async def test_those_that_a_worker_launches_run_in_the_next_turn(on_asyncio):
    """Workers that a worker launches run in the task that launched them."""
    workers = []

    async def launch():
        workers.extend(app.run_worker(tell_runner) for _ in range(20))
        return current_runner()

    async with Node("app") as app:
        workers.append(app.run_worker(launch))
        await settle(3)
        assert {worker.state for worker in workers} == {SUCCESS}
        assert len({id(worker.result) for worker in workers}) == 1


async def test_a_queue_is_worked_off_by_one_runner():
    """A runner whose worker gives its slot to the next in the queue runs that one too."""
    async with Node("app") as app:
        group = app.group("one", limit=1)
        workers = [group.run_worker((tell_runner, suspend_and_tell)[n % 2]) for n in range(10)]
        await workers[-1]
    assert len({id(worker.result) for worker in workers}) == 1


async def test_as_many_are_kept_as_may_be():
    """At most ``MOST`` runners stay idle, and they end when the block is left."""
    async with Node("app") as app:
        for _ in range(3):
            for _ in range(3 * MOST):
                app.run_worker(suspend_and_tell)
            await settle()
            assert count_idle() == MOST
    await settle()
    assert count_idle() == 0


async def test_those_that_are_idle_end_as_the_node_is_cancelled():
    """Idle runners end when the node is cancelled, and so do workers launched just before."""
    async with Node("app") as app:
        for _ in range(5):
            app.run_worker(suspend_and_tell)
        await settle()
        assert count_idle() == 5
        app.run_worker(anyio.sleep_forever)
        late = [app.run_worker(suspend_and_tell) for _ in range(3)]
        app.cancel()
    await settle()
    assert count_idle() == 0
    assert {worker.state for worker in late} == {CANCELLED}


async def test_long_lived_workers_do_not_use_up_the_runners():
    """New runners replace those that a long-lived worker occupies."""
    gate = anyio.Event()
    async with Node("app") as app:
        for _ in range(15):
            app.run_worker(gate.wait)
        await settle()
        ran = [await app.run_worker((tell_runner, suspend_and_tell)[n % 2]) for n in range(30)]
        gate.set()
    assert len({id(each) for each in ran[-15:]}) == 1
    assert type(ran[0]) is anyio.TaskHandle
    assert type(ran[-1]) is Runner


async def test_more_runners_than_are_kept_end():
    """When the long-lived workers end, the surplus of runners ends too."""
    gate = anyio.Event()
    async with Node("app") as app:
        for _ in range(15):
            app.run_worker(gate.wait)
        await settle()
        for _ in range(2 * MOST):
            app.run_worker(suspend_and_tell)
            await settle()
        for _ in range(MOST):
            app.run_worker(gate.wait)
        await settle()
        gate.set()
        await settle()
        assert count_idle() == MOST
        await check_next(app)


async def test_a_runner_takes_nothing_that_another_comes_round_to(on_asyncio):
    """A ready worker waits for the ones that were launched before it."""
    order = []
    async with Node("app") as app:
        first = app.run_worker(suspend_and_tell)
        app.run_worker(functools.partial(tell_name, order), "handed over")
        await until(lambda: first.state is RUNNING)
        for name in ("with a new runner", "ready"):
            app.run_worker(functools.partial(tell_name, order), name)
        await settle()
    assert order == ["handed over", "with a new runner", "ready"]


async def test_those_that_are_idle_end_with_a_scope_round_the_node():
    """Idle runners end when a scope around the node is cancelled."""
    with anyio.CancelScope() as scope:
        async with Node("app") as app:
            for _ in range(5):
                app.run_worker(suspend_and_tell)
            await settle()
            assert count_idle() == 5
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    await settle()
    assert count_idle() == 0


async def test_no_task_is_shared_where_references_are_not_counted(monkeypatch):
    """Without reference counts each worker has its own task, and everything else works."""

    def cannot(thing):
        raise AttributeError

    monkeypatch.setattr(backend, "getrefcount", cannot)
    async with Node("app") as app:
        ran = [await app.run_worker(work) for work in (tell_runner, suspend_and_tell) * 6]
        assert len(set(map(id, ran))) == len(ran)
        await check_next(app)
        assert count_idle() == 0


@pytest.mark.parametrize("has_idle", [True, False])
async def test_from_a_bare_callback(on_asyncio, has_idle):
    """A worker can be started from a callback of the event loop, where no task runs."""
    started = []
    async with Node("app") as app:
        if has_idle:
            await app.run_worker(return_at_once)
        loop = asyncio.get_running_loop()
        for work in (tell_runner, suspend_and_tell) * 2:
            loop.call_soon(lambda work=work: started.append(app.run_worker(work)))
        await settle()
        assert [worker.state for worker in started] == [SUCCESS] * 4


@pytest.mark.parametrize("has_idle", [True, False])
async def test_from_another_thread(has_idle):
    """A worker can be started from another thread, and sees the thread's context variables."""

    async def look():
        return variable.get()

    def start():
        variable.set("thread's")
        return [app.run_worker(look) for _ in range(3)]

    async with Node("app") as app:
        if has_idle:
            await app.run_worker(return_at_once)
        started = await to_thread.run_sync(start)
        await settle()
        assert [worker.result for worker in started] == ["thread's"] * 3
    assert variable.get() == "unset"


async def test_cancelled_from_a_thread_while_the_loop_has_not_heard():
    """A worker that a thread cancels is not entered, and its runner runs no other worker."""
    async with Node("app") as app:
        ran = await app.run_worker(tell_runner)
        worker = app.run_worker(tell_runner)
        request(worker, "by a thread")  # the part that follows on the loop is still to come
        after = app.run_worker(tell_runner)
        await settle()
        assert worker.state is CANCELLED
        assert after.result is not ran
        await check_next(app)


# What happens when something fails.


async def test_no_task_for_what_a_runner_hands_over(on_asyncio, quiet):
    """Workers whose tasks cannot be created fail, and the rest run."""
    loop = asyncio.get_running_loop()
    failed = []

    def factory(loop, coro, **options):
        if len(failed) < 2:
            failed.append(1)
            coro.close()
            raise MemoryError
        return asyncio.Task(coro, loop=loop, **options)

    async with Node("app") as app:
        first = app.run_worker(suspend_and_tell)
        ready = [app.run_worker(suspend_and_tell, exit_on_error=False) for _ in range(5)]
        loop.set_task_factory(factory)
        try:
            await settle()
        finally:
            loop.set_task_factory(None)
        assert first.state is SUCCESS
        assert [worker.state for worker in ready] == [ERROR] * 2 + [SUCCESS] * 3
        assert {type(worker.error) for worker in ready[:2]} == {MemoryError}
        await check_next(app)


async def test_no_task_for_what_a_spent_runner_leaves(on_asyncio, quiet):
    """A worker whose task cannot be created fails when the runner before it ends, too."""
    loop = asyncio.get_running_loop()
    kept = []

    def factory(loop, coro, **options):
        coro.close()
        loop.set_task_factory(None)
        raise MemoryError

    async def first():
        kept.append(asyncio.current_task())

    async with Node("app") as app:
        app.run_worker(first)
        ready = [app.run_worker(suspend_and_tell, exit_on_error=False) for _ in range(3)]
        loop.set_task_factory(factory)
        await settle()
        assert [worker.state for worker in ready] == [ERROR, SUCCESS, SUCCESS]
        await check_next(app)


async def test_own_task_that_breaks_off_before_the_work(monkeypatch, quiet):
    """A worker whose task fails before the work starts fails with that error."""
    gate = anyio.Event()
    begin = Runners.begin

    def break_off(self, task):
        if getattr(task, "name", "") == "w":
            raise MemoryError
        return begin(self, task)

    async with Node("app") as app:
        for _ in range(MOST):
            app.run_worker(gate.wait)
        await settle()
        with monkeypatch.context() as patch:
            patch.setattr(Runners, "begin", break_off)
            worker = app.run_worker(tell_runner, "w", exit_on_error=False)
            await settle()
        assert type(worker.error) is MemoryError
        await check_next(app)
        gate.set()


async def test_first_task_that_cannot_be_made(on_asyncio):
    """run_worker() raises if the first task cannot be created, and leaves no worker."""
    loop = asyncio.get_running_loop()

    def factory(loop, coro, **options):
        coro.close()
        raise MemoryError

    async with Node("app") as app:
        loop.set_task_factory(factory)
        try:
            with pytest.raises(MemoryError):
                app.run_worker(tell_runner)
        finally:
            loop.set_task_factory(None)
        assert len(app.workers) == 0
        await check_next(app)


@pytest.mark.parametrize("when", ["begun", "ready", "idle"])
def test_tasks_that_go_with_their_loop(when, monkeypatch):
    """If a task is destroyed with its loop, its work gets GeneratorExit and the runner ends."""
    monkeypatch.setattr(logging.getLogger("asyncio"), "disabled", True)  # "was destroyed"
    monkeypatch.setattr(logging.getLogger("creche"), "disabled", True)
    ended, workers, coros = [], [], []

    async def work():
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append(sys.exc_info()[0])

    async def main():
        async with Node("app") as app:
            await app.run_worker(tell_runner)
            if when != "idle":
                workers.append(app.run_worker(work, exit_on_error=False))
            if when == "begun":
                await settle(3)
            loop.stop()
            await asyncio.sleep(1000)

    loop = asyncio.new_event_loop()
    loop.create_task(main())  # noqa: RUF006 (it does not end)
    loop.run_forever()
    loop.close()
    for task in asyncio.all_tasks(loop):
        if task.get_name() in (IDLE, "app/default/work"):
            coros.append(task.get_coro())
            with suppress(RuntimeError):  # raised by AnyIO: there is no loop
                coros[-1].close()
    assert coros
    assert ended == ([GeneratorExit] if when == "begun" else [])
    assert {coro.cr_frame for coro in coros} == {None}
    if when == "begun":
        assert workers[0].is_finished


async def test_a_runner_that_is_woken_as_it_goes_to_sleep(monkeypatch):
    """Work that is launched as its runner goes to sleep, as by a signal handler, runs."""
    launched = []

    async with Node("app") as app:
        kind = type(backend.get_backend(lowlevel.current_token()))
        renamer = kind.renamer

        def launches_in_between(self, task):
            rename = renamer(self, task)

            def launch_in_between(name):
                if name == IDLE and not launched:
                    launched.append(app.run_worker(settle))
                rename(name)

            return launch_in_between

        monkeypatch.setattr(kind, "renamer", launches_in_between)
        app.run_worker(settle)
        with anyio.fail_after(RENDEZVOUS):
            await until(lambda: launched)
            await launched[0]


async def test_a_sleep_that_a_signal_handler_comes_into(on_trio, monkeypatch):
    """A wake-up in the very step in which a task goes to sleep is not lost."""
    import trio  # noqa: PLC0415 (absent where it is not installed)

    loop = backend.get_backend(lowlevel.current_token())
    sleep = loop.new_sleep()
    block = trio.lowlevel.wait_task_rescheduled

    def wake_first(abort):
        loop.wake(sleep)
        return block(abort)

    monkeypatch.setattr(trio.lowlevel, "wait_task_rescheduled", wake_first)
    with anyio.fail_after(RENDEZVOUS):
        await sleep
    loop.wake(sleep)  # once more: does nothing


async def test_the_caller_learns_that_its_task_factory_fails(on_asyncio):
    """With a task factory each worker gets a task at launch, so run_worker() can raise."""
    loop, made = asyncio.get_running_loop(), []

    def factory(loop, coro, **options):
        made.append(coro)
        if len(made) == 2:
            coro.close()
            raise RuntimeError("no more tasks")
        return asyncio.Task(coro, loop=loop, **options)

    async with Node("app") as app:
        loop.set_task_factory(factory)
        try:
            first = app.run_worker(settle)
            with pytest.raises(RuntimeError, match="no more tasks"):
                app.run_worker(settle)
            third = app.run_worker(settle)
        finally:
            loop.set_task_factory(None)
        await first
        await third
    assert len(made) == 3
