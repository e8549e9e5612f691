"""What is logged if an end takes long: which workers delay it, since when, and where."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from creche._ground.report import harmless, tell
from creche._ground.states import FINAL
from creche._ground.text import label, text

from .facts import facts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from creche._running.stacks import FrameSnapshot

    from .node import Node
    from .worker import Worker

_MOST = 20  # of each kind are named


def late_workers(nodes: Iterable[Node]) -> list[Worker[Any]]:
    """Return the workers of nodes that were started and have not ended."""
    return [
        worker
        for node in nodes
        for group in list(node._creche_groups.values())
        for worker in group
        if worker._started and worker._state not in FINAL
    ]


def report_on(workers: list[Worker[Any]], others: Iterable[str] = ()) -> str:
    """Describe each worker: since when it runs, why it was cancelled and where its code is.

    Args:
        workers: The workers.
        others: What else delays the end, one line each.
    """
    lines = [*_lines(workers), *others]
    more = len(lines) - _MOST
    return "\n".join([*lines[:_MOST], *([f"and {more} more"] if more > 0 else [])])


def _lines(workers: list[Worker[Any]]) -> Iterator[str]:
    find = _stack_finder()
    for number, worker in enumerate(workers):
        now = worker._nursery.now()
        when, reason = worker._cancellation or (now, None)
        why = "" if reason is None else f" ({text(reason)})"
        facts = [f"{worker._state.name} for {facts_of(worker, now).elapsed:.1f} s"]
        facts.append(f"cancelled {now - when:.1f} s ago{why}")
        if worker.thread:
            facts.append("in a thread, which cannot be stopped")
        if worker.where:
            facts.append(f"in {worker.where}")
        if number < _MOST:
            with harmless:
                facts += _places(find(worker))
        yield f"  worker {label(worker)}: {', '.join(facts)}"


def _stack_finder() -> Callable[[Worker[Any]], tuple[FrameSnapshot, ...]]:
    with harmless:  # the library that reads stacks is an extra, and an end must not fail without it
        from creche._running.stacks import find_calls, find_stack  # noqa: PLC0415 (seldom needed)

        calls = find_calls()
        return lambda worker: find_stack(worker, worker._handle, calls)
    return lambda _: ()


def _places(stack: tuple[FrameSnapshot, ...]) -> Iterator[str]:
    """Return the last two frames: the last is often a library's, called by the other."""
    for frame in stack[-2:]:
        yield f"in {frame.function}() at {frame.file}:{frame.line}"


def tell_late(node: Node) -> None:
    """Log that the block of a node waits for cancelled work."""
    nursery = node._creche_nursery
    workers = late_workers([node])
    others = [
        f"  task {task.handle.name!r}"
        for task in list(nursery.held)
        if task.is_holding and task.handle
    ]
    if workers or others:
        tell(
            logging.WARNING,
            "%s waits for work that was cancelled and has not ended:\n%s",
            node._creche_label(),
            report_on(workers, others),
        )
