"""The app that schemathesis tests: the ids of its jobs are in the OpenAPI document."""

from __future__ import annotations

import anyio
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from creche import Node
from creche.hosting import Host
from creche.jobs import Jobs, ask
from creche.web import router

JOBS = 400
UNKNOWN = "0" * 32

node = Node("app")
jobs = Jobs(node, keep=10_000)
app = FastAPI()
app.include_router(router(jobs, page=True, owner=lambda request: None, authorize=lambda *_: True))
app.include_router(router(jobs, prefix="/mine", owner=lambda request: "me"))


async def work() -> object:
    """Ask a question, and return if no answer comes."""
    with anyio.move_on_after(30):
        return await ask("key", "a question")
    return "no answer"


async def done() -> dict[str, object]:
    """Return at once. No job fails here, as its result would be a 500 by design."""
    await anyio.lowlevel.checkpoint()
    return {"rows": 1}


@app.middleware("http")
async def open_node(request, call_next):
    """Open the node and submit the jobs at the first request."""
    if not jobs.list():
        host = Host(node)
        hosts.append(host)
        await host.start()
        for number in range(JOBS):
            jobs.submit(work if number % 8 == 0 else done, owner=["me", None][number % 2])
        await anyio.sleep(0.1)
    return await call_next(request)


hosts: list[Host[Node]] = []


def openapi():
    """Return the document, with the ids of ended and waiting jobs; for streams only ended ones."""
    document = get_openapi(title="jobs", version="1", routes=app.routes)
    waiting = [job.id for job in jobs.list() if not job.status.done]
    ended = [job.id for job in jobs.list() if job.status.done]
    for path, calls in document["paths"].items():
        for call in calls.values():
            for each in call.get("parameters", ()):
                if each["name"] == "job_id":
                    ids = ended if path.endswith("events") else ended[:40] + waiting
                    each["schema"] = {"type": "string", "enum": [*ids, UNKNOWN]}
    document["paths"] = {
        path: calls for path, calls in document["paths"].items() if path != "/jobs/tree/events"
    }  # this stream does not end
    return document


app.openapi = openapi
