"""Runs Textual's workers on Creche. Change one line of your app: ``class MyApp(Creche, App)``.

``App``, ``@work``, messages, states and errors are still Textual's. Each worker is also a Creche
worker. The app has a node, which lives in its own task while ``run_async()`` or ``run_test()``
runs. Each screen and widget that runs work has a node below it, from its first worker until Textual
unmounts it. Needs Textual: ``pip install 'creche[textual]'``.
"""

from __future__ import annotations

from importlib import import_module

try:
    import_module("textual")
except ImportError:
    raise ImportError("creche.textual needs Textual: pip install 'creche[textual]'") from None

from ._app import Creche
from ._manager import WorkerManager
from ._worker import Worker

__all__ = ["Creche", "Worker", "WorkerManager"]

for _public in (Creche, Worker, WorkerManager):
    _public.__module__ = __name__
