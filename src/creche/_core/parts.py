"""The lock of all workers, and the parts of them that few have."""

from __future__ import annotations

import math
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from anyio import CancelScope, CapacityLimiter

    from creche._ground.backend import Event
    from creche._messages.subscription import Listener
    from creche._nursery.held import HeldTask

    from .deadlock import Waitable

# With a GIL, threads take turns and signal handlers come at calls and at jumps only; since CPython
# 3.11 at calls and at jumps back only. So a line with none of these needs no lock, nor, from 3.11
# on, does a function, for which a lock would be a tenth of a short worker.
# Without a GIL, the values of a dict are copied in one go by list() and by *values, not by tuple().
HAS_GIL = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()
CAN_GO_IN_ONE = HAS_GIL and sys.version_info >= (3, 11)

# For short steps in which a cancellation from a thread and the loop's own steps must not overlap.
# Can be entered again: a signal handler may call cancel() in the middle of one.
lock = threading.RLock()

if hasattr(os, "register_at_fork"):  # pragma: no branch (absent on Windows)
    # Another thread may hold it as this process is forked; in the child nobody would ever let go.
    os.register_at_fork(after_in_child=lambda: cast("Any", lock)._at_fork_reinit())


class ThreadPart:
    """What only a worker that runs in a thread has, or elsewhere."""

    __slots__ = ("abandon_on_cancel", "is_abandoned", "is_waiting", "limiter", "stops")
    # What an ``ElsewherePart`` has of its own.
    run: Callable[[Any], Coroutine[Any, Any, Any]] | None = None
    is_handed_over = False
    where = ""

    def __init__(self) -> None:
        self.limiter: CapacityLimiter | None = None
        self.abandon_on_cancel = False
        self.is_waiting = False  # for a token of the limiter, or until the work begins elsewhere
        self.is_abandoned = False
        self.stops: tuple[Callable[[], object], ...] = ()
        """What to call on cancellation, to stop what runs in the thread."""


class ElsewherePart(ThreadPart):
    """What only a worker has whose work is run by a way that was given for it."""

    __slots__ = ("is_handed_over", "run", "where")

    def __init__(self, run: Callable[[Any], Coroutine[Any, Any, Any]]) -> None:
        super().__init__()
        self.run = run
        """What has the work of a worker run."""
        self.is_handed_over = False  # from then on the way alone knows whether the work will run
        self.where = ""
        """Where the work runs, in words, once that is known."""


class ServicePart:
    """What only a worker has that was asked to be ready, or that was started again."""

    __slots__ = (
        *("attempt", "due", "is_asked", "is_ready", "is_stalled"),
        *("ready", "stall_after", "value", "watch"),
    )

    def __init__(self) -> None:
        self.attempt = 1
        self.due = 0.0  # when the attempt begins, if it is not the first
        self.is_asked = False  # to be ready: its node waits for that too
        self.is_ready = False
        self.ready: Event | None = None  # made as someone waits for it
        self.value: object = None
        """What it was ready with."""
        self.stall_after = math.inf
        self.watch: CancelScope | None = None  # which ends when it has not got on
        self.is_stalled = False  # it has not got on for that long

    def wake(self) -> None:
        """Wake who waits for it to be ready."""
        if self.ready is not None:
            self.ready.set()


class RareParts:
    """What ties a worker to others; made when there first is any of it.

    Most workers wait for nothing, and what is not there need not be stored.
    """

    __slots__ = (
        *("awaited", "begun", "callbacks", "cancelled", "done", "followers", "is_hungry"),
        *("loop_calls", "opened", "reported_in", "service", "waits"),
    )

    def __init__(self) -> None:
        self.begun: Event | None = None  # these three are made when asked for
        self.done: Event | None = None
        self.cancelled: threading.Event | None = None
        self.reported_in: WeakSet[Any] | None = None
        """The trees of nurseries that have reported its error, once there is one."""
        self.waits: Sequence[Any] = ()
        """For whom it waits."""
        self.awaited = 0
        """How many workers wait for it; others who do close no ring."""
        # These two are made when there is any: most that are waited for have none.
        self.opened: dict[int, Waitable] | None = None
        """The lives of the nodes in whose blocks it is, by id(): any of thousands may be left."""
        self.followers: dict[Listener, Any] | None = None
        """Who listens to it alone, each with what it listens to."""
        self.callbacks: tuple[Callable[[Any], object], ...] = ()
        """What to call as it ends."""
        self.is_hungry = False
        """Whether there are any, and progress is news to one of them: none of it waits there."""
        self.loop_calls: tuple[HeldTask, ...] = ()
        """Calls of its thread that run on the loop."""
        self.service: ServicePart | None = None

    def note_report(self, tree: object) -> bool:
        """Note that a tree reports the error; return whether it did not before."""
        if self.reported_in is None:
            self.reported_in = WeakSet()
        if tree in self.reported_in:
            return False
        self.reported_in.add(tree)
        return True

    def service_part(self) -> ServicePart:
        """Return what a service has, made if need be; in any thread."""
        with lock:
            self.service = self.service or ServicePart()
            return self.service
