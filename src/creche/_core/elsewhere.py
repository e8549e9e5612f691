"""Work that a way runs elsewhere: in a process, an executor, or on another machine.

A *way* is a function of the *job*. The job is the way's view of its worker: it returns the bytes to
send there, takes the messages from there, and turns the bytes that come back into the result or
error of the work. ``docs/internals.md`` explains how to write one.

Cancellation is that of any coroutine: it is raised where the way awaits. Up to the hand-over,
``Job.pack()``, a cancelled worker ends at once, because nothing else knows the work. From there on
it ends when its way returns: otherwise a limit would pass on the slot of work that may still begin.
"""

from __future__ import annotations

import logging
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio

from creche._ground.bridge import backend_name
from creche._ground.errors import (
    WorkerCancelled,
    WorkerCrashed,
    WorkerError,
    get_cause,
    strip_traceback,
)
from creche._ground.report import is_a, is_awaitable, shown, tell
from creche._ground.states import FINAL, PENDING, RUNNING
from creche._running import wire
from creche._running.tracing import give_trace

from .log import fields_of
from .parts import ElsewherePart
from .readiness import restart
from .resources import get as get_resource
from .run import begin, notice_cancellation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from creche._ground.way import ResourceT, Way

    from .worker import Worker

T = TypeVar("T")


class WorkerJob:
    """The view of a worker for the way that runs its work elsewhere; see ``Job``."""

    __slots__ = ("_label", "_part", "_worker")

    def __init__(self, worker: Worker[Any], part: ElsewherePart) -> None:
        # Set only while the way runs: frames in the traceback of its errors hold the job. Other
        # threads ask as well, so each question reads it once.
        self._worker: Worker[Any] | None = worker
        self._part = part
        self._label = worker._creche_label()

    def __repr__(self) -> str:
        return f"<Job of {self._label}>"

    @property
    def label(self) -> str:
        """The worker in a sentence: ``worker 'thumbnail'``."""
        return self._label

    @property
    def work(self) -> Any:
        """The work itself: what to call."""
        return self._alive()._work

    @property
    def is_running(self) -> bool:
        """Whether the work has begun, as far as this side knows."""
        worker = self._worker
        return worker is not None and worker._state is RUNNING

    @property
    def is_cancelled(self) -> bool:
        """Whether cancellation was requested; in any thread."""
        worker = self._worker
        return worker is None or worker._cancellation is not None

    @property
    def cancel_reason(self) -> object:
        """The reason that came with the request."""
        worker = self._worker
        return None if worker is None else worker.cancel_reason

    @property
    def abandon_on_cancel(self) -> bool:
        """Whether work that has begun, and cannot be stopped, is left behind once cancelled."""
        return self._part.abandon_on_cancel

    def _alive(self) -> Worker[Any]:
        worker = self._worker
        if worker is None:
            raise WorkerError(f"the job of {self._label} is over; use it in its way alone")
        return worker

    # the way there

    def pack(self, work: Callable[[], object] | None = None) -> bytes:
        """Return the bytes for a ``Far`` to run; this call hands the work over."""
        worker = self._alive()
        packed = worker._work if work is None else work
        payload = wire.pack_job(packed, self._head(worker), self._label)
        self._part.is_handed_over = True
        return payload

    def _head(self, worker: Worker[Any]) -> wire.Head:
        return wire.Head(
            name=worker.name,
            group=worker.group,
            description=worker.description,
            path=worker._task_name(),
            label=self._label,
            backend=backend_name(worker._nursery.bridge.token),
            level=logging.root.level,
            home=wire.whoami(),
            trace=give_trace(),
        )

    def begin(self, where: str = "") -> None:
        """Make the worker RUNNING, because the work begins; does nothing if it already is."""
        worker = self._alive()
        if where:
            self._part.where = where
        if worker._state is PENDING:
            begin(worker)
            self._part.is_waiting = False

    def receive(self, message: bytes, answer: Callable[[bool], object] | None = None) -> None:
        """Take a message that a ``Far`` has sent."""
        worker, call = self._worker, partial(self._receive, message, answer)
        if worker is None or worker._node._creche_bridge.can_act():
            call()
        else:
            worker._node._creche_bridge.run(call)

    def _receive(self, message: bytes, answer: Callable[[bool], object] | None) -> None:
        kind, *told = wire.read_message(message)
        worker = self._worker
        if kind == wire.BEGIN:
            _answer(answer, may_begin=worker is not None and self._may_begin(worker, *told))
        elif worker is None:
            return  # it is too late
        elif kind == wire.STEPS:
            _set_steps(worker, *told)
        else:
            _log(worker, *told)

    def _may_begin(self, worker: Worker[Any], where: str) -> bool:
        if worker._state in FINAL or worker._cancellation is not None:
            return False
        if worker._state is PENDING:
            with suppress(WorkerCancelled):  # cancelled by a signal handler, in between
                self.begin(where)
            return worker._cancellation is None
        if self._part.where:
            lost = WorkerCrashed(f"what ran {self._label} is gone: {self._part.where}")
            restart(worker, lost, 0.0)
        self._part.where = where
        return True

    # the way back

    def open(self, outcome: bytes) -> Any:
        """Return what the work returned, or raise what it raised."""
        worker = self._alive()
        head, body = wire.read_outcome(outcome)
        if head.kind == wire.STAY and worker._cancellation is None:
            raise WorkerError(f"{self._label} was not begun, and nobody had cancelled it")
        if head.kind in (wire.VALUE, wire.ERROR):
            self.begin()  # an engine may lose that message
        if head.steps is not None:
            _set_steps(worker, *head.steps)
        return wire.open_outcome(head, body, self._label)

    async def outlast(self, wait: Callable[[], Awaitable[T]]) -> T:
        """Await the end of the far side, even if the worker is cancelled meanwhile."""
        while True:
            try:
                with anyio.CancelScope(shield=True):
                    return await wait()
            except anyio.get_cancelled_exc_class():
                self.notice_cancellation()

    def notice_cancellation(self) -> None:
        """Record a cancellation that has reached the way, whatever its cause."""
        notice_cancellation(self._alive())

    def abandon(self) -> None:
        """Record that the work is left behind; see ``abandon_on_cancel``."""
        self._part.is_abandoned = True

    def end_abandoned(self, outcome: bytes | None) -> None:
        """Record that abandoned work has ended; an error that it raised is logged."""
        self._part.is_abandoned = False
        if outcome is None:
            return
        try:
            wire.open_outcome(*wire.read_outcome(outcome), self._label)
        except BaseException as error:  # noqa: BLE001 (it is logged)
            if not is_a(error, wire.CANCELLATIONS):
                strip_traceback(error)
                tell(logging.ERROR, "the abandoned work of %s failed", self._label, error=error)

    def resource(self, key: object, make: Callable[[], ResourceT]) -> ResourceT:
        """Return a resource of the worker's tree of nodes; created by the first call."""
        return get_resource(self._alive()._node.root, key, make)


def _answer(answer: Callable[[bool], object] | None, *, may_begin: bool) -> None:
    if answer is not None:
        answer(may_begin)


def _set_steps(
    worker: Worker[Any], completed: int, total: int | None, description: str | None
) -> None:
    worker.update(completed, total, description=description)


def _log(worker: Worker[Any], told: dict[str, Any]) -> None:
    """Pass a record to the logger of its name, as if it had been made here."""
    target = logging.getLogger(told["name"])
    if target.isEnabledFor(told["levelno"]):
        record = logging.makeLogRecord({**told, **fields_of(worker, worker._state)})
        try:
            target.handle(record)
        except Exception as fault:  # noqa: BLE001 (the program's filter)
            tell(logging.ERROR, "a record from elsewhere cannot be logged", error=fault)


def _start(way: Way, worker: Worker[Any]) -> Coroutine[Any, Any, Any]:
    """Run the work of a worker in a way."""
    part = cast("ElsewherePart", worker._thread)
    part.is_waiting = True
    return _run(way, WorkerJob(worker, part))


async def _run(way: Way, job: WorkerJob) -> Any:
    try:
        value = await way(job)
        job.begin()  # for a way that did not call it
        return value  # noqa: TRY300 (begin() may raise as well)
    except BaseException as error:
        if is_a(get_cause(error), wire.FarTraceback):
            # That shows where it was raised; here it was only passed on.
            raise error.with_traceback(None)  # noqa: B904 (the same error)
        raise
    finally:
        job._worker = None  # see errors: frames


def set_way(worker: Worker[Any], where: object, limiter: object) -> str:
    """Make a new worker run elsewhere; return what is wrong with that, if anything.

    Args:
        worker: The worker.
        where: The way, or an executor.
        limiter: A limiter that was given as well.
    """
    if worker._thread is not None or limiter is not None:
        return (
            "thread=True and limiter are for threads, and it is to run elsewhere; leave them out, "
            "and bound it by the limit of a group"
        )
    if is_awaitable(worker._work):
        return (
            "an awaitable cannot go elsewhere; give the function itself, with functools.partial() "
            "its arguments"
        )
    worker._thread = ElsewherePart(partial(_start, way_of(where)))
    return ""


def way_of(where: Any) -> Way:
    """Return the way that ``where=`` means.

    Raises:
        WorkerError: It is not a way.
    """
    if is_a(where, Executor):
        from creche._running.executor import OnExecutor  # noqa: PLC0415 (see creche.ways)

        return OnExecutor(where)
    if not callable(where) or is_a(where, type):
        raise WorkerError(f"where must be a way of creche.ways, or an executor, not {shown(where)}")
    return cast("Way", where)
