"""A tree of nodes as text, for people: 80 columns, and at most a page for any number of workers.

What we add is plain ASCII, because it goes to logs and to all kinds of terminals.
"""

from __future__ import annotations

import re
import textwrap
from itertools import groupby
from typing import TYPE_CHECKING

from creche._core.node import Node
from creche._core.snapshot import take
from creche._ground.errors import WorkerError
from creche._ground.public import publish
from creche._ground.states import CLOSED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from creche._core.snapshot import GroupSnapshot, NodeSnapshot, WorkerSnapshot
    from creche._running.stacks import FrameSnapshot

WIDTH = 80
SHOWN = 20
"""How many entries of a list are shown, followed by the number of the others."""
WAITING_SHOWN = 3
"""The same for waiting workers, which are all alike."""
_TEXT = 160
"""How many characters of a user's text are shown."""
_DEEPEST = 20
"""The deepest level of indentation."""


def format_tree(node: Node, *, stacks: bool = False) -> str:
    """Return a node and all below it as text: groups, workers, states, and who waits for whom.

    Lines have at most 80 characters. Of each group, the 20 oldest running workers and the first 3
    waiting ones are shown, with the number of the others; of groups and nodes 20 as well.

    Args:
        node: The node.
        stacks: Whether to show the stack of each running worker: at most 20 frames, the innermost
            last. That takes about a millisecond for each.

    Returns:
        The text, without a line break at its end.

    Raises:
        ImportError: ``stacks`` needs ``creche[stacks]``.
        WorkerError: It is not a ``Node``.

    Threads:
        Any thread; it is made on the event loop, which is blocked meanwhile.
    """
    if not isinstance(node, Node):
        raise WorkerError(f"format_tree() takes a Node, not {node!r:.100}")
    return "\n".join(_tree(take(node, stacks=stacks, most=SHOWN)))


publish(format_tree)


def _line(level: int, text: str) -> Iterator[str]:
    indent = "  " * min(level, _DEEPEST)
    yield from textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}    ")


def _plain(text: str) -> str:
    """Make a user's text harmless for a terminal."""
    shown = text if len(text) <= _TEXT else f"{text[:_TEXT]}..."
    return "".join(each if each.isprintable() else " " for each in shown)


def _tree(top: NodeSnapshot) -> Iterator[str]:
    """Yield the lines of a node and all below it, at any depth."""
    begun = [_node(top, 0)]  # each is below the one before
    while begun:
        part = next(begun[-1], None)
        if part is None:
            begun.pop()
        elif isinstance(part, str):
            yield part
        else:
            begun.append(_node(part, len(begun)))


def _node(node: NodeSnapshot, level: int) -> Iterator[str | NodeSnapshot]:
    """Yield the lines of a node, and in their places the nodes below it."""
    facts = [node.life]
    if node.is_cancelled:
        facts.append(_cancelled(node.cancel_reason, is_over=node.life == CLOSED.value))
    if node.opened_by is not None:
        facts.append(f"opened by {_plain(node.opened_by)}")
    yield from _line(level, f"node {_plain(node.name)}: {', '.join(facts)}")
    for group in node.groups[:SHOWN]:
        yield from _group(group, level + 1)
    yield from _rest(len(node.groups), SHOWN, "groups", level + 1)
    yield from node.children[:SHOWN]
    yield from _rest(len(node.children), SHOWN, "nodes", level + 1)


def _group(group: GroupSnapshot, level: int) -> Iterator[str]:
    limit = "" if group.limit is None else f" of {group.limit}"
    facts = [f"{group.running}{limit} running"]
    if group.queued:
        facts.append(f"{group.queued} queued")
    if group.limit is not None:
        facts.append(group.overflow)
    yield from _line(level, f"group {_plain(group.name)}: {', '.join(facts)}")
    ranked = sorted(group.workers, key=_rank)  # stable: in order of creation, but for the queue
    for kind, some in groupby(ranked, _kind):
        alike = list(some)
        bound = SHOWN if kind in ("running", "starting") else WAITING_SHOWN
        for worker in alike[:bound]:
            yield from _worker(worker, kind, level + 1)
        yield from _rest(len(alike), bound, kind, level + 1)


_KINDS = (
    *("running", "starting", "waiting for a thread", "waiting to begin elsewhere"),
    *("queued", "not started"),
)


def _kind(worker: WorkerSnapshot) -> str:
    if worker.state != "PENDING":
        return "running"
    if worker.queue_position is not None:
        return "queued"
    if worker.is_queued:
        return "waiting for a thread" if worker.thread else "waiting to begin elsewhere"
    return "starting" if worker.is_started else "not started"


def _rank(worker: WorkerSnapshot) -> tuple[int, int]:
    return _KINDS.index(_kind(worker)), worker.queue_position or 0


def _rest(number: int, bound: int, kind: str, level: int) -> Iterator[str]:
    if number > bound:
        yield from _line(level, f"{number - bound} more {kind}")


def _worker(worker: WorkerSnapshot, kind: str, level: int) -> Iterator[str]:
    facts = [kind]
    if worker.queue_position is not None:
        facts[0] += f" at place {worker.queue_position}"
    seconds = worker.elapsed if kind == "running" else worker.age
    if seconds is not None:
        facts.append(f"{seconds:.1f} s")
    if worker.is_cancelled:
        facts.append(_cancelled(worker.cancel_reason))
    facts += _steps(worker)
    facts += ["thread"] * worker.thread + [_plain(worker.where)] * bool(worker.where)
    facts += ["daemon"] * worker.daemon
    if worker.is_ready is not None:
        facts.append("ready" if worker.is_ready else "not ready yet")
    if worker.attempt > 1:
        facts.append(f"attempt {worker.attempt}")
    if worker.is_stalled:
        facts.append("stalled")
    if worker.waits_for:
        facts.append(_waits(worker.waits_for))
    if worker.description:
        facts.append(f'"{_plain(worker.description)}"')
    yield from _line(level, f"{_plain(worker.name)}: {', '.join(facts)}")
    if worker.stack is not None:
        yield from _stack(worker.stack, level + 1)


def _steps(worker: WorkerSnapshot) -> Iterator[str]:
    if worker.total_steps:
        yield f"{worker.progress:.0f} % ({worker.completed_steps}/{worker.total_steps})"
    elif worker.completed_steps:
        yield f"{worker.completed_steps} steps"


def _cancelled(reason: str | None, *, is_over: bool = False) -> str:
    return (
        ("was" if is_over else "being")
        + " cancelled"
        + (f" ({_plain(reason)})" if reason is not None else "")
    )


def _waits(names: Sequence[str]) -> str:
    shown = [_plain(name) for name in names[:WAITING_SHOWN]]
    more = len(names) - len(shown)
    return "waits for " + " and ".join(shown) + (f" and {more} more" if more else "")


def _stack(stack: Sequence[FrameSnapshot], level: int) -> Iterator[str]:
    left_out = len(stack) - SHOWN
    if left_out > 0:
        yield from _line(level, f"{left_out} outer places")
    for frame in stack[-SHOWN:]:
        # Not with pathlib, whose import would take a tenth of the time of AnyIO's.
        place = "/".join(re.split(r"[/\\]", frame.file)[-2:])
        yield from _line(level, _plain(f"{place}:{frame.line} in {frame.function}: {frame.code}"))
