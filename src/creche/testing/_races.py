"""The races that are feared, each with a rule of its own: chance does not find them.

Each sets its own scene and acts without a checkpoint between the two things that race, or with a
drawn number of them. It is counted where it has really come about: the one thing was under way as
the other came. ``--hypothesis-show-statistics`` tells how often each was seen, and so does
``WorkerMachine.races``.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from creche import WorkerCancelled

from ._base import Posted
from ._cancels import cancel_natively
from ._leaks import is_back
from ._model import FREE, QUEUE, Place, Record
from ._rules import Rules
from ._scripts import Ending, OnCancel, Play, Script
from ._work import places
from ._world import PATIENCE, settle, turn

if TYPE_CHECKING:
    from collections.abc import Callable

either = st.booleans()
mostly = st.sampled_from([True, True, False])
turns = st.sampled_from([0, 0, 0, 1, 2, 3])
answers = st.sampled_from(OnCancel)
failing = st.sampled_from([OnCancel.RAISE, OnCancel.RAISE_WITHIN, OnCancel.RAISE_FINALLY])
# A group is split only here, and only here are two errors of a node often equal.
endings = st.sampled_from(
    [each for each in Ending if each is not Ending.RETURN]
    + [Ending.FROZEN, Ending.GROUP, Ending.GROUP]
)


class Races(Rules):
    """A machine with the rules of the races."""

    def _both(
        self, first: Callable[[], object], second: Callable[[], object], swap: bool, between: int
    ) -> Any:
        async def act() -> None:
            one, other = (second, first) if swap else (first, second)
            one()
            await turn(between)
            other()

        return act()

    def _find_open(self, place: Place, *, mounted: bool = True) -> Place:
        """Give a place that is open, the given one if it is: a race on another is not seen."""
        for each in (place, *self.places()):
            is_closed = each.is_over or each.refuses or each.has_fallen or each.is_leaving
            if not is_closed and (mounted or each.kind != "mounted"):
                return each
        return self._open_root(limit=1, overflow="restart")

    def _ask_and_cancel(self, record: Record) -> None:
        record.ask("cancel() was called in a race")
        record.worker.cancel()

    @rule(where=places, between=turns, kind=st.sampled_from(["function", "coroutine"]))
    def race_cancel_before_first_step(self, where: Place, between: int, kind: str) -> None:
        """Start a worker and cancel it before its first step, or some steps later."""
        place = self._find_open(where)

        async def act() -> None:
            record = self.run_worker(place, Script(gated=False, before=2), kind=kind)
            await turn(between)
            if not (record.play.is_entered or record.worker.is_finished):
                self.saw("cancel before the first step")
            self._ask_and_cancel(record)
            if not record.play.is_entered:
                assert record.worker.is_finished, f"{record} was not cancelled at once"

        self.do(act)

    @rule(where=places, swap=either, between=turns, after=turns, answer=answers)
    def race_finish_and_cancel(
        self, where: Place, swap: bool, between: int, after: int, answer: OnCancel
    ) -> None:
        """Let work go to its end and cancel it, in either order, in one tick or nearly so."""
        place = self._find_open(where)

        async def act() -> None:
            record = self.run_worker(place, Script(after=after, on_cancel=answer))
            await settle()
            if record.play.is_inside and not between:
                self.saw(f"{'cancel and finish' if swap else 'finish and cancel'} in one tick")
            cancel = partial(self._ask_and_cancel, record)
            await self._both(record.play.open_gate, cancel, swap, between)
            record.play.let_go()

        self.do(act)

    @rule(where=places, swap=either, between=turns, ending=st.sampled_from(Ending))
    def race_waiter_cancelled_as_worker_ends(
        self, where: Place, swap: bool, between: int, ending: Ending
    ) -> None:
        """Cancel a waiter as its worker ends, beside another waiter."""
        place = self._find_open(where)

        async def act() -> None:
            record = self.run_worker(place, Script(ending=ending))
            waiter, _ = self.add_waiter(record), self.add_waiter(record)
            await settle()
            if record.play.is_inside and between <= 1:  # it takes the worker two turns to end
                self.saw("waiter cancelled as the worker ends")
            await self._both(record.play.open_gate, waiter.scope.cancel, swap, between)

        self.do(act)

    @rule(
        where=places,
        group=st.sampled_from([FREE, QUEUE]),
        answer=st.sampled_from([OnCancel.HOLD, OnCancel.RESIST]),
        between=turns,
    )
    def race_exclusive_replaces_during_unwinding(
        self, where: Place, group: str, answer: OnCancel, between: int
    ) -> None:
        """Start exclusive workers while the one before is still on its way out."""
        place = self._find_open(where)

        async def act() -> None:
            script = Script(on_cancel=answer, unwinding=5)
            made = [self.run_worker(place, script, group=group, exclusive=True)]
            await turn(4)
            for _ in range(2):
                await turn(2)
                if "cancelled" in made[0].play.log and made[0].play.is_inside:
                    self.saw("exclusive replace during unwinding")
                made.append(self.run_worker(place, script, group=group, exclusive=True))
            await turn(between)
            for record in made[:2]:
                record.play.let_go()
            await settle()
            made[2].play.open_gate()

        self.do(act)

    @rule(where=places, between=turns, swap=either, gated=either)
    def race_start_while_the_node_closes(
        self, where: Place, between: int, swap: bool, gated: bool
    ) -> None:
        """Start work as the block of the node is left."""
        place = self._find_open(where, mounted=False)

        def leave() -> None:
            place.is_leaving = True
            place.leave.set()

        def start() -> None:
            if place.is_leaving and not place.is_over:
                self.saw("start while the node closes")
            self.run_worker(place, Script(gated=gated), kind="coroutine")

        self.do(partial(self._both, leave, start, swap, between))

    @rule(where=places, between=turns, swap=either, limit=st.sampled_from([1, 2, 3]))
    def race_limit_changed_as_a_worker_ends(
        self, where: Place, between: int, swap: bool, limit: int
    ) -> None:
        """Change the limit of a group as one of its workers ends and others wait."""
        place = self._find_open(where)
        change = partial(place.change_limit, QUEUE, limit)

        async def act() -> None:
            place.change_limit(QUEUE, 2)
            made = [self.run_worker(place, Script(), group=QUEUE) for _ in range(3)]
            await settle()
            inside = [record for record in place.unfinished(QUEUE) if record.play.is_inside]
            if limit < len(inside) and not between:
                self.saw("limit lowered as a worker ends")
            await self._both(inside[0].play.open_gate, change, swap, between)
            await settle()
            for record in made:
                record.play.open_gate()

        self.do(act)

    @rule(where=places, swap=either, between=turns, whole=mostly)
    def race_thread_returns_as_it_is_cancelled(
        self, where: Place, swap: bool, between: int, whole: bool
    ) -> None:
        """Let a thread end as its worker or its node is cancelled; the loop has not heard of it."""
        place = self._find_open(where)
        record = self._run_thread(place)

        def finish() -> None:
            record.play.open_gate()
            assert record.play.left.wait(PATIENCE), f"the thread of {record} does not end"
            while between and not is_back(record.play.thread):
                pass  # the turns that follow are to be those after its report

        def cancel() -> None:
            if whole and record.play.left.is_set() and not record.worker.is_finished:
                self.saw("thread returns as the node is cancelled")
            if whole:
                self._fall(place, place.node.cancel)
            else:
                self._ask_and_cancel(record)

        if whole:  # the race itself; the others are its neighbours
            swap, between = False, 0
        self.do(lambda: self._both(finish, cancel, swap, between))
        self.until(lambda: record.worker.is_finished)

    def _run_thread(self, place: Place) -> Record:
        """Start a worker in a thread, and see it to its gate."""
        made: list[Record] = []
        self.do(lambda: made.append(self.run_worker(place, Script(), kind="thread")))
        assert made[0].play.arrived.wait(PATIENCE), f"the thread of {made[0]} did not come"
        return made[0]

    @rule(where=places, ending=endings, answer=failing, fatal=either, between=turns)
    def race_error_while_another_unwinds(
        self, where: Place, ending: Ending, answer: OnCancel, fatal: bool, between: int
    ) -> None:
        """Let one worker fail while others unwind, and fail in doing so."""
        place = self._find_open(where)

        async def act() -> None:
            first = self.run_worker(place, Script(ending=ending), fatal=True)
            second = self.run_worker(place, Script(ending=ending, on_cancel=answer), fatal=fatal)
            late = self.run_worker(
                place, Script(ending=Ending.RAISE, on_cancel=OnCancel.RESIST), fatal=fatal
            )
            await settle()
            first.play.open_gate()
            await turn(between)
            late.play.open_gate()
            await settle()
            if first.has_failed and second.play.errors:
                self.saw("error while another error unwinds")

        self.do(act)

    @rule(target=places, where=places, between=st.sampled_from([32, 0, 1, 2, 3]))
    def race_removal_as_the_node_ends(self, where: Place, between: int) -> Place:
        """Remove a mounted node as it ends by itself, or once it has ended; another one stays."""
        above = self._find_open(where)
        made: list[Place] = []

        async def act() -> None:
            for _ in range(2):
                made.append(self.add_place("mounted", above))
                await above.node.mount(made[-1].node)
                self.run_worker(made[-1], Script())
            place = made[0]
            self._fall(place, place.node.cancel)
            await turn(between)
            self.world.spawn(partial(self.remove_node, place))

        self.do(act)
        return made[1]

    @precondition(lambda self: self.backend == "asyncio")
    @rule(where=places, kind=st.sampled_from(["function", "coroutine"]))
    def race_native_cancel_before_first_step(self, where: Place, kind: str) -> None:
        """Cancel the native task of a worker before its first step, which ends the whole node."""
        place = self._find_open(where, mounted=False)

        def act() -> None:
            record = self.run_worker(place, Script(), kind=kind)
            place.is_killed = place.is_cancelled = True
            self.saw("native cancel before the first step")
            record.ask("its task was cancelled natively before its first step")
            cancel_natively(record)

        self.do(act)

    @rule(where=places, swap=either, between=turns, whole=either)
    def race_call_from_a_thread_as_it_is_cancelled(
        self, where: Place, swap: bool, between: int, whole: bool
    ) -> None:
        """Let a thread call a function on the loop as its worker or its node is cancelled."""
        place = self._find_open(where)
        record = self._run_thread(place)
        calling, cancelled = threading.Event(), threading.Event()
        record.play.then = partial(self._call_in_thread, record, calling, cancelled)

        def finish() -> None:
            record.play.open_gate()
            assert calling.wait(PATIENCE), f"the thread of {record} does not call"

        def cancel() -> None:
            if calling.is_set():
                self.saw("call from a thread as it is cancelled")
            if whole:
                self._fall(place, place.node.cancel)
            else:
                self._ask_and_cancel(record)
            cancelled.set()

        self.do(lambda: self._both(finish, cancel, swap, between))
        self.until(lambda: record.worker.is_finished)

    def _call_in_thread(
        self, record: Record, calling: threading.Event, cancelled: threading.Event
    ) -> None:
        def effect() -> None:
            if record.asked is not None:
                told = f"the thread of {record} had an effect, though {record.asked}"
                self.violations.append(("no_late_effects", told))

        calling.set()
        try:
            record.place.node.call_from_thread(effect)
        except WorkerCancelled:
            if record.asked is None:
                told = f"the thread of {record} was refused a call"
                self.violations.append(("no_late_effects", told))
        assert cancelled.wait(PATIENCE), f"nobody cancels {record}"
        node = record.place.node
        self.saw("calls of a cancelled thread")
        told = f"the cancelled thread of {record} was let in"
        let_in = partial(self.violations.append, ("no_late_effects", told))
        late = Play(Script(gated=False), "late", lambda _: let_in())
        for call in (
            partial(node.run_worker, late),
            partial(node.post_message, Posted(record.place, 0)),
        ):
            try:
                call()
            except WorkerCancelled:
                continue
            let_in()
