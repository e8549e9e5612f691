"""Draws the live board as a picture that moves: frames of one SVG, shown in turn by its style."""

from __future__ import annotations

import io
import re
from functools import partial

import anyio

from creche import Node, get_current_worker

WIDE, HIGH = 78, 14  # characters
TITLE = "async with live_board(app), app: ..."
ALT = "A live board: nine downloads, four at a time, with bars, rates and times left; one fails"
PAUSES = (0.357, 0.953, 0.761, 0.581, 0.797, 0.367, 0.977, 0.587, 0.773)  # which never meet
FRAMES, EVERY, SHOWN, LAST = 36, 0.5, 0.3, 2.0  # each 0.5 s of work is shown for 0.3 s

BETWEEN = "\n@@\n"
PARTS = f"{{styles}}{BETWEEN}{{matrix}}{BETWEEN}{{width}} {{height}}{BETWEEN}{{chrome}}"  # for Rich

STYLE = """
  text { font: 20px "Fira Code", "DejaVu Sans Mono", monospace; white-space: pre }
  .moving-title { font: bold 18px sans-serif }
  .frame { visibility: hidden; animation: show %(whole)ss steps(1) infinite }
  .frame.last { visibility: visible; animation-name: stay }
  @keyframes show { 0%% { visibility: visible } %(part)s%% { visibility: hidden } }
  @keyframes stay { 0%% { visibility: hidden } %(before)s%% { visibility: visible } }
  @media (prefers-reduced-motion) { .frame { animation: none } }
"""


async def download(parts, pause, fails_at=None):
    worker = get_current_worker()
    for part in worker.track(range(parts)):
        await anyio.sleep(pause)
        if part == fails_at:
            raise ConnectionError("connection reset by peer")


async def frames():
    """Give what Rich says of each frame: its parts."""
    from rich.console import Console  # noqa: PLC0415 (an extra)

    from creche.board import live_board  # noqa: PLC0415 (needs Rich)

    told = []
    app = Node("app")
    async with live_board(app, console=Console(file=io.StringIO())) as live, app:
        downloads = app.group("downloads", limit=4)
        for number in range(9):
            downloads.run_worker(
                partial(download, 8 + number * 5 % 7, PAUSES[number], 3 if number == 2 else None),
                name=f"example.org/{number}.zip",
                exit_on_error=False,
            )
            await anyio.lowlevel.checkpoint()  # Trio runs what comes together in any order
        async with Node("page", parent=app) as page:
            page.run_worker(anyio.sleep_forever, name="refresh", daemon=True)
            for _ in range(FRAMES):
                await anyio.sleep(EVERY)
                shown = Console(
                    file=io.StringIO(), record=True, force_terminal=True, width=WIDE, height=HIGH
                )
                shown.print(live)
                svg = shown.export_svg(title=TITLE, code_format=PARTS, unique_id="moving")
                told.append(svg.split(BETWEEN))
    return told


def moving(in_virtual_time):
    """Put the frames into one picture."""
    told = in_virtual_time(frames)
    classes = {}  # of a style; Rich counts anew in each frame

    def renamed(styles, matrix):
        own = dict(re.findall(r"\.moving-(r\d+) ({.*?})", styles))
        names = {name: classes.setdefault(style, f"s{len(classes)}") for name, style in own.items()}
        matrix = re.sub(r' clip-path="[^"]*"', "", matrix)
        matrix = re.sub(r"<text[^>]*>\s*</text>", "", matrix)
        return re.sub(r"moving-(r\d+)", lambda found: names[found[1]], matrix)

    drawn = [renamed(styles, matrix) for styles, matrix, *_ in told]
    size, chrome = max((rest for _, _, *rest in told), key=lambda rest: float(rest[0].split()[1]))
    before = SHOWN * (len(drawn) - 1)
    whole = before + LAST
    shares = {"part": 100 * SHOWN / whole, "before": 100 * before / whole, "whole": whole}
    style = STYLE % {name: f"{share:.5g}" for name, share in shares.items()}
    style += "".join(f"  .{name} {rule}\n" for rule, name in classes.items())
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img">']
    lines += [f"<title>{ALT}</title>", f"<style>{style}</style>", chrome.strip()]
    lines += ['<g transform="translate(9, 41)">']
    for number, frame in enumerate(drawn[:-1]):
        delay = f"animation-delay: {SHOWN * number:.1f}s"
        lines.append(f'<g class="frame" style="{delay}">{frame}</g>')
    return "\n".join([*lines, f'<g class="frame last">{drawn[-1]}</g>', "</g>", "</svg>\n"])
