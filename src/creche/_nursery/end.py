"""The end of a nursery: its block is left, or closed from outside if no task can leave it.

A block is left by the task that entered it, the host, in reverse order (``nesting``). It waits
until nothing keeps the nursery open, leaves the task group and raises what was gathered. The wait
is shielded, so the block outlives everything in it.

A host that has ended cannot leave its block. Then the work is cancelled, and the nursery is closed
by the first to notice: the watcher when the program ends, the parent when its own block is left, or
``close()`` when it is called in another task.

Each step can be repeated. If one is interrupted (out of memory, a Ctrl+C at the wrong line), it is
repeated, the remaining steps follow, and the fault is raised with the other errors.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from anyio import lowlevel

from creche._ground.errors import DeadlockError, WorkerError, leaves, uncancelled
from creche._ground.report import is_a, tell
from creche._ground.states import CLOSED, NEW

from .failures import Leaving

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .nursery import Nursery


_MOST_FAULTS = 3  # while waiting for the end, which continues despite them


class End:
    """All ways in which one nursery can end."""

    __slots__ = ("_is_deserted", "_nursery")

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        self._is_deserted = False  # and that was told

    def close(self, error: BaseException | None) -> Coroutine[Any, Any, bool]:
        """Wait until nothing is left, leave the task group and raise what was gathered.

        Args:
            error: What left the body of the block, if anything.

        Returns:
            Whether to swallow that error: it was the nursery's own cancellation.

        Raises:
            BaseExceptionGroup: The failures.
            BaseException: The one that goes bare, or a cancellation from outside.
            WorkerError: It is closed in another task than it was opened in, or before another that
                was opened later; everything has ended anyway.
        """
        nursery = self._nursery
        where = nursery.owner.label  # rarely needed, and as long as the tree is deep
        is_new = nursery.task_group is None and nursery.state is not CLOSED
        if is_new or nursery.bridge.is_elsewhere:
            told = "without having been entered" if is_new else "outside its event loop"
            raise WorkerError(f"{where()} is left {told}; use async with")
        return self._close(Leaving(error))

    async def _close(self, leaving: Leaving) -> bool:
        nursery = self._nursery
        with leaving:
            if nursery.state is not CLOSED:
                await self._end(leaving)
            elif nursery.failures:  # its block was left too late, or never
                leaving.error = leaving.body
            else:
                return False
            return nursery.failures.conclude(nursery.owner.label, leaving)

    async def _end(self, leaving: Leaving) -> None:
        nursery = self._nursery
        if leaving.body is not None:
            leaving.cancellation = self._take_in_surely(leaving.body)
        if nursery.watcher.host.is_current():
            await self._leave(leaving)
        else:
            await self._leave_elsewhere(leaving)
        if leaving.misuse is not None:
            if nursery.failures:
                nursery.failures.add(leaving.misuse, nursery.tree)
            leaving.error = leaving.misuse
        elif nursery.is_killed and leaving.error is None:
            leaving.error = WorkerError(
                f"a native Task.cancel() hit a task of {nursery.owner.label()} before its first "
                "step, so AnyIO cancelled them all; use Worker.cancel() instead"
            )

    async def abandon(self) -> None:
        """Undo ``Nursery.open()``, and end what was started since."""
        nursery = self._nursery
        nursery.cancel("it could not be opened")
        if nursery.task_group is not None:
            leaving = Leaving(None)
            with leaving:
                await self._drain(leaving)
                await self._finish(leaving)
        else:
            self.unopened()

    def unopened(self) -> None:
        """Close a nursery that was never open: no task can open it any more."""
        nursery = self._nursery
        if nursery.state is not NEW:
            nursery.cancel(f"{nursery.owner.label()} could not be opened")
            for task in list(nursery.held):
                task.reap()
        nursery._move(CLOSED)
        nursery.shut()
        nursery.owner.on_closed()

    async def close_deserted(self) -> None:
        """End all work and close, because the host has ended and cannot leave the block."""
        nursery = self._nursery
        if nursery.state is CLOSED:
            return
        where = nursery.owner.label()
        if not self._is_deserted:  # or another has found it too, and is at it
            self._is_deserted = True
            tell(logging.WARNING, "%s was entered and never left; its work is cancelled", where)
        nursery.cancel(f"{where} was never left")
        await nursery.reap()
        while True:
            await nursery.until_idle()
            if nursery.state is CLOSED or nursery.shut():
                break
        self._end_outside()

    # what left the body

    def _take_in_surely(self, error: BaseException) -> BaseException | None:
        """Gather what left the body; if that is interrupted, repeat it."""
        try:
            return self._take_in(error)
        except BaseException as fault:  # noqa: BLE001 (raised in the end)
            self._nursery.fail(fault)
            return self._take_in(error)

    def _take_in(self, error: BaseException) -> BaseException | None:
        """Gather what left the body, or return it if it is only a cancellation."""
        failure = uncancelled(error, lambda leaf: is_a(leaf, self._nursery.cancelled_class))
        if failure is None:
            return error
        self._try(partial(self._fail_in_body, failure))
        return None

    def _fail_in_body(self, failure: BaseException) -> None:
        nursery = self._nursery
        try:
            nursery.failures.add(failure, nursery.tree)
        finally:
            host = nursery.watcher.host
            spare_host = not (host.is_current() or host.is_done())
            nursery.cancel(f"{nursery.owner.label()} failed", spare_host=spare_host)

    # in the host, and elsewhere

    async def _leave(self, leaving: Leaving) -> None:
        """Leave the block in the host."""
        nursery = self._nursery
        is_others = leaving.cancellation is not None and not nursery.is_group_cancelled()
        if leaving.cancellation is not None:
            self._try(nursery.cancel_from_outside)
        leaving.misuse = await self._close_inner()
        await self._drain(leaving)
        await self._finish(leaving)
        if is_others and leaving.error is None:
            # Trio leaves it to the next checkpoint. AnyIO sometimes loses a native one, as it
            # counts the cancellations of single tasks among those of the group.
            leaving.error = leaving.cancellation

    async def _leave_elsewhere(self, leaving: Leaving) -> None:
        """End the nursery in a task other than the host, which is an error."""
        nursery = self._nursery
        nursery.cancel("left in another task", spare_host=not nursery.watcher.host.is_done())
        await self._close_inner()  # it would wait for what this very task has entered
        await self._drain(leaving)
        self._end_outside()
        leaving.misuse = WorkerError(
            f"{nursery.owner.label()} is left in another task than the one that entered "
            "it, so all its work was cancelled; enter and leave its block in the same task"
        )

    async def _close_inner(self) -> WorkerError | None:
        """Close what this task opened later and has not left; return the error for that."""
        nursery = self._nursery
        nesting, task = nursery.nesting, nursery.get_task()
        if nesting.is_innermost(task):
            return None
        nesting.is_broken = True
        below = {id(other) for other in nursery.owner.nurseries()}
        where, names, kind = nursery.owner.label(), list[str](), WorkerError
        for later in nesting.find_later(task, below):
            names.append(later.nursery.owner.label())
            if id(later.nursery) in below:
                kind = DeadlockError
            later.is_broken = True
            await self._close_later(later.nursery)
        return kind(
            f"{where} is left before {' and '.join(names)}, entered later in the same task, and "
            "would wait for it for ever; leave blocks in the reverse order"
        )

    async def _close_later(self, inner: Nursery) -> None:
        """Close another nursery, which should have been left before this one."""
        nursery = self._nursery
        # Not through its scope, which the host may never leave.
        inner.cancel(f"{nursery.owner.label()} is left before it", spare_host=True)
        try:
            await inner.end.close(None)
        except BaseException as error:  # noqa: BLE001 (raised with the failures of this block)
            if is_a(error, nursery.cancelled_class):
                nursery.cancel_from_outside()
            else:
                nursery.fail(error)

    # the steps of the end

    async def _drain(self, leaving: Leaving) -> None:
        """Wait until nothing is left and close; keep a native cancellation."""
        nursery = self._nursery
        faults = 0
        while True:
            try:
                with anyio.CancelScope(shield=True):
                    if nursery.is_cancelled:
                        await nursery.reap()
                    await nursery.until_idle()
                if nursery.shut():
                    return
            except nursery.cancelled_class as exc:
                leaving.cancellation = leaving.cancellation or exc
                self._try(nursery.cancel_from_outside)
            except GeneratorExit:
                raise  # the program has ended, and with it this task
            except BaseException as exc:  # a Ctrl+C, or a fault of ours
                nursery.fail(exc)
                faults += not isinstance(exc, KeyboardInterrupt)
                if faults > _MOST_FAULTS:
                    raise

    async def _finish(self, leaving: Leaving) -> None:
        """Leave the task group, now that nothing is left in it; see ``_leave_group()``."""
        try:
            await self._leave_group(leaving)
        finally:
            self._twice(self._take_leave)

    def _end_outside(self) -> None:
        """End a nursery whose task group cannot be left by any task."""
        self._twice(self._stop_tasks)
        self._twice(self._take_leave)

    def _stop_tasks(self) -> None:
        """End the tasks that belong to the nursery itself; safe to call again."""
        self._nursery.watcher.stop()
        self._nursery.owner.on_empty()

    def _take_leave(self) -> None:
        """Leave the tree and the chain of blocks; safe to call again."""
        nursery = self._nursery
        nursery.nesting.leave(nursery.watcher.host.task)
        nursery.owner.on_closed()

    async def _leave_group(self, leaving: Leaving) -> None:
        """Leave the task group, now empty, with a cancellation if there is one.

        A cancellation that the group does not swallow is not its own, so it leaves the block.
        """
        nursery = self._nursery
        assert nursery.task_group is not None
        self._twice(self._stop_tasks)
        try:
            if leaving.cancellation is None:  # the wait was shielded, so it may be due
                await lowlevel.checkpoint_if_cancelled()
        except nursery.cancelled_class as exc:
            leaving.cancellation = exc
        except KeyboardInterrupt as exc:  # Trio delivers it here, if it is due
            nursery.failures.add(exc, nursery.tree)
        try:
            if not await nursery.task_group.__aexit__(*leaving.exc_info()):
                leaving.error = leaving.cancellation
        except nursery.cancelled_class as exc:
            leaving.error = exc
        except BaseException as exc:  # noqa: BLE001 (gathered, and raised in the end)
            self._take_stray(exc)
        finally:
            nursery.task_group = None

    def _take_stray(self, error: BaseException) -> None:
        """Gather an error that left a task of the nursery, which should not happen.

        AnyIO or Trio raises one if work leaves a cancel scope or a task group open; by then the
        worker has failed because of that.
        """
        nursery = self._nursery
        nursery.is_killed = False  # this is why
        for leaf in leaves(error):
            if is_a(leaf, RuntimeError) and nursery.nesting.is_broken:
                continue  # AnyIO's or Trio's error for the same mistake
            if not is_a(leaf, nursery.cancelled_class):
                nursery.failures.add(leaf, nursery.tree)

    # steps that are interrupted

    def _try(self, step: Callable[[], object]) -> None:
        """Take a step of the end; if it fails, the error is raised at the end."""
        try:
            step()
        except BaseException as fault:  # noqa: BLE001 (see above)
            self._nursery.fail(fault)

    def _twice(self, step: Callable[[], object]) -> None:
        """Take a step of the end, twice if it is interrupted; the error is raised at the end."""
        try:
            step()
        except BaseException as fault:  # noqa: BLE001 (see above)
            self._nursery.failures.add(fault, self._nursery.tree)
            step()
