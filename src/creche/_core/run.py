"""The task of a worker, from its first step to its last; and which worker runs the current code.

Errors of the work stop here, which decides whether it failed or was cancelled.
"""

from __future__ import annotations

from concurrent.futures import CancelledError as ThreadCancelledError
from functools import partial
from typing import TYPE_CHECKING, Any

from creche._ground.context import current
from creche._ground.errors import NoActiveWorker, WorkerCancelled, WorkerError, uncancelled
from creche._ground.interrupts import interruptible
from creche._ground.report import is_a
from creche._ground.states import CANCELLED, ERROR, FINAL, PENDING, RUNNING, SUCCESS
from creche._running.thread import in_thread

from .cancelling import break_off, deliver, request
from .ending import end
from .log import fields_of
from .moving import move
from .parts import lock
from .readiness import begin_watch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextvars import ContextVar

    from anyio import TaskHandle

    from creche._running.runner import Runner

    from .parts import ThreadPart
    from .worker import Worker


@interruptible
async def main(worker: Worker[Any], runner: Runner | None = None) -> None:
    """Run the task of a worker. If it is interrupted between two lines, the worker still ends."""
    failure: BaseException | None = None
    task: Runner | TaskHandle[None] | None = None
    try:
        try:
            task = runner or worker._node._creche_runners.begin(worker)
            if worker._state is not PENDING:
                return  # called off
            worker._handle = task
            worker._context = None  # the task has it
            current.set(worker)
            if worker._thread is None or worker._has_own_run():
                begin(worker)
            worker._outcome = await worker.run()
        except BaseException as error:  # noqa: BLE001 (nothing may leave a task of the nursery)
            # Cancellation ends here too: this is the top of the task. If a native one left it,
            # AnyIO would cancel all other tasks.
            failure = error
        if runner is not None:
            runner.come_round()
        # Outside the handler: Trio creates the exceptions of a cancellation when it is requested,
        # and they would have this one as their context, a cycle.
        if failure is not None:
            _end_by_error(worker, failure)
        else:
            _end_by_return(worker, runner)
    except BaseException as fault:  # noqa: BLE001 (as above)
        lose_task(worker, fault)
    finally:
        if worker._handle is not None:
            break_off(worker)
        del failure, worker, runner, task  # see errors: frames


def run_aside(worker: Worker[Any], part: ThreadPart) -> Coroutine[Any, Any, Any]:
    """Run the work of a worker in a thread, or elsewhere."""
    if part.run is not None:
        return part.run(worker)
    token = worker._node._creche_nursery.bridge.token
    job = ThreadJob(worker, part)
    return in_thread(job, part.limiter, token, abandon=part.abandon_on_cancel)


def begin(worker: Worker[Any]) -> None:
    """Become RUNNING.

    Raises:
        WorkerCancelled: The worker has been called off.
    """
    if not move(worker, RUNNING):
        deliver(worker)
        raise WorkerCancelled(f"{worker._creche_label()} was cancelled")
    if worker._rare is not None and worker._rare.service is not None:
        begin_watch(worker)


def _end_by_return(worker: Worker[Any], runner: Runner | None) -> None:
    """End because the work returned."""
    nursery = worker._node._creche_nursery
    task: Any = worker._handle if runner is None else runner.handle
    probe = nursery.watcher.probe
    if worker._cancellation is None and probe.has_heard() and nursery.is_scope_cancelled():
        nursery.cancel_from_outside()  # this cancels the worker too
    if nursery.has_open_scope(task):
        end(
            worker,
            ERROR,
            WorkerError(
                f"the work of {worker._creche_label()} has returned and left a cancel scope or a "
                "task group open; leave each in the work that entered it"
            ),
        )
    else:
        end(worker, SUCCESS)


def _end_by_error(worker: Worker[Any], error: BaseException) -> None:
    """End because the work raised something."""
    notice_cancellation(worker, native=False)
    if worker._state in FINAL:
        return  # cancelled while it waited for a thread
    failure: BaseException | None = None
    if type(error) is not worker._nursery.cancelled_class:  # as it is most often
        failure = uncancelled(error, partial(is_cancellation, worker))
    if failure is None:
        notice_cancellation(worker)
        end(worker, CANCELLED)
    else:
        end(worker, ERROR, failure)


def lose_task(worker: Worker[Any], fault: BaseException) -> None:
    """End a worker for which no task could be created, or whose task was interrupted."""
    if worker._handle is None and worker._state is PENDING:
        end(worker, ERROR, fault)
        return
    try:
        if worker._handle is not None:
            break_off(worker)
    finally:
        worker._nursery.fail(fault)


def notice_cancellation(worker: Worker[Any], *, native: bool = True) -> None:
    """Detect a cancellation that was not requested of this worker.

    Args:
        worker: The worker.
        native: Whether it is certain that there was one.
    """
    if worker._cancellation is not None:
        return
    if worker._nursery.is_scope_cancelled():
        worker._nursery.cancel_from_outside()  # this cancels the worker too
    elif native:
        request(worker, "its task was cancelled natively")


def is_cancellation(worker: Worker[Any], error: BaseException) -> bool:
    """Whether an error of the work says that it was cancelled."""
    if is_a(error, worker._nursery.cancelled_class):
        return True
    # These are raised in a thread: by call_from_thread(), check_cancelled(), AnyIO's from_thread.
    return worker._cancellation is not None and is_a(error, (WorkerCancelled, ThreadCancelledError))


class ThreadJob:
    """The view of a worker for running in a thread; see ``Job``.

    Created when the work is about to run; only the call in the thread keeps it.
    """

    __slots__ = ("_part", "worker")

    def __init__(self, worker: Worker[Any], part: ThreadPart) -> None:
        self.worker: Worker[Any] = worker
        """The worker itself."""
        self._part = part

    @property
    def work(self) -> Any:
        """What to call, or to await; dropped once the worker has ended."""
        return self.worker._work

    def label(self) -> str:
        """Name the worker in a sentence."""
        return self.worker._creche_label()

    def is_to_await(self, value: object) -> bool:
        """Whether a value that the work returned is to be awaited."""
        return self.worker._is_to_await(value)

    def wait_for_thread(self) -> None:
        """Note that the job waits for a thread."""
        self._part.is_waiting = True

    def enter(self) -> None:
        """Become RUNNING, because the thread is certain now; raise if it was called off."""
        if self.worker._state is not RUNNING:  # a subclass's run() that calls super().run()
            self._part.is_waiting = False
            begin(self.worker)

    def on_cancel(self, stop: Callable[[], object]) -> None:
        """Call ``stop`` when the worker is cancelled, or at once if it already is."""
        with lock:
            if self.worker._cancellation is None:
                self._part.stops = (*self._part.stops, stop)
                return
        stop()

    def notice_cancellation(self) -> None:
        """Note a cancellation that came from outside."""
        notice_cancellation(self.worker)

    def is_cancellation(self, error: BaseException) -> bool:
        """Whether an error says that the work was cancelled."""
        return is_cancellation(self.worker, error)

    def note_abandoned(self, *, abandoned: bool) -> None:
        """Record that the thread was abandoned, or that it has ended since."""
        self._part.is_abandoned = abandoned

    def log_fields(self) -> dict[str, str | int | None]:
        """Return the fields for a log record."""
        return fields_of(self.worker, self.worker._state)


active_worker: ContextVar[Worker[Any]] = current
"""The worker that runs the current code."""


def get_current_worker() -> Worker[Any]:
    """Return the worker that runs the current code.

    If the work runs elsewhere, for instance in another process, this returns the worker's
    counterpart there, a ``creche.ways.Far``, which has its name, progress and cancellation.

    Raises:
        NoActiveWorker: No worker runs this code.

    Threads:
        Any. A worker's thread, and the tasks that its work has spawned, belong to the worker.
    """
    try:
        return active_worker.get()
    except LookupError:
        raise NoActiveWorker(
            "no worker runs this code; call it from the work of a worker, or pass the worker on"
        ) from None
