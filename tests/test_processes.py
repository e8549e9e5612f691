"""Work in Creche's own processes: they are killed when cancelled, crash, and end with the tree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import anyio
import pytest

import farwork
from creche import Node, WorkerCrashed, WorkerError, format_tree
from creche._core.late import report_on
from creche._running import processes
from creche.ways import Processes
from helpers import CANCELLED, ERROR, PENDING, RUNNING, SUCCESS, Listener, settle, until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Processes() is not for Windows")


def is_alive(pid):
    """Return whether a process exists, including one that has died and was not waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def descriptors():
    """Return the pipes of this process; a cluster of other tests may open and close sockets."""
    links = [
        str(each.readlink()) for each in list(Path("/proc/self/fd").iterdir()) if each.exists()
    ]
    return {link for link in links if link.startswith("pipe:")}


def has_died(pid):
    """Return whether a process has died, even if its parent has not waited for it."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


@pytest.fixture
def sign(tmp_path):
    """A file that work in a process creates to show that it is running."""
    return tmp_path / "runs"


async def begun(app, call, sign, **options):
    worker = app.run_worker(call, **options)
    await until(sign.exists)
    return worker


async def test_cancel_kills(sign):
    """Work that ignores cancellation is killed with its process. The next work gets a new one."""
    way = Processes(1)
    async with Listener() as app:
        before = await app.run_worker(farwork.pid, where=way)
        worker = await begun(app, partial(farwork.ignore, sign), sign, where=way)
        worker.cancel()
        await worker.join()
        assert not is_alive(before)
        after = await app.run_worker(farwork.pid, where=way)
    assert app.told_of(worker) == [PENDING, RUNNING, CANCELLED]
    assert after != before
    assert not is_alive(after)


async def test_grace(sign):
    """Cancelled work may end by itself within the grace period. After it, the work is killed."""
    async with Node("app") as app:
        gentle = Processes(1, grace=30)
        giver = partial(farwork.give_when_cancelled, sign, "left")
        worker = await begun(app, giver, sign, where=gentle)
        worker.cancel()
        await worker.join()
        assert worker.result == ("left", True, None)
        sign.unlink()
        stubborn = await begun(
            app, partial(farwork.ignore, sign), sign, where=Processes(1, grace=0.01)
        )
        stubborn.cancel()
        await stubborn.join()
    assert stubborn.state is CANCELLED


@pytest.mark.parametrize(
    ("work", "code", "told"),
    [
        (farwork.segfault, -signal.SIGSEGV, "was killed by SIGSEGV in string_at() at "),
        (farwork.leave_at_once, 3, "has ended by itself with exit code 3 in leave_at_once() at "),
        (farwork.kill_itself, -signal.SIGKILL, "for want of memory"),
        (
            partial(farwork.kill_itself, signal.SIGTERM),
            -signal.SIGTERM,
            "was killed by SIGTERM in kill_itself() at ",
        ),
        (
            partial(farwork.kill_itself, signal.SIGRTMIN + 3),
            -(signal.SIGRTMIN + 3),
            f"was killed by signal {signal.SIGRTMIN + 3}",
        ),
    ],
    ids=["segfault", "exit", "kill", "term", "real-time"],
)
async def test_crash(work, code, told):
    """A process that dies causes a single error, which says how it ended and where it was."""
    way = Processes(1)
    async with Node("app", exit_on_error=False) as app:
        crashed = app.run_worker(work, "breaks", where=way)
        after = app.run_worker(partial(farwork.add, 1, 2), where=way)
        assert await after == 3
    assert crashed.state is ERROR
    assert isinstance(crashed.error, WorkerCrashed)
    assert crashed.error.exitcode == code
    assert str(crashed.error).startswith("worker 'breaks' crashed: process ")
    assert told in str(crashed.error)


async def test_process_that_hangs_up(monkeypatch):
    """A process that closes its connection is killed unless it ends by itself."""
    monkeypatch.setattr(processes, "_PATIENCE", 1)
    way = Processes(1)
    async with Node("app", exit_on_error=False) as app:
        gone = await app.run_worker(farwork.hang_up, where=way).join()
        killed = await app.run_worker(farwork.hang_up_and_stay, where=way).join()
    assert isinstance(gone.error, WorkerCrashed)
    assert gone.error.exitcode == 1
    assert isinstance(killed.error, WorkerCrashed)
    assert killed.error.exitcode == -signal.SIGKILL


async def test_node_left_while_a_process_starts():
    """A node may be left while a process is starting. The process is not left behind."""
    before = descriptors()
    async with Node("app") as app:
        worker = app.run_worker(farwork.pid, where=Processes(2))
        await until(lambda: worker._thread.is_waiting)
        await settle(2)
        worker.cancel()
        assert worker.state is CANCELLED
    assert descriptors() <= before


async def test_process_that_is_gone_as_it_is_given_work(monkeypatch):
    """A process that turns out to be gone when it is given work is replaced."""
    say, broken = processes._Process._say, [True]

    async def break_once(process, kind, told):
        if kind == processes.child.JOB and broken:
            broken.pop()
            raise BrokenPipeError
        await say(process, kind, told)

    monkeypatch.setattr(processes._Process, "_say", break_once)
    async with Node("app") as app:
        assert await app.run_worker(partial(farwork.add, 1, 2), where=Processes(1)) == 3
    assert not broken


async def test_long_value():
    """A value that arrives in many pieces is complete."""
    async with Node("app") as app:
        assert await app.run_worker(partial(bytes, 3_000_000), where=Processes(1)) == bytes(
            3_000_000
        )


async def test_process_that_cannot_be_started(monkeypatch):
    """Work for which no process can be started ends as ERROR without having been RUNNING."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    async with Listener(exit_on_error=False) as app:
        worker = await app.run_worker(farwork.pid, where=Processes(1)).join()
    assert app.told_of(worker) == [PENDING, ERROR]
    assert "no process can be started: FileNotFoundError" in str(worker.error)


@pytest.mark.parametrize("fault", ["it has ended already", "an argument that cannot be sent"])
async def test_process_that_cannot_be_set_up(monkeypatch, fault):
    """A process that was started but cannot be set up leaves nothing behind."""
    started = []
    open_process = anyio.open_process

    async def start(*arguments, **options):
        started.append(await open_process(*arguments, **options))
        if fault == "it has ended already":
            started[0].kill()
            await started[0].wait()
        return started[0]

    monkeypatch.setattr(anyio, "open_process", start)
    if fault != "it has ended already":
        monkeypatch.setattr(sys, "argv", [lambda: None])
    before = descriptors()
    async with Node("app", exit_on_error=False) as app:
        worker = await app.run_worker(farwork.pid, where=Processes(1)).join()
    assert "no process can be started: " in str(worker.error)
    assert descriptors() <= before
    assert [process.returncode for process in started] == [-signal.SIGKILL]


async def test_process_that_died_idle():
    """A process that has died while it was idle is replaced."""
    way = Processes(1)
    async with Node("app") as app:
        pid = await app.run_worker(farwork.pid, where=way)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not is_alive(pid))
        assert await app.run_worker(farwork.pid, where=way) != pid


async def test_waiting_for_a_process(sign, tmp_path):
    """Work that waits for a process is PENDING and queued, and can be cancelled at once."""
    way = Processes(1)
    gate = tmp_path / "gate"
    async with Listener() as app:
        holder = await begun(app, partial(farwork.hold, sign, gate), sign, where=way)
        first = app.run_worker(farwork.pid, where=way)
        second = app.run_worker(farwork.pid, where=way)
        await until(lambda: second.is_queued)
        assert first.is_queued
        assert "waiting to begin elsewhere" in format_tree(app)
        second.cancel()
        assert second.state is CANCELLED
        gate.touch()
        await first
    assert holder.state is SUCCESS
    assert app.told_of(second) == [PENDING, CANCELLED]


async def test_cancelled_while_it_is_sent():
    """Work that is cancelled while it is being sent does not run, and does not harm later work."""
    way = Processes(1)
    async with Listener() as app:
        pid = await app.run_worker(farwork.pid, where=way)
        os.kill(pid, signal.SIGSTOP)
        long = app.run_worker(partial(len, bytes(10_000_000)), where=way)
        await until(lambda: long._thread.is_handed_over)
        await settle()
        long.cancel()
        await long.join()
        assert await app.run_worker(partial(farwork.add, 1, 2), where=way) == 3
    assert app.told_of(long) == [PENDING, CANCELLED]
    assert has_died(pid)


async def test_processes_are_those_of_a_tree():
    """The nodes of a tree share processes. Another tree has its own. All end with their tree."""
    way = Processes(2)
    async with Node("one") as one, Node("child", parent=one) as child:
        pids = {await node.run_worker(farwork.pid, where=way) for node in (one, child, one)}
        async with Node("two") as two:
            pids.add(await two.run_worker(farwork.pid, where=way))
        assert len(pids) == 2
    assert not any(map(is_alive, pids))


async def test_node_that_fails(sign):
    """A node that fails leaves no process behind."""
    with pytest.raises(Exception, match="unhandled errors"):
        async with Node("app") as app:
            await begun(app, partial(farwork.ignore, sign), sign, where=Processes(2))
            pid = await app.run_worker(farwork.pid, where=Processes(1))
            app.run_worker(partial(farwork.fail, "burnt"), where=Processes(1))
    assert not is_alive(pid)


async def test_idle():
    """A process ends when it has been idle for a while. With ``idle=0``, it runs one job."""
    async with Node("app") as app:
        once = Processes(1, idle=0)
        pids = [await app.run_worker(farwork.pid, where=once) for _ in range(2)]
        assert len(set(pids)) == 2
        soon = Processes(1, idle=0.001)
        pid = await app.run_worker(farwork.pid, where=soon)
        await until(lambda: not is_alive(pid))
        assert await app.run_worker(farwork.pid, where=soon) != pid


async def test_where_it_runs_is_told(sign):
    """The report of a late end, and the tree as text, say in which process the work runs."""
    async with Node("app") as app:
        worker = await begun(app, partial(farwork.ignore, sign), sign, where=Processes(1))
        assert f", in {worker.where}" in report_on([worker])
        assert worker.where in format_tree(app)
        worker.cancel()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": 0}, "size must be 1 or more, or None, not 0"),
        ({"size": "2"}, "size must be 1 or more, or None, not '2'"),
        ({"grace": -1}, "grace must be 0 seconds or more, not -1"),
        ({"idle": "no"}, "idle must be 0 seconds or more, not 'no'"),
    ],
)
def test_options(options, told):
    """Invalid options are refused."""
    with pytest.raises(WorkerError, match=told):
        Processes(**options)


GUARDED = """
import anyio, os, sys
from creche import Node
from creche.ways import Processes

class Item:
    pass

def work(item):
    return type(item).__module__, item, os.getpid()

async def main():
    async with Node("app") as app:
        from functools import partial
        module, item, pid = await app.run_worker(partial(work, Item()), where=Processes(1))
        assert type(item) is Item
        assert pid != os.getpid()
        print("done")

"""


def run_program(tmp_path, program, *arguments, **options):
    path = tmp_path / "program.py"
    path.write_text(program)
    return subprocess.run(
        [sys.executable, "-W", "error", str(path), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


def test_main_module(tmp_path):
    """Work and values of the main module can be sent if the code it runs is under a guard."""
    ended = run_program(tmp_path, GUARDED + 'if __name__ == "__main__":\n    anyio.run(main)')
    assert (ended.stdout, ended.stderr) == ("done\n", "")


def test_main_module_without_guard(tmp_path):
    """A main module without a guard is an error that says what to do."""
    ended = run_program(tmp_path, GUARDED + "anyio.run(main)")
    assert ended.returncode == 1
    assert 'put what the program runs under if __name__ == "__main__":' in ended.stderr
    assert "cannot enter node 'app' as a process" in ended.stderr


def test_main_module_by_name(tmp_path):
    """A main module that is run with ``-m`` is imported by its name."""
    (tmp_path / "program.py").write_text(
        GUARDED + 'if __name__ == "__main__":\n    anyio.run(main)'
    )
    ended = subprocess.run(
        [sys.executable, "-m", "program"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=60,
    )
    assert (ended.stdout, ended.stderr) == ("done\n", "")


def test_nothing_outlives_the_program(tmp_path):
    """When the program is killed, its processes end by themselves, whether busy or idle."""
    program = """
import anyio, os, sys, farwork
from functools import partial
from creche import Node
from creche.ways import Processes
async def main():
    async with Node("app") as app:
        way = Processes(2)
        print(await app.run_worker(farwork.pid, where=way))
        worker = app.run_worker(partial(farwork.ignore, "runs"), where=Processes(1))
        while not os.path.exists("runs"):
            await anyio.sleep(0.01)
        print(worker.where.split()[1], flush=True)
        os.kill(os.getpid(), 9)
if __name__ == "__main__":
    anyio.run(main)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = run_program(tmp_path, program, cwd=tmp_path, env=environment)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    pids = [int(pid) for pid in ended.stdout.split()]
    assert len(pids) == 2
    gone = threading.Event()
    for _ in range(1000):
        if all(map(has_died, pids)):
            break
        gone.wait(0.01)
    else:
        pytest.fail("a process has outlived its program")
