"""The backends that every test runs on, and the check that a test leaves nothing behind."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import signal
import threading

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

PLAIN = settings(
    deadline=None, stateful_step_count=25, suppress_health_check=list(HealthCheck), print_blob=True
)
settings.register_profile("dev", PLAIN, max_examples=50)
# The default draws the same programs each time, for which it must have no database.
settings.register_profile("ci", PLAIN, max_examples=200, derandomize=True, database=None)
settings.register_profile("deep", PLAIN, max_examples=20_000)
settings.register_profile(  # for planted faults, which need no shrinking
    "mutants", PLAIN, max_examples=100, derandomize=True, database=None, phases=[Phase.generate]
)
settings.load_profile(os.environ.get("CRECHE_PROFILE", "ci"))

# A process that a shell runs in the background ignores Ctrl+C, as would the tested programs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

BACKENDS = {"asyncio": ("asyncio", {"debug": True})}
if importlib.util.find_spec("uvloop"):
    BACKENDS["uvloop"] = ("asyncio", {"use_uvloop": True})
if importlib.util.find_spec("trio"):
    BACKENDS["trio"] = ("trio", {})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Escape what cannot be encoded in UTF-8 in captured output, so that xdist can send it."""
    report = yield
    report.sections = [
        (title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections
    ]
    return report


@pytest.fixture(params=list(BACKENDS))
def anyio_backend(request):
    """Run an async test on each of the backends."""
    return BACKENDS[request.param]


@pytest.fixture
def backend(anyio_backend):
    """The arguments for ``anyio.run()``, for tests that run a loop of their own."""
    name, options = anyio_backend
    return {"backend": name, "backend_options": options}


@pytest.fixture
def quiet():
    """Disable the log for random programs, whose many stored errors would fill it."""
    logging.getLogger("creche").disabled = True
    yield
    logging.getLogger("creche").disabled = False


@pytest.fixture(autouse=True, scope="module")
def kept():
    """Freeze existing objects before the tests of a file, so that gc.collect() is fast after each.

    Most of these objects come from imports, and from Hypothesis, which keeps what it has drawn.
    """
    # Hypothesis creates its source of randomness in its first test, and warns if it finds no
    # reference to it. From Python 3.14 on, it finds none among the frozen objects.
    given(st.none())(lambda _: None)()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_left(kept):
    """Check that a test leaves no thread and no coroutine that was never awaited."""
    before = set(threading.enumerate())
    yield
    gc.collect()  # so that warnings about coroutines never awaited are raised here, as errors
    left = [
        thread
        for thread in threading.enumerate()
        # A thread that is not alive yet is still being started by another one.
        if thread not in before
        and thread.is_alive()
        and not thread.name.startswith(("AnyIO worker", "Trio thread"))
    ]
    for thread in left:
        thread.join(5)
    assert not [thread for thread in left if thread.is_alive()], "a test left threads behind"
