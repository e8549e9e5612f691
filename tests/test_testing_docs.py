"""The machines in docs/testing.md do what the page says."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from creche.testing._machine.machine import NAMED
from creche.testing._machine.machine import RACES as REGISTERED
from pages import ROOT, blocks
from test_machine import KINDS, RACES

PAGE = ROOT / "docs" / "testing.md"
BRIEF = settings(
    deadline=None,
    max_examples=40,
    stateful_step_count=8,
    database=None,
    derandomize=True,
    report_multiple_bugs=False,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


pytestmark = pytest.mark.usefixtures("quiet")


def machine(name):
    """The machine that the page defines."""
    (block,) = [block for block in blocks(PAGE) if f"class {name}" in block]
    names = {}
    exec(compile(block, "<docs>", "exec"), names)  # noqa: S102 (our own page)
    return names[name]


@pytest.mark.parametrize("backend_name", ["asyncio", "trio"])
def test_sound_worker_passes(backend_name):
    """The machine finds nothing wrong with a worker that keeps what Creche promises."""
    if backend_name == "trio":
        pytest.importorskip("trio")
    tested = machine("LabelledMachine")
    tested.backend = backend_name
    run_state_machine_as_test(tested, settings=BRIEF)


@pytest.mark.parametrize("is_sound", [True, False])
def test_code_around_the_workers(is_sound):
    """The machine detects if a user's code loses track of the unfinished workers."""
    tested = machine("DeskMachine")
    if is_sound:
        run_state_machine_as_test(tested, settings=BRIEF)
        return
    sound = tested.add_worker

    def forget(self, node, worker, **options):
        sound(self, node, worker, **options)
        self.desk.unfinished.clear()

    tested.add_worker = forget
    with pytest.raises(AssertionError, match=r"^look: <w\d in "):
        run_state_machine_as_test(tested, settings=BRIEF)


def test_planted_bug_is_found_and_shrunk():
    """The machine finds the bug, and reports it as a program of a few steps."""
    with pytest.raises(AssertionError) as caught:
        run_state_machine_as_test(machine("TidyMachine"), settings=BRIEF)
    told = str(caught.value)
    # Which worker, and whether its work or its cleanup raises, is up to Hypothesis.
    expected = r"is (SUCCESS|CANCELLED), expected ERROR: <Play '\1': .*raised>"
    assert re.search(rf"^the_end_fits_the_log: <(w\d) in .*{expected}", told)
    notes = "\n".join(caught.value.__notes__) if hasattr(caught.value, "__notes__") else ""
    steps = [
        line
        for line in notes.splitlines()
        if "state." in line and not re.search(r"all_holds|teardown|open_tree", line)
    ]
    assert len(steps) <= 3, notes


@pytest.mark.parametrize(
    ("heading", "first", "feared"), [("The races", "race", RACES), ("What else", "kind", KINDS)]
)
def test_races_are_documented(heading, first, feared):
    """The page lists the races that the machine looks for, and the other kinds of steps."""
    section = PAGE.read_text().partition(f"## {heading}")[2].partition("## ")[0]
    assert set(re.findall(r"^\| ([\w ]+?) \| ", section, re.MULTILINE)) - {first} == feared


def test_races_are_registered():
    """The machine has a rule for each race that it looks for, and for no other."""
    assert REGISTERED == RACES


def test_invariants_are_documented():
    """The page lists each invariant with its meaning."""
    listed = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", PAGE.read_text(), re.MULTILINE))
    for name, meaning in NAMED.items():
        assert listed[name].lower() == meaning.removesuffix(".").lower()
