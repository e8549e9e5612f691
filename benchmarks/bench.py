"""The benchmarks of Creche: what a worker costs, as ratios to other ways of doing the same.

    python benchmarks/bench.py                   quick, under 3 minutes
    python benchmarks/bench.py --full            the full sizes
    python benchmarks/bench.py --instructions    instructions per job, of Creche and what it is
                                                 compared with; under 4 minutes
    python benchmarks/bench.py --instructions --compare benchmarks/baseline.json
    python benchmarks/bench.py --only limit --loop trio
    python3.13 benchmarks/bench.py --instructions --targets

Each scenario runs in a process of its own, in which the contenders take turns, round by round, so
that other load on the machine affects them all; garbage is collected before each turn. Each
measurement of memory has a process of its own. Times depend on the machine, so only their ratios
are shown, taken within each round: the median and the quartiles. Instruction counts
(``--instructions``, by valgrind) are steadier.

``--baseline`` writes the results into ``baseline.json`` and the tables of ``BASELINE.md``; those of
another Python than that of the baseline are added beside the rest.
``--compare`` prints what differs from such a file, and exits with 1 if Creche costs more.
"""

from __future__ import annotations

import argparse
import ast
import gc
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import instructions
import parts
import report
import targets
from scenarios import IMPORTS, scenarios
from ways import ALL

HERE = Path(__file__).parent
COUNTED = (
    *("return", "sleep", "waves", "in-turn", "in-turn-sleep", "handler", "watched"),
    *("limit", "limit-sleep", "cancel-node", "cancel-each", "progress"),
    *("import", "parts", "threads-in-turn", "threads-limit", "processes", "executor"),
)
"""The scenarios counted in instructions; memory and 40 threads at once cannot be counted."""
ROUNDS = 7
RUNS_OF_MEMORY = 5
AT_ONCE = 2
"""How many measurements of memory run at once; they do not disturb each other."""


def find(options):
    """Find the scenarios that the options ask for, by name."""
    is_counted = options.instructions or options.counted
    loops = options.loop or (("asyncio", "trio") if is_counted else ALL)
    found = {each.name: each for each in scenarios(full=options.full)}
    if is_counted:
        found = {name: each for name, each in found.items() if name in COUNTED}
        found["parts"] = parts.scenario(loops)
    for scenario in found.values():
        scenario.cases = [
            case
            for case in scenario.cases
            if case.loop in {*loops, "-"}
            if not is_counted
            or not scenario.against
            or case.way.startswith("Creche")
            or case.way in scenario.against
        ]
    names = options.only or found
    if options.targets:
        names = [name for name in names if name in targets.COUNTED]
    if not {*names} <= {*found}:
        raise SystemExit(f"known scenarios: {', '.join(found)}")
    return [found[name] for name in names]


def measure_in_turn(scenario):
    """Measure all cases of a scenario, round by round."""
    measured = [[] for _ in scenario.cases]
    turns = list(zip(scenario.cases, measured, strict=True))
    for number in range(-1, ROUNDS):
        for case, values in turns:
            gc.collect()
            value = case.run()
            if number >= 0:  # the round before the first warms up
                values.append(value)
        turns = turns[1:] + turns[:1]
    return measured


def run_child(scenario, options, *more):
    """Run this program for one scenario in a process of its own, and read what it prints."""
    command = [sys.executable, __file__, "--child", "--only", scenario.name, *more]
    done = subprocess.run(command + chosen(options), stdout=subprocess.PIPE, text=True, check=True)
    return ast.literal_eval(done.stdout)


def chosen(options):
    """Return the command-line options that choose sizes and loops."""
    loops = [word for loop in options.loop or () for word in ("--loop", loop)]
    return ["--full"] * options.full + loops


def measure(scenario, options):
    """Measure a scenario in processes of its own, and return the values of each case."""
    if not scenario.unit:
        return dict(zip(scenario.cases, run_child(scenario, options), strict=True))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = {
            case: [
                pool.submit(run_child, scenario, options, "--case", case.key)
                for _ in range(RUNS_OF_MEMORY)
            ]
            for case in scenario.cases
        }
        return {case: [each.result() for each in started] for case, started in runs.items()}


def count(scenario, options):
    """Count the instructions of a scenario, and return the counts of each case."""
    if scenario.name == "import":
        counts = instructions.count_programs(IMPORTS)
        measured = {case: counts[case.way] for case in scenario.cases}
    else:
        command = [__file__, "--counted", "--only", scenario.name, *chosen(options)]
        counts = instructions.count(command)
        measured = {case: counts[scenario.name, case.key] for case in scenario.cases}
    for case, values in measured.items():
        if not instructions.agree(values):
            print(f"{scenario.name}, {case.key}: the counts do not agree, {values}")
    scenario.unit = "instructions"
    return measured


def be_child(scenario, options):
    """Measure what the parent asks for, and print it."""
    if options.case is None:
        print(measure_in_turn(scenario))
    for case in scenario.cases:
        if case.key == options.case:
            print(case.run())


def keep(told):
    """Replace the figures in the baseline by those just measured."""
    kept, page = HERE / "baseline.json", HERE / "BASELINE.md"
    told = report.put(json.loads(kept.read_text()), told)
    kept.write_text(json.dumps(told, indent=1) + "\n")
    page.write_text(targets.renew(page.read_text(), told))


def tell_moves(baseline, after):
    """Print what has changed; return 1 if Creche costs more than before, else 0."""
    before = report.of_python(baseline, after)
    moves = report.moves(before, after)
    print(f"\n{report.moves_table(before, after, moves)}")
    return int(any(move["way"] == "Creche" and move["after"] > move["before"] for move in moves))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="the sizes that count")
    parser.add_argument("--only", action="append", metavar="NAME", help="one scenario, or several")
    parser.add_argument("--targets", action="store_true", help="what has a target in instructions")
    parser.add_argument("--loop", action="append", choices=ALL, help="one loop, or several")
    parser.add_argument("--instructions", action="store_true", help="count, do not time")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="say what has moved since")
    parser.add_argument("--baseline", action="store_true", help="keep the figures as the baseline")
    for name in ("--counted", "--child"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    wanted = find(options)
    if options.counted:
        return instructions.be_counted(wanted)
    if options.child:
        return be_child(wanted[0], options)
    if options.instructions and not instructions.is_possible():
        raise SystemExit("--instructions needs valgrind, which is not installed")
    summaries = []
    for scenario in wanted:
        measured = (count if options.instructions else measure)(scenario, options)
        summaries.append(report.summarise(scenario, measured, counted=options.instructions))
        print(f"\n{report.table(summaries[-1])}", flush=True)
    told = {"versions": report.versions(), "scenarios": summaries}
    if options.baseline:
        keep(told)
    if options.compare:
        return tell_moves(json.loads(options.compare.read_text()), told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
