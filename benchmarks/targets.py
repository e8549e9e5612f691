"""The targets, and whether what was measured meets them."""

from __future__ import annotations

from dataclasses import dataclass

import report

MARK = "<!-- What follows is written by bench.py --baseline. -->"


@dataclass(frozen=True)
class Target:
    """A bound for one figure of Creche."""

    scenario: str
    bound: float
    against: str = "AnyIO"
    """What the ratio is taken to; ``""`` for the value itself."""
    beyond: str = ""
    """What the difference is taken to, in place of a ratio."""
    counted: bool = False
    is_growth: bool = False
    """Whether the ratio at the largest size is taken to that at the smallest."""
    size: int = 0
    """The size that is asked for; at a smaller one it is not known yet whether it is met."""

    def __str__(self):
        kind = "bytes" if self.scenario.startswith("memory") else "time"
        what = f"`{self.scenario}`, {'instructions' if self.counted else kind}"
        if self.beyond:
            return f"{what}, beyond {self.beyond}"
        if not self.against:
            return what
        return f"{what} ÷ {self.against}{', growth' if self.is_growth else ''}"


TARGETS = (
    Target("return", 1.3, counted=True),
    Target("sleep", 1.3, counted=True),
    Target("return", 1 / 2.7, "Textual", counted=True),
    Target("handler", 1.45, counted=True),
    Target("memory-live", 800, beyond="AnyIO", size=50_000),
    Target("memory-queued", 400, "", size=100_000),
    Target("memory-queued", 0.07, size=100_000),
    Target("cancel-node", 1.1, size=10_000),
    Target("cancel-node", 1.1, counted=True),
    Target("cancel-each", 1.2, size=10_000),
    Target("cancel-each", 1.2, counted=True),
    Target("threads-in-turn", 1.3),
    Target("threads-in-turn", 1.3, counted=True),
    Target("threads-abreast", 1.0),
    Target("limit", 0.25, counted=True),
    Target("limit", 1.0, "aiojobs", counted=True),
    Target("progress", 1.5, "raw", counted=True),
    Target("exclusive", 1.15, report.SMALLEST, size=10_000),
    Target("exclusive", 1.0, "Textual", size=10_000),
    Target("group-cancel", 1.15, report.SMALLEST, size=10_000),
    Target("group-cancel", 1.0, "Textual", size=10_000),
    Target("growth", 1.15, is_growth=True, size=100_000),
    Target("import", 1.1, counted=True),
)


def find_value(target, summary, rows):
    """Find what the target bounds in the rows of Creche on one loop: of all sizes the worst.

    Args:
        target: The target.
        summary: The scenario.
        rows: Its rows of Creche on that loop, the smallest size first.

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
    """Hold what was measured against the targets.

    Returns:
        For each target that was measured, it, the largest size, and its figure on each loop.
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


def table(told):
    """Write in Markdown which targets are met."""
    lines = ["| figure | at most | up to size | measured | |", "| --- | --- | --- | --- | --- |"]
    for target, size, found in check(told):
        digits = 0 if target.bound > 100 else 3  # noqa: PLR2004 (bytes, or a ratio)
        shown = ", ".join(
            f"{loop} {value:.{digits}f}".removeprefix("- ") for loop, value in found.items()
        )
        missed = [loop for loop, value in found.items() if value > target.bound]
        verdict = f"not met on {' and '.join(missed)}" if missed else "met"
        if size < target.size:
            verdict += f", but {target.size:,} are asked for"
        lines.append(f"| {target} | {target.bound:.3g} | {size:,} | {shown} | {verdict} |")
    return "\n".join(lines)


def renew(page, told):
    """Write the tables of the page anew, and leave what stands above them."""
    above, mark, _ = page.partition(MARK)
    return f"{above}{mark}\n\n## Targets\n\n{table(told)}\n\n{report.page(told)}"
