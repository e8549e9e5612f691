"""The picture of a board: lines that fit into a terminal, however much there is to tell."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, cast, final

from rich.text import Text

from creche import WorkerState
from creche._core.facts import children_of, facts_of
from creche._ground.states import CLOSED
from creche._ground.text import text, text_of

from ._tally import Tally
from ._words import amount, counted, duration, plain

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from rich.console import Console, ConsoleOptions, RenderResult

    from creche import Node, Subscription, Worker, WorkerGroup
    from creche._core.facts import Facts
    from creche._looking.watching import Faults

    from ._tally import Change

ENDS = {
    WorkerState.SUCCESS: "done",
    WorkerState.ERROR: "failed",
    WorkerState.CANCELLED: "cancelled",
}
_ASCII = str.maketrans("▾▸●○✗…━", "v>*ox~-")
_HEADS = ("", "", "rate", "left", "age")
_WIDTHS = (8, 4, 7, 6, 6)
"""How wide the columns are at least. The first is the bar, which grows with the terminal."""
_NARROW = 80
_DEEPEST = 20
"""The level of indentation at which it stops to grow."""
_CTRL_C = 3
"""The columns left free at the end of the last line, where terminals write ``^C``."""


class _Place(NamedTuple):
    """A node or a group: a line about it, and the workers that are told below that.

    There may be thousands for which there is no room: their words are never made.
    """

    depth: int
    node: Any
    group: WorkerGroup | None = None
    running: Collection[Worker[Any]] = ()
    queued: int = 0
    unstarted: int = 0

    @property
    def words(self) -> str:
        """Its line."""
        if self.group is None:
            closed = ", closed" if self.node._creche_nursery.state is CLOSED else ""
            return f"▾ {text_of(self.node, 'name')}{closed}"
        limit = f", limit {self.group.limit}" if self.group.limit else ""
        return f"▸ {text(self.group.name)}{limit}"

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

    def height(self, most: int) -> int:
        """Tell how many lines it takes if at most so many workers are shown."""
        return 1 + min(len(self.running), most) + bool(self.rest(most))


@final
class Board:
    """What a live board shows; given by ``live_board()``, and printed by Rich as it stands then.

    Threads:
        To be printed on the node's event loop only.
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
        pen, survey = _Pen(console, width), _Survey(self._tally, self.node)
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

    def __init__(self, place: _Place, above: _Branch | None) -> None:
        self.place = place
        self.above = above
        self.parts: list[_Place | _Branch] = []
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
            branch = _Branch(_Place(depth, node), above)
            branch.parts += _groups(tally, node, depth + 1)
            branches.append(branch)
            if above is not None:
                above.parts.append(branch)
            waiting += ((child, depth + 1, branch) for child in reversed(children_of(node)))
            self._count(branch)
        return branches

    def _count(self, branch: _Branch) -> None:
        """Count a node and its groups, while it has no other parts yet."""
        groups = cast("list[_Place]", branch.parts)
        running = sum(len(place.running) for place in groups)
        branch.runs = running > 0
        self.number += 1 + len(groups)
        self.now["running"] += running
        self.now["queued"] += sum(place.queued for place in groups)
        self.now["not started"] += sum(place.unstarted for place in groups)

    def places(self, *, sort: bool) -> Iterator[_Place]:
        """Give the nodes and groups, one after another; if sorted, what runs comes first."""
        waiting: list[_Place | _Branch] = [self._top]
        while waiting:
            part = waiting.pop()
            if isinstance(part, _Place):
                yield part
                continue
            yield part.place
            parts = sorted(part.parts, key=_is_idle) if sort else part.parts
            waiting += reversed(parts)


def _is_idle(part: _Place | _Branch) -> bool:
    return not (part.running if isinstance(part, _Place) else part.runs)


def _groups(tally: Tally, node: Any, depth: int) -> Iterator[_Place]:
    for group in list(node._creche_groups.values()):
        running = tally.running(group)
        # Who has a slot and does not run waits for a thread.
        queued = group.queued + max(0, group.running - len(running))
        unstarted = max(0, len(group) - len(running) - queued)
        if running or queued or unstarted:
            yield _Place(depth, node, group, running, queued, unstarted)


def _tree(pen: _Pen, survey: _Survey, room: int) -> list[Text]:
    """Draw the tree in so many lines, with as many workers of each group as there is room for."""
    most = 1
    places: Iterable[_Place] = survey.places(sort=survey.number > room)
    if survey.number < room:
        places, most = list(places), room
        while most > 1 and sum(place.height(most) for place in places) > room:
            most -= 1
    lines: list[Text] = []
    for number, place in enumerate(places):
        left = survey.number - number
        if len(lines) + place.height(most) > room - (left > 1):
            lines.append(pen.line(f"… {left:,} more nodes and groups"))
            break
        lines.append(pen.place(place, heads=not number))
        lines += [pen.worker(place, worker) for worker in islice(place.running, most)]
        if rest := place.rest(most):
            lines.append(pen.line(f"{place.indent} … {rest}"))
    return lines


def _service(facts: Facts) -> str:
    """Tell how a worker serves, where that is not as it should be."""
    told = [f"attempt {facts.attempt}"] * (facts.attempt > 1)
    told += ["not ready"] * (facts.is_ready is False)
    told += ["stalled"] * facts.is_stalled
    return ", ".join(told)


class _Pen:
    """Writes the lines for one terminal."""

    def __init__(self, console: Console, width: int) -> None:
        self._width = width
        self._encoding = console.encoding
        self._is_ascii = console.options.ascii_only
        self._track = "━" if console.color_system and not console.no_color else " "
        bar, *widths = _WIDTHS
        self._widths = [bar + max(0, min(width - _NARROW, 80)) // 4, *widths]
        # Where it is narrow, the columns on the left go first.
        self._is_shown = [
            sum(self._widths[number:]) <= width // 2 for number in range(len(self._widths))
        ]

    def _text(self, words: str, style: str = "") -> Text:
        shown = words[: self._width]  # far more could be there
        if self._is_ascii:
            shown = shown.translate(_ASCII)
        return Text(no_wrap=True).append(plain(shown, self._encoding), style)

    def _fit(self, text: Text, width: int, *, pad: bool = False) -> Text:
        text.truncate(width, overflow="crop" if self._is_ascii else "ellipsis", pad=pad)
        return text

    def line(self, words: str, style: str = "") -> Text:
        """Write a line."""
        return self._fit(self._text(words, style), self._width)

    def summary(self, words: str) -> Text:
        """Write the last line."""
        return self._fit(self._text(words), self._width - _CTRL_C)

    def place(self, place: _Place, *, heads: bool) -> Text:
        """Write the line about a node or a group, with the heads of the columns."""
        words = self._text(f"{place.indent}{place.words}", place.style)
        return self._row(words, [Text(head, "dim") for head in (_HEADS if heads else ())])

    def worker(self, place: _Place, worker: Worker[Any]) -> Text:
        """Write the line about a worker."""
        facts = facts_of(worker)
        is_cancelled = facts.cancelled_at is not None
        color = "yellow" if is_cancelled else "green"
        words = self._text(f"{place.indent} ")
        words.append_text(self._text("○" if is_cancelled else "●", color))
        words.append_text(self._text(f" {facts.name}"))
        if served := _service(facts):
            words.append_text(self._text(f" {served}", "yellow"))
        told = "is being cancelled" if is_cancelled else facts.description
        words.append_text(self._text(f" {told}" if told else "", "dim"))
        return self._row(words, self._cells(facts))

    def _cells(self, facts: Facts) -> list[Text]:
        done, total, elapsed = facts.completed, facts.total, facts.elapsed
        rate = done / elapsed if elapsed > 0 else 0.0
        bar, percent, left = Text(), "", ""
        if total:
            width = self._widths[0]
            full = int(facts.progress / 100 * width)
            bar = Text().append_text(self._text("━" * full, "green"))
            bar.append_text(self._text(self._track * (width - full), "bright_black"))
            percent = f"{int(facts.progress)}%"
            if rate > 0 and total > done:
                left = duration((total - done) / rate)
        elif done:
            bar = Text(amount(done))
        speed = f"{amount(rate)}/s" if rate > 0 else ""
        return [bar, Text(percent), Text(speed), Text(left), Text(duration(elapsed), "dim")]

    def _row(self, words: Text, cells: list[Text]) -> Text:
        shown = [
            (cell, width)
            for cell, width, is_shown in zip(cells, self._widths, self._is_shown, strict=False)
            if is_shown
        ]
        if not shown:
            return self._fit(words, self._width)
        self._fit(words, self._width - sum(width + 1 for _, width in shown), pad=True)
        for cell, width in shown:
            cell.align("right", width)
            words.append(" ").append_text(cell)
        return words
