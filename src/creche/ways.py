"""The ways of running work elsewhere, for ``where=``: in processes, in an executor, in any engine.

``node.run_worker(work, where=Processes())`` runs a function in a process of its own.
"""

from __future__ import annotations

from ._ground.way import Job, Resource, Way
from ._running.executor import OnExecutor
from ._running.far import Far
from ._running.processes import Processes

__all__ = ["Far", "Job", "OnExecutor", "Processes", "Resource", "Way"]

for _public in (Far, Job, OnExecutor, Processes, Resource):
    _public.__module__ = __name__
