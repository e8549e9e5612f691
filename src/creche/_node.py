"""A node: a name in a tree, with a nursery, a mailbox and groups. All the calls that users make."""

from __future__ import annotations

import inspect
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import anyio

from ._errors import WorkerCancelled, WorkerError, uncancelled
from ._group import Overflow, WorkerGroup, check_limit, check_overflow
from ._mailbox import Mailbox
from ._manager import WorkerManager
from ._message import Message
from ._nursery import Life, Nursery
from ._worker import ResultType, Worker, WorkType, active_worker, wait_for

if TYPE_CHECKING:
    import sys
    from collections.abc import Awaitable, Callable, Collection, Iterator
    from types import TracebackType

    from anyio import CapacityLimiter

    from ._group import RunOptions, StartOptions
    from ._state import WorkerState
    from ._waiting import Party

    if sys.version_info >= (3, 11):
        from typing import Self, TypeVarTuple, Unpack
    else:
        from typing_extensions import Self, TypeVarTuple, Unpack

    PosArgs = TypeVarTuple("PosArgs")

T = TypeVar("T")
NodeType = TypeVar("NodeType", bound="Node")


class Node:
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
            raise WorkerError(f"parent must be a Node, not {parent!r:.100}")
        self.name: str = name or type(self).__name__
        """The name of the node."""
        self._parent = parent
        self._children: dict[Node, None] = {}
        self._nursery = Nursery(self)
        self._mailbox = Mailbox(self, self._nursery)
        self._groups: dict[str, WorkerGroup] = {}
        self._declared: dict[str, tuple[int | None, Overflow]] = {}
        self._waiting: set[Party] = set()
        self._leave: anyio.Event | None = None  # set to tell a mounted node to leave
        self._gone: anyio.Event | None = None  # set once it has left
        self._opener: Worker[Any] | None = None
        self._manager = WorkerManager(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r} {self._nursery.life.name}>"

    # the tree

    @property
    def parent(self) -> Node | None:
        """The node above, ``None`` for a root."""
        return self._parent

    @property
    def children(self) -> tuple[Node, ...]:
        """The nodes right below that are open."""
        return tuple(child for child in self._children if child._nursery.life is not Life.NEW)

    @property
    def root(self) -> Node:
        """The topmost node of the tree."""
        return self if self._parent is None else self._parent.root

    @property
    def path(self) -> str:
        """The names of the nodes from the root to this one, joined by slashes."""
        return self.name if self._parent is None else f"{self._parent.path}/{self.name}"

    @property
    def workers(self) -> WorkerManager:
        """The manager of all workers of the tree."""
        return self.root._manager

    def _below(self) -> Iterator[Node]:
        yield self
        for child in list(self._children):
            yield from child._below()

    def _spoken(self) -> str:
        return f"node {self.path!r}"

    # the block

    async def __aenter__(self) -> Self:
        """Open the node.

        Raises:
            WorkerError: It was opened before, or its parent is not open.
        """
        parent = self._parent
        if self._nursery.life is not Life.NEW:
            raise WorkerError(
                f"{self._spoken()} was entered before; make a new Node for each block"
            )
        if parent is not None and parent._nursery.life is not Life.OPEN:
            raise WorkerError(
                f"cannot enter {self._spoken()}: its parent is {parent._nursery.life.value}"
            )
        if parent is not None and parent._nursery.bridge.is_foreign:
            raise WorkerError(
                f"cannot enter {self._spoken()} in another thread than its parent's event loop"
            )
        await self._nursery.open()
        if parent is not None:
            self._nursery.tree = parent._nursery.tree
            parent._children[self] = None
            if self._leave is None:
                parent._nursery.blocks += 1
                parent._nursery.hold()
            if parent._nursery.is_cancelled:
                self._nursery.cancel(parent._nursery.cancel_reason)
        opener = active_worker.get(None)
        if opener is not None and opener._is_acting():
            self._opener = opener
            opener._opened += (self,)
            opener._node._waiting.add(opener)
        self._mailbox.open(copy_context())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Leave the node, see the class.

        Raises:
            ExceptionGroup: What workers, handlers and the body raised, each once.
            WorkerError: Left in another task than it was entered in; or a native cancellation hit
                the task of a worker before its first step.
        """
        try:
            return await self._nursery.close(exc)
        finally:
            if self._nursery.life is Life.CLOSED:
                self._detach()
            del exc, traceback

    def _detach(self) -> None:
        parent, opener = self._parent, self._opener
        if parent is not None:
            parent._children.pop(self, None)
            if self._leave is None:
                parent._nursery.blocks -= 1
                parent._nursery.release()
        if opener is not None:
            opener._opened = tuple(node for node in opener._opened if node is not self)
            if not opener._opened:
                opener._node._waiting.discard(opener)
            self._opener = None

    def cancel(self, reason: object = None) -> None:
        """Cancel all that runs below the node, the body of its block too; the block ends normally.

        Work that is started on the node afterwards ends CANCELLED at once.

        Args:
            reason: See ``Worker.cancel_reason``.

        Threads:
            Any thread.
        """
        told = reason if reason is not None else f"{self._spoken()} was cancelled"
        self._nursery.bridge.run(lambda: self._nursery.cancel(told))

    async def shutdown(self, grace: float = 0) -> None:
        """End all work below the node, while its block stays open.

        No more work is admitted. What there is may go on for the time of grace and is cancelled
        then; daemons and mounted nodes as when the block is left. A worker below the node that
        calls this counts as a daemon from here on: it is cancelled when the others have ended.
        Cancelling this call ends the wait; the node stays shut.

        Args:
            grace: Seconds.

        Raises:
            WorkerError: The node is not open; or grace is negative.

        Checkpoint:
            If there is anything to wait for.

        Threads:
            The node's event loop only.
        """
        if not grace >= 0:
            raise WorkerError(f"grace must be 0 seconds or more, not {grace!r}")
        if self._nursery.life is Life.NEW or self._nursery.bridge.is_foreign:
            raise WorkerError(
                f"shutdown() is for an open node and its own event loop; {self._spoken()} is "
                f"{self._nursery.life.value}"
            )
        for node in self._below():
            node._nursery.refuse()
        caller = active_worker.get(None)
        if caller is not None and caller._is_acting() and caller._node in list(self._below()):
            caller._let_go()
        with anyio.move_on_after(grace):
            await self._settle()
        for node in list(self._below()):
            node._mailbox.hurry()
            if node._leave is not None and node is not self:
                node._nursery.cancel("shut down")
            for group in list(node._groups.values()):
                group._cancel_all("shut down")
        await self._settle()

    async def _settle(self) -> None:
        """Wait until nothing is left below but the blocks of nodes."""
        for node in reversed(list(self._below())):
            if node._nursery.life not in (Life.NEW, Life.CLOSED):
                await node._nursery.quiet(blocks=True)

    # mounted nodes

    async def mount(self, child: NodeType) -> NodeType:
        """Open a node that has no block of its own; it lives in this one's nursery.

        It lives until ``remove()``, or until this node is left. Its errors are raised by this
        node's block. Cancelling this call has no effect: it takes no time.

        Args:
            child: A node that was not opened yet, without a parent.

        Returns:
            The node, open.

        Raises:
            WorkerError: This node is not open or was cancelled, or the child has a parent or was
                opened before.

        Checkpoint:
            Always.

        Threads:
            The node's event loop only.
        """
        self._nursery.check_admission()
        if self._nursery.is_cancelled or self._nursery.bridge.is_foreign:
            raise WorkerError(f"cannot mount on {self._spoken()}: cancelled, or in another thread")
        if child._nursery.life is not Life.NEW or child._parent not in (None, self):
            raise WorkerError(
                f"cannot mount {child._spoken()} on {self._spoken()}: it was opened before, or has "
                "a parent already; mount a new Node"
            )
        if child._leave is not None:
            raise WorkerError(f"{child._spoken()} is being mounted already")
        child._parent = self
        child._leave, child._gone = anyio.Event(), anyio.Event()
        ready = anyio.Event()
        self._nursery.spawn_held(
            partial(self._house, child, ready),
            partial(self._unhouse, child, ready),
            name=child.path,
        )
        with anyio.CancelScope(shield=True):
            await ready.wait()
        return child

    async def _house(self, child: Node, ready: anyio.Event) -> None:
        leave = cast("anyio.Event", child._leave)
        try:
            async with child:
                ready.set()
                self._nursery.release()  # a mounted node keeps nothing open until told to leave
                await leave.wait()
        except BaseException as error:  # noqa: BLE001 (nothing may leave a task of the nursery)
            failure = uncancelled(
                error, lambda leaf: isinstance(leaf, self._nursery.cancelled_class)
            )
            if failure is not None:
                for each in getattr(failure, "exceptions", (failure,)):
                    self._nursery.fail(each)
        finally:
            if ready.is_set() and not leave.is_set():
                self._nursery.hold()
            self._unhouse(child, ready)

    def _unhouse(self, child: Node, ready: anyio.Event) -> None:
        cast("anyio.Event", child._gone).set()
        ready.set()

    def _tell_to_leave(self) -> bool:
        """Tell a mounted node to leave; whether that was news to it."""
        if self._leave is None or self._leave.is_set() or self._parent is None:
            return False
        self._leave.set()
        self._parent._nursery.hold()
        return True

    async def remove(self) -> None:
        """Cancel a mounted node and wait until it has left.

        May be called again. Cancelling this call ends the wait; the node leaves all the same.

        Raises:
            WorkerError: The node was not mounted.

        Checkpoint:
            Always.

        Threads:
            The node's event loop only.
        """
        if self._gone is None:
            raise WorkerError(f"{self._spoken()} was not mounted; leave its block instead")
        self._tell_to_leave()
        self.cancel(f"{self._spoken()} was removed")
        await self._gone.wait()

    # what the nursery asks

    def _on_cancel(self, reason: object) -> None:
        for group in list(self._groups.values()):
            group._cancel_with_nursery(reason)
        for child in list(self._children):
            child._nursery.cancel(reason)

    def _on_quiet(self) -> bool:
        told = [child._tell_to_leave() for child in list(self._children)]
        if any(told):
            return True
        rest = [worker for group in list(self._groups.values()) for worker in group]
        daemons = [worker for worker in rest if worker._started]
        for worker in daemons:
            worker._hold()  # before it is cancelled, for one that is queued ends at once
            worker.cancel("only daemons were left")
        if daemons:
            return True
        for child in self._children:  # what is left of them was never opened
            rest += [worker for group in child._groups.values() for worker in group]
        for worker in rest:
            worker._disown()
        return bool(rest)

    @property
    def is_finished(self) -> bool:
        """Whether the node has been left."""
        return self._nursery.life is Life.CLOSED

    def _needs_all(self) -> Collection[Party]:
        held = [party for party in self._waiting if not cast("Worker[Any]", party).daemon]
        return (*held, *self._children)

    def _needs_one(self) -> Collection[Party]:
        return ()

    def _is_opened_by_a_worker(self) -> bool:
        if self._opener is not None:
            return True
        return self._parent is not None and self._parent._is_opened_by_a_worker()

    # work

    @overload
    def run_worker(
        self,
        work: Callable[[], Worker[ResultType]],
        name: str = "",
        group: str | None = None,
        description: str = "",
        **options: Unpack[StartOptions],
    ) -> Worker[Worker[ResultType]]: ...

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
        called = getattr(getattr(work, "func", work), "__name__", "")
        worker = Worker[Any](
            self,
            work,
            name=name or called,
            group=group if group is not None else (called if exclusive and called else "default"),
            description=description,
            exit_on_error=exit_on_error,
            thread=thread,
            daemon=daemon,
            abandon_on_cancel=abandon_on_cancel,
            limiter=limiter,
        )
        self._take_in(worker, start=start, exclusive=exclusive)
        return worker

    @overload
    async def start_worker(
        self,
        work: Callable[[], Worker[ResultType]],
        name: str = "",
        group: str | None = None,
        description: str = "",
        **options: Unpack[RunOptions],
    ) -> Worker[Worker[ResultType]]: ...

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

    def _take_in(self, worker: Worker[Any], *, start: bool, exclusive: bool) -> None:
        def take_in() -> None:
            if worker._place is not None:
                raise WorkerError(f"{worker._spoken()} was added before")
            try:
                if start or self._nursery.life is not Life.NEW:
                    self._nursery.check_admission()
            except WorkerError:
                worker.cancel("refused")
                raise
            if self._parent is not None:
                self._parent._children[self] = None  # not opened yet, but it holds something
            group = self._groups.get(worker.group)
            if group is None:
                group = self._groups[worker.group] = WorkerGroup(self, worker.group)
            group._add(worker, exclusive=exclusive)
            if start:
                group._start(worker)

        self._nursery.bridge.call(take_in)

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

        def declare() -> WorkerGroup:
            settings = (check_limit(limit), check_overflow(overflow))
            group = self._groups.get(name)
            if group is None:
                group = self._groups[name] = WorkerGroup(self, name)
            if name not in self._declared:
                self._declared[name] = settings
                group.overflow = settings[1]
                group.limit = settings[0]
            elif settings not in ((None, "enqueue"), self._declared[name]):
                raise WorkerError(
                    f"group {name!r} of {self._spoken()} was made with limit and overflow "
                    f"{self._declared[name]}, not {settings}; ask for it by name alone, and set "
                    "group.limit to change it"
                )
            return group

        return cast("WorkerGroup", self._nursery.bridge.call(declare))

    def _forget(self, group: WorkerGroup) -> None:
        if group.name not in self._declared:
            self._groups.pop(group.name, None)

    # messages

    def post_message(self, message: Message) -> bool:
        """Hand a message to the node's handler, ``message.handler_name``, soon and in order.

        Returns:
            Whether it will be delivered: ``False`` once the node is closed.

        Raises:
            WorkerError: It is no ``Message``.

        Threads:
            Any thread.
        """
        if not isinstance(message, Message):
            raise WorkerError(f"post_message() takes a Message, not {message!r:.100}")
        if self._nursery.bridge.is_foreign:
            return self._nursery.bridge.post(lambda: self._mailbox.post(message))
        return self._mailbox.post(message)

    def _announce(self, worker: Worker[Any], state: WorkerState) -> None:
        if getattr(self, Worker.StateChanged.handler_name, None) is not None:
            self._mailbox.post(Worker.StateChanged(worker, state))

    def _pass_on(self, message: Message) -> None:
        if self._parent is not None:
            self._parent.post_message(message)

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
        caller = active_worker.get(None)
        future: Future[Any] = Future()
        if not self._nursery.bridge.is_foreign:
            raise WorkerError(
                "call_from_thread() is for other threads than that of the node's event loop, and "
                f"for open nodes ({self._spoken()} is {self._nursery.life.value}); on the loop, "
                "call the function"
            )
        if not self._nursery.bridge.post(lambda: _begin_call(self, caller, fn, args, future)):
            raise WorkerError(
                f"{self._spoken()} is {self._nursery.life.value}; nothing can be called"
            )
        return future.result()


def _begin_call(
    node: Node,
    caller: Worker[Any] | None,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    future: Future[Any],
) -> None:
    """Make the call of a thread, on the loop; async functions go on in a task."""
    try:
        _check_call(node, caller)
        value = fn(*args)
    except BaseException as error:  # noqa: BLE001 (it belongs to the calling thread)
        future.set_exception(error)
        return
    if not inspect.isawaitable(value) or isinstance(value, Worker):
        future.set_result(value)
        return

    def lost() -> None:
        if inspect.iscoroutine(value):
            value.close()
        future.set_exception(WorkerCancelled("a call from a thread was cancelled natively"))

    async def go_on() -> None:
        try:
            await _go_on(node, caller, value, future)
        finally:
            if caller is not None:
                caller._hops = tuple(hop for hop in caller._hops if hop is not handle)

    handle = node._nursery.spawn_held(
        go_on,
        lost,
        name=f"{node.path}: call from a thread",
        context=copy_context(),
    )
    if caller is not None:
        caller._hops += (handle,)


def _check_call(node: Node, caller: Worker[Any] | None) -> None:
    if caller is not None:
        caller.check_cancelled()
    if node._nursery.is_cancelled:
        raise WorkerCancelled(f"{node._spoken()} was cancelled")


async def _go_on(
    node: Node, caller: Worker[Any] | None, awaitable: Awaitable[Any], future: Future[Any]
) -> None:
    try:
        try:
            _check_call(node, caller)
        except WorkerCancelled:
            if inspect.iscoroutine(awaitable):
                awaitable.close()
            raise
        value = await awaitable
    except node._nursery.cancelled_class:
        told = (
            caller._tell_cancellation() if caller is not None else f"{node._spoken()} was cancelled"
        )
        future.set_exception(WorkerCancelled(told))
    except BaseException as error:  # noqa: BLE001 (it belongs to the calling thread)
        future.set_exception(error)
    else:
        future.set_result(value)
