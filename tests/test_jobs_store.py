"""SQLiteStore: the history of jobs in a file."""

from __future__ import annotations

import json
import logging
import sqlite3
import subprocess
import sys
from dataclasses import replace

import anyio
import pytest
from anyio import lowlevel

from creche import Node
from creche.jobs import Jobs, SQLiteStore, StoreError, _jobs, _sqlite
from helpers import run_python, told


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jobs.db"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """Retry failed writes without a pause."""
    monkeypatch.setattr(_sqlite, "_PAUSE", 0.0)


def make(number):
    """Create the status of a job."""
    return replace(_jobs._new_status("me"), id=f"{number:032x}", kind=f"kind {number}")


def let_write(store):
    """Wait until all pending writes have succeeded or failed."""
    writer = store._writer
    if writer is not None:
        writer.join()


def forbid(store, *, writes):
    """Make SQLite refuse writes, as if the file were read-only."""
    store._connection.execute(f"PRAGMA query_only = {writes}")


PROGRAM = """
import sys, anyio
from anyio import lowlevel
from creche import Node
from creche.jobs import Jobs, SQLiteStore

async def work():
    await lowlevel.checkpoint()
    return 1

async def main():
    with SQLiteStore(sys.argv[1]) as store:
        async with Node("app") as app:
            jobs = Jobs(app, store=store)
            for job in jobs.list():
                print(job.status.kind, job.status.status)
            await jobs.submit(work, name=sys.argv[2]).join()

anyio.run(main)
"""


async def one():
    await lowlevel.checkpoint()
    return 1


def test_programs_in_turn(path):
    """Each program finds the history of the programs before it, even if they did not close it."""
    program = PROGRAM.replace("with SQLiteStore(sys.argv[1]) as store:", "for _ in [1]:").replace(
        "store=store", "store=SQLiteStore(sys.argv[1])"
    )
    for number, code in enumerate((PROGRAM, program, PROGRAM)):
        done = run_python(code, str(path), f"run-{number}", warnings="error::DeprecationWarning")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.split("\n")[:-1] == [f"run-{each} succeeded" for each in range(number)]


def test_one_program_at_a_time(path):
    """A second program cannot open the file until the first one has closed it."""
    with SQLiteStore(path) as store:
        store.put(make(1))
        done = run_python(PROGRAM, str(path), "x")
        assert done.returncode == 1
        assert done.stderr.endswith(
            "cannot be opened: another program uses it; a history has one program at a time\n"
        )
    assert run_python(PROGRAM, str(path), "x").returncode == 0


KILLED = """
import sys
from creche.jobs import SQLiteStore, _jobs
from dataclasses import replace

store = SQLiteStore(sys.argv[1])
number = 0
while True:
    status = replace(_jobs._new_status(None), kind=str(number))
    store.put(status)
    store.put(replace(status, status="running"))
    number += 1
    if store._writer is None or number % 50 == 0:
        print(number, flush=True)
"""


def run_killed(path, lines):
    """Run a program that writes, and kill it once it has reported some lines."""
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as program:
        for _ in range(lines):
            program.stdout.readline()
        program.kill()


@pytest.mark.parametrize("lines", [1, 3, 20])
async def test_program_that_is_killed(path, lines):
    """After a kill the file opens again, and its unfinished jobs are "interrupted"."""
    run_killed(path, lines)
    with SQLiteStore(path) as store:
        async with Node("app") as app:
            jobs = Jobs(app, keep=10**6, store=store)
            found = jobs.list()
            assert {job.status.status for job in found} <= {"interrupted"}
            kinds = sorted(int(job.status.kind) for job in found)
            assert kinds == list(range(len(kinds)))  # no gaps: writes keep their order
    with SQLiteStore(path) as store:
        assert {each.status for each in store.list()} <= {"interrupted"}


def test_put_and_delete(path):
    """Jobs are listed in the order of their first put(). The file no longer has deleted ones."""
    a, b, c = (make(number) for number in range(3))
    with SQLiteStore(str(path)) as store:
        for each in (a, b, c):
            store.put(each)
        a = replace(a, message="on its way")
        store.put(a)
        store.delete(b.id)
        store.delete("unknown")
        assert store.list() == (a, c)
        assert store.get(a.id) == a
        assert store.get(b.id) is None
        let_write(store)
        b = replace(b, kind="again")
        store.put(b)
    with SQLiteStore(path) as store:
        assert store.list() == (a, c, b)
        store.delete(c.id)
    with SQLiteStore(path) as store:
        assert store.list() == (a, b)


def test_closed(path):
    """A closed store can be closed again and read. put() and delete() raise StoreError."""
    store = SQLiteStore(path)
    store.put(make(1))
    store.close()
    store.close()
    assert store.list() == (make_as(store, 1),)
    for call in (lambda: store.put(make(2)), lambda: store.delete("x")):
        with pytest.raises(StoreError, match=r"jobs\.db' was closed; open it again$"):
            call()


def make_as(store, number):
    return store.get(f"{number:032x}")


def test_cannot_be_written(path, caplog):
    """A failed write is logged once. The data is written once that works again, or at close()."""
    with SQLiteStore(path) as store:
        store.put(make(1))
        let_write(store)
        forbid(store, writes=True)
        for number in range(2, 5):
            store.put(make(number))
            let_write(store)
        store.delete(make(1).id)
        let_write(store)
        assert len(store.list()) == 3
        (record,) = told(caplog)
        assert record.levelno == logging.ERROR
        assert "cannot be written: attempt to write a readonly database" in record.getMessage()
        forbid(store, writes=False)
        store.put(make(5))
        let_write(store)
        assert told(caplog)[-1].getMessage().endswith("jobs.db' can be written again")
        kept = store.list()
        forbid(store, writes=True)
        store.delete(kept[0].id)
        let_write(store)
        forbid(store, writes=False)
    with SQLiteStore(path) as store:
        assert store.list() == kept[1:]


def test_attempts_are_made_now_and_then(path, monkeypatch, caplog):
    """After a failed write, the store pauses before it tries again."""
    monkeypatch.setattr(_sqlite, "_PAUSE", 1e9)
    with SQLiteStore(path) as store:
        forbid(store, writes=True)
        store.put(make(1))
        let_write(store)
        forbid(store, writes=False)
        store.put(make(2))
        assert store._writer is None
    assert len(told(caplog)) == 2
    with SQLiteStore(path) as store:
        assert len(store.list()) == 2


def test_full(path, caplog):
    """A full disk is logged too, and leaves the file unchanged."""
    with SQLiteStore(path) as store:
        store.put(make(1))
        let_write(store)
        store._connection.execute("PRAGMA max_page_count = 4")
        store.put(replace(make(2), message="x" * 100_000))
        let_write(store)
        assert "database or disk is full" in told(caplog)[0].getMessage()
        assert store.get(make(2).id) is not None
        written = store._connection.execute("SELECT id FROM jobs").fetchall()
        assert written == [(make(1).id,)]
        store.delete(make(2).id)  # close() would try to write it once more
    with SQLiteStore(path) as store:
        assert [each.kind for each in store.list()] == ["kind 1"]


async def test_jobs_go_on(path):
    """Jobs finish normally even if the store cannot be written."""
    with SQLiteStore(path) as store:
        forbid(store, writes=True)
        async with Node("app") as app:
            jobs = Jobs(app, store=store)
            job = jobs.submit(one)
            assert await job.result() == 1
            assert jobs.get(job.id).status.done


@pytest.mark.parametrize("how", ["shutdown", "cancel"])
async def test_ends_with_the_node_are_written(path, how):
    """All ends are in the file when the node has closed: uvicorn may then kill its process."""
    store = SQLiteStore(path)
    async with Node("app") as app:
        jobs = Jobs(app, store=store)
        for _ in range(3):
            jobs.submit(anyio.sleep_forever)
        if how == "shutdown":
            await app.shutdown()
        else:
            app.cancel()
    assert store._writer is None
    rows = store._connection.execute("SELECT status FROM jobs").fetchall()
    assert [json.loads(row)["status"] for (row,) in rows] == ["cancelled"] * 3
    store.close()


def test_cannot_be_opened(path, tmp_path):
    """A file that cannot be opened raises StoreError at once and is not changed."""
    with pytest.raises(StoreError, match=r"cannot be opened: unable to open database file$"):
        SQLiteStore(tmp_path / "absent" / "jobs.db")
    assert list(tmp_path.iterdir()) == []
    path.write_text("Dear diary, " * 1_000)
    with pytest.raises(StoreError, match=r"cannot be opened: file is not a database$"):
        SQLiteStore(path)
    assert path.read_text() == "Dear diary, " * 1_000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("row", ["{}", "no JSON", '{"id": 5}'])
def test_rows_of_others(path, row):
    """A row that is not a status raises StoreError."""
    SQLiteStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO jobs (id, status) VALUES ('x', ?)", (row,))
    connection.close()
    with pytest.raises(StoreError, match="cannot be opened"):
        SQLiteStore(path)


def test_another_version(path):
    """A table of another version is refused."""
    SQLiteStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(StoreError, match=r"of version 2, not 1.; use another file$"):
        SQLiteStore(path)
