"""Rules that open nodes and run work, and the bundles that all rules draw from."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    consumes,
    initialize,
    multiple,
    precondition,
    rule,
)

from creche import Node, WorkerError, WorkerState
from creche._ground.states import FINAL, TRANSITIONS

from ._base import Alike, Base
from ._model import FREE, ODD, QUEUE, Place, Record, Waiter
from ._scripts import Ending, OnCancel, Script
from ._strategies import scripts

if TYPE_CHECKING:
    from creche import Overflow

places: Bundle[Place] = Bundle("places")
unstarted: Bundle[Record] = Bundle("unstarted")
started: Bundle[Record] = Bundle("started")
cancelled: Bundle[Record] = Bundle("cancelled")
threads: Bundle[Record] = Bundle("threads")
waiters: Bundle[Waiter] = Bundle("waiters")

MOST_PLACES = 5
"""With more nodes than these, none is added: it would be the same once more."""
NOTHING: MultipleResults[Any] = multiple()

limits = st.integers(1, 2)
overflows: st.SearchStrategy[Overflow] = st.sampled_from(["restart", "drop", "keep_latest"])
groups = st.sampled_from([FREE, QUEUE, ODD])
kinds = st.sampled_from(["function", "coroutine", "partial"])
sure = st.sampled_from([False, False, False, True])


class Work(Base):
    """A machine that opens nodes and runs work on them."""

    @initialize(
        target=places,
        seed=st.integers(0, 2**32),
        limit=limits,
        overflow=overflows,
        nodes=st.sampled_from([Node, Alike]),
        log=st.sampled_from(["", "", "", "filter", "handler"]),
    )
    def open_tree(
        self,
        seed: int,
        limit: int,
        overflow: Overflow,
        nodes: type[Node] = Node,
        log: str = "",
    ) -> Place:
        """Open the first root; the seed is for Trio's scheduler."""
        self.node_class = nodes
        self.begin(seed, log)
        return self._open_root(limit, overflow)

    @precondition(lambda self: all(root.is_over or root.has_fallen for root in self.roots))
    @rule(target=places, limit=limits, overflow=overflows)
    def open_another_tree(self, limit: int, overflow: Overflow) -> Place:
        """Open a root where no other is open."""
        return self._open_root(limit, overflow)

    def _open_root(self, limit: int, overflow: Overflow) -> Place:
        place: list[Place] = []

        async def act() -> None:
            place.append(self.add_place("root", None, limit, overflow))
            await self.subscribe(place[0])
            await self.open_block(place[0])

        self.do(act)
        return place[0]

    @rule(target=places, parent=places, kind=st.sampled_from(["mounted", "block"]), limit=limits)
    def open_child(self, parent: Place, kind: str, limit: int) -> Any:
        """Open a node below another, mounted or with a block of its own."""
        if parent.refuses or parent.has_fallen or len(list(self.places())) > MOST_PLACES:
            return NOTHING
        made: list[Place] = []

        async def act() -> None:
            made.append(self.add_place(kind, parent, limit))
            if kind == "mounted":
                await parent.node.mount(made[0].node)
            else:
                await self.open_block(made[0])

        self.do(act)
        return made[0]

    # work

    @rule(
        target=started,
        place=places,
        script=scripts(),
        group=groups,
        kind=kinds,
        exclusive=sure,
        fatal=sure,
        daemon=sure,
    )
    def run(self, place: Place, script: Script, **options: Any) -> Any:
        """Run a worker."""
        return self._run(place, script, **options)

    def _run(self, place: Place, script: Script, **options: Any) -> Any:
        made: list[Record] = []
        self.do(lambda: made.append(self.run_worker(place, script, **options)))
        return made[0] if made[0] in place.records else NOTHING

    @rule(
        target=unstarted, place=places, script=scripts(), group=groups, kind=kinds, exclusive=sure
    )
    def create(self, place: Place, script: Script, **options: Any) -> Any:
        """Add a worker without starting it."""
        return self._run(place, script, start=False, **options)

    @rule(place=places)
    def start_all(self, place: Place) -> None:
        """Start whatever was not started in a tree."""
        waiting = [
            record
            for each in place.root.below()
            for record in each.unfinished()
            if record.started is None and record.elsewhere is None
        ]
        if any(record.place.refuses for record in waiting):
            return

        def act() -> None:
            for record in waiting:
                if record.exclusive:  # what it replaces depends on the order
                    for other in record.place.unfinished(record.group):
                        other.may_be_cancelled = True
            place.root.node.workers.start_all()
            for record in sorted(waiting, key=lambda record: record.order):
                before = record.place.unfinished(record.group)
                self.note_start(record, before, exclusive=False)

        self.do(act)

    @rule(
        target=threads,
        place=places,
        ending=st.sampled_from(Ending),
        kind=st.sampled_from(["thread", "abandoned", "async-thread"]),
        on_cancel=st.sampled_from([each for each in OnCancel if each is not OnCancel.HOLD]),
    )
    def run_thread(self, place: Place, ending: Ending, kind: str, on_cancel: OnCancel) -> Any:
        """Run a worker in a thread, up to its gate."""
        record = self._run(place, Script(ending=ending, on_cancel=on_cancel), kind=kind)
        if isinstance(record, Record) and not record.worker.is_finished:
            assert record.play.arrived.wait(20), f"the thread of {record} did not come"
        return record

    @rule(record=consumes(threads))
    def finish_thread(self, record: Record) -> None:
        """Let a thread end."""
        record.play.open_gate()
        if record.play.is_entered:
            assert record.play.left.wait(20), f"the thread of {record} does not end"
            self.until(lambda: record.worker.is_finished and not record.worker.is_abandoned)
            assert not record.worker.is_abandoned, f"{record} is abandoned though its thread ended"

    @rule(record=started)
    def open_gate(self, record: Record) -> None:
        """Let work go on to its end."""
        self.do(record.play.open_gate)

    @rule(record=started)
    def let_go(self, record: Record) -> None:
        """Let work that holds on unwind."""
        self.do(record.play.let_go)

    @rule(place=places, limit=st.integers(1, 3), group=st.sampled_from([QUEUE, ODD]))
    def change_limit(self, place: Place, limit: int, group: str) -> None:
        """Change the limit of a group."""
        self.do(partial(place.change_limit, group, limit))

    @rule(record=st.one_of(unstarted, started), state=st.sampled_from(WorkerState))
    def assign_state(self, record: Record, state: WorkerState) -> None:
        """Assign a state, as an adapter does that runs the work elsewhere; legal or not."""
        if record.kind == "coroutine":
            return  # it would be the adapter's to await or to close

        def act() -> None:
            worker = record.worker
            before = worker.state
            if record.started is not None:
                is_legal = before not in FINAL and state is WorkerState.CANCELLED
            else:
                is_late = state is WorkerState.SUCCESS and worker.is_cancelled
                is_legal = state in TRANSITIONS[before] and not is_late
            if is_legal and state is WorkerState.CANCELLED:
                record.ask("CANCELLED was assigned")
            elif is_legal:
                record.elsewhere = state
            try:
                worker.state = state
            except WorkerError:
                assert not is_legal, f"{record}: {state} was refused"
                assert worker.state is before, f"{record}: {state} was refused, and changed it"
            else:
                assert is_legal, f"{record}: {state} was assigned to a worker that was {before}"

        self.do(act)
