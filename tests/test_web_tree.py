"""What the page gets about the tree: all of it first, and then the changes."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest

from creche import Node, get_current_worker
from creche.jobs import Jobs
from helpers import ERROR, RUNNING, fail, give_later, settle, slow_to_leave, until

pytest.importorskip("httpx")
pytest.importorskip("sse_starlette")

import httpx
from starlette.applications import Starlette

from creche.web import _page, _tally, _text, _tree, lifespan, routes
from creche.web._state import State
from creche.web._tree import Tree, Viewer


@asynccontextmanager
async def serve(node, **options):
    app = Starlette(
        routes=routes(Jobs(node), page=True, **options), lifespan=lifespan(node, grace=0)
    )
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


def yes(request, action, status):
    return True


class Page:
    """A page that applies what it receives, by the rules of the protocol."""

    def __init__(self):
        self.nodes, self.groups, self.workers = {}, {}, {}
        self.failures, self.ended, self.kinds = [], [], []

    def hear(self, kind, data):
        self.kinds.append(kind)
        if kind == "tree":
            self.nodes, self.groups, self.workers = {}, {}, {}
            self.failures = []
        for name in ("nodes", "groups"):
            rows = getattr(self, name)
            rows.update({each["id"]: each for each in data.get(name, ())})
            for number in data.get(f"{name}_gone", ()):
                del rows[number]
        for row in data.get("workers", ()):
            before = self.workers.setdefault(row["number"], {})
            assert before or len(row) > 15, "a worker that is not known is told whole"
            before.update(row)
        for each in data.get("ended", ()):
            self.ended.append((each["number"], each["state"]))
            self.workers.pop(each["number"], None)
        self.failures += data.get("failures", ())

    def names(self):
        return [row["name"] for row in self.workers.values()]

    def group(self, name):
        (found,) = (each for each in self.groups.values() if each["name"] == name)
        return found


@pytest.fixture
def hurry(monkeypatch):
    """Send changes as they come."""
    monkeypatch.setattr(_tree, "INTERVAL", 0)
    monkeypatch.setattr(_tree, "_SHARE", 1e9)


@asynccontextmanager
async def viewing(node):
    """Open a page that gets the events of a node."""
    tree, viewer, page = Tree(node), Viewer(), Page()

    async def follow():
        kind = ""
        while kind != "end":
            kind, text = await viewer.next()
            page.hear(kind, whole(tree) if text is None else json.loads(text))

    with tree.seen_by(viewer):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            yield page
            tasks.cancel_scope.cancel()


def whole(tree):
    return json.loads(tree.whole(may_cancel=False))


async def test_whole():
    """The first message has the whole tree, by number, with times of the wall clock."""
    gate = anyio.Event()
    async with Node("app") as app, Node("page", parent=app) as below:
        app.group("few", limit=1)
        first = app.run_worker(partial(give_later, 1, gate), name="a", group="few")
        second = app.run_worker(anyio.sleep_forever, name="b", group="few", description="soon")
        third = below.run_worker(anyio.sleep_forever, daemon=True)
        await until(lambda: first.state is third.state is RUNNING)
        first.update(3, 12)
        told = whole(Tree(app))
        assert (told["node"], told["failures"]) == ("app", [])
        assert [(each["id"], each["parent"], each["path"]) for each in told["nodes"]] == [
            (0, None, "app"),
            (2, 0, "app/page"),
        ]
        few, default = told["groups"]
        assert few == {
            "id": 1,
            "node": 0,
            "name": "few",
            "limit": 1,
            "overflow": "enqueue",
            "running": 1,
            "queued": 1,
            "total": 2,
            "succeeded": 0,
            "failed": 0,
            "cancelled": 0,
            "rate": None,
            "left": None,
        }
        assert (default["node"], default["name"], default["total"]) == (2, "default", 1)
        a, b, c = told["workers"]
        assert [a["number"], b["number"], c["number"]] == [
            each.number for each in (first, second, third)
        ]
        assert (a["state"], a["completed_steps"], a["progress"]) == ("RUNNING", 3, 25.0)
        assert (b["state"], b["is_queued"], b["description"]) == ("PENDING", True, "soon")
        assert told["time"] - 10 < a["created"] <= a["started"] <= told["time"]
        assert (b["started"], b["where"], c["daemon"]) == (None, "", True)
        json.dumps(told, allow_nan=False)
        gate.set()
        app.cancel()


async def test_changes(hurry):
    """A page that applies the changes always has the current tree."""
    gate = anyio.Event()
    async with Node("app") as app:
        app.group("few", limit=1)
        async with viewing(app) as page:
            await until(lambda: page.kinds == ["tree"])
            worker = app.run_worker(partial(give_later, 1, gate), name="a", group="few")
            await until(lambda: page.names() == ["a"])
            assert page.group("few")["total"] == 1
            await until(lambda: page.workers[worker.number]["started"])
            started = page.workers[worker.number]["started"]
            worker.update(5, 10, description="half")
            await until(lambda: page.workers[worker.number]["progress"] == 50.0)
            assert page.workers[worker.number]["description"] == "half"
            assert page.workers[worker.number]["started"] == started
            queued = app.run_worker(anyio.sleep_forever, name="b", group="few")
            await until(lambda: len(page.workers) == 2)
            gate.set()
            await until(lambda: page.workers[queued.number]["state"] == "RUNNING")
            assert page.ended == [(worker.number, "SUCCESS")]
            assert page.group("few")["total"] == 2
            assert page.group("few")["succeeded"] == 1
            assert page.group("few")["rate"] > 0
            assert page.group("few")["left"] > 0
            async with Node("below", parent=app) as below:
                below.run_worker(partial(fail, ValueError("no luck")), exit_on_error=False)
                await until(lambda: page.failures)
                assert [each["path"] for each in page.nodes.values()] == ["app", "app/below"]
            failure = page.failures[0]
            assert (failure["node"], failure["group"], failure["name"]) == (
                "app/below",
                "default",
                "fail",
            )
            assert failure["error"] == "ValueError: no luck"
            queued.cancel()
            await until(lambda: [each["path"] for each in page.nodes.values()] == ["app"])
            await until(lambda: not page.workers)
            assert page.ended[-1] == (queued.number, "CANCELLED")
            # A batch that comes when nothing was left is counted from the start.
            app.run_worker(settle, group="few")
            await until(lambda: page.group("few")["cancelled"] == 0)
            await until(lambda: page.group("few")["succeeded"] == 1)
            assert page.group("few")["total"] == 1


async def test_two_of_a_name(hurry):
    """Nodes and workers may have equal names; each has a number that was never used before."""
    async with Node("app") as app, viewing(app) as page:
        for _ in range(2):
            async with Node("page", parent=app) as first, Node("page", parent=app) as second:
                workers = [each.run_worker(anyio.sleep_forever) for each in (first, second)]
                await until(lambda: len(page.workers) == 2)
                assert len(page.nodes) == 3
                groups = {page.workers[each.number]["group"] for each in workers}
                assert len(groups) == 2
                numbers = set(page.nodes) | set(page.groups)
                first.cancel()
                second.cancel()
            await until(lambda: len(page.nodes) == 1)
        assert max(numbers) >= 8


async def test_cancelled_and_stalled(hurry):
    """Changes to a running worker are sent as they happen."""
    gate = anyio.Event()
    async with Node("app") as app, viewing(app) as page:
        worker = app.run_worker(partial(slow_to_leave, gate), stall_after=1e-9)
        await until(lambda: page.workers and page.workers[worker.number]["stalled"])
        worker.advance()
        await until(lambda: not page.workers[worker.number]["stalled"])
        worker.cancel("enough")
        worker.update()
        await until(lambda: page.workers[worker.number]["is_cancelled"])
        assert page.workers[worker.number]["cancel_reason"] == "enough"
        gate.set()


async def test_rates_go_down(hurry, monkeypatch):
    """A rate covers the last seconds, and goes down when nothing ends."""
    monkeypatch.setattr(_tree, "_AGE", 0.001)
    async with Node("app") as app:
        app.group("few", limit=2)
        async with viewing(app) as page:
            waiting = app.run_worker(anyio.sleep_forever, group="few")
            for _ in range(3):
                await app.run_worker(settle, group="few")
            await until(lambda: page.group("few")["rate"])
            monkeypatch.setattr(_tally, "_SPAN", 0.0)
            await until(lambda: page.group("few")["rate"] is None)
            assert page.group("few")["left"] is None
            waiting.cancel()


async def test_whole_is_made_once_for_all(monkeypatch):
    """Pages that come close together share one snapshot, with their own time and permissions."""
    made, real = [], State.whole

    def count(*args):
        made.append(args)
        return real(*args)

    monkeypatch.setattr(State, "whole", count)
    async with Node("app") as app:
        app.run_worker(anyio.sleep_forever)
        tree = Tree(app)
        with tree.seen_by(Viewer()):
            one, two = (json.loads(tree.whole(may_cancel=may)) for may in (True, False))
            assert len(made) == 1
            assert (one.pop("may_cancel"), two.pop("may_cancel")) == (True, False)
            assert one.pop("time") <= two.pop("time")
            assert one == two
            tree._look()
            tree.whole(may_cancel=True)
            assert len(made) == 2
        app.cancel()


async def test_who_is_slow_is_told_the_whole(hurry):
    """The changes that wait for a slow page are bounded; beyond that it gets the whole tree."""
    async with Node("app") as app:
        tree, viewer = Tree(app), Viewer()
        with tree.seen_by(viewer):
            assert await viewer.next() == ("tree", None)
            worker = app.run_worker(anyio.sleep_forever)
            for number in range(_tree._MOST + 5):
                worker.update(number + 1)
                await until(lambda number=number: told_steps(tree, worker) == number + 1)
            assert await viewer.next() == ("tree", None)
            worker.cancel()


def told_steps(tree, worker):
    row = tree._state.workers.get(worker.number)
    return row and row["completed_steps"]


async def test_page_that_comes_again(hurry):
    """A page that connects again gets the current tree. Without pages, only ends are counted."""
    async with Node("app") as app:
        tree = Tree(app)
        page = Page()
        waiting = app.run_worker(anyio.sleep_forever)
        for _ in range(2):
            viewer = Viewer()
            with tree.seen_by(viewer):
                kind, _ = await viewer.next()
                page.hear(kind, whole(tree))
                assert page.names() == ["sleep_forever"]
                with tree.seen_by(another := Viewer()):
                    assert await another.next() == ("tree", None)
        waiting.cancel()


async def test_ends_are_counted_while_nobody_looks(hurry):
    """Ends are counted from the first page on, even while there is none."""
    async with Node("app") as app:
        tree = Tree(app)
        tree.begin()
        waiting = app.run_worker(anyio.sleep_forever)
        await until(lambda: tree._tally.groups)
        for _ in range(3):
            await app.run_worker(settle).join()
        await until(lambda: tree._tally.groups["app", "default"].ended["succeeded"] == 3)
        (group,) = (each for each in whole(tree)["groups"] if each["name"] == "default")
        assert (group["total"], group["succeeded"]) == (4, 3)
        tree.begin()  # nothing happens
        assert len([each for each in app.workers if each.name == "page"]) == 1
        waiting.cancel()


async def test_end(hurry):
    """A page gets the end when the node takes no more work."""
    async with Node("app") as app, viewing(app) as page:
        await until(lambda: page.kinds == ["tree"])
        await app.shutdown()
        await until(lambda: page.kinds[-1] == "end")


async def test_hostile_texts(hurry):
    """Texts have a bounded length and valid characters, whatever was given."""

    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    evil = "<script>alert(1)</script>" + "\u202e" + "\x1b[31m" + "\ud800" + "x" * 5_000_000
    async with Node("app", exit_on_error=False) as app, viewing(app) as page:
        worker = app.run_worker(partial(fail, ValueError(evil)), name=evil, description=evil)
        app.run_worker(partial(fail, Mute()))
        await until(lambda: len(page.failures) == 2)
        running = app.run_worker(anyio.sleep_forever, name=evil, description=evil, group=evil)
        await until(lambda: running.number in page.workers)
        row = page.workers[running.number]
        long, mute = sorted(page.failures, key=lambda each: each["number"])
        for text in (row["name"], long["name"]):
            assert text.startswith("<script>")
            assert len(text) < _text.NAME + 10
            assert text.endswith("…")
        assert len(row["description"]) < _text.LINE + 10
        assert len(long["error"]) < _text.ERROR + 10
        assert mute["error"] == "Mute: <unprintable>"
        assert worker.state is ERROR
        json.dumps(row).encode()
        running.cancel()


def test_texts_that_cannot_be_read():
    """A text that cannot be read is replaced by a placeholder."""

    class Odd:
        @property
        def name(self):
            raise RuntimeError

    assert _text.read(Odd(), "name") == "<unreadable name>"
    assert _text.told(None) == ""
    assert _text.told(KeyError()) == "KeyError"
    assert _text.cut("ab", 1) == "a…"


async def test_many_groups():
    """Of very many groups, only those of the newest have their ends counted."""
    tally = _tally.Tally()
    async with Node("app") as app:
        app.run_worker(anyio.sleep_forever, group="first")
        tally.begin(app.snapshot())
        assert tally.groups["app", "first"].unfinished == 1
        for number in range(_tally._MOST):
            tally._group("app", str(number))
        assert len(tally.groups) == _tally._MOST
        assert ("app", "first") not in tally.groups
        app.cancel()


async def test_worker_that_was_started_elsewhere():
    """A worker that never entered its work ends like any other."""
    async with Node("app") as app, app.subscribe(*_tally.KINDS) as events:
        worker = app.run_worker(anyio.sleep_forever)
        worker.cancel()
        tally = _tally.Tally()
        tally.take(events.take_all(), 100.0, anyio.current_time())
    assert tally.ended == {worker.number: "CANCELLED"}


# over HTTP


async def test_page():
    """The page is served, and may connect to its own server only."""
    async with serve(Node("app")) as client:
        answer = await client.get("/jobs/page")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.text.startswith("<!DOCTYPE html>")


async def test_tree_over_http():
    """GET returns the whole tree, and whether the client may cancel."""
    async with serve(Node("app")) as client:
        answer = await client.get("/jobs/tree")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.json()["may_cancel"] is False
        assert answer.json()["node"] == "app"
    async with serve(Node("app"), authorize=yes) as client:
        assert (await client.get("/jobs/tree")).json()["may_cancel"] is True


@pytest.mark.parametrize("by_server", [True, False])
async def test_stream_over_http(hurry, by_server):
    """The stream begins with the whole tree and ends when the server or the node does."""
    node = Node("app")
    answers = []
    async with anyio.create_task_group() as tasks, serve(node) as client:

        async def listen():
            answers.append(await client.get("/jobs/tree/events"))

        tasks.start_soon(listen)
        await until(lambda: any(each.name == "page" for each in node.workers))
        await settle(50)
        if by_server:
            _page.closing_of(node).close()
        else:
            await node.shutdown()
        await until(lambda: answers)
    events = [line for line in answers[0].text.split("\n") if line.startswith("event:")]
    assert (events[0], events[-1]) == ("event: tree", "event: end")


async def test_tree_of_a_node_that_is_closed():
    """The tree of a closed node is gone."""
    node = Node("app")
    async with serve(node) as client:
        await node.shutdown()
        for path in ("tree", "tree/events"):
            answer = await client.get(f"/jobs/{path}")
            assert answer.status_code == 503
            assert "app" in answer.json()["detail"]


async def test_cancel_over_http():
    """A worker of the tree can be cancelled with a reason, if that is allowed."""
    async with Node("root") as root:
        app = Node("app", parent=root)
        async with serve_below(app) as client:
            outside = root.run_worker(anyio.sleep_forever)
            worker = app.run_worker(anyio.sleep_forever)

            async def cancel(number, body):
                return await client.post(f"/jobs/workers/{number}/cancel", json=body)

            answer = await cancel(worker.number, {"reason": "too slow"})
            assert answer.status_code == 202
            assert answer.json() == {"number": worker.number, "is_cancelled": True}
            await worker.join()
            assert worker.cancel_reason == "too slow"
            for number in (worker.number, outside.number, 0, -1, "x", 10**30):
                answer = await cancel(number, {})
                assert answer.status_code == 404, number
            assert (await client.post("/jobs/workers/1/cancel")).status_code == 415
            other = app.run_worker(anyio.sleep_forever)
            assert (await cancel(other.number, {})).status_code == 202
            assert other.cancel_reason == "by somebody at the page"
            outside.cancel()


@asynccontextmanager
async def serve_below(node):
    app = Starlette(routes=routes(Jobs(node), page=True, authorize=yes))
    async with node:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client
            node.cancel()


async def test_attempts_are_told(hurry):
    """The attempts of a worker that is restarted are sent."""
    async with Node("app") as app, viewing(app) as page:

        async def work():
            get_current_worker().restarted(ValueError())
            await anyio.sleep_forever()

        worker = app.run_worker(work)
        await until(lambda: page.workers.get(worker.number, {}).get("attempt") == 2)
        worker.cancel()
