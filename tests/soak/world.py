"""The world of one episode: its nodes with their handlers, and the actors."""

from __future__ import annotations

import random
import time
from collections import deque

import anyio
from books import BaseExceptionGroup, Books, Planted, PlantedExit

from creche import Message, Node, WorkerError, WorkerFailed, get_current_worker, work

MOST_JOBS = 120
MOST_NODES = 14
KEPT = 200  # last steps, printed with a failure


class Ping(Message, bubble=True, namespace="soak"):
    """A message with a number, and something for its handler to do."""

    def __init__(self, number, deed):
        self.number = number
        self.deed = deed


class Poke(Ping, bubble=False, namespace="soak"):
    """A message whose handler, on nodes that have one, is a worker."""


class SoakNode(Node):
    """A node that knows its world; it has no handlers."""

    handles_pings = False
    hears_changes = False

    def __init__(self, world, name, parent=None):
        self.world = world
        self.was_opened = False
        self.told = []
        super().__init__(name, parent=parent)

    async def __aenter__(self):
        await super().__aenter__()
        self.was_opened = True
        return self

    def is_below(self, other):
        node = self
        while node is not None and node is not other:
            node = node.parent
        return node is not None


class Told(SoakNode):
    """A node with sync handlers, which always run to their end."""

    handles_pings = True
    hears_changes = True

    def on_worker_state_changed(self, event):
        self.told.append(event)

    def on_soak_ping(self, message):
        self.world.books.handle(self, message)
        actor = self.world.actor("handler", self)
        if message.deed == "act":
            actor.step_sync(self)
        if actor.rng.random() < 0.2:
            message.stop()
        actor.trouble(f"the handler of {message.number}", self.world.handler_trouble)


class AsyncTold(SoakNode):
    """A node with async handlers, which are sure to run only up to their first checkpoint."""

    handles_pings = True

    async def on_worker_progress_changed(self, event):
        await anyio.lowlevel.checkpoint()

    async def on_soak_ping(self, message):
        self.world.books.handle(self, message)
        actor = self.world.actor("handler", self)
        await actor.nap()
        if message.deed == "act":
            await actor.step(self)
        actor.trouble(f"the handler of {message.number}", self.world.handler_trouble)


class Worky(Told):
    """A node with a handler that is a worker."""

    hears_changes = False

    @work(exit_on_error=False)
    async def on_soak_poke(self, message):
        job = self.world.books.job(self, "handler")
        actor = self.world.actor("worker", self)
        job.enter(get_current_worker())
        try:
            actor.me = job.worker
            await actor.step(self)
            actor.trouble(job.name, self.world.worker_trouble)
        finally:
            job.leave()
        return job.value


class Actor:
    """An actor takes random steps: a task, a handler, a worker, a thread or a signal handler."""

    def __init__(self, world, seed, place, home=None):
        self.world = world
        self.rng = random.Random(seed)
        self.place = place
        self.home = home  # the node that the actor runs in, if any
        self.me = None  # the worker that the actor is, if any

    def child(self, place, home=None):
        return Actor(self.world, self.rng.random(), place, home)

    def chance(self, probability):
        return self.rng.random() < probability

    async def nap(self):
        if self.chance(0.5):
            await anyio.lowlevel.checkpoint()
        else:
            await anyio.sleep(self.rng.expovariate(1 / self.world.pace))

    def sleep(self):
        time.sleep(self.rng.expovariate(1 / self.world.pace))

    def trouble(self, where, probability):
        if self.chance(probability):
            exits = "exits" in self.world.enabled and self.chance(0.05)
            raise self.world.books.plant(where, PlantedExit if exits else Planted)

    def any_node(self, near=None):
        if near is not None and self.chance(0.6):
            return near
        nodes = self.world.nodes
        if (
            self.place in {"thread", "foreign", "signal"}
            and "early_threads" not in self.world.enabled
        ):
            nodes = [node for node in nodes if node.was_opened]
        return self.rng.choice(nodes) if nodes else None

    def any_job(self):
        jobs = [job for job in self.world.books.jobs[-40:] if job.worker is not None]
        return self.rng.choice(jobs) if jobs else None

    def _choose(self, near, *, is_async):
        acts = self.world.acts(self.place, is_async=is_async)
        if not acts:
            return None, None
        act = self.rng.choices(acts, [each.weight for each in acts])[0]
        node = self.any_node(near)
        self.world.note(f"{self.place} {act.name} on {node and node.path}")
        return act, node

    async def step(self, near=None):
        """Take one step; only errors that are meant to propagate are raised."""
        act, node = self._choose(near, is_async=True)
        try:
            outcome = act.function(self, node)
            if act.is_async:
                await outcome
        except WorkerFailed:
            raise  # relayed from another worker
        except WorkerError as error:
            self.world.refusals[act.name, type(error).__name__] += 1

    def step_sync(self, near=None):
        act, node = self._choose(near, is_async=False)
        if node is None:
            return
        try:
            act.function(self, node)
        except WorkerError as error:
            self.world.refusals[act.name, type(error).__name__] += 1


class World:
    """The state of one episode."""

    def __init__(self, seed, backend, names, enabled, table, refusals):
        self.rng = random.Random(seed)
        self.backend = backend
        self.books = Books()
        self.refusals = refusals
        self.history = deque(maxlen=KEPT)
        self.nodes = []
        self.mounted = []
        self.limiter = anyio.CapacityLimiter(2)
        self.tasks = None  # a task group for actors outside of all nodes
        self._began = time.monotonic()
        # Each episode has a mood: some things never happen in it, others happen often.
        self.enabled = {name for name in names if self.rng.random() < 0.75} & enabled
        self.pace = self.rng.choice((0.0005, 0.001, 0.003))
        self.worker_trouble = self.rng.choice((0, 0, 0.03, 0.3)) * ("errors" in enabled)
        self.handler_trouble = self.rng.choice((0, 0, 0, 0.1)) * ("handler_errors" in enabled)
        self._table = table
        self._acts = {}

    def note(self, text):
        self.history.append(f"{(time.monotonic() - self._began) * 1000:7.1f} ms  {text}")

    def acts(self, place, *, is_async):
        key = place, is_async
        if key not in self._acts:
            self._acts[key] = [
                act
                for act in self._table
                if act.is_for(place)
                and (is_async or not act.is_async)
                and (act.feature is None or act.feature in self.enabled)
            ]
        return self._acts[key]

    def actor(self, place, home=None):
        return Actor(self, self.rng.random(), place, home)

    def can_have_job(self):
        return len(self.books.jobs) < MOST_JOBS

    def can_have_node(self):
        return len(self.nodes) < MOST_NODES

    def new_node(self, rng, parent=None):
        kinds = [SoakNode]
        if "handlers" in self.enabled:
            kinds += [Told, AsyncTold]
        if "handler_workers" in self.enabled:
            kinds.append(Worky)
        node = rng.choice(kinds)(self, f"n{len(self.nodes)}", parent=parent)
        if "groups" in self.enabled:
            for rule in ("enqueue", "restart", "drop", "keep_latest"):
                if rng.random() < 0.4:
                    group = node.group(rule, limit=rng.randint(1, 3), overflow=rule)
                    self.books.limits[node, rule] = group.limit
        self.nodes.append(node)
        return node

    def spawn(self, actor, act, *args):
        """Start an actor in a task outside of all nodes."""
        self.tasks.start_soon(self._guard, actor.child("task"), act, *args)

    async def _guard(self, actor, act, *args):
        try:
            await act(actor, *args)
        except BaseException as error:
            self.finish(error, f"a task ({act.__name__})")

    def finish(self, error, where):
        """Record an error that was raised; let any cancellation in it propagate."""
        cancelled = anyio.get_cancelled_exc_class()
        if isinstance(error, cancelled):
            raise error
        away, rest = None, error
        if isinstance(error, BaseExceptionGroup):
            away, rest = error.split(lambda leaf: isinstance(leaf, cancelled))
        if rest is not None:
            self.books.surface(rest, where)
        if away is not None:
            raise away
