"""The state machine of the test kit, on the library's own workers, on each backend.

``CRECHE_PROFILE`` says how much, see conftest.py.
"""

from __future__ import annotations

import logging
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from creche.testing import WorkerMachine

RACES = {
    "cancel before the first step",
    "native cancel before the first step",
    "finish and cancel in one tick",
    "cancel and finish in one tick",
    "waiter cancelled as the worker ends",
    "exclusive replace during unwinding",
    "start while the node closes",
    "limit lowered as a worker ends",
    "thread returns as the node is cancelled",
    "call from a thread as it is cancelled",
    "error while another error unwinds",
}
"""Those that are feared. One that is seen in under 1 % of the programs counts as untested."""
NATIVE = {"native cancel before the first step"}
"""What Trio does not have."""


@pytest.fixture(autouse=True)
def quiet():
    """Errors that workers keep to themselves are logged; scripts make many."""
    logger = logging.getLogger("creche")
    logger.disabled = True
    yield
    logger.disabled = False


def test_machine(anyio_backend):
    """Whatever programs do, every invariant holds, and every race is really met."""

    name, options = anyio_backend

    class Machine(WorkerMachine):
        backend = name
        # The debug mode of asyncio takes twice the time, and changes no order.
        backend_options: ClassVar = {key: options[key] for key in options if key != "debug"}

    run_state_machine_as_test(Machine, settings=settings())
    feared = RACES - (NATIVE if Machine.backend == "trio" else set())
    shares = {race: Machine.races[race] / Machine.examples for race in feared}
    if settings().max_examples >= 200:
        assert {race: share for race, share in shares.items() if share < 0.01} == {}
