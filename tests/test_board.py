"""The live board: its contents, its size, when it is drawn, and that it never disturbs the work."""

from __future__ import annotations

import importlib
import io
import logging
import re
import sys
import types
from functools import partial
from itertools import pairwise

import anyio
import pytest

from creche import Node, WorkerError, get_current_worker
from creche.testing import virtual_time
from helpers import (
    CANCELLED,
    ERROR,
    RUNNING,
    SUCCESS,
    ExceptionGroup,
    Meeting,
    leaves,
    limp,
    settle,
)

pytest.importorskip("rich")

from rich.cells import cell_len
from rich.console import Console

import creche.board
from creche.board import Board, live_board
from creche.board._words import amount, duration, speed

HEADS = "rate   left    age"


class Tube(io.StringIO):
    """A terminal that keeps the lines as displayed, and counts the writes."""

    encoding = "utf-8"

    def __init__(self, height=24):
        super().__init__()
        self.height = height
        self.lines = [""]
        self.row = 0
        self.writes = 0

    def isatty(self):
        return True

    def write(self, text):
        self.writes += 1
        for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\n|\r|[^\x1b\n\r]+", text):
            if part == "\n":
                self.row += 1
                self.lines += [""] * (self.row == len(self.lines))
            elif part == "\x1b[1A":
                self.row -= 1
                assert self.row >= len(self.lines) - self.height, "that line has been scrolled away"
            elif part == "\x1b[2K":
                self.lines[self.row] = ""
            elif part != "\r" and part[0] != "\x1b":
                self.lines[self.row] += part
        return len(text)

    @property
    def shown(self):
        return "\n".join(line.rstrip() for line in self.lines).strip("\n").split("\n")


class Broken(Tube):
    """A terminal that fails after the first picture."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        if self.error is not None and self.writes:
            raise self.error
        return super().write(text)


def terminal(tube, width=80, height=24):
    return Console(file=tube, force_terminal=True, width=width, height=height, _environ={})


def picture(board, width=80, height=24, **options):
    """Return the lines of the board as it is now."""
    console = Console(file=io.StringIO(), width=width, height=height, _environ={}, **options)
    console.print(board)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def words(board, **options):
    return "\n".join(picture(board, **options))


def faults(caplog):
    """Return the errors that the library has logged."""
    return [record.getMessage() for record in caplog.records if record.name == "creche"]


async def forever():
    await anyio.sleep_forever()


async def fail(text="no such host"):
    raise ValueError(text)


async def returns():
    pass


@pytest.fixture(params=["asyncio", "trio"])
def virtually(request):
    """Run an async function in virtual time."""
    if request.param == "trio":
        pytest.importorskip("trio")
    with virtual_time(request.param) as (backend, options):
        yield partial(anyio.run, backend=backend, backend_options=options)


@pytest.fixture
def drawn(monkeypatch):
    """The loop times at which the board was drawn."""
    times = []
    real = Board._lines

    def lines(self, *args):
        times.append(anyio.current_time())
        return real(self, *args)

    monkeypatch.setattr(Board, "_lines", lines)
    return times


def board_of(node):
    """Make a board that writes to a string."""
    return live_board(node, console=Console(file=io.StringIO(), width=80, height=24))


# contents


def test_the_tree_with_states_progress_rate_time_left_and_age(virtually):
    """Nodes, groups and workers get a line each, and queued or unstarted workers are counted."""

    async def copy():
        worker = get_current_worker()
        worker.update(50, 200, description="part 1")
        await forever()

    async def count():
        get_current_worker().advance(12_345)
        await forever()

    async def main():
        async with Node("app") as app, board_of(app) as board:
            downloads = app.group("downloads", limit=1)
            for number in range(4):
                downloads.run_worker(copy, name=f"copy {number}")
            app.run_worker(count)
            app.run_worker(forever, start=False)
            async with Node("page", parent=app) as page:
                page.run_worker(forever, name="long").cancel("not needed")
                stuck = page.run_worker(forever, name="stuck")
                await anyio.sleep(90)
                stuck.cancel()
                seen.extend(picture(board))
                app.cancel()

    seen = []
    virtually(main)
    assert seen == [
        "▾ app                                                         rate   left    age",
        " ▸ downloads, limit 1",
        "  ● copy 0 part 1                            ━━        25%   0.6/s  4m30s  1m30s",
        "  … 3 more queued",
        " ▸ default",
        "  ● count                                       12.3k        137/s         1m30s",
        "  … 1 not started",
        " ▾ page",
        "  ▸ default: 1 of 2                          ━━━━      50%   0.7/m  1m30s",
        "   ○ stuck is being cancelled                                              1m30s",
        "3 running, 3 queued, 1 not started, 1 cancelled",
    ]


async def test_failures_are_told_the_newest_last():
    """Each failure gets a line with its message. Only the newest are kept; the rest are counted."""
    async with Node("app") as app, board_of(app) as board:
        for number in range(130):
            app.run_worker(partial(fail, f"{number}\nmore"), name="job", exit_on_error=False)
            await app.workers.wait_for_complete()
        seen = picture(board, height=16)
    assert seen[1:] == [
        "… 126 more failures before",
        *(f"✗ app/default/job: ValueError: {number}" for number in range(126, 130)),
        "130 failed",
    ]


async def test_what_ran_before_it_was_opened_is_told():
    """A board that is opened within the node's block starts with the workers that exist already."""
    async with Node("app") as app, Node("page", parent=app) as page:
        await page.start_worker(forever, name="early")
        page.run_worker(forever, name="waiting", start=False)
        async with board_of(app) as board:
            assert "● early" in words(board)
            await page.start_worker(forever, name="late")
            assert re.search(r"● early.*\n.*● late.*\n +… 1 not started\n2 running", words(board))
        app.cancel()


async def test_work_that_waits_for_a_thread_is_queued():
    """A worker that waits for a thread is counted as queued, even if its group has a free slot."""
    meeting = Meeting()
    one = anyio.CapacityLimiter(1)
    async with Node("app") as app, board_of(app) as board:
        for _ in range(3):
            app.run_worker(meeting, thread=True, limiter=one)
        await meeting.until_arrived()
        assert words(board).endswith("1 running, 2 queued")
        meeting.go.set()


async def test_work_that_runs_elsewhere_is_told():
    """A worker whose state is set by an adapter is shown like any other."""
    async with Node("app") as app, board_of(app) as board:
        worker = app.run_worker(forever, name="remote", start=False)
        worker.state = RUNNING
        assert re.search(r"● remote.*\n1 running$", words(board))
        worker.state = ERROR
        assert "✗ app/default/remote\n1 failed" in words(board)
        assert picture(board)[0].startswith("▾ app ")
    assert picture(board)[0].startswith("▾ app, closed")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines", r"two\nlines"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\udcff", r"\udcff"),
        ("[bold]", "[bold]"),
        ("漢字" * 50, "漢字" * 9 + "漢"),
        ("x" * 10**6, "x" * 39 + "…"),
    ],
    ids=["lines", "escape", "surrogate", "markup", "wide", "long"],
)
async def test_names_are_plain_text_that_fits(name, shown):
    """Escape sequences, line breaks and markup in a name do not reach the terminal."""
    async with Node("app") as app, board_of(app) as board:
        await app.start_worker(forever, name=name)
        (line,) = (line for line in picture(board) if "●" in line)
        assert line[4:48].split(" ")[0] == shown
        assert cell_len(line) == 80
        app.cancel()


async def test_a_terminal_without_unicode_gets_ascii():
    """Every symbol has an ASCII replacement, and other characters in names are escaped."""

    async def halfway():
        get_current_worker().update(1, 2)
        await forever()

    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    async with Node("app") as app, board_of(app) as board:
        await app.start_worker(halfway, name="é" + 80 * "x")
        app.run_worker(forever, start=False)
        app.run_worker(fail, exit_on_error=False)
        await settle()
        Console(file=file, width=80, height=24).print(board)
        app.cancel()
    file.seek(0)
    lines = [line.rstrip() for line in file.read().splitlines()]
    assert [line[:10].rstrip() for line in lines[:4]] == [
        "v app",
        " > default",
        r"  * \xe9xx",
        "  ~ 1 not",
    ]
    assert " ----      50% " in lines[2]
    assert lines[4:] == [
        "x app/default/fail: ValueError: no such host",
        "1 running, 1 not started, 1 failed",
    ]


@pytest.mark.parametrize(
    ("width", "heads"), [(80, HEADS), (40, HEADS), (30, "left    age"), (13, "age"), (11, "")]
)
async def test_where_it_is_narrow_columns_are_left_out(width, heads):
    """Names keep half of the width. The age is the last column to be dropped."""
    async with Node("app") as app, board_of(app) as board:
        assert picture(board, width)[0].split(maxsplit=2)[2:] == [heads][: bool(heads)]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0.04, "0.0"),
        (7, "7"),
        (7.0, "7"),
        (99.4, "99.4"),
        (99.5, "100"),
        (999.4, "999"),
        (999.5, "1.0k"),
        (12_345, "12.3k"),
        (999_600, "1.0M"),
        (1e14, "100T"),
        (1e18, "lots"),
    ],
)
def test_numbers_are_short(number, words):
    """A number takes five characters at most."""
    assert amount(number) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0s"),
        (59.9, "59s"),
        (60, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (86399, "23h59m"),
        (86400, "1d00h"),
        (8640000, "100d"),
        (float("inf"), "99999d"),
        (float("nan"), "0s"),
    ],
)
def test_times_are_short(seconds, words):
    """A duration takes six characters at most, up to some centuries."""
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0, ""), (12_345, "12.3k/s"), (0.05, "0.1/s"), (0.04, "2.4/m"), (1 / 7200, "0.5/h")],
)
def test_rates_are_told_in_units_that_suit_them(rate, words):
    """Slow rates are shown per minute or per hour."""
    assert speed(rate) == words


def columns(board, name, width=80):
    """Return the last three columns of the line with that name: rate, time left and age."""
    (line,) = (line for line in picture(board, width) if name in line)
    return line.split()[-3:]


def test_rates_are_of_the_last_seconds(virtually):
    """The rate and the time left follow the present speed, not the average since the start."""

    async def main():
        async with Node("app") as app, board_of(app) as board:
            worker = app.run_worker(forever, name="job")
            await anyio.lowlevel.checkpoint()
            worker.update(0, 2_000)
            for second in range(1, 121):
                await anyio.sleep(1)
                worker.advance(10 if second <= 60 else 1)
                picture(board)  # drawing records the progress
                seen[second] = columns(board, "job")
            for second in (130, 240):  # it has stopped
                await anyio.sleep(second - anyio.current_time() + begun)
                seen[second] = columns(board, "job")
            worker.update(completed_steps=0)  # it starts again
            await anyio.sleep(2)
            worker.update(completed_steps=10)
            assert columns(board, "job")[0] == "5/s"
            app.cancel()

    async def begin():
        nonlocal begun
        begun = anyio.current_time()
        await main()

    begun, seen = 0.0, {}
    virtually(begin)
    assert seen[60] == ["10/s", "2m20s", "1m00s"]
    assert seen[65][0] == "5.5/s"
    assert seen[75] == ["1/s", "23m05s", "1m15s"]
    assert seen[130][0] == "0.3/s"
    assert seen[240][0] == "1.9/m"


def test_what_does_a_step_a_minute_has_a_rate(virtually):
    """A worker that takes a minute for a step still gets a rate, from its last steps."""

    async def main():
        async with Node("app") as app, board_of(app) as board:
            worker = app.run_worker(forever, name="job")
            await anyio.lowlevel.checkpoint()
            worker.update(0, 100)
            for _ in range(20):
                await anyio.sleep(60)
                worker.advance()
                picture(board)
            seen.append(columns(board, "job"))
            app.cancel()

    seen = []
    virtually(main)
    assert seen == [["1/m", "1h20m", "20m00s"]]


def test_a_group_tells_its_total_and_the_time_left(virtually):
    """A group shows how many workers have finished since it was empty, the rate and time left."""

    async def main():
        async with Node("app") as app, board_of(app) as board:
            downloads = app.group("downloads", limit=5)
            downloads.run_worker(forever, start=False).cancel()
            assert len(picture(board)) == 2  # the group is empty
            for _ in range(5_000):
                downloads.run_worker(partial(anyio.sleep, 1))
            for _ in range(60):
                await anyio.sleep(1.001)
                picture(board)
            seen.extend(picture(board)[1:3])
            seen.append(picture(board, 120)[1])
            await app.workers.wait_for_complete()
            assert len(picture(board)) == 2
            downloads.run_worker(forever)
            await anyio.sleep(1)
            seen.append(picture(board)[1])
            app.cancel()

    seen = []
    virtually(main)
    assert seen[0] == (" ▸ downloads, limit 5: 300 of 5,000                     6%     5/s 15m45s")
    assert seen[1].startswith("  ● sleep")
    assert seen[2].endswith("300/5.0k ━                    6%     5/s 15m45s")
    assert seen[3] == " ▸ downloads, limit 5"


async def test_a_wide_terminal_has_several_workers_in_a_line():
    """Workers that do not fit below each other go side by side if the terminal is wide enough."""
    async with Node("app") as app, board_of(app) as board:
        for number in range(60):
            await app.start_worker(forever, name=f"job {number:02}")
        narrow, wide, high = picture(board, 80), picture(board, 250), picture(board, 250, 70)
        app.cancel()
    assert [line.count("●") for line in narrow] == [0, 0, *[1] * 20, 0, 0]
    assert [line.count("●") for line in wide] == [0, 0, *[2] * 20, 0, 0]
    assert [line.count("●") for line in high] == [0, 0, *[1] * 60, 0]
    assert re.match(r"  ● job 00 +0s +● job 01 +0s$", wide[2])
    assert "  … 20 more running" in wide


# size


@pytest.mark.parametrize("height", [1, 2, 3, 5, 24, 60])
@pytest.mark.parametrize("width", [5, 20, 80, 300])
async def test_it_never_takes_more_than_there_is(width, height):
    """The board never takes more lines or columns than it is given."""
    async with Node("app") as app, board_of(app) as board:
        for number in range(9):
            app.group(f"group {number}", limit=number + 1)
            for _ in range(6):
                app.run_worker(forever, group=f"group {number}", description="long " * 9)
            app.run_worker(fail, exit_on_error=False)
        await app.mount(Node("child"))
        await settle()
        lines = picture(board, width, height)
        app.cancel()
    assert 1 <= len(lines) <= height
    assert max(map(cell_len, lines)) <= width
    assert cell_len(lines[-1]) <= width - 3  # where terminals write ^C


async def test_ten_thousand_workers_are_readable():
    """Some of the running workers are shown, and all others are counted."""
    async with Node("app") as app, board_of(app) as board:
        group = app.group("jobs", limit=5_000)
        for number in range(10_000):
            group.run_worker(forever, name=f"job {number}")
        await settle()
        lines = picture(board)
        app.cancel()
    assert len(lines) == 24
    assert all(re.match(r"  ● job \d+ .* \d+s$", line) for line in lines[2:22])
    assert lines[22:] == [
        "  … 4,980 more running, 5,000 more queued",
        "5,000 running, 5,000 queued",
    ]


async def test_many_groups_share_the_lines():
    """Groups share the lines equally. If lines are short, those with running workers come first."""
    async with Node("app") as app, board_of(app) as board:
        for number in range(3):
            for _ in range(5 * number + 2):
                await app.start_worker(forever, group=f"group {number}", name=f"{number}")
        shown = "".join(line[4] for line in picture(board, height=16) if "●" in line)
        assert shown == "00111222"
        for number in range(30):
            node = await app.mount(Node(f"node {number}"))
        await node.start_worker(forever, name="last")
        lines = picture(board, height=15)
        app.cancel()
    assert [line for line in lines if "0" in line[:5] or "group 0" in line] != []
    assert lines[10].startswith(" ▾ node 29")
    assert lines[12].startswith("   ● last")
    assert lines[13:] == ["… 29 more nodes and groups", "22 running"]


# in a terminal


async def test_the_last_picture_stays_below_what_was_printed(monkeypatch):
    """Printed and logged lines go above the board, and the streams are restored afterwards."""
    tube = Tube()
    plain = io.StringIO()  # not a terminal, so it is not replaced
    monkeypatch.setattr(sys, "stdout", tube)
    monkeypatch.setattr(sys, "stderr", plain)
    logger, old = logging.getLogger("made.before"), logging.StreamHandler(tube)
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(old)
    elsewhere = logging.StreamHandler(plain)
    logger.addHandler(elsewhere)

    def speak():
        print("in a thread")  # noqa: T201 (that is what is tested)

    app = Node("app")
    async with live_board(app, console=terminal(tube)), app:
        print("printed", "\x1b[1mbold\x1b[0m")  # noqa: T201 (the same)
        logger.warning("logged")
        await app.run_worker(speak, thread=True)
        sys.stdout.writelines(["some", "thing\nand "])
        print("[/more]", end="", flush=True)  # noqa: T201 (the same)
        assert (sys.stdout.encoding, sys.stdout.isatty()) == ("utf-8", True)
        assert sys.stderr is plain
        app.run_worker(fail, exit_on_error=False)
    logger.removeHandler(old)
    logger.removeHandler(elsewhere)
    assert (sys.stdout, sys.stderr, old.stream, elsewhere.stream) == (tube, plain, tube, plain)
    assert tube.shown == [
        "printed bold",
        "logged",
        "in a thread",
        "something",
        "and [/more]",
        f"▾ app, closed                                                 {HEADS}",
        "✗ app/default/fail: ValueError: no such host",
        "1 done, 1 failed",
    ]
    assert plain.getvalue() == "logged\n"


def test_nothing_scrolls_with_more_than_fits(virtually, drawn):
    """Each picture replaces the one before, however much happens."""
    tube = Tube(height=10)

    async def main():
        app = Node("app")
        async with live_board(app, console=terminal(tube, height=10)), app:
            for turn in range(30):
                for number in range(turn):
                    app.run_worker(forever, group=f"{number % 5}", name="job")
                app.run_worker(fail, exit_on_error=False)
                await anyio.sleep(0.2)
                assert len(tube.lines) < 10
                app.workers.cancel_group(app, "3")
            app.cancel()

    virtually(main)
    assert len(drawn) > 30
    assert len(tube.lines) <= 10  # the line below included
    assert tube.shown[-1] == "30 failed, 435 cancelled"


def test_it_is_drawn_ten_times_a_second_at_most(virtually, drawn):
    """The board is drawn ten times a second during events, and about once a second otherwise."""

    async def busy():
        for _ in get_current_worker().track(range(1000)):
            await anyio.sleep(0.001)
        await anyio.sleep(10)

    async def main():
        app = Node("app")
        async with live_board(app, console=terminal(Tube())), app:
            app.run_worker(busy)

    virtually(main)
    working = [time for time in drawn if drawn[0] < time <= drawn[0] + 1]
    assert len(working) in (10, 11)
    ages = [time for time in drawn if drawn[0] + 1.5 < time < drawn[0] + 10.5]
    assert 8 <= len(ages) <= 9
    gaps = [after - before for before, after in pairwise(ages)]
    assert gaps == pytest.approx([1.1] * len(gaps))


def test_nothing_is_drawn_where_nothing_happens(virtually, drawn):
    """The board is not redrawn while there are no events and no ages to update."""

    async def main():
        async with Node("app") as app, live_board(app, console=terminal(Tube())):
            app.run_worker(forever, start=False)
            await app.run_worker(returns)
            await anyio.sleep(1)
            before = len(drawn)
            await anyio.sleep(7200)
            assert len(drawn) == before

    virtually(main)
    assert len(drawn) <= 4


def test_pictures_that_take_long_are_drawn_less_often(virtually, drawn, monkeypatch):
    """Drawing takes a tenth of the time at most, however long a picture takes."""
    spent = iter(range(10**6))
    monkeypatch.setattr(creche.board.time, "thread_time", lambda: next(spent))  # a second each

    async def main():
        app = Node("app")
        async with live_board(app, console=terminal(Tube())), app:
            app.run_worker(partial(anyio.sleep, 100))

    virtually(main)
    assert 9 <= len(drawn) <= 13


def test_services(virtually):
    """The attempt, "not ready" and "stalled" are shown beside the name of a service."""
    seen, pipe = [], io.StringIO()

    async def main():
        app = Node("app")
        async with live_board(app, console=Console(file=pipe)), board_of(app) as board, app:
            worker = app.run_worker(limp, description="it", stall_after=10)
            await worker.until_ready()
            for seconds in (1, 5, 11):
                await anyio.sleep(seconds)
                seen.append(picture(board)[2].strip().rpartition(" ")[0].strip())

    virtually(main)
    assert seen == [
        "● limp it",
        "● limp attempt 2, not ready it",
        "● limp attempt 2, not ready, stalled it",
    ]
    assert pipe.getvalue().splitlines() == [
        "app/default/limp: running",
        "app/default/limp: ready",
        "app/default/limp: failed, begins again in 1 s (attempt 2): OSError: lost",
        "app/default/limp: stalled for 10 s",
        "app/default/limp: done after 30s",
        "app: 1 done",
    ]


# in a notebook


class Display:
    """Stands in for IPython, and records what is displayed and each update of it."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.shown = []
        self.display = types.SimpleNamespace(display=self)

    def get_ipython(self):
        return self

    def __call__(self, data, *, raw, display_id):
        self.shown.append(data)
        return self

    def update(self, data, *, raw):
        self.shown.append(data)


@pytest.fixture(params=["a kernel", None])
def ipython(request, monkeypatch):
    told = Display(request.param)
    monkeypatch.setitem(sys.modules, "IPython", told)
    return told


def test_a_notebook_gets_a_picture_below_the_cell(virtually, ipython, capsys):
    """A notebook gets escaped HTML at most four times a second. IPython in a terminal gets text."""

    async def busy():
        for _ in get_current_worker().track(range(1000)):
            await anyio.sleep(0.002)

    async def main():
        app = Node("<script>")
        async with live_board(app), app:
            app.run_worker(busy, name="a & b")

    virtually(main)
    told = "\n".join(data["text/html"] for data in ipython.shown)
    if ipython.kernel is None:
        assert (told, capsys.readouterr().err.count("done")) == ("", 2)
        return
    assert 8 <= len(ipython.shown) <= 12
    assert ("&lt;script&gt;" in told, "a &amp; b" in told, "<script" in told) == (True, True, False)
    assert ipython.shown[-1]["text/plain"] == "1 done"
    assert capsys.readouterr() == ("", "")


# in a pipe


def test_a_pipe_gets_lines(virtually):
    """A pipe gets a line for each worker that starts or ends, and a summary at the end."""
    pipe = io.StringIO()

    async def main():
        app = Node("app")
        async with live_board(app, console=Console(file=pipe)), app:
            app.run_worker(partial(anyio.sleep, 65), name="sleep\n")
            app.run_worker(fail, exit_on_error=False)
            app.run_worker(forever, name="long", start=False).cancel("not needed")
            app.run_worker(forever, name="daemon", daemon=True)

    virtually(main)
    lines = pipe.getvalue().splitlines()
    first = "app/default/long: cancelled: not needed"
    assert lines[0] == first
    assert sorted(lines[1:5]) == [
        "app/default/daemon: running",
        "app/default/fail: failed after 0s: ValueError: no such host",
        "app/default/fail: running",
        r"app/default/sleep\n: running",
    ]
    assert lines[5:] == [
        r"app/default/sleep\n: done after 1m05s",
        "app/default/daemon: cancelled after 1m05s: only daemons were left",
        "app: 1 done, 1 failed, 2 cancelled",
    ]


async def test_a_pipe_gets_a_bounded_number_of_lines():
    """Of many changes at once, twenty are written, failures first, and the rest are counted."""
    pipe = io.StringIO()
    async with Node("app") as app:
        gate = anyio.Event()

        async def fail_later():
            await gate.wait()
            raise ValueError

        for _ in range(500):
            app.run_worker(gate.wait)
        for _ in range(4):
            app.run_worker(fail_later, exit_on_error=False)
        await settle()
        async with live_board(app, console=Console(file=pipe)):
            gate.set()
            await settle()
    lines = pipe.getvalue().splitlines()
    assert len(lines) == 22
    assert sum(line.startswith("app/default/fail_later: failed") for line in lines) == 4
    assert lines[20:] == ["... 484 more done", "app: 500 done, 4 failed"]


@pytest.mark.parametrize("term", ["dumb", "xterm"])
async def test_a_terminal_that_cannot_move_its_cursor_gets_lines(term):
    """A dumb terminal is treated like a pipe."""
    tube = Tube()
    console = Console(file=tube, force_terminal=True, width=80, _environ={"TERM": term})
    app = Node("app")
    async with live_board(app, console=console), app:
        await app.run_worker(returns)
    assert ("app/default/returns: running" in tube.shown) is (term == "dumb")


# errors and cancellation


async def test_errors_go_through_as_they_are():
    """Exceptions raised in the body propagate unchanged and unwrapped."""
    for error in (ValueError("x"), SystemExit(3), KeyError("y")):
        with pytest.raises(type(error)) as caught:
            async with board_of(Node("app")):
                raise error
        assert caught.value is error
    app = Node("app")
    with pytest.raises(ExceptionGroup) as group:
        async with board_of(app), app:
            app.run_worker(fail)
    assert [str(error) for error in leaves(group.value)] == ["no such host"]
    assert len(group.value.exceptions) == 1


async def test_an_error_is_not_lost_in_a_cancellation():
    """An error raised in the body propagates even if a scope around the board is cancelled."""
    with pytest.raises(ValueError, match="x"):
        with anyio.CancelScope() as scope:
            async with board_of(Node("app")):
                scope.cancel()
                raise ValueError("x")


async def test_a_cancellation_goes_its_way():
    """A cancellation from outside cancels the body and is caught by its own scope."""
    app = Node("app")
    with anyio.CancelScope() as scope:
        async with board_of(app), app:
            worker = await app.start_worker(forever)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert worker.state is CANCELLED


async def test_it_ends_by_itself_when_the_node_has_closed():
    """The board does not keep its node open, and its block may outlast the node."""
    app = Node("app")
    async with board_of(app) as board:
        async with app:
            worker = app.run_worker(returns)
        await settle()
        assert worker.state is SUCCESS
        assert picture(board)[-1] == "1 done"
    assert picture(board)[-1] == "1 done"


@pytest.mark.parametrize("error", [OSError("gone"), SystemExit(1), ValueError("gone")])
async def test_what_cannot_be_drawn_ends_the_board_alone(monkeypatch, caplog, error):
    """A drawing error, even SystemExit from Rich, is logged once and ends only the board."""
    tube = Broken(error)
    monkeypatch.setattr(sys, "stdout", tube)
    app = Node("app")
    async with live_board(app, console=terminal(tube)), app:
        worker = app.run_worker(returns)
        await settle()
        assert sys.stdout is tube
        tube.error = None
        other = app.run_worker(forever)
        await settle()
        other.cancel()
    assert worker.state is SUCCESS
    assert other.state is CANCELLED
    assert faults(caplog) == ["the live board of node 'app' cannot be drawn"]
    (told,) = (record for record in caplog.records if record.name == "creche")
    assert told.exc_info is not None


@pytest.mark.parametrize("answer", [ValueError("closed"), OSError("gone")])
@pytest.mark.parametrize("is_own", [True, False])
async def test_a_console_that_cannot_be_asked_ends_the_board_alone(
    monkeypatch, caplog, answer, is_own
):
    """A stream that fails before the first picture, such as a closed one, ends only the board."""

    class Gone(io.StringIO):
        def isatty(self):
            raise answer

        def write(self, text):
            raise answer

    if is_own:
        console = Console(file=io.StringIO(), _environ={})
        console.file = Gone()
    else:
        console = None
        monkeypatch.setattr(sys, "stderr", Gone())
    app = Node("app")
    async with live_board(app, console=console) as board, app:
        worker = app.run_worker(returns)
        await settle()
        assert words(board).endswith("1 done")
    assert worker.state is SUCCESS
    assert faults(caplog) == ["the live board of node 'app' cannot be drawn"]


def test_a_board_that_has_ended_does_not_grow(virtually, caplog):
    """A board that can no longer be drawn counts events, but keeps none to draw."""
    tube = Broken(OSError("gone"))

    async def main():
        app = Node("app")
        async with live_board(app, console=terminal(tube)) as board, app:
            for _ in range(3):
                await app.run_worker(returns)
                await anyio.sleep(1)
            assert not board._untold
            assert not board._events._backlog
            assert words(board).endswith("3 done")

    virtually(main)
    assert faults(caplog) == ["the live board of node 'app' cannot be drawn"]


@pytest.mark.parametrize("error", [OSError("gone"), SystemExit(1)])
async def test_what_is_printed_while_the_board_cannot_be_drawn(monkeypatch, caplog, error):
    """While the board cannot be drawn, print() writes to the real stream or raises its error."""
    tube, elsewhere = Broken(None), Tube()
    monkeypatch.setattr(sys, "stdout", elsewhere)
    app = Node("app")
    async with live_board(app, console=terminal(tube)), app:
        tube.error = error
        print("printed")  # noqa: T201 (that is what is tested)
        print("\x1b[²mno colour")  # noqa: T201 (Rich parses the "²" as a number)
        assert elsewhere.lines == ["printed", "[²mno colour", ""]
        elsewhere.write = None
        with pytest.raises(TypeError):
            print("lost")  # noqa: T201 (the same)
        del elsewhere.write
    assert sys.stdout is elsewhere


async def test_streams_that_cannot_be_asked_are_left_alone(monkeypatch, caplog):
    """A closed stream, or an object that is not a stream, does not prevent drawing."""
    closed = io.StringIO()
    closed.close()
    none = object()
    monkeypatch.setattr(sys, "stdout", closed)
    monkeypatch.setattr(sys, "stderr", none)
    logger, bare = logging.getLogger("made.before"), logging.StreamHandler()
    del bare.stream
    monkeypatch.setattr(logger, "handlers", [bare])
    tube, other = Tube(), Tube()
    app = Node("app")
    async with live_board(app, console=terminal(tube)), app:
        await app.run_worker(returns)
    monkeypatch.setattr(sys, "stderr", other)
    async with live_board(Node("two"), console=terminal(other)):
        pass
    assert tube.shown[-1] == "1 done"
    assert other.shown[-1] == "nothing yet"
    assert faults(caplog) == []


async def test_errors_are_told_in_a_line_of_bounded_length():
    """Only the beginning of a long error text is kept."""
    async with Node("app") as app, board_of(app) as board:
        app.run_worker(partial(fail, "x" * 10**6), name="n" * 10**4, exit_on_error=False)
        app.run_worker(partial(fail, "x" * 10**6), name="short", exit_on_error=False)
        await app.workers.wait_for_complete()
        await settle()
        assert max(map(len, board._tally.failures)) == 1000


async def test_bad_nodes_are_refused():
    """An argument that is not a node, or is closed, is refused with a clear error."""
    with pytest.raises(WorkerError, match=r"live_board\(\) takes a Node, not 'app'"):
        async with live_board("app"):
            pass
    async with Node("app") as app:
        pass
    with pytest.raises(WorkerError, match="cannot subscribe to node 'app', which is closed"):
        async with live_board(app):
            pass


def test_without_rich_the_import_says_what_to_install(monkeypatch):
    """Importing the board without Rich raises an error that names the extra."""
    for name in [name for name in sys.modules if name.startswith("creche.board")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(ImportError, match=r"pip install 'creche\[rich\]'"):
        importlib.import_module("creche.board")


def test_public_names_belong_to_the_module():
    """Public names have ``creche.board`` as their ``__module__``."""
    assert [getattr(creche.board, name).__module__ for name in creche.board.__all__] == [
        "creche.board",
        "creche.board",
    ]
