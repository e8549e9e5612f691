"""The ways of running work elsewhere that are tested. To add one, add a line to ``WAYS``."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import multiprocessing
import sys
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from contextvars import copy_context

import anyio
from anyio import lowlevel

from creche.ways import Far, OnExecutor, Processes


class Threads:
    """A plain engine that starts a thread for each job. It does the minimum that is required."""

    async def __call__(self, job):
        payload, token, done = job.pack(), lowlevel.current_token(), anyio.Event()
        may_begin, fars, outcomes = Future(), [], []

        def send(message):
            job.receive(message, may_begin.set_result)
            return may_begin.result()

        def run():
            fars.append(Far(payload, send))
            outcomes.append(fars[0].run())
            token.backend_class.run_sync_soon(done.set, (), token.native_token)

        # In the loop's context, as new threads are in free-threaded Python from 3.14 on.
        threading.Thread(target=copy_context().run, args=(run,)).start()
        try:
            await done.wait()
        except anyio.get_cancelled_exc_class():
            job.notice_cancellation()
            for far in fars:
                far.stop(job.cancel_reason)
            await job.outlast(done.wait)
        return job.open(outcomes[0])


@contextlib.contextmanager
def processes():
    yield Processes(2, grace=30)


@contextlib.contextmanager
def standard_pool():
    yield OnExecutor(pool("spawn"))


WAYS = {"threads": lambda: contextlib.nullcontext(Threads()), "pool": standard_pool}
if sys.platform != "win32":
    WAYS["processes"] = processes


@contextlib.contextmanager
def dask():
    from creche.dask import OnDask  # noqa: PLC0415 (an extra)

    yield OnDask(client())


if importlib.util.find_spec("distributed"):
    WAYS["dask"] = dask

_pools = {}


def pool(method):
    """Return a pool of one process, created and warmed up once, so no test counts its threads."""
    if method not in _pools:
        context = multiprocessing.get_context(method)
        _pools[method] = ProcessPoolExecutor(1, mp_context=context)
        _pools[method].submit(int).result()
    return _pools[method]


@functools.cache
def client():
    """Return a client of a cluster whose workers are threads, created and warmed up once."""
    from distributed import Client, LocalCluster  # noqa: PLC0415 (an extra, slow to import)

    cluster = atexit_close(
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0")
    )
    made = atexit_close(Client(cluster))
    made.gather(made.map(abs, range(8)))
    return made


def atexit_close(what):
    atexit.register(what.close)
    return what
