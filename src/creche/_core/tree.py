"""The tree of nodes: what is above and below one, and how a node joins it.

A node knows its parent from the start. The parent knows the node only once that is open or holds
something, so nodes that are created and dropped leave nothing behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from creche._ground.report import text_of
from creche._ground.states import CLOSED, NEW
from creche._messages.subscription import inherit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from creche._ground.bridge import Bridge

    from .node import Node


def walk_up(node: Node) -> Iterator[Node]:
    """Yield a node and all above it."""
    each: Node | None = node
    while each is not None:
        yield each
        each = each._creche_parent


def walk_down(node: Node) -> Iterator[Node]:
    """Yield a node and all below it, each before those below it."""
    ahead: list[Node] = [node]
    while ahead:
        node = ahead.pop()
        yield node
        ahead.extend(reversed(list(node._creche_children.values())))


def is_lost(node: Node) -> bool:
    """Whether a node can never be opened, because one above it has closed."""
    return any(each._creche_nursery.state is CLOSED for each in walk_up(node))


def bridge_of(node: Node) -> Bridge:
    """Return the bridge of a node, or of the first node above that has a loop."""
    own = node._creche_nursery
    if own.state is NEW:
        for each in walk_up(node):
            if each._creche_nursery.state is not NEW:
                return each._creche_nursery.bridge
    return own.bridge


def join_names(node: Node) -> str:
    """Join the names from the root to a node."""
    names: list[object] = [each.name for each in walk_up(node)]
    # A user may have set one to something that is not a string; the end must not fail then.
    return "/".join(name if type(name) is str else text_of(name) for name in reversed(names))


def exits_on_error(node: Node) -> bool:
    """Whether an error of a worker fails a node, if the call that started it does not say."""
    exits, above = node._creche_exits, node._creche_parent
    while exits is None and above is not None:
        exits, above = above._creche_exits, above._creche_parent
    return exits is not False


def join(node: Node) -> None:
    """Make the parent know a node, which is open or holds something now."""
    joining: list[tuple[Node, Node]] = []
    while (parent := node._creche_parent) is not None and id(node) not in parent._creche_children:
        joining.append((node, parent))
        node = parent
    for each, parent in reversed(joining):
        parent._creche_children[id(each)] = each
        inherit(each._creche_audience, parent._creche_audience)
