"""Work that is run again when it fails, and a watchdog of the event loop."""

from __future__ import annotations

import ast
import asyncio
import functools
import gc
import inspect
import logging
import pickle
import re
import sys
import threading
import weakref
from pathlib import Path

import anyio
import pytest
from anyio import lowlevel

from creche import (
    DeadlockError,
    NoActiveWorker,
    Node,
    Worker,
    WorkerCancelled,
    WorkerError,
    WorkerFailed,
    active_worker,
    get_current_worker,
    services,
)
from creche.services import (
    Backoff,
    NotRestartable,
    Restart,
    RestartsExhausted,
    _watchdog,
    service,
    watchdog,
)
from creche.testing import assert_nothing_left, virtual_time
from helpers import (
    CANCELLED,
    ERROR,
    RENDEZVOUS,
    RUNNING,
    SUCCESS,
    ExceptionGroup,
    fail_late,
    no_collection,
    run_python,
    settle,
    told,
    until,
    until_gone,
)
from pages import ROOT, blocks

AT_ONCE = Restart(max=3, backoff=Backoff(0))
"""Without a wait."""


@pytest.fixture(params=["asyncio", "trio"])
def fly(request):
    """Run an async function in virtual time."""
    if request.param == "trio":
        pytest.importorskip("trio")

    def fly(main, *args):
        with virtual_time(request.param) as (backend, options):
            return anyio.run(main, *args, backend=backend, backend_options=options)

    return fly


class Failing:
    """Work that raises each of some errors in turn, and then returns how often it has run."""

    def __init__(self, *errors, then=anyio.lowlevel.checkpoint):
        self.errors = errors
        self.runs = 0
        self.then = then

    def next(self):
        self.runs += 1
        if self.runs <= len(self.errors):
            raise self.errors[self.runs - 1]
        return self.runs

    async def work(self):
        await lowlevel.checkpoint()
        return self.next()

    def work_in_thread(self):
        return self.next()


def errors(number):
    return [ValueError(each) for each in range(1, number + 1)]


def warnings_in(caplog):
    return [each for each in told(caplog) if each.levelno == logging.WARNING]


async def run(app, work, **options):
    """Run work in a worker to its end."""
    return await app.run_worker(work, exit_on_error=False, **options).join()


# again and again


async def test_runs_again_until_it_returns(caplog):
    """It is RUNNING all the while; each restart counts, is told to who listens and in the log."""
    failing = Failing(*errors(2))
    async with Node("app") as app, app.subscribe(Worker.StateChanged, Worker.Restarted) as events:
        worker = app.run_worker(service(failing.work, restart=AT_ONCE))
        assert worker.attempt == 1
        assert await worker == 3
        changes = events.take_all()
    assert worker.attempt == 3
    restarts = [each for each in changes if isinstance(each, Worker.Restarted)]
    assert [(each.worker, each.error, each.delay) for each in restarts] == [
        (worker, error, 0) for error in failing.errors
    ]
    states = [each.state for each in changes if isinstance(each, Worker.StateChanged)]
    assert states[1:] == [RUNNING, SUCCESS]
    assert [re.findall(r"ValueError\(\d\)", each.getMessage()) for each in warnings_in(caplog)] == [
        ["ValueError(1)"],
        ["ValueError(2)"],
    ]


@pytest.mark.parametrize("maximum", [0, 1, 3])
async def test_budget(maximum):
    """One failure more than there may be restarts ends it, with all that it was spent on."""
    failing = Failing(*errors(9))
    async with Node("app") as app:
        restart = Restart(max=maximum, backoff=Backoff(0))
        worker = await run(app, service(failing.work, restart=restart))
    assert worker.state is ERROR
    assert isinstance(worker.error, RestartsExhausted)
    assert worker.error.exceptions == failing.errors[: maximum + 1]
    assert str(worker.error).startswith(
        f"work() failed {maximum + 1} times within 60 s, which is more than max={maximum} restarts"
    )
    assert failing.runs == worker.attempt == maximum + 1
    assert worker.error.__context__ is None
    for each in worker.error.exceptions:
        assert each.__traceback__.tb_frame.f_code.co_name == "work"  # the service is not shown


async def test_no_limit():
    """With max=None it may fail for ever, and nothing is kept of that."""
    failing = Failing(*errors(50))
    async with Node("app") as app:
        worker = await run(app, service(failing.work, restart=Restart(None, backoff=Backoff(0))))
    assert worker.result == 51


async def test_each_worker_has_a_budget_of_its_own():
    """One service is for any number of workers, at the same time."""
    runs = []

    async def work():
        worker = active_worker.get()
        runs.append(worker)
        await lowlevel.checkpoint()
        if runs.count(worker) <= 3:
            raise ValueError

    async with Node("app") as app:
        again = service(work, restart=AT_ONCE)
        workers = [app.run_worker(again) for _ in range(3)]
    assert [worker.attempt for worker in workers] == [4, 4, 4]


def test_waits(fly):
    """Each wait is the one before times the factor, to the longest; health begins anew."""

    async def main():
        lasts, waits = iter([0, 0, 0, 0, 7.75, 8, 0]), []

        async def work():
            await anyio.sleep(next(lasts))
            raise ValueError

        async with Node("app") as app, app.subscribe(Worker.Restarted) as events:
            backoff = Backoff(1, 5, factor=3, jitter=0)
            restart = Restart(6, within=1e6, backoff=backoff, reset_after=8)
            worker = app.run_worker(service(work, restart=restart), exit_on_error=False)
            await worker.join()
            waits = [each.delay for each in events.take_all()]
        assert waits == [1, 3, 5, 5, 5, 1]
        assert worker.elapsed == sum(waits) + 7.75 + 8

    fly(main)


def test_window(fly):
    """What was longer ago than the time of the budget does not count; what was just then does."""

    async def main(pause, runs):
        failing = Failing(*errors(20))

        async def work():
            await anyio.sleep(pause)
            return failing.next()

        async with Node("app") as app:
            restart = Restart(max=2, within=8, backoff=Backoff(0))
            worker = await run(app, service(work, restart=restart))
        assert worker.attempt == runs
        if runs == 3:
            assert worker.error.exceptions == failing.errors[:3]

    fly(main, 4, 3)  # the third failure comes as the first is 8 seconds ago
    fly(main, 4.25, 21)


def test_what_is_left_to_chance(fly):
    """Jitter makes waits shorter by up to its part, and no two the same."""

    async def main():
        failing = Failing(*errors(100))
        async with Node("app") as app, app.subscribe(Worker.Restarted) as events:
            restart = Restart(100, backoff=Backoff(4, factor=1, jitter=0.5), within=1e6)
            await run(app, service(failing.work, restart=restart))
            waits = [each.delay for each in events.take_all()]
        assert 2 <= min(waits) < 2.5
        assert 3.5 < max(waits) <= 4
        assert len(set(waits)) == 100

    fly(main)


def test_factor_without_an_end(fly):
    """Waits grow to the longest, however large the factor is."""

    async def main():
        failing = Failing(*errors(5))
        async with Node("app") as app:
            backoff = Backoff(1, 2, factor=1e308, jitter=0)
            worker = await run(app, service(failing.work, restart=Restart(backoff=backoff)))
        assert worker.elapsed == 1 + 2 * 4

    fly(main)


def test_cancel_ends_a_wait(fly):
    """At once, and the worker is CANCELLED."""

    async def main():
        failing = Failing(*errors(5))
        async with Node("app") as app:
            worker = app.run_worker(service(failing.work, restart=Restart(backoff=Backoff(10))))
            await anyio.sleep(5)
            assert worker.state is RUNNING
            worker.cancel()
            await worker.join()
        assert worker.state is CANCELLED
        assert worker.elapsed == 5
        assert failing.runs == 1

    fly(main)


def test_shutdown_ends_a_wait(fly):
    """When the time of grace is over."""

    async def main():
        async with Node("app") as app:
            restart = Restart(backoff=Backoff(10))
            worker = app.run_worker(service(Failing(*errors(5)).work, restart=restart))
            await settle()
            await app.shutdown(grace=3)
        assert worker.state is CANCELLED
        assert worker.elapsed == 3

    fly(main)


@pytest.mark.parametrize("in_thread", [False, True])
async def test_stall_after(in_thread):
    """It is announced where the service does not get on; what is no time is refused at once."""

    async def work():
        await anyio.sleep_forever()

    def work_in_thread():
        get_current_worker().cancelled_event.wait(RENDEZVOUS)

    async with Node("app") as app, app.subscribe(Worker.Stalled) as events:
        again = service(work_in_thread if in_thread else work, stall_after=1e-3)
        worker = app.run_worker(again, thread=in_thread, stall_after=RENDEZVOUS)
        with anyio.fail_after(RENDEZVOUS):
            event = await anext(events)
        assert (event.worker, event.seconds) == (worker, 1e-3)
        worker.cancel()
    for wrong in (0, -1, True, "1", float("nan")):
        with pytest.raises(WorkerError, match="stall_after must be seconds, more than 0"):
            service(work, stall_after=wrong)


# what ends it


async def test_cancellation_is_not_restarted():
    """Work that is cancelled runs no more."""
    runs = []

    async def work():
        runs.append(1)
        await anyio.sleep_forever()

    async with Node("app") as app:
        worker = app.run_worker(service(work, always=True, restart=AT_ONCE))
        await settle()
        worker.cancel()
    assert worker.state is CANCELLED
    assert len(runs) == 1


async def test_error_of_the_cancelled(caplog):
    """What it would be run again for fails nobody once it is cancelled: it is in the log."""
    error = ValueError("too late")
    async with Node("app") as app:
        work = functools.partial(fail_late, error)
        worker = app.run_worker(service(work, restart=AT_ONCE), name="work")
        await settle()
        worker.cancel()
    assert worker.state is CANCELLED
    assert worker.attempt == 1
    (record,) = warnings_in(caplog)
    told = record.getMessage()
    assert told == "worker 'work' failed while it was cancelled: ValueError('too late')"
    assert record.exc_info[1] is error
    assert record.creche_number == worker.number


@pytest.mark.parametrize("kind", ["another class", "a budget that is spent"])
async def test_final_error_of_the_cancelled(kind):
    """What it would not be run again for is its error, as without a service."""
    options = {"on": OSError} if kind == "another class" else {"restart": Restart(max=0)}
    async with Node("app") as app:
        work = service(functools.partial(fail_late, ValueError("too late")), **options)
        worker = app.run_worker(work, exit_on_error=False)
        await settle()
        worker.cancel()
    expected = ValueError if kind == "another class" else RestartsExhausted
    assert isinstance(worker.error, expected)


async def test_cancelled_work_that_asks():
    """Its own WorkerCancelled ends it without a word; that of another worker is an error."""
    runs = []

    async def work():
        runs.append(1)
        if len(runs) == 1:
            raise WorkerCancelled("another")
        with anyio.CancelScope(shield=True):
            await until(lambda: worker.is_cancelled)
        worker.check_cancelled()

    async with Node("app") as app:
        worker = app.run_worker(service(work, restart=AT_ONCE))
        await until(lambda: len(runs) > 1)
        worker.cancel()
    assert (worker.state, worker.attempt) == (CANCELLED, 2)


async def test_error_of_those_cancelled_from_outside(caplog):
    """So it is where a scope round the node is cancelled, of which no worker is told."""
    error = ValueError("too late")
    with anyio.CancelScope() as scope:
        async with Node("app") as app:
            worker = app.run_worker(service(functools.partial(fail_late, error), restart=AT_ONCE))
            await settle()
            scope.cancel()
    assert (worker.state, worker.attempt) == (CANCELLED, 1)
    (record,) = warnings_in(caplog)
    assert record.exc_info[1] is error


@pytest.mark.parametrize("in_thread", [False, True])
async def test_always(in_thread):
    """It is run again when it returns, which counts as a failure."""
    failing = Failing()
    work = failing.work_in_thread if in_thread else failing.work
    async with Node("app") as app:
        worker = await run(app, service(work, always=True, restart=AT_ONCE), thread=in_thread)
    assert [str(each) for each in worker.error.exceptions] == [
        f"{work.__name__}() returned, and is to run always"
    ] * 4


@pytest.mark.parametrize("in_thread", [False, True])
async def test_always_but_once_it_is_cancelled(in_thread):
    """Work that swallows its cancellation and returns has ended."""
    runs = []

    async def work():
        runs.append(1)
        with anyio.CancelScope(shield=True):
            await until(lambda: worker.is_cancelled)

    def work_in_thread():
        runs.append(1)
        assert worker.cancelled_event.wait(RENDEZVOUS)

    async with Node("app") as app:
        again = service(work_in_thread if in_thread else work, always=True, restart=AT_ONCE)
        worker = app.run_worker(again, thread=in_thread)
        await until(lambda: runs)
        worker.cancel()
    assert worker.state is CANCELLED
    assert len(runs) == worker.attempt == 1


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize(
    ("on", "error", "is_restarted"),
    [
        (Exception, ValueError(), True),
        (OSError, ValueError(), False),
        (OSError, FileNotFoundError(), True),
        ((OSError, KeyError), KeyError(), True),
        ((OSError, KeyError), ValueError(), False),
        (OSError, ExceptionGroup("", [OSError(), ExceptionGroup("", [OSError()])]), True),
        (OSError, ExceptionGroup("", [OSError(), ExceptionGroup("", [KeyError()])]), False),
        (ExceptionGroup, ExceptionGroup("", [KeyError()]), True),
        (lambda error: "yes" in str(error), ValueError("yes"), True),
        (lambda error: "yes" in str(error), ValueError("no"), False),
        (Exception, NotRestartable("no"), False),
        (lambda error: True, NotRestartable("no"), False),
        (Exception, ExceptionGroup("", [OSError(), NotRestartable("no")]), False),
        (Exception, WorkerError("no"), False),
        (Exception, DeadlockError("no"), False),
        (Exception, WorkerFailed(ValueError("elsewhere")), True),
    ],
)
async def test_which_errors(on, error, is_restarted, in_thread):
    """It says for which errors work is run again; some end it in any case."""
    failing = Failing(error)
    work = failing.work_in_thread if in_thread else failing.work
    async with Node("app") as app:
        worker = await run(app, service(work, on=on, restart=AT_ONCE), thread=in_thread)
    assert (worker.state, worker.attempt) == ((SUCCESS, 2) if is_restarted else (ERROR, 1))
    assert worker.error is (None if is_restarted else error)


async def test_error_of_what_tells():
    """What the function raises that is to tell ends the service."""

    def tell(error):
        raise KeyError(str(error))

    async with Node("app") as app:
        worker = await run(app, service(Failing(ValueError("first")).work, on=tell))
    assert repr(worker.error) == "KeyError('first')"
    assert repr(worker.error.__context__) == "ValueError('first')"


@pytest.mark.parametrize("in_thread", [False, True])
async def test_exit(in_thread):
    """What is no Exception is not restarted."""
    failing = Failing(SystemExit(3))
    work = failing.work_in_thread if in_thread else failing.work
    with pytest.raises(SystemExit):
        async with Node("app") as app:
            app.run_worker(service(work, restart=AT_ONCE), thread=in_thread)
    assert failing.runs == 1


async def test_refusal_of_a_node_that_shuts_down():
    """A service that wants to start work then fails alone, at once and with the very error."""
    go = anyio.Event()

    async def work():
        await go.wait()
        app.run_worker(anyio.sleep_forever)

    async with Node("app") as app:
        worker = app.run_worker(service(work, restart=AT_ONCE))
        await settle()
        go.set()
        await app.shutdown(grace=60)
    assert type(worker.error) is WorkerError
    assert worker.attempt == 1


# readiness


class Server:
    """Work that is ready in each attempt, and fails as it is told to."""

    def __init__(self):
        self.fails = anyio.Event()

    async def keyword(self, *, task_status):
        worker = active_worker.get()
        assert not worker.is_ready
        task_status.started(worker.attempt)
        assert worker.is_ready
        await self.fails.wait()
        self.fails = anyio.Event()
        raise ValueError

    async def positional(self, task_status=anyio.TASK_STATUS_IGNORED):
        await self.keyword(task_status=task_status)

    async def __call__(self, task_status):
        await self.keyword(task_status=task_status)


@pytest.mark.parametrize("how", ["keyword", "positional", "an object", "a partial"])
async def test_ready(how):
    """Work that has a task_status is given one in each attempt; it says that it is ready."""
    server = Server()
    work = server if how == "an object" else functools.partial(server.keyword)
    work = getattr(server, how, work)
    async with Node("app") as app:
        worker = await app.start_worker(service(work, restart=AT_ONCE), ready=True)
        for attempt in (1, 2):
            assert await worker.until_ready() == attempt
            assert app.is_ready
            server.fails.set()
            await until(lambda attempt=attempt: worker.attempt > attempt)
        assert await worker.until_ready() == 3
        worker.cancel()


async def test_ready_after_a_failure():
    """Who waits for a service to be ready learns of it, in whichever attempt it is."""
    failing = Failing(*errors(2))

    async def serve(task_status):
        await settle()
        failing.next()
        task_status.started(failing.runs)
        await anyio.sleep_forever()

    async with Node("app") as app:
        with anyio.fail_after(RENDEZVOUS):
            worker = await app.start_worker(service(serve, restart=AT_ONCE), ready=True)
            assert await worker.until_ready() == worker.attempt == 3
        worker.cancel()


async def test_ready_in_a_thread():
    """So it is in a thread."""

    def serve(task_status):
        task_status.started("here")

    async with Node("app") as app:
        worker = await app.start_worker(service(serve), thread=True, ready=True)
        assert await worker.until_ready() == "here"


async def test_status_outlives_the_worker():
    """It does not keep the worker alive, and then says nothing."""
    kept = []

    async def serve(task_status):
        kept.append(task_status)

    with no_collection():
        async with Node("app") as app:
            worker = weakref.ref(await run(app, service(serve)))
        del app
        await settle()
        assert worker() is None
        kept[0].started(3)


# threads


async def test_thread():
    """A plain function is run again in its thread."""
    failing = Failing(*errors(3))
    async with Node("app") as app:
        worker = app.run_worker(service(failing.work_in_thread, restart=AT_ONCE), thread=True)
        assert await worker == 4
    assert worker.attempt == 4


async def test_budget_in_a_thread():
    """It has the same budget there."""
    failing = Failing(*errors(9))
    async with Node("app") as app:
        worker = await run(app, service(failing.work_in_thread, restart=AT_ONCE), thread=True)
    assert isinstance(worker.error, RestartsExhausted)
    assert worker.error.exceptions == failing.errors[:4]


@pytest.mark.parametrize("wait", [60, sys.float_info.max])
async def test_cancel_ends_a_wait_in_a_thread(wait):
    """At once there too, however long it is."""
    failing = Failing(*errors(9))
    async with Node("app") as app:
        restart = Restart(backoff=Backoff(wait, wait))
        worker = app.run_worker(service(failing.work_in_thread, restart=restart), thread=True)
        await until(lambda: worker.attempt == 2)
        worker.cancel()
        with anyio.fail_after(RENDEZVOUS):
            await worker.join()
    assert worker.state is CANCELLED
    assert failing.runs == 1


async def test_thread_that_is_cancelled(caplog):
    """A thread that notices its cancellation is not run again, nor one that fails of it."""
    runs = []

    def work(error):
        worker = active_worker.get()
        runs.append(1)
        assert worker.cancelled_event.wait(RENDEZVOUS)
        if error is not None:
            raise error
        worker.check_cancelled()

    for error in (None, ValueError()):
        async with Node("app") as app:
            again = service(functools.partial(work, error), restart=AT_ONCE)
            worker = app.run_worker(again, thread=True, exit_on_error=False)
            await until(lambda: runs)
            worker.cancel()
        assert worker.state is CANCELLED
        assert worker.attempt == 1
        assert len(runs) == 1
        runs.clear()
        assert [each.exc_info[1] for each in warnings_in(caplog)] == [error] * (error is not None)


async def test_async_service_in_a_thread():
    """An async one may run in a thread, on an event loop of its own."""
    failing = Failing(*errors(2))
    async with Node("app") as app:
        worker = app.run_worker(service(failing.work, restart=AT_ONCE), thread=True)
        assert await worker == 3


async def test_plain_function_without_a_thread():
    """It would keep the event loop busy, so it is refused."""
    failing = Failing(*errors(2))
    async with Node("app") as app:
        worker = await run(app, service(failing.work_in_thread))
    assert str(worker.error) == (
        "work_in_thread() is a plain function, so it is a service of a thread; run it with "
        "thread=True, or make it an async function"
    )
    assert failing.runs == 0


@pytest.mark.parametrize("make", [lowlevel.checkpoint, asyncio.Future])
async def test_plain_function_that_returns_a_coroutine(make):
    """The cure is told, and nothing is left un-awaited."""
    loop = asyncio.new_event_loop() if make is asyncio.Future else None

    def work():
        return make() if loop is None else loop.create_future()

    async with Node("app") as app:
        worker = await run(app, service(work, restart=AT_ONCE), thread=True)
    assert "returned something to be awaited; give service() the async function" in str(
        worker.error
    )
    assert worker.attempt == 1
    if loop is not None:
        loop.close()


async def test_async_function_that_returns_no_awaitable():
    """What only looks async is told of."""

    @functools.wraps(anyio.sleep_forever)
    def work():
        return 3

    async with Node("app") as app:
        worker = await run(app, service(work))
    assert str(worker.error).endswith(
        "was to be an async function, and returned no awaitable but 3"
    )


# the function


def decorated(fn):
    @functools.wraps(fn)
    def wrapper(*args):
        return fn(*args)

    return wrapper


async def consume(queue="orders"):
    """Consume."""
    return queue


def consume_in_thread():
    return "thread"


class Consumer:
    async def __call__(self):
        return "object"

    async def consume(self):
        return "method"


class PlainConsumer:
    def __call__(self):
        return "plain object"


@pytest.mark.parametrize(
    ("fn", "name", "result"),
    [
        (consume, "consume", "orders"),
        (functools.partial(consume, "bills"), "consume", "bills"),
        (functools.partial(functools.partial(consume), "bills"), "consume", "bills"),
        (Consumer().consume, "consume", "method"),
        (Consumer(), "Consumer", "object"),
        (functools.partial(Consumer()), "Consumer", "object"),
        (decorated(consume), "consume", "orders"),
        (decorated(decorated(consume)), "consume", "orders"),
        (functools.partial(decorated(consume), "bills"), "consume", "bills"),
        (consume_in_thread, "consume_in_thread", "thread"),
        (decorated(consume_in_thread), "consume_in_thread", "thread"),
        (PlainConsumer(), "PlainConsumer", "plain object"),
        (threading.active_count, "active_count", None),
        (dict.fromkeys, "fromkeys", None),
        (max, "max", None),
    ],
    ids=map(str, range(15)),
)
async def test_name(fn, name, result):
    """A service has the name of its function, so that its worker has it."""
    if name in ("fromkeys", "max"):
        fn = functools.partial(fn, "ab")
    again = service(fn)
    in_thread = not inspect.iscoroutinefunction(again)
    async with Node("app") as app:
        worker = await run(app, again, thread=in_thread)
    assert worker.name == again.__name__ == name
    assert result in (None, worker.result)
    assert worker.state is SUCCESS
    if fn is consume:
        assert again.__doc__ == "Consume."


def generator():
    yield


async def async_generator():
    yield


class Odd:
    __call__ = PlainConsumer()


async def bare(argument):
    """It needs one."""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fn": 3}, "service() takes a function, async or plain, not 3"),
        ({"fn": dict}, "service() takes a function, async or plain, not <class 'dict'>"),
        ({"fn": generator}, "generator() is a generator, of which nothing would run; iterate"),
        ({"fn": functools.partial(async_generator)}, "async_generator() is a generator"),
        ({"fn": Odd()}, "it cannot be told whether <"),
        ({"fn": bare}, "bare() needs an argument, 'argument', and a service is called without; "),
        ({"restart": 3}, "restart must be a Restart(), not 3"),
        ({"restart": Restart}, "restart must be a Restart(), not <class"),
        ({"on": 3}, "on must be a class of exceptions, a tuple of such classes, or a function"),
        ({"on": BaseException}, "on must be a class of exceptions"),
        ({"on": (OSError, 3)}, "on must be a class of exceptions"),
        ({"on": int}, "on must be a class of exceptions"),
        ({"on": bare}, "on must tell at once whether to run the work again; give a plain def"),
    ],
)
def test_mistakes(arguments, message):
    """Each is told at the call."""
    with pytest.raises(WorkerError, match=re.escape(message)):
        service(**{"fn": consume, **arguments})


def test_positional_only_status():
    """A parameter that cannot be named is an argument as any other."""

    async def serve(task_status, /): ...

    with pytest.raises(WorkerError, match="needs an argument, 'task_status'"):
        service(serve)


async def test_other_parameters():
    """What need not be given is not; and what takes anything gets nothing."""

    async def serve(queue="orders", *args, task=None, task_status=None, **options):
        return queue, args, task, task_status is None, options

    async with Node("app") as app:
        worker = await run(app, service(serve))
    assert worker.result == ("orders", (), None, False, {})


async def test_coroutine_object():
    """It is closed, and the cure is told."""
    with pytest.raises(WorkerError) as caught:
        service(consume("bills"))
    assert "which runs once; give consume, or functools.partial(consume, ...) if" in str(
        caught.value
    )
    async with Node("app") as app:
        worker = app.run_worker(consume)
        with pytest.raises(WorkerError, match="which runs once; give fn, or"):
            service(worker)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Backoff(-1), "first must be a number, 0 or more, not -1"),
        (lambda: Backoff("1"), "first must be a number, 0 or more, not '1'"),
        (lambda: Backoff(True), "first must be a number, 0 or more, not True"),
        (lambda: Backoff(float("nan")), "first must be a number, 0 or more, not nan"),
        (lambda: Backoff(5, 4), "longest must be a number, 5 or more, not 4"),
        (lambda: Backoff(5, float("inf")), "longest must be a number, 5 or more, not inf"),
        (lambda: Backoff(factor=0.5), "factor must be a number, 1 or more, not 0.5"),
        (lambda: Backoff(jitter=2), "jitter must be a number, from 0 to 1, not 2"),
        (lambda: Restart(-1), "max must be a number, 0 or more, not -1"),
        (lambda: Restart(2.5), "max must be a whole number, or None, not 2.5"),
        (lambda: Restart(True), "max must be a whole number, or None, not True"),
        (lambda: Restart(within=-1), "within must be a number, 0 or more, not -1"),
        (lambda: Restart(reset_after=None), "reset_after must be a number, 0 or more, not None"),
        (lambda: Restart(backoff=3), "backoff must be a Backoff(), not 3"),
    ],
)
def test_numbers_that_make_no_sense(make, message):
    """Each is told at the call."""
    with pytest.raises(WorkerError, match=f"^{re.escape(message)}$"):
        make()


async def test_outside_of_a_worker():
    """There is nothing to count in, and that is told."""
    with pytest.raises(NoActiveWorker):
        await service(consume)()
    with pytest.raises(NoActiveWorker):
        service(consume_in_thread)()


def test_parts_of_what_was_exhausted():
    """except* and split() give the same class; and it can be pickled."""
    error = RestartsExhausted("all", [ValueError("one"), KeyError("two")])
    match, rest = error.split(KeyError)
    assert [type(each) for each in (match, rest)] == [RestartsExhausted] * 2
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 (its own)


class Dropped(Exception):
    """An error that nothing else keeps."""


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize(
    ("kinds", "state"),
    [
        ([], SUCCESS),
        ([Dropped], SUCCESS),
        ([Dropped, NotRestartable], ERROR),
        ([Dropped] * 4, ERROR),
    ],
    ids=["no error", "one", "another", "many"],
)
async def test_no_cycles(anyio_backend, kinds, state, in_thread):
    """Once a worker has ended, nothing keeps it or its errors alive, without a collection."""
    if in_thread and state is ERROR and anyio_backend[0] == "trio":
        pytest.skip("AnyIO's frame in the thread keeps any work that has failed in Trio's threads")
    left = list(kinds)

    async def work(task_status):
        work_in_thread(task_status)

    def work_in_thread(task_status):
        if left:
            raise left.pop(0)

    with no_collection():
        async with Node("app") as app:
            again = service(work_in_thread if in_thread else work, restart=AT_ONCE)
            worker = await run(app, again, thread=in_thread)
        assert worker.state is state
        kept = weakref.ref(worker)
        del worker, app
        await until_gone(kept)


# the watchdog


class Lines(logging.Handler):
    """Keeps what the logger is told, and lets threads wait for it."""

    def __init__(self):
        super().__init__()
        self.records = []
        self.changed = threading.Condition()

    def emit(self, record):
        with self.changed:
            self.records.append(record)
            self.changed.notify_all()

    def find(self, text):
        return next((each for each in self.records if text in each.getMessage()), None)

    def wait_for(self, text):
        """Keep this thread until something is told."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.find(text), RENDEZVOUS), self.records
        return self.find(text)


@pytest.fixture
def lines():
    handler = Lines()
    logger = logging.getLogger("creche")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


BRIEF = 0.05
"""Seconds of a loop that stands still; a machine that is busy may well do so by itself."""


async def test_worker_that_blocks(lines):
    """It is named, with the line that it is in; and it is told when the loop goes on."""

    async def compute():
        await lowlevel.checkpoint()
        lines.wait_for("lines.wait_for(")

    async with assert_nothing_left(), Node("app") as app, watchdog(app, BRIEF):
        other = app.run_worker(anyio.sleep_forever, name="sums", group="heavy", start=False)
        worker = app.run_worker(compute, name="sums", group="heavy")
        await worker
        other.cancel()
        await until(lambda: lines.find("goes on"))
    record = lines.find("lines.wait_for(")
    assert record.levelno == lines.find("goes on").levelno == logging.WARNING
    text = record.getMessage()
    assert text.startswith("the event loop of node 'app' has stood still for 0.05 s, in a step of ")
    assert "worker 'sums' (task 'app/heavy/sums'):\n" in text
    assert "in compute\n    lines.wait_for(" in text
    fields = [getattr(record, f"creche_{each}") for each in ("worker", "number", "group", "node")]
    assert fields == ["sums", worker.number, "heavy", "app"]
    assert re.fullmatch(
        r"the event loop of node 'app' goes on after \d+\.\d\d s",
        lines.find("goes on").getMessage(),
    )


async def test_worker_that_blocks_for_long(lines):
    """It is told again after twice as long, and after four times as long."""

    last = "has stood still for 0.20 s"  # elsewhere than in the lines that are shown

    async def compute():
        lines.wait_for(last)

    async with Node("app") as app, watchdog(app, BRIEF):
        await app.run_worker(compute)
    for seconds in ("0.05", "0.10", "0.20"):
        assert lines.find(f"has stood still for {seconds} s, in a step of worker 'compute'")


async def test_task_of_a_worker_that_blocks(lines, anyio_backend):
    """The worker is named whose work has spawned the task, where Python tells."""

    async def compute():
        await lowlevel.checkpoint()
        lines.wait_for("lines.wait_for(")

    async def work():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(compute, name="a part of it")

    async with watchdog(Node("other"), BRIEF), Node("app") as app:
        app.run_worker(work, name="sums")
    text = lines.find("lines.wait_for(").getMessage()
    if anyio_backend[0] == "trio" or sys.version_info >= (3, 12):
        assert "in a step of worker 'sums' (task 'a part of it'):\n" in text
    else:
        assert "in a step of task 'a part of it':\n" in text


async def test_task_of_no_worker_that_blocks(lines):
    """A task of one's own is named."""

    async def compute():
        lines.wait_for("lines.wait_for(")

    async with anyio.create_task_group() as tasks, Node("app") as app, watchdog(app, BRIEF):
        tasks.start_soon(compute, name="mine")
        await until(lambda: lines.find("goes on"))
    assert "in a step of task 'mine':\n" in lines.find("lines.wait_for(").getMessage()


async def test_callback_that_blocks(lines, anyio_backend):
    """A callback of asyncio's runs in no task."""
    if anyio_backend[0] == "trio":
        pytest.skip("for asyncio")

    def callback():
        lines.wait_for("lines.wait_for(")

    async with Node("app") as app, watchdog(app, BRIEF):
        asyncio.get_running_loop().call_soon(callback)
        await until(lambda: lines.find("goes on"))
    text = lines.find("lines.wait_for(").getMessage()
    assert "in a step of no task:\n" in text
    assert "in callback\n" in text


async def test_collection(lines):
    """A garbage collection that takes long is told apart."""

    def dawdle(phase, info):
        if phase == "start":
            lines.wait_for("lines.wait_for(")

    async with Node("app") as app, watchdog(app, BRIEF):
        gc.callbacks.append(dawdle)
        try:
            gc.collect(1)
        finally:
            gc.callbacks.remove(dawdle)
    assert "s for a garbage collection of generation 1, in a step of task" in (
        lines.find("lines.wait_for(").getMessage()
    )


class Clocks:
    """The clocks that the watchdog reads, which go on by themselves and jump when they are told."""

    def __init__(self, monkeypatch):
        self.jumps = {"_now": 0.0, "_cpu": 0.0}
        for name in self.jumps:
            monkeypatch.setattr(_watchdog, name, self.read(name, getattr(_watchdog, name)))

    def read(self, name, real):
        return lambda: real() + self.jumps[name]

    def jump(self, now, cpu):
        self.jumps["_now"] += now
        self.jumps["_cpu"] += cpu


@pytest.fixture
def clocks(monkeypatch):
    return Clocks(monkeypatch)


DID_NOT_RUN = "the process of node 'app' did not run for [0-9]{2,}[.].* s: it was stopped, or the"


@pytest.mark.parametrize(
    ("has_gil", "cpu", "collects", "text"),
    [
        (True, 0, False, DID_NOT_RUN),
        (
            True,
            90,
            False,
            "stood still for [0-9]{2,}[.].* s and let no other thread run, in a step of worker 's'",
        ),
        (
            True,
            90,
            True,
            "stood still for [0-9]{2,}[.].* s for a garbage collection, in a step of worker 's'",
        ),
        (False, 90, False, DID_NOT_RUN),
        (
            False,
            90,
            True,
            "stood still for [0-9]{2,}[.].* s for a garbage collection, in a step of worker 's'",
        ),
    ],
)
async def test_thread_that_comes_late(lines, clocks, monkeypatch, has_gil, cpu, collects, text):
    """What kept the watchdog itself from running is found out by the processor's time.

    Without a GIL no step can, so the loop may have gone on meanwhile.
    """
    monkeypatch.setattr(_watchdog, "_has_gil", has_gil)

    def jump(phase="start", info=None):
        if phase == "start":
            clocks.jump(now=100, cpu=cpu)

    def is_told():
        return any(re.search(text, each.getMessage()) for each in lines.records)

    async def work():
        for _ in range(100):
            # The watchdog may look at the clock just after it, so that it has to jump again.
            if collects:
                gc.callbacks.append(jump)  # within what the callback before it sees
                gc.collect(0)
                gc.callbacks.remove(jump)
            else:
                jump()
            with lines.changed:
                if lines.changed.wait_for(is_told, 2 * BRIEF):
                    return
        raise AssertionError(lines.records)

    async with Node("app") as app, watchdog(app, 2 * BRIEF):
        await app.run_worker(work, name="s")


@pytest.mark.parametrize(
    ("jumps", "pauses", "is_late"),
    [((100, 0), [5, 5], True), ((3, 5), [5, 2], False), ((5, 0), [5], False)],
    ids=["late", "early", "in time"],
)
async def test_time_in_which_nothing_ran(lines, monkeypatch, jumps, pauses, is_late):
    """After it the loop has all of the time again to give a sign; clocks may be early."""
    now, left = [0], iter(jumps)
    monkeypatch.setattr(_watchdog, "_now", lambda: now[0])

    class Sign:
        pauses = ()

        def wait(self, seconds):
            self.pauses = [*self.pauses, seconds]
            now[0] += next(left)
            return len(self.pauses) > 1

    sign = Sign()
    assert _watchdog._Watch(Node("app"), 1)._wait(sign, 5) == (len(pauses) > 1)
    assert sign.pauses == pauses
    assert bool(lines.find("did not run for 95.00 s")) == is_late


async def test_loop_that_answers(lines, monkeypatch):
    """Nothing is told of a loop that turns, and it is asked again and again."""
    asked = []
    call_soon = _watchdog._Loop.call_soon

    def counted(self, call):
        asked.append(call)
        return call_soon(self, call)

    monkeypatch.setattr(_watchdog._Loop, "call_soon", counted)
    async with Node("app") as app, watchdog(app, 4 * BRIEF):
        await until(lambda: len(asked) >= 3)
        assert not lines.find("in a step of")
        lines.wait_for("has stood still")  # each answer is for one question


@pytest.mark.parametrize("how", ["a return", "an error", "a cancellation"])
async def test_nothing_is_left_of_a_watchdog(how):
    """Neither a thread nor a callback, however the block ends."""
    callbacks = list(gc.callbacks)

    def watchdogs():
        return [each for each in threading.enumerate() if each.name.startswith("watchdog")]

    with anyio.CancelScope() as scope:
        try:
            async with watchdog(Node("app"), 3600):
                assert [each.name for each in watchdogs()] == ["watchdog of node 'app'"]
                assert len(gc.callbacks) == len(callbacks) + 1
                if how == "an error":
                    raise ValueError(how)
                if how == "a cancellation":
                    scope.cancel()
                    await anyio.sleep_forever()
        except ValueError:
            assert how == "an error"
    assert scope.cancelled_caught == (how == "a cancellation")
    assert watchdogs() == []
    assert gc.callbacks == callbacks


async def test_no_thread_to_be_had(monkeypatch):
    """Nothing is left where the thread cannot be started."""
    callbacks = list(gc.callbacks)

    def refuse(thread, start=threading.Thread.start):
        if thread.name.startswith("watchdog"):  # others go on
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        async with watchdog(Node("app")):
            pass
    assert gc.callbacks == callbacks


def test_loop_that_is_gone(backend):
    """A watchdog whose block is never left ends with its loop."""
    watches = []

    async def main():
        watches.append(_watchdog._Watch(Node("app"), BRIEF))
        watches[0].start()

    anyio.run(main, **backend)
    gc.callbacks.remove(watches[0]._on_collection)
    watches[0]._thread.join(RENDEZVOUS)
    assert not watches[0]._thread.is_alive()


@pytest.mark.parametrize("blocked", [0, -1, "1", float("nan"), float("inf")])
async def test_mistakes_with_a_watchdog(blocked):
    """Each is told at the call."""
    with pytest.raises(WorkerError, match="blocked must be seconds, more than 0, not "):
        async with watchdog(Node("app"), blocked):
            pass
    with pytest.raises(WorkerError, match=r"watchdog\(\) takes a Node, not 3"):
        async with watchdog(3):
            pass


def test_order_by_nesting():
    """The program of the page: what needs something has ended before that is told to stop."""
    (program,) = [
        each for each in blocks(ROOT / "docs" / "services.md") if "stop_on_signals" in each
    ]
    done = run_python(program)
    assert done.stdout.splitlines() == [
        "server stops",
        "consumer stops",
        "database stops",
        "exit status 143",
    ]
    assert done.stderr == ""


def test_public_names_only():
    """The package uses nothing of the library that its users could not use."""
    imported = set()
    for path in Path(services.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and re.match("_(?!_)", node.attr):
                assert ast.unparse(node) == "sys._current_frames" or (
                    ast.unparse(node.value) == "self"
                ), ast.unparse(node)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.update(f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Import):
                imported.update(alias.name for alias in node.names)
    assert {name for name in imported if "._" in name} == set()
    assert "creche.Node" in imported
