"""Rules that cancel: each way there is."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from hypothesis import strategies as st
from hypothesis.stateful import consumes, precondition, rule

from ._scripts import OnCancel
from ._work import NOTHING, Work, cancelled, groups, places, started, threads, unstarted

if TYPE_CHECKING:
    from ._model import Place, Record


class Cancels(Work):
    """A machine that cancels what it runs."""

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
            if record.play.is_inside:
                if record.play.script.on_cancel not in {OnCancel.OBEY, OnCancel.RESIST}:
                    record.is_deaf = True  # its work alone has learnt of it so far
                else:
                    record.ask("its task was cancelled")
                cancel_natively(record)

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
                for each in place.root.below():
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
            # Once more it changes nothing: not for what was added since, and not started.
            is_certain = promptly and not place.has_fallen
            place.is_cancelled = True
            for each in place.below() if is_certain else ():
                self._ask(each.unfinished(), f"{place.name} was cancelled")
            cancel()


def cancel_natively(record: Record) -> None:
    """Cancel the task of a worker as asyncio does it."""
    name = f"{record.place.node.path}/{record.group}/{record.play.__name__}"
    for task in asyncio.all_tasks():
        if task.get_name() == name:
            task.cancel()
