"""The page of ``creche.web`` in a real browser: it shows, follows, searches, cancels, reconnects.

Skipped where there is no browser; ``nox -s browser`` installs one.
"""

from __future__ import annotations

import os
import re

import pytest

import browser as browsers
from web_browser import MEASURE, drawn, of_frames, opened, row, rows, until
from web_fake import NOW, Server, failure, group, many, node, some, whole, worker

RLO, ANSI = "\u202egnp.exe", "\x1b[31mred\x1b[0m"
NASTY = "</script><script>throw 'worse'</script><img src=x onerror=\"throw 'worse'\">\n\"'&amp;"


@pytest.fixture(scope="module")
def browser():
    with opened() as found:
        yield found


@pytest.fixture
def show(browser):
    """Open the page of a tree. Errors in it, or requests to another server, fail the test."""
    contexts, servers, wrong = [], [], []

    def show(tree, *, scheme="light", size=(1200, 700), server=None, clock=True):
        if server is None:
            server = Server(tree)
            servers.append(server)
        context = browser.new_context(
            color_scheme=scheme, viewport={"width": size[0], "height": size[1]}
        )
        contexts.append(context)
        page = context.new_page()
        if clock:
            page.add_init_script("Date.now = () => 1764170000000")
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda told: wrong.append(told.text) if is_wrong(told) else None)
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda asked: None if asked.url.startswith(server.url[:-4]) else
                wrong.append(asked.url))  # fmt: skip
        page.goto(server.url)
        page.server = server
        if tree is not None:
            page.get_by_text("live", exact=True).wait_for()
            drawn(page)
        return page

    yield show
    for context in contexts:
        context.close()
    for server in servers:
        server.stop()
    assert wrong == []


def is_wrong(told):
    """Return whether an error is more than the browser's report that a server is unreachable."""
    return told.type == "error" and not told.text.startswith("Failed to load resource")


def key(page, *keys):
    for each in keys:
        page.keyboard.press(each)
    drawn(page)


def details(page):
    drawn(page)
    terms, texts = (page.locator(f"#details {each}").all_inner_texts() for each in ("dt", "dd"))
    return dict(zip(terms, texts, strict=True))


def test_it_shows_the_tree(show):
    """Nodes, groups and workers are rows, with progress, queue, rate, time left and notes."""
    page = show(some())
    assert page.title() == "app: workers"
    assert page.locator("h1").inner_text() == "app"
    assert page.locator("#counts").inner_text() == "4 running · 1 queued"
    assert rows(page) == [
        "app",
        "downloads | 10 failed | 3 running · 1 queued · limit 4 | 312 of 5,000 | 39/s | 2 min left",
        "fetch | fetch('/4') | 50 of 200 | 5/s | 30 s left | 10 s",
        "<script>alert(1)</script> | 12,345 | 1,235/s | 10 s",
        "fetch | is being cancelled | not needed | 10 s",
        "late | queued | 20 s",
        "panel | shutting down",
        "default | 1 running",
        "consumer | attempt 3, not ready, stalled | 10 s",
    ]
    levels = [each.get_attribute("aria-level") for each in page.get_by_role("treeitem").all()]
    assert sorted(levels) == sorted("123333234")
    assert page.get_by_role("button", name="Cancel").count() == 4  # one is being cancelled


def test_failures_tell_their_text(show):
    """The newest failure is on top, with the first line of its text. A click shows the rest."""
    page = show(some())
    assert page.locator("#failures h2").inner_text() == "Failures: 2"
    told = page.locator("#list summary").all_inner_texts()
    assert told == ["parse OSError: gone", "fetch ValueError: no such page"]
    page.locator("#list summary").first.click()
    assert page.locator("#list pre").first.inner_text() == "OSError: gone\nthe second line"
    assert "app / downloads" in page.locator("#list p").first.inner_text()
    assert page.locator("#list p").first.inner_text().endswith("#13 · attempt 2")
    page.server.tell("change", time=NOW + 1, failures=[failure(14, "new", "KeyError: 'x'")])
    page.get_by_text("Failures: 3").wait_for()
    assert page.locator("#list pre").nth(1).is_visible()  # an open failure stays open


def test_it_follows_changes(show):
    """Rows appear, change and disappear as the server reports. Rates cover the last seconds."""
    page = show(some())
    tell = page.server.tell
    tell("change", time=NOW + 10, workers=[{"number": 17, "completed_steps": 150, "progress": 75}])
    page.get_by_text("150 of 200").wait_for()
    assert rows(page)[2].startswith("fetch | fetch('/4') | 150 of 200 | 7.5/s | ")
    tell(
        "change",
        time=NOW + 11,
        nodes=[node(2, 1, "deep", "app/panel/deep")],
        groups=[group(2, 2, "more", running=1, total=1), group(limit=9, running=2, total=5_000)],
        workers=[worker(22, 2, "new"), {"number": 99, "completed_steps": 5}],
        ended=[{"number": 17, "state": "SUCCESS"}, {"number": 19, "state": "CANCELLED"},
               {"number": 98, "state": "SUCCESS"}],
    )  # fmt: skip
    row(page, "new").wait_for()
    until(page, "flat.length === 10")  # the rows of ended workers are gone
    assert rows(page)[1:] == [
        "downloads | 2 running · limit 9",
        "<script>alert(1)</script> | 12,345 | 588/s | 21 s",
        "late | queued | 31 s",
        "panel | shutting down",
        "default | 1 running",
        "consumer | attempt 3, not ready, stalled | 21 s",
        "deep",
        "more | 1 running",
        "new | 21 s",
    ]
    tell("change", time=NOW + 12, nodes_gone=[1, 2], groups_gone=[0],
         ended=[{"number": n, "state": "SUCCESS"} for n in (18, 20, 21, 22)])  # fmt: skip
    until(page, "flat.length === 1")
    tell("tree", **many(3))
    row(page, "job 3").wait_for()
    assert len(rows(page)) == 5


def test_ends_are_seen_for_a_moment(show):
    """A worker that has ended keeps its row for a moment, which shows how it ended."""
    page = show(some())
    page.evaluate("sweep = () => {}")
    ended = zip((17, 18, 21), ("SUCCESS", "ERROR", "CANCELLED"), strict=True)
    page.server.tell(
        "change", time=NOW, ended=[{"number": number, "state": state} for number, state in ended]
    )
    row(page, "failed").nth(1).wait_for()
    told = rows(page)
    assert told[2] == "fetch | done | 10 s"
    assert told[3].startswith("<script>alert(1)</script> | failed")
    assert told[8] == "consumer | attempt 3, cancelled | 10 s"


def test_cancel_button(show):
    """The button asks for a reason and sends a request. A refusal by the server is shown."""
    page = show(some())
    row(page, "fetch('/4')").get_by_role("button").click()
    assert page.locator("dialog h2").inner_text() == "Cancel fetch?"
    page.get_by_label("Reason").fill("not needed")
    page.get_by_role("button", name="Cancel the worker").click()
    asked = page.server.asked.get(timeout=10)
    assert asked == ("/jobs/workers/17/cancel", "application/json", {"reason": "not needed"})
    page.server.answer = (403, {"title": "no", "detail": "only its owner may do that"})
    row(page, "late").click()
    page.locator("#details").get_by_role("button", name="Cancel").click()
    page.keyboard.press("Enter")  # in the field for the reason
    assert page.server.asked.get(timeout=10) == ("/jobs/workers/20/cancel", "application/json", {})
    page.get_by_role("alert").get_by_text("only its owner may do that").wait_for()
    page.server.answer = (404, {})  # the worker has ended, which is not an error
    row(page, "consumer").get_by_role("button").click()
    page.get_by_role("button", name="Let it run").click()
    row(page, "consumer").get_by_role("button").click()
    page.keyboard.press("Enter")
    assert page.server.asked.get(timeout=10)[0] == "/jobs/workers/21/cancel"
    assert page.server.asked.empty()


def test_who_may_not_cancel_has_no_buttons(show):
    """Without permission to cancel, there are no buttons, and the Delete key does nothing."""
    page = show({**some(), "may_cancel": False})
    assert page.get_by_role("button", name="Cancel").count() == 0
    row(page, "late").click()
    assert details(page)["state"] == "queued"
    assert page.get_by_role("button", name="Cancel").count() == 0
    key(page, "Delete")
    assert not page.locator("dialog").is_visible()


def test_details(show):
    """A click shows the details of a worker, group or node, and keeps them up to date."""
    page = show(some())
    row(page, "fetch('/4')").click()
    told = details(page)
    assert told == {
        "state": "running", "group": "downloads", "node": "app", "steps": "50 of 200",
        "progress": "25 %", "rate": "5/s", "time left": "30 s", "waited": "10 s",
        "runs for": "10 s", "number": "#17", "description": "fetch('/4')",
    }  # fmt: skip
    page.server.tell("change", time=NOW, workers=[{"number": 17, "attempt": 2, "thread": True}])
    page.locator("#details").get_by_text("attempt 2").wait_for()
    assert details(page)["runs in"] == "a thread"
    page.server.tell("change", time=NOW, workers=[{"number": 17, "where": "process 4711"}])
    page.locator("#details").get_by_text("process 4711").wait_for()
    row(page, "5,000").click()
    assert details(page) == {
        "node": "app", "limit": "4, then enqueue", "running": "3", "queued": "1", "done": "300",
        "failed": "10", "cancelled": "2", "ended": "312 of 5,000", "progress": "6 %",
        "rate": "39/s", "time left": "2 min",
    }  # fmt: skip
    row(page, "shutting down").click()
    assert details(page) == {"node": "app/panel", "life": "shutting down"}
    page.get_by_role("button", name="Close").click()
    drawn(page)
    assert not page.locator("#details").is_visible()


def test_keyboard_alone(show):
    """The whole page can be used without a pointer."""
    page = show(some())
    key(page, "/")
    assert page.evaluate("document.activeElement.id") == "search"
    key(page, "Escape", "ArrowDown", "ArrowDown", "Enter")
    assert page.locator("#details h2").inner_text() == "fetch"
    assert page.locator("#tree").get_attribute("aria-activedescendant") == "w17"
    key(page, "ArrowDown")
    assert page.locator("#details h2").inner_text() == "<script>alert(1)</script>"
    key(page, "Escape", "ArrowLeft", "ArrowLeft")  # to its group, which is folded
    assert len(rows(page)) == 5
    assert page.locator(".row.active").get_attribute("aria-expanded") == "false"
    key(page, "ArrowRight")
    assert len(rows(page)) == 9
    key(page, "ArrowRight", "Delete")
    page.keyboard.type("enough")
    key(page, "Enter")
    assert page.server.asked.get(timeout=10)[::2] == (
        "/jobs/workers/17/cancel",
        {"reason": "enough"},
    )
    key(page, "End")
    assert page.locator(".row.active").inner_text().startswith("consumer")
    key(page, "Delete", "Escape", "Home", "PageDown", "PageUp", "ArrowUp")
    assert not page.locator("dialog").is_visible()
    assert page.locator(".row.active").inner_text().startswith("app")
    key(page, "Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    key(page, "Enter")
    assert page.locator("#list pre").first.is_visible()


def test_search(show):
    """Matches are shown along with the rows that contain them. Failures are searched too."""
    page = show(some())
    page.get_by_role("searchbox").fill("CONS")
    page.get_by_text("1 found").wait_for()
    assert [each.split(" | ")[0] for each in rows(page)] == ["app", "panel", "default", "consumer"]
    page.get_by_role("searchbox").fill("panel")
    until(page, "flat.length === 4")
    page.get_by_role("searchbox").fill("gone")
    page.get_by_text("Failures: 2, 1 found").wait_for()
    assert page.locator("#list li").count() == 1
    page.get_by_role("searchbox").fill("#18")
    until(page, "flat.length === 3")
    page.get_by_role("searchbox").fill("nobody")
    page.get_by_text("0 found", exact=True).wait_for()
    assert rows(page) == []
    page.keyboard.press("Escape")
    until(page, "flat.length === 9")
    assert page.locator("#found").inner_text() == ""


def test_a_long_queue_is_folded(show):
    """The first queued workers are rows. The rest is a number until it is unfolded."""
    waiting = [worker(n, name=f"job {n}", state="PENDING", is_queued=True) for n in range(2, 100)]
    tree = whole([node()], [group(running=1, queued=98)], [worker(1, name="first"), *waiting])
    page = show(tree)
    assert [line.split(" | ")[0] for line in rows(page)[2:]] == [
        "first", "job 2", "job 3", "job 4", "job 5", "job 6", "… 93 more queued",
    ]  # fmt: skip
    page.server.tell("change", time=NOW, workers=[{"number": 2, "state": "RUNNING"}])
    row(page, "92 more").wait_for()
    page.get_by_role("searchbox").fill("job 99")
    until(page, "flat.length === 3")
    key(page, "Escape", "Escape", "End", "Enter")
    assert page.evaluate("[flat.length, flat[places.get(active)].name]") == [101, "job 7"]
    page.reload()
    row(page, "more queued").click()
    until(page, "flat.length === 101")


def test_folding(show):
    """A click on the arrow, or a double click on the row, folds a group or a node."""
    page = show(some())
    row(page, "5,000").locator(".mark").click()
    until(page, "flat.length === 5")
    row(page, "app").first.dblclick()
    until(page, "flat.length === 1")
    row(page, "app").first.locator(".mark").click()
    until(page, "flat.length === 5")


@pytest.mark.parametrize(
    "text",
    [NASTY, RLO, ANSI, "x" * 5_000_000, "مرحبا " * 20, "漢字", "🚀"],
    ids=["html", "override", "ansi", "5 MB", "right-to-left", "wide", "emoji"],
)
def test_hostile_texts_are_text(show, text):
    """Hostile texts are shown literally, and none of their content becomes part of the page."""
    tree = whole(
        [node(name=text, is_cancelled=True, cancel_reason=text)],
        [group(name=text)],
        [worker(1, name=text, description=text, is_cancelled=True, cancel_reason=text)],
        [failure(2, text, text)],
    )
    page = show(tree, size=(360, 640))
    page.evaluate("go(2, {open: true})")
    drawn(page)
    shown = re.sub(r"[\x00-\x1f]", lambda found: chr(0x2400 + ord(found[0])), text)
    shown = shown if len(text) <= 300 else "x" * 300 + "…"
    assert page.locator(".row.worker bdi").first.text_content() == shown
    assert page.locator("h1").text_content() == shown
    assert page.locator("#details h2").text_content() == shown
    assert page.locator("script").count() == 1
    assert page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    left = [each["x"] for each in (each.bounding_box() for each in page.locator(".row").all())]
    assert left == [0] * len(left)
    page.locator("#list summary").click()
    assert page.evaluate("document.body.textContent.length") < 100_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1200, 700), (360, 640)])
def test_no_violation_of_accessibility(show, scheme, size):
    """axe-core finds no violation, whatever is open on the page."""
    code = browsers.axe()
    if code is None:
        if os.environ.get("CRECHE_BROWSER_NEEDED"):
            pytest.fail("axe-core is not installed")
        pytest.skip("axe-core is not installed; nox -s browser installs it")
    page = show(some(), scheme=scheme, size=size)

    def check():
        drawn(page)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        assert [(each["id"], [node["html"] for node in each["nodes"]])
                for each in found["violations"]] == []  # fmt: skip

    page.evaluate(code)
    check()
    page.locator("#list summary").first.click()
    page.get_by_role("searchbox").fill("fetch")
    page.evaluate("go(2, {open: true})")
    check()
    key(page, "Escape")
    page.evaluate("askToCancel(flat[2])")
    check()
    page.evaluate("dialog.close(), say('it was not'), online(false, 'disconnected')")
    check()


def test_light_and_dark(show):
    """The page follows the light or dark mode of the system, even if that changes."""
    page = show(some(), scheme="dark")
    back = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(back) == "rgb(18, 21, 27)"
    page.emulate_media(color_scheme="light")
    assert page.evaluate(back) == "rgb(255, 255, 255)"


def test_narrow_window(show):
    """On a phone everything is there: names can be read without scrolling sideways."""
    page = show(some(), size=(360, 640))
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    box = row(page, "fetch('/4')").bounding_box()
    button = row(page, "fetch('/4')").get_by_role("button").bounding_box()
    assert (box["width"], button["x"] + button["width"] <= 360) == (360, True)
    for part in ("bdi", ".steps", ".left", ".age"):
        each = row(page, "fetch('/4')").locator(part).first.bounding_box()
        assert each["width"] > 10
        assert box["y"] <= each["y"] <= each["y"] + each["height"] <= box["y"] + box["height"]
    row(page, "fetch('/4')").click()
    assert details(page)["progress"] == "25 %"
    tree = page.locator("#tree").bounding_box()
    assert tree["height"] > 250


def test_the_server_goes_away_and_comes_back(show):
    """The page says that the server is gone, keeps its rows, and reconnects by itself."""
    page = show(some())
    page.server.tell("end")
    page.get_by_text("the server is shutting down").wait_for()
    page.server.stop()
    page.server.whole = None
    page.server.start()  # a server that is shutting down answers 503, and the browser gives up
    until(page, "source.readyState === EventSource.CLOSED")
    assert page.locator("#link").inner_text() == "the server is shutting down"
    assert len(rows(page)) == 9
    page.server.whole = many(2)
    page.get_by_text("live", exact=True).wait_for()
    assert len(rows(page)) == 4


def test_a_connection_that_breaks(show):
    """If the server vanishes without notice, the page says "disconnected" and reconnects."""
    page = show(some())
    page.server.opened.get(timeout=10)
    page.server.stop()
    page.get_by_text("disconnected, trying again").wait_for()
    page.server.whole = many(2)
    page.server.start()
    page.get_by_text("live", exact=True).wait_for()
    assert len(rows(page)) == 4


def test_no_server_at_first(show):
    """A page that is opened before there is a tree keeps asking until it gets one."""
    server = Server(None)
    page = show(None, server=server)
    page.get_by_text("disconnected, trying again").wait_for()
    server.whole = some()
    page.get_by_text("live", exact=True).wait_for()
    assert len(rows(page)) == 9
    page.close()
    server.stop()


def test_thousands_of_workers(show):
    """With 5,000 workers that change four times a second, only visible rows are elements."""
    page = show(many())
    assert page.evaluate("flat.length") == 5002
    page.evaluate("""() => {
      const spent = window.spent = [], take = takeChange, picture = draw;
      const timed = (step) => (...args) => {
        const begun = performance.now();
        step(...args);
        spent.push(performance.now() - begun);
      };
      takeChange = timed(take); draw = timed(picture);
    }""")
    for turn in range(1, 21):
        page.server.tell(
            "change",
            time=NOW + turn / 4,
            workers=[{"number": n, "completed_steps": turn * 3 + n % 3} for n in range(1, 5_001)],
        )
        if turn == 4:
            gaps = page.evaluate(MEASURE, True)  # while further changes arrive
        page.wait_for_timeout(20)
    until(page, "workers.get(5000).completed_steps === 62")
    longest = max(page.evaluate("spent"))
    print(of_frames(gaps), "longest step", longest)  # noqa: T201 (see it with -s)
    assert page.locator(".row").count() < 60
    for end, place in (("End", 5000), ("Home", None)):
        page.locator("#tree").focus()
        key(page, end)
        if place:
            assert page.locator(".row.active").inner_text().startswith(f"job {place}")
    page.get_by_role("searchbox").fill("job 4999")
    until(page, "flat.length === 3")


def test_what_is_read_stays_in_place(show):
    """Visible rows do not move when workers above them end."""
    page = show(many())
    page.evaluate("tree.scrollTop = 2_000 * height() + 7")
    drawn(page)
    before = row(page, "job 2005").bounding_box()["y"]
    gone = [{"number": n, "state": "SUCCESS"} for n in range(1, 1_001)]
    page.server.tell("change", time=NOW, ended=gone)
    until(page, "flat.length === 4002")
    drawn(page)
    assert row(page, "job 2005").bounding_box()["y"] == before
