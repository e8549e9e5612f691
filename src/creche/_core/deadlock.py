"""Who waits for whom, and whether that can ever end.

Each party (a worker, or a node that a worker has open) tells what it needs before it can go on:
*all* of some parties to end, and *one* of some others (a queued worker needs one of those that hold
the slots of its group to end). A party is free if what it needs can end. That is a least fixpoint:
start with nobody free, add whoever needs nothing or only what is free already, until nothing
changes. Whoever is left is stuck, in a ring of any length or behind one.

Only what is certain counts. A worker's own task or thread is judged, never the tasks that it
spawned: their owner may cancel them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection


class Waitable(Protocol):
    """One that may have to wait."""

    @property
    def is_finished(self) -> bool: ...

    def _creche_needs_all(self) -> Collection[Waitable]:
        """Tell the parties that must all end before this one can."""
        ...

    def _creche_needs_one(self) -> Collection[Waitable]:
        """Tell the parties of which one must end before this one can; empty if it needs none."""
        ...

    def _creche_label(self) -> str:
        """Name the party in a sentence."""
        ...


class _Waiting:
    """A party with what it needs; parties are told apart by identity, whatever ``==`` says."""

    def __init__(self, party: Waitable) -> None:
        self.party = party
        over = party.is_finished
        self.every = () if over else tuple(party._creche_needs_all())
        self.one = () if over else tuple(party._creche_needs_one())
        self.is_free = False

    def can_go(self, known: dict[int, _Waiting]) -> bool:
        if all(known[id(other)].is_free for other in self.every) and (
            not self.one or any(known[id(other)].is_free for other in self.one)
        ):
            self.is_free = True
        return self.is_free


def find_deadlock(waiter: Waitable) -> str | None:
    """Tell whether a party that is about to wait would wait for ever.

    Args:
        waiter: The party, which tells already what it is about to need.

    Returns:
        The ring in words, from the waiter on; ``None`` if the wait can end.
    """
    known = _reachable(waiter)
    # From what is found last, the far ends, so that a chain is freed in one pass.
    ahead = list(reversed(known.values()))
    while True:
        stuck = [each for each in ahead if not each.can_go(known)]
        if len(stuck) == len(ahead):
            break
        ahead = stuck
    if known[id(waiter)].is_free:
        return None
    ring = [known[id(waiter)]]
    while True:
        needs = (known[id(other)] for other in (*ring[-1].every, *ring[-1].one))
        following = next(other for other in needs if not other.is_free)
        ring.append(following)
        if any(following is each for each in ring[:-1]):
            return " waits for ".join(each.party._creche_label() for each in ring)


def _reachable(waiter: Waitable) -> dict[int, _Waiting]:
    known: dict[int, _Waiting] = {}
    ahead: list[Waitable] = [waiter]
    while ahead:
        party = ahead.pop()
        if id(party) not in known:
            needs = known[id(party)] = _Waiting(party)
            ahead.extend(needs.every)
            ahead.extend(needs.one)
    return known
