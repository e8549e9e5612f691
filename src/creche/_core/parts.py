"""The lock of all workers, and the parts that few workers have."""

from __future__ import annotations

import math
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Coroutine, Sequence

    from anyio import CancelScope, CapacityLimiter

    from creche._ground.backend import Event
    from creche._messages.subscription import Listener
    from creche._nursery.held import HeldTask

    from .deadlock import Waitable

# With a GIL, threads switch and signal handlers run only at calls and jumps; since CPython 3.11
# only at calls and backward jumps. So a line with none of these needs no lock, and from 3.11 on
# neither does a function without them; a lock would be a tenth of the cost of a short worker.
# Without a GIL, list() and *values copy the values of a dict atomically, but tuple() does not.
HAS_GIL = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()
CAN_GO_IN_ONE = HAS_GIL and sys.version_info >= (3, 11)

# For short steps in which a cancellation from a thread and the loop's own steps must not overlap.
# Reentrant, because a signal handler may call cancel() in the middle of one.
lock = threading.RLock()

if hasattr(os, "register_at_fork"):  # pragma: no branch (absent on Windows)
    # Another thread may hold it while this process is forked; in the child it would stay held.
    os.register_at_fork(after_in_child=lambda: cast("Any", lock)._at_fork_reinit())


class ThreadPart:
    """What only workers in threads and elsewhere have."""

    __slots__ = ("abandon_on_cancel", "is_abandoned", "is_waiting", "limiter", "stops")
    # Set only in an ``ElsewherePart``.
    run: Callable[[Any], Coroutine[Any, Any, Any]] | None = None
    is_handed_over = False
    where = ""

    def __init__(self) -> None:
        self.limiter: CapacityLimiter | None = None
        self.abandon_on_cancel = False
        self.is_waiting = False  # for a token of the limiter, or until the work begins elsewhere
        self.is_abandoned = False
        self.stops: tuple[Callable[[], object], ...] = ()
        """What to call on cancellation to stop the work in the thread."""


class ElsewherePart(ThreadPart):
    """What only workers with ``where=`` have."""

    __slots__ = ("is_handed_over", "run", "where")

    def __init__(self, run: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
        super().__init__()
        self.run = run
        """Runs the work of a worker."""
        self.is_handed_over = False  # from then on only the way knows whether the work will run
        self.where = ""
        """Where the work runs, in words, once that is known."""


class ServicePart:
    """What only services have: workers that are waited for to be ready, restarted or watched."""

    __slots__ = (
        *("attempt", "due", "is_asked", "is_ready", "is_stalled"),
        *("ready", "stall_after", "value", "watch"),
    )

    def __init__(self) -> None:
        self.attempt = 1
        self.due = 0.0  # when the attempt starts, if it is not the first
        self.is_asked = False  # whether its node waits for it to be ready, too
        self.is_ready = False
        self.ready: Event | None = None  # created when someone waits for it
        self.value: object = None
        """The value passed to ``ready()``."""
        self.stall_after = math.inf
        self.watch: CancelScope | None = None  # ends when it has made no progress
        self.is_stalled = False  # it has made no progress for that long

    def wake(self) -> None:
        """Wake those that wait for it to be ready."""
        if self.ready is not None:
            self.ready.set()


class RareParts:
    """What few workers need; created when a worker first needs any of it.

    Most workers wait for nothing and nothing listens to them, so it takes no memory.
    """

    __slots__ = (
        *("awaited", "begun", "callbacks", "cancelled", "followers", "is_hungry"),
        *("loop_calls", "opened", "reported_in", "service", "total", "waits"),
    )

    def __init__(self) -> None:
        self.begun: Event | None = None  # these two are created on demand
        self.cancelled: threading.Event | None = None
        self.reported_in: WeakSet[Any] | None = None
        """The trees of nurseries that have reported its error, once there is one."""
        self.waits: Sequence[Any] = ()
        """The parties that it waits for."""
        self.awaited = 0
        """How many workers wait for it; waits of other code cannot close a cycle."""
        # These three are created on demand: most workers that have rare parts have none.
        self.opened: dict[int, Waitable] | None = None
        """The lives of the nodes whose blocks it has open, by id(): there may be thousands."""
        self.followers: dict[Listener, Any] | None = None
        """Those who listen to it only, each with its source."""
        self.callbacks: deque[Callable[[Any], object]] | None = None
        """What to call when it ends."""
        self.is_hungry = False
        """Whether there are followers, and one has read the last progress event."""
        self.loop_calls: tuple[HeldTask, ...] = ()
        """Calls of its thread that run on the loop."""
        self.service: ServicePart | None = None
        self.total: int | None = None
        """The total number of steps, if it is known."""

    def note_report(self, tree: object) -> bool:
        """Note that a tree reports the error; return whether it did not before."""
        if self.reported_in is None:
            self.reported_in = WeakSet()
        if tree in self.reported_in:
            return False
        self.reported_in.add(tree)
        return True

    def service_part(self) -> ServicePart:
        """Return the service part, created if necessary; in any thread."""
        with lock:
            self.service = self.service or ServicePart()
            return self.service
