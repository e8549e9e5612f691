"""The machine finds broken workers quickly, and reports them in a few lines."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time

import anyio
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from creche import Worker
from creche.testing import Ending, OnCancel, Script, WorkerMachine
from helpers import SUCCESS

SMALL = settings(
    deadline=None,
    max_examples=60,
    stateful_step_count=15,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def _nothing_is_kept():
    """Check that a machine, which silences its own log, leaves the logger as it was."""
    logger = logging.getLogger("creche")
    before = logger.handlers[:], logger.propagate, logger.level, logger.disabled
    yield
    assert (logger.handlers[:], logger.propagate, logger.level, logger.disabled) == before


class Twice(Worker):
    async def run(self):
        await super().run()
        return await super().run()


class TwiceAtOnce(Worker):
    async def run(self):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(super().run)
            return await super().run()


class Forgetful(Worker):
    async def run(self):
        self.description = "under way"


class ForgetfulInQueues(Worker):
    async def run(self):
        return None if self.group == "queue" else await super().run()


class ForgetsToAwait(Worker):
    async def run(self):
        return super().run()


class Beyond(Worker):
    async def run(self):
        self.update(total_steps=1)
        self.advance()
        result = await super().run()
        self.advance()
        return result


class Back(Worker):
    async def run(self):
        self.advance(3)
        try:
            return await super().run()
        finally:
            self.update(completed_steps=1)


class OwnError(Worker):
    async def run(self):
        raise KeyError("an error of its own")


def machine_of(kind, **attributes):
    def make_worker(self, node, work, **options):
        return kind(node, work, **options)

    return type(
        f"{kind.__name__}Machine", (WorkerMachine,), {"make_worker": make_worker, **attributes}
    )


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        # A coroutine cannot be run again, so the work raises an error.
        (Twice, ("work_is_not_repeated", "the_end_fits_the_log")),
        (TwiceAtOnce, ("work_is_not_repeated", "the_end_fits_the_log")),
        (Forgetful, ("the_end_fits_the_log",)),
        (ForgetfulInQueues, ("the_end_fits_the_log",)),
        (ForgetsToAwait, ("the_end_fits_the_log",)),
        (Beyond, ("progress_stays_within_the_total",)),
        (Back, ("progress_never_goes_back_by_itself",)),
        (OwnError, ("the_end_fits_the_log",)),
    ],
)
def test_broken_worker_is_found(kind, told):
    """A few programs find a broken worker, and an invariant of the machine reports it."""
    begun = time.monotonic()
    with pytest.raises(AssertionError) as caught:
        run_state_machine_as_test(machine_of(kind), settings=SMALL)
    assert str(caught.value).partition(": ")[0] in told
    assert time.monotonic() - begun < 60


def test_race_with_a_worker_that_never_comes_to_its_work():
    """If no work is entered, the races go on and leave the report to the invariants."""
    machine = machine_of(Forgetful, expected_states=lambda self, record: {SUCCESS})()
    place = machine.open_tree(seed=0, limit=1, overflow="restart")
    machine.race_limit_changed_as_a_worker_ends(where=place, between=0, swap=False, limit=1)
    machine.race_thread_returns_as_it_is_cancelled(where=place, swap=False, between=0, whole=False)
    machine.race_call_from_a_thread_as_it_is_cancelled(
        where=place, swap=False, between=0, whole=False
    )
    assert machine.run_thread(
        place=place, ending=Ending.RETURN, kind="thread", on_cancel=OnCancel.OBEY
    )
    assert not any(record.play.is_entered for record in machine.records())
    machine.teardown()


def test_thread_that_does_not_come(monkeypatch):
    """Once a machine has waited for a thread in vain, the next waits less."""

    class Sleeps(Worker):
        async def run(self):
            await anyio.sleep_forever()

    kind = machine_of(Sleeps, _patience=0.3)
    waited = []
    for _ in range(2):
        machine = kind()
        place = machine.open_tree(seed=0, limit=1, overflow="restart")
        begun = time.monotonic()
        with pytest.raises(AssertionError, match="did not come"):
            machine.run_thread(
                place=place, ending=Ending.RETURN, kind="thread", on_cancel=OnCancel.OBEY
            )
        waited.append(time.monotonic() - begun)
        machine.teardown()
    assert waited[0] >= 0.3
    assert kind._patience < 0.3


@pytest.mark.parametrize("on_cancel", OnCancel)
def test_a_task_that_is_cancelled_natively(on_cancel):
    """Whatever its work does with a native cancellation, the machine goes on."""
    machine = machine_of(Worker)()
    place = machine.open_tree(seed=0, limit=1, overflow="restart")
    record = machine.run(
        place=place,
        script=Script(on_cancel=on_cancel),
        group="free",
        kind="function",
        exclusive=False,
        fatal=False,
        daemon=False,
    )
    machine.until(lambda: record.play.is_inside)
    machine.cancel_task(record=record)
    machine.teardown()


def test_progress_of_a_worker_that_reports_its_own():
    """The machine adds nothing to the progress of a worker that reports its own."""
    machine = machine_of(Back, progress_may_go_back=True)()
    place = machine.open_tree(seed=0, limit=1, overflow="restart")
    record = machine.create(
        place=place, script=Script(), group="free", kind="function", exclusive=False
    )
    machine.report_progress(record=record, steps=1, more=1, known=True, anew=False)
    assert record.worker.completed_steps == 0
    machine.teardown()


def test_worker_that_begins_anew_on_purpose():
    """With ``progress_may_go_back``, a worker that resets its progress is not reported."""
    run_state_machine_as_test(machine_of(Back, progress_may_go_back=True), settings=SMALL)


@pytest.mark.parametrize("backend_name", ["asyncio", "trio"])
def test_records_of_an_abandoned_thread(backend_name):
    """Log handlers get no record of a machine, so they cannot keep an abandoned worker alive."""
    if backend_name == "trio":
        pytest.importorskip("trio")
    kept = []
    handler = logging.Handler()
    handler.emit = kept.append
    logger = logging.getLogger("creche")

    class Labelled(Worker):
        async def run(self):
            return await super().run()

    logger.addHandler(handler)
    try:
        machine = machine_of(Labelled, backend=backend_name)()
        place = machine.open_tree(seed=0, limit=1, overflow="restart")
        record = machine.run_thread(
            place=place, ending=Ending.RAISE, kind="abandoned", on_cancel=OnCancel.OBEY
        )
        machine.cancel_thread(record=record)
        machine.finish_thread(record=record)
        machine.teardown()
    finally:
        logger.removeHandler(handler)
    assert kept == []


FAILING = """
from hypothesis import Phase, settings
from hypothesis.stateful import invariant

from creche import Worker
from creche.testing import WorkerMachine


class Forgetful(Worker):
    async def run(self):
        self.description = "under way"


class ForgetfulMachine(WorkerMachine):
    def make_worker(self, node, work, **options):
        return Forgetful(node, work, **options)


class LateMachine(WorkerMachine):
    def all_holds(self):
        super().all_holds()
        if self.steps > 45:
            self.fail("the longest program there is")


KIND = "shrunk"
DETERMINED = {"derandomize": True, "database": None}
if KIND == "shrunk":
    TestForgetful = ForgetfulMachine.TestCase
    TestForgetful.settings = settings(TestForgetful.settings, **DETERMINED)
else:
    TestLate = LateMachine.TestCase
    TestLate.settings = settings(TestLate.settings, phases=[Phase.generate], **DETERMINED)
"""


NO_PLUGINS = ("-p", "no:asyncio", "-p", "no:trio")  # they print more lines


@pytest.mark.parametrize("kind", ["shrunk", "as drawn"])
def test_report_is_short(tmp_path, kind):
    """Everything that pytest prints about a failure fits in 100 lines, shrunk or not.

    On CI pytest repeats the whole message in its summary, which is not counted here.
    """
    path = tmp_path / "test_failing.py"
    path.write_text(FAILING.replace('"shrunk"', repr(kind), 1), encoding="utf-8")
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *NO_PLUGINS, path.name],
        cwd=tmp_path,
        env={name: it for name, it in os.environ.items() if name not in {"CI", "BUILD_NUMBER"}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1, answer.stdout
    assert "1 failed" in answer.stdout
    lines = [*answer.stdout.splitlines(), *answer.stderr.splitlines()]
    assert len(lines) <= 100, answer.stdout
    told = "the_end_fits_the_log: " if kind == "shrunk" else "the longest program there is"
    assert any(line.startswith(f"E       AssertionError: {told}") for line in lines), answer.stdout


def test_script_is_told_in_one_line():
    """The repr of a script shows what differs from the defaults, and can be pasted as code."""
    script = Script(gated=False, ending=Ending.RAISE)
    assert repr(script) == "Script(gated=False, ending=Ending.RAISE)"
    names = {"Script": Script, "Ending": Ending}
    assert eval(repr(script), names) == script  # noqa: S307 (our own text)
    assert repr(Script()) == "Script()"
