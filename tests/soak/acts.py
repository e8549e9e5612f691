"""What actors do with work and threads; ``run.py --list`` shows what can be switched off."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import anyio
from books import bottom
from jobs import make_job, run_job
from table import LOOP, SIGNAL, THREADS, act

from creche import (
    DeadlockError,
    WorkerCancelled,
    WorkerError,
    WorkerFailed,
    WorkerState,
    format_tree,
)

# work


@act(6)
def run(actor, node):
    run_job(actor, node)


@act(1.5)
async def start(actor, node):
    if not actor.world.can_have_job():
        return
    job, work, group, options = make_job(actor, node)
    options.pop("start", None)
    with anyio.move_on_after(actor.rng.uniform(0, 0.03)):
        try:
            worker = await node.start_worker(work, job.name, group, **options)
        except WorkerError as error:
            job.refused = not isinstance(error, DeadlockError)
            raise
        job.worker = worker
        if worker.state is WorkerState.PENDING:
            actor.world.books.fail(f"start_worker() gave {worker!r}")


@act(1, "start_all")
def start_all(actor, node):
    node.workers.start_all()


@act(1, "progress", SIGNAL)
def advance(actor, node):
    job = actor.any_job()
    if job is not None:
        for _ in range(actor.rng.choice((1, 1, 50))):
            job.worker.advance()
        job.worker.update(total_steps=100)


# ends


@act(2, "cancel", SIGNAL)
def cancel_worker(actor, node):
    job = actor.any_job()
    if job is not None:
        job.worker.cancel(f"by {actor.place}")
        if actor.place in LOOP and not job.worker.is_finished:
            actor.world.books.loop_cancelled.add(job.worker)


@act(0.5, "cancel_group")
def cancel_group(actor, node):
    if actor.chance(0.5):
        node.workers.cancel_group(node, actor.rng.choice(("default", "enqueue", "a")))
    else:
        node.group(actor.rng.choice(("default", "enqueue", "a"))).cancel("the group")


@act(0.2, "cancel_node", SIGNAL)
def cancel_node(actor, node):
    node.cancel(f"by {actor.place}")


@act(0.2, "cancel_all", SIGNAL)
def cancel_all(actor, node):
    if actor.chance(0.5):
        node.workers.cancel_all("all")
    else:
        node.workers.cancel_node(node)


@act(0.3, "shutdown")
async def shutdown(actor, node):
    if actor.place == "call" and "shutdown_calls" not in actor.world.enabled:
        return
    await node.shutdown(actor.rng.choice((0, 0, actor.rng.uniform(0, 0.02))))


@act(0.5, "native", LOOP)
def cancel_natively(actor, node):
    """Cancel the task of a worker, behind Creche's back."""
    if actor.world.backend == "trio":
        return
    names = {job.name for job in actor.world.books.jobs}
    tasks = [task for task in asyncio.all_tasks() if task.get_name().split("/")[-1] in names]
    if tasks:
        task = actor.rng.choice(sorted(tasks, key=lambda task: task.get_name()))
        task.cancel()
        actor.world.books.native.add(task.get_name().split("/")[-1])


# waits


@act(2, "wait")
async def wait(actor, node):
    job = actor.any_job()
    if job is None:
        return
    books, worker = actor.world.books, job.worker
    # A worker may wait without a limit: what would hang is an error.
    for_ever = actor.place == "worker" and job.ends and actor.chance(0.5)
    with anyio.CancelScope() as scope:
        if not for_ever:
            scope.deadline = anyio.current_time() + actor.rng.uniform(0, 0.03)
        try:
            if await worker != job.value or worker.state is not WorkerState.SUCCESS:
                books.fail(f"wait() gave {worker.result!r} of {job.told}")
        except WorkerFailed as error:
            if worker.state is not WorkerState.ERROR or error.error is not worker.error:
                books.fail(f"wait() raised {error!r} of {job.told}")
            if "relay" in actor.world.enabled and _is_at_home(actor, job):
                actor.world.note(f"relays {bottom(error)!r}")
                raise
        except WorkerCancelled:
            if worker.state is not WorkerState.CANCELLED:
                books.fail(f"wait() raised WorkerCancelled of {job.told}")


def _is_at_home(actor, job):
    return actor.home is not None and job.node.root is actor.home.root and actor.chance(0.3)


@act(0.5, "wait")
async def wait_for_many(actor, node):
    with anyio.move_on_after(actor.rng.uniform(0, 0.03)):
        if actor.chance(0.5):
            await node.group(actor.rng.choice(("default", "enqueue"))).wait()
        else:
            await node.workers.wait_for_complete()


@act(0.5, "deadlock", ("worker",))
async def wait_for_itself(actor, node):
    try:
        await actor.me.wait()
    except DeadlockError:
        return
    actor.world.books.fail(f"{actor.me!r} waited for itself")


@act(0.5, "deadlock", ("worker",))
async def wait_in_a_ring(actor, node):
    """Wait for a worker that waits for this one; one of the two gets a DeadlockError."""
    me = actor.me

    async def other():
        with contextlib.suppress(WorkerCancelled, WorkerFailed):
            await me  # a DeadlockError goes out

    worker = me.node.run_worker(other, "ring", "ring", exit_on_error=False)
    if actor.chance(0.5):
        await anyio.lowlevel.checkpoint()
    with contextlib.suppress(WorkerFailed, WorkerCancelled, DeadlockError):
        await worker
        if not me.is_cancelled:
            actor.world.books.fail(f"{worker!r} waited for {me!r}, which waited for it")


# what else


@act(0.7, "limits")
def change_limit(actor, node):
    name = actor.rng.choice(("enqueue", "restart", "drop", "keep_latest"))
    limit = actor.rng.choice((1, 2, 3, 5, None))
    actor.world.books.allow(node, name, limit)
    node.group(name).limit = limit


@act(0.3, "looks", SIGNAL)
def look(actor, node):
    if actor.chance(0.5):
        format_tree(node)
    else:
        node.snapshot()
        repr(node.workers)
        len(node.workers)


@act(0.4, "signals")
def send_signal(actor, node):
    os.kill(os.getpid(), signal.SIGUSR1)


@act(2, "calls", THREADS)
def call(actor, node):
    """Make a call on the loop from a thread."""
    books, me = actor.world.books, actor.me
    was_cancelled = me is not None and me.is_cancelled

    def on_loop():
        if was_cancelled or me in books.loop_cancelled:
            books.fail(f"a call of {me!r} took effect, though it was cancelled")
        inner.trouble("a call from a thread", actor.world.worker_trouble / 3)
        return 5

    async def on_loop_async():
        on_loop()
        await inner.nap()
        if actor.chance(0.5):
            await inner.step(node)
        return 5

    inner = actor.child("call")
    given = node.call_from_thread(on_loop if actor.chance(0.5) else on_loop_async)
    if given != 5:
        books.fail(f"call_from_thread() gave {given!r}")
    if was_cancelled:
        books.fail(f"call_from_thread() of {me!r}, which was cancelled, gave a value")


@act(2)
async def nap(actor, node):
    await actor.nap()
