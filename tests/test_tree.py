"""The tree as data and as text: what it contains, and how long it may get."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading

import anyio
import pytest

import creche
from creche import Node, Worker, WorkerError, WorkerState, format_tree
from creche._core.snapshot import take
from creche._looking.format import SHOWN
from helpers import Meeting, run_python, settle, until

WIDTH = 80


def pictures(node):
    """Return the snapshots of all workers below a node, by name."""
    snapshot = node.snapshot() if isinstance(node, Node) else node
    own = {each.name: each for group in snapshot.groups for each in group.workers}
    for child in snapshot.children:
        own.update(pictures(child))
    return own


async def places(node, name):
    """Return the functions on the stack of a worker, outermost first."""
    await settle()
    snapshot = node.snapshot(stacks=True)
    return [frame.function.rpartition(".")[2] for frame in pictures(snapshot)[name].stack]


# the data


async def test_a_snapshot_tells_of_nodes_groups_and_workers():
    """A snapshot contains all nodes below, their groups and the unfinished workers in them."""
    async with Node("app") as app:
        files = app.group("files", limit=1, overflow="enqueue")
        first = files.run_worker(anyio.sleep_forever, name="first", description="reads")
        files.run_worker(anyio.sleep_forever, name="second", daemon=True)
        files.run_worker(anyio.sleep_forever, name="third")
        first.update(completed_steps=1, total_steps=4)
        app.run_worker(anyio.sleep_forever, name="later", start=False)
        page = await app.mount(Node("page"))
        page.run_worker(anyio.sleep_forever, name="shown")
        await settle()
        taken = app.snapshot()
        app.cancel()
    assert (taken.name, taken.path, taken.life) == ("app", "app", "open")
    assert (taken.is_cancelled, taken.cancel_reason, taken.opened_by) == (False, None, None)
    group, other = taken.groups
    assert dataclasses.replace(group, workers=()) == creche.GroupSnapshot(
        name="files", limit=1, overflow="enqueue", running=1, queued=2, workers=()
    )
    told = group.workers[0]
    assert 0 <= told.elapsed <= told.age < 60
    assert told == creche.WorkerSnapshot(
        number=told.number,
        name="first",
        description="reads",
        state="RUNNING",
        is_cancelled=False,
        cancel_reason=None,
        is_started=True,
        is_queued=False,
        queue_position=None,
        thread=False,
        where="",
        daemon=False,
        age=told.age,
        elapsed=told.elapsed,
        progress=25.0,
        completed_steps=1,
        total_steps=4,
        attempt=1,
        is_ready=None,
        is_stalled=False,
        waits_for=(),
        stack=None,
    )
    second, third = group.workers[1:]
    assert (second.number, third.number) == (told.number + 1, told.number + 2)
    assert [each.queue_position for each in group.workers] == [None, 1, 2]
    assert (second.state, second.is_queued, second.daemon) == ("PENDING", True, True)
    assert (third.is_queued, third.daemon, third.elapsed) == (True, False, 0.0)
    assert [(each.name, each.is_started) for each in other.workers] == [("later", False)]
    (child,) = taken.children
    assert (child.path, [each.name for each in child.groups[0].workers]) == ("app/page", ["shown"])


async def test_a_snapshot_is_plain_data():
    """The ``asdict()`` of a snapshot, stacks included, can be written as JSON."""
    pytest.importorskip("stackscope")
    async with Node("app") as app:
        app.run_worker(anyio.sleep_forever).update(total_steps=3)
        await settle()
        taken = dataclasses.asdict(app.snapshot(stacks=True))
        app.cancel(reason=OSError("gone"))
        gone = app.snapshot()
    assert taken["groups"][0]["workers"][0]["stack"][0]["function"].endswith("sleep_forever")
    assert json.loads(json.dumps(taken)) == json.loads(json.dumps(taken, default=str))
    assert gone.is_cancelled
    assert gone.cancel_reason == "gone"
    with pytest.raises(dataclasses.FrozenInstanceError):
        gone.name = "other"


async def test_the_queue_is_counted_without_those_that_were_cancelled():
    """The place in the queue does not count workers that were cancelled."""
    async with Node("app") as app:
        app.group("files", limit=1)
        for name in "abcde":
            app.run_worker(anyio.sleep_forever, name=name, group="files")
        (waiting,) = (each for each in app.group("files") if each.name == "b")
        waiting.cancel()
        found = {name: each.queue_position for name, each in pictures(app).items()}
        app.cancel()
    assert found == {"a": None, "c": 1, "d": 2, "e": 3}


async def test_who_waits_for_whom():
    """A snapshot names the unfinished workers that a worker waits for, and what opened a node."""
    async with Node("app") as app:
        first = app.run_worker(anyio.sleep_forever, name="first")
        second = app.run_worker(anyio.lowlevel.checkpoint, name="second")

        async def wait():
            await app.workers.wait_for_complete([second, first])

        async def open_page():
            async with Node("page", parent=app):
                await anyio.sleep_forever()

        app.run_worker(wait)
        app.run_worker(open_page, group="pages")
        await until(lambda: second.is_finished)
        await settle()
        taken = app.snapshot()
        text = format_tree(app)
        app.cancel()
    assert "  node page: open, opened by app/pages/open_page\n" in f"{text}\n"
    assert pictures(taken)["wait"].waits_for == ("app/default/first",)
    assert taken.children[0].opened_by == "app/pages/open_page"


async def test_a_worker_without_a_name_is_called_after_its_class():
    """A worker without a name is called after its class, in the snapshot and in its task."""

    class Fetch(Worker):
        async def run(self):
            names.append(anyio.get_current_task().name)
            await anyio.sleep_forever()

    names = []
    async with Node("app") as app:
        app.workers.add_worker(Fetch(app))
        await until(lambda: names)
        assert list(pictures(app)) == ["Fetch"]
        app.cancel()
    assert names == ["app/default/Fetch"]


async def test_a_snapshot_of_a_node_that_is_not_open():
    """Before a node opens, its workers are listed without an age. A closed node lists nothing."""
    app = Node("app")
    app.run_worker(anyio.sleep_forever, name="early", start=False)
    before = app.snapshot()
    assert before.life == "not open yet"
    assert pictures(before)["early"].age is None
    async with app:
        assert 0 <= pictures(app)["early"].age < 60
        assert 0 <= anyio.current_time() - next(iter(app.workers)).created_at < 60
    after = app.snapshot()
    assert (after.life, after.groups, after.children) == ("closed", (), ())


def test_a_worker_that_was_made_before_there_was_a_loop(backend):
    """A worker made before the event loop runs has an age from the time its node opens."""
    app = Node("app")
    app.run_worker(anyio.sleep_forever, name="early", start=False)

    async def main():
        async with app:
            assert 0 <= pictures(app)["early"].age < 60

    anyio.run(main, **backend)


async def test_a_snapshot_from_a_thread():
    """snapshot() in a worker's thread returns the snapshot that the event loop takes."""
    async with Node("app") as app:
        app.run_worker(anyio.sleep_forever, name="forever")
        worker = app.run_worker(lambda: (threading.get_ident(), app.snapshot()), "w", thread=True)
        ident, taken = await worker
        app.cancel()
    assert ident != threading.get_ident()
    assert {name: each.state for name, each in pictures(taken).items()} == {
        "forever": "RUNNING",
        "w": "RUNNING",
    }


async def test_a_snapshot_holds_nothing_alive():
    """A snapshot holds no reference to any object of the tree."""
    async with Node("app") as app:
        app.run_worker(anyio.sleep_forever).cancel(reason=app)
        taken = dataclasses.asdict(app.snapshot())
        app.cancel()

    def values(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list | tuple):
            return {type(value), *(kind for each in value for kind in values(each))}
        return {type(value)}

    assert values(taken) <= {list, tuple, str, int, float, bool, type(None)}


# stacks


async def test_where_a_task_stands():
    """A stack leads from the work to the innermost frame outside the event loop's own code."""
    pytest.importorskip("stackscope")

    async def produce():
        yield 1
        await inner()

    async def inner():
        await anyio.sleep_forever()

    async def work():
        async for _ in produce():
            pass

    async with Node("app") as app:
        app.run_worker(work)
        assert await places(app, "work") == ["work", "produce", "inner", "sleep_forever"]
        frame = pictures(app.snapshot(stacks=True))["work"].stack[2]
        app.cancel()
    assert frame.file == __file__
    assert frame.code == "await anyio.sleep_forever()"


async def test_where_a_thread_stands():
    """The stack of a thread worker is the stack of its thread."""
    pytest.importorskip("stackscope")
    meeting = Meeting()

    def inner():
        meeting()

    def work():
        inner()

    async with Node("app") as app:
        app.run_worker(work, thread=True)
        await meeting.until_arrived()
        found = await places(app, "work")
        meeting.go.set()
    assert found[:3] == ["work", "inner", "__call__"]


async def test_where_async_work_in_a_thread_stands():
    """The stack of async work in a thread is the stack of its task in that thread's event loop."""
    pytest.importorskip("stackscope")
    begun = threading.Event()

    async def inner():
        begun.set()
        await anyio.sleep_forever()

    async def work():
        await inner()

    async with Node("app") as app:
        app.run_worker(work, thread=True)
        await anyio.to_thread.run_sync(begun.wait, 10)
        found = []
        while found != ["work", "inner", "sleep_forever"]:
            found = await places(app, "work")
        app.cancel()


async def test_where_those_stand_that_do_not_run():
    """A task that has not started has an empty stack, and a queued worker has none."""
    pytest.importorskip("stackscope")
    async with Node("app") as app:
        group = app.group("files", limit=1)
        group.run_worker(anyio.sleep_forever, name="begins")
        group.run_worker(anyio.sleep_forever, name="queued")
        taken = pictures(app.snapshot(stacks=True))
        app.cancel()
    assert taken["begins"].stack == ()
    assert taken["queued"].stack is None


async def test_a_worker_that_asks_is_in_the_picture():
    """A worker can read its own stack."""
    pytest.importorskip("stackscope")
    found = []

    async def work():
        found.extend(frame.function for frame in pictures(app.snapshot(stacks=True))["work"].stack)

    async with Node("app") as app:
        app.run_worker(work)
    assert [each.rpartition(".")[2] for each in found] == ["work"]


@pytest.mark.parametrize("missing", ["snapshot", "format_tree"])
async def test_stacks_need_an_extra(monkeypatch, missing):
    """Without stackscope, asking for stacks raises an error that says what to install."""
    monkeypatch.setitem(sys.modules, "stackscope", None)
    creche._running.stacks._library.cache_clear()
    async with Node("app") as app:
        ask = {"snapshot": app.snapshot, "format_tree": lambda **how: format_tree(app, **how)}
        assert ask[missing]() is not None
        with pytest.raises(ImportError, match=r"pip install 'creche\[stacks\]'"):
            ask[missing](stacks=True)


def test_the_library_for_stacks_is_quiet():
    """Reading stacks emits no warning, although stackscope emits one when it is first used."""
    pytest.importorskip("stackscope")
    program = (
        "import anyio, creche\n"
        "async def main():\n"
        "    async with creche.Node('app') as app: print(creche.format_tree(app, stacks=True))\n"
        "anyio.run(main)"
    )
    done = run_python(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "node app: open\n", "")


# the names of tasks


async def test_tasks_are_named_after_their_workers(anyio_backend):
    """A task is called ``path/group/name``, both in AnyIO and in its backend."""

    async def work():
        names.append(anyio.get_current_task().name)
        if anyio_backend[0] == "trio":
            import trio  # noqa: PLC0415 (absent where asyncio alone is tested)

            names.append(trio.lowlevel.current_task().name)
        else:
            import asyncio  # noqa: PLC0415 (for symmetry)

            names.append(asyncio.current_task().get_name())

    names = []
    async with Node("app") as app, Node("page", parent=app) as page:
        page.run_worker(work, group="files")
    assert names == ["app/page/files/work"] * 2


async def test_other_tasks_are_named_after_their_nodes():
    """Tasks of a node that run no worker have names that say what they do."""

    class App(Node):
        def on_worker_state_changed(self, _):
            names.append(anyio.get_current_task().name)
            names.extend(task.name for task in anyio.get_running_tasks())

    names = []
    async with App("app") as app:
        await app.mount(Node("page"))
        app.run_worker(anyio.lowlevel.checkpoint)
    assert names[0] == "handlers of node 'app'"
    assert {"watcher of node 'app'", "watcher of node 'app/page'", "app/page"} <= set(names)


# the text


def without_times(text):
    """Replace the seconds, which differ from run to run."""
    import re  # noqa: PLC0415 (only needed here)

    return re.sub(r"\d+\.\d s", "N s", text)


async def test_a_tree_in_text():
    """Each node, group and worker gets a line with its state."""
    meeting = Meeting()
    limiter = anyio.CapacityLimiter(1)
    async with Node("app") as app:
        files = app.group("files", limit=2)
        for name in "abcdef":
            files.run_worker(anyio.sleep_forever, name=name)
        app.run_worker(meeting, "stuck", thread=True, limiter=limiter)
        await meeting.until_arrived()
        app.run_worker(meeting, "next", thread=True, limiter=limiter)
        other = app.run_worker(anyio.sleep_forever, name="other", daemon=True)
        app.run_worker(other.wait, "waiter", description="waits, mostly")
        app.run_worker(anyio.sleep_forever, name="later", start=False)
        await settle()
        other.update(completed_steps=3, total_steps=12)
        for worker in app.workers:
            if worker.name == "stuck":
                worker.advance(5)
                worker.cancel("too late")
        page = await app.mount(Node("page"))
        page.run_worker(anyio.sleep_forever, name="starts")
        text = format_tree(app)
        meeting.go.set()
        app.cancel("over")
        assert format_tree(app).startswith("node app: open, being cancelled (over)\n")
    assert (
        without_times(text)
        == """\
node app: open
  group files: 2 of 2 running, 4 queued, enqueue
    a: running, N s
    b: running, N s
    c: queued at place 1, N s
    d: queued at place 2, N s
    e: queued at place 3, N s
    1 more queued
  group default: 4 running
    stuck: running, N s, being cancelled (too late), 5 steps, thread
    other: running, N s, 25 % (3/12), daemon
    waiter: running, N s, waits for app/default/other, "waits, mostly"
    next: waiting for a thread, N s, thread
    later: not started, N s
  node page: open
    group default: 1 running
      starts: starting, N s"""
    )
    assert format_tree(app).startswith("node app: closed, was cancelled (over)\n")


async def test_a_tree_of_ten_thousand_fits_on_a_page():
    """Some of many workers, groups and nodes are shown, and the others are counted."""
    async with Node("app") as app:
        app.group("files", limit=100)
        everyone = [app.run_worker(anyio.sleep_forever, group="files") for _ in range(10_000)]
        for number in range(30):
            app.group(f"group {number}")
        for number in range(25):
            Node(f"node {number}", parent=app).run_worker(anyio.sleep_forever, start=False)
        app.run_worker(lambda: app.workers.wait_for_complete(everyone), "all", group="group 0")
        await settle()
        lines = format_tree(app).splitlines()
        app.cancel()
    assert "    80 more running" in lines
    assert "    9897 more queued" in lines
    assert "  11 more groups" in lines
    assert "  5 more nodes" in lines
    assert len(lines) < 150
    assert max(len(line) for line in lines) <= WIDTH
    (waiter,) = (number for number, line in enumerate(lines) if line.startswith("    all: "))
    assert "and 9997 more" in " ".join(lines[waiter : waiter + 3])


async def test_stacks_in_text():
    """With stacks, each worker is followed by its frames, the innermost twenty at most."""
    pytest.importorskip("stackscope")

    async def deep(levels):
        if levels:
            await deep(levels - 1)
        await anyio.sleep_forever()

    async with Node("app") as app:
        app.run_worker(lambda: deep(30), "deep")
        app.run_worker(lambda: deep(0), "shallow")
        await settle()
        text = format_tree(app, stacks=True)
        app.cancel()
    first, second = text.split("    shallow: ")
    assert "    deep: running, " in first
    assert "\n      12 outer places\n" in first
    assert first.count(" in deep: await deep(levels - 1)\n") == 18
    assert first.count(" in deep: await anyio.sleep_forever()\n") == 1
    assert first.endswith(" in sleep_forever: await sleep(math.inf)\n")
    assert len(second.splitlines()) == 3


async def test_stacks_are_read_of_those_that_are_shown():
    """The text reads stacks only for the workers it shows. The snapshot has them all."""
    pytest.importorskip("stackscope")
    async with Node("app") as app:
        for number in range(25):
            app.run_worker(anyio.sleep_forever, name=f"worker {number}")
        await settle()
        shown = take(app, stacks=True, most=SHOWN).groups[0].workers
        everyone = app.snapshot(stacks=True).groups[0].workers
        app.cancel()
    assert [each.stack is not None for each in shown] == [True] * 20 + [False] * 5
    assert all(each.stack for each in everyone)


async def test_texts_cannot_spoil_the_picture():
    """Control characters, line breaks, long texts and deep trees are kept within 80 columns."""
    async with Node("app\n\x1b[2J") as app:
        node = app
        for _ in range(40):
            node = await node.mount(Node("n" * 100))
        node.run_worker(anyio.sleep_forever, name="x" * 1000, description="word " * 1000)
        text = format_tree(app)
        app.cancel()
    assert "\x1b" not in text
    assert text.splitlines()[0] == "node app  [2J: open"
    assert max(len(line) for line in text.splitlines()) <= WIDTH


async def test_an_adapter_is_in_the_picture():
    """A worker that runs elsewhere is shown as running."""
    async with Node("app") as app:
        worker = app.run_worker(anyio.sleep_forever, name="elsewhere", start=False)
        worker.state = WorkerState.RUNNING
        assert "elsewhere: running" in format_tree(app)


def test_only_nodes_have_a_tree():
    """An argument that is not a node is refused."""
    with pytest.raises(WorkerError, match=r"^format_tree\(\) takes a Node, not 'app'$"):
        format_tree("app")


def test_stacks_are_read_without_a_collection_in_the_midst():
    """No garbage collection runs while stacks are read.

    If it freed a ``threading.local`` then, CPython 3.11 would hang.
    """
    program = """if True:
        import faulthandler, gc, sys, threading
        from creche._running.stacks import current_frames

        faulthandler.dump_traceback_later(30, exit=True)
        go, here = threading.Event(), threading.Barrier(31)

        def stay():
            here.wait()
            go.wait()

        class Loop:
            pass

        for _ in range(30):
            threading.Thread(target=stay).start()
        here.wait()
        gc.collect()
        for _ in range(20):
            loop = Loop()
            loop.itself, loop.local = loop, threading.local()
            loop.local.set = True
        gc.set_threshold(gc.get_count()[0] + 10)  # so that it comes with the tenth of the frames
        frames = current_frames()
        go.set()
        print(len(frames) > 30, gc.isenabled())
        gc.disable()
        current_frames()
        print(gc.isenabled())
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True", "True", "False"], done.stderr
