"""The recorder and what it saves: each worker once, in rows that do not overlap, safe to open."""

from __future__ import annotations

import errno
import gc
import itertools
import json
import os
import re
import weakref
from collections import defaultdict
from contextlib import AsyncExitStack
from contextvars import Context
from importlib.util import find_spec
from time import monotonic

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import creche._nursery.nursery
from creche import Node, WorkerError, get_current_worker
from creche.testing import virtual_time
from creche.trace import Trace, record
from creche.trace._layout import Entry, lay_out
from helpers import RENDEZVOUS, ExceptionGroup, Meeting, leaves, limp, settle

NASTY = "</script><!-- \" ' \\ \n\r\t \x00 \u2028 \udc80 \ud800 <b>Ж😀"
HARMLESS = NASTY.encode("utf-8", "backslashreplace").decode()
NEEDED = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid", "args"},
    "i": {"name", "cat", "ts", "pid", "tid", "s"},
    "C": {"name", "ts", "pid", "args"},
    "M": {"name", "pid", "args"},
    "s": {"name", "cat", "ts", "pid", "tid", "id"},
    "f": {"name", "cat", "ts", "pid", "tid", "id", "bp"},
}
NAMES = {"process_name", "process_sort_index", "thread_name", "thread_sort_index"}


@pytest.fixture
def ticking(monkeypatch):
    """Replace the loop's clock by one that advances by a second each time it is read."""
    clock = itertools.count(1000.0).__next__
    get_backend = creche._nursery.nursery.get_backend

    def with_that_clock(token):
        backend = get_backend(token)
        backend.clock = clock
        return backend

    monkeypatch.setattr(creche._nursery.nursery, "get_backend", with_that_clock)
    monkeypatch.setattr(anyio, "current_time", clock)
    return clock


@pytest.fixture
def in_new_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


pytestmark = pytest.mark.usefixtures("in_new_directory")


async def work():
    await anyio.lowlevel.checkpoint()


async def fail():
    raise ValueError("no luck")


class Saved:
    """A trace that was saved, checked against the rules of the format."""

    def __init__(self, trace, path="run.json"):
        trace.save(path)
        with open(path, encoding="ascii") as file:  # noqa: PTH123 (a relative name, as users give)
            told = json.load(file)
        assert set(told) == {"traceEvents", "displayTimeUnit", "otherData"}
        self.about = told["otherData"]
        self.events = told["traceEvents"]
        for event in self.events:
            assert NEEDED[event["ph"]] <= set(event)
            assert all(type(event[key]) is int for key in ("ts", "pid", "tid"))
            assert event["ts"] >= 0
        self.slices = self.of("X")
        self.processes = self._named("process_name")
        self.threads = self._named("thread_name")
        self._check_names()
        self._check_times()
        self._check_flows()

    def of(self, kind):
        return [event for event in self.events if event["ph"] == kind]

    def _named(self, kind):
        return {
            (event["pid"], event["tid"]): event["args"]["name"]
            for event in self.of("M")
            if event["name"] == kind
        }

    def _check_names(self):
        assert {event["name"] for event in self.of("M")} <= NAMES
        assert {event["pid"] for event in self.events} == {pid for pid, _ in self.processes} | {
            event["pid"] for event in self.of("i") if event["s"] == "g"
        }
        places = {(event["pid"], event["tid"]) for event in self.slices}
        assert places == set(self.threads)  # no row is empty
        for event in self.slices:
            assert self.threads[event["pid"], event["tid"]] == event["cat"]

    def _check_times(self):
        times = [event["ts"] for event in self.events if event["ph"] != "M"]
        assert times == sorted(times)
        rows = defaultdict(list)
        for event in self.slices:
            assert event["dur"] >= 0
            rows[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        for row in rows.values():
            assert all(end <= start for (_, end), (start, _) in itertools.pairwise(row))
        assert all(event["s"] in {"g", "t"} for event in self.of("i"))
        for event in self.of("C"):
            assert set(event["args"]) == {"running", "queued"}
            assert all(number >= 0 for number in event["args"].values())

    def _check_flows(self):
        starts, ends = ({event["id"]: event for event in self.of(kind)} for kind in "sf")
        assert len(starts) == len(self.of("s")) == len(self.of("f"))
        assert starts.keys() == ends.keys()
        for number, start in starts.items():
            end = ends[number]
            assert start["ts"] <= end["ts"]
            assert (start["name"], start["cat"]) == (end["name"], end["cat"])
            assert end["bp"] == "e"
            assert number in {each["args"]["worker"] for each in self.slices_at(end)}
            assert "running" in {each["cat"] for each in self.slices_at(start)}

    def slices_at(self, event):
        """The slices that an event may point at; several if the clock is too coarse."""
        return [
            each
            for each in self.slices
            if (each["pid"], each["tid"]) == (event["pid"], event["tid"])
            and each["ts"] <= event["ts"] <= each["ts"] + each["dur"]
        ]

    def slice_at(self, event):
        (found,) = self.slices_at(event)
        return found

    def lane(self, name):
        ((pid, _),) = [place for place, each in self.processes.items() if each == name]
        return pid

    def rows(self, lane):
        """How many rows a lane has, for running and for queued workers."""
        pid = self.lane(lane)
        found = [what for place, what in self.threads.items() if place[0] == pid]
        return found.count("running"), found.count("queued")

    def slice(self, name, kind="running"):
        (found,) = [each for each in self.slices if (each["name"], each["cat"]) == (name, kind)]
        return found

    def names(self, kind="running"):
        return [each["name"] for each in self.slices if each["cat"] == kind]

    def arrows(self):
        ends = {event["id"]: event for event in self.of("f")}
        return [
            (self.slice_at(event)["name"], self.slice_at(ends[event["id"]])["name"])
            for event in self.of("s")
        ]


def page_data(path):
    """The data in a page, which has to be the only thing in its element."""
    with open(path, encoding="utf-8", newline="") as file:  # noqa: PTH123 (as above)
        page = file.read()
    ((told,),) = [
        re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    ]
    return json.loads(told)


# lanes and rows


async def test_lane_for_each_group(ticking):
    """Each group is a lane, with as many rows as workers ran, and were queued, at once."""
    begun, two_at_once = [], anyio.Event()

    async def meet():
        begun.append(None)
        if len(begun) == 2:
            two_at_once.set()
        await two_at_once.wait()  # Trio's tasks take turns in any order

    app = Node("app")
    async with record(app) as trace, app, Node("page", parent=app) as page:
        page.run_worker(work, group="late")
        app.group("downloads", limit=2)
        for number in range(5):
            app.run_worker(meet, name=f"d{number}", group="downloads")
        app.run_worker(work, group="alone", name="a")
    saved = Saved(trace)
    assert list(saved.processes.values()) == ["app/downloads", "app/alone", "app/page/late"]
    assert saved.rows("app/downloads") == (2, 5)
    assert saved.rows("app/alone") == (1, 1)
    assert sorted(saved.names()) == ["a", "d0", "d1", "d2", "d3", "d4", "work"]
    assert sorted(saved.names("queued")) == sorted(saved.names())
    assert saved.slice("d0")["args"] == {
        "worker": saved.slice("work")["args"]["worker"] + 1,
        "state": "SUCCESS",
        "group": "downloads",
        "node": "app",
    }


async def test_times_are_those_of_the_worker(ticking):
    """A worker has a slice from its start to its entry, and one from there to its end."""
    async with record(app := Node("app")) as trace, app:
        worker = app.run_worker(work, name="w", description="some work")
    saved = Saved(trace)
    queued, running = saved.slice("w", "queued"), saved.slice("w")
    assert queued["dur"] == (worker.started_at - worker.created_at) * 1e6
    assert running["dur"] == (worker.finished_at - worker.started_at) * 1e6
    assert running["ts"] == queued["ts"] + queued["dur"]
    assert running["args"]["description"] == "some work"


async def test_requests_and_errors_are_instants(ticking):
    """A request for cancellation and an error are instants in the row of their worker."""

    async def resist():
        try:
            await anyio.sleep_forever()
        finally:
            await anyio.lowlevel.cancel_shielded_checkpoint()

    async with record(app := Node("app")) as trace, app:
        resisting = app.run_worker(resist, name="resist")
        app.group("one", limit=1)
        app.run_worker(anyio.sleep_forever, group="one", name="first")
        queued = app.run_worker(work, group="one", name="queued")
        app.run_worker(fail, name="fails", exit_on_error=False)
        await settle()
        resisting.cancel("enough")
        queued.cancel()
        app.group("one").cancel()
    saved = Saved(trace)
    told = {event["args"]["name"]: event for event in saved.of("i")}
    assert {name: event["name"] for name, event in told.items()} == {
        "resist": "cancellation requested",
        "queued": "cancellation requested",
        "first": "cancellation requested",
        "fails": "error",
    }
    assert told["resist"]["args"]["reason"] == "enough"
    assert told["fails"]["args"]["error"] == "ValueError: no luck"
    for name, event in told.items():
        assert saved.slice_at(event)["name"] == name
    assert saved.slice_at(told["queued"])["cat"] == "queued"
    assert "queued" not in saved.names()  # it never ran
    states = {each["name"]: each["args"]["state"] for each in saved.slices}
    assert states == {
        "resist": "CANCELLED",
        "queued": "CANCELLED",
        "first": "CANCELLED",
        "fails": "ERROR",
    }


@pytest.mark.parametrize("backend", sorted(anyio.get_available_backends()))
def test_services_leave_marks(backend):
    """A worker's bar shows when it was ready, was restarted and stalled."""
    saved = []

    async def main():
        async with record(app := Node("app")) as trace, app:
            app.run_worker(limp, stall_after=10)
        saved.extend([trace, Saved(trace)])

    with virtual_time(backend) as (name, options):
        anyio.run(main, backend=name, backend_options=options)
    trace, saved = saved
    begin = saved.slice("limp")["ts"]
    assert saved.slice("limp")["args"]["attempt"] == 2
    told = saved.of("i")
    assert [(event["name"], event["args"].get("told")) for event in told] == [
        ("ready", None),
        ("attempt 2", "OSError: lost"),
        ("stalled", "for 10 s"),
    ]
    times = [event["ts"] - begin for event in told]
    assert times == [pytest.approx(at, abs=2) for at in (0, 5e6, 16e6)]
    assert {saved.slice_at(event)["name"] for event in told} == {"limp"}
    trace.save("run.html")
    ((*_, attempt, marks, _),) = page_data("run.html")["workers"]
    assert (attempt, [mark[1:] for mark in marks]) == (
        2,
        [["ready", ""], ["attempt 2", "OSError: lost"], ["stalled", "for 10 s"]],
    )


async def test_the_newest_marks_are_kept():
    """A service that keeps failing does not make its timeline grow forever."""

    async def job():
        for number in range(150):
            get_current_worker().restarted(OSError(number))

    async with record(app := Node("app")) as trace, app:
        app.run_worker(job)
    names = [event["name"] for event in Saved(trace).of("i")]
    assert names == [f"attempt {number}" for number in range(52, 152)]


async def test_arrows_from_who_started_it(ticking):
    """An arrow leads from a worker to the beginning of each worker that it started."""

    async def outer():
        app.run_worker(work, name="inner")
        page.run_worker(work, name="never", start=False)
        other.run_worker(work, name="elsewhere")
        await app.run_worker(lambda: app.run_worker(work, name="of thread"), "thread", thread=True)

    async def parent():
        async def late():
            await gate.wait()
            app.run_worker(work, name="late")

        tasks.start_soon(late)

    app, other, gate = Node("app"), Node("other"), anyio.Event()
    async with (
        record(app) as trace,
        other,
        app,
        Node("page", parent=app) as page,
        anyio.create_task_group() as tasks,
    ):
        await app.run_worker(outer, name="outer")
        await app.run_worker(parent, name="parent")
        gate.set()
    assert sorted(Saved(trace).arrows()) == [
        ("outer", "inner"),
        ("outer", "never"),
        ("outer", "thread"),
        ("parent", "late"),  # it was a task that the worker spawned, and the worker had ended
        ("thread", "of thread"),
    ]


async def test_counters(ticking):
    """The counters of a lane show how many workers ran and were queued after each change."""
    async with record(app := Node("app")) as trace, app:
        app.group("g", limit=1)
        first = app.run_worker(anyio.sleep_forever, group="g")
        app.run_worker(work, group="g")
        await settle()
        first.cancel()
    counted = [tuple(event["args"].values()) for event in Saved(trace).of("C")]
    assert counted == [(0, 1), (0, 2), (1, 1), (0, 1), (1, 0), (0, 0)]


async def test_workers_of_the_same_moment():
    """A worker that begins and ends within one tick of a coarse clock is shown, too."""
    async with record(app := Node("app")) as trace, app:
        for number in range(20):
            app.run_worker(work, name=str(number))
        app.run_worker(work, name="cancelled").cancel()
        app.group("none", limit=1, overflow="drop")
        app.run_worker(anyio.sleep_forever, group="none", daemon=True)
        app.run_worker(work, group="none", name="dropped")
    saved = Saved(trace)
    assert sorted(saved.names()) == sorted(["sleep_forever", *map(str, range(20))])
    assert {"cancelled", "dropped"} <= set(saved.names("queued"))


# a recording


async def test_unfinished_workers_are_shown_up_to_now(ticking):
    """A trace can be saved while it is being recorded. Unfinished workers are shown up to then."""
    gate = anyio.Event()
    async with record(app := Node("app")) as trace, app:
        app.group("g", limit=1)
        app.run_worker(gate.wait, group="g", name="runs")
        app.run_worker(work, group="g", name="waits")
        await settle()
        early = Saved(trace)
        again = Saved(trace)
        gate.set()
    late = Saved(trace)
    assert early.slice("runs")["args"]["state"] == "RUNNING"
    assert early.slice("waits", "queued")["args"]["state"] == "PENDING"
    assert early.names() == ["runs"]
    ends = [
        [each["ts"] + each["dur"] for each in saved.slices if each["args"]["state"] != "SUCCESS"]
        for saved in (early, again)
    ]
    assert ends[0][1] == ends[0][2] < ends[1][1] == ends[1][2]
    assert {each["args"]["state"] for each in late.slices} == {"SUCCESS"}


async def test_saving_right_after_a_change():
    """The file has everything that has happened, including events that are still unread."""
    async with record(app := Node("app")) as trace, app:
        worker = app.run_worker(work, name="w")
        assert Saved(trace).names("queued") == ["w"]
        worker.cancel("at once")
        assert Saved(trace).slice("w", "queued")["args"]["reason"] == "at once"
        await app.run_worker(work, name="next")
        assert Saved(trace).slice("next")["args"]["state"] == "SUCCESS"


async def test_recording_a_part(ticking):
    """A recording that is opened late has what runs below its node, and ends with its block."""
    gate = anyio.Event()
    async with Node("app") as app, Node("page", parent=app) as page, Node("leaf", parent=page):
        page.run_worker(work, name="before")
        await settle()
        app.run_worker(gate.wait, name="above")
        leaf = page.children[0]
        old = leaf.run_worker(gate.wait, name="old")
        await settle()
        async with record(page) as trace:
            page.run_worker(gate.wait, name="new")
            await settle()
        page.run_worker(work, name="after")
        gate.set()
    saved = Saved(trace)
    assert saved.names() == ["old", "new"]
    assert saved.slice("old", "queued")["ts"] == 0
    assert saved.slice("old")["dur"] > 0
    assert {each["args"]["state"] for each in saved.slices} == {"RUNNING"}
    assert old.state is not trace
    assert repr(trace) == "<Trace of node 'app/page', 0 workers dropped>"


async def test_workers_of_a_node_that_was_mounted_later():
    """A worker that was added before the recording listened is shown from its next change on."""
    child = Node("child")
    child.run_worker(work, name="w", start=False)
    async with record(app := Node("app")) as trace, app:
        await app.mount(child)
        app.workers.start_all()
    assert Saved(trace).names() == ["w"]


async def test_workers_that_were_added_before_the_node_was_opened(ticking):
    """A worker that waits for its node to open begins when it opens, by the loop's clock."""
    app = Node("app")
    before = app.run_worker(work, name="before", start=False)
    async with record(app) as trace:
        app.run_worker(work, name="heard", start=False)
        assert sorted(Saved(trace).names("queued")) == ["before", "heard"]
        async with app:
            app.workers.start_all()
    saved = Saved(trace)
    assert sorted(saved.names()) == ["before", "heard"]
    waited = before.started_at - before.created_at
    assert saved.slice("before", "queued")["dur"] == waited * 1e6


async def test_nothing_was_recorded():
    """An empty recording makes an empty trace and a page."""
    async with record(app := Node("app")) as trace:
        Saved(trace)
        async with app:
            pass
    saved = Saved(trace)
    assert saved.events == []
    trace.save("run.html")
    assert page_data("run.html")["workers"] == []


async def test_older_workers_are_dropped(ticking):
    """The newest finished workers are kept. The trace says how many are missing, and where."""

    async def outer():
        await app.run_worker(work, name="inner")
        await app.run_worker(work, name="inner 2")
        for number in range(5):
            await app.run_worker(work, name=str(number))

    async with record(app := Node("app"), keep=3) as trace, app:
        stays = await app.start_worker(anyio.sleep_forever, name="stays")
        first = app.run_worker(work, name="first")
        await app.run_worker(outer, name="outer")
        assert Saved(trace).about["dropped"] == trace.dropped == 6
        stays.cancel()
    saved = Saved(trace)
    assert saved.names() == ["stays", "outer", "4"]
    assert trace.dropped == 7
    assert repr(trace) == "<Trace of node 'app', 7 workers dropped>"
    assert saved.arrows() == [("outer", "4")]
    (note,) = [event for event in saved.of("i") if event["s"] == "g"]
    assert note["name"] == "older workers were dropped"
    assert {key: saved.about[key] for key in ("dropped", "keep", "workers")} == {
        "dropped": 7,
        "keep": 3,
        "workers": 3,
    }
    begin = saved.slice("stays", "queued")["ts"]
    assert note["ts"] - begin > (first.finished_at - stays.created_at) * 1e6
    trace.save("run.html")
    data = page_data("run.html")
    assert (data["dropped"], data["wholeSince"]) == (7, note["ts"])
    assert [worker[0] for worker in data["workers"]] == ["stays", "outer", "4"]


async def test_no_worker_is_held(ticking):
    """A recording does not keep finished workers alive, even if they have started others."""
    gone = []

    async def outer():
        await note(app.run_worker(work, name="inner"))

    async def note(worker):
        gone.append(weakref.ref(worker))
        await worker

    async with record(app := Node("app")) as trace, app:
        await note(app.run_worker(outer, name="outer"))
        await settle()
        gc.collect()
        assert [each() for each in gone] == [None, None]
    assert Saved(trace).arrows() == [("outer", "inner")]


async def test_recording_is_left_before_the_node():
    """A recording holds neither the node nor its events, and its block may be left first."""
    async with Node("app") as app:
        async with record(app) as trace:
            worker = app.run_worker(anyio.sleep_forever, name="w")
            await settle()
        worker.cancel()
        await settle()
        assert Saved(trace).slice("w")["args"]["state"] == "RUNNING"
        assert app._creche_audience.heard_by == ()
        gone = weakref.ref(worker)
        del worker
        gc.collect()
        assert gone() is None


async def test_error_of_the_body_passes_as_it_is():
    """An error passes through the block of a recording without an exception group around it."""
    app = Node("app")
    with pytest.raises(ZeroDivisionError):
        async with record(app):
            raise ZeroDivisionError
    with pytest.raises(ExceptionGroup) as caught:
        async with record(app) as trace, app:
            app.run_worker(fail)
    assert [type(error) for error in leaves(caught.value)] == [ValueError]
    assert caught.value.exceptions[0] in leaves(caught.value)  # one group, that of the node
    assert Saved(trace).slice("fail")["args"]["state"] == "ERROR"


async def test_cancellation_from_outside():
    """A cancelled recording has the ends of all its workers, and loses no error."""

    async def fail_late():
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError

    app = Node("app")
    with pytest.raises(ExceptionGroup) as caught:
        with anyio.CancelScope() as scope:
            async with record(app) as trace, app:
                app.run_worker(fail_late, name="fails")
                app.run_worker(anyio.sleep_forever, name="sleeps")
                await settle()
                scope.cancel()
                await anyio.sleep_forever()
    assert [type(error) for error in leaves(caught.value)] == [ValueError]
    states = {each["name"]: each["args"]["state"] for each in Saved(trace).slices}
    assert states == {"fails": "ERROR", "sleeps": "CANCELLED"}
    with anyio.CancelScope() as scope:
        async with record(Node("app")) as trace:
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught


async def test_recorder_reads_on_while_cancelled():
    """The events of a cancelled node that ends slowly do not pile up."""
    meeting = Meeting()

    async def stubborn():
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(meeting)

    async def start_more():
        with anyio.CancelScope(shield=True):
            await meeting.until_arrived()
            for _ in range(10):
                app.run_worker(work)
            await settle()
            assert not trace._events._backlog
            meeting.go.set()

    with anyio.CancelScope() as scope:
        async with record(app := Node("app")) as trace, app:
            app.run_worker(stubborn)
            app.run_worker(start_more)
            await settle()
            scope.cancel()
    assert len({each["args"]["worker"] for each in Saved(trace).slices}) == 12


# what is refused


async def test_bad_arguments():
    """Invalid arguments are refused at the call, and nothing is written."""
    app = Node("app")
    with pytest.raises(WorkerError, match="takes a Node, not 'app'"):
        record("app")
    for keep in (0, -1, 1.5, None, "1"):
        with pytest.raises(WorkerError, match="keep must be a number of workers, 1 or more, not"):
            record(app, keep=keep)
    trace = record(app)
    assert isinstance(trace, Trace)
    with pytest.raises(WorkerError, match="has recorded nothing; use it as a block: async with"):
        trace.save("run.json")
    async with trace:
        for name in ("run", "run.txt", "json", ".json", "run.json.gz"):
            with pytest.raises(WorkerError, match=f"cannot save a timeline as '{name}'; let its"):
                trace.save(name)
        with pytest.raises(OSError, match="nowhere"):
            trace.save("nowhere/run.json")
        with pytest.raises(WorkerError, match="was opened before"):
            async with trace:
                pass
    assert os.listdir() == []  # noqa: PTH208 (the working directory)
    async with app:
        pass
    with pytest.raises(WorkerError, match="which is closed"):
        async with record(app):
            pass


async def test_names_of_files(tmp_path):
    """The suffix of the name chooses the format, in either case, and may be of a path."""
    async with record(Node("app")) as trace:
        trace.save(tmp_path / "a.JSON")
        trace.save(str(tmp_path / "b.b.Html"))
    assert (tmp_path / "a.JSON").read_text()[0] == "{"
    assert (tmp_path / "b.b.Html").read_text()[0] == "<"


async def test_a_file_that_is_written_half_is_emptied():
    """If the disk is too full for the file, nothing is left. An invalid file name is refused."""
    resource = pytest.importorskip("resource", reason="files have no limit here")
    async with record(app := Node("app")) as trace, app:
        await app.run_worker(work, name="x" * 1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in ("run.html", "run.json"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
                trace.save(name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert os.stat(name).st_size == 0  # noqa: PTH116 (a name, as above)
    with open("run.json", "w") as file:  # noqa: PTH123, ASYNC230 (as above)
        pass
    with pytest.raises(TypeError):
        trace.save(file)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")  # noqa: PTH110
async def test_what_has_no_length_is_written_to_as_well():
    """A file that cannot be truncated raises its own error."""
    os.symlink("/dev/full", "run.json")  # noqa: PTH211 (as above)
    async with record(Node("app")) as trace:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            trace.save("run.json")


async def test_saving_in_another_thread():
    """Only the loop's thread may save during the recording; afterwards any thread may."""
    async with record(app := Node("app")) as trace, app:
        with pytest.raises(WorkerError, match="goes on in another thread; save it in that of"):
            await anyio.to_thread.run_sync(trace.save, "run.json")
    await anyio.to_thread.run_sync(trace.save, "run.json")


async def test_saving_in_a_callback(monkeypatch):
    """A callback of the loop, which runs in no task, may save, as for a signal."""
    later = 0
    monkeypatch.setattr("creche.trace._recorder.monotonic", lambda: monotonic() + later)
    saved = anyio.Event()

    def save():
        trace.save("run.json")
        saved.set()

    async with record(app := Node("app")) as trace, app:
        worker = app.run_worker(anyio.sleep_forever, name="w")
        await settle()
        later = 5
        loop = anyio.lowlevel.current_token().native_token
        if hasattr(loop, "call_soon"):
            loop.call_soon(save, context=Context())  # where sniffio cannot tell that a loop runs
            is_known = find_spec("sniffio") is None  # then AnyIO asks asyncio itself
        else:
            loop.run_sync_soon(save)
            is_known = True
        if is_known:
            later = 0  # the loop's own clock is read
        with anyio.fail_after(RENDEZVOUS):
            await saved.wait()
        worker.cancel()
    with open("run.json") as file:  # noqa: PTH123, ASYNC230 (a relative name, a small file)
        events = json.load(file)["traceEvents"]
    (running,) = [event for event in events if event.get("cat") == "running"]
    assert later * 1e6 <= running["dur"] + 1e5 < (later + RENDEZVOUS) * 1e6


# what others wrote


async def test_nasty_texts_are_harmless():
    """Both files stay valid and complete, whatever is in names, reasons and errors."""

    class Untold:
        def __str__(self):
            raise RuntimeError

    class Nameless:
        async def __call__(self):
            pass

    async def fail():
        raise ValueError(NASTY)

    async with record(app := Node(NASTY)) as trace, app:
        app.run_worker(fail, name=NASTY, description=NASTY, group=NASTY, exit_on_error=False)
        app.run_worker(work, name="cancelled").cancel(NASTY)
        app.run_worker(work, name="untold").cancel(Untold())
        app.run_worker(work, name="long").cancel("x" * 1_000_000)
        app.run_worker(Nameless())
    saved = Saved(trace)
    args = saved.slice(HARMLESS)["args"]
    assert (args["group"], args["node"], args["description"]) == (HARMLESS,) * 3
    assert args["error"] == f"ValueError: {HARMLESS}"
    assert saved.slice("cancelled", "queued")["args"]["reason"] == HARMLESS
    assert saved.slice("untold", "queued")["args"]["reason"] == "<unprintable Untold>"
    assert saved.slice("long", "queued")["args"]["reason"] == "x" * 999 + "…"
    assert "Worker" in saved.names()  # the one that has no name
    trace.save("run.html")
    data = page_data("run.html")
    assert data["node"] == HARMLESS
    assert data["lanes"][0][:2] == [HARMLESS, HARMLESS]
    (row,) = [each for each in data["workers"] if each[0] == HARMLESS]
    assert row[-6:-3] == [HARMLESS, "", f"ValueError: {HARMLESS}"]


async def test_page_needs_nothing_else():
    """The page fetches nothing, and has its data in one element that no text can close."""
    async with record(app := Node("app")) as trace, app:
        app.run_worker(work)
    trace.save("run.html")
    with open("run.html") as file:  # noqa: PTH123, ASYNC230 (as above)
        page = file.read()
    assert "default-src 'none'" in page
    assert re.findall(r"https?://|\bsrc\s*=|\bhref\s*=|url\(|@import|innerHTML", page) == []
    data = page_data("run.html")
    ((name, lane, state, created, started, end, row, queue_row, *rest),) = data["workers"]
    assert (name, lane, state, row, rest) == (
        "work",
        0,
        "SUCCESS",
        0,
        [None, None, "", "", "", 1, [], ""],
    )
    assert created <= started <= end <= data["length"]
    assert data["lanes"] == [["app", "default", 1, 0 if queue_row is None else 1]]


# the layout, on times that a test cannot have happen


def entry(number, created, started, finished):
    return Entry(number, str(number), "app", "g", created, started=started, finished=finished)


def test_row_of_who_has_just_ended():
    """A worker that begins at the moment another ends gets its row."""
    picture = lay_out([entry(1, 0, 1, 2), entry(2, 1, 2, 3), entry(3, 1, 2.5, 4)], 0, 4, None)
    assert [bar.row for bar in picture.bars] == [0, 0, 1]
    assert [bar.queue_row for bar in picture.bars] == [0, 0, 1]
    assert [(lane.rows, lane.queue_rows) for lane in picture.lanes] == [(2, 2)]


def test_rows_are_given_in_order_of_entry():
    """A worker that was added first but entered last gets the row that is free then."""
    picture = lay_out([entry(1, 0, 5, 6), entry(2, 1, 2, 3), entry(3, 1, 4, 7)], 0, 7, None)
    assert [bar.row for bar in picture.bars] == [1, 0, 0]
    assert picture.lanes[0].rows == 2


def test_now_is_not_before_a_beginning():
    """An unfinished worker is never shown to end before it began, even if the clock goes back."""
    picture = lay_out([entry(1, 5, 6, None), entry(2, 7, None, None)], 0, 5.5, None)
    assert [(bar.started, bar.end) for bar in picture.bars] == [(6_000_000,) * 2, (None, 7_000_000)]
    assert picture.length == 7_000_000


# random programs

ACTS = st.one_of(
    st.tuples(
        st.just("run"), st.integers(0, 2), st.integers(0, 2), st.integers(0, 4), st.booleans()
    ),
    st.tuples(st.just("nest"), st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("turn"), st.integers(1, 5)),
    st.tuples(st.just("save")),
    st.tuples(st.just("close")),
)


class Program:
    """A random program on a tree of nodes, and a log of what its work did."""

    def __init__(self, clock):
        self.workers = []
        self.log = defaultdict(list)  # lane: how many run, after each change
        self.origins = []
        self.clock = clock

    def work(self, turns, error):
        async def body():
            worker = get_current_worker()
            lane = self.log[f"{worker.node.path}/{worker.group}"]
            lane.append((lane or [0])[-1] + 1)
            try:
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                if error:
                    raise ValueError
            finally:
                lane.append(lane[-1] - 1)

        return body

    def run(self, node, group, turns, error):
        worker = self.nodes[node % len(self.nodes)].run_worker(
            self.work(turns, error),
            name=str(len(self.workers)),
            group=f"g{group}",
            exit_on_error=False,
        )
        self.workers.append(worker)
        return worker

    def nest(self, node, group):
        async def outer():
            inner = self.run(node, group, 1, error=False)
            self.origins.append((worker.name, inner.name))

        worker = self.nodes[node % len(self.nodes)].run_worker(
            outer, name=str(len(self.workers)), group="outer"
        )
        self.workers.append(worker)

    async def main(self, acts):
        app = Node("app")
        async with record(app) as trace, app, AsyncExitStack() as stack:
            self.nodes = [app, await stack.enter_async_context(Node("page", parent=app))]
            self.nodes.append(await app.mount(Node("panel")))
            for node in self.nodes:
                node.group("g1", limit=1)
                node.group("g2", limit=2)
            for kind, *args in acts:
                if kind == "turn":
                    await settle(*args)
                elif kind == "save":
                    Saved(trace, "early.json")
                elif kind == "close":
                    await stack.aclose()
                    del self.nodes[1:2]
                elif kind == "cancel":
                    for worker in self.workers[args[0] : args[0] + 1]:
                        worker.cancel()
                else:
                    getattr(self, kind)(*args)
        return Saved(trace)


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(acts=st.lists(ACTS, max_size=25))
def test_random_programs(backend, ticking, acts):
    """Whatever runs, each worker is shown once, with its own times, and the counters are right."""
    program = Program(ticking)
    saved = anyio.run(program.main, acts, **backend)
    facts = {worker.name: worker for worker in program.workers}
    assert sorted(saved.names()) == sorted(
        name for name, worker in facts.items() if worker.started_at is not None
    )
    assert sorted(saved.names("queued")) == sorted(facts)  # with this clock each one waits
    for name, worker in facts.items():
        entered = worker.started_at
        waited = worker.finished_at if entered is None else entered
        assert saved.slice(name, "queued")["dur"] == (waited - worker.created_at) * 1e6
        assert saved.slice(name, "queued")["args"]["state"] == worker.state.name
        if entered is not None:
            assert saved.slice(name)["dur"] == (worker.finished_at - entered) * 1e6
    for lane, log in program.log.items():
        pid = saved.lane(lane)
        counted = [each["args"]["running"] for each in saved.of("C") if each["pid"] == pid]
        assert [each for each, _ in itertools.groupby(counted) if log][1:] == log
        assert saved.rows(lane)[0] == max(log)
    assert sorted(saved.arrows()) == sorted(program.origins)
