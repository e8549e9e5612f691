"""The picture of a board: lines that fit into a terminal, however much there is to tell."""

from __future__ import annotations

import io
import math
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, cast, final

from rich.console import Console

from creche import WorkerState
from creche._core.facts import children_of
from creche._ground.states import CLOSED
from creche._ground.text import text, text_of

from ._pen import Pen
from ._tally import Tally
from ._words import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from rich.console import ConsoleOptions, RenderResult
    from rich.text import Text

    from creche import Node, Subscription, Worker, WorkerGroup
    from creche._looking.watching import Faults

    from ._tally import Change, Total

ENDS = {
    WorkerState.SUCCESS: "done",
    WorkerState.ERROR: "failed",
    WorkerState.CANCELLED: "cancelled",
}
_NOTEBOOK_WIDTH, _NOTEBOOK_HEIGHT = 100, 30
_HTML = (
    '<pre style="font-family:monospace;line-height:1.3;color:inherit;background:none;'
    'overflow-x:auto">{code}</pre>'
)
_DEEPEST = 20
"""The level of indentation at which it stops to grow."""


class Place(NamedTuple):
    """A node or a group: a line about it, and the workers that are told below that.

    There may be thousands for which there is no room: their words are never made.
    """

    depth: int
    node: Any
    group: WorkerGroup | None = None
    running: Collection[Worker[Any]] = ()
    queued: int = 0
    unstarted: int = 0
    total: Total | None = None

    @property
    def words(self) -> str:
        """Its line."""
        if self.group is None:
            closed = ", closed" if self.node._creche_nursery.state is CLOSED else ""
            return f"▾ {text_of(self.node, 'name')}{closed}"
        limit = f", limit {self.group.limit}" if self.group.limit else ""
        of = f": {self.ended:,} of {self.all:,}" if self.ended else ""
        return f"▸ {text(self.group.name)}{limit}{of}"

    @property
    def ended(self) -> int:
        """How many workers have ended since there was none."""
        return 0 if self.total is None else self.total.ended

    @property
    def all(self) -> int:
        """How many there are and have ended."""
        return self.ended + len(self.running) + self.queued + self.unstarted

    @property
    def style(self) -> str:
        """The style of that."""
        return "bold" if self.group is None else "cyan"

    @property
    def indent(self) -> str:
        """The spaces before its line."""
        return " " * min(self.depth, _DEEPEST)

    def rest(self, most: int) -> str:
        """Tell about the workers that are not shown if so many are."""
        hidden = max(0, len(self.running) - most)
        return counted(
            {"more running": hidden, "more queued": self.queued, "not started": self.unstarted}
        )

    def height(self, most: int, abreast: int) -> int:
        """Tell how many lines it takes if its workers take so many, with so many in each."""
        shown = min(len(self.running), most * abreast)
        return 1 + math.ceil(shown / abreast) + bool(self.rest(most * abreast))


@final
class Board:
    """What a live board shows; ``live_board()`` gives it. Rich prints its current state.

    Threads:
        Print it on the node's event loop only.
    """

    def __init__(self, node: Node, events: Subscription[Change], faults: Faults) -> None:
        self.node: Node = node
        """The topmost node that is shown."""
        self._events = events
        self._faults = faults
        self._tally = Tally(node)
        self._untold: list[Change] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it, as wide as there is room and no higher than that."""
        self._take(*self._events.take_all())
        yield from self._lines(console, options.max_width, options.height or console.height)

    def _repr_html_(self) -> str:
        """Draw it for a notebook."""
        console = Console(file=io.StringIO(), record=True, force_terminal=True, force_jupyter=False)
        lines = self._lines(console, _NOTEBOOK_WIDTH, _NOTEBOOK_HEIGHT)
        console.print(*lines, sep="\n", width=_NOTEBOOK_WIDTH)
        return console.export_html(inline_styles=True, code_format=_HTML)

    @property
    def _is_at_work(self) -> bool:
        return self._tally.is_at_work

    def _take(self, *events: Change) -> None:
        """Take note of what happened."""
        for event in events:
            with self._faults:
                self._tally.take(event)
        self._untold += events

    def _news(self) -> list[Change]:
        """Give what happened since this was last called."""
        self._take(*self._events.take_all())
        news, self._untold = self._untold, []
        return news

    def _lines(self, console: Console, width: int, height: int) -> list[Text]:
        pen, survey = Pen(console, width, self._tally), _Survey(self._tally, self.node)
        failures = list(self._tally.failures)[-max(1, height // 4) :]
        before = self._tally.ended[WorkerState.ERROR] - len(failures)
        below = [pen.line(f"… {before:,} more failures before", "red")] * bool(before)
        below += [pen.line(f"✗ {failure}", "red") for failure in failures]
        below += [pen.summary(self._summary(survey))]
        return [*_tree(pen, survey, height - len(below)), *below][-height:]

    def _summary(self, survey: _Survey | None = None) -> str:
        if survey is None:
            survey = _Survey(self._tally, self.node)
        ended = {ENDS[state]: self._tally.ended[state] for state in ENDS}
        return counted({**survey.now, **ended}) or "nothing yet"


class _Branch:
    """A node and all that is to be told of what is below it."""

    def __init__(self, place: Place, above: _Branch | None) -> None:
        self.place = place
        self.above = above
        self.parts: list[Place | _Branch] = []
        self.runs = False
        """Whether anything runs there."""


class _Survey:
    """A node and all below it that is to be told, counted: one look at each, for one picture."""

    def __init__(self, tally: Tally, top: Node) -> None:
        self.number = 0
        """How many nodes and groups there are."""
        self.now = {"running": 0, "queued": 0, "not started": 0}
        """How many workers there are in each."""
        branches = self._branches(tally, top)
        for branch in reversed(branches):  # those below come before it
            if branch.runs and branch.above is not None:
                branch.above.runs = True
        self._top = branches[0]

    def _branches(self, tally: Tally, top: Node) -> list[_Branch]:
        """Give a node and all below it, each before those below it."""
        branches: list[_Branch] = []
        waiting: list[tuple[Any, int, _Branch | None]] = [(top, 0, None)]
        while waiting:
            node, depth, above = waiting.pop()
            branch = _Branch(Place(depth, node), above)
            branch.parts += _groups(tally, node, depth + 1)
            branches.append(branch)
            if above is not None:
                above.parts.append(branch)
            waiting += ((child, depth + 1, branch) for child in reversed(children_of(node)))
            self._count(branch)
        return branches

    def _count(self, branch: _Branch) -> None:
        """Count a node and its groups, while it has no other parts yet."""
        groups = cast("list[Place]", branch.parts)
        running = sum(len(place.running) for place in groups)
        branch.runs = running > 0
        self.number += 1 + len(groups)
        self.now["running"] += running
        self.now["queued"] += sum(place.queued for place in groups)
        self.now["not started"] += sum(place.unstarted for place in groups)

    def places(self, *, sort: bool) -> Iterator[Place]:
        """Give the nodes and groups, one after another; if sorted, what runs comes first."""
        waiting: list[Place | _Branch] = [self._top]
        while waiting:
            part = waiting.pop()
            if isinstance(part, Place):
                yield part
                continue
            yield part.place
            parts = sorted(part.parts, key=_is_idle) if sort else part.parts
            waiting += reversed(parts)


def _is_idle(part: Place | _Branch) -> bool:
    return not (part.running if isinstance(part, Place) else part.runs)


def _groups(tally: Tally, node: Any, depth: int) -> Iterator[Place]:
    for group in list(node._creche_groups.values()):
        running = tally.running(group)
        # Who has a slot and does not run waits for a thread.
        queued = group.queued + max(0, group.running - len(running))
        unstarted = max(0, len(group) - len(running) - queued)
        if running or queued or unstarted:
            total = tally.total(node, group)
            yield Place(depth, node, group, running, queued, unstarted, total)


def _tree(pen: Pen, survey: _Survey, room: int) -> list[Text]:
    """Draw the tree in so many lines, with as many workers of each group as there is room for."""
    most = abreast = 1
    places: Iterable[Place] = survey.places(sort=survey.number > room)
    if survey.number < room:
        places, most = list(places), room
        if sum(place.height(most, 1) for place in places) > room:
            abreast = pen.abreast
        while most > 1 and sum(place.height(most, abreast) for place in places) > room:
            most -= 1
    lines: list[Text] = []
    for number, place in enumerate(places):
        left = survey.number - number
        if len(lines) + place.height(most, abreast) > room - (left > 1):
            lines.append(pen.line(f"… {left:,} more nodes and groups"))
            break
        lines.append(pen.place(place, heads=not number))
        workers = iter(islice(place.running, most * abreast))
        while few := list(islice(workers, abreast)):
            lines.append(pen.workers(place, few, abreast))
        if rest := place.rest(most * abreast):
            lines.append(pen.line(f"{place.indent} … {rest}"))
    return lines
