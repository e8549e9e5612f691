"""What is measured: cases, the scenarios that they form, and what they are held against."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    import trio
except ImportError:
    trio = None

SMALLEST = "itself at the smallest size"
"""To be held against: the same way on the same loop, at the first of the sizes."""


@dataclass(frozen=True)
class Case:
    """One way on one loop, in one size."""

    way: str
    loop: str
    size: int
    run: Callable[..., float] = field(compare=False)
    """Measure once; gives seconds a job, or bytes a job, or whatever the scenario is about. Takes
    an amount, in place of that of the scenario, to count the instructions of more or less."""

    module: str = ""
    """Where the way is, for a process that imports no other."""

    @property
    def key(self):
        """What stands for the case on a command line."""
        return f"{self.way}/{self.loop}/{self.size}"


@dataclass
class Scenario:
    """Cases that are measured in turn, and the ways that they are held against."""

    name: str
    title: str
    against: tuple[str, ...]
    cases: list[Case]
    own_process: bool = False
    """Whether each measurement has a process of its own, as those of memory need."""
    unit: str = ""
    """The unit of what is shown as it is; times are not shown, only their ratios."""
    rounds: int = 0
    """How many rounds at most, 0 for as many as are asked for."""

    def base_of(self, case: Case, name: str) -> Case | None:
        """Find what a case is held against."""
        for other in self.cases:
            if other.loop != case.loop:
                continue
            if name == SMALLEST and other.way == case.way:
                return other
            if other.way == name and other.size == case.size:
                return other
        return None


class Jobs:
    """The jobs that are run, in the terms of one loop, so that no library has a part in them."""

    def __init__(self, loop):
        self._is_trio = loop == "trio"
        self.sleeps = self._sleeps_on_trio if self._is_trio else self._sleeps_on_asyncio
        self.forever = trio.sleep_forever if self._is_trio else self._forever

    @staticmethod
    async def returns():
        pass

    @staticmethod
    async def _sleeps_on_asyncio():
        await asyncio.sleep(0)

    @staticmethod
    async def _sleeps_on_trio():
        await trio.sleep(0)

    @staticmethod
    async def _forever():
        await asyncio.get_running_loop().create_future()

    async def settle(self):
        """Let all that is ready have its turn, several times."""
        for _ in range(10):
            await self.sleeps()


def measure(kind, loop, scenario, args, options):
    """Run one measurement on an event loop of its own."""

    async def main():
        async with kind.host():
            return await scenario(kind(**options), Jobs(loop), *args)

    backend = "trio" if loop == "trio" else "asyncio"
    return anyio.run(
        main,
        backend=backend,
        backend_options={"use_uvloop": True} if loop == "uvloop" else {},
    )


def each(ways, loops, scenario, sizes, *args, needs, repeats=None, **options):
    """Make the cases of all ways that have what is needed, on all loops, in all sizes.

    Args:
        ways: The ways.
        loops: The loops there are.
        scenario: ``async def scenario(way, jobs, size, *args)``, which gives what it measured.
        sizes: The sizes.
        args: More arguments for it.
        needs: The methods that a way must have.
        repeats: How often to do it in one size; the last argument, if given, and the amount.
        options: Arguments for the way.
    """

    def make(kind, loop, size):
        def run(amount=None):
            if repeats is not None:
                return measure(kind, loop, scenario, (size, amount or repeats), options)
            return measure(kind, loop, scenario, (amount or size, *args), options)

        return Case(kind.name, loop, size, run, kind.__module__.removeprefix("ways."))

    return [
        make(kind, loop, size)
        for size in sizes
        for loop in loops
        for kind in ways
        if loop in kind.loops and all(hasattr(kind(), need) for need in needs)
    ]
