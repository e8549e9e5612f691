"""Draws the pictures of the docs: ``python docs/pictures.py [NAME ...]`` writes docs/pictures.

It needs Rich and Trio, whose clock makes each picture the same whenever it is drawn. One more
picture is one more function in ``PICTURES``.
"""

from __future__ import annotations

import io
import logging
import sys
from html import escape
from pathlib import Path

import anyio

from creche import Node, get_current_worker
from creche._ground.states import TRANSITIONS

PLACE = Path(__file__).parent / "pictures"


def in_virtual_time(main):
    """Run an async function where a wait takes no time."""
    import trio.testing  # noqa: PLC0415 (an extra)

    clock = trio.testing.MockClock(autojump_threshold=0)
    return anyio.run(main, backend="trio", backend_options={"clock": clock})


# the board


async def download(parts, pause, fails_at=None):
    worker = get_current_worker()
    for part in worker.track(range(parts)):
        worker.update(description=f"part {part}")
        if part == fails_at:
            raise ConnectionError("the host has hung up")
        await anyio.sleep(pause)


def board():
    """Draw a live board in the midst of some work."""
    from rich.console import Console  # noqa: PLC0415 (an extra)

    from creche.board import live_board  # noqa: PLC0415 (needs Rich)

    async def main():
        app = Node("app")
        shown = Console(file=io.StringIO(), record=True, force_terminal=True, width=80, height=24)
        quiet = Console(file=io.StringIO())
        async with live_board(app, console=quiet) as live, app:
            downloads = app.group("downloads", limit=4)
            for number in range(40):
                downloads.run_worker(
                    lambda number=number: download(
                        20 + number % 7, 0.7 + number % 3, 9 if number == 1 else None
                    ),
                    name=f"https://example.org/{number}",
                    exit_on_error=False,
                )
                await anyio.lowlevel.checkpoint()
            async with Node("page", parent=app) as page:
                page.run_worker(anyio.sleep_forever, name="refresh")
                await anyio.sleep(60)
                shown.print(live)
                app.cancel()
        return shown.export_svg(title="live_board(app)", unique_id="board")

    return in_virtual_time(main)


# the states

WIDE, HIGH, ACROSS, DOWN = 130, 40, 210, 70
STYLE = """
  rect { fill: #f4f6f8; stroke: #57606a; stroke-width: 1.5; rx: 8 }
  rect.final { stroke-width: 3 }
  rect.page { fill: #ffffff; stroke: none }
  text { font: 15px sans-serif; fill: #24292f; text-anchor: middle }
  path { fill: none; stroke: #57606a; stroke-width: 1.5; marker-end: url(#head) }
  marker path { fill: #57606a; stroke: none; marker-end: none }
"""


def columns():
    """Put each state behind all those that it may follow; in each column the final ones last."""
    depth = dict.fromkeys(TRANSITIONS, 0)
    for _ in TRANSITIONS:
        for state, following in TRANSITIONS.items():
            for after in following:
                depth[after] = max(depth[after], depth[state] + 1)
    told = [[] for _ in range(max(depth.values()) + 1)]
    for state in sorted(depth, key=lambda state: (jump(state, depth), -state.value)):
        told[depth[state]].append(state)
    return told


def jump(state, depth):
    """How far the way to a state is, at most; the long ones pass below the others."""
    return max(
        (depth[state] - depth[before] for before in TRANSITIONS if state in TRANSITIONS[before]),
        default=0,
    )


def states():
    """Draw the table of states."""
    told = columns()
    where = {
        state: (20 + ACROSS * column, 20 + DOWN * row)
        for column, states in enumerate(told)
        for row, state in enumerate(states)
    }
    lines = []
    for state, (x, y) in where.items():
        for after in sorted(TRANSITIONS[state], key=lambda after: after.value):
            to_x, to_y = where[after]
            if to_x - x == ACROSS:
                way = f"M {x + WIDE} {y + HIGH / 2:.0f} L {to_x - 2} {to_y + HIGH / 2:.0f}"
            else:  # below what is between
                way = f"M {x + WIDE / 2:.0f} {y + HIGH} V {to_y + HIGH / 2:.0f} H {to_x - 2}"
            lines.append(f'<path d="{way}"><title>{state.name} to {after.name}</title></path>')
    for state, (x, y) in where.items():
        kind = "" if TRANSITIONS[state] else ' class="final"'
        lines.append(f'<rect{kind} x="{x}" y="{y}" width="{WIDE}" height="{HIGH}"/>')
        middle = f'x="{x + WIDE / 2:.0f}" y="{y + HIGH / 2 + 5:.0f}"'
        lines.append(f"<text {middle}>{escape(state.name)}</text>")
    width = 40 + ACROSS * (len(told) - 1) + WIDE
    height = 40 + DOWN * (max(map(len, told)) - 1) + HIGH
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
                f'width="{width}" height="{height}" role="img">'
            ),
            "<title>The states of a worker</title>",
            f"<style>{STYLE}</style>",
            (
                '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" '
                'markerHeight="6" orient="auto"><path d="M 0 0 L 8 4 L 0 8 z"/></marker></defs>'
            ),
            f'<rect class="page" width="{width}" height="{height}"/>',
            *lines,
            "</svg>\n",
        ]
    )


def moving():
    """Draw the live board from the first download to the last."""
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        import pictures_moving  # noqa: PLC0415 (beside this file)
    finally:
        del sys.path[0]
    return pictures_moving.moving(in_virtual_time)


PICTURES = {"board.svg": board, "moving.svg": moving, "states.svg": states}


def main(names):
    PLACE.mkdir(exist_ok=True)
    for name in names or PICTURES:
        (PLACE / name).write_text(PICTURES[name](), encoding="utf-8")


if __name__ == "__main__":
    logging.disable(logging.ERROR)  # of work that is to fail
    main(sys.argv[1:])
