"""Finds out whether a wait can ever end.

Each party (a worker, or a node that a worker has open) says what it needs before it can continue:
*all* of some parties to end, and *one* of some others (a queued worker needs one of those that hold
the slots of its group to end). A party is free if what it needs can end. That is a least fixpoint:
start with no party free, and add those that need nothing, or only what is free already, until
nothing changes. All others are stuck, in a cycle of any length or behind one.

The search is lazy and depth-first. The waiter's needs are checked one after another, and the needs
of a party that is not known to be free are checked before; each need of each party at most once.
The search stops as soon as the waiter is free, and for slots as soon as one is. So a check costs
what it passes on its way, no matter how many other workers wait.

Only certain deadlocks count. A worker's own task or thread is checked, never the tasks that it
spawned: their owner may cancel them.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Reversible


class Waitable(Protocol):
    """A vertex of the wait-for graph."""

    @property
    def is_finished(self) -> bool: ...

    def _creche_needs_all(self) -> Collection[Waitable]:
        """Return the parties that must all end before this one can."""
        ...

    def _creche_needs_one(self) -> Collection[Waitable]:
        """Return the parties of which one must end before this one can; empty if none.

        They can be reversed. A party belongs to one group only: if the first of two such
        collections is the same, so are the others.
        """
        ...

    def _creche_label(self) -> str:
        """Name the party in a sentence."""
        ...


class _Step:
    """A party, which needs all of its needs; or the slots of a group, which need one."""

    def __init__(self, needs: Iterator[_Step], party: Waitable | None) -> None:
        self.party = party
        """The party; ``None`` for slots, of which one is needed."""
        self.is_begun = False
        self.is_free = False
        self.need: _Step | None = None
        """The need that it waits for; for slots, the first."""
        self.behind: list[_Step] = []
        """What to check once this one is free."""
        self._needs = needs

    def look(self) -> _Step | None:
        """Check its needs; return one that has to be checked first, if any."""
        return self._look_for_one() if self.party is None else self._look_for_all()

    def _look_for_all(self) -> _Step | None:
        while self.need is None or self.need.is_free:
            self.need = next(self._needs, None)
            if self.need is None:
                self.is_free = True
                return None
        if not self.need.is_begun:
            return self.need
        self.need.behind.append(self)
        return None

    def _look_for_one(self) -> _Step | None:
        for need in self._needs:
            self.need = self.need or need
            if need.is_free:
                self.is_free = True
                return None
            need.behind.append(self)
            if not need.is_begun:
                return need
        return None

    def follow(self) -> _Step:
        """Return the party that this stuck one waits for."""
        assert self.need is not None
        return self.need if self.need.party is not None else self.need.follow()

    def let_go(self) -> list[_Step]:
        """Return what to check now that this one is free."""
        behind, self.behind = self.behind, []
        for step in behind:
            step.is_free = step.is_free or step.party is None
        return behind


class _Search:
    """The steps by party; parties are compared by identity, whatever their ``==`` does."""

    def __init__(self) -> None:
        self._parties: dict[int, _Step] = {}
        self._slots: dict[int, _Step] = {}

    def find(self, party: Waitable) -> _Step:
        """Return the step of a party."""
        step = self._parties.get(id(party))
        if step is None:
            step = self._parties[id(party)] = _Step(self._needs_of(party), party)
        return step

    def forget(self) -> None:
        """Let go of all parties: the steps are reference cycles."""
        for step in (*self._parties.values(), *self._slots.values()):
            vars(step).clear()

    def _needs_of(self, party: Waitable) -> Iterator[_Step]:
        if party.is_finished:
            return
        for other in party._creche_needs_all():
            yield self.find(other)
        holders = party._creche_needs_one()
        if holders:
            first = id(next(iter(holders)))
            if first not in self._slots:
                self._slots[first] = _Step(self._holders(holders), None)
            yield self._slots[first]

    def _holders(self, holders: Collection[Waitable]) -> Iterator[_Step]:
        """Yield the holders of slots, from both ends: usually the oldest or newest wait."""
        backwards = reversed(cast("Reversible[Waitable]", holders))
        for pair in islice(zip(holders, backwards, strict=True), (len(holders) + 1) // 2):
            yield from map(self.find, pair)


def find_deadlock(waiter: Waitable) -> str | None:
    """Find out whether a party that is about to wait would wait forever.

    Args:
        waiter: The party; its needs include the new wait. Nothing may change meanwhile.

    Returns:
        The cycle in words, from the waiter on; ``None`` if the wait can end.
    """
    search = _Search()
    try:
        first = search.find(waiter)
        _look_from(first)
        return None if first.is_free else _ring(first)
    finally:
        search.forget()


def _look_from(first: _Step) -> None:
    """Check what a party needs, until it is free or nothing is left to check."""
    ahead = [first]  # the last one is checked next
    while ahead and not first.is_free:
        step = ahead[-1]
        step.is_begun = True
        need = None if step.is_free else step.look()
        if need is not None:
            ahead.append(need)
        else:
            ahead.pop()
            if step.is_free:
                ahead += step.let_go()


def _ring(first: _Step) -> str:
    """Name the parties of a cycle, from the first one to where it closes."""
    ring: dict[_Step, None] = {}
    step = first
    while step not in ring:
        ring[step] = None
        step = step.follow()
    names = (each.party._creche_label() for each in (*ring, step) if each.party is not None)
    return " waits for ".join(names)
