"""Instructions per job, counted by cachegrind, so that load on the machine does not affect them.

One process under valgrind imports everything and runs each case a little to warm up. For each case
it then forks a process that runs some jobs and one that runs more of them. The difference is what
the additional jobs took, so the startup of the interpreter and the libraries is paid for once and
is not part of any figure. All of this is done twice at the same time by independent processes, and
the two results have to agree within 1 %.

The garbage collector is off meanwhile, since it is a matter of chance whether one more full
collection falls into the longer run. Its share is included in the timings.
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
    """Return whether valgrind is installed."""
    return shutil.which("valgrind") is not None


def environment():
    """Return environment variables that fix the hash seed and keep compiled code."""
    return {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": ""}


def be_counted(scenarios):
    """Run all cases in this process, which valgrind counts, and print the process ids of each."""
    gc.disable()
    ran = []
    for scenario in scenarios:
        for case in scenario.cases:
            if not scenario.name.startswith("threads"):  # threads do not survive a fork
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
    """Count all cases, several times in parallel.

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
    """Count whole programs, from the start of the interpreter. Return the counts by name."""
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
    """Read valgrind's count from its log."""
    found = re.search(r"I\s+refs:\s+([\d,]+)", log.read_text())
    return int(found[1].replace(",", ""))


def agree(counts):
    """Return whether the counts of one case are close enough to each other."""
    return max(counts) - min(counts) <= AGREE * min(counts)
