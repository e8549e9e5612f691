"""The benchmarks of Creche: what a worker costs, as ratios to other ways of doing the same.

    python benchmarks/bench.py                   quick, under 3 minutes
    python benchmarks/bench.py --full            the sizes that count
    python benchmarks/bench.py --instructions    instructions a job, of Creche and what it is held
                                                 against; under 4 minutes
    python benchmarks/bench.py --instructions --compare benchmarks/baseline.json
    python benchmarks/bench.py --only limit --loop trio

Each scenario has a process of its own, in which the contenders take turns, round by round, so that
whatever else the machine does meets them all; garbage is collected before each turn. Each
measurement of memory has a process of its own. Times depend on the machine, so that only their
ratios are given, taken within each round: the median and the quartiles. Instruction counts
(``--instructions``, by valgrind) are the steadier figure.

``--baseline`` puts what was measured into ``baseline.json`` and writes ``BASELINE.md`` anew;
``--compare`` says what differs from such a file, and exits with 1 if Creche has become dearer.
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

import imports
import instructions
import memory
import parts
import report
import scenarios
import targets
from ways import MODULES, load

HERE = Path(__file__).parent
COUNTED = (
    *("return", "sleep", "handler", "watched", "limit"),
    *("cancel-node", "cancel-group", "cancel-each", "progress", "import", "parts"),
    "threads-in-turn",
)
"""The scenarios that are counted in instructions; memory cannot be, nor threads at once."""
COUNTED_LOOPS = ("asyncio", "trio")
ROUNDS = 7
AT_ONCE = 2
"""How many measurements of memory at once, as they do not disturb each other."""


def measure_in_turn(scenario, rounds):
    """Measure all cases of a scenario, round by round."""
    measured = {case: [] for case in scenario.cases}
    for number in range(-1, rounds):
        shift = number % len(scenario.cases)
        for case in scenario.cases[shift:] + scenario.cases[:shift]:
            gc.collect()
            value = case.run()
            if number >= 0:  # the round before the first warms up
                measured[case].append(value)
    return [measured[case] for case in scenario.cases]


def chosen(options):
    """Give the part of the command line that chooses what is measured."""
    command = ["--full"] * options.full
    for option in ("way", "loop"):
        for name in getattr(options, option) or ():
            command += [f"--{option}", name]
    return command


def run_child(scenario, options, *more):
    """Run a part of this in a process of its own, and read what it prints."""
    command = [sys.executable, __file__, "--child", scenario.name, *more, *chosen(options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return ast.literal_eval(done.stdout)


def run_scenario(scenario, options):
    """Measure a scenario, in processes of their own."""
    if not scenario.own_process:
        return dict(zip(scenario.cases, run_child(scenario, options), strict=True))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        measured = {
            case: [
                pool.submit(
                    *(run_child, scenario, options),
                    *("--case", case.key, "--module", case.module),
                )
                for _ in range(scenario.rounds)
            ]
            for case in scenario.cases
        }
        return {case: [each.result() for each in runs] for case, runs in measured.items()}


def measure(wanted, options):
    """Measure scenarios, one after another."""
    for scenario in wanted:
        yield report.summarise(scenario, run_scenario(scenario, options))


def count(wanted, options):
    """Count the instructions of scenarios, in place of measuring time."""
    forked = [scenario for scenario in wanted if scenario.name != imports.NAME]
    command = [__file__, "--counted", *chosen(options)]
    for scenario in forked:
        command += ["--only", scenario.name]
    counts = instructions.count(command) if forked else {}
    if len(forked) < len(wanted):
        counts |= imports.count()
    for scenario in wanted:
        scenario.unit = "instructions"
        measured = {case: counts[scenario.name, case.key] for case in scenario.cases}
        for case, values in measured.items():
            if instructions.differ(values) > instructions.AGREE:
                print(f"{scenario.name}, {case.key}: the counts do not agree, {values}")
        yield report.summarise(scenario, measured, counted=True)


def be_child(scenario, options):
    """Measure what the parent asks for, and print it."""
    if options.case is None:
        print(measure_in_turn(scenario, ROUNDS))
        return
    for case in scenario.cases:
        if options.case == case.key:
            print(case.run())
            return


def arguments():
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="the sizes that count")
    parser.add_argument("--only", action="append", metavar="NAME", help="one scenario, or several")
    parser.add_argument("--way", action="append", metavar="NAME", help="one way, or several")
    parser.add_argument("--loop", action="append", metavar="NAME", help="one loop, or several")
    parser.add_argument("--instructions", action="store_true", help="count, do not time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="say what has moved since")
    parser.add_argument("--baseline", action="store_true", help="keep the figures as the baseline")
    parser.add_argument("--counted", action="store_true", help=argparse.SUPPRESS)
    for name in ("--child", "--case", "--module"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


def find(options):
    """Find the scenarios that there are, by name, and what is left out of them."""
    ways, loops, left_out = load([options.module] if options.module else MODULES)
    is_counted = options.instructions or options.counted
    ways = [way for way in ways if not options.way or way.name in options.way]
    wanted_loops = options.loop or (COUNTED_LOOPS if is_counted else loops)
    loops = [loop for loop in loops if loop in wanted_loops]
    found = {}
    for module in (scenarios, memory, imports, *([parts] if is_counted else [])):
        for scenario in module.scenarios(ways, loops, full=options.full):
            if is_counted and scenario.against:
                scenario.cases = [
                    case
                    for case in scenario.cases
                    if case.way.startswith("Creche") or case.way in scenario.against
                ]
            if scenario.cases and (not is_counted or scenario.name in COUNTED):
                found[scenario.name] = scenario
    return found, left_out


def main():
    options = arguments()
    found, left_out = find(options)
    if options.child:
        be_child(found[options.child], options)
        return 0
    names = options.only or list(found)
    if not set(names) <= set(found):
        raise SystemExit(f"known scenarios: {', '.join(found)}")
    wanted = [found[name] for name in names]
    if options.counted:
        instructions.be_counted(wanted)
        return 0
    if options.instructions and not instructions.is_possible():
        raise SystemExit("--instructions needs valgrind, which is not installed")
    for line in left_out:
        print(line)
    summaries = []
    for summary in (count if options.instructions else measure)(wanted, options):
        summaries.append(summary)
        print(f"\n{report.table(summary)}", flush=True)
    return hand_out(summaries, left_out, options)


def hand_out(summaries, left_out, options):
    """Write what was measured where it is wanted; gives the code to exit with."""
    told = {"versions": report.versions(), "left_out": left_out, "scenarios": summaries}
    if options.json:
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(report.page(told))
    if options.baseline:
        keep(told)
    if options.compare:
        return tell_moves(json.loads(options.compare.read_text()), told)
    return 0


def keep(told):
    """Put what was measured in the place of what the baseline has of it, and write its page."""
    kept = HERE / "baseline.json"
    if kept.exists():
        told = report.merge(json.loads(kept.read_text()), told)
    kept.write_text(json.dumps(told, indent=1) + "\n")
    page = f"{targets.PREFACE}\n{targets.table(told)}\n\n{report.page(told)}"
    (HERE / "BASELINE.md").write_text(page)


def tell_moves(before, after):
    """Print what has moved; gives 1 if Creche has become dearer, else 0."""
    moves = report.moves(before, after)
    print(f"\n{report.moves_table(before, after, moves)}")
    return int(any(move["way"] == "Creche" and move["after"] > move["before"] for move in moves))


if __name__ == "__main__":
    sys.exit(main())
