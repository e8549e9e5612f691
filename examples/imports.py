"""A web service that imports tables of people, as jobs that clients can watch and cancel.

In the folder of this file:

    pip install 'creche[web]' fastapi uvicorn
    uvicorn imports:app

    curl -i --data-binary @people.csv localhost:8000/imports     # 202, Location: /jobs/...
    curl -N localhost:8000/jobs/.../events                       # live, to the end
    curl --json '{"key": "name", "value": "who"}' localhost:8000/jobs/.../answers
    curl -X DELETE localhost:8000/jobs/...                       # cancel it

http://localhost:8000/jobs/page shows all workers, and http://localhost:8000/docs the API.
"""

from __future__ import annotations

import csv
import sqlite3
from contextlib import closing
from functools import partial

from fastapi import FastAPI, HTTPException, Request, Response

from creche import Node, get_current_worker
from creche.jobs import Jobs, SQLiteStore, ask_from_thread
from creche.web import accepted, lifespan, router

LARGEST = 10_000_000  # bytes

node = Node("app")
node.group("imports", limit=2)  # at a time; the others are queued
jobs = Jobs(node, store=SQLiteStore("history.db"))
app = FastAPI(lifespan=lifespan(node, grace=3))
app.include_router(router(jobs, page=True))


def import_people(table: str) -> dict[str, object]:
    """Import a table, in a thread."""
    worker = get_current_worker()
    header, *rows = csv.reader(table.splitlines())
    column = ask_from_thread("name", "Which column holds the name?", {"enum": header})
    if column not in header:
        raise ValueError(f"there is no column {column!r}; there are {', '.join(header)}")
    with closing(sqlite3.connect("people.db")) as people, people:  # one transaction
        people.execute("CREATE TABLE IF NOT EXISTS people (name TEXT)")
        for row in worker.track(rows):
            worker.check_cancelled()
            people.execute("INSERT INTO people VALUES (?)", (row[header.index(column)],))
    return {"column": column, "people": len(rows)}


@app.post("/imports", status_code=202)
async def start(request: Request) -> Response:
    """Import the table in the body, a CSV file with a header line."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST:
            raise HTTPException(413, f"a table has at most {LARGEST} bytes")
    try:
        table = body.decode()
    except UnicodeDecodeError:
        raise HTTPException(422, "the table must be UTF-8") from None
    if not table.strip():
        raise HTTPException(422, "the table is empty")
    work = partial(import_people, table)
    job = jobs.submit(work, "import", group="imports", description="people", thread=True)
    return await accepted(job, request)
