"""Runners: tasks that run one job after another.

A task is most of the cost of a short piece of work. So a nursery keeps a few tasks, its *runners*,
and a launched job waits until one of them takes it, a turn or two of the loop later. The work
cannot tell that it shares a task, because of this:

*Context.* Each job is stepped by ``Context.run()`` in its own context. Trio reads the context of
the task before each step, so there the task is given the job's. The task's own context is empty;
otherwise a runner would keep the context of its first job alive. Only
``asyncio.Task.get_context()``, new in Python 3.12, reveals it.

*Name.* The task is renamed when it takes a job.

*Cancellation.* The task belongs to the job while that runs. A runner that was cancelled, in
whatever way, is *spent*: it ends with its job. So is a runner whose task could still be cancelled,
awaited or inspected from outside, because a reference, a weak reference or a callback was added
during the job. asyncio gives the current task to any code without a trace, so the reference count
is the only sign of that; without one (PyPy, free-threaded Python), no task is shared. A Trio task
cannot be cancelled from outside, but locks and limiters refer to it as their owner, so the same
applies there.

*Order.* As long as jobs end without suspending, one runner takes them one by one: those that were
ready when it began, and then it lets the loop run. When a job suspends, its runner stays with it to
the end, and the jobs that are ready go to other runners, idle or new. A runner whose job has ended
takes the next one, or becomes idle. If the job had suspended, it takes one more in the same turn,
usually a job that was launched by the end of the last: one turn later that would cost a third more.

*Cost.* A job that suspends costs a little more in a runner than in its own task, which only pays
off if the runner is used again. So at most ten are kept for reuse, and while all of them have jobs
that suspend, each further job gets its own task. Runners that have had the same job all along are
no longer counted.

A job that was called off before it was taken is skipped; it has no task yet that could be killed.
"""

from __future__ import annotations

from collections import deque
from contextvars import Context
from functools import partial
from types import coroutine
from typing import TYPE_CHECKING, Any, cast

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator
    from types import TracebackType

    from creche._ground.backend import Backend
    from creche._nursery.nursery import Nursery

    from .job import TaskJob

MOST = 10
"""How many runners a nursery keeps."""
IDLE = "idle runner"
"""The name of a task that has nothing to run."""


class Runners:
    """The runners of one nursery; on its loop only.

    Args:
        nursery: The nursery.
    """

    __slots__ = (
        "_awake",
        "_idle",
        "_is_closed",
        "_kept",
        "_missed",
        "_nursery",
        "_ready",
        "_spawned",
    )

    def __init__(self, nursery: Nursery) -> None:
        # - _awake is the runner that will take jobs from _ready by itself: it was spawned or woken
        #   and has not begun, or it is between two jobs, in the first step of one or in the last.
        #   If there is none, _ready is empty. While the nursery is being opened it is this object.
        # - Runners in _idle sleep until they get a job.
        # - _spawned has the tasks that have not begun, by the id() of their runner or only job.
        self._nursery = nursery
        self._ready: deque[TaskJob] = deque()
        self._awake: object = None
        self._idle: dict[Runner, None] = {}
        self._kept = 0  # how many runners may be used again
        self._missed = 0  # how often none was available, since one last was
        self._spawned: dict[int, anyio.TaskHandle[None]] = {}
        self._is_closed = False

    def wait(self) -> None:
        """Launch nothing until ``go()``: there are no tasks while the nursery is being opened."""
        self._awake = self

    def go(self) -> None:
        """Launch the jobs that wait, now that the nursery is open."""
        self._replace(self)

    def launch(self, job: TaskJob) -> None:
        """Run a job from the next turn of the loop on.

        Raises:
            BaseException: Its task cannot be created; nothing was changed.
        """
        if self._awake is not None:
            self._ready.append(job)
            return
        if self._missed > MOST:
            self._kept = self._missed = 0
        steps = self._nursery.bridge.steps
        steps.busy += 1
        try:
            self._awake = self._give(job)
        finally:
            steps.busy -= 1

    def _give(self, job: TaskJob) -> Runner | None:
        """Give a job to an idle runner, to a new one, or to its own task."""
        nursery = self._nursery
        # A task factory makes a task for each job, and may raise: the caller gets that error.
        if (self._idle or self._kept < MOST) and nursery.backend.shares_tasks():
            if self._idle:
                runner = next(reversed(self._idle))
                runner.wake(job)
                self._idle.pop(runner, None)
                return runner
            runner = Runner(self, job)
            runner.handle = nursery.spawn(runner.run, job._task_name(), Context())
            self._spawned[id(runner)] = runner.handle
            self._kept += 1
            return runner
        # The task is all there is of it: an object more would be a hundredth of what it costs.
        self._spawned[id(job)] = nursery.spawn(job._main, job._task_name(), job._context)
        self._missed += 1
        return None

    # what those that run say and ask

    def begin(self, task: object) -> anyio.TaskHandle[None] | None:
        """Record that the task of a runner, or the own task of a job, has begun; return it."""
        handle = self._spawned.pop(id(task), None)
        if not self._spawned:
            self._spawned.clear()  # otherwise it keeps the memory of thousands of entries
        return handle

    def is_due(self, runner: Runner) -> bool:
        """Whether a runner is the one that has to take the jobs that are ready."""
        return self._awake is runner and bool(self._ready)

    def suspend(self, runner: Runner) -> None:
        """Give all ready jobs to other runners, because this one's job has suspended."""
        if self._awake is not runner:
            return
        self._awake = None
        if self._ready:
            with self._nursery.bridge.steps:
                while self._ready:
                    self._give_first()

    def leave(self, runner: Runner) -> None:
        """Record that a runner has ended; another takes the jobs that are ready."""
        self._spawned.pop(id(runner), None)
        self._kept = max(0, self._kept - 1)
        self._replace(runner)

    def _replace(self, awake: object) -> None:
        """Let another runner take the jobs that are ready, unless one does already."""
        if self._awake is awake:
            self._awake = None
        with self._nursery.bridge.steps:
            while self._ready and self._awake is None:
                self._awake = self._give_first()

    def _give_first(self) -> Runner | None:
        try:
            return self._give(self._ready[0])
        except BaseException as fault:  # noqa: BLE001 (the job's)
            self._ready[0]._lose_task(fault)
            return None
        finally:
            self._ready.popleft()

    def rest(self, runner: Runner) -> bool:
        """Record that a runner has nothing to do; return whether it should stay."""
        if self._awake is runner:
            self._awake = None
        if self._is_closed or len(self._idle) >= MOST:
            return False
        self._idle[runner] = None
        return True

    def rest_no_more(self, runner: Runner) -> None:
        """Record that a runner was woken, or cancelled while idle; safe to call again."""
        self._idle.pop(runner, None)

    def put_back(self, job: TaskJob) -> None:
        """Put a job back that a runner was given and will not run."""
        self._ready.appendleft(job)

    def close(self) -> None:
        """End all runners, because nothing will be launched any more; safe to call again."""
        self._is_closed = True
        with self._nursery.bridge.steps:
            for runner in list(self._idle):
                runner.wake(None)

    def bury(self) -> None:
        """Clean up after tasks that were killed natively before their first step."""
        for task in list(self._spawned.values()):
            task.coro.close()  # it was never awaited
        self._spawned.clear()
        self._awake = None


class Runner:
    """A task that runs one job after another."""

    __slots__ = ("_is_spent", "_pool", "_sleep", "coro", "handle", "job")

    def __init__(self, pool: Runners, job: TaskJob) -> None:
        self._pool = pool
        self.handle: anyio.TaskHandle[None]
        """Its task."""
        self.job: TaskJob | None = job
        """The job that it runs, or has been given."""
        self.coro: Coroutine[Any, Any, None] | None = None
        """The coroutine of its job, once that has begun."""
        self._is_spent = False
        self._sleep: Awaitable[None] | None = None

    def cancel(self) -> None:
        """Cancel its job."""
        self._is_spent = True
        self.handle.cancel()

    def come_round(self) -> None:
        """Record that its job ends in this step, so it can take another."""
        pool = self._pool
        pool._missed = 0
        if pool._awake is None:
            pool._awake = self

    def wake(self, job: TaskJob | None) -> None:
        """Give a job to this idle runner; without a job it ends."""
        self.job = job
        self._pool._nursery.backend.wake(self._sleep)

    async def run(self) -> None:
        """Run jobs, each in its own context."""
        try:
            self._pool.begin(self)
            await self._serve(self._pool._nursery.backend)
        except BaseException as fault:
            if self.job is None or self.coro is None:
                raise
            self.job._lose_task(fault)
        finally:
            if self.job is not None and self.coro is None:
                self._pool.put_back(self.job)
            self.job = self.coro = None
            self._pool.leave(self)

    @coroutine
    def _serve(self, backend: Backend) -> Generator[Any, Any, None]:
        pool, task = self._pool, backend.get_task()
        rename = backend.renamer(task)  # it holds the task too
        traces = backend.traces(task)
        self._is_spent = traces is None or backend.is_kept(traces)
        ready, enter_context = pool._ready, backend.enter_context
        turn = len(ready)
        while True:
            if self.job is None:
                if not (turn and ready and pool._awake is self):
                    if not (yield from self._wait(backend, rename)):
                        return
                    turn = len(ready)
                    continue
                self.job = ready[0]  # before it is taken out: it is always somewhere
                ready.popleft()
                turn -= 1
            context, coro = self.job._context, None
            if context is not None:
                rename(self.job._task_name())
                own = None if enter_context is None else enter_context(task, context)
                try:
                    coro = self.coro = self.job._main(self)
                    step = context.run(coro.send, None)
                except StopIteration:
                    pass
                else:
                    pool.suspend(self)
                    yield from self._follow(coro, step, context if own is None else None)
                    turn = 1  # the job that was launched by its end, if any
                finally:
                    if enter_context is not None and own is not None:
                        enter_context(task, own)
            # Keep nothing of the job here. Is the task kept elsewhere?
            self.job = self.coro = step = None
            del context, coro  # see errors: frames
            if self._is_spent or backend.traces(task) != traces:
                return

    def _follow(
        self, coro: Coroutine[Any, Any, None], step: object, context: Context | None
    ) -> Generator[Any, Any, None]:
        """Run a job that has suspended to its end, in a context unless the task has it."""
        send: Callable[[Any], Any] = coro.send
        throw: Callable[[BaseException], Any] = coro.throw
        if context is not None:
            send = partial(cast("Any", context.run), send)
            throw = partial(cast("Any", context.run), throw)
        value, error = None, cast("BaseException | None", None)
        try:
            while True:
                value = error = None
                try:
                    value = yield step
                except BaseException as thrown:  # noqa: BLE001 (the job's)
                    error = thrown
                # Outside the handler, or errors raised in the job would have this one as their
                # context.
                if error is None:
                    step = send(value)
                else:
                    self._is_spent = True
                    # It holds this frame; the frames below show where it was raised.
                    error.__traceback__ = cast("TracebackType", error.__traceback__).tb_next
                    step = throw(error)
        except StopIteration:
            return
        finally:
            # The context also leads to the worker.
            del coro, step, context, send, throw, value, error  # see errors: frames

    def _wait(self, backend: Backend, rename: Callable[[str], object]) -> Generator[Any, Any, bool]:
        """Wait for the next turn or for a job; return whether to continue."""
        try:
            if self._pool.is_due(self):
                yield from backend.pause().__await__()
                return True
            sleep = self._sleep = backend.new_sleep()  # it may be woken from the next line on
            if not self._pool.rest(self):
                return False
            rename(IDLE)
            yield from sleep.__await__()
        except GeneratorExit:
            return False  # the loop has ended
        except anyio.get_cancelled_exc_class():
            return False  # no job was in it
        else:
            return self.job is not None
        finally:
            self._pool.rest_no_more(self)
