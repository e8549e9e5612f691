"""Who waits for whom, and whether that can ever end.

Each party (a worker, or a node that a worker has open) tells what it needs before it can go on:
*all* of some parties to end, and *one* of some others (a queued worker needs one of those that hold
the slots of its group to end). A party is free if what it needs can end. That is a least fixpoint:
start with nobody free, add whoever needs nothing or only what is free already, until nothing
changes. Whoever is left is stuck, in a ring of any length or behind one.

What is not asked for is not found out. The waiter's needs are looked at one after another, and what
is not known to be free has its own looked at first; each need of each party once at most. All ends
as the waiter is free, and of slots as one is: so a check costs what lies on the way, however many
others wait.

Only what is certain counts. A worker's own task or thread is judged, never the tasks that it
spawned: their owner may cancel them.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Reversible


class Waitable(Protocol):
    """One that may have to wait."""

    @property
    def is_finished(self) -> bool: ...

    def _creche_needs_all(self) -> Collection[Waitable]:
        """Tell the parties that must all end before this one can."""
        ...

    def _creche_needs_one(self) -> Collection[Waitable]:
        """Tell the parties of which one must end before this one can; empty if it needs none.

        They can be reversed. A party is among those of one group only: who has the first of them
        in common with another, has all of them.
        """
        ...

    def _creche_label(self) -> str:
        """Name the party in a sentence."""
        ...


class _Step:
    """A party, or the slots of a group, with what it needs: all of that, or one."""

    def __init__(self, needs: Iterator[_Step], party: Waitable | None) -> None:
        self.party = party
        """The party, ``None`` for slots: of these one is needed."""
        self.is_begun = False
        self.is_free = False
        self.need: _Step | None = None
        """The need that it waits for; of slots the first."""
        self.behind: list[_Step] = []
        """What is to be looked at once this one is free."""
        self._needs = needs

    def look(self) -> _Step | None:
        """Look at what it needs; give a need that is to be looked at first, if there is one."""
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
        """Return the party that this one, which is stuck, waits for."""
        assert self.need is not None
        return self.need if self.need.party is not None else self.need.follow()

    def let_go(self) -> list[_Step]:
        """Return what is to be looked at, now that it is free."""
        behind, self.behind = self.behind, []
        for step in behind:
            step.is_free = step.is_free or step.party is None
        return behind


class _Search:
    """The steps by who they are of: parties are told apart by identity, whatever ``==`` says."""

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
        """Let go of all parties: steps hold each other, and no worker is left to the collector."""
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
        """Yield those who hold slots, from both ends: mostly the oldest or the newest wait first."""
        backwards = reversed(cast("Reversible[Waitable]", holders))
        for pair in islice(zip(holders, backwards, strict=True), (len(holders) + 1) // 2):
            yield from map(self.find, pair)


def find_deadlock(waiter: Waitable) -> str | None:
    """Return whether a party that is about to wait would wait forever; nothing may change meanwhile.

    Args:
        waiter: The party, which tells already what it is about to need.

    Returns:
        The ring in words, from the waiter on; ``None`` if the wait can end.
    """
    search = _Search()
    try:
        first = search.find(waiter)
        _look_from(first)
        return None if first.is_free else _ring(first)
    finally:
        search.forget()


def _look_from(first: _Step) -> None:
    """Look at what a party needs, until it is free or there is no more to look at."""
    ahead = [first]  # the last one is looked at
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
    """Name those who are stuck, from one of them to where the ring closes."""
    ring: dict[_Step, None] = {}
    step = first
    while step not in ring:
        ring[step] = None
        step = step.follow()
    names = (each.party._creche_label() for each in (*ring, step) if each.party is not None)
    return " waits for ".join(names)
