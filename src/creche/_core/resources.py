"""What a tree of nodes keeps for the engines that run work elsewhere: lines, processes.

Each is a task in the nursery of the root. It holds the nursery only while it is ending, which
starts when nothing else is left: after the daemons, because they may use it.
"""

from __future__ import annotations

from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, cast

import anyio

from creche._ground.errors import WorkerError
from creche._ground.states import CLOSED

if TYPE_CHECKING:
    from collections.abc import Callable

    from creche._ground.way import Resource, ResourceT
    from creche._nursery.held import HeldTask

    from .node import Node


class Kept:
    """A resource of a root, and its task."""

    __slots__ = ("_scope", "is_ending", "key", "resource", "task")

    def __init__(self, key: object, resource: Resource) -> None:
        self.key = key
        self.resource = resource
        self.task: HeldTask
        self.is_ending = False
        # A root that is cancelled has workers that still need it.
        self._scope = anyio.CancelScope(shield=True)

    async def run(self, root: Node) -> None:
        """Run the resource until ``end()`` is called."""
        try:
            with self._scope:
                await self.resource.run()
        except BaseException as fault:  # noqa: BLE001 (no task of a nursery raises)
            if not isinstance(fault, root._creche_nursery.cancelled_class):
                root._creche_nursery.fail(fault)
        finally:
            self.forget(root)

    def forget(self, root: Node) -> None:
        """Take it from the root, which has no more to end: the task is over, or never began."""
        root._creche_resources.pop(id(self.key), None)

    def end(self) -> bool:
        """Make it end; return whether this was the first request."""
        if self.is_ending:
            return False
        self.is_ending = True
        self.task.hold()
        self._scope.cancel()
        return True


def get(root: Node, key: object, make: Callable[[], ResourceT]) -> ResourceT:
    """Return a resource of a root, see ``Job.resource()``."""
    kept = root._creche_resources.get(id(key))
    if kept is None:
        nursery = root._creche_nursery
        if nursery.state is CLOSED:
            raise WorkerError(f"{root._creche_label()} is closed; nothing can be made for it")
        kept = Kept(key, make())
        kept.task = nursery.spawn_held(
            partial(kept.run, root),
            partial(kept.forget, root),
            name=f"{root.path}: {key!r:.100}",
            context=Context(),
        )
        kept.task.hold_no_more()
        root._creche_resources[id(key)] = kept
    elif kept.is_ending:
        raise WorkerError(f"{root._creche_label()} is closing; nothing can be run elsewhere")
    return cast("ResourceT", kept.resource)


def end_resources(root: Node) -> bool:
    """Make all resources of a root end; return whether there were any left."""
    told = [kept.end() for kept in list(root._creche_resources.values())]
    return any(told)
