"""Textual's workers on Creche: one changed line, ``class MyApp(Creche, App)``.

``App``, ``@work``, messages, states and errors stay Textual's. Each worker is Creche's as well. The
app has a node, in a task of its own from the start of ``run_async()`` or ``run_test()`` to the
end. Below it is one for each screen and widget that runs work, from its first worker until Textual
unmounts it. It needs Textual: ``pip install 'creche[textual]'``.
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
