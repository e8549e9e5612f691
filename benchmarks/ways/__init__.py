"""The ways of running background work that are compared, one module a library.

A way runs jobs in the idiom of its library; its block ends when all of them have. What a library
has no idiom for, its way does not have, and is left out of the scenarios that ask for it::

    start(job, count)           start jobs; returns what stands for each
    start_each(job, count)      the same, so that each can be cancelled by itself
    start_handled(job, count)   the same, and have a function called at each end
    start_watched(job, count)   the same, and somebody watches
    start_limited(job, count)   at most ``limit`` run at once, the others wait
    cancel_all(), cancel_group(), cancel_each(handles)
    start_others(job, count)    each in a group of its own
    replace(job)                start exclusively, which cancels the one before
    run_thread(call), run_threads(call, count)
    advance(count)              progress updates of one job
"""

from __future__ import annotations

import importlib
import importlib.util
from contextlib import asynccontextmanager

MODULES = (
    "raw_asyncio",
    "raw_trio",
    "on_anyio",
    "on_creche",
    "on_creche_watched",
    "on_textual",
    "on_aiojobs",
    "on_aiotools",
    "on_aioresult",
    "on_quattro",
)
PACKAGES = {"asyncio": "asyncio", "uvloop": "uvloop", "trio": "trio"}
"""The loops, and the package that each needs."""


class Way:
    """One way of running jobs; entered once, as a block."""

    name = ""
    loops: tuple[str, ...] = ("asyncio",)

    def __init__(self, limit=None):
        self.limit = limit
        """How many of the jobs of ``start_limited()`` may run at once."""

    @classmethod
    @asynccontextmanager
    async def host(cls):
        """Set up what a program has once, and what is not measured."""
        yield

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        return None

    def __getattr__(self, name):
        if name == "start_each":
            return self.start
        raise AttributeError(name)


def load(modules=MODULES):
    """Import what is installed.

    Args:
        modules: What to import.

    Returns:
        The ways, the loops, and a line about each thing that is left out.
    """
    ways, left_out = [], []
    for name in modules:
        try:
            module = importlib.import_module(f"ways.{name}")
        except ImportError as error:
            left_out.append(f"{name} is left out: {error}")
        else:
            ways.extend(module.WAYS)
    loops = [loop for loop, package in PACKAGES.items() if importlib.util.find_spec(package)]
    left_out += [f"{loop} is left out: not installed" for loop in PACKAGES if loop not in loops]
    return ways, loops, left_out
