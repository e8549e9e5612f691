"""Checks of what docs/comparison.md says about other libraries, so that no cell gets outdated."""

from __future__ import annotations

import asyncio
import threading

import anyio
import pytest
from anyio import CancelScope

from creche import Node, WorkerState

aiojobs = pytest.importorskip("aiojobs")
background = pytest.importorskip("starlette.background")


class Failed(Exception):
    pass


async def fail():
    raise Failed


async def forever():
    await anyio.sleep_forever()


async def quick():
    await anyio.lowlevel.checkpoint()
    return "done"


@pytest.fixture(params=["asyncio"])
def anyio_backend(request):
    """Run on asyncio only, as the other libraries do. Creche itself is tested elsewhere."""
    return request.param


# a job fails


async def test_task_groups_cancel_the_others():
    """A failure in a task group, asyncio's or AnyIO's, cancels the other tasks and is raised."""
    groups = [anyio.create_task_group]
    groups += [asyncio.TaskGroup] if hasattr(asyncio, "TaskGroup") else []  # from Python 3.11 on
    for group in groups:
        ended = []

        async def wait():
            try:
                await forever()
            except asyncio.CancelledError:
                ended.append("cancelled")  # noqa: B023 (the block of its group ends first)
                raise

        with pytest.raises(BaseException) as caught:
            async with group() as tasks:
                tasks.create_task(wait())
                await anyio.lowlevel.checkpoint()  # a task that never began could not tell
                tasks.create_task(fail())
        assert [type(each) for each in caught.value.exceptions] == [Failed]
        assert ended == ["cancelled"]


async def test_aiojobs_hands_the_error_to_a_handler():
    """An aiojobs scheduler passes a failure to its handler, and the other jobs keep running."""
    told = []
    scheduler = aiojobs.Scheduler(exception_handler=lambda _, context: told.append(context))
    async with scheduler:
        await scheduler.spawn(fail())
        job = await scheduler.spawn(quick())
        assert await job.wait() == "done"
    assert [type(context["exception"]) for context in told] == [Failed]


async def test_background_tasks_stop_at_the_first_error():
    """Starlette's background tasks run one after another, and stop at the first that fails."""
    ran = []

    async def note(name):
        ran.append(f"{name} begins")
        await anyio.lowlevel.checkpoint()
        ran.append(f"{name} ends")

    tasks = background.BackgroundTasks()
    for work in (note, note, fail, note):
        tasks.add_task(work, *([] if work is fail else [f"job {len(tasks.tasks)}"]))
    with pytest.raises(Failed):
        await tasks()
    assert ran == ["job 0 begins", "job 0 ends", "job 1 begins", "job 1 ends"]


async def test_a_node_does_either():
    """A failure in a node cancels the other workers, or is only stored while they keep running."""
    async with Node("app") as app:
        failed = app.run_worker(fail, exit_on_error=False)
        worker = app.run_worker(quick)
    assert (type(failed.error), worker.result) == (Failed, "done")
    with pytest.raises(BaseException) as caught:
        async with Node("app") as app:
            other = app.run_worker(forever)
            app.run_worker(fail)
    assert [type(each) for each in caught.value.exceptions] == [Failed]
    assert other.state is WorkerState.CANCELLED


# a job is cancelled


async def swallow(begun):
    begun.set()
    try:
        await anyio.sleep_forever()
    except asyncio.CancelledError:
        return "done"


@pytest.mark.skipif(not hasattr(asyncio, "TaskGroup"), reason="from Python 3.11 on")
async def test_a_cancelled_task_may_look_like_success():
    """An asyncio task that swallows its cancellation is not cancelled, but a worker is."""
    async with asyncio.TaskGroup() as tasks:
        begun = asyncio.Event()
        task = tasks.create_task(swallow(begun))
        await begun.wait()
        task.cancel()
    assert (task.cancelled(), task.result()) == (False, "done")
    async with Node("app") as app:
        begun = anyio.Event()
        worker = app.run_worker(swallow(begun))
        await begun.wait()
        worker.cancel()
    assert (worker.state, worker.result) == (WorkerState.CANCELLED, "done")


async def test_one_task_of_anyio_can_be_cancelled():
    """The handle that AnyIO's ``create_task()`` returns cancels that task and no other."""
    async with anyio.create_task_group() as tasks:
        one = tasks.create_task(forever())
        other = tasks.create_task(quick())
        one.cancel()
    assert (one.status.name, other.status.name) == ("CANCELLED", "FINISHED")


async def test_a_job_of_aiojobs_can_be_closed():
    """``Job.close()`` of aiojobs cancels the job and waits for its end."""
    async with aiojobs.Scheduler() as scheduler:
        job = await scheduler.spawn(forever())
        await job.close()
        assert job.closed


# a limit


async def test_a_scheduler_of_aiojobs_has_one_limit():
    """aiojobs runs no more jobs than its limit, and ``spawn()`` waits if the queue is full."""
    async with aiojobs.Scheduler(limit=2, pending_limit=1) as scheduler:
        jobs = [await scheduler.spawn(forever()) for _ in range(3)]
        assert (scheduler.active_count, scheduler.pending_count) == (2, 1)
        with anyio.move_on_after(0) as waited:
            await scheduler.spawn(quick())
        assert waited.cancelled_caught
        for job in jobs:
            await job.close()


# the end


async def test_a_scheduler_of_aiojobs_gives_up_after_a_while():
    """Leaving an aiojobs scheduler waits ``wait_timeout`` for its jobs and then cancels them."""
    async with aiojobs.Scheduler(wait_timeout=0) as scheduler:
        job = await scheduler.spawn(forever())
    assert job.closed
    assert aiojobs.Scheduler()._wait_timeout == 60


# threads


async def test_a_thread_of_asyncio_goes_on_after_its_task():
    """A cancelled ``asyncio.to_thread()`` leaves its function running; a worker waits for it."""
    begun, go_on = threading.Event(), threading.Event()

    def work():
        begun.set()
        assert go_on.wait(60)

    task = asyncio.create_task(asyncio.to_thread(work))
    await asyncio.get_running_loop().run_in_executor(None, begun.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()  # the function was still waiting

    begun.clear()
    go_on.clear()
    async with Node("app") as app:
        worker = await app.start_worker(work, thread=True)
        worker.cancel()
        await anyio.lowlevel.checkpoint()
        assert worker.state is WorkerState.RUNNING
        go_on.set()
    assert worker.state is WorkerState.CANCELLED


async def test_a_thread_of_anyio_is_waited_for():
    """A cancelled ``anyio.to_thread.run_sync()`` waits until its function has returned."""
    begun, go_on = threading.Event(), threading.Event()
    ended = []

    def work():
        begun.set()
        assert go_on.wait(60)
        ended.append("function")

    async def wait():
        with CancelScope() as scope:
            scopes.append(scope)
            await anyio.to_thread.run_sync(work)
        ended.append("call")

    scopes = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.to_thread.run_sync(begun.wait, 60)
        scopes[0].cancel()
        await anyio.lowlevel.checkpoint()
        assert ended == []
        go_on.set()
    assert ended == ["function", "call"]
