"""The tree of a running program, as ``python -m creche tree PID`` prints it."""

from __future__ import annotations

import logging
import os
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from creche import Node, WorkerError, remote
from creche import __main__ as command
from creche.remote import read_tree, serve_tree
from helpers import run_python, told

posix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="sockets with names")
OWN = os.getpid()
PROGRAM = """
import sys, anyio
from creche import Node
from creche.remote import serve_tree

async def copy_files():
    print("ready", flush=True)
    await anyio.to_thread.run_sync(sys.stdin.read)

async def main():
    app = Node("app")
    async with serve_tree(app), app:
        app.run_worker(copy_files, description="a thousand")

anyio.run(main, backend=sys.argv[1])
"""
BUSY = """
import sys, threading, anyio
from creche import Node

async def go_on():
    print("ready", flush=True)
    reader = threading.Thread(target=sys.stdin.read)
    reader.start()
    while reader.is_alive():
        await anyio.sleep(0.001)

async def main():
    async with Node("app") as app:
        app.run_worker(go_on)

anyio.run(main, backend=sys.argv[1])
"""


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path_factory):
    """A folder for temporary files with a short path, as sockets need."""
    tmp_path_factory.getbasetemp()  # pytest's own folder stays elsewhere
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture
def hurry(monkeypatch):
    """Give up almost at once on answers that will not come."""
    monkeypatch.setattr(remote, "_PATIENCE", 0.01)


def sockets(place):
    return sorted(place.glob("creche-*/*"))


@contextmanager
def running(text, backend):
    """Run a program in another process; enter once it is ready, and end it on leaving."""
    with subprocess.Popen(
        [sys.executable, "-c", text, backend["backend"]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout.readline() == "ready\n"
        yield program
        program.communicate("", timeout=60)


def in_thread(pid=OWN):
    return anyio.to_thread.run_sync(read_tree, pid)


# with a server


@posix
def test_command(place, backend):
    """The command prints the tree of another process; the socket is gone when that has ended."""
    with running(PROGRAM, backend) as program:
        (path,) = sockets(place)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        done = subprocess.run(
            [sys.executable, "-m", "creche", "tree", str(program.pid)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (0, "")
    first, *rest = done.stdout.splitlines()
    assert first.startswith("node app: open")
    assert any("copy_files: running" in line and "a thousand" in line for line in rest)
    assert program.returncode == 0
    assert sockets(place) == []


@posix
async def test_two_trees_of_one_process():
    """All trees that a process serves are shown, in the order in which they were served."""
    async with serve_tree(Node("first")), serve_tree(Node("second")):
        said = await in_thread()
    assert said == "node first: not open yet\nnode second: not open yet\n"


@posix
async def test_who_leaves_early_disturbs_nobody(caplog):
    """A client that disconnects before the answer is ignored, and the next one is answered."""
    async with serve_tree(Node("app")):
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(os.fspath(*sockets(Path(tempfile.tempdir))))
        assert await in_thread() == "node app: not open yet\n"
    assert told(caplog) == []


@posix
async def test_a_tree_that_cannot_be_drawn_is_told_by_the_log(monkeypatch, caplog):
    """An error while answering is logged, and the program goes on."""

    def refuse(node):
        raise OSError("no tree")

    monkeypatch.setattr(remote, "format_tree", refuse)
    async with serve_tree(Node("app")):
        assert await in_thread() == ""
    (record,) = told(caplog)
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("the server of trees missed an event")


@posix
async def test_a_folder_that_is_not_private(place):
    """Both sides refuse a folder that others may enter, and a symbolic link."""
    folder = place / f"creche-{os.geteuid()}"
    elsewhere = place / "elsewhere"
    elsewhere.mkdir(0o700)
    for make in (lambda: folder.mkdir(0o700), lambda: folder.symlink_to(elsewhere)):
        make()
        if not folder.is_symlink():
            folder.chmod(0o711)
        with pytest.raises(WorkerError, match="is not a folder that this user alone can enter"):
            async with serve_tree(Node("app")):
                pass
        with (
            socket.socket(socket.AF_UNIX) as trap,
            pytest.raises(WorkerError, match="does not show its tree"),
        ):
            trap.bind(str(folder / f"{OWN}.1"))
            trap.listen()
            read_without_debugger()
        (folder / f"{OWN}.1").unlink()
        if not folder.is_symlink():
            folder.rmdir()


def read_without_debugger(pid=OWN):
    """Read the tree as on Python 3.13 or earlier, without sys.remote_exec()."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(sys, "remote_exec", raising=False)
        return read_tree(pid)


@posix
def test_a_socket_that_was_left_behind(place):
    """A socket that no server listens on any more is skipped."""
    folder = place / f"creche-{os.geteuid()}"
    folder.mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / f"{OWN}.1"))
    with pytest.raises(WorkerError) as refused:
        read_without_debugger()
    assert str(refused.value) == (
        f"process {OWN} does not show its tree; it has to use creche.remote.serve_tree(), or both "
        "it and this command have to run Python 3.14 or later"
    )


@posix
def test_a_loop_that_is_blocked(place, hurry):
    """If a process does not answer in time, the error says that its loop may be blocked."""
    folder = place / f"creche-{os.geteuid()}"
    folder.mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / f"{OWN}.1"))
        server.listen()
        with pytest.raises(WorkerError) as refused:
            read_tree(OWN)
    assert str(refused.value) == (
        f"process {OWN} has not answered for 0.01 seconds; its event loop may be blocked"
    )


@posix
def test_a_process_that_is_not_there():
    """Numbers of no process, and those that stand for process groups, are refused."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    for pid in (0, -1, 2**40, ended.pid):
        with pytest.raises(WorkerError, match=f"^there is no process {pid}$"):
            read_tree(pid)


@posix
def test_a_process_of_another_user(monkeypatch):
    """The error says that the process belongs to another user."""

    def kill(pid, number):
        assert number == 0
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    with pytest.raises(WorkerError, match="process 1 belongs to another user; run this command as"):
        read_tree(1)


async def test_misuse():
    """serve_tree() refuses what is not a node."""
    with pytest.raises(WorkerError, match=r"serve_tree\(\) takes a Node, not 'app'"):
        async with serve_tree("app"):
            pass


async def test_a_system_without_such_sockets(monkeypatch):
    """Without such sockets (Windows), both sides raise at once and no signal is sent."""
    monkeypatch.delattr(os, "geteuid", raising=False)
    monkeypatch.setattr(os, "kill", None)
    with pytest.raises(WorkerError, match="needs sockets with names, which this system does not"):
        async with serve_tree(Node("app")):
            pass
    with pytest.raises(WorkerError, match="does not show its tree"):
        read_without_debugger()


# without a server, from Python 3.14 on


@posix
@pytest.mark.skipif(sys.version_info < (3, 14), reason="new in 3.14")
def test_a_process_that_serves_nothing(backend):
    """The tree of a real process is shown, while the process goes on with its work."""
    with running(BUSY, backend) as program:
        said = read_tree(program.pid)
    assert said.startswith("node app: open")
    assert "go_on: running" in said
    assert program.returncode == 0


# without a server, sys.remote_exec() being simulated


@pytest.fixture
def attach(monkeypatch):
    """Replace ``sys.remote_exec()`` by a function that gets the text of the script."""

    def install(run):
        def remote_exec(pid, path):
            assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
            run(Path(path).read_text())

        monkeypatch.setattr(sys, "remote_exec", remote_exec, raising=False)

    return install


async def test_all_trees_of_a_process(attach):
    """All trees of a process that serves none are shown, each from its root."""
    attach(lambda script: exec(script, {}))  # noqa: S102 (our own)
    async with Node("app 12345") as app, Node("page", parent=app):
        said = await in_thread()
    lines = [line.strip() for line in said.splitlines()]
    assert any(line.startswith("node app 12345: open") for line in lines)
    assert len([line for line in lines if line.startswith("node page: open")]) == 1


def test_a_process_without_a_node(attach):
    """A process without a node is reported as such, and so is one that does not use Creche."""
    before = "import creche\n"
    after = "import threading\n[each.join() for each in threading.enumerate()[1:]]\n"

    def run(script):
        assert run_python(before + script + after, warnings="default").stderr == ""

    attach(run)
    assert read_tree(OWN) == "there is no node\n"
    before = ""
    with pytest.raises(WorkerError, match=f"^process {OWN} does not use Creche$"):
        read_tree(OWN)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(), "this user may not attach to process {}; run this command as root"),
        (RuntimeError("disabled"), "cannot attach to process {}: disabled"),
    ],
)
def test_a_process_that_may_not_be_attached_to(attach, error, message):
    """The error says why, and what to do."""

    def refuse(script):
        raise error

    attach(refuse)
    with pytest.raises(WorkerError, match=message.format(OWN)):
        read_tree(OWN)


def test_a_process_that_does_nothing(attach, hurry):
    """A process that never reaches a line of Python does not answer."""
    attach(lambda script: None)
    with pytest.raises(WorkerError, match=f"process {OWN} has not answered for 0.01 seconds"):
        read_tree(OWN)


def test_an_answer_that_comes_too_late(place):
    """If the asking process has gone, and its folder with it, the program is not disturbed."""
    remote._tell(str(place / "gone" / "tree"))


# the command


def test_the_command_tells_what_is_wrong(monkeypatch, capsys):
    """The command prints one line to stderr, and its exit status is 1."""
    monkeypatch.setattr(remote, "read_tree", lambda pid: (_ for _ in ()).throw(WorkerError("no")))
    assert command.main(["tree", "1"]) == 1
    assert capsys.readouterr() == ("", "creche: no\n")


def test_the_tree_that_cannot_be_written(monkeypatch, capsys):
    """Without standard output, the command says so and its exit status is 1."""
    monkeypatch.setattr(remote, "read_tree", lambda pid: "node app\n")
    monkeypatch.setattr(sys, "stdout", None)
    assert command.main(["tree", "1"]) == 1
    assert "creche: cannot write the tree: standard output is closed" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["tree"], ["tree", "file"], ["tree 1"], ["tree", "1", "2"]])
def test_the_tour_of_files_that_are_called_tree(tmp_path, monkeypatch, capsys, arguments):
    """Arguments other than ``tree`` and one number are paths of files for the tour."""
    monkeypatch.chdir(tmp_path)
    for name in arguments:
        (tmp_path / name).write_text("content")
    assert command.main(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(arguments)
