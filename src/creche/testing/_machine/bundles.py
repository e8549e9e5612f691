"""What rules draw from: the bundles of nodes and workers, and the small strategies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, multiple

from .model import FREE, ODD, QUEUE, Place, Record, Waiter

if TYPE_CHECKING:
    from creche import Overflow

places: Bundle[Place] = Bundle("places")
unstarted: Bundle[Record] = Bundle("unstarted")
started: Bundle[Record] = Bundle("started")
cancelled: Bundle[Record] = Bundle("cancelled")
threads: Bundle[Record] = Bundle("threads")
waiters: Bundle[Waiter] = Bundle("waiters")

NOTHING: MultipleResults[Any] = multiple()
"""What a rule gives its bundle where there is nothing to give."""

limits = st.integers(1, 2)
overflows: st.SearchStrategy[Overflow] = st.sampled_from(["restart", "drop", "keep_latest"])
groups = st.sampled_from([FREE, QUEUE, ODD])
kinds = st.sampled_from(["function", "coroutine", "partial"])
sure = st.sampled_from([False, False, False, True])
