"""Errors are raised once, with a note; those that must not end a program are stored and logged."""

from __future__ import annotations

import logging
import weakref

import anyio
import pytest

from creche import Node, Worker, WorkerCancelled, WorkerError, WorkerFailed
from helpers import (
    CANCELLED,
    ERROR,
    RUNNING,
    BaseExceptionGroup,
    ExceptionGroup,
    Listener,
    fail,
    fail_late,
    leaves,
    no_collection,
    run_python,
    settle,
    told,
)


class Boom(Exception):
    """The error that the tests raise."""


async def leave():
    raise SystemExit(3)


async def boom():
    raise Boom("boom")


async def test_failure_ends_the_node():
    """The block raises the original in a group, with a note. All other workers are cancelled."""
    with pytest.raises(ExceptionGroup, match="unhandled errors in node 'app'") as caught:
        async with Listener() as app:
            other = app.run_worker(anyio.sleep_forever)
            await settle()
            worker = app.run_worker(boom, group="bombs")
            await anyio.sleep_forever()
    (error,) = caught.value.exceptions
    assert error is worker.error
    assert error.__notes__ == ["in worker 'boom' of group 'bombs' on node 'app'"]
    assert (worker.state, other.state) == (ERROR, CANCELLED)
    assert other.cancel_reason == "node 'app' failed"


async def test_body_that_awaits_learns_why():
    """The body gets WorkerFailed instead of the cancellation, and it is not reported again."""
    with pytest.raises(ExceptionGroup) as caught:
        async with Node() as app:
            worker = app.run_worker(boom)
            with pytest.raises(WorkerFailed, match="worker 'boom' failed: Boom: boom") as failed:
                await worker.wait()
            raise failed.value
    assert leaves(caught.value) == [worker.error]
    assert failed.value.error is worker.error
    assert failed.value.__cause__ is worker.error


async def test_siblings_that_await_are_not_reported():
    """Workers that relay another's failure fail, but the group contains only the original."""
    with pytest.raises(ExceptionGroup) as caught:
        async with Node() as app:
            worker = app.run_worker(boom, start=False)
            relays = [app.run_worker(worker.wait)]
            app.workers.start_all()
            relays += [app.run_worker(relays[0].wait), app.run_worker(worker.wait)]
            await anyio.sleep_forever()
    assert leaves(caught.value) == [worker.error]


async def test_each_waiter_gets_an_exception_of_its_own():
    """The traceback of an error does not grow with the number of waits."""
    async with Node() as app:
        worker = app.run_worker(boom, exit_on_error=False)
        seen = []
        for _ in range(3):
            with pytest.raises(WorkerFailed) as caught:
                await worker.wait()
            seen.append(caught.value)
    assert len(set(map(id, seen))) == 3
    depths = {len(list(_frames(error.__cause__.__traceback__))) for error in seen}
    assert depths == {1}


def _frames(traceback):
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


async def test_stored_error(caplog):
    """With exit_on_error=False the error is stored, announced and logged; other work goes on."""
    async with Listener() as app:
        other = app.run_worker(anyio.sleep_forever)
        worker = app.run_worker(boom, exit_on_error=False)
        with pytest.raises(WorkerFailed):
            await worker.wait()
        await settle()
        assert (worker.state, other.state) == (ERROR, RUNNING)
        assert app.told_of(worker)[-1] is ERROR
        other.cancel()
    (record,) = told(caplog)
    assert (record.name, record.levelno) == ("creche", logging.ERROR)
    assert record.getMessage() == "worker 'boom' failed"
    assert record.exc_info[1] is worker.error


async def test_stored_error_that_the_body_lets_out():
    """A WorkerFailed of a stored error is raised once, as the error was not raised before."""
    with pytest.raises(ExceptionGroup) as caught:
        async with Node() as app:
            worker = app.run_worker(boom, exit_on_error=False)
            app.run_worker(worker.wait)
            app.run_worker(worker.wait)
            await worker.wait()
    (failed,) = leaves(caught.value)
    assert isinstance(failed, WorkerFailed)
    assert failed.error is worker.error


async def test_body_error_is_in_the_group():
    """The body's own error is raised in a group, as by a task group, and the work is cancelled."""
    with pytest.raises(ExceptionGroup) as caught:
        async with Node() as app:
            worker = app.run_worker(anyio.sleep_forever)
            await settle()
            raise Boom("body")
    assert [str(leaf) for leaf in leaves(caught.value)] == ["body"]
    assert worker.state is CANCELLED


async def test_errors_of_several_workers():
    """If workers fail while others unwind, the group contains each of their errors once."""

    with pytest.raises(ExceptionGroup) as caught:
        async with Node() as app:
            app.run_worker(fail_late(Boom("late")))
            app.run_worker(fail_late(Boom("late")))
            await settle()
            app.run_worker(boom)
    assert sorted(str(leaf) for leaf in leaves(caught.value)) == ["boom", "late", "late"]


async def test_one_object_raised_by_two_workers():
    """One exception object is reported once, with a note for each worker."""
    shared = Boom("shared")

    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app:
            first = app.run_worker(fail(shared), name="first")
            second = app.run_worker(fail(shared), name="second", exit_on_error=False)
            with anyio.CancelScope(shield=True):
                await settle()
    assert leaves(caught.value) == [shared]
    assert first.state is ERROR
    assert len(shared.__notes__) == (1 if second.state is CANCELLED else 2)


async def test_one_object_that_fails_the_node_twice_is_raised_once():
    """An error that two workers raise is the error of both, but is in the group once."""
    shared, gate = Boom("shared"), anyio.Event()

    async def fail():
        with anyio.CancelScope(shield=True):
            await gate.wait()
        raise shared

    with pytest.raises(ExceptionGroup) as caught:
        async with Node() as app:
            workers = [app.run_worker(fail) for _ in range(2)]
            await settle()
            gate.set()
    assert leaves(caught.value) == [shared]
    assert [worker.error for worker in workers] == [shared, shared]


async def test_note_is_added_once():
    """An error that the same worker raises again gets only one note."""
    shared = Boom("shared")

    async with Node("app") as app:
        for _ in range(2):
            await app.workers.wait_for_complete([app.run_worker(fail(shared), exit_on_error=False)])
    assert shared.__notes__ == ["in worker 'fail' of group 'default' on node 'app'"]


async def test_child_block_raises_its_own_group():
    """A child's block raises its own group, which the parent's group contains."""
    with pytest.raises(ExceptionGroup, match="node 'app'") as caught:
        async with Node("app") as app, Node("page", parent=app) as page:
            page.run_worker(boom)
    (inner,) = caught.value.exceptions
    assert isinstance(inner, ExceptionGroup)
    assert inner.message == "unhandled errors in node 'app/page'"
    assert [str(leaf) for leaf in inner.exceptions] == ["boom"]


async def test_mounted_child_joins_its_parent():
    """The errors of a mounted node are in its parent's group, without nesting."""
    with pytest.raises(ExceptionGroup, match="node 'app'") as caught:
        async with Node("app") as app:
            panel = await app.mount(Node("panel"))
            worker = panel.run_worker(boom)
            await anyio.sleep_forever()
    assert list(caught.value.exceptions) == [worker.error]
    assert worker.error.__notes__ == ["in worker 'boom' of group 'default' on node 'app/panel'"]


async def test_relay_in_a_child_block():
    """A child's worker that relays a failure in the parent is not reported again."""
    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app, Node("page", parent=app) as page:
            worker = app.run_worker(boom, start=False)
            worker_below = app.run_worker(boom, start=False)
            worker_below.cancel()
            app.workers.start_all()
            page.run_worker(worker.wait)
            await worker.wait()
    assert leaves(caught.value) == [worker.error]


async def test_relay_in_the_parent():
    """A parent's worker that relays a failure in the child is not reported again."""
    with pytest.raises(ExceptionGroup) as caught:
        async with Node("app") as app, Node("page", parent=app) as page:
            worker = page.run_worker(boom, start=False)
            app.run_worker(start_and_wait(page, worker))
            await anyio.sleep_forever()
    assert leaves(caught.value) == [worker.error]


async def start_and_wait(node, worker):
    node.workers.start_all()
    with anyio.CancelScope(shield=True):
        await worker.wait()


async def test_relay_after_the_failure_was_handled():
    """A failure that a child's block raised and the program handled is not raised again."""
    async with Node("app") as app:
        try:
            async with Node("page", parent=app) as page:
                worker = page.run_worker(boom)
        except ExceptionGroup as group:
            assert leaves(group) == [worker.error]
        with pytest.raises(WorkerFailed) as failed:
            await worker.wait()
        assert failed.value.error is worker.error


async def test_relay_between_two_trees():
    """A failure that another tree has reported is reported by this tree, too."""
    with pytest.raises(ExceptionGroup) as first:
        async with Node("one") as one:
            worker = one.run_worker(boom)
    with pytest.raises(ExceptionGroup) as second:
        async with Node("two") as two:
            two.run_worker(worker.wait)
    assert leaves(first.value) == [worker.error]
    (relayed,) = leaves(second.value)
    assert relayed.error is worker.error


async def test_relay_in_a_group_of_the_users():
    """Relays are taken out of exception groups as well."""

    async def gather(worker):
        async with anyio.create_task_group() as group:
            group.start_soon(worker.wait)
            group.start_soon(worker.wait)

    with pytest.raises(ExceptionGroup) as caught:
        async with Node() as app:
            worker = app.run_worker(boom, start=False)
            app.run_worker(gather(worker), start=False)
            for each in app.workers:
                each.group = "default"
            app.workers.start_all()
            await anyio.sleep_forever()
    assert leaves(caught.value) == [worker.error]


async def test_users_own_worker_failed():
    """A WorkerFailed that the user made is treated like any other error."""
    with pytest.raises(ExceptionGroup) as caught:
        async with Node() as app:
            worker = app.run_worker(fail(WorkerFailed(Boom("mine"))))
    assert leaves(caught.value) == [worker.error]


async def test_message_does_not_grow_with_relays():
    """The message of a failure names the original error, however long the chain of waits."""
    async with Node() as app:
        worker = app.run_worker(boom, exit_on_error=False)
        for _ in range(50):
            worker = app.run_worker(worker.wait, exit_on_error=False)
        with pytest.raises(WorkerFailed) as caught:
            await worker.wait()
    assert str(caught.value) == "worker 'boom' failed: Boom: boom"


@pytest.mark.parametrize("exit_on_error", [True, False])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_base_exceptions_leave_bare(kind, exit_on_error):
    """KeyboardInterrupt and SystemExit propagate bare, whatever exit_on_error says."""

    async def leave():
        raise kind(3)

    with pytest.raises(kind) as caught:
        async with Node() as app:
            other = app.run_worker(anyio.sleep_forever)
            worker = app.run_worker(leave, exit_on_error=exit_on_error)
            await anyio.sleep_forever()
    assert caught.value is worker.error
    assert worker.state is ERROR
    assert other.state is CANCELLED


async def test_base_exception_takes_other_errors_along():
    """Errors beside a SystemExit are not lost: they become its cause."""

    with pytest.raises(SystemExit) as caught:
        async with Node("app") as app:
            app.run_worker(fail_late(Boom("late")))
            await settle()
            app.run_worker(leave)
    assert [str(leaf) for leaf in leaves(caught.value.__cause__)] == ["late"]


async def test_base_exception_of_a_mounted_node_takes_all_errors_along():
    """The errors of the mounted node and of its parent become the cause of the SystemExit."""

    with pytest.raises(SystemExit) as caught:
        async with Node("app") as app:
            panel = await app.mount(Node("panel"))
            app.run_worker(fail_late(Boom("parent")))
            panel.run_worker(fail_late(Boom("child")))
            await settle()
            panel.run_worker(leave)
            await anyio.sleep_forever()
    assert sorted(str(leaf) for leaf in leaves(caught.value.__cause__)) == ["child", "parent"]


async def test_base_exception_with_a_cause_of_its_own():
    """A cause that the work set is not replaced by the errors beside it."""
    cause = Boom("cause")

    async def leave_with_cause():
        raise SystemExit(3) from cause

    with pytest.raises(SystemExit) as caught:
        async with Node("app") as app:
            app.run_worker(fail_late(Boom("late")))
            await settle()
            app.run_worker(leave_with_cause)
    assert caught.value.__cause__ is cause


async def test_base_exception_of_the_body_leaves_bare():
    """The body's own SystemExit is raised bare, not in a group."""
    with pytest.raises(SystemExit):
        async with Node() as app:
            worker = app.run_worker(anyio.sleep_forever)
            raise SystemExit(3)
    assert worker.state is CANCELLED


async def test_base_exception_through_nested_nodes():
    """A SystemExit is raised bare by every block, also by that of a mounted node's parent."""

    with pytest.raises(SystemExit):
        async with Node("app") as app, Node("page", parent=app) as page:
            page.run_worker(leave)
    with pytest.raises(SystemExit):
        async with Node("app") as app:
            panel = await app.mount(Node("panel"))
            panel.run_worker(leave)
            await anyio.sleep_forever()


def test_exit_status(anyio_backend):
    """SystemExit(3) in a worker ends the program with status 3 and prints nothing."""
    program = """
import anyio, sys, creche
async def leave():
    raise SystemExit(3)
async def main():
    async with creche.Node() as app:
        app.run_worker(anyio.sleep_forever)
        app.run_worker(leave)
anyio.run(main, backend=sys.argv[1])
"""
    done = run_python(program, anyio_backend[0])
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


async def test_generator_exit_in_the_body_is_left_alone():
    """Closing an async generator early ends the node inside it, and raises nothing."""
    workers = []

    async def generate():
        async with Node() as app:
            workers.append(app.run_worker(anyio.sleep_forever))
            yield 1

    generator = generate()
    assert await generator.__anext__() == 1
    await generator.aclose()
    assert workers[0].state is CANCELLED


async def test_worker_cancelled_of_another_is_an_error():
    """A worker that lets out another worker's WorkerCancelled has failed."""
    with pytest.raises(ExceptionGroup) as caught:
        async with Node() as app:
            other = app.run_worker(anyio.sleep_forever, name="other")
            worker = app.run_worker(other.wait)
            await settle()
            other.cancel("no more")
            await anyio.sleep_forever()
    (error,) = leaves(caught.value)
    assert isinstance(error, WorkerCancelled)
    assert str(error) == "worker 'other' was cancelled: no more"
    assert worker.state is ERROR


async def test_group_of_nothing_but_cancellation():
    """An exception group that contains only the cancellation is not an error."""

    async def work():
        try:
            await anyio.sleep_forever()
        except BaseException as error:
            raise BaseExceptionGroup("", [error]) from None

    async with Node() as app:
        worker = app.run_worker(work)
        await settle()
        worker.cancel()
    assert worker.state is CANCELLED


async def test_group_with_cancellation_and_an_error():
    """If a group contains the cancellation and an error, the worker fails with the error."""

    async def work():
        try:
            await anyio.sleep_forever()
        except BaseException as error:
            raise BaseExceptionGroup("", [error, Boom("beside")]) from None

    with pytest.raises(ExceptionGroup) as caught:
        async with Node() as app:
            worker = app.run_worker(work)
            await settle()
            worker.cancel()
    assert [str(leaf) for leaf in leaves(caught.value)] == ["beside"]
    assert worker.state is ERROR


async def test_plain_function_without_thread():
    """A plain function that returns no awaitable is an error that says how to fix it."""
    with pytest.raises(ExceptionGroup) as caught:
        async with Node() as app:
            app.run_worker(lambda: 5, name="plain")
    (error,) = leaves(caught.value)
    assert isinstance(error, WorkerError)
    assert str(error) == (
        "the work of worker 'plain' is a plain function that returned 5, which is not awaitable; "
        "run it with thread=True, or make it an async function"
    )


async def test_no_reference_cycle():
    """A failed worker and its error are freed without the garbage collector."""

    class Traceable(Exception):
        pass

    with no_collection():
        try:
            async with Node() as app:
                worker = app.run_worker(fail(Traceable))
        except ExceptionGroup as group:
            assert len(group.exceptions) == 1
        error, weak_worker = weakref.ref(worker.error), weakref.ref(worker)
        del worker
        await settle()
        assert weak_worker() is None
        assert error() is None


async def test_adapter_that_reports_an_error():
    """A worker that failed elsewhere, without an exception, makes wait() raise WorkerFailed."""
    async with Node() as app:
        worker = app.run_worker(anyio.sleep_forever, start=False, name="far")
        worker.state = RUNNING
        worker.state = ERROR
        with pytest.raises(
            WorkerFailed, match="worker 'far' failed: WorkerError: it failed elsewhere"
        ):
            await worker.wait()
    assert isinstance(worker, Worker)
