"""The books of one episode: what was planted, started, posted and reported, and how it adds up."""

from __future__ import annotations

import itertools
import math
import sys
import threading
from collections import Counter, defaultdict

from creche import WorkerError, WorkerFailed, WorkerState

if sys.version_info >= (3, 11):
    from builtins import BaseExceptionGroup
else:
    from exceptiongroup import BaseExceptionGroup

PENDING, RUNNING, CANCELLED, ERROR, SUCCESS = WorkerState
LEGAL = {(PENDING, CANCELLED), *((PENDING, RUNNING, end) for end in (SUCCESS, ERROR, CANCELLED))}


class Planted(Exception):
    """An error with a number, to be reported once."""

    def __init__(self, number, where):
        super().__init__(f"planted {number} in {where}")
        self.number = number


class PlantedExit(SystemExit):
    """A numbered error of a kind that always propagates ungrouped."""

    def __init__(self, number, where):
        super().__init__(f"planted {number} in {where}")
        self.number = number


def leaves(error):
    """Return the single errors in what was raised. Others beside an ungrouped one are its cause."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    beside = error.__cause__ if isinstance(error, PlantedExit) else None
    return [error, *(leaves(beside) if isinstance(beside, BaseExceptionGroup) else ())]


def bottom(failed):
    """Return the error at the start of a chain of WorkerFailed."""
    while isinstance(failed, WorkerFailed):
        failed = failed.error
    return failed


class Job:
    """One piece of work, and what has become of it."""

    def __init__(self, books, number, node, kind):
        self.books = books
        self.node = node
        self.name = f"{kind}{number}"
        self.kind = kind
        self.options = {}
        self.worker = None
        self.refused = False
        self.is_early = (
            node.parent is None and not node.was_opened
        )  # the tree above may have missed its events
        self.entered = self.left = 0
        self.ends = True  # by itself, so that a task that waits for it does not wait forever

    def enter(self, worker):
        self.worker = worker
        self.entered += 1
        self.books.note_inside(worker, 1)

    def leave(self):
        self.books.note_inside(self.worker, -1)
        self.left += 1

    @property
    def value(self):
        return f"value of {self.name}"

    @property
    def told(self):
        worker = self.worker
        return (
            f"{worker!r} entered {self.entered}, left {self.left}, options {self.options}, "
            f"{'early, ' * self.is_early}reason {worker and worker.cancel_reason!r}"
        )


class Books:
    def __init__(self):
        self.failures = []
        self.jobs = []
        self.stored_logged = Counter()
        self.loop_cancelled = set()  # by a call on the loop; no later call of its thread may pass
        self.native = set()  # names of workers whose tasks were cancelled natively
        self._lock = threading.Lock()
        self.limits = {}  # of groups that had one from the start
        self._inside = Counter()
        self.abandoning = set()  # groups with threads that may outlive their slots
        self._numbers = itertools.count(1)
        self._planted = {}
        self._errors = {}
        self._seen = defaultdict(list)
        self._relayed = Counter()
        self._posted = {}
        self._handled = Counter()

    def fail(self, text):
        self.failures.append(text)

    # jobs

    def job(self, node, kind):
        job = Job(self, next(self._numbers), node, kind)
        self.jobs.append(job)
        return job

    def below(self, node):
        """Return the jobs of a node and of all nodes below it."""
        return [job for job in list(self.jobs) if job.node.is_below(node)]

    def allow(self, node, group, limit):
        """Record a new limit of a group. The highest limit that it ever had counts."""
        limit = math.inf if limit is None else limit
        self.limits[node, group] = max(limit, self.limits.get((node, group), math.inf))

    def note_inside(self, worker, change):
        """Record that work was entered, or is about to be left, in any thread."""
        key = worker.node, worker.group
        with self._lock:
            self._inside[key] += change
            inside = self._inside[key]
        limit = self.limits.get(key, math.inf)
        if change > 0 and inside > limit and key not in self.abandoning:
            self.fail(f"{inside} run in a group of {limit}: {worker!r}")

    # errors

    def plant(self, where, kind=Planted):
        error = kind(next(self._numbers), where)
        self._planted[error.number] = where
        self._errors[error.number] = error
        return error

    @property
    def planted(self):
        return len(self._planted)

    def surface(self, error, where):
        """Record an error that came out somewhere."""
        for leaf in leaves(error):
            if isinstance(leaf, (Planted, PlantedExit)):
                self._seen[leaf.number].append(where)
            elif isinstance(leaf, WorkerFailed):
                self._relay(leaf, where)
            elif not (self.native and type(leaf) is WorkerError and "native" in str(leaf)):
                self.fail(f"{leaf!r} came out of {where}")

    def _relay(self, failed, where):
        """Record a report of a stored error. At most one for each tree is right."""
        origin = bottom(failed)
        jobs = [job for job in self.jobs if job.worker is not None and job.worker.error is origin]
        if any(job.worker.exit_on_error or not isinstance(origin, Exception) for job in jobs):
            self.fail(f"{failed} came out of {where}, though the error itself is reported")
        self._relayed[id(origin)] += 1
        if self._relayed[id(origin)] > 1:
            self.fail(f"{failed} came out a second time, of {where}")

    def unseen(self):
        """Return whether some errors have not come out yet. Stored ones are looked up last."""
        stored = [job for job in self.jobs if job.worker is not None and job.worker.error]
        known = {id(leaf) for job in stored for leaf in leaves(job.worker.error)}
        return any(
            number not in self._seen and id(error) not in known
            for number, error in self._errors.items()
        )

    # messages

    def posted(self, node, message, worker):
        """Record a message that was accepted. In the end it has to have been handled."""
        self._posted[message.number] = node, worker

    def next(self):
        return next(self._numbers)

    def handle(self, node, message):
        self._handled[message.number, node] += 1

    # checks

    def check_events(self, node, events, *, where, complete=True):
        """Check what one listener to a node, or to its tree, was notified of."""
        numbers = [event.number for event in events]
        if numbers != sorted(set(numbers)):
            self.fail(f"{where}: events out of order: {numbers}")
        told = defaultdict(list)
        for event in events:
            told[event.worker].append(event.state)
        early = {job.worker for job in self.jobs if job.is_early}
        for worker, states in told.items():
            whole = complete and not (worker in early and worker.node is not node)
            if not _is_legal(tuple(states), whole=whole):
                self.fail(f"{where}: {[each.name for each in states]} told of {worker!r}")
        return told

    def check_missing(self, node, told, jobs, where):
        for job in jobs:
            heard = job.worker is not None and not job.refused
            if job.is_early and job.node is not node:
                heard = False  # it may have ended before its node was mounted
            if heard and job.worker not in told:
                self.fail(f"{where}: nothing told of {job.told}")

    def check_left(self, node):
        """Check the workers of a node whose block has just been left."""
        for job in self.below(node):
            worker = job.worker
            if worker is None or job.refused:
                continue
            if not worker.is_finished:
                self.fail(f"{node.path} was left, but not {job.told}")
            elif job.entered != job.left and not worker.is_abandoned:
                self.fail(f"{node.path} was left, but work goes on: {job.told}")

    def check(self):
        """Check everything at the end of the episode."""
        for job in self.jobs:
            self._check_job(job)
        for number, where in self._planted.items():
            if len(self._seen[number]) != 1:
                self.fail(
                    f"error {number}, planted in {where}, came out {len(self._seen[number])} "
                    f"times: {self._seen[number]}"
                )
        for number, (node, worker) in self._posted.items():
            times = self._handled[number, node]
            if worker is not None and worker.is_cancelled:
                continue  # perhaps it was cancelled before its message arrived
            if node.was_opened and times != 1 and node.handles_pings:
                self.fail(f"message {number} was handled {times} times by {node!r}")
        for (number, node), times in self._handled.items():
            if times > 1:
                self.fail(f"message {number} was handled {times} times by {node!r}")

    def _check_job(self, job):
        worker, told = job.worker, job.told
        if job.refused or worker is None:  # None: withdrawn before it was entered
            if job.entered:
                self.fail(f"it was refused and ran: {told}")
            return
        if not worker.is_finished:
            if job.node.was_opened or worker.is_queued or worker.is_running:
                self.fail(f"it did not end: {told}")
            return
        if job.entered != job.left:
            self.fail(f"it did not leave: {told}")
        if not job.entered and (
            (job.kind == "own_loop" and worker.is_cancelled)
            or (job.kind == "thread" and job.name in self.native)
        ):
            pass  # the function ran, but its coroutine did not; or the thread was cancelled early
        elif job.entered > 1 or bool(job.entered) != (worker.started_at is not None):
            self.fail(f"entered {job.entered} times, started at {worker.started_at}: {told}")
        if worker.is_cancelled != worker.cancelled_event.is_set():
            self.fail(f"its event and its flag differ: {told}")
        if worker.state is SUCCESS and (worker.is_cancelled or worker.result != job.value):
            self.fail(f"SUCCESS, but cancelled, or with {worker.result!r}: {told}")
        if worker.state is CANCELLED and not worker.is_cancelled:
            self.fail(f"CANCELLED, but nobody asked for it: {told}")
        if worker.state is ERROR:
            self._check_error(job)

    def _check_error(self, job):
        error = job.worker.error
        if not job.worker.exit_on_error and isinstance(error, Exception):
            if not isinstance(error, WorkerFailed):
                for leaf in leaves(error):
                    if not isinstance(leaf, WorkerFailed):
                        self.surface(leaf, f"{job.name}.error")
            times = self.stored_logged[job.worker.name]
            if times != 1 and job.kind != "handler":  # workers of handlers share a name
                self.fail(f"its error was logged {times} times: {job.told}")
        for leaf in leaves(error):
            known = isinstance(leaf, (Planted, PlantedExit, WorkerFailed))
            if not known and not (self.native and "native" in str(leaf)):
                self.fail(f"it ended with {leaf!r}: {job.told}")


def _is_legal(states, *, whole):
    if whole:
        return states in LEGAL
    for each in LEGAL:
        for begin in range(len(each)):
            if states in {each[begin:end] for end in range(begin, len(each) + 1)}:
                return True
    return False
