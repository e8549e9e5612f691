"""Users' objects whose methods raise: nothing hangs, no error is lost, nothing is kept alive.

One table lists the objects, another the places in the library that such an object may reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass

import anyio
import pytest
from anyio import lowlevel

from creche import Message, Node, Worker, WorkerError, WorkerFailed
from helpers import (
    CANCELLED,
    ERROR,
    RENDEZVOUS,
    SUCCESS,
    BaseExceptionGroup,
    ExceptionGroup,
    settle,
)

FINAL = (CANCELLED, ERROR, SUCCESS)


class Refusal(ValueError):
    pass


class Base(BaseException):
    """A BaseException that is not an Exception, such as test runners raise when a test fails."""


FAULTS = [Refusal, RecursionError, Base]


def refusing(names, fault):
    """Return methods that raise."""

    def refuse(*_, **__):
        raise fault("refused")

    return dict.fromkeys(names.split(), refuse)


def asked(names, fault):
    """Return properties that raise when they are read or set."""
    return {name: property(each, each) for name, each in refusing(names, fault).items()}


def odd(base, *args, **attributes):
    """Make an instance of a new class."""
    return type("Odd", (base,), attributes)(*args)


TEXTS = "__str__ __repr__ __format__ __hash__ __eq__ __bool__ __len__ __iter__ __reduce__"
LINKS = "__traceback__ __context__ __cause__ __suppress_context__"
PARTS = ("odd", [ValueError("one"), KeyError("two")])


@dataclass(frozen=True)
class Frozen(Exception):
    code: int = 1


ERRORS = {
    "frozen": lambda _: Frozen(),
    "slots": lambda _: odd(Exception, __slots__=()),
    "no list of notes": lambda _: odd(Exception, __notes__=7),
    "sealed": lambda fault: odd(Exception, **refusing("__setattr__ __delattr__", fault)),
    "notes": lambda fault: odd(Exception, **asked("__notes__", fault)),
    "notes of their own": lambda fault: odd(
        Exception, __notes__=odd(list, [1], **refusing("__iter__ __contains__", fault))
    ),
    "adding": lambda fault: odd(Exception, **refusing("add_note with_traceback", fault)),
    "links": lambda fault: odd(Exception, **asked(LINKS, fault)),
    "texts": lambda fault: odd(Exception, **refusing(TEXTS, fault)),
    "class": lambda fault: odd(Exception, **asked("__class__", fault)),
    "attributes": lambda fault: odd(Exception, **refusing("__getattribute__", fault)),
    "split": lambda fault: odd(ExceptionGroup, *PARTS, **refusing("split derive subgroup", fault)),
    "parts": lambda fault: odd(ExceptionGroup, *PARTS, **asked("exceptions message", fault)),
    "failure": lambda fault: odd(
        WorkerFailed,
        ValueError("own"),
        worker=property(refusing("get", fault)["get"], lambda *_: None),
    ),
    "wish": lambda fault: odd(BaseException, **asked(LINKS, fault), **refusing(TEXTS, fault)),
}

_parts = BaseExceptionGroup.__dict__["exceptions"]


def told_by(error):
    """Return an error and all errors within it, without calling any overridden method."""
    found, ahead = [], [error]
    while ahead:
        each = ahead.pop()
        found.append(each)
        if issubclass(type(each), BaseExceptionGroup):
            ahead.extend(_parts.__get__(each))
    return found


def behind(error):
    """Return the cause of an error that is raised outside a group."""
    return BaseException.__dict__["__cause__"].__get__(error)


class Note(Message):
    error = None


class App(Node):
    """A node whose handlers raise what they are given."""

    def on_note(self, message):
        if message.error is not None:
            raise message.error

    async def on_late(self, message):
        await lowlevel.checkpoint()
        self.on_note(message)


class Late(Message):
    error = None


class Run:
    """A node in which an object raises, and the checks after its block has ended."""

    def __init__(self):
        self.app = App("app")
        self.nodes, self.workers, self.told, self.outcomes = [self.app], [], [], []
        self.is_over = False
        self.raised = None

    def add(self, work, **options):
        worker = self.app.run_worker(work, **options)
        self.workers.append(worker)
        return worker

    def wait(self, worker):
        """Wait for a worker in a task outside the node."""
        outcome = []
        self.outcomes.append(outcome)
        self.tasks.start_soon(self._wait, worker, outcome)

    async def _wait(self, worker, outcome):
        try:
            outcome.append(await worker.wait())
        except WorkerError as error:
            outcome.append(error)
        except Base as error:
            outcome.append(error)

    async def go(self, program, *args):
        end = time.monotonic() + RENDEZVOUS
        async with anyio.create_task_group() as self.tasks:
            self.tasks.start_soon(self._live, program, args)
            while not self.is_over and time.monotonic() < end:
                await lowlevel.checkpoint()
            hangs = not self.is_over
            while not self.is_over:  # release it, so that the test still ends
                for node in self.nodes:
                    node._creche_nursery.holds = 0
                    node._creche_nursery.bridge.in_flight = 0
                    node._creche_nursery.wake()
                await settle()
            await settle()
            self.tasks.cancel_scope.cancel()
        assert not hangs, f"it hangs: {[worker._state for worker in self.workers]}"
        self.check()

    async def _live(self, program, args):
        try:
            async with self.app:
                await program(self, *args)
                await settle(40)
        except BaseException as error:
            self.raised = error
        finally:
            self.is_over = True

    def check(self):
        for node in self.nodes:
            nursery = node._creche_nursery
            assert node.is_finished
            assert nursery.holds == nursery.blocks == nursery.bridge.steps.busy == 0, "it is held"
            assert not nursery.held
            for group in node._creche_groups.values():
                assert (len(group), group.running, group.queued) == (0, 0, 0)
        assert all(worker._state in FINAL for worker in self.workers)
        assert all(self.outcomes), "a waiter learnt nothing"

    def all_raised(self):
        if self.raised is None:
            return []
        raised = told_by(self.raised)
        cause = behind(self.raised)
        return raised if cause is None else [*raised, *told_by(cause)]

    def times_told(self, error):
        return sum(each is error for each in [*self.all_raised(), *self.told])


async def turns():
    await settle(30)


# The places that an error may reach.


def raising(error):
    async def work():
        await lowlevel.checkpoint()
        raise error

    return work


def failing(error):
    def work():
        raise error

    return work


async def in_task(run, error):
    run.wait(run.add(raising(error)))


async def at_once(run, error):
    async def work():
        raise error

    run.wait(run.add(work))


async def called(run, error):
    """The call itself raises, and returns no coroutine."""
    run.wait(run.add(failing(error)))


async def in_thread(run, error):
    run.wait(run.add(failing(error), thread=True))


async def async_in_thread(run, error):
    run.wait(run.add(raising(error), thread=True))


async def queued(run, error):
    run.app.group("g", limit=1)
    for work in (turns, raising(error), turns):
        run.wait(run.add(work, group="g"))


async def restarting(run, error):
    """The worker that is cancelled raises, and the next one waits for its slot."""
    run.app.group("g", limit=1, overflow="restart")
    run.wait(run.add(unwilling(error), group="g"))
    await settle(4)
    run.wait(run.add(turns, group="g"))


async def superseded(run, error):
    run.wait(run.add(unwilling(error), group="g"))
    await settle(4)
    run.wait(run.add(turns, group="g", exclusive=True))


def unwilling(error):
    async def work():
        try:
            await anyio.sleep_forever()
        finally:
            raise error

    return work


async def cancelled(run, error):
    worker = run.add(unwilling(error))
    run.wait(worker)
    await settle(4)
    worker.cancel(error)  # any object may be a reason


async def cancelled_from_a_thread(run, error):
    worker = run.add(unwilling(error))
    run.wait(worker)
    await settle(4)
    run.add(lambda: worker.cancel(error), thread=True)


async def shut_down(run, error):
    run.wait(run.add(unwilling(error)))
    run.wait(run.add(unwilling(error), daemon=True))
    await settle(4)
    await run.app.shutdown()


async def in_handler(run, error):
    message = Note()
    message.error = error
    run.app.post_message(message)


async def in_async_handler(run, error):
    message = Late()
    message.error = error
    run.app.post_message(message)


async def in_body(run, error):
    run.add(anyio.sleep_forever)
    await settle(4)
    raise error


async def in_block_below(run, error):
    async with App("page", parent=run.app) as page:
        run.nodes.append(page)
        run.workers.append(page.run_worker(raising(error)))
        await anyio.sleep_forever()


async def mounted(run, error):
    page = await run.app.mount(App("page"))
    run.nodes.append(page)
    run.workers.append(page.run_worker(raising(error)))


async def mounted_and_removed(run, error):
    page = await run.app.mount(App("page"))
    run.nodes.append(page)
    run.workers.append(page.run_worker(unwilling(error)))
    await settle(4)
    await page.remove()


async def subscribed(run, error):
    """The error propagates although there are subscribers."""
    async with run.app.subscribe(Message, Worker.StateChanged) as events:
        run.wait(run.add(raising(error)))
        with contextlib.suppress(BaseException):
            await settle(60)
        events.take_all()


RAISED = [
    *(in_task, at_once, called, in_thread, async_in_thread, queued, restarting, superseded),
    *(cancelled, cancelled_from_a_thread, shut_down, in_handler, in_async_handler, in_body),
    *(in_block_below, mounted, mounted_and_removed, subscribed),
]


async def stored(run, error):
    workers = [run.add(raising(error), exit_on_error=False) for _ in range(2)]
    for worker in (*workers, *workers):
        run.wait(worker)
    await settle(30)
    assert [outcome[0].error is error for outcome in run.outcomes] == [True] * 4
    for worker in workers:
        assert worker.state is ERROR
        assert "cook" not in repr(worker)
        str(run.outcomes[0][0])
    run.told.append(workers[0].error)


async def relayed(run, error):
    """A worker waits for the one that fails, and a thread waits for that worker."""
    worker = run.add(raising(error), exit_on_error=False)
    relay = run.add(worker.wait, exit_on_error=False)

    def work():
        try:
            run.app.call_from_thread(relay.wait)
        except WorkerFailed as failed:
            run.told.append(failed.error.error)

    run.add(work, thread=True)


async def asked_from_thread(run, error, *, kind=failing):
    def work():
        try:
            run.app.call_from_thread(kind(error))
        except BaseException as raised:
            run.told.append(raised)

    run.add(work, thread=True)


async def asked_async_from_thread(run, error):
    await asked_from_thread(run, error, kind=raising)


KEPT = [stored, relayed, asked_from_thread, asked_async_from_thread]


@pytest.fixture
def anyio_backend(anyio_backend):
    """The backends without the debug mode of asyncio, which takes three times as long."""
    name, options = anyio_backend
    return name, {key: options[key] for key in options if key != "debug"}


@contextmanager
def naming(*what):
    """Name the case in which an error occurred."""
    try:
        yield
    except (Exception, Base) as error:
        raise AssertionError(f"{what}: {type(error).__name__} {error}") from None


async def each_error(place, check):
    for name, make in ERRORS.items():
        for fault in FAULTS:
            error, run = make(fault), Run()
            if not issubclass(type(error), Exception) and place is stored:
                continue  # it is raised, not stored
            with naming(place.__name__, name, fault):
                await run.go(place, error)
                check(run, error)


@pytest.mark.parametrize("place", RAISED, ids=lambda place: place.__name__)
async def test_error_that_is_raised(place):
    """The block raises the error exactly once and nothing else, whatever its methods do."""

    def check(run, error):
        assert run.times_told(error) == 1, run.raised
        known = {id(each) for each in told_by(error)}
        others = [each for each in run.all_raised() if id(each) not in known]
        assert not [
            each for each in others if type(each) not in (BaseExceptionGroup, ExceptionGroup)
        ], others

    await each_error(place, check)


@pytest.mark.parametrize("place", KEPT, ids=lambda place: place.__name__)
async def test_error_that_is_kept(place):
    """An error whose methods raise is stored, passed on, and raised in the thread that called."""

    def check(run, error):
        assert run.times_told(error) == 1 or not issubclass(type(error), Exception), run.raised
        assert run.raised is None or not issubclass(type(error), Exception), run.raised

    await each_error(place, check)


# Objects that are not errors: names, reasons, results, settings.


class Thing:
    pass


THINGS = {
    "text": lambda fault: odd(str, "text", **refusing(TEXTS, fault)),
    "thing": lambda fault: odd(Thing, **refusing(TEXTS, fault)),
    "closed": lambda fault: odd(Thing, **refusing("__getattribute__", fault)),
}


async def burning():
    await lowlevel.checkpoint()
    raise ValueError("burnt")


async def lives(run, change=lambda _: None, **options):
    """Apply a change to workers, some of them queued, and have them end in each way."""
    run.app.group("g", limit=1)
    for work in (turns, burning, anyio.sleep_forever, turns):
        worker = Worker(run.app, work, exit_on_error=False, group="g", **options)
        change(worker)
        run.app.workers.add_worker(worker, exclusive=False)
        run.workers.append(worker)
        run.wait(worker)
        if work is anyio.sleep_forever:
            endless = worker
    await settle(60)
    endless.cancel()
    await settle(60)
    late = run.add(anyio.sleep_forever, exit_on_error=False)
    change(late)
    await settle(6)
    return [worker._state for worker in run.workers[:4]]


def setting(name):
    async def place(run, thing):
        states = await lives(run, lambda worker: setattr(worker, name, thing))
        assert states == [SUCCESS, ERROR, CANCELLED, SUCCESS], states
        run.app.cancel()

    place.__name__ = f"setting_{name}"
    return place


async def telling_whether_to_fail(run, thing):
    """If ``exit_on_error`` has no truth value, the error is raised."""
    worker = run.add(burning, exit_on_error=thing)
    run.wait(worker)
    await settle(20)
    assert worker.state is ERROR


async def given_as_description(run, thing):
    states = await lives(run, description=thing)
    assert states == [SUCCESS, ERROR, CANCELLED, SUCCESS], states
    run.app.cancel()


async def refused_at_once(run, thing):
    """A name or a group that cannot be used is refused, and the coroutine is closed."""
    for options in ({"name": thing}, {"group": thing}):
        with contextlib.suppress(WorkerError):
            run.workers.append(run.app.run_worker(turns(), **options))


async def name_of_node(run, thing):
    run.app.name = thing
    await lives(run)
    run.app.cancel()


async def name_of_group(run, thing):
    try:
        group = run.app.group(thing, limit=1)
    except WorkerError:
        return
    run.workers += [group.run_worker(turns) for _ in range(2)]
    run.workers.append(run.app.run_worker(turns, group="text"))


async def reason(run, thing):
    for work in (turns, anyio.sleep_forever):
        worker = run.add(work)
        run.wait(worker)
        if work is turns:
            worker.cancel(thing)
        else:
            await settle(4)
            run.app.group("default").cancel(thing)


async def reason_in_thread(run, thing):
    """A call from the thread is cancelled with its worker, and raises."""

    def work():
        try:
            run.app.call_from_thread(anyio.sleep_forever)
        except WorkerError as error:
            answers.append(error)
            raise

    answers = []
    worker = run.add(work, thread=True)
    run.wait(worker)
    while not run.app._creche_nursery.held:
        await lowlevel.checkpoint()
    worker.cancel(thing)
    with anyio.CancelScope(shield=True):
        while not worker.is_finished:
            await lowlevel.checkpoint()
    assert len(answers) == 1


async def reason_of_node(run, thing):
    run.app.group("g", limit=1)
    for _ in range(2):
        run.wait(run.add(anyio.sleep_forever, group="g"))
    await settle(4)
    run.app.cancel(thing)


async def result(run, thing):
    async def work():
        return thing

    def in_thread_too():
        return thing

    for each in (work(), work):
        worker = run.add(each)
        run.wait(worker)
    asked = []

    def ask():
        try:
            asked.append(run.app.call_from_thread(in_thread_too))
        except (Exception, Base) as error:
            asked.append(error)

    run.wait(run.add(in_thread_too, thread=True, exit_on_error=False))
    run.wait(run.add(ask, thread=True))
    while not asked:
        await lowlevel.checkpoint()
    await settle()
    assert run.workers[0].result is run.workers[1].result is thing


async def result_of_handler(run, thing):
    run.app.on_note = lambda _: thing
    run.app.post_message(Note())


async def returned_by_a_plain_function(run, thing):
    run.wait(run.add(lambda: thing, exit_on_error=False))


async def given_as_work(run, thing):
    for options in ({}, {"thread": True}, {"start": False}):
        for work in (
            thing,
            odd(Thing, __call__=lambda _: turns(), __class__=property(thing_of(thing))),
        ):
            with contextlib.suppress(WorkerError, Refusal, RecursionError, Base):
                run.workers.append(run.app.run_worker(work, exit_on_error=False, **options))


def thing_of(thing):
    return lambda _: hash(thing)


PLACES = [
    *(telling_whether_to_fail, setting("name"), setting("description"), given_as_description),
    *(refused_at_once, name_of_node, name_of_group, reason, reason_in_thread, reason_of_node),
    *(result, result_of_handler, returned_by_a_plain_function, given_as_work),
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
async def test_thing_that_is_no_error(place):
    """An object whose methods raise does not change how workers end, nor break any ``str()``."""
    for name, make in THINGS.items():
        for fault in FAULTS:
            run, thing = Run(), make(fault)
            with naming(place.__name__, name, fault):
                await run.go(place, thing)
                for each in (run.app, *run.workers, *run.app.groups, *run.outcomes, run.raised):
                    if place is not result:
                        str(each)
                assert (run.raised is None) != (place is telling_whether_to_fail), run.raised


# Logging, any part of which may raise.


@contextmanager
def broken(part, level, fault):
    """Make a part of the program's logging raise."""
    refuse = refusing("filter", fault)["filter"]
    logger, handler = logging.getLogger("creche"), logging.Handler()
    before, propagated = logger.level, logger.propagate
    if part == "filter":
        logger.addFilter(refuse)
    elif part == "formatter":
        handler.format = refuse
        handler.emit = handler.format
    else:
        handler.emit = refuse
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeFilter(refuse)
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = propagated


async def starting(run, _):
    worker = await run.app.start_worker(turns)
    run.workers.append(worker)


@pytest.mark.parametrize("place", [*RAISED, starting], ids=lambda place: place.__name__)
async def test_log_that_refuses(place, capsys):
    """A failing filter, handler or formatter loses the log record and nothing else."""
    for part in ("filter", "handler", "formatter"):
        for level in (logging.DEBUG, logging.ERROR):
            for fault in FAULTS:
                run, error = Run(), ValueError("burnt")
                with naming(place.__name__, part, level, fault), broken(part, level, fault):
                    await run.go(place, error)
                    assert run.times_told(error) == (place is not starting), run.raised


# Tasks that cannot be made, at each of many places.


async def much(run):
    """Make each kind of call that creates a task."""
    run.app.group("g", limit=1)
    for work in (turns, turns, turns):
        with suppressed(run):
            run.wait(run.add(work, group="g"))
    with suppressed(run):
        run.wait(run.add(turns, exclusive=True, group="x"))
    with suppressed(run):
        run.app.post_message(Late())
    await asking(run)
    page = App("page")
    with suppressed(run):
        await run.app.mount(page)
        run.nodes.append(page)
        run.workers.append(page.run_worker(anyio.sleep_forever))
    with suppressed(run):
        async with App("block", parent=run.app) as block:
            run.nodes.append(block)
            run.workers.append(block.run_worker(turns))
    with suppressed(run):
        await page.remove()


async def asking(run):
    """Call functions from a thread, and add work from there."""
    answers = []

    def work():
        for call in (lambda: 1, turns):
            try:
                answers.append(run.app.call_from_thread(call))
            except BaseException as error:
                answers.append(error)
                run.told.append(error)
        with suppressed(run):
            run.workers.append(run.app.run_worker(turns))

    with suppressed(run):
        worker = run.add(work, thread=True)
        run.wait(worker)
        while not worker.is_finished:
            await lowlevel.checkpoint()
        assert len(answers) == 2 or worker.error is not None or worker.is_cancelled


@contextmanager
def suppressed(run):
    """Record what a call raises."""
    try:
        yield
    except (Planted, ExceptionGroup, WorkerError) as error:
        run.told += told_by(error)


class Planted(Exception):
    pass


class Factory:
    """A task factory that fails for one of the tasks that the library creates."""

    def __init__(self, at):
        self.left = at
        self.fault = Planted(at)
        self.refused = None

    def __call__(self, loop, coro, **options):
        frame = sys._getframe()
        while frame is not None and "/creche/_" not in frame.f_code.co_filename:
            frame = frame.f_back
        self.left -= frame is not None
        if frame is not None and not self.left:
            self.refused = coro
            raise self.fault
        return asyncio.Task(coro, loop=loop, **options)


async def test_task_factory_that_refuses(anyio_backend):
    """If any task cannot be created, the error is reported, and everything else ends."""
    if anyio_backend[0] != "asyncio":
        pytest.skip("Trio has no factory of tasks")
    loop = asyncio.get_running_loop()
    for at in range(1, 100):
        run, factory = Run(), Factory(at)
        loop.set_task_factory(factory)
        try:
            with naming(f"task {at}"):
                await run.go(much)
        finally:
            loop.set_task_factory(None)
        if factory.refused is None:
            break
        factory.refused.close()  # the coroutine is from AnyIO
        failures = [worker.error for worker in run.workers]
        told = [*run.all_raised(), *run.told, *failures]
        assert id(factory.fault) in map(id, told), (at, run.raised)
    assert at > 10
