"""The far side of work that runs elsewhere, tested within this process."""

from __future__ import annotations

import contextlib
import logging
import pickle
import socket
import sys
import threading
from functools import partial

import anyio
import pytest

import farwork
from creche import Node, RemoteError, WorkerCancelled, WorkerError
from creche._core import resources
from creche._running import child, far, line, wire
from creche.ways import Far
from helpers import run_python, until

AWAY = (0, b"another interpreter")


def make(work, send=lambda _: None, *, level=0, home=AWAY, **options):
    told = ("far", "group", "", "app/group/far", "worker 'far'", "asyncio")
    head = wire.Head(*told, level, home, {})
    return Far(wire.pack_job(work, head, "worker 'far'"), send, **options)


def opened(outcome):
    return wire.open_outcome(*wire.read_outcome(outcome), "worker 'far'")


@contextlib.contextmanager
def own_process(monkeypatch):
    """Make this process look as if logging had not been set up."""
    root, level = logging.getLogger(), logging.getLogger().level
    with monkeypatch.context() as patch:
        patch.setattr(root, "handlers", [])
        patch.setattr(far, "_handler", None)
        yield
    root.setLevel(level)


def test_far_tells_what_it_is():
    """The repr of a Far shows the path of its worker."""
    assert repr(make(int)) == "<Far 'app/group/far'>"


def test_steps_are_set_and_checked():
    """Steps are set like those of a worker, and only numbers are accepted."""
    one = make(int)
    one.update(3, 12)
    assert (one.completed_steps, one.total_steps, one.progress) == (3, 12, 25.0)
    one.update(total_steps=None, description="counts")
    assert (one.total_steps, one.description) == (None, "counts")
    for wrong in ({"completed_steps": "3"}, {"description": 3}):
        with pytest.raises(WorkerError):
            one.update(**wrong)
    with pytest.raises(WorkerError):
        one.advance("3")


def test_steps_are_not_told_after_the_end():
    """Steps made after the outcome was sent are not sent home."""
    sent = []
    one = make(int, sent.append, begun=True)
    assert opened(one.run()) == 0
    one.advance()
    one._tell_late()
    assert sent == []


def test_home_that_is_gone():
    """Work that cannot report its steps home is cancelled."""

    def send(message):
        raise OSError("gone")

    one = make(farwork.advance_and_check, send, begun=True)
    with pytest.raises(WorkerCancelled, match="was cancelled: home cannot be reached: gone"):
        opened(one.run())


def test_home_that_cannot_be_asked():
    """Work that cannot ask home whether to begin does not begin."""

    def send(message):
        raise OSError("gone")

    with pytest.raises(WorkerError, match="was not begun, as this process cannot be reached"):
        opened(make(farwork.pid, send).run())


def test_stop_before_and_after():
    """A callback added after a cancellation is called at once, and the first reason counts."""
    called, one = [], make(int)
    one.check_cancelled()
    one.stop("first")
    one.stop("second")
    one._on_stop(partial(called.append, 1))
    assert called == [1]
    assert one.cancel_reason == "first"
    with pytest.raises(WorkerCancelled, match="worker 'far' was cancelled: first"):
        one.check_cancelled()


def test_run_never_raises(monkeypatch):
    """run() returns a fault of the library as an outcome too."""
    one = make(int)
    monkeypatch.setattr(one, "_run", partial(farwork.fail, "ours"))
    with pytest.raises(ValueError, match="ours"):
        opened(one.run())


def test_coroutine_that_is_not_awaited(monkeypatch):
    """A coroutine for which there is no event loop is closed."""
    module = __import__("creche._running.own_loop", fromlist=["x"])
    monkeypatch.setattr(module, "on_own_loop", lambda *_: farwork.fail("no loop"))
    with pytest.raises(ValueError, match="no loop"):
        opened(make(partial(farwork.add_later, 1, 2), begun=True).run())


@pytest.mark.parametrize("level", [logging.INFO, logging.ERROR])
def test_records(monkeypatch, level):
    """Log records are sent home from a process where logging was not set up, at home's level."""
    sent = []
    work = partial(farwork.write_log, "news")
    with own_process(monkeypatch):
        opened(make(work, sent.append, level=level, begun=True).run())
    messages = [wire.read_message(message) for message in sent]
    assert {kind for kind, _ in messages} == {"log"}
    *informed, failed = [record for _, record in messages]
    assert [each["msg"] for each in informed] == ["here is news"] * (level == logging.INFO)
    assert "ValueError: news" in failed["exc_text"]


def test_records_of_unknown_work(monkeypatch):
    """A log record of a thread that may belong to several workers is not sent home."""
    sent = []
    one, other = (make(int, sent.append) for _ in range(2))
    with own_process(monkeypatch):
        with far.telling(one), far.telling(other):
            farwork.log_in_thread()
        assert sent == []
        logging.getLogger().addHandler(logging.NullHandler())
        with far.telling(one):
            farwork.log_in_thread()
    assert len(sent) == 1


def test_record_that_cannot_be_put_in_words(monkeypatch):
    """A log record whose arguments do not fit its message is passed on as far as possible."""
    sent, arguments = [], ("fit",)
    with own_process(monkeypatch), far.telling(make(int, sent.append)):
        logging.getLogger("farwork").warning("no %s %s", *arguments)
    assert wire.read_message(sent[0])[1]["msg"] == "no %s %s"


def test_records_at_home():
    """If the work runs in the interpreter of home, no log records are sent."""
    sent = []
    opened(make(farwork.log_in_thread, sent.append, home=wire.whoami(), begun=True).run())
    assert sent == []


def test_error_that_is_another_here():
    """An error whose class cannot be unpickled here arrives as text."""
    head, _ = wire.read_outcome(wire.pack_error(ValueError("burnt"), None))
    with pytest.raises(WorkerError, match=r"^ValueError: burnt$"):
        wire.open_outcome(head, b"no pickle", "worker 'far'")


def test_lost_line():
    """A job that arrives when its line is lost cannot ask home and fails."""
    here, there = socket.socketpair()
    with here, there:
        one = object.__new__(line.Line)
        vars(one).update(_fars={}, _lock=threading.Lock(), _socket=here, is_lost=True)
        one._take(1, line.GO)  # for an unknown job
        payload = wire.pack_job(int, wire.Head(*"abcdef", 0, AWAY, {}), "worker 'far'")
        with pytest.raises(WorkerError, match="cannot be reached from where it was to run"):
            opened(one.run(1, payload))


def test_child_that_is_told_to_stop_too_late():
    """A process without work ignores a cancellation."""
    here, there = socket.socketpair()
    with here, there:
        one = child.Child(here)
        one._take(child.STOP, pickle.dumps("late"))
        one._import_main()  # there is none
        assert "__main__" in sys.modules


def test_package_that_stands_in(monkeypatch):
    """The stand-in for the package imports the real one at the first access to an attribute."""
    path = child.Path(child.__file__).parent.parent / "__init__.py"
    monkeypatch.setitem(sys.modules, "creche", sys.modules["creche"])
    child.stand_in_for_package(path)
    stand_in = sys.modules["creche"]
    assert not hasattr(stand_in, "__wrapped__")
    assert stand_in.Node.__name__ == "Node"


# what engines keep


class Kept:
    """A resource that records when it runs and ends, and may fail."""

    def __init__(self, error=None):
        self.told = []
        self.error = error
        self.gate = anyio.Event()

    async def run(self):
        self.told.append("runs")
        try:
            if self.error is not None:
                raise self.error
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                self.told.append("ends")
                await self.gate.wait()


async def test_resource_goes_with_its_root():
    """A tree has one resource for each key, which ends before the root closes."""
    kept, jobs = Kept(), []

    async def way(job):
        jobs.append(job.resource(way, lambda: kept))

    async def open_gate():
        await until(lambda: kept.told == ["runs", "ends"])
        assert resources.end_resources(app) is False
        with pytest.raises(WorkerError, match="is closing; nothing can be run elsewhere"):
            resources.get(app, way, Kept)
        kept.gate.set()

    group = anyio.create_task_group()
    async with group, Node("app") as app, Node("child", parent=app) as below:
        for node in (app, below):
            await node.run_worker(farwork.pid, where=way)
        group.start_soon(open_gate)
    assert jobs == [kept, kept]
    assert kept.told == ["runs", "ends"]
    with pytest.raises(WorkerError, match="is closed; nothing can be made for it"):
        resources.get(app, way, Kept)


async def test_resource_that_fails():
    """A resource that fails also fails its root."""
    kept = Kept(ValueError("broken"))
    kept.gate.set()

    async def way(job):
        job.resource(way, lambda: kept)
        await anyio.sleep_forever()

    with pytest.raises(Exception) as caught:
        async with Node("app") as app:
            app.run_worker(farwork.pid, where=way)
    assert caught.value.exceptions == (kept.error,)


async def test_resource_that_is_cancelled_natively(anyio_backend_name):
    """A native cancellation ends a resource and causes no failure."""
    if anyio_backend_name == "trio":
        pytest.skip("Trio has no native cancellation of a task")
    import asyncio  # noqa: PLC0415 (of this backend)

    kept = Kept()
    kept.gate.set()

    async def way(job):
        job.resource(way, lambda: kept)

    async with Node("app") as app:
        await app.run_worker(farwork.pid, where=way)
        await until(lambda: kept.told == ["runs"])
        next(each for each in asyncio.all_tasks() if each.get_name().startswith("app: ")).cancel()
        await until(lambda: not app._creche_resources)
    assert kept.told == ["runs", "ends"]


async def test_resource_that_is_cancelled_natively_before_it_runs(anyio_backend_name):
    """A native cancellation before a resource has begun fails its node, which does not hang."""
    if anyio_backend_name == "trio":
        pytest.skip("Trio has no native cancellation of a task")
    import asyncio  # noqa: PLC0415 (of this backend)

    kept = Kept()

    async def way(job):
        job.resource(way, lambda: kept)
        next(each for each in asyncio.all_tasks() if each.get_name().startswith("app: ")).cancel()
        await anyio.sleep_forever()

    with pytest.raises(
        WorkerError, match=r"native Task.cancel\(\) hit a task of node 'app' before"
    ):
        async with Node("app") as app:
            app.run_worker(farwork.pid, where=way)
    assert kept.told == []


FAILS_AT_ONCE = """
import logging, sys
import anyio
from creche import Node

class Kept:
    async def run(self):
        await anyio.sleep_forever()

async def way(job):
    job.resource(way, Kept)
    raise ValueError

async def main():
    try:
        async with Node() as app:
            first, second = (app.run_worker(int, where=way) for _ in range(2))
            await first
    except Exception as error:
        ends.append(type(error).__name__)

logging.disable()
ends = []
for _ in range(20):  # Trio draws which task is first
    anyio.run(main, backend=sys.argv[1])
print(set(ends))
"""


def test_resource_of_a_node_that_fails_at_once(anyio_backend_name):
    """If a node fails before its resource has begun, both end."""
    ran = run_python(FAILS_AT_ONCE, anyio_backend_name)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "{'ExceptionGroup'}\n", "")


class Odd(Exception):
    """An error that unpickles as another class."""

    def __reduce__(self):
        return ValueError, ("odd",)


def test_error_that_becomes_another():
    """An error that unpickles as another class arrives as text."""
    with pytest.raises(RemoteError) as told:
        raise opened(wire.pack_error(Odd("this"), None))
    assert (told.value.type_name.rpartition(".")[2], told.value.text) == ("Odd", "this")


def test_function_of_the_main_module(monkeypatch):
    """A decorated function of the main module is found there after that module was prepared."""
    prepared = []
    monkeypatch.setattr(wire, "prepare_main", partial(prepared.append, 1))
    monkeypatch.setattr(sys.modules["__main__"], "decorated", farwork.App.twice, raising=False)
    assert wire._unwrap("__mp_main__", "decorated", 1) is farwork.App.twice.__wrapped__
    assert prepared == [1]
