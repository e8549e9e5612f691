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

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection


class Party(Protocol):
    """One that may have to wait."""

    @property
    def is_finished(self) -> bool: ...

    def _creche_needs_all(self) -> Collection[Party]:
        """Tell the parties that must all end before this one can."""
        ...

    def _creche_needs_one(self) -> Collection[Party]:
        """Tell the parties of which one must end before this one can; empty if it needs none."""
        ...

    def _creche_spoken(self) -> str:
        """Name the party in a sentence."""
        ...


_Needs: TypeAlias = "tuple[Collection[Party], Collection[Party]]"


def find_deadlock(waiter: Party) -> str | None:
    """Tell whether a party that is about to wait would wait for ever.

    Args:
        waiter: The party, which tells already what it is about to need.

    Returns:
        The ring in words, from the waiter on; ``None`` if the wait can end.
    """
    needs = _reachable(waiter)
    free: set[Party] = set()
    # From what is found last, the far ends, so that a chain is freed in one pass.
    ahead = list(reversed(needs))
    while True:
        stuck = [party for party in ahead if not _can_go(needs[party], free, party)]
        if len(stuck) == len(ahead):
            break
        ahead = stuck
    if waiter in free:
        return None
    ring = [waiter]
    while True:
        every, one = needs[ring[-1]]
        following = next(other for other in (*every, *one) if other not in free)
        if following in ring:
            names = [party._creche_spoken() for party in (*ring, following)]
            return " waits for ".join(names)
        ring.append(following)


def _can_go(needs: _Needs, free: set[Party], party: Party) -> bool:
    every, one = needs
    if all(other in free for other in every) and (not one or any(other in free for other in one)):
        free.add(party)
        return True
    return False


def _reachable(waiter: Party) -> dict[Party, _Needs]:
    needs: dict[Party, _Needs] = {}
    ahead: list[Party] = [waiter]
    while ahead:
        party = ahead.pop()
        if party not in needs:
            needs[party] = (
                ((), ())
                if party.is_finished
                else (party._creche_needs_all(), party._creche_needs_one())
            )
            ahead.extend(needs[party][0])
            ahead.extend(needs[party][1])
    return needs
