"""Instructions a job, counted by cachegrind: a figure that no other load on the machine disturbs.

One process under valgrind imports everything and runs a little of each case, to be warm. For each
case it then forks a process that runs some jobs and one that runs more of them; the difference is
what the additional jobs took. So the start of the interpreter and of the libraries is paid for
once, and is no part of any figure. All of that is done twice, at the same time, by processes that
know nothing of each other, and the two have to agree within 1 %.

The garbage collector is off meanwhile: whether one more of its great rounds falls into the longer
run is chance. Its share is in the times.
"""

from __future__ import annotations

import ast
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WARM, FEW, MANY = 20, 200, 800
AGREE = 0.01
RUNS = 2
COMMAND = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")


def is_possible():
    """Tell whether valgrind is installed."""
    return shutil.which("valgrind") is not None


def environment():
    """Give one in which hashes are the same each time, and compiled code is kept."""
    return {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": ""}


def be_counted(scenarios):
    """Run all cases, in this process that valgrind counts, and print who ran what."""
    gc.disable()
    ran = []
    for scenario in scenarios:
        for case in scenario.cases:
            if not scenario.name.startswith("threads"):  # a fork of them would not work
                case.run(WARM)
            ran.append((scenario.name, case.key, [_fork(case, each) for each in (FEW, MANY)]))
    print(ran)


def _fork(case, amount):
    pid = os.fork()
    if not pid:
        case.run(amount)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"{case.key} failed")
    return pid


def count(arguments):
    """Count all cases, several times at once.

    Args:
        arguments: The command line for a process that calls ``be_counted()``.

    Returns:
        For each name of a scenario and key of a case, the counts of one job.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder)
        runs = [
            subprocess.Popen(
                [*COMMAND, f"--log-file={log}/{number}-%p", sys.executable, *arguments],
                env=environment(),
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(RUNS)
        ]
        counts = {}
        for number, run in enumerate(runs):
            told, _ = run.communicate()
            if run.returncode:
                raise SystemExit(f"a run that was counted failed: {told}")
            for scenario, key, pids in ast.literal_eval(told):
                few, many = (read(log / f"{number}-{pid}") for pid in pids)
                counts.setdefault((scenario, key), []).append((many - few) / (MANY - FEW))
        return counts


def count_programs(programs):
    """Count programs as a whole, from the start of the interpreter on; gives counts by name."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        counts = {}
        for name, text in programs.items():
            program = [sys.executable, "-c", text]
            subprocess.run(program, env=environment(), check=True)  # compiles what it imports
            counts[name] = []
            for _ in range(RUNS):
                counted = [*COMMAND, f"--log-file={log}", *program]
                subprocess.run(counted, env=environment(), check=True)
                counts[name].append(read(log))
        return counts


def read(log):
    """Read what valgrind counted, out of its log."""
    found = re.search(r"I\s+refs:\s+([\d,]+)", log.read_text())
    return int(found[1].replace(",", ""))


def agree(counts):
    """Tell whether the counts of one case differ by no more than they may."""
    return max(counts) - min(counts) <= AGREE * min(counts)
