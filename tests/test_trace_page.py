"""The page of a timeline in a real browser: it opens, shows, zooms, finds and tells.

Skipped where there is no browser; ``nox -s browser`` sees to it that there is one.
"""

from __future__ import annotations

import os
import re

import pytest

import browser as browsers
from creche import WorkerState
from creche.trace._layout import Entry, Mark, lay_out
from creche.trace._page import as_page

PENDING, RUNNING, CANCELLED, ERROR, SUCCESS = WorkerState
NASTY = "</script><script>throw 'worse'</script><img src=x onerror=\"throw 'worse'\">\n\"'&amp;"


@pytest.fixture(scope="module")
def browser():
    with browsers.opened() as (browser, reason):
        if browser is None:
            if os.environ.get("CRECHE_BROWSER_NEEDED"):
                pytest.fail(reason)
            pytest.skip(reason)
        yield browser


@pytest.fixture
def show(browser, tmp_path):
    """Open the page of some workers, and check that it has no errors and fetches nothing."""
    contexts, wrong = [], []

    def opened(entries, *, scheme="light", dropped=0, whole_since=None, size=(1200, 700)):
        end = max(each.finished or each.created for each in entries) if entries else 1.0
        picture = lay_out(entries, 0.0, end, whole_since)
        about = {"node": "app", "recorded": "2030-01-02T03:04:05+00:00"}
        about |= {"workers": len(entries), "dropped": dropped, "keep": 10_000}
        if entries and entries[0].path == NASTY:
            about["node"] = NASTY
        (tmp_path / "run.html").write_text(as_page(picture, about), encoding="utf-8")
        context = browser.new_context(
            color_scheme=scheme,
            viewport={"width": size[0], "height": size[1]},
            device_scale_factor=1,
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda told: wrong.append(told.text) if told.type == "error" else None)
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "run.html").as_uri())
        drawn(page)
        assert asked == [(tmp_path / "run.html").as_uri()]
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def drawn(page):
    """Wait until the page is drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")


def entry(number, name, created, started, finished, state=SUCCESS, group="default", **more):
    return Entry(
        number, name, more.pop("path", "app"), group, created, more.pop("origin", None),
        state=state, started=started, finished=finished, **more,
    )  # fmt: skip


def some():
    """A few workers of each kind."""
    return [
        entry(1, "crawl", 0, 0, 4, group="crawl"),
        entry(2, "page one", 1, 1, 6, ERROR, "downloads", origin=1, error="ValueError: no luck"),
        entry(3, "page two", 1, 6, 8, CANCELLED, "downloads", cancelled=7, reason="enough"),
        entry(4, "page three", 2, None, 5, CANCELLED, "downloads", cancelled=5),
        entry(5, "still at it", 3, 3, None, RUNNING, "late", path="app/panel"),
        entry(6, "the last", 9, 9, 10, group="crawl", description="to end it"),
    ]


def many():
    return [
        entry(n, f"item {n}", n // 100, n // 100 + n % 7 / 10, n // 100 + 1 + n % 11 / 10,
              group=f"group {n % 40}", origin=max(1, n // 2) if n > 1 else None)
        for n in range(1, 20_001)
    ]  # fmt: skip


def place(page, index):
    return page.evaluate("(index) => place(index)", index)


def middle(page, index):
    """Return the position of a worker in the window."""
    box, at = page.locator("#lanes").bounding_box(), place(page, index)
    left = max(at["x"], page.evaluate("left"))
    right = min(at["x"] + at["width"], box["width"])
    return box["x"] + (left + right) / 2, box["y"] + at["y"] + at["height"] / 2


def click(page, index):
    """Click on a worker, and wait for its details."""
    page.mouse.click(*middle(page, index))
    page.locator("#details").wait_for()
    drawn(page)


def colour(page, index):
    """Return the colour of a worker's upper left corner, where there is no text."""
    at = place(page, index)
    return pixel(page, at["x"] + 4, at["y"] + 2)


def pixel(page, x, y):
    found = page.evaluate(
        "([x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data]", [x, y]
    )
    return "#" + "".join(f"{part:02x}" for part in found[:3])


def range_shown(page):
    return page.evaluate("[view.from, view.to]")


def test_page_opens_and_shows_the_lanes(show):
    """The page shows a lane for each group and each worker in the colour of its state."""
    page = show(some())
    assert page.title() == "app: timeline"
    assert page.locator("h1").inner_text() == "app"
    assert re.match(r"6 workers · 10\.0 s · recorded \d", page.locator("#about").inner_text())
    assert page.locator("#list li").all_inner_texts() == [
        "app/crawl: 2 workers, 1 at once",
        "app/downloads: 3 workers, 1 at once",
        "app/panel/late: 1 worker, 1 at once",
    ]
    states = page.evaluate("colours")
    expected = ["SUCCESS", "ERROR", "CANCELLED", "CANCELLED", "RUNNING", "SUCCESS"]
    assert [colour(page, index) for index in range(6)] == [states[state] for state in expected]
    tops = [place(page, index)["y"] for index in (0, 1, 4)]
    assert tops == sorted(tops)
    assert place(page, 1)["y"] == place(page, 2)["y"] < place(page, 3)["y"]  # the queue is below
    assert not page.locator("#dropped").is_visible()
    assert page.locator("#range").inner_text() == "0 s to 10.2 s"


def test_page_of_nothing(show):
    """A timeline without workers is still a page."""
    page = show([])
    assert page.locator("#about").inner_text().startswith("0 workers · 1.00 s")


def test_wheel_zooms_round_the_pointer(show):
    """The wheel zooms around the pointer, and everything can be shown again."""
    page = show(some())
    before = place(page, 1)
    x, y = middle(page, 1)
    under = page.evaluate("(x) => us(x)", x)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -240)
    drawn(page)
    after = place(page, 1)
    assert after["width"] > 1.5 * before["width"]
    assert page.evaluate("(x) => us(x)", x) == pytest.approx(under, rel=0.01)
    assert page.locator("#range").inner_text() != "0 s to 10.2 s"
    page.mouse.wheel(0, 2_000)
    for _ in range(10):
        page.mouse.wheel(0, 240)
    drawn(page)
    assert range_shown(page) == pytest.approx([0, 10.2e6])  # no further than all of it
    for _ in range(200):
        page.mouse.wheel(0, -240)
    assert range_shown(page)[1] - range_shown(page)[0] == pytest.approx(5)  # microseconds
    page.get_by_role("button", name="All").click()
    assert range_shown(page) == pytest.approx([0, 10.2e6])


def test_dragging_moves(show):
    """Dragging moves the view and is not a click. The overview selects a range."""
    page = show(some())
    page.get_by_role("button", name="Zoom in").click()
    begin, end = range_shown(page)
    x, y = middle(page, 1)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 50, y)
    page.mouse.move(x - 100, y)
    page.mouse.up()
    moved = range_shown(page)
    assert moved[0] > begin
    assert moved[1] - moved[0] == pytest.approx(end - begin)
    assert not page.locator("#details").is_visible()
    box = page.locator("#whole").bounding_box()
    left, width = page.evaluate("[left, width]")
    for part, act in ((0.25, page.mouse.down), (0.75, page.mouse.up)):
        page.mouse.move(left + part * (width - left), box["y"] + 20)
        act()
    assert range_shown(page) == pytest.approx([2.5e6, 7.5e6], rel=0.01)
    page.mouse.click(left + 0.4 * (width - left), box["y"] + 20)
    assert sum(range_shown(page)) / 2 == pytest.approx(4e6, rel=0.01)


def test_keys(show):
    """The keyboard zooms, moves and focuses the search."""
    page = show(some())
    page.keyboard.press("+")
    page.keyboard.press("w")
    zoomed = range_shown(page)
    assert zoomed[1] - zoomed[0] == pytest.approx(0.49 * 10.2e6)
    page.keyboard.press("d")
    assert range_shown(page)[0] > zoomed[0]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("-")
    page.keyboard.press("0")
    assert range_shown(page) == pytest.approx([0, 10.2e6])
    page.keyboard.press("/")
    page.keyboard.type("two")
    assert page.locator("#found").inner_text() == "1 found"
    page.keyboard.press("Escape")
    assert page.locator("#found").inner_text() == ""


def test_search_by_name(show):
    """Workers that match a search stand out, and Enter brings one after another into view."""
    page = show(some())
    unsearched = colour(page, 0)
    page.get_by_role("searchbox").fill("PAGE t")
    drawn(page)
    assert page.locator("#found").inner_text() == "2 found"
    assert colour(page, 0) != unsearched
    assert colour(page, 2) == page.evaluate("colours.CANCELLED")
    page.keyboard.press("Enter")
    assert page.locator("#found").inner_text() == "1 of 2"
    assert page.locator("#details h2").inner_text() == "page two"
    page.keyboard.press("Enter")
    assert page.locator("#details h2").inner_text() == "page three"
    page.keyboard.press("Enter")
    assert page.locator("#details h2").inner_text() == "page two"
    page.keyboard.press("Shift+Enter")
    assert page.locator("#details h2").inner_text() == "page three"
    page.get_by_role("searchbox").fill("nobody")
    assert page.locator("#found").inner_text() == "0 found"
    page.keyboard.press("Enter")
    page.get_by_role("searchbox").fill("")
    drawn(page)
    assert colour(page, 0) == unsearched


def test_hover_and_click_tell(show):
    """Pointing at a worker shows it in short, a click shows all, with a link to its origin."""
    page = show(some())
    page.mouse.move(*middle(page, 1))
    assert page.locator("#tip").inner_text().splitlines() == [
        "page one",
        "app/downloads",
        "failed, ran 5.00 s, waited 0 s",
        "ValueError: no luck",
        "started by crawl",
    ]
    page.mouse.move(*middle(page, 3))  # it never left the queue
    assert "cancelled, never ran, waited 3.00 s" in page.locator("#tip").inner_text()
    click(page, 2)
    terms, texts = (page.locator(f"#details {each}").all_inner_texts() for each in ("dt", "dd"))
    assert list(zip(terms, texts, strict=True)) == [
        ("state", "cancelled"),
        ("group", "downloads"),
        ("node", "app"),
        ("added at", "1.00 s"),
        ("waited", "5.00 s"),
        ("ran", "2.00 s"),
        ("cancelled", "requested at 7.00 s"),
        ("", "ended 1.00 s later"),
        ("reason", "enough"),
    ]
    click(page, 1)
    page.locator("#details button", has_text="crawl").click()
    assert page.locator("#details h2").inner_text() == "crawl"
    assert page.locator("#details button.jump").all_inner_texts() == ["page one"]
    page.get_by_role("button", name="Close").click()
    assert not page.locator("#details").is_visible()
    drawn(page)
    click(page, 5)
    assert "to end it" in page.locator("#details").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#details").is_visible()
    drawn(page)
    page.mouse.dblclick(*middle(page, 5))
    assert range_shown(page) == pytest.approx([8.7e6, 10.2e6], rel=0.02)


def test_marks_of_services(show):
    """A service shows when it was ready, was restarted and stalled."""
    marks = (Mark(2, "ready"), Mark(5, "attempt 2", "OSError: lost"), Mark(8, "stalled", "for 2 s"))
    page = show([entry(1, "consumer", 0, 0, 10, attempt=2, marks=marks)])
    at = place(page, 0)
    seen = [pixel(page, at["x"] + at["width"] * when / 10, at["y"] + 2) for when in (2, 5, 8)]
    names = ("RUNNING", "ERROR", "CANCELLED")
    assert seen == [page.evaluate("(name) => colours[name]", name) for name in names]
    page.mouse.move(*middle(page, 0))
    assert "attempt 2" in page.locator("#tip").inner_text().splitlines()
    click(page, 0)
    terms, texts = (page.locator(f"#details {each}").all_inner_texts() for each in ("dt", "dd"))
    assert list(zip(terms, texts, strict=True))[-4:] == [
        ("attempts", "2"),
        ("ready", "at 2.00 s"),
        ("attempt 2", "at 5.00 s: OSError: lost"),
        ("stalled", "at 8.00 s: for 2 s"),
    ]


def test_light_and_dark(show):
    """The page follows the system's light or dark mode, even when it changes."""
    page = show(some(), scheme="dark")
    empty = (page.evaluate("width") - 5, page.evaluate("height") - 5)
    assert pixel(page, *empty) == "#12151b"
    page.emulate_media(color_scheme="light")
    page.wait_for_function("colours.back === '#ffffff'")
    drawn(page)
    assert pixel(page, *empty) == "#ffffff"


def test_dropped_workers_are_told(show):
    """The page says how many workers are missing, and until when."""
    page = show(some(), dropped=1234, whole_since=2.0)
    note = page.locator("#dropped")
    assert note.inner_text() == "1,234 older workers dropped: incomplete before 2.00 s"


def test_nasty_texts_are_text(show):
    """Any text is shown as it is, and none of it becomes part of the page."""
    nasty = entry(1, NASTY, 0, 0, 1, ERROR, NASTY, path=NASTY, reason=NASTY, error=NASTY)
    page = show([nasty])
    assert page.locator("h1").text_content() == NASTY
    click(page, 0)
    assert page.locator("#details h2").text_content() == NASTY
    assert page.locator("#tip b").text_content() == NASTY
    page.get_by_role("searchbox").fill(NASTY.replace("\n", ""))
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 0


def test_thousands_of_workers(show):
    """Each of many thousands of workers can be found where it is drawn, and brought into view."""
    page = show(many())
    assert page.locator("#list li").count() == 40
    page.get_by_role("searchbox").fill("item 1999")
    assert page.locator("#found").inner_text() == "11 found"
    for _ in range(11):
        page.keyboard.press("Enter")
        drawn(page)
        name = page.locator("#details h2").inner_text()
        index = page.evaluate("selected")
        box = place(page, index)
        assert box["width"] > 20
        assert 26 <= box["y"] < page.evaluate("height") - box["height"]
        page.mouse.move(*middle(page, index))
        assert page.locator("#tip b").inner_text() == name
    top = page.evaluate("scroll.scrollTop")
    page.keyboard.down("Shift")
    page.mouse.wheel(0, 300)
    page.keyboard.up("Shift")
    drawn(page)
    assert page.evaluate("scroll.scrollTop") != top


def test_narrow_window(show):
    """A narrow window shows everything, with the details below."""
    page = show(some(), size=(420, 700))
    click(page, 1)
    details, lanes = (page.locator(each).bounding_box() for each in ("#details", "#lanes"))
    assert details["y"] >= lanes["y"] + 100
    assert page.evaluate("document.documentElement.scrollWidth") == 420
