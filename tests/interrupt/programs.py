"""Small programs that together use every part of the library.

Each ends by itself, whatever is cancelled or interrupted.
"""

from __future__ import annotations

import collections
import contextlib
import functools

import anyio
from anyio import lowlevel

from creche import Message, Node, Worker, WorkerError, get_current_worker, work


class Poke(Message, bubble=False):
    """A message for the node that it is posted to; it does not bubble."""

    def __init__(self, number):
        self.number = number


class Rise(Message):
    """A message that bubbles up to the root."""


class Actor(Node):
    """A node that records what its handlers get."""

    def __init__(self, name, stage, parent=None):
        super().__init__(name, parent=parent)
        self.stage = stage
        stage.nodes.append(self)

    def on_worker_state_changed(self, event):
        self.stage.events.append((event.worker, event.state))

    def on_poke(self, message):
        self.stage.poked[message.number] += 1
        self.stage.wake()

    async def on_rise(self, message):
        await lowlevel.checkpoint()


class Stage:
    """What a program has created, for code that inspects or cancels it."""

    def __init__(self):
        self.nodes = []
        self.workers = []
        self.groups = []
        self.limiters = []
        self.events = []
        self.poked = collections.Counter()
        self.sent = {}
        self.unwinds = lambda: None
        """Called by a worker that is cancelled and takes several steps to end."""
        self.wake = lambda: None
        """Called when a message is handled."""
        self.falls_asleep = lambda: None
        """Called when the program has nothing more to do until it is cancelled or woken."""

    def node(self, name="app", parent=None):
        return Actor(name, self, parent)

    def keep(self, worker):
        self.workers.append(worker)
        return worker

    def group(self, node, *args, **kwargs):
        group = node.group(*args, **kwargs)
        self.groups.append(group)
        return group

    def limiter(self, tokens):
        limiter = anyio.CapacityLimiter(tokens)
        self.limiters.append(limiter)
        return limiter

    @property
    def root(self):
        return self.nodes[0] if self.nodes else None


async def quick():
    await lowlevel.checkpoint()


async def slower():
    for _ in range(5):
        await lowlevel.checkpoint()


async def result_of(worker):
    """Await a worker that may be cancelled in the meantime."""
    with contextlib.suppress(WorkerError):
        return await worker


def add(node, worker, **options):
    """Add a worker that may already be cancelled."""
    with contextlib.suppress(WorkerError):
        node.workers.add_worker(worker, **options)


async def plain(stage):
    async with stage.node() as app:
        first = stage.keep(app.run_worker(quick, name="first"))
        stage.keep(app.run_worker(slower(), name="second"))
        await result_of(first)
        stage.keep(app.run_worker(quick, name="third"))


async def deaf(stage):
    """A node without handlers, which creates no messages."""
    app = Node("app")
    stage.nodes.append(app)
    async with app:
        first = stage.keep(app.run_worker(slower, name="first"))
        stage.keep(app.run_worker(quick, name="second"))
        await result_of(first)


async def enqueued(stage):
    async with stage.node() as app:
        group = stage.group(app, "some", limit=2)
        for number in range(5):
            stage.keep(group.run_worker(quick, name=str(number)))
        await lowlevel.checkpoint()
        stage.keep(group.run_worker(quick, name="late"))
        await group.wait()


async def restarted(stage):
    await overflow(stage, "restart")


async def dropped(stage):
    await overflow(stage, "drop")


async def latest(stage):
    await overflow(stage, "keep_latest")


async def overflow(stage, rule):
    async with stage.node() as app:
        group = stage.group(app, "one", limit=1, overflow=rule)
        for number in range(3):
            stage.keep(group.run_worker(slower, name=str(number)))
            await lowlevel.checkpoint()
        stage.keep(group.run_worker(quick, name="late"))


async def exclusive(stage):
    async with stage.node() as app:
        group = stage.group(app, "limited", limit=1)
        for number in range(3):
            stage.keep(app.run_worker(slower, name=str(number), exclusive=True))
            stage.keep(group.run_worker(slower, name=f"limited {number}", exclusive=True))
            await lowlevel.checkpoint()


class Own(Worker):
    """A worker that defines its work in ``run()``."""

    async def run(self):
        self.update(total_steps=3)
        for _ in self.track(range(3)):
            await lowlevel.checkpoint()


async def unstarted(stage):
    app = stage.node()
    stage.keep(app.run_worker(quick, name="early", start=False))
    group = stage.group(app, "some", limit=1)
    async with app:
        for number in range(2):
            stage.keep(group.run_worker(quick, name=str(number), start=False))
            add(app, stage.keep(Own(app, name=f"own {number}")), exclusive=False)
        stage.keep(app.run_worker(quick(), name="coroutine", start=False))
        app.workers.start_all()
        stage.keep(app.run_worker(quick, name="never", start=False))
        add(app, stage.keep(Worker(app, quick, name="added")))


async def threads(stage):
    def work():
        worker = get_current_worker()
        for _ in worker.track(range(2)):
            worker.check_cancelled()
        return 1

    async with stage.node() as app:
        limiter = stage.limiter(1)
        for number in range(2):
            name = f"thread {number}"
            stage.keep(app.run_worker(work, name=name, thread=True, limiter=limiter))
        left = app.run_worker(work, name="left", thread=True, abandon_on_cancel=True)
        stage.keep(left)
        await result_of(stage.keep(app.run_worker(work, name="last", thread=True)))


async def loops(stage):
    """Async work in a thread, in an event loop of its own."""
    async with stage.node() as app:
        limiter = stage.limiter(1)
        stage.keep(app.run_worker(slower, name="first", thread=True, limiter=limiter))
        await result_of(stage.keep(app.run_worker(quick, name="second", thread=True)))


async def calls(stage):
    """Calls from threads to the event loop."""
    async with stage.node() as app:

        def work():
            app.call_from_thread(len, "four")
            app.call_from_thread(slower)
            app.post_message(Rise())
            stage.keep(app.run_worker(quick, name="from a thread"))
            app.call_from_thread(quick)

        limiter = stage.limiter(1)
        stage.keep(app.run_worker(work, name="first", thread=True, limiter=limiter))
        stage.keep(app.run_worker(work, name="second", thread=True))


async def nested(stage):
    async with stage.node() as app:

        async def serve():
            async with stage.node("page", app) as page:
                stage.keep(page.run_worker(slower, name="in page"))
                await lowlevel.checkpoint()

        stage.keep(app.run_worker(serve, name="serves"))
        async with stage.node("panel", app) as panel:
            stage.keep(panel.run_worker(quick, name="in panel"))
            async with stage.node("button", panel) as button:
                stage.keep(button.run_worker(slower, name="in button", daemon=True))
                await lowlevel.checkpoint()


async def mounted(stage):
    async with stage.node() as app:
        with contextlib.suppress(WorkerError):
            panel = await app.mount(stage.node("panel"))
            stage.keep(panel.run_worker(slower, name="in panel"))
            other = await app.mount(stage.node("other"))
            stage.keep(other.run_worker(anyio.sleep_forever, name="in other"))
            inner = await other.mount(stage.node("inner"))
            stage.keep(inner.run_worker(anyio.sleep_forever, name="in inner"))
            await lowlevel.checkpoint()
            await other.remove()


async def shut(stage):
    async with stage.node() as app:
        group = stage.group(app, "some", limit=1)
        for number in range(3):
            stage.keep(group.run_worker(anyio.sleep_forever, name=str(number)))
        stage.keep(app.run_worker(anyio.sleep_forever, name="daemon", daemon=True))
        with contextlib.suppress(WorkerError):
            panel = await app.mount(stage.node("panel"))
            stage.keep(panel.run_worker(quick, name="in panel"))
        app.post_message(Rise())
        await app.shutdown()


async def messages(stage):
    async with stage.node() as app:

        async def read():
            async with app.subscribe(Message, tree=True) as events:
                async for _ in events:
                    pass

        stage.keep(app.run_worker(read, name="reads", daemon=True))
        async with stage.node("page", app) as page:
            add(page, stage.keep(Own(page, name="own")))
            for _ in range(2):
                page.post_message(Rise())
                app.post_message(Rise())
                await lowlevel.checkpoint()


async def read_outside(stage):
    """A reader above the node that it reads from; it ends when that node has closed."""
    async with stage.node("top") as top:
        app = stage.node("app")

        async def read():
            async with app.subscribe(Worker.StateChanged, Worker.ProgressChanged) as events:
                async for _ in events:
                    pass

        with contextlib.suppress(WorkerError):
            await top.start_worker(read, name="reads")
            async with app:
                add(app, stage.keep(Own(app, name="own")))


async def started(stage):
    async with stage.node() as app:
        group = stage.group(app, "some", limit=1)
        for number in range(3):
            stage.keep(await group.start_worker(slower, name=str(number)))
        group.limit = 2
        stage.keep(await group.start_worker(quick, name="wider"))


async def queue(stage):
    send, receive = anyio.create_memory_object_stream(1)
    with send, receive:
        async with stage.node() as app:

            async def consume():
                async for _ in receive:
                    await lowlevel.checkpoint()

            for number in range(2):
                stage.keep(app.run_worker(consume, name=f"consumes {number}", daemon=True))
            for number in range(3):
                with contextlib.suppress(anyio.WouldBlock):  # if all of them are cancelled
                    send.send_nowait(number)
                await lowlevel.checkpoint()


async def waited(stage):
    async with stage.node() as app:
        worker = stage.keep(app.run_worker(slower, name="awaited"))
        for number in range(2):
            stage.keep(app.run_worker(lambda: result_of(worker), name=f"waits {number}"))
        await app.workers.wait_for_complete()
        await app.workers.wait_for_complete([stage.keep(app.run_worker(quick, name="last"))])


async def cancelled(stage):
    """A program that cancels in every way itself."""
    with anyio.CancelScope() as scope:
        async with stage.node() as app:
            group = stage.group(app, "some", limit=1)
            for number in range(4):
                stage.keep(group.run_worker(anyio.sleep_forever, name=str(number)))
            await lowlevel.checkpoint()
            stage.workers[0].cancel("not needed")
            await lowlevel.checkpoint()
            app.workers.cancel_group(app, "some")
            stage.keep(app.run_worker(anyio.sleep_forever, name="last"))
            async with stage.node("page", app) as page:
                stage.keep(page.run_worker(anyio.sleep_forever, name="in page"))
                await lowlevel.checkpoint()
                page.cancel()
            app.workers.cancel_all()
            stage.keep(app.run_worker(anyio.sleep_forever, name="outlived"))
            await lowlevel.checkpoint()
            scope.cancel()


async def failing(stage):
    async def fail():
        await lowlevel.checkpoint()
        raise ValueError("burnt")

    async with stage.node() as app:
        worker = stage.keep(app.run_worker(fail, name="fails", exit_on_error=False))
        stage.keep(app.run_worker(slower, name="sibling"))
        await result_of(worker)


async def unwinding(stage):
    """Workers that take several steps to end when they are cancelled."""

    async def stay():
        try:
            await anyio.sleep_forever()
        finally:
            stage.unwinds()
            with anyio.CancelScope(shield=True):
                for _ in range(5):
                    await lowlevel.checkpoint()

    async with stage.node() as app:
        for number in range(2):
            stage.keep(app.run_worker(stay, name=str(number)))
        async with stage.node("page", app) as page:
            stage.keep(page.run_worker(stay, name="in page"))
            await slower()
            page.cancel()
        app.cancel()


class Declared(Actor):
    @work(limit=1)
    async def fetch(self):
        await lowlevel.checkpoint()

    @work(thread=True)
    def count(self):
        return 1


async def declared(stage):
    async with Declared("app", stage) as app:
        for _ in range(2):
            stage.keep(app.fetch())
        stage.keep(app.count())
        app.snapshot()
        repr(app.workers)


ALL = {
    each.__name__: each
    for each in (
        *(plain, deaf, enqueued, restarted, dropped, latest, exclusive, unstarted),
        *(threads, loops, calls, nested, mounted, shut, messages, read_outside),
        *(started, queue, waited, cancelled, failing, unwinding, declared),
    )
}


async def asleep(stage):
    """A program that idles until its worker is cancelled or a message arrives."""
    woken = anyio.Event()
    stage.wake = woken.set
    async with stage.node() as app, stage.node("page", app) as page:
        group = stage.group(page, "some")
        worker = stage.keep(group.run_worker(woken.wait, name="sleeps"))
        stage.falls_asleep()
        await result_of(worker)


async def asleep_at_the_end(stage):
    """A program that idles while its block is being left."""
    woken = anyio.Event()
    stage.wake = woken.set
    async with stage.node() as app:
        group = stage.group(app, "some", limit=1)
        stage.keep(group.run_worker(woken.wait, name="sleeps"))
        await slower()
        stage.falls_asleep()


async def asleep_in_a_thread(stage):
    def wait():
        get_current_worker().cancelled_event.wait()

    async with stage.node() as app:
        group = stage.group(app, "some")
        worker = stage.keep(await group.start_worker(wait, name="sleeps", thread=True))
        stage.wake = worker.cancel
        stage.falls_asleep()


ASLEEP = {each.__name__: each for each in (asleep, asleep_at_the_end, asleep_in_a_thread)}


async def busy(begun):
    """Run all programs concurrently, again and again, until interrupted."""
    async with Actor("top", Stage()) as top:
        group = top.group("programs", limit=6)
        begun()
        while True:
            top.stage.events.clear()
            for each in ALL.values():
                group.run_worker(functools.partial(each, Stage()))
            await group.wait()
