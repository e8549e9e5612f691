"""The helpers of the test kit: virtual time, the recorder, scripts and the check for leaks."""

from __future__ import annotations

import sys
import threading
import time

import anyio
import pytest
from anyio._backends._asyncio import AsyncIOBackend
from hypothesis import given

import creche.testing
from creche import Node
from creche._running.runner import IDLE
from creche.testing import (
    Ending,
    EventRecorder,
    OnCancel,
    Play,
    Script,
    ScriptBaseError,
    ScriptError,
    assert_nothing_left,
    scripts,
    virtual_time,
)
from helpers import (
    CANCELLED,
    ERROR,
    HAS_GIL,
    PENDING,
    RUNNING,
    SUCCESS,
    ExceptionGroup,
    run_python,
    settle,
    until,
)

# the recorder


async def test_recorder_keeps_every_change():
    """The recorder keeps every change in order, and the node's own handler is still called."""
    own = []

    class Loud(Node):
        async def on_worker_state_changed(self, event):
            own.append(event.state)

    app = Loud()
    recorder = EventRecorder(app)
    async with app:
        worker = app.run_worker(settle)
    assert recorder.states(worker) == [PENDING, RUNNING, SUCCESS] == own
    assert list(recorder) == [(worker, PENDING), (worker, RUNNING), (worker, SUCCESS)]
    assert len(recorder) == 3
    assert repr(recorder) == "<EventRecorder of 3 events>"
    recorder.assert_states(worker, PENDING, RUNNING, SUCCESS)
    recorder.assert_orderly()


async def test_recorder_tells_what_happened():
    """A failed comparison shows both lists and everything that was recorded."""
    async with Node("app") as app:
        recorder = EventRecorder(app)
        worker = app.run_worker(settle, name="sync", group="net")
    with pytest.raises(AssertionError) as caught:
        recorder.assert_states(worker, PENDING, CANCELLED)
    assert str(caught.value) == (
        "worker 'sync' went through PENDING, RUNNING, SUCCESS; expected PENDING, CANCELLED\n"
        "recorded:\n"
        "    0 worker 'sync' of app/net: PENDING\n"
        "    1 worker 'sync' of app/net: RUNNING\n"
        "    2 worker 'sync' of app/net: SUCCESS"
    )
    with pytest.raises(AssertionError, match="nothing was recorded"):
        EventRecorder().assert_states(worker, PENDING)


@pytest.mark.parametrize(
    ("states", "wrong"),
    [
        ([RUNNING, SUCCESS], "worker 'sync' began as RUNNING, not as PENDING"),
        ([PENDING, SUCCESS], "worker 'sync' went from PENDING to SUCCESS"),
        (
            [PENDING, RUNNING],
            "worker 'sync' is SUCCESS, but the last that was announced of it is RUNNING",
        ),
    ],
    ids=["first", "edge", "last"],
)
async def test_recorder_judges_a_life(states, wrong):
    """assert_orderly() rejects a history that the table of states does not allow."""
    async with Node("app") as app:
        worker = app.run_worker(settle, name="sync")
    recorder = EventRecorder()
    recorder.events = [(worker, state) for state in states]
    with pytest.raises(AssertionError) as caught:
        recorder.assert_orderly()
    assert str(caught.value).splitlines()[0] == wrong


# scripts


async def test_play_logs_what_it_does():
    """A script logs each of its steps, from entry to return."""
    play = Play(Script(before=1, after=2), "first")
    async with Node() as app:
        worker = app.run_worker(play)
        await until(play.arrived.is_set)
        assert play.is_inside
        assert repr(play) == "<Play 'first': entered, at the gate>"
        play.open_gate()
    assert play.log == ["entered", "at the gate", "returned"]
    assert (worker.name, worker.result) == ("first", play.value)
    assert not play.is_inside
    assert play.left.is_set()


@pytest.mark.parametrize(
    ("ending", "kind", "last"),
    [(Ending.RAISE, ScriptError, "raised"), (Ending.RAISE_BASE, ScriptBaseError, "raised base")],
    ids=["raise", "base"],
)
async def test_play_raises(ending, kind, last):
    """A script can raise an Exception or a BaseException."""
    play = Play(Script(gated=False, ending=ending))
    with pytest.raises(kind):
        await play()
    assert play.log[-1] == last
    assert [type(error) for error in play.errors] == [kind]


@pytest.mark.parametrize("ending", [Ending.FROZEN, Ending.FROZEN_BASE, Ending.STUBBORN])
async def test_errors_that_refuse(ending):
    """A script can raise an error that refuses to be changed or inspected."""
    play = Play(Script(gated=False, ending=ending))
    with pytest.raises((ScriptError, ScriptBaseError)) as caught:
        await play()
    error = play.errors[0]
    assert caught.value is error
    for name in ("__notes__", "__traceback__", "__cause__"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(error, name, None)
    if ending is Ending.STUBBORN:
        for ask in (str, lambda error: error.__notes__, lambda error: error.add_note("told")):
            with pytest.raises(TypeError):
                ask(error)


async def test_group_that_stays_whole():
    """An exception group raised by a script cannot be split, and may contain a cancellation."""
    plain = Play(Script(gated=False, ending=Ending.GROUP))
    with pytest.raises(ExceptionGroup) as caught:
        await plain()
    assert caught.value.exceptions == tuple(plain.errors)
    with pytest.raises(TypeError):
        caught.value.split(ScriptError)
    play = Play(Script(ending=Ending.GROUP, on_cancel=OnCancel.RAISE_WITHIN))
    async with Node() as app:
        worker = app.run_worker(play, exit_on_error=False)
        await until(play.arrived.is_set)
        worker.cancel()
    assert worker.error.exceptions == tuple(play.errors)


@pytest.mark.parametrize(
    ("answer", "last", "state"),
    [
        (OnCancel.OBEY, "unwound", CANCELLED),
        (OnCancel.RESIST, "unwound", CANCELLED),
        (OnCancel.HOLD, "unwound", CANCELLED),
        (OnCancel.SWALLOW, "returned", CANCELLED),
        (OnCancel.RAISE, "raised", ERROR),
        (OnCancel.RAISE_WITHIN, "raised", ERROR),
        (OnCancel.RAISE_FINALLY, "raised", ERROR),
    ],
    ids=lambda value: value.value if isinstance(value, OnCancel) else None,
)
async def test_play_answers_cancellation(answer, last, state):
    """A script answers a cancellation in the way it was told to."""
    play = Play(Script(on_cancel=answer, unwinding=5))
    async with Node() as app:
        worker = app.run_worker(play, exit_on_error=False)
        await until(play.arrived.is_set)
        worker.cancel()
        await settle()
        assert play.is_inside is (answer is OnCancel.HOLD)
        play.let_go()
    assert play.log == ["entered", "at the gate", "cancelled", last]
    assert worker.state is state


async def test_play_in_a_thread():
    """A script can run in a thread, where it also waits at its gate."""
    play, failing = Play(Script()), Play(Script(ending=Ending.RAISE, gated=False))
    async with Node() as app:
        worker = app.run_worker(play.in_thread, thread=True)
        failed = app.run_worker(failing.in_thread, thread=True, exit_on_error=False)
        await until(play.arrived.is_set)
        play.open_gate()
        assert await worker is play.value
    assert failed.error is failing.errors[0]
    assert play.log == ["entered", "at the gate", "returned"]


@given(script=scripts(endings=[Ending.RETURN], gated=False, checkpoints=2))
def test_drawn_scripts(script):
    """Scripts are drawn within the given bounds."""
    play = Play(script)
    assert anyio.run(play) is play.value
    assert max(script.before, script.after) <= 2


# leaks


@pytest.mark.skipif(not HAS_GIL, reason="no task is shared where references are not counted")
async def test_idle_runners_are_not_left():
    """Idle runner tasks of a node that was already open are not leaks."""
    async with Node() as app:
        async with assert_nothing_left():
            await app.run_worker(settle)
        assert IDLE in {task.name for task in anyio.get_running_tasks()}


async def test_tasks_with_the_numbers_of_others():
    """A leaked task is found even if it has the id of an earlier task that has ended."""
    many, before, after = 50, anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as tasks:
        for _ in range(many):
            tasks.start_soon(before.wait)
        await settle()
        with pytest.raises(AssertionError) as caught:
            async with assert_nothing_left():
                before.set()
                await settle()
                for _ in range(many):
                    tasks.start_soon(after.wait, name="left")
                await settle()
        after.set()
    assert str(caught.value).count("task 'left'") == many


async def test_nothing_left():
    """A node that has closed leaves nothing, although idle threads remain in the pool."""
    async with assert_nothing_left(), Node() as app:
        app.run_worker(settle)
        await app.run_worker(threading.get_ident, thread=True)
        app.run_worker(settle, start=False)


def test_nothing_left_round_a_run(backend):
    """The check also works around a whole run of an event loop."""

    async def main():
        async with Node() as app:
            app.run_worker(threading.get_ident, thread=True)

    with assert_nothing_left():
        anyio.run(main, **backend)


async def test_left_task_and_worker():
    """A task and a worker that are still running are named."""
    gate = anyio.Event()
    async with anyio.create_task_group() as group, Node("app") as app:
        with pytest.raises(AssertionError) as caught:
            async with assert_nothing_left():
                group.start_soon(gate.wait, name="straggler")
                worker = app.run_worker(gate.wait, name="sync")
        gate.set()
    told = str(caught.value)
    assert "task 'straggler'" in told
    assert "<Worker 'sync' RUNNING group='default' node='app'>" in told
    assert worker.is_finished


async def test_left_thread():
    """A thread that is still running is named, with its current position."""
    play = Play(Script(), "busy")
    async with Node() as app:
        with pytest.raises(AssertionError) as caught:
            async with assert_nothing_left(grace=0):
                app.run_worker(play.in_thread, thread=True)
                await until(play.arrived.is_set)
        play.open_gate()
    assert ", in in_thread (" in str(caught.value)
    assert "_scripts.py" in str(caught.value)


def test_left_plain_thread():
    """A thread that the program started itself is a leak too."""
    go = threading.Event()
    thread = threading.Thread(target=go.wait, args=(10,), name="mine")
    with pytest.raises(AssertionError, match="thread 'mine'"), assert_nothing_left(grace=0):
        thread.start()
    go.set()
    thread.join()


def test_left_coroutine():
    """A coroutine that was never awaited is found even if a reference cycle keeps it."""
    never = "coroutine 'settle' was never awaited"
    with pytest.raises(AssertionError, match=never), assert_nothing_left():
        cycle = [settle()]
        cycle.append(cycle)
        del cycle


async def test_error_of_the_block_goes_first():
    """An error raised in the block is not hidden by a leak."""
    with pytest.raises(ZeroDivisionError):
        async with assert_nothing_left():
            1 // 0  # noqa: B018 (its failure is the point)
    with pytest.raises(ZeroDivisionError), assert_nothing_left():
        1 // 0  # noqa: B018 (the same)


def test_threads_have_their_grace(monkeypatch):
    """The check waits for a thread that is about to end."""
    go = threading.Event()
    thread = threading.Thread(target=go.wait, args=(10,))

    def sleep(seconds):
        go.set()
        thread.join()

    monkeypatch.setattr("creche.testing._leaks.time.sleep", sleep)
    with assert_nothing_left(grace=10):
        thread.start()


async def test_threads_have_their_grace_in_a_loop(monkeypatch):
    """The check also waits in a running event loop, without blocking it."""
    go = threading.Event()
    thread = threading.Thread(target=go.wait, args=(10,))

    async def look_on():
        go.set()
        thread.join()

    async with anyio.create_task_group() as group, assert_nothing_left(grace=10):
        thread.start()
        await settle()
        group.start_soon(look_on)


def test_gate_that_nobody_opens(monkeypatch):
    """A thread does not wait forever at a gate that the test never opens."""
    monkeypatch.setattr("creche.testing._scripts._RENDEZVOUS", 0.0)
    with pytest.raises(AssertionError, match="nobody opened the gate of 'lonely'"):
        Play(Script(), "'lonely'").in_thread()


# virtual time


@pytest.fixture
def virtual(anyio_backend, request):
    if "uvloop" in request.node.name:
        pytest.skip("virtual time is a loop of its own")
    with virtual_time(anyio_backend[0]) as (name, options):
        yield {"backend": name, "backend_options": options}


def test_hours_take_no_time(virtual):
    """An hour of sleep passes at once, and workers measure their time by the virtual clock."""

    async def main():
        async with Node() as app:
            start = anyio.current_time()
            worker = app.run_worker(lambda: anyio.sleep(3600), name="nap")
            with anyio.move_on_after(600) as scope:
                await worker
            assert scope.cancelled_caught
            assert anyio.current_time() - start == pytest.approx(600)
        assert worker.elapsed == pytest.approx(3600)

    began = time.monotonic()
    anyio.run(main, **virtual)
    assert time.monotonic() - began < 60


def test_threads_are_waited_for(virtual):
    """The clock does not jump over a thread that is about to finish."""

    async def main():
        async with Node() as app:
            with anyio.fail_after(600):
                for _ in range(20):
                    await app.run_worker(threading.get_ident, thread=True)

    anyio.run(main, **virtual)


def test_thread_that_waits_for_the_clock(virtual):
    """The clock still advances if a thread waits for something that depends on it."""
    go = threading.Event()

    async def main():
        async with Node() as app:
            worker = app.run_worker(lambda: go.wait(10), thread=True)
            await anyio.sleep(3600)
            go.set()
            assert await worker

    anyio.run(main, **virtual)


def test_loop_in_a_thread_is_real(virtual):
    """Async work in a thread has an event loop with a real clock, and can use threads itself."""

    async def work():
        done = anyio.Event()
        token = anyio.lowlevel.current_token()

        def tell():
            go.wait(10)
            anyio.from_thread.run_sync(done.set, token=token)

        # A virtual clock would jump over the day, as the loop does not know of this thread.
        thread = threading.Thread(target=tell)
        thread.start()
        with anyio.move_on_after(86_400) as day:
            waiting.append(True)
            await done.wait()
        await anyio.to_thread.run_sync(thread.join)
        return day.cancelled_caught

    async def main():
        async with Node() as app:
            worker = app.run_worker(work, thread=True)
            await until(lambda: waiting)
            go.set()
            assert not await worker

    waiting, go = [], threading.Event()
    anyio.run(main, **virtual)


def test_virtual_time_is_over_after_the_block():
    """Virtual time undoes its change to AnyIO when its block ends."""
    before = vars(AsyncIOBackend)["run_sync_in_worker_thread"]
    with virtual_time():
        assert vars(AsyncIOBackend)["run_sync_in_worker_thread"] is not before
    assert vars(AsyncIOBackend)["run_sync_in_worker_thread"] is before


def test_unknown_backend():
    """An unknown backend is refused, and the error names it."""
    refused = "backend must be 'asyncio' or 'trio', not 'curio'"
    with pytest.raises(ValueError, match=refused), virtual_time("curio"):
        pass


# missing packages


@pytest.mark.parametrize(
    ("name", "needed"),
    [("scripts", "hypothesis"), ("WorkerMachine", "hypothesis"), ("virtual_backend", "pytest")],
)
def test_missing_package_is_named(name, needed):
    """A name that needs a missing package raises an error that says so. The others still work."""
    program = (
        f"import sys; sys.modules[{needed!r}] = None\n"
        "from creche.testing import EventRecorder, Play, assert_nothing_left, virtual_time\n"
        f"from creche.testing import {name}\n"
    )
    done = run_python(program)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: creche.testing.{name} needs {needed}, which is not installed; "
        "pip install 'creche[testing]'"
    )


def test_unknown_name():
    """An unknown name raises AttributeError, as in any module."""
    with pytest.raises(
        AttributeError, match=r"module 'creche\.testing' has no attribute 'nothing'"
    ):
        creche.testing.nothing  # noqa: B018 (its failure is the point)


def test_nothing_heavy_is_imported():
    """Importing the kit imports neither Hypothesis, pytest nor Trio."""
    program = "import sys, creche.testing; print({'hypothesis', 'pytest', 'trio'} & {*sys.modules})"
    assert run_python(program).stdout.strip() == "set()"


def test_trio_is_named_where_it_is_absent(monkeypatch):
    """Virtual time on Trio raises an error that says what to install if Trio is missing."""
    monkeypatch.setitem(sys.modules, "trio", None)
    missing = (
        r"virtual time on Trio needs trio, which is not installed; pip install 'creche\[trio\]'"
    )
    with pytest.raises(ImportError, match=missing), virtual_time("trio"):
        pass


@pytest.mark.parametrize("name", ["scripts", "WorkerMachine"])
def test_broken_package_is_not_called_missing(name, monkeypatch):
    """An import error from within an installed package propagates unchanged."""

    def fail(module):
        raise ModuleNotFoundError(name="something_else")

    monkeypatch.setattr(creche.testing, "import_module", fail)
    with pytest.raises(ModuleNotFoundError) as caught:
        getattr(creche.testing, name)
    assert caught.value.name == "something_else"
