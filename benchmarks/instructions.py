"""Instructions a job, counted by cachegrind: a figure that no other load on the machine disturbs.

A process that runs some jobs is counted, then one that runs more of them; the difference is what
the additional jobs took. Each count is made twice, and the two have to agree within 1 %. The
garbage collector is off meanwhile: whether one more of its great rounds falls into the longer run
is chance. Its share is in the times.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

FEW, MANY = 500, 1_500
AGREE = 0.01
COMMAND = [
    *("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"),
    *(sys.executable, str(Path(__file__).with_name("bench.py"))),
]


def is_possible():
    """Tell whether valgrind is installed."""
    return shutil.which("valgrind") is not None


def count(scenario, case, amount, *, full):
    """Count the instructions of a process that runs so much."""
    done = subprocess.run(
        [*COMMAND, "--child", scenario, "--case", case.key, "--amount", str(amount)]
        + ["--module", case.module]
        + ["--full"] * full,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    return int(found[1].replace(",", ""))


def a_job(scenario, case, *, full):
    """Count the instructions of one job.

    Returns:
        The number, and by what part of it two counts differed.
    """
    counts = [
        (count(scenario, case, MANY, full=full) - count(scenario, case, FEW, full=full))
        / (MANY - FEW)
        for _ in range(2)
    ]
    return round(sum(counts) / 2), abs(counts[0] - counts[1]) / min(counts)
