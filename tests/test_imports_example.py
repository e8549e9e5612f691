"""The example of a web service, run by uvicorn and used over HTTP."""

from __future__ import annotations

import ast
import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from pages import ROOT, blocks

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("sse_starlette")
httpx = pytest.importorskip("httpx")

EXAMPLE = ROOT / "examples" / "imports.py"
PEOPLE = "id,who\n1,Ada\n2,Grace\n3,Barbara\n"


class Service:
    """The service in a process of its own, with a client."""

    def __init__(self, process, port):
        self.process = process
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        self.said = ""

    def read_until(self, text):
        while text not in self.said:
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line

    def start(self, table=PEOPLE):
        answer = self.client.post("/imports", content=table)
        assert answer.status_code == 202, answer.text
        return answer.headers["location"]

    def follow(self, path):
        """Yield the status of a job whenever it changes."""
        with self.client.stream("GET", f"{path}/events") as response:
            for line in response.iter_lines():
                if line.startswith("data: ") and len(line) > 10:
                    yield json.loads(line.removeprefix("data: "))

    def until_asked(self, path):
        for status in self.follow(path):
            if status["questions"]:
                return status["questions"]
        raise AssertionError(status)

    def answer(self, path, value):
        answer = self.client.post(f"{path}/answers", json={"key": "name", "value": value})
        assert answer.status_code == 200

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.said += self.process.stderr.read()
        return self.process.wait(60)


@contextmanager
def serve(folder):
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        port = each.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "imports:app", "--port", str(port)]
    with subprocess.Popen(
        [*command, "--app-dir", str(EXAMPLE.parent)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        service = Service(process, port)
        try:
            with service.client:
                service.read_until("unning on")
                yield service
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_imports(tmp_path):
    """Imports ask a question, succeed, fail or are cancelled, and the history survives restarts."""
    with serve(tmp_path) as service:
        done = service.start()
        (question,) = service.until_asked(done)
        assert question == {
            "key": "name",
            "question": "Which column holds the name?",
            "schema": {"enum": ["id", "who"]},
        }
        service.answer(done, "who")
        last = [*service.follow(done)][-1]
        assert (last["status"], last["progress"]["percent"]) == ("succeeded", 100.0)
        result = service.client.get(f"{done}/result").json()
        assert result == {"column": "who", "people": 3}

        wrong = service.start()
        service.until_asked(wrong)
        service.answer(wrong, "town")
        assert [*service.follow(wrong)][-1]["status"] == "failed"
        detail = service.client.get(f"{wrong}/result").json()["detail"]
        assert detail == "the job failed: ValueError: there is no column 'town'; there are id, who"

        cancelled, waiting = service.start(), service.start()
        third = service.start()  # two at a time
        service.until_asked(cancelled)
        service.until_asked(waiting)
        assert service.client.get(third).json()["status"] == "queued"
        assert service.client.delete(cancelled).status_code == 202
        assert [*service.follow(cancelled)][-1]["status"] == "cancelled"
        service.until_asked(third)
        for table, status in [("", 422), (b"\xff", 422), (b"x" * 10_000_001, 413)]:
            assert service.client.post("/imports", content=table).status_code == status
        assert "/imports" in service.client.get("/openapi.json").json()["paths"]
        before = time.monotonic()
        assert service.end() == -signal.SIGTERM
        assert time.monotonic() - before < 30  # 3 s of grace, and a margin for a busy machine
        assert service.said.count("Traceback") == 1, service.said  # of the import that failed

    with serve(tmp_path) as service:
        told = [service.client.get(each).json()["status"] for each in (done, wrong, waiting)]
        assert told == ["succeeded", "failed", "cancelled"]
        left = service.start()
        service.until_asked(left)
        service.end(signal.SIGKILL)

    with serve(tmp_path) as service:
        assert service.client.get(left).json()["status"] == "interrupted"
        assert service.client.get(f"{left}/result").status_code == 410


def lines(code):
    """Return the lines of code that are not imports."""
    return [line for line in code.split("\n") if line.strip() and "import " not in line]


def test_ten_lines():
    """The first program of docs/web.md has ten lines besides imports, as the page says."""
    page = ROOT / "docs" / "web.md"
    assert "in ten lines" in page.read_text()
    code = blocks(page)[0]
    assert len(lines(code)) == 10
    assert [type(each) for each in ast.parse(code).body[-2:]] == [ast.AsyncFunctionDef] * 2


def test_lines_of_the_readme():
    """The README shows the example in twelve lines, with the same setup as the example itself."""
    (code,) = (code for code in blocks(ROOT / "README.md") if "creche.web" in code)
    assert len(lines(code)) == 12
    example = EXAMPLE.read_text()
    shared = [line for line in lines(code) if line in example]
    assert [line.partition(" ")[0] for line in shared[:3]] == ["node", "jobs", "app"]
    assert "async def start(request: Request) -> Response:" in shared
