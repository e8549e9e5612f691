"""Hypothesis strategies for scripts of work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st

from ._scripts import Ending, OnCancel, Script

if TYPE_CHECKING:
    from collections.abc import Sequence


def scripts(
    *,
    endings: Sequence[Ending] = tuple(Ending),
    on_cancel: Sequence[OnCancel] = tuple(OnCancel),
    gated: bool | None = None,
    checkpoints: int = 3,
) -> st.SearchStrategy[Script]:
    """Draw scripts of work. They shrink towards work that waits at its gate and returns.

    Args:
        endings: How the work may end, the simplest first.
        on_cancel: What it may do when it is cancelled, the simplest first.
        gated: Whether it waits at a gate; ``None`` for either.
        checkpoints: How many checkpoints in a row there may be.

    Returns:
        A strategy for ``Script``.
    """
    count = st.integers(0, checkpoints)
    return st.builds(
        Script,
        before=count,
        gated=st.sampled_from([True, False]) if gated is None else st.just(gated),
        after=count,
        ending=st.sampled_from(endings),
        on_cancel=st.sampled_from(on_cancel),
        unwinding=st.integers(1, max(1, checkpoints)),
    )
