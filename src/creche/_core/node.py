"""A node: a place in a tree that owns workers.

It has a nursery, in which all of its tasks run; a mailbox and an audience, for messages; and,
if it has no block of its own, a mount.
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from creche._ground.errors import WorkerError
from creche._ground.message import Message
from creche._ground.report import shown
from creche._ground.states import CLOSED
from creche._ground.text import name_of_work, path_of
from creche._messages.mailbox import Mailbox
from creche._messages.subscription import Subscription
from creche._nursery.nursery import Nursery
from creche._running.job import FUNCTIONS
from creche._running.runner import Runners

from .admission import admit, group_of_exclusive, start
from .audience import Audience
from .calls import make_call, post
from .checks import check_new, check_node
from .facts import children_of
from .group import declare
from .life import Life
from .manager import WorkerManager
from .mounting import Mount, remove
from .readiness import is_node_ready, watch_new
from .shutdown import shut_down
from .tree import bridge_of, exits_on_error, join_names, walk_down, walk_up
from .worker import M1, M2, T, Worker, WorkType

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from concurrent.futures import Executor

    from anyio import CapacityLimiter
    from typing_extensions import Self, TypeVarTuple, Unpack

    from creche._ground.bridge import Bridge
    from creche._ground.message import MessageT
    from creche._ground.options import Overflow, ReadyOptions, StartOptions, StreamOptions
    from creche._ground.way import Way

    from .deadlock import Waitable
    from .group import WorkerGroup
    from .resources import Kept
    from .snapshot import NodeSnapshot
    from .worker import ResultType

    PosArgs = TypeVarTuple("PosArgs")

NodeT = TypeVar("NodeT", bound="Node")
M3 = TypeVar("M3", bound=Message)
_new_worker = cast("Callable[[type[Worker[Any]]], Worker[Any]]", Worker.__new__)
_set_up = cast("type[Worker[Any]]", Worker)._set_up


class Node:
    """A place in a tree that owns workers. Leaving its block means that all of them have ended.

    ``async with Node("app") as app: ...`` opens a root, and ``async with Node("page", parent=app)``
    a node below it. A node without a block of its own is mounted, see ``mount()``. Methods of a
    subclass handle messages, for example ``on_worker_state_changed``.

    Leaving the block normally waits until every started worker has ended and every message has
    been handled. Then mounted nodes are told to leave, then daemons are cancelled. If the body
    raised, a worker failed or an outer scope was cancelled, everything is cancelled first.

    Args:
        name: The name; by default that of the class.
        parent: The parent node. It must be open when this node is entered.
        exit_on_error: Whether an error of a worker fails the node, if the call that started the
            worker does not say. ``None`` means: as the parent does, and yes for a root.
    """

    def __init__(
        self, name: str = "", *, parent: Node | None = None, exit_on_error: bool | None = None
    ) -> None:
        self.name: str = check_node(name, parent) or type(self).__name__
        """The name of the node."""
        self._creche_parent = parent
        self._creche_exits = exit_on_error  # see exits_on_error()
        # By id(): nodes may be dataclasses, equal to others or without a hash.
        self._creche_children: dict[int, Node] = {}
        self._creche_life = Life(self)
        nursery = self._creche_nursery = Nursery(self._creche_life)
        self._creche_runners = Runners(nursery)
        audience = self._creche_audience = Audience(self)
        self._creche_mailbox = Mailbox(self, nursery, audience.pass_on, audience.is_started)
        self._creche_groups: dict[str, WorkerGroup] = {}
        self._creche_spare: WorkerGroup | None = None  # one that was forgotten
        self._creche_declared: dict[str, tuple[int | None, Overflow]] = {}
        self._creche_manager = WorkerManager(self)
        self._creche_waiting: dict[int, Waitable] = {}  # workers of the node, by id() as well
        self._creche_sleepers: dict[int, dict[Awaitable[None], None]] = {}  # see wait_for()
        self._creche_mount: Mount | None = None  # where it has no block of its own
        self._creche_resources: dict[int, Kept] = {}  # of a root, see Job.resource()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r} {self._creche_nursery.state.name}>"

    def __reduce_ex__(self, protocol: object) -> str | tuple[Any, ...]:
        raise WorkerError(f"{self._creche_label()} can be neither copied nor pickled; make another")

    # the tree

    @property
    def parent(self) -> Node | None:
        """The parent node; ``None`` for a root."""
        return self._creche_parent

    @property
    def children(self) -> tuple[Node, ...]:
        """The child nodes that are open or being opened.

        Threads:
            Any thread.
        """
        return tuple(children_of(self))

    @property
    def root(self) -> Node:
        """The topmost node of the tree."""
        *_, top = walk_up(self)
        return top

    @property
    def path(self) -> str:
        """The names of the nodes from the root to this one, joined by slashes."""
        return join_names(self)

    def _creche_below(self) -> Iterator[Node]:
        return walk_down(self)

    def _creche_label(self) -> str:
        return f"node {shown(path_of(self))}"

    # work

    @property
    def groups(self) -> tuple[WorkerGroup, ...]:
        """The groups of this node: those made by ``group()``, and all others that hold workers.

        Threads:
            Any thread.
        """
        return (*self._creche_groups.values(),)  # no tuple(): see HAS_GIL

    @property
    def workers(self) -> WorkerManager:
        """The manager of all workers of the tree."""
        return self.root._creche_manager

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
        exit_on_error: bool | None = None,
        start: bool = True,
        exclusive: bool = False,
        thread: bool = False,
        *,
        daemon: bool = False,
        abandon_on_cancel: bool = False,
        limiter: CapacityLimiter | None = None,
        where: Way | Executor | None = None,
        stall_after: float | None = None,
    ) -> Worker[Any]:
        """Run work in a worker of this node. Returns at once.

        The work runs with the context variables of the caller.

        Args:
            work: A coroutine function, an awaitable or, with ``thread``, a plain callable.
                Anything that is called without arguments and returns an awaitable will do.
            name: A short name for messages and logs; by default that of the function.
            group: The group within the node; by default ``"default"``, or the function's name if
                ``exclusive``.
            description: A longer text for people.
            exit_on_error: Whether an error of the work fails the node. If not, it is stored and
                logged. ``None`` means: as the node says.
            start: Whether to start the worker. If not, see ``WorkerManager.start_all()``.
            exclusive: Whether to cancel earlier work at the start: with ``group`` all that is
                unfinished in it, otherwise only earlier runs of the same function.
            thread: Whether to run the work in a thread; async work gets its own event loop there.
            daemon: Whether the node may close without waiting for the worker.
            abandon_on_cancel: Whether a cancelled thread, or other work that runs elsewhere and
                cannot be stopped, is left behind instead of waited for.
            limiter: Limits the number of threads; by default AnyIO's default thread limiter.
            where: What runs the work elsewhere: a way of ``creche.ways``, such as ``Processes()``,
                or an executor of ``concurrent.futures``. The work must then be a function, or a
                ``functools.partial`` of one, that can be pickled.
            stall_after: Seconds without ``advance()`` or ``update()`` while it runs, after which
                ``Worker.Stalled`` is announced; ``None`` for never.

        Returns:
            The worker. On a cancelled node it is already CANCELLED.

        Raises:
            WorkerError: The node is not open, or an argument is invalid. A coroutine object
                passed as work is closed.

        Threads:
            Any thread.
        """
        called = work.__name__ if type(work) is FunctionType else name_of_work(work)
        supersedes: object = None
        if exclusive:
            group, supersedes = group_of_exclusive(work, called, group)
        elif group is None:
            group = "default"
        if exit_on_error is None and (exit_on_error := self._creche_exits) is None:
            exit_on_error = exits_on_error(self)  # it is not open yet
        # As Worker() does, but without keywords, which would cost a twentieth of a worker.
        worker = _new_worker(Worker)
        told = (name or called) if type(name) is str else name
        _set_up(worker, self, work, told, group, description, exit_on_error, thread, daemon)
        is_rare = abandon_on_cancel or limiter is not None or where is not None
        # Most arguments are defaults, which need no check.
        if is_rare or type(work) not in FUNCTIONS or not type(name) is type(group) is str:
            check_new(worker, abandon_on_cancel, limiter, where)
        if stall_after is not None:
            watch_new(worker, stall_after)
        admit(self, worker, supersedes, start)
        return worker

    @overload
    async def start_worker(
        self,
        work: Callable[[], Awaitable[ResultType]] | Awaitable[ResultType],
        name: str = "",
        group: str | None = None,
        description: str = "",
        **options: Unpack[ReadyOptions],
    ) -> Worker[ResultType]: ...

    @overload
    async def start_worker(
        self,
        work: Callable[[], ResultType],
        name: str = "",
        group: str | None = None,
        description: str = "",
        **options: Unpack[ReadyOptions],
    ) -> Worker[ResultType]: ...

    async def start_worker(
        self,
        work: WorkType[Any],
        name: str = "",
        group: str | None = None,
        description: str = "",
        **options: Unpack[ReadyOptions],
    ) -> Worker[Any]:
        """Run work in a worker, and return once it is RUNNING. Use it for back-pressure.

        With ``ready=True`` it returns once the work is ready, which the work says by ``ready()`` of
        its worker, or through the argument ``task_status`` if it takes one. If this call is
        cancelled while it waits, the worker is withdrawn.

        Args:
            work: As for ``run_worker()``.
            name: A short name for messages and logs.
            group: The group within the node.
            description: A longer text for people.
            options: The other arguments of ``run_worker()``, except ``start``; and ``ready``.

        Returns:
            The worker, RUNNING or ended. A worker that its group dropped is CANCELLED.

        Raises:
            WorkerFailed: With ``ready``, as ``Worker.until_ready()`` does, and its other errors.
            DeadlockError: Called by a worker that holds the slot that the new one needs.
            WorkerError: As for ``run_worker()``.

        Checkpoint:
            Always.

        Threads:
            The node's event loop only.
        """
        return await start(self, work, name, group, description, options)

    def group(
        self, name: str, limit: int | None = None, overflow: Overflow = "enqueue"
    ) -> WorkerGroup:
        """Get a group of this node. The first call creates it.

        Args:
            name: The name.
            limit: How many workers of the group may run at once; ``None`` for any number.
            overflow: What happens to a new worker when the limit is reached. ``"enqueue"``: it
                waits. ``"restart"``: the oldest running worker is cancelled, and the new one starts
                once the slot is really free. ``"drop"``: it ends CANCELLED at once.
                ``"keep_latest"``: it waits, and replaces whatever was waiting.

        Returns:
            The group. Calls with the same name return the same object, whether they repeat the
            settings or leave them out.

        Raises:
            WorkerError: The group exists with other settings, or the settings are invalid.

        Threads:
            Any thread.
        """
        return declare(self, name, limit, overflow)

    # messages, and listening to them

    def post_message(self, message: Message) -> bool:
        """Post a message to the node's handler, ``message.handler_name``. Returns at once.

        Returns:
            Whether it will be delivered: ``False`` once the node is closed. A message from the
            thread of a worker is dropped if that is cancelled before it reaches the event loop.

        Raises:
            WorkerError: It is not a ``Message``.
            WorkerCancelled: Called by the thread of a worker that was cancelled.

        Threads:
            Any thread, and a signal handler.
        """
        return post(self, message)

    # Spelled out, as mypy would make a common base of several classes, not their union.

    @overload
    def subscribe(self, one: type[M1], /, **options: Unpack[StreamOptions]) -> Subscription[M1]: ...
    @overload
    def subscribe(
        self, one: type[M1], two: type[M2], /, **options: Unpack[StreamOptions]
    ) -> Subscription[M1 | M2]: ...
    @overload
    def subscribe(
        self, one: type[M1], two: type[M2], three: type[M3], /, **options: Unpack[StreamOptions]
    ) -> Subscription[M1 | M2 | M3]: ...
    @overload
    def subscribe(
        self, *types: type[MessageT], **options: Unpack[StreamOptions]
    ) -> Subscription[MessageT]: ...
    def subscribe(self, *types: type[Any], **options: Unpack[StreamOptions]) -> Subscription[Any]:
        """Listen to what happens on this node.

        ``async with node.subscribe(Worker.StateChanged, tree=True) as events`` opens the stream and
        ``async for event in events`` reads it: every event from then on, in order, including the
        final ones. It ends when the node has closed. There may be any number of subscriptions. Each
        has its own buffer, so a slow reader delays nobody. The buffer grows with unread changes of
        state; of ``Worker.ProgressChanged`` it holds at most one for each worker.

        A subscription does not keep the node open. But a worker of the node that reads it to its
        end does, unless it is a daemon: read in a task outside, or in a worker of a node above.

        Args:
            types: The classes of messages to get, including subclasses: ``Worker.StateChanged``,
                ``Worker.ProgressChanged``, or any ``Message`` that is posted to the node or bubbles
                up to it from a node below.
            options: ``tree``: whether to listen to all nodes below as well, including those that
                open later; a message that bubbles up is reported once. ``until``: ``"closed"``, or
                ``"closing"`` for a stream that ends when the node is shut down or cancelled.

        Returns:
            The subscription. Open it before the node is opened or while it is open.

        Raises:
            WorkerError: No class was given, or something that is not a class of messages.

        Threads:
            Any thread; the subscription is for the node's event loop only.
        """
        return Subscription(self._creche_audience, types, **options)

    # from elsewhere

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

        Once the calling worker is cancelled, the function is not run: a superseded thread has no
        late effects. The check and the call are one step on the loop. An async function that is
        already running when the worker is cancelled is cancelled too.

        Args:
            fn: The function.
            args: Its arguments.

        Returns:
            What it returned.

        Raises:
            WorkerCancelled: The calling worker or the node was cancelled.
            WorkerError: Called in the thread of the event loop, or the node is not open.
            BaseException: What the function raised.

        Threads:
            Any but the event loop's. Blocks until the function has returned.
        """
        return make_call(self, fn, args)

    @property
    def _creche_bridge(self) -> Bridge:
        return bridge_of(self)

    # what people look at

    def snapshot(self, *, stacks: bool = False) -> NodeSnapshot:
        """Return the current state of the node and of all below it, as plain data.

        Args:
            stacks: Whether to include where each worker is in the code; takes about 1 ms each.

        Returns:
            The snapshot. It keeps no worker or node alive.

        Raises:
            ImportError: ``stacks`` needs ``creche[stacks]``.

        Threads:
            Any thread; it is taken on the event loop, which is blocked meanwhile.
        """
        from .snapshot import take  # noqa: PLC0415 (most programs never take one)

        return take(self, stacks=stacks)

    # the block

    async def __aenter__(self) -> Self:
        """Open the node.

        Raises:
            WorkerError: It was opened before, or its parent is not open.
            BaseException: It could not be opened; it is closed then.
        """
        await self._creche_life.enter()
        return self

    async def __aexit__(self, kind: object, exc: BaseException | None, traceback: object) -> bool:
        """Leave the node, see the class.

        Raises:
            ExceptionGroup: What workers, handlers and the body raised, each once.
            DeadlockError: Left before a child that was entered later in the same task, which would
                wait forever. Both are closed then, as is what was entered in between.
            WorkerError: Left in another task than it was entered in; all work was cancelled and
                has ended. Or a native cancellation hit the task of a worker before its first step.
        """
        try:
            return await self._creche_nursery.end.close(exc)
        finally:
            del exc, traceback  # see errors: frames

    @property
    def is_ready(self) -> bool:
        """Whether the node takes work and all workers that were asked to be ready are ready."""
        return is_node_ready(self)

    @property
    def is_finished(self) -> bool:
        """Whether the node has been left."""
        return self._creche_nursery.state is CLOSED

    def cancel(self, reason: object = None) -> None:
        """Cancel everything below the node and the body of its block; the block ends normally.

        Work that is started on the node afterwards ends CANCELLED at once.

        Args:
            reason: See ``Worker.cancel_reason``.

        Threads:
            Any thread, and a signal handler.
        """
        told = reason if reason is not None else f"{self._creche_label()} was cancelled"
        self._creche_bridge.run(lambda: self._creche_nursery.cancel(told))

    async def shutdown(self, grace: float = 0, deadline: float | None = None) -> None:
        """End all work below the node, while its block stays open.

        The node takes no more work. Workers may go on for the grace period; the rest is cancelled
        then. Daemons and mounted nodes end as when the block is left. A worker below the node that
        calls this counts as a daemon from now on: it is cancelled when the others have ended. So
        does a handler. A call from a thread that made this call is not waited for.
        Cancelling this call ends the wait; the node stays shut down.

        Args:
            grace: The grace period, in seconds.
            deadline: Seconds after the grace period in which cancelled work has to end; ``None``
                for no deadline. Cancelled work that takes long is named in the log.

        Raises:
            ShutdownTimeout: The deadline has passed. It names what is left, which goes on.
            WorkerError: The node is not open, or grace or deadline is invalid.

        Checkpoint:
            If there is anything to wait for.

        Threads:
            The node's event loop only.
        """
        await shut_down(self, grace, deadline)

    # mounted nodes

    def attach(self, child: NodeT) -> NodeT:
        """Open a node without a block of its own, inside this one. Returns at once.

        The node opens a turn or two of the event loop later. Until then it takes work, which stays
        PENDING, and nodes can be attached to it. It stays open until ``remove()``, or until this
        node is left. Its errors, including a failure to open, are raised by this node's block.

        Args:
            child: A node that was never opened and has no parent.

        Returns:
            The node.

        Raises:
            WorkerError: This node is not open or was cancelled, or the child has a parent or was
                opened before.

        Threads:
            The node's event loop only.
        """
        Mount(self, child)
        return child

    async def mount(self, child: NodeT) -> NodeT:
        """Attach a node, and wait until it is open; cancelling this call has no effect.

        Args:
            child: As for ``attach()``.

        Returns:
            The node, open.

        Raises:
            WorkerError: As for ``attach()``.
            BaseException: What opening the node raised.

        Checkpoint:
            Always.

        Threads:
            The node's event loop only.
        """
        await Mount(self, child).settle()
        return child

    async def remove(self) -> None:
        """Cancel a mounted node and wait until it has closed. Does nothing if it already has.

        Safe to call again. Cancelling this call ends the wait; the node closes anyway.

        Raises:
            WorkerError: The node was not mounted.

        Checkpoint:
            Always.

        Threads:
            The node's event loop only.
        """
        await remove(self)
