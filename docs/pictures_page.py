"""Make the picture of the live page that README.md and docs/web.md show.

    python docs/pictures_page.py

Needs Playwright and a browser, as ``nox -s browser`` does, and uvicorn.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import anyio
import uvicorn
from starlette.applications import Starlette

from creche import Node, get_current_worker
from creche.jobs import Jobs
from creche.services import Backoff, Restart, service
from creche.web import lifespan, routes

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))

import browser as browsers  # noqa: E402 (from the folder of the tests)

NODE = Node("shop", exit_on_error=False)
APP = Starlette(
    routes=routes(Jobs(NODE), page=True, authorize=lambda request, action, status: True),
    lifespan=lifespan(NODE, grace=0),
)


async def photo(number):
    worker = get_current_worker()
    for part in worker.track(range(20)):
        worker.update(description=f"scaling, row {50 * part}")
        await anyio.sleep(0.05 + number % 7 / 100)
        if number == 13 and part == 9:
            raise OSError("photo-013.jpg is truncated (11 bytes not processed)")


async def import_rows(pause, rows):
    worker = get_current_worker()
    worker.update(description="customers.csv, into the table of customers")
    for _ in worker.track(range(rows)):
        await anyio.sleep(pause)


async def listen():
    worker = get_current_worker()
    if worker.attempt == 1:
        raise ConnectionError("the broker has closed the connection")
    worker.ready()
    await anyio.sleep_forever()


def fill():
    NODE.run_worker(lambda: import_rows(0.01, 5_000), name="import", group="jobs")
    restart = Restart(max=5, within=60, backoff=Backoff(0.1, 1))
    NODE.run_worker(service(listen, restart=restart), name="orders", group="services", daemon=True)
    photos = NODE.group("photos", limit=4)
    for number in range(200):
        photos.run_worker(lambda number=number: photo(number), name=f"photo-{number:03}.jpg")


def take(url, picture):
    with browsers.opened() as (browser, reason):
        if browser is None:
            raise SystemExit(reason)
        page = browser.new_page(viewport={"width": 1160, "height": 480}, device_scale_factor=1.5)
        page.goto(url)
        fill()
        page.get_by_text("Failures:").wait_for(timeout=60_000)
        page.wait_for_timeout(6_000)  # until there are rates
        page.locator("#list summary").click()
        page.mouse.move(5, 5)
        page.wait_for_timeout(300)
        page.screenshot(path=picture)


def main(picture):
    server = uvicorn.Server(uvicorn.Config(APP, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.05)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        take(f"http://127.0.0.1:{port}/jobs/page", picture)
    finally:
        NODE.cancel()
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    target = HERE / "pictures" / "page.png"
    main(target)
    print(target)
