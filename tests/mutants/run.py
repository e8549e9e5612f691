"""Plant faults in a copy of the core, one at a time, and check that the tests catch each.

``python tests/mutants/run.py [WORD ...]`` runs all of mutants.toml, or those whose names contain
one of the words. A fault that no test catches is a failure. So is one whose text is not found: the
core has changed, and the list has to be updated. A test that hangs until it is stopped counts as
caught. A fault with ``since`` needs that version of Python, and one with ``until`` an older one;
on others it is skipped.
"""

# ruff: noqa: T201 (it prints its verdicts)

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LIST = HERE / "mutants.toml"
# Quick tests of the core come first, as the first failure ends the run of a mutant. In ``tests`` an
# entry may name files to run before these: those that have caught it.
QUICK = (
    *("unbreakable", "states", "worker", "handlers", "bridge", "tree", "node", "errors"),
    *("cancellation", "threads", "subscriptions", "as_raised", "unopened", "misuse"),
    *("logs", "late_effects", "groups", "left"),
)
THOROUGH = ("deadlock", "sweep", "machine", "sweep_lines")
LIMIT = 900.0  # seconds for one mutant
HANG = 120  # seconds for one test; the longest takes a quarter of this


def selections(root, first):
    """Yield the tests to run, one selection after the other.

    Most faults show on each backend, so the quick tests run on asyncio alone at first.
    """
    for options, names in (
        (["-k", "not uvloop and not trio"], (*first, *QUICK)),
        ([], (*first, *QUICK, *THOROUGH)),
    ):
        yield [
            *options,
            *(str(root / "tests" / f"test_{name}.py") for name in dict.fromkeys(names)),
        ]


def prepare(place):
    for name in ("src", "tests"):
        shutil.copytree(
            ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", "mutants")
        )
    shutil.copy(ROOT / "pyproject.toml", place)


def is_for_this_python(mutant):
    since, until = (mutant.get(*each).split(".") for each in (("since", "3"), ("until", "4")))
    return tuple(map(int, since)) <= sys.version_info < tuple(map(int, until))


def core(place):
    """Return the files in which faults are planted."""
    package = place / "src" / "creche"
    folders = ("_*", "otel", "services")
    return [*package.glob("*.py"), *(p for each in folders for p in package.glob(f"{each}/*.py"))]


def find_stale(mutant):
    """Return what is wrong with an entry of the list, or None."""
    times = {
        path.name: count
        for path in core(ROOT)
        if (count := path.read_text(encoding="utf-8").count(mutant["search"]))
    }
    if sum(times.values()) == 1:
        return find_nonsense(mutant)
    where = ", ".join(f"{count} times in {name}" for name, count in times.items()) or "nowhere"
    return f"STALE  {mutant['name']}: its text is found {where}"


def find_nonsense(mutant):
    """Report an entry that leaves invalid Python: any test fails on that, which proves nothing."""
    for path in core(ROOT):
        text = path.read_text(encoding="utf-8")
        if mutant["search"] in text:
            try:
                ast.parse(text.replace(mutant["search"], mutant["replace"]))
            except SyntaxError as error:
                return f"STALE  {mutant['name']}: what it leaves is no Python: {error}"
    return None


def plant(place, mutant):
    for path in core(place):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(mutant["search"], mutant["replace"]), encoding="utf-8")


def run_tests(place, selected):
    """Return the exit status, the first failed test and everything that was printed.

    The status is ``None`` for a run that timed out.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-o", f"faulthandler_timeout={HANG}", *selected]
    try:
        done = subprocess.run(
            command,
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(place / "src"), "CRECHE_PROFILE": "mutants"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, "", ""
    failed = re.findall(r"^(?:FAILED|ERROR) \S+\.py.*", done.stdout, re.MULTILINE)
    by = failed[0].partition(" - ")[0] if failed else "the end of a test that hung"
    return done.returncode, by, done.stdout


def judge(mutant):
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(place)
        if mutant is not None:
            plant(place, mutant)
        for selected in selections(place, (mutant or {}).get("tests", ())):
            status, by, told = run_tests(place, selected)
            if status != 0:
                break
        if mutant is None and status != 0:
            print(told)
    if status is None:
        return mutant, "BROKEN: no test hung, and they took too long", time.monotonic() - began
    if status == 0:
        return mutant, "SURVIVED", time.monotonic() - began
    if status >= 2:
        return mutant, f"BROKEN: pytest ended with {status}", time.monotonic() - began
    return mutant, f"caught by {by}", time.monotonic() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="words of the names of mutants")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    options = parser.parse_args()
    mutants = tomllib.loads(LIST.read_text(encoding="utf-8"))["mutant"]
    if options.names:
        mutants = [each for each in mutants if any(word in each["name"] for word in options.names)]
    for each in [each for each in mutants if not is_for_this_python(each)]:
        print(f"passed over, as it is for other versions of Python: {each['name']}")
        mutants.remove(each)
    stale = [told for told in map(find_stale, mutants) if told is not None]
    for told in stale:
        print(told)
    if stale:
        sys.exit(f"{len(stale)} of {len(mutants)} are stale: mend their search texts first")
    _, verdict, seconds = judge(None)
    if verdict != "SURVIVED":
        sys.exit(f"the tests fail without any fault: {verdict}")
    print(f"without a fault: {seconds:.0f} s")
    bad = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for mutant, verdict, seconds in pool.map(judge, mutants):
            caught = verdict.startswith("caught")
            bad += not caught
            print(f"{'ok ' if caught else 'BAD'} {seconds:4.0f} s  {mutant['name']}: {verdict}")
            sys.stdout.flush()
    print(f"{len(mutants) - bad} of {len(mutants)} caught")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
