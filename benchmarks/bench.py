"""The benchmarks of Creche: what a worker costs, as ratios to other ways of doing the same.

    python benchmarks/bench.py            quick, a few minutes
    python benchmarks/bench.py --full     the sizes that count
    python benchmarks/bench.py --instructions --only return

Each scenario has a process of its own, in which the contenders take turns, round by round, so that
whatever else the machine does meets them all; garbage is collected before each turn. Each
measurement of memory has a process of its own. Times depend on the machine, so that only their
ratios are given, taken within each round: the median and the quartiles. Instruction counts
(``--instructions``, by valgrind) are the steadier figure.
"""

from __future__ import annotations

import argparse
import ast
import gc
import json
import subprocess
import sys
from pathlib import Path

import instructions
import memory
import report
import scenarios
from ways import MODULES, load

COUNTED = (
    *("return", "sleep", "handler", "limit", "cancel-node", "cancel-group", "cancel-each"),
    *("exclusive", "group-cancel", "progress", "watched"),
)
"""The scenarios that can be counted in instructions; threads and memory cannot."""
ROUNDS = 7


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


def run_child(scenario, options, *more):
    """Run a part of this in a process of its own, and read what it prints."""
    command = [sys.executable, __file__, "--child", scenario.name, *more]
    command += ["--full"] * options.full
    for option in ("way", "loop"):
        for name in getattr(options, option) or ():
            command += [f"--{option}", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return ast.literal_eval(done.stdout)


def run_scenario(scenario, options):
    """Measure a scenario, in processes of their own."""
    if not scenario.own_process:
        return dict(zip(scenario.cases, run_child(scenario, options), strict=True))
    return {
        case: [run_child(scenario, options, "--case", case.key) for _ in range(scenario.rounds)]
        for case in scenario.cases
    }


def count_scenario(scenario, options):
    """Count instructions, in place of measuring time."""
    scenario.unit = "instructions"
    measured = {}
    for case in scenario.cases:
        number, difference = instructions.a_job(scenario.name, case, full=options.full)
        measured[case] = [number]
        if difference > instructions.AGREE:
            print(f"{case.way} on {case.loop}: two counts differ by {difference:.1%}")
    return measured


def be_child(scenario, options):
    """Measure what the parent asks for, and print it."""
    if options.case is None:
        print(measure_in_turn(scenario, ROUNDS))
        return
    for case in scenario.cases:
        if options.case == case.key:
            if options.amount:
                gc.disable()  # see instructions.py
            print(case.run(options.amount))
            return


def arguments():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--full", action="store_true", help="the sizes that count")
    parser.add_argument("--only", action="append", metavar="NAME", help="one scenario, or several")
    parser.add_argument("--way", action="append", metavar="NAME", help="one way, or several")
    parser.add_argument("--loop", action="append", metavar="NAME", help="one loop, or several")
    parser.add_argument("--instructions", action="store_true", help="count, do not time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here")
    for name in ("--child", "--case", "--module"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--amount", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = arguments()
    ways, loops, left_out = load([options.module] if options.module else MODULES)
    ways = [way for way in ways if not options.way or way.name in options.way]
    loops = [loop for loop in loops if not options.loop or loop in options.loop]
    found = {
        scenario.name: scenario
        for module in (scenarios, memory)
        for scenario in module.scenarios(ways, loops, full=options.full)
        if scenario.cases
    }
    if options.child:
        be_child(found[options.child], options)
        return
    known = [name for name in found if not options.instructions or name in COUNTED]
    wanted = options.only or known
    if not set(wanted) <= set(known):
        raise SystemExit(f"known scenarios: {', '.join(known)}")
    if options.instructions and not instructions.is_possible():
        raise SystemExit("--instructions needs valgrind, which is not installed")
    summaries = []
    for line in left_out:
        print(line)
    for name in wanted:
        scenario = found[name]
        measured = (
            count_scenario(scenario, options)
            if options.instructions
            else run_scenario(scenario, options)
        )
        summaries.append(report.summarise(scenario, measured))
        print(f"\n{report.table(summaries[-1])}", flush=True)
    if options.json:
        told = {"versions": report.versions(), "left_out": left_out, "scenarios": summaries}
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(report.page(summaries, left_out))


if __name__ == "__main__":
    main()
