"""A thread that notices when the event loop stands still, and says where.

It asks the loop for a sign of life, a few times a second, and does nothing else while it gets one.
It only writes to the log, since the loop could not tell anybody.

Four things look alike from there. A *step* of the loop takes long: the loop does not answer, while
the thread runs on time. Or that step holds the interpreter's lock, in a function written in C:
the thread itself comes late, and the process has used the processor meanwhile. A *garbage
collection* does the same, and says when it begins and ends. Or the process has not run at all,
because it was stopped or the machine slept: the thread comes late, and no processor was used. The
clock is one that goes on while the machine sleeps, where there is one.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import traceback
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from anyio import lowlevel

from creche import Node, Worker, WorkerError, active_worker

from ._log import fields_of, logger, node_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from types import FrameType

    import trio

_DEPTH = 30  # frames of a stack that are shown

_has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
_cpu = time.process_time
_now: Callable[[], float] = time.monotonic
if hasattr(time, "CLOCK_BOOTTIME"):  # pragma: no branch (Linux; elsewhere monotonic() goes on too)
    _now = partial(time.clock_gettime, time.CLOCK_BOOTTIME)


@asynccontextmanager
async def watchdog(node: Node, blocked: float = 0.25) -> AsyncGenerator[None]:
    """Log when the event loop stands still, and in which worker's step.

    Use ``async with watchdog(app), app: ...``. A WARNING of the logger ``creche`` names the worker
    and shows the stack of the loop's thread. It is repeated after twice as long, and so on, and
    another one says when the loop goes on. A stop shorter than ``blocked`` is never reported, one
    three times as long always is. Garbage collections are reported as such, and so is a process
    that did not run because it was stopped or the machine slept: that is nobody's fault.

    It costs a thread that wakes up twice a second (less often if ``blocked`` is larger), and
    two calls for each garbage collection.

    Args:
        node: The node that the log names. Everything that the event loop runs is watched.
        blocked: For how many seconds the loop has to stand still.

    Raises:
        WorkerError: It is not a node, or not a valid time.

    Checkpoint:
        On leaving.

    Threads:
        The node's event loop only.
    """
    if not isinstance(node, Node):
        raise WorkerError(f"watchdog() takes a Node, not {node!r:.100}")
    if not isinstance(blocked, int | float) or not 0 < blocked <= threading.TIMEOUT_MAX:
        raise WorkerError(f"blocked must be seconds, more than 0, not {blocked!r:.100}")
    watch = _Watch(node, blocked)
    try:
        watch.start()
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await watch.stop()


class _Watch:
    """The thread; made and stopped on the loop that it watches."""

    def __init__(self, node: Node, blocked: float) -> None:
        self._node = node
        self._blocked = blocked
        self._loop = _Loop(node)
        self._sign = threading.Event()  # of life, from the loop
        self._leaving = threading.Event()
        self._ended = anyio.Event()
        self._collecting: tuple[float, int] | None = None  # since when, and which generation
        self._collected = 0.0  # seconds that collections have taken
        self._thread = threading.Thread(
            target=self._run, name=f"watchdog of node {node.path!r}", daemon=True
        )

    def start(self) -> None:
        self._thread.start()
        gc.callbacks.append(self._on_collection)

    async def stop(self) -> None:
        """Stop, and wait for the thread; nothing happens if it could not be started."""
        if self._on_collection not in gc.callbacks:
            return
        gc.callbacks.remove(self._on_collection)
        self._leaving.set()
        await self._ended.wait()  # it may be writing to a log that needs the loop
        self._thread.join()

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting = (_now(), info["generation"])
        else:
            self._collected, self._collecting = self._get_collected(), None

    # the thread

    def _run(self) -> None:
        try:
            self._ask_again_and_again()
        finally:
            self._loop.call_soon(self._ended.set)

    def _ask_again_and_again(self) -> None:
        # To wake up a loop that sleeps is most of what a watchdog costs, so it is done seldom.
        while not self._wait(self._leaving, 2 * self._blocked):
            self._sign.clear()
            asked = _now()
            self._loop.call_soon(self._sign.set)
            if not self._has_answered(asked):
                return

    def _has_answered(self, asked: float) -> bool:
        """Wait for the sign, and say so in the log; tell whether there is a loop to give it."""
        stood, pause = 0.0, self._blocked
        while not self._wait(self._sign, pause):
            if not self._loop.call_soon(self._sign.set):
                return False  # the block was never left
            stood += pause
            self._warn(stood, self._tell_collection())
            pause = stood  # told again after twice as long
        if stood:
            logger.warning(
                "the event loop of node %r goes on after %.2f s", self._node.path, _now() - asked
            )
        return True

    def _wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until an event is set, or for some time in which the process has run."""
        left = seconds
        while True:
            before, cpu, collected = _now(), _cpu(), self._get_collected()
            is_set = event.wait(left)
            late = _now() - before - left
            if late >= self._blocked:
                self._tell_late(late, _cpu() - cpu, self._get_collected() - collected)
                left = seconds
            elif late < 0:
                left = -late  # some clocks are early
            else:
                return is_set
            if is_set:
                return True

    def _get_collected(self) -> float:
        now = self._collecting  # it may end meanwhile
        return self._collected + (0 if now is None else _now() - now[0])

    def _tell_late(self, late: float, cpu: float, collected: float) -> None:
        is_collection = collected >= late / 2
        # Without a GIL only a collection keeps other threads from running.
        if cpu < late / 2 or not (_has_gil or is_collection):
            logger.warning(
                "the process of node %r did not run for %.2f s: it was stopped, or the machine "
                "slept or has too much to do",
                self._node.path,
                late,
            )
        elif is_collection:
            self._warn(late, " for a garbage collection")
        else:
            self._warn(late, " and let no other thread run")

    def _tell_collection(self) -> str:
        now = self._collecting  # it may end meanwhile
        return "" if now is None else f" for a garbage collection of generation {now[1]}"

    def _warn(self, seconds: float, how: str) -> None:
        step, stack, fields = self._loop.look()
        logger.warning(
            "the event loop of node %r has stood still for %.2f s%s, in a step of %s:\n%s",
            self._node.path,
            seconds,
            how,
            step,
            stack,
            extra=fields,
        )


class _Loop:
    """The running event loop, as another thread sees it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._thread = threading.get_ident()
        self._token: Any = lowlevel.current_token().native_token
        self._root: trio.lowlevel.Task | None = None
        if not isinstance(self._token, asyncio.AbstractEventLoop):
            from trio.lowlevel import current_root_task  # noqa: PLC0415 (it runs, so it is there)

            self._root = current_root_task()

    def call_soon(self, call: Callable[[], object]) -> bool:
        """Have the loop call something; tell whether it is there to do so."""
        try:
            if self._root is None:
                self._token.call_soon_threadsafe(call)
            else:
                self._token.run_sync_soon(call)
        except RuntimeError:
            return False
        return True

    def look(self) -> tuple[str, str, dict[str, object]]:
        """Tell whose step the loop is in, where, and what the record in the log has of its own."""
        frame = sys._current_frames().get(self._thread)
        stack = "".join(traceback.format_stack(frame, _DEPTH))
        task: Any = self._step_of(frame)
        del frame
        if task is None:
            return "no task", stack, {}
        name = str(task.get_name() if self._root is None else task.name)
        worker = self._worker_of(task, name)
        if worker is None:
            return f"task {name!r}", stack, {}
        return f"worker {worker.name!r} (task {name!r})", stack, fields_of(worker)

    def _worker_of(self, task: Any, name: str) -> Worker[Any] | None:
        # Of asyncio's tasks those that workers share have no context of their own to be seen from
        # here, and in Python 3.10 and 3.11 none has. The task of a worker has its name.
        get_context: Any = getattr(task, "get_context", dict)
        context: Any = getattr(task, "context", None) or get_context()
        worker: Worker[Any] | None = context.get(active_worker)
        if worker is not None:
            return worker
        running = (each for each in self._node.workers if each.is_running)
        path = "{1.path}/{0.group}/{0.name}".format
        return next((each for each in running if path(each, node_of(each)) == name), None)

    def _step_of(self, frame: FrameType | None) -> object:
        """Give the task that is in a step; of Trio's, the one whose coroutine is on the stack."""
        if self._root is None:
            return asyncio.current_task(self._token)
        on_stack = {id(each) for each, _ in traceback.walk_stack(frame)}
        tasks = [self._root]
        for task in tasks:  # which grows
            # In one step each, so that the loop's thread cannot change them in between.
            for nursery in list(task.child_nurseries):
                tasks.extend(list(nursery.child_tasks))
        return next((each for each in tasks if id(_frame_of(each)) in on_stack), None)


def _frame_of(task: trio.lowlevel.Task) -> object:
    return getattr(task.coro, "cr_frame", None)
