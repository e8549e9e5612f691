"""The backends that every test runs on, and what must not be left when it ends."""

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
# The default: it draws the same programs each time. Without a database, or it would not.
settings.register_profile("ci", PLAIN, max_examples=200, derandomize=True, database=None)
settings.register_profile("deep", PLAIN, max_examples=20_000)
settings.register_profile(  # for planted faults: shrinking them is no use
    "mutants", PLAIN, max_examples=100, derandomize=True, database=None, phases=[Phase.generate]
)
settings.load_profile(os.environ.get("CRECHE_PROFILE", "ci"))

# What a shell runs in the background ignores Ctrl+C, and so would the programs that are tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

BACKENDS = {"asyncio": ("asyncio", {"debug": True})}
if importlib.util.find_spec("uvloop"):
    BACKENDS["uvloop"] = ("asyncio", {"use_uvloop": True})
if importlib.util.find_spec("trio"):
    BACKENDS["trio"] = ("trio", {})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Have what a test has logged in characters that a process can send to another: UTF-8."""
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
    """Keep from the log the errors that workers keep to themselves; scripts make many."""
    logging.getLogger("creche").disabled = True
    yield
    logging.getLogger("creche").disabled = False


@pytest.fixture(autouse=True, scope="module")
def kept():
    """Take what is there before the tests of a file out of the collections, one for each test.

    The imports made most of it, and Hypothesis keeps what it has drawn.
    """
    # Hypothesis makes its source of randomness in its first test, and warns if it finds nothing
    # that refers to it. From Python 3.14 on it finds nothing in what is frozen here.
    given(st.none())(lambda _: None)()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_left(kept):
    """No test leaves a worker thread behind, nor a coroutine that was never awaited."""
    before = set(threading.enumerate())
    yield
    gc.collect()  # so that warnings of un-awaited coroutines come up here, as errors
    left = [
        thread
        for thread in threading.enumerate()
        # One that has not begun is still being started, by a thread that goes on.
        if thread not in before
        and thread.is_alive()
        and not thread.name.startswith(("AnyIO worker", "Trio thread"))
    ]
    for thread in left:
        thread.join(5)
    assert not [thread for thread in left if thread.is_alive()], "a test left threads behind"
