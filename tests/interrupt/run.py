"""Interrupt programs at every executed line of the library, and check what happens.

``python tests/interrupt/run.py [FIRE ...]``, where FIRE is one of

- ``ctrl-c``: Ctrl+C at each place;
- ``twice``: a second Ctrl+C some places later;
- ``unwinding``: a second Ctrl+C while a worker takes its time to end;
- ``handler``: cancel and post in a signal handler at each place;
- ``asleep``: the same while the event loop sleeps;
- ``random``: Ctrl+C to a busy program at random moments.

Each place is struck in a process of its own. Failures are listed by place; ``--program P --at N
--tell`` prints all output of one. Each execution of a line is a place. With ``--times 1`` each
line of a program is a place once, with ``--once`` each line of the library in one of the programs.
"""

# ruff: noqa: T201 (it prints what it found)

from __future__ import annotations

import argparse
import collections
import functools
import itertools
import os
import re
import signal
import sys

import fires
import programs
import stray
from children import in_children

FIRES = ("ctrl-c", "twice", "unwinding", "handler", "asleep", "random")
GAPS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)
"""How many places lie between two Ctrl+C. The runs cycle through these numbers."""


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("fires", nargs="*", metavar="FIRE", help=f"of {', '.join(FIRES)}; by default all")
    add("--backend", choices=list(fires.BACKENDS), action="append")
    add("--program", choices=list(programs.ALL), action="append")
    add("--deed", choices=list(fires.DEEDS), action="append", help="what the handler does")
    add("--at", type=int, help="the number of one place: tell all")
    add("--within", metavar="FUNCTION", help="only places in functions of this name")
    add("--gap", type=int, help="how many places lie between two Ctrl+C")
    add("--times", type=int, help="how often each line of a program is a place; else always")
    add("--once", action="store_true", help="each line of the library is a place once")
    add("--share", default="0/1", help="which places of those, as in 2/5: the third of five")
    add("--reach", default="core", choices=["core", "around"], help="whose lines are places")
    add("--grain", default="line", choices=["line", "moment"])
    add("--tell", action="store_true", help="all that was said")
    add("--seconds", type=float, default=15.0, help="after which a program hangs")
    add("--jobs", type=int, default=2 * (os.cpu_count() or 1), help="processes at a time")
    add("--runs", type=int, default=300, help="how many random ones")
    add("--list", type=int, default=40, help="how many failures to list")
    asked = parser.parse_args()
    for fire in asked.fires:
        if fire not in FIRES:
            parser.error(f"there is no {fire!r}")
    return asked


def options(asked):
    return {"reach": asked.reach, "grain": asked.grain}


def find_trails(asked, backend):
    """Run each program undisturbed, and return the places that it passes."""
    names = asked.program or list(programs.ALL)
    calls = [
        (name, functools.partial(fires.undisturbed, backend, name, **options(asked)))
        for name in names
    ]
    trails = {}
    for report in in_children(calls, asked.seconds, asked.jobs):
        if symptoms(report):
            sys.exit(f"{report.key} fails undisturbed: {symptoms(report)}\n{report.said}")
        trails[report.key] = report.value["trail"]
    return {name: trails[name] for name in names}


def choose(asked, trails):
    """Return the places that were asked for, each as a program and the number of a place in it."""
    if asked.at:
        return [(program, asked.at) for program in trails]
    numbers = {}  # for each line
    for program, trail in trails.items():
        for number, line in enumerate(trail, 1):
            if asked.within and not line.endswith(f" {asked.within}"):
                continue
            numbers.setdefault(line if asked.once else (program, line), []).append(
                (program, number)
            )
    chosen = []
    for index, key in enumerate(sorted(numbers)):
        found = numbers[key]
        if asked.once:
            chosen.append(found[index * 7919 % len(found)])
        elif asked.times is None or len(found) <= asked.times:
            chosen += found
        else:  # the first, the last, and some between them
            last = max(asked.times - 1, 1)
            chosen += [found[(len(found) - 1) * each // last] for each in range(asked.times)]
    first, of = map(int, asked.share.split("/"))
    return sorted(chosen)[first::of]


def find_calls(asked, backend):
    """Yield the calls, each with a key that identifies it."""
    if asked.fire == "asleep":
        for program, deed in itertools.product(programs.ASLEEP, asked.deed or fires.DEEDS):
            call = functools.partial(fires.while_asleep, backend, program, deed)
            yield (program, None, f"--deed {deed!r}"), call
        return
    deeds = itertools.cycle(asked.deed or fires.DEEDS)
    gaps = itertools.cycle([asked.gap] if asked.gap else GAPS)
    for program, at in choose(asked, find_trails(asked, backend)):
        if asked.fire == "handler":
            # With --once, each place gets one of the deeds, otherwise all of them.
            for _ in range(1 if asked.once else len(asked.deed or fires.DEEDS)):
                deed = next(deeds)
                call = functools.partial(fires.in_handler, backend, program, [at], deed)
                yield (program, at, f"--deed {deed!r}"), functools.partial(call, **options(asked))
            continue
        gap = next(gaps) if asked.fire == "twice" else 0
        call = functools.partial(
            *(fires.ctrl_c, backend, program, {at, at + gap}),
            unwinding=asked.fire == "unwinding",
            **options(asked),
        )
        yield (program, at, f"--gap {gap}" if gap else ""), call


def symptoms(report):
    """Return what went wrong, in the same words for the same kind of failure."""
    if report.value is None:
        return ["hangs"] if report.is_hang else [f"broke off, status {report.status}"]
    found = [each.partition(": ")[0] for each in report.value["faults"]]
    said = report.said.strip().splitlines()
    if said and not found and "is_rough" not in report.value:
        telling = [line for line in said if "Warning: " in line or "Error: " in line]
        found = ["said: " + re.sub(r"^\S+:\d+: ", "", (telling or said)[0])]
    return list(dict.fromkeys(found))


def place_of(report):
    if report.value is not None:
        return " then ".join(report.value["hit"]) or f"number {report.key[1]}"
    struck = [line for line in report.said.splitlines() if line.startswith(fires.STRUCK)]
    return struck[0][len(fires.STRUCK) :] if struck else f"{report.key[0]}, number {report.key[1]}"


def strike(asked, backend):
    """Make all calls on a backend, and return how many failed."""
    fires.warm_up(backend)
    total, struck, failures = 0, 0, collections.defaultdict(list)
    for report in in_children(find_calls(asked, backend), asked.seconds, asked.jobs):
        total += 1
        struck += bool(report.value is None or report.value["hit"])
        found = symptoms(report)
        if asked.tell:
            told = report.value["faults"] if report.value else found
            print(report.key, place_of(report), *told, report.said, sep="\n")
        if found:
            failures["; ".join(found)].append((place_of(report), report.key))
    failed = sum(map(len, failures.values()))
    print(f"{asked.fire} on {backend}: {total} runs, {struck} struck, {failed} failed", flush=True)
    for found, places in sorted(failures.items(), key=lambda each: -len(each[1])):
        print(f"  {len(places)} x {found}")
        times = collections.Counter(place for place, _ in places)
        example = dict(reversed(places))
        for place, count in sorted(times.items(), key=lambda each: -each[1])[: asked.list]:
            program, at, how = example[place]
            print(f"    {count:4} x {place}   [--program {program} --at {at} {how}]")
        if len(times) > asked.list:
            print(f"    and {len(times) - asked.list} other places")
    return failed


def main():
    # A process that a shell runs in the background ignores Ctrl+C, and so would the programs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    asked = arguments()
    fires.seconds = asked.seconds
    failed = 0
    chosen = itertools.product(asked.fires or FIRES, asked.backend or fires.BACKENDS)
    for asked.fire, backend in chosen:
        if asked.fire == "random":
            failed += stray.strike(backend, asked.runs, asked.seconds, tell=asked.tell)
        else:
            failed += strike(asked, backend)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
