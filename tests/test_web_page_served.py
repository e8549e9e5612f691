"""The page of ``creche.web`` in a real browser, served by the real server under uvicorn.

Skipped where there is no browser; ``nox -s browser`` sees to it that there is one.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import partial

import anyio
import pytest

from creche import Node, get_current_worker
from helpers import RENDEZVOUS, fail
from web_browser import MEASURE, drawn, of_frames, opened, row, rows, until

pytest.importorskip("uvicorn")
pytest.importorskip("sse_starlette")

import uvicorn
from starlette.applications import Starlette

from creche.jobs import Jobs
from creche.web import lifespan, routes

__all__ = ["browser"]

NASTY = "</script><script>throw 'worse'</script><img src=x onerror=\"throw 'worse'\">"


@pytest.fixture(scope="module")
def browser():
    with opened() as found:
        yield found


@contextmanager
def served(node, port=0, **options):
    """Serve the page of a node in a thread, and yield its address."""
    app = Starlette(
        routes=routes(Jobs(node), page=True, **options), lifespan=lifespan(node, grace=0)
    )
    config = uvicorn.Config(app, port=port, log_config=None, timeout_graceful_shutdown=5)
    server, started = uvicorn.Server(config), threading.Event()
    startup = server.startup

    async def note_start(sockets=None):
        await startup(sockets)
        started.set()

    server.startup = note_start
    thread = threading.Thread(target=server.run)
    thread.start()
    assert started.wait(RENDEZVOUS)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/jobs/page"
    finally:
        node.cancel()  # as by a signal, which only the main thread gets
        server.should_exit = True
        thread.join()


@pytest.fixture
def show(browser):
    """Open the page at an address, and check that it has no errors."""
    contexts, wrong = [], []

    def show(url):
        context = browser.new_context(viewport={"width": 1200, "height": 700})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(url)
        page.get_by_text("live", exact=True).wait_for()
        return page

    yield show
    for context in contexts:
        context.close()
    assert wrong == []


def allow(request, action, status):
    return True


async def copy():
    get_current_worker().update(50, 200, description="part 1 of it")
    await anyio.sleep_forever()


def test_what_runs_is_shown_and_can_be_cancelled(show):
    """What a program does is on the page as it happens, and a click cancels a worker."""
    node = Node("app", exit_on_error=False)
    with served(node, authorize=allow) as url:
        downloads = node.group("downloads", limit=2)
        workers = [downloads.run_worker(copy, name=f"copy {n}") for n in range(4)]
        page = show(url)
        row(page, "copy 3").wait_for()
        until(
            page, "[...workers.values()].filter((each) => each.completed_steps === 50).length == 2"
        )
        told = [line.split(" | ") for line in rows(page)]
        assert told[0] == ["app"]
        assert told[1] == ["downloads", "2 running · 2 queued · limit 2"]
        assert told[2][:3] == ["copy 0", "part 1 of it", "50 of 200"]
        assert told[5][:2] == ["copy 3", "queued"]
        row(page, "copy 0").get_by_role("button").click()
        page.get_by_label("Reason").fill("not needed")
        page.get_by_role("button", name="Cancel the worker").click()
        page.get_by_text("1 of 4").wait_for()
        assert (workers[0].is_cancelled, workers[0].cancel_reason) == (True, "not needed")
        until(page, "flat.length === 5")
        node.run_worker(partial(fail, ValueError(f"of {NASTY}\nline two")), name=NASTY)
        page.get_by_text("Failures: 1").wait_for()
        page.locator("#list summary").click()
        assert page.locator("#list pre").inner_text() == f"ValueError: of {NASTY}\nline two"
        node.run_worker(anyio.sleep_forever, name=5_000_000 * "x", group="long")
        until(page, "[...groups.values()].some((each) => each.name === 'long')")
        page.get_by_role("searchbox").fill("copy 3")
        page.get_by_text("1 found", exact=True).wait_for()
        assert page.locator("script").count() == 1


def test_who_may_only_watch(show):
    """A client without permission to cancel gets no buttons."""
    node = Node("app")
    with served(node) as url:
        node.run_worker(copy)
        page = show(url)
        row(page, "copy").wait_for()
        assert page.get_by_role("button", name="Cancel").count() == 0


def test_the_server_ends_and_another_begins(show):
    """An open page does not keep the server from ending, and connects to the next one."""
    with served(Node("first")) as url:
        page = show(url)
        assert page.locator("h1").inner_text() == "first"
    page.locator("#link.off").wait_for()
    node = Node("second")
    with served(node, port=int(url.split(":")[2].split("/")[0])):
        node.run_worker(copy)
        page.get_by_text("second").first.wait_for()
        row(page, "copy").wait_for()
        assert page.locator("#link").inner_text() == "live"


async def tick(workers):
    """Advance all workers, again and again."""
    while True:
        for worker in workers:
            worker.advance()
        await anyio.sleep(0.25)


def test_thousands_of_workers(show):
    """5,000 workers that advance are shown as they do, while the page is scrolled."""
    node = Node("app")
    with served(node) as url:
        workers = [node.run_worker(anyio.sleep_forever, name=f"job {n}") for n in range(5_000)]
        node.run_worker(partial(tick, workers), group="tick")
        page = show(url)
        until(page, "flat.length === 5004 && [...workers.values()][100].completed_steps > 0")
        print(of_frames(page.evaluate(MEASURE, True)))  # noqa: T201 (see it with -s)
        assert page.locator(".row").count() < 60
        until(page, "flat.filter((each) => each.completed_steps > 3).length === 5000")
        for worker in workers[1:]:
            worker.cancel()
        until(page, "flat.length === 5")
        drawn(page)
        assert rows(page)[2].startswith("job 0")
