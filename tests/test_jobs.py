"""Jobs are workers that can be found by an id, while they run and for a while afterwards."""

from __future__ import annotations

import json
import logging
import pickle
import threading
import weakref
from datetime import datetime, timedelta, timezone
from functools import partial

import anyio
import pytest
from anyio import lowlevel

import farwork
from creche import Node, WorkerCancelled, WorkerError, get_current_worker
from creche.jobs import (
    JobCancelled,
    JobExpired,
    JobFailed,
    JobInterrupted,
    Jobs,
    JobStatus,
    Progress,
    Question,
    StoreError,
    _job,
    _jobs,
    ask,
    ask_from_thread,
)
from creche.services import Backoff, Restart, service
from engines import Threads
from helpers import fail, give_later, no_collection, settle, slow_to_leave, told, until


class Clock:
    """A wall clock for jobs that a test moves forward."""

    def __init__(self):
        self.time = datetime(2026, 1, 1, tzinfo=timezone.utc)

    def __call__(self):
        return self.time

    def forward(self, seconds):
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (_job, _jobs):
        monkeypatch.setattr(module, "now", clock)
    return clock


class Shelf:
    """A store in memory that fails when ``error`` is set."""

    def __init__(self, *statuses):
        self.kept = {status.id: status for status in statuses}
        self.error = None

    def _check(self):
        if self.error is not None:
            raise self.error

    def put(self, status):
        self._check()
        self.kept[status.id] = status

    def get(self, job_id):
        self._check()
        return self.kept.get(job_id)

    def list(self):
        self._check()
        return self.kept.values()

    def delete(self, job_id):
        self._check()
        self.kept.pop(job_id, None)


async def one():
    await lowlevel.checkpoint()
    return 1


async def watched(job):
    return [status async for status in job.watch()]


# status


async def test_life_of_a_job(clock):
    """The status of a job is plain data at every moment; its times are those of the wall clock."""
    begin, end = anyio.Event(), anyio.Event()

    async def work():
        get_current_worker().update(0, 4, description="reading")
        begin.set()
        await end.wait()
        get_current_worker().advance(3)
        return "done"

    async with Node("app") as app:
        jobs = Jobs(app, ttl=60)
        job = jobs.submit(work, name="import", owner="me", description="soon")
        created = clock.time
        assert job.status == JobStatus(
            id=job.id,
            kind="import",
            status="queued",
            done=False,
            cancel_requested=False,
            message="soon",
            progress=Progress(0, None, 0.0),
            created=created,
            started=None,
            updated=created,
            finished=None,
            expires=None,
            attempt=1,
            questions=(),
            error=None,
            owner="me",
        )
        assert jobs.get(job.id) is job
        assert job.worker.name == "import"
        clock.forward(1)
        await begin.wait()
        running = job.status
        assert (running.status, running.message) == ("running", "reading")
        assert running.progress == Progress(0, 4, 0.0)
        assert created <= running.started <= running.updated == clock.time
        clock.forward(1)
        assert job.status is running  # until something changes
        end.set()
        assert await job.join() is job
    ended = job.status
    assert (ended.status, ended.done, job.worker) == ("succeeded", True, None)
    assert ended.progress == Progress(3, 4, 75.0)
    assert ended.started == running.started
    assert ended.finished == ended.updated == clock.time
    assert ended.expires == clock.time + timedelta(seconds=60)
    assert job.status is ended
    assert await job.result() == "done"


async def test_job_that_runs_elsewhere():
    """A job may run on another engine, and its progress is still reported."""
    async with Node("app") as app:
        job = Jobs(app).submit(partial(farwork.count, 5), where=Threads())
        assert await job.result() == 100.0
        assert job.status.progress == Progress(5, 5, 100.0)


async def test_question_that_outlives_its_job():
    """A question that outlives its job may be withdrawn, and is not shown in the status."""
    async with anyio.create_task_group() as tasks:

        async def work():
            tasks.start_soon(ask, "key", "Really?")
            await until(lambda: job.status.questions)

        async with Node("app") as app:
            job = Jobs(app).submit(work)
            await job.join()
        tasks.cancel_scope.cancel()
    assert (job.status.status, job.status.questions) == ("succeeded", ())


@pytest.mark.parametrize("tracebacks", [False, True])
async def test_failure(tracebacks):
    """A failure gives type, text and, if wanted, traceback; a task that waits gets the original."""
    original = ValueError("no luck")
    async with Node("app") as app:
        job = Jobs(app, tracebacks=tracebacks).submit(partial(fail, original), name="import")
        with pytest.raises(JobFailed, match=r"^job 'import' failed: ValueError: no luck$") as info:
            await job.result()
        assert info.value.__cause__ is original
        error = job.status.error
        assert (error.type, error.text) == ("ValueError", "no luck")
        if tracebacks:
            assert "in fail" in error.traceback
            assert "ValueError" in error.traceback
        else:
            assert error.traceback is None
        with pytest.raises(JobFailed) as info:
            await job.result()
    assert info.value.__cause__ is None  # the original is not kept
    assert info.value.status is job.status
    again = pickle.loads(pickle.dumps(info.value))  # noqa: S301 (made in the line itself)
    assert (str(again), again.status) == (str(info.value), job.status)
    assert job.status.status == "failed"


async def test_failure_without_a_text():
    """The error of a job may have an empty text, or a ``__str__`` that raises."""

    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    async with Node("app") as app:
        jobs = Jobs(app)
        bare, mute = (jobs.submit(partial(fail, each)) for each in (KeyError(), Mute()))
        with pytest.raises(JobFailed, match=r"^job 'fail' failed: KeyError$"):
            await bare.result()
        await mute.join()
    assert mute.status.error.text == "<unprintable Mute>"


async def test_failure_that_fails_the_node():
    """With ``exit_on_error`` a job that fails also fails its node."""
    error = ValueError()
    with pytest.raises(BaseException) as info:
        async with Node("app") as app:
            job = Jobs(app).submit(partial(fail, error), exit_on_error=True)
    assert info.value.exceptions == (error,)
    assert job.status.status == "failed"


async def test_cancel():
    """The status shows a request to cancel at once, and ``cancelled`` when the job has ended."""
    gate = anyio.Event()
    async with Node("app") as app:
        jobs = Jobs(app)
        job = jobs.submit(partial(slow_to_leave, gate))
        await until(lambda: job.status.status == "running")
        stream = job.watch()
        await anext(stream)
        job.cancel("changed my mind")
        status = await anext(stream)
        assert (status.status, status.cancel_requested, status.done) == ("running", True, False)
        assert job.worker.cancel_reason == "changed my mind"
        gate.set()
        assert (await anext(stream)).status == "cancelled"
        with pytest.raises(JobCancelled, match=r"^job 'slow_to_leave' was cancelled$"):
            await job.result()
        job.cancel()  # does nothing
        queued = jobs.submit(one)
        queued.cancel()
        assert queued.status.status == "cancelled"


async def test_cancel_while_somebody_waits():
    """result() raises if the job is cancelled; cancelling result() does not cancel the job."""
    async with Node("app") as app:
        job = Jobs(app).submit(anyio.sleep_forever)
        with anyio.move_on_after(0):
            await job.result()
        assert not job.status.done
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(settle)
            job.cancel()
            with pytest.raises(JobCancelled):
                await job.result()


async def test_attempts_and_messages():
    """The status counts the attempts of a service; huge numbers and texts are bounded."""

    async def work():
        worker = get_current_worker()
        worker.update(10**30, 10**40, description="\ud800" + "x" * 20_000)
        if worker.attempt < 3:
            raise ValueError

    async with Node("app") as app:
        again = service(work, restart=Restart(5, backoff=Backoff(0)))
        job = Jobs(app).submit(again)
        statuses = await watched(job)
    assert statuses[-1].attempt == 3
    assert statuses[-1].progress == Progress(10**18, 10**18, pytest.approx(0, abs=1e-6))
    assert statuses[-1].message.startswith("\\ud800xxx")
    assert len(statuses[-1].message) < 10_010
    json.dumps(statuses[-1].to_dict(), allow_nan=False)


async def test_plain_data():
    """A status survives a round trip through JSON, and its repr does not show the id."""

    async def work():
        return await ask("name", "Which one?", schema={"enum": ["a", "b"]})

    async with Node("app") as app:
        jobs = Jobs(app, tracebacks=True)
        failed = await jobs.submit(partial(fail, ValueError("x"))).join()
        asking = jobs.submit(work, owner="me")
        await until(lambda: asking.status.questions)
        for job in (failed, asking):
            status = job.status
            assert JobStatus.from_dict(json.loads(json.dumps(status.to_dict()))) == status
            assert job.id not in repr(status)  # logs show it
            assert job.id not in repr(job)
        asking.cancel()


# watching


async def test_watch_begins_and_ends_with_how_it_stands():
    """watch() begins with the current status and ends with the final one, also after the end."""
    async with Node("app") as app:
        app.group("few", limit=1)
        gate = anyio.Event()
        before = app.run_worker(gate.wait, group="few")
        await settle()
        job = Jobs(app).submit(gate.wait, group="few")
        stream = job.watch()
        assert (await anext(stream)).status == "queued"
        before.cancel()
        assert (await anext(stream)).status == "running"
        gate.set()
        statuses = await watched(job)
        assert statuses[-1].status == "succeeded"
        assert await watched(job) == statuses[-1:]
        stream = job.watch()
        await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_watch_coalesces():
    """A slow watcher gets the latest status, not each step."""
    async with Node("app") as app:
        gate = anyio.Event()
        job = Jobs(app).submit(partial(give_later, 5, gate))
        stream = job.watch()
        await anext(stream)
        await settle()
        for _ in range(100):
            job.worker.advance()
        assert (await anext(stream)).progress.completed == 100
        for _ in range(100):
            job.worker.advance()
        gate.set()
        await job.join()
        assert (await anext(stream)).progress.completed == 200


async def test_many_watch_and_leave():
    """Every watcher gets the final status; one that leaves early does not disturb the others."""
    gate = anyio.Event()
    seen = []
    async with Node("app") as app:
        job = Jobs(app).submit(partial(give_later, 5, gate))

        async def watch():
            seen.append([status.status for status in await watched(job)])

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(watch)
            async for status in job.watch():
                if status.status == "running":
                    break
            with anyio.CancelScope() as scope:
                scope.cancel()
                await watched(job)
            gate.set()
    assert [each[-1] for each in seen] == ["succeeded"] * 10


async def test_progress_from_a_thread():
    """What a thread reported last is in the final status."""

    def work():
        for _ in range(50):
            get_current_worker().advance()

    async with Node("app") as app:
        job = Jobs(app).submit(work, thread=True)
        statuses = await watched(job)
    assert statuses[-1].progress.completed == 50


# questions


async def test_ask():
    """ask() returns the answer; until then the status shows the question."""

    async def work():
        return await ask("name", "Which column?", schema={"type": "string"})

    async with Node("app") as app:
        job = Jobs(app).submit(work)
        stream = job.watch()
        status = await anext(stream)
        while not status.questions:
            status = await anext(stream)
        assert status.status == "input_required"
        assert status.questions == (Question("name", "Which column?", {"type": "string"}),)
        with pytest.raises(WorkerError, match=r"no open question with the key 'nam'; .*: 'name'$"):
            job.answer("nam", 1)
        job.answer("name", {"column": 2})
        with pytest.raises(WorkerError, match=r"its open questions: none$"):
            job.answer("name", 1)
        status = await anext(stream)
        assert (status.status, status.questions) == ("running", ())
        assert await job.result() == {"column": 2}


async def test_ask_several_at_once():
    """Several questions may be open, each with a key of its own; an open key cannot be reused."""
    tried = anyio.Event()

    async def work():
        answers = {}

        async def keep(key):
            answers[key] = await ask(key, key)

        async with anyio.create_task_group() as tasks:
            for key in "ab":
                tasks.start_soon(keep, key)
            await until(lambda: len(job.status.questions) == 2)
            with pytest.raises(WorkerError, match=r"asks 'a' already; use another key"):
                await ask("a", "again?")
            tried.set()
        return answers

    async with Node("app") as app:
        job = Jobs(app).submit(work)
        await until(lambda: tried.is_set() or job.status.done)
        job.answer("b", 2)
        job.answer("a", 1)
        assert await job.result() == {"a": 1, "b": 2}


async def test_question_that_is_withdrawn():
    """A question is withdrawn when ask() is cancelled, and when the job is cancelled."""
    gate = anyio.Event()

    async def work():
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, "a", "a?")
                await gate.wait()
                scope.cancel()
        await ask("b", "b?")

    async with Node("app") as app:
        job = Jobs(app).submit(work)
        await until(lambda: [each.key for each in job.status.questions] == ["a"])
        gate.set()
        await until(lambda: [each.key for each in job.status.questions] == ["b"])
        job.cancel()
        await job.join()
    assert job.status.questions == ()


async def test_ask_from_a_thread():
    """ask_from_thread() blocks its thread until the answer, or until the job is cancelled."""

    def work():
        return ask_from_thread("a", "a?") + 1

    def cancelled():
        with pytest.raises(WorkerCancelled):
            ask_from_thread("a", "a?")
        raise RuntimeError("was let go")

    async with Node("app") as app:
        jobs = Jobs(app)
        job = jobs.submit(work, thread=True)
        await until(lambda: job.status.questions)
        job.answer("a", 1)
        assert await job.result() == 2
        job = jobs.submit(cancelled, thread=True)
        await until(lambda: job.status.questions)
        job.cancel()
        await job.join()
    assert job.status.error.text == "was let go"


async def test_ask_in_an_event_loop_of_its_own():
    """ask() works in async work that runs in an event loop of its own in a thread."""

    async def work():
        return await ask("a", "a?") + 1

    async with Node("app") as app:
        jobs = Jobs(app)
        job = jobs.submit(work, thread=True)
        await until(lambda: job.status.questions)
        job.answer("a", 1)
        assert await job.result() == 2
        job = jobs.submit(work, thread=True)
        await until(lambda: job.status.questions)
        job.cancel()
        assert (await job.join()).status.status == "cancelled"


async def test_answer_from_a_thread():
    """answer() may be called from any thread."""

    async def work():
        return await ask("a", "a?")

    async with Node("app") as app:
        job = Jobs(app).submit(work)
        await until(lambda: job.status.questions)
        await anyio.to_thread.run_sync(job.answer, "a", 5)
        assert await job.result() == 5


async def test_ask_in_vain():
    """ask() raises outside a job, for an invalid question, and after the job has ended."""
    with pytest.raises(
        WorkerError, match=r"^ask\(\) was called outside the work of a job; start the"
    ):
        await ask("a", "a?")
    with pytest.raises(
        WorkerError, match=r"^ask_from_thread\(\) was called outside the work of a job"
    ):
        ask_from_thread("a", "a?")
    wrong = [("", "a?", None), (5, "a?", None), ("a", None, None), ("a", "a?", 5)]
    wrong += [("a", "a?", {"a": {5}}), ("a", "a?", {"a": float})]
    late = []

    async def work():
        for each in wrong:
            with pytest.raises(WorkerError, match="must be"):
                await ask(*each)
        late.append(partial(ask, "a", "a?"))
        with pytest.raises(
            WorkerError, match=r"call_from_thread\(\) was called in the thread of the"
        ):
            ask_from_thread("a", "a?")
        app.run_worker(outlive, exit_on_error=False, name="late")

    async def outlive():
        await job.join()
        await ask("a", "a?")

    async with Node("app") as app:
        job = Jobs(app).submit(work)
        await job.result()
        (worker,) = (each for each in app.workers if each.name == "late")
        await worker.join()
    assert str(worker.error) == "job 'work' has ended, and cannot ask any more"


# what is kept


async def test_nothing_of_a_worker_is_kept():
    """A job that ended keeps neither its worker, work nor error, and its result until removed."""

    class Thing:
        pass

    things = []

    def make(error):
        error.thing = things.pop()
        return error

    async def give():
        await lowlevel.checkpoint()
        return things.pop()

    async def fall():
        raise make(ValueError("no luck"))  # unnamed: with its frame it would be a cycle

    async with Node("app") as app:
        jobs = Jobs(app)
        with no_collection():
            kept = []
            for work in (fall, give):
                things.append(Thing())
                result = weakref.ref(things[0])
                given = jobs.submit(work)
                kept += [weakref.ref(given.worker), result]
                await given.join()
            kept.pop()
            await settle()
            assert [each() for each in kept] == [None, None, None]
            assert result() is await given.result()
            assert jobs.remove(given.id)
            await settle()
            assert result() is None
        with pytest.raises(JobExpired, match=r"^the result of job 'give' is not kept any more$"):
            await given.result()


async def test_number_that_is_kept():
    """Only the newest ``keep`` jobs that have ended are kept; unfinished ones do not count."""
    async with Node("app") as app:
        jobs = Jobs(app, keep=2)
        waiting = jobs.submit(anyio.sleep_forever)
        ended = [await jobs.submit(one).join() for _ in range(4)]
        assert jobs.list() == (waiting, *ended[2:])
        assert jobs.get(ended[0].id) is None
        with pytest.raises(JobExpired):
            await ended[0].result()
        assert repr(jobs) == "<Jobs of node 'app': 1 unfinished, 2 kept>"
        waiting.cancel()


async def test_who_waits_gets_the_result_that_is_not_kept():
    """A task that waits gets the result even if no jobs are kept."""
    async with Node("app") as app:
        jobs = Jobs(app, keep=0)
        job = jobs.submit(one)
        assert await job.result() == 1
        assert jobs.list() == ()
        with pytest.raises(JobExpired):
            await job.result()


async def test_time_that_it_is_kept(clock):
    """``ttl`` counts from the end of each job; a job expires even if no other one ends."""
    async with Node("app") as app:
        jobs = Jobs(app, ttl=10)
        first = await jobs.submit(one).join()
        clock.forward(5)
        second = await jobs.submit(one).join()
        clock.forward(4.9)
        assert jobs.list() == (first, second)
        clock.forward(0.1)
        assert jobs.get(first.id) is None
        assert jobs.list() == (second,)
        clock.forward(5)
        assert jobs.list() == ()


async def test_owners():
    """list() returns the jobs of one owner, of no owner, or all of them."""
    async with Node("app") as app:
        jobs = Jobs(app)
        a, b, c = (jobs.submit(one, owner=owner) for owner in ("a", "b", None))
        assert jobs.list(owner="a") == (a,)
        assert jobs.list(owner=None) == (c,)
        assert jobs.list() == (a, b, c)
        assert jobs.list(owner="x") == ()


async def test_remove():
    """remove() forgets a job that has ended, once; an unfinished job stays."""
    async with Node("app") as app:
        jobs = Jobs(app)
        job = jobs.submit(one)
        assert not jobs.remove(job.id)
        await job.join()
        assert jobs.remove(job.id)
        assert not jobs.remove(job.id)
        assert jobs.get(job.id) is None


async def test_ids():
    """Ids are unique and too long to guess."""
    async with Node("app") as app:
        jobs = Jobs(app)
        ids = {jobs.submit(one).id for _ in range(100)}
    assert len(ids) == 100
    assert {len(bytes.fromhex(each)) for each in ids} == {16}


@pytest.mark.parametrize("unknown", ["", "0" * 32, None, 5, b"x"])
async def test_unknown_ids(unknown):
    """get() returns None for an id that no job has."""
    async with Node("app") as app:
        assert Jobs(app).get(unknown) is None


# submitting


async def test_submit_in_threads():
    """Threads may submit, look up, list and cancel jobs concurrently."""
    async with Node("app") as app:
        jobs = Jobs(app)

        def use():
            mine = [jobs.submit(one, owner=str(threading.get_ident())) for _ in range(20)]
            mine.append(jobs.submit(anyio.sleep_forever))
            mine[-1].cancel()
            return [jobs.get(job.id).status.kind for job in mine], mine

        results = []

        async def run():
            results.append(await anyio.to_thread.run_sync(use))

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(run)
        for kinds, mine in results:
            assert kinds == ["one"] * 20 + ["sleep_forever"]
            assert [await job.result() for job in mine[:-1]] == [1] * 20
            assert (await mine[-1].join()).status.status == "cancelled"
        assert len(jobs.list()) == 84


async def test_options_of_run_worker():
    """A group limits its jobs, a job that its overflow drops is cancelled, and threads work."""
    async with Node("app") as app:
        app.group("few", limit=1, overflow="drop")
        jobs = Jobs(app)
        first, second = (jobs.submit(anyio.sleep_forever, group="few") for _ in range(2))
        assert second.status.status == "cancelled"
        assert first.worker.group == "few"
        first.cancel()
        thread = jobs.submit(threading.get_ident, thread=True)
        assert await thread.result() != threading.get_ident()


async def test_submit_in_vain():
    """Invalid arguments are refused at once; a coroutine is closed."""
    async with Node("app") as app:
        jobs = Jobs(app)
        with pytest.raises(WorkerError, match=r"^owner must be a text, or None, not 5$"):
            jobs.submit(one(), owner=5)
        with pytest.raises(WorkerError, match=r"^owner must be a text"):
            jobs.submit(one, owner=b"x")
        with pytest.raises(WorkerError, match=r"^a job is started at once; leave start= out$"):
            jobs.submit(one(), start=False)
        with pytest.raises(WorkerError):
            jobs.submit(5)
        assert jobs.list() == ()
    with pytest.raises(WorkerError, match="closed"):
        jobs.submit(one)
    assert jobs.list() == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"node": 5}, "^Jobs.. takes a Node, not 5$"),
        ({"keep": -1}, "^keep must be a number of jobs, 0 or more, not -1$"),
        ({"keep": True}, "^keep must be"),
        ({"keep": 1.5}, "^keep must be"),
        ({"store": "jobs.db"}, r"^store must be a Store, as SQLiteStore.path., not 'jobs.db'$"),
        ({"ttl": 0}, "^ttl must be seconds, more than 0 and at most 100 years, not 0$"),
        ({"ttl": float("inf")}, "^ttl must be"),
        ({"ttl": "x"}, "^ttl must be"),
    ],
)
def test_jobs_that_make_no_sense(options, message):
    """Jobs() refuses invalid arguments and names them."""
    with pytest.raises(WorkerError, match=message):
        Jobs(**{"node": Node("app"), **options})


async def test_node_that_falls():
    """When a node that is cancelled has closed, its jobs have ended as ``cancelled``."""
    async with Node("app") as app:
        jobs = Jobs(app)
        running = [jobs.submit(anyio.sleep_forever, daemon=daemon) for daemon in (False, True)]
        await settle()
        app.cancel()
        late = jobs.submit(one)
    assert {job.status.status for job in (*running, late)} == {"cancelled"}
    assert len(jobs.list()) == 3


# the store


async def test_store_is_told():
    """The store gets a job when it is submitted and when it ends; a forgotten job is deleted."""
    shelf = Shelf()
    async with Node("app") as app:
        jobs = Jobs(app, keep=1, store=shelf)
        job = jobs.submit(one)
        assert [each.status for each in shelf.list()] == ["queued"]
        await job.join()
        assert list(shelf.list()) == [job.status]
        other = await jobs.submit(one).join()
        assert list(shelf.list()) == [other.status]
        jobs.remove(other.id)
        assert list(shelf.list()) == []


async def test_store_of_an_earlier_program(clock):
    """Of an earlier program, ended jobs are known until they expire; others are interrupted."""
    async with Node("app") as app:
        jobs = Jobs(app, ttl=100, store=(shelf := Shelf()))
        done = await jobs.submit(one, owner="me").join()
        clock.forward(60)
        left = jobs.submit(anyio.sleep_forever)
        later = Jobs(Node("next"), ttl=100, store=(copy := Shelf(*shelf.list())))
        left.cancel()
    clock.forward(1)
    assert later.get(done.id).status == done.status
    assert later.list(owner="me") == (later.get(done.id),)
    found = later.get(left.id)
    assert (found.status.status, found.status.done) == ("interrupted", True)
    assert copy.get(left.id) == found.status
    with pytest.raises(JobExpired):
        await later.get(done.id).result()
    with pytest.raises(JobInterrupted, match=r"was interrupted by the end of its program; submit"):
        await found.result()
    assert await watched(found) == [found.status]
    clock.forward(40)
    assert later.list() == (found,)
    assert [each.id for each in copy.list()] == [left.id]


async def test_job_that_only_the_store_knows():
    """A job that only a shared store knows, from another process, is found."""
    async with Node("app") as app:
        shelf = Shelf()
        jobs = Jobs(app, store=shelf)
        other = await Jobs(app).submit(one).join()
        shelf.put(other.status)
        assert jobs.get(other.id).status == other.status


async def test_store_that_fails(caplog):
    """A store that cannot be written is logged once until it works again; reading it raises."""
    shelf = Shelf()
    async with Node("app") as app:
        jobs = Jobs(app, store=shelf)
        shelf.error = OSError("disk full")
        job = await jobs.submit(one).join()
        assert await job.result() == 1
        assert jobs.get(job.id) is job
        with pytest.raises(StoreError, match=r"^the history of jobs cannot be read: disk full$"):
            jobs.get("x")
        with pytest.raises(StoreError, match="disk full"):
            Jobs(app, store=shelf)
        shelf.error = None
        await jobs.submit(one).join()
        shelf.error = OSError("disk full")
        assert jobs.remove(job.id)
    records = [each for each in told(caplog) if each.levelno == logging.ERROR]
    assert [each.getMessage() for each in records] == [
        "the history of the jobs of node 'app' cannot be written; the jobs go on"
    ] * 2


async def test_status_in_a_done_callback():
    """In a done callback the status is the final one."""
    async with Node("app") as app:
        jobs = Jobs(app)
        job = jobs.submit(one)
        seen = []
        job.worker.add_done_callback(lambda ended: seen.append(job._look(ended)))
        await job.join()
    assert seen == [job.status]
