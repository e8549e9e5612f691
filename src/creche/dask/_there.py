"""Runs on the machines of the cluster: the far side of a job, which receives home's messages.

A job announces that it begins and does not wait for an answer, because that would cost every job a
round trip through the scheduler. Home can still prevent it from beginning: it calls the job off in
every process of the cluster, and each process remembers that until the scheduler has forgotten the
job. A job that must not begin twice, because its work can be killed, does wait for an answer.
"""

from __future__ import annotations

import asyncio
import importlib
import queue
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import distributed

from creche import Node, Worker, get_current_worker
from creche.ways import Far, Processes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyio.abc import TaskGroup

__tracebackhide__ = True  # in the traceback of what the work raises
_cloudpickle: Any = importlib.import_module("cloudpickle")  # it has no types
_PATIENCE = 60.0
"""Seconds that a job waits for home's permission to begin."""
_MEMORY = 60.0
"""Seconds for which a process remembers the jobs that were called off."""


@dataclass
class Told:
    """A message from home to all processes, about several jobs at once."""

    stops: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    """The jobs that were cancelled, each with the reason."""
    answers: dict[str, bool] = field(default_factory=dict[str, bool])
    """For each job that asked, whether it may begin."""


class _Running:
    """A job in this process."""

    def __init__(self, far: Far) -> None:
        self.far = far
        self.has_begun = False
        self.answers: queue.SimpleQueue[bool] = queue.SimpleQueue()


_lock = threading.Lock()
_running: dict[str, _Running] = {}
_called_off: set[str] = set()


def run(topic: str, key: str, payload: bytes, has_to_ask: bool, data: Sequence[Any]) -> bytes:
    """Run a job; this is the function that is submitted to Dask.

    Args:
        topic: The topic for its messages.
        key: The key of the job.
        payload: The bytes from ``Job.pack()``.
        has_to_ask: Whether it waits for home's permission to begin.
        data: The values that are already on the cluster.

    Returns:
        The outcome, for ``Job.open()``.
    """
    machine = distributed.get_worker()

    def send(message: bytes) -> bool | None:
        if running.has_begun:
            machine.log_event(topic, (key, "", message))
            return None
        with _lock:
            if key in _called_off:
                return False
            running.has_begun = True
        machine.log_event(topic, (key, machine.address if has_to_ask else "", message))
        return running.answers.get(timeout=_PATIENCE) if has_to_ask else True

    running = _Running(Far(payload, send))
    with _lock:
        _running[key] = running
    _data.values = data
    try:
        return running.far.run()
    finally:
        _data.values = ()
        with _lock:
            del _running[key]


def hear(told: Told) -> list[str]:
    """Receive a message from home, on the event loop; return the cancelled jobs that run here."""
    with _lock:
        _called_off.update(told.stops)
        begun = {
            key: _running[key].far
            for key in told.stops
            if key in _running and _running[key].has_begun
        }
        asking = [(_running[key], told.answers[key]) for key in told.answers if key in _running]
    asyncio.get_running_loop().call_later(_MEMORY, _called_off.difference_update, told.stops)
    for key, far in begun.items():
        far.stop(told.stops[key])
    for each, may_begin in asking:
        each.answers.put(may_begin)
    return list(begun)


# the work


_data = threading.local()  # of the job that the thread runs


PARTIAL: type[Any] = partial
"""The type of work whose arguments can be inspected."""


class Datum:
    """A placeholder in the work's arguments for a value that is already on the cluster."""

    def __init__(self, number: int) -> None:
        self.number = number


class There:
    """Wraps the work, and is called on the machine.

    The work is pickled as Dask does it: a function of the main module, which no machine can import,
    is sent by value.

    Args:
        work: The work.
        isolate: Whether to run it in its own process.
        grace: Seconds that it has to end by itself there after it is cancelled.
    """

    def __init__(self, work: Any, *, isolate: bool, grace: float) -> None:
        self.work = work
        self.isolate = isolate
        self.grace = grace

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "work": _cloudpickle.dumps(self.work)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, work=_cloudpickle.loads(state["work"]))

    def __call__(self) -> Any:
        """Run the work."""
        work = _filled(self.work)
        return _isolated(work, self.grace) if self.isolate else work()


def _filled(work: Any) -> Any:
    """Replace the placeholders in the work's arguments by their values."""
    if not isinstance(work, PARTIAL):
        return work
    values: Sequence[Any] = _data.values

    def fill(value: Any) -> Any:
        return values[value.number] if isinstance(value, Datum) else value

    keywords = {name: fill(value) for name, value in work.keywords.items()}
    return partial(work.func, *map(fill, work.args), **keywords)


async def _isolated(work: Callable[[], Any], grace: float) -> Any:
    """Run work in its own process, because the machine's process cannot be killed."""
    far: Any = get_current_worker()
    run: list[Worker[Any]] = []  # one, which has ended once the scope is left
    try:
        async with anyio.create_task_group() as listening:
            # Shielded: the process hears of a cancellation, and of its reason, from one side.
            with anyio.CancelScope(shield=True):
                await _in_process(work, grace, far, listening, run)
            listening.cancel_scope.cancel()
    except anyio.get_cancelled_exc_class():
        # It was killed, or has given something in its grace.
        if not run or (run[0].error is None and run[0].result is None):
            raise
    (worker,) = run
    if worker.error is not None:
        raise worker.error
    return worker.result


async def _in_process(
    work: Callable[[], Any],
    grace: float,
    far: Any,
    listening: TaskGroup,
    run: list[Worker[Any]],
) -> None:
    async with Node(far.path.removesuffix(f"/{far.group}/{far.name}")) as node:
        worker = node.run_worker(
            work,
            far.name,
            far.group,
            far.description,
            where=Processes(1, grace=grace),
            exit_on_error=False,
        )
        run.append(worker)
        listening.start_soon(_hand_on_cancel, worker, far)
        async with worker.subscribe() as events:
            async for _ in events:
                steps = worker.completed_steps, worker.total_steps
                far.update(*steps, description=worker.description)


async def _hand_on_cancel(worker: Worker[Any], far: Far) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        worker.cancel(far.cancel_reason)  # nothing happens if it has ended
