"""What ends answers that wait as the server is told to stop: else it would wait for them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Generator

    from creche import Node

PATIENCE = 1.0
"""Seconds that sse-starlette, which sees the signal too, lets a stream end by itself."""


class Closing:
    """The waits of one node's answers, from the start of the server to its end."""

    def __init__(self) -> None:
        self._is_closing = False
        self._scopes: set[anyio.CancelScope] = set()

    def close(self) -> None:
        """End all waits, and those to come."""
        self._is_closing = True
        for scope in list(self._scopes):
            scope.cancel()

    @contextmanager
    def wait(self) -> Generator[anyio.CancelScope]:
        """Have what waits in this block broken off as the server is told to stop."""
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            if self._is_closing:
                scope.cancel()
            try:
                yield scope
            finally:
                self._scopes.discard(scope)


_served: dict[int, Closing] = {}
"""By the id() of the node, which is kept alive by its lifespan meanwhile."""


@contextmanager
def served(node: Node) -> Generator[Closing]:
    """Have the waits of a node's answers ended together, in this block."""
    closing = _served[id(node)] = Closing()
    try:
        yield closing
    finally:
        del _served[id(node)]


def closing_of(node: Node) -> Closing:
    """Give what ends the waits of a node's answers; where nobody does, one that never ends."""
    return _served.get(id(node)) or Closing()
