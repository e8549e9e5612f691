"""Rules that wait, that close nodes, and that call and post."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from hypothesis import strategies as st
from hypothesis.stateful import MultipleResults, consumes, multiple, rule

from creche import WorkerCancelled

from ._base import Posted
from ._cancels import Cancels
from ._strategies import scripts
from ._work import NOTHING, places, started, sure, waiters
from ._world import turn

if TYPE_CHECKING:
    from ._model import Place, Record, Waiter
    from ._scripts import Script


class Rules(Cancels):
    """A machine with a rule for each call, and none yet for the races."""

    @rule(target=waiters, record=started)
    def wait(self, record: Record) -> Waiter:
        """Wait for a worker, in a task of its own."""
        made: list[Waiter] = []
        self.do(lambda: made.append(self.add_waiter(record)))
        return made[0]

    @rule(waiter=consumes(waiters))
    def cancel_waiter(self, waiter: Waiter) -> None:
        """Cancel a wait; the worker must not notice."""
        self.do(waiter.scope.cancel)

    @rule(record=started, awaited=started)
    def wait_within(self, record: Record, awaited: Record) -> None:
        """Open the gate to work that then waits for a worker, be it itself."""

        def act() -> None:
            record.play.then = partial(self.wait_in, record, awaited)
            record.play.open_gate()

        self.do(act)

    # the end of nodes

    @rule(place=places)
    def leave(self, place: Place) -> None:
        """Leave the block of a node."""

        def act() -> None:
            if place.kind != "mounted":
                place.is_leaving = True
                place.leave.set()

        self.do(act)

    @rule(target=places, place=consumes(places))
    def remove(self, place: Place) -> Any:
        """Remove a mounted node, be it one that has ended by itself."""
        if place.kind != "mounted":
            return place
        remove = partial(self.world.spawn, partial(self.remove_node, place))
        self.do(partial(self._fall, place, remove, promptly=False) if not place.is_over else remove)
        return NOTHING

    async def remove_node(self, place: Place) -> None:
        """Remove a mounted node, which nothing keeps where it has ended."""
        if place.is_over:
            self.saw("removal of a node that has ended")
        await place.node.remove()
        if not place.is_over:
            self.violations.append(("what_has_to_end_ends", f"{place} was removed and is not over"))

    @rule(place=places, grace=st.sampled_from([3600.0, 0.0]))
    def shut_down(self, place: Place, grace: float) -> None:
        """Shut a node down, at once or with all the time there is."""

        def act() -> None:
            if place.is_over:
                return
            for each in place.below():
                each.is_shut = True
                if not grace and each is not place and each.kind == "mounted":
                    each.is_cancelled |= not each.is_over
                for record in each.unfinished():
                    record.may_be_cancelled = True
            self.world.spawn(partial(place.node.shutdown, grace))

        self.do(act)

    # calls and messages

    @rule(place=places)
    def call_from_a_thread(self, place: Place) -> None:
        """Call functions on the loop, sync and async, from a thread that belongs to nobody."""
        if place.is_over:
            return
        told: list[str] = []

        async def call(what: str) -> None:
            await turn()
            told.append(what)

        def in_thread() -> None:
            try:
                place.node.call_from_thread(told.append, "called")
                place.node.call_from_thread(call, "awaited")
            except WorkerCancelled:
                told.append("refused")

        self.do(partial(to_thread.run_sync, in_thread))
        assert told == (["refused"] if place.has_fallen else ["called", "awaited"])

    @rule(
        target=started,
        place=places,
        number=st.integers(1, 3),
        script=st.one_of(st.none(), scripts()),
        fatal=sure,
    )
    def post(
        self, place: Place, number: int, script: Script | None = None, **options: Any
    ) -> MultipleResults[Record]:
        """Post some messages at once; they are handled on the node and on those above it.

        With a script, each handler starts a worker and gives that.
        """
        made: list[Record] = []

        def start(where: Place) -> Record:
            assert script is not None
            self.saw("handler that starts a worker")
            made.append(self.run_worker(where, script, **options))
            return made[-1]

        def act() -> None:
            for _ in range(number):
                self.posts += 1
                message = Posted(place, self.posts, start if script is not None else None)
                if place.node.post_message(message):
                    place.posted.append(self.posts)
                    if not (place.has_fallen or place.is_closing):
                        place.passed_on.append(self.posts)

        self.do(act)
        return multiple(*(record for record in made if record in record.place.records))
