"""Run Textual's own tests with Creche running every worker.

The tests come with Textual's source distribution, which is downloaded from the registry and kept in
the given folder. ``--all`` runs the whole suite, both with Creche and unmodified. Tests that fail
only with Creche are run once more on their own, as many depend on timing, and count as failures
only if they fail again. The distribution does not include the snapshots, so the tests that compare
pictures are left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
PARTS = ["tests/workers", "tests/directory_tree", "tests/command_palette"]
ON_CRECHE = ["-p", "on_creche", "-rx"]


def fetch(folder: Path) -> Path:
    """Download the source distribution of the installed Textual, and unpack it."""
    name = f"textual-{version('textual')}"
    if not (folder / name).exists():
        wanted = ["--no-deps", "--no-binary", "textual", name.replace("-", "==")]
        command = [sys.executable, "-m", "pip", "download", "-q", *wanted, "-d", str(folder)]
        subprocess.run(command, check=True)
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return folder / name


def run(source: Path, *arguments: str) -> int:
    """Run some of the distribution's tests."""
    told = [str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, told))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=source, env=environment, check=False).returncode


def run_all(source: Path, name: str, *arguments: str) -> tuple[int, set[str]]:
    """Run the whole suite. Return how many tests passed, and the names of those that failed."""
    report = source.parent / f"{name}.xml"
    left_out = "--ignore=tests/snapshot_tests"
    run(source, "-n", "auto", f"--junitxml={report}", left_out, *arguments, "tests")
    cases = list(ET.parse(report).iter("testcase"))  # noqa: S314 (pytest has just written it)
    bad = {
        f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    }
    skipped = sum(case.find("skipped") is not None for case in cases)
    return len(cases) - len(bad) - skipped, bad


def compare(source: Path) -> int:
    """Run the whole suite with Creche and without, and print the differences."""
    passed, bad = run_all(source, "on-creche", *ON_CRECHE)
    passed_before, bad_before = run_all(source, "unmodified")
    print(f"with Creche {passed} passed, unmodified {passed_before}")
    print("fail without it too:", *sorted(bad & bad_before) or ["none"])
    new = sorted(bad - bad_before)
    print("differ at first:", *new or ["none"])
    return run(source, *ON_CRECHE, *new) if new else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the distribution is put")
    parser.add_argument("--all", action="store_true", help="the whole suite, twice")
    options, others = parser.parse_known_args()
    source = fetch(options.folder.resolve())
    if options.all:
        return compare(source)
    return run(source, *ON_CRECHE, *(others or PARTS))


if __name__ == "__main__":
    sys.exit(main())
