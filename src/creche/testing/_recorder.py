"""A recorder of the changes of state that nodes announce to their handlers."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from creche import Worker, WorkerState
from creche._ground.states import TRANSITIONS
from creche._ground.text import name_of, place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from creche import Node


def _spoken(worker: Worker[Any]) -> str:
    return f"worker {name_of(worker)!r}"


def _named(states: list[WorkerState] | tuple[WorkerState, ...]) -> str:
    return ", ".join(state.name for state in states) or "nothing"


class EventRecorder:
    """Records each change of state that nodes announce from now on, in order.

    It listens through the handler ``on_worker_state_changed`` of the nodes. A handler that a node
    already has is still called.

    Args:
        nodes: The nodes to listen to; add more with ``watch()``.
    """

    def __init__(self, *nodes: Node) -> None:
        self.events: list[tuple[Worker[Any], WorkerState]] = []
        """Each worker and the state that it came into, in the order of announcement."""
        for node in nodes:
            self.watch(node)

    def watch(self, node: Node) -> None:
        """Listen to one more node.

        Args:
            node: The node. Add the nodes below it separately.

        Threads:
            Any, before anything runs on the node; after that, its event loop only.
        """
        name = Worker.StateChanged.handler_name
        previous: Callable[[Worker.StateChanged], object] | None = getattr(node, name, None)

        def record(message: Worker.StateChanged) -> object:
            self.events.append((message.worker, message.state))
            return previous(message) if previous is not None else None

        setattr(node, name, record)
        # It asks once who wants events, and here is one more.
        node._creche_audience.heed_handlers()

    def __iter__(self) -> Iterator[tuple[Worker[Any], WorkerState]]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    def __repr__(self) -> str:
        return f"<EventRecorder of {len(self.events)} events>"

    def states(self, worker: Worker[Any]) -> list[WorkerState]:
        """Return the states that a worker went through, as announced."""
        return [state for each, state in self.events if each is worker]

    def assert_states(self, worker: Worker[Any], *expected: WorkerState) -> None:
        """Assert that a worker went through these states and no others.

        Args:
            worker: The worker.
            expected: The states, from first to last.

        Raises:
            AssertionError: It did not. The message contains everything that was recorded.
        """
        states = self.states(worker)
        if states != list(expected):
            raise AssertionError(
                f"{_spoken(worker)} went through {_named(states)}; expected {_named(expected)}"
                f"\n{self._told()}"
            )

    def assert_orderly(self) -> None:
        """Assert that the announced states of each worker follow the table of states.

        That is: PENDING first, then only changes that the table allows, each once, and the last one
        is the current state of the worker.

        Raises:
            AssertionError: They do not. The message contains everything that was recorded.

        Threads:
            Where nothing runs meanwhile: the last message may still be on its way.
        """
        for worker in {id(worker): worker for worker, _ in self.events}.values():
            wrong = what_is_wrong(worker, self.states(worker))
            if wrong is not None:
                raise AssertionError(f"{wrong}\n{self._told()}")

    def _told(self) -> str:
        lines = [
            f"  {number:3} {_spoken(worker)} of {place_of(worker)}: {state.name}"
            for number, (worker, state) in enumerate(self.events)
        ]
        return "\n".join(["recorded:", *lines]) if lines else "nothing was recorded"


def what_is_wrong(worker: Worker[Any], states: list[WorkerState]) -> str | None:
    """Tell what is wrong with the changes that were announced of a worker, if anything."""
    if not states:
        return f"nothing was announced of {_spoken(worker)}, which is {worker._state.name}"
    if states[0] is not WorkerState.PENDING:
        return f"{_spoken(worker)} began as {states[0].name}, not as PENDING"
    for before, after in pairwise(states):
        if after not in TRANSITIONS[before]:
            return f"{_spoken(worker)} went from {before.name} to {after.name}"
    if states[-1] is not worker._state:
        return (
            f"{_spoken(worker)} is {worker._state.name}, but the last that was announced of it is "
            f"{states[-1].name}"
        )
    return None
