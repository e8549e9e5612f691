"""A node, with all the calls that users make to have work done, to post and to be called."""

from __future__ import annotations

import math
import warnings
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from creche._ground.bridge import await_answer, fail
from creche._ground.context import current
from creche._ground.errors import WorkerError
from creche._ground.message import Message
from creche._ground.options import check_limit, check_overflow, check_text
from creche._ground.report import logger, shown
from creche._ground.states import FINAL
from creche._messages.subscription import Subscription
from creche._nursery.nursery import NEW

from .calls import begin_call
from .group import WorkerGroup, code_of
from .manager import WorkerManager
from .parts import lock
from .snapshot import NodeSnapshot, take
from .tree import Branch
from .waiting import wait_for
from .worker import Worker, WorkType

if TYPE_CHECKING:
    import sys
    from collections.abc import Awaitable, Callable

    from anyio import CapacityLimiter

    from creche._ground.message import MessageT
    from creche._ground.options import Overflow, RunOptions, StartOptions
    from creche._ground.states import WorkerState

    from .worker import ResultType

    if sys.version_info >= (3, 11):
        from typing import TypeVarTuple, Unpack
    else:
        from typing_extensions import TypeVarTuple, Unpack

    PosArgs = TypeVarTuple("PosArgs")

T = TypeVar("T")

_new_worker = cast("Callable[[type[Worker[Any]]], Worker[Any]]", Worker.__new__)
_fill = cast("type[Worker[Any]]", Worker)._fill


class Node(Branch):
    """A place in a tree that owns workers: leaving its block means that all of them have ended.

    ``async with Node("app") as app: ...`` opens a root, ``async with Node("page", parent=app)`` a
    node below it. A node that has no block of its own is mounted, see ``mount()``. Methods of a
    subclass handle messages, ``on_worker_state_changed`` among them.

    Leaving the block normally waits until every started worker has ended and every message was
    handled. Then mounted nodes are told to leave, then daemons are cancelled. If the body raised,
    a worker failed or an outer scope was cancelled, everything is cancelled first.

    Args:
        name: The name, by default that of the class.
        parent: The node above; it has to be open when this one is entered.
    """

    def __init__(self, name: str = "", *, parent: Node | None = None) -> None:
        if parent is not None and not isinstance(parent, Node):
            raise WorkerError(f"parent must be a Node, not {shown(parent)}")
        check_text("the name of a node", name)
        super().__init__(name or type(self).__name__, parent)
        self._creche_declared: dict[str, tuple[int | None, Overflow]] = {}
        self._creche_manager = WorkerManager(self)
        self._creche_advanced: set[int] = set()  # in other threads; the loop is not told yet

    # the tree

    @property
    def parent(self) -> Node | None:
        """The node above, ``None`` for a root."""
        return cast("Node | None", self._creche_parent)

    @property
    def children(self) -> tuple[Node, ...]:
        """The nodes right below that are open.

        Threads:
            Any thread.
        """
        children = list(self._creche_children.values())
        opened = [child for child in children if child._creche_nursery.life is not NEW]
        return tuple(cast("list[Node]", opened))

    @property
    def groups(self) -> tuple[WorkerGroup, ...]:
        """The groups of this node: those made by ``group()``, and all that hold workers.

        Threads:
            Any thread.
        """
        return tuple(self._creche_groups.values())

    @property
    def root(self) -> Node:
        """The topmost node of the tree."""
        *_, top = self._creche_above()
        return cast("Node", top)

    @property
    def workers(self) -> WorkerManager:
        """The manager of all workers of the tree."""
        return self.root._creche_manager

    # work

    @overload
    def run_worker(
        self,
        work: Callable[[], Awaitable[ResultType]] | Awaitable[ResultType],
        name: str = "",
        group: str | None = None,
        description: str = "",
        **options: Unpack[StartOptions],
    ) -> Worker[ResultType]: ...

    @overload
    def run_worker(
        self,
        work: Callable[[], ResultType],
        name: str = "",
        group: str | None = None,
        description: str = "",
        **options: Unpack[StartOptions],
    ) -> Worker[ResultType]: ...

    def run_worker(
        self,
        work: WorkType[Any],
        name: str = "",
        group: str | None = None,
        description: str = "",
        exit_on_error: bool = True,
        start: bool = True,
        exclusive: bool = False,
        thread: bool = False,
        *,
        daemon: bool = False,
        abandon_on_cancel: bool = False,
        limiter: CapacityLimiter | None = None,
    ) -> Worker[Any]:
        """Run work in a worker of this node; returns at once.

        The work runs in the context variables of the caller.

        Args:
            work: A coroutine function, an awaitable, or, with ``thread``, a plain callable;
                anything callable without arguments whose result is awaitable will do.
            name: A short name for messages and logs; by default that of the function.
            group: The group within the node; by default ``"default"``, or the function's name if
                ``exclusive``.
            description: A longer text for people.
            exit_on_error: Whether an error of the work fails the node. If not, it is stored and
                logged.
            start: Whether to start the worker. If not, see ``WorkerManager.start_all()``.
            exclusive: Whether to cancel what is unfinished in the same group, at the start.
            thread: Whether to run the work in a thread; async work has an event loop there.
            daemon: Whether the node may close without waiting for the worker.
            abandon_on_cancel: Whether a cancelled thread is left to itself, not waited for.
            limiter: What bounds the threads; by default AnyIO's default thread limiter.

        Returns:
            The worker. On a cancelled node it is CANCELLED already.

        Raises:
            WorkerError: The node is not open, or an argument makes no sense. A coroutine object
                given as work is closed.

        Threads:
            Any thread.
        """
        called: Any = getattr(work, "__name__", None)
        if called is None:  # a partial, perhaps
            called = getattr(getattr(work, "func", work), "__name__", "")
        if type(called) is not str:
            called = ""
        supersedes: object = None
        if exclusive:
            supersedes = True
            if group is None:
                if not called.isidentifier():
                    warnings.warn(
                        f"exclusive=True without a group for {shown(work)}, which has no name of "
                        'its own: only runs of this very object are superseded; add group="..."',
                        RuntimeWarning,
                        stacklevel=2,
                    )
                group, supersedes = called or "default", code_of(work)
        # As Worker() does, but without keywords, which would cost a twentieth of a worker; and
        # without the context, which a task that is started at once inherits.
        worker = _new_worker(Worker)
        _fill(
            worker,
            self,
            work,
            (name or called) if type(name) is str else name,
            "default" if group is None else group,
            description,
            exit_on_error,
            thread,
            daemon,
            abandon_on_cancel,
            limiter,
            None,
        )
        worker._check(abandon_on_cancel or limiter is not None)
        self._creche_take_in(worker, start, supersedes)
        return worker

    @overload
    async def start_worker(
        self,
        work: Callable[[], Awaitable[ResultType]] | Awaitable[ResultType],
        name: str = "",
        group: str | None = None,
        description: str = "",
        **options: Unpack[RunOptions],
    ) -> Worker[ResultType]: ...

    @overload
    async def start_worker(
        self,
        work: Callable[[], ResultType],
        name: str = "",
        group: str | None = None,
        description: str = "",
        **options: Unpack[RunOptions],
    ) -> Worker[ResultType]: ...

    async def start_worker(
        self,
        work: WorkType[Any],
        name: str = "",
        group: str | None = None,
        description: str = "",
        **options: Unpack[RunOptions],
    ) -> Worker[Any]:
        """Run work in a worker, and return once it is RUNNING: back-pressure.

        If this call is cancelled while it waits, the worker is withdrawn.

        Args:
            work: As for ``run_worker()``, and so are the others.
            name: A short name for messages and logs.
            group: The group within the node.
            description: A longer text for people.
            options: The other arguments of ``run_worker()``, but for ``start``.

        Returns:
            The worker, RUNNING or ended: one that its group dropped is CANCELLED.

        Raises:
            DeadlockError: Called by a worker that holds the slot that this one needs.
            WorkerError: As for ``run_worker()``.

        Checkpoint:
            Always.

        Threads:
            The node's event loop only.
        """
        worker = self.run_worker(work, name, group, description, **options)
        try:
            await wait_for((worker,), begun=True)
        except BaseException:
            worker.cancel("withdrawn: the caller of start_worker() was cancelled")
            raise
        return worker

    def _creche_take_in(self, worker: Worker[Any], start: bool, supersedes: object) -> None:
        """Admit a worker, or refuse it: then it is CANCELLED, and nobody is told.

        Raises:
            WorkerError: It is refused.
            WorkerCancelled: The thread that calls is that of a cancelled worker.
            BaseException: Its task cannot be made.
        """
        if worker._created_at is not None:
            raise WorkerError(f"{worker._creche_spoken()} was added before")
        if worker._state in FINAL:
            raise WorkerError(f"{worker._creche_spoken()} has ended; add one that has not")
        try:
            nursery = self._creche_nursery
            if nursery.life is NEW or nursery.bridge.is_foreign:
                worker._keep_context()
                self._creche_ask(partial(self._creche_admit, worker, start, supersedes))
            else:
                self._creche_admit(worker, start, supersedes)
        except BaseException:
            if worker._place is None and worker._state not in FINAL:
                worker._refuse()
            raise

    def _creche_admit(self, worker: Worker[Any], start: bool, supersedes: object) -> None:
        """Admit a worker, on the loop or before there is one."""
        nursery = self._creche_nursery
        if start or nursery.life is not NEW or nursery.bridge.is_gone:
            nursery.check_admission()
        elif self._creche_is_lost():
            raise WorkerError(
                f"cannot add work to {self._creche_spoken()}, whose parent is closed; "
                "use a node that is open"
            )
        if self._creche_parent is not None:
            self._creche_join()
        if logger.level != self._creche_log_level:
            self._creche_heed_logger()
        group = self._creche_groups.get(worker.group)
        bridge = nursery.bridge
        bridge.steps.busy += 1
        try:
            if group is None:
                group = self._creche_groups[worker.group] = WorkerGroup(self, worker.group)
            group._admit(worker, supersedes, start=start)
        except BaseException:
            if worker._place is not None:
                # Its caller does not know it. It may be marked already, so it is not asked for.
                worker._cancel_with_nursery("it could not be started", by_scope=False)
            if group is not None and not len(group):
                self._creche_forget(group)
            raise
        finally:
            bridge.steps.busy -= 1

    # groups

    def group(
        self, name: str, limit: int | None = None, overflow: Overflow = "enqueue"
    ) -> WorkerGroup:
        """Get a group of this node, made at the first call: a name, and how many may run at once.

        Args:
            name: The name.
            limit: How many workers of the group may run at once; ``None`` for any number.
            overflow: What happens to a new worker when as many are running. ``"enqueue"``: it waits
                its turn. ``"restart"``: the oldest running one is cancelled, and the new one starts
                when its slot is really free. ``"drop"``: it ends CANCELLED at once.
                ``"keep_latest"``: it waits in place of what was waiting before it.

        Returns:
            The group; the same object whenever it is asked for by its name alone, or by its name
            and the same settings.

        Raises:
            WorkerError: The group was made with other settings; or these make no sense.

        Threads:
            Any thread.
        """
        check_text("the name of a group", name)
        name = str.__str__(name)
        settings = (check_limit(limit), check_overflow(overflow))

        def declare() -> WorkerGroup:
            group = self._creche_groups.get(name)
            if group is None:
                group = self._creche_groups[name] = WorkerGroup(self, name)
            if name not in self._creche_declared:
                self._creche_declared[name] = settings
                group.overflow = settings[1]
                group.limit = settings[0]
            elif settings not in ((None, "enqueue"), self._creche_declared[name]):
                raise WorkerError(
                    f"group {shown(name)} of {self._creche_spoken()} was made with limit and "
                    f"overflow {self._creche_declared[name]}, not {settings}; ask for it by name "
                    "alone, and set group.limit to change it"
                )
            return group

        return self._creche_ask(declare)

    def _creche_forget(self, group: WorkerGroup) -> None:
        name = group.name
        if name not in self._creche_declared and self._creche_groups.get(name) is group:
            del self._creche_groups[name]

    # what people look at

    def snapshot(self, *, stacks: bool = False) -> NodeSnapshot:
        """Picture the node and all below it as they stand now, as plain data.

        Args:
            stacks: Whether to tell where each worker stands in the code. That takes about a
                millisecond a worker.

        Returns:
            The picture, which holds nothing alive.

        Raises:
            ImportError: ``stacks`` needs ``creche[stacks]``.

        Threads:
            Any thread; the event loop is asked, and kept busy meanwhile.
        """
        return self._creche_picture(math.inf if stacks else 0)

    def _creche_picture(self, stacks: float) -> NodeSnapshot:
        return self._creche_bridge.call(lambda: take(self, stacks=stacks))

    # messages

    def post_message(self, message: Message) -> bool:
        """Hand a message to the node's handler, ``message.handler_name``, soon and in order.

        Returns:
            Whether it will be delivered: ``False`` once the node is closed. What the thread of a
            worker has posted is dropped if the worker is cancelled before it is handled.

        Raises:
            WorkerError: It is no ``Message``.
            WorkerCancelled: Called by the thread of a worker that was cancelled.

        Threads:
            Any thread, and a signal handler.
        """
        if not isinstance(message, Message):
            raise WorkerError(f"post_message() takes a Message, not {shown(message)}")
        return self._creche_post(message)

    def subscribe(self, *types: type[MessageT], tree: bool = False) -> Subscription[MessageT]:
        """Listen to what happens on this node.

        ``async with node.subscribe(Worker.StateChanged, tree=True) as events`` opens the stream and
        ``async for event in events`` reads it: each event from then on, in order, none lost, the
        final ones included; it ends when the node has closed. There may be any number of
        subscriptions. Each has a buffer of its own, so that a slow reader delays nobody; the buffer
        grows with changes of state that are not read, while of ``Worker.ProgressChanged`` at most
        one for each worker waits.

        A subscription does not keep the node open. But a worker of the node that reads it to its
        end does, unless it is a daemon: read in a task or a worker above the node.

        Args:
            types: The classes of the messages that are wanted, subclasses included:
                ``Worker.StateChanged``, ``Worker.ProgressChanged``, any ``Message`` that is posted
                to the node or comes up to it from a node below.
            tree: Whether to listen to all nodes below as well, those that open later included. A
                message that goes up from there is told once.

        Returns:
            The subscription, to be opened before the node or while it is open.

        Raises:
            WorkerError: No class was given, or something that is no class of messages.

        Threads:
            Any thread; the subscription is for the node's event loop only.
        """
        return Subscription(self, types, tree=tree)

    def _creche_announce(self, worker: Worker[Any], state: WorkerState) -> None:
        self._creche_tell(Worker.StateChanged(worker, state), handled=self._creche_handles_changes)

    def _creche_announce_progress(self, worker: Worker[Any]) -> None:
        """Tell of progress, from any thread; at most one hop to the loop is on its way a worker."""
        bridge = self._creche_bridge
        if bridge.can_act():
            self._creche_tell_progress(worker)
            return
        with lock:
            if worker._order in self._creche_advanced or worker._state in FINAL:
                return
            self._creche_advanced.add(worker._order)
        if not bridge.post(partial(self._creche_tell_progress, worker)):
            self._creche_advanced.discard(worker._order)

    def _creche_tell_progress(self, worker: Worker[Any]) -> None:
        self._creche_advanced.discard(
            worker._order
        )  # first: what is done from here on needs another hop
        if worker._state not in FINAL:
            message = Worker.ProgressChanged(worker)
            self._creche_tell(message, handled=self._creche_handles(Worker.ProgressChanged))

    def _creche_tell(self, message: Message, *, handled: bool) -> None:
        for subscription in self._creche_heard_by:
            subscription._put(message)
        if handled:
            self._creche_mailbox.post(message)

    # threads

    @overload
    def call_from_thread(
        self, fn: Callable[[Unpack[PosArgs]], Worker[T]], *args: Unpack[PosArgs]
    ) -> Worker[T]: ...

    @overload
    def call_from_thread(
        self, fn: Callable[[Unpack[PosArgs]], Awaitable[T]], *args: Unpack[PosArgs]
    ) -> T: ...

    @overload
    def call_from_thread(self, fn: Callable[[Unpack[PosArgs]], T], *args: Unpack[PosArgs]) -> T: ...

    def call_from_thread(self, fn: Callable[[Unpack[PosArgs]], Any], *args: Unpack[PosArgs]) -> Any:
        """Run a function, sync or async, on the node's event loop and return its value.

        Once the calling worker is cancelled the function is not run: nothing of a superseded
        thread takes effect. The check and the call are one step on the loop. An async function
        that is under way when the worker is cancelled, is cancelled too.

        Args:
            fn: What to call.
            args: Its arguments.

        Returns:
            What it returned.

        Raises:
            WorkerCancelled: The calling worker was cancelled, or the node was.
            WorkerError: Called in the thread of the event loop; or the node is not open.
            BaseException: What the function raised.

        Threads:
            Any but the event loop's; blocks until the function has returned.
        """
        bridge = self._creche_nursery.bridge
        caller = current.get(None)
        future: Future[Any] = Future()

        def begin() -> None:
            begin_call(self, caller, fn, args, future)  # noqa: F821 (deleted once it has begun)

        try:
            if not bridge.is_foreign:
                raise WorkerError(
                    "call_from_thread() is for other threads than that of the node's event loop, "
                    f"and for open nodes ({self._creche_spoken()} is "
                    f"{self._creche_nursery.life.value}); on the loop, call the function"
                )
            if not bridge.post(begin, partial(fail, future)):
                raise WorkerError(
                    f"{self._creche_spoken()} is {self._creche_nursery.life.value}; nothing can be "
                    "called"
                )
            return await_answer(future, bridge.token)
        finally:
            del caller, future  # the error holds this frame, and they hold the error
