"""The machine that users run on workers of their own."""

from __future__ import annotations

from ._races import Races


class WorkerMachine(Races):
    """Does everything to a tree of nodes that a program can do, and looks at what must hold.

    A Hypothesis ``RuleBasedStateMachine``. Work is scripted, see ``Play``; the logs of the scripts
    are what the invariants believe. A subclass puts workers of its own to the test by overriding
    ``make_worker``, and is run as a test case::

        class TestMine(MyMachine.TestCase): ...

    ``backend`` and ``backend_options`` say what it runs on. Where workers make something else of
    the outcome of their work than Creche does, override ``expected_states`` as well.

    Threads:
        The event loop has a thread of its own. Each rule is one visit to it, after which nothing
        moves until the next.
    """
