"""A fake server for the page of ``creche.web`` that sends a test's events, and sample trees."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue

PAGE = Path(__file__).parent.parent / "src" / "creche" / "web" / "page.html"
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Server:
    """Answers requests of the page. ``tell()`` sends an event to all open pages."""

    def __init__(self, whole):
        self.whole = whole
        self.answer = (202, {})
        self.asked = SimpleQueue()
        self.opened = SimpleQueue()
        self.port = 0
        self.start()

    def start(self):
        self._listeners = []
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self):
        for each in self._listeners:
            each.put(None)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/jobs/page"

    def tell(self, event, **data):
        for each in self._listeners:
            each.put((event, data))

    def listen(self):
        mine = SimpleQueue()
        mine.put(("tree", self.whole))
        self._listeners.append(mine)
        self.opened.put(True)
        return mine


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def answer(self, status, kind, body=b"", **headers):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Security-Policy", POLICY)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            if self.path == "/jobs/page":
                body = PAGE.read_bytes()
                self.answer(200, "text/html; charset=utf-8", body, Content_Length=str(len(body)))
            elif self.path == "/jobs/tree/events":
                if server.whole is None:
                    self.answer(503, "application/problem+json", b"{}")
                    return
                mine = server.listen()
                self.answer(200, "text/event-stream")
                try:
                    while (told := mine.get()) is not None:
                        event, data = told
                        text = f"event: {event}\ndata: {json.dumps(data)}\nretry: 100\n\n"
                        self.wfile.write(text.encode())
                        self.wfile.flush()
                except OSError:
                    pass  # the page was closed
            else:
                self.answer(404, "text/plain")

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.asked.put((self.path, self.headers["Content-Type"], json.loads(body)))
            status, data = server.answer
            self.answer(status, "application/problem+json", json.dumps(data).encode())

    return Handler


NOW = 1_764_170_000.0


def node(number=0, parent=None, name="app", path=None, **more):
    return {
        "id": number, "parent": parent, "name": name, "path": path or name, "life": "open",
        "is_cancelled": False, "cancel_reason": None, **more,
    }  # fmt: skip


def group(number=0, of=0, name="downloads", **more):
    return {
        "id": number, "node": of, "name": name, "limit": None, "overflow": "enqueue", "running": 0,
        "queued": 0, "total": 0, "succeeded": 0, "failed": 0, "cancelled": 0, "rate": None,
        "left": None, **more,
    }  # fmt: skip


def worker(number, of=0, name="fetch", **more):
    return {
        "number": number, "group": of, "name": name, "description": "", "state": "RUNNING",
        "is_queued": False, "is_cancelled": False, "cancel_reason": None, "thread": False,
        "daemon": False, "created": NOW - 20, "started": NOW - 10, "completed_steps": 0,
        "total_steps": None, "progress": 0.0, "attempt": 1, "is_ready": None, "stalled": False,
        **more,
    }  # fmt: skip


def failure(number, name="fetch", error="ValueError: no such page", **more):
    return {
        "number": number, "node": "app", "group": "downloads", "name": name, "time": NOW - 5,
        "error": error, "attempt": 1, **more,
    }  # fmt: skip


def whole(nodes=(), groups=(), workers=(), failures=(), *, may_cancel=True):
    return {
        "time": NOW, "may_cancel": may_cancel, "node": "app", "nodes": list(nodes),
        "groups": list(groups), "workers": list(workers), "failures": list(failures),
    }  # fmt: skip


def some():
    """A tree with a few nodes, groups, workers and failures."""
    return whole(
        [node(), node(1, 0, "panel", "app/panel", life="shutting down")],
        [
            group(limit=4, running=3, queued=1, total=5_000, succeeded=300, failed=10, cancelled=2,
                  rate=39.0, left=120.2),
            group(1, 1, "default", running=1, total=1),
        ],
        [
            worker(17, description="fetch('/4')", completed_steps=50, total_steps=200),
            worker(18, name="<script>alert(1)</script>", completed_steps=12_345),
            worker(19, is_cancelled=True, cancel_reason="not needed"),
            worker(20, name="late", state="PENDING", is_queued=True, started=None),
            worker(21, 1, "consumer", attempt=3, is_ready=False, stalled=True),
        ],
        [failure(12), failure(13, "parse", "OSError: gone\nthe second line", attempt=2)],
    )  # fmt: skip


def many(number=5_000):
    """A tree with one group of many running workers."""
    return whole(
        [node()],
        [group(limit=number, running=number, total=number)],
        [worker(n, name=f"job {n}", total_steps=1_000) for n in range(1, number + 1)],
    )
