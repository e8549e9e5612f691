"""Textual's workers on Creche: the same programs with and without it, and what only Creche does.

Textual runs on asyncio alone, so these tests do not run on Trio. ``nox -s textual`` runs Textual's
own tests on the adapter.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import re
import sys
import threading
from functools import partial

import anyio
import pytest

pytest.importorskip("textual", reason="it is an extra")

from hypothesis import given, settings
from hypothesis import strategies as st
from textual import on, work
from textual.app import App, ComposeResult
from textual.command import Hit, Provider
from textual.containers import Vertical
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Label
from textual.worker import (
    DeadlockError,
    WorkerCancelled,
    WorkerError,
    WorkerFailed,
    WorkerState,
    get_current_worker,
)
from textual.worker import Worker as StockWorker
from textual.worker_manager import WorkerManager as StockManager

import creche
from creche import format_tree
from creche.textual import Creche, Worker, _app, _manager, _worker
from helpers import RENDEZVOUS, ExceptionGroup, leaves, settle, until

PENDING, RUNNING, CANCELLED, ERROR, SUCCESS = WorkerState
FINAL = {CANCELLED, ERROR, SUCCESS}


@pytest.fixture
def anyio_backend():
    """Textual runs on asyncio, whose debug mode would log each slow step of Textual."""
    return "asyncio", {}


class Panel(Label):
    """A widget that keeps the messages about its workers."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.told = []

    def on_worker_state_changed(self, event: StockWorker.StateChanged):
        self.told.append((event.worker, event.state))

    def told_of(self, worker):
        return [state for each, state in self.told if each is worker]


class Panels(Creche, App):
    """An app with two panels."""

    def compose(self) -> ComposeResult:
        yield Panel("one", id="one")
        yield Panel("two", id="two")

    @property
    def one(self):
        return self.query_one("#one", Panel)


# programs as in Textual's guide, built on the app class that they are given


def weather(base):
    """Search as you type."""

    class Weather(base):
        def compose(self) -> ComposeResult:
            yield Input()
            yield Label(id="out")

        async def on_input_changed(self, event: Input.Changed):
            self.update_weather(event.value)

        @work(exclusive=True)
        async def update_weather(self, city):
            await asyncio.sleep(0)
            self.query_one("#out", Label).update(f"fine in {city}")

    async def use(app, pilot):
        await pilot.press(*"York")
        await app.workers.wait_for_complete()
        return str(app.query_one("#out", Label).render())

    return Weather(), use


def weather_in_threads(base):
    """Search as you type, in threads that check for cancellation before they call back."""

    class Weather(base):
        def compose(self) -> ComposeResult:
            yield Input()
            yield Label(id="out")

        async def on_input_changed(self, event: Input.Changed):
            self.update_weather(event.value)

        @work(exclusive=True, thread=True)
        def update_weather(self, city):
            if not get_current_worker().is_cancelled:
                out = self.query_one("#out", Label)
                self.call_from_thread(out.update, f"fine in {city}")

    async def use(app, pilot):
        await pilot.press("a")
        await app.workers.wait_for_complete()
        await pilot.press("b")
        await app.workers.wait_for_complete()
        return str(app.query_one("#out", Label).render())

    return Weather(), use


def questions(base):
    """A worker that asks a question on a screen, and waits for the answer."""

    class Question(ModalScreen):
        def compose(self) -> ComposeResult:
            yield Button("Yes", id="yes")

        @on(Button.Pressed, "#yes")
        def answer(self):
            self.dismiss(True)

    class Questions(base):
        answer = None

        @work
        async def on_mount(self):
            self.answer = await self.push_screen_wait(Question())

    async def use(app, pilot):
        while not isinstance(app.screen, Question):
            await pilot.pause()
        await pilot.click("#yes")
        await app.workers.wait_for_complete()
        return app.answer

    return Questions(), use


def loading(base):
    """Widgets that load in threads and show an indicator meanwhile."""

    class Loading(base):
        def compose(self) -> ComposeResult:
            with Vertical():
                yield from (Label(id=f"n{number}") for number in range(4))

        def on_mount(self):
            for label in self.query(Label):
                label.loading = True
                self.load(label)

        @work(thread=True)
        def load(self, label):
            self.call_from_thread(self.show, label, label.id)

        def show(self, label, text):
            label.update(text)
            label.loading = False

    async def use(app, pilot):
        await app.workers.wait_for_complete()
        await pilot.pause()
        labels = app.query("Vertical > Label").results(Label)
        return [(str(label.render()), label.loading) for label in labels]

    return Loading(), use


def commands(base):
    """A command provider, which the palette searches in workers."""

    class Openers(Provider):
        async def search(self, query):
            matcher = self.matcher(query)
            for name in ("open apple", "open banana", "close"):
                score = matcher.match(name)
                if score > 0:
                    yield Hit(score, matcher.highlight(name), partial(self.app.note, name))

    class Commands(base):
        COMMANDS = {Openers}  # noqa: RUF012 (as Textual has it)
        noted = None

        def note(self, name):
            self.noted = name

    async def use(app, pilot):
        app.action_command_palette()
        await pilot.pause()
        await pilot.press(*"banana")
        await app.workers.wait_for_complete()
        await pilot.press("enter")
        while app.noted is None:
            await pilot.pause()
        return app.noted

    return Commands(), use


def action(base):
    """An action that starts a worker while the app goes on."""

    class Action(base):
        BINDINGS = [("s", "start", ""), ("e", "end", "")]  # noqa: RUF012 (as Textual has it)
        done = ()

        @work
        async def action_start(self):
            self.gate = asyncio.Event()
            await self.gate.wait()
            self.done = (*self.done, "started")

        def action_end(self):
            self.done = (*self.done, "ended")
            self.gate.set()

    async def use(app, pilot):
        await pilot.press("s", "e")
        await app.workers.wait_for_complete()
        return app.done

    return Action(), use


class OnCreche(Creche, App):
    """The only line to change."""


@pytest.mark.parametrize(
    "program", [weather, weather_in_threads, questions, loading, commands, action]
)
async def test_a_program_gives_the_same_with_and_without(program):
    """The programs give the same results as in plain Textual."""
    results = []
    for base in (App, OnCreche):
        app, use = program(base)
        async with app.run_test() as pilot:
            results.append(await use(app, pilot))
    assert results[0] == results[1]
    assert results[0] is not None


# workers, as both libraries see them


async def test_a_worker_is_of_both():
    """A worker's node is the widget, it has Textual's states, and its changes come in order."""
    app = Panels()
    async with app.run_test() as pilot:

        async def job():
            assert get_current_worker() is creche.get_current_worker()
            return get_current_worker()

        worker = app.one.run_worker(job, name="job", description="a job")
        assert isinstance(worker, StockWorker)
        assert isinstance(worker, creche.Worker)
        assert worker.node is app.one
        assert (worker.state, worker.exits_app, worker.exit_on_error) == (PENDING, True, False)
        assert worker in app.workers
        assert list(app.workers) == list(reversed(app.workers)) == [worker]
        assert "PENDING=1" in repr(app.workers)
        assert "look" not in format_tree(app.workers.root)
        assert await worker.wait() is worker
        assert await worker.wait() is worker
        assert not inspect.isawaitable(worker)
        await pilot.pause()
        assert app.one.told_of(worker) == [PENDING, RUNNING, SUCCESS]
        assert "job" in repr(worker)
        assert worker.state is SUCCESS
        assert not app.workers
        assert len(app.workers) == 0


async def test_what_waiting_raises_is_textuals():
    """Waiting raises Textual's own exception classes, with the original error as the cause."""
    app = Panels()
    async with app.run_test():

        async def fail():
            raise ValueError("no")

        failed = app.run_worker(fail, exit_on_error=False)
        with pytest.raises(WorkerFailed) as caught:
            await failed.wait()
        assert isinstance(caught.value.__cause__, ValueError)
        cancelled = app.run_worker(asyncio.sleep(3600))
        cancelled.cancel()
        with pytest.raises(WorkerCancelled):
            await cancelled.wait()
        never = app.run_worker(asyncio.sleep(3600), start=False)
        with pytest.raises(WorkerError, match="never started"):
            await never.wait()
        ring = []
        ring.append(app.run_worker(lambda: ring[0].wait(), exit_on_error=False))  # noqa: PLW0108 (made later)
        await app.workers.root.workers.wait_for_complete(ring)
        assert isinstance(ring[0].error, DeadlockError)
        with pytest.raises(WorkerFailed):
            await app.workers.wait_for_complete(ring)


async def test_an_error_is_raised_bare():
    """``run_test()`` raises WorkerFailed, as Textual's does, and the app has ended."""
    app = Panels()

    async def fail():
        raise ValueError("no")

    with pytest.raises(WorkerFailed) as caught:
        async with app.run_test() as pilot:
            app.one.run_worker(fail)
            await pilot.pause()
    assert isinstance(caught.value.error, ValueError)
    assert app.return_code == 1


class Hearing(Panels):
    """Records which workers it gets events of."""

    def __init__(self):
        super().__init__()
        self.told = []

    def on_worker_state_changed(self, event):
        self.told.append(event.worker.name)


async def test_a_worker_of_creches_own_on_a_node_of_the_app():
    """A plain worker whose error is kept fails alone; Textual gets none of its events."""
    app = Hearing()

    async def fail():
        raise ValueError("no")

    async with app.run_test() as pilot:
        group = app.workers.home(app).group("plain", limit=1)
        worker = group.run_worker(fail, exit_on_error=False)
        await worker.join()
        app.run_worker(asyncio.sleep(0), name="Textual's")
        await app.workers.wait_for_complete()
        await pilot.pause()
    assert isinstance(worker.error, ValueError)
    assert set(app.told) == {"Textual's"}


async def test_an_error_of_creches_own_worker_ends_the_app():
    """A plain worker that fails its node ends the app, whose block raises the error."""
    app = Panels()

    async def fail():
        raise ValueError("no")

    with pytest.raises(ExceptionGroup) as caught:
        async with app.run_test() as pilot:
            app.workers.home(app.one).run_worker(fail)
            await pilot.pause()
    assert [str(each) for each in leaves(caught.value)] == ["no"]
    assert app.return_code == 1


async def test_a_run_ends_by_an_error():
    """An error ends ``run_async()`` with code 1. From Python 3.12 on, its tasks start eagerly."""
    app = Panels()

    async def fail():
        await asyncio.sleep(0)
        raise ValueError("no")

    async def pilot(pilot):
        app.one.run_worker(fail)
        await pilot.pause()

    loop = asyncio.get_running_loop()
    try:
        await app.run_async(headless=True, auto_pilot=pilot)
    finally:
        loop.set_task_factory(None)
    assert app.return_code == 1
    assert app.workers.root.is_finished


async def test_an_error_in_clean_up_after_the_end_is_raised():
    """An error of clean-up is raised if the app has ended and can no longer show it."""
    ended = asyncio.Event()

    class Inner(App):
        async def run_async(self, **options):
            try:
                return await super().run_async(**options)
            finally:
                ended.set()

    class Ending(Creche, Inner):
        pass

    async def fail_late():
        try:
            await asyncio.sleep(3600)
        finally:
            with anyio.CancelScope(shield=True):
                await ended.wait()
            raise ValueError("late")

    async def pilot(pilot):
        worker = app.run_worker(fail_late)
        while not worker.is_running:
            await pilot.pause()
        app.exit(5)

    app, loop = Ending(), asyncio.get_running_loop()
    try:
        with pytest.raises(WorkerFailed) as caught:
            await app.run_async(headless=True, auto_pilot=pilot)
    finally:
        loop.set_task_factory(None)
    assert str(caught.value.error) == "late"
    assert app.return_value == 5


# nodes


async def test_the_group_of_a_home_bounds_textuals_own_work():
    """The limit of a group of the widget's node also bounds ``@work(group=...)``."""
    running, most = 0, 0

    class Downloads(Label):
        @work(group="downloads")
        async def load(self):
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

    class Loader(Creche, App):
        def compose(self) -> ComposeResult:
            yield Downloads("x")

    app = Loader()
    async with app.run_test():
        widget = app.query_one(Downloads)
        app.workers.home(widget).group("downloads", limit=2)
        workers = [widget.load() for _ in range(6)]
        assert app.workers.home(widget).group("downloads").queued == 4
        await app.workers.wait_for_complete()
        assert {each.state for each in workers} == {SUCCESS}
    assert most == 2


async def test_the_work_of_a_removed_widget_has_ended():
    """Textual does not wait for a removed widget's work, ``leave()`` does. Then its node is new."""
    app = Panels()
    async with app.run_test():
        panel, gate = app.one, asyncio.Event()

        async def job():
            try:
                await asyncio.sleep(3600)
            finally:
                with anyio.CancelScope(shield=True):
                    await gate.wait()

        worker = panel.run_worker(job)
        home = app.workers.home(panel)
        await until(lambda: worker.is_running)
        await panel.remove()
        assert (worker.is_cancelled, worker.state) == (True, RUNNING)
        leaving = asyncio.create_task(app.workers.leave(panel))
        await settle()
        assert not leaving.done()
        gate.set()
        await leaving
        assert (worker.state, home.is_finished) == (CANCELLED, True)
        await app.workers.leave(panel)  # nothing to wait for
        again = panel.run_worker(asyncio.sleep(3600))
        assert app.workers.home(panel) is not home
        with pytest.raises(WorkerError, match="not mounted"):
            await app.workers.leave(app)
    assert again.state is CANCELLED


async def test_cancelling_leaves_a_mounted_widget_its_node():
    """``cancel_node()`` and ``cancel_group()`` return unfinished workers; the node stays open."""
    app = Panels()
    async with app.run_test():
        panel = app.one
        one, two, three = (
            panel.run_worker(asyncio.sleep(3600), group=group) for group in ("a", "b", "b")
        )
        other = app.query_one("#two").run_worker(asyncio.sleep(3600))
        assert app.workers.cancel_group(panel, "a") == [one]
        assert app.workers.cancel_node(panel) == [two, three]  # the first never began
        assert app.workers.cancel_node(Label("new")) == []
        await app.workers.root.workers.wait_for_complete([one, two, three])
        assert not app.workers.home(panel).is_finished
        assert not other.is_cancelled
        late = panel.run_worker(asyncio.sleep(0), start=False)
        app.workers.start_all()
        assert await late.wait() is None
        app.workers.cancel_all()
        assert other.is_cancelled


async def test_what_cannot_be_added():
    """A worker of Textual's own class, an added one, and one without a running app are refused."""
    app = Panels()
    before = asyncio.sleep(3600)
    with pytest.raises(WorkerError, match="not open yet"):
        app.workers.add_worker(Worker(app, before))
    with pytest.raises(WorkerError, match="not open yet"):
        app.run_worker(asyncio.sleep)
    async with app.run_test():
        panel = app.one
        with pytest.raises(WorkerError, match="must be a creche"):
            app.workers.add_worker(StockWorker(app, asyncio.sleep))
        worker = Worker(panel, asyncio.sleep(0), group="")
        app.workers.add_worker(worker)
        with pytest.raises(WorkerError, match="added before"):
            app.workers.add_worker(worker)
        await worker.wait()
        with pytest.raises(WorkerError, match="work must be"):
            app.run_worker(5)
    coro = asyncio.sleep(3600)
    with pytest.raises(WorkerError, match="closed"):
        app.run_worker(coro)
    for each in (before, coro):
        assert inspect.getcoroutinestate(each) == inspect.CORO_CLOSED


# threads


class Said(Message):
    pass


async def test_a_thread_does_not_share_what_is_prevented():
    """A message that a thread posts is not lost, whatever its starter prevents meanwhile."""
    heard = []

    class Talker(Label):
        async def talk(self):
            with self.prevent(Said):
                worker = self.run_worker(lambda: self.post_message(Said()), thread=True)
                return await worker.wait()

        def on_said(self):
            heard.append(True)

    class Talk(Creche, App):
        def compose(self) -> ComposeResult:
            yield Talker("x")

    app = Talk()
    async with app.run_test() as pilot:
        assert await app.query_one(Talker).talk() is True
        await pilot.pause()
    assert heard == [True]


async def test_cancelled_threads_call_nothing():
    """None of the several hundred callbacks requested by cancelled threads is run."""
    called, refused, arrived = [], [], []
    threads, calls = 16, 25
    go = threading.Event()
    app = Panels()
    async with app.run_test():

        def job(number):
            arrived.append(number)
            assert go.wait(RENDEZVOUS)
            for _ in range(calls):
                try:
                    app.call_from_thread(called.append, number)
                except WorkerCancelled as error:
                    assert isinstance(error, creche.WorkerCancelled)
                    refused.append(number)
            app.call_from_thread(called.append, number)

        workers = [app.one.run_worker(partial(job, n), thread=True) for n in range(threads)]
        await until(lambda: len(arrived) == threads)
        for worker in workers:
            worker.cancel()
        go.set()
        await app.workers.root.workers.wait_for_complete(workers)
        assert {worker.state for worker in workers} == {CANCELLED}
        outside = await asyncio.to_thread(app.call_from_thread, lambda: "of no worker")
    assert called == []
    assert len(refused) == threads * calls
    assert outside == "of no worker"


async def test_threads_start_work_and_have_their_worker():
    """``run_worker()`` and the current worker work in threads, sync or with a loop of their own."""
    app = Panels()
    async with app.run_test():

        def in_thread():
            inner = app.one.run_worker(with_loop, thread=True)
            return get_current_worker(), inner

        async def with_loop():
            await asyncio.sleep(0)
            return get_current_worker()

        outer = app.one.run_worker(in_thread, thread=True)
        told, inner = await outer.wait()
        assert told is outer
        assert await inner.wait() is inner


# random programs


class Ledger(Panels):
    """Keeps all workers, and the states that were announced for each."""

    def __init__(self):
        super().__init__()
        self.started, self.entered, self.left = [], set(), set()

    def start(self, node, *, thread, **options):
        number = len(self.started)
        job = partial(self.in_thread if thread else self.on_loop, number)
        self.started.append(node.run_worker(job, thread=thread, exit_on_error=False, **options))

    async def on_loop(self, number):
        self.entered.add(number)
        try:
            await asyncio.sleep(0 if number % 3 else 3600)
            if number % 5 == 4:
                raise ValueError(number)
        finally:
            self.left.add(number)

    def in_thread(self, number):
        self.entered.add(number)
        try:
            self.call_from_thread(int)
        finally:
            self.left.add(number)


places = st.sampled_from(["app", "one", "two"])
starts = st.tuples(
    st.just("start"),
    places,
    st.booleans(),
    st.fixed_dictionaries(
        {"exclusive": st.booleans(), "group": st.sampled_from(["default", "a"])},
        optional={"start": st.just(False)},
    ),
)
acts = st.one_of(
    starts,
    starts,
    st.tuples(st.sampled_from(["cancel", "cancel_node", "cancel_group", "remove"]), places),
    st.tuples(st.sampled_from(["turn", "start_all", "cancel_all", "pause"])),
)


async def play(app, pilot, program):
    nodes = {"app": app, "one": app.one, "two": app.query_one("#two")}
    for act, *of in program:
        node = nodes[of[0]] if of else app
        if act == "start":
            app.start(node, thread=of[1], **of[2])
        elif act == "cancel" and app.started:
            app.started[len(of[0]) % len(app.started)].cancel()
        elif act == "cancel_group":
            app.workers.cancel_group(node, "a")
        elif act == "cancel_node":
            app.workers.cancel_node(node)
        elif act == "remove" and node is not app:
            node.remove()
        elif act == "turn":
            await asyncio.sleep(0)
        elif act == "pause":
            await pilot.pause()
        elif act in {"start_all", "cancel_all"}:
            getattr(app.workers, act)()


@settings(max_examples=25)
@given(program=st.lists(acts, max_size=20))
def test_random_programs(program):
    """A final state never changes, no job is lost, and nothing is left when the app has ended."""
    heard = []

    async def main():
        app = Ledger()
        async with app.run_test() as pilot:
            root = app.workers.root
            async with root.subscribe(creche.Worker.StateChanged, tree=True) as events:
                await play(app, pilot, program)
                await pilot.pause()
                root.cancel("the end")
                heard.extend([(event.worker, event.state.name) async for event in events])
        return app

    app = asyncio.run(main())
    assert app.entered == app.left
    for number, worker in enumerate(app.started):
        states = [state for each, state in heard if each is worker]
        assert worker.state in FINAL
        assert states[0] == "PENDING"
        assert [state for state in states if WorkerState[state] in FINAL] == [worker.state.name]
        assert states[-1] == worker.state.name
        assert (number in app.entered) == ("RUNNING" in states)


# the adapter itself


def test_without_textual_the_import_says_what_to_install(monkeypatch):
    """If Textual is missing, the error names the extra to install."""
    for name in [name for name in sys.modules if name.startswith("creche.textual")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "textual", None)
    with pytest.raises(ImportError, match=r"pip install 'creche\[textual\]'"):
        importlib.import_module("creche.textual")


def test_public_names_only():
    """The adapter uses only public names of both libraries, except ``_new_worker``."""
    trees = [ast.parse(inspect.getsource(module)) for module in (_app, _manager, _worker)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    used = {node.attr for node in attributes if re.match("_[^_]", node.attr)}
    own = {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in functions} | {"_creche_workers"}
    assert used - own == set()
    theirs = {*dir(StockWorker), *dir(App), *dir(StockManager), *dir(creche.Worker)}
    theirs |= {*dir(creche.Node), *vars(App()), *vars(StockManager(None))}
    assert {name for name in own & theirs if re.match("_[^_]", name)} == {"_new_worker"}
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name for name in modules if "._" in name} == set()
