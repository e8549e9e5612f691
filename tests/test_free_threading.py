"""What other threads may read and call at any time; without a GIL they do so in parallel.

These tests pass on every build. Only without a GIL do two threads run the same line at once.
"""

from __future__ import annotations

import sys
import threading

import anyio
import pytest
from anyio import lowlevel

from creche import Message, Node, WorkerState, format_tree
from helpers import run_python

THREADS = 4


async def beside_threads(churn, *calls):
    """Repeat each call in a thread of its own until ``churn()`` is done."""
    is_over = threading.Event()
    errors = []

    def repeat(call):
        try:
            call()
            while not is_over.is_set():
                call()
        except BaseException as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(anyio.to_thread.run_sync, repeat, call)
        try:
            await churn()
        finally:
            is_over.set()
    if errors:
        raise errors[0]


async def quick():
    """Return at once."""


READERS = {
    "group": lambda app: list(app.group("limited")),
    "progress": lambda app: (app.group("limited").progress, len(app.group("limited"))),
    "manager": lambda app: (list(app.workers), len(app.workers), repr(app.workers)),
    "reversed": lambda app: list(reversed(app.workers)),
    "groups": lambda app: [list(group) for group in app.groups],
    "children": lambda app: [list(child.groups) for child in app.children],
    "tree": format_tree,
}


@pytest.mark.parametrize("name", READERS)
async def test_reading_from_threads(name):
    """Threads may iterate workers, groups and nodes while these come and go."""
    async with Node("app") as app:
        limited = app.group("limited", limit=2)

        async def churn():
            for turn in range(15):
                child = await app.mount(Node(f"child{turn}"))
                for number in range(5):
                    limited.run_worker(lowlevel.checkpoint)
                    app.run_worker(lowlevel.checkpoint, group=f"{turn}.{number}")
                    child.run_worker(quick, group=f"{number}")
                await lowlevel.checkpoint()
                await child.remove()

        await beside_threads(churn, *[lambda: READERS[name](app)] * 2)


async def test_advance_from_threads():
    """No step is lost if threads advance one worker at the same time."""
    async with Node("app") as app:
        worker = app.run_worker(anyio.sleep_forever)
        begin = threading.Barrier(THREADS)

        def advance():
            begin.wait(10)
            for _ in range(30000):
                worker.advance()

        async with anyio.create_task_group() as tasks:
            for _ in range(THREADS):
                tasks.start_soon(anyio.to_thread.run_sync, advance)
        assert worker.completed_steps == THREADS * 30000
        worker.cancel()


async def test_work_and_messages_from_threads():
    """No worker, cancellation or message is lost if threads start, cancel and post concurrently."""

    class Told(Message):
        pass

    class App(Node):
        told = 0

        def on_told(self, _):
            self.told += 1

    made = []

    def run():
        for number in range(50):
            worker = app.run_worker(lowlevel.checkpoint, group=f"{number % 3}", exit_on_error=False)
            if number % 2:
                worker.cancel()
            app.post_message(Told())
            made.append(worker)

    async with App("app") as app, anyio.create_task_group() as tasks:
        for _ in range(THREADS):
            tasks.start_soon(anyio.to_thread.run_sync, run)
    assert app.told == len(made) == THREADS * 50
    assert len({worker.number for worker in made}) == len(made)
    for worker in made:
        cancelled = worker.is_cancelled
        assert worker.state is (WorkerState.CANCELLED if cancelled else WorkerState.SUCCESS)


@pytest.mark.skipif(
    not hasattr(sys, "_is_gil_enabled") or sys._is_gil_enabled(), reason="there is a GIL"
)
def test_creche_needs_no_gil():
    """Importing Creche and its backends does not enable the GIL."""
    program = (
        "import sys, creche, creche.board, creche.trace, creche.services, creche.hosting\n"
        "import creche.testing, anyio, trio\n"
        "async def main():\n async with creche.Node('app') as app: app.run_worker(anyio.sleep(0))\n"
        "anyio.run(main); anyio.run(main, backend='trio')\n"
        "print(sys._is_gil_enabled())"
    )
    done = run_python(program)
    assert done.stdout == "False\n", done.stderr
