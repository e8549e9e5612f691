"""Check that memory stays flat: the resident set and the numbers of live workers and nodes."""

from __future__ import annotations

import gc
import statistics
import sys
from pathlib import Path

from creche import Node, Worker

PER_CENT = 5
SLACK = 2.0  # MB
FEWEST = 12  # samples; with fewer there is no verdict


def resident():
    """Return the resident set in MB, or its peak if there is no ``/proc``."""
    try:
        import resource  # noqa: PLC0415 (not on Windows)

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize() / 1e6
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1e6 if sys.platform == "darwin" else 1e3)


class Memory:
    """Samples, taken between episodes, when nothing should be alive."""

    def __init__(self):
        self.sizes = []
        self.alive = []
        self.blocks = []

    def sample(self):
        gc.collect()
        self.blocks.append(sys.getallocatedblocks() / 1000)
        self.sizes.append(resident())
        self.alive.append(sum(isinstance(each, (Node, Worker)) for each in gc.get_objects()))

    @property
    def told(self):
        if not self.sizes:
            return "no samples"
        return (
            f"{self.sizes[-1]:.1f} MB, {self.blocks[-1]:.1f} thousand blocks, "
            f"{self.alive[-1]} workers and nodes alive"
        )

    def find_growth(self):
        """Compare the last quarter of the samples with the second. The first is warm-up."""
        quarter = len(self.sizes) // 4
        if len(self.sizes) < FEWEST:
            return []
        found = []
        for what, samples, slack in (
            ("MB resident", self.sizes, SLACK),
            ("workers and nodes alive", self.alive, 0),
            ("thousand blocks of memory in use", self.blocks, 1),
        ):
            early = statistics.median(samples[quarter : 2 * quarter])
            late = statistics.median(samples[-quarter:])
            if late > early * (1 + PER_CENT / 100) + slack:
                found.append(f"memory grows: {what} {early:.1f}, then {late:.1f}")
        return found
