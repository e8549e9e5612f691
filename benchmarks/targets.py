"""The targets, and whether what was measured meets them."""

from __future__ import annotations

from dataclasses import dataclass

from cases import SMALLEST

FLOOR = "AnyIO create_task"
PREFACE = """# Baseline

What a worker of Creche costs, beside other ways of doing the same. The first of these commands made
the counts of instructions, with CPython's garbage collector off, the second times and memory, the
last those that need their full sizes; each puts what it has measured into `baseline.json` and
writes this page anew:

    python benchmarks/bench.py --instructions --baseline
    python benchmarks/bench.py --baseline
    python benchmarks/bench.py --full --baseline --only ...

This one says what a change has moved:

    python benchmarks/bench.py --instructions --compare benchmarks/baseline.json

Counts of instructions are the figures to judge by. The times are ratios, with their quartiles. They
hold the garbage collector's work too: for thousands of workers one full collection more or less.

## Targets
"""


@dataclass(frozen=True)
class Target:
    """A bound for one figure of Creche."""

    text: str
    """What is bounded, with the bound."""
    scenario: str
    bound: float
    against: str = FLOOR
    """What the ratio is taken to; ``""`` for the difference to ``plus``, or for the value."""
    plus: str = ""
    counted: bool = False
    is_growth: bool = False
    """Whether the ratio at the largest size is taken to that at the smallest."""
    size: int = 0
    """The size that is asked for; at a smaller one it is not known yet whether it is met."""
    why: str = ""
    """The reason, should it not be met, and what shows it."""


_PARTS = (
    "What is left are the worker itself (8,800 instructions), its lock (4,000), the looks into the "
    "table of states (2,300), the coroutine round the work (1,800) and the clock; `parts` below "
    "shows each, docs/performance.md what was taken out"
)
_MESSAGES = (
    "Each of three changes costs 12,000 instructions: 3,900 make a message, see `parts` below, and "
    "the rest takes it through the mailbox to the handler, in order and in a task of its own. A "
    "bound of 1.45 leaves 6,700 for each"
)
_ENDS = (
    "Of the 39,000 instructions that a worker which is started and cancelled takes beyond its "
    "task, 33,000 are there without any cancellation (`return`). The cancellation alone is 36,000 "
    "beside 30,000: the worker is marked under its lock, so that threads see it (2,000), with the "
    "time and the reason (900), and finds out on its way out whether what it raised is a "
    "cancellation. At 10,000 the times show how many full collections of garbage fall into a "
    "round: one or two on Trio, none or one on asyncio, for the bare tasks as for the workers"
)
_SLOTS = (
    "What is read is what the system gave, with what the allocator rounds up; the worker, its name "
    "and its places in the group and the queue are 348 bytes by tracemalloc. The idiom itself is "
    "lighter on Trio"
)
_HOPS = (
    "`anyio.to_thread` is awaited by the caller, while a worker has a task of its own, which waits "
    "for the thread and is waited for: that alone is `anyio.to_thread in a task`. Beyond that "
    "there is what a worker costs (`return`), and the thread tells it when it is really there"
)
_ABREAST = (
    "Here AnyIO's threads have a task each as well, and a worker is such a task with what a worker "
    "adds: 1.2 x by the instructions of `threads-in-turn`. It can be as quick as what it stands "
    "on, but no quicker; what is quicker is a pool without limiter, tasks and cancellation"
)
_TASKS = (
    "Each worker has a task of its own: `return` shows what AnyIO's alone costs, which is two "
    "thirds of the idiom. A few tasks that each take one worker after another would do, but the "
    "workers would share the context variables, the name and the native cancellation of the task, "
    "while the contract gives each the context of its creator"
)
TARGETS = (
    Target("a job that returns: 1.30 x the instructions", "return", 1.3, counted=True, why=_PARTS),
    Target("a job that sleeps 0: 1.30 x the instructions", "sleep", 1.3, counted=True, why=_PARTS),
    Target("2.7 x fewer instructions than Textual", "return", 1 / 2.7, "Textual", counted=True),
    Target("with a handler: 1.45 x the instructions", "handler", 1.45, counted=True, why=_MESSAGES),
    Target("alive: 800 bytes more", "memory-live", 800, "", FLOOR, size=50_000),
    Target("queued: 400 bytes", "memory-queued", 400, "", size=100_000, why=_SLOTS),
    Target(
        "queued: 0.07 x the limiter idiom",
        "memory-queued",
        0.07,
        "AnyIO start_soon",
        size=100_000,
        why=_SLOTS,
    ),
    Target("cancel all: 1.1 x the time", "cancel-node", 1.1, size=10_000, why=_ENDS),
    Target(
        "start and cancel all: 1.1 x the instructions", "cancel-node", 1.1, counted=True, why=_ENDS
    ),
    Target("cancel one by one: 1.2 x the time", "cancel-each", 1.2, size=10_000, why=_ENDS),
    Target(
        "start and cancel one by one: 1.2 x the instructions",
        "cancel-each",
        1.2,
        counted=True,
        why=_ENDS,
    ),
    Target("threads in turn: 1.3 x", "threads-in-turn", 1.3, "anyio.to_thread", why=_HOPS),
    Target(
        "threads in turn: 1.3 x the instructions",
        *("threads-in-turn", 1.3, "anyio.to_thread"),
        counted=True,
        why=_HOPS,
    ),
    Target("40 threads at once: 1.0 x", "threads-abreast", 1.0, "anyio.to_thread", why=_ABREAST),
    Target(
        "10 at once: 0.25 x the instructions of the limiter idiom",
        *("limit", 0.25, "AnyIO start_soon"),
        counted=True,
        why=_TASKS,
    ),
    Target("10 at once: fewer instructions than aiojobs", "limit", 1.0, "aiojobs", counted=True),
    Target(
        "`advance()`: 1.5 x the instructions of a bare method call",
        *("progress", 1.5, "bare method"),
        counted=True,
    ),
    Target(
        "an exclusive start is flat up to 10,000 others", "exclusive", 1.15, SMALLEST, size=10_000
    ),
    Target(
        "an exclusive start is never slower than Textual", "exclusive", 1.0, "Textual", size=10_000
    ),
    Target(
        "cancelling a group is flat up to 10,000 others",
        "group-cancel",
        1.15,
        SMALLEST,
        size=10_000,
    ),
    Target(
        "cancelling a group is never slower than Textual",
        "group-cancel",
        1.0,
        "Textual",
        size=10_000,
    ),
    Target(
        "growth to 100,000: 1.15 x that of the floor", "growth", 1.15, is_growth=True, size=100_000
    ),
    Target(
        "import: 1.1 x the instructions of that of AnyIO",
        *("import", 1.1, "anyio, to_thread, from_thread"),
        counted=True,
    ),
)


def find_value(target, summary, rows):
    """Find what the target bounds in the rows of Creche on one loop: of all sizes the worst.

    Args:
        target: The target.
        summary: The scenario.
        rows: Its rows of Creche on that loop, the smallest size first.

    Returns:
        The figure, or None if it was not measured.
    """
    if target.plus:
        floor = {
            (row["loop"], row["size"]): row["value"]["median"]
            for row in summary["rows"]
            if row["way"] == target.plus
        }
        found = [row["value"]["median"] - floor[row["loop"], row["size"]] for row in rows]
    elif not target.against:
        found = [row["value"]["median"] for row in rows]
    else:
        ratios = [row["ratios"].get(target.against) for row in rows]
        found = [ratio["median"] for ratio in ratios if ratio]
        if target.is_growth:
            found = [found[-1] / found[0]]
    return max(found, default=None)


def check(told):
    """Hold what was measured against the targets.

    Returns:
        For each target that was measured, it, the largest size, and its figure on each loop.
    """
    there = {(each["counted"], each["scenario"]): each for each in told["scenarios"]}
    checked = []
    for target in TARGETS:
        summary = there.get((target.counted, target.scenario))
        if summary is None:
            continue
        loops = {}
        for row in summary["rows"]:
            if row["way"] == "Creche":
                loops.setdefault(row["loop"], []).append(row)
        found = {loop: find_value(target, summary, rows) for loop, rows in loops.items()}
        size = max(row["size"] for row in summary["rows"])
        found = {loop: each for loop, each in found.items() if each is not None}
        checked.append((target, size, found))
    return checked


def table(told):
    """Write which targets are met in Markdown, and why the others are not."""
    lines = ["| target | up to size | measured | |", "| --- | --- | --- | --- |"]
    reasons = {}
    for target, size, found in check(told):
        shown = ", ".join(
            f"{loop} {value:.{3 if target.against else 0}f}".removeprefix("- ")
            for loop, value in found.items()
        )
        missed = [loop for loop, value in found.items() if value > target.bound]
        verdict = f"not met on {' and '.join(missed)}" if missed else "met"
        if size < target.size:
            verdict += f", but {target.size:,} are asked for"
        lines.append(f"| {target.text} | {size:,} | {shown} | {verdict} |")
        if missed:
            reasons.setdefault(target.why, []).append(target.text)
    if reasons:
        lines += ["", "### Why those are missed that are", ""]
        lines += [f"- **{'; '.join(texts)}.** {why}." for why, texts in reasons.items()]
    return "\n".join(lines)
