"""The event loop of a state machine: quiet whenever the machine draws.

A rule is synchronous. It hands one action to the loop, in another thread, which does it and then
lets everything happen that can happen. So nothing runs while Hypothesis decides, and a program
repeats exactly.
"""

from __future__ import annotations

import inspect
import random
import threading
import time
import warnings
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import anyio
from anyio import lowlevel
from anyio.from_thread import start_blocking_portal

from creche.testing._leaks import running_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from anyio.abc import TaskGroup, TaskStatus

PATIENCE = 20.0
"""Real seconds after which something that must happen has failed to; never a delay."""
_TURNS = 32


async def turn(times: int = 1) -> None:
    """Let the loop go round."""
    for _ in range(times):
        await lowlevel.checkpoint()


async def settle() -> None:
    """Let everything happen that can, until all tasks wait for something.

    The turns come first because on asyncio ``wait_all_tasks_blocked()`` sleeps between its looks.
    """
    await turn(_TURNS)
    with anyio.move_on_after(PATIENCE) as scope:
        await anyio.wait_all_tasks_blocked()
    assert not scope.cancelled_caught, f"something runs on and on, for {PATIENCE} seconds"


def _nothing() -> None:
    pass


class _Shuffling(threading.local):
    """The chance by which Trio orders what is due; each thread has its own.

    Trio has one for all its loops. So a loop in a thread would change the order of things on the
    host's, each time another way, and a program would not repeat.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = random.Random(seed)  # noqa: S311 (no secret)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._random, name)

    def begin_again(self) -> None:
        """Forget how often the loop went round while it waited for a thread."""
        self._seed += 1
        self._random.seed(self._seed)

    @contextmanager
    def installed(self) -> Generator[None]:
        """Give it to Trio, which offers no public way."""
        from trio._core import _run  # noqa: PLC0415 (absent where Trio is)

        before: Any = _run._r
        _run._r = cast("Any", self)
        try:
            yield
        finally:
            _run._r = before


class World:
    """An event loop in a thread, with a task group for what machines set going.

    Args:
        backend: The name of AnyIO's backend.
        options: The backend's options.
        seed: The seed of Trio's scheduler.
        at_end: Called once the loop has ended, to drop what the program has made: warnings of
            coroutines that nobody awaited are caught until then.
    """

    def __init__(
        self, backend: str, options: dict[str, Any], seed: int, at_end: Callable[[], object]
    ) -> None:
        self._stack = ExitStack()
        self._shuffling = _Shuffling(seed)
        if backend == "trio":
            self._stack.enter_context(self._shuffling.installed())
        self._caught = self._stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        self._stack.callback(at_end)
        self._portal = self._stack.enter_context(start_blocking_portal(backend, options))
        self._tasks: TaskGroup
        self._over: anyio.Event
        self._host, _ = self._portal.start_task(self._stay)
        self._own = self._portal.call(self._running)

    async def _stay(self, *, task_status: TaskStatus[None]) -> None:
        async with anyio.create_task_group() as self._tasks:
            self._over = anyio.Event()
            task_status.started()
            await self._over.wait()
            self._tasks.cancel_scope.cancel()

    def do(self, action: Callable[[], object]) -> None:
        """Do something on the loop, then let everything happen that can.

        Args:
            action: A function, sync or async.
        """
        self._portal.call(self._do, action)

    async def _do(self, action: Callable[[], object]) -> None:
        self._shuffling.begin_again()
        outcome = action()
        if inspect.isawaitable(outcome):
            await outcome
        await settle()

    def until(self, condition: Callable[[], bool], patience: float = PATIENCE) -> bool:
        """Wait for what a thread does; tell whether it came about."""
        end = time.monotonic() + patience
        while not condition():
            if time.monotonic() > end:
                return False
            self._portal.call(lowlevel.checkpoint)
        self.do(_nothing)  # what follows does not depend on how often the loop went round
        return True

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a task; on the loop only."""
        self._tasks.start_soon(function)

    async def start(self, function: Callable[..., Coroutine[Any, Any, None]]) -> None:
        """Start a task, and wait until it says that it has started."""
        await self._tasks.start(function)

    async def _running(self) -> dict[int, anyio.TaskInfo]:
        return running_tasks()

    def tasks_left(self) -> list[str]:
        """Name the tasks that are neither the loop's own nor the one that looks."""

        async def look() -> list[str]:
            me = anyio.get_current_task()
            found = running_tasks().items()
            return [
                task.name or "" for number, task in found if number not in self._own and task != me
            ]

        return self._portal.call(look)

    def never_awaited(self) -> list[str]:
        """Tell the warnings of coroutines that nobody awaited."""
        told = [str(each.message) for each in self._caught]
        return [each for each in told if "never awaited" in each]

    def close(self) -> None:
        """End the loop, whatever still runs."""
        try:
            self._portal.call(self._over.set)
            self._host.result(PATIENCE)
        finally:
            self._stack.close()
