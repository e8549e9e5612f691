"""Growth: what an item costs at a tenth of the full size, and how much more at the full size.

``python benchmarks/grows.py [NAME ...]`` runs all scenarios, which takes some minutes, or those
named. ``--size 1000000`` sets another size. A growth of 1.0 is linear: an item costs the same among
ten times as many. Processor caches alone can make it up to 2; code that walks over all items for
each of them would make it 10.

The times are CPU times, the least of some rounds in which both sizes take turns. The garbage
collector is off, as its cost depends on everything else that is alive. A step that should take the
same time at any size is repeated once for each item.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from time import process_time

import anyio
import trio
from anyio import lowlevel
from rich.console import Console

from creche import Message, Node, Worker, format_tree
from creche.board import live_board

LOOPS = ("asyncio", "trio")
ROUNDS = 2
TURNS = 5
"""Iterations of the event loop after which everything that was started runs."""
forever = {"asyncio": partial(asyncio.sleep, 1e6), "trio": trio.sleep_forever}


class Steps:
    """The seconds of each step of one run; ``with steps("open"): ...`` adds to them."""

    def __init__(self, loop):
        self.sleep = forever[loop]
        self.spent = {}

    @contextmanager
    def __call__(self, name):
        begun = process_time()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + process_time() - begun


async def settle():
    """Let everything happen that is ready."""
    for _ in range(TURNS):
        await lowlevel.checkpoint()


async def _look(node, steps):
    """Run the steps that look at all workers of a tree."""
    every = list(node.workers)
    with steps("iterate"):
        list(node.workers)
    with steps("len, ten times"):
        for _ in range(10):
            len(node.workers)
    with steps("in, for one in a hundred"):
        for worker in every[::100]:
            assert worker in node.workers
    with steps("snapshot"):
        node.snapshot()


async def groups(size, steps):
    """Workers each in a group of its own, none of them started."""
    async with Node("app") as app:
        with steps("add"):
            for number in range(size):
                app.run_worker(steps.sleep, group=f"group {number}", start=False)
        await _look(app, steps)
        with steps("cancel"):
            app.cancel()


async def interleaved(size, steps):
    """Workers of a hundred groups in turn, so that the order within a group is not that of all."""
    async with Node("app") as app:
        for number in range(size):
            app.run_worker(steps.sleep, group=f"group {number % 100}", start=False)
        with steps("iterate"):
            list(app.workers)


async def workers(size, steps):
    """Workers of one group that all sleep."""
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(Node("app"))
        with steps("add"):
            for _ in range(size):
                app.run_worker(steps.sleep)
        await settle()
        await _look(app, steps)
        with steps("cancel"):
            app.cancel()
            await stack.aclose()


async def queued(size, steps):
    """Workers that wait for the only slot of a group."""
    async with Node("app") as app:
        group = app.group("one", limit=1)
        with steps("add"):
            for _ in range(size):
                group.run_worker(steps.sleep)
        await settle()
        with steps("iterate"):
            list(group)
        with steps("snapshot"):
            app.snapshot()
        with steps("cancel"):
            group.cancel()
            await settle()


async def _nothing():
    pass


async def in_turn(size, steps):
    """Workers that return, and get the ten slots of a group one after another."""
    async with Node("app") as app:
        group = app.group("ten", limit=10)
        for _ in range(size):
            group.run_worker(_nothing)
        with steps("run"):
            while group.queued:
                await lowlevel.checkpoint()


async def heard(size, steps):
    """A worker with callbacks and subscriptions of its own, all of which learn of its end."""
    async with Node("app") as app, AsyncExitStack() as stack:
        worker = app.run_worker(steps.sleep)
        await settle()
        with steps("add callbacks"):
            for _ in range(size):
                worker.add_done_callback(id)
        with steps("subscribe"):
            for _ in range(size):
                await stack.enter_async_context(worker.subscribe())
        with steps("end"):
            worker.cancel()
            await settle()


async def _sleep_in(node, ready, gate):
    async with node:
        ready.append(node)
        await gate.wait()


async def siblings(size, steps):
    """Children of one node, with blocks in tasks of their own, that are cancelled."""
    async with anyio.create_task_group() as tasks:
        with steps("close"):
            async with Node("app") as app:
                ready = []
                with steps("open"):
                    for number in range(size):
                        child = Node(f"n{number}", parent=app)
                        tasks.start_soon(_sleep_in, child, ready, anyio.Event())
                    while len(ready) < size:
                        await lowlevel.checkpoint()
                with steps("look"):
                    app.snapshot()
                    assert len(app.children) == size
                with steps("cancel"):
                    app.cancel()


async def siblings_in_turn(size, steps):
    """Children of a node that is being left, with blocks in tasks of their own, left in turn."""
    gates = [anyio.Event() for _ in range(size)]

    async def leave():
        for gate in gates:
            gate.set()
            await settle()

    async with anyio.create_task_group() as tasks:
        with steps("all"):
            async with Node("app") as app:
                ready = []
                for number, gate in enumerate(gates):
                    tasks.start_soon(_sleep_in, Node(f"n{number}", parent=app), ready, gate)
                while len(ready) < size:
                    await lowlevel.checkpoint()
                tasks.start_soon(leave)


async def blocks(size, steps):
    """Children of one node, whose blocks are all entered by one worker."""

    async def work():
        with steps("close"):
            async with AsyncExitStack() as stack:
                with steps("open"):
                    for number in range(size):
                        await stack.enter_async_context(Node(f"n{number}", parent=app))

    async with Node("app") as app:
        app.run_worker(work)


async def mounted(size, steps):
    """Nodes mounted on one node."""
    with steps("close"):
        async with Node("app") as app:
            with steps("open"):
                for number in range(size):
                    await app.mount(Node(f"n{number}"))
            with steps("remove a tenth"):
                for child in app.children[: size // 10]:
                    await child.remove()


async def chain(size, steps):
    """Nodes each opened in the block of the one before."""
    await _chain(size, steps, _enter)


async def chain_mounted(size, steps):
    """Nodes each mounted on the one before."""
    await _chain(size, steps, _mount)


async def _enter(stack, name, above):
    return await stack.enter_async_context(Node(name, parent=above))


async def _mount(_stack, name, above):
    return await above.mount(Node(name))


async def _chain(size, steps, descend):
    stack = AsyncExitStack()
    with steps("open"):
        node = app = await stack.enter_async_context(Node("app"))
        for number in range(size):
            node = await descend(stack, f"n{number}", node)
    with steps("look"):
        app.snapshot()
        format_tree(app)
    with steps("cancel"):
        app.cancel()
    with steps("close"):
        await stack.aclose()


async def waited(size, steps):
    """Workers that are all waited for, and then end."""
    for is_group in (True, False):
        gate = anyio.Event()
        async with Node("app") as app:
            wait = app.group("default").wait if is_group else app.workers.wait_for_complete
            for _ in range(size):
                app.run_worker(gate.wait)
            await settle()
            async with anyio.create_task_group() as tasks:
                with steps("wait, twice"):
                    tasks.start_soon(wait)
                    await settle()
                    gate.set()
                    await settle()


async def holders(size, steps):
    """Workers that hold the slots of a group; all but one wait for workers queued there."""

    async def work(number):
        await gates[number].wait()
        with suppress(anyio.get_cancelled_exc_class()):
            await queue[number].wait()

    gates = [anyio.Event() for _ in range(size + 1)]
    async with Node("app") as app:
        group = app.group("all", limit=size + 1)
        for number in range(size + 1):
            group.run_worker(partial(work, number))
        await settle()
        queue = [group.run_worker(steps.sleep) for _ in range(size)]
        with steps("wait"):
            for gate in gates[:size]:
                gate.set()
            await settle()
        app.cancel()


async def wait_chain(size, steps):
    """Workers that each wait for the one before; the last one waits first."""

    async def work(number):
        await gates[number].wait()
        await made[number - 1].wait()

    gates = [anyio.Event() for _ in range(size)]
    async with Node("app") as app:
        made = [app.run_worker(partial(work, number)) for number in range(size)]
        await settle()
        with steps("wait"):
            for gate in reversed(gates[1:]):
                gate.set()
            await settle()
        app.cancel()


async def unwinding(size, steps):
    """Exclusive starts while all superseded workers are still unwinding."""
    gate = anyio.Event()

    async def slow():
        try:
            await steps.sleep()
        finally:
            with anyio.CancelScope(shield=True):
                await gate.wait()

    async with Node("app") as app:
        with steps("exclusive"):
            for _ in range(size):
                app.run_worker(slow, group="search", exclusive=True)
                await lowlevel.checkpoint()
        group = app.group("restart", size, overflow="restart")
        for _ in range(size):
            group.run_worker(slow)
        await settle()
        with steps("restart"):
            for _ in range(size):
                group.run_worker(slow)
                await lowlevel.checkpoint()
        gate.set()
        app.cancel()


async def board(size, steps):
    """A board of many workers in one group, then each in a group of its own."""
    for name in ("group", "groups"):
        console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
        async with Node("app") as app:
            for number in range(size):
                app.run_worker(steps.sleep, group=f"g{number}" if name == "groups" else "g")
            await settle()
            quiet = Console(file=io.StringIO(), width=80, height=24)
            async with live_board(app, console=quiet) as shown:
                with steps(f"ten pictures, {name}"):
                    for _ in range(10):
                        console.print(shown)
            app.cancel()


class Said(Message):
    """A message of the program."""


async def subscriptions(size, steps):
    """Subscriptions to one node; half of them only want the program's own messages."""
    async with Node("app") as app, AsyncExitStack() as stack:
        with steps("open"):
            for number in range(size):
                wanted = Worker.StateChanged if number % 2 else Said
                await stack.enter_async_context(app.subscribe(wanted, tree=True))
        with steps("tell ten"):
            for _ in range(10):
                app.post_message(Said())
        with steps("children"):
            for number in range(5):
                async with Node(f"n{number}", parent=app) as child:
                    child.post_message(Said())
        with steps("close"):
            await stack.aclose()


async def unread(size, steps):
    """Events that are never read."""

    async def work():
        gate = anyio.Event()
        gate.set()
        await gate.wait()

    async with Node("app") as app, app.subscribe(Worker.StateChanged, Worker.ProgressChanged):
        worker = app.run_worker(steps.sleep)
        with steps("messages"):
            for _ in range(size):
                worker.advance()
        with steps("workers"):
            for _ in range(size // 10):
                app.run_worker(work)
            await settle()
        app.cancel()


SIZES = {
    groups: 100_000,
    interleaved: 100_000,
    workers: 50_000,
    queued: 1_000_000,
    in_turn: 1_000_000,
    heard: 50_000,
    siblings: 10_000,
    siblings_in_turn: 5_000,
    blocks: 10_000,
    mounted: 10_000,
    chain: 2_000,
    chain_mounted: 2_000,
    waited: 100_000,
    holders: 10_000,
    wait_chain: 10_000,
    unwinding: 3_000,
    board: 10_000,
    subscriptions: 5_000,
    unread: 1_000_000,
}
"""The scenarios, and how many items each has at full size."""


def measure(scenario, loop, size):
    """Run a scenario once, and return the seconds of each step."""
    steps = Steps(loop)
    gc.collect()
    gc.disable()
    try:
        anyio.run(scenario, size, steps, backend=loop)
    finally:
        gc.enable()
    return steps.spent


def least(runs):
    """Return the shortest time of each step."""
    return {name: min(run[name] for run in runs) for name in runs[0]}


def tell(scenario, loop, full):
    """Measure a scenario at a tenth of its size and in full, and print a line for each step."""
    tenth = full // 10
    runs = [(measure(scenario, loop, tenth), measure(scenario, loop, full)) for _ in range(ROUNDS)]
    small, large = map(least, zip(*runs, strict=True))
    for name in small:
        before, after = 1e6 * small[name] / tenth, 1e6 * large[name] / full
        print(
            f"| {scenario.__name__}: {name} | {loop} | {full:,} | {before:.2f} | {after:.2f} "
            f"| {after / before:.2f} |",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = {scenario.__name__: scenario for scenario in SIZES}
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--size", type=int, help="another full size")
    options = parser.parse_args()
    print("| what | loop | items | µs an item, of a tenth | of all | growth |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in options.names or known:
        for loop in LOOPS:
            tell(known[name], loop, options.size or SIZES[known[name]])


if __name__ == "__main__":
    main()
