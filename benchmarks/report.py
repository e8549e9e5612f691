"""What comes out: medians and quartiles of ratios, as a table and as JSON."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from statistics import median, quantiles

PACKAGES = (
    *("creche", "anyio", "trio", "uvloop", "textual"),
    *("aiojobs", "aiotools", "aioresult", "quattro"),
)


def versions():
    """Tell what ran."""
    found = {"python": f"{platform.python_implementation()} {platform.python_version()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def spread(values):
    """Give the median, and the quartiles round it."""
    low, high = (min(values), max(values))
    if len(values) > 3:  # noqa: PLR2004 (fewer have no quartiles worth the name)
        low, _, high = quantiles(values, n=4)
    return {"median": median(values), "low": low, "high": high}


def summarise(scenario, measured):
    """Turn what was measured into ratios, round by round.

    Args:
        scenario: The scenario.
        measured: For each case a value a round.
    """
    rows = []
    for case in scenario.cases:
        row = {"way": case.way, "loop": case.loop, "size": case.size, "ratios": {}}
        values = measured[case]
        if scenario.unit:
            row["value"] = spread(values) if scenario.against else values[0]
            row["unit"] = scenario.unit
        for name in scenario.against:
            base = scenario.base_of(case, name)
            if base is not None:
                ratios = [a / b for a, b in zip(values, measured[base], strict=True)]
                row["ratios"][name] = spread(ratios)
        rows.append(row)
    return {
        "scenario": scenario.name,
        "title": scenario.title,
        "rounds": len(values),
        "against": list(scenario.against),
        "rows": rows,
    }


def told(value, digits):
    """Put a median and its quartiles into a cell of a table."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return " · ".join(f"{each:.{digits}f}" for each in value)
    middle, low, high = (f"{value[key]:.{digits}f}" for key in ("median", "low", "high"))
    return middle if low == high else f"{middle} ({low} to {high})"


def table(summary):
    """Write the table of one scenario in Markdown."""
    unit = summary["rows"][0].get("unit")
    heads = ["", "loop", "size", *([unit] if unit else [])]
    heads += [f"÷ {name}" for name in summary["against"]]
    lines = [
        f"### {summary['title']} (`{summary['scenario']}`, {summary['rounds']} rounds)",
        "",
        f"| {' | '.join(heads)} |",
        "|" + " --- |" * len(heads),
    ]
    for row in summary["rows"]:
        cells = [row["way"], row["loop"], f"{row['size']:,}"]
        if unit:
            cells.append(told(row["value"], 0))
        cells += [told(row["ratios"].get(name), 2) for name in summary["against"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(summaries, left_out):
    """Write everything in Markdown."""
    ran = ", ".join(f"{name} {number}" for name, number in versions().items())
    head = [
        "Medians, with quartiles where they differ. A ratio is taken within a round.",
        *(f"- {line}" for line in left_out),
        f"\n{ran}",
    ]
    return "\n".join(head) + "\n\n" + "\n\n".join(table(each) for each in summaries) + "\n"
