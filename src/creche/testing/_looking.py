"""What a machine knows, and how it looks at what must hold."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from hypothesis import currently_in_test_context, event
from hypothesis.stateful import RuleBasedStateMachine, invariant

from creche import WorkerState
from creche._ground.states import FINAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._model import Place, Record
    from ._world import World

NAMED: dict[str, str] = {}
"""The name of each invariant, and what it says."""

Method = TypeVar("Method", bound="Callable[..., None]")


def named(method: Method) -> Method:
    """Count a method as an invariant."""
    NAMED[method.__name__] = inspect.getdoc(method) or ""
    return method


class Looking(RuleBasedStateMachine):
    """A machine that looks at the invariants after each step; the loop is quiet meanwhile."""

    backend: ClassVar[str] = "asyncio"
    """The backend of AnyIO that the machine runs on."""
    backend_options: ClassVar[dict[str, Any]] = {}
    """The options of the backend."""
    examples: ClassVar[int] = 0
    """How many programs were run so far."""
    races: ClassVar[Counter[str]] = Counter()
    """In how many of them each race was seen."""

    world: World
    has_broken: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Count the programs of each machine on their own."""
        super().__init_subclass__(**kwargs)
        cls.examples = 0
        cls.races = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Place] = []
        self.violations: list[tuple[str, str]] = []
        """What was seen between the steps: an invariant, and how it was violated."""
        self.steps: int = 0
        self.made = 0
        self.starts = 0
        self.posts = 0
        self._seen: set[str] = set()

    # what it looks at

    def places(self) -> Iterator[Place]:
        """Give all nodes of all trees."""
        for root in self.roots:
            yield from root.below()

    def records(self) -> Iterator[Record]:
        """Give all workers of all trees."""
        for place in self.places():
            yield from place.records

    def expected_states(self, record: Record) -> set[WorkerState]:
        """Tell the states that a worker may end in, of what its work did.

        To be overridden for workers that make something else of the outcome of their work.

        Args:
            record: The worker, with the log of its work in ``play.log``.
        """
        last = record.play.log[-1] if record.play.log else None
        if last == "returned":
            told = "cancelled" in record.play.log and not record.is_deaf
            if told or record.asked is not None:
                return {WorkerState.CANCELLED}
            if record.may_end_cancelled:
                return {WorkerState.CANCELLED, WorkerState.SUCCESS}
            return {WorkerState.SUCCESS}
        if last in {"raised", "raised base"}:
            return {WorkerState.ERROR} if record.kind != "abandoned" else set(FINAL)
        return {WorkerState.CANCELLED}

    def saw(self, race: str) -> None:
        """Count a race that came about, or another thing that is feared."""
        self._seen.add(race)

    def count(self) -> None:
        """Count this program, and the races that it saw."""
        cls = type(self)
        cls.examples += 1
        cls.races.update(self._seen)
        for race in self._seen if currently_in_test_context() else ():
            event(f"met: {race}")

    # what must hold

    @invariant()
    def all_holds(self) -> None:
        """Look at each invariant; one that is broken is told by its name and what it says."""
        for name, meaning in NAMED.items():
            try:
                getattr(self, name)()
            except AssertionError as error:
                self.has_broken = True
                raise AssertionError(f"{name}: {error}\n({meaning})") from error

    def nothing_seen(self, name: str) -> None:
        """Look at what was seen of an invariant between the steps."""
        told = [what for violated, what in self.violations if violated == name]
        assert not told, "; ".join(told)
