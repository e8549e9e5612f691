"""The state machine of the test kit, on the library's own workers.

``CRECHE_PROFILE`` says how much: ``dev`` by default, ``quick`` for the mutants, ``ci``
derandomised, ``deep`` for a search that takes hours.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings

from kit import WorkerMachine

PLAIN = settings(
    deadline=None, stateful_step_count=25, suppress_health_check=list(HealthCheck), print_blob=True
)
PROFILES = {
    "quick": settings(
        PLAIN, max_examples=100, derandomize=True, database=None, phases=[Phase.generate]
    ),
    "dev": settings(PLAIN, max_examples=60),
    "ci": settings(PLAIN, max_examples=200, derandomize=True, database=None),
    "deep": settings(PLAIN, max_examples=20_000),
}
PROFILE = PROFILES[os.environ.get("CRECHE_PROFILE", "dev")]


@pytest.fixture(autouse=True)
def quiet():
    """Errors that workers keep to themselves are logged; scripts make many."""
    logger = logging.getLogger("creche")
    logger.disabled = True
    yield
    logger.disabled = False


class OnAsyncio(WorkerMachine):
    backend = "asyncio"


class OnTrio(WorkerMachine):
    backend = "trio"


class OnUvloop(WorkerMachine):
    backend = "asyncio"
    backend_options: ClassVar = {"use_uvloop": True}


TestAsyncio = OnAsyncio.TestCase
TestAsyncio.settings = PROFILE
if importlib.util.find_spec("trio"):
    TestTrio = OnTrio.TestCase
    TestTrio.settings = PROFILE
if importlib.util.find_spec("uvloop"):
    TestUvloop = OnUvloop.TestCase
    TestUvloop.settings = PROFILE
