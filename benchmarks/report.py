"""Reports of measurements: medians and quartiles of ratios, as a table and as JSON."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from statistics import median, quantiles

SMALLEST = "itself at the smallest size"
"""The base of a comparison: the same way on the same loop, at the smallest size."""
CLOCKS = ("processor", "wall")
"""The clocks of a time, in the order in which they are measured."""
CLOCKED = "AnyIO"
"""Ratios to this way are reported on both clocks."""
PACKAGES = ("anyio", "trio", "uvloop", "textual", "aiojobs")


def versions():
    """Return the versions of what ran. Creche is that of the working tree."""
    found = {"python": f"{platform.python_implementation()} {platform.python_version()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def spread(values):
    """Return the median and the quartiles."""
    low, high = (min(values), max(values))
    if len(values) > 3:  # noqa: PLR2004 (fewer have no quartiles worth the name)
        low, _, high = quantiles(values, n=4)
    return {"median": median(values), "low": low, "high": high}


def python_of(told):
    """Return the version of Python that ran, as ``3.11``."""
    return ".".join(told["versions"]["python"].split()[-1].split(".")[:2])


def _ratios(values, base):
    return spread([a / b for a, b in zip(values, base, strict=True)])


def summarise(scenario, measured, *, counted=False):
    """Turn what was measured into ratios, round by round.

    Args:
        scenario: The scenario.
        measured: For each case a value for each round; for times, a pair with one for each clock.
        counted: Whether the values are counts of instructions.
    """
    rows = []
    clocks = {}
    if not scenario.unit:
        for number, clock in enumerate(CLOCKS):
            clocks[clock] = {
                case: [each[number] for each in values] for case, values in measured.items()
            }
        measured = clocks[scenario.clock]
    for case in scenario.cases:
        row = {"way": case.way, "loop": case.loop, "size": case.size, "ratios": {}}
        values = measured[case]
        if scenario.unit:
            row["value"] = spread(values)
            row["unit"] = scenario.unit
        for name in scenario.against:
            base = scenario.base_of(case, name)
            if base is None:
                continue
            row["ratios"][name] = _ratios(values, measured[base])
            if clocks and name == CLOCKED:
                row["clocks"] = {
                    clock: _ratios(each[case], each[base]) for clock, each in clocks.items()
                }
        rows.append(row)
    return {
        "scenario": scenario.name,
        "counted": counted,
        "title": scenario.title,
        "rounds": len(values),
        "against": list(scenario.against),
        "rows": rows,
    }


def told(value, digits):
    """Format a median and its quartiles for a cell of a table."""
    if value is None:
        return "-"
    middle, low, high = (f"{value[key]:.{digits}f}" for key in ("median", "low", "high"))
    return middle if low == high else f"{middle} ({low} to {high})"


def table(summary):
    """Return the table of one scenario in Markdown."""
    unit = summary["rows"][0].get("unit")
    heads = ["", "loop", "size", *([unit] if unit else [])]
    heads += [f"÷ {name}" for name in summary["against"]]
    what = f"`{summary['scenario']}`, {summary['rounds']} {'runs' if unit else 'rounds'}"
    lines = [
        f"### {summary['title']} ({what})",
        "",
        f"| {' | '.join(heads)} |",
        "|" + " --- |" * len(heads),
    ]
    for row in summary["rows"]:
        cells = [row["way"], row["loop"], f"{row['size']:,}"]
        if unit:
            cells.append(told(row["value"], 2 if "%" in unit else 0))
        cells += [told(row["ratios"].get(name), 2) for name in summary["against"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ran(told):
    """Return the names and versions of what ran, as text."""
    return ", ".join(f"{name} {number}" for name, number in told["versions"].items())


def page(told):
    """Return the tables of all scenarios in Markdown."""
    parts = []
    for counted, title in ((True, "Instructions"), (False, "Times and memory")):
        tables = [table(each) for each in told["scenarios"] if each["counted"] is counted]
        parts += [f"## {title}", *tables] if tables else []
    return "\n\n".join(parts) + "\n"


def _key(summary):
    return summary["counted"], summary["scenario"]


def merge(before, after):
    """Replace the scenarios that were measured again, and keep the others.

    Raises:
        SystemExit: The versions differ, so the figures cannot be in one table.
    """
    if before["versions"] != after["versions"]:
        raise SystemExit(f"the baseline was made by other versions: {before['versions']}")
    new = {_key(each): each for each in after["scenarios"]}
    kept = [new.pop(_key(each), each) for each in before["scenarios"]]
    return {**before, **after, "scenarios": [*kept, *new.values()]}


def of_python(baseline, told):
    """Return a baseline's figures for the Python that ran, or else those of its main Python."""
    return baseline.get("beside", {}).get(python_of(told), baseline)


def put(baseline, told):
    """Put measurements into a baseline. Those of another Python are kept beside the main ones."""
    python = python_of(told)
    if python == python_of(baseline):
        return merge(baseline, told)
    beside = {python: {**told, "scenarios": []}, **baseline.get("beside", {})}
    beside[python] = merge(beside[python], told)
    return {**baseline, "beside": dict(sorted(beside.items()))}


MOVED = 0.01
"""The fraction by which a count of instructions has to differ to count as moved."""


def moves(before, after):
    """Find the rows that differ in two reports.

    Counts of instructions have to differ by more than 1 %. Ratios, of times or of memory, differ if
    the quartiles do not overlap and the medians differ by more than 10 %. Absolute figures of
    memory, and what is in only one of the reports, are skipped.

    Returns:
        A description of each row that differs, with both medians.
    """
    old = {_key(each): each for each in before["scenarios"]}
    found = []
    for summary in after["scenarios"]:
        rows = {_row(each): each for each in old.get(_key(summary), {"rows": ()})["rows"]}
        for row in summary["rows"]:
            if _row(row) not in rows:
                continue
            there = rows[_row(row)]
            pairs = [
                (f"÷ {name}", there["ratios"].get(name), row["ratios"][name])
                for name in row["ratios"]
            ]
            has_moved = _is_apart
            if summary["counted"]:
                pairs, has_moved = [("instructions", there["value"], row["value"])], _is_other
            found += [
                {
                    "scenario": summary["scenario"],
                    **{each: row[each] for each in ("way", "loop", "size")},
                    "what": what,
                    "before": one["median"],
                    "after": other["median"],
                }
                for what, one, other in pairs
                if one is not None and has_moved(one, other)
            ]
    return found


def _row(row):
    return row["way"], row["loop"], row["size"]


def _is_other(one, other):
    return abs(other["median"] - one["median"]) > MOVED * one["median"]


def _is_apart(one, other):
    is_apart = one["high"] < other["low"] or other["high"] < one["low"]
    return is_apart and abs(other["median"] - one["median"]) > 10 * MOVED * one["median"]


def moves_table(before, after, found):
    """Return a table in Markdown of what has moved, after the versions that differ."""
    lines = [
        f"{name} was {before['versions'].get(name)}, is {version}"
        for name, version in after["versions"].items()
        if before["versions"].get(name) != version
    ]
    if not found:
        return "\n".join([*lines, "Nothing has moved."])
    lines += ["", "| scenario | way | loop | size | what | was | is | change |"]
    lines.append("|" + " --- |" * 8)
    for move in found:
        digits = 0 if move["what"] == "instructions" else 2
        lines.append(
            f"| {move['scenario']} | {move['way']} | {move['loop']} | {move['size']:,} "
            f"| {move['what']} | {move['before']:,.{digits}f} | {move['after']:,.{digits}f} "
            f"| {move['after'] / move['before'] - 1:+.1%} |"
        )
    return "\n".join(lines)
