"""The scenario of the import: ``import creche``, beside that of the parts of AnyIO it needs.

Each import has a process of its own. Compiled code is kept in a folder of ours, whatever the
environment says, so that nothing is compiled anew but in the round that warms up.
"""

from __future__ import annotations

import atexit
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import instructions
from cases import Case, Scenario

NAME = "import"
ANYIO = "anyio, to_thread, from_thread"
PROGRAMS = {
    "python": "pass",
    ANYIO: "import anyio, anyio.to_thread, anyio.from_thread",
    "Creche": "import creche",
}


def _environment(folder):
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": folder, "PYTHONHASHSEED": "0"}


def _spent():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def count():
    """Count the instructions of each program, from the start of the interpreter on."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(instructions.RUNS) as pool:
        environment = _environment(folder)

        def one(number, program):
            log = Path(folder, f"log-{number}-{len(program)}")
            command = [*instructions.COMMAND, f"--log-file={log}", sys.executable, "-c", program]
            subprocess.run(command, env=environment, check=True)
            return instructions.read(log)

        counts = {}
        for way, program in PROGRAMS.items():
            subprocess.run([sys.executable, "-c", program], env=environment, check=True)
            found = pool.map(one, range(instructions.RUNS), [program] * instructions.RUNS)
            counts[NAME, f"{way}/-/1"] = list(found)
        return counts


def scenarios(_ways, _loops, *, full):
    """Give the scenario; its size is the same in quick and in full."""
    del full
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def make(way, program):
        def run():
            before = _spent()
            subprocess.run([sys.executable, "-c", program], env=_environment(folder), check=True)
            return _spent() - before

        return Case(way, "-", 1, run)

    cases = [make(way, program) for way, program in PROGRAMS.items()]
    return [Scenario(NAME, "import, the start of Python included", (ANYIO,), cases)]
