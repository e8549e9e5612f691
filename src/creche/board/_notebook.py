"""A board in a notebook: a picture below the cell, drawn again in its place; no widgets."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._picture import Board


def in_notebook() -> bool:
    """Tell whether what is displayed here is shown by a notebook."""
    ipython = sys.modules.get("IPython")  # where it is not imported, this is none
    shell: Any = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class Notebook:
    """Shows a board as HTML.

    Args:
        board: The board.
    """

    interval: float = 0.25
    """Seconds from one picture to the next, at least; each stays in the history of the kernel."""
    age: float = 1.0
    """Seconds after which ages are worth a picture."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._shown: Any = None

    def begin(self) -> None:
        """Draw the first picture."""
        from IPython import display  # noqa: PLC0415 (it is there if this is a notebook)

        show: Any = vars(display)["display"]  # it has no types
        self._shown = show(self._picture(), raw=True, display_id=True)

    def show(self) -> None:
        """Draw how it stands, in place of the last."""
        self._board._news()
        self._shown.update(self._picture(), raw=True)

    def _picture(self) -> dict[str, str]:
        board = self._board
        return {"text/html": board._repr_html_(), "text/plain": board._summary()}

    def end(self) -> None:
        """Leave the last picture where it is."""
