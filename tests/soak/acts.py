"""What actors do, by name; ``soak.py --list`` tells the names of the features."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
from dataclasses import dataclass
from typing import Any

import anyio
from books import bottom
from jobs import make_job, open_block, run_job
from world import Ping, Poke

from creche import (
    DeadlockError,
    Message,
    Worker,
    WorkerCancelled,
    WorkerError,
    WorkerFailed,
    WorkerState,
    format_tree,
)

TABLE = []
LOOP = ("body", "worker", "handler", "task")
THREADS = ("thread", "foreign")
SIGNAL = (*LOOP, *THREADS, "signal")


@dataclass
class Act:
    name: str
    function: Any
    weight: float
    feature: str | None
    places: tuple[str, ...]
    is_async: bool

    def is_for(self, place):
        return place in self.places


def act(weight=1.0, feature=None, places=None):
    """Put a function into the table: how often, what switches it off, and where it may be done."""

    def add(function):
        is_async = inspect.iscoroutinefunction(function)
        where = places or (LOOP if is_async else (*LOOP, *THREADS))
        TABLE.append(Act(function.__name__, function, weight, feature, where, is_async))
        return function

    return add


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
    """Wait for a worker that waits for this one: one of the two is told."""
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


# the tree


@act(1, "blocks")
async def block(actor, node):
    """Open a node below, here."""
    if actor.world.can_have_node():
        await open_block(actor, actor.world.new_node(actor.rng, node))


@act(1, "blocks", LOOP)
def block_elsewhere(actor, node):
    """Open a node below, in a task outside of all nodes."""
    if actor.world.can_have_node():
        actor.world.spawn(actor, open_block, actor.world.new_node(actor.rng, node))


@act(0.3, "unopened", LOOP)
def unopened(actor, node):
    """Make a node that nobody opens."""
    if actor.world.can_have_node():
        actor.world.new_node(actor.rng, node if actor.chance(0.5) else None)


@act(1, "mount")
async def mount(actor, node):
    if not actor.world.can_have_node():
        return
    child = actor.world.new_node(actor.rng)
    for _ in range(actor.rng.choice((0, 0, 2))):
        run_job(actor, child, start=False)
    await node.mount(child)
    actor.world.mounted.append(child)


@act(0.7, "mount")
async def remove(actor, node):
    if not actor.world.mounted:
        return
    child = actor.rng.choice(actor.world.mounted)
    if actor.chance(0.3):
        child.cancel("ends by itself")
        return
    with anyio.CancelScope() as scope:
        if actor.chance(0.3):
            scope.deadline = anyio.current_time() + actor.rng.uniform(0, 0.01)
        await child.remove()
        actor.world.books.check_left(child)


# messages and those who listen


@act(2, "messages", SIGNAL)
def post(actor, node):
    deed = actor.rng.choice(("nothing", "nothing", "act"))
    kind = Poke if "handler_workers" in actor.world.enabled and actor.chance(0.3) else Ping
    message = kind(actor.world.books.next(), deed)
    me = actor.me if actor.place == "thread" else None
    was_cancelled = me is not None and me.is_cancelled
    is_taken = node.post_message(message)
    actor.world.note(f"  message {message.number} to {node!r}: {is_taken}")
    if was_cancelled and node.was_opened:
        actor.world.books.fail(f"post_message() of {me!r}, which was cancelled, gave {is_taken}")
    if is_taken and kind is Ping:
        actor.world.books.posted(node, message, me)


@act(0.7, "readers", LOOP)
def listen(actor, node):
    actor.world.spawn(actor, _read, node)


async def _read(actor, node):
    """Read what happens on a node, slowly, and perhaps not to the end."""
    kind = actor.rng.choice((Message, Worker.StateChanged, Worker.ProgressChanged))
    left = actor.rng.choice((3, 30, 10_000))
    events = []
    with anyio.CancelScope() as scope, contextlib.suppress(WorkerError):
        if not node.was_opened or actor.chance(0.3):  # else it ends as the node does
            scope.deadline = anyio.current_time() + actor.rng.uniform(0, 0.05)
        async with node.subscribe(kind, tree=actor.chance(0.5)) as stream:
            async for event in stream:
                events.append(event)
                left -= 1
                if not left:
                    break
                if actor.chance(0.2):
                    await actor.nap()
    changes = [event for event in events if isinstance(event, Worker.StateChanged)]
    actor.world.books.check_events(node, changes, where=f"a reader of {node.path}", complete=False)


# what else


@act(0.7, "limits")
def change_limit(actor, node):
    name = actor.rng.choice(("enqueue", "restart", "drop", "keep_latest"))
    node.group(name).limit = actor.rng.choice((1, 2, 3, 5, None))


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
    """Call something on the loop from a thread."""
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

    inner = actor.child("task")
    given = node.call_from_thread(on_loop if actor.chance(0.5) else on_loop_async)
    if given != 5:
        books.fail(f"call_from_thread() gave {given!r}")
    if was_cancelled:
        books.fail(f"call_from_thread() of {me!r}, which was cancelled, gave a value")


@act(2)
async def nap(actor, node):
    await actor.nap()
