"""The nursery of a node: a task group, what keeps it open, and how it ends.

It knows nothing of trees, names, groups or messages. Its life is a table. What keeps it open is one
number: its owner holds it once for each thing that has to end first, and lets go of it as that
ends. Leaving the block waits until the number is 0, asks the owner whether it sets anything more
in motion, and closes in the same step as the last of these checks. The wait is shielded: it is a
watcher task that sees a cancellation from outside and turns it into the ordinary ``cancel()``.

No task of a nursery raises: an error that left a task would make AnyIO cancel the group in its own
way. Failures are handed to ``fail()``, gathered, and raised once, when all is over. Should a task
die all the same (a Ctrl+C at the wrong line, memory, a fault of ours), AnyIO cancels the group;
then whatever has died without saying so is found and reaped, so that nothing waits for it.

The block is left by the task that entered it, the host. A host that has ended cannot: then whoever
notices ends the work and closes the nursery from where it is (the watcher, when its program ends;
the parent, when it is left; ``close()`` itself, called in another task).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import anyio
from anyio import lowlevel

from creche._ground.backend import get_backend
from creche._ground.bridge import Bridge
from creche._ground.errors import DeadlockError, WorkerError, get_traceback, leaves, uncancelled
from creche._ground.report import is_a, tell
from creche._ground.states import CLOSED, CLOSING, NEW, NURSERY_TRANSITIONS, OPEN

from .failures import Failures
from .held import HeldTask

try:  # AnyIO asks sniffio which library runs, if it is installed
    from sniffio import current_async_library_cvar as _library
except ImportError:  # pragma: no cover (covered where Trio, which brings sniffio, is missing)
    _library = None  # type: ignore[assignment]  # the module is absent, so there is no variable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from contextvars import Context

    from anyio.abc import TaskGroup

    from creche._ground.backend import Backend, CancelProbe, Host
    from creche._ground.states import NurseryState


_MOST_FAULTS = 3  # in the wait for the end, which goes on in spite of them


def _time_of_any_loop() -> float:
    try:
        return anyio.current_time()
    except anyio.NoEventLoopError:
        return time.monotonic()


def _monotonic(offset: float) -> float:
    return time.monotonic() + offset


class Owner(Protocol):
    """What a nursery asks of the one that it serves."""

    def _creche_on_cancel(self, reason: object, *, by_scope: bool) -> None:
        """Mark all that runs in the nursery as cancelled; called once.

        Args:
            reason: Why.
            by_scope: Whether the scope of the task group is cancelled too, and so all its tasks.
        """
        ...

    def _creche_on_idle(self) -> bool:
        """Set in motion what still has to end; tell whether there was anything."""
        ...

    def _creche_on_closed(self) -> None:
        """Take note that nothing is left, and let go of what is outside."""
        ...

    def _creche_reap(self) -> None:
        """End the workers whose tasks have died without saying so."""
        ...

    def _creche_nurseries(self, *, blocks: bool = False) -> Iterable[Nursery]:
        """Give the nurseries of all below and of itself; or of those right below with a block."""
        ...

    def _creche_label(self) -> str:
        """Name the nursery in a sentence."""
        ...


# The nursery that was opened last in a task, and is open still.
_innermost: WeakKeyDictionary[Any, Nursery] = WeakKeyDictionary()


class Nursery:
    """A task group with admission, holds, gathered failures and one cancellation."""

    __slots__ = (
        "__weakref__",
        "_backend",
        "_clock_offset",
        "_failures",
        "_group",
        "_host",
        "_idle",
        "_is_host_watched",
        "_is_misnested",
        "_killed",
        "_outer",
        "_owner",
        "_probe",
        "_watcher",
        "blocks",
        "bridge",
        "cancel_reason",
        "cancelled_class",
        "clock",
        "get_task",
        "has_open_scope",
        "held",
        "holds",
        "is_cancelled",
        "never_run",
        "state",
        "tree",
    )

    def __init__(self, owner: Owner) -> None:
        # - state is NEW until open(), CLOSED from the step in which holds and what is on its way
        #   are both 0; the bridge is open in between, and only then.
        # - is_cancelled is set before anything below is told, and the scope is cancelled after.
        # - holds counts blocks and held too; blocks <= holds.
        # - _group is there from open() to the end of the block; its tasks are the watcher, those in
        #   held, and the owner's workers.
        self._owner = owner
        self.state = NEW
        self.bridge = Bridge(self._wake)
        self.tree: object = self
        """Stands for the whole tree of nurseries: no error is reported twice in one."""
        self.is_cancelled = False
        self.cancel_reason: object = None
        self.cancelled_class: type[BaseException] = BaseException
        self.holds = 0
        """What keeps the nursery open: add 1 for it, and take it away again.

        Who may be broken off between two lines (see ``Worker._end``) changes it in the line in
        which it notes that it did, and then calls ``check_idle()``, which may be repeated.
        """
        self.blocks = 0
        """How many of the holds are blocks of child nodes, which only their own tasks can end."""
        self._idle: anyio.Event | None = None
        self._failures = Failures()
        self._killed = False
        self.held: set[HeldTask] = set()
        """The tasks that hold the nursery, but for workers, which have holds of their own."""
        self.never_run: dict[object, Coroutine[Any, Any, Any]] = {}
        """Coroutines of tasks that were called off before their first step; it takes them out."""
        self.clock: Callable[[], float] = _time_of_any_loop
        """The loop's clock, in seconds, for use on the loop; see also ``now()``."""
        self._clock_offset = 0.0
        self._backend: Backend  # these five once it is open
        self.get_task: Callable[[], object]
        """Give the current task, if it is one of the nursery's loop."""
        self.has_open_scope: Callable[[anyio.TaskHandle[Any]], bool]
        """Tell whether the current task, which is about to end, has left a cancel scope open."""
        self._host: Host
        self._probe: CancelProbe
        self._is_host_watched = False
        self._is_misnested = False  # left in the wrong order, which is told once
        self._outer: Nursery | None = None  # that was the innermost one of the host before
        self._group: TaskGroup | None = None
        self._watcher: anyio.TaskHandle[None] | None = None

    # life

    def _move(self, state: NurseryState) -> None:
        assert state in NURSERY_TRANSITIONS[self.state], f"{self.state} cannot become {state}"
        self.state = state

    async def open(self) -> None:
        """Enter the task group; the current task is the host and has to call ``close()``.

        Where this raises, ``abandon()`` is to be called.
        """
        backend = get_backend(lowlevel.current_token())
        self._backend, self._host, self._probe = (
            backend,
            backend.get_host(),
            backend.new_cancel_probe(),
        )
        self.get_task, self.has_open_scope = backend.get_task, backend.has_open_scope
        self.cancelled_class = anyio.get_cancelled_exc_class()
        group = anyio.create_task_group()
        await group.__aenter__()
        self._group = group
        self._outer = _innermost.get(self._host.task)
        _innermost[self._host.task] = self
        self._move(OPEN)
        self.clock = backend.clock
        self._clock_offset = self.clock() - time.monotonic()
        self.bridge.open(backend)
        self._watcher = self.spawn(self._watch, name=f"watcher of {self._owner._creche_label()}")
        await self._probe.until_listening()
        if self.is_cancelled:
            group.cancel_scope.cancel()

    async def abandon(self) -> None:
        """Undo what ``open()`` has done, and what was started since."""
        self.cancel("it could not be opened")
        if self._group is not None:
            await self._finish(await self._drain())
        else:
            self.never_open()

    def never_open(self) -> None:
        """Close without ever having been open, as the parent has closed."""
        self._move(CLOSED)
        self._owner._creche_on_closed()

    def refuse(self) -> None:
        """Admit no more work."""
        if self.state is OPEN:
            self._move(CLOSING)

    def check_admission(self) -> None:
        """Raise an error unless work may start.

        Raises:
            WorkerError: The nursery is not open, or another loop runs in the same thread.
        """
        if (
            self.bridge.is_gone
        ):  # pragma: no cover (in forked children, which leave before they tell)
            raise WorkerError(
                f"cannot start work on {self._owner._creche_label()}: this process was forked "
                "off from that of its event loop; open a node of its own here"
            )
        if self.state is not OPEN:
            error = WorkerError(
                f"cannot start work on {self._owner._creche_label()}, which is "
                f"{self.state.value}; "
                + ("enter its block first" if self.state is NEW else "use a node that is open")
            )
            error._is_refusal = self.state is not NEW
            raise error
        if self.get_task() is None:
            self.check_loop()

    def check_loop(self) -> None:
        """Raise an error if another event loop than the nursery's runs the calling code.

        Raises:
            WorkerError: It does: one loop is a guest of the other, in the same thread.
        """
        try:
            current = lowlevel.current_token().native_token
        except anyio.NoEventLoopError:
            return  # no loop: a callback, or a thread that asks through the bridge
        if current is not self.bridge.token.native_token:
            raise WorkerError(
                f"{self._owner._creche_label()} belongs to another event loop, which runs in "
                "the same thread; call it from a task of its own loop"
            )

    def now(self) -> float:
        """Tell the time of the loop's clock, in seconds; from any thread."""
        if self.bridge.thread == threading.get_ident() and self.state is not CLOSED:
            return self.clock()
        return _monotonic(self._clock_offset)

    # tasks

    def spawn(
        self,
        run: Callable[[], Coroutine[Any, Any, None]],
        *,
        name: str,
        context: Context | None = None,
    ) -> anyio.TaskHandle[None]:
        """Start a task, which must not raise; on the loop, while something holds the nursery.

        Raises:
            BaseException: It cannot be made; nothing was changed.
        """
        assert self._group is not None
        coro = run()
        try:
            try:
                return self._group.create_task(coro, name=name, context=context)
            except anyio.NoEventLoopError:
                # No task runs: this is a bare callback, or a call from another thread whose context
                # was captured where no loop ran, so that sniffio knows no better.
                assert _library is not None
                context = context or copy_context()
                context.run(_library.set, "asyncio")
                return self._group.create_task(coro, name=name, context=context)
        except BaseException:
            coro.close()
            raise

    def spawn_held(
        self,
        run: Callable[[], Coroutine[Any, Any, None]],
        lost: Callable[[], object],
        *,
        name: str,
        context: Context | None = None,
    ) -> HeldTask:
        """Start a task that holds the nursery until it ends.

        Args:
            run: What to run; it must not raise.
            lost: Called in place of ``run``, or of its end, if the task dies without saying so: a
                native ``Task.cancel()`` kills it before its first step.
            name: The name of the task.
            context: The context variables of the task.

        Raises:
            BaseException: It cannot be made; nothing was changed.
        """
        task = HeldTask(self, lost)
        try:
            task.hold()
            task.handle = self.spawn(partial(task.run, run), name=name, context=context)
        except BaseException:
            task.let_go()
            raise
        return task

    async def _watch(self) -> None:
        while True:
            try:
                await self._probe.listen()
            except self.cancelled_class:
                if self.state is CLOSED:
                    raise
                # A host that ended before anybody cancelled the node has left its block open. A
                # native cancellation is of all tasks then, as the program ends.
                is_deserted = self._host.is_done() and not self.is_cancelled
                if is_deserted or self.is_scope_cancelled():
                    break
                # Else it is aimed at this very task, and not obeyed; or the host is about to end.
                self._watch_host(self._stop_watching)
        self.cancel_from_outside()
        with anyio.CancelScope(shield=True):
            await self._reap()
            if is_deserted:
                await self.close_deserted()
        self._wake()  # for blocks of child nodes that are deserted

    def _stop_watching(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    def _watch_host(self, call: Callable[[], object]) -> None:
        if not self._is_host_watched:
            self._is_host_watched = True
            self._host.when_done(call)

    async def _reap(self) -> None:
        """Find the tasks that have died without saying so, and make up for what they did not do.

        AnyIO never enters tasks that a native ``Task.cancel()`` killed before their first step, and
        cannot tell: what has not begun two turns of the loop after it was spawned never will.
        """
        not_begun = [task for task in self.held if not task.has_begun]
        for _ in range(2 if not_begun else 0):
            await lowlevel.cancel_shielded_checkpoint()
        for task in list(self.held):
            if (task in not_begun and not task.has_begun) or task.is_dead():
                task.reap()
        self._owner._creche_reap()

    # what keeps it open

    def check_idle(self) -> None:
        """Wake whoever waits for the last hold, if there is none."""
        if self._idle is not None and self.holds <= self.blocks:
            self._wake()

    def _wake(self) -> None:
        if self._idle is not None:
            self._idle.set()
            self._idle = None

    async def until_idle(self, *, blocks: bool = False) -> None:
        """Wait until nothing holds the nursery and the owner sets nothing more in motion.

        Args:
            blocks: Whether to leave aside the blocks of child nodes.
        """
        while True:
            while True:
                # Made before it is looked whether to wait: a signal handler may come in between.
                if self._idle is None or self._idle.is_set():
                    self._idle = anyio.Event()
                idle = self._idle
                if self.blocks and not blocks:
                    await self._close_deserted_blocks()
                if self.holds <= (self.blocks if blocks else 0) and not self.bridge.in_flight:
                    break
                await idle.wait()
            if not self._owner._creche_on_idle():
                return

    async def _close_deserted_blocks(self) -> None:
        for nursery in self._owner._creche_nurseries(blocks=True):
            if nursery._host.is_done():
                await nursery.close_deserted()
            else:
                nursery._watch_host(self._wake)

    # failure and cancellation

    def fail(self, error: BaseException) -> None:
        """Gather an error, to be raised by ``close()``, and cancel everything."""
        try:
            if self.state is CLOSED and self._group is None:
                tell(logging.ERROR, "an error came too late for its node", error=error)
            self._failures.add(error, self.tree)
        finally:
            self.cancel(f"{self._owner._creche_label()} failed")
            del error  # Trio's cancellations hold the frames that led to them

    def cancel(self, reason: object, *, spare_host: bool = False) -> None:
        """Cancel everything below, the host's body included; on the loop only.

        Args:
            reason: Why.
            spare_host: Whether to cancel each task but the host, which is in another block by now.
        """
        if self.is_cancelled or self.state is CLOSED:
            return
        below = [
            nursery
            for nursery in self._owner._creche_nurseries()
            if not nursery.is_cancelled and nursery.state is not CLOSED
        ]
        self.bridge.steps.busy += 1
        try:
            try:
                self._cancel_all(below, reason, spare_host=spare_host)
            except BaseException:
                # What was broken off is done once more: queued workers nobody else would end.
                self._cancel_all(below, reason, spare_host=spare_host)
                raise
        finally:
            self.bridge.steps.busy -= 1

    def _cancel_all(self, below: Iterable[Nursery], reason: object, *, spare_host: bool) -> None:
        """Cancel nurseries, each before those below it; may be called again."""
        # First all that is told, then the scopes, from below: AnyIO goes down from each scope
        # level by level, and stops at one that is cancelled already.
        for nursery in below:
            nursery.is_cancelled = True
            nursery.cancel_reason = reason
            by_scope = not (spare_host and nursery is self)
            nursery._owner._creche_on_cancel(reason, by_scope=by_scope)
        for nursery in reversed(list(below)):
            if nursery._group is not None and not (spare_host and nursery is self):
                nursery._group.cancel_scope.cancel()  # else it is done on entering

    def is_scope_cancelled(self) -> bool:
        """Whether a cancel scope round the current task is cancelled: else it was native."""
        # The whole truth is dear, and in nearly all cases there was nothing to be heard.
        return self._probe.has_heard() and anyio.current_effective_deadline() == -math.inf

    def _is_group_cancelled(self) -> bool:
        return self._group is not None and self._group.cancel_scope.cancel_called

    def is_in_eager_task(self) -> bool:
        """Whether the current task was begun within the step of another."""
        return self._backend.is_in_eager_task()

    def cancel_from_outside(self) -> None:
        """Turn a cancellation that reached a task of the nursery from outside into ``cancel()``."""
        if not self.is_cancelled:
            # Did nobody here do that? Then AnyIO did, for a task that was killed.
            self._killed = self._is_group_cancelled() and not self._host.is_done()
        self.cancel("cancelled from outside")

    # the end

    async def close(self, error: BaseException | None) -> bool:
        """Wait until nothing is left, leave the task group and raise what was gathered.

        Args:
            error: What left the body of the block, if anything.

        Returns:
            Whether to swallow that error: it was the nursery's own cancellation.

        Raises:
            BaseExceptionGroup: The failures.
            BaseException: The one that goes bare, or a cancellation from outside.
            WorkerError: It is closed in another task than it was opened in, or before another that
                was opened later; all has ended all the same.
        """
        where = self._owner._creche_label()
        if self.state is NEW or self.bridge.is_elsewhere:
            told = "without having been entered" if self.state is NEW else "outside its event loop"
            raise WorkerError(f"{where} is left {told}; use async with")
        if self.state is CLOSED:  # by whoever found that its block was left too late, or never
            return self._failures.conclude(where, error, error) if self._failures else False
        cancellation: BaseException | None = None
        misuse: WorkerError | None = None
        leaving: BaseException | None = None
        try:
            if error is not None:
                failure = uncancelled(error, lambda leaf: is_a(leaf, self.cancelled_class))
                if failure is not None:
                    self._try(partial(self._fail_in_body, failure))
                else:
                    cancellation = error
            if not self._host.is_current():
                misuse = WorkerError(
                    f"{where} is left in another task than the one that entered it, so all its "
                    "work was cancelled; enter and leave its block in the same task"
                )
                self.cancel("left in another task", spare_host=not self._host.is_done())
                await self._close_inner()  # it would wait for what this very task has entered
                await self._drain()
                self._end_outside()
            else:
                misuse, leaving = await self._leave(cancellation)
            if misuse is not None:
                if self._failures:
                    self._failures.add(misuse, self.tree)
                leaving = misuse
            elif self._killed and leaving is None:
                leaving = WorkerError(
                    f"a native Task.cancel() hit a task of {where} before its first step, so "
                    "AnyIO cancelled them all; use Worker.cancel() instead"
                )
            return self._failures.conclude(where, error, leaving)
        finally:
            del error, cancellation, misuse, leaving  # they hold this frame

    async def _leave(
        self, cancellation: BaseException | None
    ) -> tuple[WorkerError | None, BaseException | None]:
        """Leave in the host.

        Args:
            cancellation: What left the body, if it was one.

        Returns:
            What is wrong with the order of the blocks, if anything, and the cancellation that goes
            on its way.
        """
        late: BaseException | None = None
        leaving: BaseException | None = None
        try:
            is_others = cancellation is not None and not self._is_group_cancelled()
            if cancellation is not None:
                self._try(self.cancel_from_outside)
            misuse = await self._close_inner()
            late = await self._drain()
            leaving = await self._finish(cancellation or late)
            if is_others and leaving is None:
                # Trio leaves it to the next checkpoint. AnyIO loses a native one now and then, as
                # it counts the cancellations of single tasks among those of the group.
                leaving = cancellation
            return misuse, leaving
        finally:
            del cancellation, late, leaving  # as in close()

    def _fail_in_body(self, failure: BaseException) -> None:
        try:
            self._failures.add(failure, self.tree)
        finally:
            spare_host = not (self._host.is_current() or self._host.is_done())
            self.cancel(f"{self._owner._creche_label()} failed", spare_host=spare_host)
            del failure  # as in fail()

    async def _close_inner(self) -> WorkerError | None:
        """Close what this task has opened later and not left: neither could be left any more.

        In another task than the host that is all that it has opened below, and what is in between.
        """
        inner = _innermost.get(self.get_task())
        if inner is self:
            return None
        below = {id(nursery) for nursery in self._owner._creche_nurseries()}
        later: list[Nursery] = []
        while inner is not None and inner is not self:
            later.append(inner)
            inner = inner._outer
        while inner is None and later and id(later[-1]) not in below:
            later.pop()
        self._is_misnested = True
        names: list[str] = []
        kind = WorkerError
        for inner in later:
            names.append(inner._owner._creche_label())
            if id(inner) in below:
                kind = DeadlockError
            inner._is_misnested = True
            # Not by its scope, which the host may never leave any more.
            inner.cancel(f"{self._owner._creche_label()} is left before it", spare_host=True)
            try:
                await inner.close(None)
            except BaseException as error:  # noqa: BLE001 (raised with the failures of this block)
                if is_a(error, self.cancelled_class):
                    self.cancel_from_outside()
                else:
                    self.fail(error)
        return kind(
            f"{self._owner._creche_label()} is left before {' and '.join(names)}, entered "
            "later in the same task, and would wait for it for ever; leave blocks in the reverse "
            "order"
        )

    async def _finish(self, cancellation: BaseException | None) -> BaseException | None:
        """Leave the task group, now that nothing is left in it; see ``_leave_group()``."""
        try:
            return await self._leave_group(cancellation)
        finally:
            self._twice(self._take_leave)
            del cancellation

    def _end_outside(self) -> None:
        """End where the host cannot leave the task group, nor anybody else."""
        self._twice(self._stop_watching)
        self._twice(self._take_leave)

    def _take_leave(self) -> None:
        """Be known to nobody any more; may be called again."""
        for coro in self.never_run.values():
            coro.close()  # killed natively: nobody awaited it
        self.never_run.clear()
        self._unlink()
        self._owner._creche_on_closed()

    def _unlink(self) -> None:
        """Take it out of those that are open in its host."""
        inner = _innermost.get(self._host.task)
        if inner is self:
            if self._outer is None:
                del _innermost[self._host.task]
            else:
                _innermost[self._host.task] = self._outer
        while inner is not None and inner is not self:
            if inner._outer is self:
                inner._outer = self._outer
            inner = inner._outer
        self._outer = None

    async def _leave_group(self, cancellation: BaseException | None) -> BaseException | None:
        """Leave the task group, now empty, with a cancellation if there is one.

        Returns:
            The cancellation that goes on its way, as it was not the group's own.
        """
        assert self._group is not None
        self._twice(self._stop_watching)
        try:
            if cancellation is None:  # the wait was shielded, so it may be due
                await lowlevel.checkpoint_if_cancelled()
        except self.cancelled_class as exc:
            cancellation = exc
        except KeyboardInterrupt as exc:  # Trio delivers it here, if it is due
            self._failures.add(exc, self.tree)
        kind = type(cancellation) if cancellation is not None else None
        traceback = get_traceback(cancellation) if cancellation is not None else None
        try:
            swallowed = await self._group.__aexit__(kind, cancellation, traceback)
        except self.cancelled_class as exc:
            return exc
        except BaseException as exc:  # noqa: BLE001 (gathered, and raised in the end)
            self._take_stray(exc)
            return None
        else:
            return None if swallowed else cancellation
        finally:
            self._group = self._watcher = None
            del cancellation, traceback

    def _take_stray(self, error: BaseException) -> None:
        """Gather what left a task of the nursery all the same.

        Work that leaves a cancel scope or a task group open makes AnyIO, or Trio, do that; the
        worker has failed for it by then.
        """
        try:
            self._killed = False  # this is why
            for leaf in leaves(error):
                if is_a(leaf, RuntimeError) and self._is_misnested:
                    continue  # what AnyIO or Trio says to the same
                if not is_a(leaf, self.cancelled_class):
                    self._failures.add(leaf, self.tree)
        finally:
            del error

    def _try(self, step: Callable[[], object]) -> None:
        """Take a step of the end; if it fails, that is raised in the end, which goes on."""
        try:
            step()
        except BaseException as fault:  # noqa: BLE001 (see above)
            self.fail(fault)
            del fault

    def _twice(self, step: Callable[[], object]) -> None:
        """Take a step of the end once more if it is broken off, which is raised in the end."""
        try:
            step()
        except BaseException as fault:  # noqa: BLE001 (see above)
            self._failures.add(fault, self.tree)
            del fault
            step()

    async def _drain(self) -> BaseException | None:
        """Wait until nothing is left and close; return what arrived natively in the meantime."""
        late: BaseException | None = None
        faults = 0
        while True:
            try:
                with anyio.CancelScope(shield=True):
                    if self.is_cancelled:
                        await self._reap()
                    await self.until_idle()
                if self._shut():
                    return late
            except self.cancelled_class as exc:
                late = late or exc
                self._try(self.cancel_from_outside)
            except GeneratorExit:
                raise  # the program has ended, and with it this task
            except BaseException as exc:  # a Ctrl+C, or a fault of ours
                self.fail(exc)
                faults += not isinstance(exc, KeyboardInterrupt)
                if faults > _MOST_FAULTS:
                    raise

    def _shut(self) -> bool:
        """Close to all that may come, unless something is on its way; may be called again."""
        if not self.bridge.close():
            return False
        if self.state is not CLOSED:
            self._move(CLOSED)
        self.clock = partial(_monotonic, self._clock_offset)  # the loop may go
        return True

    async def close_deserted(self) -> None:
        """End all work and close, where the host has ended and so cannot leave the block."""
        if self.state is CLOSED:
            return
        where = self._owner._creche_label()
        tell(logging.WARNING, "%s was entered and never left; its work is cancelled", where)
        self.cancel(f"{where} was never left")
        await self._reap()
        while True:
            await self.until_idle()
            if self.state is CLOSED or self._shut():
                break
        self._end_outside()
