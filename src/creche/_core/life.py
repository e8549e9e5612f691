"""The life of a worker, which has one path each way.

One way in: its group admits it (``WorkerGroup._start``), finds it a slot and launches its task,
whose first step enters the work. One cancellation: ``cancel()`` marks the worker in the calling
thread, then on the loop tells whatever runs elsewhere and cancels the scope. One end: ``_end()``.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Coroutine
from concurrent.futures import CancelledError as ThreadCancelledError
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, cast

from creche._ground.backend import interruptible
from creche._ground.context import current
from creche._ground.errors import (
    WorkerCancelled,
    WorkerError,
    WorkerFailed,
    add_note,
    drop_cancellation,
    note_report,
    strip_traceback,
    uncancelled,
)
from creche._ground.report import harmless, is_a, is_awaitable, shown, tell, text_of
from creche._ground.states import (
    CANCELLED,
    ERROR,
    FINAL,
    PENDING,
    RUNNING,
    SUCCESS,
    TRANSITIONS,
    WorkerState,
)
from creche._ground.text import label
from creche._ground.text import text_of as attribute_of
from creche._running.ways import in_task, in_thread, is_unawaited

from .record import Record, ResultType, lock

if TYPE_CHECKING:
    from collections.abc import Callable


_LONGEST = 200  # characters of a description in the log


class Life(Record[ResultType]):
    """A worker as its node runs it."""

    __slots__ = ()

    @property
    def state(self) -> WorkerState:
        """The state, see ``WorkerState``.

        It may be assigned for a worker that was not started here: that is how an adapter runs the
        work elsewhere. A change that the table of states allows is made and announced. Once the
        worker was started here only CANCELLED may be assigned, which is ``cancel()``. The node
        does not wait for a worker that runs elsewhere; it is CANCELLED when the node closes.

        Raises:
            WorkerError: On assignment: the change is not allowed; nothing was changed.

        Threads:
            To be read and assigned in any thread.
        """
        return self._state

    @state.setter
    def state(self, state: WorkerState) -> None:
        self._node._creche_bridge.call(lambda: self._assign(state))

    @interruptible
    def run(self) -> Coroutine[Any, Any, ResultType]:
        """Run the work and return its result; called once, by the node, and awaited.

        A subclass may implement this as ``async def run(self)``, in place of work or round
        ``await super().run()``. It runs in a task on the node's loop.
        """
        if self._thread is None:
            return in_task(self)
        thread, token = self._thread, self._node._creche_nursery.bridge.token
        return in_thread(self, thread.limiter, token, abandon=thread.abandon_on_cancel)

    def _has_own_run(self) -> bool:
        return type(self).run is not _RUN

    def _keep_context(self) -> None:
        """Keep the context variables of the caller, for a task that is started later."""
        if self._context is None:
            self._context = copy_context()

    def _hold(self) -> None:
        nursery = self._node._creche_nursery
        if not self._holds:
            self._holds, nursery.holds = True, nursery.holds + 1  # see Nursery.holds

    def _let_go(self) -> None:
        nursery = self._node._creche_nursery
        if self._holds:
            self._holds, nursery.holds = False, nursery.holds - 1
        nursery.look_whether_idle()

    def _launch(self) -> None:
        """Start the task; it has a slot.

        Raises:
            BaseException: The task cannot be made; nothing was changed.
        """
        if type(self.name) is type(self.group) is str:
            name = f"{self._node.path}/{self.group}/{self.name or type(self).__name__}"
        else:
            name = label(self)  # they were set since
        self._handle = self._nursery.spawn(self._main, name=name, context=self._context)

    @interruptible
    async def _main(self) -> None:
        """Be the worker's task. What breaks it off between two lines is made up for."""
        failure: BaseException | None = None
        try:
            if self._state is not PENDING:
                self._nursery.unstepped.pop(self._order, None)
                return  # cancelled before this first step
            try:
                self._context = None  # the task has it
                current.set(self)
                if self._thread is None or self._has_own_run():
                    self._begin()
                self._outcome = await self.run()
            except BaseException as error:  # noqa: BLE001 (nothing may leave a task of the nursery)
                # Cancellation ends here too: this is the top of the task. AnyIO would take a native
                # one that went further for a reason to cancel all the others.
                failure = error
            # Out of the handler: Trio makes the exceptions of a cancellation as it is requested,
            # and they would have this one as their context, a cycle.
            if failure is not None:
                self._fall(failure)
            else:
                self._succeed()
        finally:
            if self._handle is not None:
                self._break_off()
            del failure, self  # this frame is in the traceback of the error

    def _succeed(self) -> None:
        """End because the work returned."""
        nursery = self._nursery
        if self._cancellation is None and nursery.is_scope_cancelled():
            nursery.cancel_from_outside()  # which comes back to this worker
        if self._handle is not None and nursery.has_open_scope(self._handle):
            self._end(
                ERROR,
                WorkerError(
                    f"the work of {self._creche_spoken()} has returned and left a cancel scope or "
                    "a task group open; leave each in the work that entered it"
                ),
            )
        else:
            self._end(SUCCESS)

    def _fall(self, error: BaseException) -> None:
        """End because the work raised something."""
        try:
            self._notice_cancellation(native=False)
            if self._state in FINAL:
                return  # cancelled while it waited for a thread
            failure = uncancelled(error, self._is_cancellation)
            if failure is None:
                self._notice_cancellation()
                self._end(CANCELLED)
            else:
                self._end(ERROR, failure)
        finally:
            del error, self

    def _is_cancellation(self, error: BaseException) -> bool:
        if is_a(error, self._nursery.cancelled_class):
            return True
        # What says so in a thread: call_from_thread() and check_cancelled(); AnyIO's from_thread.
        return self._cancellation is not None and is_a(
            error, (WorkerCancelled, ThreadCancelledError)
        )

    # the job, as the ways of running see it

    def _is_to_await(self, value: object) -> bool:
        return is_awaitable(value) and not is_a(value, Record)

    def _wait_for_thread(self) -> None:
        assert self._thread is not None
        self._thread.is_waiting = True

    def _enter(self) -> None:
        """Become RUNNING, as the thread is certain now; raise if it has been called off."""
        assert self._thread is not None
        if self._state is RUNNING:
            return  # a subclass's run() that calls super().run()
        self._thread.is_waiting = False
        self._begin()

    def _begin(self) -> None:
        """Become RUNNING; raise if it has been called off."""
        bridge = self._nursery.bridge
        bridge.steps.busy += 1
        try:
            is_entered = self._move(RUNNING)
        finally:
            bridge.steps.busy -= 1
        if not is_entered:
            self._unwind()
            raise WorkerCancelled(f"{self._creche_spoken()} was cancelled")

    def _note_abandoned(self, *, abandoned: bool) -> None:
        assert self._thread is not None
        self._thread.is_abandoned = abandoned

    def _on_cancel(self, stop: Callable[[], object]) -> None:
        with lock:
            assert self._thread is not None
            if self._cancellation is None:
                self._thread.stops = (*self._thread.stops, stop)
                return
        stop()

    # cancellation

    def cancel(self, reason: object = None) -> None:
        """Request cancellation. The first request counts; on a finished worker it changes nothing.

        A worker that has not begun is CANCELLED at once and its work is never called. A running one
        gets its backend's cancellation at the next checkpoint and never reports SUCCESS, whatever
        it does. A thread cannot be stopped: it has to ask, see ``check_cancelled()``.

        Args:
            reason: Anything that tells why; see ``cancel_reason``.

        Threads:
            Any thread.
        """
        self._cancel_by(self._node._creche_bridge.run, reason)

    def _cancel_here(self, reason: object) -> None:
        """As ``cancel()``, within a step of the library on the loop."""
        self._cancel_by(_at_once, reason)

    def _cancel_by(self, run: Callable[[Callable[[], object]], object], reason: object) -> None:
        try:
            if self._mark(reason):
                run(self._unwind)
        except BaseException:
            if self._cancellation is not None:
                run(self._unwind)  # once more, as no further request would
            raise

    def check_cancelled(self) -> None:
        """Raise an error if cancellation was requested.

        Raises:
            WorkerCancelled: It was. Let it out of the work, and the worker ends CANCELLED.

        Threads:
            Any thread.
        """
        if self._cancellation is not None:
            raise WorkerCancelled(self._tell_cancellation())

    def _tell_cancellation(self) -> str:
        why = self._cancellation[1] if self._cancellation is not None else None
        reason = f": {text_of(why)}" if why is not None else ""
        return f"{self._creche_spoken()} was cancelled{reason}"

    def _mark(self, reason: object) -> bool:
        with lock:
            if self._cancellation is not None or self._state in FINAL:
                return False
            event = self._ties.cancelled if self._ties is not None else None
            self._cancellation = (self._node._creche_nursery.now(), reason)
        if event is not None:
            event.set()
        return True

    def _unwind(self, *, by_nursery: bool = False) -> None:
        """Do on the loop what follows from the mark; may be called again."""
        bridge = self._nursery.bridge
        bridge.steps.busy += 1
        try:
            handle = self._handle
            if self._ties is not None and self._ties.cancelled is not None:
                self._ties.cancelled.set()  # in case that the one who marked it was broken off
            if self._state is PENDING:
                if handle is not None:
                    self._nursery.unstepped[self._order] = handle.coro
                self._end(CANCELLED)
            if self._thread is not None:
                for stop in self._thread.stops:
                    stop()
            if self._ties is not None:
                for hop in self._ties.hops:
                    hop.cancel()
            if handle is not None and not by_nursery:
                handle.cancel()
        finally:
            bridge.steps.busy -= 1

    def _cancel_with_nursery(self, reason: object, *, by_scope: bool) -> None:
        """Be cancelled by the nursery, which may cancel the scope of all its tasks at once."""
        self._mark(reason)
        self._unwind(by_nursery=by_scope)

    def _notice_cancellation(self, *, native: bool = True) -> None:
        """Find out about a cancellation that nobody asked this worker for.

        Args:
            native: Whether it is certain that there was one.
        """
        if self._cancellation is not None:
            return
        if self._nursery.is_scope_cancelled():
            self._nursery.cancel_from_outside()  # which comes back to this worker
        elif native:
            self._mark("its task was cancelled natively")

    # the end

    def _move(self, state: WorkerState) -> bool:
        """Change the state; the one place that does.

        Returns:
            Whether it did: work that was called off is not entered.
        """
        now = self._node._creche_nursery.clock()
        with lock:
            if state is RUNNING and self._cancellation is not None:
                return False
            if state not in TRANSITIONS[self._state]:
                raise WorkerError(
                    f"{self._creche_spoken()} is {self._state.name} and cannot become {state.name}"
                )
            if state is SUCCESS and self._cancellation is not None:
                state = CANCELLED  # cancel is final
            self._state = state
            if state is RUNNING:
                self._started_at = now
            else:
                self._finished_at = now
        if self._node._creche_tells_changes:
            self._announce(state)
        if self._ties is not None and self._ties.begun is not None:
            self._ties.begun.set()
        return True

    def _announce(self, state: WorkerState) -> None:
        try:
            self._node._creche_announce(self, state)
        except BaseException as fault:  # noqa: BLE001 (raised by the block; the change goes on)
            self._nursery.fail(fault)

    def _end(self, state: WorkerState, error: BaseException | None = None) -> None:
        """End, whatever happens: each step can be taken again, and a fault in one is made up for.

        Such a fault (of memory, a Ctrl+C at the wrong line, one of ours) fails the node.
        """
        bridge = self._nursery.bridge
        bridge.steps.busy += 1
        try:
            try:
                self._take_end(state, error)
            except BaseException as fault:  # noqa: BLE001 (handed to the node)
                try:
                    self._take_end(state, error)
                finally:
                    self._nursery.fail(fault)
                    del fault
        finally:
            bridge.steps.busy -= 1
            del error, self

    def _take_end(self, state: WorkerState, error: BaseException | None) -> None:
        """End, in the order on which threads that read without a lock rely."""
        try:
            # Work that was entered closes itself; in an abandoned thread it may still be running.
            fatal = error is not None and self._is_fatal(error)
            if error is not None and self._outcome is not error:
                self._decorate(error, state, fatal=fatal)
            if fatal and not is_a(error, WorkerFailed):
                note_report(self._tied(), self._nursery.tree)
            if self._state not in FINAL:
                self._outcome = error if error is not None else self._outcome
                self._move(state)
            self._wake_all()  # before the node is cancelled: who waits here learns why
            if fatal and error is not None:
                self._nursery.fail(error)
            if self._place is not None:
                self._place._left(self)
            if self._started_at is None or is_unawaited(self._work):
                self._close_work()
            self._work = self._handle = self._context = None
            if not isinstance(self._description, str):
                self._description = self._description.condensed()
            if self._thread is not None:
                self._thread.limiter = None
                self._thread.stops = ()
            self._let_go()
        finally:
            del error, self

    def _wake_all(self) -> None:
        for event in (self._ties.begun, self._ties.done) if self._ties is not None else ():
            if event is not None:
                event.set()

    def _is_fatal(self, error: BaseException) -> bool:
        with harmless:  # it may be set to anything
            return not is_a(error, Exception) or bool(self.exit_on_error)
        return True

    def _decorate(self, error: BaseException, state: WorkerState, *, fatal: bool) -> None:
        """Put on an error where it happened, and say so in the log in this very moment.

        The node may take its time to end. All of this is as well as can be done.
        """
        try:
            strip_traceback(error)
            drop_cancellation(error, self._nursery.cancelled_class)
            where = self._node._creche_spoken()
            group = shown(attribute_of(self, "group"))
            add_note(error, f"in {self._creche_spoken()} of group {group} on {where}")
            if fatal and (is_a(error, WorkerFailed) or not is_a(error, Exception)):
                return  # told where it first failed; or no failure, but a wish to end
            call = attribute_of(self, "description")[:_LONGEST]
            tell(
                logging.ERROR,
                "%s failed%s%s",
                self._creche_spoken(),
                f" in {call}" if call else "",
                f", and with it {where}" if fatal else "",
                error=error,
                fields=self._log_fields(state, self._state),
            )
        except KeyboardInterrupt:
            raise
        except BaseException as fault:  # noqa: BLE001 (see above)
            tell(logging.ERROR, "could not say all about a failed worker", error=fault)
        finally:
            del error, self

    def _reap(self) -> None:
        """End if the task has died without doing so; see ``Nursery``."""
        handle = self._handle
        if handle is not None and inspect.getcoroutinestate(handle.coro) == inspect.CORO_CLOSED:
            self._break_off()

    def _break_off(self) -> None:
        """End in place of a task that does not, or to the last step where it was broken off."""
        self._mark("its task has died")
        self._end(self._state if self._state in FINAL else CANCELLED)

    def _close_work(self) -> None:
        work, self._work = self._work, None
        if is_a(work, Coroutine):
            # One that was never awaited would be warned about.
            work.close()  # pyright: ignore[reportUnknownMemberType]  # of unknown result

    def _refuse(self) -> None:
        """Be CANCELLED without having been heard of; in any thread, for no node knows of it."""
        self._mark("refused")
        with lock:
            if PENDING is self._state:
                self._state = CANCELLED
        self._close_work()
        self._context = None

    def _assign(self, state: WorkerState) -> None:
        """Change the state on behalf of an adapter, see ``state``."""
        if self._started:
            if state is not CANCELLED or self._state in FINAL:
                raise WorkerError(
                    f"the state of {self._creche_spoken()}, which is {self._state.name} and was "
                    f"started here, cannot be set to {state.name}; only to "
                    "CANCELLED before it has ended"
                )
            self.cancel()
        elif state is SUCCESS and self.is_cancelled and self._state not in FINAL:
            raise WorkerError(
                f"{self._creche_spoken()} was cancelled; only CANCELLED or ERROR can follow"
            )
        elif state not in FINAL or state not in TRANSITIONS[self._state]:
            if not self._move(state):  # which refuses what the table does not allow
                raise WorkerError(f"{self._creche_spoken()} is CANCELLED and cannot become RUNNING")
        else:
            if state is CANCELLED:
                self._mark(None)
            self._end(state)

    def _disown(self) -> None:
        """End a worker that its closing node never started."""
        self._mark("its node closed")
        self._end(CANCELLED)


def _at_once(call: Callable[[], object]) -> None:
    call()


_RUN = cast("type[Life[object]]", Life).run
