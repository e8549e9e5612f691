"""The states of work that runs elsewhere, with a fake engine that the test controls."""

from __future__ import annotations

import itertools
import logging
import traceback
from functools import partial

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from conftest import BACKENDS
from creche import Node, WorkerCrashed
from creche._running import wire
from fake_engine import FakeEngine, Script
from helpers import CANCELLED, ERROR, PENDING, RUNNING, SUCCESS, Listener, settle, until

LIMIT = 2
numbers = itertools.count()


class Engines(RuleBasedStateMachine):
    """Draws events on this side and on the engine's side, in any possible order."""

    backend: tuple[str, dict]
    workers = Bundle("workers")

    @initialize(seed=st.random_module())
    def open(self, seed):
        name, options = self.backend
        self.portals = start_blocking_portal(name, options)
        self.portal = self.portals.__enter__()
        self.app = Listener("app", exit_on_error=False)
        self.block = self.portal.wrap_async_context_manager(self.app)
        self.block.__enter__()
        self.engine = FakeEngine()
        self.records = {}
        self.do(lambda: self.app.group("far", LIMIT))

    def do(self, *actions):
        """Make calls on the loop with nothing in between, then let the loop settle."""

        async def act():
            made = [action() for action in actions]
            await settle(10)
            return made

        made = self.portal.call(act)
        for attempt in made:
            if attempt is not None and hasattr(attempt, "has_moved"):
                attempt.wait()
        self.portal.call(settle, 10)
        return made

    # parts of rules; each returns a call, which may be made together with others

    def cancel(self, worker):
        return partial(worker.cancel, "drawn")

    def begin(self, worker):
        """Have the engine start an attempt, if it has the work and is not running it."""
        run = self.run_of(worker)

        def make():
            if run is None or run.is_over or any(not each.is_lost for each in run.attempts):
                return None
            return run.begin()

        return make

    def report(self, worker):
        """Have the engine report the outcome of an attempt that has ended."""
        run = self.run_of(worker)

        def say():
            ended = run and [each for each in run.attempts if each.outcome is not None]
            if ended and not run.is_over:
                run.end(ended[-1].outcome)

        return say

    def crash(self, worker):
        run = self.run_of(worker)

        def give_up():
            if run is not None and not run.is_over:
                self.lose_all(run)
                run.end(None)

        return give_up

    def lose_all(self, run):
        for attempt in run.attempts:
            if attempt.outcome is None:
                attempt.is_lost = True

    def run_of(self, worker):
        return self.engine.runs.get(self.records[worker].number)

    def command(self, worker, what):
        run = self.run_of(worker)
        for attempt in [] if run is None else run.attempts:
            if attempt.is_working:
                attempt.command(what)
        self.do()

    # the rules

    @rule(target=workers, abandon=st.booleans(), slow=st.booleans())
    def start(self, abandon, slow):
        script = Script(self.engine, next(numbers), is_slow_to_call_off=slow)
        options = {"where": self.engine, "abandon_on_cancel": abandon}
        start = partial(self.app.run_worker, script, "far", "far", **options)
        (worker,) = self.do(start)
        self.records[worker] = script
        return worker

    @rule(worker=workers)
    def begins(self, worker):
        self.do(self.begin(worker))

    @rule(worker=workers)
    def is_cancelled(self, worker):
        self.do(self.cancel(worker))

    @rule(worker=workers, order=st.permutations(["begin", "cancel"]))
    def begins_as_it_is_cancelled(self, worker, order):
        self.do(*(getattr(self, each)(worker) for each in order))

    @rule(worker=workers, order=st.permutations(["report", "cancel"]))
    def ends_as_it_is_cancelled(self, worker, order):
        self.do(*(getattr(self, each)(worker) for each in order))

    @rule(worker=workers, order=st.permutations(["crash", "cancel"]))
    def crashes_as_it_is_cancelled(self, worker, order):
        self.do(*(getattr(self, each)(worker) for each in order))

    @rule(worker=workers, what=st.sampled_from(["return", "raise", "advance", "check"]))
    def goes_on(self, worker, what):
        self.command(worker, what)

    @rule(worker=workers)
    def has_ended(self, worker):
        self.do(self.report(worker))

    @rule(worker=workers)
    def crashes(self, worker):
        self.do(self.crash(worker))

    @rule(worker=workers)
    def is_called_off(self, worker):
        """The engine confirms that work cancelled in its queue will not begin."""
        self.do(self.be_certain(worker))

    def be_certain(self, worker):
        run = self.run_of(worker)
        return run.is_certain.set if run is not None else dict

    @rule(worker=workers)
    def machine_is_lost(self, worker):
        """What a lost machine still does is ignored, and the work may be started again."""
        run = self.run_of(worker)
        if run is not None:
            self.lose_all(run)

    @rule(worker=workers)
    def machine_is_lost_and_it_begins_again(self, worker):
        self.machine_is_lost(worker)
        self.do(self.begin(worker))

    # invariants

    def at_work(self, worker):
        run = self.run_of(worker)
        return run is not None and any(
            each.is_working and not each.is_lost for each in run.attempts
        )

    @invariant()
    def histories_are_legal(self):
        for worker in getattr(self, "records", ()):
            told = self.app.told_of(worker)
            assert told[0] is PENDING
            assert told[1:] in ([], [RUNNING], [worker.state], [RUNNING, worker.state])
            assert told[-1] is worker.state
            if told[1:] == [RUNNING, SUCCESS]:
                assert worker.result == self.records[worker].number
            assert (worker.state is SUCCESS) <= (not worker.is_cancelled)

    @invariant()
    def work_that_never_began_was_never_called(self):
        for worker, script in getattr(self, "records", {}).items():
            if RUNNING not in self.app.told_of(worker):
                assert script.calls == 0

    @invariant()
    def running_is_true(self):
        for worker in getattr(self, "records", ()):
            assert (worker.state is RUNNING) <= (self.records[worker].calls > 0)
            if worker.is_finished and not worker.is_abandoned:
                assert not self.at_work(worker)
                assert self.run_of(worker) is None or self.run_of(worker).way_is_left
            if worker.state is PENDING:
                assert not self.at_work(worker)
                assert worker.is_queued

    @invariant()
    def the_limit_holds(self):
        workers = [each for each in getattr(self, "records", ()) if self.at_work(each)]
        assert len([each for each in workers if not each.is_abandoned]) <= LIMIT

    @invariant()
    def a_slot_is_not_left(self):
        states = [worker.state for worker in getattr(self, "records", ())]
        waiting = [each for each in getattr(self, "records", ()) if self.run_of(each) is None]
        held = (
            states.count(RUNNING)
            + states.count(PENDING)
            - len([each for each in waiting if each.state is PENDING])
        )
        if any(each.state is PENDING for each in waiting):
            assert held == LIMIT

    def teardown(self):
        if not hasattr(self, "records"):
            return
        while not all(worker.is_finished for worker in self.records):
            for worker in self.records:
                self.do(self.begin(worker))
                self.command(worker, "return")
                self.do(self.report(worker))
                self.do(self.be_certain(worker))
                if not self.at_work(worker):
                    self.do(self.crash(worker))
        for worker in self.records:
            self.command(worker, "return")  # for attempts that were lost or abandoned
            self.do(self.report(worker))
        for run in self.engine.runs.values():
            for attempt in run.attempts:  # such as one that was lost, and begun again elsewhere
                attempt.dismiss()
        self.block.__exit__(None, None, None)
        self.portals.__exit__(None, None, None)


def machine(backend):
    case = type(f"Engines_{backend}", (Engines,), {"backend": BACKENDS[backend]}).TestCase
    # Threads wait for each other at each step, so it is slower than the core's state machine.
    case.settings = settings(max_examples=settings.default.max_examples // 4)
    return case


for _backend in BACKENDS:
    globals()[f"Test_{_backend}"] = machine(_backend)


@pytest.fixture
def engine():
    return FakeEngine()


def start(app, engine, **options):
    script = Script(engine, next(numbers))
    return app.run_worker(script, "far", where=engine, **options), script


async def handed_over(engine, script):
    await until(lambda: script.number in engine.runs)
    return engine.runs[script.number]


async def attempted(run):
    attempt = run.begin()
    await until(attempt.has_moved.is_set)
    return attempt


async def finish(run, attempt, what="return"):
    attempt.command(what)
    await until(lambda: attempt.outcome is not None)
    run.end(attempt.outcome)


async def test_lost_machine(engine, caplog):
    """Work that the engine starts again stays RUNNING, in its next attempt and at step 0."""
    async with Listener() as app:
        worker, script = start(app, engine)
        run = await handed_over(engine, script)
        first = await attempted(run)
        await anyio.to_thread.run_sync(first.command, "advance")
        await until(lambda: worker.completed_steps == 1)
        first.is_lost = True
        second = await attempted(run)
        assert (worker.attempt, worker.completed_steps, worker.state) == (2, 0, RUNNING)
        first.command("return")
        await finish(run, second)
    assert app.told_of(worker) == [PENDING, RUNNING, SUCCESS]
    assert "is started again" in caplog.text


async def test_cancelled_work_does_not_begin_again(engine):
    """Work that is cancelled after its machine was lost is not started again."""
    async with Node("app") as app:
        worker, script = start(app, engine)
        run = await handed_over(engine, script)
        first = await attempted(run)
        first.is_lost = True
        worker.cancel()
        second = await attempted(run)
        assert script.calls == 1
        first.command("return")
        run.end(second.outcome)
    assert worker.state is CANCELLED


@pytest.mark.parametrize(("what", "end"), [("return", SUCCESS), ("raise", ERROR)])
async def test_first_message_that_was_lost(engine, what, end):
    """If the message that work has begun is lost, the outcome makes it RUNNING first."""
    async with Listener(exit_on_error=False) as app:
        worker, script = start(app, engine)
        run = await handed_over(engine, script)
        run.job, job = NoEars(), run.job
        attempt = await attempted(run)
        await finish(run, attempt, what)
        assert job.label == "worker 'far'"
        await worker.join()
    assert app.told_of(worker) == [PENDING, RUNNING, end]


class NoEars:
    """Takes messages in place of a job, and loses them."""

    def receive(self, message, answer=None):
        if answer is not None:
            answer(True)


async def test_cancelled_and_outcome_without_a_word(engine):
    """Cancelled work whose begin message was lost is CANCELLED without ever RUNNING."""
    async with Listener() as app:
        worker, script = start(app, engine)
        run = await handed_over(engine, script)
        job, run.job = run.job, NoEars()
        attempt = await attempted(run)
        attempt.command("return")
        await until(lambda: attempt.outcome is not None)
        run.end(attempt.outcome)
        worker.cancel()
        assert job.is_cancelled
    assert app.told_of(worker) == [PENDING, CANCELLED]


async def test_abandoned_cancellation_is_not_told(engine, caplog):
    """Abandoned work that fails is logged; if it ends by its cancellation it is not."""
    async with Node("app") as app:
        for what in ("check", "raise"):
            worker, script = start(app, engine, abandon_on_cancel=True)
            run = await handed_over(engine, script)
            attempt = await attempted(run)
            worker.cancel()
            await worker.join()
            assert worker.is_abandoned
            await finish(run, attempt, what)
            assert not worker.is_abandoned
    assert caplog.text.count("the abandoned work of worker 'far' failed") == 1


async def test_crash_before_it_was_heard_of(engine):
    """Work whose machine dies before it reports that it began is ERROR without ever RUNNING."""
    async with Listener(exit_on_error=False) as app:
        worker, script = start(app, engine)
        (await handed_over(engine, script)).end(None)
    assert app.told_of(worker) == [PENDING, ERROR]
    assert isinstance(worker.error, WorkerCrashed)


async def test_native_cancellation(engine, anyio_backend_name):
    """A worker cancelled natively, once or twice, is cancelled and still waits for its work."""
    if anyio_backend_name == "trio":
        pytest.skip("Trio has no native cancellation of a task")
    import asyncio  # noqa: PLC0415 (of this backend)

    async with Node("app") as app:
        worker, script = start(app, engine)
        run = await handed_over(engine, script)
        attempt = await attempted(run)
        task = next(each for each in asyncio.all_tasks() if each.get_name().endswith("/far"))
        for _ in range(2):
            task.cancel()
            await settle()
        assert worker.is_cancelled
        assert worker.state is RUNNING
        await finish(run, attempt)
    assert worker.state is CANCELLED
    assert worker.result == script.number


async def test_messages_that_come_too_late(engine):
    """Messages that arrive after the end, of progress or of a begin, change nothing."""
    async with Node("app") as app:
        worker, script = start(app, engine)
        run = await handed_over(engine, script)
        attempt = await attempted(run)
        job = run.job
        messages = []
        run.job = type("Tap", (), {"receive": lambda _, message, *__: messages.append(message)})()
        attempt.command("advance")
        run.job = job
        await finish(run, attempt)
        await worker
        job.receive(messages[0])
        answers = []
        job.receive(wire.message(wire.BEGIN, "nowhere"), answers.append)
        job.receive(wire.message(wire.BEGIN, "nowhere"))
        assert answers == [False]
    assert worker.completed_steps == 1  # with the outcome


async def test_closed_bridge_answers(engine):
    """A begin message from another thread after the node has closed is answered, with False."""
    jobs = []

    async def way(job):
        jobs.append(job)
        await anyio.sleep_forever()

    async with Node("app") as app:
        worker = app.run_worker(Script(engine, next(numbers)), where=way)
        await until(lambda: jobs)
        app.cancel()
    assert worker.state is CANCELLED
    answers = []
    message = wire.message(wire.BEGIN, "nowhere")
    await anyio.to_thread.run_sync(jobs[0].receive, message, answers.append)
    assert answers == [False]


async def test_record_that_cannot_be_logged(engine, caplog):
    """A record whose filter raises is reported in the log; one below the level is dropped."""
    record = {"name": "elsewhere", "levelno": logging.ERROR, "levelname": "ERROR", "msg": "hello"}
    target = logging.getLogger("elsewhere")

    def refuse(_):
        raise ValueError("no")

    async def way(job):
        job.begin("there")
        job.begin("there")
        target.addFilter(refuse)
        job.receive(wire.message(wire.LOG, record))
        target.removeFilter(refuse)
        job.receive(wire.message(wire.LOG, {**record, "levelno": 1}))
        job.receive(wire.message(wire.LOG, record))

    async with Node("app") as app:
        worker = app.run_worker(Script(engine, next(numbers)), where=way)
        await worker
    assert worker.where == "there"
    assert "a record from elsewhere cannot be logged" in caplog.text
    assert [each.getMessage() for each in caplog.records if each.name == "elsewhere"] == ["hello"]


@pytest.mark.parametrize("is_hidden", [True, False])
async def test_frames_of_a_way(is_hidden):
    """A way with __tracebackhide__ has its frames cut from the traceback; others keep them."""
    module = {"__name__": "somewhere", "__tracebackhide__": is_hidden}
    exec("async def way(job):\n    return job.work()", module)  # noqa: S102 (a module of its own)

    def fail():
        raise ValueError("no")

    async with Node("app", exit_on_error=False) as app:
        worker = await app.run_worker(fail, where=module["way"]).join()
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(worker.error.__traceback__)]
    assert names == (["fail"] if is_hidden else ["way", "fail"])
