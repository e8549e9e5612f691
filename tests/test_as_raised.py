"""Errors come out as they were raised, are named once each, and are logged."""

from __future__ import annotations

import logging
import pickle
import weakref

import anyio
import pytest

from creche import Node, WorkerCancelled, WorkerError, WorkerFailed
from creche._ground.errors import without
from helpers import (
    CANCELLED,
    ERROR,
    RENDEZVOUS,
    BaseExceptionGroup,
    ExceptionGroup,
    fail,
    leaves,
    no_collection,
    settle,
)


class Rejected(ExceptionGroup):
    """An exception group without derive(), as most people write it."""

    def __new__(cls, message, errors, status=0):
        self = super().__new__(cls, message, errors)
        self.status = status
        return self

    def __init__(self, *args):
        pass


class Unsplit(ExceptionGroup):
    """An exception group that cannot be split."""

    def split(self, condition):
        raise NotImplementedError

    def derive(self, errors):
        raise NotImplementedError


class UnsplitWithCancellation(BaseExceptionGroup):
    """An exception group that cannot be split and may contain a cancellation."""

    split = derive = Unsplit.split


def boom():
    raise ValueError("boom")


@pytest.mark.parametrize("kind", [ExceptionGroup, Rejected, Unsplit])
@pytest.mark.parametrize("where", ["worker", "stored", "body", "handler", "thread", "mounted"])
async def test_a_group_is_the_very_object_that_was_raised(kind, where):
    """A group from which nothing is removed keeps its identity and class."""
    error = kind("rejected", [ValueError(1), TypeError(2)])

    def failing():
        raise error

    class App(Node):
        def on_worker_state_changed(self, event):
            if where == "handler":
                failing()

    raised = None
    try:
        async with App("app") as app:
            if where == "body":
                failing()
            elif where == "mounted":
                (await app.mount(Node("panel"))).run_worker(fail(error))
            elif where == "thread":
                app.run_worker(failing, thread=True)
            elif where == "handler":
                app.run_worker(settle)
            else:
                worker = app.run_worker(fail(error), exit_on_error=where == "worker")
                if where == "stored":
                    with pytest.raises(WorkerFailed) as failed:
                        await worker
                    assert failed.value.error is error
            await settle()
    except ExceptionGroup as group:
        raised = group.exceptions[0]
    assert raised is (None if where == "stored" else error)


def test_taking_out_of_a_group():
    """The rest of a group is made by split(), or is a flat group if split() fails."""

    def is_out(leaf):
        return isinstance(leaf, TypeError)

    deep = error = ValueError("bottom")
    for _ in range(20_000):
        deep = ExceptionGroup("level", [deep])
    assert without(deep, is_out) is deep
    assert without(deep, lambda leaf: isinstance(leaf, ValueError)) is None
    mixed = ExceptionGroup("mixed", [TypeError(), deep])
    rest = without(mixed, is_out)
    assert leaves_of(rest) == [error]
    odd = Unsplit("odd", [TypeError(), error])
    with pytest.raises(Unsplit):
        raise odd from error
    rest = without(odd, is_out)
    assert (type(rest), rest.message, rest.exceptions) == (ExceptionGroup, "odd", (error,))
    assert (rest.__traceback__, rest.__cause__) == (odd.__traceback__, error)

    class Loses(ExceptionGroup):
        def derive(self, errors):
            return ExceptionGroup("nothing of it", [KeyError()])

    assert leaves_of(without(Loses("odd", [TypeError(), error]), is_out)) == [error]


async def test_rest_of_an_unsplit_group_is_no_cycle():
    """The error of a worker does not keep a cancellation that was removed from its group."""

    async def work():
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class() as cancellation:
            group = UnsplitWithCancellation("odd", [cancellation, ValueError("boom")])
        try:
            raise group
        finally:
            del group

    with no_collection():
        async with Node("app") as app:
            worker = app.run_worker(work, exit_on_error=False)
            await settle()
            worker.cancel()
        assert [str(leaf) for leaf in leaves_of(worker.error)] == ["boom"]
        gone = weakref.ref(worker)
        del worker, app
        await settle()
        assert gone() is None


def leaves_of(group):
    """Return the single errors of a group that may be nested too deep for recursion."""
    found, ahead = [], [group]
    while ahead:
        each = ahead.pop()
        if isinstance(each, BaseExceptionGroup):
            ahead.extend(each.exceptions)
        else:
            found.append(each)
    return found


async def test_a_failure_names_its_worker_once():
    """However many workers passed a failure on, its text names only the first one."""
    async with Node("app") as app:

        async def cook():
            raise ValueError("burnt")

        async def empty():
            raise KeyError

        worker = first = app.run_worker(cook, exit_on_error=False)
        for _ in range(3):
            worker = app.run_worker(worker.wait, exit_on_error=False)
        with pytest.raises(WorkerFailed) as caught:
            await worker
        assert str(caught.value) == "worker 'cook' failed: ValueError: burnt"
        assert caught.value.worker is worker
        assert caught.value.error.error.error.worker is first
        nothing = app.run_worker(empty, exit_on_error=False)
        with pytest.raises(WorkerFailed, match=r"^worker 'empty' failed: KeyError$"):
            await nothing
    assert str(WorkerFailed(ValueError("own"))) == "worker failed: ValueError: own"


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")

    def __reduce__(self):  # as it is by default, unless a library has changed that for all errors
        return Unpicklable, self.args


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (ValueError("burnt"), "ValueError('burnt')"),
        (Unpicklable(1, 2), "WorkerError('Unpicklable: 1 and 2')"),
        (ExceptionGroup("g", [ValueError(1)]), "ExceptionGroup('g', [ValueError(1)])"),
    ],
)
async def test_a_failure_can_be_pickled(error, kept):
    """The original error is pickled with it, or else a description. The text stays."""
    async with Node("app") as app:
        worker = app.run_worker(fail(error), name="cook", exit_on_error=False)
        relay = app.run_worker(worker.wait, exit_on_error=False)
        with pytest.raises(WorkerFailed) as caught:
            await relay
    for failed in (caught.value, caught.value.error):
        again = pickle.loads(pickle.dumps(failed))  # noqa: S301 (made here)
        assert type(again) is WorkerFailed
        assert again.worker is None
        assert str(again).startswith("worker 'cook' failed: ")
    assert repr(again.error) == kept


class Own(WorkerFailed):
    def __init__(self, one, two):
        super().__init__(two)


def test_an_own_class_of_failures_can_be_pickled():
    """A subclass that takes other arguments can be pickled, too."""
    again = pickle.loads(pickle.dumps(Own(1, ValueError("own"))))  # noqa: S301 (made here)
    assert type(again) is Own
    assert repr(again.error) == "ValueError('own')"


async def test_a_shared_error_has_a_note_for_each_worker():
    """An error that several workers raise gets one note for each, however often it is reported."""
    shared = ValueError("shared")
    async with Node("app") as app:
        for name in ("one", "two", "two"):
            worker = app.run_worker(fail(shared), name=name, exit_on_error=False)
            for _ in range(2):
                with pytest.raises(WorkerFailed):
                    await worker
    assert shared.__notes__ == [
        "in worker 'one' of group 'default' on node 'app'",
        "in worker 'two' of group 'default' on node 'app'",
    ]


async def test_whose_cancellation_it_was():
    """WorkerCancelled names what was cancelled: the awaited worker, the node or the caller."""
    told = []

    async def wait(worker):
        try:
            await worker.wait()
        except WorkerCancelled as error:
            told.append(str(error))
            raise

    async with Node("app") as app:
        sleeper = app.run_worker(anyio.sleep_forever, name="sleeper")

        async def relay():
            await wait(sleeper)

        waiter = app.run_worker(relay, name="waiter", exit_on_error=False)
        await settle()
        sleeper.cancel("enough")
        await settle()
        assert waiter.state is ERROR
        assert str(waiter.error) == "worker 'sleeper' was cancelled: enough"

        def ask():
            app.call_from_thread(anyio.sleep_forever)

        asker = await app.start_worker(ask, thread=True, name="asker", exit_on_error=False)
        await settle()
        app.cancel("all of it")
    assert told == ["worker 'sleeper' was cancelled: enough"]
    assert asker.state is CANCELLED


@pytest.mark.parametrize("what", ["scope", "group"])
async def test_a_scope_that_work_left_open(what):
    """A scope left open is reported with the name of its worker, which does not succeed."""
    kept = []

    async def connect():
        if what == "scope":
            kept.append(anyio.CancelScope())
            kept[0].__enter__()
        else:
            kept.append(anyio.create_task_group())
            await kept[0].__aenter__()
        return "connected"

    with anyio.fail_after(RENDEZVOUS), pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            worker = app.run_worker(connect)
            await anyio.sleep_forever()
    assert worker.state is ERROR
    own, *others = leaves(caught.value)
    assert own is worker.error
    assert isinstance(own, WorkerError)
    assert "worker 'connect' has returned and left a cancel scope or a task group open" in str(own)
    assert own.__notes__ == ["in worker 'connect' of group 'default' on node 'app'"]
    assert {type(other) for other in others} == {RuntimeError}  # the backend's own


async def test_the_log_of_a_stored_failure_names_the_call(caplog):
    """A failure that is stored is logged at ERROR at once, with the call."""
    async with Node("app") as app:
        worker = app.run_worker(
            fail(ValueError("x")), name="fetch", description="fetch('/4')", exit_on_error=False
        )
        await settle()
        (record,) = [each for each in caplog.records if each.name == "creche"]
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "worker 'fetch' failed in fetch('/4')"
    assert record.exc_info[1] is worker.error


async def test_a_wish_to_end_is_not_logged(caplog):
    """SystemExit and KeyboardInterrupt are not logged as failures; the block raises them."""
    with pytest.raises(SystemExit):
        async with Node("app") as app:
            app.run_worker(fail(SystemExit(3)))
    assert [each for each in caplog.records if each.name == "creche"] == []


async def test_an_error_that_is_relayed_into_another_tree():
    """An error is reported once by its own tree, and once by the tree that waited for it."""
    told, over = [], anyio.Event()

    async def relay_late():
        try:
            await worker
        except WorkerFailed:
            with anyio.CancelScope(shield=True):
                await over.wait()
            raise  # a second report to the first tree, after that to the other

    async def wait_elsewhere():
        try:
            async with Node("b"):
                await worker
        except ExceptionGroup as group:
            told.extend(group.exceptions)
        over.set()

    async with anyio.create_task_group() as tasks:
        try:
            async with Node("a") as a:
                worker = a.run_worker(fail(ValueError("once")))
                a.run_worker(relay_late)
                tasks.start_soon(wait_elsewhere)
                await anyio.sleep_forever()
        except ExceptionGroup as group:
            told.extend(group.exceptions)
    told.sort(key=lambda error: type(error).__name__)
    assert [type(error) for error in told] == [ValueError, WorkerFailed]
    assert told[0] is told[1].error is worker.error
