"""The pieces that a worker is, or once was, made of: the instructions that each takes by itself.

Their names are those in ``docs/performance.md``. The result is the difference between a loop with
the piece and one without; only ``--instructions`` measures it.
"""

from __future__ import annotations

import enum
import inspect
from contextvars import copy_context
from functools import partial
from typing import Any

import anyio
from anyio import lowlevel
from scenarios import Case, Scenario, measure
from ways import Way

from creche import Node, Worker, WorkerState
from creche._core.parts import lock  # private, but one of the pieces that are measured


class Colour(enum.Enum):
    """A plain enumeration."""

    RED = 1


class Alike(enum.Enum):
    """An enumeration whose members are hashed by identity, like those of ``WorkerState``."""

    RED = 1
    __hash__ = object.__hash__


async def nothing():
    """Do nothing."""


def _empty():
    pass


async def through():
    """Call another coroutine function."""
    await nothing()


class Hearing(Node):
    def on_worker_state_changed(self, event):
        pass


def _pieces(node):
    """Return functions that run one piece each, by name."""
    clock = node._creche_nursery.clock
    made = Worker(node, nothing)
    message = Worker.StateChanged(made, WorkerState.PENDING)
    plain, alike = {Colour.RED: 1}, {Alike.RED: 1}

    def heard():
        return node._creche_nursery.watcher.probe.has_heard()

    def locked():
        with lock:
            pass

    return {
        "make a Worker": lambda: Worker(node, nothing),
        "make a Worker[Any]": lambda: Worker[Any](node, nothing),
        "copy_context()": copy_context,
        "the loop's clock": clock,
        "anyio.current_time()": anyio.current_time,
        "anyio.current_effective_deadline()": anyio.current_effective_deadline,
        "the cancel probe": heard,
        "a lock, taken and left": locked,
        "a state found in a dict": lambda: alike[Alike.RED],
        "an Enum found in a dict": lambda: plain[Colour.RED],
        "make a StateChanged": partial(Worker.StateChanged, made, WorkerState.PENDING),
        "a message to a handler": partial(node.post_message, message),
        "inspect.isawaitable()": partial(inspect.isawaitable, None),
    }


async def run_piece(_way, _jobs, name, amount):
    """Run one piece again and again."""
    if name == "a coroutine called by another":
        for _ in range(amount):
            await through()
        return
    if name == "a coroutine":
        for _ in range(amount):
            await nothing()
        return
    async with Hearing("pieces") as node:
        await lowlevel.checkpoint()
        piece = _pieces(node).get(name, _empty)
        for _ in range(amount):
            piece()


def scenario(loops):
    """Return the scenario."""
    pieces = ["nothing", *_pieces(Hearing("names"))]
    names = [*pieces, "a coroutine", "a coroutine called by another"]

    def make(name, loop):
        return Case(name, loop, 1, lambda amount: measure(Way(), loop, run_piece, name, amount))

    title = "pieces of a worker; a call of nothing, which is in each of them, is the first"
    return Scenario("parts", title, (), [make(name, loop) for loop in loops for name in names])
