"""What a machine knows of nodes and workers: what it did to them, and what their logs say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from creche import Worker
from creche.testing._scripts import OnCancel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from creche import Node, WorkerState
    from creche.testing._recorder import EventRecorder
    from creche.testing._scripts import Play

FREE, QUEUE, ODD = "free", "queue", "odd"
"""The groups of each node: without a limit; with one, first in first out; with another overflow."""


class Place:
    """A node of the tree, and what was done to it."""

    def __init__(
        self, node: Node, kind: str, parent: Place | None, recorder: EventRecorder
    ) -> None:
        self.node = node
        self.name: str = node.path
        self.kind = kind  # root, block (a child with a block of its own), mounted
        self.parent = parent
        self.recorder = recorder
        self.heard: list[Worker.StateChanged] = []  # by a subscription to the whole tree
        self.children: list[Place] = []
        self.records: list[Record] = []
        self.limits: dict[str, int | None] = {}
        self.highest: dict[str, int | None] = {}  # that the limits were in the current step
        self.scope: anyio.CancelScope = anyio.CancelScope()
        self.leave: anyio.Event = anyio.Event()
        self.is_leaving = False
        self.is_shut = False
        self.is_cancelled = False
        self.has_ended = False
        self.is_killed = False  # by a native cancel of a task that had made no step
        self.raised: BaseException | None = None
        self.posted: list[int] = []
        self.passed_on: list[int] = []  # those of them that certainly go on to the parent
        self.got: list[tuple[Place, int]] = []  # messages: where they were posted, and the number
        if parent is not None:
            parent.children.append(self)

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def below(self) -> Iterator[Place]:
        """Give this place and all below it."""
        yield self
        for child in self.children:
            yield from child.below()

    def mounted(self) -> Iterator[Place]:
        """Give this place and those whose errors its block raises."""
        yield self
        for child in self.children:
            if child.kind == "mounted":
                yield from child.mounted()

    @property
    def root(self) -> Place:
        """The root of the tree that this place is in."""
        return self if self.parent is None else self.parent.root

    def all_records(self) -> Iterator[Record]:
        """Give the workers of this place and of all below it."""
        for place in self.below():
            yield from place.records

    def waits(self) -> Iterator[Waiter]:
        """Give the waits for workers of this place that go on."""
        for record in self.records:
            yield from (waiter for waiter in record.waiters if waiter.outcome is None)

    @property
    def is_over(self) -> bool:
        """Whether the node has been left."""
        return self.node.is_finished if self.kind == "mounted" else self.has_ended

    @property
    def has_failed(self) -> bool:
        """Whether an error fails this node; that of a mounted one does once that is over."""
        mounted = (each for each in self.children if each.kind == "mounted" and each.is_over)
        return any(record.has_failed for record in self.records) or any(
            each.has_failed for each in mounted
        )

    @property
    def has_fallen(self) -> bool:
        """Whether this node was cancelled, or has failed, or one above it."""
        if self.is_cancelled or self.has_failed:
            return True
        return self.parent is not None and self.parent.has_fallen

    @property
    def is_closing(self) -> bool:
        """Whether this node is told to leave: daemons and unstarted workers may be cancelled."""
        if self.is_leaving or self.is_shut or self.is_over:
            return True
        return self.parent is not None and self.parent.is_closing

    @property
    def refuses(self) -> bool:
        """Whether no work may start any more."""
        return self.is_shut or self.is_over or (self.parent is not None and self.parent.is_shut)

    def change_limit(self, group: str, limit: int) -> None:
        """Change the limit of a group. Who has got a slot already, keeps it."""
        before = self.limits[group]
        self.node.group(group).limit = limit
        self.limits[group] = limit
        self.highest[group] = max(limit, before or limit, self.highest.get(group) or 0)

    def unfinished(self, group: str | None = None) -> list[Record]:
        """Give the workers of this node that have not ended, or those of one of its groups."""
        return [
            record
            for record in self.records
            if not record.worker.is_finished and group in (None, record.group)
        ]

    def forget(self) -> None:
        """Let go of the node and of all that holds workers; may be called again."""
        self.recorder.events.clear()  # the node has the recorder
        vars(self).pop("node", None)
        self.raised = None
        self.records.clear()
        self.got.clear()
        self.heard.clear()


class Record:
    """A worker, its script, and what was done to it."""

    def __init__(
        self, place: Place, group: str, play: Play, *, fatal: bool, daemon: bool, kind: str
    ) -> None:
        self.worker: Worker[Any]
        self.place = place
        self.group = group
        self.play = play
        self.fatal = fatal
        self.daemon = daemon
        self.kind = kind  # see acts.KINDS
        self.asked: str | None = None
        """Who asked for cancellation while the worker was unfinished; it is certain."""
        self.may_be_cancelled = False
        """Whether something was done that may have led to a cancellation."""
        self.is_deaf = False
        """Whether its work may keep a native cancellation to itself, and succeed."""
        self.has_unwound = False
        """Whether its loop in a thread was waited for, after it had been cancelled."""
        self.exclusive = False
        self.completed = 0
        """The completed steps that were seen last."""
        self.reported: tuple[int, int | None] = (0, None)
        """The completed steps and the total that rules have reported."""
        self.elsewhere: WorkerState | None = None
        """The state that was assigned, where an adapter runs the work."""
        self.order = 0
        self.started: int | None = None
        self.entered: int | None = None
        self.final: object = None
        self.waiters: list[Waiter] = []
        place.records.append(self)

    def __repr__(self) -> str:
        return f"<{self.play.__name__} in {self.place.name}/{self.group}: {self.play.script}>"

    @property
    def in_thread(self) -> bool:
        """Whether the work runs in a thread."""
        return self.kind in {"thread", "abandoned", "async-thread"}

    @property
    def is_plain(self) -> bool:
        """Whether the worker does nothing but its work: a ``run()`` of its own may do more."""
        return self.elsewhere is None and type(self.worker).run is Worker[Any].run

    def ask(self, who: str) -> None:
        """Note that cancellation is asked for."""
        if self.asked is None and not self.worker.is_finished:
            self.asked = who

    @property
    def has_failed(self) -> bool:
        """Whether the work raised an error that fails the node, and the loop has heard of it."""
        if not self.play.log or self.kind == "abandoned":
            error = getattr(self.worker, "error", None)
            return error is not None and (self.fatal or not isinstance(error, Exception))
        if self.in_thread and not self.worker.is_finished:
            return False
        last = self.play.log[-1]
        return last == "raised base" or (last == "raised" and self.fatal)

    @property
    def holds_on(self) -> bool:
        """Whether the work is inside and does not leave by itself though it was cancelled."""
        if not self.play.is_inside:
            return False
        if self.in_thread and self.kind != "async-thread":
            return self.kind == "thread"
        return "cancelled" in self.play.log and self.play.script.on_cancel is OnCancel.HOLD

    @property
    def may_end_cancelled(self) -> bool:
        """Whether anything was done that explains a cancellation."""
        if self.asked is not None or self.may_be_cancelled or self.is_deaf or self.place.has_fallen:
            return True
        return self.place.is_closing and (self.daemon or self.started is None)

    def forget(self) -> None:
        """Let go of the worker, and of all that holds it; may be called again."""
        vars(self).pop("worker", None)
        self.waiters.clear()
        self.play._noted = self.play.then = None
        self.play.errors.clear()


class Waiter:
    """A task that waits for a worker."""

    def __init__(self, record: Record, within: Record | None = None) -> None:
        self.record = record
        self.within = within
        """The worker whose work waits, if it is one."""
        self.is_ring = False
        """Whether the wait closes a ring, as far as logs can tell."""
        self.scope: anyio.CancelScope = anyio.CancelScope()
        self.outcome: tuple[str, object] | None = None
        record.waiters.append(self)

    def __repr__(self) -> str:
        return f"<waiter for {self.record.play.__name__}>"


def find_stuck(records: Iterable[Record]) -> set[Record]:
    """Find the workers that can never end unless they are cancelled: each waits for such a one."""
    stuck = {each for each in records if not (each.worker.is_finished or each.worker.is_cancelled)}
    while True:
        free = {each for each in stuck if _can_go(each, stuck)}
        if not free:
            return stuck
        stuck -= free


def _can_go(record: Record, stuck: set[Record]) -> bool:
    if record.play.is_entered:
        waits = [each for place in record.place.root.below() for each in place.waits()]
        return not any(each.within is record and each.record in stuck for each in waits)
    limit = record.place.limits[record.group]
    holders = [each for each in record.place.unfinished(record.group) if each.play.is_inside]
    return limit is None or len(holders) < limit or not stuck.issuperset(holders)
