"""The races that are feared, each with a rule of its own: chance does not find them.

Each sets its own scene, acts without a checkpoint between the two things that race (or with a drawn
number of them), and is counted: ``--hypothesis-show-statistics`` tells how often each was seen.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import rule

from ._model import FREE, QUEUE, Place, Record
from ._rules import Rules, places
from ._scripts import Ending, OnCancel, Script
from ._world import settle, turn

if TYPE_CHECKING:
    from collections.abc import Callable

either = st.booleans()
turns = st.integers(0, 3)
answers = st.sampled_from(OnCancel)


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

    def _is_open(self, place: Place) -> bool:
        # A race is on an open node: on another it would not be seen.
        return not (place.is_over or place.refuses or place.has_fallen)

    def _ask_and_cancel(self, record: Record) -> None:
        record.ask("cancel() was called in a race")
        record.worker.cancel()

    @rule(place=places, between=turns, kind=st.sampled_from(["function", "coroutine"]))
    def race_cancel_before_first_step(self, place: Place, between: int, kind: str) -> None:
        """Start a worker and cancel it before its first step, or some steps later."""
        if not self._is_open(place):
            return
        event("race: cancel before the first step")

        async def act() -> None:
            record = self.run_worker(place, Script(gated=False, before=2), kind=kind)
            await turn(between)
            self._ask_and_cancel(record)
            if not record.play.is_entered:
                assert record.worker.is_finished, f"{record} was not cancelled at once"

        self.do(act)

    @rule(place=places, swap=either, between=turns, after=turns, answer=answers)
    def race_finish_and_cancel(
        self, place: Place, swap: bool, between: int, after: int, answer: OnCancel
    ) -> None:
        """Let work go to its end and cancel it, in either order, in one tick or nearly so."""
        if not self._is_open(place):
            return
        event("race: finish and cancel in one tick")

        async def act() -> None:
            record = self.run_worker(place, Script(after=after, on_cancel=answer))
            await settle()
            cancel = partial(self._ask_and_cancel, record)
            await self._both(record.play.open_gate, cancel, swap, between)
            record.play.let_go()

        self.do(act)

    @rule(place=places, swap=either, between=turns, ending=st.sampled_from(Ending))
    def race_waiter_cancelled_as_worker_ends(
        self, place: Place, swap: bool, between: int, ending: Ending
    ) -> None:
        """Cancel a waiter as its worker ends, beside another waiter."""
        if not self._is_open(place):
            return
        event("race: waiter cancelled as the worker ends")

        async def act() -> None:
            record = self.run_worker(place, Script(ending=ending))
            waiter, _ = self.add_waiter(record), self.add_waiter(record)
            await settle()
            await self._both(record.play.open_gate, waiter.scope.cancel, swap, between)

        self.do(act)

    @rule(
        place=places,
        group=st.sampled_from([FREE, QUEUE]),
        answer=st.sampled_from([OnCancel.HOLD, OnCancel.RESIST, OnCancel.SWALLOW]),
        between=turns,
    )
    def race_exclusive_replaces_during_unwinding(
        self, place: Place, group: str, answer: OnCancel, between: int
    ) -> None:
        """Start exclusive workers while the one before is still on its way out."""
        if not self._is_open(place):
            return
        event("race: exclusive replace during unwinding")

        async def act() -> None:
            script = Script(on_cancel=answer, unwinding=4)
            made = [self.run_worker(place, script, group=group, exclusive=True)]
            await turn(4)
            for _ in range(2):
                made.append(self.run_worker(place, script, group=group, exclusive=True))
                await turn(between)
            for record in made[:2]:
                record.play.let_go()
            await settle()
            made[2].play.open_gate()

        self.do(act)

    @rule(place=places, between=turns, swap=either, gated=either)
    def race_start_while_the_node_closes(
        self, place: Place, between: int, swap: bool, gated: bool
    ) -> None:
        """Start work as the block of the node is left."""
        if not self._is_open(place) or place.kind == "mounted":
            return
        event("race: start while the node closes")

        def leave() -> None:
            place.is_leaving = True
            place.leave.set()

        def start() -> None:
            self.run_worker(place, Script(gated=gated), kind="coroutine")

        self.do(partial(self._both, leave, start, swap, between))

    @rule(place=places, between=turns, swap=either, limit=st.integers(1, 3))
    def race_limit_changed_as_a_worker_ends(
        self, place: Place, between: int, swap: bool, limit: int
    ) -> None:
        """Change the limit of a group as one of its workers ends and others wait."""
        if not self._is_open(place):
            return
        event("race: limit lowered as a worker ends")
        change = partial(place.change_limit, QUEUE, limit)

        async def act() -> None:
            made = [self.run_worker(place, Script(), group=QUEUE) for _ in range(3)]
            await settle()
            inside = [record for record in place.unfinished(QUEUE) if record.play.is_inside]
            await self._both(inside[0].play.open_gate, change, swap, between)
            await settle()
            for record in made:
                record.play.open_gate()

        self.do(act)

    @rule(place=places, swap=either, between=turns, whole=either)
    def race_thread_returns_as_it_is_cancelled(
        self, place: Place, swap: bool, between: int, whole: bool
    ) -> None:
        """Let a thread end as its worker or its node is cancelled; the loop has not heard of it."""
        if not self._is_open(place):
            return
        event("race: thread returns as the node is cancelled")
        made: list[Record] = []

        async def act() -> None:
            record = self.run_worker(place, Script(), kind="thread")
            made.append(record)
            while not record.play.arrived.is_set():
                await turn()

            def finish() -> None:
                record.play.open_gate()
                assert record.play.left.wait(20), f"the thread of {record} does not end"

            def cancel() -> None:
                if whole:
                    self._fall(place, place.node.cancel)
                else:
                    self._ask_and_cancel(record)

            await self._both(finish, cancel, swap, between)

        self.do(act)
        self.world.until(lambda: made[0].worker.is_finished)

    @rule(place=places, fatal=either, between=turns)
    def race_error_while_another_unwinds(self, place: Place, fatal: bool, between: int) -> None:
        """Let one worker fail while others unwind, and fail in doing so."""
        if not self._is_open(place):
            return
        event("race: error while another error unwinds")

        async def act() -> None:
            first = self.run_worker(place, Script(ending=Ending.RAISE), fatal=True)
            self.run_worker(place, Script(on_cancel=OnCancel.RAISE), fatal=fatal)
            late = self.run_worker(
                place, Script(ending=Ending.RAISE, on_cancel=OnCancel.RESIST), fatal=fatal
            )
            await settle()
            first.play.open_gate()
            await turn(between)
            late.play.open_gate()

        self.do(act)
