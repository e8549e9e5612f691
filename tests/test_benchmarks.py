"""The benchmarks run, and their reports: ratios, what has moved, which targets are met."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load(monkeypatch, name):
    """Import one of the benchmark scripts again, together with the scripts that it imports."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for each in BENCHMARKS.glob("*.py"):
        monkeypatch.delitem(sys.modules, each.stem, raising=False)
    return importlib.import_module(name)


@pytest.fixture
def report(monkeypatch):
    """Return the module of the reports."""
    return load(monkeypatch, "report")


@pytest.fixture
def targets(monkeypatch):
    """Return the module of the targets."""
    return load(monkeypatch, "targets")


@pytest.fixture
def bench(monkeypatch):
    """Return the program."""
    for needed in ("aiojobs", "rich", "textual", "trio"):
        pytest.importorskip(needed)
    return load(monkeypatch, "bench")


def spread(median, off=0.0):
    return {"median": median, "low": median - off, "high": median + off}


def row(value=None, off=0.0, way="Creche", size=1, loop="asyncio", **ratios):
    made = {"way": way, "loop": loop, "size": size}
    made["ratios"] = {name: spread(each, off) for name, each in ratios.items()}
    return made if value is None else {**made, "value": spread(value), "unit": "instructions"}


def told(*rows, counted=False, scenario="return", python="3.11"):
    summary = {"scenario": scenario, "counted": counted, "title": "a job", "rounds": 7}
    summary |= {"against": ["floor"], "rows": list(rows)}
    return {"versions": {"python": python}, "scenarios": [summary]}


class Case(NamedTuple):
    way: str
    loop: str = "asyncio"
    size: int = 1


def test_counts_that_differ_by_more_than_a_hundredth_have_moved(report):
    """A count has moved if it differs by more than 1 %, up or down. Its ratios do not matter."""
    before = told(*(row(100_000, size=size, floor=1.0) for size in (1, 2, 3)), counted=True)
    after = told(
        row(101_000, size=1, floor=5.0),
        row(101_001, size=2, floor=1.0),
        row(98_000, size=3, floor=1.0),
        counted=True,
    )
    moves = report.moves(before, after)
    assert [(each["size"], each["before"], each["after"]) for each in moves] == [
        (2, 100_000, 101_001),
        (3, 100_000, 98_000),
    ]


def test_ratios_have_moved_if_their_quartiles_lie_apart(report):
    """A ratio has moved if the medians differ by more than 10 % and the quartiles are apart."""
    before = told(*(row(size=size, off=0.1, floor=1.0) for size in (1, 2, 3)))
    after = told(
        row(size=1, off=0.1, floor=1.15),  # the quartiles overlap
        row(size=2, off=0.1, floor=1.25),
        row(size=3, off=0.01, floor=1.0),
    )
    (move,) = report.moves(before, after)
    assert (move["size"], move["what"], move["after"]) == (2, "÷ floor", 1.25)
    exact = told(row(floor=1.0)), told(row(floor=1.09))
    assert report.moves(*exact) == []


def test_what_is_in_one_report_alone_has_not_moved(report):
    """Rows, scenarios and kinds of figures that are in only one of the reports are skipped."""
    before = told(row(1.0, floor=1.0), counted=True)
    assert report.moves(before, told(row(floor=9.0))) == []
    assert report.moves(before, told(row(9.0, size=2), counted=True)) == []
    assert report.moves(before, told(row(9.0), counted=True, scenario="other")) == []
    assert report.moves(told(row()), told(row(floor=9.0))) == []


def test_the_table_of_moves_names_versions_and_changes(report):
    """The table begins with the versions that differ, and shows the change of each figure."""
    before = told(row(100_000), counted=True)
    after = told(row(110_000), counted=True, python="3.12")
    text = report.moves_table(before, after, report.moves(before, after))
    assert text.splitlines()[0] == "python was 3.11, is 3.12"
    assert text.splitlines()[-1] == (
        "| return | Creche | asyncio | 1 | instructions | 100,000 | 110,000 | +10.0% |"
    )
    assert report.moves_table(before, before, []) == "Nothing has moved."


def test_a_baseline_keeps_what_was_not_measured_anew(report):
    """New measurements replace old ones of the same kind and scenario. Others are kept."""
    before = told(row(floor=1.0))
    before["scenarios"] += told(row(floor=1.0), scenario="other")["scenarios"]
    merged = report.merge(before, told(row(floor=2.0)))
    assert [each["rows"][0]["ratios"]["floor"]["median"] for each in merged["scenarios"]] == [2, 1]
    merged = report.merge(merged, told(row(5.0), counted=True))
    assert [each["counted"] for each in merged["scenarios"]] == [False, False, True]
    with pytest.raises(SystemExit, match="other versions"):
        report.merge(before, told(row(floor=2.0), python="3.12"))


def test_what_another_python_ran_stands_beside_the_rest(report):
    """A baseline keeps the figures of each Python apart, and compares each with its own."""
    before = told(row(1.0), counted=True, python="CPython 3.11.7")
    other = told(row(2.0), counted=True, python="CPython 3.13.0")
    kept = report.put(report.put(before, other), told(row(3.0), python="CPython 3.12.1"))
    assert kept["scenarios"] == before["scenarios"]
    assert list(kept["beside"]) == ["3.12", "3.13"]
    assert kept["beside"]["3.13"] == other
    kept = report.put(kept, told(row(4.0), counted=True, python="CPython 3.11.7"))
    assert kept["scenarios"][0]["rows"] == [row(4.0)]
    assert report.of_python(kept, other) == other
    assert report.of_python(kept, before) == kept
    assert report.of_python(before, other) == before
    with pytest.raises(SystemExit, match="other versions"):
        report.put(kept, told(row(2.0), python="CPython 3.13.1"))


def test_times_have_ratios_on_both_clocks(report):
    """Ratios are computed on each clock, round by round. The row shows the scenario's clock."""
    floor, creche = Case("AnyIO"), Case("Creche")
    scenario = SimpleNamespace(
        name="return", title="", unit="", clock="wall", against=["AnyIO"], cases=[floor, creche]
    )
    scenario.base_of = lambda case, name: floor
    measured = {floor: [(1, 10), (2, 10)], creche: [(2, 5), (4, 5)]}
    summary = report.summarise(scenario, measured)
    assert summary["rows"][1]["ratios"] == {"AnyIO": spread(0.5)}
    assert summary["rows"][1]["clocks"] == {"processor": spread(2), "wall": spread(0.5)}
    scenario.unit = "instructions"
    summary = report.summarise(scenario, {floor: [1, 2], creche: [3, 6]}, counted=True)
    assert summary["rows"][1]["ratios"] == {"AnyIO": spread(3)}
    assert "clocks" not in summary["rows"][1]


def test_targets_are_met_or_missed(targets, monkeypatch):
    """The table shows the figure of each loop, and whether it meets the target."""
    bounds = (
        targets.Target("return", 1.3, "floor", trio=1.0, bar=1.35),
        targets.Target("memory-live", 800, beyond="floor"),
        targets.Target("memory-live", 500, ""),
        targets.Target("growth", 1.15, "floor", is_growth=True, size=10),
        targets.Target("return", 1.0, "floor", counted=True),
    )
    monkeypatch.setattr(targets, "TARGETS", bounds)
    measured = told(row(floor=1.2, size=1), row(floor=1.4, size=2), row(floor=1.3, loop="trio"))
    live = told(row(1_700), row(1_000, way="floor"), scenario="memory-live")
    growth = told(row(floor=1.2, size=1), row(floor=1.3, size=9), scenario="growth")
    measured["scenarios"] += [*live["scenarios"], *growth["scenarios"]]
    measured["beside"] = {"3.13": told(row(floor=1.3))}
    lines = targets.table(measured).splitlines()
    asked = "met, but 10 are asked for"
    assert lines[0] == "| figure | loop | target | bar | up to size | 3.11 | 3.13 |"
    assert lines[2:] == [
        "| `return`, time ÷ floor | asyncio | 1.3 | 1.35 | 2 | 1.400 missed | 1.300 met |",
        "| `return`, time ÷ floor | trio | 1 | 1.35 | 2 | 1.300 within the bar | - |",
        "| `memory-live`, bytes, beyond floor | asyncio | 800 | - | 1 | 700 met | - |",
        "| `memory-live`, bytes | asyncio | 500 | - | 1 | 1700 missed | - |",
        f"| `growth`, time ÷ floor, growth | asyncio | 1.15 | - | 9 | 1.083 {asked} | - |",
    ]


def test_both_clocks_stand_beside_the_instructions(targets, monkeypatch):
    """For a target in instructions, the ratios on both clocks are shown as well."""
    bounds = (targets.Target("return", 1.3, counted=True), targets.Target("return", 1.3))
    monkeypatch.setattr(targets, "TARGETS", bounds)
    clocked = row(AnyIO=1.2) | {"clocks": {"processor": spread(1.2, 0.1), "wall": spread(1.5)}}
    measured = told(row(5.0, AnyIO=1.1), row(5.0, loop="trio", AnyIO=1.0), counted=True)
    measured["scenarios"] += told(clocked)["scenarios"]
    lines = targets.clocks_table(measured).splitlines()
    assert lines[2:] == ["| `return` | asyncio | 3.11 | 1 | 1.10 | 1.20 (1.10 to 1.30) | 1.50 |"]


def test_the_page_of_the_baseline_shows_what_was_measured(targets):
    """The page's tables match the figures, and its text explains each missed target."""
    page = (BENCHMARKS / "BASELINE.md").read_text()
    measured = json.loads((BENCHMARKS / "baseline.json").read_text())
    assert targets.renew(page, measured) == page
    above = page.partition(targets.MARK)[0].partition("## Why")[2]
    for ran in (measured, *measured.get("beside", {}).values()):
        for target, _, found in targets.check(ran):
            if {target.judge(loop, value) for loop, value in found.items()} != {targets.MET}:
                assert f"`{target.scenario}`" in above, f"{target} is missed, and nothing tells why"


def test_the_baseline_has_all_that_is_bounded(targets):
    """Each target has a figure in the baseline, so that every change is compared with it."""
    measured = json.loads((BENCHMARKS / "baseline.json").read_text())
    assert [target for target, _, _ in targets.check(measured)] == list(targets.TARGETS)
    counted = {target for target in targets.TARGETS if target.counted}
    for beside in measured.get("beside", {}).values():
        assert counted <= {target for target, _, _ in targets.check(beside)}


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_what_is_counted_runs(bench, loop):
    """Each case that is counted in instructions runs, and so does each piece of a worker."""
    options = SimpleNamespace(
        instructions=True, counted=False, full=False, loop=[loop], only=[], targets=False
    )
    # Those left out start processes.
    left_out = {"import", "processes", "executor"}
    ran = [
        (case.way, case.run(10))
        for scenario in bench.find(options)
        if scenario.name not in left_out
        for case in scenario.cases
    ]
    assert len(ran) > 40
    assert {"AnyIO", "Creche", "the cancel probe"} <= {way for way, _ in ran}
