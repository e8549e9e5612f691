"""The rules of the machine: everything that a program can do with nodes and workers."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from anyio import to_thread
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

from ._base import Base
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

NOTHING: MultipleResults[Any] = multiple()

limits = st.integers(1, 2)
overflows: st.SearchStrategy[Overflow] = st.sampled_from(["restart", "drop", "keep_latest"])
groups = st.sampled_from([FREE, QUEUE, ODD])
kinds = st.sampled_from(["function", "coroutine", "partial"])
sure = st.sampled_from([False, False, False, True])


class Rules(Base):
    """A machine with a rule for each call, and none yet for the races."""

    @initialize(target=places, seed=st.random_module(), limit=limits, overflow=overflows)
    def open_tree(self, seed: object, limit: int, overflow: Overflow) -> Place:
        """Open the first root; the seed is for Trio's scheduler."""
        self.begin()
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
            await self.open_block(place[0])

        self.do(act)
        return place[0]

    @rule(target=places, parent=places, kind=st.sampled_from(["mounted", "block"]), limit=limits)
    def open_child(self, parent: Place, kind: str, limit: int) -> Any:
        """Open a node below another, mounted or with a block of its own."""
        if parent.refuses or parent.has_fallen or len(list(self.places())) > 5:
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

    @rule(target=unstarted, place=places, script=scripts(), group=groups, kind=kinds)
    def create(self, place: Place, script: Script, **options: Any) -> Any:
        """Add a worker without starting it."""
        return self._run(place, script, start=False, **options)

    @rule(place=places)
    def start_all(self, place: Place) -> None:
        """Start whatever was not started in a tree."""
        root = self.root_of(place)
        waiting = [
            record
            for each in root.below()
            for record in each.unfinished()
            if record.started is None
        ]
        if any(record.place.refuses for record in waiting):
            return

        def act() -> None:
            order = sorted(waiting, key=lambda record: record.order)
            root.node.workers.start_all()
            for record in order:
                self.note_start(record, record.place.unfinished(record.group), exclusive=False)

        self.do(act)

    @rule(target=threads, place=places, ending=st.sampled_from(Ending), abandon=st.booleans())
    def run_thread(self, place: Place, ending: Ending, abandon: bool) -> Any:
        """Run a worker in a thread, up to its gate."""
        kind = "abandoned" if abandon else "thread"
        record = self._run(place, Script(ending=ending), kind=kind)
        if isinstance(record, Record) and not record.worker.is_finished:
            assert record.play.arrived.wait(20), f"the thread of {record} did not come"
        return record

    @rule(record=consumes(threads))
    def finish_thread(self, record: Record) -> None:
        """Let a thread end."""
        record.play.open_gate()
        if record.play.is_entered:
            assert record.play.left.wait(20), f"the thread of {record} does not end"
            self.world.until(lambda: record.worker.is_finished and not record.worker.is_abandoned)
            assert not record.worker.is_abandoned, f"{record} is abandoned though its thread ended"

    @rule(record=started)
    def open_gate(self, record: Record) -> None:
        """Let work go on to its end."""
        self.do(record.play.open_gate)

    @rule(record=started)
    def let_go(self, record: Record) -> None:
        """Let work that holds on unwind."""
        self.do(record.play.let_go)

    # cancellation

    def _ask(self, records: list[Record], who: str) -> None:
        for record in records:
            record.ask(who)

    @rule(target=cancelled, record=consumes(started))
    def cancel(self, record: Record) -> Record:
        """Cancel a started worker."""
        return self._cancel(record)

    @rule(record=consumes(unstarted))
    def cancel_unstarted(self, record: Record) -> None:
        """Cancel a worker that may not have been started."""
        self._cancel(record)

    @rule(record=cancelled)
    def cancel_again(self, record: Record) -> None:
        """Cancel a worker once more."""
        self._cancel(record)

    @rule(record=threads)
    def cancel_thread(self, record: Record) -> None:
        """Cancel a worker whose thread is at its gate."""
        self._cancel(record)

    def _cancel(self, record: Record) -> Record:
        def act() -> None:
            record.ask("cancel() was called")
            record.worker.cancel()
            assert record.worker.is_cancelled or record.worker.is_finished

        self.do(act)
        return record

    @rule(record=started)
    def cancel_from_a_thread(self, record: Record) -> None:
        """Cancel a worker from another thread."""

        async def act() -> None:
            record.ask("cancel() was called in a thread")
            await to_thread.run_sync(record.worker.cancel)

        self.do(act)

    @precondition(lambda self: self.backend == "asyncio")
    @rule(record=started)
    def cancel_task(self, record: Record) -> None:
        """Cancel the native task of a worker whose work is inside."""

        def act() -> None:
            if record.play.is_inside and not record.in_thread:
                name = f"{record.place.node.path}/{record.group}/{record.play.__name__}"
                if record.play.script.on_cancel not in {OnCancel.OBEY, OnCancel.RESIST}:
                    record.is_deaf = True  # its work alone has learnt of it so far
                else:
                    record.ask("its task was cancelled")
                for task in asyncio.all_tasks():
                    if task.get_name() == name:
                        task.cancel()

        self.do(act)

    @rule(place=places, group=groups)
    def cancel_group(self, place: Place, group: str) -> None:
        """Cancel a group."""

        def act() -> None:
            self._ask(place.unfinished(group), "its group was cancelled")
            place.node.group(group).cancel()

        self.do(act)

    @rule(place=places, whole=st.booleans())
    def cancel_through_the_manager(self, place: Place, whole: bool) -> None:
        """Cancel the workers of one node, or those of the tree."""

        def act() -> None:
            manager = place.node.workers
            if whole:
                for each in self.root_of(place).below():
                    self._ask(each.unfinished(), "all were cancelled")
                manager.cancel_all()
            else:
                self._ask(place.unfinished(), "its node's workers were cancelled")
                manager.cancel_node(place.node)

        self.do(act)

    @rule(place=consumes(places))
    def cancel_node(self, place: Place) -> None:
        """Cancel a node and all below it."""
        self.do(partial(self._fall, place, place.node.cancel))

    @rule(target=places, place=consumes(places))
    def cancel_outer_scope(self, place: Place) -> Any:
        """Cancel the scope round a node's block."""
        if place.kind == "mounted":
            return place
        self.do(partial(self._fall, place, place.scope.cancel, promptly=False))
        return NOTHING

    def _fall(self, place: Place, cancel: Any, *, promptly: bool = True) -> None:
        if not place.is_over:
            place.is_cancelled = True
            for each in place.below() if promptly else ():
                self._ask(each.unfinished(), f"{place.name} was cancelled")
            cancel()

    # waiting

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
        """Remove a mounted node."""
        if place.kind != "mounted":
            return place
        remove = partial(self.world.spawn, place.node.remove)
        self.do(partial(self._fall, place, remove, promptly=False))
        return NOTHING

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

    # the rest

    @rule(place=places, limit=st.integers(1, 3), group=st.sampled_from([QUEUE, ODD]))
    def change_limit(self, place: Place, limit: int, group: str) -> None:
        """Change the limit of a group."""
        self.do(partial(place.change_limit, group, limit))

    @rule(place=places)
    def call_from_a_thread(self, place: Place) -> None:
        """Call a function on the loop from a thread that belongs to nobody."""
        if place.is_over or place.has_fallen:
            return
        told: list[str] = []

        async def act() -> None:
            await to_thread.run_sync(place.node.call_from_thread, told.append, "called")

        self.do(act)
        assert told == ["called"]
