"""Random programs on jobs, against a small model of what must have become of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import partial

import anyio
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from creche import Node, WorkerError
from creche.jobs import JobExpired, Jobs, _job, _jobs, ask
from helpers import settle

KEEP, TTL, LIMIT = 3, 10, 2
KINDS = ("return", "fail", "ask")
NUMBERS = st.integers(-4, 3)  # of the newest and the oldest
ACTS = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from(KINDS)),
    st.tuples(st.just("run"), st.integers(1, KEEP + 1)),  # several that end at once
    st.tuples(st.sampled_from(["end", "cancel", "remove", "answer"]), NUMBERS),
    st.tuples(st.just("end and cancel"), NUMBERS),  # in one step, each first in turn
    st.tuples(st.just("cancel and end"), NUMBERS),
    st.tuples(st.just("wait"), st.sampled_from([1, TTL])),
)


@dataclass(eq=False)
class Made:
    """One job, and what the model knows about it."""

    job: object
    kind: str
    gate: anyio.Event
    told: list = field(default_factory=list)
    may_end: bool = False
    is_cancelled: bool = False
    outcome: str | None = None
    ended: datetime | None = None
    is_removed: bool = False

    @property
    def expected(self):
        if self.is_cancelled and self.may_end and self.kind == "fail":
            return {"cancelled", "failed"}  # which of them is first
        if self.is_cancelled:
            return {"cancelled"}  # it is final
        return {"failed" if self.kind == "fail" else "succeeded"}


class Program:
    """A program that is run step by step, and checked after each step."""

    def __init__(self, app, tasks):
        self.time = datetime(2026, 1, 1, tzinfo=timezone.utc)
        self.tasks = tasks
        self.jobs = Jobs(app, keep=KEEP, ttl=TTL)
        self.made = []
        self.kept = []  # what has ended and may still be there

    def now(self):
        return self.time

    async def work(self, kind, gate):
        if kind == "ask":
            return await ask("key", "a question")
        await gate.wait()
        if kind == "fail":
            raise ValueError("no luck")
        return kind

    async def watch(self, each):
        async for status in each.job.watch():
            each.told.append(status)

    def submit(self, kind):
        gate = anyio.Event()
        job = self.jobs.submit(partial(self.work, kind, gate), kind, group="few")
        each = Made(job, kind, gate)
        self.made.append(each)
        self.tasks.start_soon(self.watch, each)
        return each

    def act(self, name, argument):
        if name == "submit":
            self.submit(argument)
        elif name == "run":
            for _ in range(argument):
                self.end(self.submit("return"))
        elif name == "wait":
            self.time += timedelta(seconds=argument)
        elif -len(self.made) <= argument < len(self.made):
            each = self.made[argument]
            for part in name.split(" and "):
                getattr(self, part)(each)

    def end(self, each):
        if each.kind != "ask":
            each.gate.set()
            each.may_end = True

    def cancel(self, each):
        each.job.cancel()
        each.is_cancelled = each.is_cancelled or each.outcome is None

    def answer(self, each):
        asks = bool(each.job.status.questions)
        event(f"answered: {asks}")
        try:
            each.job.answer("key", "answer")
            assert asks
            with pytest.raises(WorkerError):
                each.job.answer("key", "again")
            each.may_end = True
        except WorkerError:
            assert not asks

    def remove(self, each):
        is_there = each.outcome is not None and self.jobs.get(each.job.id) is not None
        assert self.jobs.remove(each.job.id) == is_there
        each.is_removed = each.is_removed or is_there

    def model(self):
        """End what must have ended by now: cancelled, or among the first few and free to go."""
        while True:
            unfinished = [each for each in self.made if each.outcome is None]
            free = [each for each in unfinished[:LIMIT] if each.may_end]
            over = [each for each in unfinished if each.is_cancelled] or free
            if not over:
                return
            for each in over:
                each.outcome, each.ended = each.job.status.status, self.time
                assert each.outcome in each.expected
                self.kept.append(each)

    def check(self):
        self.model()
        listed = {job.id for job in self.jobs.list()}
        unfinished = [each for each in self.made if each.outcome is None]
        for each in unfinished:
            assert not each.job.status.done
            assert each.job.id in listed  # all are listed
        self.check_kept(listed)
        assert len(listed) == len(unfinished) + len(self.kept)
        for each in self.made:
            status = each.job.status
            assert (self.jobs.get(each.job.id) is each.job) == (each.job.id in listed)
            if each.outcome is not None:
                assert status.status == each.outcome
                assert status.finished == each.ended
                assert each.told[-1] is status
                assert [each.done for each in each.told].count(True) == 1

    def check_kept(self, listed):
        """Check that the newest ended jobs are kept, as many as allowed, until they expire."""
        known = [each for each in self.kept if not each.is_removed]
        known = [each for each in known if each.ended + timedelta(seconds=TTL) > self.time]
        self.kept = [each for each in known if each.job.id in listed]
        assert len(self.kept) == min(KEEP, len(known))
        for each in known:
            if each not in self.kept:
                assert each.ended <= min(other.ended for other in self.kept)


async def run(acts):
    modules = (_job, _jobs)
    before = [module.now for module in modules]
    try:
        async with Node("app") as app, anyio.create_task_group() as tasks:
            app.group("few", limit=LIMIT)
            program = Program(app, tasks)
            for module in modules:
                module.now = program.now
            for act in acts:
                program.act(*act)
                await settle()
                program.check()
            for each in program.made:
                each.job.cancel()
            for each in program.made:
                if each.outcome == "succeeded" and not program.jobs.get(each.job.id):
                    with pytest.raises(JobExpired):
                        await each.job.result()
                await each.job.join()
        for each in program.made:
            assert each.told[-1].done
    finally:
        for module, now in zip(modules, before, strict=True):
            module.now = now


@settings(max_examples=max(1, settings.default.max_examples // 4))  # each has a loop of its own
@given(st.lists(ACTS, min_size=5, max_size=20))
def test_random_programs(quiet, backend, acts):
    """No job is lost, no ended job changes, and each stream ends with the end of its job."""
    anyio.run(run, acts, **backend)
