"""Services that crash, become ready, are cancelled or shut down behave as the contract says.

The expected outcome of a program is computed from the contract alone, and then the program runs in
virtual time. Everything that the program does happens at whole quarters of a second, and everything
done to it from outside between them, so nothing depends on the order of simultaneous events.
"""

from __future__ import annotations

from dataclasses import dataclass

import anyio
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from creche import Node, Worker, WorkerCancelled, WorkerError, WorkerFailed, get_current_worker
from creche.services import Backoff, NotRestartable, Restart, RestartsExhausted, service
from creche.testing import virtual_time
from helpers import ERROR, SUCCESS

ENDINGS = {"return": SUCCESS, "final": ERROR}


@dataclass(frozen=True)
class Attempt:
    """What the work does in one of its attempts."""

    lasts: float
    ending: str
    """``"crash"``, ``"return"`` or ``"final"``."""
    ready_after: float | None = None


@dataclass(frozen=True)
class Program:
    """What the work does in each attempt, and the options of its service."""

    attempts: list[Attempt]
    maximum: int
    within: float
    first: float
    longest: float
    reset_after: float
    always: bool

    @property
    def all_attempts(self):
        return [*self.attempts, Attempt(1, "final")]


@dataclass(frozen=True)
class Fate:
    """The expected outcome of a program, with times from its start."""

    begun: list[float]
    end: float
    outcome: str
    """``"return"``, ``"final"``, ``"exhausted"`` or ``"cancelled"``."""
    spent: list[int]
    """The attempts whose errors are in the error of an exhausted service."""
    ready: list[tuple[float, float]]
    """The periods in which it was ready, as pairs of start and end."""

    def is_ready(self, time):
        return any(since < time < until for since, until in self.ready)


def quarters(least, most):
    """Times whose sums are exact in floats."""
    return st.integers(least, most).map(lambda each: each / 4)


def beside(least, most, by):
    """Times at which nothing else happens."""
    return st.integers(least, most).map(lambda each: each / 4 + by)


PROGRAMS = st.builds(
    Program,
    attempts=st.lists(
        st.builds(
            Attempt,
            quarters(0, 12),
            st.sampled_from(["crash", "crash", "crash", "return", "final"]),
            st.none() | quarters(0, 12),
        ),
        min_size=1,
        max_size=12,
    ),
    maximum=st.integers(0, 4),
    within=quarters(0, 40),
    first=quarters(0, 4),
    longest=quarters(4, 12),
    reset_after=quarters(4, 12),
    always=st.booleans(),
)


def foretell(program, cancel_at):
    """Compute the expected outcome of a program."""
    begun, restarts, errors, ready, now, wait = [], [], [], [], 0.0, None
    for number, attempt in enumerate(program.all_attempts):
        begun.append(now)
        end = now + attempt.lasts
        over = end if cancel_at is None else min(end, cancel_at)
        since = None if attempt.ready_after is None else now + attempt.ready_after
        if since is not None and since < over and since < end:
            ready.append((since, over))
        now = end
        if over < end:
            return Fate(begun, over, "cancelled", [], ready)
        if attempt.ending == "final" or (attempt.ending == "return" and not program.always):
            return Fate(begun, now, attempt.ending, [], ready)
        errors.append((now, number))
        if len([each for each in restarts if each >= now - program.within]) + 1 > program.maximum:
            spent = [number for when, number in errors if when >= now - program.within]
            return Fate(begun, now, "exhausted", spent, ready)
        restarts.append(now)
        is_healthy = attempt.lasts >= program.reset_after
        wait = program.first if wait is None or is_healthy else min(wait * 2, program.longest)
        if cancel_at is not None and cancel_at < now + wait:
            return Fate(begun, cancel_at, "cancelled", [], ready)
        now += wait
    raise AssertionError


class Run:
    """A program that runs, and its outcome."""

    def __init__(self, program):
        self._attempts = iter(program.all_attempts)
        self._program = program
        self._start = anyio.current_time()
        self.begun = []
        self.ready = []
        self.waited = None
        """The result of until_ready(): the number of the attempt, or the type of the error."""
        self.worker = None

    async def _work(self):
        number, attempt = len(self.begun), next(self._attempts)
        self.begun.append(anyio.current_time() - self._start)
        left = attempt.lasts
        if attempt.ready_after is not None and attempt.ready_after < left:
            await anyio.sleep(attempt.ready_after)
            get_current_worker().ready(number)
            left -= attempt.ready_after
        await anyio.sleep(left)
        if attempt.ending == "crash":
            raise ValueError(number)
        if attempt.ending == "final":
            raise NotRestartable

    def begin(self, node):
        program = self._program
        restart = Restart(
            program.maximum,
            program.within,
            Backoff(program.first, program.longest, jitter=0),
            program.reset_after,
        )
        again = service(self._work, restart=restart, always=program.always)
        self.worker = node.run_worker(again, exit_on_error=False)

    async def wait_until_ready(self):
        try:
            self.waited = await self.worker.until_ready()
        except WorkerError as error:
            self.waited = type(error)

    async def follow(self):
        async with self.worker.subscribe(Worker.Ready) as events:
            async for told in events:
                self.ready.append(told.time - self._start)

    @property
    def outcome(self):
        worker = self.worker
        if isinstance(worker.error, RestartsExhausted):
            return "exhausted"
        if worker.state is ERROR:
            assert isinstance(worker.error, NotRestartable)
            return "final"
        return "return" if worker.state is SUCCESS else "cancelled"

    @property
    def spent(self):
        """The attempts whose errors it ended with; ``None`` stands for a return."""
        errors = self.worker.error.exceptions if self.outcome == "exhausted" else ()
        return [each.args[0] if isinstance(each, ValueError) else None for each in errors]

    def check(self, fate):
        """Check the outcome against the expected one."""
        attempts = self._program.attempts
        spent = [None if attempts[each].ending == "return" else each for each in fate.spent]
        assert (self.begun, self.outcome, self.spent) == (fate.begun, fate.outcome, spent)
        assert self.worker.elapsed == fate.end
        assert self.worker.attempt >= len(fate.begun)
        assert self.ready == [since for since, _ in fate.ready]


def fly(backend_name, main, *args):
    with virtual_time(backend_name) as (backend, options):
        return anyio.run(main, *args, backend=backend, backend_options=options)


@pytest.fixture(params=["asyncio", "trio"])
def backend_name(request):
    if request.param == "trio":
        pytest.importorskip("trio")
    return request.param


def test_any_program(backend_name, quiet):
    """Any sequence of crashes, returns and cancellations ends as the contract says."""

    async def play(program, cancel_at):
        async with Node("app") as app, anyio.create_task_group() as tasks:
            run = Run(program)
            run.begin(app)
            tasks.start_soon(run.follow)
            if cancel_at is not None:
                with anyio.move_on_after(cancel_at):
                    await run.worker.join()
                run.worker.cancel()
            await run.worker.join()
        return run

    @given(PROGRAMS, st.none() | beside(0, 80, by=0.125))
    def check(program, cancel_at):
        fate = foretell(program, cancel_at)
        event(fate.outcome)
        event(f"{len(fate.begun)} attempts")
        event(f"{len(fate.ready)} times ready")
        fly(backend_name, play, program, cancel_at).check(fate)

    check()


@dataclass(frozen=True)
class Shutdown:
    at: float
    grace: float


SHUTDOWNS = st.builds(Shutdown, beside(0, 60, by=0.125), quarters(0, 40))


def test_any_shutdown(backend_name, quiet):
    """Services on two nodes that are shut down are ready, and end, as the contract says."""

    async def play(programs, shutdown, looks):
        seen = []

        async def look():
            for at in looks:
                await anyio.sleep_until(start + at)
                seen.append(app.is_ready)

        start = anyio.current_time()
        async with (
            Node("app") as app,
            Node("page", parent=app) as page,
            anyio.create_task_group() as tasks,
        ):
            runs = [Run(each) for each in programs]
            for number, run in enumerate(runs):
                run.begin(page if number % 2 else app)
                tasks.start_soon(run.wait_until_ready)
                tasks.start_soon(run.follow)
            tasks.start_soon(look)
            await anyio.sleep_until(start + shutdown.at)
            await app.shutdown(shutdown.grace)
            took = anyio.current_time() - start
            for node in (app, page):
                with pytest.raises(WorkerError, match="shutting down"):
                    node.run_worker(anyio.sleep_forever)
        return runs, took, seen

    def foretell_wait(fate):
        if fate.ready:
            return fate.begun.index(max(each for each in fate.begun if each <= fate.ready[0][0]))
        kinds = {"cancelled": WorkerCancelled, "return": WorkerError}
        return kinds.get(fate.outcome, WorkerFailed)

    @given(
        st.lists(PROGRAMS, min_size=1, max_size=3),
        SHUTDOWNS,
        st.lists(beside(0, 90, by=0.0625), max_size=4).map(sorted),
    )
    def check(programs, shutdown, looks):
        fates = [foretell(each, shutdown.at + shutdown.grace) for each in programs]
        event(f"{sum(each.outcome == 'cancelled' for each in fates)} cancelled")
        runs, took, seen = fly(backend_name, play, programs, shutdown, looks)
        for run, fate in zip(runs, fates, strict=True):
            run.check(fate)
            assert run.waited == foretell_wait(fate)
        assert took == max(shutdown.at, *(each.end for each in fates))
        for at, is_ready in zip(looks, seen, strict=True):
            expected = at < shutdown.at and all(
                each.is_ready(at) for each in fates if at < each.end
            )
            event(f"ready: {expected}")
            assert is_ready == expected

    check()
