"""Virtual time: a test of a ten-minute timeout takes milliseconds, on both backends.

Time stands still while anything can run, and jumps to the next deadline when nothing can. A thread
that AnyIO runs is something that can run, though the event loop sees it as idle. So while there is
one, a jump waits for a short real time first: a thread that is about to finish gets its chance, and
one that waits for something that only the clock will bring does not stop it for ever.
"""

from __future__ import annotations

import asyncio
import selectors
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from anyio._core._eventloop import get_async_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from selectors import SelectorKey

_GRACE = 0.1
"""Real seconds before each jump while a thread runs."""


class _Gauge:
    """How many threads AnyIO runs for the loop of the virtual clock."""

    def __init__(self) -> None:
        self.threads = 0
        self.is_mine: Callable[[], bool] = lambda: False
        self.changed: Callable[[], object] = lambda: None

    def add(self, number: int) -> None:
        self.threads += number
        self.changed()


class _Selector(selectors.DefaultSelector):
    """A selector that lets the clock jump in place of waiting."""

    def __init__(self, gauge: _Gauge) -> None:
        super().__init__()
        self._gauge = gauge
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(_GRACE if self._gauge.threads else 0)
        if not ready:
            self.now += timeout
        return ready


class _Loop(asyncio.SelectorEventLoop):
    """An asyncio event loop with a clock of its own."""

    def __init__(self, gauge: _Gauge) -> None:
        self._clock = _Selector(gauge)
        self.gauge = gauge
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def _on_asyncio(gauge: _Gauge) -> dict[str, Any]:
    def is_mine() -> bool:
        return getattr(asyncio.get_running_loop(), "gauge", None) is gauge

    gauge.is_mine = is_mine
    return {"loop_factory": partial(_Loop, gauge)}


def _on_trio(gauge: _Gauge) -> dict[str, Any]:
    try:
        import trio.testing  # noqa: PLC0415 (an extra)
    except ImportError as exc:
        raise ImportError(
            "virtual time on Trio needs trio, which is not installed; pip install 'creche[trio]'"
        ) from exc

    clock = trio.testing.MockClock(autojump_threshold=0)

    def is_mine() -> bool:
        return trio.lowlevel.current_clock() is clock

    def changed() -> None:
        clock.autojump_threshold = _GRACE if gauge.threads else 0

    gauge.is_mine, gauge.changed = is_mine, changed
    return {"clock": clock}


@contextmanager
def virtual_time(backend: str = "asyncio") -> Generator[tuple[str, dict[str, Any]]]:
    """Provide a backend with a clock that jumps over every wait.

    It is for one run of an event loop within the context. ``anyio.current_time()``, sleeps,
    deadlines and the times of workers use the virtual time there. ``time.monotonic()`` and
    event loops in threads stay real. Threads that AnyIO did not start are not known: the clock
    jumps over whatever they would do. For pytest, see ``virtual_backend``.

    Args:
        backend: ``"asyncio"`` or ``"trio"``.

    Returns:
        A context manager that gives the ``backend`` and the ``backend_options`` for
        ``anyio.run()``.

    Raises:
        ValueError: There is no such backend.
        ImportError: It is not installed.

    Threads:
        The thread that runs the event loop, or one that starts it.
    """
    prepare = {"asyncio": _on_asyncio, "trio": _on_trio}.get(backend)
    if prepare is None:
        raise ValueError(f"backend must be 'asyncio' or 'trio', not {backend!r}")
    gauge = _Gauge()
    options = prepare(gauge)
    with ExitStack() as stack:
        _count_threads(get_async_backend(backend), gauge, stack)
        yield backend, options


def _count_threads(backend: Any, gauge: _Gauge, stack: ExitStack) -> None:
    name = "run_sync_in_worker_thread"
    original = getattr(backend, name)

    async def counted(_: object, *args: Any, **kwargs: Any) -> Any:
        if not gauge.is_mine():  # the loop of a thread
            return await original(*args, **kwargs)
        gauge.add(1)
        try:
            return await original(*args, **kwargs)
        finally:
            gauge.add(-1)

    stack.callback(setattr, backend, name, vars(backend)[name])
    setattr(backend, name, classmethod(counted))
