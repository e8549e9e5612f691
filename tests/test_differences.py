"""A test for each row of ``docs/differences.md``: where Textual's workers behave differently."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import re
import threading
import warnings
from contextvars import ContextVar
from functools import partial

import anyio
import pytest
from anyio import lowlevel, to_thread

import creche
from creche import (
    DeadlockError,
    Message,
    NoActiveWorker,
    Node,
    Worker,
    WorkerCancelled,
    WorkerDeclarationError,
    WorkerError,
    WorkerFailed,
    WorkerState,
    get_current_worker,
    work,
)
from helpers import ExceptionGroup, fail, give_later, told
from pages import ROOT, blocks

PAGE = ROOT / "docs" / "differences.md"
LIMIT = 5  # seconds, for waits that would hang if a test failed


async def forever():
    await anyio.sleep_forever()


async def turns(number=10):
    """Let everything that is ready run, for tests that something does not happen."""
    for _ in range(number):
        await lowlevel.checkpoint()


class Log(Node):
    """A node that records the states its handler was notified of."""

    def __init__(self, name="log", **options):
        super().__init__(name, **options)
        self.told = []

    def on_worker_state_changed(self, event):
        self.told.append(event.state.name)


class Waiter:
    """A task that waits for something, and the outcome of the wait."""

    def __init__(self):
        self.scope = anyio.CancelScope()
        self.outcome = None
        self._over = anyio.Event()

    async def wait(self, call, *, task_status):
        with self.scope:
            task_status.started()
            try:
                self.outcome = await call()
            except WorkerError as error:
                self.outcome = error
        self._over.set()

    @property
    def is_over(self):
        return self._over.is_set()

    async def over(self):
        with anyio.fail_after(LIMIT):
            await self._over.wait()


async def waiting(group, call):
    """Start a task that awaits a call, and return once it is waiting."""
    waiter = Waiter()
    await group.start(waiter.wait, call)
    return waiter


@pytest.fixture
def release():
    """An event that a thread waits for. It is always set at the end."""
    event = threading.Event()
    yield event
    event.set()


# the page


@pytest.mark.parametrize(
    ("number", "printed"),
    [pytest.param(1, "CRECHE\n", id="second"), pytest.param(2, "100.0\n", id="third")],
)
async def test_the_examples_of_the_page_run(number, printed, capsys):
    """Each example on the page runs unchanged and prints what the page says."""
    namespace = {"__name__": "example"}
    exec(compile(blocks(PAGE)[number], str(PAGE), "exec"), namespace)  # noqa: S102 (our own page)
    await namespace["main"]()
    assert capsys.readouterr().out == printed


def test_every_example_of_the_page_is_run():
    """The page has three examples: the Textual app below, and the two that the test above runs."""
    assert len(blocks(PAGE)) == 3


def test_the_one_line_of_the_page():
    """With the one changed line, a Textual app gets Creche's workers."""
    pytest.importorskip("textual", reason="it is an extra")
    namespace = {"__name__": "example"}
    exec(compile(blocks(PAGE)[0], str(PAGE), "exec"), namespace)  # noqa: S102 (our own page)
    assert isinstance(namespace["MyApp"]().workers.root, Node)


def test_the_page_and_the_tests_name_each_other():
    """Each row of the tables names an existing test, and each test has a row."""
    tables = PAGE.read_text("utf-8").partition("## The interface")[2]
    rows = [
        line
        for line in tables.splitlines()
        if line.startswith("| ") and not line.startswith(("| ---", "| Textual |"))
    ]
    named = [re.findall(r"`(test_\w+)`", row.split(" | ")[-1]) for row in rows]
    assert all(named), "a row without a test"
    tests = {name for name, value in globals().items() if inspect.isfunction(value)}
    tests = {name for name in tests if name.startswith("test_") and "_page" not in name}
    assert {name for names in named for name in names} == tests


# differences of the interface


async def test_update_sets_the_number_of_completed_steps():
    """update() sets the number of completed steps, whereas advance() adds to it."""
    async with Node("app") as app:
        worker = app.run_worker(forever, start=False)
        worker.update(completed_steps=5, total_steps=10)
        worker.update(completed_steps=5)
        assert worker.completed_steps == 5
        assert worker.progress == 50.0
        worker.advance(5)
        assert worker.completed_steps == 10


async def test_progress_is_always_a_float():
    """The progress is a float even at the ends of its range."""
    async with Node("app") as app:
        worker = app.run_worker(forever, start=False)
        worker.update(completed_steps=500, total_steps=10)
        assert (worker.progress, type(worker.progress)) == (100.0, float)
        worker.update(completed_steps=-5)
        assert (worker.progress, type(worker.progress)) == (0.0, float)


async def test_leaving_the_block_waits_for_the_work():
    """Leaving the block waits for running workers and cancels daemons."""
    go = anyio.Event()

    async with Node("app") as app:
        worker = await app.start_worker(give_later("page", go))
        daemon = await app.start_worker(forever, daemon=True)
        go.set()
    assert (worker.state, worker.result) == (WorkerState.SUCCESS, "page")
    assert daemon.state is WorkerState.CANCELLED


async def test_a_failed_worker_fails_its_node_with_the_original_error():
    """The block raises a group of the original error, with a note that names the worker."""
    wrong = ValueError("wrong")

    with pytest.raises(ExceptionGroup, match="unhandled errors in node 'app'") as caught:
        async with Node("app") as app:
            app.run_worker(fail(wrong))
            await anyio.sleep_forever()
    assert caught.value.exceptions == (wrong,)
    assert wrong.__notes__ == ["in worker 'fail' of group 'default' on node 'app'"]


async def test_a_failure_can_be_caught_where_the_node_was_opened():
    """A node with a block of its own fails alone. A mounted node fails its parent."""
    async with Node("app") as app:
        other = await app.start_worker(forever)
        with pytest.raises(ExceptionGroup, match="unhandled errors in node 'app/page'"):
            async with Node("page", parent=app) as page:
                page.run_worker(fail(ValueError("wrong")))
        assert other.is_running
        other.cancel()

    with pytest.raises(ExceptionGroup, match="unhandled errors in node 'app'") as caught:
        async with Node("app") as app:
            panel = await app.mount(Node("panel"))
            panel.run_worker(fail(ValueError("wrong")))
    assert [str(error) for error in caught.value.exceptions] == ["wrong"]


async def test_cleanup_that_awaits_needs_a_shield():
    """In a cancelled worker, every await is cancelled unless it is shielded."""
    seen = []

    async def stubborn():
        for _ in range(3):
            try:
                await lowlevel.checkpoint()
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                seen.append("cancelled")
        with anyio.CancelScope(shield=True):
            await lowlevel.checkpoint()
            seen.append("shielded")

    async with Node("app") as app:
        worker = await app.start_worker(stubborn)
        worker.cancel()
    assert seen == ["cancelled", "cancelled", "cancelled", "shielded"]


async def test_exclusive_works_in_the_group_with_the_empty_name():
    """The empty string is a group name like any other."""
    async with Node("app") as app:
        first = await app.start_worker(forever, group="")
        second = await app.start_worker(forever, group="", exclusive=True)
        assert first.is_cancelled
        assert not second.is_cancelled
        second.cancel()


async def test_call_from_thread_is_a_method_of_every_node():
    """A thread calls back through its own node. On the event loop's thread, this is an error."""

    async with Node("app") as app, Node("page", parent=app) as page:

        def thread():
            return page.call_from_thread(threading.get_ident)

        assert await page.run_worker(thread, thread=True) == threading.get_ident()
        with pytest.raises(
            WorkerError,
            match=r"was called in the thread of the event loop of .*; call the function directly$",
        ):
            page.call_from_thread(threading.get_ident)


async def test_an_overridden_handler_replaces_the_inherited_one():
    """Only the overriding handler is called, not the one it overrides."""
    called = []

    class Base(Node):
        def on_worker_state_changed(self, event):
            called.append("base")

    class Derived(Base):
        def on_worker_state_changed(self, event):
            called.append("derived")

    async with Derived("app") as app:
        await app.run_worker(lowlevel.checkpoint)
    assert called == ["derived"] * 3


async def test_handlers_have_public_names_only():
    """A method named ``_on_worker_state_changed`` is not a handler, and there is no ``@on``."""
    called = []

    class Private(Node):
        def _on_worker_state_changed(self, event):
            called.append(event)

    async with Private("app") as app:
        await app.run_worker(lowlevel.checkpoint)
    assert not called
    assert not hasattr(creche, "on")


async def test_a_handler_is_always_given_the_message():
    """A handler without a parameter for the message fails its node with TypeError."""

    class Bare(Node):
        def on_worker_state_changed(self):
            raise AssertionError("called")

    with pytest.raises(ExceptionGroup) as caught:
        async with Bare("app") as app:
            app.run_worker(lowlevel.checkpoint)
    assert {type(error) for error in caught.value.exceptions} == {TypeError}


def test_messages_carry_nothing_of_textual():
    """A message has none of the attributes that Textual needs for widgets. stop() returns None."""
    message = Message()
    for name in ("control", "time", "prevent_default", "set_sender", "can_replace", "is_forwarded"):
        assert not hasattr(message, name), name
    assert message.stop() is None
    assert message.is_stopped


def test_bubbling_is_inherited():
    """A subclass of a message that does not bubble does not bubble either."""

    class Quiet(Message, bubble=False):
        pass

    class Quieter(Quiet):
        pass

    assert not Quieter.bubble


def test_handler_names_split_runs_of_capitals():
    """A run of capitals becomes one word in the handler's name."""

    class HTTPError(Message):
        pass

    assert HTTPError.handler_name == "on_http_error"


async def test_a_message_needs_no_super_init():
    """A message whose class does not call ``super().__init__()`` is still delivered."""
    got = []

    class Saved(Message):
        def __init__(self, path):
            self.path = path

    class Editor(Node):
        def on_saved(self, message):
            got.append(message.path)

    async with Editor("app") as app:
        assert app.post_message(Saved("draft"))
    assert got == ["draft"]


async def test_pending_is_announced_when_the_worker_is_added():
    """Creating a worker announces nothing. PENDING is announced when it is added to the manager."""
    async with Log("app") as app:
        worker = Worker(app, forever)
        await turns()
        assert app.told == []
        assert worker not in app.workers
        app.workers.add_worker(worker, start=False)
        assert worker in app.workers
    assert app.told == ["PENDING", "CANCELLED"]


def test_every_error_derives_from_worker_error():
    """``except WorkerError`` catches every error that the library defines."""
    for error in (
        DeadlockError,
        NoActiveWorker,
        WorkerCancelled,
        WorkerDeclarationError,
        WorkerFailed,
    ):
        assert issubclass(error, WorkerError)


async def test_the_description_is_as_given():
    """run_worker() keeps the description it is given, in full. Without one, it is empty."""
    async with Node("app") as app:
        assert app.run_worker(forever, start=False).description == ""
        told = "x" * 2000
        assert app.run_worker(forever, start=False, description=told).description == told


async def test_a_described_call_is_cut_short():
    """@work describes the call, with at most a hundred characters for each argument."""

    class Broken:
        def __repr__(self):
            raise ValueError("no repr")

    @work
    async def search(node, text):
        return text

    async with Node("app") as app:
        assert search(app, "creche").description == "search('creche')"
        assert search(app, "y" * 500).description == f"search('{'y' * 99}...)"
        assert search(app, Broken()).description == "search(<unprintable Broken>)"


async def test_a_partial_is_named_after_its_function():
    """A worker that runs a partial is named after the wrapped function."""
    async with Node("app") as app:
        assert app.run_worker(partial(anyio.sleep, 0)).name == "sleep"


async def test_unsupported_work_is_refused_at_the_call():
    """run_worker() itself raises WorkerError for work that can never run."""
    async with Node("app") as app:
        with pytest.raises(WorkerError, match="cannot make a worker of 5: work must be a"):
            app.run_worker(5)


async def test_a_generator_is_no_work():
    """Work that returns a generator fails with an error that says nothing of it has run."""

    def rows():
        yield 1

    async with Node("app") as app:
        worker = app.run_worker(rows, thread=True, exit_on_error=False)
    assert worker.state is WorkerState.ERROR
    assert "returned a generator, of which nothing has run" in str(worker.error)
    with pytest.raises(WorkerDeclarationError, match="is a generator function"):
        work(thread=True)(rows)


async def test_wrong_arguments_fail_the_call():
    """A decorated call with the wrong arguments raises TypeError and starts nothing."""

    @work
    async def fetch(node, url):
        return url

    async with Node("app") as app:
        with pytest.raises(TypeError, match="missing a required argument: 'url'"):
            fetch(app)
        assert len(app.workers) == 0


async def test_a_plain_function_without_thread_fails_and_names_the_cure():
    """A plain function runs on the loop; the worker then fails and suggests ``thread=True``."""
    called = []
    async with Node("app") as app:
        worker = app.run_worker(lambda: called.append(1), name="plain", exit_on_error=False)
        with pytest.raises(WorkerFailed, match=r"worker 'plain' is a plain .* with thread=True"):
            await worker.wait()
    assert called == [1]


async def test_a_decorated_function_wants_a_node():
    """A decorated function raises WorkerError unless its first argument is a node."""

    @work
    async def search(node):
        return node

    with pytest.raises(WorkerError, match=r"its first argument must be a Node, not None"):
        search()
    with pytest.raises(WorkerError, match=r"its first argument must be a Node, not 'text'"):
        search("text")


async def test_a_worker_is_added_once():
    """The same worker cannot be added a second time."""
    async with Node("app") as app:
        worker = app.run_worker(forever, start=False)
        with pytest.raises(WorkerError, match="worker 'forever' was added before"):
            app.workers.add_worker(worker)


async def test_a_worker_takes_no_new_attributes():
    """New attributes can be set only on an instance of a subclass of Worker."""

    class Labelled(Worker):
        pass

    async with Node("app") as app:
        with pytest.raises(AttributeError):
            Worker(app, forever).label = "mine"
        worker = Labelled(app, forever)
        worker.label = "mine"
        assert worker.label == "mine"


async def test_cancel_group_returns_whom_it_cancelled():
    """cancel_group() and cancel_node() return only the workers that this call cancelled."""
    async with Node("app") as app:
        first = await app.start_worker(forever, group="g")
        second = await app.start_worker(forever, group="g")
        first.cancel()
        assert app.workers.cancel_group(app, "g") == [second]
        assert app.workers.cancel_group(app, "g") == []
        assert app.workers.cancel_node(app) == []


async def test_waiting_in_another_event_loop_says_what_to_do():
    """wait() on another event loop raises an error that names call_from_thread()."""
    async with Node("app") as app:
        worker = await app.start_worker(forever)

        async def elsewhere():
            await worker.wait()

        other = app.run_worker(elsewhere, thread=True, exit_on_error=False)
        with pytest.raises(WorkerFailed, match=r"use node.call_from_thread\(worker.wait\)"):
            await other.wait()
        worker.cancel()


# waiting


async def test_cancelling_a_waiter_leaves_the_work_alone():
    """Cancelling a task that waits for a worker does not cancel the worker."""
    go = anyio.Event()

    async with anyio.create_task_group() as group, Node("app") as app:
        worker = await app.start_worker(give_later("page", go))
        waiter = await waiting(group, worker.wait)
        waiter.scope.cancel()
        await waiter.over()
        assert worker.is_running
        assert not worker.is_cancelled
        go.set()
        assert await worker.wait() == "page"


async def test_one_cancelled_waiter_does_not_disturb_another():
    """Of two tasks that wait for a worker, one is cancelled and the other still gets the result."""
    go = anyio.Event()

    async with anyio.create_task_group() as group, Node("app") as app:
        worker = await app.start_worker(give_later("page", go))
        first = await waiting(group, worker.wait)
        second = await waiting(group, worker.wait)
        first.scope.cancel()
        await first.over()
        go.set()
        await second.over()
        assert second.outcome == "page"


async def test_a_timeout_of_wait_is_a_timeout():
    """A timeout around wait() raises TimeoutError, not a WorkerError."""
    async with Node("app") as app:
        worker = await app.start_worker(forever)
        with pytest.raises(TimeoutError), anyio.fail_after(0):
            await worker.wait()
        worker.cancel()


async def test_a_cancelled_waiter_is_cancelled_whatever_the_work_does():
    """A cancelled waiter ends cancelled, even if the work would swallow a cancellation."""

    async def shrug():
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            return "shrugged"

    async with anyio.create_task_group() as group, Node("app") as app:
        worker = await app.start_worker(shrug)
        waiter = await waiting(group, worker.wait)
        waiter.scope.cancel()
        await waiter.over()
        assert waiter.scope.cancelled_caught
        assert waiter.outcome is None
        worker.cancel()


async def test_a_task_of_a_worker_may_wait_for_it():
    """A task that inherits the active worker, but is not the worker itself, may wait for it."""

    async def helper():
        return await get_current_worker().wait()

    async with anyio.create_task_group() as group:
        async with Node("app") as app:

            async def fetch():
                return await waiting(group, helper)

            waiter = await app.run_worker(fetch)
        await waiter.over()
        assert waiter.outcome is waiter  # what the worker returned


async def test_a_ring_of_waits_is_a_deadlock_error():
    """When two workers wait for each other, the one that closes the cycle gets DeadlockError."""
    workers = []

    async def wait_for(number):
        await workers[number].wait()

    async with Node("app") as app:
        workers += [
            app.run_worker(partial(wait_for, 1), name="a", exit_on_error=False),
            app.run_worker(partial(wait_for, 0), name="b", exit_on_error=False),
        ]
        with anyio.fail_after(LIMIT):
            await app.workers.wait_for_complete(workers)
    by_type = {type(worker.error): worker.error for worker in workers}
    assert set(by_type) == {DeadlockError, WorkerFailed}
    assert by_type[WorkerFailed].error is by_type[DeadlockError]
    told = str(by_type[DeadlockError])
    assert re.match(r"waiting would never end: worker '(.)' waits for worker '.' waits for", told)


async def test_worker_failed_has_the_original_as_its_cause():
    """The WorkerFailed that wait() raises has the original error as its ``__cause__``."""
    wrong = ValueError("wrong")

    async with Node("app") as app:
        worker = app.run_worker(fail(wrong), exit_on_error=False)
        with pytest.raises(
            WorkerFailed, match=r"^worker 'fail' failed: ValueError: wrong$"
        ) as caught:
            await worker.wait()
    assert caught.value.__cause__ is wrong
    assert caught.value.error is wrong


async def test_a_relayed_failure_reads_like_the_original():
    """The message of a failure does not grow when it passes through several workers."""

    async def relay(worker):
        await worker.wait()

    async with Node("app") as app:
        worker = app.run_worker(fail(ValueError('it\'s "wrong"')), exit_on_error=False)
        for _ in range(5):
            worker = app.run_worker(partial(relay, worker), exit_on_error=False)
        with pytest.raises(WorkerFailed) as caught:
            await worker.wait()
    assert str(caught.value) == "worker 'fail' failed: ValueError: it's \"wrong\""


async def test_waiting_for_no_workers_returns_at_once():
    """``wait_for_complete([])`` waits for no workers, rather than for all."""
    async with Node("app") as app:
        worker = await app.start_worker(forever)
        with anyio.fail_after(LIMIT):
            await app.workers.wait_for_complete([])
        assert worker.is_running
        worker.cancel()


async def test_wait_for_complete_waits_for_all_and_raises_for_none():
    """wait_for_complete() waits for all workers, even if one of them fails or is cancelled."""
    now, later = anyio.Event(), anyio.Event()

    async def fail():
        await now.wait()
        raise ValueError("wrong")

    async with anyio.create_task_group() as group, Node("app") as app:
        failed = await app.start_worker(fail, exit_on_error=False)
        cancelled = await app.start_worker(forever)
        slow = await app.start_worker(later.wait)
        waiter = await waiting(group, app.workers.wait_for_complete)
        now.set()
        cancelled.cancel()
        await turns()
        assert failed.state is WorkerState.ERROR
        assert cancelled.state is WorkerState.CANCELLED
        assert not waiter.is_over
        later.set()
        await waiter.over()
        assert waiter.outcome is None
        assert slow.state is WorkerState.SUCCESS


async def test_wait_for_complete_passes_over_workers_never_started():
    """wait_for_complete() skips workers that were not started, and raises nothing."""
    async with Node("app") as app:
        worker = app.run_worker(forever, start=False)
        with anyio.fail_after(LIMIT):
            await app.workers.wait_for_complete()
            await app.workers.wait_for_complete([worker])
        assert worker.state is WorkerState.PENDING


async def test_cancelling_wait_for_complete_leaves_the_work_alone():
    """Cancelling a task that waits for all workers does not cancel the workers."""
    async with anyio.create_task_group() as group, Node("app") as app:
        workers = [await app.start_worker(forever) for _ in range(3)]
        waiter = await waiting(group, app.workers.wait_for_complete)
        waiter.scope.cancel()
        await waiter.over()
        assert waiter.scope.cancelled_caught
        assert all(worker.is_running for worker in workers)
        app.workers.cancel_all()


async def test_wait_for_complete_does_not_swallow_cancellation():
    """A cancelled call of wait_for_complete() does not return as if the work were complete."""
    went_on = False
    async with Node("app") as app:
        worker = await app.start_worker(forever)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await app.workers.wait_for_complete()
            went_on = True
        assert scope.cancelled_caught
        assert not went_on
        worker.cancel()


# cancellation and states


async def test_a_pending_worker_is_cancelled_at_once():
    """Cancelling a worker that was not started ends it, announces that and forgets the worker."""
    async with Log("app") as app:
        worker = app.run_worker(forever, start=False)
        worker.cancel("not wanted")
        assert worker.state is WorkerState.CANCELLED
        assert worker not in app.workers
        with pytest.raises(WorkerCancelled, match=r"^worker 'forever' was cancelled: not wanted$"):
            await worker.wait()
    assert app.told == ["PENDING", "CANCELLED"]


async def test_a_cancelled_worker_cannot_be_started():
    """A worker that is cancelled before it starts never runs."""
    ran = []

    async def record():
        ran.append(1)

    async with Node("app") as app:
        worker = app.run_worker(record, start=False)
        worker.cancel()
        app.workers.start_all()
    assert not ran
    assert worker.state is WorkerState.CANCELLED


async def test_cancel_right_after_the_start_is_announced():
    """A worker that is cancelled before its first step ends at once, and its node is notified."""
    async with Log("app") as app:
        worker = app.run_worker(forever)
        worker.cancel()
        assert worker.state is WorkerState.CANCELLED
        assert worker not in app.workers
    assert app.told == ["PENDING", "CANCELLED"]


async def test_a_coroutine_that_never_ran_is_closed():
    """A coroutine object that is never run is closed, so there is no "never awaited" warning."""
    closed = Node("closed")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with Node("app") as app:
            app.run_worker(forever()).cancel()
            app.run_worker(forever(), start=False).cancel()
            app.run_worker(forever(), start=False)
            with pytest.raises(WorkerError, match="cannot start work on node 'closed'"):
                closed.run_worker(forever())
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


async def test_a_cancelled_worker_never_succeeds():
    """What work returns after its cancellation is in ``result``, but the worker is CANCELLED."""

    async def shrug():
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            return "stale"

    async with Log("app") as app:
        worker = await app.start_worker(shrug)
        worker.cancel()
        with pytest.raises(WorkerCancelled):
            await worker.wait()
        assert worker.result == "stale"
    assert app.told == ["PENDING", "RUNNING", "CANCELLED"]


async def test_a_cancelled_worker_has_no_error():
    """The event loop's own cancellation exception does not count as an error of the work."""
    async with Node("app") as app:
        worker = await app.start_worker(forever)
        worker.cancel()
    assert worker.state is WorkerState.CANCELLED
    assert worker.error is None


async def test_cancel_after_the_end_changes_nothing():
    """Cancelling a worker that has succeeded does not mark it as cancelled."""
    async with Node("app") as app:
        worker = app.run_worker(lowlevel.checkpoint)
        await worker.wait()
        worker.cancel()
        assert worker.state is WorkerState.SUCCESS
        assert not worker.is_cancelled
        assert not worker.cancelled_event.is_set()


async def test_a_second_cancel_does_not_interrupt_cleanup():
    """A second cancel() does not interrupt the cleanup after the first."""
    cleaning, go = anyio.Event(), anyio.Event()
    done = []

    async def careful():
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                cleaning.set()
                await go.wait()
                done.append("clean")

    async with Node("app") as app:
        worker = await app.start_worker(careful)
        worker.cancel()
        await cleaning.wait()
        worker.cancel()
        await turns()
        go.set()
    assert done == ["clean"]


async def test_cancellation_from_outside_is_seen_by_the_worker():
    """A worker cancelled by a scope outside its node is marked as cancelled."""
    with anyio.CancelScope() as scope:
        async with Node("app") as app:
            worker = await app.start_worker(forever)
            scope.cancel()
            await anyio.sleep_forever()
    assert worker.state is WorkerState.CANCELLED
    assert worker.is_cancelled
    assert worker.cancelled_event.is_set()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_native_cancellation_is_seen_by_the_worker():
    """A worker whose asyncio task is cancelled is marked as cancelled, and its sibling runs on."""
    tasks = []

    async def expose():
        tasks.append(asyncio.current_task())
        await anyio.sleep_forever()

    async with Node("app") as app:
        worker = await app.start_worker(expose)
        sibling = await app.start_worker(forever)
        tasks[0].cancel()
        with pytest.raises(WorkerCancelled):
            await worker.wait()
        assert worker.is_cancelled
        assert worker.cancelled_event.is_set()
        assert sibling.is_running
        sibling.cancel()


async def test_cancel_from_a_thread_takes_effect_at_once():
    """cancel() called in another thread wakes the event loop."""
    async with Node("app") as app:
        worker = await app.start_worker(forever)
        thread = threading.Thread(target=worker.cancel)
        thread.start()
        with pytest.raises(WorkerCancelled), anyio.fail_after(LIMIT):
            await worker.wait()
        thread.join(LIMIT)


async def test_the_state_cannot_be_set_at_will():
    """Assigning a state that cannot follow the current one is refused and changes nothing."""
    async with Node("app") as app:
        worker = await app.start_worker(forever)
        with pytest.raises(
            WorkerError,
            match=r"the state of worker 'forever', .*, cannot be set to SUCCESS; only to",
        ):
            worker.state = WorkerState.SUCCESS
        assert worker.is_running
        worker.state = WorkerState.CANCELLED
        assert worker.is_cancelled
        with pytest.raises(WorkerCancelled):
            await worker.wait()
        with pytest.raises(WorkerError, match="cannot be set to PENDING"):
            worker.state = WorkerState.PENDING


async def test_running_means_that_the_work_was_entered():
    """A worker stays PENDING until its work begins."""
    states = []

    async def look():
        states.append(get_current_worker().state)

    async with Node("app") as app:
        worker = app.run_worker(look)
        assert worker.state is WorkerState.PENDING
    assert states == [WorkerState.RUNNING]


# threads


async def test_a_cancelled_thread_is_running_until_it_returns(release):
    """A cancelled thread worker stays RUNNING, and in the manager, until its function returns."""
    async with Node("app") as app:
        worker = await app.start_worker(lambda: release.wait(LIMIT), thread=True)
        worker.cancel()
        await turns()
        assert worker.is_running
        assert worker.is_cancelled
        assert worker in app.workers
        release.set()
        with pytest.raises(WorkerCancelled):
            await worker.wait()
        assert worker not in app.workers


async def test_a_cancelled_thread_cannot_call_into_the_loop(release):
    """call_from_thread() in a superseded thread raises WorkerCancelled and calls nothing."""
    delivered, told = [], []

    async with Node("app") as app:

        def search():
            release.wait(LIMIT)
            try:
                app.call_from_thread(delivered.append, "stale")
            except WorkerCancelled as error:
                told.append(str(error))
                raise

        worker = await app.start_worker(search, thread=True)
        worker.cancel("superseded")
        release.set()
    assert delivered == []
    assert told == ["worker 'search' was cancelled: superseded"]
    assert worker.state is WorkerState.CANCELLED


async def test_a_call_under_way_is_cancelled_with_its_worker():
    """An async function that a thread called is cancelled along with the thread's worker."""
    inside, go = anyio.Event(), anyio.Event()
    effects = []

    async def effect():
        inside.set()
        await go.wait()
        effects.append("late")

    async with Node("app") as app:
        worker = app.run_worker(lambda: app.call_from_thread(effect), thread=True)
        await inside.wait()
        worker.cancel()
        go.set()
    assert effects == []
    assert worker.state is WorkerState.CANCELLED


async def test_the_error_of_a_cancelled_thread_is_not_lost(release):
    """A thread worker that fails after its cancellation still fails its node."""
    wrong = ValueError("wrong")

    def fail():
        release.wait(LIMIT)
        raise wrong

    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            worker = await app.start_worker(fail, thread=True)
            worker.cancel()
            release.set()
    assert caught.value.exceptions == (wrong,)
    assert (worker.state, worker.error) == (WorkerState.ERROR, wrong)


async def test_the_result_of_a_cancelled_thread_stays_readable(release):
    """What a thread returns after its cancellation is in ``result``."""
    async with Node("app") as app:
        worker = await app.start_worker(lambda: release.wait(LIMIT), thread=True)
        worker.cancel()
        release.set()
    assert (worker.state, worker.result) == (WorkerState.CANCELLED, True)


async def test_a_thread_worker_is_pending_until_its_function_is_called(release):
    """A thread worker that waits for a free thread is PENDING and queued."""
    called = []
    limiter = anyio.CapacityLimiter(1)
    async with Node("app") as app:
        await app.start_worker(lambda: release.wait(LIMIT), thread=True, limiter=limiter)
        queued = app.run_worker(lambda: called.append(1), thread=True, limiter=limiter)
        await turns()
        assert queued.state is WorkerState.PENDING
        assert queued.is_queued
        assert not called
        release.set()
        await queued.wait()
    assert called == [1]


async def test_cancel_reaches_async_work_in_a_thread():
    """Async work on an event loop of its own in a thread is cancelled there promptly."""
    begun = threading.Event()
    ended = []

    async def listen():
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")

    async with Node("app") as app:
        worker = app.run_worker(listen, thread=True)
        assert await to_thread.run_sync(begun.wait, LIMIT)
        worker.cancel()
        with pytest.raises(WorkerCancelled), anyio.fail_after(LIMIT):
            await worker.wait()
    assert ended == ["cancelled"]


async def test_a_thread_has_the_context_variables_of_its_creator():
    """A thread worker sees the context variables that were set where it was created."""
    user = ContextVar("user", default="nobody")
    user.set("somebody")
    async with Node("app") as app:
        assert await app.run_worker(user.get, thread=True) == "somebody"


async def test_a_coroutine_made_in_a_thread_is_awaited():
    """A coroutine that a thread worker's function returns is awaited on a loop in that thread."""

    async def fetch(name):
        await lowlevel.checkpoint()
        return name

    async with Node("app") as app:
        assert await app.run_worker(lambda: fetch("page"), thread=True) == "page"


async def test_a_group_can_be_cancelled_from_a_thread():
    """cancel_group() works in any thread, and has taken effect when it returns."""
    async with Node("app") as app:
        workers = [await app.start_worker(forever, group="g") for _ in range(3)]
        cancelled = await to_thread.run_sync(app.workers.cancel_group, app, "g")
        assert cancelled == workers
        assert all(worker.is_cancelled for worker in workers)


# what can be run, and in which context


class AsyncCallable:
    async def __call__(self, name="page"):
        await lowlevel.checkpoint()
        return name


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(AsyncCallable, id="async-call"),
        pytest.param(lambda: partial(AsyncCallable()), id="partial-of-async-call"),
        pytest.param(lambda: lambda: AsyncCallable()("page"), id="lambda"),
    ],
)
async def test_every_callable_that_gives_an_awaitable_is_work(make):
    """Objects with an async ``__call__``, partials of them, and lambdas run on the event loop."""
    async with Node("app") as app:
        assert await app.run_worker(make()) == "page"


async def test_a_worker_started_late_has_the_context_of_its_creator():
    """A worker sees the context variables of the code that created it, however late it starts."""
    user = ContextVar("user")
    async with Node("app") as app:
        user.set("creator")

        async def who():
            return user.get()

        worker = app.run_worker(who, start=False)
        user.set("starter")
        app.workers.start_all()
        assert await worker.wait() == "creator"


# exclusive workers


async def test_unrelated_exclusive_workers_leave_each_other_alone():
    """Without a group, an exclusive worker cancels only exclusive runs of the same function."""

    async def search():
        await anyio.sleep_forever()

    async def preview():
        await anyio.sleep_forever()

    async with Node("app") as app:
        plain = await app.start_worker(search)
        first = await app.start_worker(search, exclusive=True)
        other = await app.start_worker(preview, exclusive=True)
        second = await app.start_worker(search, exclusive=True)
        assert first.is_cancelled
        assert [worker.is_cancelled for worker in (plain, other, second)] == [False] * 3
        app.workers.cancel_all()


async def test_exclusive_acts_at_the_start_and_not_before():
    """An exclusive worker cancels the others when it starts, not when it is created."""
    async with Node("app") as app:
        running = await app.start_worker(forever, group="g")
        waiting = app.run_worker(forever, group="g", exclusive=True, start=False)
        await turns()
        assert not running.is_cancelled
        app.workers.start_all()
        assert running.is_cancelled
        assert not waiting.is_cancelled
        waiting.cancel()


# owners


async def test_remove_waits_until_the_work_has_ended():
    """remove() returns once the node's workers have ended, including their cleanup."""
    ended = []

    async def careful():
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await turns()
                ended.append("clean")

    async with Node("app") as app:
        panel = await app.mount(Node("panel"))
        worker = await panel.start_worker(careful)
        await panel.remove()
        assert ended == ["clean"]
        assert worker.state is WorkerState.CANCELLED


async def test_no_work_starts_on_a_removed_node():
    """A removed node refuses to start work."""
    async with Node("app") as app:
        panel = await app.mount(Node("panel"))
        await panel.remove()
        with pytest.raises(
            WorkerError, match=r"^cannot start work on node 'app/panel', which is closed; use a"
        ):
            panel.run_worker(forever())


async def test_no_work_starts_before_the_node_is_open():
    """A node whose block has not been entered refuses to start work."""
    with pytest.raises(
        WorkerError,
        match=r"^cannot start work on node 'app', which is not open yet; enter",
    ):
        Node("app").run_worker(forever())


async def test_nothing_outlives_the_block():
    """When a cancelled block has ended, no async cleanup and no thread is still running."""
    ended = []

    async def careful():
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await turns()
                ended.append("task")

    def thread():
        assert get_current_worker().cancelled_event.wait(LIMIT)
        ended.append("thread")

    async with Node("app") as app:
        await app.start_worker(careful)
        await app.start_worker(thread, thread=True)
        app.cancel()
    assert sorted(ended) == ["task", "thread"]


async def test_workers_never_started_end_with_their_node():
    """A worker that was never started ends CANCELLED with its node and is forgotten."""
    async with Node("app") as app:
        panel = await app.mount(Node("panel"))
        worker = panel.run_worker(forever, start=False)
        await panel.remove()
        assert worker.state is WorkerState.CANCELLED
        assert worker not in app.workers
        app.workers.start_all()
        assert not app.workers


# errors


async def test_every_failure_is_raised_once():
    """When two workers fail, the block raises both errors."""
    errors = [ValueError("first"), KeyError("second")]

    async def fail_on_the_way_out():
        try:
            await anyio.sleep_forever()
        finally:
            raise errors[1]

    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            await app.start_worker(fail_on_the_way_out)
            app.run_worker(fail(errors[0]))
    assert caught.value.exceptions == tuple(errors)


async def test_a_contained_error_is_logged(caplog):
    """The error of a worker with ``exit_on_error=False`` is logged, even if nothing waits."""
    with caplog.at_level(logging.ERROR, "creche"):
        async with Node("app") as app:
            worker = app.run_worker(fail(ValueError("wrong")), exit_on_error=False)
    [record] = told(caplog)
    assert record.getMessage() == "worker 'fail' failed"
    assert record.exc_info[1] is worker.error


class Odd(BaseException):
    pass


@pytest.mark.parametrize("kind", [Odd, SystemExit, KeyboardInterrupt])
async def test_a_base_exception_ends_the_worker_and_propagates(kind):
    """A BaseException such as SystemExit ends its worker as ERROR and leaves the block bare."""
    odd = kind("odd")

    with pytest.raises(kind) as caught:
        async with Node("app") as app:
            worker = app.run_worker(fail(odd), exit_on_error=False)
    assert caught.value is odd
    assert (worker.state, worker.error) == (WorkerState.ERROR, odd)


# the manager and the handlers


async def test_cancelling_all_copes_with_workers_that_are_added_meanwhile():
    """cancel_all() copes with a worker that starts another one when it is cancelled."""

    class Restarting(Worker):
        def cancel(self, reason=None):
            super().cancel(reason)
            self.node.run_worker(forever)

    async with Node("app") as app:
        workers = [Restarting(app, forever) for _ in range(3)]
        for worker in workers:
            app.workers.add_worker(worker, exclusive=False)
        app.workers.cancel_all()
        assert all(worker.is_cancelled for worker in workers)
        assert len(app.workers) == 3
        app.workers.cancel_all()


async def test_the_manager_has_a_readable_repr():
    """The repr of a manager counts its workers by state."""
    async with Node("app") as app:
        worker = await app.start_worker(forever)
        app.run_worker(forever, start=False)
        assert set(re.findall(r"\d [A-Z]+", repr(app.workers))) == {"1 RUNNING", "1 PENDING"}
        worker.cancel()


async def test_the_final_change_reaches_the_handler_of_a_removed_node():
    """The handler of a node that is being removed is notified of how its workers ended."""
    async with Node("app") as app:
        panel = await app.mount(Log("panel"))
        await panel.start_worker(forever)
        await panel.remove()
        assert panel.told == ["PENDING", "RUNNING", "CANCELLED"]


async def test_the_final_change_reaches_the_handler_of_a_cancelled_root():
    """The handler of a root that is cancelled is notified of how its workers ended."""
    async with Log("app") as app:
        await app.start_worker(forever)
        app.cancel()
    assert app.told == ["PENDING", "RUNNING", "CANCELLED"]
