"""Misuse that would otherwise go unnoticed raises at the call and leaves nothing half done."""

from __future__ import annotations

import asyncio
import copy
import functools
import math
import pickle
import warnings
from fractions import Fraction

import anyio
import anyio.lowlevel
import pytest

from creche import Message, Node, Worker, WorkerDeclarationError, WorkerError, WorkerGroup, work
from helpers import CANCELLED, ERROR, PENDING, SUCCESS, settle

ran = []


def generator():
    ran.append(1)
    yield 1


async def async_generator():
    ran.append(1)
    yield 1


# generators


@pytest.mark.parametrize(
    ("job", "options"),
    [
        (generator, {}),
        (generator, {"thread": True}),
        (async_generator, {}),
        (async_generator, {"thread": True}),
        (functools.partial(generator), {"thread": True}),
        (lambda: async_generator(), {}),  # noqa: PLW0108 (the point)
    ],
)
async def test_generators_as_work(job, options):
    """Work that returns a generator, which would never run, fails with an error that says so."""
    ran.clear()
    async with Node("app") as app:
        worker = app.run_worker(job, exit_on_error=False, **options)
    assert worker.state is ERROR
    assert isinstance(worker.error, WorkerError)
    assert "generator" in str(worker.error)
    assert ran == []


@pytest.mark.parametrize("function", [generator, async_generator])
@pytest.mark.parametrize("options", [{}, {"thread": True}])
def test_generators_as_declared_work(function, options):
    """@work refuses a generator function where it is declared."""
    with pytest.raises(WorkerDeclarationError, match="generator"):
        work(**options)(function)


# calls


class App(Node):
    @work
    async def fetch(self, url, *, retries=3):
        return url, retries

    @work(thread=True)
    def count(self, text):
        return len(text)

    @work(exclusive=True)
    async def search(self, text):
        await settle()
        return text


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda app: app.fetch(), r"fetch\(\) missing a required argument: 'url'"),
        (lambda app: app.fetch(1, 2), r"fetch\(\) too many positional arguments"),
        (lambda app: app.fetch(1, again=3), r"fetch\(\) got an unexpected keyword argument"),
        (lambda app: app.count(), r"count\(\) missing a required argument: 'text'"),
        (lambda app: app.search(), r"search\(\) missing a required argument: 'text'"),
    ],
)
async def test_wrong_arguments_fail_the_call(call, match):
    """A decorated call with wrong arguments raises TypeError and starts nothing."""
    async with App("app") as app:
        with pytest.raises(TypeError, match=match):
            call(app)
        assert len(app.workers) == 0
        assert await app.fetch("/4", retries=1) == ("/4", 1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"name": 5}, "name of @work must be a text, not 5"),
        ({"group": b"g"}, "group of @work must be a text, not b'g'"),
        ({"description": 5}, "description of @work must be a text"),
        ({"limit": 0}, "limit must be 1 or more"),
        ({"overflow": "wait"}, "overflow must be one of"),
    ],
)
def test_options_are_checked_where_they_are_declared(options, match):
    """@work raises at once if an option is invalid, and names it."""
    with pytest.raises(WorkerDeclarationError, match=match):
        work(**options)


async def test_names_and_groups_are_texts():
    """A name or group that is not a text is refused, and a coroutine given as work is closed."""
    async with Node("app") as app:
        for options in ({"name": 5}, {"group": 5}, {"group": ["g"]}):
            with pytest.raises(WorkerError, match=r"the (name|group) must be a str, not .*partial"):
                app.run_worker(anyio.lowlevel.checkpoint(), **options)
            with pytest.raises(WorkerError, match=r"the (name|group) must be a str, not .*partial"):
                Worker(app, anyio.lowlevel.checkpoint(), **options)
            with pytest.raises(WorkerError, match=r"the (name|group) must be a str, not .*partial"):
                app.run_worker(settle, **options)
        with pytest.raises(WorkerError, match="name of a group must be a text"):
            app.group(5)
        assert app.groups == ()
    with pytest.raises(WorkerError, match="name of a node must be a text"):
        Node(5)


async def test_a_text_whose_repr_fails_is_a_text():
    """A subclass of str whose repr raises is still a text: its characters count."""

    class Odd(str):
        __slots__ = ()

        def __repr__(self):
            raise ValueError("no repr")

        __str__ = __repr__

    async with Node(Odd("app")) as app:
        worker = app.run_worker(settle, name=Odd("w"), group=Odd("g"))
        assert repr(worker) == "<Worker 'w' PENDING group='g' node='app'>"
        worker.cancel(Odd("why"))
        with pytest.raises(WorkerError, match="worker 'w' was cancelled: why"):
            await worker


# exclusive without a group


class Load:
    async def __call__(self):
        await settle()


def make(name):
    async def search():
        await settle()

    search.__module__ = name
    return search


def another():
    async def search():
        await settle()

    return search


async def both(one, two, **options):
    async with Node("app") as app:
        workers = [app.run_worker(one, **options), app.run_worker(two, exclusive=True)]
    return [worker.state for worker in workers]


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        (make("a"), make("a"), CANCELLED),  # one function, created twice
        (make("a"), another(), SUCCESS),  # two functions with the same name
        (functools.partial(settle, 3), functools.partial(settle, 4), CANCELLED),
        (functools.partial(settle, 3), functools.partial(make("a")), SUCCESS),
    ],
)
async def test_exclusive_is_of_a_function(one, two, expected):
    """Without a group, exclusive work supersedes only earlier runs of the same function."""
    assert await both(one, two, exclusive=True) == [expected, SUCCESS]


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize(
    "two", [lambda: settle(4), Load(), functools.partial(lambda: settle(2))], ids=["l", "o", "p"]
)
async def test_exclusive_of_what_has_no_name_asks_for_a_group(two, exclusive):
    """Exclusive work without a name warns that it needs a group, and cancels nothing else."""
    with pytest.warns(RuntimeWarning, match='add group="..."'):
        assert await both(lambda: settle(3), two, exclusive=exclusive) == [SUCCESS, SUCCESS]


async def test_a_lambda_supersedes_its_own_runs():
    """A lambda that is created again at the same place counts as the same function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        async with Node("app") as app:
            workers = [app.run_worker(lambda: settle(3), exclusive=True) for _ in range(3)]
    assert [worker.state for worker in workers] == [CANCELLED, CANCELLED, SUCCESS]


def test_a_declared_lambda_asks_for_a_group():
    """@work refuses an exclusive or limited lambda that has no group."""
    for options in ({"exclusive": True}, {"limit": 2}):
        with pytest.raises(WorkerDeclarationError, match="add group="):
            work(thread=True, **options)(lambda node: None)


async def test_an_override_that_calls_the_original_does_not_cancel_itself():
    """An exclusive override and the method that it calls share a name but are two functions."""

    class Own(App):
        @work(exclusive=True)
        async def search(self, text):
            return await super().search(text) + "!"

    async with Own("app") as app:
        first = app.search("a")
        assert await app.search("b") == "b!"
        assert first.state is CANCELLED


async def test_functions_that_others_have_wrapped_are_told_apart():
    """Functions under one decorator share its code; the wrapped function tells them apart."""

    def plain(function):
        @functools.wraps(function)
        async def call():
            return await function()

        return call

    assert await both(plain(make("a")), plain(another()), exclusive=True) == [SUCCESS, SUCCESS]
    assert await both(plain(make("a")), plain(make("b")), exclusive=True) == [CANCELLED, SUCCESS]


async def test_a_function_that_wraps_itself():
    """A function whose ``__wrapped__`` leads back to itself can be exclusive."""

    async def load():
        await settle()

    load.__wrapped__ = load
    async with Node("app") as app:
        first, second = [app.run_worker(load, exclusive=True) for _ in range(2)]
    assert (first.state, second.state) == (CANCELLED, SUCCESS)


async def test_a_name_of_work_that_is_no_text():
    """A worker whose work has a ``__name__`` that is not a text has an empty name."""

    class Load:
        __name__ = 5

        async def __call__(self):
            await settle()

    async with Node("app") as app:
        assert app.run_worker(Load()).name == ""


async def test_of_exclusive_workers_that_are_started_together_the_newest_wins():
    """start_all() starts workers in order of creation, and each supersedes the earlier ones."""
    async with Node("app") as app:
        options = {"group": "g", "start": False}
        older = app.run_worker(settle, name="older", exclusive=True, **options)
        newer = app.run_worker(settle, name="newer", exclusive=True, **options)
        plain = app.run_worker(settle, name="plain", **options)
        app.workers.start_all()
    assert [each.state for each in (older, newer, plain)] == [CANCELLED, SUCCESS, SUCCESS]


# progress


@pytest.mark.parametrize("steps", [math.nan, math.inf, -math.inf, "5", None, 1j, [1]])
async def test_steps_that_are_no_numbers(steps):
    """Steps that are not finite numbers are refused, and the progress stays as it was."""
    async with Node("app") as app:
        worker = app.run_worker(settle)
        worker.update(completed_steps=3, total_steps=10)
        with pytest.raises(WorkerError, match="steps must be a finite number, not"):
            worker.advance(steps)
        if steps is not None:
            with pytest.raises(WorkerError, match="steps must be a finite number, not"):
                worker.update(completed_steps=steps)
            with pytest.raises(WorkerError, match="steps must be a finite number, not"):
                worker.update(completed_steps=5, total_steps=steps)
        with pytest.raises(WorkerError, match="description must be a text"):
            worker.update(completed_steps=5, description=5)
        assert (worker.completed_steps, worker.total_steps) == (3, 10)


@pytest.mark.parametrize(
    ("completed", "total", "expected"),
    [
        (56, 100, 56.0),
        (29, 100, 29.0),
        (57, 100, 57.0),
        (10**400, 10**401, 10.0),
        (10**400, 1, 100.0),
        (1, 10**400, 0.0),
        (1e308, 1e307, 100.0),
        (Fraction(1, 4), 1, 25.0),
        (Fraction(10**400), 10**401, 10.0),
        (-5, 10, 0.0),
        (5, 0, 0.0),
        (5, None, 0.0),
    ],
)
async def test_progress_of_all_kinds_of_numbers(completed, total, expected):
    """Whole percentages are exact, and no number is too large."""
    async with Node("app") as app:
        worker = app.run_worker(settle)
        worker.update(completed_steps=completed, total_steps=total)
        assert worker.progress == expected
        assert app.group("default").progress == expected


# descriptions


async def test_a_description_is_made_when_it_is_read():
    """A description is computed when it is first read, and truncates large arguments."""
    asked = []

    class Dear:
        def __repr__(self):
            asked.append(self)
            return "Dear()"

    async with App("app") as app:
        worker, other = app.fetch(Dear()), app.fetch(bytes(20_000_000), retries="r" * 1000)
        assert asked == []
        assert worker.description == "fetch(Dear())"
        assert worker.description == "fetch(Dear())"
        assert len(asked) == 1
        assert other.description.startswith("fetch(b'\\x00\\x00")
        assert len(other.description) < 250
        unread = app.fetch(Dear(), retries=[1])
        await app.workers.wait_for_complete()
        assert unread.description == "fetch(<Dear>, retries=<list>)"  # arguments are gone by now
    assert len(asked) == 1


# copies


async def test_workers_and_nodes_cannot_be_copied():
    """Workers and nodes refuse to be copied or pickled."""
    async with Node("app") as app:
        worker = app.run_worker(settle)
        for each in (worker, app):
            for how in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(WorkerError, match="can be neither copied nor pickled"):
                    how(each)


# limits of the loop


def test_a_node_of_one_loop_called_in_a_task_of_another():
    """With Trio as a guest of asyncio in one thread, calls from the wrong loop raise."""
    trio = pytest.importorskip("trio")
    got, done = [], []

    class Note(Message):
        pass

    class Guest(Node):
        def on_note(self, message):
            got.append("note")

    async def host():
        loop = asyncio.get_running_loop()
        opened, over, ended = asyncio.Event(), [], asyncio.Event()
        nodes = []

        async def guest():
            async with Guest("guest") as node:
                nodes.append(node)
                loop.call_soon(opened.set)
                over.append(trio.Event())
                await over[0].wait()

        def finished(outcome):
            done.append(outcome)
            ended.set()

        trio.lowlevel.start_guest_run(
            guest, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=finished
        )
        await opened.wait()
        (node,) = nodes
        with pytest.raises(WorkerError, match="belongs to another event loop"):
            node.run_worker(anyio.lowlevel.checkpoint())
        for use in (
            node.shutdown,
            lambda: node.mount(Node("x")),
            lambda: node.__aexit__(0, None, 0),
        ):
            with pytest.raises(WorkerError, match="event loop"):
                await use()
        with pytest.raises(WorkerError, match="event loop"):
            await Node("below", parent=node).__aenter__()
        assert node.post_message(Note())
        trio_token = node._creche_nursery.bridge.token.native_token
        trio_token.run_sync_soon(over[0].set)
        await ended.wait()

    asyncio.run(host())
    done[0].unwrap()
    assert got == ["note"]


async def test_groups_are_made_by_nodes():
    """WorkerGroup is public for annotations, and group() returns the same group for a name."""
    async with Node("app") as app:
        assert isinstance(app.group("g"), WorkerGroup)
        assert app.group("g") is app.group("g")
        assert app.run_worker(settle, group="g", start=False).state is PENDING
