"""Jobs over HTTP: what is asked, and what is answered."""

from __future__ import annotations

import json
import math
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial

import anyio
import pytest
from anyio import lowlevel

from creche import Node, WorkerError, get_current_worker
from creche.jobs import Jobs, JobStatus, _jobs, ask
from helpers import fail, give_later, slow_to_leave, until

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("sse_starlette")

import httpx
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount, Route

from creche.web import _answers, accepted, lifespan, router, routes
from creche.web._closing import closing_of

UNKNOWN = "0" * 32


async def one():
    await lowlevel.checkpoint()
    return {"rows": 1}


@pytest.fixture(params=["starlette", "fastapi"])
def framework(request):
    return request.param


@asynccontextmanager
async def serve(jobs, framework="starlette", works=(), **options):
    """Serve jobs, and a POST that starts one, in this event loop."""

    async def start(request):
        job = jobs.submit(works[int(request.query_params.get("work", 0))], owner="me")
        return await accepted(job, request)

    if framework == "starlette":
        start = Route("/start", start, methods=["POST"])
        app = Starlette(
            routes=[start, *routes(jobs, **options)], lifespan=lifespan(jobs.node, grace=0)
        )
    else:
        app = FastAPI(lifespan=lifespan(jobs.node, grace=0))
        app.add_route("/start", start, methods=["POST"])
        app.include_router(router(jobs, **options))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


def path(job, rest=""):
    return f"/jobs/{job.id}{rest}"


def problem(answer, status):
    """Check that an answer is a problem, and return its content."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["status"] == status
    assert told["type"] == "about:blank"
    assert told["title"]
    return told["detail"]


def events_of(answer):
    """Return the events of a stream that has ended."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    found = []
    for block in answer.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((fields["event"], fields.get("id"), json.loads(fields["data"])))
    return found


# a job is started


async def test_accepted(framework):
    """The answer is 202, with the job, its URL, and when to ask again."""
    jobs = Jobs(Node("app"))
    async with serve(jobs, framework, [anyio.sleep_forever]) as client:
        answer = await client.post("/start")
        assert answer.status_code == 202
        (job,) = jobs.list()
        assert answer.headers["location"] == path(job)
        assert answer.headers["retry-after"] == "1"
        told = answer.json()
        assert (told["id"], told["status"], told["owner"]) == (job.id, "queued", "me")
        assert (await client.get(answer.headers["location"])).json()["id"] == job.id


async def test_accepted_with_a_wait(framework, monkeypatch):
    """``Prefer: wait`` is answered when the job ends, or after that time."""
    gate = anyio.Event()
    jobs = Jobs(Node("app"))
    async with serve(jobs, framework, [one, partial(give_later, 1, gate)]) as client:
        wait = {"prefer": "respond-async, wait=5"}
        answer = await client.post("/start", headers=wait)
        assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
        assert answer.headers["preference-applied"] == "wait=5"
        assert "retry-after" not in answer.headers
        monkeypatch.setattr(_answers, "LONGEST_WAIT", 0.01)
        answer = await client.post("/start?work=1", headers=wait)
        assert (answer.status_code, answer.json()["status"]) == (202, "running")
        gate.set()


async def test_accepted_that_has_ended():
    """A job that was dropped before the answer is answered without a wait."""
    jobs = Jobs(Node("app"))
    async with serve(jobs) as client:
        job = await jobs.submit(one).join()

        async def start(request):
            return await accepted(job, request, location="/elsewhere")

        app = Starlette(routes=[Route("/", start)])
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as other:
            answer = await other.get("/", headers={"prefer": "wait=5"})
        assert (answer.status_code, answer.headers["location"]) == (200, "/elsewhere")
        assert client


@pytest.mark.parametrize("given", ["wait=x", "wait", "wait=-1", "handling=lenient", "wait=1e9"])
async def test_preferences_that_are_none(given):
    """A preference that is not understood is ignored, as RFC 7240 says."""
    jobs = Jobs(Node("app"))
    async with serve(jobs, works=[anyio.sleep_forever]) as client:
        answer = await client.post("/start", headers={"prefer": given})
        assert answer.status_code == 202
        assert "preference-applied" not in answer.headers


# how it stands


async def test_get(framework):
    """GET returns the job with an ETag, or 304 if the client has it already."""
    gate = anyio.Event()
    jobs = Jobs(Node("app"))
    async with serve(jobs, framework) as client:
        job = jobs.submit(partial(give_later, 1, gate), name="import", owner="me")
        await until(lambda: job.status.status == "running")
        answer = await client.get(path(job))
        assert answer.status_code == 200
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["cache-control"] == "private, no-cache"
        assert JobStatus.from_dict(answer.json()) == job.status
        for known in (answer.headers["etag"], f'"x", W/{answer.headers["etag"]}', "*"):
            again = await client.get(path(job), headers={"if-none-match": known})
            assert (again.status_code, again.text) == (304, "")
            assert again.headers["etag"] == answer.headers["etag"]
            assert again.headers["retry-after"] == "1"
        gate.set()
        await job.join()
        old = {"if-none-match": answer.headers["etag"]}
        answer = await client.get(path(job), headers=old)
        assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
        assert "retry-after" not in answer.headers
        known = {"if-none-match": answer.headers["etag"]}
        again = await client.get(path(job), headers=known)
        assert again.status_code == 304
        assert "retry-after" not in again.headers


async def test_long_poll(framework, monkeypatch):
    """A long poll is answered when the job ends, when it changes (with an ETag), or in time."""
    gate = anyio.Event()
    jobs = Jobs(Node("app"))
    async with serve(jobs, framework) as client:
        job = jobs.submit(partial(give_later, 1, gate))
        await until(lambda: job.status.status == "running")
        tag = (await client.get(path(job))).headers["etag"]
        answers = []

        async def poll(headers=None):
            answers.append(await client.get(path(job, "?wait=30"), headers=headers))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(poll)
            tasks.start_soon(poll, {"if-none-match": tag})
            await until(lambda: job.worker._rare is not None and job.worker._rare.followers)
            job.worker.update(description="on its way")
            await until(lambda: answers)
            assert [each.json()["message"] for each in answers] == ["on its way"]
            gate.set()
        assert [each.json()["status"] for each in answers] == ["running", "succeeded"]
        gate = anyio.Event()
        job = jobs.submit(partial(give_later, 1, gate))
        monkeypatch.setattr(_answers, "LONGEST_WAIT", 0.01)
        for wait in ("30", "1e9", "45.805039980340474"):
            answer = await client.get(path(job, f"?wait={wait}"))
            assert answer.json()["status"] == "running"
        gate.set()


@pytest.mark.parametrize("wait", ["x", "-1", "", "nan", "inf", "1e", "1_0", "1" * 60])
async def test_waits_that_make_no_sense(wait):
    """Invalid waits are refused."""
    jobs = Jobs(Node("app"))
    async with serve(jobs) as client:
        job = jobs.submit(one)
        answer = await client.get(path(job), params={"wait": wait})
        assert "wait must be a number of seconds" in problem(answer, 422)


async def test_unknown(framework):
    """Whatever is asked about a job that is not there is 404, with a word about processes."""
    jobs = Jobs(Node("app"))
    async with serve(jobs, framework) as client:
        calls = [("GET", ""), ("DELETE", ""), ("GET", "/result"), ("GET", "/events")]
        for method, rest in [*calls, ("POST", "/answers")]:
            for job_id in (UNKNOWN, "x", "%00", "a b"):
                answer = await client.request(method, f"/jobs/{job_id}{rest}")
                assert "another process took it" in problem(answer, 404)


# the outcome


@dataclass
class Row:
    """A result that cannot be JSON."""

    when: datetime


class Model:
    """A stand-in for a Pydantic model."""

    def model_dump(self, mode):
        return {"mode": mode}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"rows": 1}, {"rows": 1}),
        (None, None),
        ("ünï\ud800", "ünï\ud800"),
        ([Row(datetime(2026, 1, 2, tzinfo=timezone.utc))], [{"when": "2026-01-02T00:00:00+00:00"}]),
        (Model(), {"mode": "json"}),
    ],
)
async def test_result(value, told):
    """The result is the value, as JSON."""

    async def give():
        return value

    jobs = Jobs(Node("app"))
    async with serve(jobs) as client:
        job = await jobs.submit(give).join()
        answer = await client.get(path(job, "/result"))
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "private"
        assert answer.json() == told


ROUND = []
ROUND.append(ROUND)


@pytest.mark.parametrize("value", [{1, 2}, math.nan, ROUND, object(), JobStatus, {(1, 2): 3}])
async def test_result_that_cannot_be_written(value):
    """A result that cannot be written as JSON is an error, and the server goes on."""

    async def give():
        return value

    jobs = Jobs(Node("app"))
    async with serve(jobs) as client:
        job = await jobs.submit(give).join()
        for _ in range(2):
            detail = problem(await client.get(path(job, "/result")), 500)
            assert detail.startswith("the result of the job cannot be written as JSON: ")


async def test_no_result(framework):
    """The status code says why there is no result: not yet, or never."""
    gate = anyio.Event()
    store = Store()
    jobs = Jobs(Node("app"), keep=4, store=store)
    async with serve(jobs, framework) as client:
        running = jobs.submit(partial(give_later, 1, gate))
        answer = await client.get(path(running, "/result"))
        assert problem(answer, 409) == "the job has not ended yet"
        assert answer.headers["retry-after"] == "1"
        cancelled = jobs.submit(one)
        cancelled.cancel()
        answer = await client.get(path(cancelled, "/result"))
        assert problem(answer, 410) == "the job was cancelled, so it has no result"
        failed = await jobs.submit(partial(fail, ValueError("no luck"))).join()
        answer = await client.get(path(failed, "/result"))
        assert problem(answer, 500) == "the job failed: ValueError: no luck"
        assert answer.json()["error"] == "ValueError"
        bare = await jobs.submit(partial(fail, KeyError())).join()
        assert problem(await client.get(path(bare, "/result")), 500) == "the job failed: KeyError"
        gone = await jobs.submit(one).join()
        store.kept[gone.id] = gone.status
        jobs.remove(gone.id)
        store.kept[gone.id] = gone.status
        answer = await client.get(path(gone, "/result"))
        assert problem(answer, 410) == "the result is not kept any more"
        interrupted = store.interrupted()
        answer = await client.get(f"/jobs/{interrupted}/result")
        assert "was interrupted by the end of its program" in problem(answer, 410)
        gate.set()


class Store:
    """A store that knows more jobs than this process does, such as a shared one."""

    def __init__(self):
        self.kept = {}
        self.error = None

    def put(self, status):
        self.kept[status.id] = status

    def get(self, job_id):
        if self.error:
            raise self.error
        return self.kept.get(job_id)

    def list(self):
        return self.kept.values()

    def delete(self, job_id):
        self.kept.pop(job_id, None)

    def interrupted(self):
        status = _jobs.interrupted(_jobs._new_status("me"), 60)
        self.kept[status.id] = status
        return status.id


# the stream


async def test_events_of_a_job(framework):
    """Each event has the current status. The stream closes after the final one."""
    gate = anyio.Event()
    jobs = Jobs(Node("app"))
    async with serve(jobs, framework) as client:
        job = jobs.submit(partial(give_later, 1, gate))
        answers = []

        async def listen():
            answers.append(await client.get(path(job, "/events")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await until(lambda: job.worker._rare is not None and job.worker._rare.followers)
            gate.set()
        told = events_of(answers[0])
        assert [each[0] for each in told] == ["job"] * (len(told) - 1) + ["end"]
        assert told[-2][2] == job.status.to_dict()
        assert told[-1][1:] == ("end", {})


async def test_events_of_a_job_that_has_ended():
    """The stream has the status and the end. A client that has both gets 204."""
    jobs = Jobs(Node("app"))
    async with serve(jobs) as client:
        job = await jobs.submit(one).join()
        tag = (await client.get(path(job))).headers["etag"].strip('"')
        for headers in ({}, {"last-event-id": tag}, {"last-event-id": "x"}):
            told = events_of(await client.get(path(job, "/events"), headers=headers))
            assert told == [("job", tag, job.status.to_dict()), ("end", "end", {})]
        answer = await client.get(path(job, "/events"), headers={"last-event-id": "end"})
        assert (answer.status_code, answer.text) == (204, "")


async def test_events_are_coalesced():
    """Events of a fast job are sent a few times a second, and its end at once."""
    jobs = Jobs(Node("app"))

    async def hurry():
        for _ in get_current_worker().track(range(1_000)):
            await lowlevel.checkpoint()

    async with serve(jobs) as client:
        job = jobs.submit(hurry)
        told = events_of(await client.get(path(job, "/events")))
    assert told[-2][2]["progress"] == {"completed": 1_000, "total": 1_000, "percent": 100.0}
    assert len(told) < 100


async def test_stream_ends_with_the_server():
    """When the server stops, the stream closes, and the client connects to the next one."""
    jobs = Jobs(Node("app"))
    async with serve(jobs) as client:
        job = jobs.submit(anyio.sleep_forever)
        answers = []

        async def listen():
            answers.append(await client.get(path(job, "/events")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await until(lambda: job.worker._rare is not None and job.worker._rare.followers)
            closing_of(jobs.node).close()
        assert {each[0] for each in events_of(answers[0])} == {"job"}


# cancelled, forgotten


async def test_delete(framework):
    """DELETE cancels a job. If the job has ended, it is forgotten."""
    gate = anyio.Event()
    jobs = Jobs(Node("app"))
    async with serve(jobs, framework) as client:
        job = jobs.submit(partial(slow_to_leave, gate))
        await until(lambda: job.status.status == "running")
        for _ in range(2):
            answer = await client.delete(path(job))
            assert answer.status_code == 202
            assert answer.json()["cancel_requested"] is True
            assert answer.headers["retry-after"] == "1"
        gate.set()
        await job.join()
        answer = await client.delete(path(job))
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        problem(await client.delete(path(job)), 404)
        problem(await client.get(path(job)), 404)


async def test_delete_of_a_job_that_waits():
    """A queued job that is deleted has ended at once, and can still be read."""
    jobs = Jobs(Node("app"))
    jobs.node.group("few", limit=1)
    async with serve(jobs) as client:
        jobs.submit(anyio.sleep_forever, group="few")
        job = jobs.submit(one, group="few")
        answer = await client.delete(path(job))
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        assert (await client.get(path(job))).json()["status"] == "cancelled"


async def test_delete_of_a_job_of_another_process():
    """A job that only a shared store knows cannot be deleted here."""
    jobs = Jobs(Node("app"), store=(store := Store()))
    async with serve(jobs) as client:
        problem(await client.delete(f"/jobs/{store.interrupted()}"), 404)


# answers


async def test_answer(framework):
    """The work continues with the answer. An answer without a question is refused."""

    async def work():
        return await ask("name", "Which column?", schema={"type": "string"})

    jobs = Jobs(Node("app"))
    async with serve(jobs, framework) as client:
        job = jobs.submit(work)
        await until(lambda: job.status.questions)
        told = (await client.get(path(job))).json()
        assert told["status"] == "input_required"
        assert told["questions"] == [
            {"key": "name", "question": "Which column?", "schema": {"type": "string"}}
        ]
        answer = await client.post(path(job, "/answers"), json={"key": "x", "value": 1})
        assert "has no open question with the key 'x'" in problem(answer, 409)
        answer = await client.post(path(job, "/answers"), json={"key": "name", "value": [1]})
        assert (answer.status_code, answer.json()["questions"]) == (200, [])
        await job.join()
        assert (await client.get(path(job, "/result"))).json() == [1]
        answer = await client.post(path(job, "/answers"), json={"key": "name", "value": 1})
        assert "its open questions: none" in problem(answer, 409)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b'{"key": "name", "value": 1}', "text/plain", 415),
        (b'{"key": "name", "value": 1}', "", 415),
        (b"key=name&value=1", "application/x-www-form-urlencoded", 415),
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[" * 50_000, "application/json", 400),
        (b"[1]", "application/json", 422),
        (b'{"key": 5, "value": 1}', "application/json", 422),
        (b'{"key": "name"}', "application/json; charset=utf-8", 422),
        (b'{"key": "name", "value": 1, "more": 2}', "application/json", 422),
    ],
)
async def test_answers_that_make_no_sense(body, kind, status):
    """Invalid answers are refused, and the job keeps waiting."""

    async def work():
        return await ask("name", "Which column?")

    jobs = Jobs(Node("app"))
    async with serve(jobs) as client:
        job = jobs.submit(work)
        await until(lambda: job.status.questions)
        headers = {"content-type": kind} if kind else {}
        problem(await client.post(path(job, "/answers"), content=body, headers=headers), status)
        assert job.status.questions


# who may do what


async def test_owners(framework):
    """A user's own jobs are listed, the newest first; those of others are unknown."""
    jobs = Jobs(Node("app"))

    async def owner(request):
        return request.headers.get("x-user")

    async with serve(jobs, framework, owner=owner) as client:
        mine = [jobs.submit(one, owner="ada") for _ in range(2)]
        other, nobodys = jobs.submit(one, owner="bob"), jobs.submit(one)
        ada = {"x-user": "ada"}
        listed = (await client.get("/jobs", headers=ada)).json()["jobs"]
        assert [each["id"] for each in listed] == [job.id for job in reversed(mine)]
        assert (await client.get("/jobs", headers={"x-user": "eve"})).json() == {"jobs": []}
        assert problem(await client.get("/jobs"), 401) == "it is not known who you are"
        for method, rest in [("GET", ""), ("DELETE", ""), ("GET", "/result"), ("GET", "/events")]:
            for job in (other, nobodys):
                problem(await client.request(method, path(job, rest), headers=ada), 404)
        assert (await client.get(path(nobodys))).status_code == 200
        assert (await client.get(path(mine[0]), headers=ada)).status_code == 200


async def test_no_list_without_owners(framework):
    """There is no list without owners, as it would show everybody the jobs of others."""
    jobs = Jobs(Node("app"))
    async with serve(jobs, framework) as client:
        assert "the jobs of others" in problem(await client.get("/jobs"), 404)


async def test_authorize(framework):
    """``authorize`` decides what is allowed for which job, or raises an error of the framework."""
    asked = []

    async def authorize(request, action, status):
        asked.append((action, status and status.kind))
        if request.headers.get("x-user") == "nobody":
            raise HTTPException(401, "who are you?", {"www-authenticate": "Bearer"})
        return action == "read"

    jobs = Jobs(Node("app"))
    options = {"authorize": authorize, "owner": lambda request: None, "page": True}
    async with serve(jobs, framework, **options) as client:
        job = jobs.submit(one, name="import")
        assert (await client.get(path(job))).status_code == 200
        for method, rest in [("DELETE", ""), ("POST", "/answers")]:
            answer = await client.request(method, path(job, rest))
            assert "you are not allowed to do this" in problem(answer, 403)
        problem(await client.get("/jobs"), 403)
        for rest in ("/page", "/tree", "/tree/events"):
            problem(await client.get("/jobs" + rest), 403)
        problem(await client.post("/jobs/workers/1/cancel", json={}), 403)
        answer = await client.get(path(job), headers={"x-user": "nobody"})
        assert problem(answer, 401) == "who are you?"
        assert answer.headers["www-authenticate"] == "Bearer"
    actions = ["read", "cancel", "answer", "list", "watch", "watch", "watch", "cancel_worker"]
    assert [action for action, _ in asked] == [*actions, "read"]
    assert {kind for action, kind in asked if action in ("read", "cancel")} == {"import"}


async def test_status_of_its_own():
    """A program may raise an error with a status that HTTP does not know."""

    def authorize(request, action, status):
        raise HTTPException(499, "no")

    jobs = Jobs(Node("app"))
    async with serve(jobs, authorize=authorize) as client:
        assert problem(await client.get(path(jobs.submit(one))), 499) == "no"


async def test_store_that_cannot_be_read():
    """An unreadable store is reported, and jobs known without it are still served."""
    jobs = Jobs(Node("app"), store=(store := Store()))
    async with serve(jobs) as client:
        job = jobs.submit(one)
        store.error = OSError("disk gone")
        assert (await client.get(path(job))).status_code == 200
        answer = await client.get(f"/jobs/{UNKNOWN}")
        assert problem(answer, 503) == "the history of jobs cannot be read: disk gone"


# the routes


async def test_other_methods(framework):
    """Other methods are refused, with a list of those allowed."""
    jobs = Jobs(Node("app"))
    async with serve(jobs, framework) as client:
        job = jobs.submit(one)
        for method in ("PUT", "POST", "OPTIONS"):
            answer = await client.request(method, path(job))
            assert problem(answer, 405) == f"{method} is not allowed here; there is GET, DELETE"
            assert answer.headers["allow"] == "GET, DELETE"


async def test_mounted():
    """Jobs that are mounted below another path have the right URLs."""
    jobs = Jobs(Node("app"))

    async def start(request):
        return await accepted(jobs.submit(one), request)

    inner = [Route("/start", start, methods=["POST"]), *routes(jobs, prefix="/work")]
    app = Starlette(
        routes=[Mount("/v1", Starlette(routes=inner))], lifespan=lifespan(jobs.node, grace=0)
    )
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.post("/v1/start")
            assert answer.headers["location"] == f"/v1/work/{answer.json()['id']}"
            assert (await client.get(answer.headers["location"])).status_code == 200


def test_openapi():
    """FastAPI documents the routes, with their models and errors."""
    app = FastAPI()
    app.include_router(router(Jobs(Node("app")), page=True), prefix="/v1")
    document = app.openapi()
    assert {(path, method) for path, calls in document["paths"].items() for method in calls} == {
        ("/v1/jobs", "get"),
        ("/v1/jobs/{job_id}", "get"),
        ("/v1/jobs/{job_id}", "delete"),
        ("/v1/jobs/{job_id}/result", "get"),
        ("/v1/jobs/{job_id}/events", "get"),
        ("/v1/jobs/{job_id}/answers", "post"),
        ("/v1/jobs/tree", "get"),
        ("/v1/jobs/tree/events", "get"),
        ("/v1/jobs/workers/{number}/cancel", "post"),
    }
    get = document["paths"]["/v1/jobs/{job_id}"]["get"]
    assert [each["name"] for each in get["parameters"]] == ["job_id", "wait"]
    (model,) = get["responses"]["200"]["content"]["application/json"]["schema"].values()
    properties = document["components"]["schemas"][model.rpartition("/")[2]]["properties"]
    assert list(properties)[:4] == ["id", "kind", "status", "done"]
    assert "application/problem+json" in get["responses"]["404"]["content"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 5}, r"^routes are for Jobs, not 5$"),
        ({"prefix": "jobs"}, r"^prefix must be a path with a slash before and none behind, not"),
        ({"prefix": "/jobs/"}, "^prefix must be"),
        ({"prefix": 5}, "^prefix must be"),
        ({"authorize": 5}, "^authorize must be a function of the request, not 5$"),
        ({"owner": "ada"}, "^owner must be a function of the request, not 'ada'$"),
    ],
)
@pytest.mark.parametrize("make", [routes, router])
def test_routes_that_make_no_sense(make, options, message):
    """Invalid arguments for the routes are refused at once."""
    options = {"jobs": Jobs(Node("app")), **options}
    with pytest.raises(WorkerError, match=message):
        make(options.pop("jobs"), **options)
