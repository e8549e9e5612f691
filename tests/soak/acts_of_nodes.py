"""What actors do with the tree of nodes, messages and subscriptions."""

from __future__ import annotations

import contextlib

import anyio
from jobs import open_block, run_job
from table import LOOP, SIGNAL, act
from world import Ping, Poke

from creche import Message, Worker, WorkerError

# the tree


@act(1, "blocks")
async def block(actor, node):
    """Open a child node in this task."""
    if actor.world.can_have_node():
        await open_block(actor, actor.world.new_node(actor.rng, node))


@act(1, "blocks", LOOP)
def block_elsewhere(actor, node):
    """Open a child node in a task outside of all nodes."""
    if actor.world.can_have_node():
        actor.world.spawn(actor, open_block, actor.world.new_node(actor.rng, node))


@act(0.3, "unopened", LOOP)
def unopened(actor, node):
    """Create a node that is never opened."""
    if actor.world.can_have_node():
        actor.world.new_node(actor.rng, node if actor.chance(0.5) else None)


@act(1, "mount")
async def mount(actor, node):
    if not actor.world.can_have_node():
        return
    child = actor.world.new_node(actor.rng)
    for _ in range(actor.rng.choice((0, 0, 2))):
        run_job(actor, child, start=False)
    await node.mount(child)
    actor.world.mounted.append(child)


@act(0.7, "mount")
async def remove(actor, node):
    if not actor.world.mounted:
        return
    child = actor.rng.choice(actor.world.mounted)
    if actor.chance(0.3):
        child.cancel("ends by itself")
        return
    with anyio.CancelScope() as scope:
        if actor.chance(0.3):
            scope.deadline = anyio.current_time() + actor.rng.uniform(0, 0.01)
        await child.remove()
        actor.world.books.check_left(child)


# messages and subscriptions


@act(2, "messages", SIGNAL)
def post(actor, node):
    deed = actor.rng.choice(("nothing", "nothing", "act"))
    kind = Poke if "handler_workers" in actor.world.enabled and actor.chance(0.3) else Ping
    message = kind(actor.world.books.next(), deed)
    me = actor.me if actor.place == "thread" else None
    was_cancelled = me is not None and me.is_cancelled
    is_taken = node.post_message(message)
    actor.world.note(f"  message {message.number} to {node!r}: {is_taken}")
    if was_cancelled and node.was_opened:
        actor.world.books.fail(f"post_message() of {me!r}, which was cancelled, gave {is_taken}")
    if is_taken and kind is Ping:
        actor.world.books.posted(node, message, me)


@act(0.7, "readers", LOOP)
def listen(actor, node):
    actor.world.spawn(actor, _read, node)


async def _read(actor, node):
    """Read the events of a node, slowly and perhaps not to the end."""
    kind = actor.rng.choice((Message, Worker.StateChanged, Worker.ProgressChanged))
    left = actor.rng.choice((3, 30, 10_000))
    events = []
    with anyio.CancelScope() as scope, contextlib.suppress(WorkerError):
        if not node.was_opened or actor.chance(0.3):  # otherwise it ends with the node
            scope.deadline = anyio.current_time() + actor.rng.uniform(0, 0.05)
        async with node.subscribe(kind, tree=actor.chance(0.5)) as stream:
            async for event in stream:
                events.append(event)
                left -= 1
                if not left:
                    break
                if actor.chance(0.2):
                    await actor.nap()
    changes = [event for event in events if isinstance(event, Worker.StateChanged)]
    actor.world.books.check_events(node, changes, where=f"a reader of {node.path}", complete=False)
