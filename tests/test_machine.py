"""The state machine of the test kit, on the library's own workers, on each backend.

``CRECHE_PROFILE`` says how much, see conftest.py.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import Phase, seed, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from creche.testing import WorkerMachine

RACES = {
    "cancel before the first step",
    "native cancel before the first step",
    "finish and cancel in one tick",
    "cancel and finish in one tick",
    "waiter cancelled as the worker ends",
    "exclusive replace during unwinding",
    "work on a node that is being opened",
    "start while the node closes",
    "limit lowered as a worker ends",
    "thread returns as the node is cancelled",
    "call from a thread as it is cancelled",
    "error while another error unwinds",
}
"""Those that are feared. One that is seen in under 0.5 % of the programs counts as untested."""
KINDS = {
    "raise frozen",
    "raise frozen base",
    "raise stubborn",
    "raise group",
    "raise within",
    "raise finally",
    "cancellation in a group that stays whole",
    "handler that starts a worker",
    "log that raises",
    "node that equals its parent",
    "removal of a node that has ended",
    "progress set back",
    "service that has begun again",
    "calls of a cancelled thread",
}
"""What programs do to the library, beside races: demanded as these are."""
NATIVE = {"native cancel before the first step"}
"""What Trio does not have."""


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def machine(anyio_backend):
    """A machine without the debug mode of asyncio, which takes twice the time."""
    name, options = anyio_backend

    class Machine(WorkerMachine):
        backend = name
        backend_options: ClassVar = {key: options[key] for key in options if key != "debug"}

    return Machine


def test_machine(machine):
    """Every invariant holds in all programs, and every race and kind really occurs."""
    run_state_machine_as_test(machine, settings=settings())
    feared = (RACES | KINDS) - (NATIVE if machine.backend == "trio" else set())
    shares = {race: machine.races[race] / machine.examples for race in feared}
    if settings().max_examples >= 200:
        assert {race: share for race, share in shares.items() if share < 0.005} == {}


def test_a_program_repeats(machine):
    """The same choices give the same histories, or no finding could be replayed."""

    class Machine(machine):
        lives: ClassVar[list[object]] = []

        @invariant()
        def note_lives(self):
            for place in self.places():
                self.lives.append((place.name, place.is_over, place.has_fallen))
            for record in self.records():
                self.lives.append((record.worker.state, *record.play.log))

    told = []
    for _ in range(2):
        Machine.lives.clear()
        few = settings(max_examples=20, phases=[Phase.generate], database=None)
        run_state_machine_as_test(seed(7)(Machine), settings=few)
        told.append(list(Machine.lives))
    assert told[0] == told[1]
    assert len(told[0]) > 100, "too little happened to tell"
