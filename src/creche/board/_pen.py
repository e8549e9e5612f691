"""The pen of a board: writes its lines for one terminal, in columns that fit into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from creche._core.facts import facts_of

from ._words import amount, duration, plain, speed

if TYPE_CHECKING:
    from rich.console import Console

    from creche import Worker
    from creche._core.facts import Facts

    from ._picture import Place
    from ._tally import Tally

_ASCII = str.maketrans("▾▸●○✗…━", "v>*ox~-")
_HEADS = ("", "", "", "rate", "left", "age")
_WIDTHS = (11, 8, 4, 7, 6, 6)
"""How wide the columns are at least. The second is the bar, which grows with the terminal."""
_NARROW = 80
_WIDE = 100
"""The width from which on there is the first column, and another worker in each line."""
_CTRL_C = 3
"""The columns left free at the end of the last line, where terminals write ``^C``."""


def _service(facts: Facts) -> str:
    """Tell how a worker serves, where that is not as it should be."""
    told = [f"attempt {facts.attempt}"] * (facts.attempt > 1)
    told += ["not ready"] * (facts.is_ready is False)
    told += ["stalled"] * facts.is_stalled
    return ", ".join(told)


class Pen:
    """Writes the lines for one terminal."""

    def __init__(self, console: Console, width: int, tally: Tally) -> None:
        self._width = width
        self._encoding = console.encoding
        self._is_ascii = console.options.ascii_only
        self._track = "━" if console.color_system and not console.no_color else " "
        self.abreast = max(1, width // _WIDE)
        """How many workers a line may have."""
        self._columns = {number: _columns(width // number) for number in (1, self.abreast)}
        self._tally = tally

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

    def place(self, place: Place, *, heads: bool) -> Text:
        """Write the line about a node or a group; the first one has the heads of the columns."""
        words = self._text(f"{place.indent}{place.words}", place.style)
        cells = [Text(head, "dim") for head in (_HEADS if heads else ())]
        if place.total is not None:
            rate = place.total.rate(place.node._creche_nursery.now())
            cells = self._cells(place.ended, place.all, rate, self._columns[1])
        return self._row(words, cells, self._width, self._columns[1])

    def workers(self, place: Place, few: list[Worker[Any]], abreast: int) -> Text:
        """Write a line about as many workers as are abreast, or fewer."""
        width, columns = self._width // abreast, self._columns[abreast]
        line = Text(no_wrap=True)
        for number, worker in enumerate(few, 1):
            # What is left of each but the last is a gap.
            gap = 2 * (number < abreast)
            line.append_text(self._worker(place, worker, width - gap, columns)).append(" " * gap)
        return line

    def _worker(
        self, place: Place, worker: Worker[Any], width: int, columns: dict[int, int]
    ) -> Text:
        facts = facts_of(worker)
        is_cancelled = facts.cancelled_at is not None
        color = "yellow" if is_cancelled else "green"
        words = self._text(f"{place.indent} ")
        words.append_text(self._text("○" if is_cancelled else "●", color))
        words.append_text(self._text(f" {facts.name}"))
        if served := _service(facts):
            words.append_text(self._text(f" {served}", "yellow"))
        told = "is being cancelled" if is_cancelled else facts.description
        told = f"{facts.where} {told}".strip()
        words.append_text(self._text(f" {told}" if told else "", "dim"))
        rate = self._tally.rate(worker, facts)
        cells = self._cells(facts.completed, facts.total, rate, columns)
        return self._row(words, [*cells, Text(duration(facts.elapsed), "dim")], width, columns)

    def _cells(
        self, done: float, total: float | None, rate: float, columns: dict[int, int]
    ) -> list[Text]:
        """Write all columns but the last: how far something is, and how fast."""
        steps, bar, percent, left = "", Text(), "", ""
        if total:
            width = columns.get(1, 0)
            part = max(0.0, min(1.0, done / total))
            full = int(part * width)
            bar = Text().append_text(self._text("━" * full, "green"))
            bar.append_text(self._text(self._track * (width - full), "bright_black"))
            steps, percent = f"{amount(done)}/{amount(total)}", f"{int(part * 100)}%"
            if rate > 0 and total > done:
                left = duration((total - done) / rate)
        elif done:
            bar = Text(amount(done))
        return [Text(steps), bar, Text(percent), Text(speed(rate)), Text(left)]

    def _row(self, words: Text, cells: list[Text], width: int, columns: dict[int, int]) -> Text:
        shown = [(cells[number], columns[number]) for number in columns if number < len(cells)]
        if not shown:
            return self._fit(words, width)
        room = width - sum(each + 1 for each in columns.values())
        self._fit(words, room, pad=True)
        for cell, each in shown:
            cell.align("right", each)
            words.append(" ").append_text(cell)
        return words


def _columns(width: int) -> dict[int, int]:
    """Give the columns that there is room for, and how wide each is."""
    first, bar, *others = _WIDTHS
    widths = dict(enumerate([first, bar + max(0, width - _NARROW) // 4, *others]))
    if width < _WIDE:
        del widths[0]
    while sum(widths.values()) > width // 2:
        del widths[min(widths)]  # where it is narrow, those on the left go first
    return widths
