"""Messages: which method handles them, in what order, and how far they bubble."""

from __future__ import annotations

import dataclasses
import threading

import anyio
import pytest

from creche import (
    Message,
    Node,
    Worker,
    WorkerError,
    WorkerState,
    active_worker,
    get_current_worker,
    work,
)
from helpers import (
    CANCELLED,
    ERROR,
    PENDING,
    RENDEZVOUS,
    RUNNING,
    SUCCESS,
    ExceptionGroup,
    Listener,
    fail,
    leaves,
    settle,
)


class Saved(Message):
    """A message defined in a module."""


class Editor(Node):
    class Saved(Message, bubble=False):
        """A message defined in a class."""

    class HTTPError(Message, namespace="net"):
        """A message with a namespace."""


def test_names_of_handlers():
    """A handler's name is made of the namespace, or the enclosing class, and the message's name."""
    assert Saved.handler_name == "on_saved"
    assert Editor.Saved.handler_name == "on_editor_saved"
    assert Editor.HTTPError.handler_name == "on_net_http_error"
    assert Worker.StateChanged.handler_name == "on_worker_state_changed"

    class Local(Message):
        pass

    assert Local.handler_name == "on_local"
    assert (Saved.bubble, Editor.Saved.bubble, Worker.StateChanged.bubble) == (True, False, False)

    class Quiet(Editor.Saved):
        pass

    assert Quiet.bubble is False


async def test_every_change_is_handled_in_order():
    """A handler gets each change once and in order, including the final one."""

    class App(Node):
        def __init__(self):
            super().__init__("app")
            self.told = []

        async def on_worker_state_changed(self, event):
            await anyio.lowlevel.checkpoint()
            self.told.append((event.worker.name, event.state))
            await anyio.lowlevel.checkpoint()

    async with App() as app:
        app.run_worker(anyio.lowlevel.checkpoint, name="a")
        app.run_worker(fail(ValueError), name="b", exit_on_error=False)
        app.run_worker(anyio.sleep_forever, name="c").cancel()
    for name, path in {
        "a": [PENDING, RUNNING, SUCCESS],
        "b": [PENDING, RUNNING, ERROR],
        "c": [PENDING, CANCELLED],
    }.items():
        assert [state for each, state in app.told if each == name] == path


async def test_handlers_run_one_at_a_time():
    """A node runs one handler at a time."""

    class App(Node):
        running = 0

        async def on_saved(self, message):
            self.running += 1
            assert self.running == 1
            await settle(3)
            self.running -= 1

    async with App() as app:
        for _ in range(5):
            assert app.post_message(Saved()) is True


@pytest.mark.parametrize("how", ["cancel", "fail", "outer", "remove", "body"])
async def test_final_changes_reach_handlers(how):
    """When a node ends early, sync handlers run fully and async ones up to their first await."""

    class App(Node):
        def __init__(self):
            super().__init__("app")
            self.sync, self.begun, self.ended = [], [], []

        async def on_worker_state_changed(self, event):
            self.begun.append(event.state)
            if event.state is CANCELLED:
                await anyio.sleep_forever()
                self.ended.append(event.state)

        def on_saved(self, message):
            self.sync.append("saved")

    app = App()
    listener = Listener("listener")
    with anyio.CancelScope() as scope:
        try:
            async with Node("root") as root:
                await root.mount(app)
                await root.mount(listener)
                for node in (app, listener):
                    for _ in range(2):
                        node.run_worker(anyio.sleep_forever)
                await settle()
                if how == "cancel":
                    root.cancel()
                elif how == "fail":
                    root.run_worker(fail(ValueError))
                elif how == "outer":
                    scope.cancel()
                elif how == "remove":
                    app.post_message(Saved())
                    await app.remove()
                    await listener.remove()
                else:
                    raise ValueError
                await settle()
        except ExceptionGroup:
            assert how in ("fail", "body")
    assert app.begun == [PENDING, PENDING, RUNNING, RUNNING, CANCELLED, CANCELLED]
    assert app.ended == []
    assert [state for _, state in listener.told] == app.begun
    if how == "remove":
        assert app.sync == ["saved"]


async def test_handler_that_raises_fails_its_node():
    """An error of a handler is raised by the node's block, with a note."""

    class App(Node):
        def on_saved(self, message):
            raise ValueError("handler")

    with pytest.raises(ExceptionGroup) as caught:
        async with App("app") as app:
            worker = app.run_worker(anyio.sleep_forever)
            app.post_message(Saved())
            await anyio.sleep_forever()
    (error,) = leaves(caught.value)
    assert error.__notes__ == ["in on_saved of node 'app'"]
    assert worker.state is CANCELLED


async def test_bubbling():
    """A message bubbles to the parent unless it was stopped or its class does not bubble."""
    seen = []

    class Level(Node):
        stops = False

        def on_saved(self, message):
            seen.append(self.name)
            if self.stops:
                message.stop()
                assert message.is_stopped

        def on_editor_saved(self, message):
            seen.append("editor " + self.name)

    async with Level("a") as a, Level("b", parent=a) as b, Node("c", parent=b) as c:
        c.post_message(Saved())
        c.post_message(Editor.Saved())
        await settle()
        assert seen == ["b", "a"]
        b.stops = True
        c.post_message(Saved())
        b.post_message(Editor.Saved())
        await settle()
    assert sorted(seen[2:]) == ["b", "editor b"]


async def test_posted_before_the_node_is_open():
    """A message that is posted before its node is entered is handled once it is."""

    class App(Node):
        got = 0

        def on_saved(self, message):
            self.got += 1

    app = App()
    assert app.post_message(Saved()) is True
    async with app:
        pass
    assert app.got == 1
    assert app.post_message(Saved()) is False


async def test_handler_may_start_work_and_post():
    """Work that a handler starts and messages that it posts on closing are waited for."""
    done = []

    class App(Node):
        def on_saved(self, message):
            if len(done) < 3:
                done.append("saved")
                self.post_message(Saved())
            else:
                self.run_worker(self.finish)

        async def finish(self):
            await settle(3)
            done.append("finished")

    async with App() as app:
        app.post_message(Saved())
    assert done == ["saved", "saved", "saved", "finished"]


async def test_handler_has_the_nodes_context():
    """A handler runs in the context of its node, not in that of the worker that changed."""
    seen = []

    class App(Node):
        def on_worker_state_changed(self, event):
            seen.append(active_worker.get(None))

    async with App() as app:
        await app.run_worker(anyio.lowlevel.checkpoint)
    assert seen == [None, None, None]


async def test_no_message_is_made_where_nobody_listens(monkeypatch):
    """No message object is created if there is no handler for it."""
    made = []

    class StateChanged(Worker.StateChanged, namespace="worker"):
        def __init__(self, worker, state, context):
            made.append(state)
            super().__init__(worker, state, context)

    monkeypatch.setattr("creche._core.audience.StateChanged", StateChanged)
    async with Node() as quiet:
        await quiet.run_worker(anyio.lowlevel.checkpoint)
    assert made == []
    async with Listener() as loud:
        await loud.run_worker(anyio.lowlevel.checkpoint)
    assert made == [PENDING, RUNNING, SUCCESS]


async def test_post_from_threads_in_order():
    """Messages that one thread posts are handled in order."""

    class Number(Message):
        def __init__(self, number):
            self.number = number

    class App(Node):
        def __init__(self):
            super().__init__()
            self.got = []

        def on_number(self, message):
            self.got.append(message.number)

    async with App() as app:

        def post():
            for n in range(100):
                app.post_message(Number(n))

        await app.run_worker(post, thread=True)
    assert app.got == list(range(100))


async def test_bad_message():
    """post_message() refuses anything but a Message."""
    async with Node() as app:
        with pytest.raises(WorkerError, match=r"post_message\(\) takes a Message, not 'text'"):
            app.post_message("text")


async def test_repr_of_a_change():
    """The repr of a state change shows the worker and the state."""
    async with Node() as app:
        worker = app.run_worker(anyio.sleep_forever, name="w")
        assert repr(Worker.StateChanged(worker, WorkerState.RUNNING)) == (
            "<StateChanged worker 'w' RUNNING>"
        )
        worker.cancel()


async def test_base_exception_of_a_handler_leaves_bare():
    """SystemExit in a handler propagates without an exception group."""

    class App(Node):
        async def on_saved(self, message):
            await anyio.lowlevel.checkpoint()
            raise SystemExit(4)

    with pytest.raises(SystemExit):
        async with App() as app:
            app.post_message(Saved())


async def test_post_after_the_loop_has_gone():
    """post_message() from a thread returns False after the node was left."""
    async with Listener() as app:
        pass
    got = []
    thread = threading.Thread(target=lambda: got.append(app.post_message(Saved())))
    thread.start()
    thread.join()
    assert got == [False]


# handlers that start work


class Typed(Message):
    def __init__(self, text):
        self.text = text


async def test_a_handler_that_is_an_exclusive_worker():
    """A handler that is a worker returns at once, so the next message supersedes the worker."""

    class Search(Node):
        def __init__(self):
            super().__init__("search")
            self.shown, self.workers_made = [], []

        @work(exclusive=True)
        async def on_typed(self, message):
            self.workers_made.append(get_current_worker())
            await settle()
            self.shown.append(message.text)

    async with Search() as search:
        for text in ("c", "cr", "cre"):
            assert search.post_message(Typed(text))
            await settle(3)
    assert search.shown == ["cre"]
    assert [worker.state for worker in search.workers_made] == [CANCELLED, CANCELLED, SUCCESS]


@pytest.mark.parametrize("how", ["declared", "returned", "returned by async"])
async def test_the_error_of_a_handler_that_is_a_worker(how):
    """With ``exit_on_error=False`` the error is contained; otherwise the node fails with it."""

    class App(Node):
        exits = False

        @work(exit_on_error=False)
        async def declared(self):
            raise ValueError("of the work")

        def start(self):
            if how == "declared" and not self.exits:
                return self.declared()
            return self.run_worker(fail(ValueError("of the work")), exit_on_error=self.exits)

        def on_typed(self, message):
            return self.start_later() if how == "returned by async" else self.start()

        async def start_later(self):
            return self.start()

    async with App("app") as app:
        app.post_message(Typed("x"))
        await settle()
        app.post_message(Typed("y"))
    app = App("app")
    app.exits = True
    with pytest.raises(ExceptionGroup) as caught:
        async with app:
            app.post_message(Typed("x"))
    assert [str(each) for each in leaves(caught.value)] == ["of the work"]


async def test_cancelling_a_handler_that_is_a_worker():
    """Cancelling the worker of a handler ends that worker only; its node does not fail."""

    class App(Node):
        @work
        async def on_typed(self, message):
            await anyio.sleep_forever()

    async with App("app") as app:
        app.post_message(Typed("x"))
        await settle()
        (worker,) = app.workers
        worker.cancel()
        await settle()
        assert await app.run_worker(anyio.lowlevel.checkpoint) is None
    assert worker.state is CANCELLED


@pytest.mark.parametrize("where", ["app", "page"])
async def test_shutdown_in_a_handler_waits_for_others_only(where):
    """shutdown() does not wait for the handler that calls it, as with a worker."""
    ended = []

    class Quit(Message, bubble=False):
        pass

    class App(Node):
        async def on_quit(self, message):
            ended.append("begun")
            with anyio.fail_after(RENDEZVOUS):
                await app.shutdown(grace=float("inf"))
            ended.append(worker.state)

    app = App("app")
    async with app, App("page", parent=app) as page:
        worker = page.run_worker(settle)
        (app if where == "app" else page).post_message(Quit())
    assert ended == ["begun", SUCCESS]


async def test_a_handler_that_starts_work_too_late(caplog):
    """Work that a handler starts during a shutdown is refused, which only logs a warning."""

    class App(Node):
        @work
        async def on_typed(self, message):
            raise AssertionError("it was started")

    async with App("app") as app:
        app.run_worker(settle)
        async with anyio.create_task_group() as group:
            group.start_soon(app.shutdown, RENDEZVOUS)
            await settle(3)
            assert app.post_message(Typed("x"))
    (record,) = [each for each in caplog.records if each.name == "creche"]
    assert record.levelname == "WARNING"
    assert "on_typed of node 'app': cannot start work on node 'app'" in record.getMessage()


async def test_a_signal_between_two_looks_of_the_pump():
    """A message that is posted as the pump is about to end is still delivered."""
    got = []

    class App(Node):
        def on_typed(self, message):
            got.append(message.text)

    class Late(Typed):
        @property
        def bubble(self):
            if self.text == "first":  # read last of all
                app._creche_mailbox._waiting.append(Typed("second"))
            return False

    Late.handler_name = "on_typed"
    async with App("app") as app:
        app.post_message(Late("first"))
        await settle()
        assert got == ["first", "second"]


class Slotted(Node):
    def __init__(self):
        super().__init__("slotted")
        self.got = []

    @dataclasses.dataclass(slots=True)
    class Saved(Message):
        path: str

    @dataclasses.dataclass(frozen=True, slots=True)
    class Closed(Message, bubble=False, namespace="ed"):
        path: str

    @dataclasses.dataclass
    class Opened(Message):
        path: str

    def on_slotted_saved(self, message):
        self.got.append("saved")

    def on_ed_closed(self, message):
        self.got.append("closed")

    def on_slotted_opened(self, message):
        self.got.append("opened")


async def test_messages_that_are_dataclasses_with_slots():
    """A message class keeps its handler's name when ``dataclass(slots=True)`` makes it again."""

    class Above(Node):
        def __init__(self):
            super().__init__("above")
            self.got = []

        def on_slotted_saved(self, message):
            self.got.append("saved")

        def on_ed_closed(self, message):
            self.got.append("closed")

    async with Above() as above:
        slotted = await above.mount(Slotted())
        for kind in (Slotted.Saved, Slotted.Closed, Slotted.Opened):
            assert slotted.post_message(kind("x"))
        await settle()
    assert slotted.got == ["saved", "closed", "opened"]
    assert above.got == ["saved"]  # Closed does not bubble, and Opened has no handler here
    Slotted.Saved("x").stop()
