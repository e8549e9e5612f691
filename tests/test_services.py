"""Services, which run work again when it fails, and the watchdog of the event loop."""

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
"""Restarts at once, with no delay."""


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
    """Work that raises the given errors one by one, then returns how often it has run."""

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
    """Run work in a worker and wait until it ends."""
    return await app.run_worker(work, exit_on_error=False, **options).join()


# restarts


async def test_runs_again_until_it_returns(caplog):
    """A service stays RUNNING; each restart counts as an attempt, is posted and is logged."""
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
    """One failure more than the budget allows ends the service, with all those errors."""
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
    """With max=None a service may fail any number of times."""
    failing = Failing(*errors(50))
    async with Node("app") as app:
        worker = await run(app, service(failing.work, restart=Restart(None, backoff=Backoff(0))))
    assert worker.result == 51


async def test_each_worker_has_a_budget_of_its_own():
    """One service can be run by many workers at the same time, each with its own budget."""
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
    """Each wait is the last one times the factor, up to the longest; a healthy run resets it."""

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
    """Failures longer ago than the window do not count; one at its very edge does."""

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
    """Jitter shortens each wait by a random amount, up to the given fraction of it."""

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
    """Waits grow to the longest, no matter how large the factor is."""

    async def main():
        failing = Failing(*errors(5))
        async with Node("app") as app:
            backoff = Backoff(1, 2, factor=1e308, jitter=0)
            worker = await run(app, service(failing.work, restart=Restart(backoff=backoff)))
        assert worker.elapsed == 1 + 2 * 4

    fly(main)


def test_cancel_ends_a_wait(fly):
    """Cancelling a service that waits to restart ends it at once, as CANCELLED."""

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
    """A service that waits to restart is cancelled when the grace period of shutdown() is over."""

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
    """The stall_after of a service overrides that of its worker; an invalid one is refused."""

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


# what ends a service


async def test_cancellation_is_not_restarted():
    """Work that is cancelled is not restarted, even with always=True."""
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
    """An error it would be restarted for is only logged if the worker was cancelled."""
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
    """An error that it would not be restarted for fails even a cancelled worker, as usual."""
    options = {"on": OSError} if kind == "another class" else {"restart": Restart(max=0)}
    async with Node("app") as app:
        work = service(functools.partial(fail_late, ValueError("too late")), **options)
        worker = app.run_worker(work, exit_on_error=False)
        await settle()
        worker.cancel()
    expected = ValueError if kind == "another class" else RestartsExhausted
    assert isinstance(worker.error, expected)


async def test_cancelled_work_that_asks():
    """A worker's own WorkerCancelled ends it silently; that of another worker is an error."""
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
    """The same goes for a cancel scope around the node, which the workers do not know of."""
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
    """With always=True, work that returns is run again, and the return counts as a failure."""
    failing = Failing()
    work = failing.work_in_thread if in_thread else failing.work
    async with Node("app") as app:
        worker = await run(app, service(work, always=True, restart=AT_ONCE), thread=in_thread)
    assert [str(each) for each in worker.error.exceptions] == [
        f"{work.__name__}() returned, and is to run always"
    ] * 4


@pytest.mark.parametrize("in_thread", [False, True])
async def test_always_but_once_it_is_cancelled(in_thread):
    """With always=True, work that swallows its cancellation and returns is not run again."""
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
    """``on`` says which errors restart the work; some end it in any case."""
    failing = Failing(error)
    work = failing.work_in_thread if in_thread else failing.work
    async with Node("app") as app:
        worker = await run(app, service(work, on=on, restart=AT_ONCE), thread=in_thread)
    assert (worker.state, worker.attempt) == ((SUCCESS, 2) if is_restarted else (ERROR, 1))
    assert worker.error is (None if is_restarted else error)


async def test_error_of_what_tells():
    """An error raised by the function given as ``on`` ends the service."""

    def tell(error):
        raise KeyError(str(error))

    async with Node("app") as app:
        worker = await run(app, service(Failing(ValueError("first")).work, on=tell))
    assert repr(worker.error) == "KeyError('first')"
    assert repr(worker.error.__context__) == "ValueError('first')"


@pytest.mark.parametrize("in_thread", [False, True])
async def test_exit(in_thread):
    """A BaseException that is not an Exception, such as SystemExit, does not restart the work."""
    failing = Failing(SystemExit(3))
    work = failing.work_in_thread if in_thread else failing.work
    with pytest.raises(SystemExit):
        async with Node("app") as app:
            app.run_worker(service(work, restart=AT_ONCE), thread=in_thread)
    assert failing.runs == 1


async def test_refusal_of_a_node_that_shuts_down():
    """A service that is refused new work fails at once, alone and with that very error."""
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
    """Work that reports that it is ready in each attempt, and fails on demand."""

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
    """Work with a task_status parameter gets one in each attempt, and is ready once it is set."""
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
    """A task that waits for a service to be ready resumes, whichever attempt gets that far."""
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
    """A service in a thread can report that it is ready, too."""

    def serve(task_status):
        task_status.started("here")

    async with Node("app") as app:
        worker = await app.start_worker(service(serve), thread=True, ready=True)
        assert await worker.until_ready() == "here"


async def test_status_outlives_the_worker():
    """A task_status does not keep its worker alive, and does nothing once the worker is gone."""
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
    """A plain function is restarted in its thread."""
    failing = Failing(*errors(3))
    async with Node("app") as app:
        worker = app.run_worker(service(failing.work_in_thread, restart=AT_ONCE), thread=True)
        assert await worker == 4
    assert worker.attempt == 4


async def test_budget_in_a_thread():
    """A service in a thread has the same budget."""
    failing = Failing(*errors(9))
    async with Node("app") as app:
        worker = await run(app, service(failing.work_in_thread, restart=AT_ONCE), thread=True)
    assert isinstance(worker.error, RestartsExhausted)
    assert worker.error.exceptions == failing.errors[:4]


@pytest.mark.parametrize("wait", [60, sys.float_info.max])
async def test_cancel_ends_a_wait_in_a_thread(wait):
    """Cancelling ends a wait in a thread at once, no matter how long the wait is."""
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
    """A cancelled thread is not run again, whether it checks for cancellation or fails."""
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
    """An async service may run in a thread, on an event loop of its own."""
    failing = Failing(*errors(2))
    async with Node("app") as app:
        worker = app.run_worker(service(failing.work, restart=AT_ONCE), thread=True)
        assert await worker == 3


async def test_plain_function_without_a_thread():
    """A plain function without thread=True would block the event loop, so it is refused."""
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
    """The error says what to do, and no coroutine is left un-awaited."""
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
    """A function that only looks async is an error that says so."""

    @functools.wraps(anyio.sleep_forever)
    def work():
        return 3

    async with Node("app") as app:
        worker = await run(app, service(work))
    assert str(worker.error).endswith(
        "must be an async function, and returned 3, which is not awaitable"
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
    """A service has the name of its function, and so does its worker."""
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
    """Take an argument."""


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
    """Mistakes in the arguments are errors at the call of service()."""
    with pytest.raises(WorkerError, match=re.escape(message)):
        service(**{"fn": consume, **arguments})


def test_positional_only_status():
    """A positional-only task_status is an argument like any other."""

    async def serve(task_status, /): ...

    with pytest.raises(WorkerError, match="needs an argument, 'task_status'"):
        service(serve)


async def test_other_parameters():
    """Optional parameters keep their defaults; *args and **options stay empty."""

    async def serve(queue="orders", *args, task=None, task_status=None, **options):
        return queue, args, task, task_status is None, options

    async with Node("app") as app:
        worker = await run(app, service(serve))
    assert worker.result == ("orders", (), None, False, {})


async def test_coroutine_object():
    """A coroutine object is closed, and the error says what to pass instead."""
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
    """Invalid numbers are errors at the call."""
    with pytest.raises(WorkerError, match=f"^{re.escape(message)}$"):
        make()


async def test_outside_of_a_worker():
    """A service called outside of a worker raises NoActiveWorker."""
    with pytest.raises(NoActiveWorker):
        await service(consume)()
    with pytest.raises(NoActiveWorker):
        service(consume_in_thread)()


def test_parts_of_what_was_exhausted():
    """split() keeps the class of a RestartsExhausted, and it can be pickled."""
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
    """A worker that has ended is freed without a garbage collection, and so are its errors."""
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
    """Keeps the records of a logger, and lets threads wait for one."""

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
        """Block this thread until a record contains the text."""
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
"""How long a loop is blocked, in seconds; on a busy machine that may happen by itself."""


async def test_worker_that_blocks(lines):
    """The log names a worker that blocks and its line, and says when the loop goes on."""

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
    """A worker that stays blocked is logged again after twice and four times as long."""

    last = "has stood still for 0.20 s"  # up here, so that the lines in the log do not contain it

    async def compute():
        lines.wait_for(last)

    async with Node("app") as app, watchdog(app, BRIEF):
        await app.run_worker(compute)
    for seconds in ("0.05", "0.10", "0.20"):
        assert lines.find(f"has stood still for {seconds} s, in a step of worker 'compute'")


async def test_task_of_a_worker_that_blocks(lines, anyio_backend):
    """A blocking child task is logged with its worker, where Python can find that out."""

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
    """A blocking task that belongs to no worker is logged with its name."""

    async def compute():
        lines.wait_for("lines.wait_for(")

    async with anyio.create_task_group() as tasks, Node("app") as app, watchdog(app, BRIEF):
        tasks.start_soon(compute, name="mine")
        await until(lambda: lines.find("goes on"))
    assert "in a step of task 'mine':\n" in lines.find("lines.wait_for(").getMessage()


async def test_callback_that_blocks(lines, anyio_backend):
    """A blocking callback of asyncio is logged as a step of no task."""
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
    """A long garbage collection is logged as the cause."""

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
    """The clocks that the watchdog reads: the real ones, plus jumps that the test makes."""

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
    """A watchdog that wakes up late finds out why from the CPU time that the process has used.

    Without a GIL no step can keep it from running, so the loop may have gone on meanwhile.
    """
    monkeypatch.setattr(_watchdog, "_has_gil", has_gil)

    def jump(phase="start", info=None):
        if phase == "start":
            clocks.jump(now=100, cpu=cpu)

    def is_told():
        return any(re.search(text, each.getMessage()) for each in lines.records)

    async def work():
        for _ in range(100):
            # The watchdog may read the clock just after the jump, so it takes several.
            if collects:
                gc.callbacks.append(jump)  # after the callback of the watchdog
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
    """After a time in which the process did not run, the loop gets the full time again."""
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
    """A loop that answers is asked again and again, and nothing is logged."""
    asked = []
    call_soon = _watchdog._Loop.call_soon

    def counted(self, call):
        asked.append(call)
        return call_soon(self, call)

    monkeypatch.setattr(_watchdog._Loop, "call_soon", counted)
    async with Node("app") as app, watchdog(app, 4 * BRIEF):
        await until(lambda: len(asked) >= 3)
        assert not lines.find("in a step of")
        lines.wait_for("has stood still")  # each question needs an answer of its own


@pytest.mark.parametrize("how", ["a return", "an error", "a cancellation"])
async def test_nothing_is_left_of_a_watchdog(how):
    """A watchdog leaves neither a thread nor a callback, however its block ends."""
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
    """If the thread cannot be started, no callback is left behind."""
    callbacks = list(gc.callbacks)

    def refuse(thread, start=threading.Thread.start):
        if thread.name.startswith("watchdog"):  # other threads start as usual
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        async with watchdog(Node("app")):
            pass
    assert gc.callbacks == callbacks


def test_loop_that_is_gone(backend):
    """The thread of a watchdog whose block is never left ends when its loop has ended."""
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
    """watchdog() refuses an invalid time, and what is not a node."""
    with pytest.raises(WorkerError, match="blocked must be seconds, more than 0, not "):
        async with watchdog(Node("app"), blocked):
            pass
    with pytest.raises(WorkerError, match=r"watchdog\(\) takes a Node, not 3"):
        async with watchdog(3):
            pass


def test_order_by_nesting():
    """The program in the docs stops each part before the parts that it needs."""
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
    """The package uses only public names of the library."""
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
