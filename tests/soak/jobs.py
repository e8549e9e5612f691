"""The kinds of work that workers do, and the blocks of nodes."""

from __future__ import annotations

import math
from functools import partial

import anyio

from creche import Worker, WorkerError, get_current_worker

FEATURES = (
    *("errors", "exits", "relay", "threads", "abandon", "limiters", "exclusive", "unstarted"),
    *("daemons", "groups", "deadlines", "handlers", "handler_workers", "handler_errors"),
    *("early_threads", "shutdown_calls"),
)
RULES = ("enqueue", "restart", "drop", "keep_latest")


def run_job(actor, node, **given):
    """Run work of a random kind on a node."""
    if not actor.world.can_have_job():
        return
    job, work, group, options = make_job(actor, node)
    try:
        worker = node.run_worker(work, job.name, group, **(options | given))
    except WorkerError:
        job.refused = True
        raise
    job.worker = worker


def make_job(actor, node):
    """Return work, its record in the books, the name of a group, and the worker's other options."""
    has, rng = actor.world.enabled.__contains__, actor.rng
    kinds = ["async", "async", "coro", "partial", "tasks"]
    kinds += ["thread", "own_loop"] * has("threads") + ["for_ever"] * has("daemons")
    kind = rng.choice(kinds)
    job = actor.world.books.job(node, kind)
    inner = actor.child("thread" if kind in ("thread", "own_loop") else "worker", node)
    group = rng.choice((None, "a", *(RULES if has("groups") else ())))
    options = {"exit_on_error": not actor.chance(0.6)}
    if has("exclusive") and actor.chance(0.15):
        options["exclusive"] = True
    if has("unstarted") and actor.chance(0.1):
        options["start"] = False
    if has("daemons") and actor.chance(0.1):
        options["daemon"] = True
    if kind in ("thread", "own_loop"):
        options["thread"] = True
        options["abandon_on_cancel"] = has("abandon") and actor.chance(0.3)
        options["limiter"] = actor.world.limiter if has("limiters") and actor.chance(0.3) else None
    if kind == "for_ever":
        job.ends = False
        options["daemon"] = True
        group = rng.choice((None, "a"))  # in a group with a limit it would hold a slot forever
    if "exclusive" in options and kind != "partial":
        group = group or "a"  # without a group, work that has no name causes a warning
    job.options = options
    if options.get("abandon_on_cancel"):
        actor.world.books.abandoning.add((node, group))
    work = partial(WORK[kind], inner, job)
    if kind == "coro":
        work = work()
    elif kind != "partial":
        work = _as_function(work)
    return job, work, group, options


def _as_function(work):
    return lambda: work()  # noqa: PLW0108 (a partial is another kind)


async def _steps(actor, job):
    job.enter(get_current_worker())
    actor.me = job.worker
    try:
        for _ in range(actor.rng.choice((0, 1, 1, 2, 5))):
            await actor.nap()
            await actor.step(job.node)
        actor.trouble(job.name, actor.world.worker_trouble)
    except anyio.get_cancelled_exc_class():
        actor.trouble(f"{job.name}, as it was cancelled", actor.world.worker_trouble / 3)
        if not actor.chance(0.1):
            raise  # otherwise the work ignores its cancellation
    finally:
        job.leave()
    return job.value


async def _tasks(actor, job):
    """Work in tasks of its own, several of which may raise."""

    async def one(mine):
        try:
            await mine.nap()
            if mine.place == "task" and mine.chance(0.5):
                await mine.step(job.node)
            if mine.chance(mine.world.worker_trouble):
                raise mine.world.books.plant(f"a task of {job.name}")
        except anyio.get_cancelled_exc_class():
            if mine.chance(mine.world.worker_trouble / 2):
                raise mine.world.books.plant(f"a task of {job.name}, as it was cancelled") from None
            raise

    job.enter(get_current_worker())
    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(actor.rng.randint(1, 3)):
                tasks.start_soon(one, actor.child("task"))
    finally:
        job.leave()
    return job.value


async def _for_ever(actor, job):
    job.enter(get_current_worker())
    try:
        await anyio.sleep(math.inf)
    finally:
        job.leave()


def _in_thread(actor, job):
    worker = get_current_worker()
    job.enter(worker)
    actor.me = worker
    try:
        for _ in range(actor.rng.choice((0, 1, 1, 3))):
            actor.sleep()
            if actor.chance(0.2):
                worker.check_cancelled()
            if actor.chance(0.1):
                anyio.from_thread.check_cancelled()
            actor.step_sync(job.node)
        actor.trouble(job.name, actor.world.worker_trouble)
    finally:
        job.leave()
    return job.value


async def on_own_loop(actor, job):
    worker = get_current_worker()
    job.enter(worker)
    actor.me = worker
    try:
        for _ in range(actor.rng.choice((0, 1, 1, 3))):
            await actor.nap()
            actor.step_sync(job.node)
        actor.trouble(job.name, actor.world.worker_trouble)
    finally:
        job.leave()
    return job.value


WORK = {
    "async": _steps,
    "coro": _steps,
    "partial": _steps,
    "tasks": _tasks,
    "for_ever": _for_ever,
    "thread": _in_thread,
    "own_loop": on_own_loop,
}


async def open_block(actor, node):
    """Open a node, act in its body, leave it, and check all that its end promises."""
    raised = None
    world, here = actor.world, actor.child("body", node)
    scope = anyio.CancelScope()
    if "deadlines" in world.enabled and actor.chance(0.15):
        scope.deadline = anyio.current_time() + actor.rng.uniform(0, 0.05)
    async with node.subscribe(Worker.StateChanged, tree=True) as events:
        before = len(world.books.below(node))  # announced before the node was opened
        try:
            with scope:
                async with node:
                    for _ in range(
                        actor.rng.choice((0, 3, 10, 40) if node.parent is None else (0, 1, 3, 10))
                    ):
                        await here.step(node)
                    here.trouble(f"the body of {node.path}", world.worker_trouble / 3)
        except BaseException as error:
            raised = error
        if not node.was_opened:
            if type(raised) is WorkerError:
                return  # its parent was closed
        else:
            jobs = world.books.below(node)
            world.books.check_left(node)
            told = world.books.check_events(
                node, events.take_all(), where=f"the tree of {node.path}", complete=not before
            )
            if not before:
                world.books.check_missing(node, told, jobs, f"the tree of {node.path}")
            check_handlers(world, node)
    if raised is None:
        return
    try:
        if actor.place in ("body", "worker") and actor.chance(0.5):
            raise raised
        world.finish(raised, f"the block of {node.path}")
    finally:
        del raised


def check_handlers(world, node):
    """Check what the handlers of a closed node were notified of."""
    if node.hears_changes:
        where = f"the handlers of {node.path}"
        told = world.books.check_events(node, node.told, where=where)
        own = [job for job in world.books.jobs if job.node is node]
        world.books.check_missing(node, told, own, where)
