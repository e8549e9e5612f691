"""The machine that users run on workers of their own: how it works.

Hypothesis draws programs. A program is a tree of nodes and what is done to it, one step after
another: nodes are opened and left, workers run and are cancelled, threads call, messages are
posted. Each kind of step is a rule, and a rule draws whom it concerns from bundles: of nodes, of
workers that were started, of those that were not, and so on.

A step is one visit to the event loop, which has a thread of its own. The step acts, then the loop
goes round until every task waits. So nothing moves while Hypothesis draws, and the same draws give
the same program: what has failed fails again, and can be shrunk.

The work of each worker is a script, and a ``Play`` logs what it really does. The log is the oracle.
No invariant believes what a worker says of itself: its state, its result and what it announced
are compared with the log of its work, and with the model, which keeps what the rules did to it and
what must follow. Between the steps the invariants are looked at, all of them each time, in a fixed
order. What is seen to be wrong in the midst of a step, say work that is entered above the limit, is
noted there and told by the next look. All faults are raised in one line, ``WorkerMachine.fail()``:
so Hypothesis reports one of them, the simplest.

Chance does not find races. So each that is feared is a rule that sets its own scene and does the
two things that race without a checkpoint between them, or with a drawn number. It calls ``saw()``
where the race has come about: the one thing was under way as the other came. The machine counts
the programs in which it did, so that a race that is never met does not count as tested. The other
things that are feared, an error that takes no note and the like, are counted the same way.

At the end everything is let go and cancelled. All must end, the invariants hold once more, and no
task, no thread and no worker may be left.

``WorkerMachine`` is one class, which has no rule of its own: ``machine`` has what it knows, the
step, the look and the end. ``world`` is the loop, ``logs`` the silence round it, ``model`` what was
done, ``bundles`` what rules draw from, ``acts`` what they do on the loop. All else are functions of
a machine that are added to it by a decorator as their modules are imported here: the rules in
``nodes``, ``running``, ``cancels``, ``calls`` and ``races``, the invariants in
``worker_invariants`` and ``node_invariants``, and both in ``progress``.
"""

from __future__ import annotations

# In the order that the invariants are looked at.
from . import worker_invariants  # isort: skip
from . import node_invariants  # isort: skip
from . import progress  # isort: skip
from . import calls, cancels, nodes, races, running
from .machine import NAMED, RACES, WorkerMachine

__all__ = [
    "NAMED",
    "RACES",
    "WorkerMachine",
    "calls",
    "cancels",
    "node_invariants",
    "nodes",
    "progress",
    "races",
    "running",
    "worker_invariants",
]
