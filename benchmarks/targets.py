"""The targets, and whether the measurements meet them."""

from __future__ import annotations

from dataclasses import dataclass

import report

MET = "met"
MARK = "<!-- What follows is written by bench.py --baseline. -->"


@dataclass(frozen=True)
class Target:
    """A bound for one figure of Creche."""

    scenario: str
    bound: float
    against: str = "AnyIO"
    """What the ratio is relative to; ``""`` for the value itself."""
    trio: float | None = None
    """The bound on Trio, if it differs."""
    bar: float | None = None
    """The value that is still acceptable, on each loop."""
    beyond: str = ""
    """What is subtracted, if the figure is a difference and not a ratio."""
    counted: bool = False
    is_growth: bool = False
    """Whether the figure is the ratio at the largest size divided by that at the smallest."""
    size: int = 0
    """The size that the target is for; at a smaller one it is not yet known whether it is met."""

    def __str__(self):
        kind = "bytes" if self.scenario.startswith("memory") else "time"
        what = f"`{self.scenario}`, {'instructions' if self.counted else kind}"
        if self.beyond:
            return f"{what}, beyond {self.beyond}"
        if not self.against:
            return what
        return f"{what} ÷ {self.against}{', growth' if self.is_growth else ''}"

    def at_most(self, loop):
        """Return the bound on a loop."""
        return self.trio if loop == "trio" and self.trio is not None else self.bound

    def judge(self, loop, value):
        """Say whether a figure meets the target."""
        if value <= self.at_most(loop):
            return MET
        return "within the bar" if self.bar is not None and value <= self.bar else "missed"


TARGETS = (
    Target("return", 0.35, trio=0.25, bar=0.45, counted=True),
    Target("return", 1 / 2.7, "Textual", counted=True),
    Target("sleep", 1.15, bar=1.22, counted=True),
    Target("limit", 0.25, bar=0.3, counted=True),
    Target("limit", 1.0, "aiojobs", counted=True),
    Target("limit-sleep", 0.33, bar=0.4, counted=True),
    Target("in-turn", 0.75, bar=0.85, counted=True),
    Target("in-turn-sleep", 0.75, bar=0.85, counted=True),
    Target("handler", 0.7, bar=0.8, counted=True),
    Target("threads-in-turn", 1.4, trio=1.53, bar=1.55, counted=True),
    Target("threads-in-turn", 1.3),
    Target("threads-limit", 0.8, bar=0.9, counted=True),
    Target("threads-abreast", 1.0),
    Target("cancel-node", 1.2, trio=1.04, bar=1.25, counted=True),
    Target("cancel-node", 1.1, size=10_000),
    Target("cancel-each", 1.2, counted=True),
    Target("cancel-each", 1.2, size=10_000),
    # The bounds are what was measured when each worker had a task of its own.
    Target("memory-live", 620, trio=450, bar=800, beyond="AnyIO", size=50_000),
    Target("memory-queued", 365, "", bar=400, size=100_000),
    Target("memory-queued", 0.07, size=100_000),
    Target("progress", 1.5, "raw", counted=True),
    Target("followed", 1.5, "Creche, unfollowed"),
    Target("followed-hash", 1.5, "Creche, unfollowed"),
    Target("watchdog", 0.1, ""),
    Target("exclusive", 1.15, report.SMALLEST, size=10_000),
    Target("exclusive", 1.0, "Textual", size=10_000),
    Target("group-cancel", 1.15, report.SMALLEST, size=10_000),
    Target("group-cancel", 1.0, "Textual", size=10_000),
    Target("growth", 1.15, is_growth=True, size=100_000),
    Target("import", 1.1, counted=True),
    Target("processes", 1.6, bar=2.0),
    Target("executor", 2.0, "submit", bar=2.2),
    Target("dask", 1.1, "submit"),
    Target("kill", 1.5, "bare kill"),
)
COUNTED = {target.scenario for target in TARGETS if target.counted}
"""The scenarios that have a target in instructions."""


def find_value(target, summary, rows):
    """Find the figure that a target bounds, on one loop; of several sizes, the worst.

    Args:
        target: The target.
        summary: The scenario.
        rows: Its rows of Creche on that loop, smallest size first.

    Returns:
        The figure, or None if it was not measured.
    """
    if target.beyond:
        floor = {
            (row["loop"], row["size"]): row["value"]["median"]
            for row in summary["rows"]
            if row["way"] == target.beyond
        }
        found = [row["value"]["median"] - floor[row["loop"], row["size"]] for row in rows]
    elif not target.against:
        found = [row["value"]["median"] for row in rows]
    else:
        ratios = [row["ratios"].get(target.against) for row in rows]
        found = [ratio["median"] for ratio in ratios if ratio]
        if target.is_growth:
            found = [found[-1] / found[0]]
    return max(found, default=None)


def check(told):
    """Compare the measurements with the targets.

    Returns:
        For each target that was measured: the target, the largest size, the figures by loop.
    """
    there = {(each["counted"], each["scenario"]): each for each in told["scenarios"]}
    checked = []
    for target in TARGETS:
        summary = there.get((target.counted, target.scenario))
        if summary is None:
            continue
        loops = {}
        for row in summary["rows"]:
            if row["way"] == "Creche":
                loops.setdefault(row["loop"], []).append(row)
        found = {loop: find_value(target, summary, rows) for loop, rows in loops.items()}
        size = max(row["size"] for row in summary["rows"])
        found = {loop: each for loop, each in found.items() if each is not None}
        checked.append((target, size, found))
    return checked


def _pythons(told):
    return {report.python_of(told): told, **told.get("beside", {})}


def table(told):
    """Write in Markdown which targets are met, on each loop and with each Python that ran."""
    pythons = _pythons(told)
    heads = ["figure", "loop", "target", "bar", "up to size", *pythons]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    others = [
        {target: found for target, _, found in check(each)} for each in [*pythons.values()][1:]
    ]
    for target, size, found in check(told):
        digits = 0 if target.bound > 100 else 3  # noqa: PLR2004 (bytes, or a ratio)
        for loop, value in found.items():
            cells = [f"{target}", loop, f"{target.at_most(loop):.3g}"]
            cells += ["-" if target.bar is None else f"{target.bar:.3g}", f"{size:,}"]
            for each in [value, *[other.get(target, {}).get(loop) for other in others]]:
                cells.append("-" if each is None else f"{each:.{digits}f}")
                if each is not None:
                    cells[-1] += f" {target.judge(loop, each)}"
            if size < target.size:
                cells[5] += f", but {target.size:,} are asked for"
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def clocks_table(told):
    """Write in Markdown what both clocks measured, next to the instructions."""
    heads = ["", "loop", "Python", "size", "instructions", *report.CLOCKS]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for target in TARGETS:
        if not target.counted or target.against != report.CLOCKED:
            continue
        found = [
            (loop, python, times[loop], counts[loop])
            for python, each in _pythons(told).items()
            for counts, times in [[_rows(each, target.scenario, kind) for kind in (True, False)]]
            for loop in counts
            if "clocks" in times.get(loop, {})
        ]
        for loop, python, times, counts in sorted(found, key=lambda each: each[0]):
            shown = [counts["ratios"][target.against], *times["clocks"].values()]
            cells = [f"`{target.scenario}`", loop, python, f"{times['size']:,}"]
            lines.append(f"| {' | '.join(cells + [report.told(each, 2) for each in shown])} |")
    return "\n".join(lines)


def _rows(told, scenario, counted):
    """Find the rows of Creche by loop; of several sizes, the largest."""
    return {
        row["loop"]: row
        for summary in told["scenarios"]
        if summary["scenario"] == scenario and summary["counted"] is counted
        for row in summary["rows"]
        if row["way"] == "Creche"
    }


def renew(page, told):
    """Rewrite the tables of the page, and keep what is above them."""
    above, mark, _ = page.partition(MARK)
    beside = "".join(
        f"\n\nBeside it: {report.ran(each)}" for each in told.get("beside", {}).values()
    )
    return (
        f"{above}{mark}\n\n## Targets\n\n{table(told)}\n\n## Both clocks\n\n{clocks_table(told)}"
        f"\n\n## What ran\n\n{report.ran(told)}{beside}\n\n{report.page(told)}"
    )
